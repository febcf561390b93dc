//! `prompt` and `completion`: two texts, or two lists of messages.
//!
//! Two strings become one question and its answer. With lists, only answers in `completion` are trained;
//! assistant messages in `prompt` are context.

use danlu_model::Message;
use serde_json::Value;

use super::messages;
use crate::{
    conversation::{conversation, message},
    fields::{Object, type_mismatch},
    record::{Mismatch, RecordContent},
};

pub(super) fn convert(record: &Object) -> Result<RecordContent, Mismatch> {
    let mut turns = side(record, "prompt", "user")?;
    let answers = turns.len();
    turns.extend(side(record, "completion", "assistant")?);
    conversation(turns, answers)
}

/// Reads one side: a string said by `role`, or a list of messages.
fn side(record: &Object, key: &str, role: &str) -> Result<Vec<Message>, Mismatch> {
    match &record[key] {
        Value::String(text) => Ok(vec![message(role, text.as_str())]),
        Value::Array(list) => messages::messages(list).map_err(|mut mismatch| {
            mismatch.found = format!("{} of `{key}`", mismatch.found);
            mismatch
        }),
        other => Err(type_mismatch(other, key, "a text or a list of messages")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, formats::shown};

    #[test]
    fn texts_become_question_and_answer() {
        let shown = |record| shown(Format::PromptCompletion, record);
        assert_eq!(shown(r#"{"prompt": "a", "completion": "b"}"#), "user: a | assistant: b");
        assert_eq!(
            shown(r#"{"prompt": "a", "completion": 1}"#),
            "Shape! found the number 1 in `completion`, expected a text or a list of messages"
        );
        assert_eq!(
            shown(r#"{"prompt": "a", "completion": ""}"#),
            "Empty! found an empty `assistant` message (message 2), expected text"
        );
        assert_eq!(
            shown(r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user"}]}"#),
            "Shape! found the key `role` (message 1) of `completion`, expected the key `content`"
        );
    }

    #[test]
    fn answers_inside_the_prompt_are_context() {
        let record = r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]}"#;
        let RecordContent::Chat(chat) = convert(&serde_json::from_str(record).unwrap()).unwrap() else {
            panic!("a chat")
        };
        assert_eq!(chat.messages.len(), 4);
        assert_eq!(chat.answers().map(|answer| answer.content.as_str()).collect::<Vec<_>>(), ["d"]);
    }
}
