//! An adapter folder as PEFT writes it: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use danlu_kernels::{Backend, DType, from_f32, to_f32};
use danlu_model::files::{self, FileError};
use danlu_model::{ModelConfig, Weights};

use crate::adapter::{Adapter, Tensor};
use crate::config::CONFIG_FILE;
use crate::shard_writer::{ShardWriter, TensorSpec};
use crate::{AdapterError, LoraConfig, targets};

/// Name of the tensors' file in an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

impl Adapter {
    /// Reads an adapter folder of PEFT's, or of ours, for a base model. f32, bf16 and f16 are read.
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration asks for something unsupported or does not fit
    /// the model, a tensor binds to nothing, or one is missing, misshaped or not finite.
    pub fn load(folder: &Path, model: &ModelConfig, backend: &dyn Backend) -> Result<Self, AdapterError> {
        let config = LoraConfig::read(folder)?;
        let modules = targets::resolve(&config, model).map_err(|e| e.in_file(&folder.join(CONFIG_FILE)))?;
        let path = folder.join(WEIGHTS_FILE);
        if !path.exists() {
            return Err(no_weights(folder));
        }
        let bytes = files::read_bounded(&path, u64::MAX)?;
        let mut adapter = Self::zeroed(config, modules, model, backend, Some(folder));
        adapter.fill(&path, bytes, backend).map_err(|e| e.in_file(&path))?;
        Ok(adapter)
    }

    /// Writes every parameter from the content of an adapter file.
    pub(crate) fn fill(&mut self, path: &Path, bytes: Vec<u8>, backend: &dyn Backend) -> Result<(), AdapterError> {
        let found = Weights::from_bytes(path, bytes)?;
        let mut by_name: HashMap<&str, _> = HashMap::new();
        let mut unbound = Vec::new();
        for info in found.tensors() {
            // PEFT strips the adapter's name when it saves; other programs keep it.
            let bare = info.name.strip_suffix(".default.weight").map(|n| format!("{n}.weight"));
            by_name.insert(&info.name, info);
            unbound.push((bare.unwrap_or_else(|| info.name.clone()), &info.name));
        }
        let expected: Vec<Tensor> = self.tensors().collect();
        let names: BTreeMap<&str, &Tensor> = expected.iter().map(|t| (t.name.as_str(), t)).collect();
        let mut sources: BTreeMap<&str, &str> = BTreeMap::new();
        // A second tensor of the same meaning binds to nothing either.
        unbound.retain(|(bare, full)| match names.get_key_value(bare.as_str()) {
            Some((name, _)) => sources.insert(name, full).is_some(),
            None => true,
        });
        let missing: Vec<String> =
            names.keys().filter(|n| !sources.contains_key(*n)).map(|n| (*n).to_owned()).collect();
        if !unbound.is_empty() || !missing.is_empty() {
            let mut unbound: Vec<String> = unbound.into_iter().map(|(_, full)| full.clone()).collect();
            unbound.sort();
            return Err(AdapterError::Binding { unbound, missing });
        }
        let mut values = Vec::new();
        for tensor in &expected {
            let info = by_name[sources[tensor.name.as_str()]];
            let Some(dtype) = info.dtype() else {
                return Err(AdapterError::DType { name: tensor.name.clone(), found: info.dtype_name.clone() });
            };
            if info.shape != tensor.shape {
                let (expected, found) = (tensor.shape.to_vec(), info.shape.clone());
                return Err(AdapterError::Shape { name: tensor.name.clone(), expected, found });
            }
            values.clear();
            values.resize(tensor.len(), 0.0);
            to_f32(dtype, found.bytes(info), &mut values);
            if let Some(element) = values.iter().position(|v| !v.is_finite()) {
                return Err(AdapterError::NotFinite { name: tensor.name.clone(), value: values[element], element });
            }
            backend.write(&mut self.params, tensor.offset, &values);
        }
        Ok(())
    }

    /// Writes `adapter_model.safetensors`, then `adapter_config.json`, each atomically; other files of the
    /// folder are left alone.
    ///
    /// # Errors
    /// If the folder cannot be created or written.
    pub fn save(&self, folder: &Path, backend: &dyn Backend) -> Result<(), AdapterError> {
        fs::create_dir_all(folder).map_err(|e| FileError::new("create", folder, e))?;
        // PEFT's order, which is the names'.
        let mut tensors: Vec<Tensor> = self.tensors().collect();
        tensors.sort_by(|x, y| x.name.cmp(&y.name));
        let specs: Vec<TensorSpec> =
            tensors.iter().map(|t| TensorSpec::new(t.name.clone(), DType::F32, t.shape.to_vec())).collect();
        let mut writer = ShardWriter::create(&folder.join(WEIGHTS_FILE), &specs)?;
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        for tensor in &tensors {
            values.clear();
            values.resize(tensor.len(), 0.0);
            backend.read(&mut values, &self.params, tensor.offset);
            bytes.resize(tensor.len() * 4, 0);
            from_f32(DType::F32, &values, &mut bytes);
            writer.write(&bytes)?;
        }
        writer.finish()?;
        files::write_atomic(&folder.join(CONFIG_FILE), self.config.to_json().as_bytes())?;
        Ok(())
    }
}

fn no_weights(folder: &Path) -> AdapterError {
    let other = ["adapter_model.bin", "adapters.safetensors", "model.safetensors"];
    let other = other.into_iter().find(|name| folder.join(name).exists()).map(str::to_owned);
    AdapterError::NoWeights { folder: folder.to_owned(), other }
}
