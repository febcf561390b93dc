//! The output folder of a run: lock, checkpoints and results.

use std::fs::File;
use std::path::{Path, PathBuf};

use danlu_adapter::{BaseIdentity, LoraConfig, RUN_FILE, TrainingIdentity, latest_checkpoint};
use danlu_model::files;
use danlu_report::card::Card;
use danlu_report::{RunSummary, page};
use danlu_train::{TrainError, Trainer, latest_whole_checkpoint, sweep_leftovers};

use super::card;
use super::run_config::{RunConfig, RunFiles};
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;
use crate::terminal_text;

/// Name of the report in the output folder.
pub const REPORT_FILE: &str = "report.html";

/// Prepares the output folder of a run. Returns the checkpoint to resume from, if the run resumes, and a
/// lock. While the lock exists, no second run can open the folder. The lock is `None` if the file system does
/// not support locks.
///
/// # Errors
/// If the folder is locked by another run, contains other files, or cannot be written. With `--resume`, also
/// returns an error if there is no run or no such checkpoint.
pub fn open(files: &RunFiles, printer: &Printer) -> Result<(Option<PathBuf>, Option<File>)> {
    let output = &files.output;
    let holds_run = output.join(RUN_FILE).is_file();
    let Some(named) = &files.resume else {
        if holds_run {
            let text = format!("`{}` holds a run already", output.display());
            let hint = match latest_checkpoint(output)? {
                Some(_) => "continue it with `--resume`, or start a new run in a new folder",
                None => {
                    "restart it with `--resume`, since it has no checkpoint yet; new settings are allowed"
                }
            };
            return Err(Diagnostic::input(text).with_hint(hint));
        }
        files::ensure_output_dir(output, |_| false)?;
        let lock = files::lock_folder(output)?;
        sweep_leftovers(output)?;
        return Ok((None, lock));
    };
    if !holds_run {
        let text = format!("`{}` holds no run to resume", output.display());
        return Err(Diagnostic::input(text).with_hint("omit `--resume` to start one"));
    }
    files::ensure_output_dir(output, |_| true)?;
    let lock = files::lock_folder(output)?;
    sweep_leftovers(output)?;
    let checkpoint = match named {
        Some(path) if path.is_dir() => Some(path.clone()),
        Some(path) => {
            let newest = latest_checkpoint(output)?.map(|path| format!("the newest is `{}`", path.display()));
            let text = format!("`{}` is no checkpoint", path.display());
            return Err(
                Diagnostic::input(text).with_hint(newest.unwrap_or_else(|| "there is none yet".to_owned()))
            );
        }
        None => latest_checkpoint(output)?,
    };
    if checkpoint.is_none() {
        printer.status_bilingual(
            "还没有检查点：从头开始",
            "there is no checkpoint yet: starting from the beginning",
        );
    }
    Ok((checkpoint, lock))
}

/// Checks that the disk has room for one checkpoint and the adapter. Warns if the disk lacks room for all
/// checkpoints. `copied` is the size in bytes of the largest file that is saved with the weights, such as
/// `tokenizer.json`.
///
/// # Errors
/// If the first save would fill the disk.
pub fn check_space(output: &Path, trainer: &Trainer, copied: u64, printer: &Printer) -> Result<()> {
    let settings = trainer.settings();
    let adapter = 4 * trainer.adapter().num_parameters() as u64 + copied;
    // AdamW stores two moments per parameter.
    let checkpoint = adapter + 2 * (adapter - copied);
    let left = trainer.total_steps() - trainer.global_step();
    let saves = if settings.save_steps == 0 { 1 } else { left.div_ceil(settings.save_steps).max(1) };
    let kept = settings.save_total_limit.map_or(saves, |limit| saves.min(limit as u64));
    let (least, all) = (checkpoint + adapter, kept * checkpoint + adapter);
    let free = files::free_space(output)?;
    let [shown_least, shown_all, shown_free] = [least, all, free].map(terminal_text::bytes);
    if free < least {
        let text = format!(
            "cannot train into `{}`: a checkpoint and the adapter need {shown_least}, and the disk has {shown_free} free",
            output.display()
        );
        return Err(Diagnostic::input(text).with_hint("free some space, or choose another --output"));
    }
    if free < all {
        printer.warn(&printer.pick(
            format!("{kept} 个检查点共需 {shown_all}，磁盘只剩 {shown_free}：可用 --save-total-limit 2 限制个数"),
            format!("{kept} checkpoints need {shown_all}, and the disk has {shown_free} free: limit them with --save-total-limit 2"),
        ));
    }
    Ok(())
}

/// Resumes from the checkpoint, if there is one, and writes `run.toml`.
///
/// # Errors
/// If the folder cannot be written, or the checkpoint is damaged or belongs to a different run.
pub fn start(
    run: &RunConfig,
    trainer: &mut Trainer,
    checkpoint: Option<&Path>,
    printer: &Printer,
) -> Result<()> {
    if let Some(checkpoint) = checkpoint {
        let resumed =
            trainer.resume(checkpoint).map_err(|error| unusable(&run.files.output, checkpoint, error))?;
        let (step, from) = (resumed.step, checkpoint.display());
        printer.status(&printer.pick(
            format!("从 {from} 继续（已完成 {step} 步）"),
            format!("resuming from {from}, after step {step}"),
        ));
        if step >= trainer.total_steps() {
            printer.status_bilingual(
                "所有步骤都已完成：没有要训练的了，只重写报告与适配器",
                "all steps are done: only the report and the adapter are written again",
            );
        }
        if let Some((before, now)) = resumed.backend_changed {
            printer.warn(&printer.pick(
                format!("之前由 {before} 计算，现在是 {now}：结果不再逐位相同"),
                format!("computed on {before} before and on {now} now: results are no longer bit-identical"),
            ));
        }
    }
    Ok(files::write_atomic(&run.files.output.join(RUN_FILE), run.to_toml().as_bytes())?)
}

/// Writes a checkpoint.
///
/// # Errors
/// If the folder cannot be written. The error names the checkpoint to resume from.
pub fn save(output: &Path, trainer: &Trainer, tokens: &TrainingIdentity) -> Result<()> {
    trainer.save_checkpoint(output, tokens).map(drop).map_err(|error| unsaved(output, error))
}

/// Returns the diagnostic for a failed write. The hint names the checkpoint to resume from.
fn unsaved(folder: &Path, error: impl Into<Diagnostic>) -> Diagnostic {
    let (diagnostic, output) = (error.into(), folder.display());
    let (Ok(newest), Ok(whole)) = (latest_checkpoint(folder), latest_whole_checkpoint(folder)) else {
        return diagnostic;
    };
    let resume = format!("danlu train --output {} --resume", terminal_text::shell_path(folder));
    diagnostic.and_hint(match (newest, whole) {
        (None, _) => format!("run `{resume}` to start over: there is no checkpoint yet"),
        (Some(_), None) => format!("start again in another folder: `{output}` has no intact checkpoint"),
        (Some(newest), Some(whole)) => {
            let shown = whole.display();
            let named = match newest == whole {
                true => String::new(),
                false => format!(" {}", terminal_text::shell_path(&whole)),
            };
            format!("run `{resume}{named}`: `{shown}` is intact")
        }
    })
}

/// Returns the diagnostic for a checkpoint that cannot be used. The hint explains how to resume instead.
fn unusable(output_folder: &Path, checkpoint: &Path, error: TrainError) -> Diagnostic {
    if let TrainError::Resume { differences, .. } = &error {
        let is_base = differences.iter().any(|difference| difference.field == "base");
        return match LoraConfig::read(checkpoint).ok().filter(|_| is_base) {
            Some(LoraConfig { base_model_name_or_path: Some(name), revision: Some(revision), .. }) => {
                let output = terminal_text::shell_path(output_folder);
                let base = terminal_text::shell_word(&format!("{name}@{revision}"));
                let hint = format!(
                    "name the base of its first run: danlu train --output {output} --resume --base {base}"
                );
                Diagnostic::from(error).with_hint(hint)
            }
            _ => error.into(),
        };
    }
    let output = output_folder.display();
    let hint = match latest_whole_checkpoint(output_folder) {
        Ok(Some(whole)) if whole != checkpoint => {
            let [output, checkpoint] = [output_folder, whole.as_path()].map(terminal_text::shell_path);
            format!(
                "resume from an intact one, `{}`: danlu train --output {output} --resume {checkpoint}",
                whole.display()
            )
        }
        _ if matches!(error, TrainError::CheckpointFormat { .. }) => return error.into(),
        _ => format!("start again in another folder: `{output}` has no other intact checkpoint"),
    };
    Diagnostic::from(error).with_hint(hint)
}

/// Writes `danlu.json`, the card and the report, and then the adapter. A folder with an adapter is therefore
/// complete.
///
/// # Errors
/// If the folder cannot be written. The last checkpoint stays intact.
pub fn finish(
    run: &RunConfig,
    trainer: &Trainer,
    tokens: &TrainingIdentity,
    summary: &RunSummary,
    base: BaseIdentity,
    earlier: Option<&Card>,
    printer: &Printer,
) -> Result<()> {
    let write = || -> Result<()> {
        tokens.write(&run.files.output)?;
        card::write_for_run(run, summary, &trainer.adapter().config, tokens, base, earlier, printer)?;
        files::write_atomic(
            &run.files.output.join(REPORT_FILE),
            page::render(summary, printer.lang.of_page()).as_bytes(),
        )?;
        Ok(trainer.save_adapter(&run.files.output)?)
    };
    write().map_err(|error| unsaved(&run.files.output, error))
}
