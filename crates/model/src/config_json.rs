//! `config.json`, read once and then shared by all readers.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::files::{self, FileError};
use crate::json::{self, Fields};
use crate::{ModelConfig, ModelError};

const FILE: &str = "config.json";

/// The bytes and values of a `config.json`.
///
/// The values contain the shape of the model and the end tokens. The fingerprint of the base includes the
/// bytes.
#[derive(Clone, Debug)]
pub struct ConfigJson {
    path: PathBuf,
    bytes: Vec<u8>,
    value: Value,
}

impl ConfigJson {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// If the file cannot be read or is not JSON.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(FILE);
        let bytes = files::read_bounded(&path, json::MAX_CONFIG_BYTES)?;
        let value = json::parse(&path, &bytes)?;
        Ok(Self { path, bytes, value })
    }

    /// Reads `config.json` in `folder`. Returns `None` if the file does not exist.
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

    /// Returns the bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the configuration of the model.
    ///
    /// # Errors
    /// The errors of [`ModelConfig::parse`].
    pub fn model_config(&self) -> Result<ModelConfig, ModelError> {
        ModelConfig::from_value(&self.path, &self.value)
    }

    /// Returns the ids of the tokens that end a reply.
    pub(crate) fn eos_token_ids(&self) -> Result<Vec<u32>, ModelError> {
        let fields = Fields::new(&self.path, &self.value)?;
        let own = fields.token_ids("eos_token_id")?;
        // In Gemma 3, the ids may be in the nested object of the text model.
        match fields.nested("text_config")?.filter(|_| own.is_empty()) {
            Some(text) => text.token_ids("eos_token_id"),
            None => Ok(own),
        }
    }
}
