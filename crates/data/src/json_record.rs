//! Parses the bytes of one record as a JSON object.

use danlu_model::JsonFault;
use serde_json::Value;

use crate::{
    fields::{self, Object},
    json_nesting::JsonNesting,
    record::{BadRecord, RecordFault, RecordSource},
    record_splitter::Piece,
    scanner::Position,
};

/// Maximum number of values in a record. A conversation of 4096 messages has about 20,000 values.
const MAX_VALUES: usize = 1 << 18;

pub(crate) fn object(piece: &Piece, source: RecordSource) -> Result<Object, Box<BadRecord>> {
    let bad = |at: Option<Position>, fault, found: String, expected: &str| {
        let mut source = source.clone();
        let column = at.map(|at| at.column);
        source.line = at.map_or(source.line, |at| at.line);
        let expected = expected.to_owned();
        Box::new(BadRecord { source, column, fault, found, expected, rest_unread: false })
    };
    let text = std::str::from_utf8(&piece.bytes).map_err(|error| {
        let at = place(piece, error.valid_up_to());
        let found = format!("the byte 0x{:02x}", piece.bytes[error.valid_up_to()]);
        bad(Some(at), RecordFault::Charset, found, "UTF-8")
    })?;
    let values = count_values(&piece.bytes);
    if values > MAX_VALUES {
        let found = format!("{values} values in one record");
        return Err(bad(None, RecordFault::Json, found, &format!("at most {MAX_VALUES}")));
    }
    match parse(text) {
        Ok(Value::Object(object)) => Ok(unwrapped(object)),
        Ok(Value::Array(list)) if is_conversation(&list) => Ok(conversation(list)),
        Ok(other) => {
            Err(bad(None, RecordFault::Shape, fields::describe(&other), "a record, which is a JSON object"))
        }
        Err(error) => {
            // serde_json counts lines from the start of the record, and columns in bytes.
            let line_start = match error.line() {
                0 | 1 => 0,
                line => text.match_indices('\n').nth(line - 2).map_or(0, |(at, _)| at + 1),
            };
            let offset = line_start + error.column().saturating_sub(1);
            let offset =
                (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            // If the text ends too early, serde_json reports the position of the last character, which is not
            // the fault.
            let stumbled = text[offset..].chars().next().filter(|_| !error.is_eof());
            let JsonFault { found, expected } = JsonFault::new(&error, stumbled);
            Err(bad(Some(place(piece, offset)), RecordFault::Json, found, expected))
        }
    }
}

/// Estimates the number of values from the commas outside strings. The number is limited before the record is
/// parsed, because each parsed value needs about 200 bytes of memory.
fn count_values(bytes: &[u8]) -> usize {
    let mut nesting = JsonNesting::default();
    let is_comma = |byte: &&u8| {
        nesting.take(**byte);
        **byte == b',' && !nesting.in_string()
    };
    1 + bytes.iter().filter(is_comma).count()
}

/// Parses JSON. `NaN`, `Infinity` and `-Infinity`, which Python writes, become null.
fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| match without_nan(text) {
        Some(text) => serde_json::from_str(&text).map_err(|_| error),
        None => Err(error),
    })
}

/// Replaces Python's non-finite numbers outside strings by null. Returns `None` if there are no such numbers.
fn without_nan(text: &str) -> Option<String> {
    let mut replaced = String::with_capacity(text.len());
    let (mut nesting, mut copied, mut skip_to) = (JsonNesting::default(), 0, 0);
    for (at, byte) in text.bytes().enumerate() {
        if !nesting.in_string() && at >= skip_to {
            // Bytes are compared, because `at` may be inside a multi-byte character if the record is damaged.
            let rest = &text.as_bytes()[at..];
            let words = ["NaN", "-Infinity", "Infinity"];
            let word = words.into_iter().find(|word| rest.starts_with(word.as_bytes()));
            if let Some(word) = word {
                replaced.push_str(&text[copied..at]);
                replaced.push_str("null");
                (copied, skip_to) = (at + word.len(), at + word.len());
            }
        }
        nesting.take(byte);
    }
    replaced.push_str(&text[copied..]);
    (copied > 0).then_some(replaced)
}

/// Returns whether a list is a conversation, which means that every element is an object.
fn is_conversation(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(Value::is_object)
}

/// Wraps a list of turns in a record: ShareGPT's turns under `conversations`, and other turns under
/// `messages`.
fn conversation(list: Vec<Value>) -> Object {
    let key = if list[0].get("from").is_some() { "conversations" } else { "messages" };
    Object::from_iter([(key.to_owned(), Value::Array(list))])
}

/// Unwraps a row of the Hub's data set viewer: returns `row` of `{"row_idx": 0, "row": {…}}`. Any other
/// object is returned unchanged.
fn unwrapped(mut object: Object) -> Object {
    match object.contains_key("row_idx").then(|| object.remove("row")) {
        Some(Some(Value::Object(row))) => row,
        Some(Some(row)) => {
            object.insert("row".to_owned(), row);
            object
        }
        _ => object,
    }
}

/// Returns the position in the file of the byte `offset` of a record.
fn place(piece: &Piece, offset: usize) -> Position {
    let before = &piece.bytes[..offset.min(piece.bytes.len())];
    let lines = before.iter().filter(|byte| **byte == b'\n').count() as u64;
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let characters = before[line_start..].iter().filter(|byte| !(0x80..=0xbf).contains(*byte)).count() as u64;
    let first = if lines == 0 { piece.at.column } else { 1 };
    Position { line: piece.at.line + lines, column: first + characters }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_finite_numbers_outside_strings_are_null() {
        let value = parse(r#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \" NaN 嬛", "d": 1}"#).unwrap();
        let expected = serde_json::json!({"a": null, "b": [null, null], "c": "NaN \" NaN 嬛", "d": 1});
        assert_eq!(value, expected);
        assert!(parse(r#"{"a": Nan}"#).is_err() && parse(r#"{"a": NaN, "b": }"#).is_err());
    }
}
