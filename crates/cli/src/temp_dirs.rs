//! Temporary folders, which are removed when they are dropped, and when Ctrl-C ends the process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use danlu_model::files::TEMPORARY_PREFIX;
use tempfile::TempDir;

use crate::diagnostic::{Diagnostic, Result};

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A temporary folder that is removed when it is dropped, or when Ctrl-C ends the process.
pub struct TrackedTempDir {
    folder: TempDir,
}

impl TrackedTempDir {
    /// Creates a folder with a new name in `parent`.
    ///
    /// # Errors
    /// If `parent` cannot be written.
    pub fn new_in(parent: &Path) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        let made = builder.prefix(TEMPORARY_PREFIX).tempdir_in(parent);
        // tempfile's message repeats the path, so only the kind of its error is used.
        let folder = made.map_err(|error| Diagnostic::io("write to", parent, error.kind().into()))?;
        folders(|all| all.push(folder.path().to_owned()));
        Ok(Self { folder })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for TrackedTempDir {
    fn drop(&mut self) {
        folders(|all| all.retain(|path| path != self.folder.path()));
    }
}

/// Removes all temporary folders before an exit that would not drop them.
pub fn remove_all() {
    folders(|all| {
        for path in all.drain(..) {
            // Another thread may write to the folder during the first call. The second call removes the files
            // of that thread.
            let _ = fs::remove_dir_all(&path);
            let _ = fs::remove_dir_all(&path);
        }
    });
}

fn folders(change: impl FnOnce(&mut Vec<PathBuf>)) {
    change(&mut FOLDERS.lock().unwrap_or_else(PoisonError::into_inner));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_go_when_dropped_and_when_all_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let (one, two) =
            (TrackedTempDir::new_in(parent.path()).unwrap(), TrackedTempDir::new_in(parent.path()).unwrap());
        fs::write(one.path().join("a"), "a").unwrap();
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && two.path().exists());
        remove_all();
        assert!(!two.path().exists());
        assert!(TrackedTempDir::new_in(&path).is_err());
    }
}
