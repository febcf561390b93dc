//! Fields that control sampling and the end of a reply, for all routes.

use danlu_generate::SamplingOptions;
use serde_json::{Map, Value};

use crate::api_error::ApiError;
use crate::json_fields::{Fields, token_id, whole_number};

const MAX_CHOICES: i64 = 128;

/// Maximum number of stop strings. OpenAI allows four, but clients of vLLM send more.
const MAX_STOPS: usize = 16;

const MAX_STOP_BYTES: usize = 1024;

/// Maximum number of entries in `logit_bias`. OpenAI has the same limit.
const MAX_BIASES: usize = 1024;

pub(crate) const SAMPLING_FIELDS: &[&str] = &[
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "max_tokens",
    "min_p",
    "min_tokens",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
];

/// Fields that are accepted and ignored.
pub(crate) const NEUTRAL_FIELDS: &[&str] = &[
    "cache_salt",
    "client_metadata",
    "metadata",
    "prediction",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "request_id",
    "return_token_ids",
    "safety_identifier",
    "service_tier",
    "spaces_between_special_tokens",
    "store",
    "user",
    "verbosity",
];

/// Sampling settings of a request.
#[derive(Clone, Debug)]
pub(crate) struct SamplingFields {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<i64>,
    /// Values to add to logits, with their token ids.
    pub logit_bias: Vec<(u32, f32)>,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub choices: usize,
    pub stops: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub includes_stop: bool,
    pub skips_special: bool,
}

impl SamplingFields {
    /// Reads the fields of OpenAI and vLLM from a request.
    pub fn read(map: &Map<String, Value>, vocab_size: usize) -> Result<Self, ApiError> {
        let fields = Fields::new(map);
        let top_k = fields.whole("top_k", -1, i64::MAX)?.map(|k| k.max(0) as usize);
        let max_tokens = fields.count("max_tokens", 1)?;
        let min_tokens = fields.count("min_tokens", 0)?.unwrap_or(0);
        if let Some(max) = max_tokens.filter(|&max| max < min_tokens) {
            let message = format!("cannot use `min_tokens`: it is {min_tokens}, and `max_tokens` is {max}");
            return Err(ApiError::field("min_tokens", message));
        }
        Ok(Self {
            temperature: fields.number("temperature", 0.0, 2.0)?,
            top_p: read_top_p(&fields)?,
            top_k,
            min_p: fields.number("min_p", 0.0, 1.0)?,
            repetition_penalty: fields.number("repetition_penalty", 0.01, 100.0)?,
            seed: fields.whole("seed", i64::MIN, i64::MAX)?,
            logit_bias: read_biases(&fields, vocab_size)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            max_tokens,
            min_tokens,
            choices: fields.whole("n", 1, MAX_CHOICES)?.unwrap_or(1) as usize,
            stops: read_stops(&fields, "stop")?,
            stop_token_ids: fields.token_ids("stop_token_ids", vocab_size)?.unwrap_or_default(),
            ignore_eos: fields.flag("ignore_eos")?,
            includes_stop: fields.flag("include_stop_str_in_output")?,
            skips_special: fields.flag_or_on("skip_special_tokens")?,
        })
    }

    /// Reads Ollama's `options`.
    pub fn read_ollama(options: &Map<String, Value>) -> Result<Self, ApiError> {
        let fields = Fields::nested(options, "options.");
        Ok(Self {
            temperature: fields.number("temperature", 0.0, 100.0)?,
            top_p: read_top_p(&fields)?,
            top_k: fields.whole("top_k", -1, i64::MAX)?.map(|k| k.max(0) as usize),
            min_p: fields.number("min_p", 0.0, 1.0)?,
            repetition_penalty: fields.number("repeat_penalty", 0.01, 100.0)?,
            seed: fields.whole("seed", i64::MIN, i64::MAX)?,
            logit_bias: Vec::new(),
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            // In Ollama, -1 means no limit, and -2 means to continue until the context is full. Both values
            // become `None`.
            max_tokens: fields.whole("num_predict", -2, i64::MAX)?.filter(|&n| n > 0).map(|n| n as usize),
            min_tokens: 0,
            choices: 1,
            stops: read_stops(&fields, "stop")?,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            includes_stop: false,
            skips_special: true,
        })
    }

    /// Returns the options of the sampler. A field that the request omits gets its value from `defaults`. An
    /// omitted seed is random.
    pub fn options(&self, defaults: &SamplingOptions) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            seed: self.seed.map_or_else(crate::random_id::entropy, |seed| seed as u64),
        }
    }
}

/// Reads `top_p`. OpenAI's clients send 0 to select only the most likely token, so 0 becomes the smallest
/// positive number.
fn read_top_p(fields: &Fields<'_>) -> Result<Option<f32>, ApiError> {
    Ok(fields.number("top_p", 0.0, 1.0)?.map(|p| p.max(f32::MIN_POSITIVE)))
}

fn read_stops(fields: &Fields<'_>, name: &str) -> Result<Vec<String>, ApiError> {
    let expected = format!("a string or up to {MAX_STOPS} strings of up to {MAX_STOP_BYTES} bytes");
    let wrong = || fields.wrong(name, &expected);
    let texts: Vec<&str> = match fields.get(name) {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => {
            items.iter().map(|item| item.as_str().ok_or_else(wrong)).collect::<Result<_, _>>()?
        }
        Some(_) => return Err(wrong()),
    };
    if texts.len() > MAX_STOPS || texts.iter().any(|text| text.len() > MAX_STOP_BYTES) {
        return Err(wrong());
    }
    Ok(texts.into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect())
}

fn read_biases(fields: &Fields<'_>, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let read = |(id, bias): (&String, &Value)| {
        let id = id.parse::<i64>().ok().and_then(|id| token_id(&id.into(), vocab_size))?;
        let bias = bias.as_f64().or_else(|| whole_number(bias).map(|n| n as f64))?;
        (-100.0..=100.0).contains(&bias).then_some((id, bias as f32))
    };
    let biases: Option<Vec<_>> = map.iter().map(read).collect();
    biases.filter(|biases| biases.len() <= MAX_BIASES).ok_or_else(|| {
        let expected = format!(
            "up to {MAX_BIASES} token ids below {vocab_size}, each with a number between -100 and 100"
        );
        fields.wrong("logit_bias", &expected)
    })
}
