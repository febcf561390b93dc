//! Errors of training.

use std::fmt;
use std::path::{Path, PathBuf};

use danlu_adapter::AdapterError;
use danlu_model::{FileError, ModelError};

use crate::memory::display;
use crate::plan::SuggestedLimits;

/// An error in a training run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// An operation of the back end failed.
    #[error(transparent)]
    Backend(#[from] danlu_kernels::BackendError),
    /// A setting is out of range.
    #[error("`{name}` is {value}, expected {expected}")]
    Setting {
        /// Name of the setting in the config file.
        name: &'static str,
        /// The invalid value.
        value: String,
        /// The allowed values.
        expected: &'static str,
    },
    /// There are no records.
    #[error("cannot train on 0 records")]
    NoExamples,
    /// No token of the record has a loss.
    #[error("cannot train on `{origin}`: none of its {tokens} tokens carries a loss")]
    NoTrainedToken {
        /// File and line of the record.
        origin: String,
        /// Number of tokens in the record.
        tokens: usize,
    },
    /// The record is longer than `max_length`.
    #[error("cannot train on `{origin}`: it has {tokens} tokens, and `max_length` is {max_length}")]
    TooLong {
        /// File and line of the record.
        origin: String,
        /// Number of tokens in the record.
        tokens: usize,
        /// The limit.
        max_length: usize,
    },
    /// The token ids and the loss mask have different lengths.
    #[error("cannot train on `{origin}`: it has {ids} token ids, and its loss mask has {marks} elements")]
    Uneven {
        /// File and line of the record.
        origin: String,
        /// Number of token ids.
        ids: usize,
        /// Length of the mask.
        marks: usize,
    },
    /// A token id is outside the vocabulary.
    #[error("cannot train on `{origin}`: token id {id} is outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// File and line of the record.
        origin: String,
        /// The token id.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A loss, a norm or a parameter is not finite.
    #[error("cannot take step {step}: the {what} is {value}; its records: {}", first_few(records))]
    NonFinite {
        /// Number of the optimizer step, starting at 1.
        step: u64,
        /// Name of the value: loss, gradient norm or adapter.
        what: &'static str,
        /// NaN or infinity.
        value: f64,
        /// The records of the step.
        records: Vec<String>,
    },
    /// [`Trainer::step`](crate::Trainer::step) was called after the last step.
    #[error("cannot take another step: all {steps} steps are done")]
    Finished {
        /// Number of steps of the run.
        steps: u64,
    },
    /// No memory strategy fits into the memory limit.
    #[error("the run needs at least {} of memory, and the limit is {}", display(*needed), display(*limit))]
    Memory {
        /// Memory in bytes that the strategy with the lowest memory use needs.
        needed: u64,
        /// The limit in bytes.
        limit: u64,
        /// The largest settings that fit into the limit, or `None` if no settings fit.
        fits: Option<SuggestedLimits>,
    },
    /// A weight of the base is not finite.
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
    /// The checkpoint was written with other settings, data or another base.
    #[error("cannot resume `{}`: another run wrote it: {}", path.display(), list(differences))]
    Resume {
        /// The checkpoint.
        path: PathBuf,
        /// The differences between the two runs.
        differences: Vec<Difference>,
    },
    /// The checkpoint has the format of another version of danlu.
    #[error(
        "cannot resume `{}`: it has format {found} of {} danlu, and this one resumes format {expected}",
        path.display(),
        if found < expected { "an older" } else { "a newer" }
    )]
    CheckpointFormat {
        /// The checkpoint.
        path: PathBuf,
        /// Format version of the checkpoint.
        found: u64,
        /// Format version that this version of danlu reads.
        expected: u64,
    },
    /// A checkpoint file has invalid contents.
    #[error("cannot read `{}`: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The error, with the actual and the expected value.
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
    /// Name of the field: a setting, `data`, or `base`.
    pub field: String,
    /// The value in the checkpoint.
    pub saved: String,
    /// The value in the current run.
    pub current: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` was {} and is {}", self.field, self.saved, self.current)
    }
}

/// Returns the first records of a step as text. A step may have thousands of records.
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
    /// Returns the hint of [`TrainError::Memory`]. The hint names a memory limit that is large enough for
    /// `needed` bytes. If `flags` is given, the hint also names these flags, whose values fit the current
    /// limit.
    pub fn room_hint(needed: u64, flags: Option<String>) -> String {
        // The memory use before the run differs by a few pages between starts of the program, so 2 MiB are
        // added.
        let more = format!("`--memory-limit {}`", display(needed + (2 << 20)).replace(' ', ""));
        match flags {
            Some(flags) => format!("use `{flags}`, which fits, or allow more: {more}"),
            None => format!("allow more: {more}"),
        }
    }

    /// Returns the next step for the user, if there is one.
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
