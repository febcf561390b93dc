//! References to models. A reference is a folder or a repository on the Hub.

use std::path::{Path, PathBuf};

use danlu_hub::{FetchScope, Hub, HubError, RepoName};

use crate::HubSource;

/// A reference to a model, as the user typed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A folder. The folder need not exist.
    Folder(PathBuf),
    /// A repository on the Hub.
    Hub(RepoName),
    /// The text `owner/model`, where `owner` is also a local folder, but contains no `model`. If the cache
    /// contains the repository, the text means the repository. If not, the text means a path.
    Ambiguous {
        /// The text as a path.
        path: PathBuf,
        /// The text as a repository.
        name: RepoName,
    },
}

impl ModelRef {
    /// Returns the repository that `path` names, or a folder if `path` exists. A text such as `hf:org/name`
    /// always names a repository.
    pub fn parse(path: &Path) -> Self {
        let folder = || Self::Folder(path.to_owned());
        if let Some(name) = explicit_name(path) {
            return Self::Hub(name);
        }
        let name = path.to_str().and_then(|text| parse_name(text).ok()).filter(|_| !path.exists());
        let Some(name) = name else { return folder() };
        let Some(owner) = name.id().split('/').next().map(Path::new) else { return folder() };
        // A pasted URL is never ambiguous, because a URL does not start with the owner's name.
        let owner_exists = path.starts_with(owner) && owner.exists();
        match name.named_revision().is_none() && owner_exists {
            true => Self::Ambiguous { path: path.to_owned(), name },
            false => Self::Hub(name),
        }
    }

    /// Returns the repository if the reference names one. An ambiguous reference names one only if the cache
    /// contains the repository.
    pub fn hub_name(&self, hub: &dyn HubSource) -> Option<&RepoName> {
        match self {
            Self::Folder(_) => None,
            Self::Hub(name) => Some(name),
            Self::Ambiguous { name, .. } => {
                Some(name).filter(|name| hub.hub().is_ok_and(|hub| is_cached(hub, name)))
            }
        }
    }

    /// If an ambiguous reference is treated as a path, returns a hint that shows how to name the repository
    /// instead.
    pub fn hub_hint(&self, hub: &dyn HubSource) -> Option<String> {
        let Self::Ambiguous { name, .. } = self else { return None };
        match self.hub_name(hub) {
            Some(_) => None,
            None => Some(format!("if it is on the Hub, write `hf:{name}`, or run `danlu pull {name}` first")),
        }
    }
}

/// Parses `hf:org/name` or `hf://org/name`. Such a text always means the repository, even if a folder
/// `org/name` exists.
pub fn explicit_name(path: &Path) -> Option<RepoName> {
    let text = path.to_str()?;
    let name = text.strip_prefix("hf://").or_else(|| text.strip_prefix("hf:"))?;
    name.parse().ok()
}

/// Parses the name of a repository as the user typed it, or the pasted URL of the repository's page.
///
/// # Errors
/// If the text is neither a repository name nor such a URL.
pub fn parse_name(text: &str) -> Result<RepoName, HubError> {
    let text = text.strip_prefix("hf:").filter(|rest| !rest.starts_with("//")).unwrap_or(text);
    text.parse().or_else(|error| {
        let endpoint = std::env::var("HF_ENDPOINT").ok().and_then(|text| text.parse().ok());
        RepoName::from_page_url(text, endpoint.as_ref()).ok_or(error)
    })
}

/// Replaces an abbreviated commit in `name` by the full commit. `folder` is the snapshot folder that was
/// found for `name`.
pub fn with_full_commit(name: RepoName, folder: &Path) -> RepoName {
    let commit = folder.file_name().and_then(|commit| commit.to_str()).unwrap_or_default();
    let is_part = name.named_revision().is_some_and(|part| part.len() >= 7 && commit.starts_with(part));
    if is_part { name.at(commit).unwrap_or(name) } else { name }
}

/// Returns whether the cache or the Hub contains a model named `path`. Local folders are not considered. If
/// the Hub does not respond, only the cache is considered.
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
        // The working directory of a test is the crate's folder, which contains a folder `src`.
        assert!(matches!(ModelRef::parse(Path::new("src/model")), ModelRef::Ambiguous { .. }));
    }
}
