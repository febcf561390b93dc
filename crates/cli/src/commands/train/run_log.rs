//! The events of a run, for `--json` and `--report-to`.

use std::path::Path;
use std::str::FromStr;

use danlu_train::{EvalMetrics, StepMetrics};
use serde_json::json;

use super::tensorboard::EventFile;
use crate::diagnostic::Result;
use crate::printer::Printer;

/// The value of `--report-to`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReportTo {
    /// No additional log.
    #[default]
    None,
    /// Event files of TensorBoard.
    TensorBoard,
}

impl ReportTo {
    /// Returns the value of the flag.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TensorBoard => "tensorboard",
        }
    }
}

impl FromStr for ReportTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "none" => Ok(Self::None),
            "tensorboard" | "all" => Ok(Self::TensorBoard),
            name => Err(format!(
                "expected tensorboard or none; danlu has no client for {name}, which can import \
                 TensorBoard's files, such as `wandb sync` or `swanlab convert`"
            )),
        }
    }
}

/// Writes each event of a run to the logs.
pub struct RunLog<'a> {
    printer: &'a Printer,
    events: Option<EventFile>,
}

impl<'a> RunLog<'a> {
    /// Opens the log of a run.
    ///
    /// # Errors
    /// If an event file cannot be written.
    pub fn open(output: &Path, report_to: ReportTo, printer: &'a Printer) -> Result<Self> {
        let events = (report_to == ReportTo::TensorBoard).then(|| EventFile::create(output)).transpose()?;
        Ok(Self { printer, events })
    }

    /// Logs a step. `mean` is the mean loss since the last log line, or `None` if no log line is due.
    ///
    /// # Errors
    /// If an event file cannot be written.
    pub fn step(&mut self, step: &StepMetrics, mean: Option<f64>) -> Result<()> {
        self.printer.event("step", || {
            json!({
                "step": step.step, "epoch": step.epoch, "loss": step.loss, "grad_norm": step.grad_norm,
                "learning_rate": step.learning_rate, "tokens": step.tokens,
                "trained_tokens": step.trained_tokens, "seconds": step.seconds,
            })
        });
        let (Some(events), Some(loss)) = (&mut self.events, mean) else { return Ok(()) };
        let values = [
            ("train/loss", loss),
            ("train/grad_norm", step.grad_norm),
            ("train/learning_rate", step.learning_rate),
            ("train/epoch", step.epoch),
        ];
        events.add(step.step, &values)
    }

    /// Logs an evaluation on held-out records.
    ///
    /// # Errors
    /// If an event file cannot be written.
    pub fn evaluation(&mut self, step: u64, metrics: &EvalMetrics) -> Result<()> {
        let (loss, perplexity) = (metrics.loss, metrics.perplexity);
        self.printer.event("evaluation", || json!({"step": step, "loss": loss, "perplexity": perplexity}));
        match &mut self.events {
            Some(events) => events.add(step, &[("eval/loss", loss), ("eval/perplexity", perplexity)]),
            None => Ok(()),
        }
    }

    /// Logs a saved checkpoint.
    pub fn checkpoint(&self, step: u64, output: &Path) {
        self.printer.event("checkpoint", || json!({"step": step, "output": output.display().to_string()}));
    }
}
