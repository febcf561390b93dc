//! Keys that a format does not define, often misspelt ones.

use crate::{
    Format,
    fields::{self, Object},
    record::RecordSource,
    spelling::nearest,
};

/// Most distinct keys that are recorded.
const MAX_KEYS: usize = 100;

/// A key that danlu does not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKey {
    /// The key.
    pub key: String,
    /// Number of records with the key.
    pub count: usize,
    /// First record with the key.
    pub first: RecordSource,
    /// A similar key of the format that the first record lacks.
    pub meant: Option<&'static str>,
}

/// Counts the keys of `record` that `format` does not define.
pub(crate) fn count_unknown(
    found: &mut Vec<UnknownKey>,
    format: Format,
    record: &Object,
    known_besides: &[&str],
    source: &RecordSource,
) {
    let known = |key: &&String| format.keys().any(|known| known == key.as_str());
    for key in record.keys().filter(|key| !known(key) && !known_besides.contains(&key.as_str())) {
        let shown = fields::clipped(key, 40);
        if let Some(unknown) = found.iter_mut().find(|unknown| unknown.key == shown) {
            unknown.count += 1;
        } else if found.len() < MAX_KEYS {
            let meant = nearest(key, format.keys().filter(|known| !record.contains_key(*known)));
            found.push(UnknownKey { key: shown, count: 1, first: source.clone(), meant });
        }
    }
}

/// Returns a question about misspelt keys if every missing required key has a similar key in the record.
pub(crate) fn misspelt(record: &Object, format: Format) -> Option<String> {
    let missing = format.required_keys().iter().filter(|key| !record.contains_key(**key));
    let meant = missing.map(|key| {
        let strange = record.keys().filter(|key| format.keys().all(|known| known != key.as_str()));
        let found = strange.map(String::as_str).find(|strange| nearest(strange, [*key]).is_some())?;
        Some(format!("`{key}` instead of `{}`", fields::clipped(found, 40)))
    });
    let meant: Vec<String> = meant.collect::<Option<_>>()?;
    (!meant.is_empty()).then(|| format!("did you mean {}?", meant.join(" and ")))
}
