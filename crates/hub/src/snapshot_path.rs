//! Parses paths of snapshots.

use std::path::{Component, Path};

use danlu_model::is_repo_id;

use crate::name::is_revision;

/// Returns the model name and the commit of a snapshot folder, such as
/// `models--owner--name/snapshots/commit`.
pub fn parse_snapshot_path(folder: &Path) -> Option<(String, String)> {
    let parts: Vec<&str> = folder
        .components()
        .filter_map(|part| if let Component::Normal(part) = part { part.to_str() } else { None })
        .collect();
    let [.., repository, "snapshots", commit] = parts[..] else { return None };
    let id = repository.strip_prefix("models--")?.replacen("--", "/", 1);
    (is_repo_id(&id) && is_revision(commit)).then(|| (id, commit.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshots_path_has_name_and_commit() {
        let commit = Path::new("/h/hub/models--me--my-model/snapshots/abc");
        assert_eq!(parse_snapshot_path(commit), Some(("me/my-model".to_owned(), "abc".to_owned())));
        assert_eq!(parse_snapshot_path(Path::new("/h/models--me--m/blobs/abc")), None);
    }
}
