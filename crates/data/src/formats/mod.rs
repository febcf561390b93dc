//! Converts JSON objects to [`RecordContent`]. Each format has its own file.

mod alpaca;
pub(crate) mod masks;
mod messages;
mod prompt_completion;
mod text;
pub(crate) mod turns;

use turns::TurnReader;

use crate::{
    Format,
    fields::{self, Object},
    record::{Mismatch, RecordContent, RecordFault},
    unknown_keys,
};

/// Record keys whose content would change the model's input but cannot be rendered.
pub(crate) const UNSUPPORTED: [&str; 6] = ["functions", "images", "image", "audios", "videos", "documents"];

pub(crate) fn convert(
    format: Format,
    record: &Object,
    turns: &mut TurnReader,
) -> Result<RecordContent, Mismatch> {
    if !format.required_keys().iter().all(|key| record.contains_key(*key)) {
        let quoted = |keys: &[&str]| keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        let mut expected = format!("{} of the {format} format", quoted(format.required_keys()));
        if !format.optional_keys().is_empty() {
            expected += &format!(" (and perhaps {})", quoted(format.optional_keys()));
        }
        if let Some(question) = unknown_keys::misspelt(record, format) {
            expected += &format!("; {question}");
        }
        return Err(Mismatch::new(RecordFault::Shape, fields::keys(record), expected));
    }
    fields::refuse(record, &UNSUPPORTED)?;
    if format.keys().all(|key| key != "tools") {
        fields::refuse(record, &["tools"])?;
    }
    match format {
        Format::Alpaca => alpaca::convert(record),
        Format::Messages => messages::convert(record, "messages", turns),
        Format::ShareGpt => messages::convert(record, "conversations", turns),
        Format::PromptCompletion => prompt_completion::convert(record, turns),
        Format::Text => text::convert(record),
    }
}

/// Converts a record and formats the messages, or the fault.
#[cfg(test)]
fn shown(format: Format, record: &str) -> String {
    let options = crate::ReadOptions::default();
    match convert(format, &serde_json::from_str(record).unwrap(), &mut TurnReader::new(&options)) {
        Ok(RecordContent::Text(text)) => text,
        Ok(RecordContent::Chat(chat)) => {
            let turn = |message: &danlu_model::Message| format!("{}: {}", message.role, message.content);
            chat.messages.iter().map(turn).collect::<Vec<_>>().join(" | ")
        }
        Err(Mismatch { fault, found, expected }) => format!("{fault:?}! found {found}, expected {expected}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_format_names_both_sets_of_keys() {
        assert_eq!(
            shown(Format::Alpaca, r#"{"messages": [], "id": 3}"#),
            "Shape! found the keys `messages`, `id`, \
             expected `instruction`, `output` of the alpaca format (and perhaps `input`, `system`, `history`)"
        );
        assert_eq!(
            shown(Format::Alpaca, r#"{"instuction": "a", "input": "", "Output": "b"}"#),
            "Shape! found the keys `instuction`, `input`, `Output`, \
             expected `instruction`, `output` of the alpaca format (and perhaps `input`, `system`, `history`); \
             did you mean `instruction` instead of `instuction` and `output` instead of `Output`?"
        );
        assert_eq!(shown(Format::Text, "{}"), "Shape! found no keys, expected `text` of the text format");
    }

    #[test]
    fn keys_that_would_be_ignored_are_rejected_by_name() {
        assert_eq!(
            shown(Format::Text, r#"{"text": "x", "images": ["a.png"]}"#),
            "Unsupported! found `images`, expected a record without `images`, which training does not support yet"
        );
        assert_eq!(shown(Format::Text, r#"{"text": "x", "images": [], "tools": null}"#), "x");
    }
}
