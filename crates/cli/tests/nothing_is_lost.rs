//! Tests full disks, and processes that are killed during a save. Complete files must stay intact, and a
//! partial file must never get its final name.
#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ran, Scene, names};

/// Runs a command with a file size limit of `kib` KiB. A larger write fails, as it would on a full disk.
fn limited(scene: &Scene, kib: u64, line: &str) -> Ran {
    let args: Vec<&str> = line.split_whitespace().collect();
    let inner = scene.command(&args);
    let mut command = Command::new("bash");
    // In bash, the unit of `ulimit -f` is 1024 bytes on every system.
    command.args(["-c", &format!("ulimit -f {kib} && exec \"$@\""), "bash"]);
    command.arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    command.current_dir(scene.path(".")).env("LANG", "C").env_remove("LC_ALL");
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Ran::of(command.output().unwrap())
}

fn hidden(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|name| name.starts_with('.')).collect()
}

const TOO_LARGE: &str = "the file grows larger than the disk or a limit of the system allows\n\n\
                         hint: choose a folder on another disk, or raise the limit (`ulimit -f` shows it)";

#[test]
fn a_save_that_does_not_fit_names_the_file_and_keeps_the_checkpoint_before_it() {
    let scene = Scene::new();
    let flags = "--base base --data data.json --lora-r 8 --num-train-epochs 4";
    scene.ok(&format!("train {flags} --output straight"));
    // The optimizer's file is the largest, because it contains two moments per parameter.
    let limit =
        fs::metadata(scene.path("straight/checkpoint-12/optimizer.safetensors")).unwrap().len() / 1024;

    // The first save exceeds the limit.
    let ran = limited(&scene, limit, &format!("train {flags} --output none --save-steps 3"));
    let expected = format!(
        "error: cannot write `none/checkpoint-3/optimizer.safetensors`: {TOO_LARGE}; \
         run `danlu train --output none --resume` to start over: there is no checkpoint yet\n"
    );
    assert!(ran.code == 1 && ran.err.ends_with(&expected), "{}", ran.err);
    assert_eq!(names(&scene.path("none")), ["run.toml"]);

    // A later save exceeds the limit. The first six steps run without a limit.
    scene.ok(&format!("train {flags} --output out --save-steps 3"));
    for step in [9, 12] {
        fs::remove_dir_all(scene.path(&format!("out/checkpoint-{step}"))).unwrap();
    }
    for name in ["adapter_model.safetensors", "adapter_config.json", "README.md", "report.html"] {
        fs::remove_file(scene.path(&format!("out/{name}"))).unwrap();
    }
    let before = names(&scene.path("out"));
    let whole = scene.read("out/checkpoint-6/optimizer.safetensors");
    let ran = limited(&scene, limit, "train --output out --resume");
    let expected = format!(
        "error: cannot write `out/checkpoint-9/optimizer.safetensors`: {TOO_LARGE}; \
         run `danlu train --output out --resume`: `out/checkpoint-6` is intact\n"
    );
    assert!(ran.code == 1 && ran.err.ends_with(&expected), "{}", ran.err);
    assert_eq!(names(&scene.path("out")), before);
    assert_eq!(scene.read("out/checkpoint-6/optimizer.safetensors"), whole);

    // A newer checkpoint that is damaged is not suggested.
    let damaged = scene.path("out/checkpoint-6/optimizer.safetensors");
    fs::write(&damaged, &whole[1..]).unwrap();
    let ran = limited(&scene, limit, "train --output out --resume out/checkpoint-3");
    let expected =
        "; run `danlu train --output out --resume out/checkpoint-3`: `out/checkpoint-3` is intact\n";
    assert!(ran.code == 1 && ran.err.ends_with(expected), "{}", ran.err);
    fs::write(&damaged, &whole).unwrap();

    // The resumed run gives the same result as an uninterrupted run.
    let ran = scene.ok("train --output out --resume");
    assert!(ran.err.contains("resuming from out/checkpoint-6, after step 6"), "{}", ran.err);
    let adapter = |folder: &str| scene.read(&format!("{folder}/adapter_model.safetensors"));
    assert_eq!(adapter("out"), adapter("straight"));
}

#[test]
fn an_adapter_appears_after_all_that_belongs_to_it() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 1 --lora-r 1");
    let last = ["adapter_model.safetensors", "adapter_config.json"];
    for name in ["danlu.json", "tokenizer.json", "README.md", "report.html"] {
        for name in last.into_iter().chain([name]) {
            fs::remove_file(scene.path(&format!("out/{name}"))).unwrap();
        }
        // A file cannot replace a folder of the same name, so the write fails.
        fs::create_dir(scene.path(&format!("out/{name}"))).unwrap();
        let ran = scene.run("train --output out --resume");
        assert!(ran.code == 1 && ran.err.contains(&format!("`out/{name}`")), "{}", ran.err);
        for name in last {
            assert!(!scene.path(&format!("out/{name}")).exists(), "{name}");
        }
        fs::remove_dir(scene.path(&format!("out/{name}"))).unwrap();
        scene.ok("train --output out --resume");
    }
}

#[test]
fn a_run_whose_numbers_ran_away_names_a_checkpoint_that_is_whole() {
    let scene = Scene::new();
    let flags = "--base base --data data.json --lora-r 2 --lora-alpha 1e30 --save-steps 1";
    let ran = scene.run(&format!("train {flags} --output out"));
    let kept = "; `out/checkpoint-1` holds the adapter as it was then\n";
    assert!(ran.code == 1 && ran.err.ends_with(kept), "{}", ran.err);
    fs::create_dir(scene.path("out/checkpoint-9")).unwrap();
    scene.write("out/checkpoint-9/danlu_state.json", "{}");
    let ran = scene.run("train --output out --resume out/checkpoint-1");
    assert!(ran.code == 1 && ran.err.ends_with(kept), "{}", ran.err);
}

#[test]
fn a_merge_that_does_not_fit_names_the_file_and_leaves_no_model() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 1 --lora-r 2");
    let ran = limited(&scene, 8 << 10, "merge out --output merged");
    let expected = format!("error: cannot write `merged/model.safetensors`: {TOO_LARGE}\n");
    assert!(ran.code == 1 && ran.err == expected, "{}", ran.err);
    assert!(!scene.path("merged").exists());
    // If the output folder existed before the merge, it is not removed and stays empty.
    fs::create_dir(scene.path("mine")).unwrap();
    assert_eq!(limited(&scene, 8 << 10, "merge out --output mine").code, 1);
    assert!(names(&scene.path("mine")).is_empty());
    scene.ok("merge out --output mine");
}

/// Returns whether a save is in progress. During a save, a temporary folder exists.
fn is_saving(output: &Path) -> bool {
    let entries = fs::read_dir(output).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).any(|name| name.contains("-checkpoint-"))
}

#[test]
fn killed_in_the_middle_of_a_save_every_checkpoint_is_whole_and_the_run_ends_as_a_straight_one() {
    let scene = Scene::new();
    let flags = "--base base --data data.json --lora-r 2 --num-train-epochs 4 --save-steps 1";
    scene.ok(&format!("train {flags} --output straight"));
    let files = names(&scene.path("straight/checkpoint-1"));
    let output = scene.path("killed");

    let (mut random, mut hits, mut kills) = (2_u64, 0, 0);
    let mut line = format!("train {flags} --output killed");
    while kills < 9 && !scene.path("killed/adapter_model.safetensors").exists() {
        let mut child = scene.start(&line);
        // The process is killed at the start of a save, or up to 4 ms later.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = Duration::from_micros((random >> 33) % 4_000);
        let deadline = Instant::now() + Duration::from_secs(60);
        // The new run first removes the files of the killed save. The loop therefore runs until these files
        // are gone, and then until the next save starts.
        for saving in [false, true] {
            while is_saving(&output) != saving && child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "no save within a minute");
            }
        }
        std::thread::sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        hits += usize::from(is_saving(&output));

        for name in names(&output).iter().filter(|name| name.starts_with("checkpoint-")) {
            assert_eq!(names(&output.join(name)), files, "{name} after kill {kills}");
            for file in ["adapter_model.safetensors", "optimizer.safetensors", "danlu_state.json"] {
                let (found, straight) = (format!("killed/{name}/{file}"), format!("straight/{name}/{file}"));
                assert_eq!(scene.read(&found), scene.read(&straight), "{found} after kill {kills}");
            }
        }
        line = "train --output killed --resume".to_owned();
    }
    println!("{hits} of {kills} kills left a save unfinished");
    assert!(hits > 0, "no kill fell into a save");
    scene.ok(&line);
    assert!(hidden(&output).is_empty(), "leftovers are swept");
    let adapter = |folder: &str| scene.read(&format!("{folder}/adapter_model.safetensors"));
    assert_eq!(adapter("killed"), adapter("straight"));
}
