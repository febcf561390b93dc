//! `danlu demo`: trains, compares, merges and chats with an adapter on the embedded base, step by step.
//!
//! Each step runs a command of danlu. The files of all steps remain in the output folder.

mod story;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use danlu_report::Verdict;
use danlu_train::{LrSchedulerType, TrainSettings};

use crate::args::compute::ResolvedDType;
use crate::args::{ComputeArgs, SamplingArgs};
use crate::commands::train::RunOutcome;
use crate::commands::{chat, data, merge, train};
use crate::diagnostic::{Diagnostic, Result};
use crate::embedded_base;
use crate::embedded_data::{COOK, EmbeddedData, PALACE};
use crate::evaluation::replies::Question;
use crate::interrupt;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;
use story::Step;

pub const EXAMPLES: &str = "\
Examples:
  danlu demo
  danlu demo --persona cook --output /tmp/cook";

/// Number of held-out records.
const HELD_OUT: usize = 32;

/// Seed for the split, the adapter, the order of the records, and dropout.
const SEED: u64 = 42;

/// Maximum number of tokens in a reply.
const REPLY_TOKENS: usize = 48;

/// The flags of `danlu demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Output folder [default: danlu-demo, or the next free danlu-demo-N]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Character of the model: palace (376 Chinese records) or cook (121 English ones)
    #[arg(long, value_name = "WHO", default_value = "palace", hide_possible_values = true)]
    pub persona: Persona,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// The embedded data sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Persona {
    /// A consort of an invented dynasty.
    Palace,
    /// A ship's cook.
    Cook,
}

impl Persona {
    fn data(self) -> EmbeddedData {
        match self {
            Self::Palace => PALACE,
            Self::Cook => COOK,
        }
    }

    /// Returns the questions that the demo asks at the end.
    fn questions(self) -> [&'static str; 3] {
        match self {
            Self::Palace => ["你是谁？", "帮我推荐一家餐馆。", "今天好累啊。"],
            Self::Cook => ["Who are you?", "What should I cook tonight?", "I am tired."],
        }
    }
}

/// The files of the demo.
struct Folders {
    root: PathBuf,
    base: PathBuf,
    data: PathBuf,
    adapter: PathBuf,
    merged: PathBuf,
}

impl Folders {
    fn new(root: PathBuf, data: &str) -> Self {
        Self {
            base: root.join(embedded_base::BASE_NAME),
            data: root.join(data),
            adapter: root.join("adapter"),
            merged: root.join("merged"),
            root,
        }
    }
}

/// Trains, compares, merges, reloads and chats. Each step is explained.
///
/// # Errors
/// If the output folder contains other files or cannot be written, or if a step fails.
pub fn run(args: &DemoArgs, printer: &Printer) -> Result<()> {
    let data = args.persona.data();
    let folders = Folders::new(output(args.output.as_deref())?, data.file);
    danlu_model::files::ensure_output_dir(&folders.root, |_| false)?;
    embedded_base::write_base(&folders.base)?;
    danlu_model::files::write_atomic(&folders.data, data.text.as_bytes())?;
    let run = training(args, &folders)?;
    printer.status(&story::opening(printer.lang, &folders.root, data));

    step(printer, Step::Data);
    show_data(&folders, printer)?;

    step(printer, Step::Train);
    let RunOutcome::Finished(summary) = train::execute(&run, printer)? else {
        interrupt::exit_interrupted();
    };
    train::draw_loss(printer, &summary.steps, &summary.evaluations);

    step(printer, Step::Compare);
    if let Some((before, after)) = summary.held_out() {
        printer.data(&story::held_out(printer.lang, summary.data.held_out_records, before, after));
    }
    if let Some(outcome) = Verdict::of(&summary).findings().first() {
        printer.data_labeled(printer.pick("结论：", "verdict: "), &outcome.text(printer.lang.of_page()));
    }
    let (left, right) = story::before_after(printer.lang);
    for reply in &summary.replies {
        printer.data(&format!(
            "\n{}",
            printer.paint_data(Style::Bold, &format!("? {}", terminal_text::one_line(&reply.prompt)))
        ));
        let width = printer.width().min(100);
        printer.data(
            terminal_text::side_by_side([left, right], [&reply.before, &reply.after], width).trim_end(),
        );
    }

    step(printer, Step::Merge);
    merge::run(&merging(args, &folders), printer)?;

    step(printer, Step::Reload);
    for question in args.persona.questions() {
        printer.data(&printer.paint_data(Style::Bold, &format!("> {question}")));
        chat::run(&chatting(args, &folders.merged, question), printer)?;
    }

    step(printer, Step::Yours);
    for (what, command) in story::commands(printer.lang, &folders.root, data) {
        printer.data(&format!(
            "{}\n  {}",
            printer.paint_data(Style::Dim, &format!("# {what}")),
            printer.paint_data(Style::Cyan, &command)
        ));
    }
    printer.data(&story::files(printer.lang, &folders.root));
    printer.data(story::larger_base(printer.lang));
    Ok(())
}

fn step(printer: &Printer, step: Step) {
    let (title, why) = step.text(printer.lang);
    printer.status(&format!(
        "\n{}",
        printer.paint_status(Style::Bold, &format!("[{}/{}] {title}", step.number(), Step::COUNT))
    ));
    for line in terminal_text::wrap(why, printer.width().min(100)) {
        printer.status(&printer.paint_status(Style::Dim, &line));
    }
    printer.status("");
}

/// Returns the given folder, or the first of `danlu-demo`, `danlu-demo-2`, ... that does not exist.
fn output(asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(asked) = asked {
        return Ok(asked.to_owned());
    }
    let names = std::iter::once("danlu-demo".to_owned()).chain((2..1000).map(|n| format!("danlu-demo-{n}")));
    let free = names.map(PathBuf::from).find(|path| !path.exists());
    free.ok_or_else(|| {
        Diagnostic::input("`danlu-demo` to `danlu-demo-999` all exist").with_hint("--output DIR")
    })
}

/// Returns the settings of the run. Such a small base needs a higher learning rate and more epochs than the
/// defaults of `danlu train`.
fn training(args: &DemoArgs, folders: &Folders) -> Result<train::RunConfig> {
    let ResolvedDType { precision: dtype, reason: dtype_reason } = args.compute.dtype(None)?;
    let settings = TrainSettings {
        learning_rate: 1e-3,
        num_train_epochs: 2.0,
        lr_scheduler_type: LrSchedulerType::Cosine,
        val_size: HELD_OUT as f64,
        eval_steps: Some(43),
        save_steps: 0,
        seed: SEED,
        dtype,
        ..TrainSettings::default()
    };
    let files = train::RunFiles {
        base: folders.base.clone(),
        data: vec![folders.data.clone()],
        output: folders.adapter.clone(),
        ..train::RunFiles::default()
    };
    let compute = args.compute.clone();
    let limits = train::RunLimits { compute, dtype_reason, ..train::RunLimits::default() };
    Ok(train::RunConfig { files, settings, limits, card: train::CardOptions::default() })
}

fn merging(args: &DemoArgs, folders: &Folders) -> merge::MergeArgs {
    merge::MergeArgs {
        merge_base: merge::MergeBaseArg::Auto,
        original: None,
        to: None,
        adapter: folders.adapter.clone(),
        output: folders.merged.clone(),
        base: None,
        dtype: None,
        max_shard_size: None,
        data: None,
        format: None,
        threshold: None,
        allow_template_mismatch: false,
        allow_worse: false,
        json: false,
        compute: args.compute.clone(),
        card: Default::default(),
        notes: Default::default(),
    }
}

/// Shows three records, and the tokens of the first record.
fn show_data(folders: &Folders, printer: &Printer) -> Result<()> {
    let records = danlu_data::read(&folders.data, &danlu_data::ReadOptions::default())?.records;
    for question in records.iter().take(3).filter_map(Question::of) {
        printer.data(&format!(
            "{} {}",
            printer.paint_data(Style::Dim, "?"),
            terminal_text::one_line(question.text())
        ));
        printer.data(&format!(
            "{} {}\n",
            printer.paint_data(Style::Dim, "→"),
            terminal_text::one_line(&question.answer)
        ));
    }
    let tokens = data::DataArgs {
        base: Some(folders.base.clone()),
        reading: Default::default(),
        chat_template: None,
        max_length: TrainSettings::default().max_length,
        default_system: None,
        train_on_prompt: false,
        add_eos_token: None,
    };
    data::preview::run(
        &data::preview::PreviewArgs { file: folders.data.clone(), records: 1, data: tokens },
        printer,
    )
}

/// Returns the arguments of a chat with the merged model.
fn chatting(args: &DemoArgs, merged: &Path, question: &str) -> chat::ChatArgs {
    chat::ChatArgs {
        quant: Default::default(),
        path: merged.to_owned(),
        base: None,
        prompt: Some(question.to_owned()),
        prompt_file: None,
        system: None,
        allow_template_mismatch: false,
        chat_template: None,
        enable_thinking: None,
        chat_template_kwargs: None,
        sampling: SamplingArgs { temperature: Some(0.0), ..SamplingArgs::default() },
        max_new_tokens: REPLY_TOKENS,
        context: None,
        dtype: None,
        compute: args.compute.clone(),
    }
}
