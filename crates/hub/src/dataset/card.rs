//! The front matter of a data set's card, which may list the files of each split.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A subset of a data set, as the card declares it. Python's `datasets` calls it a configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct DeclaredSubset {
    /// The name of the subset.
    #[serde(rename = "config_name")]
    pub name: String,
    /// Whether this subset is read if the user names no subset.
    #[serde(default, rename = "default")]
    pub is_default: bool,
    data_files: Option<Files>,
    data_dir: Option<String>,
}

#[derive(Deserialize)]
struct FrontMatter {
    #[serde(default)]
    configs: Vec<DeclaredSubset>,
}

/// The files of a subset: patterns for the training split, a list of splits, or a map from splits to
/// patterns.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
enum Files {
    Patterns(Patterns),
    Splits(Vec<Split>),
    Map(BTreeMap<String, Patterns>),
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Split {
    split: String,
    path: Patterns,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Several(Vec<String>),
}

impl Patterns {
    fn list(&self) -> Vec<String> {
        match self {
            Self::One(pattern) => vec![pattern.clone()],
            Self::Several(patterns) => patterns.clone(),
        }
    }
}

impl DeclaredSubset {
    /// Returns each split with its patterns. The result is empty if the card lists no files for this subset.
    pub fn splits(&self) -> Vec<(String, Vec<String>)> {
        match &self.data_files {
            None => Vec::new(),
            Some(Files::Patterns(patterns)) => vec![("train".to_owned(), patterns.list())],
            Some(Files::Splits(splits)) => {
                splits.iter().map(|split| (split.split.clone(), split.path.list())).collect()
            }
            Some(Files::Map(splits)) => {
                splits.iter().map(|(split, patterns)| (split.clone(), patterns.list())).collect()
            }
        }
    }

    /// Returns the folder of the files, without slashes at its ends. An empty text means the whole
    /// repository.
    pub fn folder(&self) -> &str {
        self.data_dir.as_deref().unwrap_or_default().trim_start_matches("./").trim_matches('/')
    }

    /// Returns whether the card states where the files of this subset are.
    pub fn has_files(&self) -> bool {
        self.data_files.is_some() || self.data_dir.is_some()
    }
}

/// Returns the subsets in the front matter of a card.
///
/// # Errors
/// If the front matter is invalid. The error is the parser's message.
pub(crate) fn declared_subsets(card: &str) -> Result<Vec<DeclaredSubset>, String> {
    let Some(rest) = card.trim_start_matches('\u{feff}').trim_start().strip_prefix("---") else {
        return Ok(Vec::new());
    };
    let Some(end) = rest.find("\n---") else { return Ok(Vec::new()) };
    let yaml = &rest[..end];
    // Most cards declare no files. The front matter of such a card is not parsed, so it need not be valid.
    if !yaml.lines().any(|line| line.starts_with("configs:")) {
        return Ok(Vec::new());
    }
    match serde_saphyr::from_str::<FrontMatter>(yaml) {
        Ok(front) => Ok(front.configs.into_iter().filter(DeclaredSubset::has_files).collect()),
        Err(error) => Err(error.to_string().lines().next().unwrap_or_default().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subsets(yaml: &str) -> Vec<DeclaredSubset> {
        declared_subsets(&format!("---\nlicense: mit\n{yaml}\n---\n# Text\n")).unwrap()
    }

    #[test]
    fn files_are_declared_in_four_forms() {
        let yaml = "configs:
- config_name: default
  data_files: data.csv
- config_name: lists
  data_files: [a.csv, b.csv]
- config_name: splits
  default: true
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: [c, d]
- config_name: map
  data_dir: ./deep/
  data_files:
    train: a
    test: [b]
- config_name: none";
        let found = subsets(yaml);
        let names: Vec<&str> = found.iter().map(|subset| subset.name.as_str()).collect();
        assert_eq!(names, ["default", "lists", "splits", "map"]);
        let own = |pairs: &[(&str, &[&str])]| -> Vec<(String, Vec<String>)> {
            let owned = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect();
            pairs.iter().map(|(split, patterns)| ((*split).to_owned(), owned(patterns))).collect()
        };
        assert_eq!(found[0].splits(), own(&[("train", &["data.csv"])]));
        assert_eq!(found[1].splits(), own(&[("train", &["a.csv", "b.csv"])]));
        assert_eq!(found[2].splits(), own(&[("train", &["data/train-*"]), ("test", &["c", "d"])]));
        assert_eq!(found[3].splits(), own(&[("test", &["b"]), ("train", &["a"])]));
        assert_eq!((found[2].is_default, found[3].folder()), (true, "deep"));
    }

    #[test]
    fn a_card_without_files_declares_none() {
        for card in ["", "# Text", "---\nlicense: mit\n---\n", "---\nlicense: [\n---\n", "---\nunended"] {
            assert_eq!(declared_subsets(card), Ok(Vec::new()), "{card}");
        }
        assert!(declared_subsets("---\nconfigs: 3\n---\n").is_err());
    }
}
