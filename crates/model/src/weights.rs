//! The safetensors files of a folder. The files are memory-mapped.

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
use crate::tensor_names::{self, TextPrefix};
use crate::torch_file::{self, MappedTensor};
use crate::{ModelConfig, ModelError, ShardWriter, TensorSpec};

/// A single file with all weights, as `torch.save` writes it.
pub(crate) const TORCH_FILE: &str = "pytorch_model.bin";
/// The index of several torch files.
const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// The embedding table and the output head.
const TABLE: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Number of bytes of a tensor that are copied at a time.
const COPY_BYTES: usize = 8 << 20;
/// Maximum number of tensors in a file. Models with 384 experts have 140,000 tensors in all their files
/// together.
const MAX_TENSORS: usize = 1 << 17;
/// Maximum size of an index. An index has one short line per tensor.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Location of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type as safetensors spells it: `BF16`.
    pub dtype_name: String,
    /// Size of each dimension. The outermost dimension is the first.
    pub shape: Vec<usize>,
    /// Index of the tensor's file in [`Weights::files`].
    pub file: usize,
    /// Byte range of the tensor in the file.
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

/// The weights of a model folder, in `model.safetensors` or in the shards of `model.safetensors.index.json`.
/// If neither file exists, the weights are read from `pytorch_model.bin` or its shards, and nothing in these
/// files is executed. If these files do not exist either, the weights are read from safetensors shards
/// without an index.
///
/// The files are memory-mapped, and a page is read from the disk on first use. A matrix shares the ownership
/// of its mapping, so `Weights` may be dropped before its matrices. The files must not change while they are
/// mapped.
#[derive(Clone)]
pub struct Weights {
    folder: PathBuf,
    files: Vec<PathBuf>,
    owners: Vec<Owner>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    text_prefix: TextPrefix,
    /// Whether the files contain an output head and no embedding table, so that the head is the table.
    head_is_table: bool,
    /// Weights that were quantized in memory. They replace the weights of the files.
    pub(crate) quantized: HashMap<String, Arc<FourBit>>,
}

/// A memory-mapped file. Fields are dropped in their order. `_registration` refers to the mapping and must
/// therefore come before `map`.
struct MappedFile {
    _registration: Registration,
    map: Mmap,
    /// The open file, for reads that should not add pages to the memory of the process.
    file: File,
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// The owner of the bytes of a file.
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

/// The fields of a header entry that determine the length of the file.
#[derive(Deserialize)]
struct Extent {
    data_offsets: Option<[u64; 2]>,
}

impl Weights {
    /// Maps the weight files of `folder` and reads their headers. See [`Weights`] for the files.
    ///
    /// # Errors
    /// If there are no weights, if a shard is missing, or if an index or a header is invalid. An index is
    /// invalid if it contains a path outside the folder. A header is invalid if it does not match the length
    /// of the file.
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

    /// Adds the tensors of `pytorch_model.bin`, or of the shards in its index. Nothing in these files is
    /// executed. Returns whether the folder contains such files.
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

    /// Restores the original name of each tensor, without the components of wrappers such as torch.compile.
    /// Nothing is renamed if two tensors would get the same name.
    fn rename(&mut self) {
        let names = tensor_names::canonical(self.names());
        let text_prefix = TextPrefix::find(self.names());
        let by_name: HashMap<String, usize> = names.iter().cloned().zip(0..).collect();
        if by_name.len() == self.tensors.len() {
            (self.by_name, self.text_prefix) = (by_name, text_prefix);
            self.tensors.iter_mut().zip(names).for_each(|(tensor, name)| tensor.name = name);
        }
        // As in transformers, the head of a tied model is also its embedding table.
        if let (Some(&at), None) = (self.by_name.get(HEAD), self.by_name.get(TABLE)) {
            self.tensors[at].name = TABLE.to_owned();
            self.by_name.remove(HEAD);
            self.by_name.insert(TABLE.to_owned(), at);
            self.head_is_table = true;
        }
    }

    /// Maps a single safetensors file, such as an adapter's, and reads its header.
    ///
    /// # Errors
    /// The errors of [`Weights::open`].
    pub fn open_file(path: &Path) -> Result<Self, ModelError> {
        let mut weights = Self::empty(path);
        weights.add(path.to_owned(), map(path)?, None)?;
        Ok(weights)
    }

    /// Reads weights from the bytes of one safetensors file. `path` is used only in error messages.
    ///
    /// # Errors
    /// The errors of [`Weights::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, ModelError> {
        let mut weights = Self::empty(path);
        weights.add(path.to_owned(), Owner::Memory(Arc::new(bytes)), None)?;
        Ok(weights)
    }

    pub(crate) fn push(&mut self, spec: TensorSpec, memory: Arc<dyn AsRef<[u8]> + Send + Sync>) {
        let (file, range) = (self.files.len(), 0..(*memory).as_ref().len());
        let TensorSpec { name, dtype, shape, .. } = spec;
        self.by_name.insert(name.clone(), self.tensors.len());
        self.tensors.push(TensorInfo { name, dtype_name: dtype, shape, file, range });
        self.files.push(self.folder.clone());
        self.owners.push(Owner::Memory(memory));
    }

    /// Adds a tensor that is stored in memory, in 4 bits only.
    pub(crate) fn push_quantized(&mut self, spec: TensorSpec, weight: FourBit) {
        self.quantized.insert(spec.name.clone(), Arc::new(weight));
        self.push(spec, Arc::new([0u8; 0]));
    }

    /// Adds the tensor `info` of `from` under the name `name`. An existing tensor of this name is replaced.
    pub fn replace_with(&mut self, name: &str, from: &Self, info: &TensorInfo) {
        let owner = from.owners[info.file].clone();
        self.replace(TensorInfo { name: name.to_owned(), file: self.files.len(), ..info.clone() }, owner);
    }

    /// Adds a tensor with these f32 values under the name `name`. An existing tensor of this name is
    /// replaced.
    ///
    /// # Panics
    /// If the number of values does not match `shape`.
    pub fn replace_values(&mut self, name: &str, shape: Vec<usize>, values: &[f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let mut bytes = vec![0; size_of_val(values)];
        from_f32(DType::F32, values, &mut bytes);
        let (dtype_name, range) = (TensorSpec::dtype_name(DType::F32).to_owned(), 0..bytes.len());
        let info = TensorInfo { name: name.to_owned(), dtype_name, shape, file: self.files.len(), range };
        self.replace(info, Owner::Memory(Arc::new(bytes)));
    }

    /// Removes the tensor `name`, and the other parts if it is a 4-bit weight.
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

    /// Returns weights without tensors. `folder` is used only in messages.
    pub(crate) fn empty(folder: &Path) -> Self {
        let (files, owners, tensors) = (Vec::new(), Vec::new(), Vec::new());
        let (by_name, quantized) = (HashMap::new(), HashMap::new());
        let (text_prefix, folder, head_is_table) = (TextPrefix::default(), folder.to_owned(), false);
        Self { folder, files, owners, tensors, by_name, text_prefix, head_is_table, quantized }
    }

    /// Adds the tensors of one file in the order of their bytes. If there is an index, adds only the tensors
    /// in the index.
    fn add(
        &mut self,
        path: PathBuf,
        owner: Owner,
        promised: Option<&BTreeSet<String>>,
    ) -> Result<(), ModelError> {
        let file = self.files.len();
        let mut found = read_header(&path, owner.bytes(), file)?;
        if let Some(promised) = promised {
            // As in transformers, tensors that are missing in the index are not loaded. If a tensor is listed
            // in the index but missing in the file, this is an error only if the model needs the tensor.
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

    /// Returns the folder. For a single file, returns the path of the file.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the paths of the weight files, sorted by name.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Returns the open file for `path`, if `path` is a mapped file of [`Weights::files`].
    pub(crate) fn open_file_at(&self, path: &Path) -> Option<&File> {
        let file = self.files.iter().position(|file| file == path)?;
        match &self.owners[file] {
            Owner::Map(mapped) => Some(&mapped.file),
            Owner::Memory(_) => None,
        }
    }

    /// Returns the size of the address space that the mapped files occupy, in bytes.
    pub fn mapped_bytes(&self) -> u64 {
        let mapped = self.owners.iter().filter(|owner| matches!(owner, Owner::Map(_)));
        mapped.map(|owner| owner.bytes().len() as u64).sum()
    }

    /// Returns every tensor, sorted by file and offset.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Returns the name of every tensor, in the order of [`Weights::tensors`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// Returns the name of the tensor `name` in a file of this model. The two names differ if the model also
    /// has a vision tower.
    pub fn file_name(&self, name: &str) -> String {
        self.text_prefix.file_name(name)
    }

    /// Returns the tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// Returns the bytes of a tensor of these weights. The elements are little-endian, in row-major order.
    ///
    /// # Panics
    /// If `info` comes from other weights and its range is too large.
    pub fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.owners[info.file].bytes()[info.range.clone()]
    }

    /// Returns the bytes of a tensor with shared ownership of the mapped file.
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

    /// Releases the mapped memory of a tensor. On the next use, the operating system reads the tensor from
    /// the file again.
    pub fn release(&self, info: &TensorInfo) {
        self.release_part(info, 0..info.range.len());
    }

    /// Releases the mapped memory of all tensors. See [`Weights::release`].
    pub fn release_all(&self) {
        self.tensors.iter().for_each(|info| self.release(info));
    }

    /// Releases the mapped memory of a range of the tensor's bytes. See [`Weights::release`].
    fn release_part(&self, info: &TensorInfo, bytes: Range<usize>) {
        if let Owner::Map(file) = &self.owners[info.file] {
            let (start, len) = (info.range.start + bytes.start, bytes.len());
            // SAFETY: the file is mapped read-only, so a dropped page is read from the file again. If the
            // operating system rejects the call, the only effect is more memory.
            let _ = unsafe { file.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        }
    }

    /// Returns every tensor of the model. A 4-bit weight counts as one tensor, with its element type and
    /// shape before quantization.
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

    /// Returns a tensor as a frozen matrix. Its data is in memory or in the mapped file. A 4-bit weight
    /// includes all its parts.
    ///
    /// # Errors
    /// If the tensor is missing, is misshaped, has an unsupported type, or has an invalid part.
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

    /// Returns a tensor of [`Weights::model_tensors`] as a matrix. The columns are the last dimension of the
    /// tensor.
    ///
    /// # Errors
    /// The errors of [`Weights::matrix`].
    pub fn tensor(&self, info: &TensorInfo) -> Result<Matrix, ModelError> {
        if let &[rows, cols] = &info.shape[..] {
            return self.matrix(&info.name, rows, cols);
        }
        let (info, dtype) = self.typed(&info.name, &info.shape)?;
        let cols = info.shape.last().copied().unwrap_or(1);
        let rows = info.shape.iter().product::<usize>().checked_div(cols).unwrap_or(0);
        Ok(Matrix::dense(dtype, self.part(info), rows, cols))
    }

    /// Returns the size of a weight in the files, in bytes. The size of a 4-bit weight includes all its
    /// parts.
    pub fn stored_bytes(&self, name: &str) -> u64 {
        let own = self.info(name).map_or(0, |info| info.range.len());
        let parts: usize = match StoredFourBit::find(self, name) {
            Some(stored) => stored.parts().map(|info| info.range.len()).sum(),
            None => 0,
        };
        (own + parts) as u64
    }

    /// Returns the size of all tensors in bytes. A weight that was quantized in memory counts with its size
    /// in 4 bits.
    pub fn total_bytes(&self) -> u64 {
        let stored = self.tensors.iter().filter(|t| !self.quantized.contains_key(&t.name));
        let stored: usize = stored.map(|t| t.range.len()).sum();
        let held: usize = self.quantized.values().map(|weight| weight.bytes()).sum();
        (stored + held) as u64
    }

    /// Returns whether projections were quantized in memory.
    pub fn is_quantized(&self) -> bool {
        !self.quantized.is_empty()
    }

    /// Returns a tensor of one dimension as f32.
    ///
    /// # Errors
    /// The errors of [`Weights::matrix`].
    pub fn vector_f32(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let (info, dtype) = self.typed(name, &[len])?;
        let mut out = vec![0.0; len];
        to_f32(dtype, self.bytes(info), &mut out);
        Ok(out)
    }

    /// Returns a floating-point tensor of any shape.
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

    /// Checks that the tensors match `config`: no tensor is missing or unknown, and each tensor has the
    /// correct shape and a supported type.
    ///
    /// Additional tensors without effect are accepted: rotary frequencies of old exports, a value head of
    /// reinforcement learning, and an output head that equals the tied embedding table.
    ///
    /// # Errors
    /// If a tensor has an unsupported type or a 4-bit weight is invalid, the error names only this tensor. In
    /// all other cases, the error lists every missing, misshaped and unknown tensor. Also returns an error if
    /// an output head differs from the tied embedding table.
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
                (None, ..) if name == HEAD && self.head_is_table => {
                    problems.push(format!("`{TABLE}` {shape:?} is missing"));
                }
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
            let is_tied_head = tensor.name == HEAD && tensor.shape == table;
            let is_vision = config.is_nested && tensor_names::is_vision(name);
            if !expected.contains_key(name) && !is_tied_head && !is_vision && !is_harmless(&tensor.name) {
                problems.push(format!("`{}` {:?} is unknown", tensor.name, tensor.shape));
            }
        }
        if problems.is_empty() {
            return self.check_tied_head(config);
        }
        Err(ModelError::Incomplete { path: self.folder.clone(), problems })
    }

    /// Rejects an output head that differs from the embedding table, if the configuration ties the two. The
    /// model would ignore such a head.
    fn check_tied_head(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let (head, table) = (self.info(HEAD), self.info(TABLE));
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

/// Returns whether the tensor has no effect: a table of rotary frequencies, which every program recomputes,
/// or the value head of reinforcement learning.
fn is_harmless(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name.starts_with("v_head.")
}

/// Returns the shards of a folder without an index, such as `model-00001-of-00002.safetensors`. No shard may
/// be missing.
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
    // SAFETY: the mapping is read-only. The documentation of `Weights` requires that the files do not change
    // while they are mapped, as for every program that maps checkpoints.
    let map = unsafe { Mmap::map(&file) }.map_err(error)?;
    Ok(Owner::Map(Arc::new(MappedFile { _registration: Registration::new(&map, path), map, file })))
}

/// Returns the tensors of a safetensors file, sorted by their byte offset.
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
    // Empty tensors may have the same offset, so tensors are also sorted by name.
    tensors.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
    Ok(tensors)
}

/// Compares the length of the file with its header before any offset is used.
fn check_length(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let found = bytes.len() as u64;
    let size = |expected| ModelError::FileSize { path: path.to_owned(), expected, found };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return Err(size(8)) };
    let length = u64::from_le_bytes(*length);
    // The content is tested before the length, so that an HTML page or a Git LFS pointer is not reported as
    // an incomplete download.
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

/// Returns the shards of an index and the tensors of each shard. All shards must exist.
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

/// Returns the tensors of each shard. A shard must be in the folder of the index, and its name must end with
/// `ending`.
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

/// Returns the first file, in the order of the names, that looks like weights in another format.
fn other_weights(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let foreign = [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".distcp"];
    let is_other = |name: &String| {
        foreign.iter().any(|ending| name.ends_with(ending))
            || ["global_step", "pytorch_model_fsdp"].iter().any(|start| name.starts_with(start))
            || (name.ends_with(".safetensors") && !name.starts_with("adapter_"))
    };
    names.filter(is_other).min()
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
