//! Tests 4-bit bases in every command except `merge`. The bases are written, trained on, resumed, compared
//! and rejected.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use common::{Scene, names};
use danlu_model::Weights;
use serde_json::{Value, json};

const FLAGS: &str =
    "--data data.json --lora-r 4 --learning-rate 1e-3 --max-steps 6 --save-steps 2 --val-size 2";

fn adapter(scene: &Scene, output: &str) -> Vec<u8> {
    scene.read(&format!("{output}/adapter_model.safetensors"))
}

#[test]
fn a_base_that_is_written_in_4_bits_is_the_base_that_is_put_into_them() {
    let scene = Scene::new();
    let ran = scene.ok("quantize base --to nf4 --output base-nf4");
    assert!(ran.out.starts_with("56 weights (") && ran.out.contains(" in nf4, 16.0 MB → "), "{}", ran.out);
    assert!(ran.err.contains("next:\n  danlu chat base-nf4\n  danlu train --base base-nf4 "), "{}", ran.err);
    assert_eq!(
        names(&scene.path("base-nf4")),
        [
            "README.md",
            "card.json",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    scene.ok(&format!("train --base base --quant nf4 --output held {FLAGS}"));
    let ran = scene.ok(&format!("train --base base-nf4 --output stored {FLAGS}"));
    assert!(ran.err.contains("quant nf4 (stored)\n"), "{}", ran.err);
    let card = String::from_utf8(scene.read("stored/README.md")).unwrap();
    assert!(card.contains("| Base precision | nf4, as stored (QLoRA) |"), "{card}");
    let ran = scene.ok("plan --base base-nf4");
    assert!(ran.out.contains("parameters · f32 · nf4 (stored) · "), "{}", ran.out);
    scene.ok(&format!("train --base base --output wide {FLAGS}"));
    assert!(adapter(&scene, "held") == adapter(&scene, "stored"));
    assert!(adapter(&scene, "held") != adapter(&scene, "wide"));

    // `chat` loads the base with the quantization of the adapter's training.
    let chat =
        |path: &str, more: &str| scene.ok(&format!("chat {path} --prompt 你是谁？ --temperature 0 {more}"));
    let held = chat("held", "");
    assert!(
        held.err.contains("held was trained on a base in nf4: the base is quantized too"),
        "{}",
        held.err
    );
    assert_eq!(held.out, chat("stored", "").out);
    assert_eq!(chat("held", "--quant none").err, "");
    // A stored 4-bit base is not quantized again, but its 16-bit original is quantized.
    let crossed = chat("held", "--base base-nf4");
    assert_eq!((crossed.out, crossed.err), (held.out.clone(), String::new()));
    let crossed = chat("stored", "--base base");
    assert_eq!((crossed.out, crossed.err), (held.out, held.err.replace("held was", "stored was")));

    assert_eq!(
        scene.ok("compare held --records 2").out,
        scene.ok("compare held --records 2 --quant nf4").out
    );
    // The base gets the adapter's quantization both as the first and as the second model.
    let losses = |a: &str, b: &str| -> Vec<String> {
        let ran = scene.ok(&format!("compare {a} {b} --data data.json --replies 0"));
        let line = ran.out.lines().find(|line| line.starts_with("loss a token"));
        line.unwrap_or_else(|| panic!("{}", ran.out)).split_whitespace().skip(3).map(str::to_owned).collect()
    };
    let (before, mut after) = (losses("base", "held"), losses("held", "./base"));
    after.reverse();
    assert!(before.len() == 2 && before == after, "{before:?} {after:?}");
}

#[test]
fn a_base_in_4_bits_keeps_its_licence_and_an_adapter_is_merged_first() {
    let scene = Scene::new();
    scene.write("base/README.md", "---\nlicense: apache-2.0\n---\n# base\n");
    scene.ok("quantize base --output base-nf4 --lang zh");
    let card = String::from_utf8(scene.read("base-nf4/README.md")).unwrap();
    assert!(
        card.contains("library_name: transformers\npipeline_tag: text-generation\nlicense: \"apache-2.0\"\n"),
        "{card}"
    );
    assert!(card.contains("# base-nf4\n\n`base` 的 4 位版本") && card.contains("16.0 MB 变为 "), "{card}");
    scene.ok(&format!("train --base base-nf4 --output out {FLAGS}"));
    let card = String::from_utf8(scene.read("out/README.md")).unwrap();
    assert!(card.contains("license: \"apache-2.0\"\n"), "{card}");
    scene.refuses(
        "quantize out --output out-nf4",
        "error: `out` is an adapter, expected a base\n\n\
         hint: merge it first: danlu merge out --output DIR; then danlu quantize DIR\n",
    );
    assert!(!scene.path("out-nf4").exists());
}

#[test]
fn modules_that_are_left_out_of_4_bits_stay_as_they_are() {
    let scene = Scene::new();
    scene.ok("quantize base --output base-nf4 --skip-modules down_proj,model.layers.1.self_attn");
    let config: Value = serde_json::from_slice(&scene.read("base-nf4/config.json")).unwrap();
    let skipped = json!(["lm_head", "down_proj", "model.layers.1.self_attn"]);
    assert_eq!(config["quantization_config"]["llm_int8_skip_modules"], skipped);
    let [wide, stored] = ["base", "base-nf4"].map(|folder| Weights::open(&scene.path(folder)).unwrap());
    for (name, is_wide) in [
        ("model.layers.0.mlp.down_proj.weight", true),
        ("model.layers.1.self_attn.q_proj.weight", true),
        ("model.layers.1.mlp.up_proj.weight", false),
        // The prefix `layers.1` must not match layer 10.
        ("model.layers.0.self_attn.q_proj.weight", false),
    ] {
        let [there, here] = [&wide, &stored].map(|weights| weights.bytes(weights.info(name).unwrap()));
        assert_eq!(there == here, is_wide, "{name}");
    }
    // The training uses the stored 4-bit weights, and does not quantize the original again.
    scene.ok(&format!("train --base base-nf4 --output out {FLAGS}"));
    let identity: Value = serde_json::from_slice(&scene.read("out/danlu.json")).unwrap();
    assert_eq!(identity["skip_modules"].as_array().unwrap().len(), 8 + 4, "{identity}");
    scene.ok("merge out --output merged");
    for line in ["chat out --base base --prompt x", "merge out --base base --output other"] {
        let ran = scene.run(line);
        assert!(
            ran.code == 1 && ran.err.contains("the adapter's base had 12 projections in 16 bits"),
            "{}",
            ran.err
        );
        assert!(ran.err.contains("hint: name the base it was trained on"), "{}", ran.err);
    }
    for (names, words) in [
        ("dwn_proj", "cannot leave `dwn_proj` unquantized: `base` has no such module"),
        ("model", "without `model`, no projection is left"),
        ("a|b", "expected letters, digits"),
    ] {
        let ran = scene.run(&format!("quantize base --output none --skip-modules {names}"));
        assert!(ran.code == 1 && ran.err.contains(words) && !scene.path("none").exists(), "{}", ran.err);
    }
}

#[test]
fn an_adapter_over_other_4_bits_than_the_base_has_is_told_so() {
    let scene = Scene::new();
    scene.ok("quantize base --to fp4 --quant-block-size 128 --no-double-quant --output base-fp4");
    scene.ok(&format!("train --base base-fp4 --output out {FLAGS}"));
    let identity: Value = serde_json::from_slice(&scene.read("out/danlu.json")).unwrap();
    assert_eq!(
        identity["quantization"],
        json!({ "bnb_4bit_quant_type": "fp4", "blocksize": 128, "bnb_4bit_use_double_quant": false })
    );
    let ran = scene.ok("chat out --prompt x --max-new-tokens 1");
    assert!(!ran.err.contains("was trained on"), "{}", ran.err);
    scene.ok("quantize base --output base-nf4");
    let ran = scene.ok("chat out --prompt x --max-new-tokens 1 --base base-nf4");
    let told = "out was trained on a base in `fp4 --quant-block-size 128 --no-double-quant`, but `base-nf4` is in \
                `nf4 --quant-block-size 64`";
    assert!(ran.err.contains(told), "{}", ran.err);

    // An impossible block size in `danlu.json` is an error.
    let sound = String::from_utf8(scene.read("out/danlu.json")).unwrap();
    for wrong in ["0", "1", "48", "8192"] {
        scene.write("out/danlu.json", &sound.replace("128", wrong));
        for command in ["chat out --prompt x", "compare out", "merge out --output merged"] {
            let ran = scene.run(&format!("{command} --base base"));
            let words = format!(": `blocksize` is {wrong}, expected 64, 128");
            let is_told =
                ran.err.contains("error: cannot read `out/danlu.json`: line ") && ran.err.contains(&words);
            assert!(ran.code == 1 && is_told, "{command}: {}", ran.err);
            assert!(ran.err.contains("\nhint: "), "{command}: {}", ran.err);
        }
    }
    scene.write("out/danlu.json", &sound.replace("true", "1").replace("false", "1"));
    let ran = scene.run("chat out --prompt x --base base");
    assert!(ran.code == 1 && ran.err.contains(": found `1`, expected `true` or `false`\n"), "{}", ran.err);
    scene.write("out/danlu.json", &sound.replace("\"fp4\"", "\"int8\""));
    let ran = scene.run("chat out --prompt x --base base");
    assert!(
        ran.code == 1 && ran.err.contains("`int8` is no code of 4 bits; there are nf4, fp4"),
        "{}",
        ran.err
    );
}

#[test]
fn a_killed_run_over_4_bits_goes_on_bit_for_bit() {
    let scene = Scene::new();
    let flags = "--base base --quant fp4 --no-double-quant --quant-block-size 128";
    scene.ok(&format!("train {flags} --output straight {FLAGS}"));
    let mut child = scene.start(&format!("train {flags} --output killed --threads 1 {FLAGS}"));
    let start = Instant::now();
    while !scene.path("killed/checkpoint-2").exists() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "it was not running any more");
    scene.ok("train --output killed --resume --threads 3");
    assert!(adapter(&scene, "killed") == adapter(&scene, "straight"));
    // A run cannot be resumed with a different quantization of the base.
    fs::remove_dir_all(scene.path("killed/checkpoint-6")).unwrap();
    let ran = scene.run("train --output killed --resume --quant nf4");
    assert!(ran.code == 1 && ran.err.contains("`quant` was \"fp4\" and is \"nf4\""), "{}", ran.err);
}

#[test]
fn an_adapter_that_names_a_repository_in_4_bits_says_so() {
    let scene = Scene::new();
    scene.ok(&format!("train --base base --output out {FLAGS}"));
    let config = String::from_utf8(scene.read("out/adapter_config.json")).unwrap();
    let named = config.replace("\"base\"", "\"unsloth/llama-3-8b-Instruct-bnb-4bit\"");
    assert_ne!(config, named);
    scene.write("out/adapter_config.json", &named);
    let ran = scene.run("merge out --output none");
    assert_eq!(ran.code, 1);
    for words in ["`unsloth/llama-3-8b-Instruct-bnb-4bit`", "16-bit original", "`--base DIR`"] {
        assert!(ran.err.contains(words), "{}\nlacks {words}", ran.err);
    }
    for line in [
        "merge out --output merged --base base",
        "chat out --base base --prompt x --max-new-tokens 1",
        "compare out --base base --replies 0",
    ] {
        let ran = scene.ok(line);
        assert!(ran.err.contains("using `base` as its original"), "{line}: {}", ran.err);
    }
    let report: Value = serde_json::from_slice(&scene.read("merged/merge_report.json")).unwrap();
    assert_eq!(report["merge"]["merge_base"], "dequantized");
}

#[test]
fn what_cannot_be_put_into_4_bits_is_refused_in_words() {
    let scene = Scene::new();
    scene.ok("quantize base --to fp4 --output base-fp4");
    for line in ["chat base-fp4 --quant nf4 --prompt x", "plan --base base-fp4 --quant nf4"] {
        scene.refuses(
            line,
            "error: cannot quantize `base-fp4`: `model.layers.0.mlp.down_proj.weight` is in 4 bits already\n\n\
             hint: leave `--quant` out to use the base as it is\n",
        );
    }
    scene.refuses(
        "quantize base-fp4 --output x",
        "error: cannot quantize `base-fp4`: `model.layers.0.mlp.down_proj.weight` is in 4 bits already\n\n\
         hint: use the folder as it is, or name the original to quantize it to a different 4-bit type\n",
    );
    for (line, words) in [
        ("quantize base --output x --quant-block-size 0", "`--quant-block-size` is 0, expected 64, 128"),
        ("chat base --no-double-quant --prompt x", "`no_double_quant` is true, expected `quant` nf4 or fp4"),
        (
            "chat base --quant none --no-double-quant --prompt x",
            "`no_double_quant` is true, expected `quant` nf4",
        ),
        (
            "train --base base --data data.json --output x --no-double-quant",
            "`no_double_quant` is true, expected",
        ),
        (
            "train --base base --data data.json --output x --quant-block-size 128",
            "`quant_block_size` is 128, expected",
        ),
        ("merge base --output y --to int8", "`int8` is no code of 4 bits; there are nf4, fp4"),
    ] {
        let ran = scene.run(line);
        assert!(ran.code == 1 && ran.err.contains(words), "{line}: {}", ran.err);
    }
    let config = String::from_utf8(scene.read("base-fp4/config.json")).unwrap();
    scene.write("base-fp4/config.json", &config.replace("\"load_in_8bit\": false", "\"load_in_8bit\": true"));
    let ran = scene.run("chat base-fp4 --prompt x");
    assert!(
        ran.code == 1 && ran.err.contains("`quantization_config.load_in_8bit` is true, supported:"),
        "{}",
        ran.err
    );
    let bytes = scene.read("base-fp4/model.safetensors");
    scene.write("base-fp4/config.json", &config);
    fs::write(scene.path("base-fp4/model.safetensors"), &bytes[..bytes.len() - 9]).unwrap();
    let ran = scene.run("chat base-fp4 --prompt x");
    assert!(
        ran.code == 1 && ran.err.contains(" bytes, expected ") && ran.err.contains("ends early"),
        "{}",
        ran.err
    );
    assert!(!scene.path("x").exists() && !scene.path("y").exists());
}
