//! Tests Hub names in commands, with a test server.

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{Ran, Scene, names};
use danlu_hub_test_server::{Action, Fault, Gate, Host, HubServer, Method};
use serde_json::Value;

struct Hub {
    scene: Scene,
    server: HubServer,
}

impl Hub {
    /// Starts a Hub with `lab/base`, the embedded model.
    fn new() -> Self {
        let (mut scene, server) = (Scene::new(), HubServer::start());
        scene.endpoint = server.endpoint();
        let hub = Self { scene, server };
        hub.publish("lab/base", "base");
        fs::rename(hub.scene.path("base"), hub.scene.path("elsewhere")).unwrap();
        hub
    }

    /// Publishes the files of a folder.
    fn publish(&self, id: &str, folder: &str) {
        let folder = self.scene.path(folder);
        let model = names(&folder).into_iter().filter(|name| folder.join(name).is_file());
        let model =
            model.fold(self.server.model(id), |model, name| model.file_from_path(&name, &folder.join(&name)));
        model.add();
        self.server.clear_requests();
    }

    /// Returns a command that downloads without asking. No terminal is there to ask at.
    fn command(&self, line: &str) -> Command {
        let args: Vec<&str> = std::iter::once("--yes").chain(line.split_whitespace()).collect();
        self.scene.command(&args)
    }

    fn run(&self, line: &str) -> Ran {
        Ran::of(self.command(line).output().unwrap())
    }

    fn ok(&self, line: &str) -> Ran {
        self.scene.ok(&format!("--yes {line}"))
    }

    /// Runs a command without a network.
    fn ok_offline(&self, line: &str) -> Ran {
        let ran = Ran::of(self.command(line).env("HF_HUB_OFFLINE", "1").output().unwrap());
        assert_eq!(ran.code, 0, "danlu {line}\n{}\n{}", ran.out, ran.err);
        ran
    }

    /// Returns the number of file requests since the last call.
    fn files_asked(&self) -> usize {
        let count = self.server.requests().iter().filter(|r| r.target.contains("/resolve/")).count();
        self.server.clear_requests();
        count
    }
}

#[test]
fn a_whole_life_by_name() {
    let hub = Hub::new();
    let trained = hub.ok("train --base lab/base --data data.json --output out --max-steps 2 --lora-r 2");
    assert!(trained.err.contains("fetched lab/base ("), "{}", trained.err);
    // The output shows the name and the commit, but not the path in the cache.
    let is_shown = |out: &str| out.contains("lab/base@") && !out.contains("snapshots");
    assert!(is_shown(&trained.err), "{}", trained.err);
    assert!(hub.files_asked() > 0);
    let config: Value = serde_json::from_slice(&hub.scene.read("out/adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], "lab/base");
    let commit = hub.server.revisions("lab/base").into_values().next().unwrap();
    assert_eq!(config["revision"], Value::from(commit.clone()));
    assert!(String::from_utf8(hub.scene.read("out/run.toml")).unwrap().contains("base = \"lab/base\""));
    let card = String::from_utf8(hub.scene.read("out/README.md")).unwrap();
    assert!(card.contains("base_model: \"lab/base\"") && !card.contains("snapshots"), "{card}");
    let pinned = format!("from_pretrained(\"lab/base\", revision=\"{commit}\", dtype=\"");
    assert!(card.contains(&pinned), "{pinned}\n{card}");
    assert!(card.contains(&format!("vllm serve lab/base --revision {commit} --enable-lora")), "{card}");

    // All files are in the cache now, so the adapter finds its base by name.
    hub.ok_offline("chat out --prompt 你好 --max-new-tokens 4");
    hub.ok_offline("merge out --output merged");
    hub.ok_offline("compare out --data data.json --max-length 64");
    hub.ok_offline("train --output out --resume");
    let planned = hub.ok_offline("plan --base lab/base");
    assert!(is_shown(&planned.out), "{}", planned.out);
    assert!(hub.server.requests().is_empty());

    hub.publish("me/adapter", "out");
    hub.publish("me/merged", "merged");
    let reply = hub.ok("chat me/adapter --prompt 你好 --max-new-tokens 4 --temperature 0").out;
    assert!(hub.files_asked() > 0);
    assert_eq!(hub.ok_offline("chat me/adapter --prompt 你好 --max-new-tokens 4 --temperature 0").out, reply);
    hub.ok("chat me/merged --prompt 你好 --max-new-tokens 4");
    hub.ok("compare me/adapter me/merged --data data.json --max-length 64");
    hub.ok("merge me/adapter --output again");
    let again = String::from_utf8(hub.scene.read("again/README.md")).unwrap();
    assert!(!again.contains("not on record"), "{again}");
    assert_eq!(hub.scene.read("again/model.safetensors"), hub.scene.read("merged/model.safetensors"));
}

#[test]
fn a_name_without_a_folder_is_downloaded_only_on_request() {
    let hub = Hub::new();
    for line in [
        "chat lab/base --prompt 你好",
        "train --base lab/base --data data.json --output out",
        "data check data.json --base lab/base",
        "serve lab/base --port 0",
    ] {
        let refused = hub.scene.run(line);
        assert_eq!(refused.code, 1, "{line}: {}", refused.err);
        let hint = "if it is on the Hub, write `hf:lab/base`, or run `danlu pull lab/base` first\n";
        assert!(
            refused.err.contains("error: cannot load `lab/base`: it does not exist\n"),
            "{}",
            refused.err
        );
        assert!(refused.err.ends_with(hint), "{line}: {}", refused.err);
    }
    let refused = hub.scene.run("data check lab/data --base demo");
    assert!(refused.err.contains("error: cannot read `lab/data`: it does not exist\n"), "{}", refused.err);
    assert!(refused.err.contains("write `hf:lab/data`"), "{}", refused.err);
    assert!(hub.server.requests().is_empty());
    hub.scene.ok("chat hf:lab/base --prompt 你好 --max-new-tokens 1");
    // The model is in the cache now, so its name needs no `hf:`.
    hub.scene.ok("chat lab/base --prompt 你好 --max-new-tokens 1");
}

#[test]
fn an_adapter_keeps_to_the_commit_it_was_trained_on() {
    let hub = Hub::new();
    hub.ok("train --base lab/base --data data.json --output out --max-steps 2 --lora-r 2");
    let first = hub.server.revisions("lab/base").into_values().next().unwrap();
    let config = String::from_utf8(hub.scene.read("elsewhere/config.json")).unwrap();
    fs::remove_file(hub.scene.path("elsewhere/config.json")).unwrap();
    hub.scene.write("elsewhere/config.json", &(config + "\n"));
    hub.publish("lab/base", "elsewhere");
    hub.ok("pull lab/base");

    let line = "chat out --prompt 你好 --max-new-tokens 2";
    assert!(!hub.ok_offline(line).err.contains("warning"));
    let other = hub.ok_offline(&format!("{line} --base lab/base"));
    assert!(other.err.contains("is not the base that out was trained on"), "{}", other.err);
    assert!(other.err.contains(&format!("`--base lab/base@{first}`")), "{}", other.err);
    assert!(hub.ok_offline("compare out --data data.json --base lab/base").err.contains("is not the base"));

    let refused = hub.run("train --output out --resume");
    let way = format!("danlu train --output out --resume --base lab/base@{first}");
    assert!(refused.code == 1 && refused.err.ends_with(&format!("{way}\n")), "{}", refused.err);
    hub.ok(way.strip_prefix("danlu ").unwrap());
}

#[test]
fn a_plan_and_a_look_at_data_fetch_no_weights() {
    let hub = Hub::new();
    hub.ok("plan --base lab/base");
    hub.ok("data check data.json --base lab/base");
    assert!(hub.server.requests().iter().all(|request| !request.target.contains("model.safetensors")));
    // The index of a sharded model is downloaded with the configuration, but the shards are not.
    let index = r#"{"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model-00001-of-00001.safetensors"}}"#;
    fs::create_dir(hub.scene.path("sharded")).unwrap();
    for name in names(&hub.scene.path("elsewhere")) {
        let to = if name == "model.safetensors" { "model-00001-of-00001.safetensors" } else { name.as_str() };
        fs::copy(hub.scene.path(&format!("elsewhere/{name}")), hub.scene.path(&format!("sharded/{to}")))
            .unwrap();
    }
    hub.scene.write("sharded/model.safetensors.index.json", index);
    hub.publish("lab/sharded", "sharded");
    let parameters =
        |planned: Ran| planned.out.lines().next().unwrap().split(" · ").nth(1).unwrap().to_owned();
    let whole = parameters(hub.ok("plan --base lab/base"));
    assert_eq!(parameters(hub.ok("plan --base lab/sharded")), whole);
    assert!(hub.server.requests().iter().all(|request| !request.target.contains("00001.safetensors")));
    fs::remove_file(hub.scene.path("sharded/model-00001-of-00001.safetensors")).unwrap();
    assert_eq!(parameters(hub.ok("plan --base sharded --data data.json")), whole);
    let refused = hub.run("train --base sharded --data data.json --output none");
    assert!(refused.code == 1 && refused.err.contains("is missing, with 1 tensors"), "{}", refused.err);
    let folder = hub.ok("pull lab/base").out;
    assert!(names(Path::new(folder.trim())).contains(&"model.safetensors".to_owned()));
    assert_eq!(hub.ok("pull lab/base").out, folder);
    assert!(hub.ok("pull lab/base").err.contains("is in the cache already"));
}

#[test]
fn an_adapter_that_python_fetched_gets_what_danlu_needs_of_it() {
    let hub = Hub::new();
    hub.ok("train --base lab/base --data data.json --output out --max-steps 1 --lora-r 2 --quant nf4");
    hub.publish("me/adapter", "out");
    hub.ok("pull me/adapter");
    let repository = hub.scene.path("hf/hub/models--me--adapter");
    let commit = names(&repository.join("snapshots")).remove(0);
    let snapshot = repository.join("snapshots").join(&commit);
    // Leaves the cache as PEFT's `from_pretrained` would: with two files, and without a record of missing
    // files.
    let as_python = || {
        let others = names(&snapshot)
            .into_iter()
            .filter(|name| !name.starts_with("adapter_") || name.ends_with(".md"));
        others.for_each(|name| fs::remove_file(snapshot.join(name)).unwrap());
        let _ = fs::remove_dir_all(repository.join(".no_exist"));
        hub.server.clear_requests();
    };
    let line = "chat me/adapter --prompt 你好 --max-new-tokens 2";
    as_python();
    let offline = hub.ok_offline(line);
    let said = "warning: `me/adapter` is in the cache without `danlu.json`";
    assert!(offline.err.contains(said) && offline.err.contains("HF_HUB_OFFLINE"), "{}", offline.err);
    assert!(!offline.err.contains("on a base in nf4"), "{}", offline.err);
    let online = hub.ok(line);
    assert!(online.err.contains("on a base in nf4") && !online.err.contains("warning"), "{}", online.err);
    hub.server.clear_requests();
    assert!(hub.ok(line).err.contains("on a base in nf4"));
    assert!(hub.server.requests().is_empty());
    as_python();
    hub.server.fault(Fault::on(Method::Get, "/tree/").always().then(Action::Status(500, vec![], vec![])));
    let refused = hub.ok(line);
    assert!(refused.err.contains(said) && refused.err.contains("answered 500"), "{}", refused.err);
}

#[test]
fn what_is_in_the_cache_needs_neither_a_token_nor_certificates() {
    let hub = Hub::new();
    hub.server.add_user("me", "hf_mine");
    hub.ok("pull lab/base");
    let run = |line: &str, variable: (&str, &str)| {
        Ran::of(hub.command(line).env(variable.0, variable.1).output().unwrap())
    };
    let start = "plan --base lab/base";
    let variables = [
        ("HF_TOKEN", "hf_a b"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
        ("ALL_PROXY", "socks5://me:secret@x:1"),
        ("https_proxy", "secret://me@proxy:1"),
    ];
    for variable in variables {
        let ran = run(start, variable);
        assert!(ran.code == 0 && !ran.err.contains(variable.0), "{}", ran.err);
        let ran = run("pull lab/base", variable);
        assert!(ran.code == 1 && ran.err.contains(variable.0), "{}", ran.err);
        assert!(!ran.err.contains("hf_a") && !ran.err.contains("secret"), "{}", ran.err);
    }
    // `login` and `logout` work even if the token file is invalid.
    for text in ["hf_a b", "\u{0}\u{1}", "密"] {
        hub.scene.write("hf/token", text);
        assert!(!hub.ok(start).err.contains("token"));
        let ran = hub.run("whoami");
        assert!(ran.code == 1 && ran.err.contains("hint: replace it with `danlu login`"), "{}", ran.err);
        assert!(hub.run("push elsewhere me/x").err.contains("the token in"), "push");
        let mut child = hub.command("login").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"hf_mine").unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(hub.scene.read("hf/token"), b"hf_mine");
        hub.scene.write("hf/token", text);
        hub.ok("logout");
        assert!(!hub.scene.path("hf/token").exists());
    }
}

#[test]
fn where_nobody_answers_a_token_is_led_nowhere_else() {
    let mut hub = Hub::new();
    hub.scene.endpoint = "http://127.0.0.1:9".to_owned();
    fs::create_dir_all(hub.scene.path("hf")).unwrap();
    hub.scene.write("hf/token", "hf_mine");
    for (line, is_led) in [("whoami", false), ("push elsewhere me/x", false), ("pull lab/base", true)] {
        let ran = hub.run(line);
        assert!(ran.code == 1 && ran.err.contains("cannot reach 127.0.0.1:9"), "{line}: {}", ran.err);
        assert_eq!(ran.err.contains("mirror"), is_led, "{line}: {}", ran.err);
    }
    let ran = Ran::of(hub.command("pull lab/base").env("ALL_PROXY", "http://127.0.0.1:7").output().unwrap());
    assert!(
        ran.err.contains("through the proxy of `ALL_PROXY`") && ran.err.contains("`NO_PROXY`"),
        "{}",
        ran.err
    );
}

#[test]
fn a_long_pause_is_said() {
    let hub = Hub::new();
    let wait = vec![("Retry-After".to_owned(), "3".to_owned())];
    hub.server.fault(Fault::on(Method::Get, "/revision/").then(Action::Status(429, wait, vec![])));
    let ran = hub.ok("pull lab/base");
    assert_eq!(ran.err.matches("limits requests: retrying in 3 s").count(), 1, "{}", ran.err);
}

#[test]
fn a_revision_stays_with_the_adapter() {
    let hub = Hub::new();
    let commit = hub.server.revisions("lab/base").into_values().next().unwrap();
    hub.ok(&format!("train --base lab/base@{commit} --data data.json --output out --max-steps 1 --lora-r 2"));
    hub.server.commit("lab/base", &[("config.json", b"{}")]);
    let config: Value = serde_json::from_slice(&hub.scene.read("out/adapter_config.json")).unwrap();
    assert_eq!(
        (&config["base_model_name_or_path"], &config["revision"]),
        (&"lab/base".into(), &commit.into())
    );
    hub.ok("chat out --prompt 你好 --max-new-tokens 2");
}

#[test]
fn a_folder_named_like_the_owner_hides_no_name() {
    let hub = Hub::new();
    fs::create_dir(hub.scene.path("lab")).unwrap();
    let ran = hub.run("chat lab/base --prompt 你好");
    assert_eq!(
        ran.err,
        "error: cannot load `lab/base`: it does not exist\n\nhint: name the folder of an adapter, a merged model or a base; if it is \
         on the Hub, write `hf:lab/base`, or run `danlu pull lab/base` first\n"
    );
    hub.scene.write("run.toml", "base = \"lab/base\"\ndata = [\"data.json\"]\n");
    for line in
        ["train --base lab/base --data data.json --output out", "train --config run.toml --output out"]
    {
        let ran = hub.run(line);
        assert!(ran.code == 1 && ran.err.contains("write `hf:lab/base`"), "{line}: {}", ran.err);
    }
    assert!(hub.server.requests().is_empty());
    hub.ok("plan --base lab/base@main");
    // A model in the cache is found by its name.
    hub.ok("pull lab/base");
    hub.ok_offline("chat lab/base --prompt 你好 --max-new-tokens 2");
    hub.ok_offline("train --config run.toml --output out --max-steps 1 --lora-r 2");
    // A local folder takes precedence over a model in the cache.
    fs::create_dir(hub.scene.path("lab/base")).unwrap();
    assert!(hub.run("chat lab/base --prompt 你好").err.contains("it has neither"));
    // An empty local folder with the name of the base hides the base on the Hub. The error explains how to
    // use the base on the Hub.
    let ran = hub.run("chat out --prompt 你好");
    let said = "`lab/base` here holds no model and hides the one on the Hub: move it away, or give `--base lab/base@main`";
    assert!(ran.code == 1 && ran.err.contains(said), "{}", ran.err);
    hub.ok("chat out --base lab/base@main --prompt 你好 --max-new-tokens 2");
}

#[test]
fn a_published_adapter_gets_no_base_of_the_folders_around_it() {
    let hub = Hub::new();
    hub.ok("train --base elsewhere --data data.json --output out --max-steps 1 --lora-r 2");
    let named = |base: &str| {
        let mut config: Value = serde_json::from_slice(&hub.scene.read("out/adapter_config.json")).unwrap();
        config["base_model_name_or_path"] = base.into();
        hub.scene.write("out/adapter_config.json", &config.to_string());
        hub.publish("me/adapter", "out");
        hub.ok("pull me/adapter");
        hub.run("chat me/adapter --prompt 你好 --max-new-tokens 2")
    };
    // An adapter in the cache cannot name its base by a relative path. Neither the cache nor the working
    // directory is searched.
    for base in ["../elsewhere", "elsewhere", "./elsewhere"] {
        let ran = named(base);
        assert!(ran.code == 1 && ran.err.contains("is no model folder here"), "{base}: {}", ran.err);
        assert!(ran.err.contains("hint: name its folder with `--base DIR`"), "{base}: {}", ran.err);
    }
    hub.ok("chat me/adapter --base elsewhere --prompt 你好 --max-new-tokens 2");
    assert_eq!(named(hub.scene.path("elsewhere").to_str().unwrap()).code, 0);
    assert_eq!(named("lab/base").code, 0);
}

#[test]
fn what_is_cached_is_pulled_offline_and_pages_and_parts_of_commits_are_names() {
    let hub = Hub::new();
    let folder = hub.ok("pull lab/base").out;
    let commit = Path::new(folder.trim()).file_name().unwrap().to_str().unwrap().to_owned();
    hub.server.clear_requests();
    let offline = hub.ok_offline("pull lab/base");
    assert!(offline.out == folder && offline.err.contains("so updates were not checked"), "{}", offline.err);
    let none = Ran::of(hub.command("pull lab/none").env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert!(none.code == 1 && none.err.contains("`lab/none` is not in the cache"), "{}", none.err);
    for line in ["whoami", "login"] {
        let ran = Ran::of(hub.command(line).env("HF_HUB_OFFLINE", "1").output().unwrap());
        assert!(
            ran.code == 1 && ran.err.contains("cannot look up the account: `HF_HUB_OFFLINE`"),
            "{}",
            ran.err
        );
    }
    assert!(hub.server.requests().is_empty());

    let page = format!("{}/lab/base/tree/{commit}", hub.server.endpoint());
    for name in [&*page, "https://huggingface.co/lab/base", &format!("lab/base@{}", &commit[..8])] {
        assert_eq!(hub.ok(&format!("pull {name}")).out, folder, "{name}");
        hub.ok_offline(&format!("plan --base {name}"));
    }
    let other = hub.run("pull https://github.com/lab/base");
    assert!(other.code == 1 && other.err.contains("expected `org/name`"), "{}", other.err);
    // The adapter names the full commit of the base, so that other programs find this commit in the cache.
    let base = format!("lab/base@{}", &commit[..8]);
    hub.ok(&format!("train --base {base} --data data.json --output out --max-steps 1 --lora-r 2"));
    let config: Value = serde_json::from_slice(&hub.scene.read("out/adapter_config.json")).unwrap();
    assert_eq!(config["revision"], Value::from(commit));
}

#[test]
fn a_download_that_is_stopped_says_what_is_kept_and_how_to_go_on() {
    let hub = Hub::new();
    hub.server.fault(Fault::on(Method::Get, "").at(Host::Storage).always().then(Action::Throttle(1_000_000)));
    for (line, lang) in [("pull lab/base", "en"), ("chat lab/base --prompt x", "zh")] {
        hub.server.clear_requests();
        let child = hub.command(line).args(["--lang", lang]).stderr(Stdio::piped()).spawn().unwrap();
        while !hub.server.requests().iter().any(|request| request.host == Host::Storage) {
            thread::sleep(Duration::from_millis(10));
        }
        let asked = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(asked.success());
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 130);
        assert!(ran.err.contains("`danlu pull lab/base`"), "{}", ran.err);
    }
    hub.server.clear_faults();
    hub.ok("pull lab/base");
}

#[test]
fn a_download_onto_a_full_disk_is_an_error_and_goes_on_elsewhere() {
    if Command::new("bash").args(["-c", "ulimit -f 64"]).status().is_err() {
        eprintln!("left out: there is no bash to limit the size of files with");
        return;
    }
    let hub = Hub::new();
    let inner = hub.command("pull lab/base");
    let mut limited = Command::new("bash");
    // A write beyond 4 MiB fails, as it would on a full disk.
    limited
        .args(["-c", "ulimit -f 4096 && exec \"$@\"", "bash"])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let ran = Ran::of(limited.output().unwrap());
    assert!(ran.code == 1 && ran.err.contains("the file grows larger than the disk"), "{}", ran.err);
    let blobs = hub.scene.path("hf/hub/models--lab--base/blobs");
    let whole = names(&blobs).into_iter().filter(|name| !name.ends_with(".incomplete"));
    let longest = whole.map(|name| fs::metadata(blobs.join(name)).unwrap().len()).max();
    assert!(longest < Some(4 << 20), "{longest:?}");
    let offline = Ran::of(hub.command("pull lab/base").env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert!(offline.err.contains("is not in the cache"), "{}", offline.err);
    hub.server.clear_requests();
    hub.ok("pull lab/base");
    assert!(hub.server.requests().iter().any(|request| request.range.is_some()), "what had come was kept");
    assert!(names(&blobs).iter().all(|name| !name.contains('.')));
}

#[test]
fn a_killed_download_goes_on() {
    let hub = Hub::new();
    hub.server.fault(Fault::on(Method::Get, "").at(Host::Storage).then(Action::Throttle(4_000_000)));
    let mut child = hub.command("pull lab/base").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let incomplete = || {
        let blobs = names(&hub.scene.path("hf/hub/models--lab--base/blobs"));
        let name = blobs.into_iter().find(|name| name.ends_with(".incomplete"))?;
        let len = fs::metadata(hub.scene.path("hf/hub/models--lab--base/blobs").join(name)).ok()?.len();
        (len > 1_000_000).then_some(len)
    };
    let blobs = hub.scene.path("hf/hub/models--lab--base/blobs");
    while !blobs.is_dir() || incomplete().is_none() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    hub.server.clear_faults();
    hub.server.clear_requests();
    hub.ok("chat lab/base --prompt 你好 --max-new-tokens 2");
    let resumed = hub.server.requests().into_iter().find(|request| request.host == Host::Storage).unwrap();
    assert!(resumed.range.is_some(), "{resumed:?}");
    assert!(names(&blobs).iter().all(|name| !name.contains('.')));
}

#[test]
fn what_is_not_there_is_said_with_a_way_on() {
    let hub = Hub::new();
    hub.server.model("she/gated").gated(Gate::Manual).file("config.json", b"{}").add();
    let host = hub.server.endpoint().replace("http://", "");
    let ran = hub.run("chat lab/none --prompt x");
    assert_eq!(
        ran.err,
        format!(
            "error: cannot find the model `lab/none` at {host}\n\nhint: check the spelling; a private model needs \
             `danlu login`; there is no folder `lab/none` here\n"
        )
    );
    let gated = hub.run("train --base she/gated --data data.json --output out");
    assert!(
        gated.code == 1 && gated.err.contains(&format!("{}/she/gated", hub.server.endpoint())),
        "{}",
        gated.err
    );
    assert!(!hub.scene.path("out").exists());
    let offline =
        Ran::of(hub.command("chat lab/base --prompt x").env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert!(
        offline.err.starts_with("error: `lab/base` is not in the cache, and `HF_HUB_OFFLINE`"),
        "{}",
        offline.err
    );
    hub.scene.write(
        "adapter_config.json",
        r#"{"peft_type": "LORA", "base_model_name_or_path": "lab/none", "r": 2, "target_modules": ["q_proj"]}"#,
    );
    let ran = hub.run("chat . --prompt x");
    assert!(
        ran.err.starts_with("error: cannot fetch the base of `.`, `lab/none`: cannot find the model"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("--base DIR"), "{}", ran.err);
    let wrong = hub.run("pull lab");
    assert!(wrong.code == 1 && wrong.err.contains("expected `org/name`"), "{}", wrong.err);
}

#[test]
fn a_token_is_tried_kept_and_forgotten_and_never_shown() {
    let hub = Hub::new();
    hub.server.add_user("me", "hf_mine");
    let piped = |text: &str, variable: Option<&str>| {
        let mut command = hub.command("login");
        if let Some(token) = variable {
            command.env("HF_TOKEN", token);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert!(!ran.out.contains("hf_") && !ran.err.contains("hf_"), "{} {}", ran.out, ran.err);
        ran
    };
    assert!(hub.run("whoami").err.contains("hint: run `danlu login`"));
    for line in ["login hf_mine", "login --token hf_mine", "login --token=hf_mine", "login -t hf_mine"] {
        let ran = hub.run(line);
        assert!(ran.code == 1 && ran.err.contains("takes no argument"), "{line}: {}", ran.err);
        assert!(!ran.err.contains("hf_mine"), "{line}: {}", ran.err);
    }
    let token = "hf_aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dE3fG6";
    for line in ["pull TOKEN", "push elsewhere TOKEN", "whoami TOKEN", "logout --token=TOKEN"] {
        let ran = hub.run(&line.replace("TOKEN", token));
        assert!(ran.code == 1 && !ran.err.contains("aB3dE6"), "{line}: {}", ran.err);
    }
    assert!(hub.ok("login --help").out.contains("Usage: danlu login [OPTIONS]\n"));
    let file = hub.scene.path("hf/token");
    for (text, said) in [
        ("", "no token on standard input"),
        ("hf_wrong", "rejected the token"),
        ("a b", "characters that are not allowed"),
    ] {
        let ran = piped(text, None);
        assert!(ran.code == 1 && ran.err.contains(said), "{text}: {}", ran.err);
        assert!(!file.exists());
    }
    let ran = piped("hf_mine\n", None);
    assert!(ran.code == 0 && ran.out.contains("logged in as me"), "{} {}", ran.out, ran.err);
    assert_eq!(fs::read(&file).unwrap(), b"hf_mine");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(ran.err.contains(&format!("the token is sent to {}", hub.server.endpoint())), "{}", ran.err);
    assert!(hub.ok("whoami").out.starts_with("me"));
    hub.scene.write("hf/stored_tokens", "[me]\nhf_token = hf_other\n");
    let ran = hub.ok("logout");
    assert!(ran.out.contains("is removed") && ran.err.contains("`hf auth logout`") && !file.exists());
    assert_eq!(piped("", Some("hf_mine")).code, 0);
    assert!(file.exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_login_that_is_ended_leaves_the_terminal_as_it_was() {
    let has = |name: &str| Command::new(name).arg("--version").output().is_ok();
    if !has("script") || !has("stty") {
        eprintln!("left out: there is no `script` to make a terminal with");
        return;
    }
    let hub = Hub::new();
    let login = hub.command("login");
    let course = "\"$DANLU\" login < /dev/tty & tries=0; \
                  until stty -a | grep -q -- ' -echo '; do \
                  sleep 0.05; tries=$((tries + 1)); [ $tries -lt 400 ] || exit 9; done; \
                  kill -TERM $!; wait; echo ended; stty -a";
    let mut terminal = Command::new("script");
    terminal.args(["-qec", course, "/dev/null"]).env("DANLU", login.get_program()).env("SHELL", "/bin/sh");
    for (name, value) in login.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    // A closed standard input would end the login, so the test keeps the input open.
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let typed = child.stdin.take();
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    drop(typed);
    let after = out.split("ended").nth(1).unwrap_or_else(|| panic!("{out}"));
    assert!(after.contains(" echo ") && after.contains(" icanon"), "{out}");
}

#[test]
fn an_adapter_is_published_in_one_commit_and_wakes_up_elsewhere() {
    let hub = Hub::new();
    hub.server.add_user("me", "hf_mine");
    hub.ok("train --base lab/base --data data.json --output out --max-steps 2 --lora-r 2 --save-steps 1 --val-size 2");
    let missing = hub.run("push out me/huan");
    assert!(missing.code == 1 && missing.err.contains("hint: run `danlu login`"), "{}", missing.err);
    fs::create_dir_all(hub.scene.path("hf")).unwrap();
    hub.scene.write("hf/token", "hf_mine");
    hub.scene.write("out/.env", "SECRET=1");
    hub.scene.write("out/notes.txt", "my token is hf_mine");

    let dry = hub.ok("push out me/huan --dry-run");
    for words in ["a new public repository", "adapter_model.safetensors", "checkpoint-", "line 1 looks like"]
    {
        assert!(dry.out.contains(words), "{}\nlacks {words}", dry.out);
    }
    assert!(dry.err.contains("nothing was uploaded"), "{}", dry.err);
    assert!(hub.server.requests().iter().all(|request| request.method == "GET"));
    assert!(hub.server.commits("me/huan").is_empty());

    let pushed = hub.ok("push out me/huan --private");
    assert!(
        pushed.out.contains("one commit (") && pushed.out.contains("danlu chat me/huan"),
        "{}",
        pushed.out
    );
    let sent = hub.server.hashes("me/huan", "main");
    for file in ["adapter_config.json", "adapter_model.safetensors", "README.md", "loss.svg", "danlu.json"] {
        assert!(sent.contains_key(file), "{file}: {sent:?}");
    }
    for part in [".env", "notes.txt", "checkpoint", "history", "held_out", "run.toml", "optimizer"] {
        assert!(!sent.keys().any(|path| path.contains(part)), "{part}: {sent:?}");
    }
    let card = String::from_utf8(hub.server.read("me/huan", "main", "README.md").unwrap()).unwrap();
    assert!(card.contains("danlu chat me/huan") && !card.contains("your-name"), "{card}");
    // The local folder is unchanged. Only the uploaded files contain the name.
    assert!(String::from_utf8(hub.scene.read("out/README.md")).unwrap().contains("your-name/"));
    let commits = hub.server.commits("me/huan").len();

    let again = hub.ok("push out me/huan");
    assert!(again.out.contains("already has all files"), "{}", again.out);
    assert!(!pushed.out.contains("danlu pull"), "{}", pushed.out);
    hub.ok("chat me/huan --prompt 你好 --max-new-tokens 2");
    hub.scene.write("notes.md", "Speaks of the palace only.");
    hub.ok("card out --notes notes.md");
    let third = hub.ok("push out me/huan --message Limits");
    assert!(third.out.contains("1 file,"), "{}", third.out); // README.md
    // The model in the cache is now older than the model on the Hub. The cached model stays usable offline,
    // and a notice is printed.
    assert!(third.out.contains("older version, to update it: danlu pull me/huan\n"), "{}", third.out);
    assert_eq!(hub.server.commits("me/huan").len(), commits + 1);

    // The local folder and the cache are removed, so only the names on the Hub remain.
    fs::rename(hub.scene.path("out"), hub.scene.path("gone")).unwrap();
    fs::remove_dir_all(hub.scene.path("hf/hub")).unwrap();
    hub.ok("chat me/huan --prompt 你好 --max-new-tokens 2");
    hub.ok("merge me/huan --output merged");
    hub.ok("push merged me/merged --lang zh");
    fs::remove_dir_all(hub.scene.path("hf/hub")).unwrap();
    hub.ok("chat me/merged --prompt 你好 --max-new-tokens 2");
    let theirs = hub.run("push merged lab/base");
    assert!(theirs.code == 1 && !theirs.err.contains("hf_mine"), "{}", theirs.err);
}

#[test]
fn a_base_that_only_this_machine_has_is_told_and_named() {
    let hub = Hub::new();
    hub.server.add_user("me", "hf_mine");
    fs::create_dir_all(hub.scene.path("hf")).unwrap();
    hub.scene.write("hf/token", "hf_mine");
    hub.ok("train --base elsewhere --data data.json --output out --max-steps 1 --lora-r 2");
    let ran = hub.ok("push out me/huan --dry-run");
    assert!(ran.err.contains("`elsewhere`, a local folder, which others cannot find"), "{}", ran.err);
    let before = hub.scene.read("out/adapter_config.json");
    let ran = hub.ok("push out me/huan --base-id lab/base");
    assert!(!ran.err.contains("others cannot find"), "{}", ran.err);
    assert_eq!(hub.scene.read("out/adapter_config.json"), before);
    for file in ["adapter_config.json", "README.md"] {
        let text = String::from_utf8(hub.server.read("me/huan", "main", file).unwrap()).unwrap();
        assert!(text.contains("lab/base") && !text.contains("elsewhere"), "{text}");
    }
    hub.ok("chat me/huan --prompt 你好 --max-new-tokens 2");
}

#[test]
fn data_sets_are_read_by_name_in_every_command() {
    let hub = Hub::new();
    let lines = |words: &[&str]| -> String {
        words.iter().map(|word| format!("{}\n", common::record(word, &format!("{word}。")))).collect()
    };
    hub.server
        .model("datasets/lab/talk")
        .file("data/train-00000-of-00002.jsonl", lines(&["一", "二"]).as_bytes())
        .file("data/train-00001-of-00002.jsonl", lines(&["三"]).as_bytes())
        .file("data/test-00000-of-00001.jsonl", lines(&["四"]).as_bytes())
        .add();
    let commit = hub.server.revisions("datasets/lab/talk").into_values().next().unwrap();
    let checked = hub.ok("data check lab/talk");
    assert!(checked.err.contains("fetched lab/talk ("), "{}", checked.err);
    assert!(checked.out.contains(&format!("lab/talk@{}:train", &commit[..8])), "{}", checked.out);
    let preview = hub.ok_offline("data preview hf:lab/talk");
    assert!(preview.out.contains("三"), "{}", preview.out);
    hub.ok("data convert hf:lab/talk:test --output test.csv --to alpaca");
    assert!(String::from_utf8(hub.scene.read("test.csv")).unwrap().contains('四'));
    hub.ok("train --base lab/base --data lab/talk --output out --max-steps 1 --lora-r 2");
    // The run names the commit, so that a later version of the data set does not change the run.
    let pinned = format!("hf:lab/talk@{commit}:train");
    assert!(String::from_utf8(hub.scene.read("out/run.toml")).unwrap().contains(&pinned));
    let card = String::from_utf8(hub.scene.read("out/README.md")).unwrap();
    assert!(card.contains("https://huggingface.co/datasets/lab/talk"), "{card}");
    hub.server.commit("datasets/lab/talk", &[("data/train-00000-of-00002.jsonl", b"{}")]);
    hub.ok_offline("train --output out --resume");
    hub.ok_offline("plan --base lab/base --data hf:lab/talk");
    hub.ok("compare out --data hf:lab/talk:test --max-length 64");
    for (line, part) in [
        (
            "data check hf:lab/talk:dev",
            "`lab/talk` has no part `dev`\n\nhint: choose one: `lab/talk:test`, `lab/talk:train`",
        ),
        ("data check hf:lab/none", "cannot find the data set `lab/none`"),
        ("data check hf:talk", "cannot parse `talk` as a data set"),
        ("data check lab/none", "there is no file `lab/none` here"),
    ] {
        let ran = hub.run(line);
        assert!(ran.code == 1 && ran.err.contains(part), "danlu {line}\n{}", ran.err);
    }
}
