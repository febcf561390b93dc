//! `danlu merge`: an adapter into its base, measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use danlu_adapter::fidelity::{self, Fidelity, Limits};
use danlu_adapter::merge::{self, MergeOptions, MergeReport, REPORT_FILE, Staged};
use danlu_adapter::parse_byte_size;
use danlu_data::{EncodeOptions, Format};
use danlu_kernels::DType;
use danlu_model::{Decoder, ModelConfig, Sequence, Tokenizer};

use crate::commands::ComputeArgs;
use crate::commands::data::{format, read_held_out};
use crate::commands::loaded::Place;
use crate::commands::tokens::Tokens;
use crate::commands::train::held_out;
use crate::printer::{Look, Printer};
use crate::report::{Report, Result};
use crate::text;

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu merge out/huanhuan --output out/huanhuan-merged
  danlu merge out/huanhuan --output out/merged --dtype bf16 --max-shard-size 2GB --data held_out.json";

/// Sequences that are measured at most: the figures settle long before.
const MAX_SEQUENCES: usize = 64;

/// Tokens of one measured sequence at most.
const MAX_LENGTH: usize = 512;

/// The flags of `danlu merge`.
#[derive(Args, Clone, Debug)]
pub struct MergeArgs {
    /// Folder of the adapter
    pub adapter: PathBuf,
    /// Folder to write the merged model to: new or empty
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Folder of the base, instead of the one the adapter names
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Type of the merged weights: f32, bf16 or f16 [default: the base's]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub dtype: Option<DType>,
    /// Largest weight file, such as 2GB [default: files as the base has them]
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_byte_size(text).map_err(|e| e.to_string()))]
    pub max_shard_size: Option<u64>,
    /// Held-out records to measure the merge on [default: the adapter's held_out.json, else a text that danlu brings]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Format of those records instead of the recognised one
    #[arg(long, value_name = "FORMAT", value_parser = format, requires = "data")]
    pub format: Option<Format>,
    /// Largest mean divergence from adapter-on-base, in nats a token [default: a quarter of what the adapter
    /// itself makes, at most 1e-2 for bf16, 2e-4 for f16, 1e-6 for f32]
    #[arg(long, value_name = "NATS")]
    pub threshold: Option<f64>,
    /// Go on although the base's tokenizer or template differs from the adapter's
    #[arg(long)]
    pub allow_template_mismatch: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

fn dtype(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        "f16" => Ok(DType::F16),
        _ => Err("expected f32, bf16 or f16".to_owned()),
    }
}

/// Merges, reloads, measures, prints.
///
/// # Errors
/// If a file has a fault, the output folder holds other things, or the result is further from the adapter
/// than the threshold allows.
pub fn run(args: &MergeArgs, printer: &Printer) -> Result<()> {
    if let Some(threshold) = args.threshold.filter(|t| !(t.is_finite() && *t >= 0.0)) {
        return Err(Report::input(format!("`--threshold` is {threshold}, expected 0 or more")));
    }
    let place = Place::find(&args.adapter, args.base.as_deref())?;
    if place.adapter.is_none() {
        let report =
            Report::input(format!("`{}` is a whole model, expected an adapter", args.adapter.display()));
        return Err(report.with_hint("there is nothing to merge; `danlu chat` runs it as it is"));
    }
    let Tokens { tokenizer, default_system } = Tokens::of(&place, args.allow_template_mismatch, printer)?;
    tokenizer.check_fits(&ModelConfig::read(&place.base)?)?;
    // The text is read first: a fault in it should not cost a merge.
    let file = args.data.clone().or_else(|| held_out::beside(&args.adapter));
    let sequences = match &file {
        Some(file) => {
            let options =
                EncodeOptions { max_length: MAX_LENGTH, default_system, ..EncodeOptions::default() };
            let held_out = read_held_out(file, args.format, &tokenizer, &options, MAX_SEQUENCES)?;
            held_out.warn(file, printer);
            held_out.sequences
        }
        None => own_text(&tokenizer)?,
    };
    let (staged, fidelity) = merge_and_measure(args, &place, &sequences, printer)?;
    let faults = fidelity.faults();
    if faults.is_empty() {
        let report = staged.publish(Some(&fidelity))?;
        print_report(&report, &fidelity, file.as_deref(), &args.output, printer);
        return Ok(());
    }
    print_report(&staged.report, &fidelity, file.as_deref(), &args.output, printer);
    staged.reject(&fidelity)?;
    let text = "the merged model is not base plus adapter: only its report is kept";
    let hint = "a wider type keeps more: --dtype f32; or raise --threshold if the difference is acceptable";
    Err(Report::input(text).with_details(faults).with_hint(hint))
}

/// The merge, measured before it has a name.
fn merge_and_measure(
    args: &MergeArgs,
    place: &Place,
    sequences: &[Sequence],
    printer: &Printer,
) -> Result<(Staged, Fidelity)> {
    // Measured in f32, so that what is seen is the merge and not the products.
    let backend = args.compute.backend(DType::F32)?;
    let adapter = place.load_adapter(&ModelConfig::read(&place.base)?, &*backend)?;
    let options = MergeOptions {
        dtype: args.dtype,
        max_shard_size: args.max_shard_size,
        threads: args.compute.threads.map(usize::from),
        // What the adapter was trained with stays with the merged model.
        also_copy: vec!["danlu.json".to_owned()],
    };
    let mut progress = |p: merge::MergeProgress<'_>| {
        let (done, total) = (text::bytes(p.bytes), text::bytes(p.total));
        printer.live(&printer.pick(
            format!("合并 {done} / {total} · {}", p.tensor),
            format!("merging {done} of {total} · {}", p.tensor),
        ));
    };
    let staged = merge::stage(&place.base, &adapter, &*backend, &args.output, &options, &mut progress)?;

    let base = Decoder::load(&place.base, Arc::clone(&backend))?;
    let merged = Decoder::load(staged.folder(), backend)?;
    let mut limits = Limits::of(narrowest(&staged.report));
    if let Some(threshold) = args.threshold {
        limits = limits.with_kl(threshold);
    }
    let mut progress = |done: usize| {
        let total = sequences.len();
        printer.live(&printer.pick(format!("核对 {done}/{total}"), format!("measuring {done} of {total}")));
    };
    let fidelity = fidelity::measure(&base, &adapter, &merged, sequences, limits, &mut progress)?;
    printer.clear_live();
    Ok((staged, fidelity))
}

/// The type that rounds most among those written.
fn narrowest(report: &MergeReport) -> DType {
    let has = |name: &str| report.dtype.iter().any(|dtype| dtype == name);
    match () {
        () if has("bfloat16") => DType::Bf16,
        () if has("float16") => DType::F16,
        () => DType::F32,
    }
}

/// The figures of a merge.
fn print_report(report: &MergeReport, f: &Fidelity, text: Option<&Path>, output: &Path, printer: &Printer) {
    let (size, tensors) = (text::bytes(report.bytes), report.merged_tensors);
    let (dtype, seconds) = (report.dtype.join(", "), report.seconds);
    printer.say(&printer.pick(
        format!(
            "合并了 {tensors} 个张量，写出 {size}（{dtype}），用时 {seconds:.1} 秒：{}",
            output.display()
        ),
        format!("merged {tensors} tensors, wrote {size} ({dtype}) in {seconds:.1}s: {}", output.display()),
    ));
    let (sequences, tokens) = (f.sequences, f.tokens);
    let text = match text {
        Some(file) => printer.pick(
            format!("{} 的 {sequences} 条记录", file.display()),
            format!("{} of {}", text::counted(sequences as u64, "record"), file.display()),
        ),
        None => printer.pick(
            format!("danlu 自带的 {sequences} 段文本"),
            format!("{} that danlu brings", text::counted(sequences as u64, "text")),
        ),
    };
    printer.say(&printer.pick(
        format!("核对：{text}，{tokens} 个词元，合并后的模型与“基座+适配器”相比"),
        format!("measured on {text}, {tokens} tokens: the merged model against adapter on base"),
    ));
    let row = |zh: &str, en: &str, value: String| {
        printer.out(&format!("  {} {value}", text::pad(printer.pick(zh, en), 30)));
    };
    let limit = |value: String| printer.pick(format!("（上限 {value}）"), format!(" (limit {value})"));
    row("最大 logit 差", "largest logit difference", format!("{:.2e}", f.max_logit_difference));
    row("平均 logit 差", "mean logit difference", format!("{:.2e}", f.mean_logit_difference));
    row(
        "KL 散度，每词元",
        "KL divergence a token",
        format!("{:.2e}{}", f.kl, limit(format!("{:.2e}", f.kl_limit))),
    );
    row("适配器本身的 KL", "KL the adapter makes", format!("{:.2e}", f.kl_of_adapter));
    row("首选词元一致", "same likeliest token", format!("{:.2}%", 100.0 * f.same_choice));
    row("困惑度 基座", "perplexity of the base", format!("{:.4}", f.perplexity_base));
    row("困惑度 基座+适配器", "perplexity of base + adapter", format!("{:.4}", f.perplexity_adapter));
    row("困惑度 合并后", "perplexity merged", format!("{:.4}", f.perplexity_merged));
    let verdict = match f.passed {
        true => printer.data(Look::Green, printer.pick("通过", "passed")),
        false => printer.data(Look::Red, printer.pick("未通过", "failed")),
    };
    printer.out(&format!("{verdict} · {}", output.join(REPORT_FILE).display()));
}

/// Sentences of our own in both languages, for merges without data: enough to tell a merge from a mistake.
fn own_text(tokenizer: &Tokenizer) -> Result<Vec<Sequence>> {
    let sentences = include_str!("../../assets/held_out.txt");
    let encode = |line: &str| -> Result<Sequence> {
        let mut ids: Vec<u32> = tokenizer.bos_id().into_iter().collect();
        ids.extend(tokenizer.encode(line)?);
        let trained = vec![true; ids.len()];
        Ok(Sequence { ids, trained })
    };
    sentences.lines().filter(|line| !line.is_empty()).map(encode).collect()
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    #[test]
    fn help_names_the_true_limits() {
        let command = MergeArgs::augment_args(Command::new("merge"));
        let threshold = command.get_arguments().find(|arg| arg.get_id() == "threshold").unwrap();
        let help = threshold.get_help().unwrap().to_string();
        for (dtype, name) in [(DType::Bf16, "bf16"), (DType::F16, "f16"), (DType::F32, "f32")] {
            let limits = Limits::of(dtype);
            assert_eq!(limits.share_of_adapter, Some(0.25));
            assert!(help.contains(&format!("{:e} for {name}", limits.kl)), "{help}");
        }
        assert!(help.contains("a quarter of what the adapter itself makes"), "{help}");
    }
}
