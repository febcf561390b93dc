//! Keys that a record has and its format does not: often a misspelt one.

use crate::{
    Format,
    fields::{self, Object},
    record::RecordSource,
    spelling::nearest,
};

/// Different keys that are remembered at most: someone may want to see some, nobody a file full of them.
const MAX_KEYS: usize = 100;

/// A key that is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKey {
    /// The key.
    pub key: String,
    /// Records that have it.
    pub count: usize,
    /// The first of them.
    pub first: RecordSource,
    /// The key that was likely meant, which that record lacks.
    pub meant: Option<&'static str>,
}

/// Counts the keys of `record` that `format` does not know.
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

/// Asks whether keys of a record are misspelt, if each that `format` requires and the record lacks has one near.
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
