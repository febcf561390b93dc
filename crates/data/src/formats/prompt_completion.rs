//! Reads `prompt` and `completion`: two texts, or two lists of messages.
//!
//! Two texts become one question and its answer. In lists, the answers in `completion` have a loss. An answer
//! in `prompt` has a loss only if a key such as `train` includes it.

use serde_json::Value;

use super::turns::{TurnReader, tools};
use crate::{
    conversation::{message, validate},
    fields::{Object, type_mismatch},
    record::{Conversation, Mismatch, RecordContent, RecordFault, TurnLoss},
};

pub(super) fn convert(record: &Object, turns: &mut TurnReader) -> Result<RecordContent, Mismatch> {
    // KTO data labels each completion as good or bad, and a bad completion must not be trained.
    if record.get("label").is_some_and(Value::is_boolean) {
        let found = "`label`, which marks a completion as good or bad";
        let expected = "completions to learn, without `label`; preference training is not supported";
        return Err(Mismatch::new(RecordFault::Unsupported, found, expected));
    }
    let mut chat = Conversation { tools: tools(record)?, ..Conversation::default() };
    side(record, "prompt", &mut chat, turns)?;
    side(record, "completion", &mut chat, turns)?;
    validate(chat)
}

/// Adds the prompt or the completion, which is a text or a list of messages.
fn side(record: &Object, key: &str, chat: &mut Conversation, turns: &mut TurnReader) -> Result<(), Mismatch> {
    let is_prompt = key == "prompt";
    match &record[key] {
        Value::String(text) if is_prompt => chat.push(message("user", text.as_str()), TurnLoss::Context),
        Value::String(text) => chat.push(message("assistant", text.as_str()), TurnLoss::Whole),
        Value::Array(_) => turns.add(chat, record, key, is_prompt).map_err(|mut mismatch| {
            mismatch.found = format!("{} of `{key}`", mismatch.found);
            mismatch
        })?,
        other => return Err(type_mismatch(other, key, "a text or a list of messages")),
    }
    Ok(())
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
        let RecordContent::Chat(chat) = crate::formats::convert(
            Format::PromptCompletion,
            &serde_json::from_str(record).unwrap(),
            &mut TurnReader::new(&crate::ReadOptions::default()),
        )
        .unwrap() else {
            panic!("a chat")
        };
        assert_eq!(chat.messages.len(), 4);
        assert_eq!(chat.answers().map(|answer| answer.content.as_str()).collect::<Vec<_>>(), ["d"]);
    }
}
