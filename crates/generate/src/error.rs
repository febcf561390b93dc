//! Errors of text generation.

use danlu_model::ModelError;

/// Reason why no reply could be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A sampling setting is outside its range.
    #[error("cannot use `{name}`: it is {found}, expected {expected}")]
    Setting {
        /// Name of the option on the command line.
        name: &'static str,
        /// The invalid value.
        found: String,
        /// The accepted range.
        expected: &'static str,
    },
    /// The prompt is empty.
    #[error("cannot continue the prompt: it has no tokens")]
    EmptyPrompt,
    /// The prompt is longer than the context.
    #[error("cannot read the prompt: it has {prompt} tokens, and the context has room for {context}")]
    PromptTooLong {
        /// Number of tokens of the prompt.
        prompt: usize,
        /// Capacity of the context in tokens.
        context: usize,
    },
    /// Every logit is NaN or minus infinity.
    #[error("cannot choose a token after {position} tokens: every logit is NaN or minus infinity")]
    NoLogit {
        /// Number of tokens before the missing token.
        position: usize,
    },
    /// A logits processor failed.
    #[error("cannot choose a token after {position} tokens: {reason}")]
    Processor {
        /// Number of tokens before the missing token.
        position: usize,
        /// Reason that the processor returned.
        reason: String,
    },
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl GenerateError {
    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::PromptTooLong { .. } => {
                Some("shorten the message or the system prompt, or raise `--context`".to_owned())
            }
            Self::NoLogit { .. } => {
                Some("use an earlier checkpoint: the weights overflowed in training or merging".to_owned())
            }
            Self::Model(error) => error.hint(),
            Self::Setting { .. } | Self::EmptyPrompt | Self::Processor { .. } => None,
        }
    }
}
