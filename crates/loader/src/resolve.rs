//! Resolves a reference to a model to a folder.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use danlu_adapter::{CONFIG_FILE, LoraConfig, RUN_FILE};
use danlu_hub::{DatasetFiles, DatasetRef, FetchScope, Hub, HubError, Pulled, RepoName, Transfer};

use danlu_model::shell_word;

use crate::folder_kind::MODEL_CONFIG;
use crate::model_dirs::AdapterDir;
use crate::{FolderKind, LoadError, ModelDirs, ModelRef, Notice, Observer, Progress};

/// Creates a [`Hub`] when it is first needed. Local folders therefore work even if the Hub settings are
/// invalid.
pub trait HubSource {
    /// Returns the Hub.
    ///
    /// # Errors
    /// If the Hub settings are invalid.
    fn hub(&self) -> Result<&Hub, HubError>;
}

impl HubSource for Hub {
    fn hub(&self) -> Result<&Hub, HubError> {
        Ok(self)
    }
}

/// Resolves and loads models.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    pub(crate) hub: &'a dyn HubSource,
    pub(crate) observer: &'a Observer<'a>,
}

impl<'a> Loader<'a> {
    /// Returns a loader that downloads from `hub` and reports long operations to `observer`.
    pub fn new(hub: &'a dyn HubSource, observer: &'a Observer<'a>) -> Self {
        Self { hub, observer }
    }

    /// Returns the source of the Hub.
    pub fn hub(&self) -> &'a dyn HubSource {
        self.hub
    }

    /// Resolves a model reference to a folder. If a repository is not in the cache, it is downloaded.
    ///
    /// # Errors
    /// If neither the cache nor the Hub contains the repository, or if an ambiguous reference is not in the
    /// cache. Also returns the errors of the download.
    pub fn resolve(
        &self,
        model: &ModelRef,
        scope: FetchScope,
        notices: &mut Vec<Notice>,
    ) -> Result<PathBuf, LoadError> {
        if let Some(name) = model.hub_name(self.hub) {
            return self.hub_folder(name, scope, notices);
        }
        match model {
            ModelRef::Folder(path) => Ok(path.clone()),
            ModelRef::Hub(name) => self.hub_folder(name, scope, notices),
            ModelRef::Ambiguous { path, .. } => {
                let error = LoadError::no_model(path);
                Err(match model.hub_hint(self.hub) {
                    Some(hint) => error.and_hint(hint),
                    None => error,
                })
            }
        }
    }

    /// Resolves the base `path` to a folder. A folder with `config.json` is accepted. Any other
    /// folder is accepted too, unless it is an adapter, a run or a folder of models. Missing files are
    /// reported when the base is opened.
    ///
    /// # Errors
    /// If `path` is an adapter, a run, a file or a folder of models, or does not exist. Also returns the
    /// errors of [`Loader::resolve`].
    pub fn base_folder(
        &self,
        path: &Path,
        scope: FetchScope,
        notices: &mut Vec<Notice>,
    ) -> Result<PathBuf, LoadError> {
        let folder = self.resolve(&ModelRef::parse(path), scope, notices)?;
        if folder.join(MODEL_CONFIG).is_file() {
            return Ok(folder);
        }
        if folder.join(CONFIG_FILE).is_file() {
            return Err(LoadError::BaseIsAdapter { path: path.to_owned() });
        }
        if path.is_file() || path.join(RUN_FILE).is_file() || !folder.exists() {
            return Err(LoadError::no_model(path));
        }
        match &models_below(&folder)[..] {
            [] => Ok(folder),
            models => {
                let names: Vec<String> =
                    models.iter().map(|model| format!("`{}`", model.display())).collect();
                Err(LoadError::no_model(path)
                    .with_hint(format!("name one of its models: {}", names.join(", "))))
            }
        }
    }

    /// Resolves `path` to the folders of a model. If `base` is given, it replaces the base that an adapter
    /// names.
    ///
    /// # Errors
    /// If there is no model, or more than one adapter below `path`. Also returns an error if the adapter's
    /// base cannot be found, or if `base` is given but `path` is a whole model.
    pub fn model_dirs(
        &self,
        path: &Path,
        base: Option<&Path>,
        notices: &mut Vec<Notice>,
    ) -> Result<ModelDirs, LoadError> {
        let folder = self.resolve(&ModelRef::parse(path), FetchScope::Full, notices)?;
        match FolderKind::of(&folder) {
            FolderKind::Adapter => {
                let config = LoraConfig::read(&folder)?;
                let base = match base {
                    Some(base) => self.base_folder(base, FetchScope::Full, notices)?,
                    None => self.adapter_base(&folder, &config, notices)?,
                };
                Ok(ModelDirs { base, adapter: Some(AdapterDir { folder, config }) })
            }
            FolderKind::Model => match base {
                Some(base) => Err(LoadError::BaseOfModel { model: folder, base: base.to_owned() }),
                None => Ok(ModelDirs::of_model(folder)),
            },
            kind @ FolderKind::StoppedRun { .. } => Err(LoadError::NoModel { path: folder, kind }),
            kind => match &adapters_below(&folder)[..] {
                [] => Err(LoadError::NoModel { path: folder, kind }),
                [only] => {
                    notices.push(Notice::AdapterInSubfolder { folder: only.clone() });
                    self.model_dirs(only, base, notices)
                }
                several => {
                    let names: Vec<String> =
                        several.iter().map(|path| shell_word(&path.to_string_lossy())).collect();
                    let hint = format!("name one of its adapters: {}", names.join(", "));
                    Err(LoadError::NoModel { path: folder, kind }.with_hint(hint))
                }
            },
        }
    }

    pub(crate) fn hub_folder(
        &self,
        name: &RepoName,
        scope: FetchScope,
        notices: &mut Vec<Notice>,
    ) -> Result<PathBuf, LoadError> {
        let hub = self.hub.hub()?;
        let found = match hub.cached_folder(name, scope)? {
            Some(folder) => {
                notices.extend(fetch_optional_files(hub, name, &folder));
                Ok(folder)
            }
            None => self.fetch(name, scope).map(|pulled| pulled.folder),
        };
        // The user may have meant a path and mistyped it.
        found.map_err(|error| error.and_hint(format!("there is no folder `{}` here", name.id())))
    }

    /// Downloads the current version of a model from the Hub.
    ///
    /// # Errors
    /// If the Hub cannot be reached or rejects the request, if the disk is full, or if the observer rejects
    /// the download.
    pub fn fetch(&self, name: &RepoName, scope: FetchScope) -> Result<Pulled, LoadError> {
        self.fetch_with(name, Pulled::clone, |hub, progress| hub.pull(name, scope, progress))
    }

    /// Returns the files of a data set. A data set that is not in the cache is downloaded.
    ///
    /// # Errors
    /// If the data set has no such part or no records, or if it cannot be downloaded.
    pub fn dataset(&self, dataset: &DatasetRef) -> Result<DatasetFiles, LoadError> {
        if let Some(found) = self.hub.hub()?.cached_dataset(dataset)? {
            return Ok(found);
        }
        let pulled = |found: &DatasetFiles| found.pulled.clone();
        self.fetch_with(dataset.repo(), pulled, |hub, progress| hub.pull_dataset(dataset, progress))
    }

    /// Runs a download, and reports its start, its progress and its end.
    fn fetch_with<T>(
        &self,
        name: &RepoName,
        pulled_of: impl Fn(&T) -> Pulled,
        pull: impl FnOnce(&Hub, &mut dyn FnMut(Transfer)) -> Result<T, HubError>,
    ) -> Result<T, LoadError> {
        let hub = self.hub.hub()?;
        let start = Instant::now();
        let seconds = || start.elapsed().as_secs_f64();
        // The observer's return value is ignored, because a download that has started cannot be stopped.
        let report = |progress: Progress<'_>| -> () {
            let (ControlFlow::Continue(()) | ControlFlow::Break(())) = (self.observer)(progress);
        };
        // The observer can reject a download before it starts.
        if (self.observer)(Progress::FetchStarted { name }).is_break() {
            return Err(LoadError::Stopped);
        }
        let fetched = pull(hub, &mut |transfer| {
            report(Progress::Fetching { name, transfer, seconds: seconds() });
        });
        let pulled = fetched.as_ref().ok().map(pulled_of);
        report(Progress::FetchEnded { name, pulled: pulled.as_ref(), seconds: seconds() });
        Ok(fetched?)
    }
}

/// Maximum number of folder entries that are searched for an adapter.
const MAX_SUBFOLDERS: usize = 1000;

/// Returns the subfolders of `folder` that contain an adapter, sorted by name. PEFT saves an adapter in a
/// subfolder if the adapter's name is not `default`.
pub fn adapters_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_SUBFOLDERS);
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.join(CONFIG_FILE).is_file()).collect();
    found.sort();
    found
}

/// Returns the subfolders of `folder` that contain a model, sorted by name.
fn models_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_SUBFOLDERS);
    let is_model = |path: &PathBuf| FolderKind::of(path) == FolderKind::Model;
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_model).collect();
    found.sort();
    found
}

/// Downloads the optional files of a cached model that the cache lacks. Files can be missing if another
/// program downloaded the model. Returns a notice if the files cannot be downloaded.
pub fn fetch_optional_files(hub: &Hub, name: &RepoName, folder: &Path) -> Option<Notice> {
    let files = hub.missing_optional_files(name, folder);
    if files.is_empty() {
        return None;
    }
    let reason = match hub.settings().offline {
        true => "HF_HUB_OFFLINE".to_owned(),
        false => match hub.fetch_missing_files(name, folder) {
            Ok(()) => return None,
            Err(error) => error.to_string(),
        },
    };
    Some(Notice::IncompleteCache { name: name.clone(), files, reason })
}
