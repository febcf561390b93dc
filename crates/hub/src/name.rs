//! `org/name@revision`.

use std::fmt;
use std::str::FromStr;

use danlu_model::is_repo_id;

use crate::HubError;

/// A model on the Hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoName {
    id: String,
    revision: Option<String>,
}

impl RepoName {
    /// `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `name`.
    pub fn model(&self) -> &str {
        self.id.split_once('/').expect("checked when parsed").1
    }

    /// The branch, tag or commit; `main` where none is named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The revision that was named, if one was.
    pub fn named_revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The same model at another revision.
    ///
    /// # Errors
    /// If it cannot be one.
    pub fn at(&self, revision: &str) -> Result<Self, HubError> {
        match is_revision(revision) {
            true => Ok(Self { revision: Some(revision.to_owned()), ..self.clone() }),
            false => Err(HubError::Name { text: format!("{}@{revision}", self.id) }),
        }
    }

    /// Its folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
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
        Ok(Self { id: id.to_owned(), revision: revision.map(str::to_owned) })
    }
}

/// A revision becomes a path in the cache: it stays inside.
fn is_revision(revision: &str) -> bool {
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
