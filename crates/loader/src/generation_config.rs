//! `generation_config.json`, which contains the sampling settings that a model recommends.

use std::path::{Path, PathBuf};

use danlu_model::{ModelError, read_json_object};
use serde_json::{Map, Value};

/// The contents of a model's `generation_config.json`. If the file does not exist, no value is set.
#[derive(Clone, Debug)]
pub struct GenerationConfig {
    path: PathBuf,
    values: Map<String, Value>,
}

impl GenerationConfig {
    /// Reads the file in `folder`.
    ///
    /// # Errors
    /// If the file cannot be read or is not a JSON object.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("generation_config.json");
        let values = read_json_object(&path)?.unwrap_or_default();
        Ok(Self { path, values })
    }

    /// Returns a value. As in Python, `null` counts as unset.
    fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name).filter(|value| !value.is_null())
    }

    /// Returns a flag. An unset flag is `false`.
    ///
    /// # Errors
    /// If the value is neither true nor false.
    pub fn flag(&self, name: &str) -> Result<bool, ModelError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(name, other, "true or false")),
        }
    }

    /// Returns a number, or `None` if the value is unset. `ok` returns whether the number is in range.
    ///
    /// # Errors
    /// If the value is not a number, or if `ok` returns `false`.
    pub fn number(
        &self,
        name: &str,
        ok: impl Fn(f32) -> bool,
        expected: &str,
    ) -> Result<Option<f32>, ModelError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().map(|number| number as f32).filter(|number| number.is_finite() && ok(*number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(name, value, expected)),
        }
    }

    /// Returns a whole number of at least 0, or `None` if the value is unset.
    ///
    /// # Errors
    /// If the value is not a whole number of at least 0.
    pub fn count(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
            Some(count) => Ok(Some(count)),
            None => Err(self.wrong(name, value, "a whole number, 0 or more")),
        }
    }

    fn wrong(&self, name: &str, value: &Value, expected: &str) -> ModelError {
        ModelError::Field {
            path: self.path.clone(),
            field: name.to_owned(),
            found: value.to_string().chars().take(60).collect(),
            expected: expected.to_owned(),
        }
    }
}
