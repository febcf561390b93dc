//! What can be wrong with a run.

use std::fmt;
use std::path::{Path, PathBuf};

use danlu_adapter::AdapterError;
use danlu_model::{FileError, ModelError};

use crate::memory::display;
use crate::plan::SuggestedLimits;

/// Why a run cannot start, go on, be saved or be resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A device failed.
    #[error(transparent)]
    Backend(#[from] danlu_kernels::BackendError),
    /// A setting outside of its range.
    #[error("`{name}` is {value}, expected {expected}")]
    Setting {
        /// Its name, as in the config file.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// No record at all.
    #[error("there is nothing to train on: 0 records")]
    NoExamples,
    /// A record that cannot teach anything.
    #[error("{origin}: none of its {tokens} tokens carries a loss")]
    NoTrainedToken {
        /// The record, as its reader names it.
        origin: String,
        /// Its length.
        tokens: usize,
    },
    /// A record longer than the run allows.
    #[error("{origin} has {tokens} tokens, and `max_length` is {max_length}")]
    TooLong {
        /// The record, as its reader names it.
        origin: String,
        /// Its length.
        tokens: usize,
        /// The limit.
        max_length: usize,
    },
    /// Ids and loss marks of different lengths.
    #[error("{origin} has {ids} token ids, and {marks} marks of what to train")]
    Uneven {
        /// The record, as its reader names it.
        origin: String,
        /// Number of ids.
        ids: usize,
        /// Number of marks.
        marks: usize,
    },
    /// A token that the base has no embedding for.
    #[error("{origin}: token id {id} is outside the model's vocabulary of {vocab_size}")]
    UnknownToken {
        /// The record, as its reader names it.
        origin: String,
        /// The id.
        id: u32,
        /// Ids the model knows.
        vocab_size: usize,
    },
    /// A number that is no number any more. Nothing was updated.
    #[error("step {step}: the {what} is {value}; its records: {}", first_few(records))]
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
    /// A step after the last one.
    #[error("all {steps} steps are done")]
    Finished {
        /// The run's length.
        steps: u64,
    },
    /// More memory than there may be, whatever the layers keep.
    #[error("the run needs {} of memory at least, and the limit is {}", display(*needed), display(*limit))]
    Memory {
        /// Bytes, when every layer keeps least.
        needed: u64,
        /// Bytes.
        limit: u64,
        /// The largest settings that would fit.
        fits: Option<SuggestedLimits>,
    },
    /// A weight of the base that is no number: nothing can be trained on it.
    #[error("{}: tensor `{tensor}` of the base holds {value} at element {element}", path.display())]
    BaseNotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// NaN or infinity.
        value: f32,
        /// Its place, row-major.
        element: usize,
    },
    /// A checkpoint of another run.
    #[error("{}: made by another run: {}", path.display(), list(differences))]
    Resume {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        differences: Vec<Difference>,
    },
    /// A checkpoint that another version of danlu wrote, in another layout.
    #[error(
        "{}: the checkpoint is of format {found}, which {} danlu wrote, and this one goes on from format {expected}",
        path.display(),
        if found < expected { "an older" } else { "a newer" }
    )]
    CheckpointFormat {
        /// The checkpoint.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The only one that is read.
        expected: u64,
    },
    /// A checkpoint file that does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        reason: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The adapter could not be made, read or written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The base model could not be read.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// One thing that a checkpoint and the present run disagree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name: a setting, `data`, `base`.
    pub field: String,
    /// In the checkpoint.
    pub saved: String,
    /// Now.
    pub current: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` was {} and is {}", self.field, self.saved, self.current)
    }
}

/// Enough of the records to begin to look; a step may have thousands.
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
    /// The hint of [`TrainError::Memory`]: what fits, said in `flags`, or a limit that leaves room for the `needed` bytes.
    pub fn room_hint(needed: u64, flags: Option<String>) -> String {
        // What is in memory beforehand differs by a page or two from one start to the next.
        let more = format!("`--memory-limit {}`", display(needed + (2 << 20)).replace(' ', ""));
        match flags {
            Some(flags) => format!("`{flags}` fits; or allow more: {more}"),
            None => format!("allow more: {more}"),
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoTrainedToken { .. } => Some(
                "`danlu data check` lists such records; `--train-on-prompt` trains on the question too"
                    .into(),
            ),
            Self::TooLong { .. } => {
                Some("encode the data with the run's own `max_length`, or raise it".into())
            }
            Self::NonFinite { .. } => Some(
                "look at the records, or start anew in another folder with a lower `--learning-rate`".into(),
            ),
            Self::BaseNotFinite { .. } => {
                Some("the base's weights are damaged: fetch or convert them again".into())
            }
            Self::Memory { needed, fits, .. } => {
                Some(Self::room_hint(*needed, fits.map(|smaller| smaller.to_string())))
            }
            Self::Resume { .. } => Some(
                "resume with the settings, data and base of the checkpoint, or start anew in another folder"
                    .into(),
            ),
            Self::CheckpointFormat { found, expected, .. } => Some(format!(
                "finish the run with the {} danlu, or start anew in another folder",
                if found < expected { "older" } else { "newer" }
            )),
            Self::Damaged { .. } => {
                Some("go on from an older checkpoint, or start anew in another folder".into())
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
