//! References to models: folders or repositories on the Hub.

use std::path::{Path, PathBuf};

use danlu_hub::{FetchScope, Hub, HubError, RepoName};

use crate::HubSource;

/// A reference to a model, as typed by the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A folder, whether it exists or not.
    Folder(PathBuf),
    /// A repository on the Hub.
    Hub(RepoName),
    /// `owner/model` while a folder `owner` exists. It is a repository if the cache has it, otherwise a
    /// mistyped path.
    Ambiguous {
        /// The reference as a path.
        path: PathBuf,
        /// The reference as a repository.
        name: RepoName,
    },
}

impl ModelRef {
    /// Parses `path` as a Hub name unless a local file or folder of that name exists.
    pub fn parse(path: &Path) -> Self {
        let folder = || Self::Folder(path.to_owned());
        if let Some(name) = explicit_name(path) {
            return Self::Hub(name);
        }
        let name = path.to_str().and_then(|text| parse_name(text).ok()).filter(|_| !path.exists());
        let Some(name) = name else { return folder() };
        let Some(owner) = name.id().split('/').next().map(Path::new) else { return folder() };
        // A pasted URL does not begin with its owner.
        let owner_exists = path.starts_with(owner) && owner.exists();
        match name.named_revision().is_none() && owner_exists {
            true => Self::Ambiguous { path: path.to_owned(), name },
            false => Self::Hub(name),
        }
    }

    /// Returns the repository, if this is one. Reads the cache in the ambiguous case only.
    pub fn hub_name(&self, hub: &dyn HubSource) -> Option<&RepoName> {
        match self {
            Self::Folder(_) => None,
            Self::Hub(name) => Some(name),
            Self::Ambiguous { name, .. } => {
                Some(name).filter(|name| hub.hub().is_ok_and(|hub| is_cached(hub, name)))
            }
        }
    }

    /// Returns a hint on how to name the repository, if the reference was read as a path.
    pub fn hub_hint(&self, hub: &dyn HubSource) -> Option<String> {
        let Self::Ambiguous { name, .. } = self else { return None };
        match self.hub_name(hub) {
            Some(_) => None,
            None => Some(format!("if it is on the Hub, write `hf:{name}`, or run `danlu pull {name}` first")),
        }
    }
}

/// Parses `hf:org/name`, which names a repository even if a folder `org/name` exists.
pub fn explicit_name(path: &Path) -> Option<RepoName> {
    let text = path.to_str()?;
    let name = text.strip_prefix("hf://").or_else(|| text.strip_prefix("hf:"))?;
    name.parse().ok()
}

/// Parses a typed repository name, or the pasted URL of its page.
///
/// # Errors
/// If it is neither.
pub fn parse_name(text: &str) -> Result<RepoName, HubError> {
    let text = text.strip_prefix("hf:").filter(|rest| !rest.starts_with("//")).unwrap_or(text);
    text.parse().or_else(|error| {
        let endpoint = std::env::var("HF_ENDPOINT").ok().and_then(|text| text.parse().ok());
        RepoName::from_page_url(text, endpoint.as_ref()).ok_or(error)
    })
}

/// Completes an abbreviated commit in `name` from the snapshot folder it was resolved to.
pub fn with_full_commit(name: RepoName, folder: &Path) -> RepoName {
    let commit = folder.file_name().and_then(|commit| commit.to_str()).unwrap_or_default();
    let is_part = name.named_revision().is_some_and(|part| part.len() >= 7 && commit.starts_with(part));
    if is_part { name.at(commit).unwrap_or(name) } else { name }
}

/// Returns whether the cache or the Hub has a model `path`, even if a folder of that name exists.
pub fn is_known_name(hub: &Hub, path: &Path) -> bool {
    let name = path.to_str().and_then(|text| text.parse().ok());
    name.is_some_and(|name| is_cached(hub, &name) || hub.repo_exists(&name) == Some(true))
}

fn is_cached(hub: &Hub, name: &RepoName) -> bool {
    matches!(hub.cached_folder(name, FetchScope::Full), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let name = "meta-llama/Llama-3.2-1B@main";
        assert!(matches!(ModelRef::parse(Path::new(name)), ModelRef::Hub(name) if name.revision() == "main"));
        for path in ["models", "./models/x", "/models/x", "a/b/c", "out/my model", "../x"] {
            assert_eq!(ModelRef::parse(Path::new(path)), ModelRef::Folder(path.into()), "{path}");
        }
        assert!(
            matches!(ModelRef::parse(Path::new("hf:src/model")), ModelRef::Hub(name) if name.id() == "src/model")
        );
        // Tests run in the crate's folder, which has a folder `src`.
        assert!(matches!(ModelRef::parse(Path::new("src/model")), ModelRef::Ambiguous { .. }));
    }
}
