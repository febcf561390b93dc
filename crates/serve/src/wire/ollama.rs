//! Chats in Ollama's format.

use chrono::{SecondsFormat, Utc};
use danlu_model::Message;
use serde_json::{Map, Value, json};

use super::messages;
use crate::api_error::ApiError;
use crate::json_fields::Fields;
use crate::reply::{Piece, Reply};
use crate::sampling_fields::SamplingFields;
use crate::stream::StreamWriter;

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

/// A parsed chat request.
pub(crate) struct OllamaChat {
    pub messages: Vec<Message>,
    pub sampling: SamplingFields,
    pub streams: bool,
}

impl OllamaChat {
    pub fn read(map: &Map<String, Value>) -> Result<Self, ApiError> {
        let fields = Fields::new(map);
        fields.check_names(&[FIELDS])?;
        for name in ["format", "tools"] {
            let is_empty = |value: &Value| value == "" || value.as_array().is_some_and(Vec::is_empty);
            if fields.get(name).is_some_and(|value| !is_empty(value)) {
                return Err(ApiError::field(
                    name,
                    format!("cannot honour `{name}`: this server does not support it"),
                ));
            }
        }
        let options = fields.object("options")?.cloned().unwrap_or_default();
        Fields::nested(&options, "options.").check_names(&[OPTIONS])?;
        Ok(Self {
            messages: messages::read(map)?,
            sampling: SamplingFields::read_ollama(&options)?,
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
    pub model: String,
    pub done_reason: Option<&'static str>,
}

impl OllamaAnswer {
    fn line(&self, text: &str) -> Value {
        let message = json!({"role": "assistant", "content": text});
        json!({"model": self.model, "created_at": timestamp(None), "message": message, "done": false})
    }

    fn last(&self, text: &str, reply: &Reply) -> Value {
        let total = reply.started().elapsed();
        let first = reply.first_token().map_or(total, |first| first - reply.started());
        let usage = reply.usage();
        let mut line = self.line(text);
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
            self.done_reason = piece.finish.map(|finish| finish.reason);
        }
        Ok(self.last(&text, &reply))
    }
}

impl StreamWriter for OllamaAnswer {
    fn start(&mut self, _reply: &Reply) -> String {
        String::new()
    }

    fn piece(&mut self, piece: &Piece, _reply: &Reply) -> String {
        self.done_reason = piece.finish.as_ref().map(|finish| finish.reason);
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
