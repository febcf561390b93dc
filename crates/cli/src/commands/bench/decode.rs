//! `danlu bench decode`: measures how fast one or several sequences are decoded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use clap::Args;
use danlu_adapter::{Adapter, LoraConfig, TargetModules};
use danlu_generate::{Sampler, SamplingOptions};
use danlu_kernels::{Backend, DType, bf16_to_f32, f32_to_bf16};
use danlu_model::{Decoder, LoraSource, ModelConfig, PackedAdapter, SlotId, SlotInput, Workspace};

use super::flops::{self, Span};
use super::machine::{Machine, MachineArgs, describe_memory};
use super::model::ModelArgs;
use super::output::{BenchOutput, rate};
use super::{RunArgs, Runs, median, random_ids};
use crate::args::compute::check_context;
use crate::diagnostic::Result;
use crate::memory::{self, MemoryWatch};
use crate::printer::Printer;

/// The flags of `danlu bench decode`.
#[derive(Args, Clone, Debug)]
pub struct DecodeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Random tokens of each prompt; reading them is not measured
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = super::tokens, help_heading = "Job")]
    prompt_tokens: usize,
    /// New tokens of each sequence, by greedy decoding
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = super::tokens, help_heading = "Job")]
    new_tokens: usize,
    /// Number of sequences decoded at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Job")]
    sequences: u16,
    /// Also measure with N random adapters, which the sequences use in turn; these runs alternate with runs
    /// of the base alone
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024), help_heading = "Job")]
    adapters: u16,
    /// Rank of the adapters; a list such as 8,16,64 gives them different ranks
    #[arg(long, value_name = "R", default_value = "8", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Job")]
    lora_r: Vec<u16>,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Numbers of sequences, prompt tokens and new tokens.
#[derive(Clone, Copy)]
struct Job {
    sequences: usize,
    prompt: usize,
    new: usize,
}

/// Decodes, and reports the speed.
///
/// # Errors
/// If a flag or the model is invalid.
pub fn run(args: &DecodeArgs, printer: &Printer) -> Result<()> {
    let model = args.model.model(printer)?;
    let (config, machine) = (model.config()?, args.machine.machine()?);
    let job = Job { sequences: args.sequences.into(), prompt: args.prompt_tokens, new: args.new_tokens };
    let flags = "`--prompt-tokens` and `--new-tokens`";
    check_context(job.prompt + job.new, config.max_position_embeddings, flags)?;
    let before = machine.read_bandwidth(printer);
    // The bandwidth measurement above used memory, which must not count in the peak.
    memory::forget_peak();
    let mut figures = BenchOutput::new("decode", args.run.json, printer);
    let weights = machine.weights(&model, &config, printer)?;
    let weight_bytes = model.describe(&config, (&weights, machine.quantization), &mut figures, printer);
    machine.describe(&mut figures, printer);
    let Job { sequences, prompt, new } = job;
    figures.row(
        ("任务", "job"),
        &printer.pick(
            format!("{sequences} 个序列同时续写 {new} 个词元，提示 {prompt} 个"),
            match sequences {
                1 => format!("{new} tokens after a prompt of {prompt}"),
                n => format!("{new} tokens for each of {n} sequences at once, after prompts of {prompt}"),
            },
        ),
    );
    figures.set("sequences", sequences);
    figures.set("prompt_tokens", prompt);
    figures.set("new_tokens", new);

    // Without tied embeddings, decoding reads only one row of the embedding table per token, so the rest of
    // the table does not count as read.
    let table = if config.tie_word_embeddings { 0 } else { table_bytes(&weights) };
    let watch = MemoryWatch::start();
    let decoder = machine.decoder(&config, &weights)?;
    let mut work = Workspace::new();
    let runs = args.run.runs(3, 1);
    let adapters = args.adapters(&decoder, machine.precision.into())?;
    let (times, ratio) = measure((&machine, &decoder), &mut work, job, (runs, &adapters), printer)?;
    let (peak, anonymous) = (memory::peak(), watch.finish());

    let time: f64 = times.iter().sum();
    let per_second = (times.len() * sequences) as f64 / time;
    let text = match sequences {
        1 => rate(per_second),
        n => {
            let (all, each) = (rate(per_second), rate(per_second / n as f64));
            printer.pick(format!("{all}（每个序列 {each}）"), format!("{all}, {each} per sequence"))
        }
    };
    figures.result(("词元/秒", "tokens/s"), &text);
    figures.measured("tokens_per_second", per_second);
    figures.measured("tokens_per_second_per_sequence", per_second / sequences as f64);
    args.describe_adapters(ratio, &adapters, &mut figures, printer);
    let bytes = bytes_of_run(&config, weight_bytes - table, job) * times.len() as f64 / new as f64;
    let bandwidth = before.max(machine.read_bandwidth(printer));
    machine.compare_bytes(bytes / time, bandwidth, &mut figures, printer);
    let (n, w) = (times.len() / new, runs.warm_up);
    let say = |m: &str, s: &str| {
        printer.pick(
            format!("中位 {m}，最慢 {s}（{n} 遍，此前预热 {w} 遍）"),
            format!(
                "{m} median, {s} slowest, in {n} run{}, after {w} warm-up",
                if n == 1 { "" } else { "s" }
            ),
        )
    };
    figures.times(("一个词元", "a token"), "token", &times, (n, w), say);
    describe_memory(peak, anonymous, &mut figures, printer);
    machine.describe_profile(times.len(), &mut figures, printer);
    figures.finish();
    Ok(())
}

/// Decodes alternately with the base alone and with adapters. Returns the seconds of each token with the base
/// alone, and the ratio of the two rates (adapters / base, as the median over the runs). With adapters, the
/// profile contains only their runs.
fn measure(
    (machine, decoder): (&Machine, &Decoder),
    work: &mut Workspace,
    job: Job,
    (runs, adapters): (Runs, &[PackedAdapter]),
    printer: &Printer,
) -> Result<(Vec<f64>, f64)> {
    let seconds = |times: &[f64]| times.iter().sum::<f64>();
    let runs = runs.measure(printer, |i| {
        let mut run = |of: &[PackedAdapter]| {
            let profile = |on| match on && of.len() == adapters.len() {
                true => machine.profile_run(i, runs.warm_up),
                false => machine.pause_profile(),
            };
            decode(decoder, work, (job, of), i, &profile)
        };
        if adapters.is_empty() {
            return Ok((run(&[])?, f64::NAN));
        }
        // The order alternates, so that neither side has an advantage if the machine slows down.
        let (base, adapted) = match i % 2 {
            0 => (run(&[])?, run(adapters)?),
            _ => {
                let adapted = run(adapters)?;
                (run(&[])?, adapted)
            }
        };
        let ratio = seconds(&base) / seconds(&adapted);
        Ok((base, ratio))
    })?;
    let (times, ratios): (Vec<Vec<f64>>, Vec<f64>) = runs.into_iter().unzip();
    Ok((times.concat(), median(ratios)))
}

impl DecodeArgs {
    /// Returns adapters with random values for every projection, packed as a server packs them. The values
    /// have the type of the matrix multiplications.
    fn adapters(&self, decoder: &Decoder, dtype: DType) -> Result<Vec<PackedAdapter>> {
        let (config, backend) = (decoder.config(), &**decoder.backend());
        let adapter = |i: u16| {
            let rank = self.lora_r[usize::from(i) % self.lora_r.len()];
            let lora = LoraConfig {
                target_modules: TargetModules::AllLinear,
                ..LoraConfig::new(rank.into(), rank.into())
            };
            let mut adapter = Adapter::init(lora, config, i.into(), backend)?;
            if dtype == DType::Bf16 {
                let mut values = adapter.to_vec(backend).map_err(danlu_model::ModelError::from)?;
                values.iter_mut().for_each(|value| *value = bf16_to_f32(f32_to_bf16(*value)));
                backend.write(&mut adapter.params, 0, &values);
            }
            Ok(PackedAdapter::new(Arc::new(adapter), config, backend))
        };
        (0..self.adapters).map(adapter).collect()
    }

    /// Reports the rate with adapters, if there are any.
    fn describe_adapters(
        &self,
        ratio: f64,
        adapters: &[PackedAdapter],
        figures: &mut BenchOutput<'_>,
        printer: &Printer,
    ) {
        if adapters.is_empty() {
            return;
        }
        let ranks: Vec<String> = self.lora_r.iter().map(u16::to_string).collect();
        let (count, ranks) = (adapters.len(), ranks.join(", "));
        let text = printer.pick(
            format!("{count} 个，秩 {ranks}：是只用基座的 {ratio:.3} 倍"),
            format!("{count} of rank {ranks}: {ratio:.3} x the rate of the base alone"),
        );
        figures.result(("适配器", "adapters"), &text);
        figures.set("adapters", count);
        figures.set("lora_r", self.lora_r.clone());
        figures.set("adapter_bytes", adapters.iter().map(PackedAdapter::packed_bytes).sum::<u64>());
        figures.measured("adapter_rate", ratio);
    }
}

/// Processes the prompts and decodes new tokens. The sequences use the adapters in turn. Returns the seconds
/// of each new token. Calls `profile` at the beginning and at the end of the measured tokens.
fn decode(
    decoder: &Decoder,
    work: &mut Workspace,
    (job, adapters): (Job, &[PackedAdapter]),
    run: u64,
    profile: &dyn Fn(bool),
) -> Result<Vec<f64>> {
    let Job { sequences, prompt, new } = job;
    let vocab_size = decoder.config().vocab_size;
    let mut cache = decoder.new_cache();
    cache.reserve(sequences * (prompt + new));
    let slots: Vec<SlotId> = (0..sequences).map(|_| cache.add(prompt + new)).collect();
    let which = |s: usize| run * sequences as u64 + s as u64;
    let prompts: Vec<_> = (0..sequences).map(|s| random_ids(prompt, vocab_size, which(s))).collect();
    let lora = |s: usize| adapters.get(s % adapters.len().max(1)).map(|adapter| adapter as &dyn LoraSource);
    let prompts = prompts.iter().enumerate();
    let inputs: Vec<_> = prompts.map(|(s, ids)| SlotInput::new(slots[s], ids, lora(s))).collect();
    let mut logits = decoder.prefill(work, &mut cache, &inputs)?;
    let mut times = Vec::with_capacity(new);
    let samplers = (0..sequences).map(|_| Ok(Mutex::new(Sampler::new(SamplingOptions::greedy())?)));
    let samplers = samplers.collect::<Result<Vec<_>>>()?;
    profile(true);
    for _ in 0..new {
        let start = Instant::now();
        let next = choose(&samplers, &logits, &**decoder.backend());
        work.recycle_logits(logits);
        let ids = next.chunks(1).enumerate();
        let inputs: Vec<_> = ids.map(|(s, ids)| SlotInput::new(slots[s], ids, lora(s))).collect();
        logits = decoder.decode(work, &mut cache, &inputs)?;
        times.push(start.elapsed().as_secs_f64());
    }
    profile(false);
    Ok(times)
}

/// Chooses the next token of each sequence. The threads of the back end share the choices, as in a server.
fn choose(samplers: &[Mutex<Sampler>], logits: &[f32], backend: &dyn Backend) -> Vec<u32> {
    let rows = logits.chunks(logits.len() / samplers.len());
    let rows: Vec<_> = rows.map(|row| Mutex::new((row, 0))).collect();
    backend.run_host_tasks(rows.len(), &|task| {
        // Only one thread runs a task, so no lock is taken twice.
        let mut row = rows[task].lock().unwrap_or_else(PoisonError::into_inner);
        let mut sampler = samplers[task].lock().unwrap_or_else(PoisonError::into_inner);
        // Random weights give finite logits, so there is always a largest one.
        row.1 = sampler.next(row.0, &[]).unwrap_or_default();
    });
    rows.into_iter().map(|row| row.into_inner().unwrap_or_else(PoisonError::into_inner).1).collect()
}

/// Returns the number of bytes that one run reads to decode its new tokens.
fn bytes_of_run(config: &ModelConfig, weights: u64, job: Job) -> f64 {
    let token = |held: usize| {
        let spans = vec![Span { new: 1, all: held + 1 }; job.sequences];
        flops::decode_bytes(config, weights, &spans)
    };
    (job.prompt..job.prompt + job.new).map(token).sum()
}

fn table_bytes(weights: &danlu_model::Weights) -> u64 {
    weights.info("model.embed_tokens.weight").map_or(0, |info| info.range.len() as u64)
}
