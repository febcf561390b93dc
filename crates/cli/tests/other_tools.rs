//! Tests features for users of other tools: configuration files, flag names, logs, JSON, languages and
//! completions.

mod common;

use common::{RECORDS, Scene, names, record};
use serde_json::Value;

const FLAGS: &str = "--max-steps 3 --lora-r 2 --save-steps 0 --logging-steps 1";

/// Writes `count` different records.
fn write_many(scene: &Scene, name: &str, count: usize) {
    let lines = (0..count).map(|i| record(&format!("{}{i}", RECORDS[i % 12].0), RECORDS[i % 12].1));
    scene.write(name, &lines.collect::<Vec<_>>().join("\n"));
}

fn events(out: &str) -> Vec<Value> {
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn an_axolotl_file_trains() {
    let scene = Scene::new();
    scene.write(
        "axolotl.yaml",
        "base_model: base\nadapter: lora\ndatasets:\n  - path: data.json\n    type: alpaca\nsequence_len: 256\n\
         lora_r: 2\nlora_alpha: 4\nlora_target_linear: true\nmicro_batch_size: 1\nmax_steps: 2\n\
         learning_rate: 0.001\noptimizer: adamw_torch\nlr_scheduler: cosine\ngradient_checkpointing: true\n\
         output_dir: out\nwandb_project:\n",
    );
    let ran = scene.ok("train --config axolotl.yaml");
    assert!(ran.err.contains("translated from axolotl:"), "{}", ran.err);
    assert!(
        ran.err.contains("gradient_checkpointing: true") && ran.err.contains("--memory-limit"),
        "{}",
        ran.err
    );
    let config: Value = serde_json::from_slice(&scene.read("out/adapter_config.json")).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&2.into(), &4.into()));
    let run = String::from_utf8(scene.read("out/run.toml")).unwrap();
    for line in ["max_length = 256", "lr_scheduler_type = \"cosine\"", "max_steps = 2", "lora_dropout = 0.0"]
    {
        assert!(run.contains(line), "{line}: {run}");
    }
    // axolotl writes Alpaca's prompt for this type, so the adapter gets Alpaca's template.
    let template = String::from_utf8(scene.read("out/chat_template.jinja")).unwrap();
    assert!(template.contains("### Response:"), "{template}");
    // The command line takes precedence. The translated file is a valid configuration file of danlu.
    let toml = scene.ok("config translate axolotl.yaml");
    scene.write("run.toml", &toml.out);
    scene.ok("train --config run.toml --output_dir again --lora_r 4");
    let config: Value = serde_json::from_slice(&scene.read("again/adapter_config.json")).unwrap();
    assert_eq!(config["r"], 4);
    scene.write("dpo.yaml", "base_model: base\nrl: dpo\n");
    scene.refuses(
        "train --config dpo.yaml --data data.json --output no",
        "error: cannot translate this axolotl file: `rl` is `dpo`\n\n\
         hint: use a file for supervised fine-tuning with LoRA; danlu trains nothing else\n",
    );
}

#[test]
fn flags_of_other_tools_are_taken_or_answered() {
    let scene = Scene::new();
    scene.ok("train --model_name_or_path base --dataset_name data.json --output-dir out --lr 1e-3 --iters 1 --rank 2 --bf16");
    let run = String::from_utf8(scene.read("out/run.toml")).unwrap();
    for line in ["learning_rate = 0.001", "max_steps = 1", "lora_r = 2", "dtype = \"bf16\""] {
        assert!(run.contains(line), "{line}: {run}");
    }
    scene.refuses(
        "train --gradient_checkpointing true",
        "error: unknown flag `--gradient-checkpointing`\n\n\
         hint: danlu has no switch for it: layers recompute as much as the memory needs; set `--memory-limit 8GiB`\n",
    );
    // No flag is similar to this one, so there must be no suggestion.
    let ran = scene.run("train --zzzz 1");
    assert!(ran.code == 1 && !ran.err.contains("did you mean"), "{}", ran.err);
    let ran = scene.run("webui out");
    assert!(ran.code == 1 && ran.err.contains("danlu has no web page"), "{}", ran.err);
}

#[test]
fn json_is_one_event_a_line() {
    let scene = Scene::new();
    write_many(&scene, "many.jsonl", 60);
    let ran = scene.ok(&format!("train --base base --data many.jsonl --output out --json {FLAGS}"));
    let found = events(&ran.out);
    let count = |name: &str| found.iter().filter(|event| event["event"] == name).count();
    assert_eq!(
        (count("step"), count("evaluation"), count("checkpoint"), count("finished")),
        (3, 2, 1, 1),
        "{}",
        ran.out
    );
    assert!(found.iter().all(|event| event["event"] != "step" || event["loss"].as_f64().unwrap() > 0.0));
    assert!(ran.err.contains("training loss"), "{}", ran.err);
    let check = events(&scene.ok("data check many.jsonl --base base --json").out);
    assert_eq!((&check[0]["records"], &check[0]["event"]), (&60.into(), &"data_check".into()));
    let compared = events(&scene.ok("compare out --json --replies 1 --max-new-tokens 2").out);
    assert_eq!(compared[0]["records"], 2, "2% of 60 records, rounded up");
    let merged = events(&scene.ok("merge out --output merged --dtype f32 --json").out);
    assert!(merged[0]["fidelity"]["kl"].is_number(), "{merged:?}");
}

#[test]
fn two_percent_are_held_out_from_50_records_on() {
    let scene = Scene::new();
    write_many(&scene, "many.jsonl", 50);
    let ran = scene.ok(&format!("train --base base --data many.jsonl --output out {FLAGS}"));
    assert!(ran.out.contains("held out        out/held_out.json"), "{}", ran.out);
    assert!(ran.out.contains("\nverdict         the "), "{}", ran.out);
    assert!(String::from_utf8(scene.read("out/run.toml")).unwrap().contains("val_size = 0.02\n"));
    let none = scene.ok(&format!("train --base base --data many.jsonl --output none --val-size 0 {FLAGS}"));
    assert!(!none.out.contains("held_out.json"), "{}", none.out);
    let few = scene.ok(&format!("train --base base --data data.json --output few {FLAGS}"));
    assert!(!few.out.contains("held_out.json"), "{}", few.out);
}

#[test]
fn a_run_that_got_worse_is_called_so() {
    let scene = Scene::new();
    write_many(&scene, "many.jsonl", 50);
    let ran =
        scene.ok(&format!("train --base base --data many.jsonl --output out --learning-rate 5 {FLAGS}"));
    assert!(ran.out.contains("verdict         the model got worse: the held-out loss rose"), "{}", ran.out);
    assert!(!ran.err.contains("danlu merge"), "{}", ran.err);
}

#[test]
fn tensorboard_gets_an_event_file() {
    let scene = Scene::new();
    scene.ok(&format!("train --base base --data data.json --output out --report-to tensorboard {FLAGS}"));
    let files = names(&scene.path("out/tensorboard"));
    assert!(files.len() == 1 && files[0].starts_with("events.out.tfevents."), "{files:?}");
    let bytes = scene.read(&format!("out/tensorboard/{}", files[0]));
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!((text.matches("train/loss").count(), text.matches("brain.Event:2").count()), (3, 1));
    let ran = scene.run("train --report-to wandb");
    assert!(ran.code == 1 && ran.err.contains("danlu has no client for wandb"), "{}", ran.err);
}

#[test]
fn quiet_prints_results_only() {
    let scene = Scene::new();
    let ran = scene.ok(&format!("train --base base --data data.json --output out --quiet {FLAGS}"));
    assert!(ran.err.is_empty() && ran.out.contains("adapter         out"), "{}{}", ran.err, ran.out);
}

#[test]
fn the_language_of_help_and_errors_can_be_chosen() {
    let scene = Scene::new();
    let help = scene.ok("train --help --lang zh");
    assert!(help.out.contains("学习率的最大值") && !help.out.contains("Peak learning rate"), "{}", help.out);
    let mut command = scene.command(&["chat", "nope"]);
    let ran = common::Ran::of(command.env("DANLU_LANG", "zh").output().unwrap());
    assert!(
        ran.err.starts_with("错误：无法加载 `nope`：不存在\nerror: cannot load `nope`: it does not exist\n"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("提示：") && ran.err.contains("\nhint: "), "{}", ran.err);
}

#[test]
fn completions_name_the_commands_and_flags() {
    let scene = Scene::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = scene.ok(&format!("completions {shell}")).out;
        for word in ["train", "learning-rate", "translate"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}
