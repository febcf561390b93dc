//! Kinds of folders.

use std::path::{Path, PathBuf};

use danlu_adapter::{CONFIG_FILE, RUN_FILE, latest_checkpoint};

pub(crate) const MODEL_CONFIG: &str = "config.json";

/// The kind of a folder, as shown by the names of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FolderKind {
    /// A folder with `adapter_config.json`, which is an adapter.
    Adapter,
    /// A folder with `config.json`, which is a base or a merged model.
    Model,
    /// A training run that has not written its adapter yet.
    StoppedRun {
        /// The newest checkpoint of the run, which can be loaded as an adapter.
        newest: Option<PathBuf>,
    },
    /// The path does not exist.
    Missing,
    /// A file.
    File,
    /// A folder with other files.
    Other,
}

impl FolderKind {
    /// Returns the kind of `path`. No file is opened.
    pub fn of(path: &Path) -> Self {
        if path.join(CONFIG_FILE).is_file() {
            return Self::Adapter;
        }
        if path.join(MODEL_CONFIG).is_file() {
            return Self::Model;
        }
        let newest = latest_checkpoint(path).ok().flatten();
        if path.join(RUN_FILE).is_file() || newest.is_some() {
            return Self::StoppedRun { newest };
        }
        match path {
            path if !path.exists() => Self::Missing,
            path if path.is_file() => Self::File,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn kinds_follow_from_the_files_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(FolderKind::of(path), FolderKind::Other);
        assert_eq!(FolderKind::of(&path.join("absent")), FolderKind::Missing);
        fs::write(path.join(RUN_FILE), "").unwrap();
        assert_eq!(FolderKind::of(path), FolderKind::StoppedRun { newest: None });
        assert_eq!(FolderKind::of(&path.join(RUN_FILE)), FolderKind::File);
        let checkpoint = path.join("checkpoint-4");
        fs::create_dir(&checkpoint).unwrap();
        fs::write(checkpoint.join("danlu_state.json"), "{}").unwrap();
        assert_eq!(FolderKind::of(path), FolderKind::StoppedRun { newest: Some(checkpoint) });
        fs::write(path.join(MODEL_CONFIG), "{}").unwrap();
        assert_eq!(FolderKind::of(path), FolderKind::Model);
        fs::write(path.join(CONFIG_FILE), "{}").unwrap();
        assert_eq!(FolderKind::of(path), FolderKind::Adapter);
    }
}
