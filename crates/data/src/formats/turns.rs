//! Reads the turns of a conversation. The keys are OpenAI's (`role`, `content`), ShareGPT's (`from`, `value`)
//! or the user's.

use danlu_model::Message;
use serde_json::Value;

use super::masks;
use crate::{
    ReadOptions,
    conversation::message,
    fields::{self, Object, list_of, optional_list, refuse, text, type_mismatch},
    record::{Conversation, Mismatch, RecordFault, TurnLoss},
};

/// Keys for the role, in order of preference.
const ROLE_KEYS: [&str; 2] = ["role", "from"];

/// Keys for the text, in order of preference.
const CONTENT_KEYS: [&str; 2] = ["content", "value"];

/// Message keys whose content danlu cannot render. A message with such content is rejected.
const UNSUPPORTED: [&str; 4] = ["function_call", "images", "audio", "refusal"];

/// Message keys that are passed to the template unchanged.
const PASSED: [&str; 6] =
    ["tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking"];

/// Keys of a turn that holds a question and its answer, as MOSS, Firefly and XTuner write turns.
const EXCHANGE_KEYS: [(&str, &str); 8] = [
    ("human", "assistant"),
    ("user", "assistant"),
    ("human", "gpt"),
    ("user", "bot"),
    ("input", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
];

/// ShareGPT role that LLaMA-Factory uses for a turn whose text is a tool call.
const CALL_ROLE: &str = "function_call";

/// Roles of turns that contain a tool's result.
const TOOL_ROLES: [&str; 5] = ["tool", "function", "observation", "tool_response", "ipython"];

/// Converts lists of turns, and collects the keys that were not read.
pub(crate) struct TurnReader<'a> {
    options: &'a ReadOptions,
    /// Keys of messages that were not read. A key is listed once per record.
    pub unknown_keys: Vec<String>,
}

impl<'a> TurnReader<'a> {
    pub fn new(options: &'a ReadOptions) -> Self {
        Self { options, unknown_keys: Vec::new() }
    }

    /// Adds the turns in the list `key` to `chat`. An answer has a loss unless a mask key such as `train`
    /// excludes it. With `context`, an answer has a loss only if a mask key includes it.
    pub fn add(
        &mut self,
        chat: &mut Conversation,
        record: &Object,
        key: &str,
        context: bool,
    ) -> Result<(), Mismatch> {
        let list = list_of(record, key)?;
        let first = chat.messages.len();
        for (index, value) in list.iter().enumerate() {
            if let Some(keys) = exchange_keys(value) {
                self.add_exchange(chat, value, keys, context).map_err(|fault| within(fault, index))?;
                continue;
            }
            let after_user = chat.messages.last().is_some_and(|last| last.role == "user");
            let (message, mask) = self.turn(value, after_user).map_err(|fault| within(fault, index))?;
            let default =
                if context || message.role != "assistant" { TurnLoss::Context } else { TurnLoss::Whole };
            chat.messages.push(message);
            chat.loss.push(mask.unwrap_or(default));
        }
        masks::apply_lists(record, &chat.messages[first..], &mut chat.loss[first..])
    }

    /// Adds the question and the answer of one turn, after the turn's system message.
    fn add_exchange(
        &mut self,
        chat: &mut Conversation,
        value: &Value,
        (question, answer): (&'static str, &'static str),
        context: bool,
    ) -> Result<(), Mismatch> {
        let Value::Object(object) = value else { return Ok(()) };
        chat.push_system(fields::optional_text(object, "system")?);
        let reply = text(object, answer)?;
        let mask = masks::of_turn(object, reply)?;
        chat.push(message("user", text(object, question)?), TurnLoss::Context);
        let default = if context { TurnLoss::Context } else { TurnLoss::Whole };
        chat.push(message("assistant", reply), mask.unwrap_or(default));
        self.note_unknown(object, &[question, answer, "system"]);
        Ok(())
    }

    /// Notes the keys of a message that danlu does not read.
    fn note_unknown(&mut self, object: &Object, read: &[&str]) {
        for key in object.keys() {
            let is_read = read.contains(&key.as_str()) || masks::TURN_KEYS.contains(&key.as_str());
            if !is_read && !self.unknown_keys.contains(key) {
                self.unknown_keys.push(key.clone());
            }
        }
    }

    /// Reads one turn, and the loss that the turn's mask keys request. `after_user` is true if the previous
    /// turn is the user's.
    fn turn(&mut self, value: &Value, after_user: bool) -> Result<(Message, Option<TurnLoss>), Mismatch> {
        let Value::Object(object) = value else {
            let found = fields::describe(value);
            return Err(Mismatch::new(RecordFault::Shape, found, "an object with `role` and `content`"));
        };
        let (role_key, content_key) =
            (self.key(object, "role", &ROLE_KEYS), self.key(object, "content", &CONTENT_KEYS));
        let role = self.role(text(object, role_key)?, after_user)?;
        refuse(object, &UNSUPPORTED)?;
        if role == CALL_ROLE {
            let (call, mask) = (tool_call(object, content_key)?, masks::of_turn(object, "")?);
            return Ok((call, mask));
        }
        let (content, extra) = parts(object, content_key)?;
        let mask = masks::of_turn(object, &content)?;
        self.note_unknown(object, &[&[role_key, content_key], &UNSUPPORTED[..], &PASSED].concat());
        Ok((Message { extra, ..message(role, content) }, mask))
    }

    /// Returns the key that `object` uses for `ours`, which is `role` or `content`. The user's key takes
    /// precedence over the keys `known`.
    fn key(&self, object: &Object, ours: &'static str, known: &[&'static str]) -> &'a str {
        let present = |key: &&str| object.contains_key(*key);
        let options: &'a ReadOptions = self.options;
        let own = options.columns.message_key(ours).filter(present);
        own.or_else(|| known.iter().copied().find(present)).unwrap_or(match ours {
            // No known key is present, so this key appears in the caller's error. An object with ShareGPT's
            // `from` lacks ShareGPT's `value`.
            "content" if object.contains_key("from") && !object.contains_key("role") => "value",
            _ => ours,
        })
    }

    fn role(&self, name: &str, after_user: bool) -> Result<&'static str, Mismatch> {
        if let Some(role) = self.options.roles.role(name) {
            return Ok(role);
        }
        if TOOL_ROLES.contains(&name) {
            return Ok("tool");
        }
        if name == CALL_ROLE {
            return Ok(CALL_ROLE);
        }
        let shown = fields::clipped(name, 40);
        let expected = format!(
            "`system`, `user` or `assistant`, or a mapped name such as `--roles {}={}`",
            if shown.contains([' ', '"', '\'']) { format!("'{shown}'") } else { shown.clone() },
            if after_user { "assistant" } else { "user" }
        );
        Err(Mismatch::new(RecordFault::Conversation, format!("the role `{shown}`"), expected))
    }
}

fn within(mut mismatch: Mismatch, index: usize) -> Mismatch {
    mismatch.found = format!("{} (message {})", mismatch.found, index + 1);
    mismatch
}

/// Reads the tools of a record, from a list or from the JSON text of a list.
pub(super) fn tools(record: &Object) -> Result<Vec<Value>, Mismatch> {
    Ok(optional_list(record, "tools")?.into_owned())
}

/// Reads the text of a turn and the keys in [`PASSED`]. The text may be null if the turn contains a tool
/// call.
fn parts(object: &Object, content_key: &str) -> Result<(String, Object), Mismatch> {
    let mut extra = Object::new();
    for key in PASSED {
        if let Some(value) = object.get(key).filter(|value| !fields::is_void(value)) {
            extra.insert(key.to_owned(), value.clone());
        }
    }
    let is_null = object.get(content_key).is_none_or(Value::is_null);
    if is_null && extra.contains_key("tool_calls") {
        extra.insert("content".to_owned(), Value::Null);
        return Ok((String::new(), extra));
    }
    Ok((content(object, content_key)?, extra))
}

/// Returns the keys of a turn that holds a question and its answer.
pub(crate) fn exchange_keys(value: &Value) -> Option<(&'static str, &'static str)> {
    let has = |key: &str| value.get(key).is_some();
    // A record of the Alpaca format has `input` and `output` too, and is not a turn.
    if has("role") || has("from") || has("instruction") {
        return None;
    }
    EXCHANGE_KEYS.into_iter().find(|(question, answer)| has(question) && has(answer))
}

/// Reads a turn whose text is a tool call in JSON, or a list of calls, each with `name` and `arguments`.
fn tool_call(object: &Object, content_key: &str) -> Result<Message, Mismatch> {
    let text = text(object, content_key)?;
    let calls = match serde_json::from_str(text).unwrap_or_default() {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let is_call = |call: &Value| call.get("name").is_some_and(Value::is_string);
    if calls.is_empty() || !calls.iter().all(is_call) {
        return Err(type_mismatch(
            &Value::from(text),
            content_key,
            "the JSON of a call with `name` and `arguments`",
        ));
    }
    let calls: Value =
        calls.into_iter().map(|call| serde_json::json!({ "type": "function", "function": call })).collect();
    let mut message = message("assistant", "");
    message.extra.insert("tool_calls".to_owned(), calls);
    message.extra.insert("content".to_owned(), Value::Null);
    Ok(message)
}

/// Reads a string or a list of text parts. The parts are concatenated without a separator, as in OpenAI's
/// API.
fn content(object: &Object, key: &str) -> Result<String, Mismatch> {
    let Some(Value::Array(parts)) = object.get(key) else {
        return text(object, key).map(str::to_owned);
    };
    let mut joined = String::new();
    for part in parts {
        let Value::Object(part) = part else {
            return Err(type_mismatch(part, key, "parts like `{\"type\": \"text\", \"text\": \"…\"}`"));
        };
        let kind = text(part, "type")?;
        if kind != "text" {
            let found = format!("a content part of type `{}`", fields::clipped(kind, 40));
            return Err(Mismatch::new(RecordFault::Unsupported, found, "parts of type `text`"));
        }
        joined += text(part, "text")?;
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use crate::{Format, formats::shown};

    fn chat(messages: &str) -> String {
        shown(Format::Messages, &format!(r#"{{"messages": {messages}}}"#))
    }

    #[test]
    fn messages_are_read_unchanged() {
        assert_eq!(
            chat(
                r#"[{"role": "system", "content": "s"}, {"role": "user", "content": " a "},
                    {"role": "assistant", "content": "b", "tool_calls": null, "weight": 1}]"#
            ),
            "system: s | user:  a  | assistant: b"
        );
        assert_eq!(
            chat(
                r#"[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                    {"role": "assistant", "content": "c"}]"#
            ),
            "user: ab | assistant: c"
        );
        assert_eq!(
            chat(r#"[{"from": "USER", "value": "a"}, {"role": "model", "content": "b"}]"#),
            "user: a | assistant: b"
        );
    }

    #[test]
    fn each_fault_names_its_message() {
        let second = |message: &str| chat(&format!(r#"[{{"role": "user", "content": "a"}}, {message}]"#));
        assert_eq!(
            second(r#"{"role": "narrator", "content": "b"}"#),
            "Conversation! found the role `narrator` (message 2), \
             expected `system`, `user` or `assistant`, or a mapped name such as `--roles narrator=assistant`"
        );
        assert_eq!(
            second(r#"{"role": "assistant", "content": null}"#),
            "Shape! found null in `content` (message 2), expected a text"
        );
        assert_eq!(
            second(r#"{"role": "assistant", "content": 3}"#),
            "Shape! found the number 3 in `content` (message 2), expected a text"
        );
        assert_eq!(
            second(r#"{"speaker": "gpt", "value": "b"}"#),
            "Shape! found the keys `speaker`, `value` (message 2), expected the key `role`"
        );
        assert_eq!(
            second(r#"{"from": "gpt", "text": "b"}"#),
            "Shape! found the keys `from`, `text` (message 2), expected the key `value`"
        );
        assert_eq!(
            second(r#""b""#),
            "Shape! found the text \"b\" (message 2), expected an object with `role` and `content`"
        );
    }

    #[test]
    fn a_turn_may_hold_a_question_and_its_answer() {
        assert_eq!(
            chat(r#"[{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]"#),
            "user: a | assistant: b | user: c | assistant: d"
        );
        assert_eq!(
            chat(r#"[{"system": "s", "input": "a", "output": "b", "need_eos_token": true}]"#),
            "system: s | user: a | assistant: b"
        );
        assert_eq!(
            chat(r#"[{"input": "a", "output": 3}]"#),
            "Shape! found the number 3 in `output` (message 1), expected a text"
        );
    }

    #[test]
    fn tool_calls_reach_the_template_as_they_are() {
        let options = crate::ReadOptions::default();
        let record = r#"{"tools": "[{\"name\": \"f\"}]", "conversations": [{"from": "human", "value": "q"},
            {"from": "function_call", "value": "[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {}}]"},
            {"from": "observation", "value": "42"}, {"role": "assistant", "content": "b", "reasoning_content": "r"}]}"#;
        let record = serde_json::from_str(record).unwrap();
        let mut turns = super::TurnReader::new(&options);
        let content = crate::formats::convert(Format::ShareGpt, &record, &mut turns).unwrap();
        let crate::RecordContent::Chat(chat) = content else { panic!("a conversation") };
        let roles: Vec<_> = chat.messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
        assert_eq!(chat.tools, [serde_json::json!({"name": "f"})]);
        assert_eq!(chat.messages[1].extra["tool_calls"][1]["function"]["name"], "g");
        assert_eq!(chat.messages[3].extra["reasoning_content"], "r");
        assert!(turns.unknown_keys.is_empty());
    }

    #[test]
    fn images_and_old_function_calls_are_rejected_by_name() {
        let second = |message: &str| chat(&format!(r#"[{{"role": "user", "content": "a"}}, {message}]"#));
        assert_eq!(
            second(r#"{"role": "assistant", "content": "", "function_call": {"name": "f"}}"#),
            "Unsupported! found `function_call` (message 2), \
             expected a record without `function_call`, which training does not support yet"
        );
        assert_eq!(
            second(r#"{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}"#),
            "Unsupported! found a content part of type `image_url` (message 2), expected parts of type `text`"
        );
    }
}
