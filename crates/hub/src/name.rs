//! Names of repositories: `org/name@revision`.

use std::fmt;
use std::str::FromStr;

use danlu_model::is_repo_id;
use percent_encoding::percent_decode_str;

use crate::{Endpoint, HubError};

/// Host names of the Hub and of its mirror.
const HOSTS: [&str; 4] = ["huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com"];

/// First path segments of the Hub's own pages. No account has these names.
const NO_OWNERS: [&str; 8] =
    ["datasets", "spaces", "docs", "collections", "papers", "blog", "api", "settings"];

/// The content of a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum RepoKind {
    #[default]
    Model,
    Dataset,
}

/// The name of a model or a data set on the Hub, with a revision. Parsing returns the name of a model.
/// [`RepoName::into_dataset`] converts it to the name of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoName {
    kind: RepoKind,
    id: String,
    revision: Option<String>,
}

impl RepoName {
    /// Returns `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the part after the slash: `name` in `owner/name`.
    pub fn model(&self) -> &str {
        self.id.split_once('/').expect("checked when parsed").1
    }

    /// Returns the branch, tag or commit. The default is `main`.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Returns the revision if the name contains one.
    pub fn named_revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// Returns the name of the data set with this id.
    #[must_use]
    pub fn into_dataset(self) -> Self {
        Self { kind: RepoKind::Dataset, ..self }
    }

    /// Returns whether the repository is a data set.
    pub fn is_dataset(&self) -> bool {
        self.kind == RepoKind::Dataset
    }

    /// Returns the path of the repository in the API: `models/org/name` or `datasets/org/name`.
    pub(crate) fn api_path(&self) -> String {
        match self.kind {
            RepoKind::Model => format!("models/{}", self.id),
            RepoKind::Dataset => format!("datasets/{}", self.id),
        }
    }

    /// Returns the path of the repository's page: `org/name` or `datasets/org/name`.
    pub(crate) fn page_path(&self) -> String {
        match self.kind {
            RepoKind::Model => self.id.clone(),
            RepoKind::Dataset => format!("datasets/{}", self.id),
        }
    }

    /// Parses the URL of a model page at `endpoint` or at the Hub: `https://huggingface.co/org/name` or
    /// `.../tree/revision`.
    ///
    /// For the Hub, `https://` may be omitted. Python's format `hf://org/name@revision` is accepted too.
    pub fn from_page_url(address: &str, endpoint: Option<&Endpoint>) -> Option<Self> {
        let address = address.trim().split(['?', '#']).next()?;
        if let Some(name) = address.strip_prefix("hf://") {
            let name: Self = name.trim_end_matches('/').parse().ok()?;
            return (!NO_OWNERS.contains(&name.id.split('/').next()?)).then_some(name);
        }
        let path = hub_path(address, endpoint)?;
        let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        let [owner, model, rest @ ..] = &parts[..] else { return None };
        if NO_OWNERS.contains(owner) {
            return None;
        }
        let name: Self = format!("{owner}/{model}").parse().ok()?;
        let revision = match rest {
            ["tree" | "blob" | "resolve" | "raw" | "commit" | "commits", "refs", kind, number, ..] => {
                format!("refs/{kind}/{number}")
            }
            ["tree" | "blob" | "resolve" | "raw" | "commit" | "commits", revision, ..] => {
                percent_decode_str(revision).decode_utf8().ok()?.into_owned()
            }
            _ => return Some(name),
        };
        // The page of the main branch is the default page, so `tree/main` is not an explicit revision.
        if revision == "main" { Some(name) } else { name.at(&revision).ok() }
    }

    /// Returns the same repository at `revision`.
    ///
    /// # Errors
    /// If `revision` is not a valid revision.
    pub fn at(&self, revision: &str) -> Result<Self, HubError> {
        match is_revision(revision) {
            true => Ok(Self { revision: Some(revision.to_owned()), ..self.clone() }),
            false => Err(HubError::Name { text: format!("{}@{revision}", self.id) }),
        }
    }

    /// Returns the name of the repository's folder in the cache.
    pub(crate) fn folder(&self) -> String {
        self.api_path().replace('/', "--")
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl FromStr for RepoName {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        if !is_repo_id(id) || !revision.is_none_or(is_revision) {
            return Err(HubError::Name { text: text.to_owned() });
        }
        let kind = RepoKind::Model;
        Ok(Self { kind, id: id.to_owned(), revision: revision.map(str::to_owned) })
    }
}

/// Returns the path of a URL at `endpoint` or at the Hub. The scheme may be omitted.
pub(crate) fn hub_path<'a>(address: &'a str, endpoint: Option<&Endpoint>) -> Option<&'a str> {
    let bare = |text: &'a str| text.split_once("://").map_or(text, |(_, bare)| bare);
    let own = endpoint.map(|endpoint| endpoint.as_str().split_once("://").map_or("", |(_, bare)| bare));
    let address = bare(address);
    HOSTS.into_iter().chain(own).find_map(|host| address.strip_prefix(host)?.strip_prefix('/'))
}

/// Returns whether `revision` is valid. A revision becomes a path in the cache, so `..` and hidden names are
/// rejected.
pub(crate) fn is_revision(revision: &str) -> bool {
    revision.len() <= 250
        && revision.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_alphanumeric() || "-_.+=#".contains(c))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_models_name() {
        let mirror = "http://127.0.0.1:8000/hub".parse().unwrap();
        for (page, name) in [
            ("https://huggingface.co/org/name", Some("org/name")),
            ("https://huggingface.co/org/name/?library=peft#usage", Some("org/name")),
            ("https://hf-mirror.com/org/name/tree/main", Some("org/name")),
            ("https://huggingface.co/org/name/tree/v2/deep/er", Some("org/name@v2")),
            ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", Some("org/name@refs/pr/1")),
            ("https://huggingface.co/org/name/blob/refs/pr/1/config.json", Some("org/name@refs/pr/1")),
            ("https://huggingface.co/org/name/discussions/3", Some("org/name")),
            ("http://127.0.0.1:8000/hub/org/name", Some("org/name")),
            ("http://127.0.0.1:8000/org/name", None),
            ("https://huggingface.co/datasets/org/name", None),
            ("https://huggingface.co/org", None),
            ("https://huggingface.co/org/name/tree/..", None),
            ("https://huggingface.co.evil.example/org/name", None),
            ("https://github.com/org/name", None),
            ("hf.co/org/name", Some("org/name")),
            ("huggingface.co/org/name/tree/v2", Some("org/name@v2")),
            ("hf://org/name", Some("org/name")),
            ("hf://org/name@v2", Some("org/name@v2")),
            ("hf://datasets/org/name", None),
            ("hf://spaces/name", None),
            ("hf.co/datasets/org/name", None),
            ("org/name", None),
        ] {
            let found = RepoName::from_page_url(page, Some(&mirror)).map(|name| name.to_string());
            assert_eq!(found.as_deref(), name, "{page}");
        }
    }

    #[test]
    fn names_are_told_from_paths_and_mistakes() {
        let name: RepoName = "meta-llama/Llama-3.2-1B@refs/pr/4".parse().unwrap();
        assert_eq!((name.id(), name.revision()), ("meta-llama/Llama-3.2-1B", "refs/pr/4"));
        assert_eq!(name.to_string(), "meta-llama/Llama-3.2-1B@refs/pr/4");
        assert_eq!(name.folder(), "models--meta-llama--Llama-3.2-1B");
        let name: RepoName = "a/b".parse().unwrap();
        assert_eq!((name.revision(), name.to_string().as_str(), name.model()), ("main", "a/b", "b"));
        for text in [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "./b",
            "a/b ",
            "a/b--c",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a/b@/x",
            "a/b@.x",
            "a/b@x\0",
        ] {
            assert!(text.parse::<RepoName>().is_err(), "{text:?}");
        }
    }
}
