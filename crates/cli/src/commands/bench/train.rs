//! `danlu bench train`: times training steps.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use danlu_adapter::{Adapter, targets};
use danlu_kernels::BackendOptions;
use danlu_kernels::cuda::CudaOptions;
use danlu_model::{LabeledSequence, ModelConfig, Tokenizer};
use danlu_train::{
    Example, PlanInput, RecordSize, ReplySize, StepMetrics, SuggestedLimits, TrainSettings, Trainer,
};

use super::batch_shape::BatchShape;
use super::flops::Span;
use super::machine::{Machine, MachineArgs, describe_memory};
use super::model::{BenchModel, ModelArgs};
use super::output::{BenchOutput, rate};
use super::{RunArgs, flops, random_ids};
use crate::args::AdapterArgs;
use crate::args::adapter::memory_limit;
use crate::args::compute::check_context;
use crate::commands::train::GpuMemory;
use crate::commands::train::forecast::{self, Forecast};
use crate::commands::train::prepare::prepare;
use crate::diagnostic::{Diagnostic, Result};
use crate::memory::{self, MemoryWatch};
use crate::model_loader::ModelLoader;
use crate::printer::Printer;
use crate::terminal_text;

/// The flags of `danlu bench train`.
#[derive(Args, Clone, Debug)]
pub struct TrainBenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Random tokens, all trained: sequences per micro-batch x tokens per sequence [default: 2x512]
    #[arg(long, value_name = "BxL", value_parser = BatchShape::from_str, conflicts_with = "data", help_heading = "Job")]
    batch: Option<BatchShape>,
    /// Training data instead, in any form that `danlu train` reads
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Job")]
    data: Vec<PathBuf>,
    /// Folder of the tokenizer for --data [default: the base's]
    #[arg(long, value_name = "DIR", requires = "data", help_heading = "Job")]
    tokenizer: Option<PathBuf>,
    /// Longest record of --data in tokens [default: 384]
    #[arg(long, value_name = "TOKENS", requires = "data", help_heading = "Job")]
    max_length: Option<usize>,
    /// Skip bad records of --data
    #[arg(long, requires = "data", help_heading = "Job")]
    skip_bad: bool,
    /// Records of --data per micro-batch [default: 2]
    #[arg(long, value_name = "N", requires = "data", help_heading = "Job")]
    per_device_train_batch_size: Option<usize>,
    /// Micro-batches per step [default: 1, or 2 with --data]
    #[arg(long, value_name = "N", help_heading = "Job")]
    gradient_accumulation_steps: Option<usize>,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Memory limit, such as 8GiB; layers recompute activations to stay below it
    #[arg(long, value_name = "SIZE", value_parser = memory_limit, help_heading = "Machine")]
    memory_limit: Option<u64>,
    #[command(flatten)]
    run: RunArgs,
}

/// Maximum number of random tokens in a step.
const MAX_TOKENS: usize = 1 << 24;

/// The examples and the settings of the measured steps.
struct Job {
    examples: Examples,
    settings: TrainSettings,
    /// A description of the examples in both languages.
    words: (String, String),
}

enum Examples {
    OfData(Vec<Example>),
    /// Lengths of random examples. Their tokens are generated after the memory check.
    Random(Vec<RecordSize<'static>>),
}

/// A measured step.
struct Step {
    report: StepMetrics,
    flops: f64,
}

/// Runs steps, and reports their speed.
///
/// # Errors
/// If a flag, the model or the data is invalid.
pub fn run(args: &TrainBenchArgs, printer: &Printer) -> Result<()> {
    let model = args.model.model(printer)?;
    let config = model.config()?;
    let machine = args.machine.machine()?;
    let runs = args.run.runs(10, 2);
    let mut settings = TrainSettings {
        max_steps: Some(runs.warm_up + runs.steps),
        dtype: machine.precision,
        ..TrainSettings::default()
    };
    args.adapter.apply(&mut settings);
    let lora = settings.lora_config(&model.name());
    targets::resolve(&lora, &config)?;
    args.machine.quant.apply(&mut settings);
    let job = job(args, &model, &config, settings, printer)?;
    let forecast = forecast(args, &model, &config, &machine, &job)?;

    let mut figures = BenchOutput::new("train", args.run.json, printer);
    let weights = machine.weights(&model, &config, printer)?;
    model.describe(&config, (&weights, machine.quantization), &mut figures, printer);
    machine.describe(&mut figures, printer);
    let adapter = Adapter::init(lora, &config, job.settings.seed, &*machine.backend)?;
    describe_job(&job, &adapter, &mut figures, printer);
    describe_forecast(&forecast, &mut figures, printer);

    let watch = MemoryWatch::start();
    let decoder = machine.decoder(&config, &weights)?;
    let examples = match job.examples {
        Examples::OfData(examples) => examples,
        Examples::Random(records) => random_examples(&records, config.vocab_size),
    };
    let mut trainer = Trainer::new(decoder, adapter, examples, job.settings, String::new())?;
    forecast.reserve(&mut trainer);
    let steps = runs.measure(printer, |i| {
        machine.profile_run(i, runs.warm_up);
        let batches = trainer.micro_batches(i + 1);
        let segments = batches.iter().flat_map(|batch| &batch.segments);
        let spans: Vec<Span> = segments.map(|s| Span { new: s.q_len, all: s.kv_len }).collect();
        let labels = batches.iter().map(|batch| batch.trained_tokens()).sum();
        let flops = flops::training(&config, trainer.adapter(), &spans, labels);
        Ok(Step { report: trainer.step()?, flops })
    })?;
    machine.pause_profile();
    // The memory is read before the machine's peak speed is measured, because that measurement uses memory
    // too.
    let (peak, anonymous) = (memory::peak(), watch.finish());

    describe_steps(&steps, runs.warm_up, &machine, &mut figures, printer);
    describe_memory(peak, anonymous, &mut figures, printer);
    machine.describe_profile(steps.len(), &mut figures, printer);
    figures.finish();
    Ok(())
}

/// Reports the speed of the measured steps.
fn describe_steps(
    steps: &[Step],
    warm_up: u64,
    machine: &Machine,
    figures: &mut BenchOutput<'_>,
    printer: &Printer,
) {
    let total = |of: fn(&Step) -> f64| steps.iter().map(of).sum::<f64>();
    let time = total(|s| s.report.seconds);
    let tokens = total(|s| s.report.tokens as f64);
    let labelled = total(|s| s.report.trained_tokens as f64);
    let (useful, with_loss) = (rate(tokens / time), rate(labelled / time));
    figures.result(
        ("词元/秒", "tokens/s"),
        &printer.pick(
            format!("{useful} 有用（没有填充），其中计损失 {with_loss}"),
            format!("{useful} useful (no padding), {with_loss} of them trained"),
        ),
    );
    figures.measured("useful_tokens_per_second", tokens / time);
    figures.measured("labelled_tokens_per_second", labelled / time);
    machine.compare_flops(total(|s| s.flops) / time, figures, printer);
    let times: Vec<f64> = steps.iter().map(|s| s.report.seconds).collect();
    let (n, w) = (steps.len(), warm_up);
    let say = |m: &str, s: &str| {
        printer.pick(
            format!("中位 {m}，最慢 {s}（{n} 步，此前预热 {w} 步）"),
            format!("{m} median, {s} slowest of {n}, after {w} warm-up"),
        )
    };
    figures.times(("每步", "a step"), "step", &times, (n, w), say);
    figures.measured("seconds", time);
    figures.set("useful_tokens", tokens as u64);
    figures.set("labelled_tokens", labelled as u64);
    figures.measured("mean_loss", total(|s| s.report.loss) / steps.len() as f64);
}

/// Returns the examples that the flags select, and settings whose steps use all of these examples.
fn job(
    args: &TrainBenchArgs,
    model: &BenchModel,
    config: &ModelConfig,
    mut settings: TrainSettings,
    printer: &Printer,
) -> Result<Job> {
    let with_data = !args.data.is_empty();
    settings.gradient_accumulation_steps =
        args.gradient_accumulation_steps.unwrap_or(if with_data { 2 } else { 1 });
    if with_data {
        return data_job(args, model, config, settings, printer);
    }
    let BatchShape { sequences, tokens } = args.batch.unwrap_or_default();
    check_context(tokens, config.max_position_embeddings, "`--batch`")?;
    settings.per_device_train_batch_size = sequences;
    settings.max_length = tokens;
    settings.validate()?;
    let accumulation = settings.gradient_accumulation_steps;
    let all = sequences.checked_mul(accumulation).filter(|all| all.saturating_mul(tokens) <= MAX_TOKENS);
    let Some(all) = all else {
        let (sequences, most) =
            (terminal_text::thousands(sequences as u64), terminal_text::thousands(MAX_TOKENS as u64));
        let text = format!(
            "a step of {accumulation} x {sequences} sequences of {tokens} tokens has more than {most} tokens"
        );
        return Err(Diagnostic::input(text).with_hint("lower `--batch` or `--gradient-accumulation-steps`"));
    };
    // One epoch is one step. The first token of a sequence has no loss.
    let random = vec![RecordSize { tokens, trained: tokens - 1, prefix: &[] }; all];
    let words = (
        format!("{sequences} × {tokens} 个随机词元，全部计损失"),
        format!("{sequences} × {tokens} random tokens, all trained"),
    );
    Ok(Job { examples: Examples::Random(random), settings, words })
}

/// Returns sequences of random tokens, all trained.
fn random_examples(records: &[RecordSize<'_>], vocab_size: usize) -> Vec<Example> {
    let example = |(i, record): (usize, &RecordSize<'_>)| Example {
        sequence: LabeledSequence {
            ids: random_ids(record.tokens, vocab_size, i as u64),
            trained: vec![true; record.tokens],
        },
        origin: format!("random sequence {i}"),
    };
    records.iter().enumerate().map(example).collect()
}

fn data_job(
    args: &TrainBenchArgs,
    model: &BenchModel,
    config: &ModelConfig,
    mut settings: TrainSettings,
    printer: &Printer,
) -> Result<Job> {
    let folder = match (&args.tokenizer, model) {
        (Some(folder), _) => folder,
        (None, BenchModel::Folder(base)) => base,
        (None, BenchModel::Shape(..)) => {
            return Err(Diagnostic::input("`--shape` has no tokenizer, and `--data` needs one")
                .with_hint("name its folder with `--tokenizer DIR`"));
        }
    };
    let tokenizer = Tokenizer::read(folder)?;
    tokenizer.limit_ids(config);
    settings.max_length = args.max_length.unwrap_or(settings.max_length);
    settings.per_device_train_batch_size =
        args.per_device_train_batch_size.unwrap_or(settings.per_device_train_batch_size);
    check_context(settings.max_length, config.max_position_embeddings, "`--max-length`")?;
    settings.validate()?;
    let loader = ModelLoader::new(printer);
    let files = args.data.iter().map(|path| loader.data_path(path)).collect::<Result<Vec<_>>>()?;
    let data = prepare(
        &files,
        &danlu_data::ReadOptions::default(),
        args.skip_bad,
        &tokenizer,
        &settings,
        Some(0.0),
        printer,
    )?;
    if !data.bad.is_empty() {
        let n = data.bad.len();
        printer.warn(&printer.pick(
            format!("{n} 条坏记录被跳过"),
            format!("{} left out", terminal_text::counted(n as u64, "bad record")),
        ));
    }
    let files: Vec<_> = data.summary.files.iter().map(|f| f.name.as_str()).collect();
    let (files, records) = (files.join(", "), terminal_text::thousands(data.summary.training_records));
    let (batch, max) = (settings.per_device_train_batch_size, settings.max_length);
    let words = (
        format!("{files} · {records} 条，每微批 {batch} 条，最长 {max} 词元"),
        format!("{files} · {records} records, {batch} per micro-batch, at most {max} tokens each"),
    );
    Ok(Job { examples: Examples::OfData(data.examples), settings, words })
}

/// Predicts the memory of the steps, as `danlu train` does before it loads weights.
fn forecast(
    args: &TrainBenchArgs,
    model: &BenchModel,
    config: &ModelConfig,
    machine: &Machine,
    job: &Job,
) -> Result<Forecast> {
    let quantization = machine.quantization.map(|quantization| (quantization, machine.threads));
    let records = match &job.examples {
        Examples::OfData(examples) => {
            examples.iter().map(|example| RecordSize::for_model(config, false, &example.sequence)).collect()
        }
        Examples::Random(records) => records.clone(),
    };
    let backend = args.machine.compute.backend_options(machine.precision.into())?;
    let input = PlanInput {
        config: config.clone(),
        settings: job.settings.clone(),
        backend,
        records,
        held_out: Vec::new(),
        reply: ReplySize::default(),
        checkpoints: false,
        weights: match backend {
            BackendOptions::Cuda(CudaOptions { dtype, .. }) => {
                model.device_weight_bytes(config, machine.quantization, dtype)?
            }
            BackendOptions::Cpu(_) => model.weight_bytes(config, quantization)?,
        },
        baseline: forecast::present(),
    };
    let flags = |smaller: SuggestedLimits| match &job.examples {
        Examples::Random(_) => {
            let sequences = smaller.batch.unwrap_or(job.settings.per_device_train_batch_size);
            format!("--batch {sequences}x{}", smaller.length.unwrap_or(job.settings.max_length))
        }
        Examples::OfData(_) => smaller.to_string(),
    };
    Forecast::with_input(&input, (args.memory_limit, GpuMemory::Free), &flags)
}

fn describe_forecast(forecast: &Forecast, figures: &mut BenchOutput<'_>, printer: &Printer) {
    let label = if forecast.plan.on_device { ("显存", "GPU memory") } else { ("内存", "memory") };
    figures.row(label, &forecast.peak(printer));
    figures.row(("各层", "layers"), &forecast::layers(&forecast.plan, printer));
    figures.set("memory_limit_bytes", forecast.limit);
    figures.set("foreseen_memory_bytes", forecast.plan.total);
    figures.set("layers_recomputed", forecast.plan.layers.recompute);
    figures.set("weights_stay_in_memory", !forecast.weights_evictable);
    forecast.warn(printer);
}

fn describe_job(job: &Job, adapter: &Adapter, figures: &mut BenchOutput<'_>, printer: &Printer) {
    let s = &job.settings;
    let n = s.gradient_accumulation_steps;
    figures.row(
        ("任务", "job"),
        &printer.pick(
            format!("{}，每步 {n} 个微批", job.words.0),
            format!("{}; {n} micro-batch{} per step", job.words.1, if n == 1 { "" } else { "es" }),
        ),
    );
    let (r, alpha, dropout) = (s.lora_r, s.lora_alpha, s.lora_dropout);
    let count = terminal_text::thousands(adapter.num_parameters() as u64);
    figures.row(
        ("适配器", "adapter"),
        &printer.pick(
            format!("r {r}，alpha {alpha}，dropout {dropout}，{count} 个参数"),
            format!("r {r}, alpha {alpha}, dropout {dropout}, {count} parameters"),
        ),
    );
    figures.set("random_tokens", matches!(job.examples, Examples::Random(_)));
    figures.set("batch_sequences", s.per_device_train_batch_size);
    figures.set("longest_sequence_tokens", s.max_length);
    figures.set("gradient_accumulation_steps", n);
    figures.set("lora_r", r);
    figures.set("lora_alpha", alpha);
    figures.set("lora_dropout", dropout);
    figures.set("trainable_parameters", adapter.num_parameters());
}
