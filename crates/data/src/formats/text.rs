//! Reads `text`: a document without roles, for continued pre-training.

use crate::{
    fields::{Object, text},
    record::{Mismatch, RecordContent, RecordFault},
};

pub(super) fn convert(record: &Object) -> Result<RecordContent, Mismatch> {
    let text = text(record, "text")?;
    if text.trim().is_empty() {
        return Err(Mismatch::new(RecordFault::Empty, "an empty `text`", "text"));
    }
    Ok(RecordContent::Text(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use crate::{Format, formats::shown};

    #[test]
    fn a_text_is_kept_as_it_is() {
        assert_eq!(shown(Format::Text, r#"{"text": " a\n"}"#), " a\n");
        assert_eq!(shown(Format::Text, r#"{"text": "\n"}"#), "Empty! found an empty `text`, expected text");
        assert_eq!(
            shown(Format::Text, r#"{"text": 3}"#),
            "Shape! found the number 3 in `text`, expected a text"
        );
    }
}
