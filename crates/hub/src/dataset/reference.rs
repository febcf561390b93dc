//! References to data sets: `org/name[@revision][:part]`.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::name::hub_path;
use crate::{Endpoint, HubError, RepoName};

const MAX_PART_BYTES: usize = 1024;

/// The name of a data set on the Hub, and the part of it that is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DatasetRef {
    repo: RepoName,
    part: Option<String>,
}

impl DatasetRef {
    /// Returns the repository.
    pub fn repo(&self) -> &RepoName {
        &self.repo
    }

    /// Returns the part after the colon: a split, a subset, `subset/split` or the path of a file. `None`
    /// means the training split.
    pub fn part(&self) -> Option<&str> {
        self.part.as_deref()
    }

    /// Returns the same data set at another revision and with another part.
    ///
    /// # Errors
    /// If `revision` or `part` is invalid.
    pub fn pinned(&self, revision: &str, part: &str) -> Result<Self, HubError> {
        Self::new(self.repo.at(revision)?, Some(part))
    }

    /// Parses the URL of a data set's page, or of the page of one of its files, at `endpoint` or at the Hub.
    ///
    /// Python's format `hf://datasets/org/name@revision/path` is accepted too.
    pub fn from_page_url(address: &str, endpoint: Option<&Endpoint>) -> Option<Self> {
        let address = address.trim().split(['?', '#']).next()?;
        if let Some(path) = address.strip_prefix("hf://datasets/") {
            let mut segments = path.trim_end_matches('/').splitn(3, '/');
            let name = format!("{}/{}", segments.next()?, segments.next()?);
            return Self::new(name.parse::<RepoName>().ok()?.into_dataset(), segments.next()).ok();
        }
        let path = hub_path(address, endpoint)?.strip_prefix("datasets/")?;
        let segments: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        let [owner, name, rest @ ..] = &segments[..] else { return None };
        let repo = format!("{owner}/{name}").parse::<RepoName>().ok()?.into_dataset();
        let decoded = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
        let (revision, file) = match rest {
            ["blob" | "resolve" | "raw", "refs", kind, number, file @ ..] => {
                (format!("refs/{kind}/{number}"), file)
            }
            ["blob" | "resolve" | "raw", revision, file @ ..] => (decoded(revision)?, file),
            ["tree", revision, ..] => (decoded(revision)?, &[][..]),
            ["viewer", subset, split, ..] => return Self::new(repo, Some(&format!("{subset}/{split}"))).ok(),
            _ => return Self::new(repo, None).ok(),
        };
        let repo = if revision == "main" { repo } else { repo.at(&revision).ok()? };
        let file = (!file.is_empty()).then(|| decoded(&file.join("/")));
        Self::new(repo, file.flatten().as_deref()).ok()
    }

    fn new(repo: RepoName, part: Option<&str>) -> Result<Self, HubError> {
        let is_valid = |part: &str| {
            !part.is_empty() && part.len() <= MAX_PART_BYTES && !part.contains(|c: char| c.is_control())
        };
        match part.is_none_or(is_valid) {
            true => Ok(Self { repo, part: part.map(str::to_owned) }),
            false => Err(HubError::DatasetName { text: format!("{repo}:{}", part.unwrap_or_default()) }),
        }
    }
}

impl fmt::Display for DatasetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        match &self.part {
            Some(part) => write!(f, ":{part}"),
            None => Ok(()),
        }
    }
}

impl FromStr for DatasetRef {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (name, part) = match text.split_once(':') {
            Some((name, part)) => (name, Some(part)),
            None => (text, None),
        };
        let name = name.strip_prefix("datasets/").unwrap_or(name);
        let repo: RepoName = name.parse().map_err(|_| HubError::DatasetName { text: text.to_owned() })?;
        Self::new(repo.into_dataset(), part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_has_a_name_a_revision_and_a_part() {
        for (text, name, revision, part) in [
            ("org/name", "org/name", "main", None),
            ("org/name:test", "org/name", "main", Some("test")),
            ("org/name@v2:main/test", "org/name", "v2", Some("main/test")),
            ("datasets/org/name@refs/convert/parquet", "org/name", "refs/convert/parquet", None),
            ("org/name:data/a b.jsonl", "org/name", "main", Some("data/a b.jsonl")),
        ] {
            let found: DatasetRef = text.parse().unwrap();
            assert_eq!(
                (found.repo().id(), found.repo().revision(), found.part()),
                (name, revision, part),
                "{text}"
            );
            assert!(found.repo().is_dataset());
            let again: DatasetRef = found.to_string().parse().unwrap();
            assert_eq!(again, found);
        }
        for text in ["", "name", "a/b/c", "a/b:", "a/b@", "../b", "a/b:x\n", ":train", "a/b@..:train"] {
            assert!(text.parse::<DatasetRef>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_page_of_a_data_set_has_its_name() {
        let mirror = "http://127.0.0.1:8000/hub".parse().unwrap();
        for (page, name) in [
            ("https://huggingface.co/datasets/org/name", Some("org/name")),
            ("https://hf-mirror.com/datasets/org/name/", Some("org/name")),
            ("hf.co/datasets/org/name/tree/v2/data", Some("org/name@v2")),
            ("https://huggingface.co/datasets/org/name/viewer/main/test?row=3", Some("org/name:main/test")),
            (
                "https://huggingface.co/datasets/org/name/blob/main/data/a%20b.jsonl",
                Some("org/name:data/a b.jsonl"),
            ),
            ("https://huggingface.co/datasets/org/name/resolve/v2/x.csv", Some("org/name@v2:x.csv")),
            ("http://127.0.0.1:8000/hub/datasets/org/name", Some("org/name")),
            ("hf://datasets/org/name@v2/x.csv", Some("org/name@v2:x.csv")),
            ("hf://datasets/org/name", Some("org/name")),
            ("https://huggingface.co/org/name", None),
            ("https://huggingface.co.evil.example/datasets/org/name", None),
            ("https://huggingface.co/datasets/org", None),
            ("org/name", None),
        ] {
            let found = DatasetRef::from_page_url(page, Some(&mirror)).map(|found| found.to_string());
            assert_eq!(found.as_deref(), name, "{page}");
        }
    }
}
