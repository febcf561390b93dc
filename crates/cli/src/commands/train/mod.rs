//! `danlu train`: resolves the inputs, plans the memory, trains, and publishes.

mod args;
mod base_watch;
mod card;
pub mod forecast;
pub mod init_adapter;
mod live_report;
pub mod output;
pub mod prepare;
mod print;
mod progress;
mod run_config;
mod run_log;
mod steps;
mod summary;
mod tensorboard;
pub mod time_forecast;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use danlu_adapter::{Adapter, BaseIdentity, LoraConfig, TrainingIdentity, targets};
use danlu_hub::FetchScope;
use danlu_loader::{BaseFiles, Notice, identify_base};
use danlu_model::{ChatTemplate, LabeledSequence, Quantization, Tokenizer};
use danlu_report::card::{Card, write_notes};
use danlu_report::{DataSummary, Finding, RunSummary, Verdict};
use danlu_train::{TrainSettings, Trainer};
use serde_json::json;

use crate::args::chat_template::with_chat_template;
use crate::diagnostic::Result;
use crate::evaluation::held_out_file;
use crate::evaluation::replies::Question;
use crate::interrupt::{self, GracefulStop};
use crate::model_loader::ModelLoader;
use crate::printer::Printer;
pub use args::{EXAMPLES, TrainArgs};
use base_watch::BaseWatch;
use forecast::{Forecast, MemoryBaseline};
use init_adapter::InitAdapter;
use live_report::LiveReport;
use prepare::Prepared;
pub use progress::draw_loss;
pub use run_config::{
    CardOptions, GpuMemory, RunConfig, RunFiles, RunLimits, check_length, lora_config, pin_template_date,
};
use summary::RunFacts;

/// Number of questions in the report.
pub const REPLIES: usize = 4;

/// Maximum number of tokens in a reply of the report.
pub const REPLY_TOKENS: usize = 64;

/// The result of a run.
pub enum RunOutcome {
    /// All steps are done, and all files are written.
    Finished(Box<RunSummary>),
    /// Ctrl-C stopped the run. A checkpoint was written, unless the run stopped before its first step.
    Stopped,
}

/// Trains, and prints the result.
///
/// # Errors
/// If an input is invalid or a file cannot be written. Earlier checkpoints stay intact.
pub fn run(run: &RunConfig, printer: &Printer) -> Result<()> {
    run.files.print_translation(printer);
    match execute(run, printer)? {
        RunOutcome::Finished(summary) => {
            print::conclude(&run.files.output, &summary, printer);
            printer.event("finished", || finished(&run.files.output, &summary));
        }
        RunOutcome::Stopped => {
            printer.event("stopped", || json!({"output": run.files.output.display().to_string()}));
            // The exit code tells scripts that the run is unfinished.
            interrupt::exit_interrupted()
        }
    }
    Ok(())
}

/// Returns the last event of a run.
fn finished(output: &Path, summary: &RunSummary) -> serde_json::Value {
    let verdict = Verdict::of(summary);
    json!({
        "output": output.display().to_string(),
        "steps": summary.steps.len(),
        "train_loss": summary.train_loss().map(|(_, last)| last),
        "held_out_loss": summary.held_out().map(|(_, last)| last),
        "verdict": verdict.findings().first().map(Finding::name),
        "findings": verdict,
        "seconds": summary.seconds(),
        "tokens_per_second": summary.tokens_per_second(),
    })
}

/// Trains, and writes all files.
///
/// # Errors
/// Returns the errors of [`run()`].
pub fn execute(run: &RunConfig, printer: &Printer) -> Result<RunOutcome> {
    let mut inputs = resolve(&run.files, &run.settings, printer)?;
    let planned = plan(&mut inputs, &run.limits, printer)?;
    let run = &RunConfig { files: inputs.files.clone(), settings: inputs.settings.clone(), ..run.clone() };
    let folder = OutputFolder::open(run, printer)?;
    match train(inputs, planned, &folder, run, printer)? {
        Some(trained) => {
            publish(trained, &folder, run, printer).map(|summary| RunOutcome::Finished(Box::new(summary)))
        }
        None => Ok(RunOutcome::Stopped),
    }
}

/// The opened inputs of a run.
struct Inputs {
    files: RunFiles,
    /// The settings. If the chat template contains the date, they include the date.
    settings: TrainSettings,
    base: Arc<BaseFiles>,
    tokenizer: Tokenizer,
    /// The quantization of the stored base, if the base is stored in 4 bits.
    stored: Option<Quantization>,
    tokens: TrainingIdentity,
    lora: LoraConfig,
    /// The adapter that the run continues from.
    init: Option<InitAdapter>,
    baseline: MemoryBaseline,
}

/// Resolves the base and opens its files.
fn resolve(files: &RunFiles, settings: &TrainSettings, printer: &Printer) -> Result<Inputs> {
    let loader = ModelLoader::new(printer);
    let mut files = files.resolve_data(&loader)?.resolve_base(FetchScope::Full, &loader)?;
    let base = Arc::new(loader.run(|_, _| BaseFiles::open(&files.base))?);
    // The quantization of a stored 4-bit base is recorded with the adapter, so that the original can later be
    // quantized to the same values.
    let stored = loader.run(|_, _| base.stored_quantization())?;
    let unquantized = base.weights().unquantized_modules(base.config());
    // Mapped pages of the weights are released before the memory in use is measured, because the plan counts
    // them as weights.
    base.weights().release_all();
    let mut baseline = MemoryBaseline::new();
    let tokenizer = loader.run(|_, notices| {
        let tokenizer = base.tokenizer(None)?;
        notices.extend(Notice::ignored_dropout(&tokenizer));
        Ok(tokenizer)
    })?;
    let tokenizer = with_chat_template(tokenizer, files.chat_template.as_deref(), printer)?;
    let template = files.chat_template.is_some().then(|| tokenizer.template().map(ChatTemplate::source));
    let template = template.transpose()?.map(str::to_owned);
    let config = base.config();
    tokenizer.limit_ids(config);
    let init = init_adapter::resolve(&files, settings, config, &loader)?;
    let (init, settings) = match init {
        Some((init, settings)) => (Some(init), settings),
        None => (None, settings.clone()),
    };
    if let Some(init) = &init {
        files.init_adapter = Some(init.named.clone());
    }
    let settings = pin_template_date(&settings, &tokenizer);
    let quantization = settings.quantization().or(stored);
    let tokens = TrainingIdentity::new(&files.base, &tokenizer, settings.default_system.clone())
        .with_template(template)
        .over(quantization, unquantized);
    baseline.tokenizer(&tokens);
    check_length(&settings, config, files.config.as_ref())?;
    let lora = lora_config(&files, &settings);
    targets::resolve(&lora, config)
        .map_err(|error| run_config::point_into_config(files.config.as_ref(), error))?;
    Ok(Inputs { files, settings, base, tokenizer, stored, tokens, lora, init, baseline })
}

/// The data of a run, and its memory plan.
struct Planned {
    data: Prepared,
    questions: Vec<Question>,
    forecast: Forecast,
}

/// Reads the data, and plans the memory of the run.
fn plan(inputs: &mut Inputs, limits: &RunLimits, printer: &Printer) -> Result<Planned> {
    let Inputs { files, settings, tokenizer, .. } = &*inputs;
    let (reading, val_size) = (&files.reading, files.val_size(settings));
    let data =
        prepare::prepare(&files.data, reading, files.skip_bad, tokenizer, settings, val_size, printer)?;
    inputs.settings.val_size = data.val_size;
    inputs.settings.validate()?;
    let questions = data.questions(REPLIES);
    inputs.baseline.data();
    let Inputs { settings, tokenizer, .. } = &*inputs;
    let weights = Some(inputs.base.weights());
    let subject = forecast::Subject { weights, config: inputs.base.config(), settings, limits };
    let forecast = Forecast::of(&subject, Some((&data, tokenizer, &questions)), &inputs.baseline)?;
    Ok(Planned { data, questions, forecast })
}

struct OutputFolder {
    checkpoint: Option<PathBuf>,
    notes: Option<String>,
    /// The card of an earlier part of the run, if there is one.
    earlier: Option<Card>,
    _lock: Option<File>,
}

impl OutputFolder {
    /// Opens the folder. The notes and the card are read first, so that an error in these files appears
    /// before the run.
    fn open(run: &RunConfig, printer: &Printer) -> Result<Self> {
        let notes = run.card.notes.read()?;
        let earlier = Card::read(&run.files.output)?;
        let (checkpoint, lock) = output::open(&run.files, printer)?;
        Ok(Self { checkpoint, notes, earlier, _lock: lock })
    }
}

/// A run after its last step.
struct Trained {
    trainer: Trainer,
    tokenizer: Tokenizer,
    tokens: TrainingIdentity,
    base: BaseIdentity,
    questions: Vec<Question>,
    data: DataSummary,
    forecast: Forecast,
    /// Delays the effect of Ctrl-C until the result is written.
    stop: GracefulStop,
}

/// Loads the base and runs the steps. Returns `None` if Ctrl-C stopped the run.
fn train(
    inputs: Inputs,
    planned: Planned,
    folder: &OutputFolder,
    run: &RunConfig,
    printer: &Printer,
) -> Result<Option<Trained>> {
    let Inputs { files, settings, base: base_files, tokenizer, stored, tokens, lora, init, .. } = inputs;
    let config = base_files.config();
    let Planned { data, questions, forecast } = planned;
    let backend = run.limits.compute.backend(settings.dtype.into())?;
    let loader = ModelLoader::new(printer);
    let adapter = match init {
        Some(init) => init.load(lora, &base_files, &*backend, &loader)?,
        None => Adapter::init(lora, config, settings.seed, &*backend)?,
    };
    let (quantization, threads) = (settings.quantization(), run.limits.compute.threads());
    let decoder = loader.run(|loader, _| loader.load_decoder(&base_files, quantization, threads, backend))?;
    let Prepared { examples, held_out, held_out_records, summary, bad, .. } = data;
    let held_out: Vec<LabeledSequence> = held_out.into_iter().map(|example| example.sequence).collect();
    let base = trained_base(&files, &base_files, &run.card)?;
    let watch = BaseWatch::new(Arc::clone(&base_files))?;
    let tokens = tokens.trained_on(base.clone(), stored);
    let fingerprint = base.sha256.clone().unwrap_or_default();
    let mut trainer = Trainer::new(decoder.into(), adapter, examples, settings, fingerprint)?;
    forecast.reserve(&mut trainer);
    let reason = run.limits.dtype_reason;
    print::print_plan(&files, &trainer, config, (stored, reason), &summary, printer);
    forecast.print(printer);
    output::check_space(&files.output, &trainer, tokens.largest_file(), printer)?;
    output::start(run, &mut trainer, folder.checkpoint.as_deref(), printer)?;
    prepare::list_skipped(&bad, &files.output, printer)?;
    held_out_file::write(&held_out_records, &files.output, printer)?;
    if let Some(notes) = &folder.notes {
        write_notes(&files.output, run.card.args.language(printer.lang), notes)?;
    }
    let stop = interrupt::graceful_stop(Some(
        printer
            .pick(
                "做完这一步就保存并停下；再按一次 Ctrl-C 立即结束。",
                "finishing this step, then saving; Ctrl-C again exits at once.",
            )
            .to_owned(),
    ))?;
    let mut live = LiveReport::new(&files, &summary, &base, printer);
    if !steps::take_steps(&files, &mut trainer, &held_out, &tokens, &watch, &mut live, printer)? {
        return Ok(None);
    }
    trainer.release();
    Ok(Some(Trained { trainer, tokenizer, tokens, base, questions, data: summary, forecast, stop }))
}

/// Identifies the base by its name, commit and fingerprints, but not by its path.
///
/// The Hub name comes from `--base-id`, else from the run's `danlu.json`, else from the settings.
fn trained_base(files: &RunFiles, base: &BaseFiles, card: &CardOptions) -> Result<BaseIdentity> {
    let base = BaseIdentity {
        sha256: Some(base.fingerprint()?),
        sample: Some(base.sample()?),
        ..identify_base(&files.base_as_named(), Path::new(&files.base))
    };
    let recorded = TrainingIdentity::read(&files.output)?;
    let recorded = recorded.as_ref().and_then(TrainingIdentity::base);
    let recorded = recorded.filter(|earlier| earlier.sha256 == base.sha256);
    let recorded = recorded.and_then(|earlier| earlier.hub_id.clone());
    Ok(match card.given.base_id.clone().or(recorded).or_else(|| card.args.base_id.clone()) {
        Some(id) => base.with_hub_id(&id),
        None => base,
    })
}

/// Writes the adapter, its card and its report.
fn publish(
    trained: Trained,
    folder: &OutputFolder,
    run: &RunConfig,
    printer: &Printer,
) -> Result<RunSummary> {
    let Trained { trainer, tokenizer, tokens, base, questions, data, forecast, stop: _stop } = trained;
    let replies = summary::before_and_after(&trainer, &tokenizer, &questions, printer)?;
    let earlier = folder.earlier.as_ref();
    let recorded = earlier.and_then(|card| card.training.as_ref()?.memory);
    let mut memory = forecast.measured(&**trainer.decoder().backend());
    memory.peak = memory.peak.max(recorded.map(|(peak, _)| peak));
    let output = &run.files.output;
    let summary = summary::summarize(RunFacts {
        output,
        trainer: &trainer,
        data,
        replies,
        memory: Some(memory),
        base: &base,
    });
    output::finish(run, &trainer, &tokens, &summary, base, earlier, printer)?;
    Ok(summary)
}
