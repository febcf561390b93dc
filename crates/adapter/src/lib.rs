//! LoRA adapters: configuration, initialisation, PEFT's files, merging into a base.
//!
//! This is where PEFT's names on disk meet ours. An [`Adapter`] is one flat buffer of f32 and a table of
//! where each pair lies in it; a decoder asks it for pairs through `danlu_model::LoraSource`.

mod adapter;
mod byte_size;
mod carried_files;
mod config;
mod error;
pub mod fidelity;
mod files;
pub mod merge;
mod merge_rows;
pub mod targets;

pub use adapter::{Adapter, Module, Tensor};
pub use byte_size::parse_byte_size;
pub use config::{CONFIG_FILE, LoraConfig, TargetModules};
pub use error::AdapterError;
pub use files::WEIGHTS_FILE;
