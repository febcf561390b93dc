//! Writes a model folder. If the process is killed, the folder never loads as an incomplete model.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use crate::files::{self, FileError, TEMPORARY_PREFIX};
use crate::{ModelConfig, ModelError, TensorSpec, Weights};

/// Name of the shard index, which maps tensors to weight files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Name of the weight file of a model without shards.
pub const SINGLE_FILE: &str = "model.safetensors";

/// A file in the hidden folder that lists the files of a publication, in the order in which they are renamed.
const PUBLISH_LIST: &str = "publish.list";

const MAX_LIST_BYTES: u64 = 1 << 20;

/// A model folder that is being written. Files are first written to a hidden folder inside the model folder.
/// [`publish`](StagedFolder::publish) then renames them.
///
/// Dropping the value before `publish` removes the files. If the process is killed, the next run that writes
/// to the model folder removes them.
#[derive(Debug)]
pub struct StagedFolder {
    folder: PathBuf,
    staging: PathBuf,
    is_new: bool,
    /// The lock that prevents other processes from writing to the folder.
    _lock: Option<File>,
}

impl StagedFolder {
    /// Prepares the writing of a model to `folder`, which must be empty or must not exist.
    ///
    /// # Errors
    /// If the folder contains other files, cannot be written, or is in use by another process.
    pub fn create(folder: &Path) -> Result<Self, FileError> {
        Self::create_beside(folder, |_| false)
    }

    /// Does the same as [`StagedFolder::create`], but the folder may also contain entries that `replaceable`
    /// accepts.
    ///
    /// # Errors
    /// The errors of [`StagedFolder::create`].
    pub fn create_beside(folder: &Path, replaceable: impl Fn(&str) -> bool) -> Result<Self, FileError> {
        let is_new = !folder.exists();
        files::ensure_output_dir(folder, |_| true)?;
        let lock = files::lock_folder(folder)?;
        let staging = folder.join(format!("{TEMPORARY_PREFIX}model"));
        remove_leftovers(folder, &staging)?;
        files::ensure_output_dir(folder, replaceable)?;
        let model = Self { folder: folder.to_owned(), staging, is_new, _lock: lock };
        fs::create_dir(&model.staging).map_err(|e| FileError::new("create", &model.staging, e))?;
        Ok(model)
    }

    /// Returns the final folder of the model.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the hidden folder, which can be loaded as a model once `config.json` is written there.
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Returns the path in the hidden folder to which the file `name` must be written.
    pub fn staged(&self, name: &str) -> PathBuf {
        self.staging.join(name)
    }

    /// Renames every file of `names` in this order and syncs the folder. `config.json` must be the last name,
    /// so that an incomplete model never loads.
    ///
    /// # Errors
    /// If a file was not written to the hidden folder, or the model folder cannot be written.
    pub fn publish(self, names: &[String]) -> Result<(), FileError> {
        files::write_atomic(&self.staged(PUBLISH_LIST), names.join("\n").as_bytes())?;
        for name in names {
            let path = self.folder.join(name);
            fs::rename(self.staged(name), &path).map_err(|e| FileError::new("write", &path, e))?;
        }
        // Some network file systems cannot sync a folder. The data of the files is already on the disk.
        let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

/// Removes the files of an interrupted publication, and all temporary entries.
///
/// If the last file of a publication has its final name, the publication is complete, and its files stay.
fn remove_leftovers(folder: &Path, staging: &Path) -> Result<(), FileError> {
    let list = staging.join(PUBLISH_LIST);
    if list.is_file() {
        let list = files::read_bounded(&list, MAX_LIST_BYTES)?;
        let list = String::from_utf8_lossy(&list);
        let names = list.lines().filter(|name| !name.contains(['/', '\\']));
        let published: Vec<PathBuf> = names.map(|name| folder.join(name)).collect();
        if published.last().is_some_and(|last| !last.exists()) {
            for path in published.iter().filter(|path| path.is_file()) {
                fs::remove_file(path).map_err(|e| FileError::new("remove", path, e))?;
            }
        }
    }
    for name in files::names_in(folder)?.iter().filter(|name| name.starts_with(TEMPORARY_PREFIX)) {
        let path = folder.join(name);
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|entry| entry.is_dir());
        let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| FileError::new("remove", &path, e))?;
    }
    Ok(())
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        // Errors are ignored here, because they would hide the error that led to the drop.
        let _ = remove_leftovers(&self.folder, &self.staging);
        if self.is_new {
            // The call fails if the folder contains the finished model. This is intended.
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// Whether a folder already contains the model that should be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderState {
    /// The folder contains a complete model with this configuration.
    Same,
    /// The folder contains a model with a different configuration.
    Other,
    /// The folder contains no model.
    None,
}

impl FolderState {
    /// Compares the model in `folder` with `config`. Reads its configuration and the headers of its weight
    /// files, but no weights.
    ///
    /// # Errors
    /// If the folder contains a damaged model.
    pub fn of(folder: &Path, config: &ModelConfig) -> Result<Self, ModelError> {
        if fs::symlink_metadata(folder.join("config.json")).is_err() {
            return Ok(Self::None);
        }
        if ModelConfig::read(folder)? != *config {
            return Ok(Self::Other);
        }
        Weights::open(folder)?.check_complete(config)?;
        Ok(Self::Same)
    }
}

/// Returns the name of weight file `i` of `count` files. The first file has `i = 0`.
pub fn shard_name(i: usize, count: usize) -> String {
    match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    }
}

/// Returns the contents of [`INDEX_FILE`]. Returns `None` if there is only one weight file.
pub fn shard_index<'a>(shards: impl Iterator<Item = (&'a str, &'a [TensorSpec])>) -> Option<Vec<u8>> {
    let shards: Vec<_> = shards.collect();
    if shards.len() < 2 {
        return None;
    }
    let total_size: u64 = shards.iter().flat_map(|(_, specs)| *specs).map(|spec| spec.bytes).sum();
    let mut places: Vec<(&str, &str)> =
        shards.iter().flat_map(|(file, specs)| specs.iter().map(|t| (t.name.as_str(), *file))).collect();
    places.sort();
    let weight_map: Map<_, _> =
        places.into_iter().map(|(tensor, file)| (tensor.to_owned(), json!(file))).collect();
    let value = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let mut text = serde_json::to_vec_pretty(&value).expect("a JSON value has string keys");
    text.push(b'\n');
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_dropped_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        let model = StagedFolder::create(&folder).unwrap();
        fs::write(model.staged("config.json"), "{}").unwrap();
        drop(model);
        assert!(!folder.exists());
    }

    #[test]
    fn a_published_model_has_its_files_and_no_other() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        // Leftovers of a killed run are removed.
        fs::create_dir_all(folder.join(".danlu-tmp-model/old")).unwrap();
        let model = StagedFolder::create(&folder).unwrap();
        for name in ["a", "config.json"] {
            fs::write(model.staged(name), "{}").unwrap();
        }
        model.publish(&["a".into(), "config.json".into()]).unwrap();
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "config.json"]);
        assert!(StagedFolder::create(&folder).is_err());
        assert!(folder.join("a").exists());
    }

    #[test]
    fn a_second_process_is_kept_out() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        let first = StagedFolder::create(&folder).unwrap();
        fs::write(first.staged("config.json"), "{}").unwrap();
        let error = StagedFolder::create(&folder).unwrap_err();
        assert!(error.to_string().ends_with("another danlu is writing to it"), "{error}");
        assert!(error.hint().unwrap().starts_with("wait until"));
        first.publish(&["config.json".into()]).unwrap();
        assert!(folder.join("config.json").exists());
    }

    #[test]
    fn a_publication_that_failed_leaves_no_file() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        let model = StagedFolder::create(&folder).unwrap();
        fs::write(model.staged("a"), "").unwrap();
        assert!(model.publish(&["a".into(), "config.json".into()]).is_err());
        assert!(!folder.exists());
    }

    #[test]
    fn the_next_start_removes_a_publication_that_was_killed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        let kill_after = |renamed: &[&str]| {
            let staging = folder.join(".danlu-tmp-model");
            fs::create_dir_all(&staging).unwrap();
            fs::write(staging.join(PUBLISH_LIST), "model.safetensors\nconfig.json").unwrap();
            fs::write(folder.join(".danlu-tmp-x"), "").unwrap();
            for name in renamed {
                fs::write(folder.join(name), "").unwrap();
            }
        };
        kill_after(&["model.safetensors"]);
        drop(StagedFolder::create(&folder).unwrap());
        assert_eq!(files::names_in(&folder).unwrap(), [""; 0]);
        // A complete model is not removed, but the temporary entries are.
        kill_after(&["model.safetensors", "config.json"]);
        assert!(StagedFolder::create(&folder).is_err());
        assert_eq!(files::names_in(&folder).unwrap(), ["config.json", "model.safetensors"]);
    }
}
