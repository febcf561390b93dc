//! Tests the settings that shape an adapter and its start, in every command that reads the adapter.

mod common;

use std::fs;

use common::Scene;
use serde_json::{Value, json};

const FLAGS: &str = "--base base --data data.json --learning-rate 1e-3 --val-size 0 --device cpu";

fn config(scene: &Scene, output: &str) -> Value {
    serde_json::from_slice(&scene.read(&format!("{output}/adapter_config.json"))).unwrap()
}

fn adapter(scene: &Scene, output: &str) -> Vec<u8> {
    scene.read(&format!("{output}/adapter_model.safetensors"))
}

/// Returns the answer of a model to one question.
fn answer(scene: &Scene, path: &str) -> String {
    scene.ok(&format!("chat {path} --prompt 你是谁？ --temperature 0 --dtype f32 --device cpu")).out
}

#[test]
fn modules_are_chosen_in_flags_and_files_and_written_as_in_peft() {
    let scene = Scene::new();
    scene.ok(&format!(
        "train {FLAGS} --output flags --max-steps 2 --save-steps 1 --lora-r 4 --exclude-modules k_proj,o_proj \
         --layers-to-transform 0,2-3 --rank-pattern v_proj=2 --alpha-pattern layers.0.self_attn.v_proj=3.5 \
         --init-lora-weights gaussian --loraplus-lr-ratio 4 --neftune-noise-alpha 5"
    ));
    let written = config(&scene, "flags");
    for (key, value) in [
        ("exclude_modules", json!(["k_proj", "o_proj"])),
        ("layers_to_transform", json!([0, 2, 3])),
        ("rank_pattern", json!({"v_proj": 2})),
        ("alpha_pattern", json!({"layers.0.self_attn.v_proj": 3.5})),
        ("init_lora_weights", json!("gaussian")),
    ] {
        assert_eq!(written[key], value, "{key}");
    }
    let targets = written["target_modules"].as_array().unwrap();
    assert!(targets.contains(&json!("v_proj")) && targets.len() == 7, "{written}");

    // Training from the saved `run.toml` gives the same adapter, also if settings are lists or tables.
    scene.ok("train --config flags/run.toml --output again");
    assert!(adapter(&scene, "flags") == adapter(&scene, "again"));
    scene.write(
        "own.toml",
        "base = \"base\"\ndata = \"data.json\"\nlearning_rate = 1e-3\nval_size = 0\nmax_steps = 2\n\
         device = \"cpu\"\nlora_r = 4\nexclude_modules = [\"k_proj\", \"o_proj\"]\n\
         layers_to_transform = [0, 2, 3]\nrank_pattern = { v_proj = 2 }\n\
         alpha_pattern = { \"layers.0.self_attn.v_proj\" = 3.5 }\ninit_lora_weights = \"gaussian\"\n\
         loraplus_lr_ratio = 4\nneftune_noise_alpha = 5\n",
    );
    scene.ok("train --config own.toml --output own");
    assert!(adapter(&scene, "flags") == adapter(&scene, "own"));
    fs::remove_dir_all(scene.path("flags/checkpoint-2")).unwrap();
    scene.ok("train --output flags --resume");
    assert!(adapter(&scene, "flags") == adapter(&scene, "again"));

    for (flag, told) in [
        ("--layers-to-transform 8", "cannot adapt layer 8 of `layers_to_transform`: the base model has 8"),
        ("--layers-to-transform x", "write layer numbers from 0, such as `0,1` or `8-15`"),
        ("--rank-pattern k_porj=2", "cannot use the key `k_porj` of `rank_pattern`"),
        ("--exclude-modules all-linear", "`all-linear` would exclude everything"),
        ("--init-lora-weights pissa", "danlu has no pissa; choose default, gaussian, orthogonal or olora"),
        ("--loraplus-lr-ratio 0", "`loraplus_lr_ratio` is 0, expected more than 0"),
        ("--modules-to-save lm_head", "unknown flag `--modules-to-save`"),
    ] {
        let ran = scene.run(&format!("train {FLAGS} --output bad {flag}"));
        assert!(ran.code != 0 && ran.err.contains(told), "{flag}: {} {}", ran.code, ran.err);
    }
    assert!(!scene.path("bad").exists());
}

#[test]
fn olora_runs_merges_and_resumes_as_plain_lora() {
    let scene = Scene::new();
    let train = |output: &str, steps: u32| {
        scene.ok(&format!(
            "train {FLAGS} --dtype f32 --output {output} --max-steps {steps} --save-steps 2 --lora-r 2 \
             --lora-alpha 4 --init-lora-weights olora"
        ));
    };
    train("olora", 4);
    let written = config(&scene, "olora");
    let expected = [("r", json!(4)), ("lora_alpha", json!(8)), ("init_lora_weights", json!(true))];
    expected.into_iter().for_each(|(key, value)| assert_eq!(written[key], value, "{key}"));
    let straight = adapter(&scene, "olora");
    fs::remove_dir_all(scene.path("olora/checkpoint-4")).unwrap();
    scene.ok("train --output olora --resume");
    assert!(adapter(&scene, "olora") == straight);

    scene.ok("merge olora --output merged --dtype f32 --allow-worse");
    assert_eq!(answer(&scene, "merged"), answer(&scene, "olora"));
    scene.ok("compare olora --data data.json --replies 0 --device cpu");
    let refused = scene.run(&format!(
        "train {FLAGS} --output bad --init-lora-weights olora --weight-decay 0.1 --max-steps 1"
    ));
    assert!(
        refused.err.contains("`weight_decay` is 0.1, expected 0 with `init_lora_weights` olora"),
        "{}",
        refused.err
    );
}

#[test]
fn a_run_goes_on_from_an_adapter_and_records_it() {
    let scene = Scene::new();
    scene.ok(&format!(
        "train {FLAGS} --output first --max-steps 2 --lora-r 3 --lora-alpha 7 --target-modules q_proj,v_proj"
    ));
    let continued = format!("train {FLAGS} --max-steps 2 --save-steps 1 --init-adapter first");
    scene.ok(&format!("{continued} --output second"));
    let written = config(&scene, "second");
    assert_eq!((&written["r"], &written["lora_alpha"]), (&json!(3), &json!(7)));
    assert_eq!(written["target_modules"], json!(["q_proj", "v_proj"]));
    assert!(adapter(&scene, "second") != adapter(&scene, "first"));
    let run = String::from_utf8(scene.read("second/run.toml")).unwrap();
    assert!(run.contains("init_adapter = \"first\"\n") && run.contains("lora_r = 3\n"), "{run}");
    let card = String::from_utf8(scene.read("second/README.md")).unwrap();
    assert!(card.contains("| Continues from | first |"), "{card}");

    // With a learning rate of almost 0, the adapter stays the same.
    scene.ok(&format!("{} --output still", continued.replace("1e-3", "1e-30")));
    assert!(adapter(&scene, "still") == adapter(&scene, "first"));
    // A resumed run needs the first adapter no more.
    let straight = adapter(&scene, "second");
    fs::remove_dir_all(scene.path("second/checkpoint-2")).unwrap();
    fs::rename(scene.path("first"), scene.path("moved")).unwrap();
    scene.ok("train --output second --resume");
    assert!(adapter(&scene, "second") == straight);

    let from = format!("train {FLAGS} --output bad --max-steps 1 --init-adapter");
    scene.refuses(
        &format!("{from} moved --lora-r 8"),
        "error: `lora_r` is 8, expected 3 as in the adapter\n\n\
         hint: omit `lora_r`: `--init-adapter` takes it from the adapter\n",
    );
    let refused = scene.run(&format!("{from} base"));
    assert!(refused.err.starts_with("error: "), "{}", refused.err);
    assert!(!scene.path("bad").exists());
    scene.ok(&format!("plan {FLAGS} --init-adapter moved"));
}
