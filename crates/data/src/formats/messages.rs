//! Reads OpenAI's `messages` and ShareGPT's `conversations`: a list of turns, and optionally a `system` key.

use super::turns::{TurnReader, tools};
use crate::{
    conversation::validate,
    fields::{Object, optional_text},
    record::{Conversation, Mismatch, RecordContent},
};

/// Converts a record that contains its turns in the list `key`.
pub(super) fn convert(record: &Object, key: &str, turns: &mut TurnReader) -> Result<RecordContent, Mismatch> {
    let mut chat = Conversation { tools: tools(record)?, ..Conversation::default() };
    chat.push_system(optional_text(record, "system")?);
    turns.add(&mut chat, record, key, false)?;
    validate(chat)
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
    fn a_second_system_message_is_left_to_the_template() {
        assert_eq!(
            chat(
                r#"{"system": "s", "conversations": [{"from": "system", "value": "t"}, {"from": "gpt", "value": "b"}]}"#
            ),
            "system: s | system: t | assistant: b"
        );
    }

    #[test]
    fn a_list_as_json_text_is_read() {
        assert_eq!(
            chat(
                r#"{"conversations": "[{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"}]"}"#
            ),
            "user: a | assistant: b"
        );
        assert_eq!(
            chat(r#"{"conversations": "a"}"#),
            "Shape! found the text \"a\" in `conversations`, expected a list"
        );
    }
}
