//! One version of an adapter: its tensors, its tokenizer and the digest of its content.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use danlu_adapter::Adapter;
use danlu_generate::{GenerationId, RequestAdapter};
use danlu_hub::RepoName;
use danlu_kernels::{Backend, BackendError, DType, from_f32};
use danlu_model::{Decoder, ModelError, PackedAdapter};
use sha2::{Digest, Sha256};

use crate::model_profile::ModelProfile;

/// Number of parameters in a block that is added to the digest at once.
const BLOCK_PARAMETERS: usize = 1 << 14;

/// Source of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdapterSource {
    /// A local folder.
    Folder(PathBuf),
    /// A repository on the Hub.
    Hub(RepoName),
}

impl fmt::Display for AdapterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Hub(name) => name.fmt(f),
        }
    }
}

impl AdapterSource {
    /// Returns the name that clients may see. The name is a Hub id, and never a local path.
    pub(crate) fn public_name(&self) -> Option<String> {
        match self {
            Self::Folder(_) => None,
            Self::Hub(name) => Some(name.to_string()),
        }
    }
}

/// A loaded version of an adapter. Outside the registry, each `Arc` of this value is a lease.
pub(crate) struct Generation {
    pub id: GenerationId,
    pub lora: Arc<PackedAdapter>,
    pub profile: Arc<ModelProfile>,
    /// Largest rank of all modules.
    pub rank: usize,
    /// Number of bytes that the tensors need in memory, including the copies packed for decoding.
    pub bytes: u64,
}

impl Generation {
    /// Returns the version of a loaded adapter.
    ///
    /// # Errors
    /// If the device failed.
    pub fn new(adapter: Adapter, profile: Arc<ModelProfile>, decoder: &Decoder) -> Result<Self, ModelError> {
        let backend = &**decoder.backend();
        let id = content_id(&adapter, &profile, backend)?;
        let rank = adapter.modules().iter().map(|module| module.rank).max().unwrap_or(0);
        let parameter_bytes = (adapter.num_parameters() * size_of::<f32>()) as u64;
        let lora = PackedAdapter::new(Arc::new(adapter), decoder.config(), backend);
        let bytes = parameter_bytes + lora.packed_bytes();
        Ok(Self { id, lora: Arc::new(lora), profile, rank, bytes })
    }

    /// Returns the adapter in the form that a request to the scheduler needs.
    pub fn request_adapter(&self) -> RequestAdapter {
        RequestAdapter { generation: self.id, lora: Arc::clone(&self.lora) as _ }
    }
}

/// Returns the SHA-256 of the tensors, the scalings, the tokenizer, the default system message and the
/// default sampling settings.
///
/// Adapters with the same id share the keys and values of prompts. The layout of the files and the name of
/// the base do not affect the id.
fn content_id(
    adapter: &Adapter,
    profile: &ModelProfile,
    backend: &dyn Backend,
) -> Result<GenerationId, BackendError> {
    let mut hasher = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for module in adapter.modules() {
        add(module.path().as_bytes());
        add(&module.scaling.to_le_bytes());
        for tensor in module.tensors() {
            add(format!("{:?}", tensor.shape).as_bytes());
        }
    }
    add(format!("{:?}", profile.tokens.fingerprint).as_bytes());
    add(format!("{:?} {:?}", profile.default_system, profile.sampling).as_bytes());
    match backend.device_memory() {
        // Parameters in host memory are read in place, because a copy takes longer than the digest.
        None => add_parameters(&mut hasher, &adapter.params.host_slice()[..adapter.num_parameters()]),
        Some(_) => add_parameters(&mut hasher, &adapter.to_vec(backend)?),
    }
    Ok(GenerationId(hasher.finalize().into()))
}

/// Adds parameters to a digest, in blocks. A block is added in bf16 if bf16 stores all its values exactly, as
/// for an adapter saved in bf16. The digest then reads half as many bytes.
fn add_parameters(hasher: &mut Sha256, parameters: &[f32]) {
    let mut bytes = vec![0; BLOCK_PARAMETERS * size_of::<f32>()];
    for block in parameters.chunks(BLOCK_PARAMETERS) {
        // A bf16 value is the upper half of an f32.
        let lower_bits = block.iter().fold(0, |bits, value| bits | value.to_bits() & 0xffff);
        let dtype = if lower_bits == 0 { DType::Bf16 } else { DType::F32 };
        let bytes = &mut bytes[..block.len() * dtype.size()];
        from_f32(dtype, block, bytes);
        hasher.update([dtype.size() as u8]);
        hasher.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(parameters: &[f32]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        add_parameters(&mut hasher, parameters);
        hasher.finalize().into()
    }

    #[test]
    fn a_change_of_any_bit_of_a_parameter_changes_the_digest() {
        // The last block is short. All values fit bf16.
        let parameters: Vec<f32> = (0..BLOCK_PARAMETERS + 3).map(|i| (i % 100) as f32).collect();
        let mut digests = vec![digest(&parameters)];
        for index in [0, BLOCK_PARAMETERS - 1, BLOCK_PARAMETERS, BLOCK_PARAMETERS + 2] {
            for bit in [0, 15, 16, 22, 31] {
                let mut changed = parameters.clone();
                changed[index] = f32::from_bits(changed[index].to_bits() ^ 1 << bit);
                digests.push(digest(&changed));
            }
        }
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }
}
