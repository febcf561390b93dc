//! Finds weights of a base that are not finite. A run searches for such weights only after its loss became
//! infinite or NaN.

use std::path::Path;

use danlu_model::{ModelError, Weights};

use crate::TrainError;

/// Checks that every weight of the base in `folder` is finite.
///
/// # Errors
/// Returns [`TrainError::BaseNotFinite`] with the first weight that is not finite. Any other error is a read
/// error.
pub fn check_finite_weights(folder: &Path) -> Result<(), TrainError> {
    let weights = Weights::open(folder)?;
    for info in weights.tensors() {
        weights.check_finite(info).map_err(|error| match error {
            ModelError::NotFinite { path, tensor, value, element } => {
                TrainError::BaseNotFinite { path, tensor, value, element }
            }
            error => error.into(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};

    /// A number of elements that is larger than one chunk of the check.
    const CHUNK_ELEMENTS: usize = 1 << 16;

    #[test]
    fn the_first_weight_that_is_no_number_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |value: f32| {
            let mut bytes = vec![0; 4 * (CHUNK_ELEMENTS + 9)];
            bytes[4 * (CHUNK_ELEMENTS + 3)..][..4].copy_from_slice(&value.to_le_bytes());
            let view = |bytes| TensorView::new(Dtype::F32, vec![CHUNK_ELEMENTS + 9], bytes).unwrap();
            let file = safetensors::serialize(
                [("a", view(&vec![0; 4 * (CHUNK_ELEMENTS + 9)])), ("b", view(&bytes))],
                None,
            );
            std::fs::write(folder.path().join("model.safetensors"), file.unwrap()).unwrap();
        };
        write(f32::MAX);
        check_finite_weights(folder.path()).unwrap();
        for value in [f32::NAN, f32::NEG_INFINITY] {
            write(value);
            let error = check_finite_weights(folder.path()).unwrap_err().to_string();
            let expected = format!(
                "model.safetensors: tensor `b` of the base holds {value} at element {}",
                CHUNK_ELEMENTS + 3
            );
            assert!(error.ends_with(&expected), "{error}");
        }
    }
}
