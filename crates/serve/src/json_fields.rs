//! Fields of a request body.
//!
//! `null` counts as absent, and `1.0` counts as an integer. A known field with an invalid value is an error.
//! An unknown field is ignored, unless it would change the reply or looks like a misspelled known field.

use danlu_data::closest_word;
use serde_json::{Map, Value};

use crate::api_error::{ApiError, shortened};

/// Fields that other servers support and that would change the reply. This server rejects such a field unless
/// its value is null, false or empty.
const REFUSED: [&str; 40] = [
    "add_generation_prompt",
    "add_special_tokens",
    "allowed_token_ids",
    "audio",
    "bad_words",
    "beam_width",
    "chat_template",
    "continue_final_message",
    "documents",
    "dry_multiplier",
    "dynatemp_range",
    "function_call",
    "functions",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "json_schema",
    "length_penalty",
    "logits_processors",
    "lora",
    "lora_request",
    "mirostat",
    "modalities",
    "n_probs",
    "prompt_embeds",
    "prompt_logprobs",
    "structured_outputs",
    "suffix",
    "thinking_token_budget",
    "top_a",
    "top_n_sigma",
    "truncate_prompt_tokens",
    "truncation_side",
    "typical_p",
    "use_beam_search",
    "web_search_options",
    "xtc_probability",
    "xtc_threshold",
];

/// Parses a request body, which must be a JSON object.
pub(crate) fn parse_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::invalid("cannot read the body: it is JSON, but no object")),
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let message = format!("cannot read the body as JSON: line {line}, column {column}");
            Err(ApiError::invalid(message))
        }
    }
}

/// The fields of one JSON object in a request.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Path of the object in error messages, such as `stream_options.`.
    prefix: &'a str,
}

impl<'a> Fields<'a> {
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, prefix: "" }
    }

    pub fn nested(map: &'a Map<String, Value>, prefix: &'a str) -> Self {
        Self { map, prefix }
    }

    /// Rejects fields that would change the reply, and fields that look like a misspelled field of `known`.
    /// Any field is accepted if its value is null, false or empty.
    pub fn check_names(&self, known: &[&[&str]]) -> Result<(), ApiError> {
        let is_known = |name: &str| known.iter().any(|names| names.contains(&name));
        for (name, value) in self.map {
            if is_known(name) || is_neutral(value) {
                continue;
            }
            let shown = shortened(name);
            if REFUSED.contains(&name.as_str()) {
                let message = format!("cannot honour `{shown}`: this server does not support the field");
                return Err(ApiError::field(name, message));
            }
            if let Some(near) = closest_word(name, known.iter().flat_map(|names| names.iter().copied())) {
                return Err(ApiError::field(
                    name,
                    format!("unknown field `{shown}`: did you mean `{near}`?"),
                ));
            }
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Returns the error for an invalid value of `name`.
    pub fn wrong(&self, name: &str, expected: &str) -> ApiError {
        let path = format!("{}{name}", self.prefix);
        let found = match self.get(name) {
            None => "missing".to_owned(),
            Some(Value::String(_)) => "a string".to_owned(),
            Some(Value::Array(_)) => "a list".to_owned(),
            Some(Value::Object(_)) => "an object".to_owned(),
            Some(plain) => shortened(&plain.to_string()),
        };
        let message = format!("cannot use `{path}`: it is {found}, expected {expected}");
        ApiError::field(&path, message)
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(name, expected))
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.read(name, "a string", Value::as_str)
    }

    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.read(name, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    /// Reads a flag that is true by default.
    pub fn flag_or_on(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.read(name, "true or false", Value::as_bool)?.unwrap_or(true))
    }

    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        self.read(name, "an object", Value::as_object)
    }

    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.read(name, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// Reads a number from `least` to `most`.
    pub fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let expected = format!("a number between {least} and {most}");
        let fits = |value: &Value| value.as_f64().filter(|x| (least..=most).contains(x));
        Ok(self.read(name, &expected, fits)?.map(|x| x as f32))
    }

    /// Reads an integer from `least` to `most`.
    pub fn whole(&self, name: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        let expected = match most {
            i64::MAX => format!("a whole number of at least {least}"),
            most => format!("a whole number between {least} and {most}"),
        };
        self.read(name, &expected, |value| whole_number(value).filter(|n| (least..=most).contains(n)))
    }

    /// Reads an integer of at least `least` as a count.
    pub fn count(&self, name: &str, least: i64) -> Result<Option<usize>, ApiError> {
        Ok(self.whole(name, least, i64::MAX)?.map(|n| n as usize))
    }

    /// Reads token ids below `vocab_size`.
    pub fn token_ids(&self, name: &str, vocab_size: usize) -> Result<Option<Vec<u32>>, ApiError> {
        let expected = format!("a list of token ids below {vocab_size}");
        let ids = |value: &Value| value.as_array()?.iter().map(|id| token_id(id, vocab_size)).collect();
        self.read(name, &expected, ids)
    }
}

/// Returns whether a value has no effect: null, false or empty.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Returns an integer. The JSON number may also have the form `1.0`.
pub(crate) fn whole_number(value: &Value) -> Option<i64> {
    // Above this number, f64 cannot represent every integer.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    value
        .as_i64()
        .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= MAX_EXACT).map(|x| x as i64))
}

/// Returns a token id below `vocab_size`.
pub(crate) fn token_id(value: &Value, vocab_size: usize) -> Option<u32> {
    whole_number(value).and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < vocab_size)
}
