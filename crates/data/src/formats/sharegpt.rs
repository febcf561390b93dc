//! ShareGPT `conversations`: a list of `from` and `value`, with its own role names.

use danlu_model::Message;
use serde_json::Value;

use super::messages;
use crate::{
    conversation::{conversation, message, system},
    fields::{self, Object, list, optional_text, text},
    record::{Mismatch, RecordContent, RecordFault},
};

pub(super) fn convert(record: &Object) -> Result<RecordContent, Mismatch> {
    let mut turns: Vec<Message> = Vec::new();
    turns.extend(system(optional_text(record, "system")?));
    for (index, value) in list(record, "conversations")?.iter().enumerate() {
        turns.push(turn(value).map_err(|fault| messages::within(fault, index))?);
    }
    conversation(turns, 0)
}

/// Reads one turn with ShareGPT's keys or OpenAI's; some data sets mix both.
fn turn(value: &Value) -> Result<Message, Mismatch> {
    let Value::Object(object) = value else {
        let found = fields::describe(value);
        return Err(Mismatch::new(RecordFault::Shape, found, "an object with `from` and `value`"));
    };
    if object.contains_key("role") && !object.contains_key("from") {
        return messages::one(value);
    }
    let role = match text(object, "from")? {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" => "assistant",
        "system" => "system",
        name @ ("function_call" | "observation" | "tool" | "function") => {
            let expected = "a conversation without tools, which training does not support yet";
            return Err(Mismatch::new(RecordFault::Unsupported, format!("a `{name}` turn"), expected));
        }
        other => {
            let found = format!("the speaker `{}`", fields::clipped(other, 40));
            return Err(Mismatch::new(RecordFault::Conversation, found, "`human`, `gpt` or `system`"));
        }
    };
    Ok(message(role, text(object, "value")?))
}

#[cfg(test)]
mod tests {
    use crate::{Format, formats::shown};

    fn chat(record: &str) -> String {
        shown(Format::ShareGpt, record)
    }

    #[test]
    fn speakers_become_roles() {
        assert_eq!(
            chat(
                r#"{"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                    {"from": "user", "value": "c"}, {"from": "assistant", "value": "d"}]}"#
            ),
            "system: s | user: a | assistant: b | user: c | assistant: d"
        );
        assert_eq!(
            chat(
                r#"{"conversations": [{"from": "system", "value": "s"}, {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"}]}"#
            ),
            "system: s | user: a | assistant: b"
        );
    }

    #[test]
    fn each_fault_names_its_turn() {
        assert_eq!(
            chat(
                r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "narrator", "value": "b"}]}"#
            ),
            "Conversation! found the speaker `narrator` (message 2), expected `human`, `gpt` or `system`"
        );
        assert_eq!(
            chat(r#"{"conversations": [{"from": "human", "text": "a"}]}"#),
            "Shape! found the keys `from`, `text` (message 1), expected the key `value`"
        );
        assert_eq!(
            chat(r#"{"conversations": [{"from": "observation", "value": "42"}]}"#),
            "Unsupported! found a `observation` turn (message 1), \
             expected a conversation without tools, which training does not support yet"
        );
        assert_eq!(
            chat(r#"{"conversations": "a"}"#),
            "Shape! found the text \"a\" in `conversations`, expected a list"
        );
        assert_eq!(
            chat(
                r#"{"system": "s", "conversations": [{"from": "system", "value": "t"}, {"from": "gpt", "value": "b"}]}"#
            ),
            "Conversation! found a `system` message as message 2, expected `system` as the first message only"
        );
    }
}
