//! Reads typed fields of a JSON object. Errors contain the actual value.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::record::{Mismatch, RecordFault};

pub(crate) type Object = Map<String, Value>;

/// Reads a required string.
pub(crate) fn text<'a>(object: &'a Object, key: &str) -> Result<&'a str, Mismatch> {
    optional_text(object, key)?.ok_or_else(|| match object.get(key) {
        None => Mismatch::new(RecordFault::Shape, keys(object), format!("the key `{key}`")),
        Some(value) => type_mismatch(value, key, "a text"),
    })
}

/// Reads a string field that may be missing or null.
pub(crate) fn optional_text<'a>(object: &'a Object, key: &str) -> Result<Option<&'a str>, Mismatch> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(type_mismatch(other, key, "a text")),
    }
}

/// Reads a list. Returns an empty list if the key is missing, or if the value is null or the empty text of a
/// table cell.
pub(crate) fn optional_list<'a>(object: &'a Object, key: &str) -> Result<Cow<'a, [Value]>, Mismatch> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(Cow::Borrowed(&[])),
        Some(Value::String(text)) if text.is_empty() => Ok(Cow::Borrowed(&[])),
        Some(_) => list_of(object, key),
    }
}

/// Reads a required list. In a table, a list is JSON text such as `["a", "b"]`.
pub(crate) fn list_of<'a>(object: &'a Object, key: &str) -> Result<Cow<'a, [Value]>, Mismatch> {
    let is_list = |text: &&String| text.trim_start().starts_with('[');
    match object.get(key) {
        None => Err(Mismatch::new(RecordFault::Shape, keys(object), format!("the key `{key}`"))),
        Some(Value::Array(list)) => Ok(Cow::Borrowed(list)),
        Some(Value::String(text)) if is_list(&text) => {
            let list = serde_json::from_str(text).map_err(|error| {
                let found = format!("a list as text in `{key}` that is no JSON ({error})");
                Mismatch::new(RecordFault::Json, found, "a list, or its JSON")
            })?;
            Ok(Cow::Owned(list))
        }
        Some(other) => Err(type_mismatch(other, key, "a list")),
    }
}

/// Rejects a record that has content in one of the keys `unsupported`. Without this check, training would
/// silently ignore the content.
pub(crate) fn refuse(object: &Object, unsupported: &[&str]) -> Result<(), Mismatch> {
    for key in unsupported {
        if object.get(*key).is_some_and(|value| !is_void(value)) {
            return Err(Mismatch::new(
                RecordFault::Unsupported,
                format!("`{key}`"),
                format!("a record without `{key}`, which training does not support yet"),
            ));
        }
    }
    Ok(())
}

/// Returns whether a value counts as missing: null, or an empty text, list or object.
pub(crate) fn is_void(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

pub(crate) fn type_mismatch(value: &Value, place: &str, expected: &str) -> Mismatch {
    Mismatch::new(RecordFault::Shape, format!("{} in `{place}`", describe(value)), expected)
}

pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(text) => format!("the text \"{}\"", clipped(text, 40)),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(object) if object.is_empty() => "an empty object".into(),
        Value::Object(object) => format!("an object with {}", keys(object)),
    }
}

pub(crate) fn keys(object: &Object) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = object.keys().take(SHOWN).map(|key| format!("`{}`", clipped(key, 40))).collect();
    match object.len() {
        0 => "no keys".into(),
        1 => format!("the key {}", shown[0]),
        n if n <= SHOWN => format!("the keys {}", shown.join(", ")),
        n => format!("the keys {} and {} more", shown.join(", "), n - SHOWN),
    }
}

/// Returns the first `limit` characters of a text, on one line. A `…` is added if the text is longer.
pub(crate) fn clipped(text: &str, limit: usize) -> String {
    let mut chars = text.chars().map(|char| if char.is_control() { ' ' } else { char });
    let mut shown: String = chars.by_ref().take(limit).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}
