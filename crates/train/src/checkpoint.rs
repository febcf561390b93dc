//! `checkpoint-N`: a PEFT adapter folder with the state of the run. On the same back end, a resumed run
//! equals an uninterrupted run.
//!
//! | file | contents |
//! |---|---|
//! | `adapter_config.json`, `adapter_model.safetensors` | the adapter in PEFT's format |
//! | `danlu.json`, `tokenizer.json`, ... | tokenizer and template: see [`TrainingIdentity`] |
//! | `optimizer.safetensors` | AdamW's moments |
//! | `trainer_state.json` | progress and log in transformers' format |
//! | `danlu_state.json` | settings, schedule, data position, seed; fingerprints of data and base |
//! | `history.jsonl` | the metrics of every step, one per line |
//! | `checksums.sha256` | the SHA-256 of each of these files |

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use danlu_adapter::{Adapter, CHECKPOINT_PREFIX, CHECKPOINT_STATE_FILE, TrainingIdentity, checkpoints};
use danlu_model::files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic_folder;
use crate::checksums;
use crate::data_order::DataPosition;
use crate::error::Difference;
use crate::loss_scale::LossScale;
use crate::optimizer::OPTIMIZER_FILE;
use crate::{ExamplesFingerprint, StepMetrics, TrainError, TrainSettings, Trainer, TrainerState};

const TRAINER_STATE_FILE: &str = "trainer_state.json";
const HISTORY_FILE: &str = "history.jsonl";
/// Version of the checkpoint format. Version 1 had no checksums.
const FORMAT: u32 = 2;

/// Files that [`Trainer::resume`] requires.
const NEEDED: [&str; 6] = [
    danlu_adapter::CONFIG_FILE,
    danlu_adapter::WEIGHTS_FILE,
    OPTIMIZER_FILE,
    TRAINER_STATE_FILE,
    CHECKPOINT_STATE_FILE,
    HISTORY_FILE,
];

/// Maximum size of a file that is read. A history of ten million steps is smaller.
const MAX_BYTES: u64 = 2 << 30;

/// The contents of `danlu_state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunState {
    /// Version of the checkpoint format.
    format: u32,
    danlu_version: String,
    global_step: u64,
    total_steps: u64,
    warmup_steps: u64,
    /// Position in the data. The position and the seed determine the data order and the dropout masks of all
    /// later steps.
    cursor: DataPosition,
    seed: u64,
    settings: TrainSettings,
    data: ExamplesFingerprint,
    base_sha256: String,
    backend: String,
    /// Scale of the loss after the checkpoint's step, if activations are f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
}

/// The result of [`Trainer::resume`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Number of steps completed at the checkpoint.
    pub step: u64,
    /// The back ends of the checkpoint and of this run, if the two differ. A division of a step into passes
    /// that affects results counts as part of the back end. The resumed run then differs from an
    /// uninterrupted run.
    pub backend_changed: Option<(String, String)>,
}

impl Trainer {
    /// Writes `output/checkpoint-N` atomically. Then removes the oldest checkpoints if there are more than
    /// `save_total_limit`.
    ///
    /// # Errors
    /// If the folder cannot be written. Earlier checkpoints are then unchanged.
    pub fn save_checkpoint(&self, output: &Path, tokens: &TrainingIdentity) -> Result<PathBuf, TrainError> {
        let name = format!("{CHECKPOINT_PREFIX}{}", self.global_step());
        let path = atomic_folder::write(output, &name, |folder| {
            let backend = &**self.decoder.backend();
            self.adapter.save(folder, backend)?;
            tokens.write(folder)?;
            self.optimizer.save(folder, backend)?;
            write_json(&folder.join(TRAINER_STATE_FILE), &self.state)?;
            write_json(&folder.join(CHECKPOINT_STATE_FILE), &self.run_state())?;
            let mut lines = String::new();
            for report in &self.history {
                let line = serde_json::to_string(report).expect("a struct of numbers");
                writeln!(lines, "{line}").expect("a string takes everything");
            }
            files::write_atomic(&folder.join(HISTORY_FILE), lines.as_bytes())?;
            checksums::write(folder)
        })?;
        if let Some(limit) = self.settings.save_total_limit {
            let mut others: Vec<_> = checkpoints(output)?.into_iter().filter(|(_, p)| *p != path).collect();
            others.truncate((others.len() + 1).saturating_sub(limit));
            for (_, old) in others {
                atomic_folder::remove(&old)?;
            }
        }
        Ok(path)
    }

    /// Resumes from a checkpoint. On the same back end, all later results equal those of an uninterrupted
    /// run.
    ///
    /// # Errors
    /// If a file is missing or changed, or if the checkpoint's format, data, base, or a setting that affects
    /// results differs. The error contains both values of each difference. The trainer cannot be used after
    /// an error.
    pub fn resume(&mut self, checkpoint: &Path) -> Result<Resumed, TrainError> {
        check_whole(checkpoint)?;
        let saved: RunState = read_json(&checkpoint.join(CHECKPOINT_STATE_FILE))?;
        self.check_same_run(checkpoint, &saved)?;
        let backend = self.decoder.backend().clone();

        let adapter = Adapter::load(checkpoint, self.decoder.config(), &*backend)?;
        if adapter.modules() != self.adapter.modules() {
            let path = checkpoint.join(danlu_adapter::CONFIG_FILE);
            return Err(TrainError::damaged(&path, "its modules are not those of the run's settings"));
        }
        self.optimizer.load(checkpoint, &*backend)?;
        let history = read_history(&checkpoint.join(HISTORY_FILE), saved.global_step)?;
        let path = checkpoint.join(TRAINER_STATE_FILE);
        let state: TrainerState = read_json(&path)?;
        if state.global_step != saved.global_step {
            let reason = format!("`global_step` is {}, expected {}", state.global_step, saved.global_step);
            return Err(TrainError::damaged(&path, reason));
        }
        // Only the parameters are replaced. The current configuration is more exact than PEFT's file, which
        // does not preserve notations such as `all-linear`.
        self.adapter.replace_params(adapter);
        let TrainerState { logging_steps, save_steps, eval_steps, .. } = self.state;
        self.state = TrainerState { logging_steps, save_steps, eval_steps, ..state };
        self.history = history;
        if let (Some(scale), Some(saved)) = (&mut self.loss_scale, saved.loss_scale) {
            *scale = saved;
        }

        let now = self.arithmetic();
        let changed = without_threads(&saved.backend) != without_threads(&now);
        Ok(Resumed { step: saved.global_step, backend_changed: changed.then_some((saved.backend, now)) })
    }

    fn run_state(&self) -> RunState {
        let done = self.global_step();
        RunState {
            format: FORMAT,
            danlu_version: env!("CARGO_PKG_VERSION").to_owned(),
            global_step: done,
            total_steps: self.schedule.total_steps,
            warmup_steps: self.schedule.warmup_steps,
            cursor: self.order.position(done),
            seed: self.settings.seed,
            settings: self.settings.clone(),
            data: self.data.clone(),
            base_sha256: self.base.clone(),
            backend: self.arithmetic(),
            loss_scale: self.loss_scale,
        }
    }

    fn check_same_run(&self, checkpoint: &Path, saved: &RunState) -> Result<(), TrainError> {
        let path = checkpoint.join(CHECKPOINT_STATE_FILE);
        let mut differences = self.settings.differences(&saved.settings);
        if saved.data != self.data {
            let (saved, current) = (saved.data.describe(), self.data.describe());
            differences.push(Difference { field: "data".into(), saved, current });
        }
        if saved.base_sha256 != self.base {
            let (saved, current) = (saved.base_sha256.clone(), self.base.clone());
            differences.push(Difference { field: "base".into(), saved, current });
        }
        if !differences.is_empty() {
            return Err(TrainError::Resume { path: checkpoint.to_owned(), differences });
        }
        // The settings and the data determine the values below. If one differs, the file was edited.
        let expected = RunState {
            global_step: saved.global_step,
            cursor: self.order.position(saved.global_step),
            ..self.run_state()
        };
        for (name, found, expected) in [
            ("total_steps", saved.total_steps, expected.total_steps),
            ("warmup_steps", saved.warmup_steps, expected.warmup_steps),
            ("cursor.epoch", saved.cursor.epoch, expected.cursor.epoch),
            ("cursor.step_in_epoch", saved.cursor.step_in_epoch, expected.cursor.step_in_epoch),
            ("seed", saved.seed, expected.seed),
        ] {
            if found != expected {
                return Err(TrainError::damaged(&path, format!("`{name}` is {found}, expected {expected}")));
            }
        }
        if let Some(scale) = saved.loss_scale.filter(|scale| !scale.is_valid()) {
            let reason = format!("`loss_scale` is {}, expected a power of two", scale.factor());
            return Err(TrainError::damaged(&path, reason));
        }
        if saved.global_step > saved.total_steps {
            let reason = format!("`global_step` is {} of {}", saved.global_step, saved.total_steps);
            return Err(TrainError::damaged(&path, reason));
        }
        Ok(())
    }
}

/// Returns the newest checkpoint in an output folder whose files are all intact, or `None` if there is none.
///
/// # Errors
/// If the folder cannot be read.
pub fn latest_whole_checkpoint(output: &Path) -> Result<Option<PathBuf>, TrainError> {
    let mut newest_first = checkpoints(output)?.into_iter().rev().map(|(_, path)| path);
    Ok(newest_first.find(|path| check_whole(path).is_ok()))
}

/// The metrics of a run up to its newest intact checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct RunHistory {
    /// Metrics of each step.
    pub steps: Vec<StepMetrics>,
    /// Step and held-out loss of each evaluation.
    pub evaluations: Vec<(u64, f64)>,
}

impl RunHistory {
    /// Reads the history from the output folder of a run. Returns `None` if there is no intact checkpoint.
    ///
    /// # Errors
    /// If a file cannot be read or does not match its checkpoint.
    pub fn read(output: &Path) -> Result<Option<Self>, TrainError> {
        let Some(checkpoint) = latest_whole_checkpoint(output)? else { return Ok(None) };
        let state: TrainerState = read_json(&checkpoint.join(TRAINER_STATE_FILE))?;
        let steps = read_history(&checkpoint.join(HISTORY_FILE), state.global_step)?;
        Ok(Some(Self { steps, evaluations: state.evaluations() }))
    }
}

/// Checks the format of a checkpoint and the checksums of its files.
fn check_whole(checkpoint: &Path) -> Result<(), TrainError> {
    let listed = checksums::are_in(checkpoint);
    if listed {
        checksums::verify(checkpoint, &NEEDED)?;
    }
    // A different version of the format may have different fields, so only the version is read here.
    let state: serde_json::Value = read_json(&checkpoint.join(CHECKPOINT_STATE_FILE))?;
    match state.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(FORMAT) => {
            Err(TrainError::CheckpointFormat { path: checkpoint.to_owned(), found, expected: FORMAT.into() })
        }
        _ if !listed => Err(checksums::missing(checkpoint)),
        _ => Ok(()),
    }
}

/// Returns the name of a back end without the number of threads, on which no result depends.
fn without_threads(name: &str) -> String {
    name.split(", ").filter(|part| !part.contains("thread")).collect::<Vec<_>>().join(", ")
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let text = serde_json::to_string_pretty(value).expect("plain fields with names become JSON");
    Ok(files::write_atomic(path, text.as_bytes())?)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let bytes = files::read_bounded(path, MAX_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|e| TrainError::damaged(path, e.to_string()))
}

fn read_history(path: &Path, steps: u64) -> Result<Vec<StepMetrics>, TrainError> {
    let bytes = files::read_bounded(path, MAX_BYTES)?;
    let lines = bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    let mut history: Vec<StepMetrics> = Vec::new();
    for (step, line) in (1..).zip(lines) {
        let report: StepMetrics = serde_json::from_slice(line)
            .map_err(|e| TrainError::damaged(path, format!("line {step}: {e}")))?;
        if report.step != step {
            return Err(TrainError::damaged(
                path,
                format!("line {step} has step {}, expected {step}", report.step),
            ));
        }
        history.push(report);
    }
    if history.len() as u64 != steps {
        return Err(TrainError::damaged(path, format!("it has {} steps, expected {steps}", history.len())));
    }
    Ok(history)
}
