//! Tests the anonymous memory of `danlu merge`. The limit is twice the largest tensor, plus 200 MB.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::process::Stdio;
use std::time::Duration;

use common::{Scene, record};
use danlu_adapter::{Adapter, LoraConfig};
use danlu_kernels::Reference;
use danlu_model::{Preset, RandomWeights};

/// Returns the largest `RssAnon` of a running process, in bytes.
fn anonymous_peak(child: &mut std::process::Child) -> u64 {
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        std::thread::sleep(Duration::from_millis(1));
    }
    peak
}

#[test]
fn a_merge_holds_a_few_times_the_largest_tensor_and_little_more() {
    let scene = Scene::new();
    // The model has small layers and a vocabulary about as large as Llama 3's, so that logits dominate the
    // memory.
    let mut config = Preset::Base8m.config();
    (config.vocab_size, config.hidden_size, config.head_dim) = (131_072, 64, 16);
    config.num_hidden_layers = 2;
    let weights = RandomWeights { config: &config, seed: 1, threads: 2 };
    let base = scene.path("large");
    weights.write(&base, 1 << 40, &mut |_| ControlFlow::Continue(())).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(scene.path("base").join(name), base.join(name)).unwrap();
    }
    let mut lora = LoraConfig::new(8, 32.0);
    lora.base_model_name_or_path = Some("large".to_owned());
    let backend = Reference::new();
    fs::create_dir(scene.path("adapter")).unwrap();
    Adapter::init(lora, &config, 1, &backend).unwrap().save(&scene.path("adapter"), &backend).unwrap();
    let records: Vec<_> =
        (0..4).map(|i| record(&format!("第{i}问"), &"御膳房备了莲子羹，皇上早些歇息。".repeat(20))).collect();
    scene.write("long.json", &format!("[{}]", records.join(",")));

    let args = ["merge", "adapter", "--output", "merged", "--data", "long.json"];
    let mut child = scene.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let peak = anonymous_peak(&mut child);
    let ran = common::Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.err);
    let largest = (2 * config.vocab_size * config.hidden_size) as u64;
    println!("peak {} MB, the largest tensor has {} MB", peak / 1_000_000, largest / 1_000_000);
    println!("{}", ran.err);
    let tokens =
        ran.err.split_once("4 records of long.json, ").and_then(|(_, rest)| rest.split_once(" tokens"));
    let tokens: usize = tokens.expect(&ran.err).0.parse().unwrap();
    // The logits of one text of over 200 tokens take 100 MB or more per model.
    assert!(tokens > 4 * 200, "{tokens}");
    assert!(peak > 10_000_000 && peak < 2 * largest + 200_000_000, "{peak} bytes");
}
