//! Tests real runs, most of which are stopped, resumed or rejected.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};

use common::{Ran, Scene, names};

const FLAGS: &str = "train --base base --data data.json --num-train-epochs 6 --save-steps 2 --logging-steps 1 \
                     --lora-r 2 --learning-rate 1e-3";

/// Reads the output until the line of `step`. The rest of the output stays in the pipe.
fn wait_for_step(child: &mut Child, step: usize) {
    let lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
    let start = format!("step {step:>2}/18 ");
    for line in lines {
        if line.unwrap().starts_with(&start) {
            return;
        }
    }
    panic!("the run ended before step {step}");
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Returns the files of the result. The card and the report contain times, so they are excluded.
fn result(scene: &Scene, folder: &str) -> Vec<Vec<u8>> {
    let files = ["adapter_model.safetensors", "adapter_config.json"];
    files.iter().map(|name| scene.read(&format!("{folder}/{name}"))).collect()
}

#[test]
fn a_run_leaves_a_folder_that_peft_reads_and_people_too() {
    let scene = Scene::new();
    let ran =
        scene.ok("train --base base --data data.json --output out --max-steps 4 --val-size 2 --lora-r 2");
    let expected = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "card.json",
        "checkpoint-4",
        "danlu.json",
        "held_out.json",
        "loss.svg",
        "report.html",
        "run.toml",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&scene.path("out")), expected);
    // The number is rank · (in + out), summed over the seven projections of eight layers. The rank is 2.
    let plan = "trainable params: 74,752 || all params: 8,074,496 || trainable%: 0.9258\n";
    assert!(ran.err.starts_with(plan), "{}", ran.err);
    assert!(ran.err.contains("after step 0 · held-out loss "), "{}", ran.err);
    assert!(ran.out.starts_with("training loss   "), "{}", ran.out);
    assert!(ran.out.contains("adapter         out\n"), "{}", ran.out);
    scene.refuses(
        "train --base base --data data.json --output out",
        "error: `out` holds a run already\n\nhint: continue it with `--resume`, or start a new run in a new folder\n",
    );
    // The folder `half` is that of a run that failed in its first step.
    std::fs::create_dir(scene.path("half")).unwrap();
    scene.write("half/run.toml", &String::from_utf8(scene.read("out/run.toml")).unwrap());
    let half = scene.run("train --base base --data data.json --output half");
    assert!(
        half.code == 1 && half.err.contains("restart it with `--resume`, since it has no checkpoint yet"),
        "{}",
        half.err
    );
    scene.ok("train --output half --resume --learning-rate 5e-4");
    let again = scene.ok("train --output out --resume --lang zh");
    assert!(again.err.contains("所有步骤都已完成"), "{}", again.err);
    assert!(again.err.contains("从 out/checkpoint-4 继续（已完成 4 步）"), "{}", again.err);
}

#[test]
fn a_killed_run_resumes_to_the_same_file() {
    let scene = Scene::new();
    scene.ok(&format!("{FLAGS} --output straight --threads 2"));

    let mut child = scene.start(&format!("{FLAGS} --output killed --threads 1"));
    wait_for_step(&mut child, 7);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!scene.path("killed/adapter_model.safetensors").exists());

    let resumed = scene.ok("train --output killed --resume");
    assert!(resumed.err.contains("resuming from killed/checkpoint-"), "{}", resumed.err);
    assert_eq!(result(&scene, "killed"), result(&scene, "straight"));
}

#[test]
fn one_command_starts_a_run_and_resumes_it() {
    let scene = Scene::new();
    scene.ok(&format!("{FLAGS} --output straight"));
    let line = format!("{FLAGS} --output repeated --resume-or-start");
    let mut child = scene.start(&line);
    wait_for_step(&mut child, 3);
    child.kill().unwrap();
    child.wait().unwrap();
    let resumed = scene.ok(&line);
    assert!(resumed.err.contains("resuming from repeated/checkpoint-"), "{}", resumed.err);
    assert_eq!(result(&scene, "repeated"), result(&scene, "straight"));
}

#[test]
fn a_plain_start_removes_temporary_files() {
    let scene = Scene::new();
    std::fs::create_dir_all(scene.path("swept/.danlu-tmp-x-checkpoint-2")).unwrap();
    scene.write("swept/.danlu-tmp-x-checkpoint-2/a", "");
    scene.write("swept/.danlu-tmp-y", "");
    scene.ok(&format!("{FLAGS} --output swept"));
    assert!(names(&scene.path("swept")).iter().all(|name| !name.starts_with('.')));
}

#[test]
fn ctrl_c_finishes_the_step_saves_and_says_how_to_go_on() {
    let scene = Scene::new();
    scene.ok(&format!("{FLAGS} --output straight"));

    let mut child = scene.start(&format!("{FLAGS} --output stopped"));
    wait_for_step(&mut child, 3);
    signal(&child, "-INT");
    let ran = Ran::of(child.wait_with_output().unwrap());
    // The exit code tells scripts that there is no result.
    assert_eq!(ran.code, 130, "{}", ran.err);
    assert!(ran.err.ends_with("To resume:\n  danlu train --output stopped --resume\n"), "{}", ran.err);

    scene.ok("train --output stopped --resume");
    assert_eq!(result(&scene, "stopped"), result(&scene, "straight"));
}

#[test]
fn a_run_killed_before_its_first_checkpoint_starts_over() {
    let scene = Scene::new();
    let mut child =
        scene.start(&format!("{} --output early", FLAGS.replace("--save-steps 2", "--save-steps 0")));
    wait_for_step(&mut child, 2);
    child.kill().unwrap();
    child.wait().unwrap();
    let ran = scene.ok("train --output early --resume");
    assert!(ran.err.contains("there is no checkpoint yet: starting from the beginning\n"), "{}", ran.err);
}

#[test]
fn other_settings_do_not_resume() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 2 --lora-r 2");
    let ran = scene.run("train --output out --resume --learning-rate 5e-4");
    assert_eq!(ran.code, 1);
    let expected = "\
error: cannot resume `out/checkpoint-2`: another run wrote it: `learning_rate` was 0.0001 and is 0.0005

hint: resume with the settings, data and base of the checkpoint, or start again in another folder
";
    // The error is printed after the plan.
    assert_eq!(&ran.err[ran.err.find("error: ").unwrap()..], expected);
}

#[test]
fn only_the_newest_checkpoints_are_kept_when_asked() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 5 --save-steps 1 --save-total-limit 2 --lora-r 1");
    let kept: Vec<_> =
        names(&scene.path("out")).into_iter().filter(|n| n.starts_with("checkpoint")).collect();
    assert_eq!(kept, ["checkpoint-4", "checkpoint-5"]);
}

#[test]
fn a_diverged_run_is_reported_and_not_merged() {
    let scene = Scene::new();
    let flags = "--max-steps 12 --val-size 2 --lora-r 4 --learning-rate 1 --lr-scheduler-type constant";
    let ran = scene.ok(&format!("train --base base --data data.json --output out {flags}"));
    let verdict = "verdict         the model got worse: the held-out loss rose";
    assert!(ran.out.contains(verdict), "{}{}", ran.err, ran.out);
    let said = "the model got worse: the held-out loss rose from ";
    for (file, label) in [("README.md", "> Warning: "), ("report.html", "Warning: ")] {
        let text = String::from_utf8(scene.read(&format!("out/{file}"))).unwrap();
        assert!(text.contains(&format!("{label}{said}")), "{file}");
    }
    let ran = scene.run("merge out --output merged");
    assert_eq!(ran.code, 1, "{}", ran.err);
    let error = "error: cannot merge `out`: it predicts held-out text worse than its base; the perplexity on `out/held_out.json` is ";
    assert!(ran.err.contains(error) && ran.err.contains("`--allow-worse`"), "{}", ran.err);
    assert!(!scene.path("merged").exists());
    // Without held-out data, danlu measures on its own text. This also detects a model that guesses.
    std::fs::remove_file(scene.path("out/held_out.json")).unwrap();
    let ran = scene.run("merge out --output merged");
    assert!(ran.code == 1 && ran.err.contains("the perplexity on danlu's own text is "), "{}", ran.err);
    scene.ok("merge out --output merged --allow-worse");
}

/// Replaces the base's weights by a copy. Before, the weights are a link to a file that other tests read.
fn own_weights(scene: &Scene) -> std::path::PathBuf {
    let path = scene.path("base/model.safetensors");
    let bytes = scene.read("base/model.safetensors");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_base_that_changes_under_a_run_ends_it_with_whole_checkpoints() {
    let scene = Scene::new();
    let weights = own_weights(&scene);
    let original = scene.read("base/model.safetensors");
    let flags = "--save-steps 2 --logging-steps 1 --lora-r 2 --num-train-epochs 6";
    let mut child = scene.start(&format!("train --base base --data data.json --output out {flags}"));
    wait_for_step(&mut child, 3);
    // The file is changed in place. The run maps this file, so its next steps read the zeros.
    let file = std::fs::OpenOptions::new().write(true).open(&weights).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; original.len() / 2], original.len() as u64 / 2)
        .unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(
        ran.err.contains("error: cannot go on with `base/model.safetensors`: its content changed"),
        "{}",
        ran.err
    );
    std::fs::write(&weights, &original).unwrap();
    scene.ok("train --output out --resume");
    scene.ok(&format!("train --base base --data data.json --output straight {flags}"));
    assert_eq!(result(&scene, "out"), result(&scene, "straight"));
}

#[test]
fn a_merge_into_a_damaged_base_names_the_weight() {
    let scene = Scene::new();
    let path = own_weights(&scene);
    scene.ok("train --base base --data data.json --output out --max-steps 2 --lora-r 2");
    let mut bytes = scene.read("base/model.safetensors");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let start = header + tensors["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    // The third element becomes NaN, in bf16.
    bytes[start + 4..start + 6].copy_from_slice(&[0xc0, 0x7f]);
    std::fs::write(&path, &bytes).unwrap();
    let ran = scene.run("merge out --output merged");
    assert_eq!(ran.code, 1, "{}", ran.err);
    let error = "tensor `model.norm.weight` of the base holds NaN at element 2";
    assert!(ran.err.contains(error), "{}", ran.err);
    assert!(!scene.path("merged/model.safetensors").exists());
}

#[test]
fn a_tokenizer_that_changes_under_a_run_is_named() {
    let scene = Scene::new();
    let path = scene.path("base/tokenizer.json");
    let original = scene.read("base/tokenizer.json");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &original).unwrap();
    let flags = "--save-steps 2 --logging-steps 1 --lora-r 2 --num-train-epochs 6";
    let mut child = scene.start(&format!("train --base base --data data.json --output out {flags}"));
    wait_for_step(&mut child, 3);
    std::fs::write(&path, "{}").unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.err);
    let error = "error: cannot go on with `base/tokenizer.json`: the file changed during the run; it had ";
    assert!(ran.err.contains(error), "{}", ran.err);
    // No folder has the new file.
    for folder in std::fs::read_dir(scene.path("out")).unwrap().flatten() {
        let copy = folder.path().join("tokenizer.json");
        assert!(!copy.exists() || std::fs::read(&copy).unwrap() == original, "{}", copy.display());
    }
}

#[test]
fn a_base_that_is_shortened_under_a_run_is_named() {
    let scene = Scene::new();
    let weights = own_weights(&scene);
    let mut child = scene.start(&format!("{FLAGS} --output out"));
    wait_for_step(&mut child, 3);
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(1 << 20).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.err);
    let error =
        "error: cannot read `base/model.safetensors`: the file became shorter while danlu was reading it";
    assert!(ran.err.contains(error), "{}", ran.err);
}
