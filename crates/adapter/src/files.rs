//! Reads and writes adapter folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use danlu_kernels::{Backend, DType, from_f32, to_f32};
use danlu_model::files::{self, FileError};
use danlu_model::{ModelConfig, ShardWriter, TensorInfo, TensorSpec, Weights};

use crate::adapter::{Adapter, Module, Tensor};
use crate::base_changes::BaseChanges;
use crate::config::CONFIG_FILE;
use crate::other_files::OtherAdapterFile;
use crate::source::AdapterTensors;
use crate::{AdapterError, AdapterNote, LoraConfig, targets, tensor_names};

/// Name of the weight file in an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

impl Adapter {
    /// Reads an adapter folder of danlu, PEFT or mlx-lm for a base model. The tensors may be f32, bf16 or
    /// f16.
    ///
    /// A name in the configuration that matches no module of the base is reported as a note. This is an error
    /// if no other name matches, or if a tensor in the file matches no module.
    ///
    /// # Errors
    /// If a file is missing or damaged, if the configuration has an unsupported setting or does not fit the
    /// model, or if a tensor is missing, unexpected, not finite or has a wrong shape.
    pub fn load(folder: &Path, model: &ModelConfig, backend: &dyn Backend) -> Result<Self, AdapterError> {
        Self::load_with(LoraConfig::read(folder)?, folder, model, backend)
    }

    /// Loads an adapter like [`Adapter::load`], but with a configuration that the caller already read.
    ///
    /// # Errors
    /// The same errors as [`Adapter::load`].
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
            if found.tensors().is_empty() {
                return Err(AdapterError::NoTensors);
            }
            // Shapes are checked before any allocation, so no allocation is larger than the file.
            let Matched { bound, missing, rest } = match_pairs(&resolved.modules, &found);
            let changes = BaseChanges::bind(&rest, &found, &config, model, &resolved.tables);
            let changes = changes.map_err(|error| error.and_missing(&missing))?;
            if !missing.is_empty() {
                return Err(AdapterError::Binding { unbound: Vec::new(), missing });
            }
            let bound = check_pairs(bound)?;
            let mut adapter = Self::zeroed(config, resolved.modules, model, backend, Some(folder));
            adapter.fill(&found, bound, backend)?;
            notes.extend(resolved.notes);
            if let Some(changes) = &changes {
                let (tensors, vocab_sizes) = changes.describe(model);
                notes.push(AdapterNote::OwnTensors { tensors, vocab_sizes });
            }
            (adapter.notes, adapter.changes) = (notes, changes);
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

    /// Writes `adapter_model.safetensors`, then `adapter_config.json`. Each file is written atomically. Other
    /// files in the folder are not changed.
    ///
    /// # Errors
    /// If the folder cannot be created or written.
    pub fn save(&self, folder: &Path, backend: &dyn Backend) -> Result<(), AdapterError> {
        fs::create_dir_all(folder).map_err(|e| FileError::new("create", folder, e))?;
        let spec = |t: Tensor| {
            (TensorSpec::new(self.file_name(&t), DType::F32, t.shape.to_vec()), SavedTensor::Own(t))
        };
        let mut tensors: Vec<(TensorSpec, SavedTensor<'_>)> = self.tensors().map(spec).collect();
        if let Some(BaseChanges { weights, stored, .. }) = &self.changes {
            tensors.extend(stored.iter().map(|info| {
                let (name, dtype) = (info.name.clone(), info.dtype_name.clone());
                let (shape, bytes) = (info.shape.clone(), info.range.len() as u64);
                (TensorSpec { name, dtype, shape, bytes }, SavedTensor::Copied(weights, info))
            }));
        }
        // PEFT sorts tensors by name.
        tensors.sort_by(|(x, _), (y, _)| x.name.cmp(&y.name));
        let (specs, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
        let mut writer = ShardWriter::create(&folder.join(WEIGHTS_FILE), &specs)?;
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        for tensor in &tensors {
            let tensor = match tensor {
                SavedTensor::Own(tensor) => tensor,
                SavedTensor::Copied(weights, info) => {
                    weights.copy(info, &mut writer)?;
                    continue;
                }
            };
            values.clear();
            values.resize(tensor.len(), 0.0);
            backend.read(&mut values, &self.params, tensor.offset)?;
            bytes.resize(tensor.len() * 4, 0);
            from_f32(DType::F32, &values, &mut bytes);
            writer.write(&bytes)?;
        }
        writer.finish()?;
        let config = LoraConfig { target_modules: self.saved_targets.clone(), ..self.config.clone() };
        files::write_atomic(&folder.join(CONFIG_FILE), config.to_json().as_bytes())?;
        Ok(())
    }
}

enum SavedTensor<'a> {
    /// A tensor of the adapter's parameters.
    Own(Tensor),
    /// A tensor that replaces a tensor of the base, copied unchanged from the loaded file.
    Copied(&'a Weights, &'a TensorInfo),
}

struct Matched<'a> {
    bound: Vec<(Tensor, &'a TensorInfo)>,
    /// Names of module tensors that are missing in the file.
    missing: Vec<String>,
    /// Tensors of the file that match no module, sorted by name.
    rest: Vec<&'a TensorInfo>,
}

fn match_pairs<'a>(modules: &[Module], found: &'a Weights) -> Matched<'a> {
    let mut by_name: HashMap<String, &TensorInfo> = HashMap::new();
    let mut rest = Vec::new();
    for info in found.tensors() {
        // If two tensors have the same canonical name, one of them counts as unmatched.
        rest.extend(by_name.insert(tensor_names::canonical(&info.name), info));
    }
    let mut bound = Vec::new();
    let mut missing = Vec::new();
    for tensor in modules.iter().flat_map(Module::tensors) {
        match by_name.remove(&tensor.name) {
            Some(info) => bound.push((tensor, info)),
            None => missing.push(tensor.name),
        }
    }
    rest.extend(by_name.into_values());
    rest.sort_by(|x, y| x.name.cmp(&y.name));
    Matched { bound, missing, rest }
}

fn check_pairs<'a>(
    bound: Vec<(Tensor, &'a TensorInfo)>,
) -> Result<Vec<(Tensor, &'a TensorInfo, DType)>, AdapterError> {
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

/// Ends of the names of weight files.
const WEIGHT_ENDINGS: [&str; 5] = [".safetensors", ".bin", ".pt", ".pth", ".ckpt"];

/// Returns the error for a folder that contains no adapter file that danlu can read. The error names the
/// weight file in another format, if there is one.
pub(crate) fn no_weights(folder: &Path) -> AdapterError {
    let names = files::names_in(folder).unwrap_or_default();
    let find = |is_it: &dyn Fn(&str) -> bool| names.iter().find(|name| is_it(name)).cloned();
    let other = find(&|name| OtherAdapterFile::of(name).is_some())
        .or_else(|| find(&|name| WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending))));
    AdapterError::NoWeights { folder: folder.to_owned(), other }
}
