//! Compares text, ids and loss masks of real templates with transformers. The expected values are in
//! `shared/tokenizers/chat_cases.json`. Without this folder, the test is skipped.

use std::path::{Path, PathBuf};

use danlu_data::{EncodeOptions, ReadOptions, RecordContent, encode, read_from};
use danlu_model::{Message, Tokenizer};
use serde_json::{Value, json};

/// 1 August 2026 in seconds since 1970, which is the day of the expected values.
const DAY: u64 = 1_785_542_400;

fn shared() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/tokenizers");
    if !path.is_dir() {
        eprintln!("skipped: no shared/ beside the checkout");
        return None;
    }
    Some(path)
}

fn tokenizer(shared: &Path, template: &Value) -> Tokenizer {
    let tokenizer = Tokenizer::read(&shared.join(template["tokenizer"].as_str().unwrap())).unwrap();
    let tokenizer = match template["template"].as_str() {
        Some(name) => {
            let path = shared.join(template["tokenizer"].as_str().unwrap()).join(name);
            tokenizer.with_template(&path, &std::fs::read_to_string(&path).unwrap()).unwrap()
        }
        None => tokenizer,
    };
    tokenizer.template().unwrap().stop_clock(DAY);
    tokenizer
}

fn integers(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// Returns the first difference between danlu and transformers for a prompt: a conversation that does not end
/// with an answer.
fn prompt_fault(tokenizer: &Tokenizer, case: &Value, messages: &Value) -> Option<String> {
    let messages: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
    let template = match case.get("enable_thinking") {
        Some(value) => tokenizer.template().unwrap().with_value("enable_thinking", value.clone()),
        None => tokenizer.template().unwrap().clone(),
    };
    match (template.render(&messages, true), case["text"].as_str()) {
        (Err(_), None) => None,
        (Ok(text), Some(expected)) if text != expected => Some(format!("text {text:?}, {expected:?}")),
        (Ok(text), Some(_)) => {
            let ids: Vec<u64> = tokenizer.encode(&text).unwrap().into_iter().map(u64::from).collect();
            (ids != integers(&case["ids"])).then(|| "ids".to_owned())
        }
        (found, _) => Some(format!("{found:?}, expected {}", case["raises"])),
    }
}

/// Returns the first difference between danlu and transformers for a training record.
fn record_fault(tokenizer: &Tokenizer, case: &Value, record: &Value) -> Option<String> {
    let file = record.to_string();
    let dataset = read_from(file.as_bytes(), Path::new("a.jsonl"), &ReadOptions::default()).unwrap();
    let Some(record) = dataset.records.first() else { return Some(format!("{:?}", dataset.bad)) };
    assert!(matches!(record.content, RecordContent::Chat(_)));
    let options = EncodeOptions { max_length: 4096, ..EncodeOptions::default() };
    let encoded = match (encode(record, tokenizer, &options), case["text"].as_str()) {
        (Err(_), None) => return None,
        (Err(error), Some(_)) if case.get("no_mask").is_some() => {
            return (!error.found.contains("leaves")).then(|| error.to_string());
        }
        (Ok(encoded), Some(text)) if encoded.text == text => encoded,
        (Ok(encoded), text) => return Some(format!("text {:?}, {text:?}", encoded.text)),
        (Err(error), Some(_)) => return Some(error.to_string()),
    };
    let ids: Vec<u64> = encoded.sequence.ids.iter().map(|&id| u64::from(id)).collect();
    if ids != integers(&case["ids"]) {
        return Some("ids".to_owned());
    }
    if case.get("no_mask").is_some() {
        return None;
    }
    let mut mask = integers(&case["mask"]);
    // danlu never trains the first token, because no token comes before it.
    mask[0] = 0;
    let found: Vec<u64> = encoded.sequence.trained.iter().map(|&trained| u64::from(trained)).collect();
    (found != mask).then(|| {
        let differ = (0..mask.len()).filter(|&i| mask[i] != found[i]);
        let tokens: Vec<_> = differ.map(|i| (&encoded.text[encoded.offsets[i].clone()], mask[i])).collect();
        format!("mask: {tokens:?}")
    })
}

#[test]
fn every_conversation_equals_transformers_with_every_template() {
    let Some(shared) = shared() else { return };
    let cases = std::fs::read(shared.join("chat_cases.json")).unwrap();
    let cases: Value = serde_json::from_slice(&cases).unwrap();
    let (mut faults, mut compared) = (Vec::new(), 0);
    for (name, template) in cases["templates"].as_object().unwrap() {
        let tokenizer = tokenizer(&shared, template);
        for (case_name, case) in template["cases"].as_object().unwrap() {
            let conversation = case_name.split(' ').next().unwrap();
            let messages = &cases["conversations"][conversation];
            let record = match conversation {
                "tools" => json!({ "messages": messages, "tools": cases["tools"] }),
                _ => json!({ "messages": messages }),
            };
            let fault = match case["add_generation_prompt"].as_bool() {
                Some(true) => prompt_fault(&tokenizer, case, messages),
                _ => record_fault(&tokenizer, case, &record),
            };
            faults.extend(fault.map(|fault| format!("{name}, {case_name}: {fault}")));
            compared += 1;
        }
    }
    assert!(faults.is_empty(), "{} of {compared} differ:\n{}", faults.len(), faults.join("\n"));
    assert!(compared >= 234, "{compared}");
}

/// In a chat, the model's reply follows the rendered prompt. The text of a training record must therefore
/// start with the same prompt.
#[test]
fn thoughts_are_the_same_in_training_and_in_chat() {
    let Some(shared) = shared() else { return };
    let tokenizer = Tokenizer::read(&shared.join("qwen3")).unwrap();
    let template = tokenizer.template().unwrap();
    let encoded = |messages: &Value| {
        let file = json!({ "messages": messages }).to_string();
        let dataset = read_from(file.as_bytes(), Path::new("a.jsonl"), &ReadOptions::default()).unwrap();
        encode(&dataset.records[0], &tokenizer, &EncodeOptions::default()).unwrap()
    };
    let trained = |messages: &Value| {
        let encoded = encoded(messages);
        let first = encoded.sequence.trained.iter().position(|&trained| trained).unwrap();
        encoded.text[encoded.offsets[first].start..].to_owned()
    };
    let question = Message::new("user", "Hello?");
    let prompt = template.render(std::slice::from_ref(&question), true).unwrap();
    let closed = template.with_value("enable_thinking", false.into());
    let closed = closed.render(std::slice::from_ref(&question), true).unwrap();
    assert_eq!(closed, format!("{prompt}<think>\n\n</think>\n\n"));

    let plain = json!([{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]);
    let thoughtful = json!([
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi.", "reasoning_content": "A greeting."},
    ]);
    for (messages, answer) in [
        (plain, "<think>\n\n</think>\n\nHi.<|im_end|>"),
        (thoughtful, "<think>\nA greeting.\n</think>\n\nHi.<|im_end|>"),
    ] {
        // The thoughts are trained, because the prompt of a chat does not contain them and the model
        // generates them.
        assert!(trained(&messages).starts_with(answer), "{}", trained(&messages));
        assert_eq!(encoded(&messages).text.trim_end(), format!("{prompt}{answer}"));

        // The second prompt of the chat omits the thoughts of the first reply, and so does the text of the
        // record.
        let reply = answer.trim_end_matches("<|im_end|>");
        let second = Message::new("user", "And now?");
        let chat = [question.clone(), Message::new("assistant", reply), second];
        let mut record = messages.as_array().unwrap().clone();
        record.push(json!({"role": "user", "content": "And now?"}));
        record.push(json!({"role": "assistant", "content": "Bye."}));
        let prompt = template.render(&chat, true).unwrap();
        let text = encoded(&Value::from(record)).text;
        assert_eq!(text.trim_end(), format!("{prompt}<think>\n\n</think>\n\nBye.<|im_end|>"));
    }
}
