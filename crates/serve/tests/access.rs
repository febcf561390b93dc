//! Tests keys, requests from foreign sites, and the shutdown of a server.

mod support;

use std::io::Read as _;
use std::thread;
use std::time::Duration;

use danlu_serve::ServeOptions;
use serde_json::json;
use support::{options, start, write_adapter};

#[test]
fn keys_guard_everything_but_probes() {
    let top = tempfile::tempdir().unwrap();
    write_adapter(&top.path().join("one"), 1, 4);
    let server = start(ServeOptions {
        api_key: Some("inference".to_owned()),
        admin_key: Some("admin".to_owned()),
        adapter_root: Some(top.path().to_owned()),
        ..options()
    });
    let status = |path: &str, key: Option<&str>| {
        let bearer = key.map(|key| format!("Bearer {key}"));
        let header = bearer.as_ref().map(|bearer| ("authorization", bearer.as_str()));
        server.request("GET", path, header.as_slice(), "").status
    };
    assert_eq!((status("/health", None), status("/metrics", None)), (200, 200));
    for path in ["/v1/models", "/api/tags", "/v1/lora_adapters", "/absent"] {
        assert_eq!((status(path, None), status(path, Some("wrong"))), (401, 401), "{path}");
    }
    assert_eq!((status("/v1/models", Some("inference")), status("/v1/models", Some("admin"))), (200, 200));
    let load = |key: &str| {
        let headers = [("content-type", "application/json"), ("authorization", key)];
        let body = json!({"lora_name": "x", "lora_path": "one"}).to_string();
        server.request("POST", "/v1/load_lora_adapter", &headers, &body).status
    };
    assert_eq!((load("Bearer inference"), load("Bearer admin")), (403, 200));
    let list = |key| server.request("GET", "/v1/lora_adapters", &[("authorization", key)], "").json();
    assert!(list("Bearer inference")["data"][0].get("source").is_none());
    assert!(list("Bearer admin")["data"][0]["source"].is_string());
    let refused = server.get("/v1/models");
    assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
}

#[test]
fn adapters_change_only_where_that_is_allowed() {
    let server = start(options());
    let answer = server.post("/v1/load_lora_adapter", &json!({"lora_name": "x", "lora_path": "y"}));
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("--allow-adapter-updates"), "{}", answer.body);
}

#[test]
fn pages_of_other_sites_are_refused() {
    let server = start(options());
    let get = |host: &str| server.request("GET", "/v1/models", &[("host", host)], "").status;
    assert_eq!((get("localhost:8000"), get("evil.example")), (200, 403));
    let body =
        json!({"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).to_string();
    let post =
        |origin: &str| server.request("POST", "/v1/chat/completions", &[("origin", origin)], &body).status;
    assert_eq!((post("https://evil.example"), post(&format!("http://{}", server.address))), (403, 200));
    assert_eq!(server.get("/v1/models").header("access-control-allow-origin"), None);
}

#[test]
fn an_open_address_needs_a_key() {
    let open = ServeOptions { host: "0.0.0.0".to_owned(), ..options() };
    let error = std::panic::catch_unwind(|| start(open.clone())).err().unwrap();
    let message = error.downcast_ref::<String>().unwrap();
    assert!(message.contains("no key is set"), "{message}");
    start(ServeOptions { api_key: Some("k".to_owned()), ..open });
}

#[test]
fn a_draining_server_finishes_its_replies_and_refuses_others() {
    let mut server = start(options());
    let body = json!({
        "model": "base", "messages": [{"role": "user", "content": "讲个故事。"}], "stream": true, "ignore_eos": true,
        "max_tokens": 120, "temperature": 0,
    });
    let mut stream = server.send("POST", "/v1/chat/completions", &[], &body.to_string());
    let mut text = vec![0; 16];
    stream.read_exact(&mut text).unwrap();
    let running = server.server.take().unwrap();
    let drain = thread::spawn(move || running.drain(Duration::from_secs(60)));
    thread::sleep(Duration::from_millis(30));
    let refused = server.chat("base", "你好", json!({}));
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("unavailable")));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(server.get("/health").status, 503);
    stream.read_to_end(&mut text).unwrap();
    assert!(String::from_utf8(text).unwrap().ends_with("data: [DONE]\n\n"));
    assert_eq!(drain.join().unwrap(), 0);
}

#[test]
fn request_ids_are_repeated_or_made() {
    let server = start(options());
    let id = |given: &str| {
        let answer = server.request("GET", "/health", &[("x-request-id", given)], "");
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("abc-1"), "abc-1");
    assert!(id(&"x".repeat(200)).starts_with("req-"));
}
