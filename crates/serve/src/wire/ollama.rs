//! Chats in Ollama's format.

use chrono::{SecondsFormat, Utc};
use danlu_model::Message;
use serde_json::{Map, Value, json};

use super::output::OutputFields;
use super::{messages, template_values};
use crate::api_error::ApiError;
use crate::json_fields::Fields;
use crate::reply::{Piece, Reply};
use crate::sampling_fields::SamplingFields;
use crate::stream::StreamWriter;
use crate::tools::{CallPiece, whole_calls};

const FIELDS: &[&str] = &[
    "format",
    "keep_alive",
    "messages",
    "model",
    "options",
    "stream",
    "think",
    "tools",
    "truncate",
    "shift",
];

/// Accepted options. Some control sampling, and the others are ignored.
const OPTIONS: &[&str] = &[
    "frequency_penalty",
    "main_gpu",
    "min_p",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_predict",
    "num_thread",
    "presence_penalty",
    "repeat_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_p",
    "use_mmap",
];

pub(crate) struct OllamaChat {
    pub messages: Vec<Message>,
    pub template_values: Map<String, Value>,
    pub sampling: SamplingFields,
    pub output: OutputFields,
    pub streams: bool,
}

impl OllamaChat {
    pub fn read(map: &Map<String, Value>) -> Result<Self, ApiError> {
        let fields = Fields::new(map);
        fields.check_names(&[FIELDS])?;
        let options = fields.object("options")?.cloned().unwrap_or_default();
        Fields::nested(&options, "options.").check_names(&[OPTIONS])?;
        Ok(Self {
            messages: messages::read(map)?,
            template_values: template_values::read_think(&fields)?,
            sampling: SamplingFields::read_ollama(&options)?,
            output: OutputFields::read_ollama(&fields)?,
            // Ollama streams by default.
            streams: fields.flag_or_on("stream")?,
        })
    }
}

/// Returns a model name without the tag that Ollama's clients append.
pub(crate) fn without_tag(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

/// Formats a time in RFC 3339, as Ollama's Go code does. `None` is the current time.
pub(crate) fn timestamp(seconds: Option<u64>) -> String {
    let time = seconds.and_then(|seconds| chrono::DateTime::from_timestamp(seconds as i64, 0));
    time.unwrap_or_else(Utc::now).to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Formats the response to a chat request, whole or in lines.
pub(crate) struct OllamaAnswer {
    /// The model name that the client sent.
    model: String,
    done_reason: Option<&'static str>,
    /// Tool calls so far. The last line contains the calls, because Ollama's clients expect each call in one
    /// piece.
    calls: Vec<CallPiece>,
}

impl OllamaAnswer {
    /// Creates the formatter. `model` is the model name that the client sent.
    pub fn new(model: &str) -> Self {
        Self { model: model.to_owned(), done_reason: None, calls: Vec::new() }
    }

    /// Records the end and the calls of a piece.
    fn record(&mut self, piece: &Piece) {
        self.calls.extend(piece.calls.iter().cloned());
        // In Ollama, a reply with calls ends with `stop`.
        self.done_reason = piece.finish.as_ref().map(|finish| match finish.reason {
            "tool_calls" => "stop",
            reason => reason,
        });
    }

    /// Returns the field `tool_calls`. Calls that were cut off are omitted.
    fn tool_calls(&self) -> Option<Value> {
        let calls = whole_calls(&self.calls).into_iter().enumerate().filter_map(|(index, call)| {
            let arguments: Value = serde_json::from_str(&call.arguments).ok()?;
            let function = json!({"index": index, "name": call.name, "arguments": arguments});
            Some(json!({"id": call.id, "function": function}))
        });
        let calls: Vec<Value> = calls.collect();
        (!calls.is_empty()).then(|| calls.into())
    }

    fn line(&self, text: &str) -> Value {
        let message = json!({"role": "assistant", "content": text});
        json!({"model": self.model, "created_at": timestamp(None), "message": message, "done": false})
    }

    fn last(&self, text: &str, reply: &Reply) -> Value {
        let total = reply.started().elapsed();
        let first = reply.first_token().map_or(total, |first| first - reply.started());
        let usage = reply.usage();
        let mut line = self.line(text);
        if let Some(calls) = self.tool_calls() {
            line["message"]["tool_calls"] = calls;
        }
        let nanos = |duration: std::time::Duration| duration.as_nanos() as u64;
        for (name, value) in [
            ("done", true.into()),
            ("done_reason", self.done_reason.unwrap_or("stop").into()),
            ("total_duration", nanos(total).into()),
            ("load_duration", Value::from(0)),
            ("prompt_eval_count", usage.prompt_tokens.into()),
            ("prompt_eval_duration", nanos(first).into()),
            ("eval_count", usage.completion_tokens.into()),
            ("eval_duration", nanos(total - first).into()),
        ] {
            line[name] = value;
        }
        line
    }

    /// Waits for the end of the reply, and returns the whole response.
    pub async fn whole(mut self, mut reply: Reply) -> Result<Value, ApiError> {
        let mut text = String::new();
        while let Some(piece) = reply.next().await? {
            text.push_str(&piece.text);
            self.record(&piece);
        }
        Ok(self.last(&text, &reply))
    }
}

impl StreamWriter for OllamaAnswer {
    fn start(&mut self, _reply: &Reply) -> String {
        String::new()
    }

    fn piece(&mut self, piece: &Piece, _reply: &Reply) -> String {
        self.record(piece);
        match piece.text.as_str() {
            "" => String::new(),
            text => format!("{}\n", self.line(text)),
        }
    }

    fn end(&mut self, reply: &Reply) -> String {
        format!("{}\n", self.last("", reply))
    }

    fn error(&mut self, error: &ApiError) -> String {
        format!("{}\n", json!({"error": error.message()}))
    }

    fn ping(&self) -> Option<&'static str> {
        None
    }
}
