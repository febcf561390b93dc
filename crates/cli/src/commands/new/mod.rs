//! `danlu new`: asks five questions, proposes a run, and writes its configuration file. If the user agrees,
//! the command also starts the run.

mod answers;
mod interview;
mod proposal;
mod run_file;

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use danlu_model::files;
use danlu_train::memory;

use crate::args::ComputeArgs;
use crate::clap_error::usage;
use crate::commands::train::{self, RunConfig, TrainArgs};
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;
use answers::Answers;
use interview::Interview;
use proposal::Proposal;

pub const EXAMPLES: &str = "\
Examples:
  danlu new
  danlu new --base demo --data palace --limits '10m 1GiB'
  danlu new --base demo --data danlu-demo/palace.json --yes

With --yes, questions without a flag get their default answers, and the run starts.";

/// The flags of `danlu new`. Each answers a question.
#[derive(Args, Clone, Debug)]
pub struct NewArgs {
    /// Language of the data: zh or en [default: asked]
    #[arg(long, value_name = "LANG", help_heading = "Answers")]
    pub data_lang: Option<String>,
    /// Base model: demo, a folder or a Hub name [default: asked]
    #[arg(long, value_name = "DIR", help_heading = "Answers")]
    pub base: Option<String>,
    /// Training data: a file, hf:org/name, or a data set of `danlu data get` [default: asked]
    #[arg(long, value_name = "FILE", help_heading = "Answers")]
    pub data: Option<String>,
    /// One sentence about who the model is; this sentence becomes the system message [default: asked]
    #[arg(long, value_name = "TEXT", help_heading = "Answers")]
    pub character: Option<String>,
    /// Time and memory that the run may take, such as '30m 4GiB' [default: asked]
    #[arg(long, value_name = "LIMITS", help_heading = "Answers")]
    pub limits: Option<String>,
    /// Configuration file to write [default: run.toml, or the next free run-N.toml]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Asks the questions, proposes a run, writes its file, and trains if the user agrees.
///
/// # Errors
/// If an answer is invalid, the run does not fit, or a file cannot be written.
pub fn run(args: &NewArgs, printer: &Printer) -> Result<()> {
    let interview = Interview::new(printer);
    let answers = Answers::collect(args, &interview)?;
    let path = file_to_write(args.output.as_deref())?;
    let proposal = Proposal::of(&answers, &args.compute, printer)?;
    print(&proposal, printer);
    let text = run_file::render(&proposal, &path, printer.lang);
    files::write_atomic(&path, text.as_bytes())?;
    let word = terminal_text::shell_path(&path);
    printer.data(&path.display().to_string());
    if printer.yes || interview.confirms(printer.pick("现在开始训练吗？", "start the training now?"))?
    {
        return train::run(&read(&path)?, printer);
    }
    printer.status(&printer.pick(
        format!("每一项都有注释，可以先改。开始训练：danlu train --config {word}"),
        format!("every key has a comment, and can be changed. To start: danlu train --config {word}"),
    ));
    Ok(())
}

/// Reads the written file as `danlu train --config` does, so that both start the same run.
fn read(path: &Path) -> Result<RunConfig> {
    let command = TrainArgs::augment_args(Command::new("train")).no_binary_name(true);
    let line = ["--config".into(), path.as_os_str().to_owned()];
    RunConfig::resolve(&command.try_get_matches_from(line).map_err(|error| usage(&error))?)
}

/// Returns the given file, or the first of `run.toml`, `run-2.toml`, ... that does not exist.
fn file_to_write(asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = asked {
        return match path.exists() {
            true => Err(Diagnostic::input(format!("cannot write `{}`: it exists already", path.display()))
                .with_hint("remove it, or name another file")),
            false => Ok(path.to_owned()),
        };
    }
    let names = std::iter::once("run.toml".to_owned()).chain((2..1000).map(|n| format!("run-{n}.toml")));
    let free = names.map(PathBuf::from).find(|path| !path.exists());
    free.ok_or_else(|| {
        Diagnostic::input("`run.toml` to `run-999.toml` all exist").with_hint("name a file with `--output`")
    })
}

/// Prints the proposed run, and the resources that it needs.
fn print(proposal: &Proposal, printer: &Printer) {
    let row = |zh: &str, en: &str, value: String| {
        let label = printer.paint_data(Style::Dim, &terminal_text::pad(printer.pick(zh, en), 10));
        printer.data_labeled(&format!("{label} "), &value);
    };
    let (files, prediction) = (&proposal.run.files, &proposal.prediction);
    printer.data("");
    row("基座", "base", proposal.base_with_size(printer));
    row("数据", "data", files.data.iter().map(|it| it.display().to_string()).collect::<Vec<_>>().join(", "));
    row("内存", "memory", memory::display(prediction.forecast.plan.total));
    row("硬盘", "disk", memory::display(proposal.disk));
    match proposal.time() {
        Some(time) => {
            let (time, note) = time.describe(printer);
            row("时间", "time", printer.pick(format!("{time}（{note}）"), format!("{time} ({note})")));
        }
        None => row("时间", "time", printer.pick("没有测量", "not measured").to_owned()),
    }
    row("输出", "output", files.output.display().to_string());
    for note in proposal.notes(printer) {
        printer.warn(&note);
    }
}
