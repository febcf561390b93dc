//! Tests faults during a push. After each fault, a retry makes one commit, or the push returns a clear error
//! without a commit.

mod common;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::push::{Desk, WEIGHTS};
use common::repo;
use danlu_hub::{HubError, PushOptions, Pushed};
use danlu_hub_test_server::{Action, Fault, Host, HubServer, Method, RecordedRequest};
use serde_json::json;

fn on(method: Method, part: &str) -> Fault {
    Fault::on(method, part)
}

fn status(status: u16) -> Action {
    Action::Status(status, Vec::new(), Vec::new())
}

fn busy(seconds: &str) -> Action {
    Action::Status(429, vec![("Retry-After".into(), seconds.into())], Vec::new())
}

/// Starts a server that requires uploads in small parts.
fn in_parts() -> HubServer {
    HubServer::builder().multipart(100_000, 64_000).start().unwrap()
}

/// Asserts that all files were published in one commit.
fn assert_published(desk: &Desk, pushed: &Pushed) {
    desk.assert_whole("me/adapter", "main");
    let commits = desk.server.commits("me/adapter");
    assert_eq!(commits.len(), 2, "{commits:?}");
    assert_eq!(commits[1].id, pushed.commit);
    assert_eq!((pushed.files.len(), pushed.sent), (4, desk.upload_set().size()));
}

#[test]
fn a_fault_at_any_stage_is_retried_and_makes_one_commit() {
    let stages = [
        (Method::Get, "/revision/", Host::Hub),
        (Method::Post, "/repos/create", Host::Hub),
        (Method::Get, "/tree/", Host::Hub),
        (Method::Post, "/preupload/", Host::Hub),
        (Method::Post, "/objects/batch", Host::Hub),
        (Method::Put, "/uploads/", Host::Storage),
        (Method::Post, "/complete_multipart", Host::Hub),
        (Method::Post, "/objects/verify", Host::Hub),
        (Method::Post, "/commit/", Host::Hub),
    ];
    let actions = [
        Action::CutBefore,
        Action::CutUpload(10),
        Action::CutAnswer,
        Action::CutAfter(3),
        status(500),
        status(503),
        busy("0"),
    ];
    for (method, part, host) in stages {
        for action in &actions {
            // A `GET` request has no body that could be interrupted.
            if method == Method::Get && matches!(action, Action::CutUpload(_)) {
                continue;
            }
            let desk = Desk::on(if part == "/complete_multipart" { in_parts() } else { HubServer::start() });
            desk.server.fault(on(method, part).at(host).times(2).then(action.clone()));
            let pushed = desk.push("me/adapter").unwrap_or_else(|error| panic!("{part} {action:?}: {error}"));
            assert_published(&desk, &pushed);
        }
    }
}

#[test]
fn an_interrupted_upload_resumes_by_parts_and_by_files() {
    let desk = Desk::on(in_parts());
    desk.server.fault(on(Method::Put, "/uploads/").after(3).times(3).then(Action::CutUpload(30_000)));
    let pushed = desk.push("me/adapter").unwrap();
    assert_published(&desk, &pushed);
    let puts = desk.server.requests().iter().filter(|request| request.method == "PUT").count();
    assert_eq!(puts, 10 + 3, "no part that had arrived is sent again");

    // After an interrupted push, the next push uploads only what the Hub does not contain.
    let desk = Desk::new();
    let fault = || on(Method::Post, "/commit/").always().then(status(500));
    desk.server.fault(fault());
    assert!(matches!(desk.push("me/adapter").unwrap_err(), HubError::Status { status: 500, .. }));
    assert_eq!(desk.server.commits("me/adapter").len(), 1);
    desk.server.clear_faults();
    desk.server.clear_requests();
    let pushed = desk.push("me/adapter").unwrap();
    desk.assert_whole("me/adapter", "main");
    assert!(desk.server.requests().iter().all(|request| request.method != "PUT"));
    assert_eq!(pushed.sent, desk.upload_set().size() - 2 * WEIGHTS);
}

#[test]
fn an_expired_url_or_upload_is_requested_again() {
    for (fault, batches, puts) in [
        (on(Method::Put, "/uploads/").after(3).then(status(403)), 2, 10 + 1),
        (on(Method::Post, "/complete_multipart").then(status(404)), 2, 10 + 1),
        (on(Method::Post, "/objects/verify").then(status(404)), 2, 10),
    ] {
        let desk = Desk::on(in_parts());
        desk.server.fault(fault);
        let pushed = desk.push("me/adapter").unwrap();
        assert_published(&desk, &pushed);
        let requests = desk.server.requests();
        assert_eq!(requests.iter().filter(|r| r.target.contains("/objects/batch")).count(), batches);
        assert_eq!(requests.iter().filter(|r| r.method == "PUT").count(), puts);
    }
}

#[test]
fn a_permanent_fault_is_an_error_without_a_commit() {
    let cases = [
        (on(Method::Put, "").then(Action::CutUpload(1000)), "cannot reach"),
        (on(Method::Put, "").then(status(500)), "answered 500"),
        (on(Method::Put, "").then(status(403)), "answered 403"),
        (on(Method::Post, "/batch").then(status(502)), "answered 502"),
        (on(Method::Post, "/verify").then(status(500)), "answered 500"),
        (on(Method::Post, "/preupload/").then(Action::CutBefore), "cannot reach"),
        (on(Method::Post, "/preupload/").then(busy("3600")), "requires a wait of 3600 seconds"),
        (on(Method::Post, "/commit/").then(busy("3600")), "requires a wait of 3600 seconds"),
        (on(Method::Post, "/commit/").then(Action::CutBefore), "cannot reach"),
        (on(Method::Post, "/commit/").then(status(412)), "another commit came first on each of 3 attempts"),
        (on(Method::Post, "/commit/").then(status(422)), "rejected the commit"),
    ];
    for (fault, said) in cases {
        let desk = Desk::new();
        desk.server.fault(fault.always());
        let error = desk.push("me/adapter").unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.hint().is_some(), "{error}");
        assert_eq!(desk.server.commits("me/adapter").len(), 1, "{said}");
        desk.server.clear_faults();
        let files = desk.push("me/adapter").unwrap().files;
        assert_eq!(files.len(), 4);
        desk.assert_whole("me/adapter", "main");
        assert_eq!(desk.server.commits("me/adapter").len(), 2, "{said}");
    }
}

#[test]
fn a_commit_with_a_lost_response_is_not_repeated() {
    for action in [Action::CutAnswer, Action::CutAfter(5), Action::Replace(json!({"commitOid": "x"}))] {
        let desk = Desk::new();
        desk.server.fault(on(Method::Post, "/commit/").always().then(action));
        let pushed = desk.push("me/adapter").unwrap();
        assert_published(&desk, &pushed);
    }
    // A pull request has no branch, so the client searches for it in the list of all pull requests.
    let desk = Desk::new();
    desk.server.add_model("she/adapter", &[("README.md", b"hers")]);
    let options = PushOptions { create_pr: true, ..PushOptions::default() };
    let push =
        || desk.hub().push(&desk.upload_set(), &repo("she/adapter"), &options, &mut |_, _| {}).unwrap();
    push();
    desk.server.fault(on(Method::Post, "/commit/").always().then(Action::CutAnswer));
    let pushed = push();
    assert_eq!(pushed.pull_request, Some(format!("{}/she/adapter/discussions/2", desk.server.endpoint())));
    assert_eq!(desk.server.revisions("she/adapter")["refs/pr/2"], pushed.commit);
    assert_eq!(desk.server.commits("she/adapter").len(), 3);
    // The client's limit for a slow response is longer than its limit for a stalled connection.
    desk.server.clear_faults();
    desk.server.clear_requests();
    let late = Duration::from_secs(6);
    desk.server.fault(on(Method::Post, "/commit/").then(Action::Delay(late)));
    let pushed = push();
    assert_eq!(desk.server.revisions("she/adapter")["refs/pr/3"], pushed.commit);
    assert!(!desk.server.revisions("she/adapter").contains_key("refs/pr/4"));
    let asked = desk.server.requests().iter().filter(|request| request.target.contains("/commit/")).count();
    assert_eq!(asked, 1);
}

#[test]
fn a_push_continues_on_top_of_another_commit() {
    let desk = Desk::new();
    desk.server.add_model("me/adapter", &[("README.md", b"older")]);
    desk.server.fault(on(Method::Post, "/commit/").then(Action::Delay(Duration::from_millis(400))));
    let pushed = thread::scope(|scope| {
        let push = scope.spawn(|| desk.push("me/adapter"));
        wait_for(&desk.server, "/commit/");
        desk.server.commit("me/adapter", &[("README.md", b"theirs"), ("notes.md", b"new")]);
        push.join().unwrap().unwrap()
    });
    let commits = desk.server.commits("me/adapter");
    assert_eq!(commits.len(), 3);
    assert_eq!((&commits[2].id, &commits[2].parents[0]), (&pushed.commit, &commits[1].id));
    desk.assert_whole("me/adapter", "main");
    assert_eq!(desk.server.read("me/adapter", "main", "notes.md").unwrap(), b"new");
    let races = desk.server.requests().iter().filter(|request| request.status == Some(412)).count();
    assert_eq!(races, 1, "the commit names the one that it was compared with");
    let puts = desk.server.requests().iter().filter(|request| request.method == "PUT").count();
    assert_eq!(puts, 2, "large files are sent once");
}

#[test]
fn several_large_files_are_uploaded_at_a_time() {
    let desk = Desk::new();
    desk.server.fault(on(Method::Put, "").always().then(Action::Delay(Duration::from_millis(500))));
    thread::scope(|scope| {
        let push = scope.spawn(|| desk.push("me/adapter"));
        let start = Instant::now();
        let is_open = |request: &&RecordedRequest| request.method == "PUT" && request.status.is_none();
        while desk.server.requests().iter().filter(is_open).count() < 2 {
            assert!(start.elapsed() < Duration::from_secs(20) && !push.is_finished(), "one after the other");
            thread::sleep(Duration::from_millis(2));
        }
        push.join().unwrap().unwrap();
    });
}

/// Waits until the server has received a request whose URL contains `part`.
fn wait_for(server: &HubServer, part: &str) {
    let start = Instant::now();
    while !server.requests().iter().any(|request| request.target.contains(part)) {
        assert!(start.elapsed() < Duration::from_secs(20), "no request of `{part}`");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_file_that_changes_during_the_push_stops_it() {
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, &str, Change<'_>); 4] = [
        ("/batch", "adapter_model.safetensors", &|path| fs::write(path, [9; WEIGHTS as usize]).unwrap()),
        ("/batch", "adapter_model.safetensors", &|path| fs::write(path, [7; 1000]).unwrap()),
        ("/batch", "README.md", &|path| fs::write(path, "# another").unwrap()),
        ("/verify", "deep/extra.safetensors", &|path| fs::remove_file(path).unwrap()),
    ];
    for (part, name, change) in cases {
        let desk = Desk::new();
        desk.server.fault(on(Method::Post, part).then(Action::Delay(Duration::from_millis(300))));
        let error = thread::scope(|scope| {
            let push = scope.spawn(|| desk.push("me/adapter"));
            wait_for(&desk.server, part);
            change(&desk.folder().join(name));
            push.join().unwrap().unwrap_err()
        });
        let is_named = |path: &Path| path.ends_with(name);
        match &error {
            HubError::FileChanged { path } => assert!(is_named(path), "{error}"),
            HubError::File(error) => assert!(is_named(&error.path), "{error}"),
            _ => panic!("{name}: {error}"),
        }
        assert_eq!(desk.server.commits("me/adapter").len(), 1);
    }
}

#[test]
fn a_token_without_permission_has_a_hint() {
    let desk = Desk::new();
    desk.server.add_user("she", "hf_hers");
    desk.server.add_read_only_user("me", "hf_reads");
    desk.server.add_model("she/model", &[("x.md", b"x")]);
    let push = |token: Option<&str>, name: &str| {
        let hub = desk.hub_with(token);
        let error =
            hub.push(&desk.upload_set(), &repo(name), &PushOptions::default(), &mut |_, _| {}).unwrap_err();
        let hint = error.hint().unwrap();
        assert!(!format!("{error:?} {hint}").contains("hf_"), "{error:?}");
        (error.to_string(), hint)
    };
    let (text, hint) = push(None, "me/adapter");
    assert_eq!((text.as_str(), hint.as_str()), ("a push to `me/adapter` needs a token", "run `danlu login`"));
    let (text, hint) = push(Some("hf_reads"), "me/adapter");
    assert_eq!(text, "the token of `me` is read-only");
    assert!(hint.contains("settings/tokens"), "{hint}");
    for name in ["she/model", "she/new"] {
        let (text, hint) = push(Some("hf_mine"), name);
        assert_eq!(text, format!("`me` cannot write to `{name}`"));
        assert!(hint.contains(&name.replace("she", "me")), "{hint}");
        // A pull request needs an existing repository.
        assert_eq!(hint.contains("--create-pr"), name == "she/model", "{hint}");
    }
    assert_eq!(desk.server.commits("she/model").len(), 1);
    assert_eq!(desk.server.is_private("she/new"), None);
    assert_eq!(desk.server.is_private("me/adapter"), None);

    // The token expires during the push.
    desk.server.clear_requests();
    desk.server.fault(on(Method::Post, "/batch").then(Action::Delay(Duration::from_millis(300))));
    let error = thread::scope(|scope| {
        let push = scope.spawn(|| desk.push("me/adapter"));
        wait_for(&desk.server, "/preupload/");
        desk.server.expire("hf_mine");
        push.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, HubError::BadToken { .. }), "{error}");
    assert_eq!(desk.server.commits("me/adapter").len(), 1);
}

#[test]
fn a_hostile_server_gets_no_file_and_no_token() {
    let elsewhere = HubServer::start();
    let object = |href: &str, header: serde_json::Value| {
        let oid = "a".repeat(64);
        json!({ "objects": [{ "oid": oid, "actions": { "upload": { "href": href, "header": header } } }] })
    };
    let cases = [
        ("/batch", json!({ "objects": [] }), "no entry for the object"),
        ("/batch", object("x", json!({})), "no entry for the object"),
        ("/batch", json!({ "objects": 7 }), "unexpected response"),
        ("/preupload/", json!({ "files": [] }), "no entry for"),
        (
            "/preupload/",
            json!({ "files": [{ "path": "README.md", "uploadMode": "mail" }] }),
            "unknown upload mode",
        ),
    ];
    for (part, body, said) in cases {
        let desk = Desk::new();
        desk.server.fault(on(Method::Post, part).always().then(Action::Replace(body)));
        let error = desk.push("me/adapter").unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(desk.server.commits("me/adapter").len(), 1);
    }
    // The server returns invalid URLs, too many or too few parts, or URLs of another host.
    let oids: Vec<String> = {
        let desk = Desk::new();
        desk.push("me/adapter").unwrap();
        let hashes = desk.server.hashes("me/adapter", "main");
        ["adapter_model.safetensors", "deep/extra.safetensors"].map(|path| hashes[path].clone()).into()
    };
    let answer = |href: &str, header: &serde_json::Value| {
        let upload = json!({ "href": href, "header": header });
        let objects: Vec<_> =
            oids.iter().map(|oid| json!({ "oid": oid, "actions": { "upload": upload } })).collect();
        json!({ "objects": objects })
    };
    let there = format!("{}/put", elsewhere.endpoint());
    for (href, header, said) in [
        ("file:///etc/x", json!({}), "is invalid"),
        ("/relative", json!({}), "is invalid"),
        (&there, json!({ "chunk_size": "0" }), "no size for the parts"),
        (&there, json!({ "chunk_size": 1, "1": there }), "1 URLs for the 300000 parts"),
        (&there, json!({ "chunk_size": "300000", "2": there }), "1 URLs for the 1 parts"),
        (&there, json!({ "chunk_size": "300000", "1": "ftp://x" }), "is invalid"),
        (&there, json!({ "Content-Length": "1", "X-Extra": "y" }), "answered 404"),
    ] {
        let desk = Desk::new();
        desk.server.fault(on(Method::Post, "/batch").always().then(Action::Replace(answer(href, &header))));
        let error = desk.push("me/adapter").unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(desk.server.commits("me/adapter").len(), 1);
    }
    let requests = elsewhere.requests();
    assert!(!requests.is_empty() && requests.iter().all(|request| request.authorization.is_none()));
}
