//! Errors of training.

use std::fmt;
use std::path::{Path, PathBuf};

use danlu_adapter::AdapterError;
use danlu_model::{FileError, ModelError};

use crate::memory::display;
use crate::plan::SuggestedLimits;

/// An error of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The back end failed.
    #[error(transparent)]
    Backend(#[from] danlu_kernels::BackendError),
    /// A setting that is out of range.
    #[error("`{name}` is {value}, expected {expected}")]
    Setting {
        /// The setting's name, as in the config file.
        name: &'static str,
        /// The given value.
        value: String,
        /// The allowed values.
        expected: &'static str,
    },
    /// No records.
    #[error("cannot train on 0 records")]
    NoExamples,
    /// A record without a token that carries a loss.
    #[error("cannot train on `{origin}`: none of its {tokens} tokens carries a loss")]
    NoTrainedToken {
        /// The record: file and line.
        origin: String,
        /// Its number of tokens.
        tokens: usize,
    },
    /// A record longer than `max_length`.
    #[error("cannot train on `{origin}`: it has {tokens} tokens, and `max_length` is {max_length}")]
    TooLong {
        /// The record: file and line.
        origin: String,
        /// Its number of tokens.
        tokens: usize,
        /// The limit.
        max_length: usize,
    },
    /// Token ids and a loss mask of different lengths.
    #[error("cannot train on `{origin}`: it has {ids} token ids, and its loss mask has {marks} elements")]
    Uneven {
        /// The record: file and line.
        origin: String,
        /// Number of ids.
        ids: usize,
        /// Length of the mask.
        marks: usize,
    },
    /// A token outside the vocabulary.
    #[error("cannot train on `{origin}`: token id {id} is outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The record: file and line.
        origin: String,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A loss, norm or parameter that is not finite.
    #[error("cannot take step {step}: the {what} is {value}; its records: {}", first_few(records))]
    NonFinite {
        /// The optimizer step, from 1.
        step: u64,
        /// Loss, gradient norm or adapter.
        what: &'static str,
        /// NaN or infinity.
        value: f64,
        /// The records of the step.
        records: Vec<String>,
    },
    /// A call of [`Trainer::step`](crate::Trainer::step) after the last step.
    #[error("cannot take another step: all {steps} steps are done")]
    Finished {
        /// Number of steps of the run.
        steps: u64,
    },
    /// A memory limit that no memory strategy satisfies.
    #[error("the run needs at least {} of memory, and the limit is {}", display(*needed), display(*limit))]
    Memory {
        /// Bytes that the strategy with the lowest memory use needs.
        needed: u64,
        /// The limit in bytes.
        limit: u64,
        /// The largest settings that fit.
        fits: Option<SuggestedLimits>,
    },
    /// A weight of the base that is not finite.
    #[error("{}: tensor `{tensor}` of the base holds {value} at element {element}", path.display())]
    BaseNotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// NaN or infinity.
        value: f32,
        /// Row-major index of the element.
        element: usize,
    },
    /// A checkpoint of another run.
    #[error("cannot resume `{}`: another run wrote it: {}", path.display(), list(differences))]
    Resume {
        /// The checkpoint.
        path: PathBuf,
        /// The differences.
        differences: Vec<Difference>,
    },
    /// A checkpoint in the format of another danlu version.
    #[error(
        "cannot resume `{}`: it has format {found} of {} danlu, and this one resumes format {expected}",
        path.display(),
        if found < expected { "an older" } else { "a newer" }
    )]
    CheckpointFormat {
        /// The checkpoint.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format that is read.
        expected: u64,
    },
    /// A checkpoint file with wrong contents.
    #[error("cannot read `{}`: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault, with the found and the expected value.
        reason: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An adapter could not be created, read or written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The base model could not be read.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// One difference between a checkpoint and the current run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name: a setting, `data`, `base`.
    pub field: String,
    /// The value in the checkpoint.
    pub saved: String,
    /// The current value.
    pub current: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` was {} and is {}", self.field, self.saved, self.current)
    }
}

/// Lists the first records of a step. A step may have thousands.
fn first_few(records: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = records.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if records.len() > SHOWN {
        text += &format!(" and {} more", records.len() - SHOWN);
    }
    text
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}

impl TrainError {
    /// Returns the hint of [`TrainError::Memory`]: flags that fit, or a limit that allows the `needed` bytes.
    pub fn room_hint(needed: u64, flags: Option<String>) -> String {
        // Memory use before the run varies by a few pages between starts.
        let more = format!("`--memory-limit {}`", display(needed + (2 << 20)).replace(' ', ""));
        match flags {
            Some(flags) => format!("use `{flags}`, which fits, or allow more: {more}"),
            None => format!("allow more: {more}"),
        }
    }

    /// Returns an imperative hint, if one exists.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoTrainedToken { .. } => Some(
                "list such records with `danlu data check`, or train on the question too with `--train-on-prompt`"
                    .into(),
            ),
            Self::TooLong { .. } => {
                Some("encode the data with the `max_length` of the run, or raise `max_length`".into())
            }
            Self::NonFinite { .. } => Some(
                "check the records, or start again in another folder with a lower `--learning-rate`".into(),
            ),
            Self::BaseNotFinite { .. } => {
                Some("download or convert the base again: its weights are damaged".into())
            }
            Self::Memory { needed, fits, .. } => {
                Some(Self::room_hint(*needed, fits.map(|smaller| smaller.to_string())))
            }
            Self::Resume { .. } => Some(
                "resume with the settings, data and base of the checkpoint, or start again in another folder"
                    .into(),
            ),
            Self::CheckpointFormat { found, expected, .. } => Some(format!(
                "finish the run with the {} danlu, or start again in another folder",
                if found < expected { "older" } else { "newer" }
            )),
            Self::Damaged { .. } => {
                Some("resume from an older checkpoint, or start again in another folder".into())
            }
            Self::File(error) => error.hint(),
            Self::Adapter(error) => error.hint(),
            Self::Model(error) => error.hint(),
            _ => None,
        }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }
}
