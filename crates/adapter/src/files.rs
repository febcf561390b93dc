//! An adapter folder as PEFT writes it: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use danlu_kernels::{Backend, DType, from_f32, to_f32};
use danlu_model::files::{self, FileError};
use danlu_model::{ModelConfig, ShardWriter, TensorInfo, TensorSpec, Weights};

use crate::adapter::{Adapter, Module, Tensor};
use crate::config::CONFIG_FILE;
use crate::source::AdapterTensors;
use crate::{AdapterError, LoraConfig, targets, tensor_names};

/// Name of the tensors' file in an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

impl Adapter {
    /// Reads an adapter folder for a base model, from danlu, PEFT or mlx-lm. Tensors are f32, bf16 or f16.
    ///
    /// The tensors decide: a name in the configuration that matches no module of the base is a note, as long as
    /// another name matches and every tensor binds.
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration has an unsupported setting or does not fit the
    /// model, or a tensor is missing, unexpected, misshaped or not finite.
    pub fn load(folder: &Path, model: &ModelConfig, backend: &dyn Backend) -> Result<Self, AdapterError> {
        Self::load_with(LoraConfig::read(folder)?, folder, model, backend)
    }

    /// As [`Adapter::load`], with a configuration that is read already.
    ///
    /// # Errors
    /// As [`Adapter::load`].
    pub fn load_with(
        config: LoraConfig,
        folder: &Path,
        model: &ModelConfig,
        backend: &dyn Backend,
    ) -> Result<Self, AdapterError> {
        let resolved =
            targets::resolve_finished(&config, model).map_err(|e| e.in_file(&folder.join(CONFIG_FILE)))?;
        let AdapterTensors { path, weights: found, mut notes } = AdapterTensors::read(folder)?;
        let read = || {
            // Shapes are checked first, so that no allocation is larger than the file.
            let bound = bind(&resolved.modules, &found)?;
            let mut adapter = Self::zeroed(config, resolved.modules, model, backend, Some(folder));
            adapter.fill(&found, bound, backend)?;
            notes.extend(resolved.notes);
            adapter.notes = notes;
            Ok(adapter)
        };
        read().map_err(|e: AdapterError| e.in_file(&path))
    }

    fn fill(
        &mut self,
        found: &Weights,
        bound: Vec<(Tensor, &TensorInfo, DType)>,
        backend: &dyn Backend,
    ) -> Result<(), AdapterError> {
        let mut values = Vec::new();
        for (tensor, info, dtype) in bound {
            values.clear();
            values.resize(tensor.len(), 0.0);
            to_f32(dtype, found.bytes(info), &mut values);
            if let Some(element) = values.iter().position(|v| !v.is_finite()) {
                return Err(AdapterError::NotFinite { name: tensor.name, value: values[element], element });
            }
            backend.write(&mut self.params, tensor.offset, &values);
        }
        Ok(())
    }

    /// Writes `adapter_model.safetensors`, then `adapter_config.json`, each atomically. Other files of the
    /// folder do not change.
    ///
    /// # Errors
    /// If the folder cannot be created or written.
    pub fn save(&self, folder: &Path, backend: &dyn Backend) -> Result<(), AdapterError> {
        fs::create_dir_all(folder).map_err(|e| FileError::new("create", folder, e))?;
        // PEFT sorts by name.
        let mut tensors: Vec<Tensor> = self.tensors().collect();
        tensors.sort_by(|x, y| x.name.cmp(&y.name));
        let specs: Vec<TensorSpec> =
            tensors.iter().map(|t| TensorSpec::new(t.name.clone(), DType::F32, t.shape.to_vec())).collect();
        let mut writer = ShardWriter::create(&folder.join(WEIGHTS_FILE), &specs)?;
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        for tensor in &tensors {
            values.clear();
            values.resize(tensor.len(), 0.0);
            backend.read(&mut values, &self.params, tensor.offset)?;
            bytes.resize(tensor.len() * 4, 0);
            from_f32(DType::F32, &values, &mut bytes);
            writer.write(&bytes)?;
        }
        writer.finish()?;
        files::write_atomic(&folder.join(CONFIG_FILE), self.config.to_json().as_bytes())?;
        Ok(())
    }
}

/// Matches the tensors of the modules with those of the file. Rejects unmatched tensors on either side.
fn bind<'a>(
    modules: &[Module],
    found: &'a Weights,
) -> Result<Vec<(Tensor, &'a TensorInfo, DType)>, AdapterError> {
    let mut by_name: HashMap<String, &TensorInfo> = HashMap::new();
    let mut unbound = Vec::new();
    for info in found.tensors() {
        // A second tensor of the same pair would bind to nothing.
        if by_name.insert(tensor_names::canonical(&info.name), info).is_some() {
            unbound.push(info.name.clone());
        }
    }
    let mut bound = Vec::new();
    let mut missing = Vec::new();
    for tensor in modules.iter().flat_map(Module::tensors) {
        match by_name.remove(&tensor.name) {
            Some(info) => bound.push((tensor, info)),
            None => missing.push(tensor.name),
        }
    }
    unbound.extend(by_name.into_values().map(|info| info.name.clone()));
    if !unbound.is_empty() || !missing.is_empty() {
        unbound.sort();
        return Err(AdapterError::Binding { unbound, missing });
    }
    let check = |(tensor, info): (Tensor, &'a TensorInfo)| {
        let name = tensor.name.clone();
        let Some(dtype) = info.dtype() else {
            return Err(AdapterError::DType { name, found: info.dtype_name.clone() });
        };
        if info.shape.contains(&0) {
            return Err(AdapterError::EmptyTensor { name, shape: info.shape.clone() });
        }
        if info.shape != tensor.shape {
            let (expected, found) = (tensor.shape.to_vec(), info.shape.clone());
            return Err(AdapterError::Shape { name, expected, found });
        }
        Ok((tensor, info, dtype))
    };
    bound.into_iter().map(check).collect()
}

pub(crate) fn no_weights(folder: &Path) -> AdapterError {
    let other = ["model.safetensors", "pytorch_model.bin", "adapter_model.gguf"];
    let other = other.into_iter().find(|name| folder.join(name).exists()).map(str::to_owned);
    AdapterError::NoWeights { folder: folder.to_owned(), other }
}
