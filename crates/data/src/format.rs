//! Record formats. danlu recognizes a format by the keys of a record.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::DataError;

/// The format of a file's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The keys `instruction` and `output`, and optionally `input`, `system` and `history`.
    Alpaca,
    /// The key `messages`: a list of objects with `role` and `content`.
    Messages,
    /// The key `conversations`: a list of objects with `from` and `value`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// The keys `prompt` and `completion`, which are texts or lists of messages.
    PromptCompletion,
    /// The key `text`: a document without roles.
    Text,
}

impl Format {
    /// All formats, in the same order as in the documentation.
    pub const ALL: [Self; 5] =
        [Self::Alpaca, Self::Messages, Self::ShareGpt, Self::PromptCompletion, Self::Text];

    /// Returns the format's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Messages => "messages",
            Self::ShareGpt => "sharegpt",
            Self::PromptCompletion => "prompt-completion",
            Self::Text => "text",
        }
    }

    /// Returns the keys that every record must contain. These keys identify the format.
    pub fn required_keys(self) -> &'static [&'static str] {
        match self {
            Self::Alpaca => &["instruction", "output"],
            Self::Messages => &["messages"],
            Self::ShareGpt => &["conversations"],
            Self::PromptCompletion => &["prompt", "completion"],
            Self::Text => &["text"],
        }
    }

    /// Returns the keys that a record may contain.
    pub fn optional_keys(self) -> &'static [&'static str] {
        match self {
            Self::Alpaca => &["input", "system", "history"],
            Self::Messages | Self::ShareGpt => &["system", "tools"],
            Self::PromptCompletion => &["tools"],
            Self::Text => &[],
        }
    }

    /// Returns all keys that danlu reads.
    pub(crate) fn keys(self) -> impl Iterator<Item = &'static str> {
        self.required_keys().iter().chain(self.optional_keys()).copied()
    }

    /// Returns the formats whose required keys are all in the record. For an unambiguous record, this is
    /// exactly one format.
    pub fn candidates(record: &Map<String, Value>) -> Vec<Self> {
        let fits = |format: &Self| format.required_keys().iter().all(|key| record.contains_key(*key));
        Self::ALL.into_iter().filter(fits).collect()
    }

    /// Returns one line per format with an example record, for error messages and help.
    pub fn table() -> String {
        let rows = Self::ALL.map(|format| format!("  {:<18} {}", format.name(), format.example()));
        rows.join("\n")
    }

    fn example(self) -> &'static str {
        match self {
            Self::Alpaca => r#"{"instruction": "…", "input": "…", "output": "…"}"#,
            Self::Messages => {
                r#"{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}"#
            }
            Self::ShareGpt => {
                r#"{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}"#
            }
            Self::PromptCompletion => r#"{"prompt": "…", "completion": "…"}"#,
            Self::Text => r#"{"text": "…"}"#,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name.to_ascii_lowercase().replace('_', "-").as_str() {
            "alpaca" => Ok(Self::Alpaca),
            "messages" | "openai" | "chatml" => Ok(Self::Messages),
            "sharegpt" | "conversations" => Ok(Self::ShareGpt),
            "prompt-completion" => Ok(Self::PromptCompletion),
            "text" => Ok(Self::Text),
            _ => Err(DataError::UnknownFormatName { name: name.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_parses_from_its_printed_name() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
        }
        let error = "parquet".parse::<Format>().unwrap_err();
        assert_eq!(error.to_string(), "cannot use the data format `parquet`: it is unknown");
        assert!(error.hint().unwrap().contains("`prompt-completion`"));
    }

    #[test]
    fn every_example_matches_only_its_own_format() {
        for format in Format::ALL {
            let example: Map<String, Value> = serde_json::from_str(format.example()).unwrap();
            assert_eq!(Format::candidates(&example), [format]);
        }
    }
}
