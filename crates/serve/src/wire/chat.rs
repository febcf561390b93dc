//! Chat completions in OpenAI's format.

use danlu_model::Message;
use serde_json::{Map, Value, json};

use super::envelope::{Envelope, stop_reason};
use super::output::OutputFields;
use super::{StreamOptions, logprobs, messages, template_values};
use crate::api_error::ApiError;
use crate::json_fields::Fields;
use crate::registry::Lease;
use crate::reply::{Piece, Reply};
use crate::sampling_fields::{NEUTRAL_FIELDS, SAMPLING_FIELDS, SamplingFields};
use crate::stream::{StreamWriter, sse};
use crate::tools::{CallPiece, ToolCall, whole_calls};

/// Maximum value of `top_logprobs`, the number of alternatives per token.
const MAX_TOP_LOGPROBS: i64 = 20;

const FIELDS: &[&str] = &[
    "adapter",
    "chat_template_kwargs",
    "logprobs",
    "max_completion_tokens",
    "messages",
    "model",
    "parallel_tool_calls",
    "response_format",
    "stream",
    "stream_options",
    "tool_choice",
    "tools",
    "top_logprobs",
];

pub(crate) struct ChatRequest {
    pub messages: Vec<Message>,
    pub template_values: Map<String, Value>,
    pub sampling: SamplingFields,
    pub output: OutputFields,
    pub top_logprobs: Option<usize>,
    pub streams: bool,
    pub stream_options: StreamOptions,
}

impl ChatRequest {
    pub fn read(map: &Map<String, Value>, vocab_size: usize) -> Result<Self, ApiError> {
        let fields = Fields::new(map);
        fields.check_names(&[FIELDS, SAMPLING_FIELDS, NEUTRAL_FIELDS])?;
        let messages = messages::read(map)?;
        let mut sampling = SamplingFields::read(map, vocab_size)?;
        if let Some(max) = fields.count("max_completion_tokens", 1)? {
            if let Some(other) = sampling.max_tokens.filter(|&other| other != max) {
                let message =
                    format!("cannot use `max_completion_tokens`: it is {max}, and `max_tokens` is {other}");
                return Err(ApiError::field("max_completion_tokens", message));
            }
            sampling.max_tokens = Some(max);
        }
        Ok(Self {
            messages,
            template_values: template_values::read(&fields)?,
            sampling,
            output: OutputFields::read(&fields)?,
            top_logprobs: top_logprobs(&fields)?,
            streams: fields.flag("stream")?,
            stream_options: StreamOptions::read(&fields)?,
        })
    }
}

fn top_logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)?;
    match (fields.flag("logprobs")?, top) {
        (false, Some(1..)) => {
            let message = "cannot use `top_logprobs`: it needs `logprobs`, which is not true";
            Err(ApiError::field("top_logprobs", message))
        }
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
    }
}

/// Formats the response to a chat request, whole or in chunks.
pub(crate) struct ChatAnswer {
    envelope: Envelope,
    wants_logprobs: bool,
}

impl ChatAnswer {
    /// Creates the formatter. `model` is the model name that the client sent.
    pub fn new(model: &str, lease: Lease, request: &ChatRequest) -> Self {
        let envelope =
            Envelope::new("chatcmpl-", "chat.completion.chunk", model, lease, request.stream_options);
        Self { envelope, wants_logprobs: request.top_logprobs.is_some() }
    }

    fn logprobs(&self, piece: &Piece) -> Value {
        match self.wants_logprobs {
            true => {
                let content = logprobs::of_chat(self.envelope.lease.profile.tokenizer(), &piece.logprobs);
                json!({"content": content, "refusal": null})
            }
            false => Value::Null,
        }
    }

    /// Waits for the end of the reply, and returns the whole response.
    pub async fn whole(self, mut reply: Reply) -> Result<Value, ApiError> {
        let wholes = reply.collect(|_| String::new()).await?;
        let choice = |whole: &Piece| {
            json!({
                "index": whole.choice,
                "message": message(whole),
                "logprobs": self.logprobs(whole),
                "finish_reason": whole.finish.as_ref().map(|finish| finish.reason),
                "stop_reason": stop_reason(whole.finish.as_ref()),
            })
        };
        let choices = wholes.iter().map(choice).collect();
        Ok(self.envelope.whole("chat.completion", choices, &reply))
    }
}

/// Returns the message of a whole reply.
fn message(whole: &Piece) -> Value {
    let calls = whole_calls(&whole.calls);
    if calls.is_empty() {
        return json!({"role": "assistant", "content": whole.text, "refusal": null});
    }
    let call = |call: &ToolCall| {
        let function = json!({"name": call.name, "arguments": call.arguments});
        json!({"id": call.id, "type": "function", "function": function})
    };
    let calls: Vec<Value> = calls.iter().map(call).collect();
    let content = if whole.text.is_empty() { Value::Null } else { whole.text.as_str().into() };
    json!({"role": "assistant", "content": content, "refusal": null, "tool_calls": calls})
}

/// Returns an entry of `tool_calls` in a chunk.
fn call_delta(piece: &CallPiece) -> Value {
    match piece {
        CallPiece::Start { index, id, name } => {
            let function = json!({"name": name, "arguments": ""});
            json!({"index": index, "id": id, "type": "function", "function": function})
        }
        CallPiece::Arguments { index, text } => json!({"index": index, "function": {"arguments": text}}),
    }
}

impl StreamWriter for ChatAnswer {
    fn start(&mut self, reply: &Reply) -> String {
        let start = |index| {
            let delta = json!({"role": "assistant", "content": ""});
            json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": null}])
        };
        (0..reply.choices()).map(|index| self.envelope.chunk(start(index), None)).collect()
    }

    fn piece(&mut self, piece: &Piece, reply: &Reply) -> String {
        let so_far = self.envelope.usage_so_far(reply);
        let mut out = String::new();
        let mut chunk = |delta: Value, logprobs: Value| {
            let choice =
                json!([{"index": piece.choice, "delta": delta, "logprobs": logprobs, "finish_reason": null}]);
            out += &self.envelope.chunk(choice, so_far.clone());
        };
        if !piece.text.is_empty() || !piece.logprobs.is_empty() {
            chunk(json!({"content": piece.text}), self.logprobs(piece));
        }
        for call in &piece.calls {
            chunk(json!({"tool_calls": [call_delta(call)]}), Value::Null);
        }
        if let Some(finish) = &piece.finish {
            let choice = json!([{
                "index": piece.choice,
                "delta": {},
                "logprobs": null,
                "finish_reason": finish.reason,
                "stop_reason": stop_reason(Some(finish)),
            }]);
            out += &self.envelope.chunk(choice, so_far);
        }
        out
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
