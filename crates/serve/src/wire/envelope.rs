//! The fields around the choices of a response, common to OpenAI's chat and text completions.

use serde_json::{Map, Value, json};

use super::{StreamOptions, now, timings, usage};
use crate::random_id::random_id;
use crate::registry::Lease;
use crate::reply::{Finish, Reply, StopMatch};
use crate::stream::sse;

/// Wraps the choices of one response, whole or in chunks.
pub(super) struct Envelope {
    id: String,
    created: u64,
    /// The model name that the client sent.
    model: String,
    pub lease: Lease,
    stream_options: StreamOptions,
    /// The field `object` of a chunk.
    chunk_object: &'static str,
}

impl Envelope {
    /// Creates the fields of a new response. The id of the response starts with `prefix`.
    pub fn new(
        prefix: &str,
        chunk_object: &'static str,
        model: &str,
        lease: Lease,
        stream_options: StreamOptions,
    ) -> Self {
        let (id, model) = (random_id(prefix), model.to_owned());
        Self { id, created: now(), model, lease, stream_options, chunk_object }
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

    /// Returns the whole response of a finished reply.
    pub fn whole(&self, object: &str, choices: Vec<Value>, reply: &Reply) -> Value {
        let mut answer = self.head(object);
        answer.insert("choices".to_owned(), choices.into());
        answer.insert("usage".to_owned(), usage(reply.usage()));
        answer.insert("timings".to_owned(), timings(reply));
        Value::Object(answer)
    }

    /// Returns one event of a streamed response.
    pub fn chunk(&self, choices: Value, usage: Option<Value>) -> String {
        let mut chunk = self.head(self.chunk_object);
        chunk.insert("choices".to_owned(), choices);
        if self.stream_options.includes_usage {
            chunk.insert("usage".to_owned(), usage.unwrap_or(Value::Null));
        }
        sse(&Value::Object(chunk))
    }

    /// Returns the token counts so far, if the client requested them in every chunk.
    pub fn usage_so_far(&self, reply: &Reply) -> Option<Value> {
        self.stream_options.is_continuous.then(|| usage(reply.usage()))
    }

    /// Returns the last events of a streamed response.
    pub fn end(&self, reply: &Reply) -> String {
        let mut out = String::new();
        if self.stream_options.includes_usage {
            out += &self.chunk(json!([]), Some(usage(reply.usage())));
        }
        out + "data: [DONE]\n\n"
    }
}

/// Returns vLLM's `stop_reason`: the stop string or stop token that ended the choice.
pub(super) fn stop_reason(finish: Option<&Finish>) -> Value {
    match finish.and_then(|finish| finish.matched.as_ref()) {
        Some(StopMatch::Text(text)) => text.as_str().into(),
        Some(StopMatch::Token(id)) => (*id).into(),
        None => Value::Null,
    }
}
