//! Tests that a killed push leaves the repository unchanged or complete, and that the next push resumes.

mod common;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::push::Desk;
use common::repo;
use danlu_hub::{Hub, HubSettings, PushOptions, UploadOptions, UploadSet};
use danlu_hub_test_server::{Action, Fault, HubServer, Method};

/// Environment variable with the folder for the process that is killed.
const FOLDER: &str = "DANLU_TEST_PUSHED_FOLDER";

#[test]
#[ignore = "the process that `a_killed_push_publishes_all_or_nothing_and_resumes` kills"]
fn is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let upload_set = UploadSet::from_folder(folder.as_ref(), &UploadOptions::default()).unwrap();
    let hub = Hub::new(HubSettings::from_env().unwrap());
    hub.push(&upload_set, &repo("me/adapter"), &PushOptions::default(), &mut |_, _| {}).unwrap();
}

#[test]
fn a_killed_push_publishes_all_or_nothing_and_resumes() {
    for (method, part) in [
        (Method::Post, "/repos/create"),
        (Method::Post, "/preupload/"),
        (Method::Post, "/objects/batch"),
        (Method::Put, "/uploads/"),
        (Method::Post, "/complete_multipart"),
        (Method::Post, "/objects/verify"),
        (Method::Post, "/commit/"),
    ] {
        let desk = Desk::on(HubServer::builder().multipart(100_000, 64_000).start().unwrap());
        desk.server.fault(Fault::on(method, part).then(Action::Delay(Duration::from_millis(200))));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["is_killed", "--exact", "--ignored"])
            .env("HF_ENDPOINT", desk.server.endpoint())
            .env("HF_HOME", desk.home.path())
            .env("HF_TOKEN", "hf_mine")
            .env(FOLDER, desk.folder())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !desk.server.requests().iter().any(|request| request.target.contains(part)) {
            assert!(start.elapsed() < Duration::from_secs(20), "no request of `{part}`");
            thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "{part}: it was done before it was killed");
        let half = |commit: &danlu_hub_test_server::CommitInfo| (2..5).contains(&commit.files.len());
        // The server may still complete a request that it received before the kill, so the check is repeated.
        for _ in 0..40 {
            assert!(!desk.server.commits("me/adapter").iter().any(half), "{part}");
            thread::sleep(Duration::from_millis(10));
        }
        desk.push("me/adapter").unwrap();
        desk.assert_whole("me/adapter", "main");
        let commits = desk.server.commits("me/adapter");
        assert_eq!(commits.len(), 2, "{part}: {commits:?}");
    }
}
