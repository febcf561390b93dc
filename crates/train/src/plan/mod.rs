//! Memory planned before it is used: what a run will hold at most, and what its layers keep so that it fits.

mod dry_run;
mod recompute_ladder;
mod weights;
mod worst_steps;

use std::cell::OnceCell;
use std::fmt;

use danlu_kernels::CpuOptions;
use danlu_model::ModelConfig;
use serde::{Deserialize, Serialize};

pub use self::dry_run::ReplySize;
use self::dry_run::{DryRun, DryRunUsage};
pub use self::recompute_ladder::LayerPolicies;
use self::recompute_ladder::MemoryStrategy;
pub use self::weights::{WeightBytes, weight_bytes, weight_bytes_of};
pub use self::worst_steps::RecordSize;
use self::worst_steps::WorstSteps;
use crate::{TrainError, TrainSettings};

/// Shortest records that a hint proposes.
const MIN_SUGGESTED_LENGTH: usize = 16;

/// What a run is made of, as far as memory depends on it.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    /// The base.
    pub config: ModelConfig,
    /// The run.
    pub settings: TrainSettings,
    /// What will compute.
    pub cpu: CpuOptions,
    /// Records to train on; with none, every record is as long as the settings allow.
    pub records: Vec<RecordSize<'a>>,
    /// Records to evaluate on.
    pub held_out: Vec<RecordSize<'a>>,
    /// Replies after the last step.
    pub reply: ReplySize,
    /// Whether checkpoints are written.
    pub checkpoints: bool,
    /// The weights that a run touches, see [`weight_bytes`].
    pub weights: WeightBytes,
    /// What is in memory before.
    pub baseline: BaselineMemory,
}

/// What a process holds before it opens a base, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineMemory {
    /// The program, its stacks, and the code that a run will page in.
    pub program: u64,
    /// The tokenizer.
    pub tokenizer: u64,
    /// Encoded records, and the heap that encoding left behind.
    pub data: u64,
    /// The most that there ever was, such as while the tokenizer was read.
    pub peak: u64,
    /// The largest file that is copied beside every checkpoint, see [`TokenIdentity::largest_file`](danlu_adapter::TokenIdentity::largest_file).
    pub copied: u64,
}

/// What a run will hold at most, in bytes; the parts add up to `total`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Weights of the base.
    pub weights: u64,
    /// Of these, what was put into 4 bits: the rest is pages of files, which the system can take back.
    pub resident: u64,
    /// The adapter's parameters.
    pub adapter: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// The adapter's gradient.
    pub gradients: u64,
    /// What passes through the layers, with its gradients.
    pub activations: u64,
    /// Working memory of the kernels.
    pub scratch: ScratchBytes,
    /// What writing a checkpoint, and the replies at the end, take beyond that for a moment.
    pub transient: u64,
    /// The tokenizer.
    pub tokenizer: u64,
    /// Encoded records.
    pub data: u64,
    /// The program itself.
    pub program: u64,
    /// All of it: the forecast of the peak.
    pub total: u64,
    /// How many layers keep what.
    pub layers: LayerPolicies,
    /// Whether small micro-batches go through the model together: faster, to the same bits.
    pub fuse_micro_batches: bool,
    /// Tokens of the largest pass, what records begin with alike counted once.
    pub tokens: u64,
    /// Tokens of the largest pass whose records begin alike, each counted.
    #[serde(default)]
    pub sharing_tokens: u64,
    /// Trained tokens of the pass that has most of them.
    pub trained_tokens: u64,
    /// Work of the heaviest step, multiplications and additions.
    pub step_flops: u64,
}

/// What of a run would have to be smaller for it to fit; as flags when displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuggestedLimits {
    /// Records of a micro-batch, where that changes.
    pub batch: Option<usize>,
    /// Tokens of the longest record, where that does.
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

/// Working memory of the kernels, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchBytes {
    /// Packed operands of products with the base.
    pub products: u64,
    /// The adapter's products.
    pub low_rank: u64,
    /// Tiles of attention.
    pub attention: u64,
    /// Rows, logits and gradients of the loss head.
    pub head: u64,
    /// Angles of the rotary embedding.
    pub rope: u64,
}

impl ScratchBytes {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.products + self.low_rank + self.attention + self.head + self.rope
    }
}

impl MemoryPlan {
    /// Plans a run. Without a `limit` no layer recomputes and small micro-batches run together; with one, as much of
    /// that as fits.
    ///
    /// # Errors
    /// If a setting is out of range, or the run does not fit even when every layer keeps least; the error then
    /// names the largest batch, or the longest records, that would.
    pub fn new(input: &PlanInput<'_>, limit: Option<u64>) -> Result<Self, TrainError> {
        input.settings.validate()?;
        let ladder = MemoryStrategy::ladder(input.config.num_hidden_layers);
        let (first, least) = (ladder[0], ladder[ladder.len() - 1]);
        let mut planner = Planner::new(input, &input.settings)?;
        let everything = planner.plan(first)?;
        let Some(limit) = limit else { return Ok(everything) };
        if everything.total <= limit {
            return Ok(everything);
        }
        let smallest = planner.plan(least)?;
        if smallest.total > limit {
            let fits = largest_that_fits(input, limit)?;
            return Err(TrainError::Memory { needed: smallest.total, limit, fits });
        }
        // The first strategy that fits, between one that does not and one that does.
        let (mut too_large, mut fits, mut plan) = (0, ladder.len() - 1, smallest);
        while fits - too_large > 1 {
            let middle = (too_large + fits) / 2;
            let tried = planner.plan(ladder[middle])?;
            if tried.total <= limit {
                (fits, plan) = (middle, tried);
            } else {
                too_large = middle;
            }
        }
        Ok(plan)
    }
}

/// A run to be planned in one way after the other.
struct Planner<'a> {
    input: &'a PlanInput<'a>,
    settings: &'a TrainSettings,
    dry_run: DryRun,
    records: Vec<RecordSize<'a>>,
    held_out: Vec<RecordSize<'a>>,
    /// With micro-batches apart, and together; found when first asked for.
    worst_steps: [OnceCell<WorstSteps<'a>>; 2],
}

impl<'a> Planner<'a> {
    fn new(input: &'a PlanInput<'a>, settings: &'a TrainSettings) -> Result<Self, TrainError> {
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
        let dry_run = DryRun::new(&input.config, settings, input.cpu)?;
        let (held_out, worst_steps) = (cut(&input.held_out), Default::default());
        Ok(Self { input, settings, dry_run, records, held_out, worst_steps })
    }

    fn plan(&mut self, strategy: MemoryStrategy) -> Result<MemoryPlan, TrainError> {
        let PlanInput { weights, baseline, reply, checkpoints, .. } = *self.input;
        let MemoryStrategy { layers, fuse_micro_batches } = strategy;
        let worst = self.worst_steps[usize::from(fuse_micro_batches)]
            .get_or_init(|| WorstSteps::of(&self.records, &self.held_out, self.settings, fuse_micro_batches));
        let usage = self.dry_run.run(layers.policies(), fuse_micro_batches, worst, reply)?;
        let DryRunUsage { norms, adapter, optimizer, gradients, saving, trained, replies, step_flops } =
            usage;
        let scratch = ScratchBytes {
            products: trained.scratch.products,
            low_rank: trained.scratch.low_rank,
            attention: trained.scratch.attention,
            head: trained.scratch.head,
            rope: trained.scratch.rope,
        };
        let activations = trained.peak - scratch.total() - norms - adapter - optimizer - gradients;
        let BaselineMemory { program, tokenizer, data, peak, copied } = baseline;
        let transient = replies.max(if checkpoints { saving.max(copied) } else { 0 });
        let sum = weights.total() + trained.peak + transient + program + tokenizer + data;
        // Before anything else there is the base, and what it is made from.
        let loading = weights.resident + weights.loading + norms + program + tokenizer + data;
        let peak = peak.max(if weights.resident > 0 { loading } else { 0 });
        Ok(MemoryPlan {
            weights: weights.total(),
            resident: weights.resident,
            adapter,
            optimizer,
            gradients,
            activations,
            scratch,
            // A base so small that reading the tokenizer was the peak, or putting it into 4 bits.
            transient: transient + peak.saturating_sub(sum),
            tokenizer,
            data,
            program: program + norms,
            total: sum.max(peak),
            layers,
            fuse_micro_batches,
            tokens: worst.rows as u64,
            sharing_tokens: worst.keys as u64,
            trained_tokens: worst.labels as u64,
            step_flops,
        })
    }
}

/// The largest batch that fits, or with the smallest batch the longest records.
fn largest_that_fits(input: &PlanInput<'_>, limit: u64) -> Result<Option<SuggestedLimits>, TrainError> {
    let least = |settings: &TrainSettings| {
        let ladder = MemoryStrategy::ladder(input.config.num_hidden_layers);
        let plan = Planner::new(input, settings)?.plan(ladder[ladder.len() - 1])?;
        Ok::<_, TrainError>(plan.total <= limit)
    };
    let asked = input.settings.per_device_train_batch_size;
    let batch = |size| TrainSettings { per_device_train_batch_size: size, ..input.settings.clone() };
    if let Some(size) = largest(1, asked, |size| least(&batch(size)))? {
        return Ok(Some(SuggestedLimits { batch: Some(size), length: None }));
    }
    let most = input.settings.max_length;
    let cut = |max_length| TrainSettings { max_length, ..batch(1) };
    let length = largest(MIN_SUGGESTED_LENGTH.min(most), most, |length| least(&cut(length)))?;
    Ok(length.map(|length| SuggestedLimits { batch: (asked != 1).then_some(1), length: Some(length) }))
}

/// The largest of `from .. to` for which `fits` holds, which holds for small values if for any.
fn largest(
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
