//! config.json and safetensors to a decoder that runs forward and backward; tokenizer and chat template.

mod backward;
mod batch;
mod chat_template;
mod config;
mod decoder;
mod error;
pub mod files;
mod fingerprint;
mod jinja;
mod json;
mod kv_cache;
mod lora;
mod new_model;
mod projection;
mod shard_writer;
mod tokenizer;
mod weights;
mod workspace;

pub use batch::{Batch, Sequence};
pub use chat_template::{ChatTemplate, Message, Rendered};
pub use config::{ModelConfig, Rope, RopeScaling};
pub use decoder::Decoder;
pub use error::ModelError;
pub use files::{AtomicFile, FileError};
pub use fingerprint::TokenFingerprint;
pub use kv_cache::KvCache;
pub use lora::{DropoutPlan, LoraRows, LoraSource};
pub use new_model::{INDEX_FILE, NewModel, shard_index, shard_name};
pub use projection::Projection;
pub use shard_writer::{ShardWriter, TensorSpec};
pub use tokenizer::{DecodeStream, Tokenizer};
pub use weights::{TensorInfo, Weights};
pub use workspace::Workspace;
