//! The files of a model. Each file is opened once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use danlu_adapter::{Adapter, LoraConfig, TrainingIdentity};
use danlu_kernels::Backend;
use danlu_model::{
    ConfigJson, ModelConfig, Quantization, Tokenizer, Weights, base_fingerprint_of, base_sample_of,
};

use crate::model_dirs::AdapterDir;
use crate::{LoadError, ModelDirs, folder_name};

/// Files of a base: `config.json` and the mapped weights.
#[derive(Clone, Debug)]
pub struct BaseFiles {
    folder: PathBuf,
    config_json: ConfigJson,
    config: ModelConfig,
    weights: Weights,
}

impl BaseFiles {
    /// Reads `config.json` and the headers of the weights in `folder`.
    ///
    /// # Errors
    /// If a file is missing or invalid.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let config_json = ConfigJson::read(folder)?;
        let config = config_json.model_config()?;
        let weights = Weights::open(folder)?;
        Ok(Self { folder: folder.to_owned(), config_json, config, weights })
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the mapped weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Returns the base with the tensors that `adapter` replaces. Returns `None` if the adapter replaces no
    /// tensor.
    ///
    /// # Errors
    /// If a tensor of the base is missing or invalid.
    pub fn changed_by(&self, adapter: &Adapter) -> Result<Option<Self>, LoadError> {
        let changed = adapter.changed_base(&self.config, &self.weights)?;
        Ok(changed.map(|(config, weights)| Self { config, weights, ..self.clone() }))
    }

    /// Returns the base with rows for the adapter's new tokens. No other tensor is changed. See
    /// [`Adapter::resized_base`].
    ///
    /// # Errors
    /// If a tensor of the base is missing or invalid.
    pub fn resized_by(&self, adapter: &Adapter) -> Result<Option<Self>, LoadError> {
        let resized = adapter.resized_base(&self.config, &self.weights)?;
        Ok(resized.map(|(config, weights)| Self { config, weights, ..self.clone() }))
    }

    /// Returns the quantization of the stored weights, if they are in 4 bits.
    ///
    /// # Errors
    /// If the quantization state of a weight is invalid.
    pub fn stored_quantization(&self) -> Result<Option<Quantization>, LoadError> {
        Ok(self.weights.stored_quantization()?)
    }

    /// Returns the fingerprint of configuration and weights. See [`danlu_model::base_fingerprint`].
    ///
    /// # Errors
    /// If the folder cannot be listed, or a file cannot be read.
    pub fn fingerprint(&self) -> Result<String, LoadError> {
        Ok(base_fingerprint_of(self.config_json.bytes(), &self.weights)?)
    }

    /// Returns a quick fingerprint of configuration and weights, computed from a few pages of each file.
    ///
    /// # Errors
    /// If the folder cannot be listed or a file cannot be read.
    pub fn sample(&self) -> Result<String, LoadError> {
        Ok(base_sample_of(self.config_json.bytes(), &self.weights)?)
    }

    /// Reads the tokenizer of the base. If the folder `adapter` is given, files in this folder replace files
    /// of the base.
    ///
    /// # Errors
    /// If a file of the tokenizer is missing or invalid.
    pub fn tokenizer(&self, adapter: Option<&Path>) -> Result<Tokenizer, LoadError> {
        Ok(Tokenizer::read_with(&self.folder, adapter, &self.config_json)?)
    }
}

/// Files of an adapter: `adapter_config.json` and `danlu.json`.
#[derive(Clone, Debug)]
pub struct AdapterFiles {
    folder: PathBuf,
    config: LoraConfig,
    identity: Option<TrainingIdentity>,
}

impl AdapterFiles {
    /// Reads `adapter_config.json` and `danlu.json` in `folder`.
    ///
    /// # Errors
    /// If `adapter_config.json` is missing, or if one of the files is invalid.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let config = LoraConfig::read(folder)?;
        Self::open_rest(AdapterDir { folder: folder.to_owned(), config })
    }

    /// Reads `danlu.json` of an adapter whose `adapter_config.json` was already read.
    fn open_rest(dir: AdapterDir) -> Result<Self, LoadError> {
        let AdapterDir { folder, config } = dir;
        let identity = TrainingIdentity::read(&folder)?;
        Ok(Self { folder, config, identity })
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the contents of `adapter_config.json`.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Returns the contents of `danlu.json`. Returns `None` for an adapter that danlu did not train.
    pub fn identity(&self) -> Option<&TrainingIdentity> {
        self.identity.as_ref()
    }

    /// Returns the name that is shown to the user.
    pub fn name(&self) -> String {
        folder_name(&self.folder)
    }

    /// Loads the tensors of the adapter. `model` is the configuration of the base, and `base` is the folder
    /// of the base.
    ///
    /// # Errors
    /// If the file with the tensors is missing or invalid, or if the adapter was made for a base of a
    /// different shape.
    pub fn load(
        &self,
        model: &ModelConfig,
        base: &Path,
        backend: &dyn Backend,
    ) -> Result<Adapter, LoadError> {
        let loaded = Adapter::load_with(self.config.clone(), &self.folder, model, backend);
        loaded.map_err(|error| match &self.config.base_model_name_or_path {
            Some(named) if error.is_of_another_base() && is_named(base, named) => {
                LoadError::from(error).with_hint(FILES_OF_ONE_SAVE)
            }
            Some(named) if error.is_of_another_base() => {
                let hint = format!(
                    "the adapter was trained on `{named}` (`base_model_name_or_path`), and the base here is `{}`: \
                     give the one it was trained on with `--base DIR`, or put `adapter_config.json` back if it was edited",
                    base.display()
                );
                LoadError::from(error).with_hint(hint)
            }
            _ => error.into(),
        })
    }
}

const FILES_OF_ONE_SAVE: &str = "put back the `adapter_config.json` and the weights that were saved together: the base \
    is the one that the adapter names";

/// Returns whether `base` is the folder, or a download of the repository, that the adapter names.
fn is_named(base: &Path, named: &str) -> bool {
    let repository = format!("models--{}", named.replace('/', "--"));
    let is_download = base.iter().any(|part| part.to_str() == Some(&repository));
    is_download || Path::new(named).file_name() == base.file_name()
}

/// The files of a model: a base, and an adapter if there is one.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    base: Arc<BaseFiles>,
    adapter: Option<AdapterFiles>,
    /// Contents of `danlu.json` if the model has no adapter and this file exists, as in a merged model.
    merged_identity: Option<TrainingIdentity>,
}

impl ModelFiles {
    /// Opens the files in `dirs`.
    ///
    /// # Errors
    /// If a file is missing or invalid.
    pub fn open(dirs: ModelDirs) -> Result<Self, LoadError> {
        let base = Arc::new(BaseFiles::open(&dirs.base)?);
        Self::open_on(base, dirs.adapter)
    }

    /// Opens the files of `adapter` on a base whose files are already open.
    ///
    /// # Errors
    /// If a file of the adapter, or `danlu.json` of a merged model, is invalid.
    pub fn open_on(base: Arc<BaseFiles>, adapter: Option<AdapterDir>) -> Result<Self, LoadError> {
        let (adapter, merged_identity) = match adapter {
            Some(dir) => (Some(AdapterFiles::open_rest(dir)?), None),
            None => (None, TrainingIdentity::read(base.folder())?),
        };
        Ok(Self { base, adapter, merged_identity })
    }

    /// Returns the files of the base.
    pub fn base(&self) -> &Arc<BaseFiles> {
        &self.base
    }

    /// Returns the files of the adapter, if there is one.
    pub fn adapter(&self) -> Option<&AdapterFiles> {
        self.adapter.as_ref()
    }

    /// Returns the files of the adapter.
    ///
    /// # Errors
    /// If the model has no adapter.
    pub fn require_adapter(&self) -> Result<&AdapterFiles, LoadError> {
        self.adapter.as_ref().ok_or_else(|| LoadError::NotAnAdapter { path: self.base.folder.clone() })
    }

    /// Loads the tensors of the adapter, if there is one.
    ///
    /// # Errors
    /// The errors of [`AdapterFiles::load`].
    pub fn load_adapter(&self, backend: &dyn Backend) -> Result<Option<Adapter>, LoadError> {
        let (model, folder) = (self.base.config(), self.base.folder());
        self.adapter.as_ref().map(|adapter| adapter.load(model, folder, backend)).transpose()
    }

    /// Returns the contents of `danlu.json`. The file belongs to the adapter, or to a merged model.
    pub fn identity(&self) -> Option<&TrainingIdentity> {
        match &self.adapter {
            Some(adapter) => adapter.identity(),
            None => self.merged_identity.as_ref(),
        }
    }

    /// Returns the folder of the adapter, if there is one.
    pub fn adapter_folder(&self) -> Option<&Path> {
        self.adapter.as_ref().map(AdapterFiles::folder)
    }

    /// Returns the folder of the adapter. If there is no adapter, returns the folder of the model.
    pub fn own_folder(&self) -> &Path {
        self.adapter_folder().unwrap_or(&self.base.folder)
    }

    /// Returns the folder from which `generation_config.json` must be read.
    pub fn generation_folder(&self) -> &Path {
        danlu_model::sidecar_files::generation_folder(&self.base.folder, self.adapter_folder())
    }

    /// Returns the name that is shown to the user.
    pub fn name(&self) -> String {
        folder_name(self.own_folder())
    }
}
