//! Formats log probabilities of tokens.

use danlu_generate::TokenLogprobs;
use danlu_model::Tokenizer;
use serde_json::{Map, Value, json};

use crate::token_bytes::token_bytes;

/// Value for a token with probability zero, because JSON has no infinity. vLLM uses the same number.
const IMPOSSIBLE: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}

/// Returns `logprobs.content` of a chat response.
pub(crate) fn of_chat(tokenizer: &Tokenizer, tokens: &[(u32, TokenLogprobs)]) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = token_bytes(tokenizer, id);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        let mut entry = Map::new();
        entry.insert("token".to_owned(), token.into());
        entry.insert("logprob".to_owned(), finite(logprob).into());
        entry.insert("bytes".to_owned(), bytes.into());
        entry
    };
    let entries = tokens.iter().map(|(id, logprobs)| {
        let mut chosen = entry(*id, logprobs.logprob);
        let top = logprobs.top.iter().map(|&(id, logprob)| Value::Object(entry(id, logprob)));
        chosen.insert("top_logprobs".to_owned(), top.collect());
        Value::Object(chosen)
    });
    entries.collect()
}

/// Returns `logprobs` of a completion response. `offset` is the number of characters before the first token.
pub(crate) fn of_completion(
    tokenizer: &Tokenizer,
    tokens: &[(u32, TokenLogprobs)],
    offset: &mut usize,
) -> Value {
    let text = |id: u32| String::from_utf8_lossy(&token_bytes(tokenizer, id)).into_owned();
    let (mut texts, mut chosen, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (id, logprobs) in tokens {
        let token = text(*id);
        offsets.push(*offset);
        *offset += token.chars().count();
        texts.push(token);
        chosen.push(finite(logprobs.logprob));
        let by_text: Map<String, Value> =
            logprobs.top.iter().map(|&(id, logprob)| (text(id), finite(logprob).into())).collect();
        top.push(Value::Object(by_text));
    }
    json!({"tokens": texts, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets})
}
