//! Writes `report.html` during a run. A browser reloads this page every few seconds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use danlu_adapter::BaseIdentity;
use danlu_model::files;
use danlu_report::{DataSummary, page};
use danlu_train::Trainer;

use super::output::REPORT_FILE;
use super::run_config::RunFiles;
use super::summary::{RunFacts, summarize};
use crate::browser;
use crate::printer::Printer;

/// Minimum time between two writes. Each write syncs the file to the disk, so frequent writes would slow the
/// training down.
const INTERVAL: Duration = Duration::from_secs(5);

/// Writes the report of a running training.
pub struct LiveReport<'a> {
    output: PathBuf,
    data: DataSummary,
    base: BaseIdentity,
    printer: &'a Printer,
    written: Instant,
    /// Whether a browser must still be opened.
    opens: bool,
    /// Whether a write failed. After a failed write, the training continues, and the page is not written
    /// again.
    has_failed: bool,
}

impl<'a> LiveReport<'a> {
    pub fn new(files: &RunFiles, data: &DataSummary, base: &BaseIdentity, printer: &'a Printer) -> Self {
        Self {
            output: files.output.clone(),
            data: data.clone(),
            base: base.clone(),
            printer,
            written: Instant::now(),
            opens: files.opens_report,
            has_failed: false,
        }
    }

    /// Writes the page if the last write was at least [`INTERVAL`] ago. With `--open`, the first page is
    /// written at once.
    pub fn update(&mut self, trainer: &Trainer) {
        if self.has_failed || !(self.opens || self.written.elapsed() >= INTERVAL) {
            return;
        }
        self.written = Instant::now();
        let summary = summarize(RunFacts {
            output: &self.output,
            trainer,
            data: self.data.clone(),
            replies: Vec::new(),
            memory: None,
            base: &self.base,
        });
        let text = page::render_running(&summary, trainer.total_steps(), self.printer.lang.of_page());
        let path = self.output.join(REPORT_FILE);
        if let Err(error) = files::write_atomic(&path, text.as_bytes()) {
            self.has_failed = true;
            self.printer.warn(&self.printer.pick(
                format!("训练中的报告写不了，训练继续：{error}"),
                format!("the report of the running training stops, the training goes on: {error}"),
            ));
            return;
        }
        if std::mem::take(&mut self.opens) {
            browser::open(&path, self.printer);
        }
    }
}
