//! Folding an adapter into its base: `W' = round(W + scaling · B A)`, one tensor at a time.
//!
//! The base is mapped, not read; what is computed passes through buffers of a few hundred KB straight into
//! the new files. Tensors without a pair are copied as they are. Everything is written into a hidden
//! folder inside the output first, where it can be measured, and `config.json` gets its name last: a merge that
//! was cut off, or that nobody vouched for, is never taken for a model.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use danlu_kernels::{Backend, DType, Matrix};
use danlu_model::files;
use danlu_model::sidecar_files::{self, ConfigChange, torch_name};
use danlu_model::{
    INDEX_FILE, ModelConfig, ModelError, Quantization, ShardWriter, StagedFolder, TensorInfo, TensorSpec,
    Weights, projections, shard_index, shard_name,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::AdapterError;
use crate::adapter::{Adapter, Module};
use crate::fidelity::Fidelity;
use crate::merge_rows::{Delta, MergeRows};

/// Name of the report in a merged model's folder.
pub const REPORT_FILE: &str = "merge_report.json";

const CONFIG_FILE: &str = "config.json";

/// How to merge.
#[derive(Clone, Debug, Default)]
pub struct MergeOptions {
    /// Element type of every float tensor; the base's own where `None`.
    pub dtype: Option<DType>,
    /// Bytes of tensors in one file at most; the base's own division where `None`.
    pub max_shard_size: Option<u64>,
    /// Threads that compute; all the machine's where `None`.
    pub threads: Option<usize>,
    /// Puts the projections of a base of 16 bits into 4 and back first: the base that the adapter was trained on.
    pub requantize_as: Option<Quantization>,
    /// Further files to take over from the adapter's folder where it has them.
    pub also_copy: Vec<String>,
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeProgress<'a> {
    /// The tensor just written.
    pub tensor: &'a str,
    /// Bytes of tensors written.
    pub bytes: u64,
    /// Bytes of tensors in all.
    pub total: u64,
}

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// The base's folder, as given.
    pub base: PathBuf,
    /// The adapter's folder, if it came from one.
    pub adapter: Option<PathBuf>,
    /// Which form of the base the updates were added to.
    pub merge_base: MergeBase,
    /// Where two forms of the base were at hand: how far what was measured on each is from what was trained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forms: Vec<FormFigures>,
    /// What putting the merged model into 4 bits costs, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<QuantizedFigures>,
    /// Element types of the result, as `config.json` spells them; that of 4 bits by its code.
    pub dtype: Vec<String>,
    /// Factors that the updates were multiplied with, ascending, each once.
    pub scaling: Vec<f32>,
    /// Tensors that received an update.
    pub merged_tensors: usize,
    /// Tensors taken over.
    pub copied_tensors: usize,
    /// Names of the weights' files.
    pub shards: Vec<String>,
    /// Bytes of all files written but this report.
    pub bytes: u64,
    /// Time it took.
    pub seconds: f64,
}

/// The form of the base that an adapter is merged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeBase {
    /// As its author published it, in 16 bits or more.
    Original,
    /// Out of 4 bits.
    Dequantized,
}

impl MergeBase {
    /// The word for it: `original`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Dequantized => "dequantized",
        }
    }
}

/// How far one form of the base is from what was trained, which is the adapter on the form out of 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormFigures {
    /// Which form.
    pub form: MergeBase,
    /// Whether the merge into this form was measured, rounded and written; otherwise it was the adapter beside this
    /// form, where nothing is rounded.
    pub merged: bool,
    /// Mean divergence from what was trained, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text.
    pub perplexity: f64,
}

/// What 4 bits take from a merged model. The measurement in its report is then that of the model in 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedFigures {
    /// How they were made.
    #[serde(flatten)]
    pub quantization: Quantization,
    /// Mean divergence from adapter on base, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text, merged and in 4 bits.
    pub perplexity: f64,
    /// Share of what the adapter does that is left, by divergence: see [`Fidelity::adapter_kept`].
    #[serde(default)]
    pub adapter_kept: Option<f64>,
    /// What was measured before, of the merge that was put into 4 bits.
    #[serde(default)]
    pub before: Option<WideFigures>,
}

/// A merge that is not kept: the one that goes into 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WideFigures {
    /// Mean divergence from adapter on base, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text.
    pub perplexity: f64,
}

/// One file to be written.
struct Shard<'a> {
    name: String,
    tensors: Vec<&'a TensorInfo>,
    specs: Vec<TensorSpec>,
}

/// A merged model that is written but has not got its name yet. Dropped, it is removed again.
pub struct Staged {
    output: StagedFolder,
    names: Vec<String>,
    /// What was done.
    pub report: MergeReport,
}

impl Staged {
    /// The folder it lies in for now, which loads as a model.
    pub fn folder(&self) -> &Path {
        self.output.staging()
    }

    /// Adds a file that tells of the model, to get its name with the others.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), AdapterError> {
        files::write_atomic(&self.output.staged(name), bytes)?;
        // Before `config.json`, which makes it a model.
        self.names.insert(self.names.len() - 1, name.to_owned());
        Ok(())
    }

    /// Gives every file its name, `merge_report.json` among them where there was a measurement.
    ///
    /// # Errors
    /// If the folder cannot be written; there is then no model in it.
    pub fn publish(mut self, fidelity: Option<&Fidelity>) -> Result<MergeReport, AdapterError> {
        if let Some(fidelity) = fidelity {
            self.add(REPORT_FILE, &self.report_json(fidelity))?;
        }
        let Self { output, names, report } = self;
        output.publish(&names)?;
        Ok(report)
    }

    /// What `merge_report.json` would say.
    pub fn report_json(&self, fidelity: &Fidelity) -> Vec<u8> {
        let value = json!({ "merge": self.report, "fidelity": fidelity });
        let mut text = serde_json::to_vec_pretty(&value).expect("a JSON value has string keys");
        text.push(b'\n');
        text
    }

    /// Gives the model up and leaves `merge_report.json` alone in `folder`, which says why.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn reject(self, folder: &Path, fidelity: &Fidelity) -> Result<(), AdapterError> {
        Ok(files::write_atomic(&folder.join(REPORT_FILE), &self.report_json(fidelity))?)
    }
}

/// Merges `adapter` into the model at `base` and publishes the result at once, unmeasured: see [`stage`].
///
/// # Errors
/// As [`stage`] and [`Staged::publish`].
pub fn merge(
    base: &Path,
    adapter: &Adapter,
    backend: &dyn Backend,
    out: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(MergeProgress<'_>) -> ControlFlow<()>,
) -> Result<MergeReport, AdapterError> {
    stage(base, adapter, backend, out, options, progress)?.publish(None)
}

/// Merges `adapter` into the model at `base`, to become a new model folder at `out`.
///
/// `out` must be absent or empty. The files of the tokenizer come from the adapter's folder where it has
/// them, otherwise from the base. The result does not depend on the number of threads. `progress` may stop it.
///
/// # Errors
/// If the base is incomplete or does not fit the adapter, `out` holds other things, the disk is too small
/// or fails, or a value of the result is not finite or beyond the range of its type; [`ModelError::Stopped`] when
/// `progress` asks for it. `out` is then left without a model.
pub fn stage(
    base: &Path,
    adapter: &Adapter,
    backend: &dyn Backend,
    out: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(MergeProgress<'_>) -> ControlFlow<()>,
) -> Result<Staged, AdapterError> {
    let start = Instant::now();
    let weights = Weights::open(base)?;
    let model = ModelConfig::read(base)?;
    weights.check_complete(&model)?;
    if options.requantize_as.is_some() {
        weights.refuse_four_bit()?;
    }
    let tensors = weights.model_tensors()?;
    check_fit(adapter, &weights, &tensors)?;
    let change = ConfigChange { dtype: options.dtype, quantization: None };
    let config = sidecar_files::config_json(base, &change)?;
    let carried = sidecar_files::choose(base, adapter.source(), &options.also_copy)?;
    let shards = plan(&tensors, options);
    let encoded: HashSet<String> = projections(&model).map(|(name, ..)| name).collect();
    let index = shard_index(shards.iter().map(|s| (s.name.as_str(), &s.specs[..])));

    let tensor_bytes: u64 = shards.iter().flat_map(|s| &s.specs).map(|s| s.bytes).sum();
    let bytes = shards.iter().map(|s| ShardWriter::file_size(&s.specs)).sum::<u64>()
        + carried.iter().map(|f| f.bytes).sum::<u64>()
        + (config.len() + index.as_ref().map_or(0, Vec::len)) as u64;
    let available = files::free_space(out)?;
    if bytes > available {
        return Err(AdapterError::Space { path: files::final_path(out), needed: bytes, available });
    }
    // A report alone is what a rejected merge leaves: the next attempt may replace it.
    let output = StagedFolder::create_beside(out, |name| name == REPORT_FILE)?;

    let params = adapter.to_vec(backend)?;
    let threads =
        options.threads.or_else(|| thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let modules: HashMap<String, &Module> =
        adapter.modules().iter().map(|m| (m.projection.weight_name(m.layer), m)).collect();
    let mut merged_tensors = 0;
    let mut written = 0;
    for shard in &shards {
        let mut writer = ShardWriter::create(&output.staged(&shard.name), &shard.specs)?;
        for (info, spec) in shard.tensors.iter().zip(&shard.specs) {
            let module = modules.get(&info.name).copied();
            merged_tensors += usize::from(module.is_some());
            let delta = module.map(|m| Delta {
                a: &params[m.a..][..m.rank * m.d_in],
                b: &params[m.b..][..m.d_out * m.rank],
                rank: m.rank,
                scaling: m.scaling,
            });
            let requantize_as = options.requantize_as.filter(|_| encoded.contains(&info.name));
            let weight = source(&weights, info, requantize_as, delta.is_some(), options, threads)?;
            match (&weight, target(info, options.dtype)) {
                (Some(weight), Some(to)) => {
                    let tensor = MergeRows { name: &info.name, weight, to, delta };
                    tensor.stream(threads, |part| Ok(writer.write(part)?))?;
                    weights.release(info);
                }
                _ => weights.copy(info, &mut writer)?,
            }
            written += spec.bytes;
            if progress(MergeProgress { tensor: &info.name, bytes: written, total: tensor_bytes }).is_break()
            {
                return Err(ModelError::Stopped.into());
            }
        }
        writer.finish()?;
    }

    let mut names: Vec<String> = shards.iter().map(|s| s.name.clone()).collect();
    for file in &carried {
        file.copy(&output.staged(&file.name))?;
        names.push(file.name.clone());
    }
    if let Some(index) = index {
        files::write_atomic(&output.staged(INDEX_FILE), &index)?;
        names.push(INDEX_FILE.to_owned());
    }
    files::write_atomic(&output.staged(CONFIG_FILE), &config)?;
    names.push(CONFIG_FILE.to_owned());

    let mut dtype: Vec<String> =
        tensors.iter().filter_map(|t| target(t, options.dtype)).map(|d| torch_name(d).to_owned()).collect();
    dtype.sort();
    dtype.dedup();
    let mut scaling: Vec<f32> = adapter.modules().iter().map(|m| m.scaling).collect();
    scaling.sort_by(f32::total_cmp);
    scaling.dedup();
    let report = MergeReport {
        base: base.to_owned(),
        adapter: adapter.source().map(Path::to_owned),
        merge_base: match options.requantize_as.is_some() || weights.first_four_bit().is_some() {
            true => MergeBase::Dequantized,
            false => MergeBase::Original,
        },
        forms: Vec::new(),
        quantized: None,
        dtype,
        scaling,
        merged_tensors,
        copied_tensors: tensors.len() - merged_tensors,
        shards: shards.into_iter().map(|s| s.name).collect(),
        bytes,
        seconds: start.elapsed().as_secs_f64(),
    };
    Ok(Staged { output, names, report })
}

/// Every module of the adapter must be a float weight of the base, of its shape.
fn check_fit(adapter: &Adapter, weights: &Weights, tensors: &[TensorInfo]) -> Result<(), AdapterError> {
    let tensors: HashMap<&str, &TensorInfo> = tensors.iter().map(|info| (info.name.as_str(), info)).collect();
    for module in adapter.modules() {
        let name = module.projection.weight_name(module.layer);
        let Some(info) = tensors.get(name.as_str()) else {
            return Err(ModelError::NoTensor { path: weights.folder().to_owned(), tensor: name }.into());
        };
        if info.shape != [module.d_out, module.d_in] {
            return Err(AdapterError::Shape {
                name,
                expected: vec![module.d_out, module.d_in],
                found: info.shape.clone(),
            });
        }
        if info.dtype().is_none() {
            return Err(AdapterError::DType { name, found: info.dtype_name.clone() });
        }
    }
    Ok(())
}

/// The type a tensor will have; `None` for one that is not of floats and is copied as it is.
fn target(info: &TensorInfo, dtype: Option<DType>) -> Option<DType> {
    info.dtype().map(|own| dtype.unwrap_or(own))
}

/// Divides the tensors, in the base's order, into files.
fn plan<'a>(tensors: &'a [TensorInfo], options: &MergeOptions) -> Vec<Shard<'a>> {
    let mut shards: Vec<Shard> = Vec::new();
    let (mut room, mut file) = (0, None);
    for info in tensors {
        let spec = match target(info, options.dtype) {
            Some(dtype) => TensorSpec::new(info.name.clone(), dtype, info.shape.clone()),
            None => TensorSpec {
                name: info.name.clone(),
                dtype: info.dtype_name.clone(),
                shape: info.shape.clone(),
                bytes: info.range.len() as u64,
            },
        };
        let next = match options.max_shard_size {
            Some(_) => spec.bytes > room,
            None => file != Some(info.file),
        };
        if next || shards.is_empty() {
            shards.push(Shard { name: String::new(), tensors: Vec::new(), specs: Vec::new() });
            room = options.max_shard_size.unwrap_or(u64::MAX);
            file = Some(info.file);
        }
        room = room.saturating_sub(spec.bytes);
        let shard = shards.last_mut().expect("one was pushed above");
        shard.tensors.push(info);
        shard.specs.push(spec);
    }
    let count = shards.len();
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.name = shard_name(i, count);
    }
    shards
}

/// The values that a tensor of the new model begins with; none where the base's bytes are the new ones.
fn source(
    weights: &Weights,
    info: &TensorInfo,
    requantize_as: Option<Quantization>,
    is_merged: bool,
    options: &MergeOptions,
    threads: usize,
) -> Result<Option<Matrix>, AdapterError> {
    if let (Some(quantization), &[rows, cols]) = (requantize_as, &info.shape[..]) {
        let weight = Arc::new(weights.encode(&info.name, quantization, threads)?);
        return Ok(Some(Matrix::four_bit(weight, rows, cols)));
    }
    // What is stored in 4 bits is another tensor in the file than in the model.
    let is_stored = weights.info(&info.name) == Some(info);
    if is_stored && !is_merged && info.dtype() == target(info, options.dtype) {
        return Ok(None);
    }
    Ok(Some(weights.tensor(info)?))
}
