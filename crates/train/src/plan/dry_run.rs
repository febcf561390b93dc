//! Runs the training code on [`Trace`], which measures memory and computes nothing.

use std::sync::Arc;

use danlu_adapter::Adapter;
use danlu_kernels::{BackendOptions, Footprint, Trace};
use danlu_model::{
    ActivationPolicy, Decoder, LabeledSequence, ModelConfig, SlotInput, Workspace, projections,
};

use super::worst_steps::WorstSteps;
use crate::fused_batch::PassGrouping;
use crate::optimizer::Optimizer;
use crate::{Example, TrainError, TrainSettings, Trainer};

/// The size of the replies that a run generates after its last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplySize {
    /// Number of tokens in the longest question.
    pub prompt_tokens: usize,
    /// Maximum number of tokens in a reply.
    pub new_tokens: usize,
}

/// Memory in bytes that a dry run measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DryRunUsage {
    /// Norm weights in f32.
    pub norms: u64,
    pub adapter: u64,
    pub optimizer: u64,
    pub gradients: u64,
    /// Temporary memory for writing a checkpoint.
    pub saving: u64,
    /// Memory use after the last step. Its peak includes all temporary memory.
    pub trained: Footprint,
    /// Memory by which the replies exceed the peak of the steps.
    pub replies: u64,
    /// Floating-point operations of the step that needs the most operations.
    pub step_flops: u64,
}

/// Returns the number of elements in the largest projection if projections are in 4 bits, otherwise 0.
fn largest_four_bit(config: &ModelConfig, settings: &TrainSettings) -> usize {
    match settings.quantization().or(config.quantization) {
        Some(_) => projections(config).map(|(_, rows, cols)| rows * cols).max().unwrap_or(0),
        None => 0,
    }
}

/// A trainer on [`Trace`]. The trainer runs once for each memory strategy.
pub(crate) struct DryRun {
    trace: Arc<Trace>,
    trainer: Trainer,
    norms: u64,
    adapter: u64,
}

impl DryRun {
    /// Creates a trainer for this base and these settings.
    pub fn new(
        config: &ModelConfig,
        settings: &TrainSettings,
        backend: BackendOptions,
    ) -> Result<Self, TrainError> {
        let trace = Arc::new(backend.trace(largest_four_bit(config, settings)));
        let live = || trace.footprint().live;
        let decoder = Arc::new(Decoder::trace(config.clone(), trace.clone()));
        let norms = live();
        let adapter = Adapter::init(settings.lora_config(""), config, settings.seed, &*trace)?;
        let adapter_bytes = live() - norms;
        // `Trainer::new` requires a record, but `run` does not use this record.
        let sequence = LabeledSequence { ids: vec![0; 2], trained: vec![true; 2] };
        let examples = vec![Example { sequence, origin: String::new() }];
        let trainer = Trainer::new(decoder, adapter, examples, settings.clone(), String::new())?;
        Ok(Self { trace, trainer, norms, adapter: adapter_bytes })
    }

    /// Runs the evaluations and steps of `worst`, then the replies.
    pub fn run(
        &mut self,
        policies: Vec<ActivationPolicy>,
        grouping: PassGrouping,
        worst: &WorstSteps<'_>,
        reply: ReplySize,
    ) -> Result<DryRunUsage, TrainError> {
        self.trainer.release();
        self.trace.restart();
        let state = self.trace.footprint().live - self.norms - self.adapter;
        self.trainer.reserve(policies, grouping, (worst.rows, worst.labels, worst.keys));
        for sequences in worst.evaluations() {
            if sequences.iter().any(|sequence| sequence.trained_tokens() > 0) {
                self.trainer.evaluate(&sequences)?;
            }
        }
        let mut step_flops = 0;
        for micros in worst.steps() {
            let micros: Vec<Vec<&LabeledSequence>> =
                micros.iter().map(|micro| micro.iter().collect()).collect();
            let before = self.trace.footprint().flops;
            self.trainer.dry_run(&micros)?;
            step_flops = step_flops.max(self.trace.footprint().flops - before);
        }
        let trained = self.trace.footprint();
        self.trainer.release();
        self.replies(reply)?;
        Ok(DryRunUsage {
            norms: self.norms,
            adapter: self.adapter,
            optimizer: state - self.adapter,
            gradients: self.adapter,
            saving: Optimizer::saving_bytes(self.trainer.adapter().num_parameters()),
            trained,
            replies: self.trace.footprint().peak - trained.peak,
            step_flops,
        })
    }

    fn replies(&self, reply: ReplySize) -> Result<(), TrainError> {
        let (decoder, adapter) = (self.trainer.decoder(), self.trainer.adapter());
        let context = decoder.config().max_position_embeddings;
        let prompt = reply.prompt_tokens.min(context);
        if prompt > 0 {
            let mut work = Workspace::new();
            let mut cache = decoder.new_cache();
            let capacity = (prompt + reply.new_tokens).min(context);
            let (slot, ids) = (cache.add(capacity), vec![0; prompt]);
            decoder.prefill(&mut work, &mut cache, &[SlotInput::new(slot, &ids, Some(adapter))])?;
            if prompt < capacity {
                decoder.decode(&mut work, &mut cache, &[SlotInput::new(slot, &[0], Some(adapter))])?;
            }
        }
        Ok(())
    }
}
