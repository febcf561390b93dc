//! The training loop, one optimizer step at a time.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use danlu_adapter::Adapter;
use danlu_kernels::{Buffer, Element, Scalars, rng};
use danlu_model::{
    ActivationPolicy, Batch, Decoder, DropoutPlan, EmbeddingNoise, LabeledSequence, LoraRows, StepBuffers,
    Workspace,
};
use serde::{Deserialize, Serialize};

use crate::data_order::DataOrder;
use crate::fused_batch::{FusedBatch, PassGrouping};
use crate::loss_scale::LossScale;
use crate::optimizer::{Optimizer, adamw, clip_factor};
use crate::{ExamplesFingerprint, LogEntry, Schedule, TrainError, TrainSettings, TrainerState};

/// Key of the random stream of dropout masks.
const DROPOUT_STREAM: u64 = 0x6472_6f70_6f75;

/// Key of the random stream of NEFTune's noise.
const NOISE_STREAM: u64 = 0x006e_6f69_7365;

/// A training record, and its name for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids and loss mask.
    pub sequence: LabeledSequence,
    /// File and line of the record: `huanhuan.json:812`.
    pub origin: String,
}

/// The metrics of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepMetrics {
    /// Number of steps completed, including this step.
    pub step: u64,
    /// Number of epochs so far, including a fraction.
    pub epoch: f64,
    /// Mean loss over all trained tokens of the step, in nats.
    pub loss: f64,
    /// L2 norm of the whole gradient, before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Number of tokens in the records of the step. A shared prefix is counted for each record.
    pub tokens: u64,
    /// Number of tokens that have a loss.
    pub trained_tokens: u64,
    /// Duration of the step in seconds.
    pub seconds: f64,
}

/// The metrics of one evaluation on held-out records.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// Mean loss over all trained tokens, in nats.
    pub loss: f64,
    /// Exponential of the loss.
    pub perplexity: f64,
    /// Number of tokens that have a loss.
    pub tokens: u64,
    /// Duration of the evaluation in seconds.
    pub seconds: f64,
}

/// A training run in progress.
///
/// The caller writes the loop, and may print, save or stop between steps.
///
/// ```no_run
/// # fn run(mut trainer: danlu_train::Trainer) -> Result<(), danlu_train::TrainError> {
/// while !trainer.is_finished() {
///     let metrics = trainer.step()?;
///     println!("{} {:.4}", metrics.step, metrics.loss);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Trainer {
    pub(crate) decoder: Arc<Decoder>,
    pub(crate) adapter: Adapter,
    pub(crate) optimizer: Optimizer,
    pub(crate) settings: TrainSettings,
    pub(crate) schedule: Schedule,
    pub(crate) order: DataOrder,
    pub(crate) state: TrainerState,
    pub(crate) history: Vec<StepMetrics>,
    pub(crate) data: ExamplesFingerprint,
    pub(crate) base: String,
    examples: Vec<Example>,
    grads: Buffer,
    /// The losses of all trained tokens of a step. The losses are read once, at the end of the step.
    losses: Option<Buffer>,
    /// The sum of squares of the gradient or of the parameters.
    squares: Scalars,
    /// Scale of the loss, or `None` if the back end needs no scale.
    pub(crate) loss_scale: Option<LossScale>,
    work: Workspace,
    grouping: PassGrouping,
}

impl Trainer {
    /// Creates a run before its first step. `base` is the [fingerprint](danlu_model::base_fingerprint) of the
    /// base.
    ///
    /// # Errors
    /// If a setting is out of range, or if a record has no trained token, is too long, or contains an unknown
    /// token.
    pub fn new(
        decoder: Arc<Decoder>,
        adapter: Adapter,
        examples: Vec<Example>,
        settings: TrainSettings,
        base: String,
    ) -> Result<Self, TrainError> {
        settings.validate()?;
        check_examples(&examples, &settings, decoder.config().vocab_size)?;
        let lengths: Vec<usize> = examples.iter().map(|e| e.sequence.ids.len()).collect();
        let order = DataOrder::new(&lengths, &settings);
        let total = settings.total_steps(order.micro_batches());
        if total > u64::from(u32::MAX) {
            let value = settings.num_train_epochs.to_string();
            return Err(TrainError::Setting {
                name: "num_train_epochs",
                value,
                expected: "fewer than 2^32 steps",
            });
        }
        let backend = decoder.backend().clone();
        let parameters = adapter.num_parameters();
        let state = TrainerState {
            is_local_process_zero: true,
            is_world_process_zero: true,
            max_steps: total,
            num_train_epochs: order.epochs(total).ceil() as u64,
            logging_steps: settings.logging_steps,
            save_steps: settings.save_steps,
            eval_steps: settings.eval_steps.unwrap_or(0),
            train_batch_size: settings.per_device_train_batch_size as u64,
            ..TrainerState::default()
        };
        tracing::debug!(records = examples.len(), parameters, steps = total, "run prepared");
        Ok(Self {
            optimizer: Optimizer::new(&*backend, &adapter, settings.loraplus_lr_ratio),
            grads: backend.alloc(parameters, Element::Exact),
            losses: None,
            squares: backend.alloc_scalars(1),
            loss_scale: backend.needs_loss_scale().then(LossScale::default),
            schedule: settings.schedule(total),
            data: ExamplesFingerprint::of(&examples),
            history: Vec::new(),
            work: Workspace::new(),
            grouping: PassGrouping { fuse: true, max_rows: None, unshared: settings.has_noise() },
            decoder,
            adapter,
            settings,
            order,
            state,
            base,
            examples,
        })
    }

    /// Takes one optimizer step: forward and backward of every micro-batch, then one update.
    ///
    /// The loss is the mean over the trained tokens of all micro-batches. The weight of a token therefore
    /// does not depend on its micro-batch.
    ///
    /// # Errors
    /// If the run is finished, or if the loss or the gradient is not finite. The adapter and the optimizer
    /// are then unchanged. If the update makes a parameter infinite, the trainer cannot be used any more, but
    /// the last checkpoint is intact.
    pub fn step(&mut self) -> Result<StepMetrics, TrainError> {
        let step = self.state.global_step + 1;
        if self.is_finished() {
            return Err(TrainError::Finished { steps: self.schedule.total_steps });
        }
        let start = Instant::now();
        let records = self.order.step(step);
        let sequences = |micro: &Vec<usize>| micro.iter().map(|&r| &self.examples[r].sequence).collect();
        let micros: Vec<Vec<&LabeledSequence>> = records.iter().map(sequences).collect();
        let passes = FusedBatch::of_step(self.decoder.config(), &micros, self.grouping);
        let tokens = passes.iter().map(|pass| pass.batch.tokens()).sum::<usize>();
        let trained = passes.iter().map(|pass| pass.batch.trained_tokens()).sum::<usize>();
        let (loss, grad_norm) = self.scaled_gradients(step, &passes)?;
        // A gradient whose square overflows f32 is rejected, because AdamW's second moment would stay
        // infinite forever.
        let clipped = grad_norm * clip_factor(grad_norm, self.settings.max_grad_norm);
        let origins = |records: Vec<Vec<usize>>, examples: &[Example]| {
            records.concat().into_iter().map(|r| examples[r].origin.clone()).collect()
        };
        let usable = [("loss", loss, loss), ("gradient norm", grad_norm, clipped * clipped)];
        if let Some(&(what, value, _)) = usable.iter().find(|(_, _, v)| !(*v as f32).is_finite()) {
            let records = origins(records, &self.examples);
            return Err(TrainError::NonFinite { step, what, value, records });
        }

        let learning_rate = self.update(step, grad_norm);
        let size = self.parameter_norm()?;
        if !(size as f32).is_finite() {
            let records = origins(records, &self.examples);
            return Err(TrainError::NonFinite { step, what: "adapter", value: size, records });
        }
        let report = StepMetrics {
            step,
            epoch: self.order.epochs(step),
            loss,
            grad_norm,
            learning_rate,
            tokens: tokens as u64,
            trained_tokens: trained as u64,
            seconds: start.elapsed().as_secs_f64(),
        };
        self.account(report);
        Ok(report)
    }

    /// Computes the gradients of a step as [`Self::gradients`] does. If a scaled gradient overflows, halves
    /// the scale and computes the step again.
    fn scaled_gradients(&mut self, step: u64, passes: &[FusedBatch]) -> Result<(f64, f64), TrainError> {
        loop {
            let (loss, norm) = self.gradients(step, passes)?;
            let overflows = loss.is_finite() && !norm.is_finite();
            if !overflows || !self.loss_scale.as_mut().is_some_and(LossScale::halve) {
                return Ok((loss, norm));
            }
            tracing::debug!(step, scale = self.scale(), "a gradient overflowed");
        }
    }

    /// Returns the scale of the loss. The gradient has the same scale until the update.
    fn scale(&self) -> f64 {
        self.loss_scale.map_or(1.0, LossScale::factor)
    }

    /// Runs the forward and backward passes of a step. Returns the mean loss and the norm of the gradient,
    /// both without the scale of the loss.
    fn gradients(&mut self, step: u64, passes: &[FusedBatch]) -> Result<(f64, f64), TrainError> {
        let scale = self.scale();
        let backend = self.decoder.backend().clone();
        self.adapter.prepare(&self.decoder, available_threads())?;
        let parameters = self.adapter.num_parameters();
        let trained = passes.iter().map(|pass| pass.batch.trained_tokens()).sum::<usize>();
        backend.zero(&mut self.grads, parameters);
        if self.losses.as_ref().is_none_or(|losses| losses.len() < trained) {
            self.losses = None;
        }
        let losses = self.losses.get_or_insert_with(|| backend.alloc(trained, Element::Exact));
        let (dloss, mut first) = (scale as f32 / trained as f32, 0);
        for FusedBatch { batch, micros, part, rows } in passes {
            let lora = |(micro, rows): (usize, &Range<usize>)| LoraRows {
                rows: rows.clone(),
                source: &self.adapter,
                dropout: dropout(&self.settings, step, micro, *part),
                noise: noise(&self.settings, step, micro, *part),
            };
            let lora: Vec<LoraRows<'_>> = micros.clone().zip(rows).map(lora).collect();
            let dloss = vec![dloss; batch.trained_tokens()];
            let into = StepBuffers { grads: &mut self.grads, losses, first };
            self.decoder.add_gradients(&mut self.work, batch, &lora, &dloss, into)?;
            first += batch.trained_tokens();
        }
        self.optimizer.mask_gradients(&*backend, &mut self.grads);
        backend.sum_of_squares(&mut self.squares, 0, &self.grads, parameters);
        let (mut values, mut squares) = (vec![0.0; trained], [0.0]);
        backend.read(&mut values, losses, 0)?;
        backend.read_scalars(&mut squares, &self.squares)?;
        // The losses of each batch are summed separately, in f64.
        let (mut sum, mut rest) = (0.0, &values[..]);
        for pass in passes {
            let (of_pass, after) = rest.split_at(pass.batch.trained_tokens());
            sum += of_pass.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            rest = after;
        }
        Ok((sum / trained as f64, squares[0].sqrt() / scale))
    }

    fn parameter_norm(&mut self) -> Result<f64, TrainError> {
        let (backend, mut squares) = (self.decoder.backend(), [0.0]);
        let parameters = self.adapter.num_parameters();
        backend.sum_of_squares(&mut self.squares, 0, &self.adapter.params, parameters);
        backend.read_scalars(&mut squares, &self.squares)?;
        Ok(squares[0].sqrt())
    }

    /// Updates the parameters and returns the learning rate.
    fn update(&mut self, step: u64, grad_norm: f64) -> f64 {
        let learning_rate = self.schedule.at(step);
        let mut update = adamw(&self.settings, learning_rate, step, grad_norm);
        update.grad_scale /= self.scale() as f32;
        let (backend, params) = (&**self.decoder.backend(), &mut self.adapter.params);
        self.optimizer.update(backend, params, &self.grads, learning_rate, update);
        learning_rate
    }

    /// Runs the operations of a step for the memory plan, on the back end of the trainer.
    pub(crate) fn dry_run(&mut self, micros: &[Vec<&LabeledSequence>]) -> Result<(), TrainError> {
        let (_, grad_norm) =
            self.gradients(1, &FusedBatch::of_step(self.decoder.config(), micros, self.grouping))?;
        self.update(1, grad_norm);
        Ok(())
    }

    /// Sets the memory strategy and allocates the buffers of the largest pass. A run that needs too much
    /// memory therefore fails before its first step.
    ///
    /// `rows` and `labels` are the largest numbers of token rows and trained tokens in a pass. `keys` is the
    /// largest number of attention keys that a pass with a shared prefix copies.
    ///
    /// A memory strategy that splits a micro-batch changes results: each part has its own dropout masks, and
    /// sums are rounded differently. On a GPU, fusing micro-batches changes rounding too.
    pub fn reserve(
        &mut self,
        policies: Vec<ActivationPolicy>,
        grouping: PassGrouping,
        (rows, labels, keys): (usize, usize, usize),
    ) {
        self.grouping = PassGrouping { unshared: self.settings.has_noise(), ..grouping };
        self.work = Workspace::with_policies(policies);
        self.decoder.reserve(&mut self.work, rows, labels, keys);
        self.decoder.reserve_pass(&mut self.work, &self.adapter, rows, labels);
        self.losses = Some(self.decoder.backend().alloc(self.most_trained_tokens(), Element::Exact));
    }

    /// Returns the largest possible number of trained tokens in a step.
    fn most_trained_tokens(&self) -> usize {
        let of = |unit: &Vec<usize>| {
            unit.iter().map(|&record| self.examples[record].sequence.trained_tokens()).sum()
        };
        let mut tokens: Vec<usize> = self.order.units().iter().map(of).collect();
        tokens.sort_unstable_by_key(|&tokens| std::cmp::Reverse(tokens));
        let units = self
            .settings
            .per_device_train_batch_size
            .saturating_mul(self.settings.gradient_accumulation_steps);
        tokens.iter().take(units).sum()
    }

    /// Returns the name of the back end. If the division of a step into passes affects results, adds the
    /// division.
    pub(crate) fn arithmetic(&self) -> String {
        let (backend, PassGrouping { fuse, max_rows, .. }) = (self.decoder.backend(), self.grouping);
        let name = backend.name();
        // A device selects algorithms by the number of rows, so a fused pass rounds differently.
        let is_device = backend.device_memory().is_some();
        match max_rows {
            Some(rows) => format!("{name}, passes of {rows} tokens"),
            None if is_device && !fuse => format!("{name}, one micro-batch at a time"),
            None => name,
        }
    }

    /// Frees the buffers that steps use. The next step allocates these buffers again.
    pub fn release(&mut self) {
        self.losses = None;
        self.work.clear();
    }

    /// Returns the micro-batches of step `step`. Steps start at 1.
    pub fn micro_batches(&mut self, step: u64) -> Vec<Batch> {
        let sequence = |&record: &usize| &self.examples[record].sequence;
        let (config, unshared) = (self.decoder.config(), self.grouping.unshared);
        let batch = |micro: &Vec<usize>| Batch::for_model(config, unshared, micro.iter().map(sequence));
        self.order.step(step).iter().map(batch).collect()
    }

    /// Evaluates the current adapter on `sequences` without dropout.
    ///
    /// # Errors
    /// If no token has a loss, or if a token id is outside the vocabulary.
    pub fn evaluate(&mut self, sequences: &[LabeledSequence]) -> Result<EvalMetrics, TrainError> {
        let metrics = self.evaluate_with(sequences, &mut |_| ControlFlow::Continue(()))?;
        Ok(metrics.expect("only the callback stops an evaluation"))
    }

    /// Evaluates the current adapter as [`Trainer::evaluate`] does. Calls `progress` with the number of
    /// finished sequences after each batch. Returns `None` if `progress` returned `Break`.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub fn evaluate_with(
        &mut self,
        sequences: &[LabeledSequence],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<EvalMetrics>, TrainError> {
        let start = Instant::now();
        self.adapter.prepare(&self.decoder, available_threads())?;
        let (mut sum, mut tokens, mut done) = (0.0, 0, 0);
        for group in evaluation_groups(sequences, |s| s.ids.len(), self.settings.max_length) {
            let batch = Batch::for_model(self.decoder.config(), false, group);
            if batch.trained_tokens() > 0 {
                let losses = self.decoder.losses(&mut self.work, &batch, Some(&self.adapter))?;
                sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
                tokens += losses.len();
            }
            done += group.len();
            if progress(done).is_break() {
                return Ok(None);
            }
        }
        if tokens == 0 {
            let all = sequences.iter().map(|s| s.ids.len()).sum();
            return Err(TrainError::NoTrainedToken { origin: "the held-out records".into(), tokens: all });
        }
        let loss = sum / tokens as f64;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Some(EvalMetrics { loss, perplexity: loss.exp(), tokens: tokens as u64, seconds }))
    }

    /// Adds an evaluation at the current step to the log.
    pub fn log_evaluation(&mut self, report: &EvalMetrics) {
        self.state.log_evaluation(report.loss, report.seconds);
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` in PEFT's format.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn save_adapter(&self, folder: &Path) -> Result<(), TrainError> {
        Ok(self.adapter.save(folder, &**self.decoder.backend())?)
    }

    /// Returns whether all steps are completed.
    pub fn is_finished(&self) -> bool {
        self.state.global_step >= self.schedule.total_steps
    }

    /// Returns whether a checkpoint is due at the current step.
    pub fn checkpoint_due(&self) -> bool {
        is_multiple(self.state.global_step, self.settings.save_steps)
    }

    /// Returns whether an evaluation is due at the current step.
    pub fn evaluation_due(&self) -> bool {
        is_multiple(self.state.global_step, self.settings.eval_steps.unwrap_or(0))
    }

    /// Returns the number of completed steps.
    pub fn global_step(&self) -> u64 {
        self.state.global_step
    }

    /// Returns the number of steps in the run.
    pub fn total_steps(&self) -> u64 {
        self.schedule.total_steps
    }

    /// Returns the adapter in its current state.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Returns the adapter and drops the trainer.
    pub fn into_adapter(self) -> Adapter {
        self.adapter
    }

    /// Returns the decoder of the base.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Returns the settings of the run.
    pub fn settings(&self) -> &TrainSettings {
        &self.settings
    }

    /// Returns the progress and the log of the run.
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// Returns the metrics of every step, including the steps before the run was resumed.
    pub fn history(&self) -> &[StepMetrics] {
        &self.history
    }

    /// Adds a finished step to the history, the state and the log.
    fn account(&mut self, report: StepMetrics) {
        let StepMetrics { step, epoch, grad_norm, learning_rate, .. } = report;
        self.history.push(report);
        if let Some(scale) = &mut self.loss_scale {
            scale.count_step();
        }
        let state = &mut self.state;
        (state.global_step, state.epoch) = (step, epoch);
        state.num_input_tokens_seen += report.tokens;
        if is_multiple(step, self.settings.logging_steps) || step == self.schedule.total_steps {
            let logged = |entry: &LogEntry| match entry {
                LogEntry::Train { step, .. } => Some(*step as usize),
                _ => None,
            };
            let before = state.log_history.iter().rev().find_map(logged).unwrap_or(0);
            let since = &self.history[before.min(self.history.len() - 1)..];
            let loss = since.iter().map(|s| s.loss).sum::<f64>() / since.len() as f64;
            state.log_history.push(LogEntry::Train { epoch, grad_norm, learning_rate, loss, step });
        }
    }
}

fn available_threads() -> usize {
    thread::available_parallelism().map_or(1, Into::into)
}

fn dropout(settings: &TrainSettings, step: u64, micro: usize, part: usize) -> Option<DropoutPlan> {
    let probability = settings.lora_dropout as f32;
    let key = part_key([settings.seed, DROPOUT_STREAM, step, micro as u64], part);
    (probability > 0.0).then_some(DropoutPlan { probability, key })
}

fn noise(settings: &TrainSettings, step: u64, micro: usize, part: usize) -> Option<EmbeddingNoise> {
    let alpha = settings.neftune_noise_alpha? as f32;
    let key = part_key([settings.seed, NOISE_STREAM, step, micro as u64], part);
    (alpha > 0.0).then_some(EmbeddingNoise { alpha, key })
}

/// Returns the key of a part of a micro-batch.
fn part_key(micro_batch: [u64; 4], part: usize) -> u64 {
    let key = rng::key(&micro_batch);
    if part > 0 { rng::key(&[key, part as u64]) } else { key }
}

fn is_multiple(step: u64, of: u64) -> bool {
    of > 0 && step > 0 && step.is_multiple_of(of)
}

/// Divides records into groups for evaluation, in order. A group has as many records as fit into `max_length`
/// or 512 tokens, whichever is larger. A longer record is a group of its own.
pub(crate) fn evaluation_groups<T>(
    records: &[T],
    tokens: impl Fn(&T) -> usize,
    max_length: usize,
) -> impl Iterator<Item = &[T]> {
    let (mut rest, budget) = (records, max_length.max(512));
    std::iter::from_fn(move || {
        let (mut used, mut taken) = (tokens(rest.first()?), 1);
        while rest.get(taken).is_some_and(|next| used + tokens(next) <= budget) {
            used += tokens(&rest[taken]);
            taken += 1;
        }
        let group;
        (group, rest) = rest.split_at(taken);
        Some(group)
    })
}

fn check_examples(
    examples: &[Example],
    settings: &TrainSettings,
    vocab_size: usize,
) -> Result<(), TrainError> {
    if examples.is_empty() {
        return Err(TrainError::NoExamples);
    }
    for Example { sequence, origin } in examples {
        let (tokens, origin) = (sequence.ids.len(), || origin.clone());
        if sequence.trained.len() != tokens {
            return Err(TrainError::Uneven { origin: origin(), ids: tokens, marks: sequence.trained.len() });
        }
        if tokens > settings.max_length {
            return Err(TrainError::TooLong { origin: origin(), tokens, max_length: settings.max_length });
        }
        if sequence.trained_tokens() == 0 {
            return Err(TrainError::NoTrainedToken { origin: origin(), tokens });
        }
        if let Some(&id) = sequence.ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(TrainError::UnknownToken { origin: origin(), id, vocab_size });
        }
    }
    Ok(())
}
