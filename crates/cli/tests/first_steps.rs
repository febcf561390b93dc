//! The first commands of a new user: the greeting, data sets, and the embedded base by its name.

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use common::{Ran, Scene};

#[test]
fn danlu_alone_greets_and_names_three_commands() {
    let scene = Scene::new();
    let english = scene.ok("");
    for command in ["danlu demo", "danlu data get", "danlu explain"] {
        assert!(english.out.contains(command), "{}", english.out);
    }
    assert_eq!(english.err, "");
    assert!(scene.ok("--lang zh").out.contains("丹炉 danlu "));
}

#[test]
fn embedded_data_is_written_once_and_never_overwrites() {
    let scene = Scene::new();
    let list = scene.ok("data get").out;
    assert!(list.contains("palace") && list.contains("cook") && list.contains("huanhuan"), "{list}");
    let got = scene.ok("data get palace");
    assert_eq!(got.out, "palace.json\n");
    assert!(got.err.ends_with("Next: danlu data check palace.json\n"), "{}", got.err);
    assert_eq!(scene.read("palace.json"), include_bytes!("../assets/palace.json"));
    scene.ok("data get palace");
    scene.write("palace.json", "[]");
    scene.refuses(
        "data get palace",
        "error: cannot write `palace.json`: it exists with another content\n\n\
         hint: choose another file with `--output`\n",
    );
    assert_eq!(scene.read("palace.json"), b"[]");
    let unknown = scene.run("data get castle");
    assert!(unknown.err.contains("expected one of palace, cook, huanhuan"), "{}", unknown.err);
}

/// Serves one request with `content`, and returns the address and the requested path.
fn serve(content: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let read = stream.read(&mut request).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{content}", content.len()).unwrap();
        String::from_utf8_lossy(&request[..read]).lines().next().unwrap_or_default().to_owned()
    });
    (address, server)
}

#[test]
fn a_mirror_with_another_file_is_refused_by_its_checksum() {
    let scene = Scene::new();
    let (mirror, server) = serve("[]");
    let mut command = scene.command(&["data", "get", "huanhuan"]);
    let ran = Ran::of(command.env("DANLU_DATA_MIRROR", mirror).output().unwrap());
    let request = server.join().unwrap();
    assert_eq!(request, "GET /datawhalechina/self-llm/master/dataset/huanhuan.json HTTP/1.1");
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("SHA-256 4f53cda18c2b..., expected 1bbe8b098572..."), "{}", ran.err);
    assert!(ran.err.contains("hint: set `DANLU_DATA_MIRROR`"), "{}", ran.err);
    assert!(!scene.path("huanhuan.json").exists());
}

#[test]
fn demo_names_the_embedded_base_in_every_command() {
    let scene = Scene::new();
    scene.ok("data check data.json --base demo");
    scene.ok("plan --base demo --data data.json");
    scene.ok("train --base demo --data data.json --output out/x --max-steps 2 --val-size 2");
    let config = String::from_utf8(scene.read("out/x/adapter_config.json")).unwrap();
    let folder = scene.path("cache/danlu/base-8m");
    assert!(config.contains(&format!("\"{}\"", folder.display())), "{config}");
    // A later command finds the base by the adapter alone.
    scene.ok("chat out/x --prompt 你好 --max-new-tokens 2");
    scene.ok("compare out/x demo --replies 1");
    scene.ok("merge out/x --base demo --output merged --allow-worse --threshold 9");
    scene.ok("chat demo --prompt 你好 --max-new-tokens 2");
    scene.write("run.toml", "base = \"demo\"\ndata = [\"data.json\"]\noutput = \"out/y\"\nmax_steps = 1\n");
    scene.ok("train --config run.toml");
    let run = String::from_utf8(scene.read("out/y/run.toml")).unwrap();
    assert!(run.contains("cache/danlu/base-8m"), "{run}");
    scene.ok("train --output out/y --resume --max-steps 1");
}

#[test]
fn a_local_folder_named_demo_is_not_the_embedded_base() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("demo")).unwrap();
    let refused = scene.run("data check data.json --base demo");
    assert_eq!(refused.code, 1, "{}", refused.out);
    assert!(!scene.path("cache").exists());
}
