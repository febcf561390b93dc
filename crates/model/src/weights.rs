//! A folder's safetensors, memory-mapped: its tensors and their bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use danlu_kernels::{Bytes, DType, FourBit, Matrix, from_f32, to_f32};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::files::{self, FileError};
use crate::four_bit::{self, StoredFourBit};
use crate::json;
use crate::mapped_files::Registration;
use crate::staged_folder::{INDEX_FILE, SINGLE_FILE};
use crate::torch_file::{self, MappedTensor};
use crate::{ModelConfig, ModelError, ShardWriter, TensorSpec, tensor_names};

/// The weights as `torch.save` writes them, in one file.
pub(crate) const TORCH_FILE: &str = "pytorch_model.bin";
/// The index of several such files.
const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// Bytes of a tensor that are copied at a time.
const COPY_BYTES: usize = 8 << 20;
/// Most tensors of a file. Models of 384 experts have 140,000 in all their files.
const MAX_TENSORS: usize = 1 << 17;
/// An index has one short line per tensor.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Location of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type as safetensors spells it: `BF16`.
    pub dtype_name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Index of its file in [`Weights::files`].
    pub file: usize,
    /// Bytes within the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Returns the element type, if it is supported.
    pub fn dtype(&self) -> Option<DType> {
        match self.dtype_name.as_str() {
            "F32" => Some(DType::F32),
            "BF16" => Some(DType::Bf16),
            "F16" => Some(DType::F16),
            _ => None,
        }
    }
}

/// The weights of a model folder: `model.safetensors`, or the shards of `model.safetensors.index.json`. A folder without
/// either may have `pytorch_model.bin` or its shards, which are read without executing anything.
///
/// The files are memory-mapped, and pages are read from the disk on first use. Matrices keep their file
/// mapped, so `Weights` itself may be dropped. The files must not change meanwhile.
#[derive(Clone)]
pub struct Weights {
    folder: PathBuf,
    files: Vec<PathBuf>,
    owners: Vec<Owner>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    /// Weights that were quantized in memory. They replace the weights of the files.
    pub(crate) quantized: HashMap<String, Arc<FourBit>>,
}

/// A memory-mapped file. Its registration is dropped before the mapping.
struct MappedFile {
    _registration: Registration,
    map: Mmap,
    /// For reads that should not add pages to the memory of the process.
    file: File,
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// Owner of the bytes of a file.
#[derive(Clone)]
enum Owner {
    Map(Arc<MappedFile>),
    Memory(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

impl Owner {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Map(file) => &file.map,
            Self::Memory(memory) => (**memory).as_ref(),
        }
    }

    fn part(&self, range: Range<usize>) -> Bytes {
        match self {
            Self::Map(file) => Bytes::new(file.clone(), range),
            Self::Memory(memory) => Bytes::new(memory.clone(), range),
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The part of a header entry that determines the length of the file.
#[derive(Deserialize)]
struct Extent {
    data_offsets: Option<[u64; 2]>,
}

impl Weights {
    /// Maps the safetensors of `folder` and reads their headers.
    ///
    /// # Errors
    /// If there are none, or an index or header is invalid: it points outside the folder, names a tensor that
    /// its file lacks, or implies another length than that of the file.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut weights = Self::empty(folder);
        let single = folder.join(SINGLE_FILE);
        let index = folder.join(INDEX_FILE);
        if single.exists() {
            weights.add(single.clone(), map(&single)?, None)?;
            weights.rename();
            return Ok(weights);
        }
        if !index.exists() {
            std::fs::metadata(folder).map_err(|e| FileError::new("open", folder, e))?;
            if weights.add_torch_files()? {
                weights.rename();
                return Ok(weights);
            }
            for path in shards_without_index(folder)? {
                weights.add(path.clone(), map(&path)?, None)?;
            }
            weights.rename();
            return Ok(weights);
        }
        for (path, names) in shards_of_index(&index, ".safetensors")? {
            weights.add(path.clone(), map(&path)?, Some(&names))?;
        }
        weights.rename();
        Ok(weights)
    }

    /// Adds the tensors of `pytorch_model.bin`, or of the shards of its index. Nothing in them is executed. Returns
    /// whether the folder has such files.
    fn add_torch_files(&mut self) -> Result<bool, ModelError> {
        let (single, index) = (self.folder.join(TORCH_FILE), self.folder.join(TORCH_INDEX));
        let paths = match () {
            () if single.exists() => vec![single],
            () if index.exists() => {
                shards_of_index(&index, ".bin")?.into_iter().map(|(path, _)| path).collect()
            }
            () => return Ok(false),
        };
        for path in paths {
            let (owner, file) = (map(&path)?, self.files.len());
            let found = torch_file::map(owner.bytes())
                .map_err(|message| ModelError::Pickle { path: path.clone(), message })?;
            for MappedTensor { name, dtype, shape, range } in found {
                self.by_name.insert(name.clone(), self.tensors.len());
                self.tensors.push(TensorInfo { name, dtype_name: dtype, shape, file, range });
            }
            self.files.push(path);
            self.owners.push(owner);
        }
        Ok(true)
    }

    /// Gives each tensor the name of its model, without the segments of wrappers such as torch.compile's, if the
    /// names stay apart.
    fn rename(&mut self) {
        let names = tensor_names::canonical(self.names());
        let by_name: HashMap<String, usize> = names.iter().cloned().zip(0..).collect();
        if by_name.len() == self.tensors.len() {
            self.by_name = by_name;
            self.tensors.iter_mut().zip(names).for_each(|(tensor, name)| tensor.name = name);
        }
    }

    /// Maps a single safetensors file, such as an adapter's, and reads its header.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn open_file(path: &Path) -> Result<Self, ModelError> {
        let mut weights = Self::empty(path);
        weights.add(path.to_owned(), map(path)?, None)?;
        Ok(weights)
    }

    /// Reads weights from the bytes of one safetensors file. `path` is for messages.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, ModelError> {
        let mut weights = Self::empty(path);
        weights.add(path.to_owned(), Owner::Memory(Arc::new(bytes)), None)?;
        Ok(weights)
    }

    /// Adds a tensor in memory.
    pub(crate) fn push(&mut self, spec: TensorSpec, memory: Arc<dyn AsRef<[u8]> + Send + Sync>) {
        let (file, range) = (self.files.len(), 0..(*memory).as_ref().len());
        let TensorSpec { name, dtype, shape, .. } = spec;
        self.by_name.insert(name.clone(), self.tensors.len());
        self.tensors.push(TensorInfo { name, dtype_name: dtype, shape, file, range });
        self.files.push(self.folder.clone());
        self.owners.push(Owner::Memory(memory));
    }

    /// Adds a tensor that exists only in 4 bits, in memory.
    pub(crate) fn push_quantized(&mut self, spec: TensorSpec, weight: FourBit) {
        self.quantized.insert(spec.name.clone(), Arc::new(weight));
        self.push(spec, Arc::new([0u8; 0]));
    }

    /// Replaces the tensor `name` by the bytes of `info` in `from`, or adds it.
    pub fn replace_with(&mut self, name: &str, from: &Self, info: &TensorInfo) {
        let owner = from.owners[info.file].clone();
        self.replace(TensorInfo { name: name.to_owned(), file: self.files.len(), ..info.clone() }, owner);
    }

    /// Replaces the tensor `name` by f32 values, or adds it.
    ///
    /// # Panics
    /// If `values` has another number of elements than `shape`.
    pub fn replace_values(&mut self, name: &str, shape: Vec<usize>, values: &[f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let mut bytes = vec![0; size_of_val(values)];
        from_f32(DType::F32, values, &mut bytes);
        let (dtype_name, range) = (TensorSpec::dtype_name(DType::F32).to_owned(), 0..bytes.len());
        let info = TensorInfo { name: name.to_owned(), dtype_name, shape, file: self.files.len(), range };
        self.replace(info, Owner::Memory(Arc::new(bytes)));
    }

    /// Removes the tensor `name` and the parts of its 4-bit form.
    pub fn remove(&mut self, name: &str) {
        self.tensors.retain(|info| info.name != name && four_bit::weight_of_part(&info.name) != Some(name));
        self.quantized.remove(name);
        self.by_name = self.names().map(str::to_owned).zip(0..).collect();
    }

    fn replace(&mut self, info: TensorInfo, owner: Owner) {
        let at = self.by_name.get(&info.name).map_or(self.tensors.len(), |&at| {
            let parts = |other: &&TensorInfo| four_bit::weight_of_part(&other.name) == Some(&info.name);
            at - self.tensors[..at].iter().filter(parts).count()
        });
        self.remove(&info.name);
        self.tensors.insert(at, info);
        self.by_name = self.names().map(str::to_owned).zip(0..).collect();
        self.files.push(self.folder.clone());
        self.owners.push(owner);
    }

    /// Returns weights without tensors; `folder` is for messages.
    pub(crate) fn empty(folder: &Path) -> Self {
        let (files, owners, tensors) = (Vec::new(), Vec::new(), Vec::new());
        let (by_name, quantized) = (HashMap::new(), HashMap::new());
        Self { folder: folder.to_owned(), files, owners, tensors, by_name, quantized }
    }

    /// Adds one file's tensors in the order of their bytes: all, or those that the index lists.
    fn add(
        &mut self,
        path: PathBuf,
        owner: Owner,
        promised: Option<&BTreeSet<String>>,
    ) -> Result<(), ModelError> {
        let file = self.files.len();
        let mut found = read_header(&path, owner.bytes(), file)?;
        if let Some(promised) = promised {
            // Tensors that the index lacks are not loaded, as in transformers. A tensor that exists only in
            // the index is an error only for a model that needs it.
            found.retain(|t| promised.contains(&t.name));
        }
        for tensor in found {
            self.by_name.insert(tensor.name.clone(), self.tensors.len());
            self.tensors.push(tensor);
        }
        self.files.push(path);
        self.owners.push(owner);
        Ok(())
    }

    /// Returns the folder, or the file if there is no folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the safetensors files, sorted by name.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Returns the open file at `path`, if it is one of [`Weights::files`] and mapped.
    pub(crate) fn open_file_at(&self, path: &Path) -> Option<&File> {
        let file = self.files.iter().position(|file| file == path)?;
        match &self.owners[file] {
            Owner::Map(mapped) => Some(&mapped.file),
            Owner::Memory(_) => None,
        }
    }

    /// Returns the bytes of address space that the mapped files occupy.
    pub fn mapped_bytes(&self) -> u64 {
        let mapped = self.owners.iter().filter(|owner| matches!(owner, Owner::Map(_)));
        mapped.map(|owner| owner.bytes().len() as u64).sum()
    }

    /// Returns every tensor, by file and offset.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Returns every tensor's name, in the same order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// Returns the tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// Returns the bytes of a tensor of these weights, little-endian, row-major.
    ///
    /// # Panics
    /// If `info` comes from other weights and is out of range.
    pub fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.owners[info.file].bytes()[info.range.clone()]
    }

    /// Returns the same bytes with shared ownership of the file.
    pub(crate) fn part(&self, info: &TensorInfo) -> Bytes {
        self.owners[info.file].part(info.range.clone())
    }

    /// Copies the bytes of a tensor and releases its mapped memory.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn copy(&self, info: &TensorInfo, writer: &mut ShardWriter) -> Result<(), FileError> {
        for (i, part) in self.bytes(info).chunks(COPY_BYTES).enumerate() {
            writer.write(part)?;
            self.release_part(info, i * COPY_BYTES..i * COPY_BYTES + part.len());
        }
        Ok(())
    }

    /// Releases the mapped memory of a tensor. The system reads it again from the file on the next use.
    pub fn release(&self, info: &TensorInfo) {
        self.release_part(info, 0..info.range.len());
    }

    /// Releases the mapped memory of all tensors: see [`Weights::release`].
    pub fn release_all(&self) {
        self.tensors.iter().for_each(|info| self.release(info));
    }

    /// As [`Weights::release`], for a range of the tensor's bytes.
    fn release_part(&self, info: &TensorInfo, bytes: Range<usize>) {
        if let Owner::Map(file) = &self.owners[info.file] {
            let (start, len) = (info.range.start + bytes.start, bytes.len());
            // SAFETY: the file is mapped read-only, so a dropped page is read again from the file. If the
            // system refuses, only memory is wasted.
            let _ = unsafe { file.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        }
    }

    /// Returns every tensor of the model. A 4-bit weight is one tensor with its original type and shape.
    ///
    /// # Errors
    /// If the state of a 4-bit weight is invalid.
    pub fn model_tensors(&self) -> Result<Vec<TensorInfo>, ModelError> {
        let four_bit = StoredFourBit::all(self);
        let mut out = Vec::new();
        for info in &self.tensors {
            match four_bit.get(info.name.as_str()) {
                Some(stored) => out.push(stored.original(info)?),
                None if four_bit::weight_of_part(&info.name).is_some_and(|w| four_bit.contains_key(w)) => {}
                None => out.push(info.clone()),
            }
        }
        Ok(out)
    }

    /// Returns a tensor as a frozen matrix, in memory or over the mapped file. A 4-bit weight includes all
    /// its parts.
    ///
    /// # Errors
    /// If the tensor is missing, misshaped, of an unsupported type, or has an invalid part.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, ModelError> {
        if let Some(weight) = self.quantized.get(name) {
            return Ok(Matrix::four_bit(Arc::clone(weight), rows, cols));
        }
        if let Some(stored) = StoredFourBit::find(self, name) {
            return Ok(Matrix::four_bit(Arc::new(stored.read(rows, cols)?), rows, cols));
        }
        let (info, dtype) = self.typed(name, &[rows, cols])?;
        Ok(Matrix::dense(dtype, self.part(info), rows, cols))
    }

    /// Returns one of [`Weights::model_tensors`] as a matrix whose columns are its last dimension.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub fn tensor(&self, info: &TensorInfo) -> Result<Matrix, ModelError> {
        if let &[rows, cols] = &info.shape[..] {
            return self.matrix(&info.name, rows, cols);
        }
        let (info, dtype) = self.typed(&info.name, &info.shape)?;
        let cols = info.shape.last().copied().unwrap_or(1);
        let rows = info.shape.iter().product::<usize>().checked_div(cols).unwrap_or(0);
        Ok(Matrix::dense(dtype, self.part(info), rows, cols))
    }

    /// Returns the bytes of a weight in the files, with all parts of a 4-bit weight.
    pub fn stored_bytes(&self, name: &str) -> u64 {
        let own = self.info(name).map_or(0, |info| info.range.len());
        let parts: usize = match StoredFourBit::find(self, name) {
            Some(stored) => stored.parts().map(|info| info.range.len()).sum(),
            None => 0,
        };
        (own + parts) as u64
    }

    /// Returns the bytes of all tensors in the files.
    pub fn total_bytes(&self) -> u64 {
        let stored = self.tensors.iter().filter(|t| !self.quantized.contains_key(&t.name));
        let stored: usize = stored.map(|t| t.range.len()).sum();
        let held: usize = self.quantized.values().map(|weight| weight.bytes()).sum();
        (stored + held) as u64
    }

    /// Whether projections were quantized in memory.
    pub fn is_quantized(&self) -> bool {
        !self.quantized.is_empty()
    }

    /// Returns a tensor of one dimension as f32.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub fn vector_f32(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let (info, dtype) = self.typed(name, &[len])?;
        let mut out = vec![0.0; len];
        to_f32(dtype, self.bytes(info), &mut out);
        Ok(out)
    }

    /// Returns a tensor of floats, of any shape.
    pub(crate) fn float(&self, name: &str) -> Result<(&TensorInfo, DType), ModelError> {
        let Some(info) = self.info(name) else {
            return Err(ModelError::NoTensor { path: self.folder.clone(), tensor: name.to_owned() });
        };
        let dtype = info.dtype().ok_or_else(|| ModelError::DType {
            path: self.files[info.file].clone(),
            tensor: name.to_owned(),
            dtype: info.dtype_name.clone(),
        })?;
        Ok((info, dtype))
    }

    fn typed(&self, name: &str, shape: &[usize]) -> Result<(&TensorInfo, DType), ModelError> {
        let (info, dtype) = self.float(name)?;
        if info.shape != shape {
            return Err(ModelError::Shape {
                path: self.files[info.file].clone(),
                tensor: name.to_owned(),
                expected: shape.to_owned(),
                found: info.shape.clone(),
            });
        }
        Ok((info, dtype))
    }

    /// Checks that the tensors match `config`: none missing, none unknown, each with its shape and a
    /// supported type.
    ///
    /// Extras without effect are accepted: rotary frequencies that old exports store, a value head of
    /// reinforcement learning, and an output head that equals the tied table.
    ///
    /// # Errors
    /// Lists every wrong tensor with both shapes. A tensor of an unsupported type is reported first.
    pub fn check_complete(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let four_bit: HashMap<&str, StoredFourBit<'_>> = StoredFourBit::all(self);
        let is_part = |name: &str| {
            four_bit::weight_of_part(name).is_some_and(|weight| four_bit.contains_key(weight))
                || four_bit.contains_key(name)
        };
        let odd =
            self.tensors.iter().find(|t| t.dtype().is_none() && !is_harmless(&t.name) && !is_part(&t.name));
        if let Some(odd) = odd {
            return Err(ModelError::DType {
                path: self.files[odd.file].clone(),
                tensor: odd.name.clone(),
                dtype: odd.dtype_name.clone(),
            });
        }
        let mut problems = Vec::new();
        let mut expected = HashMap::new();
        for (name, shape) in config.tensors() {
            match (self.info(&name), four_bit.get(name.as_str()), &shape[..]) {
                (None, ..) => problems.push(format!("`{name}` {shape:?} is missing")),
                (Some(_), Some(stored), &[rows, cols]) => {
                    stored.check(rows, cols)?;
                }
                (Some(info), ..) if info.shape.contains(&0) => {
                    let cause = "DeepSpeed ZeRO-3 saves empty tensors unless it gathers them";
                    problems.push(format!("`{name}` is empty, expected {shape:?}: {cause}"));
                }
                (Some(info), ..) if info.shape != shape => {
                    problems.push(format!("`{name}` has shape {:?}, expected {shape:?}", info.shape));
                }
                _ => {}
            }
            expected.insert(name, shape);
        }
        let table = [config.vocab_size, config.hidden_size];
        for tensor in &self.tensors {
            let name = four_bit::weight_of_part(&tensor.name).unwrap_or(&tensor.name);
            let is_tied_head = tensor.name == "lm_head.weight" && tensor.shape == table;
            if !expected.contains_key(name) && !is_tied_head && !is_harmless(&tensor.name) {
                problems.push(format!("`{}` {:?} is unknown", tensor.name, tensor.shape));
            }
        }
        if problems.is_empty() {
            return self.check_tied_head(config);
        }
        Err(ModelError::Incomplete { path: self.folder.clone(), problems })
    }

    /// Rejects a head that differs from the embedding table to which the configuration ties it, because the
    /// model would ignore the head.
    fn check_tied_head(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let (head, table) = (self.info("lm_head.weight"), self.info("model.embed_tokens.weight"));
        let (true, Some(head), Some(table)) = (config.tie_word_embeddings, head, table) else {
            return Ok(());
        };
        if head.dtype_name == table.dtype_name && self.bytes(head) == self.bytes(table) {
            return Ok(());
        }
        Err(ModelError::OwnHead { folder: self.folder.clone() })
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Weights({}, {} tensors in {} files)",
            self.folder.display(),
            self.tensors.len(),
            self.files.len()
        )
    }
}

/// Returns whether the tensor is a buffer of old exports, which every reader recomputes.
fn is_harmless(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name.starts_with("v_head.")
}

/// Returns the shards of a folder without an index, such as `model-00001-of-00002.safetensors`.
fn shards_without_index(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let parts = |name: &str| {
        let (number, count) =
            name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
        Some((number.parse::<usize>().ok()?, count.parse::<usize>().ok()?))
    };
    let mut found: Vec<((usize, usize), String)> =
        files::names_in(folder)?.into_iter().filter_map(|name| Some((parts(&name)?, name))).collect();
    found.sort();
    let Some(&((_, count), _)) = found.first() else {
        return Err(ModelError::NoWeights { folder: folder.to_owned(), other: other_weights(folder) });
    };
    let is_whole = found.iter().map(|&(part, _)| part).eq((1..=count).map(|number| (number, count)));
    if !is_whole {
        let message = format!("the index is missing, and of {count} shards {} are there", found.len());
        return Err(ModelError::NoShard { path: folder.join(INDEX_FILE), message });
    }
    Ok(found.into_iter().map(|(_, name)| folder.join(name)).collect())
}

fn map(path: &Path) -> Result<Owner, ModelError> {
    let error = |e| FileError::new("read", path, e);
    let file = files::open_regular(path)?;
    // SAFETY: the map is read-only. The documentation of `Weights` requires that the files do not change
    // while they are in use, as every reader of mapped checkpoints does.
    let map = unsafe { Mmap::map(&file) }.map_err(error)?;
    Ok(Owner::Map(Arc::new(MappedFile { _registration: Registration::new(&map, path), map, file })))
}

/// Returns the tensors of a safetensors file in the order of their bytes.
fn read_header(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<TensorInfo>, ModelError> {
    check_length(path, bytes)?;
    let header = |message: String| ModelError::Header { path: path.to_owned(), message };
    let (length, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| header(e.to_string()))?;
    let start = 8 + length;
    let mut tensors: Vec<TensorInfo> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| TensorInfo {
            name,
            dtype_name: info.dtype.to_string(),
            shape: info.shape.clone(),
            file,
            range: start + info.data_offsets.0..start + info.data_offsets.1,
        })
        .collect();
    // Empty tensors share an offset, so they are sorted by name.
    tensors.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
    Ok(tensors)
}

/// Compares the length of the file with its header before any offset is used.
fn check_length(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let found = bytes.len() as u64;
    let size = |expected| ModelError::FileSize { path: path.to_owned(), expected, found };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return Err(size(8)) };
    let length = u64::from_le_bytes(*length);
    // Tested before the length, so that an HTML page or a Git LFS pointer is not reported as a short
    // download.
    if length > 100_000_000 || rest.first().is_some_and(|&b| b != b'{') {
        let begin = String::from_utf8_lossy(&bytes[..bytes.len().min(24)]).into_owned();
        let message = format!("it begins with {begin:?}");
        return Err(ModelError::Header { path: path.to_owned(), message });
    }
    let Some(header) = usize::try_from(length).ok().and_then(|n| rest.get(..n)) else {
        return Err(size(8 + length));
    };
    let entries: HashMap<String, Extent> = serde_json::from_slice(header)
        .map_err(|e| ModelError::Header { path: path.to_owned(), message: e.to_string() })?;
    if entries.len() > MAX_TENSORS {
        let message = format!("it has {} tensors, expected at most {MAX_TENSORS}", entries.len());
        return Err(ModelError::Header { path: path.to_owned(), message });
    }
    let end = entries.values().filter_map(|e| e.data_offsets).map(|[_, end]| end).max().unwrap_or(0);
    let expected = end.saturating_add(8 + length);
    if expected != found {
        return Err(size(expected));
    }
    Ok(())
}

/// Returns the shards of an index, which must exist, and the tensors of each.
fn shards_of_index(index: &Path, ending: &str) -> Result<Vec<(PathBuf, BTreeSet<String>)>, ModelError> {
    let folder = index.parent().unwrap_or(Path::new(""));
    let shards = parse_index(index, &files::read_bounded(index, MAX_INDEX_BYTES)?, ending)?;
    let shard = |(shard, names): (String, BTreeSet<String>)| {
        let path = folder.join(&shard);
        if !path.exists() {
            let message = format!("shard `{shard}` is missing, with {} tensors", names.len());
            return Err(ModelError::NoShard { path: index.to_owned(), message });
        }
        Ok((path, names))
    };
    shards.into_iter().map(shard).collect()
}

/// Returns the tensors of each shard. Shards must be in the folder of the index, and their names have this ending.
fn parse_index(
    path: &Path,
    bytes: &[u8],
    ending: &str,
) -> Result<BTreeMap<String, BTreeSet<String>>, ModelError> {
    let index: Index = serde_json::from_slice(bytes).map_err(|e| json::malformed(path, bytes, &e))?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, shard) in index.weight_map {
        let mut components = Path::new(&shard).components();
        let is_plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !is_plain || !shard.ends_with(ending) {
            let kind = if ending == ".bin" { "`.bin`" } else { "safetensors" };
            let message =
                format!("`{tensor}` is said to be in {shard:?}, which is not a {kind} file beside the index");
            return Err(ModelError::Index { path: path.to_owned(), message });
        }
        shards.entry(shard).or_default().insert(tensor);
    }
    if shards.is_empty() {
        let message = "`weight_map` is empty".to_owned();
        return Err(ModelError::Index { path: path.to_owned(), message });
    }
    Ok(shards)
}

/// Returns the first file, by name, that looks like weights in another format.
fn other_weights(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let foreign = [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"];
    let is_other = |name: &String| {
        foreign.iter().any(|ending| name.ends_with(ending))
            || (name.ends_with(".safetensors") && !name.starts_with("adapter_"))
    };
    names.filter(is_other).min()
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
