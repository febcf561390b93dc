//! Tests the merge of adapters that were trained on 4 bits: the choice of the base, 4-bit results,
//! interrupted merges and rejected merges.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Ran, Scene, names};
use danlu_model::{TensorInfo, Weights};
use serde_json::{Value, json};

const FLAGS: &str = "--data data.json --lora-r 4 --learning-rate 1e-3 --max-steps 6 --val-size 2";

fn report(scene: &Scene, folder: &str) -> Value {
    serde_json::from_slice(&scene.read(&format!("{folder}/merge_report.json"))).unwrap()
}

/// Returns the KL divergence in the report for the base `form`: `original` or `dequantized`. `merged` selects
/// the value after or before the merge.
fn kl(report: &Value, form: &str, merged: bool) -> f64 {
    let forms = report["merge"]["forms"].as_array().unwrap();
    let found = forms.iter().find(|f| f["form"] == form && f["merged"] == merged);
    found.unwrap_or_else(|| panic!("{report}"))["kl"].as_f64().unwrap()
}

#[test]
fn a_merge_goes_into_the_form_that_is_nearest_to_what_was_trained() {
    let scene = Scene::new();
    scene.ok(&format!("train --base base --quant nf4 --output out {FLAGS}"));
    let ran = scene.ok("merge out --output auto");
    let auto = report(&scene, "auto");
    assert_eq!(auto["merge"]["merge_base"], "dequantized");
    let (original, dequantized) = (kl(&auto, "original", false), kl(&auto, "dequantized", true));
    assert!(dequantized < original / 20.0, "{dequantized} {original}");
    assert!(ran.out.contains("beside original: KL") && ran.out.contains("(chosen)"), "{}", ran.out);
    assert!(
        ran.err.contains(": the merged model compared with the adapter on the dequantized base\n"),
        "{}",
        ran.err
    );
    let config = String::from_utf8(scene.read("auto/config.json")).unwrap();
    assert!(!config.contains("quantization_config"), "{config}");

    // Two KL divergences are printed, each with the two models that are compared.
    let ran = scene.ok("merge out --output original --merge-base original");
    assert!(
        ran.err.contains(": the merged model compared with the adapter on the original base\n"),
        "{}",
        ran.err
    );
    let words = "compared with the trained model, the adapter on the dequantized base:\n  into original: KL, perplexity";
    assert!(ran.out.contains(words), "{}", ran.out);
    let written = report(&scene, "original");
    assert_eq!(written["merge"]["merge_base"], "original");
    // Rounding changes the KL divergence far less than a merge into the other base would.
    assert!((kl(&written, "original", true) / original - 1.0).abs() < 0.1, "{written} {original}");
    assert!(scene.read("auto/model.safetensors") != scene.read("original/model.safetensors"));

    // The stored base is in 4 bits. The merge is tested with and without the original of this base.
    scene.ok("quantize base --output base-nf4");
    scene.ok(&format!("train --base base-nf4 --output stored {FLAGS}"));
    scene.ok("merge stored --output stored-merged");
    let tensors = |folder: &str| {
        let weights = Weights::open(&scene.path(folder)).unwrap();
        let bytes = |info: &TensorInfo| (info.name.clone(), weights.bytes(info).to_vec());
        weights.tensors().iter().map(bytes).collect::<BTreeMap<_, _>>()
    };
    assert!(tensors("stored-merged") == tensors("auto"));
    assert_eq!(report(&scene, "stored-merged")["merge"].get("forms"), None);
    scene.ok("merge stored --output both --original base");
    assert!((kl(&report(&scene, "both"), "original", false) / original - 1.0).abs() < 1e-6);
    scene.refuses(
        "merge stored --output none --merge-base original",
        "error: the base is in 4 bits, and its original is unknown\n\nhint: name its folder with `--original DIR`\n",
    );
    assert!(!scene.path("none").exists());
    // danlu detects 4 bits from the weights and not from `config.json`.
    let mut config: Value = serde_json::from_slice(&scene.read("base-nf4/config.json")).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config").unwrap();
    scene.write("base-nf4/config.json", &config.to_string());
    scene.ok("merge stored --output silent");
    assert_eq!(report(&scene, "silent")["merge"]["merge_base"], "dequantized");
    assert!(tensors("silent") == tensors("auto"));
}

#[test]
fn the_original_is_chosen_where_it_is_nearer_and_its_merge_is_measured() {
    let scene = Scene::new();
    // If an adapter that changes nothing is merged into a dequantized base, the result is an f32 base that 4
    // bits represent exactly.
    let over = "--quant nf4 --no-double-quant";
    let still = FLAGS.replace("1e-3", "1e-30");
    scene.ok(&format!("train --base base {over} --output still {still}"));
    scene.ok("merge still --output exact --merge-base dequantized --dtype f32 --threshold 1");
    scene.ok(&format!("train --base exact {over} --output out {FLAGS}"));
    let ran = scene.ok("merge out --output merged --dtype bf16");
    let found = report(&scene, "merged");
    assert_eq!(found["merge"]["merge_base"], "original");
    let (beside, rounded) = (kl(&found, "original", false), kl(&found, "dequantized", true));
    assert!(beside < rounded / 100.0, "{found}");
    // After rounding to bf16, both merges are equally close to the trained model.
    assert!((kl(&found, "original", true) / rounded - 1.0).abs() < 0.1, "{found}");
    assert_eq!(ran.out.matches("(chosen)").count(), 1, "{}", ran.out);
}

#[test]
fn an_adapter_of_16_bits_is_merged_into_its_original_and_4_bits_are_told() {
    let scene = Scene::new();
    scene.ok(&format!("train --base base --output wide {FLAGS}"));
    scene.ok("quantize base --output base-nf4");
    let warning = "warning: wide was trained on a base in 16 bits or more, but `base-nf4` is in nf4";
    let ran = scene.ok("chat wide --base base-nf4 --prompt 你好 --max-new-tokens 2");
    assert!(ran.err.contains(warning), "{}", ran.err);

    let ran = scene.ok("merge wide --base base-nf4 --original base --output merged");
    assert_eq!(report(&scene, "merged")["merge"]["merge_base"], "original");
    assert!(!ran.err.contains("4 bits") && !ran.out.contains("4 bits"), "{}{}", ran.err, ran.out);
    scene.ok("merge wide --output plain");
    assert_eq!(scene.read("plain/model.safetensors"), scene.read("merged/model.safetensors"));

    let ran = scene.ok("merge wide --base base-nf4 --output four");
    assert!(ran.err.contains(warning) && !ran.out.contains("what was trained"), "{}{}", ran.err, ran.out);
    let card = String::from_utf8(scene.read("four/README.md")).unwrap();
    assert!(card.contains("trained on the unquantized base"), "{card}");
}

/// Waits until the command starts to fill `output`, but at most one minute.
fn wait_for(scene: &Scene, output: &str) {
    let (start, path) = (Instant::now(), scene.path(output));
    while !path.exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_merged_model_has_its_card_from_the_first_moment() {
    let scene = Scene::new();
    scene.ok(&format!("train --base base --quant nf4 --output out {FLAGS}"));
    for (output, flags) in [("wide", ""), ("four", "--to nf4")] {
        let mut child = scene.start(&format!("merge out --output {output} {flags}"));
        while child.try_wait().unwrap().is_none() && !scene.path(output).join("config.json").exists() {}
        let found = names(&scene.path(output));
        child.kill().unwrap();
        child.wait().unwrap();
        for name in ["config.json", "README.md", "card.json", "loss.svg", "merge_report.json"] {
            assert!(found.contains(&name.to_owned()), "{output} lacks {name}: {found:?}");
        }
    }
}

#[test]
fn a_merge_back_into_4_bits_leaves_its_model_or_its_report() {
    let scene = Scene::new();
    scene.ok(&format!("train --base base --quant nf4 --output out {FLAGS}"));
    fs::create_dir(scene.path("used")).unwrap();
    scene.write("used/notes.txt", "mine");
    let ran = scene.run("merge out --output used --to nf4");
    assert!(ran.code == 1 && ran.err.contains("such as `notes.txt`"), "{}", ran.err);
    assert!(!ran.out.contains("KL"), "{}", ran.out);
    assert_eq!(names(&scene.path("used")), ["notes.txt"]);

    let ran = scene.run("merge out --output deep/four --to nf4 --threshold 0");
    assert!(ran.code == 1 && ran.err.contains("only its report was saved"), "{}", ran.err);
    assert_eq!(names(&scene.path("deep/four")), ["merge_report.json"]);
    assert_eq!(report(&scene, "deep/four")["fidelity"]["passed"], false);

    // The next merge replaces the report of the failed merge. The new report describes the 4-bit model, and
    // how much 4 bits change it.
    let ran = scene.ok("merge out --output deep/four --to nf4");
    assert!(ran.out.contains("before nf4: KL, perplexity"), "{}", ran.out);
    let folder = scene.path("deep/four");
    let found = report(&scene, "deep/four");
    let size = |name: &String| fs::metadata(folder.join(name)).unwrap().len();
    // The report and the card are not files of the model, so they do not count in its size.
    let is_about =
        |name: &&String| ["merge_report.json", "README.md", "card.json", "loss.svg"].contains(&name.as_str());
    let all: u64 = names(&folder).iter().filter(|name| !is_about(name)).map(size).sum();
    assert_eq!(found["merge"]["bytes"], all);
    assert_eq!(found["merge"]["dtype"], json!(["nf4", "bfloat16"]));
    assert_eq!(found["merge"]["shards"], json!(["model.safetensors"]));
    let cost = found["merge"]["quantized"]["kl"].as_f64().unwrap();
    assert!(cost > 20.0 * kl(&found, "dequantized", true), "{found}");
    // The verdict describes the 4-bit result, not the 16-bit merge.
    assert_eq!(found["fidelity"]["kl"], found["merge"]["quantized"]["kl"]);
    assert_eq!(found["merge"]["quantized"]["before"]["kl"], kl(&found, "dequantized", true));
    let of_adapter = found["fidelity"]["kl_of_adapter"].as_f64().unwrap();
    let kept = found["merge"]["quantized"]["adapter_kept"].as_f64().unwrap();
    assert!((kept - (1.0 - cost / of_adapter).clamp(0.0, 1.0)).abs() < 1e-9, "{found}");
    let passed = cost <= of_adapter / 4.0;
    assert_eq!(found["fidelity"]["passed"], passed, "{found}");
    let verdict = if passed { "passed: in nf4, " } else { "failed: in nf4, " };
    assert!(ran.out.contains(verdict) && ran.out.contains("of the adapter's effect is left"), "{}", ran.out);
    let card = String::from_utf8(scene.read("deep/four/README.md")).unwrap();
    assert!(card.contains("The nf4 model compared with base + adapter"), "{card}");
    assert!(
        card.contains(&format!("| effect of the adapter that is kept | {:.0}% |", 100.0 * kept)),
        "{card}"
    );
    let ran = scene.ok("chat deep/four --prompt 你好 --max-new-tokens 4 --temperature 0");
    assert!(!ran.err.contains("quantized too"), "{}", ran.err);

    // A threshold on the command line also decides whether the 4-bit model passes.
    for (threshold, passed) in [
        (1e-4_f64.max(found["merge"]["quantized"]["before"]["kl"].as_f64().unwrap() * 1.5), false),
        (10.0, true),
    ] {
        scene.ok(&format!("merge out --output allowed --to nf4 --threshold {threshold}"));
        let found = report(&scene, "allowed");
        assert_eq!(found["fidelity"]["kl_limit"], threshold);
        assert_eq!(found["fidelity"]["kl"].as_f64().unwrap() <= threshold, passed, "{found}");
        fs::remove_dir_all(scene.path("allowed")).unwrap();
    }
}

#[test]
fn a_stopped_or_killed_merge_leaves_no_model() {
    let scene = Scene::new();
    scene.ok(&format!("train --base base --quant nf4 --output out {FLAGS}"));
    for (flags, hidden) in [("--to nf4", ".danlu-tmp-model/.danlu-tmp-merged"), ("", ".danlu-tmp-model")] {
        for name in ["-INT", "-TERM"] {
            let child = scene.start(&format!("merge out --output stopped {flags} --threads 1"));
            wait_for(&scene, &format!("stopped/{hidden}"));
            signal(&child, name);
            let ran = Ran::of(child.wait_with_output().unwrap());
            assert!(ran.code == 130 && ran.err.starts_with("error: stopped "), "{flags} {name}: {}", ran.err);
            assert!(!scene.path("stopped").exists(), "{flags} {name}");
        }
        let mut child = scene.start(&format!("merge out --output killed {flags} --threads 1"));
        wait_for(&scene, &format!("killed/{hidden}"));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "it was not running any more");
        assert_eq!(names(&scene.path("killed")), [".danlu-tmp-model"]);
        scene.ok(&format!("merge out --output killed {flags}"));
        assert!(!names(&scene.path("killed")).iter().any(|name| name.starts_with('.')));
        fs::remove_dir_all(scene.path("killed")).unwrap();
    }
    let left = |folder: &Path| names(folder).into_iter().filter(|name| name.starts_with('.')).count();
    assert_eq!(left(&scene.path(".")), 0);
}
