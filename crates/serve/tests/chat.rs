//! Tests chats, completions and streams over HTTP.

mod support;

use std::io::Read as _;
use std::time::{Duration, Instant};

use danlu_serve::ServeOptions;
use serde_json::{Value, json};
use support::{options, served, start, start_with_template};

#[test]
fn a_chat_has_the_fields_of_openai() {
    let server = start(options());
    let answer = server.chat("base", "你是谁？", json!({"logprobs": true, "top_logprobs": 2}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    let json = answer.json();
    assert_eq!((&json["object"], &json["model"]), (&json!("chat.completion"), &json!("base")));
    assert!(json["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &json["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()));
    let usage = &json["usage"];
    let total = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], total);
    let logprobs = choice["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = logprobs
        .iter()
        .flat_map(|token| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap())
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), choice["message"]["content"].as_str().unwrap());
    for token in logprobs {
        // Greedy decoding chooses the most likely token.
        assert_eq!(token["logprob"], token["top_logprobs"][0]["logprob"]);
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    }
    assert!(answer.header("x-request-id").is_some());
}

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let server = start(options());
    let whole = server.chat("base", "今晚月色真美。", json!({}));
    let stream = server.chat(
        "base",
        "今晚月色真美。",
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    assert_eq!(stream.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert!(stream.body.ends_with("data: [DONE]\n\n"));
    let events = stream.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole.text());
    let [.., finish, usage] = &events[..] else { panic!("{events:?}") };
    assert_eq!(finish["choices"][0]["delta"], json!({}));
    assert_eq!(finish["choices"][0]["finish_reason"], whole.json()["choices"][0]["finish_reason"]);
    assert_eq!(
        (&usage["choices"], &usage["usage"]["completion_tokens"]),
        (&json!([]), &whole.json()["usage"]["completion_tokens"])
    );
    for event in &events {
        assert_eq!(event["id"], events[0]["id"]);
        assert!(event.as_object().unwrap().contains_key("usage"), "null before the last chunk");
    }
    let plain = server.chat("base", "今晚月色真美。", json!({"stream": true}));
    assert!(plain.events().iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn a_stop_string_over_token_borders_ends_the_reply() {
    let server = start(options());
    let whole = server.chat("base", "你是谁？", json!({"max_tokens": 30})).text();
    let chars: Vec<char> = whole.chars().collect();
    assert!(chars.len() > 6, "{whole}");
    let stop: String = chars[3..6].iter().collect();
    let before = whole.split(&stop).next().unwrap();
    let stopped = server.chat("base", "你是谁？", json!({"max_tokens": 30, "stop": [stop, "never"]}));
    assert_eq!(stopped.text(), before);
    assert_eq!(stopped.json()["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped.json()["choices"][0]["stop_reason"], stop.as_str());
    let included = server.chat(
        "base",
        "你是谁？",
        json!({"max_tokens": 30, "stop": stop, "include_stop_str_in_output": true}),
    );
    assert_eq!(included.text(), format!("{before}{stop}"));
    let streamed = server.chat("base", "你是谁？", json!({"max_tokens": 30, "stop": stop, "stream": true}));
    let text: String = streamed
        .events()
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, before, "nothing of the stop string leaks");
}

#[test]
fn a_seed_repeats_the_choices() {
    let server = start(options());
    let texts = |answer: support::Answer| -> Vec<String> {
        let json = answer.json();
        json["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["message"]["content"].as_str().unwrap().to_owned())
            .collect()
    };
    let more = json!({"temperature": 1.0, "n": 3, "seed": 7});
    let first = texts(server.chat("base", "讲个故事。", more.clone()));
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] || first[1] != first[2], "choices differ: {first:?}");
    assert_eq!(texts(server.chat("base", "讲个故事。", more)), first);
    let other = texts(server.chat("base", "讲个故事。", json!({"temperature": 1.0, "n": 3, "seed": 8})));
    assert_ne!(other, first);
}

#[test]
fn completions_take_texts_and_ids() {
    let server = start(options());
    let post = |more: Value| {
        let mut body = json!({"model": "base", "temperature": 0, "max_tokens": 6});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/completions", &body)
    };
    let single = post(json!({"prompt": "话说天下大势，"}));
    assert_eq!(single.status, 200, "{}", single.body);
    let ids = server.post("/tokenize", &json!({"prompt": "话说天下大势，"})).json()["tokens"].clone();
    assert_eq!(post(json!({ "prompt": ids })).text(), single.text());
    let both = post(json!({"prompt": ["今晚", "话说天下大势，"], "n": 2, "echo": true})).json();
    let choices = both["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert_eq!(choices[2]["index"], 2);
    assert_eq!(choices[2]["text"], format!("话说天下大势，{}", single.text()));
    let logprobs = post(json!({"prompt": "今晚", "logprobs": 2})).json()["choices"][0]["logprobs"].clone();
    assert_eq!(
        logprobs["tokens"].as_array().unwrap().len(),
        logprobs["token_logprobs"].as_array().unwrap().len()
    );
    let default =
        server.post("/v1/completions", &json!({"model": "base", "prompt": "今晚", "ignore_eos": true}));
    assert_eq!(default.json()["usage"]["completion_tokens"], 16);
}

#[test]
fn tokens_and_templates_are_shown() {
    let server = start(options());
    let messages = json!([{"role": "user", "content": "你好"}]);
    let prompt = server.post("/apply-template", &json!({ "messages": messages })).json()["prompt"].clone();
    let tokens = server.post("/tokenize", &json!({ "messages": messages })).json()["tokens"].clone();
    let text = server.post("/detokenize", &json!({ "tokens": tokens })).json()["prompt"].clone();
    assert_eq!(prompt, text);
}

/// A template that, like Qwen3's, closes the thoughts in the prompt if `enable_thinking` is false.
const THINKING_TEMPLATE: &str = "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n\
    {{ m.content }}<|eot_id|>{% endfor %}\
    {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n\
    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}";

#[test]
fn values_of_a_request_reach_the_template() {
    let server = start_with_template(options(), THINKING_TEMPLATE);
    let messages = json!([{"role": "user", "content": "你好"}]);
    let prompt = |values: Value| {
        let body = json!({"messages": messages, "chat_template_kwargs": values});
        server.post("/apply-template", &body).json()["prompt"].as_str().unwrap().to_owned()
    };
    let plain = prompt(json!({}));
    assert_eq!(prompt(json!({"enable_thinking": true, "unread": 1})), plain);
    assert_eq!(prompt(json!({"enable_thinking": false})), format!("{plain}<think>\n\n</think>\n\n"));

    let prompt_tokens =
        |more: Value| server.chat("base", "你好", more).json()["usage"]["prompt_tokens"].as_u64().unwrap();
    let closed = prompt_tokens(json!({"chat_template_kwargs": {"enable_thinking": false}}));
    assert!(closed > prompt_tokens(json!({})));
    let of_ollama = |think: Value| {
        let body = json!({"model": "base", "messages": messages, "think": think, "stream": false});
        server.post("/api/chat", &body).json()["prompt_eval_count"].as_u64().unwrap()
    };
    assert_eq!(of_ollama(json!(false)), closed);
    assert_eq!(of_ollama(json!("high")), prompt_tokens(json!({})));
}

#[test]
fn wrong_requests_name_the_field() {
    let server = start(ServeOptions { max_body_bytes: 10_000, ..options() });
    for (more, field, told) in [
        (json!({"model": "bass"}), "model", "Nearest names: base"),
        (json!({"model": null}), "model", "missing"),
        (json!({"temperature": 3}), "temperature", "it is 3, expected a number between 0 and 2"),
        (json!({"temprature": 1}), "temprature", "did you mean `temperature`?"),
        (json!({"guided_json": {"type": "object"}}), "guided_json", "does not support"),
        (json!({"chat_template_kwargs": [1]}), "chat_template_kwargs", "it is a list, expected an object"),
        (
            json!({"chat_template_kwargs": {"messages": []}}),
            "chat_template_kwargs.messages",
            "the server sets this value",
        ),
        (json!({"n": 0}), "n", "it is 0"),
        (json!({"max_completion_tokens": 3}), "max_completion_tokens", "it is 3, and `max_tokens` is 12"),
        (json!({"top_logprobs": 3}), "top_logprobs", "needs `logprobs`"),
        (json!({"messages": []}), "messages", "expected a list"),
        (json!({"logit_bias": {"9000": 1}}), "logit_bias", "below 8192"),
        (json!({"stop": [1]}), "stop", "expected a string or up to"),
        (json!({"max_tokens": 5000}), "messages", "the context has 1024"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function", "it is missing"),
    ] {
        let answer = server.chat("base", "你好", more.clone());
        let error = answer.json()["error"].clone();
        assert_eq!(
            answer.status,
            if field == "model" && more["model"].is_string() { 404 } else { 400 },
            "{error}"
        );
        assert_eq!(error["param"], field, "{error}");
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
    }
    let error = |answer: support::Answer, status: u16| {
        assert_eq!(answer.status, status, "{}", answer.body);
        answer.json()["error"]["message"].as_str().unwrap().to_owned()
    };
    let bad = server.request("POST", "/v1/chat/completions", &[], "{\"a\":\n nope}");
    assert!(error(bad, 400).contains("line 2, column"));
    assert!(error(server.get("/v1/nothing"), 404).contains("`/v1/nothing`"));
    assert!(error(server.get("/v1/chat/completions"), 405).contains("GET"));
    assert!(error(server.chat("base", &"长".repeat(5000), json!({})), 413).contains("10000"));
    // The server accepts null, an integer written as 1.0, and fields without effect.
    let fine = json!({"n": 1.0, "seed": null, "user": "x", "metadata": {"a": "b"}, "store": false, "unheard_of_option": 1});
    assert_eq!(server.chat("base", "你好", fine).status, 200);
}

#[test]
fn a_request_ends_when_its_client_leaves() {
    let server = start(ServeOptions { max_running: 1, max_queued: 0, ..options() });
    let body = json!({
        "model": "base", "messages": [{"role": "user", "content": "讲个故事。"}], "stream": true, "ignore_eos": true,
    });
    let mut stream = server.send("POST", "/v1/chat/completions", &[], &body.to_string());
    let mut first = [0; 64];
    assert!(stream.read(&mut first).unwrap() > 0);
    let full = server.chat("base", "你好", json!({}));
    assert_eq!((full.status, full.header("retry-after")), (429, Some("1")), "{}", full.body);
    assert_eq!(full.json()["error"]["code"], "server_overloaded");
    drop(stream);
    // The whole reply would need about 900 steps. Because the request is cancelled, the slot is free much
    // earlier.
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.chat("base", "你好", json!({})).status != 200 {
        assert!(Instant::now() < deadline, "the request of the client that left still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("finished_reason=\"abort\"} 1\n"), "{metrics}");
}

#[test]
fn ollama_clients_chat_and_list() {
    let top = tempfile::tempdir().unwrap();
    let server = start(ServeOptions { adapters: vec![served(top.path(), "poet", 3)], ..options() });
    let chat = |stream: Value| {
        let body = json!({
            "model": "poet:latest", "messages": [{"role": "user", "content": "你好"}], "stream": stream,
            "options": {"temperature": 0, "num_predict": 8},
        });
        server.post("/api/chat", &body)
    };
    let whole = chat(json!(false)).json();
    assert_eq!((&whole["model"], &whole["done"]), (&json!("poet:latest"), &json!(true)));
    let streamed = chat(json!(null));
    assert_eq!(streamed.header("content-type"), Some("application/x-ndjson"));
    let lines: Vec<Value> = streamed.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let text: String = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(whole["message"]["content"], text.as_str());
    let last = lines.last().unwrap();
    assert_eq!(last["eval_count"], whole["eval_count"]);
    assert!(last["total_duration"].as_u64().unwrap() > 0);
    let tags = server.get("/api/tags").json();
    let names: Vec<&str> =
        tags["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "poet"]);
    let show = server.post("/api/show", &json!({"model": "poet"})).json();
    assert_eq!(show["details"]["parent_model"], "base");
    let error = server.post("/api/chat", &json!({"model": "nobody", "messages": []}));
    assert!(error.json()["error"].is_string(), "{}", error.body);
}
