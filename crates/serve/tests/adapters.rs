//! Tests adapters: selection, load and unload during requests, eviction, and watched runs.

mod support;

use std::fs;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use danlu_serve::ServeOptions;
use serde_json::{Value, json};
use support::{TestServer, options, served, start, write_adapter};

const QUESTION: &str = "你是谁？";

/// Returns the reply of a model to the test question.
fn reply(server: &TestServer, model: &str) -> String {
    let answer = server.chat(model, QUESTION, json!({}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.text()
}

fn load(server: &TestServer, body: Value) -> support::Answer {
    server.post("/v1/load_lora_adapter", &body)
}

fn unload(server: &TestServer, name: &str) -> support::Answer {
    server.post("/v1/unload_lora_adapter", &json!({"lora_name": name}))
}

#[test]
fn each_model_answers_as_itself() {
    let top = tempfile::tempdir().unwrap();
    let adapters = (1..=3).map(|seed| served(top.path(), &format!("a{seed}"), seed)).collect();
    let server = start(ServeOptions { adapters, ..options() });
    let models = ["base", "a1", "a2", "a3"];
    let alone: Vec<String> = models.iter().map(|model| reply(&server, model)).collect();
    for i in 1..4 {
        assert!(!alone[..i].contains(&alone[i]), "{} answers as another: {alone:?}", models[i]);
    }
    thread::scope(|scope| {
        for i in 0..16 {
            let (server, alone) = (&server, &alone);
            scope.spawn(move || assert_eq!(reply(server, models[i % 4]), alone[i % 4]));
        }
    });
    let cards = server.get("/v1/models").json();
    let cards = cards["data"].as_array().unwrap();
    assert_eq!(cards.iter().map(|card| card["id"].as_str().unwrap()).collect::<Vec<_>>(), models);
    assert_eq!((&cards[0]["parent"], &cards[1]["parent"]), (&Value::Null, &json!("base")));
    assert!(!server.get("/v1/models").body.contains(top.path().to_str().unwrap()), "no path is shown");
    assert_eq!(server.get("/v1/models/a2").json()["id"], "a2");
    assert_eq!(server.get("/v1/models/a9").status, 404);
    let answer = server.chat("a1", QUESTION, json!({})).json();
    assert_eq!(answer["adapter_generation"], cards[1]["adapter_generation"]);
    let pinned = json!({"adapter": {"generation": cards[2]["adapter_generation"]}});
    assert_eq!(server.chat("base", QUESTION, pinned).text(), alone[2]);
}

#[test]
fn adapters_load_and_unload_as_in_vllm() {
    let top = tempfile::tempdir().unwrap();
    write_adapter(&top.path().join("one"), 1, 4);
    write_adapter(&top.path().join("two"), 2, 8);
    fs::create_dir(top.path().join("empty")).unwrap();
    let server =
        start(ServeOptions { adapter_root: Some(top.path().to_owned()), allows_updates: true, ..options() });
    let loaded = load(&server, json!({"lora_name": "x", "lora_path": "one"}));
    assert_eq!(loaded.body, "Success: LoRA adapter 'x' added successfully.");
    assert_eq!((loaded.status, loaded.header("content-type")), (200, None));
    let first = reply(&server, "x");

    let again = load(&server, json!({"lora_name": "x", "lora_path": "two"}));
    assert_eq!((again.status, &again.json()["error"]["type"]), (400, &json!("InvalidUserInput")));
    assert_eq!(again.json()["error"]["code"], 400);
    assert!(again.body.contains("load_inplace"));
    assert_eq!(reply(&server, "x"), first);
    let generation = server.get("/v1/lora_adapters").json()["data"][0]["generation"].clone();
    let wrong = json!({"lora_name": "x", "lora_path": "two", "expected_generation": "0".repeat(64)});
    let wrong = load(&server, wrong);
    assert_eq!((wrong.status, wrong.header("x-should-retry")), (409, Some("false")));
    let swapped =
        load(&server, json!({"lora_name": "x", "lora_path": "two", "expected_generation": generation}));
    assert_eq!(swapped.status, 200, "{}", swapped.body);
    assert_ne!(reply(&server, "x"), first);

    for (body, status, kind) in [
        (json!({"lora_name": "", "lora_path": "one"}), 400, "InvalidUserInput"),
        (json!({"lora_name": "base", "lora_path": "one"}), 400, "InvalidUserInput"),
        (json!({"lora_name": "y"}), 400, "Bad Request"),
        (json!({"lora_name": "y", "lora_path": "absent"}), 404, "NotFoundError"),
        (json!({"lora_name": "y", "lora_path": "empty"}), 404, "NotFoundError"),
        (json!({"lora_name": "y", "lora_path": "/etc"}), 403, "PermissionError"),
        (json!({"lora_name": "y", "lora_path": "../.."}), 403, "PermissionError"),
    ] {
        let answer = load(&server, body.clone());
        assert_eq!(
            (answer.status, &answer.json()["error"]["type"]),
            (status, &json!(kind)),
            "{body} {}",
            answer.body
        );
    }
    let no_type = server.request("POST", "/v1/load_lora_adapter", &[("content-type", "text/plain")], "{}");
    assert_eq!(no_type.status, 400);
    let removed = unload(&server, "x");
    assert_eq!(removed.body, "Success: LoRA adapter 'x' removed successfully.");
    assert_eq!((unload(&server, "x").status, server.chat("x", QUESTION, json!({})).status), (404, 404));
    assert_eq!(server.get("/v1/lora_adapters").json()["resident_bytes"], 0, "unloading frees the memory");
}

#[test]
fn an_unsupported_adapter_is_refused_by_name_at_load() {
    let top = tempfile::tempdir().unwrap();
    let folder = top.path().join("bad");
    write_adapter(&folder, 1, 4);
    let path = folder.join("adapter_config.json");
    let config = fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["use_bdlora"] = json!(true);
    fs::write(&path, config.to_string()).unwrap();
    let server =
        start(ServeOptions { adapter_root: Some(top.path().to_owned()), allows_updates: true, ..options() });
    let answer = load(&server, json!({"lora_name": "bad", "lora_path": "bad"}));
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("use_bdlora"), "{}", answer.body);
}

#[test]
fn replacement_under_traffic_gives_old_or_new_weights_whole() {
    let top = tempfile::tempdir().unwrap();
    for seed in 1..=2 {
        write_adapter(&top.path().join(format!("v{seed}")), seed, 4);
    }
    let server =
        start(ServeOptions { adapter_root: Some(top.path().to_owned()), allows_updates: true, ..options() });
    let put = |version: u64| {
        let body = json!({"lora_name": "x", "lora_path": format!("v{version}"), "load_inplace": true});
        assert_eq!(load(&server, body).status, 200);
    };
    let known: Vec<(Value, String)> = [1, 2]
        .map(|version| {
            put(version);
            let answer = server.chat("x", QUESTION, json!({}));
            (answer.json()["adapter_generation"].clone(), answer.text())
        })
        .to_vec();
    assert_ne!(known[0], known[1]);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let answer = server.chat("x", QUESTION, json!({}));
                    match answer.status {
                        200 => assert!(
                            known.contains(&(answer.json()["adapter_generation"].clone(), answer.text()))
                        ),
                        status => assert_eq!(status, 404, "{}", answer.body),
                    }
                }
            });
        }
        for i in 0..20 {
            put(1 + i % 2);
            if i % 5 == 0 {
                assert_eq!(unload(&server, "x").status, 200);
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let generations = server.get("/v1/lora_adapters").json()["generations"].clone();
    assert!(
        generations.as_array().unwrap().iter().all(|generation| generation["active_leases"] == 0),
        "{generations}"
    );
}

#[test]
fn an_evicted_adapter_returns_at_its_next_request() {
    let top = tempfile::tempdir().unwrap();
    let adapters: Vec<_> = (1..=4).map(|seed| served(top.path(), &format!("a{seed}"), seed)).collect();
    let bytes = fs::metadata(top.path().join("a1/adapter_model.safetensors")).unwrap().len();
    // In memory, an adapter needs 1.5 times the size of its file, because packed copies of its matrices are
    // kept too.
    let server = start(ServeOptions { adapters, max_adapter_bytes: 4 * bytes, ..options() });
    let models = ["a1", "a2", "a3", "a4"];
    let first: Vec<String> = models.iter().map(|model| reply(&server, model)).collect();
    for _ in 0..2 {
        for (model, first) in models.iter().zip(&first) {
            assert_eq!(&reply(&server, model), first);
        }
    }
    let state = server.get("/v1/lora_adapters").json();
    assert!(state["resident_bytes"].as_u64().unwrap() <= state["max_bytes"].as_u64().unwrap(), "{state}");
    assert_eq!(state["data"].as_array().unwrap().len(), 4);
    assert_eq!(state["generations"].as_array().unwrap().len(), 2);
    let metrics = server.get("/metrics").body;
    let evictions = metrics.lines().find_map(|line| line.strip_prefix("danlu_adapter_evictions_total "));
    assert!(evictions.unwrap().parse::<u64>().unwrap() >= 6, "{metrics}");
    assert_eq!(metrics.lines().filter(|line| line.starts_with("vllm:lora_requests_info{")).count(), 1);
}

#[test]
fn a_new_checkpoint_of_a_watched_run_is_served() {
    let top = tempfile::tempdir().unwrap();
    let run = top.path().join("run");
    fs::create_dir(&run).unwrap();
    let server = start(ServeOptions { watches: vec![("mine".to_owned(), run.clone())], ..options() });
    assert_eq!(server.chat("mine", QUESTION, json!({})).status, 404);
    let publish = |step: u64| {
        let staging = top.path().join("staging");
        write_adapter(&staging, step, 4);
        fs::write(staging.join("danlu_state.json"), "{}").unwrap();
        fs::rename(&staging, run.join(format!("checkpoint-{step}"))).unwrap();
    };
    let generation = |before: &Value| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = server.chat("mine", QUESTION, json!({})).json();
            if answer["adapter_generation"].is_string() && answer["adapter_generation"] != *before {
                return answer["adapter_generation"].clone();
            }
            assert!(Instant::now() < deadline, "{answer}");
            thread::sleep(Duration::from_millis(50));
        }
    };
    publish(10);
    let first = generation(&Value::Null);
    publish(20);
    let second = generation(&first);
    // A damaged checkpoint does not replace the served version.
    let broken = run.join("checkpoint-30");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("adapter_model.safetensors"), "x").unwrap();
    fs::write(broken.join("danlu_state.json"), "{}").unwrap();
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(server.chat("mine", QUESTION, json!({})).json()["adapter_generation"], second);
}

#[test]
fn adapters_in_use_delay_a_load_and_do_not_forbid_it() {
    let top = tempfile::tempdir().unwrap();
    write_adapter(&top.path().join("monk"), 4, 4);
    // Each adapter has 0.9 MB, so only one fits.
    let server = start(ServeOptions {
        adapters: vec![served(top.path(), "poet", 3)],
        adapter_root: Some(top.path().to_owned()),
        allows_updates: true,
        max_adapter_bytes: 1_300_000,
        ..options()
    });
    let body = json!({
        "model": "poet", "messages": [{"role": "user", "content": "讲个故事。"}], "stream": true, "ignore_eos": true,
    });
    let mut stream = server.send("POST", "/v1/chat/completions", &[], &body.to_string());
    assert!(stream.read(&mut [0; 64]).unwrap() > 0);
    let load = || server.post("/v1/load_lora_adapter", &json!({"lora_name": "monk", "lora_path": "monk"}));
    let busy = load();
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("1")), "{}", busy.body);
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(20);
    while load().status != 200 {
        assert!(Instant::now() < deadline, "the adapter does not load after the reply of the other one");
        std::thread::sleep(Duration::from_millis(10));
    }
}
