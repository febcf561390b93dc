//! Tests accidental and hostile faults during downloads. After each fault, the download succeeds on a retry,
//! or returns a clear error. The cache is never corrupt.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{READ, Scene, hub, names, repo};
use danlu_hub::{FetchScope, HubError, HubSettings};
use danlu_hub_test_server::{Action, Fault, Gate, Host, Method};
use serde_json::json;

const WEIGHTS: u64 = 300_000;

/// Asserts that the cache contains the complete model and no partial file.
fn assert_whole(scene: &Scene) {
    let name = repo("lab/model");
    let folder = scene.hub(None).cached_folder(&name, FetchScope::Full).unwrap().expect("it is in the cache");
    assert_eq!(names(&folder), READ);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), [7; WEIGHTS as usize]);
    assert!(scene.blobs().iter().all(|blob| !blob.contains('.')), "{:?}", scene.blobs());
}

/// Asserts that no damaged or partial file has its final name.
fn assert_nothing_false(scene: &Scene) {
    assert!(scene.hub(None).cached_folder(&repo("lab/model"), FetchScope::Full).unwrap().is_none());
    for blob in scene.blobs().iter().filter(|blob| !blob.ends_with(".incomplete")) {
        let len = fs::metadata(scene.cache().join("models--lab--model/blobs").join(blob)).unwrap().len();
        assert!(len < WEIGHTS, "{blob}");
    }
}

#[test]
fn lost_connections_and_server_errors_are_retried() {
    let busy = Action::Status(429, vec![("Retry-After".into(), "0".into())], Vec::new());
    let faults = [
        Fault::on(Method::Get, "/revision/").times(2).then(Action::CutBefore),
        Fault::on(Method::Get, "/revision/").times(3).then(Action::Status(503, Vec::new(), Vec::new())),
        Fault::on(Method::Get, "/revision/").then(Action::CutAfter(10)),
        Fault::on(Method::Get, "/tree/").times(2).then(busy.clone()),
        Fault::on(Method::Get, "/tree/").then(Action::CutAfter(10)),
        Fault::on(Method::Get, "/resolve/").times(3).then(Action::CutBefore),
        Fault::on(Method::Get, "/resolve/").times(2).then(busy),
        Fault::on(Method::Get, "").at(Host::Storage).times(2).then(Action::CutBefore),
        Fault::on(Method::Get, "").at(Host::Storage).then(Action::CutAfter(100_000)),
        Fault::on(Method::Get, "").at(Host::Storage).then(Action::CutAfter(0)),
        Fault::on(Method::Get, "").at(Host::Storage).then(Action::Shorten(100_000)),
        Fault::on(Method::Get, "").at(Host::Storage).then(Action::Corrupt),
        Fault::on(Method::Get, "/resolve/").then(Action::Corrupt),
    ];
    for (i, fault) in faults.into_iter().enumerate() {
        let scene = Scene::new();
        scene.server.fault(fault);
        scene.pull("lab/model").unwrap_or_else(|error| panic!("{i}: {error}"));
        assert_whole(&scene);
    }
}

#[test]
fn an_interrupted_download_resumes() {
    let scene = Scene::new();
    // Each attempt receives new bytes, so ten interruptions do not use up the attempts.
    scene.server.fault(Fault::on(Method::Get, "").at(Host::Storage).times(10).then(Action::CutAfter(20_000)));
    scene.pull("lab/model").unwrap();
    assert_whole(&scene);
    let ranges: Vec<_> =
        scene.server.requests().into_iter().filter(|r| r.host == Host::Storage).map(|r| r.range).collect();
    assert_eq!(ranges.len(), 11);
    assert!(ranges[1..].iter().all(Option::is_some), "{ranges:?}");
}

#[test]
fn a_download_of_another_process_resumes() {
    for (left, taken) in [(vec![7; 100_000], true), (vec![9; 100_000], false), (vec![7; 400_000], false)] {
        let scene = Scene::new();
        let hash = &scene.server.hashes("lab/model", "main")["model.safetensors"];
        let blobs = scene.cache().join("models--lab--model/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{hash}.incomplete")), &left).unwrap();
        let pulled = scene.pull("lab/model").unwrap();
        assert_whole(&scene);
        let sent: u64 =
            scene.server.requests().iter().filter(|r| r.host == Host::Storage).map(|r| r.sent).sum();
        assert_eq!(sent < WEIGHTS, taken, "{sent}");
        assert!(pulled.fetched <= pulled.bytes);
    }
}

#[test]
fn a_permanent_fault_is_an_error_and_leaves_no_wrong_file() {
    let always = |fault: Fault, action| fault.always().then(action);
    let storage = || Fault::on(Method::Get, "").at(Host::Storage);
    let cases = [
        (always(storage(), Action::Corrupt), "has the checksum"),
        (always(storage(), Action::CutAfter(0)), "after 0 of 300000 bytes"),
        (always(storage(), Action::Shorten(0)), "after 0 of"),
        (
            always(storage(), Action::Status(403, Vec::new(), Vec::new())),
            "denied the request and gave no reason",
        ),
        (
            always(Fault::on(Method::Get, "/tree/"), Action::Status(500, Vec::new(), Vec::new())),
            "answered 500",
        ),
        (always(Fault::on(Method::Get, "/revision/"), Action::CutBefore), "cannot reach 127.0.0.1"),
        (
            always(
                Fault::on(Method::Get, "/revision/"),
                Action::Status(429, vec![("Retry-After".into(), "3600".into())], Vec::new()),
            ),
            "requires a wait of 3600 seconds",
        ),
        (
            always(
                Fault::on(Method::Get, "/revision/"),
                Action::Status(
                    503,
                    vec![
                        ("Date".into(), "Sun, 06 Nov 1994 08:49:37 GMT".into()),
                        ("Retry-After".into(), "Sun, 06 Nov 1994 09:49:37 GMT".into()),
                    ],
                    Vec::new(),
                ),
            ),
            "requires a wait of 3600 seconds",
        ),
    ];
    for (fault, said) in cases {
        let scene = Scene::new();
        scene.server.fault(fault);
        let error = scene.pull("lab/model").unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.hint().is_some() && !error.to_string().contains("too many"), "{error}");
        assert_nothing_false(&scene);
        scene.server.clear_faults();
        scene.pull("lab/model").unwrap();
        assert_whole(&scene);
    }
}

#[test]
fn a_server_that_always_restarts_is_given_up() {
    let scene = Scene::new();
    // The server ignores ranges and interrupts each response. Every second attempt receives more bytes than
    // the attempt before.
    for i in 0..40 {
        let whole = Action::Status(200, Vec::new(), vec![7; WEIGHTS as usize]);
        let cut = Action::CutAfter(if i % 2 == 0 { 100_000 } else { 200_000 });
        scene.server.fault(Fault::on(Method::Get, "").at(Host::Storage).then(whole).then(cut));
    }
    let error = scene.pull("lab/model").unwrap_err();
    assert!(error.to_string().contains("of 300000 bytes"), "{error}");
    let attempts = scene.server.requests().iter().filter(|request| request.host == Host::Storage).count();
    assert_eq!(attempts, 5, "the first, and four times anew");
    scene.server.clear_faults();
    scene.pull("lab/model").unwrap();
    assert_whole(&scene);
}

#[test]
fn a_failed_file_stops_the_other_downloads() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}"#;
    let scene = Scene::new();
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", &[1; 100]),
        ("model-2.safetensors", &[2; 100]),
        ("model-3.safetensors", &[3; 100]),
    ];
    scene.server.add_model("lab/shards", &files);
    // The first download fails. At that time, the second download waits for ten minutes, and the third waits
    // for a lock of another process.
    let wait = vec![("Retry-After".into(), "600".into())];
    scene.server.fault(Fault::on(Method::Get, "model-2").always().then(Action::Status(
        503,
        wait,
        Vec::new(),
    )));
    let fails = Fault::on(Method::Get, "model-1").always().then(Action::Delay(Duration::from_millis(300)));
    scene.server.fault(fails.then(Action::Status(403, Vec::new(), Vec::new())));
    let hash = &scene.server.hashes("lab/shards", "main")["model-3.safetensors"];
    let locks = scene.cache().join(".locks/models--lab--shards");
    fs::create_dir_all(&locks).unwrap();
    let lock = fs::File::create(locks.join(format!("{hash}.lock"))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let policy =
        danlu_hub::RetryPolicy { max_wait: Duration::from_secs(3600), ..danlu_hub::RetryPolicy::default() };
    let start = std::time::Instant::now();
    let hub = danlu_hub::Hub::with_retry_policy(scene.settings(None), policy);
    let error = hub.pull(&repo("lab/shards"), FetchScope::Full, &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Forbidden { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(60), "somebody was waited for");
}

#[test]
fn a_stalled_server_is_given_up() {
    let scene = Scene::new();
    scene.server.fault(Fault::on(Method::Get, "/revision/").then(Action::Delay(Duration::from_secs(60))));
    let settings = scene.settings(None);
    let policy = danlu_hub::RetryPolicy {
        attempts: 2,
        pause: Duration::from_millis(5),
        max_wait: Duration::from_secs(1),
        stall: Duration::from_millis(200),
        min_rate: 0,
    };
    let hub = danlu_hub::Hub::with_retry_policy(settings, policy);
    hub.pull(&repo("lab/model"), FetchScope::Full, &mut |_| {}).unwrap();
    assert_whole(&scene);
}

/// The first server sends nothing. The second server sends its headers one byte at a time.
#[test]
fn a_server_without_complete_headers_is_given_up_after_three_attempts() {
    for drips in [false, true] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (send, connections) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if send.send(()).is_err() {
                    return;
                }
                std::thread::spawn(move || {
                    let mut stream = stream;
                    for byte in b"HTTP/1.1 200 OK\r\nx: ".iter().chain(std::iter::repeat(&b'y')) {
                        std::thread::sleep(Duration::from_millis(20));
                        if drips && std::io::Write::write_all(&mut stream, &[*byte]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let scene = Scene::new();
        let settings = danlu_hub::HubSettings { endpoint: endpoint.parse().unwrap(), ..scene.settings(None) };
        let policy = danlu_hub::RetryPolicy {
            pause: Duration::from_millis(5),
            stall: Duration::from_millis(300),
            ..danlu_hub::RetryPolicy::default()
        };
        let hub = danlu_hub::Hub::with_retry_policy(settings, policy);
        let error = hub.pull(&repo("lab/model"), FetchScope::Full, &mut |_| {}).unwrap_err();
        assert!(error.to_string().ends_with(": no response"), "{error}");
        assert_eq!(connections.try_iter().count(), 3);
    }
}

#[test]
fn an_account_never_contains_the_token() {
    let scene = Scene::new();
    scene.server.add_user("me", "hf_mine");
    let account = json!({
        "name": "hf_mine", "orgs": [{"name": "the hf_mine"}],
        "auth": {"accessToken": {"displayName": "HF_MINE", "role": "hf_mine"}},
    });
    scene.server.fault(Fault::on(Method::Get, "/whoami-v2").then(Action::Replace(account)));
    let account = format!("{:?}", scene.hub(Some("hf_mine")).whoami().unwrap());
    assert!(!account.to_lowercase().contains("hf_mine"), "{account}");
}

#[test]
fn a_server_that_sends_single_bytes_is_given_up() {
    let scene = Scene::new();
    scene.server.fault(Fault::on(Method::Get, "").at(Host::Storage).always().then(Action::Throttle(50)));
    let start = std::time::Instant::now();
    let error = scene.pull("lab/model").unwrap_err();
    assert!(matches!(error, HubError::Cut { .. }), "{error}");
    assert!(error.to_string().contains("bytes a second"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30));
    // The bytes that arrived are not deleted, and the next pull resumes.
    scene.server.clear_faults();
    scene.pull("lab/model").unwrap();
    assert_whole(&scene);
}

#[test]
fn every_refusal_has_a_hint() {
    let scene = Scene::new();
    scene.server.add_user("me", "hf_mine");
    scene.server.add_user("she", "hf_hers");
    scene.server.model("she/gated").gated(Gate::Manual).file("config.json", b"{}").add();
    scene.server.model("she/private").private().file("config.json", b"{}").add();
    let pull = |token: Option<&str>, name: &str| {
        let error = scene.hub(token).pull(&repo(name), FetchScope::Full, &mut |_| {}).unwrap_err();
        (error.to_string(), error.hint().unwrap_or_default())
    };
    let host = scene.server.endpoint().replace("http://", "");

    let (text, hint) = pull(None, "lab/none");
    assert_eq!(text, format!("cannot find the model `lab/none` at {host}"));
    assert!(hint.contains("danlu login"), "{hint}");
    let (text, hint) = pull(Some("hf_mine"), "she/private");
    assert_eq!(text, format!("cannot find the model `she/private` at {host} with this account"));
    assert!(hint.contains("danlu whoami"), "{hint}");
    let (text, hint) = pull(None, "lab/model@v9");
    assert_eq!(text, "`lab/model` has no revision `v9`");
    assert!(hint.contains("@v9"), "{hint}");
    let page = format!("{}/she/gated", scene.server.endpoint());
    let (text, hint) = pull(None, "she/gated");
    assert!(text.starts_with("`she/gated` is gated") && hint.contains(&page), "{text} {hint}");
    assert!(hint.contains("danlu login"), "{hint}");
    let (text, hint) = pull(Some("hf_mine"), "she/gated");
    assert!(text.contains("has no access yet") && hint.contains(&page), "{text} {hint}");

    scene.server.expire("hf_mine");
    let (text, hint) = pull(Some("hf_mine"), "lab/model");
    assert_eq!(text, format!("{host} rejected the token"));
    assert!(hint.contains("danlu login"), "{hint}");
    let error = scene.hub(Some("hf_mine")).whoami().unwrap_err();
    assert!(matches!(error, HubError::BadToken { .. }) && !format!("{error:?}").contains("hf_mine"));
    assert!(matches!(scene.hub(None).whoami().unwrap_err(), HubError::NoToken { .. }));
}

#[test]
fn a_hostile_server_places_no_file() {
    let entry =
        |path: &str, size: u64, oid: &str| json!([{"type": "file", "path": path, "size": size, "oid": oid}]);
    let oid = "a".repeat(40);
    // Expected value: `git hash-object` of the test server's file.
    let config = "230d5f4da0da586aad26ead694ea67cd15bd6df1";
    let many = (0..=100_000).map(|i| json!({"type": "file", "path": format!("{i}"), "size": 1, "oid": oid}));
    let many = many.collect::<Vec<_>>().into();
    let long = "x".repeat(5000);
    let cases = [
        ("/revision/", json!({"sha": "../../../../etc"}), "the commit is not"),
        ("/revision/", json!({"sha": 7}), "unexpected response"),
        ("/revision/", json!([]), "unexpected response"),
        ("/tree/", entry("../../../evil", 5, &oid), "no safetensors weights"),
        ("/tree/", entry("/etc/passwd", 5, &oid), "no safetensors weights"),
        ("/tree/", entry("config.json", 5, "../../x"), "no valid checksum"),
        ("/tree/", entry("config.json", u64::MAX / 2, &oid), "expected at most 16777216"),
        (
            "/tree/",
            entry("tokenizer.json", 300 << 20, &oid),
            "has 314572800 bytes, expected at most 268435456",
        ),
        ("/tree/", entry(&long, 5, &oid), "a path of 5000 bytes, expected at most 4096"),
        ("/tree/", many, "a listing of 100001 files and more, expected at most 100000"),
        (
            "/tree/",
            json!([
                {"type": "file", "path": "config.json", "size": 23, "oid": config},
                {"type": "file", "path": "model.safetensors", "size": u64::MAX / 2, "oid": oid},
            ]),
            "needs",
        ),
        ("/tree/", json!({"type": "file"}), "unexpected response"),
    ];
    for (part, body, said) in cases {
        let scene = Scene::new();
        scene.server.fault(Fault::on(Method::Get, part).always().then(Action::Replace(body)));
        // The path is deep, so that even a path that leads out of the cache is inside the inspected folder.
        let cache = scene.home.path().join("a/b/c/d/e/f/hub");
        let hub = hub(HubSettings { cache: cache.clone(), ..scene.settings(None) });
        let error = hub.pull(&repo("lab/model"), FetchScope::Full, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        let ours = [cache.join("models--lab--model"), cache.join(".locks/models--lab--model")];
        for file in files_below(scene.home.path()) {
            assert!(ours.iter().any(|ours| file.starts_with(ours)), "{}", file.display());
            let of_snapshot = file.strip_prefix(ours[0].join("snapshots"));
            assert!(of_snapshot.is_err() || file.ends_with("config.json"), "{}", file.display());
        }
        assert!(hub.cached_folder(&repo("lab/model"), FetchScope::Full).unwrap().is_none());
    }
    // The index contains a path outside of the repository.
    let scene = Scene::new();
    let index: &[u8] = br#"{"weight_map": {"a": "../../../../evil.safetensors"}}"#;
    scene.server.commit("lab/model", &[("model.safetensors.index.json", index)]);
    let error = scene.pull("lab/model").unwrap_err();
    assert!(error.to_string().contains("is not an index of shards"), "{error}");
}

#[test]
fn a_listing_continues_only_at_the_endpoint() {
    let (scene, other) = (Scene::new(), Scene::new());
    for (to, is_taken) in [
        (format!("{}/api/models/lab/model/tree/x", other.server.endpoint()), false),
        (format!("{}/x", other.server.endpoint().replace("http:", "https:")), false),
        ("ftp://x/y".to_owned(), false),
        ("//x/y".to_owned(), false),
        // A mirror may return URLs of the Hub. The client then sends the request to the mirror, which has no
        // such page.
        ("https://huggingface.co/api/models/lab/model/tree/x".to_owned(), true),
        ("/api/models/lab/model/tree/x".to_owned(), true),
    ] {
        scene.server.clear_requests();
        let link = Action::Header("Link".to_owned(), format!("<{to}>; rel=\"next\""));
        scene.server.fault(Fault::on(Method::Get, "/tree/").then(link));
        let error = scene.pull("lab/model").unwrap_err().to_string();
        assert_eq!(!error.contains("the listing continues at"), is_taken, "{error}");
        assert_eq!(scene.server.requests().last().unwrap().target.ends_with("/tree/x"), is_taken, "{to}");
        assert!(other.server.requests().is_empty());
    }
}

#[test]
fn all_pages_of_a_listing_share_one_limit() {
    let scene = Scene::new();
    // The server returns an endless number of pages. Each page is below the size limit of a response.
    let link = format!("<{}/api/models/lab/model/tree/x>; rel=\"next\"", scene.server.endpoint());
    let page = format!("[{}]", " ".repeat(20 << 20)).into_bytes();
    let page = Action::Status(200, vec![("Link".to_owned(), link)], page);
    scene.server.fault(Fault::on(Method::Get, "/tree/").always().then(page));
    let error = scene.pull("lab/model").unwrap_err().to_string();
    assert!(error.contains("a response of more than"), "{error}");
    assert_eq!(scene.server.requests().iter().filter(|request| request.target.contains("/tree/")).count(), 4);
}

#[test]
fn a_slowly_dripping_response_is_given_up() {
    let scene = Scene::new();
    let folder = scene.pull("lab/model").unwrap().folder;
    scene.server.fault(Fault::on(Method::Get, "/tree/").always().then(Action::Throttle(4)));
    let start = std::time::Instant::now();
    let error = scene.pull("lab/model").unwrap_err().to_string();
    assert!(error.contains("an incomplete response after 4 seconds"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let hub = danlu_hub::Hub::new(scene.settings(None));
    let start = std::time::Instant::now();
    assert!(hub.fetch_missing_files(&repo("lab/model"), &folder).is_err());
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
}

#[test]
fn a_long_wait_is_reported() {
    let scene = Scene::new();
    let wait = vec![("Retry-After".into(), "3".into())];
    scene.server.fault(Fault::on(Method::Get, "/revision/").then(Action::Status(429, wait, Vec::new())));
    // Waits that the client chooses itself are not reported.
    scene.server.fault(Fault::on(Method::Get, "/tree/").times(3).then(Action::CutBefore));
    let policy =
        danlu_hub::RetryPolicy { max_wait: Duration::from_secs(10), ..danlu_hub::RetryPolicy::default() };
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let hub = danlu_hub::Hub::with_retry_policy(scene.settings(None), policy).on_wait(move |_, left, of| {
        tell.lock().unwrap().send((left.as_secs(), of.as_secs())).unwrap();
    });
    hub.pull(&repo("lab/model"), FetchScope::Full, &mut |_| {}).unwrap();
    drop(hub);
    assert_eq!(told.iter().collect::<Vec<_>>(), [(3, 3), (2, 3), (1, 3), (0, 3)]);
}

#[test]
fn a_refusal_of_the_storage_host_is_not_one_of_the_hub() {
    for (status, token) in [(401, None), (401, Some("hf_mine")), (404, None)] {
        let scene = Scene::new();
        scene.server.add_user("me", "hf_mine");
        let refusal = Action::Status(status, Vec::new(), Vec::new());
        scene.server.fault(Fault::on(Method::Get, "").at(Host::Storage).always().then(refusal));
        let error = scene.hub(token).pull(&repo("lab/model"), FetchScope::Full, &mut |_| {}).unwrap_err();
        assert!(
            matches!(&error, HubError::Status { host, .. }
            if !scene.server.endpoint().ends_with(host)),
            "{error}"
        );
    }
}

#[test]
fn a_token_repeated_by_a_server_is_redacted() {
    const TOKEN: &str = "hf_mineAlone";
    let error = |fault: Fault| {
        let scene = Scene::new();
        scene.server.add_user("me", TOKEN);
        scene.server.fault(fault);
        let error =
            scene.hub(Some(TOKEN)).pull(&repo("lab/model"), FetchScope::Full, &mut |_| {}).unwrap_err();
        let text = format!("{error} {error:?} {}", error.hint().unwrap_or_default());
        assert!(!text.to_lowercase().contains(&TOKEN.to_lowercase()), "{text}");
        text
    };
    let on = |part: &str, action| Fault::on(Method::Get, part).always().then(action);
    let said = vec![("x-error-message".to_owned(), format!("no {TOKEN} here"))];
    assert!(error(on("/revision/", Action::Status(403, said, Vec::new()))).contains("no (the token) here"));
    let body = json!({"error": TOKEN}).to_string().into_bytes();
    error(on("/revision/", Action::Status(418, Vec::new(), body)));
    assert!(error(on("/revision/", Action::Replace(json!(TOKEN)))).contains("(the token)"));
    error(on("/revision/", Action::RedirectTo(format!("http://{TOKEN}.invalid/"))));
    error(on("/tree/", Action::Replace(json!([{"type": "file", "path": TOKEN, "size": 1, "oid": TOKEN}]))));
    let path = format!("{TOKEN}.bin");
    error(on(
        "/tree/",
        Action::Replace(json!([{"type": "file", "path": path, "size": 1, "oid": "a".repeat(40)}])),
    ));
    error(on("/tree/", Action::Header("Link".into(), format!("</{TOKEN}>; rel=\"next\""))));
}

/// Returns every file and link below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let below = entries.flat_map(|entry| match entry.file_type().unwrap().is_dir() {
        true => files_below(&entry.path()),
        false => vec![entry.path()],
    });
    below.collect()
}

#[test]
fn redirects_are_bounded_and_get_no_token() {
    let other = Scene::new();
    let scene = Scene::new();
    scene.server.add_user("me", "hf_mine");
    let to = format!("{}/elsewhere", other.server.endpoint());
    scene.server.fault(Fault::on(Method::Get, "/revision/").always().then(Action::RedirectTo(to)));
    let hub_ = scene.hub(Some("hf_mine"));
    assert!(hub_.pull(&repo("lab/model"), FetchScope::Full, &mut |_| {}).is_err());
    let there = other.server.requests();
    assert!(!there.is_empty() && there.iter().all(|request| request.authorization.is_none()), "{there:?}");

    scene.server.clear_faults();
    let around = format!("{}/api/models/lab/model/revision/main", scene.server.endpoint());
    scene.server.fault(Fault::on(Method::Get, "/revision/").always().then(Action::RedirectTo(around)));
    let error = scene.pull("lab/model").unwrap_err();
    assert!(error.to_string().contains("more than 5 redirects"), "{error}");
    for to in ["file:///etc/passwd", "ftp://x/y"] {
        scene.server.clear_faults();
        scene.server.fault(Fault::on(Method::Get, "/revision/").always().then(Action::RedirectTo(to.into())));
        let error = scene.pull("lab/model").unwrap_err();
        assert!(error.to_string().contains("an invalid URL"), "{error}");
    }
}

#[test]
fn a_file_larger_than_its_listing_is_rejected() {
    let scene = Scene::new();
    scene.server.fault(Fault::on(Method::Get, "/tree/").always().then(Action::Replace(json!([
        {"type": "file", "path": "config.json", "size": 3, "oid": "b".repeat(40)},
    ]))));
    let error = scene.pull("lab/model").unwrap_err();
    assert!(error.to_string().contains("more than the 3 bytes"), "{error}");
    assert_nothing_false(&scene);
}

#[test]
fn an_unknown_host_is_an_error_with_a_hint() {
    let scene = Scene::new();
    let endpoint = "http://127.0.0.1:9".parse().unwrap();
    let error = hub(HubSettings { endpoint, ..scene.settings(None) })
        .pull(&repo("lab/model"), FetchScope::Full, &mut |_| {})
        .unwrap_err();
    assert!(error.to_string().starts_with("cannot reach 127.0.0.1:9"), "{error}");
    assert!(error.hint().unwrap().contains("HF_ENDPOINT"));
    // Without a network, the client returns an error after a short time.
    let endpoint = "http://hub.invalid".parse().unwrap();
    let start = std::time::Instant::now();
    let error = danlu_hub::Hub::new(HubSettings { endpoint, ..scene.settings(None) })
        .pull(&repo("lab/model"), FetchScope::Full, &mut |_| {})
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot reach hub.invalid: the host is unknown, or there is no network");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
