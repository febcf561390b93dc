//! Completions in OpenAI's older format.

use serde_json::{Map, Value, json};

use super::envelope::{Envelope, stop_reason};
use super::{StreamOptions, logprobs};
use crate::api_error::ApiError;
use crate::json_fields::{Fields, token_id};
use crate::registry::Lease;
use crate::reply::{Finish, Piece, Reply};
use crate::sampling_fields::{NEUTRAL_FIELDS, SAMPLING_FIELDS, SamplingFields};
use crate::stream::{StreamWriter, sse};

/// The field `object` of a response, whole or in chunks.
const OBJECT: &str = "text_completion";

/// Maximum number of tokens of a reply if the request sets no limit. OpenAI has the same default.
const DEFAULT_MAX_TOKENS: usize = 16;

const MAX_PROMPTS: usize = 128;

/// Maximum value of `logprobs`, the number of alternatives per token.
const MAX_LOGPROBS: i64 = 5;

const FIELDS: &[&str] = &[
    "adapter",
    "best_of",
    "echo",
    "logprobs",
    "model",
    "prompt",
    "response_format",
    "stream",
    "stream_options",
];

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

pub(crate) struct CompletionRequest {
    pub prompts: Vec<Prompt>,
    pub sampling: SamplingFields,
    pub logprobs: Option<usize>,
    pub echoes: bool,
    pub streams: bool,
    pub stream_options: StreamOptions,
}

impl CompletionRequest {
    pub fn read(map: &Map<String, Value>, vocab_size: usize) -> Result<Self, ApiError> {
        let fields = Fields::new(map);
        fields.check_names(&[FIELDS, SAMPLING_FIELDS, NEUTRAL_FIELDS])?;
        let mut sampling = SamplingFields::read(map, vocab_size)?;
        sampling.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
        if let Some(best_of) = fields.count("best_of", 1)?
            && best_of != sampling.choices
        {
            let n = sampling.choices;
            let message =
                format!("cannot honour `best_of`: it is {best_of}, and only `n`, which is {n}, is supported");
            return Err(ApiError::field("best_of", message));
        }
        if fields.object("response_format")?.is_some_and(|format| format.get("type") != Some(&json!("text")))
        {
            return Err(fields.wrong("response_format", "the format `text`, the only supported one"));
        }
        let logprobs = fields.whole("logprobs", 0, MAX_LOGPROBS)?.map(|n| n as usize);
        let echoes = fields.flag("echo")?;
        if echoes && logprobs.is_some() {
            let message =
                "cannot honour `echo` together with `logprobs`: probabilities of the prompt are not computed";
            return Err(ApiError::field("echo", message));
        }
        Ok(Self {
            prompts: read_prompts(&fields, vocab_size)?,
            sampling,
            logprobs,
            echoes,
            streams: fields.flag("stream")?,
            stream_options: StreamOptions::read(&fields)?,
        })
    }
}

fn read_prompts(fields: &Fields<'_>, vocab_size: usize) -> Result<Vec<Prompt>, ApiError> {
    let expected = format!(
        "a string, a list of token ids below {vocab_size}, or a list of up to {MAX_PROMPTS} of either"
    );
    let wrong = || fields.wrong("prompt", &expected);
    let ids = |items: &[Value]| items.iter().map(|id| token_id(id, vocab_size)).collect::<Option<Vec<u32>>>();
    let prompts: Option<Vec<Prompt>> = match fields.get("prompt") {
        Some(Value::String(text)) => Some(vec![Prompt::Text(text.clone())]),
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => {
            ids(items).map(|ids| vec![Prompt::Ids(ids)])
        }
        Some(Value::Array(items)) if (1..=MAX_PROMPTS).contains(&items.len()) => {
            let prompt = |item: &Value| match item {
                Value::String(text) => Some(Prompt::Text(text.clone())),
                Value::Array(items) => ids(items).map(Prompt::Ids),
                _ => None,
            };
            items.iter().map(prompt).collect()
        }
        _ => None,
    };
    prompts.ok_or_else(wrong)
}

/// Formats the response to a completion request, whole or in chunks.
pub(crate) struct CompletionAnswer {
    envelope: Envelope,
    /// Text of each prompt, if the client requested with `echo` that the prompt precedes the reply.
    echoes: Option<Vec<String>>,
    choices_per_prompt: usize,
    wants_logprobs: bool,
    /// Number of characters of each choice so far.
    offsets: Vec<usize>,
}

impl CompletionAnswer {
    /// Creates the formatter. `model` is the name that the client sent, and `texts` are the prompts.
    pub fn new(model: &str, lease: Lease, request: &CompletionRequest, texts: Vec<String>) -> Self {
        Self {
            envelope: Envelope::new("cmpl-", OBJECT, model, lease, request.stream_options),
            offsets: vec![0; texts.len() * request.sampling.choices],
            echoes: request.echoes.then_some(texts),
            choices_per_prompt: request.sampling.choices,
            wants_logprobs: request.logprobs.is_some(),
        }
    }

    fn echo(&self, choice: usize) -> &str {
        self.echoes.as_ref().map_or("", |texts| texts[choice / self.choices_per_prompt].as_str())
    }

    fn choice(&mut self, piece: &Piece) -> Value {
        let logprobs = match self.wants_logprobs {
            true => {
                let tokenizer = self.envelope.lease.profile.tokenizer();
                logprobs::of_completion(tokenizer, &piece.logprobs, &mut self.offsets[piece.choice])
            }
            false => Value::Null,
        };
        json!({
            "index": piece.choice,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish.as_ref().map(|finish| finish.reason),
            "stop_reason": stop_reason(piece.finish.as_ref()),
        })
    }

    /// Waits for the end of the reply, and returns the whole response.
    pub async fn whole(mut self, mut reply: Reply) -> Result<Value, ApiError> {
        let wholes = reply.collect(|choice| self.echo(choice).to_owned()).await?;
        let choices = wholes.iter().map(|piece| self.choice(piece)).collect();
        Ok(self.envelope.whole(OBJECT, choices, &reply))
    }
}

impl StreamWriter for CompletionAnswer {
    fn start(&mut self, reply: &Reply) -> String {
        if self.echoes.is_none() {
            return String::new();
        }
        let echo = |this: &mut Self, choice| {
            let text = this.echo(choice).to_owned();
            let (calls, logprobs) = Default::default();
            let piece = Piece { choice, text, calls, logprobs, finish: None::<Finish> };
            let choice = this.choice(&piece);
            this.envelope.chunk(json!([choice]), None)
        };
        (0..reply.choices()).map(|choice| echo(self, choice)).collect()
    }

    fn piece(&mut self, piece: &Piece, reply: &Reply) -> String {
        let so_far = self.envelope.usage_so_far(reply);
        let choice = self.choice(piece);
        self.envelope.chunk(json!([choice]), so_far)
    }

    fn end(&mut self, reply: &Reply) -> String {
        self.envelope.end(reply)
    }

    fn error(&mut self, error: &ApiError) -> String {
        sse(&error.body())
    }

    fn ping(&self) -> Option<&'static str> {
        Some(": ping\n\n")
    }
}
