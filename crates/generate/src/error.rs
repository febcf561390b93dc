//! Errors of text generation.

use danlu_model::ModelError;

/// Why no reply could be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A sampling setting outside its range.
    #[error("`{name}` is {found}, expected {expected}")]
    Setting {
        /// Name of the setting on the command line.
        name: &'static str,
        /// The requested value.
        found: String,
        /// Accepted range.
        expected: &'static str,
    },
    /// The prompt is empty.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// The prompt does not leave room for a new token.
    #[error("the prompt is {prompt} tokens, and the context holds {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Capacity of the context in tokens.
        context: usize,
    },
    /// Every logit is NaN or minus infinity.
    #[error("the model gave no usable logit after {position} tokens")]
    NoLogit {
        /// Number of tokens before the failed one.
        position: usize,
    },
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl GenerateError {
    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::PromptTooLong { .. } => Some(
                "shorten the message or the system prompt; a larger `--context` may make room".to_owned(),
            ),
            Self::NoLogit { .. } => Some(
                "weights that overflowed in training or merging do this: try an earlier checkpoint"
                    .to_owned(),
            ),
            Self::Model(error) => error.hint(),
            Self::Setting { .. } | Self::EmptyPrompt => None,
        }
    }
}
