//! Maps the keys of a file to the keys of a format. The user specifies the keys, or danlu recognizes an alias
//! set: keys such as `question` and `answer` that many data sets use.

use std::{fmt, str::FromStr};

use danlu_model::closest_word;
use serde_json::Value;

use crate::{Format, fields::Object, formats::turns::exchange_keys};

/// Message keys that `--columns` may rename. `--columns` may also rename the record keys of all formats.
pub(crate) const MESSAGE_KEYS: [&str; 2] = ["role", "content"];

/// Alias sets, as `(file's key, format's key, is required)`. A set applies to a record that contains all
/// required keys of the set. Optional keys are renamed if present.
/// ASCII case is ignored.
const ALIASES: [&[(&str, &str, bool)]; 30] = [
    &[("instruction", "instruction", true), ("output", "output", true), ("input", "input", false)],
    &[("prompt", "prompt", true), ("completion", "completion", true)],
    &[("messages", "messages", true)],
    &[("conversations", "conversations", true)],
    &[("text", "text", true)],
    &[("question", "instruction", true), ("answer", "output", true)],
    &[("query", "instruction", true), ("response", "output", true)],
    &[("instruction", "instruction", true), ("response", "output", true), ("context", "input", false)],
    &[("instruction", "instruction", true), ("answer", "output", true)],
    &[("instruction", "instruction", true), ("completion", "output", true)],
    &[("prompt", "prompt", true), ("response", "completion", true)],
    &[("prompt", "prompt", true), ("output", "completion", true)],
    &[("prompt", "prompt", true), ("answer", "completion", true)],
    &[("input", "prompt", true), ("output", "completion", true)],
    &[("problem", "instruction", true), ("solution", "output", true)],
    &[("input", "instruction", true), ("target", "output", true)],
    &[("问题", "instruction", true), ("答案", "output", true)],
    &[("问题", "instruction", true), ("回答", "output", true)],
    &[("question", "instruction", true), ("response", "output", true)],
    &[("query", "instruction", true), ("answer", "output", true)],
    &[("user", "instruction", true), ("assistant", "output", true)],
    &[("human", "instruction", true), ("assistant", "output", true)],
    &[("content", "instruction", true), ("summary", "output", true)],
    &[("source", "instruction", true), ("target", "output", true)],
    &[("q", "instruction", true), ("a", "output", true)],
    &[("指令", "instruction", true), ("输出", "output", true), ("输入", "input", false)],
    &[("问", "instruction", true), ("答", "output", true)],
    &[("conversation", "conversations", true)],
    &[("dialogue", "conversations", true)],
    &[("dialog", "conversations", true)],
];

/// Maps a format's keys to the keys that the file uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    pairs: Vec<(&'static str, String)>,
}

/// An invalid value of `--columns` or `--roles`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameMapError {
    /// An entry that has no `=`, or no text on one side of the `=`.
    #[error("`{found}` is not a pair, expected `NAME=NAME`")]
    NotAPair {
        /// The invalid entry.
        found: String,
    },
    /// A key that does not belong to any format.
    #[error("`{found}` is not a key of any format, expected {expected}")]
    Key {
        /// The unknown key.
        found: String,
        /// The most similar key, or all keys if no key is similar.
        expected: String,
    },
    /// A name that is not a role.
    #[error("`{found}` is not a role, expected `system`, `user` or `assistant`")]
    Role {
        /// The unknown role.
        found: String,
    },
    /// A name that occurs in two entries.
    #[error("`{name}` is mapped twice, expected one pair per name")]
    Twice {
        /// The repeated name.
        name: String,
    },
}

/// Splits `a=b,c=d` into `(a, b)` and `(c, d)`.
pub(crate) fn pairs(text: &str) -> Result<Vec<(&str, &str)>, NameMapError> {
    let pair = |part: &'_ str| -> Option<(usize, usize)> {
        let at = part.find('=')?;
        let sides = (part[..at].trim(), part[at + 1..].trim());
        (!sides.0.is_empty() && !sides.1.is_empty()).then_some((at, at + 1))
    };
    text.split(',')
        .map(|part| match pair(part) {
            Some((end, start)) => Ok((part[..end].trim(), part[start..].trim())),
            None => Err(NameMapError::NotAPair { found: part.trim().to_owned() }),
        })
        .collect()
}

fn all_keys() -> Vec<&'static str> {
    let mut keys: Vec<&str> =
        Format::ALL.iter().flat_map(|format| format.keys()).chain(MESSAGE_KEYS).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

impl Columns {
    /// Maps the format's key `ours` to the file's key `theirs`.
    ///
    /// # Errors
    /// If `ours` is not a key of any format, or is already mapped.
    pub fn with(mut self, ours: &str, theirs: &str) -> Result<Self, NameMapError> {
        let keys = all_keys();
        let Some(key) = keys.iter().find(|key| **key == ours) else {
            let list = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            let expected = closest_word(ours, keys.iter().copied()).map_or(list, |key| format!("`{key}`"));
            return Err(NameMapError::Key { found: ours.to_owned(), expected });
        };
        if self.pairs.iter().any(|(mapped, theirs_too)| mapped == key || theirs_too == theirs) {
            let name = if self.theirs(key).is_some() { ours } else { theirs };
            return Err(NameMapError::Twice { name: name.to_owned() });
        }
        self.pairs.push((key, theirs.to_owned()));
        Ok(self)
    }

    /// Returns the file's key for the format's key `ours`, if it is mapped.
    fn theirs(&self, ours: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| *key == ours).map(|(_, theirs)| theirs.as_str())
    }

    /// Returns the file's key for the message key `role` or `content`, if it is mapped.
    pub(crate) fn message_key(&self, ours: &'static str) -> Option<&str> {
        self.theirs(ours)
    }

    /// Iterates over the mapped keys as pairs `(format's key, file's key)`.
    pub fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.pairs.iter().map(|(ours, theirs)| (*ours, theirs.as_str()))
    }

    /// Renames the keys of a record to the format's keys. A renamed key replaces an existing key of the same
    /// name.
    pub(crate) fn rename(&self, record: &mut Object) {
        if self.pairs.iter().all(|(_, theirs)| !record.contains_key(theirs)) {
            return;
        }
        let ours = |key: &str| {
            let pair = self.pairs.iter().find(|(ours, theirs)| theirs == key && !MESSAGE_KEYS.contains(ours));
            pair.map(|(ours, _)| *ours)
        };
        let present: Vec<&str> = record.keys().filter_map(|key| ours(key)).collect();
        let renamed = std::mem::take(record).into_iter().filter_map(|(key, value)| match ours(&key) {
            Some(ours) => Some((ours.to_owned(), value)),
            None => (!present.contains(&key.as_str())).then_some((key, value)),
        });
        *record = renamed.collect();
    }

    /// Returns the first alias set whose required keys are all in the record. If no set matches, returns the
    /// only key whose value is a list of turns.
    pub(crate) fn alias(record: &Object) -> Option<Self> {
        let key_of = |theirs: &str| record.keys().find(|key| key.eq_ignore_ascii_case(theirs));
        let has = |set: &&&[(&str, &str, bool)]| {
            set.iter().all(|(theirs, _, required)| !required || key_of(theirs).is_some())
        };
        let Some(set) = ALIASES.iter().find(has) else {
            let is_whole = |key: &str| !["prompt", "chosen", "rejected"].contains(&key);
            let mut lists = record.iter().filter(|(key, value)| is_whole(key) && is_conversation(value));
            let (only, None) = (lists.next()?, lists.next()) else { return None };
            return Some(Self { pairs: vec![("messages", only.0.clone())] });
        };
        let renamed = set.iter().filter_map(|(theirs, ours, _)| Some((*ours, key_of(theirs)?.clone())));
        Some(Self { pairs: renamed.filter(|(ours, theirs)| ours != theirs).collect() })
    }

    /// Adds the pairs of `more`. If a key of the format already has a pair, that pair stays.
    pub(crate) fn extend(&mut self, more: Self) {
        for (ours, theirs) in more.pairs {
            if self.theirs(ours).is_none() {
                self.pairs.push((ours, theirs));
            }
        }
    }
}

/// Returns whether the value is a list of turns. An element with a question and an answer may also be a
/// record of its own. Such an element counts as a turn only if the key of its question is `human` or `user`.
fn is_conversation(value: &Value) -> bool {
    let has = |turn: &Value, keys: [&str; 2]| keys.iter().any(|key| turn.get(key).is_some());
    let is_turn = |turn: &Value| {
        has(turn, ["role", "from"]) && has(turn, ["content", "value"])
            || exchange_keys(turn).is_some_and(|(question, _)| ["human", "user"].contains(&question))
    };
    value.as_array().is_some_and(|turns| !turns.is_empty() && turns.iter().all(is_turn))
}

impl FromStr for Columns {
    type Err = NameMapError;

    /// Parses a list `KEY=FILE_KEY,…`, such as `instruction=question,output=answer`.
    fn from_str(text: &str) -> Result<Self, NameMapError> {
        pairs(text)?
            .into_iter()
            .try_fold(Self::default(), |columns, (ours, theirs)| columns.with(ours, theirs))
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.pairs().map(|(ours, theirs)| format!("{ours}={theirs}")).collect();
        f.write_str(&pairs.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Object {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_mapped_key_takes_the_place_of_ours() {
        let columns: Columns = "instruction=Question,output=a b".parse().unwrap();
        let mut record = object(r#"{"output": "old", "Question": "q", "a b": "new", "id": 1}"#);
        columns.rename(&mut record);
        assert_eq!(record, object(r#"{"instruction": "q", "output": "new", "id": 1}"#));
        assert_eq!(columns.to_string().parse(), Ok(columns));
        let columns: Columns = "prompt=completion,completion=prompt".parse().unwrap();
        let mut record = object(r#"{"prompt": "a", "completion": "b"}"#);
        columns.rename(&mut record);
        assert_eq!(record, object(r#"{"completion": "a", "prompt": "b"}"#));
    }

    #[test]
    fn every_alias_set_makes_exactly_one_format() {
        for set in ALIASES {
            let mut record: Object =
                set.iter().map(|(theirs, ..)| ((*theirs).to_owned(), "x".into())).collect();
            let columns = Columns::alias(&record).unwrap();
            columns.rename(&mut record);
            assert_eq!(Format::candidates(&record).len(), 1, "{set:?}");
        }
    }

    #[test]
    fn any_key_may_hold_the_only_list_of_turns() {
        let alias = |json: &str| Columns::alias(&object(json)).map(|columns| columns.to_string());
        let turns = r#"[{"role": "user", "content": "a"}]"#;
        assert_eq!(alias(&format!(r#"{{"id": 1, "chat_log": {turns}}}"#)).unwrap(), "messages=chat_log");
        assert_eq!(alias(&format!(r#"{{"a": {turns}, "b": {turns}}}"#)), None);
        assert_eq!(alias(&format!(r#"{{"prompt": {turns}}}"#)), None);
        assert_eq!(alias(r#"{"turns": [{"human": "a", "assistant": "b"}]}"#).unwrap(), "messages=turns");
        assert_eq!(alias(r#"{"rows_here": [{"instruction": "a", "input": "b", "output": "c"}]}"#), None);
        assert_eq!(alias(r#"{"faq": [{"question": "a", "answer": "b"}]}"#), None);
        assert_eq!(
            alias(r#"{"Question": "a", "ANSWER": "b"}"#).unwrap(),
            "instruction=Question,output=ANSWER"
        );
        assert_eq!(alias(r#"{"Instruction": "a", "output": "b"}"#).unwrap(), "instruction=Instruction");
    }

    #[test]
    fn a_key_of_no_format_is_rejected_with_the_closest() {
        let error = |text: &str| text.parse::<Columns>().unwrap_err().to_string();
        assert_eq!(error("instuction=a"), "`instuction` is not a key of any format, expected `instruction`");
        assert_eq!(error("instruction=a,input=a"), "`a` is mapped twice, expected one pair per name");
        assert_eq!(error("output="), "`output=` is not a pair, expected `NAME=NAME`");
    }
}
