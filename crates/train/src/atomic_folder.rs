//! Writes and removes folders atomically.
//!
//! The files of a folder are written to a temporary folder and synced. The temporary folder is then renamed.
//! If the process is killed, an incomplete folder still has its temporary name, by which [`sweep_leftovers`]
//! recognizes the folder.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use danlu_model::FileError;
use danlu_model::files::{TEMPORARY_PREFIX, names_in};

use crate::TrainError;

/// Marks an old folder that is being replaced. `out` is renamed to `.danlu-tmp-aside-out`.
const ASIDE: &str = "aside-";

/// Creates the folder `parent/name` with the files that `fill` writes. An existing folder is replaced.
pub(crate) fn write(
    parent: &Path,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<PathBuf, TrainError> {
    fs::create_dir_all(parent).map_err(|e| FileError::new("create", parent, e))?;
    let mut builder = tempfile::Builder::new();
    let suffix = format!("-{name}");
    builder.prefix(TEMPORARY_PREFIX).suffix(&suffix);
    // Without this call, tempfile restricts access to the owner. As for any new folder, the umask reduces the
    // permissions.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let filled = builder.tempdir_in(parent).map_err(|e| FileError::new("write to", parent, e))?;
    // tempfile makes the path absolute, but errors should contain the path that the caller gave.
    let staged = parent.join(filled.path().file_name().unwrap_or_default());
    fill(&staged)?;
    sync_tree(&staged)?;

    let path = parent.join(name);
    let error = |e| FileError::new("write", &path, e);
    let aside = parent.join(format!("{TEMPORARY_PREFIX}{ASIDE}{name}"));
    let replaces = path.exists();
    if replaces {
        // A rename cannot replace a folder that contains files, so two renames are needed. If the process is
        // killed between them, `sweep_leftovers` undoes the first rename.
        fs::rename(&path, &aside).map_err(error)?;
    }
    fs::rename(filled.path(), &path).map_err(error)?;
    // The folder now has its final name, so tempfile must not remove the folder.
    let _ = filled.keep();
    sync_folder(parent).map_err(|e| FileError::new("write to", parent, e))?;
    if replaces {
        fs::remove_dir_all(&aside).map_err(|e| FileError::new("remove", &aside, e))?;
    }
    Ok(path)
}

/// Removes a folder. The folder is renamed first, so that a killed process leaves no incomplete folder under
/// the old name.
pub(crate) fn remove(path: &Path) -> Result<(), TrainError> {
    let error = |e| FileError::new("remove", path, e);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let gone = path.with_file_name(format!("{TEMPORARY_PREFIX}gone-{name}"));
    fs::rename(path, &gone).map_err(error)?;
    Ok(fs::remove_dir_all(&gone).map_err(error)?)
}

/// Removes temporary folders and files that a killed run left in an output folder.
///
/// If a run was killed while it replaced a folder, and the new folder is missing, the old folder gets its
/// name back. A missing output folder is not an error.
///
/// # Errors
/// If the folder cannot be read or written.
pub fn sweep_leftovers(output: &Path) -> Result<(), TrainError> {
    for name in names_in(output)? {
        let Some(rest) = name.strip_prefix(TEMPORARY_PREFIX) else { continue };
        let path = output.join(&name);
        let place = rest.strip_prefix(ASIDE).map(|original| output.join(original));
        let error = |e| FileError::new("remove", &path, e);
        match place {
            Some(place) if !place.exists() => fs::rename(&path, &place).map_err(error)?,
            _ if path.is_dir() => fs::remove_dir_all(&path).map_err(error)?,
            _ => fs::remove_file(&path).map_err(error)?,
        }
    }
    Ok(())
}

/// Syncs every file in a folder, and then the folder itself. The folder must not have subfolders.
fn sync_tree(folder: &Path) -> Result<(), TrainError> {
    for name in names_in(folder)? {
        let path = folder.join(name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(|e| FileError::new("write", &path, e))?;
    }
    Ok(sync_folder(folder).map_err(|e| FileError::new("write to", folder, e))?)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot sync a folder. The files in the folder are already synced.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(folder: &Path, text: &str) -> Result<(), TrainError> {
        fs::write(folder.join("a"), text).map_err(|e| FileError::new("write", folder, e).into())
    }

    #[test]
    fn a_folder_that_fails_to_fill_never_appears() {
        let output = tempfile::tempdir().unwrap();
        let failed = write(output.path(), "x", |folder| {
            put(folder, "half")?;
            Err(TrainError::NoExamples)
        });
        assert!(failed.is_err());
        assert!(names_in(output.path()).unwrap().is_empty());
    }

    #[test]
    fn a_folder_is_replaced_whole() {
        let output = tempfile::tempdir().unwrap();
        for text in ["old", "new"] {
            let path = write(output.path(), "x", |folder| put(folder, text)).unwrap();
            assert_eq!(fs::read_to_string(path.join("a")).unwrap(), text);
        }
        assert_eq!(names_in(output.path()).unwrap(), ["x"]);
        remove(&output.path().join("x")).unwrap();
        assert!(names_in(output.path()).unwrap().is_empty());
    }

    #[test]
    fn what_a_killed_run_left_is_swept_and_nothing_else() {
        let output = tempfile::tempdir().unwrap();
        let at = |name: &str| output.path().join(name);
        for name in [
            "checkpoint-1",
            ".danlu-tmp-Xy",
            ".danlu-tmp-aside-checkpoint-2",
            ".danlu-tmp-aside-checkpoint-1",
        ] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("a"), name).unwrap();
        }
        fs::write(at(".danlu-tmp-file"), "").unwrap();
        fs::write(at("mine.txt"), "").unwrap();
        sweep_leftovers(output.path()).unwrap();
        assert_eq!(names_in(output.path()).unwrap(), ["checkpoint-1", "checkpoint-2", "mine.txt"]);
        assert_eq!(fs::read_to_string(at("checkpoint-1/a")).unwrap(), "checkpoint-1");
        sweep_leftovers(&at("absent")).unwrap();
    }
}
