//! The run that `danlu new` proposes, with its forecast.

use std::path::{Path, PathBuf};

use danlu_data::ReadOptions;
use danlu_train::{LrSchedulerType, Quant, TrainSettings};

use super::answers::{Answers, DataAnswer};
use crate::args::card::CardLang;
use crate::args::{CardArgs, ComputeArgs};
use crate::commands::plan::{self, Prediction};
use crate::commands::train::time_forecast::TimeForecast;
use crate::commands::train::{CardOptions, RunConfig, RunFiles, RunLimits};
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;
use crate::terminal_text;

/// Largest number of parameters of a base that learns best with the settings of the demo.
const MAX_SMALL_PARAMETERS: u64 = 50_000_000;

/// Number of checkpoints that the run keeps.
const KEPT_CHECKPOINTS: usize = 2;

/// Estimated disk space for the report, the card and the held-out records, in bytes.
const DOCUMENT_BYTES: u64 = 2 << 20;

/// A run with its forecast.
pub struct Proposal {
    pub run: RunConfig,
    pub prediction: Prediction,
    /// Number of bytes that the output folder will take.
    pub disk: u64,
    /// Whether the base is quantized, because the run fits only in 4 bits.
    is_quantized: bool,
    /// Number of steps in the whole run, if the time allows only some of them.
    all_steps: Option<u64>,
}

impl Proposal {
    /// Proposes a run for the answers. If the run does not fit into the memory, the base is quantized. If the
    /// run exceeds the time limit, it gets fewer steps.
    ///
    /// # Errors
    /// If the run does not fit even in 4 bits, or an input is invalid.
    pub fn of(answers: &Answers, compute: &ComputeArgs, printer: &Printer) -> Result<Self> {
        let data = match &answers.data {
            DataAnswer::File(path) => path.clone(),
            DataAnswer::Named(data) => {
                let path = PathBuf::from(format!("{}.json", data.name()));
                data.write(&path)?;
                path
            }
        };
        let mut run = RunConfig {
            files: RunFiles {
                base: answers.base.clone(),
                output: output_for(&data)?,
                data: vec![data],
                reading: ReadOptions::default(),
                splits_by_default: true,
                ..RunFiles::default()
            },
            settings: settings(answers, compute)?,
            limits: RunLimits {
                compute: compute.clone(),
                memory: answers.limits.memory,
                ..RunLimits::default()
            },
            card: CardOptions {
                args: CardArgs {
                    card_lang: Some(answers.language.pick(CardLang::Zh, CardLang::En)),
                    ..CardArgs::default()
                },
                ..CardOptions::default()
            },
        };
        let mut is_quantized = false;
        let mut prediction = match plan::predict(&run, None, printer) {
            Ok(prediction) => prediction,
            Err(too_large) => {
                run.settings.quant = Quant::Nf4;
                is_quantized = true;
                plan::predict(&run, None, printer).map_err(|_| too_large)?
            }
        };
        if prediction.config.num_parameters() > MAX_SMALL_PARAMETERS {
            run.settings.learning_rate = 2e-4;
            run.settings.num_train_epochs = 3.0;
            prediction = plan::predict(&run, None, printer)?;
        }
        let all_steps = shorten(&mut run, &prediction, answers.limits.seconds);
        let plan = &prediction.forecast.plan;
        let disk = plan.adapter + KEPT_CHECKPOINTS as u64 * (plan.adapter + plan.optimizer) + DOCUMENT_BYTES;
        Ok(Self { run, prediction, disk, is_quantized, all_steps })
    }

    /// Returns the predicted time of the proposed steps.
    pub fn time(&self) -> Option<TimeForecast> {
        let time = self.prediction.time?;
        Some(TimeForecast { steps: self.run.settings.max_steps.or(time.steps), ..time })
    }

    /// Formats the base with its number of parameters.
    pub fn base_with_size(&self, printer: &Printer) -> String {
        let (base, parameters) = (self.run.files.base.display(), self.prediction.config.num_parameters());
        let parameters = terminal_text::thousands(parameters);
        printer.pick(format!("{base}，{parameters} 个参数"), format!("{base}, {parameters} parameters"))
    }

    /// Lists the changes that the limits made necessary.
    pub fn notes(&self, printer: &Printer) -> Vec<String> {
        let mut notes = Vec::new();
        if self.is_quantized {
            notes.push(
                printer
                    .pick(
                        "16 位放不下，基座用 4 位（nf4）",
                        "the base does not fit in 16 bits, and is quantized to 4 bits (nf4)",
                    )
                    .to_owned(),
            );
        }
        if let (Some(all), Some(steps)) = (self.all_steps, self.run.settings.max_steps) {
            notes.push(printer.pick(
                format!("时间只够 {all} 步中的 {steps} 步"),
                format!("the time allows {steps} of {all} steps"),
            ));
        }
        notes
    }
}

/// Returns the settings for a small base. For a base above [`MAX_SMALL_PARAMETERS`], the caller sets a lower
/// learning rate and more epochs.
fn settings(answers: &Answers, compute: &ComputeArgs) -> Result<TrainSettings> {
    let dtype = compute.dtype(None)?.precision;
    Ok(TrainSettings {
        learning_rate: 1e-3,
        num_train_epochs: 2.0,
        lr_scheduler_type: LrSchedulerType::Cosine,
        default_system: answers.character.clone(),
        save_total_limit: Some(KEPT_CHECKPOINTS),
        val_size: crate::commands::train::prepare::DEFAULT_VAL_SIZE,
        dtype,
        ..TrainSettings::default()
    })
}

/// Limits the steps to the number that fits into `seconds`. If this shortens the run, returns the number of
/// steps in the whole run.
fn shorten(run: &mut RunConfig, prediction: &Prediction, seconds: Option<f64>) -> Option<u64> {
    let (time, limit) = (prediction.time?, seconds?);
    let all = time.steps.filter(|_| time.seconds().is_some_and(|seconds| seconds > limit))?;
    run.settings.max_steps = Some(((limit / time.seconds_per_step) as u64).clamp(1, all));
    Some(all)
}

/// Returns the folder `out/NAME`, where `NAME` is the name of the data file. If this folder exists, a number
/// is appended.
fn output_for(data: &Path) -> Result<PathBuf> {
    let stem = data.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned());
    let names = std::iter::once(stem.clone()).chain((2..1000).map(|n| format!("{stem}-{n}")));
    let free = names.map(|name| Path::new("out").join(name)).find(|path| !path.exists());
    free.ok_or_else(|| {
        Diagnostic::input(format!("`out/{stem}` to `out/{stem}-999` all exist"))
            .with_hint("remove one of them")
    })
}
