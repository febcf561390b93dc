//! Predicts the time of a run from a short measurement on this machine.
//!
//! The measurement trains one layer, which has the sizes of the base and random weights. The time is the FLOP
//! of the run, divided by the measured FLOP per second.

use std::sync::Arc;

use danlu_adapter::Adapter;
use danlu_kernels::{BackendOptions, Reference};
use danlu_model::{Decoder, LabeledSequence, LoraSource, ModelConfig, Preset, RandomWeights};
use danlu_train::{Example, MemoryPlan, TrainSettings, Trainer, memory};
use serde_json::json;

use super::forecast::Subject;
use super::prepare::Prepared;
use crate::commands::bench::flops::{self, Span};
use crate::commands::bench::random_ids;
use crate::diagnostic::Result;
use crate::interrupt;
use crate::printer::Printer;
use crate::terminal_text;

/// Vocabulary size of the measured model. It may differ from the base's, because only the FLOP per second is
/// used.
const SAMPLE_VOCAB: usize = 4096;

/// Maximum number of tokens in a measured step.
const MAX_SAMPLE_TOKENS: usize = 1024;

/// Time after which the measurement ends, in seconds.
const SAMPLE_SECONDS: f64 = 0.4;

/// Number of steps after which the measurement ends if [`SAMPLE_SECONDS`] are not over.
const MAX_SAMPLE_STEPS: u64 = 20;

/// If a layer recomputes its activations, its FLOP grow by this share. The layer repeats the forward pass,
/// which takes `2 P` of the `4 P` FLOP per token for `P` weights.
const RECOMPUTED_SHARE: f64 = 0.5;

/// Seed of the random weights and tokens.
const SEED: u64 = 1;

/// The predicted time of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeForecast {
    /// Number of optimizer steps, if the data or `--max-steps` determines this number.
    pub steps: Option<u64>,
    pub seconds_per_step: f64,
    /// FLOP per second of the measured layer.
    pub flops_per_second: f64,
}

/// The records and steps of an epoch.
#[derive(Clone, Debug, PartialEq)]
struct Epoch {
    /// The length and the number of trained tokens of each record.
    records: Vec<(usize, usize)>,
    steps: u64,
    /// Number of optimizer steps in the run, if it is known.
    run: Option<u64>,
}

impl Epoch {
    /// Returns an epoch over the records of `data`. Without data, returns one step of records with the
    /// longest allowed length.
    fn new(settings: &TrainSettings, data: Option<&Prepared>) -> Self {
        let (batch, accumulation) =
            (settings.per_device_train_batch_size, settings.gradient_accumulation_steps);
        let Some(data) = data else {
            let longest = settings.max_length;
            let records = vec![(longest, longest.saturating_sub(1)); batch * accumulation];
            return Self { records, steps: 1, run: settings.max_steps };
        };
        let trained = |example: &Example| example.sequence.trained.iter().filter(|&&it| it).count();
        let records: Vec<(usize, usize)> =
            data.examples.iter().map(|example| (example.sequence.ids.len(), trained(example))).collect();
        let tokens: usize = records.iter().map(|record| record.0).sum();
        let rows = if settings.packing { tokens.div_ceil(settings.max_length) } else { records.len() };
        let micro_batches = rows.div_ceil(batch);
        let steps = micro_batches.div_ceil(accumulation).max(1) as u64;
        Self { records, steps, run: Some(settings.total_steps(micro_batches)) }
    }

    fn spans(&self) -> (Vec<Span>, usize) {
        let spans = self.records.iter().map(|&(tokens, _)| Span::whole(tokens)).collect();
        (spans, self.records.iter().map(|record| record.1).sum())
    }

    /// Returns the examples of a measured step: as many as in a step of the run, each with the mean length,
    /// but together at most [`MAX_SAMPLE_TOKENS`] tokens.
    fn sample(&self, settings: &TrainSettings) -> Vec<Example> {
        let (count, tokens) = (self.records.len().max(1), self.records.iter().map(|it| it.0).sum::<usize>());
        let mean = if settings.packing { settings.max_length } else { tokens.div_ceil(count) };
        let len = mean.clamp(2, MAX_SAMPLE_TOKENS);
        let wanted = settings.per_device_train_batch_size * settings.gradient_accumulation_steps;
        let trained = self.records.iter().map(|it| it.1).sum::<usize>() * len / tokens.max(1);
        let example = |i: usize| Example {
            sequence: LabeledSequence {
                ids: random_ids(len, SAMPLE_VOCAB, i as u64),
                trained: (0..len).map(|at| at + trained.clamp(1, len - 1) >= len).collect(),
            },
            origin: format!("random sequence {i}"),
        };
        (0..wanted.min(MAX_SAMPLE_TOKENS / len).max(1)).map(example).collect()
    }
}

impl TimeForecast {
    /// Measures one layer, and predicts the time of the run. Returns `None` on a GPU, or if the memory has no
    /// room for the layer.
    ///
    /// # Errors
    /// If a setting is invalid, or Ctrl-C stops the measurement.
    pub fn measure(
        subject: &Subject<'_>,
        data: Option<&Prepared>,
        plan: &MemoryPlan,
        printer: &Printer,
    ) -> Result<Option<Self>> {
        let Subject { config, settings, limits, .. } = *subject;
        let backend_options = limits.compute.backend_options(settings.dtype.into())?;
        let sample = sample_config(config);
        // The layer needs memory for its bf16 weights, and for copies of them in the order of the matrix
        // multiplication.
        let needed = 3 * 2 * sample.num_parameters();
        let free = memory::available().into_iter().chain(memory::address_space()).min();
        if matches!(backend_options, BackendOptions::Cuda(_)) || free.is_some_and(|free| free < needed) {
            return Ok(None);
        }
        let epoch = Epoch::new(settings, data);
        let flops_per_second = measure_layer(subject, &sample, epoch.sample(settings), printer)?;
        printer.clear_live();
        let adapter = Adapter::init(settings.lora_config(""), config, SEED, &Reference::new())?;
        let (spans, labels) = epoch.spans();
        let layers = config.num_hidden_layers.max(1) as f64;
        let repeated = 1.0 + RECOMPUTED_SHARE * plan.layers.recompute as f64 / layers;
        let flops = flops::training(config, &adapter, &spans, labels) * repeated;
        let seconds_per_step = flops / flops_per_second / epoch.steps as f64;
        Ok(Some(Self { steps: epoch.run, seconds_per_step, flops_per_second }))
    }

    /// Returns the time of the whole run, if the number of steps is known.
    pub fn seconds(&self) -> Option<f64> {
        self.steps.map(|steps| steps as f64 * self.seconds_per_step)
    }

    /// Formats the predicted time, and the measurement that it is based on.
    pub fn describe(&self, printer: &Printer) -> (String, String) {
        let step = short_time(self.seconds_per_step);
        let speed = self.flops_per_second / 1e9;
        let measured = printer.pick(
            format!("在本机用一层实测 {speed:.0} GFLOP/s"),
            format!("measured with one layer on this machine: {speed:.0} GFLOP/s"),
        );
        match (self.steps, self.seconds()) {
            (Some(steps), Some(seconds)) => {
                let total = terminal_text::duration(seconds);
                let steps = terminal_text::thousands(steps);
                let note = printer.pick(
                    format!("{steps} 步，每步 {step}；{measured}"),
                    format!("{steps} steps of {step}; {measured}"),
                );
                (printer.pick(format!("约 {total}"), format!("about {total}")), note)
            }
            _ => (printer.pick(format!("每步约 {step}"), format!("about {step} a step")), measured),
        }
    }

    /// Returns the values for `--json`.
    pub fn to_json(self) -> serde_json::Value {
        json!({
            "steps": self.steps,
            "seconds": self.seconds(),
            "seconds_per_step": self.seconds_per_step,
            "flop_per_second": self.flops_per_second,
        })
    }
}

/// Formats the time of a step, which may be far below a second.
fn short_time(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s => terminal_text::duration(s),
    }
}

/// Returns the configuration of a model with one layer, which has the sizes of `config`.
fn sample_config(config: &ModelConfig) -> ModelConfig {
    let mut sample = Preset::Base8m.config();
    sample.hidden_size = config.hidden_size;
    sample.intermediate_size = config.intermediate_size;
    sample.num_hidden_layers = 1;
    sample.num_attention_heads = config.num_attention_heads;
    sample.num_key_value_heads = config.num_key_value_heads;
    sample.head_dim = config.head_dim;
    sample.vocab_size = SAMPLE_VOCAB;
    sample.max_position_embeddings = MAX_SAMPLE_TOKENS;
    sample.bos_token_id = Some(0);
    sample.eos_token_id = vec![1];
    sample
}

/// Trains the layer for a short time, and returns its FLOP per second.
fn measure_layer(
    subject: &Subject<'_>,
    sample: &ModelConfig,
    examples: Vec<Example>,
    printer: &Printer,
) -> Result<f64> {
    let Subject { settings, limits, .. } = *subject;
    let backend = limits.compute.backend(settings.dtype.into())?;
    let weights = RandomWeights { config: sample, seed: SEED, threads: limits.compute.threads() };
    let weights = weights.in_memory(None, &mut |progress| {
        let (done, total) = (terminal_text::bytes(progress.bytes), terminal_text::bytes(progress.total));
        printer.live(&printer.pick(
            format!("测量本机的训练速度：准备随机权重 {done}/{total}"),
            format!("measuring the training speed: random weights {done} of {total}"),
        ));
        interrupt::check()
    })?;
    let show_step = |step: u64| {
        let total = MAX_SAMPLE_STEPS + 1;
        printer.live(&printer.pick(
            format!("测量本机的训练速度：第 {step} 步，最多 {total} 步"),
            format!("measuring the training speed: step {step} of at most {total}"),
        ));
    };
    let decoder = Arc::new(Decoder::new(sample.clone(), &weights, Arc::clone(&backend))?);
    let settings = TrainSettings {
        lora_r: settings.lora_r,
        lora_dropout: settings.lora_dropout,
        dtype: settings.dtype,
        per_device_train_batch_size: examples.len(),
        gradient_accumulation_steps: 1,
        max_length: MAX_SAMPLE_TOKENS,
        max_steps: Some(MAX_SAMPLE_STEPS + 1),
        ..TrainSettings::default()
    };
    let spans: Vec<Span> = examples.iter().map(|it| Span::whole(it.sequence.ids.len())).collect();
    let labels = examples.iter().flat_map(|it| &it.sequence.trained).filter(|&&it| it).count();
    let adapter = Adapter::init(settings.lora_config("sample"), sample, SEED, &*backend)?;
    let flops = flops::training(sample, &adapter as &dyn LoraSource, &spans, labels);
    let mut trainer = Trainer::new(decoder, adapter, examples, settings, String::new())?;
    // The first step also allocates buffers, so it is not measured.
    show_step(1);
    trainer.step()?;
    let (mut steps, mut seconds) = (0, 0.0);
    while steps < MAX_SAMPLE_STEPS && seconds < SAMPLE_SECONDS {
        show_step(steps + 2);
        seconds += trainer.step()?.seconds;
        steps += 1;
    }
    Ok(flops * steps as f64 / seconds.max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> TrainSettings {
        TrainSettings { max_length: 100, max_steps: None, ..TrainSettings::default() }
    }

    #[test]
    fn without_data_a_step_has_records_of_the_longest_length() {
        let epoch = Epoch::new(&settings(), None);
        assert_eq!(epoch, Epoch { records: vec![(100, 99); 4], steps: 1, run: None });
        let sample = epoch.sample(&settings());
        assert_eq!((sample.len(), sample[0].sequence.ids.len()), (4, 100));
        assert!(!sample[0].sequence.trained[0] && sample[0].sequence.trained[1]);
    }

    #[test]
    fn a_measured_step_has_a_bounded_number_of_tokens() {
        let long = TrainSettings { max_length: 50_000, ..settings() };
        let sample = Epoch::new(&long, None).sample(&long);
        assert_eq!((sample.len(), sample[0].sequence.ids.len()), (1, MAX_SAMPLE_TOKENS));
    }

    #[test]
    fn the_time_of_a_run_is_its_steps_times_the_time_of_one() {
        let forecast = TimeForecast { steps: Some(120), seconds_per_step: 0.5, flops_per_second: 1e11 };
        assert_eq!(forecast.seconds(), Some(60.0));
        assert_eq!(TimeForecast { steps: None, ..forecast }.seconds(), None);
    }
}
