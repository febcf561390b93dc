//! OpenAI's `messages`: a list of `role` and `content`.

use danlu_model::Message;
use serde_json::Value;

use crate::{
    conversation::{ROLES, conversation, message},
    fields::{self, Object, list, refuse, text, type_mismatch},
    record::{Mismatch, RecordContent, RecordFault},
};

/// Message keys whose content would not be rendered.
const UNSUPPORTED: [&str; 9] = [
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "images",
    "audio",
    "refusal",
];

pub(super) fn convert(record: &Object) -> Result<RecordContent, Mismatch> {
    conversation(messages(list(record, "messages")?)?, 0)
}

/// Reads all messages of a list.
pub(super) fn messages(list: &[Value]) -> Result<Vec<Message>, Mismatch> {
    list.iter().enumerate().map(|(index, value)| one(value).map_err(|fault| within(fault, index))).collect()
}

/// Adds the message's number to a fault.
pub(super) fn within(mut mismatch: Mismatch, index: usize) -> Mismatch {
    mismatch.found = format!("{} (message {})", mismatch.found, index + 1);
    mismatch
}

/// Reads one message.
pub(super) fn one(value: &Value) -> Result<Message, Mismatch> {
    let Value::Object(object) = value else {
        let found = fields::describe(value);
        return Err(Mismatch::new(RecordFault::Shape, found, "an object with `role` and `content`"));
    };
    let role = text(object, "role")?;
    if matches!(role, "tool" | "function") {
        let expected = "a conversation without tools, which training does not support yet";
        return Err(Mismatch::new(RecordFault::Unsupported, format!("a `{role}` message"), expected));
    }
    if !ROLES.contains(&role) {
        let found = format!("the role `{}`", fields::clipped(role, 40));
        return Err(Mismatch::new(RecordFault::Conversation, found, "`system`, `user` or `assistant`"));
    }
    refuse(object, &UNSUPPORTED)?;
    // OpenAI's key that excludes an answer from the loss.
    if object.get("weight").is_some_and(|weight| weight.as_f64() != Some(1.0) && !weight.is_null()) {
        let found = format!("{} in `weight`", fields::describe(&object["weight"]));
        return Err(Mismatch::new(RecordFault::Unsupported, found, "no weight, or 1"));
    }
    Ok(message(role, content(object)?))
}

/// Reads a string, or a list of text parts. Parts are joined without a separator, as OpenAI does.
fn content(object: &Object) -> Result<String, Mismatch> {
    let Some(Value::Array(parts)) = object.get("content") else {
        return text(object, "content").map(str::to_owned);
    };
    let mut joined = String::new();
    for part in parts {
        let Value::Object(part) = part else {
            return Err(type_mismatch(part, "content", "parts like `{\"type\": \"text\", \"text\": \"…\"}`"));
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
    }

    #[test]
    fn each_fault_names_its_message() {
        let second = |message: &str| chat(&format!(r#"[{{"role": "user", "content": "a"}}, {message}]"#));
        assert_eq!(
            second(r#"{"role": "bot", "content": "b"}"#),
            "Conversation! found the role `bot` (message 2), expected `system`, `user` or `assistant`"
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
            second(r#"{"from": "gpt", "value": "b"}"#),
            "Shape! found the keys `from`, `value` (message 2), expected the key `role`"
        );
        assert_eq!(
            second(r#""b""#),
            "Shape! found the text \"b\" (message 2), expected an object with `role` and `content`"
        );
        assert_eq!(
            second(r#"{"role": "assistant", "content": "b", "weight": 0}"#),
            "Unsupported! found the number 0 in `weight` (message 2), expected no weight, or 1"
        );
    }

    #[test]
    fn tools_and_images_are_rejected_by_name() {
        let second = |message: &str| chat(&format!(r#"[{{"role": "user", "content": "a"}}, {message}]"#));
        assert_eq!(
            second(r#"{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}"#),
            "Unsupported! found `tool_calls` (message 2), \
             expected a record without `tool_calls`, which training does not support yet"
        );
        assert_eq!(
            second(r#"{"role": "tool", "content": "42"}"#),
            "Unsupported! found a `tool` message (message 2), \
             expected a conversation without tools, which training does not support yet"
        );
        assert_eq!(
            second(r#"{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}"#),
            "Unsupported! found a content part of type `image_url` (message 2), expected parts of type `text`"
        );
    }
}
