//! Flags that several commands share.

pub mod adapter;
pub mod card;
pub mod chat_template;
pub mod compute;
pub mod data;
pub mod home_paths;
pub mod quant;
pub mod sampling;
pub mod secret;

pub use adapter::AdapterArgs;
pub use card::{CardArgs, NotesArgs};
pub use compute::ComputeArgs;
pub use quant::QuantArgs;
pub use sampling::SamplingArgs;
pub use secret::Secret;
