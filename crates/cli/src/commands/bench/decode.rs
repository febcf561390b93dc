//! `danlu bench decode`: decodes one or several sequences.

use std::time::Instant;

use clap::Args;
use danlu_model::{Decoder, ModelConfig, SlotId, SlotInput, Workspace};

use super::flops::{self, Span};
use super::machine::{MachineArgs, describe_memory};
use super::model::ModelArgs;
use super::output::{BenchOutput, rate};
use super::{RunArgs, random_ids};
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
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// The decoded sequences.
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
    // The bandwidth measurement above used memory.
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

    // An untied embedding is read one row per token.
    let table = if config.tie_word_embeddings { 0 } else { table_bytes(&weights) };
    let watch = MemoryWatch::start();
    let decoder = machine.decoder(&config, &weights)?;
    let mut work = Workspace::new();
    let runs = args.run.runs(3, 1);
    let times = runs.measure(printer, |i| decode(&decoder, &mut work, job, i))?;
    let (peak, anonymous) = (memory::peak(), watch.finish());

    let times: Vec<f64> = times.concat();
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
    figures.finish();
    Ok(())
}

/// Reads prompts and continues them. Returns the seconds of each new token.
fn decode(decoder: &Decoder, work: &mut Workspace, job: Job, run: u64) -> Result<Vec<f64>> {
    let Job { sequences, prompt, new } = job;
    let vocab_size = decoder.config().vocab_size;
    let mut cache = decoder.new_cache();
    cache.reserve(sequences * (prompt + new));
    let slots: Vec<SlotId> = (0..sequences).map(|_| cache.add(prompt + new)).collect();
    let which = |s: usize| run * sequences as u64 + s as u64;
    let prompts: Vec<_> = (0..sequences).map(|s| random_ids(prompt, vocab_size, which(s))).collect();
    let inputs: Vec<_> =
        slots.iter().zip(&prompts).map(|(&slot, ids)| SlotInput::new(slot, ids, None)).collect();
    let mut logits = decoder.prefill(work, &mut cache, &inputs)?;
    let mut times = Vec::with_capacity(new);
    for _ in 0..new {
        let start = Instant::now();
        let next: Vec<u32> = logits.chunks(vocab_size).map(likeliest).collect();
        let ids = next.chunks(1);
        let inputs: Vec<_> =
            slots.iter().zip(ids).map(|(&slot, ids)| SlotInput::new(slot, ids, None)).collect();
        logits = decoder.decode(work, &mut cache, &inputs)?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(times)
}

/// The token with the highest logit.
fn likeliest(logits: &[f32]) -> u32 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == highest).unwrap_or(0) as u32
}

/// Returns the bytes that one run reads for its new tokens.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_token_is_the_first_of_the_highest() {
        assert_eq!(likeliest(&[0.0, 3.0, -1.0, 3.0]), 1);
        assert_eq!(likeliest(&[f32::NAN, 1.0]), 1);
        assert_eq!(likeliest(&[f32::NAN]), 0);
    }
}
