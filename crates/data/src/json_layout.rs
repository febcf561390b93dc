//! Recognizes the layout of a JSON file from its first bytes.

use serde_json::Value;

use crate::{Format, json_nesting::JsonNesting};

/// Number of bytes within which the list of records must start. If the list starts later, the file is read as
/// JSON lines.
pub(crate) const LOOK_AHEAD: usize = 1 << 20;

/// Keys under which data exporters write the list of records, in lower case.
const WRAPPERS: [&str; 11] = [
    "data",
    "train",
    "training",
    "train_data",
    "examples",
    "records",
    "rows",
    "items",
    "instances",
    "samples",
    "dataset",
];

/// The layout of the records in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One JSON array of records.
    Array,
    /// One record per line.
    Lines,
    /// One object that contains the list of records under a key.
    Wrapped {
        /// The key of the list.
        key: String,
        /// Number of bytes from the `{` to the first byte after the `[`.
        skip: usize,
    },
}

/// Recognizes the layout. `ahead` contains the first bytes after leading white space.
pub(crate) fn shape(ahead: &[u8]) -> Shape {
    match ahead.first() {
        Some(b'[') if is_conversation_per_line(ahead) => Shape::Lines,
        Some(b'[') => Shape::Array,
        Some(b'{') => wrapped(ahead).unwrap_or(Shape::Lines),
        _ => Shape::Lines,
    }
}

/// Returns whether the file has one conversation per line. The first line must be a list of messages, and the
/// rest must be empty or start with another list.
fn is_conversation_per_line(ahead: &[u8]) -> bool {
    let mut nesting = JsonNesting::default();
    for (index, byte) in ahead.iter().enumerate() {
        if *byte == b'\n' || nesting.fault(*byte).is_some() {
            return false;
        }
        nesting.take(*byte);
        if nesting.is_closed() {
            let (line, rest) = ahead.split_at(index + 1);
            return match rest.trim_ascii_start().first() {
                Some(b'[') | None => holds_messages(line),
                Some(_) => false,
            };
        }
    }
    false
}

fn holds_messages(line: &[u8]) -> bool {
    let is_message = |value: &Value| value.get("role").or(value.get("from")).is_some();
    let list = serde_json::from_slice::<Vec<Value>>(line).unwrap_or_default();
    !list.is_empty() && list.iter().all(is_message)
}

/// Finds the list of records in an object such as `{"data": [{…}]}`. Returns `None` if a key of a format
/// comes before the list, because the object is then a record.
fn wrapped(ahead: &[u8]) -> Option<Shape> {
    let mut at = 1;
    loop {
        at = skip_blanks(ahead, at);
        let end = string_end(ahead, at)?;
        let key = std::str::from_utf8(&ahead[at + 1..end - 1]).ok()?.to_lowercase();
        at = skip_blanks(ahead, end);
        if ahead.get(at) != Some(&b':') {
            return None;
        }
        at = skip_blanks(ahead, at + 1);
        if WRAPPERS.contains(&key.as_str()) && ahead.get(at) == Some(&b'[') {
            let first = ahead.get(skip_blanks(ahead, at + 1))?;
            return matches!(first, b'{' | b'[').then_some(Shape::Wrapped { key, skip: at + 1 });
        }
        if Format::ALL.iter().any(|format| format.keys().any(|known| known == key)) {
            return None;
        }
        at = skip_blanks(ahead, value_end(ahead, at)?);
        if ahead.get(at) != Some(&b',') {
            return None;
        }
        at += 1;
    }
}

fn skip_blanks(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Returns the index after the end of the string that starts at `at`.
fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    (bytes.get(at) == Some(&b'"')).then(|| value_end(bytes, at)).flatten()
}

/// Returns the index after the end of the value that starts at `at`.
fn value_end(bytes: &[u8], at: usize) -> Option<usize> {
    let is_plain = !matches!(bytes.get(at)?, b'"' | b'{' | b'[');
    let mut nesting = JsonNesting::default();
    for (index, byte) in bytes.iter().enumerate().skip(at) {
        if is_plain && matches!(byte, b',' | b'}') {
            return Some(index);
        }
        if nesting.fault(*byte).is_some() {
            return None;
        }
        nesting.take(*byte);
        if !is_plain && nesting.is_closed() {
            return Some(index + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapper(text: &str) -> Option<(String, &str)> {
        match shape(text.as_bytes()) {
            Shape::Wrapped { key, skip } => Some((key, &text[skip..])),
            _ => None,
        }
    }

    #[test]
    fn a_list_under_a_key_is_found_behind_other_keys() {
        assert_eq!(wrapper(r#"{"data": [{"a": 1}]}"#), Some(("data".into(), r#"{"a": 1}]}"#)));
        let text = "{\n \"version\": \"1, [\\\"\",\n \"info\": {\"n\": [1]}, \"n\": 2,\n \"train\": [\n{}]}";
        assert_eq!(wrapper(text), Some(("train".into(), "\n{}]}")));
        for lines in [
            r#"{"messages": [{"role": "user"}], "data": [{}]}"#,
            r#"{"data": ["a"], "text": "b"}"#,
            r#"{"id": 1, "text": "a"}"#,
            r#"{"id": "#,
        ] {
            assert_eq!(shape(lines.as_bytes()), Shape::Lines, "{lines}");
        }
    }

    #[test]
    fn an_array_per_line_is_a_record() {
        assert_eq!(shape(b"[{\"role\": \"user\"}]\n[{\"role\": \"user\"}]\n"), Shape::Lines);
        assert_eq!(shape(b"[{\"from\": \"a\", \"value\": \"b\"}]\n"), Shape::Lines);
        assert_eq!(shape(b"[{\"text\": \"a\"}]\n[{\"text\": \"b\"}]"), Shape::Array);
        assert_eq!(shape(b"[\n[{\"role\": \"user\"}]]"), Shape::Array);
        assert_eq!(shape(b"[[{\"from\": \"human\"}], [{\"from\": \"human\"}]]"), Shape::Array);
    }
}
