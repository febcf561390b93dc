//! Assigns the tensors of a merged model to files.

use std::collections::HashMap;

use danlu_kernels::DType;
use danlu_model::{ModelError, TensorInfo, TensorSpec, Weights, shard_name};

use crate::base_changes::EMBEDDING;
use crate::merge::MergeOptions;
use crate::{Adapter, AdapterError};

/// One output file.
pub struct Shard<'a> {
    pub name: String,
    pub tensors: Vec<&'a TensorInfo>,
    pub specs: Vec<TensorSpec>,
}

/// Checks that the weight of every adapted module is a float tensor of the base with the module's shape.
pub fn check_fit(adapter: &Adapter, weights: &Weights, tensors: &[TensorInfo]) -> Result<(), AdapterError> {
    let tensors: HashMap<&str, &TensorInfo> = tensors.iter().map(|info| (info.name.as_str(), info)).collect();
    for module in adapter.modules() {
        let name = module.projection.weight_name(module.layer);
        let Some(info) = tensors.get(name.as_str()) else {
            return Err(ModelError::NoTensor { path: weights.folder().to_owned(), tensor: name }.into());
        };
        if info.shape != [module.d_out, module.d_in] {
            return Err(AdapterError::Shape {
                name,
                expected: vec![module.d_out, module.d_in],
                found: info.shape.clone(),
            });
        }
        if info.dtype().is_none() {
            return Err(AdapterError::DType { name, found: info.dtype_name.clone() });
        }
    }
    Ok(())
}

/// Returns the tensors of a changed base. A changed tensor gets the element type and the file of the original
/// tensor. If the output head becomes a separate table, the head gets the element type and the file of the
/// embedding table.
///
/// # Errors
/// If the state of a 4-bit weight is invalid.
pub fn changed_tensors(weights: &Weights, original: &Weights) -> Result<Vec<TensorInfo>, ModelError> {
    let mut tensors = weights.model_tensors()?;
    let files = original.files().len();
    for info in tensors.iter_mut().filter(|info| info.file >= files) {
        if let Some(of_base) = original.info(&info.name).or_else(|| original.info(EMBEDDING)) {
            (info.file, info.dtype_name) = (of_base.file, of_base.dtype_name.clone());
        }
    }
    // A new tensor is at the end of the list, but the tensors of one file must be consecutive.
    tensors.sort_by_key(|info| info.file);
    Ok(tensors)
}

/// Returns the element type of a tensor in the merged model. Returns `None` for a tensor of integers, because
/// such a tensor is copied.
pub fn target_dtype(info: &TensorInfo, dtype: Option<DType>) -> Option<DType> {
    info.dtype().map(|own| dtype.unwrap_or(own))
}

/// Assigns the tensors to files, in the order of the base.
pub fn divide<'a>(weights: &Weights, tensors: &'a [TensorInfo], options: &MergeOptions) -> Vec<Shard<'a>> {
    let mut shards: Vec<Shard> = Vec::new();
    let (mut room, mut file) = (0, None);
    for info in tensors {
        let name = weights.file_name(&info.name);
        let spec = match target_dtype(info, options.dtype) {
            Some(dtype) => TensorSpec::new(name, dtype, info.shape.clone()),
            None => TensorSpec {
                name,
                dtype: info.dtype_name.clone(),
                shape: info.shape.clone(),
                bytes: info.range.len() as u64,
            },
        };
        let next = match options.max_shard_size {
            Some(_) => spec.bytes > room,
            None => file != Some(info.file),
        };
        if next || shards.is_empty() {
            shards.push(Shard { name: String::new(), tensors: Vec::new(), specs: Vec::new() });
            room = options.max_shard_size.unwrap_or(u64::MAX);
            file = Some(info.file);
        }
        room = room.saturating_sub(spec.bytes);
        let shard = shards.last_mut().expect("one was pushed above");
        shard.tensors.push(info);
        shard.specs.push(spec);
    }
    let count = shards.len();
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.name = shard_name(i, count);
    }
    shards
}
