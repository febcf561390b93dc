//! Reads records in the format of Stanford Alpaca, with the later additions `system` and `history`.

use serde_json::Value;

use crate::{
    conversation::validate,
    fields::{self, Object, optional_list, optional_text, text, type_mismatch},
    record::{Conversation, Mismatch, RecordContent, RecordFault},
};

pub(super) fn convert(record: &Object) -> Result<RecordContent, Mismatch> {
    let mut chat = Conversation::default();
    chat.push_system(optional_text(record, "system")?);
    for (index, pair) in optional_list(record, "history")?.iter().enumerate() {
        let (question, answer) = exchange(pair, index)?;
        chat.push_exchange(question, answer);
    }
    let question = joined(text(record, "instruction")?, optional_text(record, "input")?.unwrap_or(""));
    if question.trim().is_empty() {
        return Err(Mismatch::new(RecordFault::Empty, "an empty `instruction` and no `input`", "a question"));
    }
    let answer = text(record, "output")?;
    if answer.trim().is_empty() {
        return Err(Mismatch::new(RecordFault::Empty, "an empty `output`", "an answer"));
    }
    chat.push_exchange(question, answer);
    validate(chat)
}

/// Joins instruction and input with a line break, as LLaMA-Factory and axolotl do.
fn joined(instruction: &str, input: &str) -> String {
    let separator = if instruction.is_empty() || input.is_empty() { "" } else { "\n" };
    [instruction, separator, input].concat()
}

/// Reads one entry of `history`: a list of a question and its answer.
fn exchange(pair: &Value, index: usize) -> Result<(&str, &str), Mismatch> {
    match pair.as_array().map(Vec::as_slice) {
        Some([Value::String(question), Value::String(answer)]) => Ok((question, answer)),
        Some([question, answer]) => {
            let found = format!("{} and {}", fields::describe(question), fields::describe(answer));
            let found = format!("{found} as exchange {} of `history`", index + 1);
            Err(Mismatch::new(RecordFault::Shape, found, "two texts, `[question, answer]`"))
        }
        _ => Err(type_mismatch(pair, "history", "pairs of texts, `[question, answer]`")),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Format, formats::shown};

    fn alpaca(record: &str) -> String {
        shown(Format::Alpaca, record)
    }

    #[test]
    fn instruction_and_input_make_one_question() {
        assert_eq!(
            alpaca(r#"{"instruction": "娘娘。", "input": "", "output": "在。"}"#),
            "user: 娘娘。 | assistant: 在。"
        );
        assert_eq!(
            alpaca(r#"{"instruction": "Translate", "input": "dog", "output": "狗"}"#),
            "user: Translate\ndog | assistant: 狗"
        );
        assert_eq!(
            alpaca(r#"{"instruction": "Translate: ", "input": "dog", "output": "狗"}"#),
            "user: Translate: \ndog | assistant: 狗"
        );
        assert_eq!(
            alpaca(r#"{"instruction": "", "input": "dog", "output": "狗"}"#),
            "user: dog | assistant: 狗"
        );
    }

    #[test]
    fn system_and_history_come_first() {
        assert_eq!(
            alpaca(
                r#"{"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]], "input": null}"#
            ),
            "system: s | user: a | assistant: b | user: c | assistant: d"
        );
    }

    #[test]
    fn each_fault_says_what_is_there() {
        assert_eq!(
            alpaca(r#"{"instruction": "a", "output": 7}"#),
            "Shape! found the number 7 in `output`, expected a text"
        );
        assert_eq!(
            alpaca(r#"{"instruction": null, "output": "b"}"#),
            "Shape! found null in `instruction`, expected a text"
        );
        assert_eq!(
            alpaca(r#"{"instruction": "a", "output": " "}"#),
            "Empty! found an empty `output`, expected an answer"
        );
        assert_eq!(
            alpaca(r#"{"instruction": "", "output": "b"}"#),
            "Empty! found an empty `instruction` and no `input`, expected a question"
        );
        assert_eq!(
            alpaca(r#"{"instruction": "a", "output": "b", "history": [["x", 3]]}"#),
            "Shape! found the text \"x\" and the number 3 as exchange 1 of `history`, \
             expected two texts, `[question, answer]`"
        );
        assert_eq!(
            alpaca(r#"{"instruction": "a", "output": "b", "history": ["x"]}"#),
            "Shape! found the text \"x\" in `history`, expected pairs of texts, `[question, answer]`"
        );
    }
}
