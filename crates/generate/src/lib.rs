//! Prefill, decode, sample, stop.
//!
//! [`generate()`] continues one prompt; a [`Context`] remembers what it has read, so that the next prompt costs
//! only what differs; a [`ChatSession`] holds a conversation on one and streams whole characters.

mod context;
mod error;
mod generate;
mod sampler;
mod session;

pub use context::Context;
pub use error::GenerateError;
pub use generate::{GenerateOptions, Generated, StopReason, generate, generate_in};
pub use sampler::{Sampler, Sampling};
pub use session::{ChatSession, Reply};
