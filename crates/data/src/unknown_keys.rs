//! Collects keys that a format does not define. Many of these keys are misspelt.

use danlu_model::closest_word;

use crate::{
    Format,
    fields::{self, Object},
    formats::{self, masks},
    record::RecordSource,
};

/// Maximum number of distinct keys that are recorded.
const MAX_KEYS: usize = 100;

/// A key that danlu does not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKey {
    /// The key.
    pub key: String,
    /// Number of records that contain the key.
    pub count: usize,
    /// The first record that contains the key.
    pub first: RecordSource,
    /// A similar key of the format, if the first record does not contain that key.
    pub meant: Option<&'static str>,
}

/// Counts the keys of `record`, and of its messages (`message_keys`), that `format` does not define.
pub(crate) fn count_unknown(
    found: &mut Vec<UnknownKey>,
    format: Format,
    record: &Object,
    message_keys: &[String],
    source: &RecordSource,
) {
    let is_known = |key: &&String| {
        let key = key.as_str();
        format.keys().any(|known| known == key)
            || formats::UNSUPPORTED.contains(&key)
            || key == "tools"
            || masks::LIST_KEYS.contains(&key)
    };
    let missing = || format.keys().filter(|known| !record.contains_key(*known));
    for key in record.keys().filter(|key| !is_known(key)) {
        count(found, fields::clipped(key, 40), source, || closest_word(key, missing()));
    }
    for key in message_keys {
        let shown = format!("{} (in messages)", fields::clipped(key, 40));
        count(found, shown, source, || closest_word(key, masks::TURN_KEYS));
    }
}

fn count(
    found: &mut Vec<UnknownKey>,
    key: String,
    source: &RecordSource,
    meant: impl FnOnce() -> Option<&'static str>,
) {
    if let Some(unknown) = found.iter_mut().find(|unknown| unknown.key == key) {
        unknown.count += 1;
    } else if found.len() < MAX_KEYS {
        found.push(UnknownKey { key, count: 1, first: source.clone(), meant: meant() });
    }
}

/// Returns a question about misspelt keys if, for every missing required key, the record contains a similar
/// key.
pub(crate) fn misspelt(record: &Object, format: Format) -> Option<String> {
    let missing = format.required_keys().iter().filter(|key| !record.contains_key(**key));
    let meant = missing.map(|key| {
        let strange = record.keys().filter(|key| format.keys().all(|known| known != key.as_str()));
        let found = strange.map(String::as_str).find(|strange| closest_word(strange, [*key]).is_some())?;
        Some(format!("`{key}` instead of `{}`", fields::clipped(found, 40)))
    });
    let meant: Vec<String> = meant.collect::<Option<_>>()?;
    (!meant.is_empty()).then(|| format!("did you mean {}?", meant.join(" and ")))
}
