//! `danlu report`: serves the report of a run on this machine, or compares several runs on one page.

mod server;

use std::path::{Path, PathBuf};

use clap::Args;
use danlu_adapter::RUN_FILE;
use danlu_loader::folder_name;
use danlu_model::files;
use danlu_report::page::{self, ComparedRun};
use danlu_train::RunHistory;

use crate::browser;
use crate::commands::train::output::REPORT_FILE;
use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::printer::Printer;
use crate::style::Style;

pub const EXAMPLES: &str = "\
Examples:
  danlu report danlu-demo/adapter
  danlu train --config danlu-demo/adapter/run.toml --output out/rank-16 \\
    --lora-r 16
  danlu report danlu-demo/adapter out/rank-16
  danlu report danlu-demo/adapter out/rank-16 --output runs.html

The page is served on 127.0.0.1 until Ctrl-C. The page of a running training reloads itself.";

/// Largest report that is read, in bytes.
const MAX_REPORT_BYTES: u64 = 256 << 20;

/// Largest `run.toml` that is read, in bytes.
const MAX_RUN_FILE_BYTES: u64 = 1 << 20;

/// The flags of `danlu report`.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// Output folders of runs; several are compared on one page
    #[arg(required = true, value_name = "DIR")]
    pub runs: Vec<PathBuf>,
    /// Write the page to a file instead of serving it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["port", "open"])]
    pub output: Option<PathBuf>,
    /// Port on 127.0.0.1; 0 for any free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,
    /// Open the page in a browser
    #[arg(long)]
    pub open: bool,
}

/// Serves the page until Ctrl-C, or writes the page to a file.
///
/// # Errors
/// If a folder contains no run, or the port or the file cannot be used.
pub fn run(args: &ReportArgs, printer: &Printer) -> Result<()> {
    args.runs.iter().try_for_each(|run| check_run(run))?;
    let first = render(&args.runs, printer)?;
    if let Some(output) = &args.output {
        files::write_atomic(output, first.as_bytes())?;
        printer.data(&output.display().to_string());
        return Ok(());
    }
    let _stop = interrupt::graceful_stop(None)?;
    let server = server::PageServer::bind(args.port)?;
    let url = server.url();
    printer.data(&printer.paint_data(Style::Cyan, &url));
    printer.status_bilingual(
        "在浏览器里打开这个地址。Ctrl-C 结束。",
        "Open this address in a browser. Ctrl-C ends.",
    );
    if args.open {
        browser::open(&url, printer);
    }
    server.serve(&|| render(&args.runs, printer))
}

fn check_run(folder: &Path) -> Result<()> {
    if folder.join(RUN_FILE).is_file() || folder.join(REPORT_FILE).is_file() {
        return Ok(());
    }
    let text = format!("cannot show `{}`: it is not the output folder of a training", folder.display());
    Err(Diagnostic::input(text).with_hint("name the folder that `danlu train --output` wrote"))
}

/// Returns the page of one run, or a page that compares several runs.
fn render(runs: &[PathBuf], printer: &Printer) -> Result<String> {
    let language = printer.lang.of_page();
    if let [run] = runs {
        let path = run.join(REPORT_FILE);
        if !path.is_file() {
            let zh = "训练还没有走完第一步，或者报告还没有写出。页面会自动刷新。";
            let en =
                "The first step is not done, or the report is not written yet. This page reloads itself.";
            return Ok(page::waiting(&folder_name(run), printer.pick(zh, en), language));
        }
        let bytes = files::read_bounded(&path, MAX_REPORT_BYTES)?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    let compared = runs.iter().map(|run| read_run(run)).collect::<Result<Vec<_>>>()?;
    Ok(page::compare(&compared, language))
}

/// Reads the settings of a run, and the losses in its newest checkpoint.
fn read_run(folder: &Path) -> Result<ComparedRun> {
    let history = RunHistory::read(folder)?.ok_or_else(|| {
        let text = format!("cannot compare `{}`: it has no intact checkpoint", folder.display());
        Diagnostic::input(text).with_hint("wait for the first checkpoint, or leave the folder out")
    })?;
    let path = folder.join(RUN_FILE);
    let bytes = files::read_bounded(&path, MAX_RUN_FILE_BYTES)?;
    let table: toml::Table = String::from_utf8_lossy(&bytes).parse().map_err(|error| {
        Diagnostic::input(format!("cannot read `{}`: {error}", path.display()))
            .with_hint("restore the file, or leave the folder out")
    })?;
    let settings = table.into_iter().filter(|(key, _)| key != "output");
    let settings = settings.map(|(key, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (key, text)
    });
    Ok(ComparedRun {
        name: folder_name(folder),
        settings: settings.collect(),
        steps: history.steps,
        evaluations: history.evaluations,
    })
}
