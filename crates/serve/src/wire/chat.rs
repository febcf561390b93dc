//! Chat completions in OpenAI's format.

use danlu_model::Message;
use serde_json::{Map, Value, json};

use super::{StreamOptions, logprobs, messages, now, timings, usage};
use crate::api_error::ApiError;
use crate::json_fields::Fields;
use crate::random_id::random_id;
use crate::registry::Lease;
use crate::reply::{Finish, Piece, Reply, StopMatch};
use crate::sampling_fields::{NEUTRAL_FIELDS, SAMPLING_FIELDS, SamplingFields};
use crate::stream::{StreamWriter, sse};

/// Maximum number of alternatives per token.
const MAX_TOP_LOGPROBS: i64 = 20;

const FIELDS: &[&str] = &[
    "adapter",
    "logprobs",
    "max_completion_tokens",
    "messages",
    "model",
    "response_format",
    "stream",
    "stream_options",
    "tool_choice",
    "tools",
    "top_logprobs",
];

/// A parsed chat request.
pub(crate) struct ChatRequest {
    pub messages: Vec<Message>,
    pub sampling: SamplingFields,
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
        refuse_tools(&fields)?;
        refuse_response_format(&fields)?;
        Ok(Self {
            messages,
            sampling,
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

/// Rejects a request with tools, because they would change the reply.
fn refuse_tools(fields: &Fields<'_>) -> Result<(), ApiError> {
    let has_tools = fields.list("tools")?.is_some_and(|tools| !tools.is_empty());
    let is_off = fields.get("tool_choice").is_none_or(|choice| choice == "none");
    let name = match (has_tools, is_off) {
        (true, _) => "tools",
        (false, false) if fields.get("tool_choice").is_some_and(|choice| choice != "auto") => "tool_choice",
        _ => return Ok(()),
    };
    Err(ApiError::field(name, format!("cannot honour `{name}`: this server does not support tools")))
}

fn refuse_response_format(fields: &Fields<'_>) -> Result<(), ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(()) };
    let format = Fields::nested(format, "response_format.");
    match format.text("type")? {
        Some("text") => Ok(()),
        _ => Err(format.wrong("type", "`text`, the only supported format")),
    }
}

/// Formats the response to a chat request, whole or in chunks.
pub(crate) struct ChatAnswer {
    id: String,
    created: u64,
    model: String,
    lease: Lease,
    wants_logprobs: bool,
    stream_options: StreamOptions,
}

impl ChatAnswer {
    /// Creates the formatter. `model` is the model name that the client sent.
    pub fn new(model: &str, lease: Lease, request: &ChatRequest) -> Self {
        Self {
            id: random_id("chatcmpl-"),
            created: now(),
            model: model.to_owned(),
            lease,
            wants_logprobs: request.top_logprobs.is_some(),
            stream_options: request.stream_options,
        }
    }

    fn head(&self, object: &str) -> Map<String, Value> {
        let mut head = Map::new();
        head.insert("id".to_owned(), self.id.as_str().into());
        head.insert("object".to_owned(), object.into());
        head.insert("created".to_owned(), self.created.into());
        head.insert("model".to_owned(), self.model.as_str().into());
        head.insert("system_fingerprint".to_owned(), crate::FINGERPRINT.into());
        if let Some(generation) = &self.lease.generation {
            head.insert("adapter_generation".to_owned(), generation.id.to_string().into());
        }
        head
    }

    fn logprobs(&self, piece: &Piece) -> Value {
        match self.wants_logprobs {
            true => {
                let content = logprobs::of_chat(self.lease.profile.tokenizer(), &piece.logprobs);
                json!({"content": content, "refusal": null})
            }
            false => Value::Null,
        }
    }

    /// Waits for the end of the reply, and returns the whole response.
    pub async fn whole(self, mut reply: Reply) -> Result<Value, ApiError> {
        let mut choices = vec![Whole::default(); reply.choices()];
        while let Some(mut piece) = reply.next().await? {
            let choice = &mut choices[piece.choice];
            choice.text.push_str(&piece.text);
            choice.logprobs.append(&mut piece.logprobs);
            choice.finish = piece.finish;
        }
        let tokenizer = self.lease.profile.tokenizer();
        let choice = |(index, whole): (usize, Whole)| {
            let logprobs = match self.wants_logprobs {
                true => json!({"content": logprobs::of_chat(tokenizer, &whole.logprobs), "refusal": null}),
                false => Value::Null,
            };
            json!({
                "index": index,
                "message": {"role": "assistant", "content": whole.text, "refusal": null},
                "logprobs": logprobs,
                "finish_reason": whole.finish.as_ref().map(|finish| finish.reason),
                "stop_reason": stop_reason(whole.finish.as_ref()),
            })
        };
        let mut answer = self.head("chat.completion");
        answer.insert("choices".to_owned(), choices.into_iter().enumerate().map(choice).collect());
        answer.insert("usage".to_owned(), usage(reply.usage()));
        answer.insert("timings".to_owned(), timings(&reply));
        Ok(Value::Object(answer))
    }

    fn chunk(&self, choices: Value, usage: Option<Value>) -> String {
        let mut chunk = self.head("chat.completion.chunk");
        chunk.insert("choices".to_owned(), choices);
        if self.stream_options.includes_usage {
            chunk.insert("usage".to_owned(), usage.unwrap_or(Value::Null));
        }
        sse(&Value::Object(chunk))
    }
}

/// The collected output of one choice.
#[derive(Clone, Default)]
struct Whole {
    text: String,
    logprobs: Vec<(u32, danlu_generate::TokenLogprobs)>,
    finish: Option<Finish>,
}

/// Returns vLLM's `stop_reason`: the stop string or stop token that ended the choice.
pub(crate) fn stop_reason(finish: Option<&Finish>) -> Value {
    match finish.and_then(|finish| finish.matched.as_ref()) {
        Some(StopMatch::Text(text)) => text.as_str().into(),
        Some(StopMatch::Token(id)) => (*id).into(),
        None => Value::Null,
    }
}

impl StreamWriter for ChatAnswer {
    fn start(&mut self, reply: &Reply) -> String {
        let start = |index| {
            let delta = json!({"role": "assistant", "content": ""});
            json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": null}])
        };
        (0..reply.choices()).map(|index| self.chunk(start(index), None)).collect()
    }

    fn piece(&mut self, piece: &Piece, reply: &Reply) -> String {
        let so_far = self.stream_options.is_continuous.then(|| usage(reply.usage()));
        let mut out = String::new();
        if !piece.text.is_empty() || !piece.logprobs.is_empty() {
            let delta = json!({"content": piece.text});
            let logprobs = self.logprobs(piece);
            let choice =
                json!([{"index": piece.choice, "delta": delta, "logprobs": logprobs, "finish_reason": null}]);
            out += &self.chunk(choice, so_far.clone());
        }
        if let Some(finish) = &piece.finish {
            let choice = json!([{
                "index": piece.choice,
                "delta": {},
                "logprobs": null,
                "finish_reason": finish.reason,
                "stop_reason": stop_reason(Some(finish)),
            }]);
            out += &self.chunk(choice, so_far);
        }
        out
    }

    fn end(&mut self, reply: &Reply) -> String {
        let mut out = String::new();
        if self.stream_options.includes_usage {
            out += &self.chunk(json!([]), Some(usage(reply.usage())));
        }
        out + "data: [DONE]\n\n"
    }

    fn error(&mut self, error: &ApiError) -> String {
        sse(&error.body())
    }

    fn ping(&self) -> Option<&'static str> {
        Some(": ping\n\n")
    }
}
