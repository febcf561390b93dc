//! Checks responses, headers and faults byte by byte over sockets, without a client library.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use danlu_hub_test_server::{Action, Fault, Gate, Host, HubServer, Method};
use serde_json::{Value, json};

/// Status, headers and body of a response. The names of the headers are in lower case.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn length(&self) -> usize {
        self.header("content-length").parse().unwrap()
    }
}

/// Sends one request on a new connection, and reads until the connection ends. Returns `None` if there is no
/// response.
fn ask(url: &str, method: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Answer> {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let mut text = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    // The server may close the connection before it has read the body.
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(body));
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_lowercase(), value.to_owned())
    });
    Some(Answer { status, headers: headers.collect(), body: bytes[end + 4..].to_vec() })
}

fn get(server: &HubServer, path: &str) -> Answer {
    ask(&format!("{}{path}", server.endpoint()), "GET", &[], b"").unwrap()
}

fn post(server: &HubServer, path: &str, body: &str) -> Answer {
    let url = format!("{}{path}", server.endpoint());
    ask(&url, "POST", &[("Authorization", "Bearer hf_zhen")], body.as_bytes()).unwrap()
}

fn server() -> HubServer {
    let server = HubServer::start();
    server.add_user("zhen", "hf_zhen");
    server.add_model("zhen/m", &[("a.txt", b"0123456789"), ("w.safetensors", b"weights of a model")]);
    server
}

const WEIGHTS: &str = "/zhen/m/resolve/main/w.safetensors";

#[test]
fn a_small_file_comes_itself_with_its_commit_and_tag() {
    let server = server();
    let answer = get(&server, "/zhen/m/resolve/main/a.txt");
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"0123456789"[..]));
    assert_eq!(answer.header("x-repo-commit"), server.commits("zhen/m")[0].id);
    // Expected value: `git hash-object`.
    assert_eq!(answer.header("etag"), "\"ad471007bd7f5983d273b9584e5629230150fd54\"");
    let part = ask(
        &format!("{}/zhen/m/resolve/main/a.txt", server.endpoint()),
        "GET",
        &[("Range", "bytes=7-")],
        b"",
    )
    .unwrap();
    assert_eq!((part.status, part.body.as_slice()), (206, &b"789"[..]));
    assert_eq!(part.header("content-range"), "bytes 7-9/10");
    let none = ask(
        &format!("{}/zhen/m/resolve/main/a.txt", server.endpoint()),
        "GET",
        &[("Range", "bytes=10-")],
        b"",
    )
    .unwrap();
    assert_eq!((none.status, none.header("content-range")), (416, "bytes */10"));
}

#[test]
fn a_large_file_is_at_the_storage_host_behind_a_signature_and_without_a_token() {
    let server = server();
    let answer = get(&server, WEIGHTS);
    assert_eq!((answer.status, answer.length(), answer.header("x-linked-size")), (302, 0, "18"));
    let location = answer.header("location").to_owned();
    assert!(location.starts_with(&server.storage_endpoint()), "{location}");
    let whole = ask(&location, "GET", &[], b"").unwrap();
    assert_eq!((whole.status, whole.body.as_slice()), (200, &b"weights of a model"[..]));
    assert_eq!(answer.header("x-linked-etag"), whole.header("etag"));
    let part = ask(&location, "GET", &[("Range", "bytes=0-6")], b"").unwrap();
    assert_eq!((part.status, part.body.as_slice()), (206, &b"weights"[..]));
    let head = ask(&location, "HEAD", &[], b"").unwrap();
    assert_eq!((head.status, head.length(), head.body.len()), (200, 18, 0));
    let forged = location.replace("Signature=", "Signature=0");
    assert_eq!(ask(&forged, "GET", &[], b"").unwrap().status, 403);
    assert_eq!(ask(&location, "GET", &[("Authorization", "Bearer hf_zhen")], b"").unwrap().status, 400);
    let told = server.requests();
    assert_eq!(told.last().unwrap().authorization.as_deref(), Some("Bearer hf_zhen"));
    assert_eq!((told[0].host, told[1].host, told[1].sent), (Host::Hub, Host::Storage, 18));
}

#[test]
fn refusals_carry_the_code_that_clients_go_by() {
    let server = server();
    server.model("zhen/gated").gated(Gate::Manual).file("a.txt", b"a").add();
    for (path, status, code) in [
        ("/zhen/none/resolve/main/a.txt", 401, "RepoNotFound"),
        ("/zhen/m/resolve/none/a.txt", 404, "RevisionNotFound"),
        ("/zhen/m/resolve/main/none", 404, "EntryNotFound"),
        ("/zhen/gated/resolve/main/a.txt", 401, "GatedRepo"),
        ("/api/models/zhen/m/revision/none", 404, "RevisionNotFound"),
    ] {
        let answer = get(&server, path);
        assert_eq!((answer.status, answer.header("x-error-code")), (status, code), "{path}");
        assert_ne!(answer.header("x-error-message"), "", "{path}");
    }
    let url = format!("{}/zhen/m/resolve/main/a.txt", server.endpoint());
    let ask = |token: &str| ask(&url, "GET", &[("Authorization", token)], b"").unwrap().status;
    assert_eq!((ask("Bearer hf_none"), ask("Bearer hf_zhen")), (401, 200));
    server.expire("hf_zhen");
    assert_eq!(ask("Bearer hf_zhen"), 401);
}

#[test]
fn a_tree_comes_in_pages_with_every_entry_once() {
    let server = HubServer::builder().page(2).start().unwrap();
    server.add_model("zhen/m", &[("a.txt", b"a"), ("b/c.txt", b"c"), ("b/d/e.txt", b"e"), ("f.txt", b"f")]);
    let mut next = format!("{}/api/models/zhen/m/tree/main?recursive=true", server.endpoint());
    let mut paths = Vec::new();
    loop {
        let page = ask(&next, "GET", &[], b"").unwrap();
        let entries = page.json().as_array().unwrap().clone();
        assert!(entries.len() <= 2);
        paths.extend(entries.iter().map(|entry| entry["path"].as_str().unwrap().to_owned()));
        match page.header("link").split_once('>') {
            Some((link, _)) => next = link.trim_start_matches('<').to_owned(),
            None => break,
        }
    }
    assert_eq!(paths, ["a.txt", "b", "b/c.txt", "b/d", "b/d/e.txt", "f.txt"]);
}

#[test]
fn today_s_hub_sends_small_files_to_a_second_address() {
    let server = HubServer::builder().resolve_cache(true).start().unwrap();
    let commit = server.add_model("zhen/m", &[("a b.txt", b"text")]);
    let answer = get(&server, "/zhen/m/resolve/main/a%20b.txt");
    assert_eq!((answer.status, answer.header("x-repo-commit")), (307, commit.as_str()));
    let location = answer.header("location");
    assert!(location.starts_with("/api/resolve-cache/models/zhen/m/"), "{location}");
    let found = get(&server, location);
    assert_eq!((found.status, found.body.as_slice()), (200, &b"text"[..]));
    assert_eq!(found.header("etag"), answer.header("x-linked-etag"));
}

/// Returns the body of a commit that adds one regular file.
fn commit(parent: Option<&str>, path: &str) -> String {
    let header =
        json!({ "key": "header", "value": { "summary": "s", "description": "", "parentCommit": parent } });
    let file = json!({ "key": "file", "value": { "path": path, "content": "aGk=", "encoding": "base64" } });
    format!("{header}\n{file}\n")
}

#[test]
fn of_two_commits_on_one_parent_the_second_is_refused_whole() {
    let server = server();
    let parent = server.commits("zhen/m")[0].id.clone();
    let first = post(&server, "/api/models/zhen/m/commit/main", &commit(Some(&parent), "first"));
    assert_eq!(first.status, 200);
    assert_eq!(post(&server, "/api/models/zhen/m/commit/main", &commit(Some(&parent), "second")).status, 412);
    assert_eq!(server.revisions("zhen/m")["refs/heads/main"], first.json()["commitOid"]);
    assert_eq!(server.read("zhen/m", "main", "second"), None);
    // A commit without changes is still a new commit.
    let again = post(&server, "/api/models/zhen/m/commit/main", &commit(None, "first"));
    assert_eq!((again.status, server.commits("zhen/m").len()), (200, 3));
    let proposed = post(&server, "/api/models/zhen/m/commit/main?create_pr=1", &commit(None, "third"));
    assert!(proposed.json()["pullRequestUrl"].as_str().unwrap().ends_with("/zhen/m/discussions/1"));
    assert_eq!(server.read("zhen/m", "main", "third"), None);
    assert_eq!(server.read("zhen/m", "refs/pr/1", "third").unwrap(), b"hi");
}

#[test]
fn a_commit_with_one_bad_line_changes_nothing() {
    let server = server();
    let large = json!({ "key": "lfsFile", "value": { "path": "l", "algo": "sha256", "oid": "0".repeat(64), "size": 1 } });
    let missing = json!({ "key": "deletedFile", "value": { "path": "none" } });
    let outside = json!({ "key": "file", "value": { "path": "../x", "content": "" } });
    for (line, status) in [(large, 400), (missing, 404), (outside, 400)] {
        let body = format!("{}{line}\n", commit(None, "good"));
        assert_eq!(post(&server, "/api/models/zhen/m/commit/main", &body).status, status, "{line}");
    }
    let under = commit(None, "a.txt/below");
    assert_eq!(post(&server, "/api/models/zhen/m/commit/main", &under).status, 400);
    assert_eq!(server.commits("zhen/m").len(), 1);
}

/// SHA-256 of `abc`. Source: FIPS 180-4.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn batch(server: &HubServer, oid: &str, size: usize) -> Value {
    let wish = json!({ "operation": "upload", "transfers": ["basic", "multipart"], "objects": [{ "oid": oid, "size": size }] });
    post(server, "/zhen/m.git/info/lfs/objects/batch", &wish.to_string()).json()["objects"][0].clone()
}

#[test]
fn only_an_upload_with_the_promised_hash_is_kept() {
    let server = server();
    let href = batch(&server, ABC, 3)["actions"]["upload"]["href"].as_str().unwrap().to_owned();
    assert_eq!(ask(&href, "PUT", &[], b"abd").unwrap().status, 400);
    assert_eq!(batch(&server, ABC, 3)["actions"]["upload"]["href"], href.as_str());
    server.fault(Fault::on(Method::Put, ABC).then(Action::CutUpload(2)));
    assert!(ask(&href, "PUT", &[], b"abc").is_none());
    let verify = json!({ "oid": ABC, "size": 3 }).to_string();
    assert_eq!(post(&server, "/zhen/m.git/info/lfs/objects/verify", &verify).status, 404);
    assert_eq!(ask(&href, "PUT", &[], b"abc").unwrap().status, 200);
    assert_eq!(post(&server, "/zhen/m.git/info/lfs/objects/verify", &verify).status, 200);
    assert_eq!(batch(&server, ABC, 3)["actions"], Value::Null);
}

#[test]
fn parts_may_come_in_any_order_but_all_have_to_come() {
    let server = HubServer::builder().multipart(2, 2).start().unwrap();
    server.add_user("zhen", "hf_zhen");
    server.add_model("zhen/m", &[("a.txt", b"a")]);
    let upload = batch(&server, ABC, 3)["actions"]["upload"].clone();
    assert_eq!(upload["header"]["chunk_size"], "2");
    let part = |number: &str, bytes: &[u8]| {
        let answer = ask(upload["header"][number].as_str().unwrap(), "PUT", &[], bytes).unwrap();
        (answer.status, answer.header("etag").to_owned())
    };
    let complete = |parts: &[&String]| {
        let parts = (1..).zip(parts).map(|(number, etag)| json!({ "partNumber": number, "etag": etag }));
        let body = json!({ "oid": ABC, "parts": parts.collect::<Vec<_>>() }).to_string();
        ask(upload["href"].as_str().unwrap(), "POST", &[], body.as_bytes()).unwrap().status
    };
    let (status, second) = part("00002", b"c");
    assert_eq!((status, complete(&[&second])), (200, 400));
    // A part that is too long does not change the next part.
    assert_eq!((part("00002", b"cc").0, part("00001", b"abx").0, part("00001", b"a").0), (400, 400, 400));
    let (_, first) = part("00001", b"ab");
    assert_eq!((complete(&[&second, &first]), complete(&[&first, &second])), (400, 200));
    assert_eq!(batch(&server, ABC, 3)["actions"], Value::Null);
}

#[test]
fn faults_do_what_they_say() {
    let server = server();
    let location = get(&server, WEIGHTS).header("location").to_owned();
    let meet = |action| server.fault(Fault::on(Method::Get, "/objects/").at(Host::Storage).then(action));
    let fetch = || ask(&location, "GET", &[], b"");
    let whole = b"weights of a model";

    meet(Action::CutBefore);
    assert!(fetch().is_none());
    meet(Action::CutAnswer);
    assert!(fetch().is_none());
    meet(Action::CutAfter(7));
    let cut = fetch().unwrap();
    assert_eq!((cut.length(), cut.body.as_slice()), (18, &b"weights"[..]));
    meet(Action::Shorten(7));
    let short = fetch().unwrap();
    assert_eq!((short.length(), short.body.as_slice()), (7, &b"weights"[..]));
    meet(Action::Corrupt);
    let corrupt = fetch().unwrap().body;
    assert_eq!(corrupt.iter().zip(whole).filter(|(a, b)| a != b).count(), 1);
    meet(Action::Status(429, vec![("Retry-After".to_owned(), "1".to_owned())], b"busy".to_vec()));
    let busy = fetch().unwrap();
    assert_eq!((busy.status, busy.header("retry-after"), busy.body.as_slice()), (429, "1", &b"busy"[..]));
    meet(Action::RedirectTo("http://127.0.0.1:1/".to_owned()));
    assert_eq!(fetch().unwrap().header("location"), "http://127.0.0.1:1/");
    meet(Action::Replace(json!(["hostile"])));
    assert_eq!(fetch().unwrap().json(), json!(["hostile"]));
    meet(Action::Header("ETag".to_owned(), "\"other\"".to_owned()));
    assert_eq!(fetch().unwrap().header("etag"), "\"other\"");
    let start = Instant::now();
    meet(Action::Delay(Duration::from_millis(200)));
    assert_eq!(fetch().unwrap().body, whole);
    meet(Action::Throttle(90));
    assert_eq!(fetch().unwrap().body, whole);
    assert!(start.elapsed() >= Duration::from_millis(380), "{:?}", start.elapsed());
    assert_eq!(fetch().unwrap().body, whole);
}

#[test]
fn a_connection_carries_one_request_after_another() {
    let server = server();
    let mut stream = TcpStream::connect(server.endpoint().strip_prefix("http://").unwrap()).unwrap();
    // No route reads the chunked body of the first request. The second request has no body.
    let text = "POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
                HEAD /zhen/m/resolve/main/a.txt HTTP/1.1\r\nConnection: close\r\n\r\n";
    stream.write_all(text.as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["404", "200"]);
    let told: Vec<_> = server.requests().iter().map(|r| (r.method.clone(), r.status, r.received)).collect();
    assert_eq!(told, [("POST".to_owned(), Some(404), 3), ("HEAD".to_owned(), Some(200), 0)]);
}

#[test]
fn what_is_no_http_is_refused_and_the_server_goes_on() {
    let server = server();
    for text in ["\x16\x03\x01\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.endpoint().strip_prefix("http://").unwrap()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.1 400"), "{text}: {answer}");
    }
    for path in
        ["/", "/api", "/api/models", "/api/models/zhen/m/tree", "/%", "/zhen/m/resolve/main/../../etc/passwd"]
    {
        assert!((400..500).contains(&get(&server, path).status), "{path}");
    }
    let wrong =
        ["/api/repos/create", "/api/models/zhen/m/preupload/main", "/zhen/m.git/info/lfs/objects/batch"];
    for path in wrong {
        assert!((400..500).contains(&post(&server, path, "{\"files\":[{}]").status), "{path}");
    }
    assert_eq!(get(&server, "/zhen/m/resolve/main/a.txt").status, 200);
}

#[test]
fn models_are_as_a_test_puts_them_there() {
    let server = server();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::write(&source, b"abc").unwrap();
    server.add_file_from_path("zhen/m", "big.txt", &source);
    assert_eq!(server.hashes("zhen/m", "main")["big.txt"], ABC);
    assert_eq!(get(&server, "/zhen/m/resolve/main/big.txt").header("x-linked-etag"), format!("\"{ABC}\""));
    let side = server.model("zhen/m").on("refs/heads/side").without("a.txt").message("less").add();
    assert_eq!(server.revisions("zhen/m")["refs/heads/side"], side);
    assert_eq!((server.read("zhen/m", "side", "a.txt"), server.commits("zhen/m").len()), (None, 3));
    assert_eq!(server.commits("zhen/m")[2].parents, [server.commits("zhen/m")[1].id.clone()]);
    assert_eq!(server.read("zhen/m", "main", "a.txt").unwrap(), b"0123456789");

    server.model("zhen/p").private().file("a.txt", b"a").add();
    server.add_read_only_user("guan", "hf_guan");
    let as_user = |token: &str| {
        let url = format!("{}/zhen/p/resolve/main/a.txt", server.endpoint());
        ask(&url, "GET", &[("Authorization", &format!("Bearer {token}"))], b"").unwrap().status
    };
    assert_eq!((as_user("hf_zhen"), as_user("hf_guan")), (200, 404));
    assert_eq!((server.is_private("zhen/p"), server.is_private("zhen/m")), (Some(true), Some(false)));
    server.clear_requests();
    server.fault(Fault::on(Method::Any, "").always().then(Action::Status(503, Vec::new(), Vec::new())));
    assert_eq!((as_user("hf_zhen"), server.requests()[0].status), (503, Some(503)));
    server.clear_faults();
    assert_eq!(as_user("hf_zhen"), 200);
}

#[test]
fn who_sees_a_repository_is_its_owners_to_say() {
    let server = server();
    server.add_user("guan", "hf_guan");
    let put = |token: &str, body: &str| {
        let url = format!("{}/api/models/zhen/m/settings", server.endpoint());
        ask(&url, "PUT", &[("Authorization", &format!("Bearer {token}"))], body.as_bytes()).unwrap().status
    };
    let private = || server.is_private("zhen/m").unwrap();
    assert_eq!((put("hf_guan", "{\"visibility\":\"private\"}"), private()), (403, false));
    assert_eq!((put("hf_zhen", "{\"visibility\":\"private\"}"), private()), (200, true));
    assert_eq!((put("hf_guan", "{\"visibility\":\"public\"}"), private()), (404, true));
    assert_eq!((put("hf_zhen", "{\"private\":false}"), private()), (200, false));
    for wrong in ["{}", "{\"visibility\":\"protected\"}", "{\"visibility\":\"public\",\"private\":true}"] {
        assert_eq!((put("hf_zhen", wrong), private()), (400, false));
    }
}

#[test]
fn a_dropped_server_is_gone() {
    let server = server();
    let address = server.endpoint();
    let mut open = TcpStream::connect(address.strip_prefix("http://").unwrap()).unwrap();
    open.write_all(b"GET /zhen/m/resolve/main/a.txt HTTP/1.1\r\n\r\n").unwrap();
    let mut first = [0; 8];
    open.read_exact(&mut first).unwrap();
    drop(server);
    let _ = open.read_to_end(&mut Vec::new());
    assert!(TcpStream::connect(address.strip_prefix("http://").unwrap()).is_err());
}
