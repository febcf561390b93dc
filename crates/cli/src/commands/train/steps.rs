//! The steps of a run.

use std::ops::ControlFlow;

use danlu_adapter::TrainingIdentity;
use danlu_model::LabeledSequence;
use danlu_train::{TrainError, Trainer, check_finite_weights, latest_whole_checkpoint};

use super::base_watch::BaseWatch;
use super::live_report::LiveReport;
use super::output;
use super::progress::StepProgress;
use super::run_config::RunFiles;
use super::run_log::RunLog;
use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::lesson;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

/// Runs the remaining steps. Returns `false` if Ctrl-C stopped the run.
pub fn take_steps(
    files: &RunFiles,
    trainer: &mut Trainer,
    held_out: &[LabeledSequence],
    tokens: &TrainingIdentity,
    watch: &BaseWatch,
    live: &mut LiveReport<'_>,
    printer: &Printer,
) -> Result<bool> {
    let mut progress = StepProgress::new(printer, trainer.total_steps(), trainer.settings().logging_steps);
    let mut log = RunLog::open(&files.output, files.report_to, printer)?;
    let mut saved = None;
    if trainer.global_step() == 0 {
        evaluate(trainer, held_out, &mut log, printer)?;
    }
    while !trainer.is_finished() && !interrupt::requested() {
        let step = trainer.step().map_err(|error| {
            // If the base changed, this change explains the failed step better than the error of the step.
            watch.check(&files.output).err().unwrap_or_else(|| with_cause(files, error))
        })?;
        let mean = progress.step(&step);
        log.step(&step, mean)?;
        live.update(trainer);
        if trainer.evaluation_due() || trainer.is_finished() {
            evaluate(trainer, held_out, &mut log, printer)?;
        }
        if trainer.checkpoint_due() {
            watch.check(&files.output)?;
            output::save(&files.output, trainer, tokens)?;
            log.checkpoint(trainer.global_step(), &files.output);
            saved = Some(trainer.global_step());
        }
    }
    if trainer.global_step() > 0 && saved != Some(trainer.global_step()) {
        watch.check(&files.output)?;
        output::save(&files.output, trainer, tokens)?;
        log.checkpoint(trainer.global_step(), &files.output);
    }
    printer.clear_live();
    if trainer.is_finished() {
        return Ok(true);
    }
    let (done, total, output) =
        (trainer.global_step(), trainer.total_steps(), terminal_text::shell_path(&files.output));
    if done == 0 {
        printer.status_bilingual(
            "还没走第一步就停下了，没有可保存的。",
            "stopped before the first step: nothing was saved.",
        );
        return Ok(false);
    }
    printer.status(&printer.pick(
        format!("已在第 {done}/{total} 步停下并保存。继续训练："),
        format!("stopped and saved after step {done} of {total}. To resume:"),
    ));
    printer.status(&format!(
        "  {}",
        printer.paint_status(Style::Cyan, &format!("danlu train --output {output} --resume"))
    ));
    Ok(false)
}

/// Returns the diagnostic for a failed step. If the loss is not finite because a weight of the base is not
/// finite, the diagnostic names this weight.
fn with_cause(files: &RunFiles, error: TrainError) -> Diagnostic {
    if !matches!(error, TrainError::NonFinite { .. }) {
        return error.into();
    }
    if let Err(cause @ TrainError::BaseNotFinite { .. }) = check_finite_weights(&files.base) {
        return Diagnostic::from(cause).with_details(vec![error.to_string()]);
    }
    let hint = error.hint().unwrap_or_default();
    let kept = match latest_whole_checkpoint(&files.output) {
        Ok(Some(checkpoint)) => format!("; `{}` holds the adapter as it was then", checkpoint.display()),
        _ => "; nothing of this run was saved".to_owned(),
    };
    Diagnostic::from(error).with_hint(hint + &kept)
}

fn evaluate(
    trainer: &mut Trainer,
    held_out: &[LabeledSequence],
    log: &mut RunLog<'_>,
    printer: &Printer,
) -> Result<()> {
    let logged = trainer.state().evaluations().last().is_some_and(|(step, _)| *step == trainer.global_step());
    if held_out.is_empty() || logged {
        return Ok(());
    }
    let (total, at_start) = (held_out.len(), trainer.global_step() == 0);
    let mut show = |done: usize| {
        printer.live(&printer.pick(
            format!("测量留出记录：{done}/{total} 条"),
            format!("measuring held-out records: {done} of {total}"),
        ));
        // Later evaluations run to their end, so that the log of a resumed run lacks none.
        if at_start { interrupt::check() } else { ControlFlow::Continue(()) }
    };
    let (ControlFlow::Continue(()) | ControlFlow::Break(())) = show(0);
    let report = trainer.evaluate_with(held_out, &mut show)?;
    printer.clear_live();
    let Some(report) = report else { return Ok(()) };
    trainer.log_evaluation(&report);
    log.evaluation(trainer.global_step(), &report)?;
    let (step, loss, perplexity) = (trainer.global_step(), report.loss, report.perplexity);
    printer.status(&printer.pick(
        format!("第 {step} 步后 · 留出集损失 {loss:.4} · 困惑度 {perplexity:.2}"),
        format!("after step {step} · held-out loss {loss:.4} · perplexity {perplexity:.2}"),
    ));
    printer.teach(lesson::HELD_OUT_LOSS);
    Ok(())
}
