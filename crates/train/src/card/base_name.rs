//! What a card may say of its base: a name, and where the Hub has it.

use std::fs;
use std::path::{Component, Path};

use danlu_model::{files, is_repo_id};
use serde::{Deserialize, Serialize};

/// Owners that are folders: `models/base` is where someone keeps models, and no repository.
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

/// Longest card of a base that is looked into for its licence.
const MAX_CARD: u64 = 4 << 20;

/// A base without its path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseName {
    /// Its folder's name.
    pub name: String,
    /// Its name on the Hub, `owner/name`, where that is known.
    pub hub_id: Option<String>,
    /// The commit on the Hub it was fetched from, where that is known.
    pub revision: Option<String>,
    /// The fingerprint of its configuration and weights.
    pub sha256: Option<String>,
    /// A sample of them, which is compared wherever an adapter is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
}

impl BaseName {
    /// The base that lies in `folder` and was named `named`: a path, or a name on the Hub.
    ///
    /// The Hub's cache tells name and commit by its folders. A name like `owner/name` is the Hub's where it is no
    /// folder here.
    pub fn new(named: &str, folder: &Path) -> Self {
        let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let last = real.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if let Some((id, revision)) = cached(&real) {
            let name = id.rsplit('/').next().unwrap_or(&id).to_owned();
            return Self { name, hub_id: Some(id), revision: Some(revision), ..Self::default() };
        }
        let hub_id = Some(named).filter(|named| is_repo_id(named) && !Path::new(named).exists());
        let hub_id = hub_id.filter(|id| {
            let owner = id.split('/').next().unwrap_or_default().to_lowercase();
            !FOLDERS.contains(&owner.as_str())
        });
        Self { name: last, hub_id: hub_id.map(str::to_owned), ..Self::default() }
    }

    /// What is shown in a terminal, in links and in commands is what it claims to be; the field otherwise, and its fault.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(id) = self.hub_id.as_ref().filter(|id| !is_repo_id(id)) {
            return Err(("hub_id", format!("{id:?}, expected owner/name")));
        }
        if let Some(revision) = self.revision.as_ref().filter(|revision| !is_revision(revision)) {
            return Err(("revision", format!("{revision:?}, expected {REVISION}")));
        }
        for (field, sum) in [("sha256", &self.sha256), ("sample", &self.sample)] {
            if let Some(sum) = sum.as_ref().filter(|sum| !is_sha256(sum)) {
                return Err((field, format!("{sum:?}, expected 64 hexadecimal digits")));
            }
        }
        Ok(())
    }

    /// The same base under another name on the Hub, whose commits are its own.
    pub fn called(self, id: &str) -> Self {
        let revision = self.revision.filter(|_| self.hub_id.as_deref() == Some(id));
        Self { hub_id: Some(id.to_owned()), revision, ..self }
    }

    /// The name with the commit behind it, as danlu takes it: `owner/name@commit`; none where the Hub's name is not known.
    pub fn at_revision(&self) -> Option<String> {
        let id = self.hub_id.as_ref()?;
        Some(self.revision.as_ref().map_or_else(|| id.clone(), |revision| format!("{id}@{revision}")))
    }

    /// The name to show.
    pub fn shown(&self) -> &str {
        self.hub_id.as_deref().unwrap_or(&self.name)
    }
}

/// Name and commit of a folder of the Hub's cache: `models--owner--name/snapshots/commit`.
pub fn cached(folder: &Path) -> Option<(String, String)> {
    let parts: Vec<&str> = folder
        .components()
        .filter_map(|part| if let Component::Normal(part) = part { part.to_str() } else { None })
        .collect();
    let [.., repository, "snapshots", commit] = parts[..] else { return None };
    let id = repository.strip_prefix("models--")?.replacen("--", "/", 1);
    (is_repo_id(&id) && is_revision(commit)).then(|| (id, commit.to_owned()))
}

/// The licence that the base's own card names.
pub fn license_of(base: &Path) -> Option<String> {
    let card = String::from_utf8(files::read_bounded(&base.join("README.md"), MAX_CARD).ok()?).ok()?;
    let mut lines = card.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let front = lines.take_while(|line| line.trim_end() != "---");
    let value = front.filter_map(|line| line.strip_prefix("license:")).next()?;
    let id = value.trim().trim_matches(['"', '\'']);
    is_license(id).then(|| id.to_owned())
}

/// Whether `id` is spelt as the Hub spells licences: `apache-2.0`.
pub fn is_license(id: &str) -> bool {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    !id.is_empty() && id.len() <= 64 && id.chars().all(known)
}

/// What [`is_revision`] takes, in words.
pub(super) const REVISION: &str = "a branch, tag or commit of letters, digits and `._-/+=#`";

/// Whether `revision` is spelt as a branch, a tag or a commit that danlu fetches or sends.
pub(super) fn is_revision(revision: &str) -> bool {
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
            let base = BaseName::new(named, &folder);
            assert_eq!((base.name.as_str(), base.hub_id), ("base-8m", None), "{named}");
        }
        let base = BaseName::new("meta-llama/Llama-3.2-1B", &folder);
        assert_eq!(base.shown(), "meta-llama/Llama-3.2-1B");
    }

    #[test]
    fn the_hubs_cache_tells_name_and_commit() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("models--meta-llama--Llama-3.2-1B/snapshots/4e20de3");
        fs::create_dir_all(&folder).unwrap();
        let base = BaseName::new(folder.to_str().unwrap(), &folder);
        assert_eq!(base.hub_id.as_deref(), Some("meta-llama/Llama-3.2-1B"));
        assert_eq!((base.name.as_str(), base.revision.as_deref()), ("Llama-3.2-1B", Some("4e20de3")));
        let commit = Path::new("/h/hub/models--me--my-model/snapshots/abc");
        assert_eq!(cached(commit).unwrap().0, "me/my-model");
        assert_eq!(cached(Path::new("/h/models--me--m/blobs/abc")), None);
    }

    #[test]
    fn the_licence_is_what_the_bases_card_says() {
        let root = tempfile::tempdir().unwrap();
        let license = |card: &str| {
            fs::write(root.path().join("README.md"), card).unwrap();
            license_of(root.path())
        };
        assert_eq!(
            license("---\nlanguage: zh\nlicense: \"apache-2.0\"\n---\n# x\n").as_deref(),
            Some("apache-2.0")
        );
        assert_eq!(license("---\ntags: x\n---\nlicense: mit\n"), None);
        assert_eq!(license("license: mit\n"), None);
        assert_eq!(license("---\nlicense: \"a\\\" b\"\n---\n"), None);
    }
}
