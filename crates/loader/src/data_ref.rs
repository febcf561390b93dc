//! References to data. A reference is a file or a data set on the Hub.

use std::path::{Path, PathBuf};

use danlu_hub::{DatasetRef, HubError};

use crate::HubSource;

/// Extensions of data files. For example, `owner/name.jsonl` is a path and not the name of a data set.
const DATA_EXTENSIONS: [&str; 9] = ["json", "jsonl", "ndjson", "csv", "tsv", "parquet", "gz", "zst", "txt"];

/// A reference to data, as the user typed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataRef {
    /// A file, which need not exist.
    File(PathBuf),
    /// A data set on the Hub.
    Hub {
        /// The data set.
        dataset: DatasetRef,
        /// Whether the text can only name a data set, such as `hf:org/name`.
        is_explicit: bool,
    },
    /// The text `owner/name`, where `owner` is also a local folder. If the cache contains the data set, the
    /// text means the data set. If not, the text means a path.
    Ambiguous {
        /// The text as a path.
        path: PathBuf,
        /// The text as a data set.
        dataset: DatasetRef,
    },
}

impl DataRef {
    /// Returns the data set that `path` names, or a file if `path` exists or looks like the path of a data
    /// file. A text such as `hf:org/name` always names a data set.
    pub fn parse(path: &Path) -> Self {
        let file = || Self::File(path.to_owned());
        if let Some(dataset) = explicit_dataset(path) {
            return Self::Hub { dataset, is_explicit: true };
        }
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let is_named_file = DATA_EXTENSIONS.contains(&extension.to_lowercase().as_str());
        let dataset = path.to_str().filter(|_| !path.exists()).and_then(|text| text.parse().ok());
        let Some(dataset): Option<DatasetRef> = dataset else { return file() };
        if is_named_file && dataset.part().is_none() {
            return file();
        }
        let owner = dataset.repo().id().split('/').next().map(Path::new);
        let owner_exists = owner.is_some_and(Path::exists);
        match owner_exists && dataset.part().is_none() && dataset.repo().named_revision().is_none() {
            true => Self::Ambiguous { path: path.to_owned(), dataset },
            false => Self::Hub { dataset, is_explicit: false },
        }
    }

    /// Returns the data set, if the reference is one. The cache is read only for an ambiguous reference.
    pub fn dataset(&self, hub: &dyn HubSource) -> Option<&DatasetRef> {
        match self {
            Self::File(_) => None,
            Self::Hub { dataset, .. } => Some(dataset),
            Self::Ambiguous { dataset, .. } => {
                let is_cached = |hub: &danlu_hub::Hub| matches!(hub.cached_dataset(dataset), Ok(Some(_)));
                Some(dataset).filter(|_| hub.hub().is_ok_and(is_cached))
            }
        }
    }

    /// Returns a hint that shows how to write an ambiguous reference as a data set.
    pub fn hub_hint(&self) -> Option<String> {
        let Self::Ambiguous { dataset, .. } = self else { return None };
        Some(format!("if it is a data set on the Hub, write `hf:{dataset}`"))
    }
}

/// Parses `hf:org/name`, `hf://datasets/org/name`, or the URL of a data set's page. Such a text never means a
/// local file.
pub fn explicit_dataset(path: &Path) -> Option<DatasetRef> {
    let text = path.to_str()?;
    // `path` may contain `hf:/` in place of `hf://`, because path operations merge repeated slashes.
    let text = match text.split_once(":/") {
        Some((scheme @ ("http" | "https" | "hf"), rest)) => {
            format!("{scheme}://{}", rest.trim_start_matches('/'))
        }
        _ => text.to_owned(),
    };
    let endpoint = std::env::var("HF_ENDPOINT").ok().and_then(|text| text.parse().ok());
    let from_page =
        || DatasetRef::from_page_url(&text, endpoint.as_ref()).filter(|_| !Path::new(&text).exists());
    match text.strip_prefix("hf:").filter(|rest| !rest.starts_with("//")) {
        Some(name) => name.parse().ok(),
        None => from_page(),
    }
}

/// Checks that the name of a data set follows `hf:`. Any text without `hf:` is accepted.
///
/// # Errors
/// If the text after `hf:` is not the name of a data set.
pub fn check_explicit(path: &Path) -> Result<(), HubError> {
    match path.to_str().and_then(|text| text.strip_prefix("hf:")) {
        Some(name) if !name.starts_with('/') => name.parse::<DatasetRef>().map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_told_from_files() {
        let is_explicit = |text: &str| match DataRef::parse(Path::new(text)) {
            DataRef::Hub { is_explicit, .. } => Some(is_explicit),
            _ => None,
        };
        for (text, expected) in [
            ("hf:me/data", Some(true)),
            ("hf:me/data@v2:main/test", Some(true)),
            ("hf://datasets/me/data", Some(true)),
            ("https://huggingface.co/datasets/me/data", Some(true)),
            ("me/data", Some(false)),
            ("me/data:test", Some(false)),
            ("me/data:x/y.jsonl", Some(false)),
            ("data/train.jsonl", None),
            ("data/train.json.gz", None),
            ("train.json", None),
            ("/me/data", None),
            ("https://example.com/me/data.json", None),
        ] {
            assert_eq!(is_explicit(text), expected, "{text}");
        }
        // The working directory of a test is the crate's folder, which contains `src`. `src/data` could thus
        // be a path.
        assert!(matches!(DataRef::parse(Path::new("src/data")), DataRef::Ambiguous { .. }));
        assert!(check_explicit(Path::new("hf:name")).is_err() && check_explicit(Path::new("name")).is_ok());
    }
}
