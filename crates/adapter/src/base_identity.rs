//! The base that an adapter was trained on: its name, its repository on the Hub, and its fingerprints.

use std::fs;
use std::path::Path;

use danlu_model::is_repo_id;
use serde::{Deserialize, Serialize};

/// Common names of local folders. For example, `models/base` is a path and not a repository.
const FOLDERS: [&str; 16] = [
    "base",
    "bases",
    "checkpoint",
    "checkpoints",
    "data",
    "hub",
    "llm",
    "llms",
    "model",
    "models",
    "out",
    "output",
    "outputs",
    "pretrained",
    "results",
    "weights",
];

/// Identity of a base. The path of the base is not included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseIdentity {
    /// Name of the base's folder.
    pub name: String,
    /// Repository on the Hub, `owner/name`, if known.
    pub hub_id: Option<String>,
    /// Commit on the Hub, if known.
    pub revision: Option<String>,
    /// Fingerprint of configuration and weights.
    pub sha256: Option<String>,
    /// Fast fingerprint of a few pages of each file. Every load compares this fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
}

impl BaseIdentity {
    /// Returns the identity of a base fetched from the Hub as `id` at the commit `revision`.
    pub fn of_snapshot(id: &str, revision: &str) -> Self {
        let name = id.rsplit('/').next().unwrap_or(id).to_owned();
        Self { name, hub_id: Some(id.to_owned()), revision: Some(revision.to_owned()), ..Self::default() }
    }

    /// Returns the identity of the base in `folder`. `named` is the name of the base in the command or in the
    /// adapter: a path, or a repository on the Hub.
    ///
    /// `owner/name` is a repository, with two exceptions: a local folder of that name exists, or `owner` is a
    /// common name of a folder of models.
    pub fn of_folder(named: &str, folder: &Path) -> Self {
        let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let name = real.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let hub_id = Some(named).filter(|named| is_repo_id(named) && !Path::new(named).exists());
        let hub_id = hub_id.filter(|id| {
            let owner = id.split('/').next().unwrap_or_default().to_lowercase();
            !FOLDERS.contains(&owner.as_str())
        });
        Self { name, hub_id: hub_id.map(str::to_owned), ..Self::default() }
    }

    /// Checks the fields that are printed or inserted into links and commands.
    ///
    /// # Errors
    /// Returns the name of the first invalid field, and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(id) = self.hub_id.as_ref().filter(|id| !is_repo_id(id)) {
            return Err(("hub_id", format!("{id:?}, expected owner/name")));
        }
        if let Some(revision) = self.revision.as_ref().filter(|revision| !is_revision(revision)) {
            return Err(("revision", format!("{revision:?}, expected {REVISION_FORM}")));
        }
        for (field, sum) in [("sha256", &self.sha256), ("sample", &self.sample)] {
            if let Some(sum) = sum.as_ref().filter(|sum| !is_sha256(sum)) {
                return Err((field, format!("{sum:?}, expected 64 hexadecimal digits")));
            }
        }
        Ok(())
    }

    /// Returns the same base with `id` as its repository. If the repository changes, the commit is removed.
    pub fn with_hub_id(self, id: &str) -> Self {
        let revision = self.revision.filter(|_| self.hub_id.as_deref() == Some(id));
        Self { hub_id: Some(id.to_owned()), revision, ..self }
    }

    /// Returns the repository as `owner/name@commit`, or as `owner/name` if the commit is unknown. Returns
    /// `None` if the repository is unknown.
    pub fn at_revision(&self) -> Option<String> {
        let id = self.hub_id.as_ref()?;
        Some(self.revision.as_ref().map_or_else(|| id.clone(), |revision| format!("{id}@{revision}")))
    }

    /// Returns the name for display.
    pub fn shown(&self) -> &str {
        self.hub_id.as_deref().unwrap_or(&self.name)
    }
}

/// Text for messages that describes the syntax accepted by [`is_revision`].
pub const REVISION_FORM: &str = "a branch, tag or commit of letters, digits and `._-/+=#`";

/// Returns whether `revision` is a syntactically valid branch, tag or commit.
pub fn is_revision(revision: &str) -> bool {
    let known = |c: char| c.is_alphanumeric() || "._-/+=#".contains(c);
    !revision.starts_with('-') && (1..=255).contains(&revision.len()) && revision.chars().all(known)
}

fn is_sha256(sum: &str) -> bool {
    sum.len() == 64 && sum.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_never_taken_for_a_name_on_the_hub() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("secret/base-8m");
        fs::create_dir_all(&folder).unwrap();
        for named in [folder.to_str().unwrap(), "models/base-8m", "../secret/base-8m", "base-8m", "."] {
            let base = BaseIdentity::of_folder(named, &folder);
            assert_eq!((base.name.as_str(), base.hub_id), ("base-8m", None), "{named}");
        }
        let base = BaseIdentity::of_folder("meta-llama/Llama-3.2-1B", &folder);
        assert_eq!(base.shown(), "meta-llama/Llama-3.2-1B");
    }
}
