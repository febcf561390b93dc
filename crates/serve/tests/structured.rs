//! Tests replies with a required form: JSON, JSON schemas and tool calls.

mod support;

use danlu_serve::ServeOptions;
use serde_json::{Value, json};
use support::{TestServer, options, start, start_with_template};

/// A template that writes tools and calls as Qwen 2.5 does: tools as lines of JSON, and calls in tags.
const TOOL_TEMPLATE: &str = "{% if tools %}<|start_header_id|>system<|end_header_id|>\n\n\
    {% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|eot_id|>{% endif %}\
    {% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}\
    {% for call in m.tool_calls or [] %}{% if not loop.first %}\n{% endif %}<tool_call>\n\
    {\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\n\
    </tool_call>{% endfor %}<|eot_id|>{% endfor %}\
    {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

fn weather_and_time() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Paris", "北京"]}},
        "required": ["city"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "weather", "parameters": city}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn schema_format(schema: &Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        "max_tokens": 200, "temperature": 1, "seed": 5})
}

/// A schema, and the test that a reply must pass.
type SchemaCase = (Value, fn(&Value) -> bool);

/// Schemas with checks of a reply. Each check restates the schema in Rust.
fn schema_suite() -> Vec<SchemaCase> {
    vec![
        (
            json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}, "age": {
            "type": "integer", "minimum": 1, "maximum": 99}}, "required": ["name", "age"],
            "additionalProperties": false}),
            |reply| {
                let age = reply["age"].as_i64().unwrap();
                let name = reply["name"].as_str().unwrap();
                (1..=99).contains(&age) && name.chars().count() <= 6 && reply.as_object().unwrap().len() == 2
            },
        ),
        (json!({"enum": ["a", 3, null]}), |reply| [json!("a"), json!(3), json!(null)].contains(reply)),
        (json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}), |reply| {
            let list = reply.as_array().unwrap();
            (2..=3).contains(&list.len()) && list.iter().all(Value::is_boolean)
        }),
        (json!({"type": "string", "pattern": "^[a-c]{2,4}$"}), |reply| {
            let text = reply.as_str().unwrap();
            (2..=4).contains(&text.len()) && text.bytes().all(|b| (b'a'..=b'c').contains(&b))
        }),
        (
            json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
            "value": {"const": 1}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["value", "next"], "additionalProperties": false}}}),
            |reply| {
                let mut node = reply;
                while node.is_object() {
                    assert_eq!(node["value"], 1);
                    node = &node["next"];
                }
                node.is_null()
            },
        ),
        (json!({"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}]}), |reply| {
            reply.is_null() || reply.as_str().is_some_and(|date| date.len() == 10)
        }),
    ]
}

#[test]
fn every_reply_follows_its_schema() {
    let server = start(options());
    for (schema, is_valid) in schema_suite() {
        for seed in 0..2 {
            let mut more = schema_format(&schema);
            more["seed"] = seed.into();
            let answer = server.chat("base", "你是谁？", more);
            assert_eq!(answer.status, 200, "{}", answer.body);
            if answer.json()["choices"][0]["finish_reason"] == "length" {
                continue;
            }
            let text = answer.text();
            let reply: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}: {text}: {e}"));
            assert!(is_valid(&reply), "{schema}: {text}");
        }
    }
    let object =
        server.chat("base", "你好", json!({"response_format": {"type": "json_object"}, "max_tokens": 90}));
    assert!(object.text().starts_with('{'), "{}", object.body);
    let stream = schema_format(&json!({"enum": ["one", "two"]}));
    let mut streamed = stream.clone();
    streamed["stream"] = true.into();
    let pieces = server.chat("base", "你好", streamed).events();
    let text: String = pieces.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, server.chat("base", "你好", stream).text());
}

#[test]
fn a_format_that_cannot_be_enforced_is_refused_by_name() {
    let server = start(options());
    for (more, told) in [
        (schema_format(&json!({"properties": {"a": {"not": {}}}})), "`/properties/a` has the keyword `not`"),
        (schema_format(&json!({"type": "string", "format": "telephone"})), "Unknown format"),
        (schema_format(&json!({"$ref": "http://127.0.0.1/x"})), "$ref"),
        (schema_format(&json!({"type": "string", "enum": [1]})), "Unsatisfiable"),
        (json!({"response_format": {"type": "json_object"}, "ignore_eos": true}), "`ignore_eos`"),
        (json!({"tools": weather_and_time()}), "renders no tools"),
    ] {
        let answer = server.chat("base", "你好", more);
        let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(message.contains(told), "{message}");
    }
    // A chain of references as long as the limits allow must not exhaust a stack.
    let chain: serde_json::Map<String, Value> =
        (0..300).map(|i| (i.to_string(), json!({"$ref": format!("#/$defs/{}", i + 1)}))).collect();
    let mut chain = chain;
    chain.insert("300".to_owned(), json!({"const": 1}));
    let answer = server.chat("base", "你好", schema_format(&json!({"$ref": "#/$defs/0", "$defs": chain})));
    assert_eq!((answer.status, answer.text().as_str()), (200, "1"), "{}", answer.body);
}

fn tool_server() -> TestServer {
    start_with_template(ServeOptions { prefix_cache: false, ..options() }, TOOL_TEMPLATE)
}

#[test]
fn required_and_named_tools_are_called() {
    let server = tool_server();
    let call = |more: Value| {
        let mut body = json!({"tools": weather_and_time(), "max_tokens": 120, "temperature": 1, "seed": 3});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.chat("base", "天气？", body)
    };
    let named = json!({"type": "function", "function": {"name": "weather"}});
    let answer = call(json!({"tool_choice": named, "parallel_tool_calls": false})).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    assert_eq!(choice["message"]["content"], Value::Null);
    let [only] = &choice["message"]["tool_calls"].as_array().unwrap()[..] else { panic!("{answer}") };
    assert_eq!((&only["type"], &only["function"]["name"]), (&json!("function"), &json!("weather")));
    let arguments: Value = serde_json::from_str(only["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!([json!({"city": "Paris"}), json!({"city": "北京"})].contains(&arguments), "{arguments}");
    for seed in 0..6 {
        let answer = call(json!({"tool_choice": "required", "seed": seed})).json();
        let choice = &answer["choices"][0];
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert!(!calls.is_empty());
        let is_whole = choice["finish_reason"] == "tool_calls";
        for call in &calls[..calls.len() - usize::from(!is_whole)] {
            assert!(["weather", "now"].contains(&call["function"]["name"].as_str().unwrap()));
            let arguments = call["function"]["arguments"].as_str().unwrap();
            assert!(serde_json::from_str::<Value>(arguments).unwrap().is_object(), "{arguments}");
        }
    }
}

#[test]
fn streamed_calls_are_the_calls_of_the_whole_answer() {
    let server = tool_server();
    let body =
        json!({"tools": weather_and_time(), "tool_choice": "required", "temperature": 0, "max_tokens": 120});
    let whole = server.chat("base", "天气？", body.clone()).json();
    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = server.chat("base", "天气？", streamed).events();
    let mut calls: Vec<(String, String)> = Vec::new();
    for event in &events {
        for call in event["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten() {
            if let Some(name) = call["function"]["name"].as_str() {
                assert!(call["id"].is_string());
                calls.push((name.to_owned(), String::new()));
            }
            let index = call["index"].as_u64().unwrap() as usize;
            calls[index].1 += call["function"]["arguments"].as_str().unwrap();
        }
    }
    let message = &whole["choices"][0]["message"];
    let expected: Vec<(String, String)> = message["tool_calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| &call["function"])
        .map(|f| (f["name"].as_str().unwrap().to_owned(), f["arguments"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(calls, expected);
    let reasons: Vec<&Value> =
        events.iter().map(|e| &e["choices"][0]["finish_reason"]).filter(|reason| !reason.is_null()).collect();
    assert_eq!(reasons, [&whole["choices"][0]["finish_reason"]]);
}

#[test]
fn auto_leaves_text_free_and_none_hides_the_tools() {
    let server = tool_server();
    let plain = server.chat("base", "你是谁？", json!({})).json();
    let none =
        server.chat("base", "你是谁？", json!({"tools": weather_and_time(), "tool_choice": "none"})).json();
    assert_eq!(none["choices"][0]["message"], plain["choices"][0]["message"]);
    let auto = server.chat("base", "你是谁？", json!({"tools": weather_and_time()})).json();
    assert!(auto["usage"]["prompt_tokens"].as_u64() > plain["usage"]["prompt_tokens"].as_u64());
    assert_eq!(auto["choices"][0]["message"]["role"], "assistant");
    // Earlier calls and their results are a part of the conversation.
    let mut messages = json!([{"role": "user", "content": "天气？"}]);
    for _ in 0..3 {
        let call = json!({"id": "call_1", "type": "function",
            "function": {"name": "now", "arguments": "{}"}});
        messages.as_array_mut().unwrap().extend([
            json!({"role": "assistant", "content": null, "tool_calls": [call]}),
            json!({"role": "tool", "content": "12:00", "tool_call_id": "call_1"}),
        ]);
    }
    let body = json!({"model": "base", "messages": messages, "tools": weather_and_time(), "max_tokens": 8});
    assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
}

#[test]
fn ollama_formats_and_tools_are_honoured() {
    let server = tool_server();
    let chat = |more: Value| {
        let mut body = json!({"model": "base", "messages": [{"role": "user", "content": "你好"}],
            "options": {"temperature": 1, "seed": 1, "num_predict": 90}, "stream": false});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/api/chat", &body)
    };
    let answer = chat(json!({"format": {"enum": ["yes", "no"]}})).json();
    let text = answer["message"]["content"].as_str().unwrap();
    assert!(["\"yes\"", "\"no\""].contains(&text), "{answer}");
    assert!(chat(json!({"format": "json"})).json()["message"]["content"].as_str().unwrap().starts_with('{'));
    assert_eq!(chat(json!({"format": "xml"})).status, 400);
    assert_eq!(chat(json!({"tools": weather_and_time()})).status, 200);
    let show = server.post("/api/show", &json!({"model": "base"})).json();
    assert_eq!(show["capabilities"], json!(["completion", "tools"]));
}
