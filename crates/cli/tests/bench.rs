//! Runs each measurement on the smallest shape. The tests check that results exist, and not how large the
//! measured values are.

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Ran, Scene, names};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Runs a command with `--json`, asserts that it succeeds, and returns its results.
fn figures(scene: &Scene, line: &str) -> Value {
    let line = format!("bench {line} --json");
    let args: Vec<&str> = line.split_whitespace().collect();
    let ran = Ran::of(scene.command(&args).env("TMPDIR", scene.path(".")).output().unwrap());
    assert_eq!(ran.code, 0, "{line}\n{}", ran.err);
    assert_eq!(ran.out.lines().count(), 1, "{}", ran.out);
    serde_json::from_str(&ran.out).unwrap()
}

/// Asserts that the result of each key is above 0.
fn positive(figures: &Value, keys: &[&str]) {
    for key in keys {
        assert!(figures[key].as_f64().is_some_and(|v| v > 0.0), "{key} in {figures}");
    }
}

const MEMORY: [&str; 2] = ["peak_memory_bytes", "peak_anonymous_bytes"];

#[test]
fn training_is_measured_in_tokens_flop_seconds_and_bytes() {
    let scene = Scene::new();
    let line = "train --shape base-8m --batch 2x16 --gradient-accumulation-steps 2 --steps 3 --warm-up 1 \
                --dtype f32 --lora-r 4";
    let f = figures(&scene, line);
    let expected = serde_json::json!({
        "bench": "train", "model": "base-8m", "random_weights": true, "parameters": 7_999_744,
        "weight_bytes": 15_999_488, "dtype": "f32", "random_tokens": true, "batch_sequences": 2,
        "gradient_accumulation_steps": 2, "lora_r": 4, "trainable_parameters": 149_504, "steps": 3, "warm_up": 1,
        // There are three steps of four sequences. The first token of each sequence has no loss.
        "useful_tokens": 3 * 4 * 16, "labelled_tokens": 3 * 4 * 15,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(f[key], *value, "{key}");
    }
    let measured = ["useful_tokens_per_second", "labelled_tokens_per_second", "gflop_per_second", "seconds"];
    positive(&f, &measured);
    positive(&f, &["median_step_seconds", "slowest_step_seconds", "mean_loss"]);
    if cfg!(target_os = "linux") {
        positive(&f, &MEMORY);
    }
    assert_eq!(names(&scene.path(".")), ["base", "data.json"]);
}

#[test]
fn training_keeps_within_a_limit_or_says_what_would() {
    let scene = Scene::new();
    let line = "train --shape base-8m --batch 4x256 --steps 1 --warm-up 0 --dtype f32";
    let free = figures(&scene, line);
    let bytes = |f: &Value, key: &str| f[key].as_u64().unwrap();
    let foreseen = bytes(&free, "foreseen_memory_bytes");
    assert_eq!((&free["layers_recomputed"], &free["memory_limit_bytes"]), (&0.into(), &Value::Null));
    let limit = foreseen - (20 << 20);
    let tight = figures(&scene, &format!("{line} --memory-limit {limit}B"));
    assert!(
        bytes(&tight, "layers_recomputed") > 0 && bytes(&tight, "foreseen_memory_bytes") <= limit,
        "{tight}"
    );
    assert_eq!(tight["mean_loss"], free["mean_loss"]);
    let four = figures(&scene, &format!("{line} --quant nf4"));
    assert!(bytes(&four, "foreseen_memory_bytes") < foreseen, "{four}");
    if cfg!(target_os = "linux") {
        for f in [&free, &tight, &four] {
            let (peak, foreseen) = (bytes(f, "peak_memory_bytes"), bytes(f, "foreseen_memory_bytes"));
            assert!(peak.abs_diff(foreseen) < 50_000_000, "{f}");
        }
    }
    // A batch that exceeds the memory is rejected before its tokens are generated.
    for batch in ["4x256", "8000x1024"] {
        let refused = scene.run(&format!(
            "bench train --shape base-8m --batch {batch} --steps 1 --warm-up 0 --dtype f32 --memory-limit 60MiB"
        ));
        assert_eq!(refused.code, 1);
        assert!(refused.err.contains("the limit is 60 MiB"), "{}", refused.err);
        assert!(refused.err.contains("--memory-limit "), "{}", refused.err);
    }
    let refused = scene.run("bench train --shape base-8m --batch 1000x1024 --steps 1 --memory-limit 1GiB");
    assert!(
        refused.err.contains("hint: use `--batch ") && refused.err.contains("`, which fits, or allow more"),
        "{}",
        refused.err
    );
    let line = "bench train --shape base-8m --batch 1048576x2 --gradient-accumulation-steps 1048576";
    let refused = scene.run(line);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("has more than 16,777,216 tokens"), "{}", refused.err);
}

#[test]
fn training_on_data_is_the_tutorials_job() {
    let scene = Scene::new();
    let ran = scene.ok("bench train --base base --data data.json --steps 2 --warm-up 0 --dtype f32");
    for text in [
        "model            base · 7,999,744 parameters, 16.0 MB\n",
        ", f32\n",
        "data.json · 12 records, 2 per micro-batch, at most 384 tokens each; 2 micro-batches per step\n",
        "adapter          r 8, alpha 32, dropout 0.1, 299,008 parameters\n",
        " useful (no padding), ",
        " slowest of 2, after 0 warm-up\n",
        "peak memory ",
    ] {
        assert!(ran.out.contains(text), "{text:?} in {}", ran.out);
    }
    let line = "train --shape base-8m --tokenizer base --data data.json --steps 1 --warm-up 0";
    let f = figures(&scene, line);
    assert_eq!((&f["random_tokens"], &f["random_weights"]), (&false.into(), &true.into()));
    assert!(f["labelled_tokens"].as_u64() < f["useful_tokens"].as_u64());
}

#[test]
fn a_prompt_is_measured() {
    let scene = Scene::new();
    let f = figures(&scene, "prefill --shape base-8m --prompt-tokens 24 --steps 2 --dtype f32 --threads 1");
    assert_eq!((&f["prompt_tokens"], &f["threads"], &f["steps"]), (&24.into(), &1.into(), &2.into()));
    positive(&f, &["tokens_per_second", "gflop_per_second", "median_prompt_seconds"]);
}

#[test]
fn several_sequences_are_decoded_against_the_read_bandwidth() {
    let scene = Scene::new();
    let line = "decode --shape base-8m --prompt-tokens 4 --new-tokens 3 --sequences 2 --steps 1 --dtype f32";
    let f = figures(&scene, line);
    assert_eq!((&f["sequences"], &f["new_tokens"], &f["bench"]), (&2.into(), &3.into(), &"decode".into()));
    positive(
        &f,
        &["tokens_per_second", "gb_per_second", "peak_read_gb_per_second", "share_of_read_bandwidth"],
    );
    let each = f["tokens_per_second_per_sequence"].as_f64().unwrap();
    assert!((2.0 * each / f["tokens_per_second"].as_f64().unwrap() - 1.0).abs() < 1e-4, "{f}");
}

#[test]
fn a_merge_is_measured_beside_a_copy_and_leaves_nothing() {
    let scene = Scene::new();
    let f = figures(&scene, "merge --base base --steps 2");
    assert_eq!((&f["merged_tensors"], &f["steps"]), (&56.into(), &2.into()));
    positive(&f, &["merge_seconds", "copy_seconds", "merge_gb_per_second", "speed_relative_to_copy"]);
    let bytes = |key: &str| f[key].as_u64().unwrap();
    assert!(bytes("copied_bytes") >= 15_999_488 && bytes("merged_bytes") >= bytes("copied_bytes"), "{f}");
    let shape = figures(&scene, "merge --shape base-8m --steps 1");
    assert_eq!(shape["random_weights"], true);
    assert_eq!(names(&scene.path(".")), ["base", "data.json"]);
}

#[test]
fn kept_weights_are_used_again_and_other_models_are_not() {
    let scene = Scene::new();
    let line = "bench prefill --shape base-8m --keep kept --prompt-tokens 4 --steps 1 --warm-up 0";
    let first = scene.ok(line);
    assert!(first.out.contains("random weights in kept · 7,999,744 parameters"), "{}", first.out);
    assert_eq!(first.err, "");
    assert_eq!(names(&scene.path("kept")), ["config.json", "generation_config.json", "model.safetensors"]);
    let again = scene.ok(&format!("{line} --lang zh"));
    assert_eq!(again.err, "使用 kept 里已有的权重\n");
    assert!(
        again.out.starts_with("模型             base-8m · 随机权重，在 kept · 7,999,744 个参数"),
        "{}",
        again.out
    );
    scene.refuses(
        "bench prefill --shape base-28m --keep kept",
        "error: `kept` holds a model that differs from `base-28m`\n\n\
         hint: name a new folder, or omit `--keep`\n",
    );
    let error = scene.run("bench prefill --shape base-28m --keep .").err;
    assert!(error.contains("the folder already holds other things, such as `base`"), "{error}");
}

#[test]
fn an_instruction_set_without_a_peak_says_so() {
    let scene = Scene::new();
    let run = |extra: &[&str]| {
        let mut args: Vec<&str> =
            "bench prefill --shape base-8m --prompt-tokens 2 --steps 1".split_whitespace().collect();
        args.extend(extra);
        Ran::of(scene.command(&args).env("DANLU_ISA", "scalar").output().unwrap())
    };
    let text = run(&[]).out;
    assert!(text.contains(" · no peak is measured for scalar\n"), "{text}");
    assert!(text.contains("f32 (the default: bf16 is not faster here)\n"), "{text}");
    let json: Value = serde_json::from_str(&run(&["--json"]).out).unwrap();
    assert!(json["share_of_peak"].is_null() && json["peak_gflop_per_second"].is_null(), "{json}");
    assert!(json["gflop_per_second"].is_number() && json["isa"] == "scalar", "{json}");
}

#[test]
fn mistakes_are_refused_before_anything_is_made() {
    let scene = Scene::new();
    scene.refuses(
        "bench train",
        "error: `--base` or `--shape` is missing: the model to measure\n\n\
         hint: the shapes are base-8m, base-28m, llama-125m, llama-3.2-1b, llama-3-8b, qwen3-0.6b, \
         gemma-3-1b, phi-4-mini\n",
    );
    scene.refuses(
        "bench decode --shape llama-9b",
        "error: invalid value `llama-9b` for `--shape <NAME>`: `llama-9b` is no shape; there are base-8m, \
         base-28m, llama-125m, llama-3.2-1b, llama-3-8b, qwen3-0.6b, gemma-3-1b, phi-4-mini\n",
    );
    scene.refuses(
        "bench train --shape base-8m --batch 2x",
        "error: invalid value `2x` for `--batch <BxL>`: `2x` is not a batch: write sequences x tokens per sequence \
         (2 or more), such as 2x512\n",
    );
    scene.refuses(
        "bench train --shape base-8m --batch 2x2000",
        "error: 2000 tokens of `--batch` exceed the model's context of 1024\n\n\
         hint: use at most 1024, or a model with a longer context\n",
    );
    scene.refuses(
        "bench train --shape base-8m --data data.json",
        "error: `--shape` has no tokenizer, and `--data` needs one\n\n\
         hint: name its folder with `--tokenizer DIR`\n",
    );
    scene.refuses(
        "bench merge --base base --keep kept",
        "error: `--keep` goes with `--shape`\n\nhint: omit `--keep`, which stores random weights\n",
    );
    scene.refuses(
        "bench prefill --base nope",
        "error: cannot load `nope`: it does not exist\n\nhint: name the folder of an adapter, a merged model or a base\n",
    );
    assert_eq!(names(&scene.path(".")), ["base", "data.json"]);
}

#[test]
fn ctrl_c_leaves_no_temporary_folder_however_often_it_is_pressed() {
    for presses in [1, 2] {
        let scene = Scene::new();
        let mut command = scene.command(&["bench", "merge", "--base", "base", "--steps", "1000000"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let temporary = || names(&scene.path(".")).iter().any(|name| name.starts_with(".danlu-tmp-"));
        while !temporary() {
            assert!(start.elapsed() < Duration::from_secs(60), "the merge never began");
            std::thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..presses {
            kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        }
        let code = child.wait().unwrap().code();
        // After one signal, the run ends after the current round, with or without results. After two signals,
        // the run exits at once.
        assert!(matches!(code, Some(0 | 130)), "{presses}: {code:?}");
        assert_eq!(names(&scene.path(".")), ["base", "data.json"], "{presses}");
    }
}
