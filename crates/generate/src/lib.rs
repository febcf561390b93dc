//! Text generation: prefill, decoding, sampling and stop rules.
//!
//! - [`generate()`] continues one prompt.
//! - A [`Sequence`] holds the ids of a prompt and its continuation, a sampler and stop rules.
//! - An [`Engine`] runs many sequences together. Each sequence has its own slot, which holds its keys and
//!   values, and optionally its own adapter.
//! - A [`ChatSession`] holds a conversation in one slot, and streams its replies in complete characters.
//! - A [`Scheduler`] runs the requests of a server on one engine, within a memory limit.
//!
//! ```
//! use std::{ops::ControlFlow, path::Path, sync::Arc};
//!
//! use danlu_generate::{GenerateOptions, SamplingOptions, generate};
//! use danlu_kernels::{Cpu, CpuOptions};
//! use danlu_model::{Decoder, Message, Tokenizer, Workspace};
//!
//! let folder = Path::new("../cli/assets/base-8m");
//! let decoder = Decoder::load(folder, Arc::new(Cpu::new(CpuOptions::default())))?;
//! let tokenizer = Tokenizer::read(folder)?;
//! let prompt = tokenizer.template()?.render(&[Message::new("user", "你是谁？")], true)?;
//!
//! let stop_ids = tokenizer.stop_ids().clone();
//! let options = GenerateOptions { max_new_tokens: 8, stop_ids, sampling: SamplingOptions::greedy() };
//! let mut on_token = |_| ControlFlow::Continue(());
//! let ids = tokenizer.encode(&prompt)?;
//! let reply = generate(&decoder, &mut Workspace::new(), None, &ids, &options, &mut on_token)?;
//! println!("{}", tokenizer.decode(&reply.ids, true));
//! assert!((1..=8).contains(&reply.ids.len()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod candidates;
mod engine;
mod error;
mod generate;
mod logits;
mod sampler;
mod sampling_options;
mod scheduler;
mod sequence;
mod session;
mod weight_histogram;

pub use engine::{Engine, StepOutput};
pub use error::GenerateError;
pub use generate::{GenerateOptions, Generated, generate};
pub use logits::{LogitsProcessor, TokenLogprobs};
pub use sampler::Sampler;
pub use sampling_options::SamplingOptions;
pub use scheduler::{
    AdapterLoad, AddError, EventKind, GenerationId, ReplyRequest, RequestAdapter, RequestId, Scheduler,
    SchedulerEvent, SchedulerOptions, SchedulerStats,
};
pub use sequence::{Sequence, StopReason, StopRules, TokenStep};
pub use session::{ChatReply, ChatSession};
