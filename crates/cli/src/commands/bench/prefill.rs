//! `danlu bench prefill`: measures how fast the code of `danlu chat` processes a prompt.

use std::time::Instant;

use clap::Args;
use danlu_generate::{Engine, Sampler, SamplingOptions, Sequence, StopRules};

use super::machine::{MachineArgs, describe_memory};
use super::model::ModelArgs;
use super::output::{BenchOutput, rate};
use super::{RunArgs, flops, random_ids};
use crate::args::compute::check_context;
use crate::diagnostic::Result;
use crate::memory::{self, MemoryWatch};
use crate::printer::Printer;

/// The flags of `danlu bench prefill`.
#[derive(Args, Clone, Debug)]
pub struct PrefillArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Random tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = super::tokens, help_heading = "Job")]
    prompt_tokens: usize,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Processes prompts, and reports the speed.
///
/// # Errors
/// If a flag or the model is invalid.
pub fn run(args: &PrefillArgs, printer: &Printer) -> Result<()> {
    let model = args.model.model(printer)?;
    let (config, machine, prompt) = (model.config()?, args.machine.machine()?, args.prompt_tokens);
    check_context(prompt, config.max_position_embeddings, "`--prompt-tokens`")?;
    let mut figures = BenchOutput::new("prefill", args.run.json, printer);
    let weights = machine.weights(&model, &config, printer)?;
    model.describe(&config, (&weights, machine.quantization), &mut figures, printer);
    machine.describe(&mut figures, printer);
    figures.row(
        ("任务", "job"),
        &printer.pick(format!("{prompt} 个随机词元的提示"), format!("a prompt of {prompt} random tokens")),
    );
    figures.set("prompt_tokens", prompt);

    let watch = MemoryWatch::start();
    let decoder = machine.decoder(&config, &weights)?;
    let mut engine = Engine::new(&*decoder);
    let slot = engine.open(prompt, None);
    let rules = StopRules { max_new_tokens: 1, max_context_tokens: prompt, stop_ids: Default::default() };
    let runs = args.run.runs(5, 1);
    let times = runs.measure(printer, |i| {
        machine.profile_run(i, runs.warm_up);
        // Each run has a new prompt, so that no part of the prompt is cached.
        let mut ids = random_ids(prompt, config.vocab_size, i);
        ids[0] = (i % config.vocab_size as u64) as u32;
        let sequence = Sequence::new(ids, Sampler::new(SamplingOptions::greedy())?, rules.clone())?;
        let start = Instant::now();
        engine.start(slot, sequence)?;
        while !engine.is_idle() {
            engine.step()?;
        }
        Ok(start.elapsed().as_secs_f64())
    })?;
    machine.pause_profile();
    let (peak, anonymous) = (memory::peak(), watch.finish());

    let time: f64 = times.iter().sum();
    let per_second = (times.len() * prompt) as f64 / time;
    figures.result(("词元/秒", "tokens/s"), &rate(per_second));
    figures.measured("tokens_per_second", per_second);
    // The count assumes one pass, which computes logits only for the last token. A long prompt takes several
    // passes and computes a few more rows, which are less than a thousandth of the work.
    let flops = flops::forward(&config, &[flops::Span::whole(prompt)], 1);
    machine.compare_flops(flops * times.len() as f64 / time, &mut figures, printer);
    let (n, w) = (times.len(), runs.warm_up);
    let say = |m: &str, s: &str| {
        printer.pick(
            format!("中位 {m}，最慢 {s}（{n} 次，此前预热 {w} 次）"),
            format!("{m} median, {s} slowest of {n}, after {w} warm-up"),
        )
    };
    figures.times(("一段提示", "a prompt"), "prompt", &times, (n, w), say);
    describe_memory(peak, anonymous, &mut figures, printer);
    machine.describe_profile(n, &mut figures, printer);
    figures.finish();
    Ok(())
}
