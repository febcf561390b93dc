//! Adds an adapter to the weights of its base: `W' = round(W + scaling · B A)`, one tensor at a time.
//!
//! The base is memory-mapped, and the results are written to the new files through buffers of a few hundred
//! KB. Tensors without an update are copied. All files are written to a hidden folder inside the output
//! folder, where the model can be measured. `config.json` is published last, so an interrupted or rejected
//! merge cannot be loaded as a model.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use danlu_kernels::{Backend, BackendError, DType, Matrix};
use danlu_model::files;
use danlu_model::sidecar_files::{self, ConfigChange, SidecarFile, torch_name};
use danlu_model::{
    INDEX_FILE, ModelConfig, ModelError, Quantization, ShardWriter, StagedFolder, TensorInfo, Weights,
    projections, shard_index,
};
use serde_json::json;

use crate::AdapterError;
use crate::adapter::{Adapter, Module};
use crate::fidelity::Fidelity;
pub use crate::merge_report::{FormFidelity, MergeBase, MergeReport, QuantizedFidelity, UnquantizedFidelity};
use crate::merge_rows::{Delta, MergeRows};
use crate::merge_shards::{Shard, changed_tensors, check_fit, divide, target_dtype};

/// Name of the report in a merged model's folder.
pub const REPORT_FILE: &str = "merge_report.json";

const CONFIG_FILE: &str = "config.json";

/// Options of a merge.
#[derive(Clone, Debug, Default)]
pub struct MergeOptions {
    /// Element type of every float tensor. With `None`, each tensor has the same type as in the base.
    pub dtype: Option<DType>,
    /// Maximum size of the tensors in one file, in bytes. A larger tensor gets a separate file. With `None`,
    /// tensors are assigned to files as in the base.
    pub max_shard_size: Option<u64>,
    /// Number of threads. With `None`, all cores are used.
    pub threads: Option<usize>,
    /// Quantization that is applied to the projections of an unquantized base and reversed before the update
    /// is added. The adapter was trained on these dequantized values.
    pub requantize_as: Option<Quantization>,
    /// Names of additional files to copy from the adapter's folder, if present.
    pub also_copy: Vec<String>,
}

/// Progress of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeProgress<'a> {
    /// Name of the last tensor that was written.
    pub tensor: &'a str,
    /// Number of bytes of tensors written so far.
    pub bytes: u64,
    /// Total number of bytes of tensors to write.
    pub total: u64,
}

/// A merged model in a hidden folder, before publication. Dropping this value removes the model.
pub struct StagedMerge {
    output: StagedFolder,
    names: Vec<String>,
    /// Report of the merge.
    pub report: MergeReport,
}

impl StagedMerge {
    /// Returns the hidden folder, from which the model can be loaded.
    pub fn folder(&self) -> &Path {
        self.output.staging()
    }

    /// Adds a file, such as a model card, that is published with the other files.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), AdapterError> {
        files::write_atomic(&self.output.staged(name), bytes)?;
        // `config.json` completes the model, so it is always the last name.
        self.names.insert(self.names.len() - 1, name.to_owned());
        Ok(())
    }

    /// Publishes every file. If there was a measurement, `merge_report.json` is published too.
    ///
    /// # Errors
    /// If the folder cannot be written. The folder then contains no model.
    pub fn publish(mut self, fidelity: Option<&Fidelity>) -> Result<MergeReport, AdapterError> {
        if let Some(fidelity) = fidelity {
            self.add(REPORT_FILE, &self.report_json(fidelity))?;
        }
        let Self { output, names, report } = self;
        output.publish(&names)?;
        Ok(report)
    }

    /// Returns the contents of `merge_report.json`.
    pub fn report_json(&self, fidelity: &Fidelity) -> Vec<u8> {
        let value = json!({ "merge": self.report, "fidelity": fidelity });
        let mut text = serde_json::to_vec_pretty(&value).expect("a JSON value has string keys");
        text.push(b'\n');
        text
    }

    /// Removes the model and writes `merge_report.json` to `folder`. The report contains the reason for the
    /// rejection.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn reject(self, folder: &Path, fidelity: &Fidelity) -> Result<(), AdapterError> {
        Ok(files::write_atomic(&folder.join(REPORT_FILE), &self.report_json(fidelity))?)
    }
}

/// Merges `adapter` into the model at `base` and publishes the result without a measurement: see [`stage`].
///
/// # Errors
/// The same errors as [`stage`] and [`StagedMerge::publish`].
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

/// Merges `adapter` into the model at `base` and stages the new model folder at `out`.
///
/// `out` must be absent or empty, but it may contain the report of a rejected merge. The tokenizer's files
/// are copied from the adapter's folder if it contains a tokenizer, and otherwise from the base. The result
/// does not depend on the number of threads. `progress` may stop the merge.
///
/// # Errors
/// If the base is incomplete or does not fit the adapter, if `out` contains other files, if the disk is too
/// small or fails, or if a result is not finite or out of range for its type. Returns [`ModelError::Stopped`]
/// if `progress` breaks. After an error, `out` contains no model.
pub fn stage(
    base: &Path,
    adapter: &Adapter,
    backend: &dyn Backend,
    out: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(MergeProgress<'_>) -> ControlFlow<()>,
) -> Result<StagedMerge, AdapterError> {
    let start = Instant::now();
    let original = Weights::open(base)?;
    let model = ModelConfig::read(base)?;
    original.check_complete(&model)?;
    if options.requantize_as.is_some() {
        original.refuse_four_bit()?;
    }
    let mut config = ConfigChange { dtype: options.dtype, ..ConfigChange::default() };
    let (weights, tensors) = match adapter.changed_base(&model, &original)? {
        None => (original.clone(), original.model_tensors()?),
        Some((changed, weights)) => {
            config.vocab_size = (changed.vocab_size != model.vocab_size).then_some(changed.vocab_size);
            config.tie_word_embeddings =
                (!changed.tie_word_embeddings && model.tie_word_embeddings).then_some(false);
            let tensors = changed_tensors(&weights, &original)?;
            (weights, tensors)
        }
    };
    check_fit(adapter, &weights, &tensors)?;
    let shards = divide(&weights, &tensors, options);
    let others = OtherFiles::choose(base, adapter, options, (&config, &shards))?;
    let bytes = shards.iter().map(|s| ShardWriter::file_size(&s.specs)).sum::<u64>() + others.bytes();
    let available = files::free_space(out)?;
    if bytes > available {
        return Err(AdapterError::Space { path: files::final_path(out), needed: bytes, available });
    }
    // A rejected merge writes a report to `out`. The next attempt may replace this report.
    let output = StagedFolder::create_beside(out, |name| name == REPORT_FILE)?;

    let mut writer = TensorWriter::new(&weights, &model, adapter, backend, options)?;
    writer.write_shards(&shards, &output, progress)?;
    let merged_tensors = writer.merged_tensors;

    let shards: Vec<String> = shards.into_iter().map(|s| s.name).collect();
    let names = shards.iter().cloned().chain(others.write(&output)?).collect();
    let report = MergeReport {
        base: base.to_owned(),
        adapter: adapter.source().map(Path::to_owned),
        merge_base: match options.requantize_as.is_some() || weights.first_four_bit().is_some() {
            true => MergeBase::Dequantized,
            false => MergeBase::Original,
        },
        forms: Vec::new(),
        quantized: None,
        dtype: dtype_names(&tensors, options),
        scaling: scalings(adapter),
        merged_tensors,
        copied_tensors: tensors.len() - merged_tensors,
        shards,
        bytes,
        seconds: start.elapsed().as_secs_f64(),
    };
    Ok(StagedMerge { output, names, report })
}

/// Returns the element types of the new model as `config.json` spells them, each type once.
fn dtype_names(tensors: &[TensorInfo], options: &MergeOptions) -> Vec<String> {
    let dtypes = tensors.iter().filter_map(|info| target_dtype(info, options.dtype));
    let names: BTreeSet<&str> = dtypes.map(torch_name).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Returns the scaling factors of the adapter's updates in ascending order, each factor once.
fn scalings(adapter: &Adapter) -> Vec<f32> {
    let mut scalings: Vec<f32> = adapter.modules().iter().map(|m| m.scaling).collect();
    scalings.sort_by(f32::total_cmp);
    scalings.dedup();
    scalings
}

struct OtherFiles {
    config: Vec<u8>,
    index: Option<Vec<u8>>,
    sidecars: Vec<SidecarFile>,
}

impl OtherFiles {
    fn choose(
        base: &Path,
        adapter: &Adapter,
        options: &MergeOptions,
        (change, shards): (&ConfigChange, &[Shard<'_>]),
    ) -> Result<Self, AdapterError> {
        let config = sidecar_files::config_json(base, change)?;
        let sidecars = sidecar_files::choose(base, adapter.source(), &options.also_copy)?;
        let index = shard_index(shards.iter().map(|s| (s.name.as_str(), &s.specs[..])));
        Ok(Self { config, index, sidecars })
    }

    fn bytes(&self) -> u64 {
        let generated = self.config.len() + self.index.as_ref().map_or(0, Vec::len);
        self.sidecars.iter().map(|file| file.bytes).sum::<u64>() + generated as u64
    }

    /// Writes the files. Returns their names in the order of publication. The last name is `config.json`,
    /// which completes the model.
    fn write(self, output: &StagedFolder) -> Result<Vec<String>, AdapterError> {
        let mut names = Vec::new();
        for file in &self.sidecars {
            file.copy(&output.staged(&file.name))?;
            names.push(file.name.clone());
        }
        let index = self.index.map(|index| (INDEX_FILE, index));
        for (name, bytes) in index.iter().chain(&[(CONFIG_FILE, self.config)]) {
            files::write_atomic(&output.staged(name), bytes)?;
            names.push((*name).to_owned());
        }
        Ok(names)
    }
}

struct TensorWriter<'a> {
    weights: &'a Weights,
    options: &'a MergeOptions,
    threads: usize,
    /// Parameters of the adapter in host memory.
    params: Vec<f32>,
    modules: HashMap<String, &'a Module>,
    /// Names of the projection weights.
    projections: HashSet<String>,
    merged_tensors: usize,
}

impl<'a> TensorWriter<'a> {
    fn new(
        weights: &'a Weights,
        model: &ModelConfig,
        adapter: &'a Adapter,
        backend: &dyn Backend,
        options: &'a MergeOptions,
    ) -> Result<Self, BackendError> {
        let available = || thread::available_parallelism().ok().map(Into::into);
        Ok(Self {
            weights,
            options,
            threads: options.threads.or_else(available).unwrap_or(1),
            params: adapter.to_vec(backend)?,
            modules: adapter.modules().iter().map(|m| (m.projection.weight_name(m.layer), m)).collect(),
            projections: projections(model).map(|(name, ..)| name).collect(),
            merged_tensors: 0,
        })
    }

    fn write_shards(
        &mut self,
        shards: &[Shard<'_>],
        output: &StagedFolder,
        progress: &mut dyn FnMut(MergeProgress<'_>) -> ControlFlow<()>,
    ) -> Result<(), AdapterError> {
        let total: u64 = shards.iter().flat_map(|s| &s.specs).map(|s| s.bytes).sum();
        let mut bytes = 0;
        for shard in shards {
            let mut file = ShardWriter::create(&output.staged(&shard.name), &shard.specs)?;
            for (info, spec) in shard.tensors.iter().zip(&shard.specs) {
                self.write(info, &mut file)?;
                bytes += spec.bytes;
                if progress(MergeProgress { tensor: &info.name, bytes, total }).is_break() {
                    return Err(ModelError::Stopped.into());
                }
            }
            file.finish()?;
        }
        Ok(())
    }

    fn write(&mut self, info: &TensorInfo, file: &mut ShardWriter) -> Result<(), AdapterError> {
        let module = self.modules.get(&info.name).copied();
        self.merged_tensors += usize::from(module.is_some());
        let delta = module.map(|m| Delta {
            a: &self.params[m.a..][..m.rank * m.d_in],
            b: &self.params[m.b..][..m.d_out * m.rank],
            rank: m.rank,
            scaling: m.scaling,
            magnitude: m.magnitude.map(|at| &self.params[at..][..m.d_out]),
        });
        let weight = self.source(info, delta.is_some())?;
        match (&weight, target_dtype(info, self.options.dtype)) {
            (Some(weight), Some(to)) => {
                let tensor = MergeRows { name: &info.name, weight, to, delta };
                tensor.stream(self.threads, |part| Ok(file.write(part)?))?;
                self.weights.release(info);
            }
            _ => self.weights.copy(info, file)?,
        }
        Ok(())
    }

    /// Returns the values to which the update is added. Returns `None` if the bytes of the base are copied.
    fn source(&self, info: &TensorInfo, is_merged: bool) -> Result<Option<Matrix>, AdapterError> {
        let requantize_as = self.options.requantize_as.filter(|_| self.projections.contains(&info.name));
        if let (Some(quantization), &[rows, cols]) = (requantize_as, &info.shape[..]) {
            let weight = Arc::new(self.weights.encode(&info.name, quantization, self.threads)?);
            return Ok(Some(Matrix::four_bit(weight, rows, cols)));
        }
        // For a 4-bit weight, `info` describes the dequantized tensor and not the tensor in the file. The
        // bytes of the file can therefore not be copied.
        let is_stored = self.weights.info(&info.name) == Some(info);
        if is_stored && !is_merged && info.dtype() == target_dtype(info, self.options.dtype) {
            return Ok(None);
        }
        Ok(Some(self.weights.tensor(info)?))
    }
}
