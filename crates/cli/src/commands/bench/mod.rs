//! `danlu bench`: measures speed and memory, and compares them with the measured peak of this machine.

mod batch_shape;
mod decode;
pub mod flops;
mod machine;
mod merge;
mod model;
mod output;
mod prefill;
mod train;

use clap::{Args, Subcommand};
use danlu_kernels::rng::{self, Stream};

use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::printer::Printer;

pub const EXAMPLES: &str = "\
Examples:
  danlu bench train --shape llama-125m
  danlu bench train --base danlu-demo/base-8m --data danlu-demo/palace.json
  danlu bench prefill --shape llama-3.2-1b --prompt-tokens 512
  danlu bench decode --shape llama-3.2-1b --sequences 8 --json
  danlu bench merge --shape llama-3.2-1b --keep shapes/llama-3.2-1b

Results and the machine's peak are measured in the same run.";

/// The subcommands.
#[derive(Subcommand, Clone, Debug)]
pub enum BenchCommand {
    /// Training steps: tokens/s, GFLOP/s, seconds per step, memory
    #[command(allow_negative_numbers = true)]
    Train(Box<train::TrainBenchArgs>),
    /// Reading a prompt: tokens/s, GFLOP/s
    Prefill(prefill::PrefillArgs),
    /// Generating tokens, for one or several sequences: tokens/s, GB/s
    Decode(decode::DecodeArgs),
    /// Merging an adapter, compared with a plain copy of the same bytes
    Merge(merge::MergeBenchArgs),
}

/// Flags of every measurement.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Measured runs [default: 10 for train, 5 for prefill, 3 for decode and merge]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "Measurement")]
    pub steps: Option<u64>,
    /// Unmeasured runs before the measured ones [default: 2 for train, 1 for prefill and decode, 0 for merge]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=1_000_000), help_heading = "Measurement")]
    pub warm_up: Option<u64>,
    /// Print all results as one JSON object
    #[arg(long, help_heading = "Measurement")]
    pub json: bool,
}

impl RunArgs {
    /// Returns the numbers of runs. `steps` and `warm_up` are the defaults.
    fn runs(&self, steps: u64, warm_up: u64) -> Runs {
        Runs { steps: self.steps.unwrap_or(steps), warm_up: self.warm_up.unwrap_or(warm_up) }
    }
}

/// Numbers of measured runs and of warm-up runs.
#[derive(Clone, Copy, Debug)]
struct Runs {
    steps: u64,
    warm_up: u64,
}

impl Runs {
    /// Calls `run` with the index of each run, and returns the results of the measured runs. After Ctrl-C,
    /// returns the results so far.
    ///
    /// # Errors
    /// If a run fails, or no run was measured.
    fn measure<T>(self, printer: &Printer, mut run: impl FnMut(u64) -> Result<T>) -> Result<Vec<T>> {
        let total = self.warm_up + self.steps;
        let mut measured = Vec::new();
        for i in 0..total {
            if interrupt::requested() {
                break;
            }
            let (zh, en) = if i < self.warm_up { ("预热", "warming up") } else { ("测量", "measuring") };
            printer.live(
                &printer
                    .pick(format!("{zh} 第 {}/{total} 次", i + 1), format!("{en}: run {} of {total}", i + 1)),
            );
            let result = run(i)?;
            if i >= self.warm_up {
                measured.push(result);
            }
        }
        printer.clear_live();
        if measured.is_empty() {
            return Err(stopped());
        }
        if (measured.len() as u64) < self.steps {
            let (done, all) = (measured.len(), self.steps);
            printer.warn(&printer.pick(
                format!("提前停下：只测了 {done}/{all} 次"),
                format!("stopped early: {done} of {all} runs are measured"),
            ));
        }
        Ok(measured)
    }
}

/// Runs a subcommand.
///
/// # Errors
/// If a flag or the model is invalid, or Ctrl-C stops the measurement before the first result.
pub fn run(command: &BenchCommand, printer: &Printer) -> Result<()> {
    let _attention = interrupt::graceful_stop(None)?;
    match command {
        BenchCommand::Train(args) => train::run(args, printer),
        BenchCommand::Prefill(args) => prefill::run(args, printer),
        BenchCommand::Decode(args) => decode::run(args, printer),
        BenchCommand::Merge(args) => merge::run(args, printer),
    }
}

/// Returns the error for Ctrl-C before the first result.
pub fn stopped() -> Diagnostic {
    Diagnostic::input("stopped before anything was measured")
}

fn tokens(text: &str) -> Result<usize, String> {
    const MAX_TOKENS: usize = 1 << 24;
    let number = text.parse().ok().filter(|n| (1..=MAX_TOKENS).contains(n));
    number.ok_or_else(|| format!("expected a whole number from 1 to {MAX_TOKENS}"))
}

/// Returns random token ids for the sequence with the number `which`.
pub fn random_ids(count: usize, vocab_size: usize, which: u64) -> Vec<u32> {
    const TOKENS_STREAM: u64 = 0x746f_6b65_6e73;
    let mut stream = Stream::new(rng::key(&[TOKENS_STREAM, which]));
    (0..count).map(|_| stream.next_below(vocab_size as u64) as u32).collect()
}

/// Returns the median. For an even number of values, the median is the mean of the two middle values.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (n, half) = (values.len(), values.len() / 2);
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => values[half],
        _ => (values[half - 1] + values[half]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn random_ids_are_of_the_vocabulary_and_differ_by_sequence() {
        let (one, two) = (random_ids(100, 50, 1), random_ids(100, 50, 2));
        assert!(one.iter().all(|&id| id < 50));
        assert_ne!(one, two);
        assert_eq!(one, random_ids(100, 50, 1));
    }
}
