//! `danlu compare`: compares a base with an adapter, or any two models, on held-out data.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use danlu_data::EncodeOptions;
use danlu_hub::FetchScope;
use danlu_kernels::CpuOptions;
use danlu_loader::{FolderKind, LoadedModel, ModelDirs, ModelFiles, ModelRef, choose_quantization};
use danlu_model::{Quantization, Workspace, files};
use danlu_train::InferencePass;
use serde_json::json;

use crate::args::QuantArgs;
use crate::args::compute::check_context;
use crate::args::compute::{ComputeArgs, DTypeChoice};
use crate::args::data::ReadArgs;
use crate::clap_error::at_least_one;
use crate::diagnostic::{Diagnostic, Result};
use crate::embedded_base;
use crate::evaluation::held_out::{self, HeldOut};
use crate::evaluation::held_out_file::{self, HELD_OUT_FILE};
use crate::evaluation::losses::{self, RecordLoss, mean_loss, measure};
use crate::evaluation::replies;
use crate::lesson;
use crate::memory_forecast::MemoryForecast;
use crate::model_loader::{ModelLoader, token_check};
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

pub const EXAMPLES: &str = "\
Examples:
  danlu compare danlu-demo/adapter
  danlu compare danlu-demo/adapter danlu-demo/merged \\
    --data danlu-demo/adapter/held_out.json

The first compares base and adapter on the records that the run held out. The second compares an adapter with its \
merge. Two adapters are compared in the same way.";

/// Largest difference between the losses per token of two models that counts as a tie.
const TIE: f64 = 1e-3;

/// The flags of `danlu compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// Adapter, merged model or base: a folder or a Hub name
    pub a: PathBuf,
    /// Model to compare with [default: the base of the adapter A]
    pub b: Option<PathBuf>,
    /// Records that neither model was trained on [default: held_out.json, which `train` writes to the
    /// adapter; for two adapters both files must be equal]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub reading: ReadArgs,
    /// Base of the adapters, instead of the one they name
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Number of records to measure; 0 for all
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub records: usize,
    /// Number of questions that both models answer
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub replies: usize,
    /// Longest reply, in tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Longest record, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 384, value_parser = at_least_one)]
    pub max_length: usize,
    /// Continue even if the tokenizer or template of a base differs from that of its adapter
    #[arg(long)]
    pub allow_template_mismatch: bool,
    /// Number type of matrix multiplications: auto (the faster of bf16 and f32), bf16, f32, or f16 (GPU only) [default: auto]
    #[arg(long, value_name = "TYPE", value_parser = DTypeChoice::from_str, help_heading = "Machine")]
    pub dtype: Option<DTypeChoice>,
    #[command(flatten)]
    pub quant: QuantArgs,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Measures both models and prints the result.
///
/// # Errors
/// If a model or the data is invalid, or there is nothing to compare.
pub fn run(args: &CompareArgs, printer: &Printer) -> Result<()> {
    let loader = ModelLoader::new(printer);
    let files = open_both(args, &loader)?;
    for model in &files {
        check_context(args.max_length, model.base().config().max_position_embeddings, "`--max-length`")?;
        loader.check_base(model)?;
    }
    let data = match &args.data {
        Some(data) => loader.data_path(data)?,
        None => {
            let data = common_held_out(&files, &args.a)?;
            let shown = data.display();
            printer.status_bilingual(&format!("留出的记录：{shown}"), &format!("held-out records: {shown}"));
            data
        }
    };
    let models = load_both(args, files, &data, &loader, printer)?;
    let names = distinct_names(&models);
    let held_out = read_common(args, &data, &models, printer)?;
    let measured = |i: usize| {
        let model: &LoadedModel = &models[i];
        measure(model.decoder(), model.lora(), &held_out[i].sequences, &names[i], printer)
    };
    let losses = [measured(0)?, measured(1)?];
    let losses = [&losses[0][..], &losses[1][..]];
    print_losses(&names, losses, printer);
    printer.event("compare", || {
        let [better_a, better_b, equal] = wins(losses);
        json!({
            "models": names, "records": losses[0].len(), "loss": losses.map(mean_loss),
            "better": [better_a, better_b], "equal": equal,
        })
    });
    print_replies(args, &models, &names, &held_out[0], printer)
}

/// Opens the files of both models. A base that both models share is opened once.
fn open_both(args: &CompareArgs, loader: &ModelLoader<'_>) -> Result<[ModelFiles; 2]> {
    let find = |path: &Path| {
        let path = embedded_base::resolve(path)?;
        let base = args.base.as_deref().map(embedded_base::resolve).transpose()?;
        loader.run(|loader, notices| {
            let folder = loader.resolve(&ModelRef::parse(&path), FetchScope::Full, notices)?;
            let is_adapter = FolderKind::of(&folder) == FolderKind::Adapter;
            loader.model_dirs(&folder, base.as_deref().filter(|_| is_adapter), notices)
        })
    };
    let first = find(&args.a)?;
    let second = match &args.b {
        Some(b) => find(b)?,
        None if first.adapter.is_some() => ModelDirs::of_model(first.base.clone()),
        None => {
            let text =
                format!("`{}` is a model and not an adapter, so a second model is needed", args.a.display());
            let hint = "name a second folder: danlu compare A B --data FILE";
            return Err(Diagnostic::input(text).with_hint(hint));
        }
    };
    // If only one model is named, its base is on the left, because the base is the state before training.
    let [left, right] = if args.b.is_none() { [second, first] } else { [first, second] };
    loader.run(|_, _| {
        let is_shared = is_same_folder(&left.base, &right.base);
        let left = ModelFiles::open(left)?;
        let right = match is_shared {
            true => ModelFiles::open_on(Arc::clone(left.base()), right.adapter)?,
            false => ModelFiles::open(right)?,
        };
        Ok([left, right])
    })
}

fn is_same_folder(a: &Path, b: &Path) -> bool {
    a == b || matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Loads both models. A base that both models use with the same quantization is loaded once.
fn load_both(
    args: &CompareArgs,
    files: [ModelFiles; 2],
    data: &Path,
    loader: &ModelLoader<'_>,
    printer: &Printer,
) -> Result<[LoadedModel; 2]> {
    let dtype = args.compute.dtype(args.dtype)?;
    let backend = args.compute.backend(dtype.dtype())?;
    if printer.verbose {
        dtype.announce(&*backend, printer);
    }
    let (choice, threads) = (args.quant.choice()?, args.compute.threads());
    let [left, right] = files;
    let choose = |model| loader.run(|_, notices| choose_quantization(model, choice, notices));
    let mut quantizations = [choose(&left)?, choose(&right)?];
    let is_shared = Arc::ptr_eq(left.base(), right.base());
    // If a base is compared with an adapter on it, the base is quantized as the adapter's base is.
    if is_shared {
        match (left.adapter(), right.adapter()) {
            (None, Some(_)) => quantizations[0] = quantizations[1],
            (Some(_), None) => quantizations[1] = quantizations[0],
            _ => {}
        }
    }
    if args.compute.gpu()?.is_none() {
        let cpu = args.compute.options(dtype.dtype())?;
        // The file size gives an upper estimate of the tokens, because a token usually takes more than three
        // bytes of the file.
        let tokens = data.metadata().map_or(0, |file| file.len() as usize / 3).min(losses::BATCH_TOKENS);
        check_memory(args, [&left, &right], (quantizations, cpu), tokens, printer)?;
    }
    let load = |model: &ModelFiles, quantization| {
        let (base, backend) = (Arc::clone(model.base()), Arc::clone(&backend));
        loader.run(|loader, _| loader.load_base(base, quantization, threads, backend).map(Arc::new))
    };
    let first = load(&left, quantizations[0])?;
    let second = match is_shared && quantizations[0] == quantizations[1] {
        true => Arc::clone(&first),
        false => load(&right, quantizations[1])?,
    };
    let check = token_check(args.allow_template_mismatch);
    let on = |model, base| loader.run(|_, notices| LoadedModel::on(model, base, check, notices));
    Ok([on(left, first)?, on(right, second)?])
}

/// Checks that both models, and a batch of `tokens` tokens, fit into the free memory.
fn check_memory(
    args: &CompareArgs,
    models: [&ModelFiles; 2],
    (quantizations, cpu): ([Option<Quantization>; 2], CpuOptions),
    tokens: usize,
    printer: &Printer,
) -> Result<()> {
    let is_shared = Arc::ptr_eq(models[0].base(), models[1].base()) && quantizations[0] == quantizations[1];
    let mut forecast = MemoryForecast::new();
    for (i, (model, quantization)) in models.into_iter().zip(quantizations).enumerate() {
        if i == 0 || !is_shared {
            let quantization = quantization.map(|quantization| (quantization, args.compute.threads()));
            forecast.add_base(model.base(), quantization);
        }
        let config = model.base().config();
        model.adapter().into_iter().for_each(|adapter| forecast.add_adapter(adapter));
        forecast.add_tokenizer(config.vocab_size);
        let passes = [2, tokens].map(|tokens| InferencePass::Losses { tokens });
        forecast.add_pass(config, cpu.into(), passes)?;
    }
    forecast.check("compare", &args.a, printer)
}

/// Reads the records with each model's template. Keeps the records that are usable with both templates.
fn read_common(
    args: &CompareArgs,
    data: &Path,
    models: &[LoadedModel; 2],
    printer: &Printer,
) -> Result<[HeldOut; 2]> {
    let read = |model: &LoadedModel| {
        let options = EncodeOptions {
            max_length: args.max_length,
            default_system: model.default_system().map(str::to_owned),
            ..EncodeOptions::default()
        };
        held_out::read_held_out(data, &args.reading.options(), model.tokenizer(), &options, args.records)
    };
    let [mut left, mut right] = [read(&models[0])?, read(&models[1])?];
    // Both models skip nearly the same records, so only the larger number is reported.
    if left.left_out > right.left_out { &left } else { &right }.warn(data, printer);
    left.keep_common(&right);
    right.keep_common(&left);
    if left.records.is_empty() {
        let text = format!("`{}` holds no record that both models can be measured on", data.display());
        return Err(Diagnostic::input(text).with_hint("try a larger `--max-length`"));
    }
    Ok([left, right])
}

/// Returns the file `held_out.json`, whose records neither adapter was trained on.
///
/// A record that one adapter held out may be training data of the other adapter. Two adapters must therefore
/// have equal files.
///
/// # Errors
/// If there is no such file, the files differ, or a file cannot be read.
fn common_held_out(models: &[ModelFiles; 2], named: &Path) -> Result<PathBuf> {
    let hint = "name records that were not trained on, or hold some out with `danlu train --val-size`";
    let missing = |folder: &Path| {
        let text = format!("`--data` is missing, and `{}` holds no `{HELD_OUT_FILE}`", folder.display());
        Diagnostic::input(text).with_hint(hint)
    };
    let mut files = Vec::new();
    for adapter in models.iter().filter_map(ModelFiles::adapter_folder) {
        files.push(held_out_file::beside(adapter).ok_or_else(|| missing(adapter))?);
    }
    if let [a, b] = &files[..]
        && files::read_bounded(a, u64::MAX)? != files::read_bounded(b, u64::MAX)?
    {
        let text = format!(
            "`--data` is missing, and `{}` and `{}` hold different records: one adapter may have been trained on \
             records that the other held out",
            a.display(),
            b.display()
        );
        return Err(
            Diagnostic::input(text).with_hint("name records that neither was trained on with `--data FILE`")
        );
    }
    files.into_iter().next().ok_or_else(|| missing(named))
}

/// Returns the names of the folders, or their paths if the names are equal.
fn distinct_names(models: &[LoadedModel; 2]) -> [String; 2] {
    let names = [models[0].name(), models[1].name()];
    if names[0] != names[1] {
        return names;
    }
    [0, 1].map(|i| models[i].folder().display().to_string())
}

fn print_losses(names: &[String; 2], losses: [&[RecordLoss]; 2], printer: &Printer) {
    let count = |losses: &[RecordLoss]| losses.iter().map(|l| l.1).sum::<usize>();
    let tokens = losses.map(|losses| terminal_text::thousands(count(losses) as u64));
    // If the two tokenizers split the text into different numbers of tokens, both numbers are printed.
    let tokens = if tokens[0] == tokens[1] { tokens[0].clone() } else { tokens.join(" / ") };
    let records = terminal_text::thousands(losses[0].len() as u64);
    printer.status(&printer.pick(
        format!("{records} 条留出记录，{tokens} 个计损失的词元\n"),
        format!("{records} held-out records, {tokens} trained tokens\n"),
    ));
    let cell = names.iter().map(|name| terminal_text::width(name)).max().unwrap_or(0).clamp(10, 32) + 2;
    let row = |label: &str, values: [String; 2]| {
        let [a, b] = values.map(|value| terminal_text::pad_left(&value, cell));
        printer.data(&format!("{}{a}{b}", terminal_text::pad(label, 24)));
    };
    row("", [0, 1].map(|i| terminal_text::clip(&names[i], cell - 2)));
    let means = losses.map(mean_loss);
    row(printer.pick("损失（每词元）", "loss a token"), means.map(|loss| format!("{loss:.4}")));
    row(printer.pick("困惑度", "perplexity"), means.map(|loss| format!("{:.2}", loss.exp())));
    let [a, b, ties] = wins(losses);
    row(printer.pick("更好的记录数", "better on records"), [a, b].map(|count| count.to_string()));
    if ties > 0 {
        row(printer.pick("持平的记录数", "equal on records"), [ties, ties].map(|count| count.to_string()));
    }
    printer.teach(lesson::HELD_OUT_LOSS);
    printer.teach(lesson::RECORD_WINS);
}

/// Counts the records on which each model has the lower loss, and the ties.
///
/// Differences up to [`TIE`] count as ties. Rounding alone, for example between an adapter and its merged
/// model, causes smaller differences.
fn wins(losses: [&[RecordLoss]; 2]) -> [usize; 3] {
    let mut counts = [0; 3];
    for (a, b) in losses[0].iter().zip(losses[1]) {
        let per_token = (a.0 - b.0) / a.1.max(b.1).max(1) as f64;
        let outcome = if per_token.abs() <= TIE { 2 } else { usize::from(per_token > 0.0) };
        counts[outcome] += 1;
    }
    counts
}

fn print_replies(
    args: &CompareArgs,
    models: &[LoadedModel; 2],
    names: &[String; 2],
    held_out: &HeldOut,
    printer: &Printer,
) -> Result<()> {
    let mut work = Workspace::new();
    for question in replies::questions(&held_out.records, args.replies) {
        let mut texts = Vec::new();
        for model in models {
            let lora = model.lora();
            texts.push(replies::reply(
                model.decoder(),
                &mut work,
                lora,
                model.tokenizer(),
                &question.messages,
                args.max_new_tokens,
            )?);
        }
        let width = printer.width().min(100);
        let asked = terminal_text::clip(&terminal_text::one_line(question.text()), width - 3);
        printer.data(&format!("\n{}", printer.paint_data(Style::Bold, &format!("? {asked}"))));
        let answer =
            terminal_text::clip(&terminal_text::one_line(&question.answer), width.saturating_sub(12));
        printer.data(
            &printer
                .paint_data(Style::Dim, &format!("{}{answer}", printer.pick("数据中：", "in the data: "))),
        );
        printer.data(
            terminal_text::side_by_side([&names[0], &names[1]], [&texts[0], &texts[1]], width).trim_end(),
        );
        printer.teach(lesson::SIDE_BY_SIDE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_noise_is_a_tie() {
        let a = [(10.0, 10), (5.0, 5), (1.0, 0), (3.0, 10)];
        let b = [(10.005, 10), (5.1, 5), (1.0, 0), (2.0, 10)];
        assert_eq!(wins([&a, &b]), [1, 1, 2]);
    }
}
