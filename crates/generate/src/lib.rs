//! Prefill, decode, sample, stop.
//!
//! [`generate()`] continues one prompt; a [`Context`] remembers what it has read, so that the next prompt costs
//! only what differs; a [`ChatSession`] holds a conversation on one and streams whole characters.
//!
//! ```
//! use std::{ops::ControlFlow, path::Path, sync::Arc};
//!
//! use danlu_generate::{GenerateOptions, Sampling, generate};
//! use danlu_kernels::{Cpu, CpuOptions};
//! use danlu_model::{Decoder, Message, Tokenizer, Workspace};
//!
//! let folder = Path::new("../cli/assets/base-8m");
//! let decoder = Decoder::load(folder, Arc::new(Cpu::new(CpuOptions::default())))?;
//! let tokenizer = Tokenizer::read(folder)?;
//! let prompt = tokenizer.template()?.render(&[Message::new("user", "你是谁？")], true)?;
//!
//! let stop_ids = tokenizer.stop_ids().clone();
//! let options = GenerateOptions { max_new_tokens: 8, stop_ids, sampling: Sampling::greedy() };
//! let mut on_token = |_| ControlFlow::Continue(());
//! let ids = tokenizer.encode(&prompt)?;
//! let reply = generate(&decoder, &mut Workspace::new(), None, &ids, &options, &mut on_token)?;
//! println!("{}", tokenizer.decode(&reply.ids, true));
//! assert!((1..=8).contains(&reply.ids.len()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod context;
mod error;
mod generate;
mod sampler;
mod session;

pub use context::Context;
pub use error::GenerateError;
pub use generate::{GenerateOptions, Generated, StopReason, generate, generate_in};
pub use sampler::{Sampler, Sampling};
pub use session::{ChatReply, ChatSession};
