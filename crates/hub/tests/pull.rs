//! Tests that pull models by name.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use common::{MODEL, READ, Scene, hub, names, repo};
use danlu_hub::{FetchScope, HubError, HubSettings, PushOptions};
use danlu_hub_test_server::{Action, Fault, Host, HubServer, Method};

#[test]
fn a_cached_model_needs_no_request() {
    let scene = Scene::new();
    assert_eq!(scene.hub(None).cached_folder(&repo("lab/model"), FetchScope::Full).unwrap(), None);
    let mut last = None;
    let pulled = scene
        .hub(None)
        .pull(&repo("lab/model"), FetchScope::Full, &mut |transfer| last = Some(transfer))
        .unwrap();
    assert_eq!(names(&pulled.folder), READ);
    for (path, bytes) in MODEL.iter().filter(|(path, _)| READ.contains(path)) {
        assert_eq!(&fs::read(pulled.folder.join(path)).unwrap(), bytes, "{path}");
    }
    assert_eq!(pulled.bytes, pulled.fetched);
    assert_eq!(last.unwrap().total, 300_000);
    assert_eq!(scene.blobs().len(), 4, "the two `{{}}` are one blob");

    scene.server.clear_requests();
    let mut offline = scene.settings(None);
    offline.offline = true;
    for hub in [scene.hub(None), hub(offline)] {
        assert_eq!(
            hub.cached_folder(&repo("lab/model"), FetchScope::Full).unwrap().as_ref(),
            Some(&pulled.folder)
        );
        let by_commit = repo("lab/model").at(&pulled.commit).unwrap();
        assert_eq!(hub.cached_folder(&by_commit, FetchScope::Full).unwrap().as_ref(), Some(&pulled.folder));
    }
    assert!(scene.server.requests().is_empty());
    assert_eq!(scene.pull("lab/model").unwrap().fetched, 0);
    assert!(scene.server.requests().iter().all(|request| !request.target.contains("/resolve/")));
}

#[test]
fn a_new_commit_downloads_only_changed_files() {
    let scene = Scene::new();
    let first = scene.pull("lab/model").unwrap();
    scene.server.commit("lab/model", &[("config.json", b"{}")]);
    assert_eq!(
        scene.hub(None).cached_folder(&repo("lab/model"), FetchScope::Full).unwrap().as_ref(),
        Some(&first.folder)
    );
    scene.server.clear_requests();
    let second = scene.pull("lab/model").unwrap();
    assert_ne!(first.commit, second.commit);
    assert_eq!(fs::read(second.folder.join("config.json")).unwrap(), b"{}");
    // The second model's tokenizer has the same content `{}`, so both models share one blob.
    assert_eq!(second.fetched, 0);
    let old = scene.pull(&format!("lab/model@{}", first.commit)).unwrap();
    assert_eq!(old.folder, first.folder);
    scene.server.model("lab/model").on("refs/heads/next/one").file("config.json", b"[1]").add();
    // An abbreviated commit is resolved if the cache contains this commit.
    let short = repo(&format!("lab/model@{}", &first.commit[..8]));
    assert_eq!(
        scene.hub(None).cached_folder(&short, FetchScope::Full).unwrap().as_ref(),
        Some(&first.folder)
    );
    assert_eq!(scene.pull(&short.to_string()).unwrap().folder, first.folder);
    let unknown = scene.pull("lab/model@0123abcd").unwrap_err();
    assert!(unknown.hint().unwrap().contains("all of its 40 digits"), "{unknown}");
    let branch = scene.pull("lab/model@next/one").unwrap();
    assert_eq!(fs::read(branch.folder.join("config.json")).unwrap(), b"[1]");
    let name = repo("lab/model@next/one");
    assert_eq!(
        scene.hub(None).cached_folder(&name, FetchScope::Full).unwrap().as_ref(),
        Some(&branch.folder)
    );
}

#[test]
fn shards_follow_the_index_over_many_pages() {
    let server = HubServer::builder().page(2).start().unwrap();
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    server.add_model(
        "lab/model",
        &[
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index),
            ("model-1.safetensors", &[1; 100]),
            ("model-2.safetensors", &[2; 100]),
            ("model-3.safetensors", &[3; 100]),
        ],
    );
    let scene = Scene { server, home: tempfile::tempdir().unwrap() };
    let pulled = scene.pull("lab/model").unwrap();
    let expected =
        ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"];
    assert_eq!(names(&pulled.folder), expected);
    // The client does not request a missing tokenizer again.
    let name = repo("lab/model");
    assert_eq!(
        scene.hub(None).cached_folder(&name, FetchScope::Full).unwrap().as_ref(),
        Some(&pulled.folder)
    );
    fs::remove_file(pulled.folder.join("model-2.safetensors")).unwrap();
    assert_eq!(scene.hub(None).cached_folder(&name, FetchScope::Full).unwrap(), None);
}

#[test]
fn an_adapter_is_downloaded_without_other_files() {
    let scene = Scene::new();
    let files: [(&str, &[u8]); 5] = [
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", b"weights"),
        ("danlu.json", b"{}"),
        ("optimizer.pt", b"state"),
        ("checkpoint-3/adapter_model.safetensors", b"older"),
    ];
    scene.server.add_model("me/adapter", &files);
    let pulled = scene.pull("me/adapter").unwrap();
    assert_eq!(names(&pulled.folder), ["adapter_config.json", "adapter_model.safetensors", "danlu.json"]);
    assert!(scene.hub(None).cached_folder(&repo("me/adapter"), FetchScope::Full).unwrap().is_some());
}

/// Changes the cache to the state after an interrupted Python download: only these files exist, and no file
/// is recorded as absent.
fn keep_only(folder: &Path, files: &[&str]) {
    for name in names(folder).iter().filter(|name| !files.contains(&name.as_str())) {
        fs::remove_file(folder.join(name)).unwrap();
    }
    let _ = fs::remove_dir_all(folder.join("../../.no_exist"));
}

#[test]
fn a_partial_snapshot_is_completed_once_at_its_commit() {
    let scene = Scene::new();
    let adapter: [(&str, &[u8]); 4] = [
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", b"weights"),
        ("danlu.json", b"{\"tokens\": 1}"),
        ("README.md", b"# an adapter"),
    ];
    scene.server.add_model("me/adapter", &adapter);
    scene.server.add_model("me/plain", &adapter[..2]);
    let merged: Vec<(&str, &[u8])> = MODEL
        .into_iter()
        .chain([("danlu.json", &b"{\"default_system\": \"x\"}"[..]), ("generation_config.json", b"{}")])
        .collect();
    scene.server.add_model("me/merged", &merged);
    let of_model = [
        "danlu.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ];
    let of_adapter = [
        "danlu.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ];
    for (id, kept, lacks) in [
        ("me/adapter", &["adapter_config.json", "adapter_model.safetensors"][..], &of_adapter[..]),
        ("me/plain", &["adapter_config.json", "adapter_model.safetensors"], &of_adapter),
        ("lab/model", &["config.json", "model.safetensors", "tokenizer.json"], &of_model),
        // Files that a merge writes into the folder of a model.
        (
            "me/merged",
            &[
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
                "generation_config.json",
            ],
            &["danlu.json", "special_tokens_map.json", "chat_template.jinja"],
        ),
    ] {
        let (name, hub) = (repo(id), scene.hub(None));
        let folder = scene.pull(id).unwrap().folder;
        assert!(hub.missing_optional_files(&name, &folder).is_empty(), "{id}: a pull leaves no question");
        let all = names(&folder);
        keep_only(&folder, kept);
        // A newer commit on the Hub has no effect.
        scene.server.commit(id, &[("config.json", b"[]")]);
        assert_eq!(hub.cached_folder(&name, FetchScope::Full).unwrap().as_ref(), Some(&folder));
        assert_eq!(hub.missing_optional_files(&name, &folder), lacks, "{id}");
        scene.server.clear_requests();
        hub.fetch_missing_files(&name, &folder).unwrap();
        assert_eq!(names(&folder), all, "{id}");
        let listings = scene.server.requests().iter().filter(|r| !r.target.contains("/resolve/")).count();
        assert_eq!(listings, 1, "{id}");
        assert!(hub.missing_optional_files(&name, &folder).is_empty(), "{id}");
        // Python records absences as empty files.
        let notes = folder.join("../../.no_exist").join(folder.file_name().unwrap());
        assert!(names(&notes).iter().all(|name| !all.contains(name)), "{id}");
        assert_eq!(fs::metadata(notes.join("vocab.json")).unwrap().len(), 0);
    }
}

#[test]
fn a_complete_snapshot_of_python_needs_no_check() {
    let scene = Scene::new();
    let template: &[u8] = b"{\"chat_template\": \"x\"}";
    scene.server.commit("lab/model", &[("tokenizer_config.json", template)]);
    let folder = scene.pull("lab/model").unwrap().folder;
    keep_only(&folder, &READ);
    // After Python has downloaded the whole repository, `.gitattributes` exists. No absent file is recorded,
    // because Python records absent files only when it loads a model.
    fs::write(folder.join(".gitattributes"), "").unwrap();
    assert!(scene.hub(None).missing_optional_files(&repo("lab/model"), &folder).is_empty());
    fs::remove_file(folder.join("tokenizer_config.json")).unwrap();
    assert_eq!(
        scene.hub(None).missing_optional_files(&repo("lab/model"), &folder),
        ["tokenizer_config.json"]
    );
}

#[test]
fn a_push_keeps_the_cache_and_detects_that_it_is_stale() {
    let scene = Scene::new();
    scene.server.add_user("me", "hf_mine");
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
        fs::write(folder.path().join("adapter_model.safetensors"), text).unwrap();
        danlu_hub::UploadSet::from_folder(folder.path(), &danlu_hub::UploadOptions::default()).unwrap()
    };
    let hub = scene.hub(Some("hf_mine"));
    let push = |text: &str, name: &str, options: &PushOptions| {
        hub.push(&write(text), &repo(name), options, &mut |_, _| {}).unwrap()
    };
    let (name, plain) = (repo("me/huan"), PushOptions::default());
    push("first", "me/huan", &plain);
    assert!(!scene.cache().exists(), "a push alone puts nothing into the cache");
    let first = hub.pull(&name, FetchScope::Full, &mut |_| {}).unwrap();
    // A push to another branch or to a pull request does not change the cache.
    push("other", "me/huan@other", &plain);
    push("offered", "me/huan", &PushOptions { create_pr: true, ..PushOptions::default() });
    let pushed = push("second", "me/huan", &plain);
    assert_eq!(hub.cached_folder(&name, FetchScope::Full).unwrap(), Some(first.folder));
    assert!(hub.cache_is_stale(&name, &pushed.commit));
    assert!(!hub.cache_is_stale(&repo("me/huan@other"), &pushed.commit), "what is not here is not older");
    let second = hub.pull(&name, FetchScope::Full, &mut |_| {}).unwrap();
    assert!(!hub.cache_is_stale(&name, &pushed.commit));
    assert_eq!(fs::read(second.folder.join("adapter_model.safetensors")).unwrap(), b"second");
}

#[test]
fn an_unreachable_hub_leaves_a_partial_snapshot_usable() {
    let scene = Scene::new();
    let folder = scene.pull("lab/model").unwrap().folder;
    keep_only(&folder, &["config.json", "model.safetensors", "tokenizer.json"]);
    scene.server.fault(Fault::on(Method::Get, "/tree/").always().then(Action::CutBefore));
    scene.server.clear_requests();
    assert!(scene.hub(None).fetch_missing_files(&repo("lab/model"), &folder).is_err());
    assert_eq!(scene.server.requests().len(), 1, "it is asked once");
    assert!(!folder.join("../../.no_exist").exists());
}

#[test]
fn an_invalid_token_matters_only_for_requests() {
    let scene = Scene::new();
    let name = repo("lab/model");
    let folder = scene.pull("lab/model").unwrap().folder;
    let path = scene.home.path().join("token");
    for (made, said) in [
        (Box::new(|| fs::create_dir(&path).unwrap()) as Box<dyn Fn()>, "it is a folder"),
        (Box::new(|| fs::write(&path, "hf_a b").unwrap()), "the token contains characters"),
        (Box::new(|| fs::write(&path, [0xff, 0xfe]).unwrap()), "the token contains characters"),
    ] {
        made();
        let hub = scene.hub(None);
        assert_eq!(hub.cached_folder(&name, FetchScope::Full).unwrap().as_ref(), Some(&folder));
        for error in [hub.whoami().unwrap_err(), hub.pull(&name, FetchScope::Full, &mut |_| {}).unwrap_err()]
        {
            let text = error.to_string();
            assert!(text.contains(said) && text.contains(&path.display().to_string()), "{text}");
            assert!(!text.contains("hf_a") && error.hint().unwrap().contains("danlu logout"), "{text}");
        }
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    }
}

#[test]
fn a_model_without_safetensors_is_refused_by_file_name() {
    let scene = Scene::new();
    scene.server.add_model("lab/old", &[("config.json", b"{}"), ("pytorch_model.bin", b"x")]);
    scene.server.add_model("lab/empty", &[("README.md", b"x")]);
    let error = scene.pull("lab/old").unwrap_err();
    assert_eq!(error.to_string(), "`lab/old` has no safetensors weights, only `pytorch_model.bin`");
    assert!(matches!(scene.pull("lab/empty").unwrap_err(), HubError::NoWeights { found: None, .. }));
}

#[test]
fn only_the_hub_receives_the_token_of_a_pull() {
    let scene = Scene::new();
    scene.server.add_user("me", "hf_mine");
    scene
        .server
        .model("me/secret")
        .private()
        .file("config.json", b"{}")
        .file("model.safetensors", &[1; 9])
        .add();
    let hub = scene.hub(Some("hf_mine"));
    assert_eq!(hub.whoami().unwrap().name, "me");
    hub.pull(&repo("me/secret"), FetchScope::Full, &mut |_| {}).unwrap();
    let requests = scene.server.requests();
    assert!(requests.iter().any(|request| request.host == Host::Storage));
    for request in requests {
        assert_eq!(request.authorization.is_some(), request.host == Host::Hub, "{request:?}");
    }
    let refused = scene.hub(None).pull(&repo("me/secret"), FetchScope::Full, &mut |_| {}).unwrap_err();
    assert!(matches!(refused, HubError::NoModel { with_token: false, .. }), "{refused}");
}

/// Environment variable that is set in the process started by a test.
const PULLED: &str = "DANLU_TEST_PULLED";

#[test]
#[ignore = "the process that `two_processes_download_every_byte_once` starts twice"]
fn is_pulled() {
    if std::env::var_os(PULLED).is_some() {
        let hub = danlu_hub::Hub::new(HubSettings::from_env().unwrap());
        hub.pull(&repo("lab/model"), FetchScope::Full, &mut |_| {}).unwrap();
    }
}

#[test]
fn two_processes_download_every_byte_once() {
    let scene = Scene::new();
    // The transfer is slow enough that the second process starts during the first download.
    scene.server.fault(Fault::on(Method::Get, "").at(Host::Storage).always().then(Action::Throttle(600_000)));
    let start = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["is_pulled", "--exact", "--ignored"]).env(PULLED, "1").stdout(Stdio::null());
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", scene.server.endpoint()).env("HF_HOME", scene.home.path()).spawn().unwrap()
    };
    for child in [start(), start()].iter_mut() {
        assert!(child.wait().unwrap().success());
    }
    let requests = scene.server.requests();
    let listings = requests.iter().filter(|request| request.target.contains("/revision/")).count();
    assert_eq!(listings, 2, "both were at it");
    let sent: u64 = requests.iter().filter(|request| request.host == Host::Storage).map(|r| r.sent).sum();
    assert_eq!(sent, 300_000);
    assert!(scene.blobs().iter().all(|blob| !blob.contains('.')), "{:?}", scene.blobs());
    assert!(scene.hub(None).cached_folder(&repo("lab/model"), FetchScope::Full).unwrap().is_some());
}

#[test]
fn two_threads_download_every_byte_once() {
    let scene = Scene::new();
    let pulls: Vec<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..2).map(|_| scope.spawn(|| scene.pull("lab/model"))).collect();
        all.into_iter().map(|one| one.join().unwrap().unwrap()).collect()
    });
    assert_eq!(pulls[0].folder, pulls[1].folder);
    let sent = scene.server.requests().iter().filter(|request| request.host == Host::Storage).count();
    assert_eq!(sent, 1);
}

#[test]
fn offline_fails_without_a_request() {
    let scene = Scene::new();
    let hub = hub(HubSettings { offline: true, ..scene.settings(None) });
    let error = hub.pull(&repo("lab/model"), FetchScope::Full, &mut |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`lab/model` is not in the cache, and `HF_HUB_OFFLINE` forbids requests to the Hub"
    );
    let error = hub.whoami().unwrap_err();
    assert_eq!(error.to_string(), "cannot look up the account: `HF_HUB_OFFLINE` forbids requests to the Hub");
    assert!(scene.server.requests().is_empty());
}
