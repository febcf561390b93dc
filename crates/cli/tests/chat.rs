//! Commands of a chat, and prompts from a file.

mod common;

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use common::{Ran, Scene};

/// Runs `danlu chat` with lines on stdin.
fn chat(scene: &Scene, model: &str, lines: &str) -> Ran {
    let mut command = scene.command(&["chat", model, "--max-new-tokens", "4", "--dtype", "f32"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    Ran::of(child.wait_with_output().unwrap())
}

#[test]
fn a_retry_replaces_the_reply_and_undo_removes_it() {
    let scene = Scene::new();
    let ran = chat(&scene, "base", "你好。\n/retry\n/undo\n/save one.jsonl\n再见。\n/save two.jsonl\n");
    assert!(ran.err.contains("removed: 你好。"), "{}", ran.err);
    assert!(ran.err.contains("there is no conversation to save yet"), "{}", ran.err);
    assert_eq!(ran.code, 1, "the first /save fails");
    assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
    let saved: serde_json::Value = serde_json::from_slice(&scene.read("two.jsonl")).unwrap();
    let messages = saved["messages"].as_array().unwrap();
    assert_eq!((messages.len(), messages[0]["content"].as_str()), (2, Some("再见。")));
}

#[test]
fn settings_change_in_a_running_chat() {
    let scene = Scene::new();
    let ran = chat(&scene, "base", "/set temperature 0\n/set top-p=0.5\n/set\n");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("temperature 0\ntop_p 0.5\n"), "{}", ran.err);
    for (line, says) in [
        ("/set heat 1\n", "cannot set `heat`: there is no such setting"),
        ("/set temperature hot\n", "cannot set `temperature` to `hot`: expected a number"),
        ("/set top_p 2\n", "`top-p`"),
        ("/undo\n", "there is no question yet"),
        ("/compare\n", "cannot compare: the chat has no adapter, only a model"),
    ] {
        let ran = chat(&scene, "base", line);
        assert!(ran.code == 1 && ran.err.contains(says), "{line}: {}", ran.err);
    }
}

#[test]
fn compare_answers_with_the_base_and_keeps_the_conversation() {
    let scene = Scene::new();
    let train = "train --base base --data data.json --output out --max-steps 2 --val-size 0 --dtype f32";
    scene.ok(train);
    let ran = chat(&scene, "out", "/set temperature 0\n你好。\n/compare\n/save talk.jsonl\n");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let base = scene.ok("chat base --prompt 你好。 --temperature 0 --max-new-tokens 4 --dtype f32").out;
    assert_eq!(ran.out.lines().nth(1), base.lines().next(), "{}", ran.out);
    let saved: serde_json::Value = serde_json::from_slice(&scene.read("talk.jsonl")).unwrap();
    assert_eq!(saved["messages"].as_array().unwrap().len(), 2, "{saved}");
}

#[test]
fn each_line_of_a_prompt_file_gets_a_conversation_of_its_own() {
    let scene = Scene::new();
    scene.write("ask.txt", "你好。\n\n你好。\n");
    let flags = "--temperature 0 --max-new-tokens 4 --dtype f32";
    let out = scene.ok(&format!("chat base --prompt-file ask.txt {flags}")).out;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines.len(), lines[0]), (4, "> 你好。"), "{out}");
    assert_eq!(lines[1], lines[3], "equal questions get equal replies");
    scene.write("empty.txt", "\n");
    scene.refuses(
        "chat base --prompt-file empty.txt",
        "error: `empty.txt` has no line to answer\n\nhint: write one prompt per line\n",
    );
}

/// Reads until `end` has appeared, and returns what was read.
fn read_until(out: &mut ChildStdout, end: &str) -> String {
    let (mut read, mut byte) = (Vec::new(), [0]);
    while !read.ends_with(end.as_bytes()) {
        assert_eq!(out.read(&mut byte).unwrap(), 1, "the chat ended: {}", String::from_utf8_lossy(&read));
        read.push(byte[0]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// Ends the process when it is dropped, so that a failed test leaves no process.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn text_typed_during_a_reply_appears_in_the_next_prompt_only() {
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("left out: there is no `script` to make a terminal with");
        return;
    }
    let scene = Scene::new();
    let chat = scene.command(&["chat", "base", "--max-new-tokens", "100", "--dtype", "f32"]);
    let mut terminal = Command::new("script");
    terminal.args([
        "-qec",
        "\"$DANLU\" chat base --max-new-tokens 100 --temperature 0 --dtype f32",
        "/dev/null",
    ]);
    terminal.env("DANLU", chat.get_program()).env("SHELL", "/bin/sh").env("TERM", "xterm");
    terminal.current_dir(chat.get_current_dir().unwrap());
    for (name, value) in chat.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    let mut child = Ending(terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let (mut typed, mut out) = (child.0.stdin.take().unwrap(), child.0.stdout.take().unwrap());
    read_until(&mut out, "> ");
    typed.write_all("请介绍一下你自己，越长越好。\r".as_bytes()).unwrap();
    read_until(&mut out, "越长越好。");
    // The end of the line, and the first byte of the reply.
    read_until(&mut out, "\r\n");
    out.read_exact(&mut [0]).unwrap();
    typed.write_all(b"typed ahead").unwrap();
    let reply = read_until(&mut out, "> ");
    assert!(reply.contains("cut short"), "the reply is too short for this test: {reply}");
    assert!(!reply.contains("typed"), "{reply}");
    read_until(&mut out, "typed ahead");
    // Ctrl-U clears the line, and Ctrl-D leaves.
    typed.write_all(b"\x15\x04").unwrap();
    assert!(child.0.wait().unwrap().success());
}
