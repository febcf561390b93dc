//! LoRA adapters: configuration, initialisation, PEFT's files, and merging into a base.
//!
//! This crate maps PEFT's names in files to danlu's names. An [`Adapter`] is one flat f32 buffer and a table
//! with the offsets of each module's matrices. A decoder reads the matrices through
//! `danlu_model::LoraSource`. [`merge`] adds an adapter to a copy of its base, and [`fidelity`] measures the
//! result.
//!
//! ```
//! use danlu_adapter::{Adapter, LoraConfig};
//! use danlu_kernels::Reference;
//! use danlu_model::Preset;
//!
//! let mut config = LoraConfig::new(8, 32.0);
//! config.target_modules = "q_proj,v_proj".parse()?;
//! let adapter = Adapter::init(config, &Preset::Llama3_2_1b.config(), 42, &Reference::new())?;
//! assert_eq!(adapter.modules().len(), 2 * 16);
//! // PEFT reports the same number: 16 layers · 8 · ((2048 + 2048) + (2048 + 512)).
//! assert_eq!(adapter.num_parameters(), 851_968);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod base_changes;
pub mod base_identity;
mod base_tensor_name;
mod byte_size;
mod check;
mod config;
mod dora;
mod error;
pub mod fidelity;
mod files;
mod initial_values;
pub mod merge;
mod merge_report;
mod merge_rows;
mod merge_shards;
mod mlx;
mod other_files;
mod run_folder;
mod source;
pub mod targets;
mod tensor_names;
mod training_identity;

pub use adapter::{Adapter, Module, Tensor};
pub use base_identity::BaseIdentity;
pub use byte_size::parse_byte_size;
pub use config::{CONFIG_FILE, LoraConfig, TargetModules};
pub use error::AdapterError;
pub use files::WEIGHTS_FILE;
pub use initial_values::InitLoraWeights;
pub use mlx::MLX_WEIGHTS_FILE;
pub use other_files::OtherAdapterFile;
pub use run_folder::{CHECKPOINT_PREFIX, CHECKPOINT_STATE_FILE, RUN_FILE, checkpoints, latest_checkpoint};
pub use source::{AdapterNote, PICKLE_FILE};
pub use training_identity::{IDENTITY_FILE, TrainingIdentity};
