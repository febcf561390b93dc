//! LoRA adapters: configuration, initialisation, PEFT's files, merging into a base.
//!
//! This is where PEFT's names on disk meet ours. An [`Adapter`] is one flat buffer of f32 and a table of
//! where each pair lies in it; a decoder asks it for pairs through `danlu_model::LoraSource`.

mod adapter;
mod config;
mod error;
mod files;
mod shard_writer;
pub mod targets;

pub use adapter::{Adapter, Module, Tensor};
pub use config::{CONFIG_FILE, LoraConfig, TargetModules};
pub use error::AdapterError;
pub use files::WEIGHTS_FILE;
