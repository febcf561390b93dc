//! `config.json`, read once for all its uses.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::files::{self, FileError};
use crate::json::{self, Fields};
use crate::{ModelConfig, ModelError};

/// Name of the file.
const FILE: &str = "config.json";

/// The bytes and the values of a `config.json`.
///
/// It gives the model's shape, the tokenizer's end tokens and the fingerprint of a base.
#[derive(Clone, Debug)]
pub struct ConfigJson {
    path: PathBuf,
    bytes: Vec<u8>,
    value: Value,
}

impl ConfigJson {
    /// Reads the file in `folder`.
    ///
    /// # Errors
    /// If it cannot be read or is not JSON.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(FILE);
        let bytes = files::read_bounded(&path, json::MAX_CONFIG_BYTES)?;
        let value = json::parse(&path, &bytes)?;
        Ok(Self { path, bytes, value })
    }

    /// Reads the file in `folder`; none if there is none.
    pub(crate) fn read_optional(folder: &Path) -> Result<Option<Self>, ModelError> {
        match Self::read(folder) {
            Ok(config) => Ok(Some(config)),
            Err(ModelError::File(FileError { source, .. }))
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The model that it describes.
    ///
    /// # Errors
    /// As [`ModelConfig::parse`].
    pub fn model_config(&self) -> Result<ModelConfig, ModelError> {
        ModelConfig::from_value(&self.path, &self.value)
    }

    /// The tokens that end a generation.
    pub(crate) fn eos_token_ids(&self) -> Result<Vec<u32>, ModelError> {
        Fields::new(&self.path, &self.value)?.token_ids("eos_token_id")
    }
}
