//! Fine-tuning: training steps, learning rate schedules, the memory plan, and checkpoints.
//!
//! The caller runs a [`Trainer`] one optimizer step at a time. On one back end, [`TrainSettings`], the
//! records and the base determine every byte of the adapter. Resuming a run and changing the number of
//! threads change no byte. The division of a step into passes ([`PassGrouping`]) may change bytes: by
//! `max_rows`, and on a GPU by `fuse`. `examples/by_hand.rs` shows a whole training run without a trainer.
//!
//! ```
//! use std::{path::Path, sync::Arc};
//!
//! use danlu_adapter::Adapter;
//! use danlu_data::{EncodeOptions, ReadOptions, encode, read_from};
//! use danlu_kernels::{Cpu, CpuOptions};
//! use danlu_model::{Decoder, Tokenizer, base_fingerprint};
//! use danlu_train::{Example, TrainSettings, Trainer};
//!
//! let base = Path::new("../cli/assets/base-8m");
//! let tokenizer = Tokenizer::read(base)?;
//! let file = r#"{"prompt": "你是谁？", "completion": "本宫住在长春宫。"}"#;
//! let mut examples = Vec::new();
//! for record in read_from(file.as_bytes(), "chat.jsonl".as_ref(), &ReadOptions::default())?.records {
//!     let encoded = encode(&record, &tokenizer, &EncodeOptions::default());
//!     let sequence = encoded.map_err(|bad| bad.to_string())?.sequence;
//!     examples.push(Example { sequence, origin: record.source.to_string() });
//! }
//!
//! let settings = TrainSettings { max_steps: Some(3), learning_rate: 1e-3, ..TrainSettings::default() };
//! let decoder = Arc::new(Decoder::load(base, Arc::new(Cpu::new(CpuOptions::default())))?);
//! let config = settings.lora_config("base-8m");
//! let adapter = Adapter::init(config, decoder.config(), settings.seed, &**decoder.backend())?;
//! let mut trainer = Trainer::new(decoder, adapter, examples, settings, base_fingerprint(base)?)?;
//! let mut losses = Vec::new();
//! while !trainer.is_finished() {
//!     losses.push(trainer.step()?.loss);
//! }
//! assert!(losses[2] < losses[0], "{losses:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod memory;

mod atomic_folder;
mod checkpoint;
mod checksums;
mod data_order;
mod error;
mod fingerprint;
mod finite_weights;
mod fused_batch;
mod loss_scale;
mod optimizer;
mod plan;
mod schedule;
mod settings;
mod trainer;
mod trainer_state;

pub use atomic_folder::sweep_leftovers;
pub use checkpoint::{Resumed, RunHistory, latest_whole_checkpoint};
pub use data_order::DataPosition;
pub use error::{Difference, TrainError};
pub use fingerprint::ExamplesFingerprint;
pub use finite_weights::check_finite_weights;
pub use fused_batch::PassGrouping;
pub use plan::{
    BaselineMemory, InferenceMemory, InferencePass, LayerPolicies, MemoryPlan, PlanInput, PlannedScratch,
    RecordSize, ReplySize, SuggestedLimits, WeightBytes, check_weights, device_weight_bytes,
    device_weight_bytes_of, open_weights, weight_bytes, weight_bytes_of,
};
pub use schedule::{LrSchedulerType, Schedule};
pub use settings::{Precision, Quant, TrainSettings};
pub use trainer::{EvalMetrics, Example, StepMetrics, Trainer};
pub use trainer_state::{LogEntry, TrainerState};
