//! Which base lies in a folder: the Hub's cache tells name and commit by its folders.

use std::fs;
use std::path::Path;

use danlu_adapter::BaseIdentity;
use danlu_hub::parse_snapshot_path;

/// The base in `folder`, which was called `named`: a path, or a name on the Hub.
pub fn base_identity(named: &str, folder: &Path) -> BaseIdentity {
    let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    match parse_snapshot_path(&real) {
        Some((id, revision)) => BaseIdentity::of_snapshot(&id, &revision),
        None => BaseIdentity::of_folder(named, folder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hubs_cache_tells_name_and_commit() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("models--meta-llama--Llama-3.2-1B/snapshots/4e20de3");
        fs::create_dir_all(&folder).unwrap();
        let base = base_identity(folder.to_str().unwrap(), &folder);
        assert_eq!(base.hub_id.as_deref(), Some("meta-llama/Llama-3.2-1B"));
        assert_eq!((base.name.as_str(), base.revision.as_deref()), ("Llama-3.2-1B", Some("4e20de3")));
    }
}
