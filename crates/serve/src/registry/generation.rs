//! One version of an adapter: its tensors, its tokenizer and the digest of its content.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use danlu_adapter::Adapter;
use danlu_generate::{GenerationId, RequestAdapter};
use danlu_hub::RepoName;
use danlu_kernels::{Backend, BackendError};
use danlu_model::{Decoder, ModelError, PackedAdapter};
use sha2::{Digest, Sha256};

use crate::model_profile::ModelProfile;

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

/// A loaded version of an adapter. Each clone of the version's `Arc` outside the registry is a lease.
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

/// Returns the SHA-256 of the scalings, the tensors and the tokenizer.
///
/// Two adapters with equal tensors have the same id, even if the layout of their files differs. Their
/// requests thus share the keys and values of prompts. The digest ignores the base's name and other settings
/// that do not affect replies.
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
            let mut values = vec![0.0; tensor.len()];
            backend.read(&mut values, &adapter.params, tensor.offset)?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            add(&bytes);
        }
    }
    add(format!("{:?}", profile.tokens.fingerprint).as_bytes());
    add(format!("{:?} {:?}", profile.default_system, profile.sampling).as_bytes());
    Ok(GenerationId(hasher.finalize().into()))
}
