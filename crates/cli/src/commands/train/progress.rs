//! Progress of a run. A terminal shows one live line. If stderr is no terminal, one line is printed every
//! `logging_steps` steps.

use std::collections::VecDeque;

use danlu_train::StepMetrics;

use crate::chart::{self, Series, Size};
use crate::lesson;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

/// Number of steps whose mean time gives the estimate of the remaining time. With fewer steps, a few long
/// records would change the estimate.
const WINDOW: usize = 50;

/// Number of steps before the first estimate. The first steps are slow because of page faults and warm-up.
const SETTLED: usize = 3;

/// Shows the progress of one run.
pub struct StepProgress<'a> {
    printer: &'a Printer,
    total: u64,
    logging_steps: u64,
    recent: VecDeque<StepMetrics>,
    /// Losses since the last log line. A log line shows the mean of these losses, as `trainer_state.json`
    /// does.
    losses: Vec<f64>,
    estimated: bool,
}

impl<'a> StepProgress<'a> {
    /// Creates the progress of a run with `total` steps.
    pub fn new(printer: &'a Printer, total: u64, logging_steps: u64) -> Self {
        Self { printer, total, logging_steps, recent: VecDeque::new(), losses: Vec::new(), estimated: false }
    }

    /// Shows a finished step. Returns the mean loss since the last log line, if a line is due.
    pub fn step(&mut self, step: &StepMetrics) -> Option<f64> {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(*step);
        self.losses.push(step.loss);
        if !self.estimated && self.recent.len() == SETTLED && step.step < self.total {
            self.estimated = true;
            let left = terminal_text::duration(self.seconds_left(step.step));
            self.printer.status_bilingual(&format!("预计还需 {left}"), &format!("time estimate: {left}"));
        }
        self.printer.live(&self.line(step));
        let due = step.step.is_multiple_of(self.logging_steps) || step.step == self.total;
        if due && !self.printer.has_live_line() {
            self.printer.status(&self.line(step));
            self.printer.teach(lesson::STEP_LINE);
        }
        let mean = self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64;
        if due {
            self.losses.clear();
        }
        due.then_some(mean)
    }

    fn seconds_left(&self, step: u64) -> f64 {
        let seconds: f64 = self.recent.iter().map(|s| s.seconds).sum();
        seconds / self.recent.len().max(1) as f64 * (self.total - step) as f64
    }

    fn line(&self, step: &StepMetrics) -> String {
        let seconds: f64 = self.recent.iter().map(|s| s.seconds).sum();
        let tokens: u64 = self.recent.iter().map(|s| s.tokens).sum();
        let speed = tokens as f64 / seconds.max(1e-9);
        let left = terminal_text::duration(self.seconds_left(step.step));
        let loss = self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64;
        let (done, total, lr) = (step.step, self.total, step.learning_rate);
        let width = total.to_string().len();
        self.printer.pick(
            format!("第 {done:>width$}/{total} 步 · 损失 {loss:.4} · 学习率 {lr:.2e} · {speed:.0} 词元/秒 · 还剩 {left}"),
            format!("step {done:>width$}/{total} · loss {loss:.4} · lr {lr:.2e} · {speed:.0} tok/s · {left} left"),
        )
    }
}

/// Draws the loss curve, unless the run has too few steps.
pub fn draw_loss(printer: &Printer, steps: &[StepMetrics], evaluations: &[(u64, f64)]) {
    if steps.len() < 4 {
        return;
    }
    let train = smooth(steps);
    let held_out: Vec<_> = evaluations.iter().map(|&(step, loss)| (step as f64, loss)).collect();
    let mut series =
        vec![Series {
            label: printer.pick("训练损失", "training loss"), points: &train, style: Style::Cyan
        }];
    if !held_out.is_empty() {
        let label = printer.pick("留出集损失", "held-out loss");
        series.push(Series { label, points: &held_out, style: Style::Yellow });
    }
    let size = Size { width: printer.width().min(76), height: 9 };
    let drawn = chart::draw(&series, size, printer.pick("步", "steps"), printer.status_color());
    printer.status(&format!(
        "{}\n{drawn}",
        printer.pick("损失（每词元，越低越好）", "loss per token, lower is better")
    ));
    printer.teach(lesson::CURVE);
}

/// Averages the losses over windows of one fortieth of the run, because a single loss depends on its records.
fn smooth(steps: &[StepMetrics]) -> Vec<(f64, f64)> {
    let window = steps.len().div_ceil(40);
    steps
        .chunks(window)
        .map(|chunk| {
            let mean =
                |value: fn(&StepMetrics) -> f64| chunk.iter().map(value).sum::<f64>() / chunk.len() as f64;
            (mean(|s| s.step as f64).round(), mean(|s| s.loss))
        })
        .collect()
}
