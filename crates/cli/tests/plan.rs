//! Compares forecasts with the memory of real processes, and checks limits.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::process::Command;

use common::{Ran, Scene, record};
use serde_json::Value;

/// Writes records that are so long that a batch dominates the memory.
fn write_long(scene: &Scene, name: &str, count: usize) {
    let records: Vec<_> = (0..count)
        .map(|i| {
            record(&format!("第{i}问：今晚吃什么？"), &"御膳房备了莲子羹，皇上早些歇息。".repeat(8 + i % 5))
        })
        .collect();
    scene.write(name, &format!("[\n{}\n]\n", records.join(",\n")));
}

fn plan(scene: &Scene, flags: &str) -> Value {
    serde_json::from_str(&scene.ok(&format!("plan --base base --json {flags}")).out).unwrap()
}

fn bytes(plan: &Value, part: &str) -> u64 {
    plan[part].as_u64().unwrap_or_else(|| panic!("{part} in {plan}"))
}

/// Returns the printed peak and forecast in MiB.
fn peak(ran: &Ran) -> (f64, f64) {
    let line =
        ran.out.lines().find(|line| line.starts_with("peak memory")).unwrap_or_else(|| panic!("{}", ran.out));
    let mut words = line.split_whitespace().skip(2);
    let mut size = || {
        let number: f64 = words.next().unwrap().parse().unwrap();
        number * if words.next().unwrap().starts_with("GiB") { 1024.0 } else { 1.0 }
    };
    (size(), size())
}

/// Returns whether the peak differs from the forecast by at most 3% or 50 MB, whichever is larger.
fn is_true((peak, forecast): (f64, f64)) -> bool {
    (peak - forecast).abs() <= (0.03 * forecast).max(50e6 / f64::from(1 << 20))
}

#[test]
fn the_forecast_is_the_peak_of_the_real_process() {
    let scene = Scene::new();
    write_long(&scene, "long.json", 40);
    let flags = "--base base --data long.json --max-steps 1 --gradient-accumulation-steps 1 --lora-r 4 \
                 --per-device-train-batch-size 20 --save-steps 0";
    let everything = bytes(&plan(&scene, &flags.replace("--base base", "")), "total");
    let settings = [
        String::new(),
        "--dtype bf16 --val-size 10 --packing --max-length 512 --per-device-train-batch-size 6".to_owned(),
        format!("--memory-limit {}B", everything * 7 / 10),
        format!("--memory-limit {}B --dtype bf16 --threads 1", everything / 2),
        "--quant nf4".to_owned(),
        format!("--quant fp4 --no-double-quant --dtype bf16 --memory-limit {}B", everything * 6 / 10),
    ];
    for (i, more) in settings.iter().enumerate() {
        // A flag must not be given twice, so the batch size in `more` replaces the one in `flags`.
        let flags = match more.contains("batch-size") {
            true => flags.replace("--per-device-train-batch-size 20", ""),
            false => flags.to_owned(),
        };
        let ran = scene.ok(&format!("train --output out{i} {flags} {more}"));
        let found = peak(&ran);
        assert!(is_true(found), "{more}: {found:?}");
        assert!(found.1 > 150.0, "{more}: too small to tell anything: {found:?}");
        let words = if more.contains("limit") { "under a limit of" } else { "available" };
        assert!(ran.err.contains(words) && ran.err.contains("\nlayers "), "{}", ran.err);
        assert!(scene.read(&format!("out{i}/README.md")).windows(11).any(|w| w == b"Peak memory"));
    }
    // A run with a lower memory limit writes exactly the same adapter.
    assert_eq!(scene.read("out0/adapter_model.safetensors"), scene.read("out2/adapter_model.safetensors"));
}

#[test]
fn a_run_under_a_hard_limit_just_above_its_forecast_completes() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return eprintln!("skipped: no prlimit here");
    }
    let scene = Scene::new();
    write_long(&scene, "long.json", 24);
    let flags = "--data long.json --max-steps 2 --lora-r 4 --per-device-train-batch-size 12 --threads 2";
    let total = bytes(&plan(&scene, flags), "total");
    // The address space is larger than the memory, because the whole program is mapped and stacks are
    // reserved.
    let program = fs::metadata(env!("CARGO_BIN_EXE_danlu")).unwrap().len();
    let run = |limit: u64, output: &str| {
        let line = format!("train --base base --output {output} {flags}");
        let args: Vec<&str> = line.split_whitespace().collect();
        let inner = scene.command(&args);
        let mut command = Command::new("prlimit");
        command.arg(format!("--as={limit}")).arg(inner.get_program()).args(inner.get_args());
        command.current_dir(scene.path(".")).env("LANG", "C").env_remove("DANLU_ISA");
        Ran::of(command.output().unwrap())
    };
    let ran = run(total + program + (32 << 20), "out");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(is_true(peak(&ran)), "{}", ran.out);
    // Under a lower limit, the planner stores fewer activations or rejects the run. The limits include 32 MiB
    // of address space for the stack of the thread that renders templates.
    let stack = 32 << 20;
    let less = run(total * 7 / 10 + stack, "less");
    assert!(less.code == 0 && less.err.contains("recompute from their input"), "{}", less.err);
    let none = run(total / 3 + stack, "none");
    assert_eq!(none.code, 1, "{}", none.err);
    assert!(
        none.err.contains("the limit of the address space leaves") && none.err.contains("ulimit -v"),
        "{}",
        none.err
    );
    assert!(!scene.path("none").exists());
}

#[test]
fn what_cannot_fit_is_refused_before_anything_is_loaded_or_written() {
    let scene = Scene::new();
    write_long(&scene, "long.json", 40);
    let line = "train --base base --data long.json --output out --per-device-train-batch-size 20";
    let ran = scene.run(&format!("{line} --memory-limit 120MiB"));
    assert_eq!(ran.code, 1);
    let expected = " of memory, and the limit is 120 MiB\n\nhint: use `--per-device-train-batch-size ";
    assert!(ran.err.starts_with("error: the run needs ") && ran.err.contains(expected), "{}", ran.err);
    assert!(!scene.path("out").exists());
    // The suggested setting fits, and the suggested limit fits too.
    let named = |before: &str| ran.err.split_once(before).unwrap().1.split('`').next().unwrap().to_owned();
    let size = named("`--per-device-train-batch-size ");
    let data = "plan --base base --data long.json";
    scene.ok(&format!("{data} --per-device-train-batch-size {size} --memory-limit 122MiB"));
    let limit = named("`--memory-limit ");
    scene.ok(&format!("{data} --per-device-train-batch-size 20 --memory-limit {limit}"));
    let nothing = scene.run("plan --base base --memory-limit 1MiB");
    assert!(nothing.err.contains("hint: allow more: `--memory-limit "), "{}", nothing.err);
    let bare = scene.run("plan --base base --memory-limit 8");
    assert!(bare.code == 1 && bare.err.contains("`8` has no unit; write `8GiB`"), "{}", bare.err);
    let wrong = scene.run("plan --base base --memory-limit 8XB");
    assert!(wrong.code == 1 && wrong.err.contains("`8XB`"), "{}", wrong.err);
}

#[test]
fn a_plan_needs_no_more_than_a_configuration() {
    let scene = Scene::new();
    let with_weights = plan(&scene, "");
    fs::create_dir(scene.path("bare")).unwrap();
    fs::copy(scene.path("base/config.json"), scene.path("bare/config.json")).unwrap();
    let bare: Value = serde_json::from_str(&scene.ok("plan --base bare --json").out).unwrap();
    for part in ["weights", "adapter", "optimizer", "gradients", "activations"] {
        assert_eq!(bare[part], with_weights[part], "{part}");
    }
    let (a, b) = (bytes(&bare, "total") as f64, bytes(&with_weights, "total") as f64);
    assert!(is_true((a / f64::from(1 << 20), b / f64::from(1 << 20))), "{a} {b}");

    let english = scene.ok("plan --base bare").out;
    for word in
        ["weights ", "optimizer ", "activations ", "scratch ", "all 8 store their activations", "peak "]
    {
        assert!(english.contains(word), "{english}");
    }
    let chinese = scene.ok("plan --base bare --lang zh").out;
    for word in ["权重 ", "优化器 ", "激活 ", "8 层都保留激活", "峰值 "] {
        assert!(chinese.contains(word), "{chinese}");
    }
    scene.refuses(
        "plan",
        "error: `--base` is missing: the model to plan for\n\nhint: danlu plan --base DIR [--data FILE], or --shape NAME\n",
    );
}

#[test]
fn a_limit_is_remembered_and_may_change_when_a_run_goes_on() {
    let scene = Scene::new();
    let flags = "train --base base --data data.json --num-train-epochs 2 --lora-r 2";
    scene.ok(&format!("{flags} --output straight"));
    scene.ok(&format!("{flags} --output out --memory-limit 1GiB --save-steps 3"));
    assert!(String::from_utf8(scene.read("out/run.toml")).unwrap().contains("memory_limit = \"1GiB\"\n"));
    let ran = scene.ok("train --output out --resume out/checkpoint-3 --memory-limit 900MB");
    assert!(ran.err.contains("under a limit of 859 MiB"), "{}", ran.err);
    let ran = scene.ok("plan --config out/run.toml");
    assert!(ran.out.contains("limit 859 MiB"), "{}", ran.out);
    assert_eq!(scene.read("out/adapter_model.safetensors"), scene.read("straight/adapter_model.safetensors"));
}

#[test]
fn a_gpu_that_is_not_there_is_planned_by_its_memory() {
    let scene = Scene::new();
    let gpu = plan(&scene, "--device cuda --device-memory 15GiB");
    assert_eq!(gpu["on_device"], true);
    // The CUDA context and the spare memory are subtracted first, so less than 15 GiB is available.
    let available = bytes(&gpu, "available");
    assert!((14 << 30..15 << 30).contains(&available), "{available}");
    let host = plan(&scene, "");
    assert_eq!(bytes(&gpu, "adapter"), bytes(&host, "adapter"));
    assert!(bytes(&gpu, "activations") < bytes(&host, "activations"));
    assert_eq!((bytes(&gpu, "tokenizer"), bytes(&gpu, "program")), (0, 0));
    let text = scene.ok("plan --base base --device cuda --device-memory 15GiB").out;
    assert!(text.contains("on the GPU") && !text.contains("tokenizer "), "{text}");
    assert!(text.contains("\nhost memory "), "{text}");
    assert!(bytes(&gpu, "host") > bytes(&host, "program") && bytes(&host, "host") == 0);
}

#[test]
fn a_plan_names_the_time_and_a_shape_needs_no_folder() {
    let scene = Scene::new();
    let planned = plan(&scene, "--max-steps 30");
    let number = |name: &str| planned["time"][name].as_f64().unwrap();
    assert_eq!(number("steps"), 30.0);
    assert!(number("flop_per_second") > 1e8, "{planned}");
    assert!((number("seconds") - 30.0 * number("seconds_per_step")).abs() < 1e-6);
    assert!(scene.ok("plan --base base --data data.json").out.contains("\ntime "));
    let shape = scene.ok("plan --shape base-28m --max-length 64").out;
    assert!(shape.starts_with("base-28m · ") && shape.contains(" a step "), "{shape}");
    let refused = scene.run("plan --shape base-28m --base base");
    assert_eq!(refused.code, 1, "{}", refused.out);
}
