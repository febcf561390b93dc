//! Reads the tensors of an adapter folder in any supported file format, and gives them PEFT's names.

use std::path::{Path, PathBuf};

use danlu_model::torch_file::{self, RawTensor};
use danlu_model::{TensorInfo, Weights, files};
use serde_json::{Map, Value, json};

use crate::config::CONFIG_FILE;
use crate::files::{WEIGHTS_FILE, no_weights};
use crate::mlx::{self, MLX_WEIGHTS_FILE};
use crate::tensor_names;
use crate::{Adapter, AdapterError, LoraConfig};

/// Name of the weight file, a pickle, that PEFT wrote up to version 0.6.
pub const PICKLE_FILE: &str = "adapter_model.bin";

/// A difference between an adapter's files and the files that PEFT writes. The caller formats the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdapterNote {
    /// The tensors were read from a file in a different format, such as `adapter_model.bin`.
    OtherForm {
        /// The file.
        file: PathBuf,
    },
    /// Some tensors have names that PEFT does not use.
    RenamedTensors {
        /// Number of these tensors.
        count: usize,
        /// Name of one of these tensors.
        example: String,
        /// The wrapper that added a segment to the name, such as `torch.compile`.
        wrapper: Option<&'static str>,
    },
    /// The adapter replaces tensors of the base.
    OwnTensors {
        /// Names of these tensors in the base.
        tensors: Vec<String>,
        /// Number of tokens of the base and of the adapter, if the numbers differ.
        vocab_sizes: Option<[usize; 2]>,
    },
    /// Names in a setting that match no module of the base.
    UnusedNames {
        /// Name of the setting in PEFT.
        key: &'static str,
        /// The names.
        names: Vec<String>,
    },
}

pub(crate) struct AdapterTensors {
    /// Path of the file that contains the tensors.
    pub path: PathBuf,
    /// The tensors, with PEFT's names.
    pub weights: Weights,
    /// Differences from the files that PEFT writes.
    pub notes: Vec<AdapterNote>,
}

impl AdapterTensors {
    /// Reads the tensors of the adapter in `folder`.
    ///
    /// # Errors
    /// If the folder contains no weight file, or if the file is damaged.
    pub fn read(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(WEIGHTS_FILE);
        if path.exists() {
            let weights = Weights::from_bytes(&path, files::read_bounded(&path, u64::MAX)?)?;
            return Self::renamed(path, weights);
        }
        let path = folder.join(PICKLE_FILE);
        if path.exists() {
            let bytes = files::read_bounded(&path, u64::MAX)?;
            let tensors = torch_file::read(&bytes)
                .map_err(|message| AdapterError::Pickle { message }.in_file(&path))?;
            return Self::converted(path, tensors);
        }
        let path = folder.join(MLX_WEIGHTS_FILE);
        if path.exists() {
            let weights = Weights::from_bytes(&path, files::read_bounded(&path, u64::MAX)?)?;
            return Self::converted(path, mlx::tensors(&weights));
        }
        Err(no_weights(folder))
    }

    /// Creates the value from tensors that were read from a file in a different format.
    fn converted(path: PathBuf, tensors: Vec<RawTensor>) -> Result<Self, AdapterError> {
        let weights = Weights::from_bytes(&path, safetensors_bytes(&tensors))?;
        let mut read = Self::renamed(path.clone(), weights)?;
        read.notes.insert(0, AdapterNote::OtherForm { file: path });
        Ok(read)
    }

    /// Gives each tensor PEFT's name. If two tensors would get the same name, all names are unchanged.
    fn renamed(path: PathBuf, weights: Weights) -> Result<Self, AdapterError> {
        let names: Vec<String> = weights.names().map(tensor_names::canonical).collect();
        let changed: Vec<&str> =
            weights.names().zip(&names).filter(|(old, new)| old != new).map(|(old, _)| old).collect();
        let mut distinct = names.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if changed.is_empty() || distinct.len() < names.len() {
            return Ok(Self { path, weights, notes: Vec::new() });
        }
        let note = AdapterNote::RenamedTensors {
            count: changed.len(),
            example: changed[0].to_owned(),
            wrapper: tensor_names::wrapper(changed[0]),
        };
        let tensors: Vec<RawTensor> = weights
            .tensors()
            .iter()
            .zip(names)
            .map(|(info, name)| RawTensor { name, ..copy_of(&weights, info) })
            .collect();
        let weights = Weights::from_bytes(&path, safetensors_bytes(&tensors))?;
        Ok(Self { path, weights, notes: vec![note] })
    }
}

impl Adapter {
    /// If the adapter in `folder` is a pickle or in the format of mlx-lm, converts it to PEFT's format and
    /// writes the result to `out`. Returns the path of the converted file, or `None` if no conversion is
    /// needed.
    ///
    /// # Errors
    /// If a file cannot be read or written, or is damaged.
    pub fn convert(folder: &Path, out: &Path) -> Result<Option<PathBuf>, AdapterError> {
        let forms = [PICKLE_FILE, MLX_WEIGHTS_FILE].map(|name| folder.join(name));
        let other = forms.into_iter().find(|path| path.is_file());
        let Some(path) = other.filter(|_| !folder.join(WEIGHTS_FILE).exists()) else { return Ok(None) };
        let config = LoraConfig::read(folder)?;
        let AdapterTensors { weights, .. } = AdapterTensors::read(folder)?;
        let mut tensors: Vec<RawTensor> =
            weights.tensors().iter().map(|info| copy_of(&weights, info)).collect();
        // PEFT sorts tensors by name.
        tensors.sort_by(|x, y| x.name.cmp(&y.name));
        files::write_atomic(&out.join(WEIGHTS_FILE), &safetensors_bytes(&tensors))?;
        files::write_atomic(&out.join(CONFIG_FILE), config.to_json().as_bytes())?;
        Ok(Some(path))
    }
}

/// Copies a tensor. The name of the element type is copied too, even if danlu does not support the type.
pub(crate) fn copy_of(weights: &Weights, info: &TensorInfo) -> RawTensor {
    RawTensor {
        name: info.name.clone(),
        dtype: info.dtype_name.clone(),
        shape: info.shape.clone(),
        bytes: weights.bytes(info).to_vec(),
    }
}

fn safetensors_bytes(tensors: &[RawTensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes.len();
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.reserve(text.len() + end);
    out.append(&mut text);
    tensors.iter().for_each(|tensor| out.extend_from_slice(&tensor.bytes));
    out
}
