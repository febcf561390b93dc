//! Requests to a scheduler, and the reasons why a request is not added.

use std::fmt;
use std::sync::Arc;

use danlu_model::LoraSource;

use crate::{GenerateError, LogitsProcessor, SamplingOptions, StopRules};

/// Id of an adapter version: a digest of everything in the adapter that affects replies.
///
/// Only requests with the same id share keys and values. If an adapter is replaced, the new version has a
/// different id, and therefore never uses keys and values of the old version.
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

/// The adapter of a request.
#[derive(Clone)]
pub struct RequestAdapter {
    /// Id of the adapter version in `lora`.
    pub generation: GenerationId,
    /// The low-rank matrices. The scheduler drops this reference when the request ends.
    pub lora: Arc<dyn LoraSource>,
}

/// A request to continue a prompt.
pub struct ReplyRequest {
    /// Token ids of the prompt.
    pub ids: Vec<u32>,
    /// Settings of the sampler. Each choice has its own random stream, which depends on the seed and the
    /// index of the choice.
    pub sampling: SamplingOptions,
    /// Rules that end each continuation. The scheduler lowers `max_context_tokens` to the limits of the model
    /// and the memory.
    pub rules: StopRules,
    /// Number of continuations ("choices"). If memory suffices, the prompt is read only once.
    pub choices: usize,
    /// The adapter, or `None` for the base without an adapter.
    pub adapter: Option<RequestAdapter>,
    /// Number of most likely tokens that are returned with each new token. With `None`, no log probabilities
    /// are returned.
    pub top_logprobs: Option<usize>,
    /// Logits processors: one for each choice, or an empty list.
    pub processors: Vec<Box<dyn LogitsProcessor>>,
}

/// Id of a request. A scheduler uses each id only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Reason why a request was not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Too many requests are waiting.
    #[error("cannot add the request: {waiting} requests are waiting, the limit is {limit}")]
    QueueFull {
        /// Number of waiting requests.
        waiting: usize,
        /// Maximum number of waiting requests.
        limit: usize,
    },
    /// The prompt is longer than the largest context.
    #[error("cannot add the request: its prompt has {tokens} tokens, the context has room for {room}")]
    TooLong {
        /// Number of tokens of the prompt.
        tokens: usize,
        /// Maximum number of tokens of a sequence.
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
