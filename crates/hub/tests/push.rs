//! Pushes a folder, and compares it with the files that a pull downloads.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::push::{Desk, WEIGHTS};
use common::repo;
use danlu_hub::{
    FetchScope, HubError, PushOptions, PushStage, SkipReason, SkippedFile, Transfer, UploadOptions, UploadSet,
};
use danlu_hub_test_server::{Action, Fault, Host, HubServer, Method};

#[test]
fn a_pushed_folder_is_pulled_back_byte_for_byte() {
    let desk = Desk::new();
    let mut last = None;
    let pushed = desk
        .hub()
        .push(&desk.upload_set(), &repo("me/adapter"), &PushOptions::default(), &mut |stage, transfer| {
            let before = last.replace((stage, transfer));
            assert!(stage != PushStage::Committing || before.unwrap().0 == PushStage::Sending);
        })
        .unwrap();
    assert!(pushed.created && pushed.pull_request.is_none());
    assert_eq!(pushed.url, format!("{}/me/adapter", desk.server.endpoint()));
    assert_eq!(
        pushed.files,
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "deep/extra.safetensors"]
    );
    assert_eq!((pushed.sent, pushed.unchanged), (desk.upload_set().size(), 0));
    let (stage, Transfer { done, total, before, files }) = last.unwrap();
    assert_eq!((stage, done, total, before, files), (PushStage::Committing, 2 * WEIGHTS, 2 * WEIGHTS, 0, 2));
    desk.assert_whole("me/adapter", "main");
    let commits = desk.server.commits("me/adapter");
    assert_eq!(commits.len(), 2, "the repository's own, and one");
    assert_eq!((commits[1].id.as_str(), commits[1].title.as_str()), (&*pushed.commit, "Upload with danlu"));
    assert_eq!(desk.server.is_private("me/adapter"), Some(false));

    let pulled = desk.hub().pull(&repo("me/adapter"), FetchScope::Full, &mut |_| {}).unwrap();
    assert_eq!(pulled.commit, pushed.commit);
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        assert_eq!(fs::read(pulled.folder.join(name)).unwrap(), fs::read(desk.folder().join(name)).unwrap());
    }
}

#[test]
fn a_second_push_uploads_only_changed_files() {
    let desk = Desk::new();
    let first = desk.push("me/adapter").unwrap();
    desk.server.clear_requests();
    let again = desk.push("me/adapter").unwrap();
    assert_eq!((again.commit, again.sent, again.unchanged), (first.commit, 0, 4));
    assert!(again.files.is_empty() && !again.created);
    assert!(desk.server.requests().iter().all(|request| request.method == "GET"));
    assert_eq!(desk.server.commits("me/adapter").len(), 2);

    desk.write("deep/extra.safetensors", &[3; 1000]);
    desk.write("README.md", b"# another");
    desk.server.clear_requests();
    let third = desk.push("me/adapter").unwrap();
    assert_eq!(third.files, ["README.md", "deep/extra.safetensors"]);
    assert_eq!((third.sent, third.unchanged), (1009, 2));
    let received: u64 =
        desk.server.requests().iter().filter(|r| r.host == Host::Storage).map(|r| r.received).sum();
    assert_eq!(received, 1000);
    assert_eq!(desk.server.commits("me/adapter").len(), 3);
    desk.assert_whole("me/adapter", "main");
}

#[test]
fn other_files_of_the_repository_stay() {
    let desk = Desk::new();
    desk.server.add_model("me/adapter", &[("notes.md", b"mine"), ("README.md", b"older")]);
    let pushed = desk.push("me/adapter").unwrap();
    assert!(!pushed.created);
    assert_eq!(desk.server.read("me/adapter", "main", "notes.md").unwrap(), b"mine");
    desk.assert_whole("me/adapter", "main");
}

#[test]
fn large_files_are_uploaded_in_parts_on_request() {
    let desk = Desk::on(HubServer::builder().multipart(100_000, 64_000).start().unwrap());
    desk.push("me/adapter").unwrap();
    desk.assert_whole("me/adapter", "main");
    let parts = desk.server.requests().iter().filter(|request| request.method == "PUT").count();
    assert_eq!(parts, 2 * 5);
}

#[test]
fn branch_message_and_privacy_follow_the_options() {
    let desk = Desk::new();
    let options = PushOptions {
        private: true,
        message: Some("第一版".to_owned()),
        description: Some("with care".to_owned()),
        ..PushOptions::default()
    };
    let push = |name: &str, options: &PushOptions| {
        desk.hub().push(&desk.upload_set(), &repo(name), options, &mut |_, _| {})
    };
    push("me/adapter@next/one", &options).unwrap();
    assert_eq!(desk.server.is_private("me/adapter"), Some(true));
    desk.assert_whole("me/adapter", "next/one");
    let again = push("me/adapter@next/one", &options).unwrap();
    assert!(!again.branched && again.files.is_empty());
    assert_eq!(again.url, format!("{}/me/adapter/tree/next/one", desk.server.endpoint()));
    assert!(desk.server.read("me/adapter", "main", "README.md").is_none());
    let commits = desk.server.commits("me/adapter");
    let last = commits.last().unwrap();
    assert_eq!((last.title.as_str(), last.description.as_str()), ("第一版", "with care"));

    let other = push("me/adapter@other", &PushOptions::default()).unwrap();
    assert!(other.branched && !other.created && !other.files.is_empty());
    // A push does not make a public repository private.
    desk.server.add_model("me/public", &[("x.md", b"x")]);
    let error = push("me/public", &options).unwrap_err();
    assert_eq!(error.to_string(), "cannot make `me/public` private: it exists and is public");
    assert_eq!(desk.server.commits("me/public").len(), 1);
    assert_eq!(desk.server.is_private("me/public"), Some(false));
    // A commit is not a branch.
    let error = push(&format!("me/public@{}", "a".repeat(40)), &PushOptions::default()).unwrap_err();
    assert!(matches!(error, HubError::NoBranch { .. }), "{error}");
    desk.server.add_member("lab", "me");
    push("lab/adapter", &PushOptions::default()).unwrap();
    desk.assert_whole("lab/adapter", "main");
}

#[test]
fn a_pull_request_does_not_change_the_branch() {
    let desk = Desk::new();
    desk.server.add_model("she/adapter", &[("README.md", b"hers")]);
    let options = PushOptions { create_pr: true, ..PushOptions::default() };
    let push = |name: &str| desk.hub().push(&desk.upload_set(), &repo(name), &options, &mut |_, _| {});
    let pushed = push("she/adapter").unwrap();
    assert_eq!(pushed.pull_request, Some(format!("{}/she/adapter/discussions/1", desk.server.endpoint())));
    assert_eq!(desk.server.read("she/adapter", "main", "README.md").unwrap(), b"hers");
    desk.assert_whole("she/adapter", "refs/pr/1");
    assert_eq!(desk.server.revisions("she/adapter")["refs/pr/1"], pushed.commit);
    // The target of the pull request does not exist, and nothing is created.
    for name in ["she/none", "me/none"] {
        let error = push(name).unwrap_err();
        let words =
            format!("cannot open a pull request: `{name}` does not exist or is hidden from this account");
        assert_eq!(error.to_string(), words);
        assert!(error.hint().unwrap().contains("push without `--create-pr`"));
    }
    assert_eq!(desk.server.is_private("me/none"), None);
}

#[test]
fn a_diff_changes_nothing() {
    let desk = Desk::new();
    let differences = |name: &str| desk.hub().diff(&desk.upload_set(), &repo(name), &mut |_| {}).unwrap();
    let none = differences("me/adapter");
    assert!(!none.exists && none.commit.is_none());
    assert_eq!((none.new.len(), none.size()), (4, desk.upload_set().size()));
    desk.push("me/adapter").unwrap();
    desk.write("README.md", b"# another");
    desk.write("LICENSE", b"mine");
    desk.server.clear_requests();
    let some = differences("me/adapter");
    assert!(some.exists && some.has_revision && some.private == Some(false));
    assert_eq!(some.new, [("LICENSE".to_owned(), 4)]);
    assert_eq!(some.changed, [("README.md".to_owned(), 9)]);
    assert_eq!((some.unchanged.len(), some.size()), (3, 13));
    assert!(!differences("me/adapter@next").has_revision);
    assert_eq!(some.others, [".gitattributes"]);
    // `diff` rejects the targets that `push` rejects.
    for name in [format!("me/adapter@{}", "a".repeat(40)), "me/adapter@refs/pr/1".to_owned()] {
        let (hub, upload_set, name) = (desk.hub(), desk.upload_set(), repo(&name));
        let shown = hub.diff(&upload_set, &name, &mut |_| {}).map(drop).unwrap_err();
        let pushed =
            hub.push(&upload_set, &name, &PushOptions::default(), &mut |_, _| {}).map(drop).unwrap_err();
        assert_eq!(shown.to_string(), pushed.to_string());
    }
    let file = |name: &str, path: &str| desk.hub().read_small_file(&repo(name), path, 1000).unwrap();
    assert_eq!(file("me/adapter", "adapter_config.json").unwrap(), b"{}");
    assert_eq!(file("me/adapter@next", "adapter_config.json").unwrap(), b"{}");
    assert_eq!((file("me/adapter", "none.json"), file("me/none", "adapter_config.json")), (None, None));
    let long = desk.hub().read_small_file(&repo("me/adapter"), "README.md", 3).unwrap_err();
    assert!(matches!(long, HubError::TooLarge { .. }), "{long}");
    assert_eq!(
        [desk.hub().repo_exists(&repo("me/adapter")), desk.hub().repo_exists(&repo("me/none"))],
        [Some(true), Some(false)]
    );
    assert!(desk.server.requests().iter().all(|request| request.method == "GET"));
    assert_eq!(desk.server.commits("me/adapter").len(), 2);
}

/// Returns a folder with files of every kind that a push skips. The second folder contains the targets of the
/// links that lead out of the first folder.
fn desk_with_other_files() -> (Desk, tempfile::TempDir) {
    let desk = Desk::new();
    let secret = format!("{{\n\"key\": \"{}\"}}", token());
    for (path, bytes) in [
        ("checkpoint-3/adapter_model.safetensors", b"older".as_slice()),
        ("optimizer.safetensors", b"x"),
        ("scheduler.pt", b"x"),
        ("history.jsonl", b"{}"),
        ("runs/events.out", b"x"),
        (".env", b"X=1"),
        (".cache/x", b"x"),
        ("id_rsa", b"x"),
        ("run.toml", b"base = '/home/me'"),
        ("held_out.json", b"[]"),
        ("palace.json", b" \n[{}]"),
        (".danlu-tmp-7-config.json", b"{"),
        ("deep/notes.json", secret.as_bytes()),
    ] {
        desk.write(path, bytes);
    }
    desk.write("deep/mine.txt", b"hf_mine is short, and known");
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("passwd"), "x").unwrap();
    let link = |to: &Path, name: &str| symlink(to, desk.folder().join(name)).unwrap();
    link(&outside.path().join("passwd"), "out.txt");
    link(outside.path(), "outer");
    link(Path::new("nowhere"), "broken");
    link(Path::new(".env"), "settings.txt");
    link(Path::new("README.md"), "inside.md");
    (desk, outside)
}

/// Returns a text that looks like a token.
fn token() -> String {
    format!("{}{}", "hf_", "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH")
}

#[test]
fn a_token_in_the_message_is_not_published() {
    let desk = Desk::new();
    for message in [format!("with {}", token()), "by hf_mine".to_owned()] {
        let options = PushOptions { message: Some(message.clone()), ..PushOptions::default() };
        let error =
            desk.hub().push(&desk.upload_set(), &repo("me/adapter"), &options, &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, HubError::SecretMessage), "{error}");
        assert!(!error.to_string().contains("hf_") && error.hint().is_some(), "{error}");
    }
    assert_eq!(desk.server.is_private("me/adapter"), None);
}

fn include(patterns: &[&str], with_tokens: bool) -> UploadOptions {
    UploadOptions {
        include: patterns.iter().map(|&path| path.to_owned()).collect(),
        with_tokens,
        token: Some(danlu_hub::Token::new("hf_mine").unwrap()),
    }
}

fn set_of(desk: &Desk, patterns: &[&str], with_tokens: bool) -> UploadSet {
    UploadSet::from_folder(desk.folder(), &include(patterns, with_tokens)).unwrap()
}

fn paths(upload_set: &UploadSet) -> Vec<String> {
    upload_set.files().iter().map(|file| file.path().to_owned()).collect()
}

#[test]
fn a_token_in_a_path_is_shown_in_part() {
    let desk = Desk::new();
    desk.write(&format!("notes/{}.txt", token()), b"x");
    let named = |left: &SkippedFile| left.path == "notes/hf_…" && left.reason == SkipReason::TokenInName;
    assert!(desk.upload_set().skipped().iter().any(named), "{:?}", desk.upload_set().skipped());
}

#[test]
fn files_that_are_no_part_of_a_model_are_skipped() {
    let (desk, _outside) = desk_with_other_files();
    let plain = set_of(&desk, &[], false);
    let usual = ["README.md", "adapter_config.json", "adapter_model.safetensors", "deep/extra.safetensors"];
    assert_eq!(paths(&plain), [usual.as_slice(), &["inside.md"]].concat());
    let left = |path: &str, reason| SkippedFile { path: path.to_owned(), reason };
    assert_eq!(
        plain.skipped(),
        [
            left(".cache/", SkipReason::Hidden),
            left(".danlu-tmp-7-config.json", SkipReason::Temporary),
            left(".env", SkipReason::Hidden),
            left("broken", SkipReason::Link),
            left("checkpoint-3/", SkipReason::Checkpoint),
            left("deep/mine.txt", SkipReason::Token { line: 1 }),
            left("deep/notes.json", SkipReason::Token { line: 2 }),
            left("held_out.json", SkipReason::Data),
            left("history.jsonl", SkipReason::Log),
            left("id_rsa", SkipReason::Key),
            left("optimizer.safetensors", SkipReason::TrainerState),
            left("out.txt", SkipReason::Link),
            left("outer", SkipReason::Link),
            left("palace.json", SkipReason::Data),
            left("run.toml", SkipReason::RunFile),
            left("runs/", SkipReason::Log),
            left("scheduler.pt", SkipReason::TrainerState),
            left("settings.txt", SkipReason::Hidden),
        ]
    );
    assert!(plain.skipped().iter().all(|left| !left.reason.to_string().contains("hf_")));
}

#[test]
fn include_uploads_skipped_files_but_no_secrets() {
    let (desk, _outside) = desk_with_other_files();
    let asked = set_of(&desk, &["*", "checkpoint-3"], false);
    let come = [
        "checkpoint-3/adapter_model.safetensors",
        "held_out.json",
        "palace.json",
        "run.toml",
        "runs/events.out",
    ];
    assert!(come.iter().all(|path| paths(&asked).contains(&(*path).to_owned())), "{:?}", paths(&asked));
    for path in
        [".env", ".cache/x", "deep/notes.json", "deep/mine.txt", "out.txt", "outer", "broken", "settings.txt"]
    {
        assert!(!paths(&asked).contains(&path.to_owned()), "{path}");
    }
    assert!(paths(&set_of(&desk, &[".env", "id_*"], false)).contains(&".env".to_owned()));
    assert!(paths(&set_of(&desk, &[], true)).contains(&"deep/notes.json".to_owned()));
    let error = UploadSet::from_folder(desk.folder(), &include(&["*.tsv"], false)).unwrap_err();
    assert!(matches!(error, HubError::NoMatch { .. }) && error.hint().is_some(), "{error}");
}

#[test]
fn a_folder_without_a_model_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.txt"), "x").unwrap();
    let of = |path: &Path| UploadSet::from_folder(path, &UploadOptions::default()).unwrap_err();
    assert!(matches!(of(folder.path()), HubError::NotAModel { .. }));
    assert!(matches!(of(&folder.path().join("x.txt")), HubError::File(_)));
    assert!(matches!(of(&folder.path().join("none")), HubError::File(_)));
}

#[test]
fn only_the_hub_receives_the_token_of_a_push() {
    let desk = Desk::on(HubServer::builder().multipart(100_000, 64_000).start().unwrap());
    desk.push("me/adapter").unwrap();
    let requests = desk.server.requests();
    assert!(requests.iter().any(|request| request.host == Host::Storage));
    for request in requests {
        assert_eq!(request.authorization.is_some(), request.host == Host::Hub, "{request:?}");
    }
}

#[test]
fn ignored_files_are_reported() {
    let desk = Desk::new();
    desk.server.add_model("me/adapter", &[(".gitignore", b"deep/\n")]);
    let pushed = desk.push("me/adapter").unwrap();
    assert_eq!(pushed.ignored, ["deep/extra.safetensors"]);
    assert!(desk.server.read("me/adapter", "main", "deep/extra.safetensors").is_none());
    let again = desk.push("me/adapter").unwrap();
    assert_eq!((again.commit, again.files.len()), (pushed.commit, 0));
}

#[test]
fn a_required_file_must_not_be_ignored() {
    let desk = Desk::new();
    let refused = |name: &str, file: &str| {
        let before = desk.server.commits(name).len();
        let error = desk.push(name).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the `.gitignore` of `{name}` excludes `{file}`, and the upload cannot be loaded without it"
            )
        );
        assert!(error.hint().unwrap().contains(".gitignore"));
        assert_eq!(desk.server.commits(name).len(), before);
        assert!(desk.server.requests().iter().all(|request| request.method != "PUT"));
    };
    desk.server.add_model("me/adapter", &[(".gitignore", b"*.safetensors\n")]);
    refused("me/adapter", "adapter_model.safetensors");
    // A rejected push does not damage an existing model either.
    fs::remove_file(desk.folder().join("adapter_config.json")).unwrap();
    fs::remove_file(desk.folder().join("adapter_model.safetensors")).unwrap();
    desk.write("config.json", b"{}");
    desk.write("model.safetensors", &[7; 1000]);
    let old = "model-00001-of-00001.safetensors";
    desk.server.add_model("me/model", &[(".gitignore", b"model.safetensors\n"), (old, b"old")]);
    refused("me/model", "model.safetensors");
    assert_eq!(desk.server.read("me/model", "main", old).unwrap(), b"old");
}

#[test]
fn offline_makes_no_request() {
    let desk = Desk::new();
    let settings = danlu_hub::HubSettings { offline: true, ..desk.hub().settings().clone() };
    let (hub, name) = (common::hub(settings), repo("me/adapter"));
    let pushed = hub.push(&desk.upload_set(), &name, &PushOptions::default(), &mut |_, _| {}).map(drop);
    let compared = hub.diff(&desk.upload_set(), &name, &mut |_| {}).map(drop);
    for error in [pushed.unwrap_err(), compared.unwrap_err()] {
        assert_eq!(
            error.to_string(),
            "cannot look up `me/adapter`: `HF_HUB_OFFLINE` forbids requests to the Hub"
        );
    }
    assert!(desk.server.requests().is_empty());
}

#[test]
fn equal_files_are_uploaded_once() {
    let desk = Desk::new();
    desk.write("deep/extra.safetensors", &[7; WEIGHTS as usize]);
    let pushed = desk.push("me/adapter").unwrap();
    assert_eq!(pushed.sent, desk.upload_set().size() - WEIGHTS);
    desk.assert_whole("me/adapter", "main");
    assert_eq!(desk.server.requests().iter().filter(|request| request.method == "PUT").count(), 1);
}

fn private() -> PushOptions {
    PushOptions { private: true, ..PushOptions::default() }
}

#[test]
fn only_an_empty_public_repository_becomes_private() {
    let desk = Desk::new();
    let push = |name: &str, options: &PushOptions| {
        desk.hub().push(&desk.upload_set(), &repo(name), options, &mut |_, _| {})
    };
    // Creates the state after a push that was interrupted before its commit.
    desk.server.fault(Fault::on(Method::Post, "/preupload/").then(Action::Status(400, vec![], vec![])));
    push("me/cut", &PushOptions::default()).unwrap_err();
    assert_eq!((desk.server.commits("me/cut").len(), desk.server.is_private("me/cut")), (1, Some(false)));
    desk.server.clear_requests();
    push("me/cut", &private()).unwrap();
    assert_eq!(desk.server.is_private("me/cut"), Some(true));
    desk.assert_whole("me/cut", "main");
    let put = |part: &'static str| {
        move |request: &danlu_hub_test_server::RecordedRequest| request.target.contains(part)
    };
    let requests = desk.server.requests();
    assert!(requests.iter().position(put("/settings")) < requests.iter().position(put("/preupload/")));
    // The push fails if the Hub does not return whether the repository is private.
    let sha = desk.server.revisions("me/cut")["refs/heads/main"].clone();
    let silent = Action::Replace(serde_json::json!({ "sha": sha }));
    desk.server.fault(Fault::on(Method::Get, "/models/me/cut/revision/").always().then(silent));
    // The push also fails if the Hub confirms the change but the repository is still public.
    desk.server.model("me/told").file(".gitattributes", b"").add();
    let done = Action::Status(200, vec![], b"{\"private\": true}".to_vec());
    desk.server.fault(Fault::on(Method::Put, "/settings").then(done));
    for name in ["me/cut", "me/told"] {
        let before = desk.server.commits(name).len();
        let error = push(name, &private()).unwrap_err();
        assert!(matches!(error, HubError::NotPrivate { .. }), "{name}: {error}");
        assert_eq!(desk.server.commits(name).len(), before);
    }
    desk.server.clear_faults();
    // In the first repository, a branch other than `main` has files. In the second repository, a pull request
    // exists.
    for (name, at) in [("me/begun", "refs/heads/next"), ("me/asked", "refs/pr/1")] {
        desk.server.model(name).file(".gitattributes", b"").add();
        desk.server.model(name).on(at).file("x.md", b"x").add();
        assert!(matches!(push(name, &private()).unwrap_err(), HubError::Public { .. }), "{name}");
        assert_eq!(desk.server.is_private(name), Some(false));
    }
}

#[test]
fn an_adapter_and_a_model_share_no_repository() {
    let desk = Desk::new();
    let refused = |name: &str, file: &str| {
        let (hub, upload_set, name) = (desk.hub(), desk.upload_set(), repo(name));
        let pushed = hub.push(&upload_set, &name, &PushOptions::default(), &mut |_, _| {}).map(drop);
        let compared = hub.diff(&upload_set, &name, &mut |_| {}).map(drop);
        for error in [pushed.unwrap_err(), compared.unwrap_err()] {
            assert!(error.to_string().contains(&format!("(`{file}`)")), "{error}");
            assert!(error.hint().unwrap().contains("another name"), "{error}");
        }
        assert_eq!(desk.server.commits(name.id()).len(), 1);
    };
    let files = ["model.safetensors", "model.safetensors.index.json", "model-00002-of-00002.safetensors"];
    for (i, file) in files.into_iter().chain(["pytorch_model.bin"]).enumerate() {
        let name = format!("me/model{i}");
        desk.server.add_model(&name, &[("config.json", b"{}"), (file, b"weights")]);
        refused(&name, file);
    }
    // Some adapter repositories also contain the configuration of the base.
    desk.server.add_model("me/adapter", &[("config.json", b"{}"), ("deep/model.safetensors", b"x")]);
    desk.push("me/adapter").unwrap();

    fs::remove_file(desk.folder().join("adapter_config.json")).unwrap();
    fs::remove_file(desk.folder().join("adapter_model.safetensors")).unwrap();
    desk.write("config.json", b"{}");
    desk.write("model.safetensors", b"weights");
    desk.server.add_model("me/lora", &[("adapter_config.json", b"{}")]);
    refused("me/lora", "adapter_config.json");
}

#[test]
fn the_commit_deletes_shards_that_no_index_lists() {
    let desk = Desk::new();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::remove_file(desk.folder().join(name)).unwrap();
    }
    let shard = |i: usize, of: usize| format!("model-{i:05}-of-{of:05}.safetensors");
    desk.write("config.json", b"{}");
    desk.write("model.safetensors.index.json", b"{\"of\": 3}");
    (1..=3).for_each(|i| desk.write(&shard(i, 3), &[i as u8; 1000]));
    desk.push("me/model").unwrap();
    let old = ["notes.md", "pytorch_model.bin", "onnx/model.safetensors"];
    desk.server.commit("me/model", &old.map(|path| (path, b"kept".as_slice())));

    (1..=3).for_each(|i| fs::remove_file(desk.folder().join(shard(i, 3))).unwrap());
    desk.write("model.safetensors.index.json", b"{\"of\": 2}");
    (1..=2).for_each(|i| desk.write(&shard(i, 2), &[i as u8; 1500]));
    let removed: Vec<String> = (1..=3).map(|i| shard(i, 3)).collect();
    let differences = || desk.hub().diff(&desk.upload_set(), &repo("me/model"), &mut |_| {}).unwrap();
    let told: Vec<(String, u64)> = removed.iter().map(|path| (path.clone(), 1000)).collect();
    assert_eq!(differences().removed, told);
    let before = desk.server.commits("me/model").len();
    let pushed = desk.push("me/model").unwrap();
    assert_eq!(pushed.removed, removed);
    assert_eq!(desk.server.commits("me/model").len(), before + 1);
    desk.assert_whole("me/model", "main");
    let there = desk.server.hashes("me/model", "main");
    assert!(removed.iter().all(|path| !there.contains_key(path)), "{there:?}");
    assert!(old.iter().all(|&path| there.contains_key(path)), "{there:?}");
    let again = desk.push("me/model").unwrap();
    assert!(again.files.is_empty() && again.removed.is_empty() && again.commit == pushed.commit);

    // One file replaces all shards, and the response to the commit is lost.
    fs::remove_file(desk.folder().join("model.safetensors.index.json")).unwrap();
    (1..=2).for_each(|i| fs::remove_file(desk.folder().join(shard(i, 2))).unwrap());
    desk.write("model.safetensors", &[9; 3000]);
    desk.server.commit("me/model", &[("model.safetensors", &[9; 3000])]);
    let before = desk.server.commits("me/model").len();
    desk.server.fault(Fault::on(Method::Post, "/commit/").then(Action::CutAnswer));
    let last = desk.push("me/model").unwrap();
    assert!(last.files.is_empty());
    assert_eq!(last.removed, [shard(1, 2), shard(2, 2), "model.safetensors.index.json".to_owned()]);
    assert_eq!(desk.server.commits("me/model").len(), before + 1);
    desk.assert_whole("me/model", "main");
}

#[test]
fn replaced_content_is_uploaded_and_scanned() {
    let desk = Desk::new();
    let token = format!("{}{}", "hf&#95;", "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH");
    let with = |with_tokens| {
        let options = UploadOptions { with_tokens, ..UploadOptions::default() };
        let mut upload_set = UploadSet::from_folder(desk.folder(), &options).unwrap();
        upload_set.replace("README.md", b"# otherwise".to_vec());
        upload_set.replace("adapter_model.safetensors", vec![5; 70_000]);
        upload_set.replace("more.txt", b"the folder lacks it".to_vec());
        upload_set.replace("card.json", format!("{{\n\"x\": \"{token}\"}}").into_bytes());
        upload_set
    };
    let upload_set = with(false);
    let left = SkippedFile { path: "card.json".to_owned(), reason: SkipReason::Token { line: 2 } };
    assert_eq!(upload_set.skipped(), [left]);
    assert_eq!(with(true).files().len(), upload_set.files().len() + 1);
    desk.hub().push(&upload_set, &repo("me/adapter"), &PushOptions::default(), &mut |_, _| {}).unwrap();
    let there = |path: &str| desk.server.read("me/adapter", "main", path);
    assert_eq!(there("README.md").unwrap(), b"# otherwise");
    assert_eq!(there("adapter_model.safetensors").unwrap(), vec![5; 70_000]);
    assert_eq!(there("more.txt").unwrap(), b"the folder lacks it");
    assert_eq!(there("card.json"), None);
    assert_eq!(fs::read(desk.folder().join("README.md")).unwrap(), "# an adapter 甄".as_bytes());
    // A skipped file is still skipped after its content is replaced.
    desk.write(".env", b"X=1");
    let mut upload_set = desk.upload_set();
    upload_set.replace(".env", b"X=2".to_vec());
    assert!(!upload_set.files().iter().any(|file| file.path() == ".env"));
}

#[test]
fn missing_permissions_are_detected_before_an_upload() {
    let desk = Desk::new();
    desk.server.add_read_only_user("me", "hf_reads");
    desk.server.add_member("lab", "me");
    let propose = PushOptions { create_pr: true, ..PushOptions::default() };
    let may = |token: Option<&str>, name: &str, options: &PushOptions| {
        desk.hub_with(token).may_push(&repo(name), options).map(drop)
    };
    let plain = PushOptions::default();
    for name in ["me/new", "lab/new"] {
        may(Some("hf_mine"), name, &plain).unwrap();
    }
    may(Some("hf_mine"), "she/model", &propose).unwrap();
    let hint = |name: &str| {
        let error = may(Some("hf_mine"), name, &plain).unwrap_err();
        assert!(matches!(error, HubError::NotOwner { .. }));
        error.hint().unwrap()
    };
    assert_eq!(hint("she/model"), "check the spelling, or push to `me/model`");
    desk.server.add_model("she/model", &[("x.md", b"x")]);
    assert!(hint("she/model").contains("--create-pr"));
    assert!(matches!(may(Some("hf_reads"), "me/new", &plain).unwrap_err(), HubError::ReadOnly { .. }));
    assert!(matches!(may(Some("hf_reads"), "she/model", &propose).unwrap_err(), HubError::ReadOnly { .. }));
    assert!(matches!(may(Some("hf_wrong"), "me/new", &plain).unwrap_err(), HubError::BadToken { .. }));
    assert!(matches!(may(None, "me/new", &plain).unwrap_err(), HubError::NoToken { .. }));
    assert!(desk.server.requests().iter().all(|request| request.method == "GET"));
}
