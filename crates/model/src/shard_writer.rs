//! Writes a safetensors file sequentially. The header is written first and the tensors follow, because the
//! shapes are known before the data.

use std::io::Write;
use std::path::Path;

use danlu_kernels::DType;
use serde_json::{Map, json};

use crate::files::{AtomicFile, FileError};

/// Header entry of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of the tensor.
    pub name: String,
    /// Element type as safetensors spells it.
    pub dtype: String,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// Length in bytes.
    pub bytes: u64,
}

impl TensorSpec {
    /// Describes a tensor of floating-point numbers.
    pub fn new(name: String, dtype: DType, shape: Vec<usize>) -> Self {
        let bytes = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
        Self { name, dtype: Self::dtype_name(dtype).to_owned(), shape, bytes }
    }

    /// Returns the name of an element type in safetensors.
    pub fn dtype_name(dtype: DType) -> &'static str {
        match dtype {
            DType::F32 => "F32",
            DType::Bf16 => "BF16",
            DType::F16 => "F16",
        }
    }
}

/// Writes one safetensors file through an [`AtomicFile`]. The file gets its final name in
/// [`finish`](ShardWriter::finish), when it is complete.
#[derive(Debug)]
pub struct ShardWriter {
    file: AtomicFile,
    missing: u64,
}

impl ShardWriter {
    /// Returns the length of a file that contains these tensors.
    pub fn file_size(specs: &[TensorSpec]) -> u64 {
        header(specs).len() as u64 + specs.iter().map(|s| s.bytes).sum::<u64>()
    }

    /// Opens the file and writes the header.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn create(path: &Path, specs: &[TensorSpec]) -> Result<Self, FileError> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(&header(specs)).map_err(|e| FileError::new("write", path, e))?;
        Ok(Self { file, missing: specs.iter().map(|s| s.bytes).sum() })
    }

    /// Appends bytes of the tensors. The tensors must be written in the order of the header.
    ///
    /// # Errors
    /// If the disk is full.
    ///
    /// # Panics
    /// If more bytes are written than the header declares.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.missing = self.missing.checked_sub(bytes.len() as u64).expect("no more bytes than announced");
        self.file.write_all(bytes).map_err(|e| FileError::new("write", self.file.path(), e))
    }

    /// Flushes the file to the disk and renames it to its final name.
    ///
    /// # Errors
    /// If the disk is full.
    ///
    /// # Panics
    /// If fewer bytes were written than the header declares.
    pub fn finish(self) -> Result<(), FileError> {
        assert_eq!(self.missing, 0, "as many bytes as announced");
        self.file.commit()
    }
}

/// Returns the length and the JSON of the header. The JSON is padded with blanks, so that the data starts at
/// a multiple of 8 bytes.
fn header(specs: &[TensorSpec]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for TensorSpec { name, dtype, shape, bytes } in specs {
        let end = offset + bytes;
        entries
            .insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut json = serde_json::to_vec(&entries).expect("a JSON value has string keys");
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    header
}
