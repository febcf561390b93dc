//! Requests of a scheduler, and the errors of adding one.

use std::fmt;
use std::sync::Arc;

use danlu_model::LoraSource;

use crate::{GenerateError, LogitsProcessor, SamplingOptions, StopRules};

/// Digest of the contents of an adapter: its configuration and its tensors.
///
/// Keys and values are shared only between requests of one generation, so a replaced adapter never reads those
/// of its predecessor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub [u8; 32]);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerationId({self})")
    }
}

/// Adapter of a request.
#[derive(Clone)]
pub struct RequestAdapter {
    /// Digest of the contents of `lora`.
    pub generation: GenerationId,
    /// The low-rank matrices. The scheduler drops them when the request ends.
    pub lora: Arc<dyn LoraSource>,
}

/// A prompt to continue.
pub struct ReplyRequest {
    /// Tokens of the prompt.
    pub ids: Vec<u32>,
    /// How tokens are chosen. Choice `i` draws from a random stream of the seed and `i`.
    pub sampling: SamplingOptions,
    /// When a continuation ends. The scheduler lowers `max_context_tokens` to the limits of model and memory.
    pub rules: StopRules,
    /// Number of continuations. The prompt is read once.
    pub choices: usize,
    /// The adapter, or `None` for the base alone.
    pub adapter: Option<RequestAdapter>,
    /// Number of most likely tokens reported with each token. `None`: no log probabilities.
    pub top_logprobs: Option<usize>,
    /// One processor of logits per choice, or none.
    pub processors: Vec<Box<dyn LogitsProcessor>>,
}

/// Id of a request. A scheduler never uses an id twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Why a request was not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Too many requests are waiting.
    #[error("cannot add the request: {waiting} requests are waiting, the limit is {limit}")]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
        /// Largest number of waiting requests.
        limit: usize,
    },
    /// The prompt never fits.
    #[error("cannot add the request: its prompt has {tokens} tokens, the context has room for {room}")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Most tokens of a sequence.
        room: usize,
    },
    /// A value of the request is invalid.
    #[error(transparent)]
    Invalid(#[from] GenerateError),
}

impl AddError {
    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::QueueFull { .. } => Some("send the request again later".to_owned()),
            Self::TooLong { .. } => Some("shorten the prompt".to_owned()),
            Self::Invalid(error) => error.hint(),
        }
    }
}
