//! The JSON fields of an untrusted file. Each error names the file, the field, its value and the expected
//! values.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;
use crate::files::{self, FileError};
use crate::json_fault::json_words;

/// Maximum size of a configuration. Real configurations are far smaller. A tokenizer or a shard index may
/// have tens of megabytes, so they have other limits.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Parses `bytes` as one JSON value. An error contains line and column.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Value, ModelError> {
    serde_json::from_slice(bytes).map_err(|e| malformed(path, bytes, &e))
}

pub(crate) fn malformed(path: &Path, bytes: &[u8], e: &serde_json::Error) -> ModelError {
    let message = json_words(bytes, e);
    ModelError::Json { path: path.to_owned(), line: e.line(), column: e.column(), message }
}

/// Reads a JSON file that contains an object. Returns `None` if the file does not exist.
///
/// # Errors
/// If the file cannot be read, or does not contain a JSON object.
pub fn read_json_object(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    match read_optional(path)? {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(other) => Err(no_object(path, &other)),
    }
}

/// Reads a JSON file. Returns `None` if the file does not exist.
pub(crate) fn read_optional(path: &Path) -> Result<Option<Value>, ModelError> {
    match files::read_bounded(path, MAX_CONFIG_BYTES) {
        Ok(bytes) => parse(path, &bytes).map(Some),
        Err(FileError { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The fields of one JSON object. A field with the value `null` counts as absent, like Python's `None`.
pub(crate) struct Fields<'a> {
    path: PathBuf,
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Returns the fields of the object at the top level of the file.
    pub fn new(path: &Path, value: &'a Value) -> Result<Self, ModelError> {
        match value {
            Value::Object(object) => Ok(Self { path: path.to_owned(), prefix: String::new(), object }),
            other => Err(no_object(path, other)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the object does not contain this key. A key with the value `null` is not missing.
    pub fn is_missing(&self, name: &str) -> bool {
        !self.object.contains_key(name)
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    /// Returns the fields of a nested object.
    pub fn nested(&self, name: &str) -> Result<Option<Self>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                Ok(Some(Self { path: self.path.clone(), prefix: format!("{}{name}.", self.prefix), object }))
            }
            Some(_) => Err(self.wrong(name, "an object")),
        }
    }

    /// Returns a required whole number between 1 and `most`.
    pub fn count(&self, name: &str, most: u64) -> Result<usize, ModelError> {
        self.count_opt(name, most)?
            .ok_or_else(|| self.wrong(name, format!("a whole number from 1 to {most}")))
    }

    /// Returns an optional whole number between 1 and `most`.
    pub fn count_opt(&self, name: &str, most: u64) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=most).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.wrong(name, format!("a whole number from 1 to {most}"))),
        }
    }

    /// Returns an optional finite number greater than zero.
    pub fn positive(&self, name: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(n) if n.is_finite() && n > 0.0 => Ok(Some(n)),
            _ => Err(self.wrong(name, "a number above zero")),
        }
    }

    pub fn flag(&self, name: &str) -> Result<bool, ModelError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// Returns one or more token ids.
    pub fn token_ids(&self, name: &str) -> Result<Vec<u32>, ModelError> {
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.get(name) {
            None => Some(Vec::new()),
            // In older configurations, -1 means that there is no token.
            Some(v) if v.as_i64() == Some(-1) => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(v) => one(v).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(name, "a token id or a list of them"))
    }

    /// Returns the error for an impossible value.
    pub fn wrong(&self, name: &str, expected: impl Into<String>) -> ModelError {
        ModelError::Field {
            path: self.path.clone(),
            field: format!("{}{name}", self.prefix),
            found: self.object.get(name).map_or_else(|| "missing".to_owned(), shown),
            expected: expected.into(),
        }
    }

    /// Returns the error for an unsupported value.
    pub fn unsupported(&self, name: &str, supported: impl Into<String>) -> ModelError {
        ModelError::Unsupported {
            path: self.path.clone(),
            field: format!("{}{name}", self.prefix),
            found: self.object.get(name).map_or_else(|| "missing".to_owned(), shown),
            supported: supported.into(),
        }
    }
}

fn no_object(path: &Path, found: &Value) -> ModelError {
    let message = format!("found {}, expected an object", shown(found));
    ModelError::Json { path: path.to_owned(), line: 1, column: 1, message }
}

/// Returns a JSON value as text that is short enough for a message.
fn shown(value: &Value) -> String {
    const MAX_SHOWN_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
