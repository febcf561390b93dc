//! Errors between a prompt and its reply.

use danlu_model::ModelError;

/// The reason why there is no reply, or no sampler.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A sampling setting outside its range.
    #[error("`{name}` is {found}, expected {expected}")]
    Setting {
        /// The setting, spelt as on the command line.
        name: &'static str,
        /// The requested value.
        found: String,
        /// The range in words.
        expected: &'static str,
    },
    /// Nothing to continue.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// The prompt alone fills the context.
    #[error("the prompt is {prompt} tokens, and the context holds {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that fit in the context.
        context: usize,
    },
    /// Every logit was NaN or minus infinity.
    #[error("the model gave no usable logit after {position} tokens")]
    NoLogit {
        /// Tokens before the one that could not be chosen.
        position: usize,
    },
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl GenerateError {
    /// The next step for the user, if there is one.
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
