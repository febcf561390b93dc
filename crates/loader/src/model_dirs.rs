//! The folders of a model.

use std::fs;
use std::path::{Path, PathBuf};

use danlu_adapter::LoraConfig;
use danlu_hub::parse_snapshot_path;
use danlu_model::sidecar_files::generation_folder;

/// The folders of a model: the folder of the base, and the folder of the adapter if there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDirs {
    /// Folder with `config.json` and the weights.
    pub base: PathBuf,
    /// The adapter, or `None` for a base or a merged model.
    pub adapter: Option<AdapterDir>,
}

/// The folder of an adapter, and the contents of its `adapter_config.json`, which names the base.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterDir {
    /// Path of the folder.
    pub folder: PathBuf,
    /// Contents of `adapter_config.json`.
    pub config: LoraConfig,
}

impl ModelDirs {
    /// Returns the folders of a base or a merged model.
    pub fn of_model(folder: PathBuf) -> Self {
        Self { base: folder, adapter: None }
    }

    /// Returns the folder of the adapter, if there is one.
    pub fn adapter_folder(&self) -> Option<&Path> {
        self.adapter.as_ref().map(|adapter| adapter.folder.as_path())
    }

    /// Returns the folder of the adapter. If there is no adapter, returns the folder of the model.
    pub fn own_folder(&self) -> &Path {
        self.adapter_folder().unwrap_or(&self.base)
    }

    /// Returns the folder from which `generation_config.json` must be read.
    pub fn generation_folder(&self) -> &Path {
        generation_folder(&self.base, self.adapter_folder())
    }

    /// Returns the name that is shown to the user.
    pub fn name(&self) -> String {
        folder_name(self.own_folder())
    }
}

/// Returns the last component of `path`, after `.` and `..` are resolved. For a snapshot in the Hub's cache,
/// returns the name of the model.
pub fn folder_name(path: &Path) -> String {
    let resolved = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Some((id, _)) = parse_snapshot_path(&resolved) {
        return id.rsplit('/').next().unwrap_or(&id).to_owned();
    }
    resolved.file_name().unwrap_or(resolved.as_os_str()).to_string_lossy().into_owned()
}
