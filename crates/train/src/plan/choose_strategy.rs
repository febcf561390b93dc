//! Selects a memory strategy that fits the limit, and adds up the predicted peak.

use std::fmt;

use danlu_kernels::{BackendOptions, cuda};
use danlu_model::ModelConfig;
use serde::{Deserialize, Serialize};

use super::dry_run::{DryRun, DryRunUsage, ReplySize};
use super::memory_strategy::{LayerPolicies, MemoryStrategy};
use super::weights::WeightBytes;
use super::worst_steps::{RecordSize, WorstSteps};
use crate::fused_batch::PassGrouping;
use crate::{TrainError, TrainSettings};

/// Smallest `max_length` that a hint suggests.
const MIN_SUGGESTED_LENGTH: usize = 16;

/// Maximum number of tokens per step in a dry run, which measures the memory of a step without computing it.
/// If the records are unknown, a larger step is planned as a multiple of the dry run, because memory grows
/// linearly with the batch size.
const MAX_DRY_RUN_TOKENS: usize = 1 << 20;

/// The inputs of a memory plan.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    /// The configuration of the base.
    pub config: ModelConfig,
    /// The settings of the run.
    pub settings: TrainSettings,
    /// The back end of the run.
    pub backend: BackendOptions,
    /// Training records. If there are none, the plan assumes that every record has the maximum length.
    pub records: Vec<RecordSize<'a>>,
    /// Held-out records for evaluation.
    pub held_out: Vec<RecordSize<'a>>,
    /// The size of the replies that are generated after the last step.
    pub reply: ReplySize,
    /// Whether the run writes checkpoints.
    pub checkpoints: bool,
    /// Memory of the base's weights: see [`weight_bytes`](super::weight_bytes).
    pub weights: WeightBytes,
    /// Memory use of the process before the run.
    pub baseline: BaselineMemory,
}

/// Memory use of the process before a base is opened, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineMemory {
    /// Memory of the program and its stacks, and of code that is paged in during the run.
    pub program: u64,
    /// Memory of the tokenizer.
    pub tokenizer: u64,
    /// Memory of the encoded records, and heap memory that encoding did not return to the system.
    pub data: u64,
    /// Peak memory so far. The peak may have occurred while the tokenizer was read.
    pub peak: u64,
    /// Size of the largest file that is copied into every checkpoint: see
    /// [`TrainingIdentity::largest_file`](danlu_adapter::TrainingIdentity::largest_file).
    pub copied: u64,
}

/// The predicted peak memory of a run, in bytes. `total` is the sum of all fields before `total`, except
/// `resident`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Weights of the base. On a device, norm weights are included.
    pub weights: u64,
    /// The part of `weights` that the system cannot evict. In host memory, this part was quantized by danlu,
    /// and the rest is pages of files.
    pub resident: u64,
    /// The adapter's parameters.
    pub adapter: u64,
    /// The two moments of AdamW.
    pub optimizer: u64,
    /// The adapter's gradient.
    pub gradients: u64,
    /// Activations and the gradients of activations.
    pub activations: u64,
    /// Working memory of the kernels.
    pub scratch: PlannedScratch,
    /// Temporary memory for writing a checkpoint or for the replies that are generated after the last step,
    /// whichever is larger. If the run uses most memory before its first step, the difference between the two
    /// peaks is added.
    pub transient: u64,
    /// The tokenizer.
    pub tokenizer: u64,
    /// Encoded records.
    pub data: u64,
    /// The program. In host memory, norm weights are included.
    pub program: u64,
    /// The predicted peak.
    pub total: u64,
    /// Whether the plan is for the memory of a device. The context of the device's driver is not included.
    #[serde(default)]
    pub on_device: bool,
    /// The predicted peak of host memory if the plan is for the memory of a device, otherwise 0. `total` does
    /// not include it.
    #[serde(default)]
    pub host: u64,
    /// The number of layers with each activation policy.
    pub layers: LayerPolicies,
    /// Whether small micro-batches are fused, which is faster. On a GPU, this may change rounding.
    pub fuse_micro_batches: bool,
    /// Maximum number of token rows in a pass. A micro-batch with more rows is split, which changes rounding
    /// and dropout masks.
    #[serde(default)]
    pub max_pass_rows: Option<usize>,
    /// Number of token rows in the largest pass. A shared prefix is counted once.
    pub tokens: u64,
    /// Number of tokens in the largest pass that shares a prefix. The prefix is counted for every record.
    #[serde(default)]
    pub sharing_tokens: u64,
    /// Maximum number of trained tokens in a pass.
    pub trained_tokens: u64,
    /// Floating-point operations of the step that needs the most operations.
    pub step_flops: u64,
}

/// Smaller settings that fit into the memory limit. `Display` formats these settings as flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuggestedLimits {
    /// Number of records per micro-batch, if the limit requires a smaller number.
    pub batch: Option<usize>,
    /// Maximum record length in tokens, if the limit requires shorter records.
    pub length: Option<usize>,
}

impl fmt::Display for SuggestedLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let batch = self.batch.map(|batch| format!("--per-device-train-batch-size {batch}"));
        let length = self.length.map(|length| format!("--max-length {length}"));
        let flags: Vec<String> = batch.into_iter().chain(length).collect();
        f.write_str(&flags.join(" "))
    }
}

/// Temporary memory of the kernels, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedScratch {
    /// Packed operands of matrix products with the base's weights.
    pub products: u64,
    /// Temporary values of the adapter's matrix products.
    pub low_rank: u64,
    /// Tiles that attention uses.
    pub attention: u64,
    /// Rows, logits and gradients of the loss head.
    pub head: u64,
    /// Angles of the rotary embedding.
    pub rope: u64,
}

impl PlannedScratch {
    /// Returns the sum of all fields.
    pub fn total(&self) -> u64 {
        self.products + self.low_rank + self.attention + self.head + self.rope
    }
}

impl MemoryPlan {
    /// Returns how the micro-batches of a step are divided into passes.
    pub fn grouping(&self) -> PassGrouping {
        PassGrouping { fuse: self.fuse_micro_batches, max_rows: self.max_pass_rows, unshared: false }
    }

    /// Plans a run with the fastest memory strategy that fits the `limit`.
    ///
    /// Without a limit, no layer is recomputed completely, and small micro-batches are fused.
    ///
    /// # Errors
    /// If a setting is out of range, or if no memory strategy fits. In the second case, the error suggests
    /// the largest batch size or the largest record length that fits.
    pub fn new(input: &PlanInput<'_>, limit: Option<u64>) -> Result<Self, TrainError> {
        input.settings.validate()?;
        let strategies = MemoryStrategy::fastest_first(input.config.num_hidden_layers, input.is_on_device());
        let (first, least) = (strategies[0], strategies[strategies.len() - 1]);
        let mut planner = Planner::new(input, &input.settings)?;
        let everything = planner.plan(first)?;
        let Some(limit) = limit else { return Ok(everything) };
        if everything.total <= limit {
            return Ok(everything);
        }
        let smallest = planner.plan(least)?;
        if smallest.total > limit {
            let fits = suggest_limits(input, limit)?;
            return Err(TrainError::Memory { needed: smallest.total, limit, fits });
        }
        // A binary search finds the first strategy that fits.
        let (mut too_large, mut fits, mut plan) = (0, strategies.len() - 1, smallest);
        while fits - too_large > 1 {
            let middle = (too_large + fits) / 2;
            let tried = planner.plan(strategies[middle])?;
            if tried.total <= limit {
                (fits, plan) = (middle, tried);
            } else {
                too_large = middle;
            }
        }
        Ok(plan)
    }
}

impl PlanInput<'_> {
    /// Returns whether the plan is for the memory of a device.
    fn is_on_device(&self) -> bool {
        matches!(self.backend, BackendOptions::Cuda(_))
    }
}

/// Plans one run with different memory strategies.
struct Planner<'a> {
    input: &'a PlanInput<'a>,
    /// The settings of the dry run.
    settings: TrainSettings,
    /// Batch size of the run divided by the batch size of the dry run.
    batches: u64,
    /// Number of micro-batches per step of the run divided by that number in the dry run.
    steps: u64,
    dry_run: DryRun,
    records: Vec<RecordSize<'a>>,
    held_out: Vec<RecordSize<'a>>,
    /// The worst steps for each grouping that was already planned.
    worst_steps: Vec<(PassGrouping, WorstSteps<'a>)>,
}

impl<'a> Planner<'a> {
    fn new(input: &'a PlanInput<'a>, settings: &TrainSettings) -> Result<Self, TrainError> {
        let (settings, batches, steps) = dry_run_settings(settings, input.records.is_empty());
        let cut = |records: &[RecordSize<'a>]| -> Vec<RecordSize<'a>> {
            records.iter().map(|record| record.cut(settings.max_length)).collect()
        };
        let mut records = cut(&input.records);
        if records.is_empty() {
            let longest = settings.max_length;
            let full = RecordSize { tokens: longest, trained: longest, prefix: &[] }.cut(longest);
            let count =
                settings.per_device_train_batch_size.saturating_mul(settings.gradient_accumulation_steps);
            records = vec![full; count.min(1 << 20)];
        }
        let dry_run = DryRun::new(&input.config, &settings, input.backend)?;
        let (held_out, worst_steps) = (cut(&input.held_out), Vec::new());
        Ok(Self { input, settings, batches, steps, dry_run, records, held_out, worst_steps })
    }

    fn plan(&mut self, strategy: MemoryStrategy) -> Result<MemoryPlan, TrainError> {
        let PlanInput { weights, baseline, reply, checkpoints, .. } = *self.input;
        let MemoryStrategy { layers, grouping } = strategy;
        if self.worst_steps.iter().all(|(of, _)| *of != grouping) {
            let worst = WorstSteps::of(&self.records, &self.held_out, &self.settings, grouping);
            self.worst_steps.push((grouping, worst));
        }
        let (_, worst) = self.worst_steps.iter().find(|(of, _)| *of == grouping).expect("added above");
        let usage = self.dry_run.run(layers.policies(), grouping, worst, reply)?;
        let DryRunUsage { norms, adapter, optimizer, gradients, saving, trained, replies, step_flops } =
            usage;
        // If a micro-batch is split, the size of a part does not depend on the batch size, so the measured
        // memory is not multiplied.
        let batches = if grouping.max_rows.is_some() { 1 } else { self.batches };
        let scratch = PlannedScratch {
            products: trained.scratch.products * batches,
            low_rank: trained.scratch.low_rank * batches,
            attention: trained.scratch.attention * batches,
            head: trained.scratch.head * batches,
            rope: trained.scratch.rope * batches,
        };
        let state = norms + adapter + optimizer + gradients;
        let trained_peak = state + (trained.peak - state) * batches;
        let activations = trained_peak - scratch.total() - state;
        // A plan for a device counts only device memory. The program, the tokenizer, the data and the buffers
        // for writing a checkpoint are in host memory.
        let on_device = self.input.is_on_device();
        let transient = [
            if checkpoints { saving.max(baseline.copied) } else { 0 },
            if replies > 0 { cuda::HOST_GRAPH_BYTES } else { 0 },
        ];
        let host = if on_device { host_peak(&weights, &baseline, transient) } else { 0 };
        let BaselineMemory { program, tokenizer, data, peak, copied } =
            if on_device { BaselineMemory::default() } else { baseline };
        let transient = replies.max(if checkpoints && !on_device { saving.max(copied) } else { 0 });
        let sum = weights.total() + trained_peak + transient + program + tokenizer + data;
        // While a weight is quantized, both the source and the quantized copy are in memory.
        let loading = weights.resident + weights.loading + norms + program + tokenizer + data;
        let peak = peak.max(if weights.resident > 0 { loading } else { 0 });
        Ok(MemoryPlan {
            weights: weights.total() + if on_device { norms } else { 0 },
            resident: weights.resident,
            adapter,
            optimizer,
            gradients,
            activations,
            scratch,
            // With a small base, the peak may occur before the first step, while the tokenizer is read or
            // weights are quantized. The difference is then added here.
            transient: transient + peak.saturating_sub(sum),
            tokenizer,
            data,
            program: program + if on_device { 0 } else { norms },
            total: sum.max(peak),
            on_device,
            host,
            layers,
            fuse_micro_batches: grouping.fuse,
            max_pass_rows: grouping.max_rows,
            tokens: worst.rows as u64 * batches,
            sharing_tokens: worst.keys as u64 * batches,
            trained_tokens: worst.labels as u64 * batches,
            step_flops: step_flops.saturating_mul(self.batches * self.steps),
        })
    }
}

/// Returns the predicted peak of host memory of a run on a device. `transient` is the temporary memory for
/// writing a checkpoint, and that for the replies.
fn host_peak(weights: &WeightBytes, baseline: &BaselineMemory, transient: [u64; 2]) -> u64 {
    let &BaselineMemory { program, tokenizer, data, peak, .. } = baseline;
    let trained = weights.host_table + transient.into_iter().fold(0, u64::max);
    peak.max(program + tokenizer + data + cuda::HOST_BYTES + weights.host_loading.max(trained))
}

/// Returns the settings of the dry run and two factors. The first factor is the batch size of the run divided
/// by the batch size of the dry run. The second factor is the same ratio for the number of micro-batches per
/// step.
///
/// If the records are known, the dry run uses the settings of the run, so both factors are 1.
fn dry_run_settings(settings: &TrainSettings, is_without_data: bool) -> (TrainSettings, u64, u64) {
    let (batch, micros) = (settings.per_device_train_batch_size, settings.gradient_accumulation_steps);
    let most = |tokens: usize| (MAX_DRY_RUN_TOKENS / tokens.max(1)).max(1);
    if !is_without_data {
        return (settings.clone(), 1, 1);
    }
    let dry_batch = batch.min(most(settings.max_length));
    let dry_micros = micros.min(most(settings.max_length.saturating_mul(dry_batch)));
    let settings = TrainSettings {
        per_device_train_batch_size: dry_batch,
        gradient_accumulation_steps: dry_micros,
        ..settings.clone()
    };
    (settings, batch.div_ceil(dry_batch) as u64, micros.div_ceil(dry_micros) as u64)
}

/// Returns the largest batch size that fits. If no batch size fits, returns the largest record length that
/// fits with a batch size of one. Returns `None` if no length fits either.
fn suggest_limits(input: &PlanInput<'_>, limit: u64) -> Result<Option<SuggestedLimits>, TrainError> {
    let least = |settings: &TrainSettings| {
        let strategies = MemoryStrategy::fastest_first(input.config.num_hidden_layers, input.is_on_device());
        let plan = Planner::new(input, settings)?.plan(strategies[strategies.len() - 1])?;
        Ok::<_, TrainError>(plan.total <= limit)
    };
    let asked = input.settings.per_device_train_batch_size;
    let batch = |size| TrainSettings { per_device_train_batch_size: size, ..input.settings.clone() };
    if let Some(size) = find_largest(1, asked, |size| least(&batch(size)))? {
        return Ok(Some(SuggestedLimits { batch: Some(size), length: None }));
    }
    let most = input.settings.max_length;
    let cut = |max_length| TrainSettings { max_length, ..batch(1) };
    let length = find_largest(MIN_SUGGESTED_LENGTH.min(most), most, |length| least(&cut(length)))?;
    Ok(length.map(|length| SuggestedLimits { batch: (asked != 1).then_some(1), length: Some(length) }))
}

/// Returns the largest value in `from .. to` that fits. The binary search assumes that every value below a
/// value that fits also fits.
fn find_largest(
    from: usize,
    to: usize,
    fits: impl Fn(usize) -> Result<bool, TrainError>,
) -> Result<Option<usize>, TrainError> {
    let (mut low, mut high) = (from, to);
    if low >= high || !fits(low)? {
        return Ok(None);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(Some(low))
}

#[cfg(test)]
mod tests;
