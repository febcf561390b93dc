//! How much of a base's files a run maps into memory.

use std::path::Path;

use danlu_kernels::DType;
use danlu_model::{ModelConfig, Weights};

use crate::TrainError;

/// Bytes that the system maps around a page that is touched.
const FAULT_AROUND: usize = 64 << 10;

const EMBEDDING: &str = "model.embed_tokens.weight";

/// Bytes of the weights in `folder` that a run touches: all of them, but of an embedding table of its own only the
/// rows of `ids`, where they are known. A folder without weights is judged by its `config.json`.
///
/// # Errors
/// If there are weights and they are not sound.
pub fn weight_bytes(
    folder: &Path,
    config: &ModelConfig,
    ids: Option<&mut dyn Iterator<Item = u32>>,
) -> Result<u64, TrainError> {
    let weights = match Weights::open(folder) {
        Ok(weights) => Some(weights),
        Err(danlu_model::ModelError::NoWeights { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let dtype = config.dtype.unwrap_or(DType::Bf16);
    let bytes_of = |name: &str, shape: &[usize]| match weights.as_ref().and_then(|w| w.info(name)) {
        Some(info) => info.range.len(),
        None => shape.iter().product::<usize>() * dtype.size(),
    };
    let all: usize = config.tensors().map(|(name, shape)| bytes_of(&name, &shape)).sum();
    let (rows, cols) = (config.vocab_size, config.hidden_size);
    let table = bytes_of(EMBEDDING, &[rows, cols]);
    let untouched = match ids {
        Some(ids) if !config.tie_word_embeddings => table - touched(table, rows, ids),
        _ => 0,
    };
    Ok((all - untouched) as u64)
}

/// Bytes of a table of `rows` rows that come into memory when those of `ids` are read.
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
        let real = weight_bytes(&base, &config, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(weight_bytes(folder.path(), &config, None).unwrap(), real);
        assert_eq!(real, 2 * config.num_parameters());
    }
}
