//! Writes a model folder in 4 bits, in the file layout that transformers uses with bitsandbytes.

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::path::Path;

use danlu_kernels::{Bytes, DType, FourBit, NESTED_BLOCK, Scales};

use crate::files;
use crate::four_bit::{ABSMAX, NESTED_ABSMAX, NESTED_QUANT_MAP, QUANT_MAP, QUANT_STATE, QuantState};
use crate::quantize::{is_skipped, module_of};
use crate::sidecar_files::{self, ConfigChange};
use crate::{
    INDEX_FILE, ModelConfig, ModelError, Quantization, QuantizeProgress, ShardWriter, StagedFolder,
    TensorInfo, TensorSpec, Weights, projections, shard_index, shard_name,
};

/// Minimum length of a quantization state. The state is padded with blanks: the file's header contains the
/// length, and is written before all values of the state are known.
const MIN_QUANT_STATE_BYTES: usize = 320;

/// Modules that process images. They are not quantized.
const VISION_MODULES: [&str; 4] =
    ["vision_tower", "multi_modal_projector", "model.vision_tower", "model.multi_modal_projector"];

/// The result of a quantization.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Number of weights in 4 bits.
    pub weights: usize,
    /// Number of elements of these weights.
    pub elements: u64,
    /// Names of the weight files.
    pub files: Vec<String>,
    /// The name of the 4-bit type, then the element types of the copied tensors as in `config.json`.
    pub dtype: Vec<String>,
    /// Bytes of the weight files.
    pub weight_bytes: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// One output file: the encoded weights, followed by the copied tensors.
#[derive(Default)]
struct Shard<'a> {
    name: String,
    encoded: Vec<&'a TensorInfo>,
    copied: Vec<&'a TensorInfo>,
    specs: Vec<TensorSpec>,
}

/// Name and bytes of an additional file for the new folder.
pub type Extra = (&'static str, Vec<u8>);

/// Writes the model of `base` to `folder`, with its projections in 4 bits. Embeddings, head and norms do not
/// change. The new folder has as many weight files as the base. Only one weight at a time is in memory.
/// `folder` must be empty or must not exist. `progress` may stop the work. In this case `folder` does not
/// change.
///
/// # Errors
/// If the base is incomplete or in 4 bits already, if a value is not finite, if the folder has other files,
/// or if the disk is too small or fails. Returns [`ModelError::Stopped`] if `progress` breaks.
pub fn write_quantized(
    base: &Path,
    folder: &Path,
    quantization: Quantization,
    threads: usize,
    progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
) -> Result<Quantized, ModelError> {
    quantize_into(StagedFolder::create(folder)?, base, quantization, &[], threads, |_| Vec::new(), progress)
}

/// Does the same as [`write_quantized`] in a staged folder. The modules of `skip` (`llm_int8_skip_modules`)
/// are not quantized. `extra` computes additional files from the result, whose [`bytes`](Quantized::bytes) do
/// not include these files yet.
///
/// # Errors
/// The errors of [`write_quantized`]. Also returns an error if `skip` names an unknown module, or all
/// modules.
pub fn quantize_into(
    model: StagedFolder,
    base: &Path,
    quantization: Quantization,
    skip: &[String],
    threads: usize,
    extra: impl FnOnce(&Quantized) -> Vec<Extra>,
    progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
) -> Result<Quantized, ModelError> {
    let config = ModelConfig::read(base)?;
    let weights = Weights::open(base)?;
    weights.check_complete(&config)?;
    weights.refuse_four_bit()?;
    let names = chosen(&config, &weights, skip)?;
    let shards = divide(&weights, quantization, |info| names.contains(&info.name));
    let index = shard_index(shards.iter().map(|shard| (shard.name.as_str(), &shard.specs[..])));
    // Without these names, transformers would expect a vision tower in 4 bits. The names differ between
    // versions of transformers.
    let vision = VISION_MODULES.iter().filter(|_| config.is_nested).map(|&module| module.to_owned());
    let skipped: Vec<String> = skip.iter().cloned().chain(vision).collect();
    let change = ConfigChange {
        quantization: Some(quantization.config_json(config.dtype, &skipped)),
        ..Default::default()
    };
    let config = sidecar_files::config_json(base, &change)?;
    let sidecars = sidecar_files::choose(base, None, &[])?;

    let mut quantized = describe(&weights, &names, &shards, quantization);
    quantized.bytes += sidecars.iter().map(|file| file.bytes).sum::<u64>()
        + (config.len() + index.as_ref().map_or(0, Vec::len)) as u64;
    let extra = extra(&quantized);
    quantized.bytes += extra.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    let (needed, available) = (quantized.bytes, files::free_space(model.folder())?);
    if needed > available {
        return Err(ModelError::Space { path: model.folder().to_owned(), needed, available });
    }
    let total = weights.tensors().iter().map(|info| info.range.len() as u64).sum();
    let mut done = 0;
    let mut step = |info: &TensorInfo| {
        done += info.range.len() as u64;
        match progress(QuantizeProgress { bytes: done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ModelError::Stopped),
        }
    };
    for shard in &shards {
        let mut writer = ShardWriter::create(&model.staged(&shard.name), &shard.specs)?;
        for info in &shard.encoded {
            let weight = weights.encode(&info.name, quantization, threads)?;
            write_parts(&mut writer, &weight, quantization, &info.shape)?;
            step(info)?;
        }
        for info in &shard.copied {
            weights.check_finite(info)?;
            weights.copy(info, &mut writer)?;
            step(info)?;
        }
        writer.finish()?;
    }

    let mut published = quantized.files.clone();
    for file in &sidecars {
        file.copy(&model.staged(&file.name))?;
        published.push(file.name.clone());
    }
    let index = index.map(|index| (INDEX_FILE, index));
    for (name, bytes) in extra.iter().chain(&index).chain(&[("config.json", config)]) {
        files::write_atomic(&model.staged(name), bytes)?;
        published.push((*name).to_owned());
    }
    model.publish(&published)?;
    Ok(quantized)
}

/// Describes the weight files. `bytes` does not include other files yet.
fn describe(
    weights: &Weights,
    encoded: &HashSet<String>,
    shards: &[Shard<'_>],
    quantization: Quantization,
) -> Quantized {
    let (encoded, copied): (Vec<&TensorInfo>, Vec<&TensorInfo>) =
        weights.tensors().iter().partition(|info| encoded.contains(&info.name));
    let dtypes: BTreeSet<&str> =
        copied.iter().filter_map(|info| info.dtype()).map(sidecar_files::torch_name).collect();
    let weight_bytes = shards.iter().map(|shard| ShardWriter::file_size(&shard.specs)).sum();
    Quantized {
        weights: encoded.len(),
        elements: encoded.iter().map(|info| info.shape.iter().product::<usize>() as u64).sum(),
        files: shards.iter().map(|shard| shard.name.clone()).collect(),
        dtype: [quantization.quant_type.name()].into_iter().chain(dtypes).map(str::to_owned).collect(),
        weight_bytes,
        bytes: weight_bytes,
    }
}

/// Returns the names of the weights that should be quantized.
fn chosen(config: &ModelConfig, weights: &Weights, skip: &[String]) -> Result<HashSet<String>, ModelError> {
    let folder = || weights.folder().to_owned();
    for key in skip {
        let key = std::slice::from_ref(key);
        let is_there = weights.names().any(|name| is_skipped(module_of(name), key));
        // The name `lm_head` is always accepted. If the embedding table is also the output head, `lm_head`
        // has no weight.
        if !is_there && key[0] != "lm_head" {
            return Err(ModelError::NoModule { folder: folder(), module: key[0].clone() });
        }
    }
    let names = projections(config).map(|(name, ..)| name);
    let names: HashSet<String> = names.filter(|name| !is_skipped(module_of(name), skip)).collect();
    match names.is_empty() {
        true => Err(ModelError::AllSkipped { folder: folder(), skipped: skip.join("`, `") }),
        false => Ok(names),
    }
}

/// Assigns the tensors of the base to output files. In each file, the encoded weights come first and end at a
/// multiple of 8 bytes. The copied tensors follow, with the largest element type first. The offset of every
/// tensor is thus a multiple of its element size.
fn divide(
    weights: &Weights,
    quantization: Quantization,
    is_encoded: impl Fn(&TensorInfo) -> bool,
) -> Vec<Shard<'_>> {
    let mut shards: Vec<Shard<'_>> = weights.files().iter().map(|_| Shard::default()).collect();
    for info in weights.tensors() {
        let shard = &mut shards[info.file];
        if is_encoded(info) { shard.encoded.push(info) } else { shard.copied.push(info) }
    }
    for shard in &mut shards {
        shard.copied.sort_by_key(|info| std::cmp::Reverse(info.dtype().map_or(0, DType::size)));
    }
    shards.retain(|shard| !shard.encoded.is_empty() || !shard.copied.is_empty());
    let count = shards.len();
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.name = shard_name(i, count);
        shard.specs = shard.part_specs(quantization);
        shard.specs.iter_mut().for_each(|spec| spec.name = weights.file_name(&spec.name));
    }
    shards
}

impl Shard<'_> {
    fn part_specs(&self, quantization: Quantization) -> Vec<TensorSpec> {
        let copied = self.copied.iter().map(|info| TensorSpec {
            name: info.name.clone(),
            dtype: info.dtype_name.clone(),
            shape: info.shape.clone(),
            bytes: info.range.len() as u64,
        });
        self.encoded.iter().flat_map(|info| part_specs(info, quantization)).chain(copied).collect()
    }
}

/// Returns the parts of a weight in the order in which they are written.
fn part_specs(info: &TensorInfo, quantization: Quantization) -> Vec<TensorSpec> {
    let len: usize = info.shape.iter().product();
    let blocks = len.div_ceil(quantization.block_size);
    let spec = |suffix: &str, dtype: &str, shape: Vec<usize>| {
        let size = if dtype == "F32" { 4 } else { 1 };
        let bytes = (shape.iter().product::<usize>() * size) as u64;
        TensorSpec { name: format!("{}{suffix}", info.name), dtype: dtype.to_owned(), shape, bytes }
    };
    let mut specs = vec![spec(QUANT_MAP, "F32", vec![16])];
    if quantization.double_quant {
        specs.push(spec(NESTED_QUANT_MAP, "F32", vec![256]));
        specs.push(spec(NESTED_ABSMAX, "F32", vec![blocks.div_ceil(NESTED_BLOCK)]));
        specs.push(spec("", "U8", vec![len.div_ceil(2), 1]));
        specs.push(spec(ABSMAX, "U8", vec![blocks]));
    } else {
        specs.push(spec(ABSMAX, "F32", vec![blocks]));
        specs.push(spec("", "U8", vec![len.div_ceil(2), 1]));
    }
    let before: u64 = specs.iter().map(|spec| spec.bytes).sum();
    let state = state_len(before as usize);
    specs.push(spec(&format!("{QUANT_STATE}{}", quantization.quant_type), "U8", vec![state]));
    specs
}

/// Returns the length of a quantization state. `before` is the size of the parts before the state. The state
/// is padded, so that the parts of a weight end at a multiple of 8 bytes.
fn state_len(before: usize) -> usize {
    (before + MIN_QUANT_STATE_BYTES).next_multiple_of(8) - before
}

/// Writes the parts in the order of [`part_specs`].
fn write_parts(
    writer: &mut ShardWriter,
    weight: &FourBit,
    quantization: Quantization,
    shape: &[usize],
) -> Result<(), ModelError> {
    let mut written = 0;
    let mut write = |bytes: &[u8]| {
        written += bytes.len();
        writer.write(bytes)
    };
    write(Bytes::from_f32(weight.table()).as_slice())?;
    let offset = match weight.scales() {
        Scales::Plain(absmax) => {
            write(absmax.as_slice())?;
            write(weight.codes())?;
            None
        }
        Scales::Nested { codes, table, absmax, offset, .. } => {
            write(Bytes::from_f32(&table[..]).as_slice())?;
            write(absmax.as_slice())?;
            write(weight.codes())?;
            write(codes.as_slice())?;
            Some(*offset)
        }
    };
    let state = QuantState::new(quantization.quant_type, weight.block_size(), weight.dtype(), shape, offset);
    let mut state = serde_json::to_vec(&state).expect("a state has string keys");
    assert!(state.len() <= MIN_QUANT_STATE_BYTES, "a state of {} bytes", state.len());
    state.resize(state_len(written), b' ');
    Ok(writer.write(&state)?)
}
