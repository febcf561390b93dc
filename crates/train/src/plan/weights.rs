//! Memory use of a base's weights.

use std::collections::HashMap;
use std::path::Path;

use danlu_kernels::{DType, cuda};
use danlu_model::{ModelConfig, ModelError, Projection, Quantization, Weights, projections};

use crate::TrainError;

/// Number of bytes that the Linux kernel maps around an accessed page ("fault-around").
const FAULT_AROUND: usize = 64 << 10;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Memory use of a base's weights, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Pages of files, which the system can evict and read again.
    pub mapped: u64,
    /// Weights that were quantized in memory, or all weights on a device.
    pub resident: u64,
    /// Temporary memory for quantizing weights.
    pub loading: u64,
    /// Address space of weight files that are already mapped.
    pub open: u64,
    /// Pages of the embedding table that a run on a device reads from its file. `mapped` does not include
    /// these pages.
    pub host_table: u64,
    /// The largest tensor or group of tensors whose pages are in host memory while it is copied to a device.
    pub host_loading: u64,
}

impl WeightBytes {
    /// Returns the memory use during the run.
    pub fn total(&self) -> u64 {
        self.mapped + self.resident
    }
}

/// Returns the memory use of the weights in `folder` that a run reads.
///
/// If `ids` is given and the embedding table is not also the output head, the run reads only the rows of
/// `ids` from this table. With `quantization`, the projections are quantized while loading. The number in
/// `quantization` is the number of threads. If the folder contains no weights, the sizes are computed from
/// `config`.
///
/// # Errors
/// If the weights are invalid.
pub fn weight_bytes(
    folder: &Path,
    config: &ModelConfig,
    quantization: Option<(Quantization, usize)>,
    ids: Option<&mut dyn Iterator<Item = u32>>,
) -> Result<WeightBytes, TrainError> {
    let weights = open_weights(folder)?;
    check_weights(weights.as_ref(), config, quantization.is_some())?;
    // The files are unmapped at the end of this function, so `open` is 0.
    Ok(WeightBytes { open: 0, ..weight_bytes_of(weights.as_ref(), config, quantization, ids) })
}

/// Returns the same values as [`weight_bytes`], for weights that are already open, or for a configuration
/// without weights.
pub fn weight_bytes_of(
    weights: Option<&Weights>,
    config: &ModelConfig,
    quantization: Option<(Quantization, usize)>,
    ids: Option<&mut dyn Iterator<Item = u32>>,
) -> WeightBytes {
    let dtype = config.dtype.unwrap_or(DType::Bf16);
    let projections: HashMap<String, usize> =
        projections(config).map(|(name, rows, cols)| (name, rows * cols)).collect();
    let bytes_of = |name: &str, shape: &[usize]| match (weights, projections.get(name), config.quantization) {
        (Some(weights), ..) => weights.stored_bytes(name) as usize,
        (None, Some(&elements), Some(quantization)) => quantization.bytes(elements) as usize,
        (None, ..) => shape.iter().product::<usize>() * dtype.size(),
    };
    let (mut all, mut resident, mut largest) = (0, 0, 0);
    for (name, shape) in config.tensors() {
        match (quantization, projections.get(&name)) {
            (Some((quantization, threads)), Some(&elements)) => {
                let stored = bytes_of(&name, &shape) as u64;
                resident += quantization.bytes(elements);
                largest = largest.max(stored + quantization.passing_bytes(elements, threads));
            }
            _ => all += bytes_of(&name, &shape),
        }
    }
    let (rows, cols) = (config.vocab_size, config.hidden_size);
    let table = bytes_of(EMBEDDING, &[rows, cols]);
    let untouched = match ids {
        Some(ids) if !config.tie_word_embeddings => table - touched(table, rows, ids),
        _ => 0,
    };
    let open = weights.map_or(0, Weights::mapped_bytes);
    let mapped = (all - untouched) as u64;
    WeightBytes { mapped, resident, loading: largest, open, ..WeightBytes::default() }
}

/// Returns the device memory of the weights in `folder`, for a run that computes in `dtype`, and the host
/// memory of the embedding table. The norms are not included.
///
/// # Errors
/// The same errors as [`weight_bytes`].
pub fn device_weight_bytes(
    folder: &Path,
    config: &ModelConfig,
    quantization: Option<Quantization>,
    dtype: DType,
) -> Result<WeightBytes, TrainError> {
    let weights = open_weights(folder)?;
    check_weights(weights.as_ref(), config, quantization.is_some())?;
    Ok(device_weight_bytes_of(weights.as_ref(), config, quantization, dtype, None))
}

/// Returns the same values as [`device_weight_bytes`], for weights that are already open, or for a
/// configuration without weights. If `ids` is given, the run reads only the rows of `ids` from the embedding
/// table.
pub fn device_weight_bytes_of(
    weights: Option<&Weights>,
    config: &ModelConfig,
    quantization: Option<Quantization>,
    dtype: DType,
    ids: Option<&mut dyn Iterator<Item = u32>>,
) -> WeightBytes {
    let wide = weights.map(|weights| weights.unquantized_modules(config)).unwrap_or_default();
    let quantization = quantization.or(config.quantization);
    let of = |(name, rows, cols): (String, usize, usize)| {
        let is_wide = wide.iter().any(|module| name.strip_suffix(".weight") == Some(module));
        let format = quantization.filter(|_| !is_wide).map(|quantization| quantization.format());
        cuda::placed_bytes(rows * cols, format, dtype)
    };
    let head = cuda::placed_bytes(config.vocab_size * config.hidden_size, None, dtype);
    let resident = head + projections(config).map(of).sum::<u64>();
    let (host_table, host_loading) = host_bytes_of(weights, config, ids);
    WeightBytes { resident, host_table, host_loading, ..WeightBytes::default() }
}

/// Returns [`WeightBytes::host_table`] and [`WeightBytes::host_loading`].
fn host_bytes_of(
    weights: Option<&Weights>,
    config: &ModelConfig,
    ids: Option<&mut dyn Iterator<Item = u32>>,
) -> (u64, u64) {
    let stored = config.dtype.unwrap_or(DType::Bf16);
    let bytes_of = |name: &str, elements: usize| match (weights, config.quantization) {
        (Some(weights), _) => weights.stored_bytes(name),
        (None, Some(quantization)) if name != EMBEDDING && name != HEAD => quantization.bytes(elements),
        (None, _) => (elements * stored.size()) as u64,
    };
    let (rows, elements) = (config.vocab_size, config.vocab_size * config.hidden_size);
    let table = bytes_of(EMBEDDING, elements);
    let read = ids.map_or(table, |ids| touched(table as usize, rows, ids) as u64);
    let head = if config.tie_word_embeddings { table } else { bytes_of(HEAD, elements) };
    let of_group = |group: &&[Projection]| {
        let of = |&projection: &Projection| {
            let (rows, cols) = config.projection_shape(projection);
            bytes_of(&projection.weight_name(0), rows * cols)
        };
        group.iter().map(of).sum::<u64>()
    };
    (read, config.projection_groups().iter().map(of_group).max().unwrap_or(0).max(head))
}

/// Opens the weights in `folder`. Returns `None` if the folder contains no weights.
///
/// # Errors
/// If a file is invalid.
pub fn open_weights(folder: &Path) -> Result<Option<Weights>, TrainError> {
    match Weights::open(folder) {
        Ok(weights) => Ok(Some(weights)),
        Err(ModelError::NoWeights { .. } | ModelError::NoShard { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Checks the tensors of `weights` against `config`, so that a dry run never uses huge sizes from a damaged
/// configuration. `None` is accepted.
///
/// # Errors
/// If a tensor is missing or has a different shape, or if `quantizes` is true and the weights are already in
/// 4 bits.
pub fn check_weights(
    weights: Option<&Weights>,
    config: &ModelConfig,
    quantizes: bool,
) -> Result<(), TrainError> {
    let Some(weights) = weights else { return Ok(()) };
    weights.check_complete(config)?;
    if quantizes {
        weights.refuse_four_bit()?;
    }
    Ok(())
}

/// Returns the number of bytes of a table that are in memory after the rows `ids` were read. `table` is the
/// size of the whole table in bytes, and `rows` is its number of rows.
fn touched(table: usize, rows: usize, ids: &mut dyn Iterator<Item = u32>) -> usize {
    let row = (table / rows.max(1)).max(1);
    let mut blocks = vec![false; table.div_ceil(FAULT_AROUND)];
    for id in ids {
        let first = id as usize * row;
        for block in first / FAULT_AROUND..=(first + row - 1) / FAULT_AROUND {
            if let Some(block) = blocks.get_mut(block) {
                *block = true;
            }
        }
    }
    table.min(FAULT_AROUND * blocks.into_iter().filter(|&touched| touched).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_bring_their_neighbourhood_with_them() {
        let (row, rows) = (4096, 100);
        let of = |ids: &[u32]| touched(row * rows, rows, &mut ids.iter().copied());
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[0, 1, 15]), FAULT_AROUND);
        assert_eq!(of(&[0, 16]), 2 * FAULT_AROUND);
        let all: Vec<u32> = (0..100).collect();
        assert_eq!(of(&all), row * rows);
    }

    #[test]
    fn a_folder_without_weights_is_judged_by_its_configuration() {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/base-8m");
        let config = ModelConfig::read(&base).unwrap();
        let real = weight_bytes(&base, &config, None, None).unwrap().total();
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(weight_bytes(folder.path(), &config, None, None).unwrap().total(), real);
        assert_eq!(real, 2 * config.num_parameters());
    }
}
