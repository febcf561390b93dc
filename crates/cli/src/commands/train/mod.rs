//! `danlu train`: plan, steps, checkpoints, and the picture of the run.

mod args;
pub mod forecast;
mod output;
pub mod prepare;
mod progress;
mod run_config;

use std::sync::Arc;

use danlu_adapter::{Adapter, BaseIdentity, LoraConfig, TokenIdentity, targets};
use danlu_hub::{FetchScope, parse_snapshot_path};
use danlu_loader::{BaseFiles, folder_name, identify_base, stored_quantization};
use danlu_model::{
    LabeledSequence, LoraSource, ModelConfig, Quantization, Tokenizer, Weights, Workspace, base_fingerprint,
    base_sample,
};
use danlu_report::card::{self, Card};
use danlu_report::{DataSummary, MemoryUse, Reply, RunSummary};
use danlu_train::{TrainError, Trainer, check_finite_weights, latest_whole_checkpoint};

use crate::args::compute::check_context;
use crate::commands::quantization_progress::stored_code;
use crate::diagnostic::{Diagnostic, Result};
use crate::evaluation::{held_out_file, replies};
use crate::interrupt;
use crate::model_loader::ModelLoader;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;
pub use args::{EXAMPLES, TrainArgs};
use forecast::MemoryBaseline;
use prepare::Prepared;
use progress::Progress;
pub use progress::draw_loss;
pub use run_config::RunConfig;

/// Questions that the report shows with both answers.
pub const REPLIES: usize = 4;

/// Longest of those answers, in tokens.
pub const REPLY_TOKENS: usize = 64;

/// What a run came to.
pub enum Outcome {
    /// All steps are taken and everything is written.
    Finished(Box<RunSummary>),
    /// Someone asked it to stop; a checkpoint was written.
    Stopped,
}

/// Trains, and says how it went.
///
/// # Errors
/// If an input has a fault or something cannot be written; checkpoints written so far stay whole.
pub fn run(run: &RunConfig, printer: &Printer) -> Result<()> {
    match execute(run, printer)? {
        Outcome::Finished(summary) => conclude(run, &summary, printer),
        // Whatever stands behind it in a script would take a part for the whole.
        Outcome::Stopped => interrupt::exit_interrupted(),
    }
    Ok(())
}

/// Trains, and writes everything.
///
/// # Errors
/// As [`run()`].
pub fn execute(run: &RunConfig, printer: &Printer) -> Result<Outcome> {
    let run = &run.resolve_base(FetchScope::Full, printer)?;
    let mut baseline = MemoryBaseline::new();
    let config = ModelConfig::read(&run.base)?;
    let tokenizer = Tokenizer::read(&run.base)?;
    tokenizer.check_fits(&config)?;
    let run = &pin_template_date(run, &tokenizer);
    // In whichever way the base comes to its 4 bits, they can be made again from its original.
    let stored = stored_quantization(&run.base, &config)?;
    let tokens = TokenIdentity::new(&run.base, &tokenizer, run.settings.default_system.clone())
        .over(run.settings.quantization().or(stored), Weights::open(&run.base)?.unquantized_modules(&config));
    baseline.tokenizer(&tokens);
    check_length(run, &config)?;
    let lora = lora_config(run);
    targets::resolve(&lora, &config).map_err(|error| run_config::point_into_config(run, error))?;
    let data = prepare::prepare(&run.data, &run.reading, run.skip_bad, &tokenizer, &run.settings, printer)?;
    let questions = data.questions(REPLIES);
    baseline.data();
    let forecast = forecast::Forecast::of(run, &config, Some((&data, &tokenizer, &questions)), &baseline)?;
    let notes = run.notes.read()?;
    // Read first, as the notes: a fault in it should not cost a run.
    let earlier = Card::read(&run.output)?;
    let (checkpoint, _lock) = output::open(run, printer)?;

    let backend = run.compute.backend(run.settings.dtype.into())?;
    let adapter = Adapter::init(lora, &config, run.settings.seed, &*backend)?;
    let quantization = run.settings.quantization();
    let threads = run.compute.threads();
    let decoder = ModelLoader::new(printer).run(|loader, _| {
        loader.load_decoder(&BaseFiles::open(&run.base)?, quantization, threads, backend).map(Arc::new)
    })?;
    let Prepared { examples, held_out, held_out_records, summary, bad, .. } = data;
    let held_out: Vec<LabeledSequence> = held_out.into_iter().map(|example| example.sequence).collect();
    let fingerprint = base_fingerprint(&run.base)?;
    let sample = base_sample(&run.base)?;
    let base = base_name(
        run,
        BaseIdentity { sha256: Some(fingerprint.clone()), sample: Some(sample), ..BaseIdentity::default() },
    );
    let tokens = tokens.trained_on(base.clone(), stored);
    let mut trainer =
        Trainer::new(Arc::clone(&decoder), adapter, examples, run.settings.clone(), fingerprint)?;
    forecast.reserve(&mut trainer);
    print_plan(run, &trainer, &config, stored, &summary, printer);
    forecast.print(printer);
    output::start(run, &mut trainer, checkpoint.as_deref(), printer)?;
    prepare::list_skipped(&bad, &run.output, printer)?;
    held_out_file::write(&held_out_records, &run.output, printer)?;
    if let Some(notes) = notes {
        card::write_notes(&run.output, run.card.language(printer.lang), &notes)?;
    }

    let _attention = interrupt::graceful_stop(Some(
        printer
            .pick(
                "做完这一步就保存并停下；再按一次 Ctrl-C 立即结束。",
                "finishing this step, then saving; Ctrl-C again ends at once.",
            )
            .to_owned(),
    ))?;
    if !take_steps(run, &mut trainer, &held_out, &tokens, printer)? {
        return Ok(Outcome::Stopped);
    }
    trainer.release();
    let replies = before_and_after(&trainer, &tokenizer, &questions, printer)?;
    let recorded = earlier.as_ref().and_then(|card| card.training.as_ref()?.memory);
    let mut memory = forecast.measured();
    memory.peak = memory.peak.max(recorded.map(|(peak, _)| peak));
    let summary = summarize(run, &trainer, &config, summary, replies, memory, &base);
    output::finish(run, &trainer, &tokens, &summary, base, earlier.as_ref(), printer)?;
    Ok(Outcome::Finished(Box::new(summary)))
}

/// The run with the day its template is told: a template that asks is given one day for the whole run, however
/// often it is resumed.
pub fn pin_template_date(run: &RunConfig, tokenizer: &Tokenizer) -> RunConfig {
    let mut run = run.clone();
    let Some(template) = tokenizer.template().ok().filter(|template| template.asks_for_date()) else {
        run.settings.template_date = None;
        return run;
    };
    if run.settings.template_date.is_none() {
        run.settings.template_date = Some(template.today());
    }
    if let Some(seconds) = run.settings.template_seconds() {
        template.stop_clock(seconds);
    }
    run
}

/// A limit beyond what the base was made for would train positions it has never seen.
///
/// # Errors
/// If it is, underlined where a configuration file asks for it.
pub fn check_length(run: &RunConfig, config: &ModelConfig) -> Result<()> {
    let fits = check_context(run.settings.max_length, config.max_position_embeddings, "`--max-length`");
    fits.map_err(|diagnostic| {
        diagnostic.with_snippet(run.config.as_ref().and_then(|c| c.snippet("max-length", "")))
    })
}

/// The adapter that the settings ask for, on the base as it was named, and at the commit that is used: a name alone means
/// another model tomorrow.
pub fn lora_config(run: &RunConfig) -> LoraConfig {
    match &run.on_hub {
        Some(name) => {
            let commit = parse_snapshot_path(&run.base).map(|(_, commit)| commit);
            let revision = commit.or_else(|| name.named_revision().map(str::to_owned));
            LoraConfig { revision, ..run.settings.lora_config(name.id()) }
        }
        None => run.settings.lora_config(&run.base_as_named()),
    }
}

/// Everything that is settled before the first step.
fn print_plan(
    run: &RunConfig,
    trainer: &Trainer,
    config: &ModelConfig,
    stored: Option<Quantization>,
    data: &DataSummary,
    printer: &Printer,
) {
    let trainable = trainer.adapter().num_parameters() as u64;
    let all = config.num_parameters() + trainable;
    let percent = 100.0 * trainable as f64 / all as f64;
    // Word for word as PEFT's `print_trainable_parameters`.
    let (t, a) = (terminal_text::thousands(trainable), terminal_text::thousands(all));
    printer.status(&format!("trainable params: {t} || all params: {a} || trainable%: {percent:.4}"));

    let row = |zh: &str, en: &str, value: String| {
        let label = printer.paint_status(Style::Dim, &terminal_text::pad(printer.pick(zh, en), 10));
        printer.status_labeled(&format!("{label} "), &value);
    };
    let s = trainer.settings();
    row(
        "基座",
        "base",
        format!("{} · {}", run.base_shown(), printer.backend(&trainer.decoder().backend().name())),
    );
    let n = |n: u64| terminal_text::thousands(n);
    let held = data.held_out_records;
    let files: Vec<_> = data.files.iter().map(|f| format!("{} ({})", f.name, f.format)).collect();
    let counts = printer.pick(
        format!(
            "{} 条训练，{held} 条留出，{} 词元，其中 {} 计损失",
            n(data.training_records),
            n(data.tokens),
            n(data.trained_tokens)
        ),
        format!(
            "{}, {held} held out, {} tokens, {} of them trained",
            terminal_text::counted(data.training_records, "record"),
            n(data.tokens),
            n(data.trained_tokens)
        ),
    );
    row("数据", "data", format!("{} · {counts}", files.join(", ")));
    for path in run.data_found_elsewhere() {
        row("", "", path.display().to_string());
    }
    let (short, dropped, max) = (data.shortened, data.dropped, s.max_length);
    if short + dropped > 0 {
        row("截断", "truncated", printer.pick(
            format!("{short} 条截断到 {max} 词元（从问题开头截），{dropped} 条因答案放不下而丢弃"),
            format!(
                "{} shortened to {max} tokens (the question loses its front), {dropped} dropped: no answer fits",
                terminal_text::counted(short, "record")
            ),
        ));
    }
    let (batch, accumulation, steps) =
        (s.per_device_train_batch_size, s.gradient_accumulation_steps, trainer.total_steps());
    row(
        "步数",
        "steps",
        printer.pick(
            format!("{steps} 步，每步 {batch} × {accumulation} 条"),
            format!("{steps}, each {batch} × {accumulation} records"),
        ),
    );
    let shown = [
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "learning_rate",
        "lr_scheduler_type",
        "dtype",
        "quant",
        "seed",
    ];
    let settings = s.entries().into_iter().filter(|(name, _)| shown.contains(&name.as_str()));
    let settings: Vec<_> = settings
        .map(|(name, value)| match stored.filter(|_| name == "quant") {
            Some(stored) => format!("{name} {}", stored_code(stored, printer)),
            None => format!("{name} {}", plain(&value)),
        })
        .collect();
    row("设置", "settings", settings.join(", "));
    row("输出", "output", run.output.display().to_string());
}

/// A JSON value without its quotation marks.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    }
}

/// Takes the steps that are left; `false` when it was asked to stop before the last.
fn take_steps(
    run: &RunConfig,
    trainer: &mut Trainer,
    held_out: &[LabeledSequence],
    tokens: &TokenIdentity,
    printer: &Printer,
) -> Result<bool> {
    let mut progress = Progress::new(printer, trainer.total_steps(), run.settings.logging_steps);
    let mut saved = None;
    if trainer.global_step() == 0 {
        evaluate(trainer, held_out, printer)?;
    }
    while !trainer.is_finished() && !interrupt::requested() {
        let step = trainer.step().map_err(|error| with_cause(run, error))?;
        progress.step(&step);
        if trainer.evaluation_due() || trainer.is_finished() {
            evaluate(trainer, held_out, printer)?;
        }
        if trainer.checkpoint_due() {
            output::save(run, trainer, tokens)?;
            saved = Some(trainer.global_step());
        }
    }
    if trainer.global_step() > 0 && saved != Some(trainer.global_step()) {
        output::save(run, trainer, tokens)?;
    }
    printer.clear_live();
    if trainer.is_finished() {
        return Ok(true);
    }
    let (done, total, output) =
        (trainer.global_step(), trainer.total_steps(), terminal_text::shell_path(&run.output));
    if done == 0 {
        printer.status_bilingual(
            "还没走第一步就停下了，没有可保存的。",
            "stopped before the first step: there was nothing to save.",
        );
        return Ok(false);
    }
    printer.status(&printer.pick(
        format!("已在第 {done}/{total} 步停下并保存。继续训练："),
        format!("stopped and saved after step {done} of {total}. To go on:"),
    ));
    printer.status(&format!(
        "  {}",
        printer.paint_status(Style::Cyan, &format!("danlu train --output {output} --resume"))
    ));
    Ok(false)
}

/// A step whose numbers ran away, with the weight of the base that is none, where there is one, and what is left.
fn with_cause(run: &RunConfig, error: TrainError) -> Diagnostic {
    if !matches!(error, TrainError::NonFinite { .. }) {
        return error.into();
    }
    if let Err(cause @ TrainError::BaseNotFinite { .. }) = check_finite_weights(&run.base) {
        return Diagnostic::from(cause).with_details(vec![error.to_string()]);
    }
    let hint = error.hint().unwrap_or_default();
    let kept = match latest_whole_checkpoint(&run.output) {
        Ok(Some(checkpoint)) => format!("; `{}` holds the adapter as it was then", checkpoint.display()),
        _ => "; nothing of this run is kept".to_owned(),
    };
    Diagnostic::from(error).with_hint(hint + &kept)
}

fn evaluate(trainer: &mut Trainer, held_out: &[LabeledSequence], printer: &Printer) -> Result<()> {
    let logged = trainer.state().evaluations().last().is_some_and(|(step, _)| *step == trainer.global_step());
    if held_out.is_empty() || logged {
        return Ok(());
    }
    let report = trainer.evaluate(held_out)?;
    trainer.log_evaluation(&report);
    let (step, loss, perplexity) = (trainer.global_step(), report.loss, report.perplexity);
    printer.status(&printer.pick(
        format!("第 {step} 步后 · 留出集损失 {loss:.4} · 困惑度 {perplexity:.2}"),
        format!("after step {step} · held-out loss {loss:.4} · perplexity {perplexity:.2}"),
    ));
    Ok(())
}

/// Base and adapter on the same questions. A second thought (Ctrl-C) skips what is left of it.
fn before_and_after(
    trainer: &Trainer,
    tokenizer: &Tokenizer,
    questions: &[replies::Question],
    printer: &Printer,
) -> Result<Vec<Reply>> {
    let mut work = Workspace::new();
    let mut out = Vec::new();
    for (i, question) in questions.iter().enumerate() {
        if interrupt::requested() {
            break;
        }
        let total = questions.len();
        printer.live(&printer.pick(
            format!("训练前后的回答 {}/{total}", i + 1),
            format!("replies before and after {} of {total}", i + 1),
        ));
        let mut say = |lora| {
            replies::reply(trainer.decoder(), &mut work, lora, tokenizer, &question.messages, REPLY_TOKENS)
        };
        let before = say(None)?;
        let after = say(Some(trainer.adapter() as &dyn LoraSource))?;
        out.push(Reply { prompt: question.text().to_owned(), before, after });
    }
    printer.clear_live();
    Ok(out)
}

fn summarize(
    run: &RunConfig,
    trainer: &Trainer,
    config: &ModelConfig,
    data: DataSummary,
    replies: Vec<Reply>,
    memory: MemoryUse,
    base: &BaseIdentity,
) -> RunSummary {
    let trainable_parameters = trainer.adapter().num_parameters() as u64;
    RunSummary {
        adapter_name: folder_name(&run.output),
        base_name: base.shown().to_owned(),
        all_parameters: config.num_parameters() + trainable_parameters,
        trainable_parameters,
        settings: run.settings.clone(),
        data,
        steps: trainer.history().to_vec(),
        evaluations: trainer.state().evaluations(),
        replies,
        backend: trainer.decoder().backend().name(),
        memory: Some(memory),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The base without its path.
fn base_name(run: &RunConfig, known: BaseIdentity) -> BaseIdentity {
    let base = identify_base(&run.base_as_named(), &run.base);
    let base = BaseIdentity { sha256: known.sha256, sample: known.sample, ..base };
    match &run.card.base_id {
        Some(id) => base.with_hub_id(id),
        None => base,
    }
}

/// The end of a run on the screen.
fn conclude(run: &RunConfig, summary: &RunSummary, printer: &Printer) {
    draw_loss(printer, &summary.steps, &summary.evaluations);
    let output = run.output.display();
    if let Some((first, last)) = summary.train_loss() {
        printer.data(&printer.pick(
            format!("训练损失    {first:.4} → {last:.4}（最初与最后十分之一的步）"),
            format!("training loss   {first:.4} → {last:.4} (first and last tenth of the steps)"),
        ));
    }
    if let Some((first, last)) = summary.held_out() {
        let (p0, p1) = (first.exp(), last.exp());
        printer.data(&printer.pick(
            format!("留出集损失  {first:.4} → {last:.4}（困惑度 {p0:.2} → {p1:.2}）"),
            format!("held-out loss   {first:.4} → {last:.4} (perplexity {p0:.2} → {p1:.2})"),
        ));
    }
    let time = terminal_text::duration(summary.seconds());
    let speed = summary.tokens_per_second().unwrap_or(0.0);
    printer.data(&printer.pick(
        format!("用时        {time}，{speed:.0} 词元/秒"),
        format!("time            {time}, {speed:.0} tok/s"),
    ));
    if let Some(line) = summary.memory.as_ref().and_then(|memory| forecast::peak_line(memory, printer)) {
        printer.data(&line);
    }
    printer.data(&printer.pick(format!("适配器      {output}"), format!("adapter         {output}")));
    printer.data(
        &printer.pick(
            format!("报告        {output}/report.html"),
            format!("report          {output}/report.html"),
        ),
    );
    if summary.data.held_out_records > 0 && run.output.join(held_out_file::HELD_OUT_FILE).is_file() {
        printer.data(&printer.pick(
            format!("留出的记录  {output}/{}", held_out_file::HELD_OUT_FILE),
            format!("held out        {output}/{}", held_out_file::HELD_OUT_FILE),
        ));
    }
    printer.status(&format!("\n{}", printer.pick("接下来：", "next:")));
    let merged = terminal_text::shell_word(&format!("{output}-merged"));
    let output = terminal_text::shell_path(&run.output);
    let compare =
        run.output.join(held_out_file::HELD_OUT_FILE).is_file().then(|| format!("danlu compare {output}"));
    let merge = format!("danlu merge {output} --output {merged}");
    for command in [Some(format!("danlu chat {output}")), compare, Some(merge)].into_iter().flatten() {
        printer.status(&format!("  {}", printer.paint_status(Style::Cyan, &command)));
    }
}
