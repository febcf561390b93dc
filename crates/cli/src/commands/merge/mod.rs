//! `danlu merge`: merges an adapter into its base and measures the result.

mod card;
mod merge_base;
mod print;

pub use self::merge_base::MergeBaseArg;

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use danlu_adapter::IDENTITY_FILE;
use danlu_adapter::fidelity::{self, AdapterOnBase, Fidelity, FidelityLimits};
use danlu_adapter::merge::{
    self, FormFidelity, MergeBase, MergeOptions, MergeReport, QuantizedFidelity, REPORT_FILE, StagedMerge,
    UnquantizedFidelity,
};
use danlu_adapter::{Adapter, AdapterError, BaseIdentity, parse_byte_size};
use danlu_data::{EncodeOptions, Format};
use danlu_hub::FetchScope;
use danlu_kernels::{Backend, DType, FourBitCode};
use danlu_loader::{BaseFiles, CheckDepth, ModelFiles, ModelTokens, Notice, check_base};
use danlu_model::files::TEMPORARY_PREFIX;
use danlu_model::{
    Decoder, LabeledSequence, LoraSource, ModelError, Quantization, Quantized, StagedFolder, Tokenizer,
    quantize_into,
};
use danlu_train::{TrainError, check_finite_weights};
use serde_json::json;

use self::merge_base::{BaseForm, BaseForms};
use crate::args::ComputeArgs;
use crate::args::data::format;
use crate::args::{CardArgs, NotesArgs};
use crate::commands::quantization_progress::{diagnose, progress};
use crate::diagnostic::{Diagnostic, Result};
use crate::embedded_base;
use crate::evaluation::held_out::read_held_out;
use crate::evaluation::held_out_file;
use crate::memory_forecast::MemoryForecast;
use crate::model_loader::{ModelLoader, token_check};
use crate::printer::Printer;
use crate::{interrupt, terminal_text};
use card::MergedCard;

pub const EXAMPLES: &str = "\
Examples:
  danlu merge danlu-demo/adapter --output out/merged
  danlu merge danlu-demo/adapter --output out/shards --max-shard-size 9MB
  danlu merge danlu-demo/adapter --output out/nf4 --to nf4
  danlu merge danlu-demo/adapter --output out/measured \\
    --data danlu-demo/palace.json";

/// Maximum number of sequences in the measurement. More sequences would hardly change the results.
const MAX_SEQUENCES: usize = 64;

/// Maximum number of tokens in a measured sequence.
const MAX_LENGTH: usize = 512;

/// Maximum ratio of the perplexity with the adapter to the perplexity of the base. An increase up to this
/// ratio is treated as noise.
const MAX_PERPLEXITY_RATIO: f64 = 1.01;

/// A model guesses if its perplexity is at least this share of the vocabulary size.
const GUESSING: f64 = 0.9;

/// The flags of `danlu merge`.
#[derive(Args, Clone, Debug)]
pub struct MergeArgs {
    /// Adapter: a folder or a Hub name
    pub adapter: PathBuf,
    /// Output folder: new or empty
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Base of the adapter, instead of the one the adapter names
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Base to merge into after training on 4 bits: original, dequantized, or auto for the closer result
    #[arg(long, value_name = "FORM", default_value = "auto", value_parser = MergeBaseArg::from_str)]
    pub merge_base: MergeBaseArg,
    /// Folder of the model from which the 4-bit base was quantized
    #[arg(long, value_name = "DIR")]
    pub original: Option<PathBuf>,
    /// Quantize the merged model to 4 bits, nf4 or fp4; all results then describe the quantized model
    #[arg(long, value_name = "TYPE", value_parser = FourBitCode::from_str)]
    pub to: Option<FourBitCode>,
    /// Type of the merged weights: f32, bf16 or f16 [default: the base's]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub dtype: Option<DType>,
    /// Largest weight file, such as 2GB [default: files as the base has them]
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_byte_size(text).map_err(|e| e.to_string()))]
    pub max_shard_size: Option<u64>,
    /// Held-out records to measure the merge on [default: the adapter's held_out.json, or a built-in text]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Format of the records in --data, if it is not recognised
    #[arg(long, value_name = "FORMAT", value_parser = format, requires = "data")]
    pub format: Option<Format>,
    /// Reject the merge if its mean KL divergence from base plus adapter exceeds this, in nats per token
    /// [default: a quarter of the adapter's own effect, at most 1e-2 for bf16, 2e-4 for f16, 1e-6 for f32].
    /// With --to, the limit applies to the model before quantization too; the 4-bit model is only marked as
    /// passed or failed
    #[arg(long, value_name = "NATS")]
    pub threshold: Option<f64>,
    /// Continue even if the base's tokenizer or template differs from the adapter's
    #[arg(long)]
    pub allow_template_mismatch: bool,
    /// Merge even if the adapter predicts the held-out text worse than the base alone does
    #[arg(long)]
    pub allow_worse: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub card: CardArgs,
    #[command(flatten)]
    pub notes: NotesArgs,
}

fn dtype(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        "f16" => Ok(DType::F16),
        _ => Err("expected f32, bf16 or f16".to_owned()),
    }
}

/// Merges, reloads the result, measures it, and prints the results.
///
/// # Errors
/// If a file is invalid, the output folder contains other files, or the difference exceeds the threshold.
/// Also returns an error if the adapter predicts the held-out text worse than its base, unless
/// `--allow-worse` is given.
pub fn run(args: &MergeArgs, printer: &Printer) -> Result<()> {
    if let Some(threshold) = args.threshold.filter(|t| !(t.is_finite() && *t >= 0.0)) {
        return Err(Diagnostic::input(format!("`--threshold` is {threshold}, expected 0 or more")));
    }
    let loader = ModelLoader::new(printer);
    let model = open_adapter(args, &loader)?;
    let check = token_check(args.allow_template_mismatch);
    let tokens = loader.run(|_, notices| ModelTokens::read(&model, check, notices))?;
    // The measurement computes in f32, so that rounding errors do not change its result.
    let backend = args.compute.backend(DType::F32)?;
    let adapter = loader.run(|_, notices| {
        let files = model.require_adapter()?;
        let adapter = files.load(model.base().config(), model.base().folder(), &*backend)?;
        notices.extend(Notice::of_adapter(&files.name(), &adapter));
        let changed = model.base().changed_by(&adapter)?;
        tokens.tokenizer.limit_ids(changed.as_ref().unwrap_or(model.base()).config());
        Ok(adapter)
    })?;
    // The card and the text are read first, so that an error in them appears before the merge.
    let mut card = MergedCard::of(&model, &args.notes, printer.lang)?;
    let data = args.data.as_deref().map(|data| loader.data_path(data)).transpose()?;
    let file = data.or_else(|| held_out_file::beside(&args.adapter));
    let sequences = held_out_sequences(args, file.as_deref(), tokens, printer)?;
    let original = args.original.as_deref();
    let original = original.map(|folder| loader.base_folder(folder, FetchScope::Full)).transpose()?;
    // Before this line, Ctrl-C exits at once, and a second run resumes the download.
    let _stop = interrupt::graceful_stop(None)?;
    let forms = BaseForms::of(&model, original.as_deref(), &loader)?;
    if let Some((base, folder)) = other_base(&model, &forms, &loader)? {
        card.on_another_base(base, &folder);
    }
    card.apply(&args.card, printer.lang);
    check_memory(args, &model, &forms, &sequences, printer)?;
    let job = Job {
        args,
        model: &model,
        adapter,
        backend,
        forms: &forms,
        sequences: &sequences,
        loader: &loader,
        printer,
    };
    job.run(card, file.as_deref()).map_err(|error| damaged_base(&model).unwrap_or(error))
}

/// Returns the error for a base with a weight that is not finite. Such a weight fails every merge, and the
/// error of the merge would not name it.
fn damaged_base(model: &ModelFiles) -> Option<Diagnostic> {
    if interrupt::requested() {
        return None;
    }
    match check_finite_weights(model.base().folder()) {
        Err(cause @ TrainError::BaseNotFinite { .. }) => Some(cause.into()),
        _ => None,
    }
}

/// Checks that the base, the merged model and the measurement fit into the free memory. On a GPU, checks
/// nothing.
fn check_memory(
    args: &MergeArgs,
    model: &ModelFiles,
    forms: &BaseForms,
    sequences: &[LabeledSequence],
    printer: &Printer,
) -> Result<()> {
    if args.compute.gpu()?.is_some() {
        return Ok(());
    }
    let (base, config) = (model.base(), model.base().config());
    let quantization = match (&forms.original, &forms.dequantized) {
        (None, Some(form)) => form.requantize_as,
        _ => None,
    };
    let mut forecast = MemoryForecast::new();
    forecast.add_base(base, quantization.map(|quantization| (quantization, args.compute.threads())));
    let dtype = args.dtype.or(config.dtype).unwrap_or(DType::Bf16);
    let written = config.num_parameters() * dtype.size() as u64;
    // For the measurement, the base is mapped a second time, together with the result.
    forecast.add_file(base.weights().mapped_bytes() + written);
    forecast.add_pages(written);
    let longest = sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
    forecast.add_comparison(config, args.compute.options(DType::F32)?.into(), longest)?;
    forecast.check("merge", &args.adapter, printer)
}

/// Opens the adapter of the command line.
fn open_adapter(args: &MergeArgs, loader: &ModelLoader<'_>) -> Result<ModelFiles> {
    let path = &args.adapter;
    let base = args.base.as_deref().map(embedded_base::resolve).transpose()?;
    let base = base.as_deref();
    let dirs = loader.run(|loader, notices| loader.model_dirs(path, base, notices))?;
    if dirs.adapter.is_none() {
        let text = format!("`{}` is a model, expected an adapter", path.display());
        return Err(Diagnostic::input(text).with_hint("run it with `danlu chat`; a model needs no merge"));
    }
    loader.run(|_, _| ModelFiles::open(dirs))
}

/// Returns the sequences for the measurement. The sequences come from `file` or, without a file, from danlu's
/// own text.
fn held_out_sequences(
    args: &MergeArgs,
    file: Option<&Path>,
    tokens: ModelTokens,
    printer: &Printer,
) -> Result<Vec<LabeledSequence>> {
    let ModelTokens { tokenizer, default_system } = tokens;
    let Some(file) = file else { return own_text(&tokenizer) };
    let options = EncodeOptions { max_length: MAX_LENGTH, default_system, ..EncodeOptions::default() };
    let held_out = read_held_out(file, &args.format.into(), &tokenizer, &options, MAX_SEQUENCES)?;
    held_out.warn(file, printer);
    Ok(held_out.sequences)
}

/// Returns the base of the merge with its folder, if the adapter was trained on a different base.
fn other_base(
    model: &ModelFiles,
    forms: &BaseForms,
    loader: &ModelLoader<'_>,
) -> Result<Option<(BaseIdentity, PathBuf)>> {
    let folder = forms.trained_folder().unwrap_or(model.base().folder());
    let other = loader.run(|_, notices| {
        let adapter = model.require_adapter()?;
        if folder == model.base().folder() {
            return check_base(adapter, model.base(), CheckDepth::Full, notices);
        }
        check_base(adapter, &BaseFiles::open(folder)?, CheckDepth::Full, notices)
    })?;
    Ok(other.map(|base| (base, folder.to_owned())))
}

/// Converts an error to a diagnostic. A stop by Ctrl-C gets its own message.
fn stopped(error: AdapterError) -> Diagnostic {
    match error {
        AdapterError::Model(ModelError::Stopped) => {
            Diagnostic::input("stopped before the merge was complete: no files were left")
        }
        error => error.into(),
    }
}

/// The inputs of a merge.
struct Job<'a> {
    args: &'a MergeArgs,
    model: &'a ModelFiles,
    adapter: Adapter,
    backend: Arc<dyn Backend>,
    forms: &'a BaseForms,
    sequences: &'a [LabeledSequence],
    loader: &'a ModelLoader<'a>,
    printer: &'a Printer,
}

/// A merged model that is written to a temporary folder and measured, but not yet moved to the output folder.
struct Merged {
    staged: StagedMerge,
    fidelity: Fidelity,
    /// The base that the adapter was merged into.
    base: MergedBase,
}

/// A base in memory, for a measurement with and without the adapter.
struct MergedBase {
    /// The base without the adapter.
    alone: Decoder,
    /// The base with the tensors that the adapter replaces, if there are any.
    changed: Option<Decoder>,
    /// The adapter, loaded for this form of the base.
    adapter: Adapter,
}

impl MergedBase {
    fn changed(&self) -> &Decoder {
        self.changed.as_ref().unwrap_or(&self.alone)
    }
}

impl Job<'_> {
    /// Merges, measures, publishes and prints.
    fn run(&self, card: MergedCard, file: Option<&Path>) -> Result<()> {
        let args = self.args;
        // A merge to 4 bits is first written in 16 bits to a hidden folder inside the output folder. The
        // hidden folder is removed later.
        let quantized = match args.to {
            Some(code) => {
                Some((code, StagedFolder::create_beside(&args.output, |name| name == REPORT_FILE)?))
            }
            None => None,
        };
        let merged = format!("{TEMPORARY_PREFIX}merged");
        let output =
            quantized.as_ref().map_or_else(|| args.output.clone(), |(_, model)| model.staged(&merged));
        let Merged { mut staged, fidelity, base } = self.merge(&output)?;
        let print = |report: &MergeReport, fidelity: &Fidelity| {
            print::print(report, fidelity, file, &args.output, self.printer);
            self.printer.event("merge", || {
                json!({"output": args.output.display().to_string(), "merge": report, "fidelity": fidelity})
            });
        };
        let faults = fidelity.faults();
        if !faults.is_empty() {
            print(&staged.report, &fidelity);
            staged.reject(&args.output, &fidelity)?;
            let text = "the merged model differs from base plus adapter: only its report was saved";
            let hint =
                "use a wider type, `--dtype f32`, or raise `--threshold` if the difference is acceptable";
            return Err(Diagnostic::input(text).with_details(faults).with_hint(hint));
        }
        self.check_adapter(&fidelity, file, base.changed().config().vocab_size)?;
        let (done, fidelity) = match quantized {
            None => {
                for (name, bytes) in card.files(&args.output, &staged.report, &fidelity) {
                    staged.add(name, &bytes)?;
                }
                (staged.publish(Some(&fidelity))?, fidelity)
            }
            Some((code, model)) => {
                let measured = Merged { staged, fidelity, base };
                self.quantize(measured, model, code, card)?
            }
        };
        print(&done, &fidelity);
        Ok(())
    }

    /// Rejects an adapter that predicts the text worse than its base does, because its training has usually
    /// diverged. `--allow-worse` skips this check.
    ///
    /// Without a `file`, the text is danlu's own and differs from the training data. Only a model that
    /// guesses (see [`GUESSING`]) is then rejected.
    fn check_adapter(&self, fidelity: &Fidelity, file: Option<&Path>, vocab_size: usize) -> Result<()> {
        let (base, adapter) = (fidelity.perplexity_base, fidelity.perplexity_adapter);
        let guessing = GUESSING * vocab_size as f64;
        let limit = match file {
            Some(_) => base * MAX_PERPLEXITY_RATIO,
            None if base < guessing => guessing,
            // If the base itself guesses, for example with random weights, there is no useful limit.
            None => f64::INFINITY,
        };
        if self.args.allow_worse || adapter <= limit {
            return Ok(());
        }
        let text = file.map_or_else(|| "danlu's own text".to_owned(), |file| format!("`{}`", file.display()));
        let error = format!(
            "cannot merge `{}`: it predicts held-out text worse than its base; the perplexity on {text} is {base:.2} for the base and {adapter:.2} with the adapter",
            self.args.adapter.display()
        );
        let hint = "train again with a lower `--learning-rate`, or merge it as it is with `--allow-worse`";
        Err(Diagnostic::input(error).with_hint(hint))
    }

    /// Merges into the base of `--merge-base`, and measures the result, which is not published yet. `auto`
    /// selects the base whose merged model is closest to base plus adapter.
    fn merge(&self, output: &Path) -> Result<Merged> {
        let wanted = self.args.merge_base;
        let (Some(original), Some(dequantized)) = (&self.forms.original, &self.forms.dequantized) else {
            return match wanted {
                MergeBaseArg::Form(form) => self.merge_into(form, output),
                MergeBaseArg::Auto if self.forms.original.is_some() => {
                    self.merge_into(MergeBase::Original, output)
                }
                MergeBaseArg::Auto => self.merge_into(MergeBase::Dequantized, output),
            };
        };
        // If the training used the original base, a merge into this base is exact up to rounding, so the
        // dequantized base is not tried.
        if self.forms.trained == MergeBase::Original {
            return match wanted {
                MergeBaseArg::Auto => self.merge_into(MergeBase::Original, output),
                MergeBaseArg::Form(form) => self.merge_into(form, output),
            };
        }
        if wanted == MergeBaseArg::Form(MergeBase::Original) {
            let mut merged = self.merge_into(MergeBase::Original, output)?;
            merged.staged.report.forms =
                vec![self.figures_of_original(&merged, &self.load_form(dequantized)?)?];
            return Ok(merged);
        }

        let mut merged = self.merge_into(MergeBase::Dequantized, output)?;
        // The merge into the original base is not written yet. The unmerged adapter on the original base
        // predicts the result of that merge.
        let unmerged = {
            let (base, limits) = (self.load_form(original)?, FidelityLimits::of(DType::F32));
            let found = self.measure(&merged.base, base.changed(), Some(&base.adapter), limits)?;
            figures(MergeBase::Original, false, &found)
        };
        let mut forms = vec![unmerged, figures(MergeBase::Dequantized, true, &merged.fidelity)];
        if wanted == MergeBaseArg::Auto && forms[0].kl < forms[1].kl {
            let Merged { base: trained, staged, .. } = merged;
            drop(staged);
            merged = self.merge_into(MergeBase::Original, output)?;
            forms.push(self.figures_of_original(&merged, &trained)?);
        }
        merged.staged.report.forms = forms;
        Ok(merged)
    }

    /// Compares a merge into the original base with the adapter on `trained`, which is the dequantized base.
    fn figures_of_original(&self, merged: &Merged, trained: &MergedBase) -> Result<FormFidelity> {
        let written = Decoder::load(merged.staged.folder(), Arc::clone(&self.backend))?;
        let found = self.measure(trained, &written, None, FidelityLimits::of(DType::F32))?;
        Ok(figures(MergeBase::Original, true, &found))
    }

    /// Merges into one form of the base, and compares the result with the adapter on this form.
    fn merge_into(&self, form: MergeBase, output: &Path) -> Result<Merged> {
        let (args, printer, form) = (self.args, self.printer, self.forms.get(form)?);
        let options = MergeOptions {
            dtype: args.dtype,
            max_shard_size: args.max_shard_size,
            threads: Some(args.compute.threads()),
            requantize_as: form.requantize_as,
            // `danlu.json` records the adapter's tokens. The merged model has the same tokens, so this file
            // is copied too.
            also_copy: vec![IDENTITY_FILE.to_owned()],
        };
        let mut progress = |p: merge::MergeProgress<'_>| {
            let (done, total) = (terminal_text::bytes(p.bytes), terminal_text::bytes(p.total));
            printer.live(&printer.pick(
                format!("合并 {done} / {total} · {}", p.tensor),
                format!("merging {done} of {total} · {}", p.tensor),
            ));
            interrupt::check()
        };
        let staged =
            merge::stage(&form.folder, &self.adapter, &*self.backend, output, &options, &mut progress);
        printer.clear_live();
        let staged = staged.map_err(stopped)?;
        let base = self.load_form(form)?;
        let merged = Decoder::load(staged.folder(), Arc::clone(&self.backend))?;
        let mut limits = FidelityLimits::of(narrowest(&staged.report));
        if let Some(threshold) = args.threshold {
            limits = limits.with_kl(threshold);
        }
        let fidelity = self.measure(&base, &merged, None, limits)?;
        Ok(Merged { staged, fidelity, base })
    }

    /// Quantizes a merged model into `model`, the folder of the output. Returns the report, which includes
    /// how much 4 bits change the model, and the measured result.
    fn quantize(
        &self,
        merged: Merged,
        model: StagedFolder,
        code: FourBitCode,
        card: MergedCard,
    ) -> Result<(MergeReport, Fidelity)> {
        let Merged { mut staged, fidelity, base } = merged;
        let quantization = Quantization::new(code);
        let (printer, threads) = (self.printer, self.args.compute.threads());
        let merged = self.load(&BaseFiles::open(staged.folder())?, Some(quantization))?;
        // The user requested 4 bits, so the difference is only reported, and no 4-bit model is rejected.
        let limits = FidelityLimits::four_bit();
        let limits = self.args.threshold.map_or(limits, |threshold| limits.with_kl(threshold));
        let cost = self.measure(&base, &merged, None, limits)?;
        staged.report.quantized = Some(QuantizedFidelity {
            quantization,
            kl: cost.kl,
            perplexity: cost.perplexity_merged,
            adapter_kept: cost.adapter_kept(),
            before: Some(UnquantizedFidelity { kl: fidelity.kl, perplexity: fidelity.perplexity_merged }),
        });
        let wide = staged.folder().to_owned();
        let identity = fs::read(wide.join(IDENTITY_FILE)).ok();
        let extra = |written: &Quantized| {
            let identity = identity.map(|bytes| (IDENTITY_FILE, bytes));
            let of_identity = identity.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
            // The report describes the quantized files, not the 16-bit model.
            staged.report.bytes = written.bytes + of_identity;
            staged.report.shards.clone_from(&written.files);
            staged.report.dtype.clone_from(&written.dtype);
            let card = card.files(&self.args.output, &staged.report, &cost);
            [(REPORT_FILE, staged.report_json(&cost))].into_iter().chain(identity).chain(card).collect()
        };
        let mut progress = progress(quantization, printer);
        let written = quantize_into(model, &wide, quantization, &[], threads, extra, &mut progress);
        printer.clear_live();
        written.map_err(diagnose)?;
        Ok((staged.report.clone(), cost))
    }

    /// Loads the adapter again for each base, because a DoRA adapter has scales that depend on the base.
    fn load_adapter(&self) -> Result<Adapter> {
        let (base, backend) = (self.model.base(), &*self.backend);
        self.loader.run(|_, _| self.model.require_adapter()?.load(base.config(), base.folder(), backend))
    }

    fn load_form(&self, form: &BaseForm) -> Result<MergedBase> {
        let files = self.loader.run(|_, _| BaseFiles::open(&form.folder))?;
        let [changed, resized] = self
            .loader
            .run(|_, _| Ok([files.changed_by(&self.adapter)?, files.resized_by(&self.adapter)?]))?;
        let alone = self.load(resized.as_ref().unwrap_or(&files), form.requantize_as)?;
        let changed = changed.map(|changed| self.load(&changed, form.requantize_as)).transpose()?;
        let mut adapter = self.load_adapter()?;
        adapter.prepare(changed.as_ref().unwrap_or(&alone), self.args.compute.threads())?;
        Ok(MergedBase { alone, changed, adapter })
    }

    /// Loads a model, and quantizes it if requested. The files of the model stay open as long as the decoder
    /// exists.
    fn load(&self, files: &BaseFiles, quantization: Option<Quantization>) -> Result<Decoder> {
        let (threads, backend) = (self.args.compute.threads(), Arc::clone(&self.backend));
        self.loader.run(|loader, _| loader.load_decoder(files, quantization, threads, backend))
    }

    /// Compares `merged` with the adapter on `base`. If `merged_lora` is given, `merged` computes with this
    /// adapter.
    fn measure(
        &self,
        base: &MergedBase,
        merged: &Decoder,
        merged_lora: Option<&dyn LoraSource>,
        limits: FidelityLimits,
    ) -> Result<Fidelity> {
        let (printer, total) = (self.printer, self.sequences.len());
        let mut progress = |done: usize| {
            printer
                .live(&printer.pick(format!("核对 {done}/{total}"), format!("measuring {done} of {total}")));
            interrupt::check()
        };
        let adapter = AdapterOnBase { base: &base.alone, changed: base.changed(), adapter: &base.adapter };
        let fidelity = fidelity::measure(adapter, merged, merged_lora, self.sequences, limits, &mut progress);
        printer.clear_live();
        fidelity.map_err(stopped)
    }
}

fn figures(form: MergeBase, merged: bool, f: &Fidelity) -> FormFidelity {
    FormFidelity { form, merged, kl: f.kl, perplexity: f.perplexity_merged }
}

/// Returns the type with the coarsest rounding among the types that were written.
fn narrowest(report: &MergeReport) -> DType {
    let has = |name: &str| report.dtype.iter().any(|dtype| dtype == name);
    match () {
        () if has("bfloat16") => DType::Bf16,
        () if has("float16") => DType::F16,
        () => DType::F32,
    }
}

/// Returns danlu's own sentences in both languages, for merges without data. These sentences suffice to
/// detect a wrong merge.
fn own_text(tokenizer: &Tokenizer) -> Result<Vec<LabeledSequence>> {
    let sentences = include_str!("../../../assets/held_out.txt");
    let encode = |line: &str| -> Result<LabeledSequence> {
        let mut ids: Vec<u32> = tokenizer.bos_id().into_iter().collect();
        ids.extend(tokenizer.encode(line)?);
        let trained = vec![true; ids.len()];
        Ok(LabeledSequence { ids, trained })
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
            let limits = FidelityLimits::of(dtype);
            assert_eq!(limits.share_of_adapter, Some(0.25));
            assert!(help.contains(&format!("{:e} for {name}", limits.kl)), "{help}");
        }
        assert!(help.contains("a quarter of the adapter's own effect"), "{help}");
    }
}
