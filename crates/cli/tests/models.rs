//! Tests `chat`, `compare`, `merge` and `doctor` with a small adapter.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{Ran, Scene, names};

fn trained() -> Scene {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 6 --lora-r 4 --learning-rate 5e-3 --lora-dropout 0");
    scene
}

#[test]
fn a_prompt_without_a_word_is_refused() {
    let scene = Scene::new();
    let ran = Ran::of(scene.command(&["chat", "base", "--prompt", " "]).output().unwrap());
    let expected = "error: `--prompt` is empty: there is nothing to answer\n\nhint: pass a text, or omit `--prompt` for a chat\n";
    assert_eq!((ran.code, ran.err.as_str()), (1, expected));
}

#[test]
fn one_shot_chat_prints_the_reply_and_nothing_else() {
    let scene = Scene::new();
    let line = "chat base --prompt 帮我推荐一家餐馆。 --temperature 0 --max-new-tokens 24";
    let ran = scene.ok(line);
    assert!(ran.out.ends_with('\n') && ran.out.lines().count() == 1 && ran.out.len() > 6, "{:?}", ran.out);
    assert!(!ran.out.contains("<|"), "{}", ran.out);
    assert_eq!(ran.err, "");
    assert_eq!(scene.ok(line).out, ran.out);
    let verbose = scene.ok(&format!("{line} -v"));
    assert!(verbose.err.contains("first token in") && verbose.err.contains("tok/s"), "{}", verbose.err);
}

#[test]
fn a_piped_conversation_remembers_obeys_and_saves() {
    let scene = Scene::new();
    let mut child = scene
        .command(&["chat", "base", "--temperature", "0", "--max-new-tokens", "8"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let talk = "你好。\n/system 你是甄嬛。\n去哪儿？\n/save talk.jsonl\n/reset\n/exit\n不会说到这里。\n";
    child.stdin.take().unwrap().write_all(talk.as_bytes()).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("Saved the conversation to talk.jsonl\n"), "{}", ran.err);
    let saved = String::from_utf8(scene.read("talk.jsonl")).unwrap();
    assert!(
        saved.starts_with(
            r#"{"messages":[{"role":"system","content":"你是甄嬛。"},{"role":"user","content":"你好。"}"#
        ),
        "{saved}"
    );
    assert_eq!(saved.matches("assistant").count(), 2);
    // A saved conversation is valid training data.
    assert_eq!(
        scene.run("data check talk.jsonl --base base").out.lines().next(),
        Some(format!("talk.jsonl · messages · {} B", saved.len()).as_str())
    );
}

#[test]
fn lines_of_a_pipe_that_cannot_be_followed_are_reported_and_the_rest_is_answered() {
    let scene = Scene::new();
    let mut child = scene
        .command(&["chat", "base", "--temperature", "0", "--max-new-tokens", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let talk = "/save empty.jsonl\n/rest\n/save\n/dance\n你好。\n";
    child.stdin.take().unwrap().write_all(talk.as_bytes()).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.out.lines().count()), (1, 1), "{}\n{}", ran.out, ran.err);
    for told in [
        "error: there is no conversation to save yet\n\nhint: say something first\n",
        "error: unknown command `/rest`\n\nhint: did you mean `/reset`?\n",
        "error: `/save` is not used like this\n\nhint: name a file, such as /save talk.jsonl\n",
        "error: unknown command `/dance`\n\nhint: `/help` lists the commands: /retry /undo /compare /set /reset /system /save /help /exit \
         /quit\n",
    ] {
        assert!(ran.err.contains(told), "{}", ran.err);
    }
    assert!(ran.err.ends_with("error: 4 lines failed, see above\n"), "{}", ran.err);
    assert!(!scene.path("empty.jsonl").exists());
}

#[test]
fn an_adapter_compares_with_its_base_and_merges_to_itself() {
    let scene = trained();
    let ran = scene.ok("compare out --data data.json --replies 2 --max-new-tokens 8");
    let row = |name: &str| -> Vec<f64> {
        let line = ran.out.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().map(|value| value.parse().unwrap()).collect()
    };
    let (loss, records) = (row("loss a token"), row("better on records"));
    assert!(loss[0] > loss[1], "{}", ran.out);
    assert!(records[1] > records[0], "{}", ran.out);
    assert_eq!(ran.out.matches("\n? ").count(), 2, "{}", ran.out);
    assert!(ran.out.contains("base                                   │ out\n"), "{}", ran.out);

    let ran = scene.ok("merge out --output merged --dtype f32 --data data.json --lang zh");
    assert!(ran.out.ends_with("通过 · merged/merge_report.json\n"), "{}", ran.out);
    assert!(names(&scene.path("merged")).contains(&"model.safetensors".to_owned()));
    let say = |model: &str| {
        scene.ok(&format!("chat {model} --prompt 你好。 --temperature 0 --max-new-tokens 12")).out
    };
    assert_eq!(say("merged"), say("out"));

    scene.refuses(
        "merge out --output merged",
        "error: cannot write to `merged`: the folder already holds other things, such as `README.md`\n\n\
         hint: name a new or an empty folder, so that nothing of yours is overwritten\n",
    );
}

#[test]
fn a_merge_beyond_the_threshold_fails() {
    let scene = trained();
    let ran = scene.run("merge out --output merged --threshold 0");
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.out.contains("failed · merged/merge_report.json\n"), "{}", ran.out);
    assert!(
        ran.err.contains(
            "error: the merged model differs from base plus adapter: only its report was saved\n  the divergence is "
        ),
        "{}",
        ran.err
    );
    assert!(scene.path("merged/merge_report.json").exists() && !scene.path("merged/config.json").exists());
    assert_eq!(scene.run("merge out --output merged").code, 0, "a report alone is in nobody's way");
}

#[test]
fn doctor_follows_the_environment_and_the_flags() {
    let scene = Scene::new();
    let output = scene.command(&["doctor", "--threads", "1"]).env("DANLU_ISA", "scalar").output().unwrap();
    let ran = Ran::of(output);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("scalar (chosen by DANLU_ISA)"), "{}", ran.out);
    assert!(ran.out.contains("cpu scalar, 1 thread, f32"), "{}", ran.out);
    let auto = "--dtype auto     f32 (the default: bf16 is not faster here)\n";
    assert!(ran.out.contains(auto), "{}", ran.out);
    let without_gpu = "NVIDIA GPU       none: cannot open `libcuda.so.1`: this machine has no NVIDIA driver";
    let gpus = [without_gpu, "CUDA driver ", "NVIDIA GPU       cannot run `cuInit`"];
    assert!(gpus.iter().any(|gpu| ran.out.contains(gpu)), "{}", ran.out);
    let zh = Ran::of(scene.command(&["doctor"]).env("LANG", "zh_CN.UTF-8").output().unwrap());
    assert!(zh.out.starts_with("版本             "), "{}", zh.out);
}

#[test]
fn more_threads_than_cores_are_not_started() {
    let scene = Scene::new();
    let ran = scene.ok("doctor --threads 1024");
    let cores = std::thread::available_parallelism().unwrap();
    let note =
        format!("warning: `--threads 1024` exceeds the {cores} available cores: using {cores} threads\n");
    assert!(ran.err.contains(&note), "{}", ran.err);
    assert!(ran.out.contains(&format!("{cores} of {cores} cores")), "{}", ran.out);
}

#[test]
fn limits_of_the_server_have_a_maximum() {
    let scene = Scene::new();
    for flag in ["--max-num-seqs", "--max-num-queued-reqs"] {
        let ran = scene.run(&format!("serve base --port 0 {flag} {}", u64::MAX));
        assert_eq!(ran.code, 1, "{flag}: {}", ran.err);
        assert!(ran.err.contains("expected a smaller number"), "{flag}: {}", ran.err);
    }
}

/// `ulimit -s` limits the stack of the main thread, and `RUST_MIN_STACK` that of all others.
#[cfg(target_os = "linux")]
#[test]
fn a_small_stack_is_enough_for_every_kind_of_command() {
    let scene = Scene::new();
    for line in [
        &["--help"][..],
        &["chat", "base", "--prompt", "hi", "--max-new-tokens", "2", "--device", "cpu"],
        &["plan", "--base", "base", "--data", "data.json"],
        &["doctor"],
    ] {
        for kib in [64, 1024] {
            let mut command = std::process::Command::new("prlimit");
            command.arg(format!("--stack={}", kib << 10)).arg(env!("CARGO_BIN_EXE_danlu")).args(line);
            command.current_dir(scene.path("")).env("LANG", "C").env("RUST_MIN_STACK", "1");
            let ran = Ran::of(command.output().unwrap());
            assert_eq!(ran.code, 0, "{kib} KiB: {line:?}: {}", ran.err);
        }
    }
}

/// At some of these limits, the base, the cache or the work buffers do not fit. Each failure must be
/// reported, and no process may abort.
#[cfg(target_os = "linux")]
#[test]
fn a_small_address_space_is_reported_without_an_abort() {
    let scene = Scene::new();
    let danlu = env!("CARGO_BIN_EXE_danlu");
    let mut failed = 0;
    for mib in (60..=120).step_by(4) {
        let limit = format!("--as={}", mib << 20);
        let mut command = std::process::Command::new("prlimit");
        command.args([
            &limit,
            danlu,
            "chat",
            "base",
            "--prompt",
            "hi",
            "--max-new-tokens",
            "2",
            "--device",
            "cpu",
        ]);
        let ran = Ran::of(command.current_dir(scene.path("")).env("LANG", "C").output().unwrap());
        assert!(
            ran.code == 0 || ran.code == 1 && ran.err.contains("error: "),
            "{mib} MiB: {}\n{}",
            ran.code,
            ran.err
        );
        failed += ran.code;
    }
    assert!(failed > 0, "the smallest limit is too large");
}
