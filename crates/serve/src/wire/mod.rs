//! Parses JSON requests and formats JSON responses.

pub(crate) mod chat;
pub(crate) mod completion;
mod envelope;
pub(crate) mod logprobs;
pub(crate) mod messages;
pub(crate) mod ollama;
pub(crate) mod output;
pub(crate) mod template_values;

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::reply::{Reply, Usage};

/// Returns the current time in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Returns the field `usage` in OpenAI's format.
pub(crate) fn usage(usage: Usage) -> Value {
    let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    })
}

/// Returns the field `timings` in llama.cpp's format.
pub(crate) fn timings(reply: &Reply) -> Value {
    let usage = reply.usage();
    let first = reply.first_token().unwrap_or_else(std::time::Instant::now);
    let prompt_ms = (first - reply.started()).as_secs_f64() * 1e3;
    let predicted_ms = first.elapsed().as_secs_f64() * 1e3;
    let per_second = usage.completion_tokens as f64 / (predicted_ms / 1e3).max(1e-6);
    json!({
        "cache_n": usage.cached_tokens,
        "prompt_n": usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens),
        "prompt_ms": prompt_ms,
        "predicted_n": usage.completion_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_second": per_second,
    })
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamOptions {
    /// Whether the last chunk contains the token counts.
    pub includes_usage: bool,
    /// Whether every chunk contains the token counts. Has no effect without `includes_usage`.
    pub is_continuous: bool,
}

impl StreamOptions {
    /// Reads the field `stream_options`.
    pub fn read(fields: &crate::json_fields::Fields<'_>) -> Result<Self, crate::api_error::ApiError> {
        let Some(map) = fields.object("stream_options")? else { return Ok(Self::default()) };
        let options = crate::json_fields::Fields::nested(map, "stream_options.");
        let is_continuous = options.flag("continuous_usage_stats")?;
        Ok(Self { includes_usage: options.flag("include_usage")?, is_continuous })
    }
}
