//! Fine-tuning: the step, the schedule, checkpoints, the report.
//!
//! A [`Trainer`] is driven by its caller, one optimizer step at a time. Every number follows from
//! [`TrainSettings`], the records and the base: a run resumed from a checkpoint, or repeated on another
//! number of threads, writes the same bytes.

pub mod card;
pub mod memory;
pub mod report;

mod atomic_folder;
mod checkpoint;
mod error;
mod feed;
mod fingerprint;
mod optimizer;
mod passes;
mod plan;
mod schedule;
mod settings;
mod state;
mod summary;
mod token_identity;
mod trainer;

pub use atomic_folder::sweep_leftovers;
pub use checkpoint::{Resumed, checkpoint_settings, checkpoints, latest_checkpoint};
pub use error::{Difference, TrainError};
pub use feed::Cursor;
pub use fingerprint::{DataFingerprint, base_fingerprint};
pub use plan::{Layers, MemoryPlan, PlanInput, Present, RecordSize, ReplySize, Scratch, weight_bytes};
pub use schedule::{LrSchedulerType, Schedule};
pub use settings::{Precision, TrainSettings};
pub use state::{LogEntry, TrainerState};
pub use summary::{DataFile, DataSummary, MemoryUse, Reply, RunSummary};
pub use token_identity::{TokenIdentity, check_identity};
pub use trainer::{EvalReport, Example, StepReport, Trainer};
