//! The grammar and the tool calls of one request.

use std::sync::Arc;

use llguidance::Matcher;

use crate::api_error::ApiError;
use crate::app::{App, blocking};
use crate::grammar::{MaskWorker, TokenMask, Trigger, calls_grammar, json_grammar};
use crate::registry::Lease;
use crate::sampling_fields::SamplingFields;
use crate::tools::{CallFormat, CallScanner, ToolDefinition};
use crate::wire::output::{OutputFields, ToolChoice};

/// The compiled form of [`OutputFields`]: a grammar for the reply, and the tool calls that the reply may
/// contain.
#[derive(Default)]
pub(crate) struct Constraint {
    grammar: Option<(Matcher, Option<Trigger>)>,
    calls: Option<ExpectedCalls>,
}

/// The tool calls that a reply may contain.
struct ExpectedCalls {
    format: Arc<CallFormat>,
    names: Vec<String>,
    /// Whether the text of a call contains special tokens.
    has_special: bool,
}

impl Constraint {
    /// Compiles the constraint of a request.
    ///
    /// # Errors
    /// If the model cannot call tools, or a schema cannot be compiled.
    pub async fn compile(
        app: &App,
        lease: &Lease,
        output: &OutputFields,
        sampling: &SamplingFields,
    ) -> Result<Self, ApiError> {
        if output.schema.is_none() && output.tools.choice == ToolChoice::None {
            return Ok(Self::default());
        }
        check_sampling(output, sampling)?;
        let (tokens, vocab_size, output) =
            (Arc::clone(&lease.profile.tokens), app.vocab_size, output.clone());
        blocking(move || {
            let tools = &output.tools;
            let name = if tools.choice == ToolChoice::None { "response_format" } else { "tools" };
            let refuse = |reason: String| ApiError::field(name, format!("cannot honour `{name}`: {reason}"));
            let factory = tokens.grammars(vocab_size).map_err(refuse)?;
            if tools.choice == ToolChoice::None {
                let schema = output.schema.as_ref().expect("a schema or tools");
                let matcher = factory.compile(json_grammar(schema)).map_err(refuse)?;
                return Ok(Self { grammar: Some((matcher, None)), calls: None });
            }
            let format = Arc::clone(tokens.calls().map_err(|reason| refuse(with_hint(&reason)))?);
            let is_free = tools.choice == ToolChoice::Auto && output.schema.is_none();
            let instead = output.schema.as_ref().filter(|_| tools.choice == ToolChoice::Auto);
            let callable: Vec<&ToolDefinition> = match &tools.choice {
                ToolChoice::Named(name) => tools.tools.iter().filter(|tool| tool.name == *name).collect(),
                _ => tools.tools.iter().collect(),
            };
            let tokenizer = &tokens.tokenizer;
            let grammar = calls_grammar(tokenizer, &format, &callable, tools.is_parallel, is_free, instead);
            let matcher = factory.compile(grammar).map_err(refuse)?;
            let trigger = Trigger { text: format.open.clone(), factory: Arc::clone(factory) };
            let calls = ExpectedCalls {
                has_special: format.has_special(tokenizer),
                names: callable.iter().map(|tool| tool.name.clone()).collect(),
                format,
            };
            Ok(Self { grammar: Some((matcher, is_free.then_some(trigger))), calls: Some(calls) })
        })
        .await
    }

    /// Returns the token mask for one reply, or `None` if there is no grammar.
    pub fn mask(&self, worker: &MaskWorker) -> Option<TokenMask> {
        let (matcher, trigger) = self.grammar.as_ref()?;
        Some(TokenMask::new(matcher, trigger.clone(), worker.clone()))
    }

    /// Returns a scanner that finds the tool calls in one reply.
    pub fn scanner(&self) -> Option<CallScanner> {
        let calls = self.calls.as_ref()?;
        Some(CallScanner::new(Arc::clone(&calls.format), calls.names.clone()))
    }

    /// Returns whether special tokens must stay in the text, because tool calls contain them.
    pub fn shows_special(&self) -> bool {
        self.calls.as_ref().is_some_and(|calls| calls.has_special)
    }
}

/// Rejects settings that would make the model continue after the end of the grammar.
fn check_sampling(output: &OutputFields, sampling: &SamplingFields) -> Result<(), ApiError> {
    let other = if output.schema.is_some() { "response_format" } else { "tools" };
    let name = match (sampling.ignore_eos, sampling.min_tokens) {
        (true, _) => "ignore_eos",
        (false, 1..) => "min_tokens",
        (false, 0) => return Ok(()),
    };
    let message =
        format!("cannot use `{name}` together with `{other}`: the grammar decides where the reply ends");
    Err(ApiError::field(name, message))
}

fn with_hint(reason: &str) -> String {
    format!(
        "{reason}\nhint: serve a model whose chat template supports tools, or set one with `--chat-template`"
    )
}
