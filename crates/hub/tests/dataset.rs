//! Tests that download data sets by name.

mod common;

use std::fs;

use common::Scene;
use danlu_hub::{DatasetFiles, DatasetRef, Hub, HubError};
use danlu_hub_test_server::{Action, Fault, Gate, Method};

const CARD: &[u8] = b"---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
# Data
";

/// Starts a server with the data set `lab/talk` of three files.
fn scene() -> Scene {
    let scene = Scene::new();
    scene
        .server
        .model("datasets/lab/talk")
        .file("README.md", CARD)
        .file("data/train-00000-of-00002.jsonl", b"{\"text\": \"a\"}\n")
        .file("data/train-00001-of-00002.jsonl", b"{\"text\": \"b\"}\n")
        .file("data/test-00000-of-00001.jsonl", b"{\"text\": \"c\"}\n")
        .add();
    scene.server.clear_requests();
    scene
}

fn dataset(text: &str) -> DatasetRef {
    text.parse().unwrap()
}

fn pull(hub: &Hub, text: &str) -> Result<DatasetFiles, HubError> {
    hub.pull_dataset(&dataset(text), &mut |_| {})
}

fn texts(found: &DatasetFiles) -> Vec<String> {
    found.files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

#[test]
fn a_split_is_downloaded_once_and_then_read_without_a_request() {
    let scene = scene();
    let hub = scene.hub(None);
    assert_eq!(hub.cached_dataset(&dataset("lab/talk")).unwrap(), None);
    let found = pull(&hub, "lab/talk").unwrap();
    assert_eq!(found.part, "train");
    assert_eq!(texts(&found), ["{\"text\": \"a\"}\n", "{\"text\": \"b\"}\n"]);
    // The folder has the name that Python's huggingface_hub uses.
    assert!(scene.cache().join("datasets--lab--talk/refs/main").is_file());
    let asked: Vec<String> = scene.server.requests().into_iter().map(|request| request.target).collect();
    assert!(asked.iter().all(|target| target.contains("datasets/lab/talk")), "{asked:?}");
    assert!(!asked.iter().any(|target| target.contains("test-00000")), "{asked:?}");

    scene.server.clear_requests();
    let again = hub.cached_dataset(&dataset("lab/talk:train")).unwrap().unwrap();
    assert_eq!(again.files, found.files);
    let pinned = dataset("lab/talk").pinned(&found.pulled.commit, &found.part).unwrap();
    assert_eq!(hub.cached_dataset(&pinned).unwrap().unwrap().files, found.files);
    assert_eq!(hub.cached_dataset(&dataset("lab/talk:test")).unwrap(), None);
    assert!(scene.server.requests().is_empty());
}

#[test]
fn files_that_python_downloaded_are_read_offline_if_no_shard_is_missing() {
    let scene = scene();
    let found = pull(&scene.hub(None), "lab/talk").unwrap();
    // Python stores no list of files, so the list of danlu is removed.
    fs::remove_dir_all(scene.cache().join("datasets--lab--talk/.danlu_files")).unwrap();
    let mut settings = scene.settings(None);
    settings.offline = true;
    let offline = common::hub(settings);
    assert_eq!(offline.cached_dataset(&dataset("lab/talk")).unwrap().unwrap().files, found.files);
    assert!(matches!(offline.cached_dataset(&dataset("lab/talk:dev")), Err(HubError::NoPart { .. })));
    fs::remove_file(&found.files[0]).unwrap();
    assert_eq!(offline.cached_dataset(&dataset("lab/talk")).unwrap(), None);
    assert!(matches!(pull(&offline, "lab/talk"), Err(HubError::Offline { .. })));
}

#[test]
fn a_lost_connection_resumes_where_it_ended() {
    let scene = scene();
    let big = "{\"text\": \"long\"}\n".repeat(40_000);
    scene.server.model("datasets/lab/big").file("big.jsonl", big.as_bytes()).add();
    scene.server.fault(Fault::on(Method::Get, "big.jsonl").then(Action::CutAfter(100_000)));
    let found = pull(&scene.hub(None), "lab/big").unwrap();
    assert_eq!(texts(&found), [big]);
    assert!(scene.server.requests().iter().any(|request| request.range.is_some()));
}

#[test]
fn hidden_and_gated_data_sets_need_a_token_with_access() {
    let scene = scene();
    scene.server.add_user("lab", "hf_lab");
    scene.server.add_user("guest", "hf_guest");
    scene.server.model("datasets/lab/hidden").private().file("a.jsonl", b"{}").add();
    scene.server.model("datasets/lab/gated").gated(Gate::Manual).file("a.jsonl", b"{}").add();
    let error = |token: Option<&str>, name: &str| pull(&scene.hub(token), name).unwrap_err();
    let missing = error(None, "lab/hidden");
    assert!(missing.to_string().starts_with("cannot find the data set `lab/hidden`"), "{missing}");
    assert!(missing.hint().unwrap().contains("danlu login"));
    let gated = error(Some("hf_guest"), "lab/gated");
    assert!(gated.hint().unwrap().contains("/datasets/lab/gated"), "{gated}");
    for name in ["lab/hidden", "lab/gated"] {
        assert_eq!(pull(&scene.hub(Some("hf_lab")), name).unwrap().files.len(), 1);
    }
    // A model of the same name is another repository.
    scene.server.add_model("lab/only-a-model", &[("config.json", b"{}")]);
    assert!(matches!(error(None, "lab/only-a-model"), HubError::NoModel { .. }));
}

#[test]
fn a_hostile_listing_writes_nothing_outside_the_cache() {
    let scene = scene();
    scene.server.model("datasets/lab/evil").file("../../../evil.jsonl", b"{}").file("a.jsonl", b"{}").add();
    let error = pull(&scene.hub(None), "lab/evil").unwrap_err().to_string();
    assert!(error.contains("leads out of the repository"), "{error}");
    assert!(!scene.cache().join("evil.jsonl").exists());
}

#[test]
fn the_parquet_branch_of_a_script_is_a_revision() {
    let scene = scene();
    let script = scene.server.model("datasets/lab/script").file("script.py", b"import os");
    script.add();
    let error = pull(&scene.hub(None), "lab/script").unwrap_err();
    assert!(error.hint().unwrap().contains("hf:lab/script@refs/convert/parquet"), "{error}");
    scene
        .server
        .model("datasets/lab/script")
        .on("refs/convert/parquet")
        .without("script.py")
        .file("default/train/0000.parquet", b"PAR1")
        .add();
    let found = pull(&scene.hub(None), "lab/script@refs/convert/parquet").unwrap();
    assert_eq!(found.part, "train");
}
