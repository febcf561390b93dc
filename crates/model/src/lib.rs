//! config.json and safetensors to a decoder that runs forward and backward; tokenizer and chat template.

mod config;
mod error;
pub mod files;
mod json;
mod projection;
mod weights;

pub use config::{ModelConfig, Rope, RopeScaling};
pub use error::ModelError;
pub use files::{AtomicFile, FileError};
pub use projection::Projection;
pub use weights::{TensorInfo, Weights};
