//! Tests the memory forecasts of commands that do not train. The forecasts are compared with real processes,
//! with and without limits.
#![cfg(target_os = "linux")]

mod common;

use std::process::Command;

use common::{Ran, Scene};
use danlu_hub_test_server::HubServer;

/// Returns the number of bytes in the line that starts with `label`, such as `1.50 GiB`.
fn bytes_after(text: &str, label: &str) -> f64 {
    let line =
        text.lines().find_map(|line| line.strip_prefix(label)).unwrap_or_else(|| panic!("{label}: {text}"));
    let (number, unit) = line.trim().split_once(' ').unwrap();
    let unit = if unit == "GiB" { 1u64 << 30 } else { 1 << 20 };
    number.parse::<f64>().unwrap() * unit as f64
}

/// Returns a scene with an adapter in `out`.
fn trained() -> Scene {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 1 --lora-r 2 --val-size 2");
    scene
}

#[test]
fn forecasts_are_the_peaks_of_the_real_processes() {
    let (mut scene, server) = (trained(), HubServer::start());
    scene.copy_base();
    scene.endpoint = server.endpoint();
    server.add_user("me", "hf_mine");
    std::fs::create_dir(scene.path("hf")).unwrap();
    scene.write("hf/token", "hf_mine");
    for (line, device) in [
        ("push out me/adapter", ""),
        ("push base me/base", ""),
        ("chat out --prompt 你好 --max-new-tokens 4", " --device cpu"),
        ("chat out --prompt 你好 --max-new-tokens 4 --quant nf4", " --device cpu"),
        ("compare out --replies 1 --max-new-tokens 4", " --device cpu"),
        ("merge out --output merged", " --device cpu"),
        ("quantize base --output base-nf4", " --device cpu"),
    ] {
        let ran = scene.ok(&format!("{line} --verbose{device}"));
        let (predicted, peak) =
            (bytes_after(&ran.err, "predicted peak "), bytes_after(&ran.err, "peak memory "));
        println!("{line}: {:.0} MB predicted, {:.0} MB measured", predicted / 1e6, peak / 1e6);
        assert!((predicted - peak).abs() <= (0.03 * predicted).max(50e6), "{line}: {predicted} {peak}");
    }
}

/// Runs a command under growing limits of its address space. Returns how often the forecast rejected the
/// command.
fn refusals(scene: &Scene, line: &str) -> usize {
    let args: Vec<&str> = line.split_whitespace().collect();
    let mut refused = 0;
    for mib in (60..=400).step_by(6) {
        let inner = scene.command(&args);
        let mut command = Command::new("prlimit");
        command.arg(format!("--as={}", mib << 20)).arg(inner.get_program()).args(inner.get_args());
        let ran = Ran::of(command.current_dir(scene.path(".")).env("LANG", "C").output().unwrap());
        assert!(ran.code == 0 || ran.code == 1 && ran.err.contains("error: "), "{mib} MiB: {}", ran.err);
        if ran.err.contains("the limit of the address space leaves") {
            assert!(ran.code == 1 && ran.err.contains("hint: raise the limit"), "{}", ran.err);
            refused += 1;
        }
        if ran.code == 0 {
            return refused;
        }
    }
    panic!("`{line}` does not fit into 400 MiB")
}

#[test]
fn a_small_address_space_is_refused_before_the_work_begins() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return eprintln!("skipped: no prlimit here");
    }
    let scene = trained();
    assert!(refusals(&scene, "chat out --prompt hi --max-new-tokens 2 --device cpu") > 0);
    assert!(refusals(&scene, "merge out --output merged --device cpu") > 0);
    // Under some of the limits, the memory is enough for the command but not for the stacks of its threads.
    refusals(&scene, "quantize base --output base-nf4 --threads 2");
}

#[test]
fn a_push_without_room_for_its_tokenizer_is_refused() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return eprintln!("skipped: no prlimit here");
    }
    let scene = trained();
    // The file need not be a tokenizer: the forecast comes from its size, before it is read.
    std::fs::File::create(scene.path("out/tokenizer.json")).unwrap().set_len(100 << 20).unwrap();
    let inner = scene.command(&["push", "out", "me/adapter", "--dry-run"]);
    let mut command = Command::new("prlimit");
    command.arg(format!("--as={}", 1u64 << 30)).arg(inner.get_program()).args(inner.get_args());
    let ran = Ran::of(command.current_dir(scene.path(".")).env("LANG", "C").output().unwrap());
    assert!(ran.err.contains("cannot push `out`: it needs at least 1.50 GiB"), "{}", ran.err);
    assert_eq!(ran.code, 1);
}
