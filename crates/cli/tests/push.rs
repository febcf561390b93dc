//! Tests `danlu push` with a test server.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Ran, Scene, names};
use danlu_hub_test_server::{Action, Fault, HubServer, Method};
use serde_json::json;

/// A temporary folder of the user `me`, with a write token.
struct Desk {
    scene: Scene,
    server: HubServer,
}

impl Desk {
    fn new() -> Self {
        let (mut scene, server) = (Scene::new(), HubServer::start());
        scene.endpoint = server.endpoint();
        server.add_user("me", "hf_mine");
        fs::create_dir(scene.path("hf")).unwrap();
        scene.write("hf/token", "hf_mine");
        Self { scene, server }
    }

    /// Creates a desk as [`Desk::new`] does, with an adapter in `out`.
    fn with_adapter() -> Self {
        let desk = Self::new();
        desk.scene.ok("train --base base --data data.json --output out --max-steps 1 --lora-r 2");
        desk
    }

    /// Runs a command that must fail as a user error and leave the Hub unchanged.
    fn refuses(&self, line: &str) -> Ran {
        self.server.clear_requests();
        let ran = self.scene.run(line);
        assert_eq!(ran.code, 1, "danlu {line}\n{}\n{}", ran.out, ran.err);
        assert!(ran.err.contains("\nhint: "), "{}", ran.err);
        assert!(self.server.requests().iter().all(|request| request.method == "GET"), "danlu {line}");
        ran
    }

    /// Returns the text of a file on the Hub.
    fn text(&self, id: &str, path: &str) -> String {
        String::from_utf8(self.server.read(id, "main", path).expect(path)).unwrap()
    }
}

#[test]
fn an_adapter_that_nobody_can_load_is_not_sent() {
    let desk = Desk::with_adapter();
    let scene = &desk.scene;
    let weights = scene.read("out/adapter_model.safetensors");
    let config = String::from_utf8(scene.read("out/adapter_config.json")).unwrap();
    let path = scene.path("out/adapter_model.safetensors");
    let refused = |words: &str| {
        for flag in ["", " --dry-run"] {
            let ran = desk.refuses(&format!("push out me/huan{flag}"));
            assert!(ran.err.contains(words), "{}\nlacks {words}", ran.err);
        }
        assert!(desk.server.requests().is_empty(), "{words}");
    };
    fs::remove_file(&path).unwrap();
    refused("cannot load `out`: it has no `adapter_model.safetensors`");
    fs::write(&path, &weights[..weights.len() - 4]).unwrap();
    refused(&format!("it has {} bytes, expected {}", weights.len() - 4, weights.len()));
    fs::remove_file(&path).unwrap();
    fs::write(scene.path("elsewhere.safetensors"), &weights).unwrap();
    std::os::unix::fs::symlink("../elsewhere.safetensors", &path).unwrap();
    refused("the upload cannot be loaded without it: a link that leads out of the folder");
    fs::remove_file(&path).unwrap();
    fs::write(&path, &weights).unwrap();
    scene.write("out/adapter_config.json", &config.replace("\"r\": 2", "\"r\": 4"));
    refused("expected [4, ");
    scene.write("out/adapter_config.json", "{\n\"r\": 2,\n");
    refused("adapter_config.json`: line 3");
    scene.write("out/adapter_config.json", &config);
    let identity = String::from_utf8(scene.read("out/danlu.json")).unwrap();
    scene.write("out/danlu.json", "{");
    refused("danlu.json");
    scene.write("out/danlu.json", &identity);
    scene.write("out/tokenizer.json", "{}");
    refused("tokenizer.json");
}

#[test]
fn a_model_that_nobody_can_load_is_not_sent() {
    let desk = Desk::new();
    let scene = &desk.scene;
    let weights = scene.read("base/model.safetensors");
    let refused = |words: &str| {
        let ran = desk.refuses("push base me/base");
        assert!(ran.err.contains(words) && ran.out.is_empty(), "{}\nlacks {words}", ran.err);
        assert!(desk.server.requests().is_empty(), "{words}");
    };
    // The files are links to the embedded base, so they must be replaced and not overwritten.
    let replace = |name: &str, bytes: &[u8]| {
        let _ = fs::remove_file(scene.path(name));
        fs::write(scene.path(name), bytes).unwrap();
    };
    let index = r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#;
    fs::remove_file(scene.path("base/model.safetensors")).unwrap();
    refused("cannot load `base`: it has neither `model.safetensors`");
    replace("base/model.safetensors.index.json", index.as_bytes());
    refused("shard `model-00001-of-00002.safetensors` is missing");
    replace("base/model-00001-of-00002.safetensors", &weights);
    refused("is missing");
    fs::remove_file(scene.path("base/model.safetensors.index.json")).unwrap();
    fs::remove_file(scene.path("base/model-00001-of-00002.safetensors")).unwrap();
    replace("base/model.safetensors", &weights[..weights.len() / 2]);
    refused(" bytes, expected ");
    replace("base/model.safetensors", &weights);
    let config = scene.read("base/config.json");
    replace("base/config.json", b"{\"model_type\": \"mamba\"}");
    refused("mamba");
    replace("base/config.json", &config);
    scene.copy_base();
    scene.ok("push base me/base --dry-run");
    assert_eq!(desk.server.is_private("me/base"), None);
}

#[test]
fn a_page_without_its_card_is_told_at_the_end() {
    let desk = Desk::with_adapter();
    let card = String::from_utf8(desk.scene.read("out/README.md")).unwrap();
    let lines = card.lines().count();
    desk.scene.write("out/README.md", &format!("{card}hf&#95;mine and its like: hf_mine\n"));
    for (line, code) in [("push out me/huan --dry-run", 0), ("push out me/huan", 0)] {
        let ran = desk.scene.run(line);
        let last = ran.err.lines().find(|line| line.starts_with("warning: README.md")).unwrap_or_default();
        assert_eq!(ran.code, code, "{}", ran.err);
        let words = format!("README.md is not uploaded (line {} looks like", lines + 1);
        assert!(last.contains(&words) && last.contains("the page has no card for this model"), "{}", ran.err);
        assert!(!ran.err.contains("hf_mine") && !ran.out.contains("hf_mine"));
    }
    assert!(desk.server.read("me/huan", "main", "README.md").is_none());
    // A token in `card.json` is rejected, even if `README.md` contains the token only in escaped form.
    desk.scene.write("out/README.md", &card);
    let record = String::from_utf8(desk.scene.read("out/card.json")).unwrap();
    assert!(record.contains("\"name\": \"out\""), "{record}");
    desk.scene.write("out/card.json", &record.replacen("\"name\": \"out\"", "\"name\": \"hf_mine\"", 1));
    assert!(desk.refuses("push out me/huan").err.contains("card.json"));
}

#[test]
fn a_record_without_its_page_brings_it_along() {
    let desk = Desk::with_adapter();
    fs::remove_file(desk.scene.path("out/README.md")).unwrap();
    let ran = desk.scene.ok("push out me/huan");
    assert!(!ran.err.contains("edited"), "{}", ran.err);
    let sent = desk.text("me/huan", "README.md");
    assert!(sent.contains("danlu chat me/huan") && !desk.scene.path("out/README.md").exists(), "{sent}");
}

#[test]
fn a_text_without_marks_is_sent_as_it_is() {
    let desk = Desk::with_adapter();
    let card = String::from_utf8(desk.scene.read("out/README.md")).unwrap();
    desk.scene.write("out/README.md", &format!("{card}A line of mine.\n"));
    desk.scene.ok("push out me/huan");
    let sent = desk.text("me/huan", "README.md");
    assert!(sent.contains("danlu chat me/huan") && sent.ends_with("A line of mine.\n"), "{sent}");
    desk.scene.write("out/README.md", "# By hand\n\nA line of mine.\n");
    desk.scene.ok("push out me/huan");
    assert_eq!(desk.text("me/huan", "README.md"), "# By hand\n\nA line of mine.\n");
}

#[test]
fn a_push_names_the_base_of_danlu_json() {
    let desk = Desk::with_adapter();
    let base = || base_of(&desk, "me/huan");
    desk.scene.ok("push out me/huan --base-id lab/other");
    assert_eq!(base(), "lab/other");
    desk.scene.ok("card out --base-id lab/base");
    let ran = desk.scene.ok("push out me/huan");
    assert!(!ran.err.contains("others cannot find"), "{}", ran.err);
    assert_eq!(base(), "lab/base");
    assert!(desk.scene.ok("push out me/huan").out.contains("already has all files"));
    // The recorded commit belongs to one base, so it is removed if a different base is named.
    let read = |name: &str| -> serde_json::Value { serde_json::from_slice(&desk.scene.read(name)).unwrap() };
    let mut identity = read("out/danlu.json");
    assert_eq!(identity["base"]["hub_id"], "lab/base");
    identity["base"]["revision"] = json!("c0ffee");
    desk.scene.write("out/danlu.json", &identity.to_string());
    // The base is never read from the card.
    let mut record = read("out/card.json");
    record["base"]["hub_id"] = json!("lab/false");
    desk.scene.write("out/card.json", &record.to_string());
    for (line, revision) in
        [("push out me/huan", json!("c0ffee")), ("push out me/huan --base-id lab/other", json!(null))]
    {
        desk.scene.ok(line);
        let config: serde_json::Value =
            serde_json::from_str(&desk.text("me/huan", "adapter_config.json")).unwrap();
        assert_eq!(config["revision"], revision, "{line}");
    }
    assert!(!desk.text("me/huan", "README.md").contains("lab/false"));
}

/// Earlier versions wrote no base into `danlu.json`. Those versions wrote the Hub name of the base only into
/// the card.
#[test]
fn an_adapter_of_an_earlier_version_keeps_the_base_of_its_repository() {
    let desk = Desk::with_adapter();
    let mut identity: serde_json::Value = serde_json::from_slice(&desk.scene.read("out/danlu.json")).unwrap();
    identity.as_object_mut().unwrap().remove("base");
    desk.server.add_model("lab/base", &[("config.json", b"{}")]);
    desk.scene.write("out/danlu.json", &identity.to_string());
    let ran = desk.scene.ok("push out me/huan --dry-run");
    assert!(ran.err.contains("--base-id ORG/NAME"), "{}", ran.err);
    desk.scene.ok("push out me/huan --base-id lab/base");
    let ran = desk.scene.ok("push out me/huan");
    assert!(ran.err.contains("lab/base") && !ran.err.contains("others cannot find"), "{}", ran.err);
    assert_eq!(base_of(&desk, "me/huan"), "lab/base");
    // `danlu card --base-id` records the base in `danlu.json`.
    desk.scene.ok("card out --base-id lab/other");
    desk.scene.ok("push out me/huan");
    assert_eq!(base_of(&desk, "me/huan"), "lab/other");
}

#[test]
fn a_dry_run_says_what_the_token_may_not() {
    let desk = Desk::with_adapter();
    desk.server.add_read_only_user("me", "hf_reads");
    desk.server.add_model("she/huan", &[("x.md", b"x")]);
    let shown =
        |ran: &Ran| assert!(ran.out.contains("to be sent") && ran.err.contains("nothing was uploaded"));
    let ran = desk.refuses("push out she/huan --dry-run");
    shown(&ran);
    assert!(ran.err.contains("`me` cannot write to `she/huan`"), "{}", ran.err);
    let ran = desk.scene.ok("push out she/huan --dry-run --create-pr");
    assert!(ran.out.contains("a pull request to the existing repository"), "{}", ran.out);
    let account = json!({ "name": "me", "auth": { "accessToken": { "role": "fineGrained" } } });
    desk.server.fault(Fault::on(Method::Get, "/whoami-v2").then(Action::Replace(account)));
    let ran = desk.scene.ok("push out me/huan --dry-run");
    assert!(ran.err.contains("fine-grained: only the upload shows"), "{}", ran.err);
    desk.scene.write("hf/token", "hf_reads");
    let ran = desk.refuses("push out me/huan --dry-run");
    shown(&ran);
    assert!(ran.err.contains("is read-only"), "{}", ran.err);
    fs::remove_file(desk.scene.path("hf/token")).unwrap();
    let ran = desk.scene.ok("push out me/huan --dry-run");
    shown(&ran);
    assert!(ran.err.contains("there is no token: run `danlu login`"), "{}", ran.err);
}

#[test]
fn a_pull_request_has_an_address_and_needs_a_repository() {
    let desk = Desk::with_adapter();
    for flag in ["", " --dry-run"] {
        let ran = desk.refuses(&format!("push out she/huan --create-pr{flag}"));
        assert!(
            ran.err.contains("error: cannot open a pull request: `she/huan` does not exist"),
            "{}",
            ran.err
        );
        assert!(ran.err.contains("without `--create-pr`"), "{}", ran.err);
    }
    desk.server.add_model("she/huan", &[("x.md", b"x")]);
    let ran = desk.scene.ok("push out she/huan --create-pr");
    let page = format!("pull request: {}/she/huan/discussions/1", desk.server.endpoint());
    assert_eq!(ran.out.lines().last(), Some(page.as_str()));
}

#[test]
fn what_is_made_is_said_before_it_is_made() {
    let desk = Desk::with_adapter();
    let head = |line: &str| desk.scene.ok(line).out.lines().next().unwrap().to_owned();
    let ends = |line: &str, end: &str| assert!(head(line).ends_with(end), "{}\n{end}", head(line));
    ends("push out me/huan --dry-run", "· a new public repository");
    ends("push out me/huan@v2 --private --dry-run", "· a new private repository, branch `v2`");
    desk.server.model("me/huan").file(".gitattributes", b"").add();
    ends("push out me/huan --dry-run", "· the existing repository");
    ends(
        "push out me/huan --private --dry-run",
        "the existing public and empty repository: made private first",
    );
    ends(
        "push out me/huan --revision v2 --dry-run",
        "· a new branch `v2` of the existing repository, starting at main",
    );
    desk.scene.ok("push out me/huan --private");
    assert_eq!(desk.server.is_private("me/huan"), Some(true));
    desk.server.add_model("me/shown", &[("x.md", b"x")]);
    let ran = desk.refuses("push out me/shown --private --dry-run");
    assert!(
        ran.err.contains("error: cannot make `me/shown` private: it exists and is public"),
        "{}",
        ran.err
    );
    let ran = desk.refuses("push me/out me/huan");
    assert!(ran.err.starts_with("error: `me/out` is not a local folder"), "{}", ran.err);
}

#[test]
fn an_adapter_is_not_put_beside_a_model_and_old_shards_go() {
    let desk = Desk::with_adapter();
    let shard = |i: usize| format!("model-{i:05}-of-00002.safetensors");
    let old = [shard(1), shard(2), "model.safetensors.index.json".to_owned()];
    let files: Vec<(&str, &[u8])> = old.iter().map(|path| (path.as_str(), b"old".as_slice())).collect();
    desk.server.add_model("me/model", &files);
    for line in ["push out me/model", "push out me/model --dry-run"] {
        let ran = desk.refuses(line);
        assert!(
            ran.err.contains("`me/model` already holds a full model (`model-00001-of-00002"),
            "{}",
            ran.err
        );
    }
    // The files of the test base are links. If a parallel test creates or removes such a link, the timestamp
    // of the file changes, so this test copies the files.
    fs::create_dir(desk.scene.path("whole")).unwrap();
    for name in names(&desk.scene.path("base")) {
        fs::write(desk.scene.path("whole").join(&name), desk.scene.read(&format!("base/{name}"))).unwrap();
    }
    let dry = desk.scene.ok("push whole me/model --dry-run").out;
    assert!(dry.contains("the same commit removes 3 files of the previous model"), "{dry}");
    let ran = desk.scene.ok("push whole me/model");
    for path in &old {
        assert!(ran.out.contains(path), "{}", ran.out);
        assert!(dry.lines().any(|line| line.starts_with("removed") && line.contains(path)), "{dry}");
        assert!(desk.server.read("me/model", "main", path).is_none());
    }
    desk.scene.ok("push out me/huan");
    let ran = desk.refuses("push whole me/huan");
    assert!(ran.err.contains("`me/huan` already holds an adapter (`adapter_config.json`)"), "{}", ran.err);
}

#[test]
fn a_push_that_is_stopped_says_what_is_there_and_leaves_nothing() {
    let desk = Desk::with_adapter();
    let temporary = desk.scene.path("tmp");
    fs::create_dir(&temporary).unwrap();
    for (signal, method, part, words) in [
        (
            "-INT",
            Method::Put,
            "",
            "stopped: nothing was committed to me/huan (its repository may already exist",
        ),
        (
            "-TERM",
            Method::Post,
            "/preupload/",
            "stopped: nothing was committed to me/huan. The same command resumes",
        ),
        ("-INT", Method::Post, "/commit/", "stopped during the commit to me/huan"),
    ] {
        desk.server.clear_requests();
        desk.server.fault(Fault::on(method, part).then(Action::Delay(Duration::from_secs(2))));
        let mut command = desk.scene.command(&["push", "out", "me/huan"]);
        let child = command.env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let start = Instant::now();
        let is_there = |request: &danlu_hub_test_server::RecordedRequest| match part {
            "" => request.method == "PUT",
            part => request.target.contains(part),
        };
        while !desk.server.requests().iter().any(is_there) {
            assert!(
                child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(60),
                "{part}"
            );
            thread::sleep(Duration::from_millis(5));
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert!(ran.code == 130 && ran.err.contains(words), "{part}: {}\n{}", ran.code, ran.err);
        assert!(names(&temporary).is_empty(), "{:?}", names(&temporary));
        desk.server.clear_faults();
    }
    desk.scene.ok("push out me/huan");
    assert_eq!(desk.server.read("me/huan", "main", "danlu.json").unwrap(), desk.scene.read("out/danlu.json"));
}

#[test]
fn no_name_in_the_listing_steers_the_terminal() {
    let desk = Desk::with_adapter();
    desk.scene.write("out/a\u{1b}[31m.txt", "x");
    let ran = desk.scene.ok("push out me/huan --dry-run");
    assert!(ran.out.contains("a [31m.txt") && !ran.out.contains('\u{1b}'), "{:?}", ran.out);
}

/// Returns the base that a repository's `adapter_config.json` names.
fn base_of(desk: &Desk, id: &str) -> String {
    let config: serde_json::Value = serde_json::from_str(&desk.text(id, "adapter_config.json")).unwrap();
    config["base_model_name_or_path"].as_str().unwrap().to_owned()
}

/// Changes the adapter in `out` as if PEFT had saved it, with the base `named`.
fn as_peft_saves(desk: &Desk, named: &str) {
    for name in ["card.json", "loss.svg", "danlu.json"] {
        let _ = fs::remove_file(desk.scene.path("out").join(name));
    }
    let config = desk.scene.read("out/adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["base_model_name_or_path"] = json!(named);
    desk.scene.write("out/adapter_config.json", &serde_json::to_string_pretty(&config).unwrap());
    let head = format!("---\nbase_model: {named}\ntags:\n- base_model:adapter:{named}\n- lora\n---\n");
    desk.scene.write("out/README.md", &format!("{head}# Model\n"));
}

#[test]
fn a_base_that_was_said_once_is_said_again() {
    let desk = Desk::with_adapter();
    desk.scene.ok("push out me/huan --base-id lab/base");
    let card = desk.text("me/huan", "README.md");
    let ran = desk.scene.ok("push out me/huan");
    assert!(ran.err.contains("the base stays `lab/base`"), "{}", ran.err);
    assert!(
        ran.out.contains("already has all files") && !ran.err.contains("others cannot find"),
        "{}",
        ran.out
    );
    assert_eq!(desk.text("me/huan", "README.md"), card);
    assert!(card.contains("base_model: \"lab/base\""), "{card}");
    desk.scene.ok("push out me/huan --base-id lab/other");
    assert_eq!(base_of(&desk, "me/huan"), "lab/other");
    // The local adapter now records a different fingerprint of its base, so the name in the repository does
    // not apply.
    let identity = String::from_utf8(desk.scene.read("out/danlu.json")).unwrap();
    let identity: serde_json::Value = serde_json::from_str(&identity).unwrap();
    let mut other = identity.clone();
    other["base"]["sha256"] = json!("0".repeat(64));
    assert!(identity["base"]["sha256"].is_string(), "{identity}");
    desk.scene.write("out/danlu.json", &other.to_string());
    let ran = desk.scene.ok("push out me/huan --dry-run");
    assert!(!ran.err.contains("the base stays"), "{}", ran.err);
    // Without fingerprints, it is unknown whether the bases are equal, so the user must give the name.
    other["base"]["sha256"] = json!(null);
    desk.scene.write("out/danlu.json", &other.to_string());
    let ran = desk.scene.ok("push out me/huan --dry-run");
    assert!(!ran.err.contains("the base stays"), "{}", ran.err);
    assert!(ran.err.contains("pass `--base-id lab/other`"), "{}", ran.err);
}

#[test]
fn a_base_is_a_name_on_the_hub_only_where_something_says_so() {
    let desk = Desk::new();
    fs::create_dir_all(desk.scene.path("work")).unwrap();
    fs::create_dir_all(desk.scene.path("deep/er")).unwrap();
    fs::rename(desk.scene.path("base"), desk.scene.path("work/base")).unwrap();
    desk.scene.ok("train --base work/base --data data.json --output out --max-steps 1 --lora-r 2");
    let push = |args: &[&str]| {
        let mut command = desk.scene.command(args);
        Ran::of(command.current_dir(desk.scene.path("deep/er")).output().unwrap())
    };
    let dry = || push(&["push", "../../out", "me/huan", "--dry-run"]);
    let warned = "warning: adapter_config.json names its base `work/base`, a local folder";
    assert!(dry().err.contains(warned), "{}", dry().err);
    as_peft_saves(&desk, "work/base");
    desk.server.add_model("work/base", &[("config.json", b"{}")]);
    assert!(dry().err.contains(warned), "the folder lies beside the adapter: {}", dry().err);
    fs::remove_dir_all(desk.scene.path("work")).unwrap();
    assert!(!dry().err.contains("names its base"), "{}", dry().err);
    as_peft_saves(&desk, "work/other");
    assert!(dry().err.contains("`work/other`") && dry().err.contains("--base-id ORG/NAME"), "{}", dry().err);
}

#[test]
fn a_path_of_this_machine_in_a_head_is_warned_of_and_replaced() {
    let desk = Desk::with_adapter();
    let named = desk.scene.path("base");
    let named = named.to_str().unwrap();
    as_peft_saves(&desk, named);
    let ran = desk.scene.ok("push out me/huan --dry-run");
    let config = String::from_utf8(desk.scene.read("out/adapter_config.json")).unwrap();
    let line = config.lines().position(|line| line.contains("base_model_name")).unwrap() + 1;
    let words =
        format!("warning: adapter_config.json:{line}, README.md:2, README.md:4: the local path `{named}`");
    assert!(ran.err.contains(&words) && ran.err.contains("--base-id"), "{}\nlacks {words}", ran.err);
    let ran = desk.scene.ok("push out me/huan --base-id lab/base");
    assert!(!ran.err.contains("would be public"), "{}", ran.err);
    let card = desk.text("me/huan", "README.md");
    assert!(card.starts_with("---\nbase_model: lab/base\ntags:\n- base_model:adapter:lab/base\n"), "{card}");
    for path in ["README.md", "adapter_config.json"] {
        assert!(!desk.text("me/huan", path).contains(named), "{path}");
    }
    // The name in the repository is used even without recorded fingerprints, if the base exists on the Hub.
    desk.server.add_model("lab/base", &[("config.json", b"{}")]);
    let ran = desk.scene.ok("push out me/huan");
    assert!(ran.err.contains("the base stays `lab/base`"), "{}", ran.err);
    assert!(ran.out.contains("already has all files"), "{}", ran.out);
}

#[test]
fn a_model_without_its_tokenizer_or_with_an_adapter_in_it_is_not_sent() {
    let desk = Desk::with_adapter();
    fs::create_dir(desk.scene.path("whole")).unwrap();
    for name in names(&desk.scene.path("base")) {
        fs::write(desk.scene.path("whole").join(&name), desk.scene.read(&format!("base/{name}"))).unwrap();
    }
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(desk.scene.path("out").join(name), desk.scene.path("whole").join(name)).unwrap();
    }
    let ran = desk.refuses("push whole me/both");
    assert!(ran.err.contains("holds an adapter (`adapter_config.json`) and a model"), "{}", ran.err);
    assert!(ran.err.contains("its own folder"), "{}", ran.err);
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::remove_file(desk.scene.path("whole").join(name)).unwrap();
    }
    fs::remove_file(desk.scene.path("whole/tokenizer.json")).unwrap();
    let ran = desk.refuses("push whole me/mute");
    assert!(ran.err.contains("tokenizer.json` is missing: a model cannot be used without"), "{}", ran.err);
    // The damaged folder is local, so its hint must not suggest a download. An unsupported model may work in
    // other programs, so its hint names another way to upload.
    let weights = desk.scene.read("whole/model.safetensors");
    fs::write(desk.scene.path("whole/model.safetensors"), &weights[..1000]).unwrap();
    let ran = desk.refuses("push whole me/cut");
    assert!(ran.err.contains("write the folder again") && !ran.err.contains("fetch it"), "{}", ran.err);
    desk.scene.write("whole/config.json", "{\"model_type\": \"mamba2\"}");
    let ran = desk.refuses("push whole me/mamba");
    assert!(ran.err.contains("danlu uploads only models that it can load"), "{}", ran.err);
}

#[test]
fn a_stopped_run_names_its_checkpoint_and_how_it_goes_on() {
    let desk = Desk::with_adapter();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::remove_file(desk.scene.path("out").join(name)).unwrap();
    }
    let ran = desk.refuses("push out me/huan");
    assert!(ran.err.contains("it is a stopped run without an adapter"), "{}", ran.err);
    assert!(ran.err.contains("danlu train --output out --resume"), "{}", ran.err);
}

#[test]
fn text_that_was_added_on_the_hub_stays() {
    let desk = Desk::with_adapter();
    desk.scene.ok("push out me/huan");
    let sent = desk.text("me/huan", "README.md");
    let edited = format!("{sent}\nMended on the page.\n");
    desk.server.commit("me/huan", &[("README.md", edited.as_bytes())]);
    for line in ["push out me/huan --dry-run", "push out me/huan", "push out me/huan"] {
        let ran = desk.scene.ok(line);
        assert!(ran.err.contains("README.md on the Hub has text that the local file lacks"), "{}", ran.err);
        assert_eq!(desk.text("me/huan", "README.md"), edited);
    }
    // A push still updates danlu's part and danlu's keys of the file on the Hub.
    desk.scene.ok("card out --license mit");
    desk.scene.ok("push out me/huan");
    let both = desk.text("me/huan", "README.md");
    assert!(both.contains("license: \"mit\"") && both.ends_with("\nMended on the page.\n"), "{both}");
    desk.scene.ok("push out me/huan --include README.md");
    let replaced = desk.text("me/huan", "README.md");
    assert!(replaced.contains("license: \"mit\"") && !replaced.contains("Mended"), "{replaced}");
    // Each push uploads the author's additions.
    let mut here = replaced;
    for text in ["One line of mine.", "Another line of mine."] {
        here += &format!("\n{text}\n");
        desk.scene.write("out/README.md", &here);
        let ran = desk.scene.ok("push out me/huan");
        assert!(!ran.err.contains("README.md on the Hub"), "{}", ran.err);
        assert!(desk.text("me/huan", "README.md").contains(text));
    }
    // The author may have written a README.md that is not UTF-8, so `push` does not replace the file.
    desk.server.commit("me/huan", &[("README.md", b"caf\xe9\n")]);
    let ran = desk.scene.ok("push out me/huan");
    assert!(ran.err.contains("README.md on the Hub has text"), "{}", ran.err);
    assert_eq!(desk.server.read("me/huan", "main", "README.md").unwrap(), b"caf\xe9\n");
    // If the card contains a token, the card is not uploaded. The old card stays, and a warning is printed.
    desk.scene.write("out/README.md", &format!("{here}\nWith hf_mine in it\n"));
    let ran = desk.scene.ok("push out me/huan");
    assert!(ran.err.contains("the page keeps its current README.md"), "{}", ran.err);
}

#[test]
fn a_page_without_marks_stays_if_somebody_wrote_it() {
    let desk = Desk::with_adapter();
    desk.server.add_model("me/huan", &[("README.md", b"---\nlicense: mit\n---\n# By hand\n")]);
    for line in ["push out me/huan", "push out me/huan"] {
        let ran = desk.scene.ok(line);
        assert!(ran.err.contains("README.md on the Hub has text that the local file lacks"), "{}", ran.err);
        assert!(desk.text("me/huan", "README.md").ends_with("# By hand\n"));
    }
    desk.scene.ok("push out me/huan --include README.md");
    assert!(desk.text("me/huan", "README.md").contains("danlu chat me/huan"));
    // A README created by the Hub itself may be replaced.
    desk.server.add_model("me/new", &[("README.md", b"---\nlicense: mit\n---\n")]);
    let ran = desk.scene.ok("push out me/new");
    assert!(!ran.err.contains("README.md on the Hub"), "{}", ran.err);
    assert!(desk.text("me/new", "README.md").contains("danlu chat me/new"));
}

#[test]
fn a_branch_is_named_wherever_the_push_is_spoken_of() {
    let desk = Desk::with_adapter();
    let ran = desk.scene.ok("push out me/huan --revision v2");
    let page = format!("{}/me/huan/tree/v2", desk.server.endpoint());
    let card = String::from_utf8(desk.server.read("me/huan", "v2", "README.md").unwrap()).unwrap();
    assert!(
        card.contains("danlu chat me/huan@v2") && card.contains("\"me/huan\", revision=\"v2\")"),
        "{card}"
    );
    let last: Vec<&str> = ran.out.lines().rev().take(2).collect();
    assert_eq!(last, ["to try it: danlu chat me/huan@v2", &page]);
    desk.scene.ok("push out me/whole");
    let ran = desk.scene.ok("push out me/whole --revision v3 --dry-run");
    assert!(ran.out.contains("a new branch `v3`"), "{}", ran.out);
    for line in [
        "push out me/whole --create-pr --revision v9",
        "push out me/whole --create-pr --revision v9 --dry-run",
    ] {
        assert!(desk.refuses(line).err.contains("has no revision `v9`"));
    }
    // Without a card, no file contains the name of the branch. The push therefore only creates the branch.
    as_peft_saves(&desk, "lab/base");
    desk.scene.ok("push out me/plain");
    let ran = desk.scene.ok("push out me/plain --revision v5");
    assert!(ran.out.contains("created branch `v5`; main of me/plain already has all files"), "{}", ran.out);
    assert!(desk.server.read("me/plain", "v5", "adapter_config.json").is_some());
}

/// Writes an adapter as mlx-lm does, with one module of the adapter in `out`. All its values are zero.
fn write_mlx_adapter(scene: &Scene, folder: &str) {
    let weights = scene.read("out/adapter_model.safetensors");
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&weights[8..8 + header]).unwrap();
    let module = "model.layers.0.self_attn.q_proj";
    let shape = |half: &str| &header[&format!("base_model.model.{module}.{half}.weight")]["shape"];
    let (inputs, outputs) = (shape("lora_A")[1].as_u64().unwrap(), shape("lora_B")[0].as_u64().unwrap());
    let (middle, end) = (2 * inputs * 4, 2 * (inputs + outputs) * 4);
    let header = serde_json::json!({
        format!("{module}.lora_a"): {"dtype": "F32", "shape": [inputs, 2], "data_offsets": [0, middle]},
        format!("{module}.lora_b"): {"dtype": "F32", "shape": [2, outputs], "data_offsets": [middle, end]},
    });
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end as usize, 0);
    fs::create_dir(scene.path(folder)).unwrap();
    fs::write(scene.path(&format!("{folder}/adapters.safetensors")), bytes).unwrap();
    let config =
        r#"{"fine_tune_type": "lora", "model": "base", "lora_parameters": {"rank": 2, "scale": 20.0}}"#;
    scene.write(&format!("{folder}/adapter_config.json"), config);
}

#[test]
fn the_preview_of_a_converted_adapter_names_the_users_folder() {
    let desk = Desk::with_adapter();
    write_mlx_adapter(&desk.scene, "mlx");
    let ran = desk.scene.ok("push mlx me/mlx --dry-run --base-id me/base");
    assert!(ran.out.starts_with("mlx → me/mlx"), "{}", ran.out);
    assert!(ran.err.contains("uploading `adapters.safetensors` as PEFT's"), "{}", ran.err);
    assert!(!format!("{}{}", ran.out, ran.err).contains("danlu-tmp"), "{}{}", ran.out, ran.err);
    desk.scene.ok("push mlx me/mlx --base-id me/base");
    assert!(desk.server.read("me/mlx", "main", "adapter_model.safetensors").is_some());
}
