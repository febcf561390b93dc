//! `config.json`: the sizes and constants of a Llama, as transformers 4 and 5 write them.

use std::f64::consts::TAU;
use std::path::Path;

use danlu_kernels::{DType, FourBitCode};
use serde_json::{Value, json};

use crate::json::{self, Fields};
use crate::sidecar_files::torch_name;
use crate::{ModelError, Projection, Quantization, files};

/// Limits beyond any Llama, below which no product of two sizes overflows.
const MAX_HIDDEN: u64 = 1 << 20;
const MAX_INTERMEDIATE: u64 = 1 << 24;
const MAX_VOCABULARY: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1 << 12;
const MAX_HEADS: u64 = 1 << 16;
const MAX_POSITIONS: u64 = 1 << 31;

/// A Llama's configuration, checked: every size is at least 1 and products of sizes do not overflow.
///
/// Fields keep `config.json`'s names.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Always `llama`.
    pub model_type: String,
    /// `C`.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder layers, `L`.
    pub num_hidden_layers: usize,
    /// Query heads, `NH`.
    pub num_attention_heads: usize,
    /// Key and value heads, `KH`, which divides `NH`.
    pub num_key_value_heads: usize,
    /// Head size, `HS`, even; `NH * HS` need not be `C`.
    pub head_dim: usize,
    /// `V`.
    pub vocab_size: usize,
    /// Context length of the pretraining, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Element type of the saved weights, if it is supported.
    pub dtype: Option<DType>,
    /// Quantization of the projections, if they are stored in 4 bits.
    pub quantization: Option<Quantization>,
    /// Id of the token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Ids of the tokens that end a text.
    pub eos_token_id: Vec<u32>,
}

/// Rotary position embedding: base and scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `rope_theta`.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

/// `rope_type` with its numbers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Unscaled.
    Default,
    /// Llama 3.1's scaling. Wavelengths beyond the original context are divided by `factor`. Short
    /// wavelengths do not change, and those between are interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// `factor` applies fully to wavelengths beyond the original context divided by this.
        low_freq_factor: f64,
        /// Wavelengths below the original context divided by this do not change.
        high_freq_factor: f64,
        /// Context length of the pretraining, in tokens.
        original_max_position_embeddings: usize,
    },
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// If the file cannot be read, or describes an impossible or unsupported model. The error names the
    /// field.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        Self::parse(&path, &files::read_bounded(&path, json::MAX_CONFIG_BYTES)?)
    }

    /// Parses the bytes of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        Self::from_value(path, &json::parse(path, bytes)?)
    }

    pub(crate) fn from_value(path: &Path, value: &Value) -> Result<Self, ModelError> {
        let fields = Fields::new(path, value)?;

        let model_type = fields.text("model_type")?.ok_or_else(|| fields.wrong("model_type", "`llama`"))?;
        if model_type != "llama" {
            return Err(fields.unsupported("model_type", "`llama`"));
        }
        refuse_variants(&fields)?;

        let hidden_size = fields.count("hidden_size", MAX_HIDDEN)?;
        let num_attention_heads = fields.count("num_attention_heads", MAX_HEADS)?;
        let num_key_value_heads =
            fields.count_opt("num_key_value_heads", MAX_HEADS)?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of `num_attention_heads`, {num_attention_heads}");
            return Err(fields.wrong("num_key_value_heads", expected));
        }
        let head_dim = match fields.count_opt("head_dim", MAX_HIDDEN)? {
            Some(size) => size,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                let expected =
                    format!("a divisor of `hidden_size`, {hidden_size}, where `head_dim` is missing");
                return Err(fields.wrong("num_attention_heads", expected));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(fields.wrong("head_dim", "an even number: rotary embedding turns pairs"));
        }
        if num_attention_heads as u64 * head_dim as u64 > MAX_HIDDEN {
            return Err(fields
                .wrong("head_dim", format!("`num_attention_heads` times it to be at most {MAX_HIDDEN}")));
        }
        let max_position_embeddings =
            fields.count_opt("max_position_embeddings", MAX_POSITIONS)?.unwrap_or(2048);

        let config = Self {
            model_type: model_type.to_owned(),
            hidden_size,
            intermediate_size: fields.count("intermediate_size", MAX_INTERMEDIATE)?,
            num_hidden_layers: fields.count("num_hidden_layers", MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: fields.count("vocab_size", MAX_VOCABULARY)?,
            max_position_embeddings,
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            rope: rope(&fields, max_position_embeddings)?,
            dtype: dtype(&fields)?,
            quantization: quantization(&fields)?,
            bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
            eos_token_id: fields.token_ids("eos_token_id")?,
        };
        Ok(config)
    }

    /// Returns the text of a `config.json` that transformers 4 and 5 both read.
    pub fn to_json(&self) -> Vec<u8> {
        let rope_scaling = match self.rope.scaling {
            RopeScaling::Default => Value::Null,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "factor": factor,
                "high_freq_factor": high_freq_factor,
                "low_freq_factor": low_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "rope_type": "llama3",
            }),
        };
        // transformers writes a single id as a number, not as a list.
        let eos = match self.eos_token_id[..] {
            [] => Value::Null,
            [id] => json!(id),
            ref ids => json!(ids),
        };
        let mut value = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": false,
            "model_type": self.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pretraining_tp": 1,
            // The decimal 1e-5, not the nearest f32 with seventeen digits.
            "rms_norm_eps": self.rms_norm_eps.to_string().parse::<f64>().unwrap_or(self.rms_norm_eps.into()),
            "rope_scaling": rope_scaling,
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.dtype.map(torch_name),
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        if let Some(quantization) = self.quantization {
            value["quantization_config"] = quantization.config_json(self.dtype, &[]);
        }
        let mut text = serde_json::to_vec_pretty(&value).expect("a JSON value has string keys");
        text.push(b'\n');
        text
    }

    /// Returns `(OUT, IN)` of a projection's weight.
    pub fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        match projection {
            Projection::QProj => (q, self.hidden_size),
            Projection::KProj | Projection::VProj => (kv, self.hidden_size),
            Projection::OProj => (self.hidden_size, q),
            Projection::GateProj | Projection::UpProj => (self.intermediate_size, self.hidden_size),
            Projection::DownProj => (self.hidden_size, self.intermediate_size),
        }
    }

    /// Returns the name and shape of every tensor of the checkpoint, in the order of a forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let table = vec![self.vocab_size, hidden];
        let layers = (0..self.num_hidden_layers).flat_map(move |layer| {
            let norm = |name: &str| (format!("model.layers.{layer}.{name}.weight"), vec![hidden]);
            let projection = |p: Projection| {
                let (d_out, d_in) = self.projection_shape(p);
                (p.weight_name(layer), vec![d_out, d_in])
            };
            let [q, k, v, o, gate, up, down] = Projection::ALL.map(projection);
            [norm("input_layernorm"), q, k, v, o, norm("post_attention_layernorm"), gate, up, down]
        });
        let head = (!self.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), table.clone()));
        std::iter::once(("model.embed_tokens.weight".to_owned(), table))
            .chain(layers)
            .chain([("model.norm.weight".to_owned(), vec![hidden])])
            .chain(head)
    }

    /// Returns the number of parameters; tied tables count once.
    pub fn num_parameters(&self) -> u64 {
        let of_layer: u64 = Projection::ALL
            .into_iter()
            .map(|p| self.projection_shape(p))
            .map(|(d_out, d_in)| d_out as u64 * d_in as u64)
            .sum();
        let hidden = self.hidden_size as u64;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        (of_layer + 2 * hidden) * self.num_hidden_layers as u64
            + hidden
            + tables * self.vocab_size as u64 * hidden
    }

    /// The rotation of each element pair, radians a token, `(HS / 2)`.
    ///
    /// `theta ^ (-2i / HS)`; under `llama3` scaling a wavelength `2π / f` beyond
    /// `original / low_freq_factor` has its frequency divided by `factor`, one below
    /// `original / high_freq_factor` keeps it, and between the two lies a linear mix.
    /// Source: Su et al., 2021, section 3.2.2; Grattafiori et al., 2024, section 3.4.3.
    pub fn inv_freq(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| {
            // The exponent is rounded to f32 as PyTorch does, the power to nearest.
            let exponent = (2 * i) as f32 / self.head_dim as f32;
            1.0 / self.rope.theta.powf(exponent as f64) as f32
        });
        match self.rope.scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let original = original_max_position_embeddings as f64;
                plain
                    .map(|f| {
                        let frequency = f as f64;
                        let turns = original * frequency / TAU;
                        let lowered = frequency / factor;
                        let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        let scaled = match turns {
                            t if t > high_freq_factor => frequency,
                            t if t < low_freq_factor => lowered,
                            _ => (1.0 - smooth) * lowered + smooth * frequency,
                        };
                        scaled as f32
                    })
                    .collect()
            }
        }
    }
}

/// Rejects settings that would change the arithmetic. The error names the field.
fn refuse_variants(fields: &Fields<'_>) -> Result<(), ModelError> {
    for name in ["attention_bias", "mlp_bias"] {
        if fields.flag(name)? {
            return Err(fields.unsupported(name, "projections without a bias"));
        }
    }
    if !matches!(fields.text("hidden_act")?, None | Some("silu" | "swish")) {
        return Err(fields.unsupported("hidden_act", "`silu`"));
    }
    if fields.get("attention_dropout").is_some_and(|v| v.as_f64() != Some(0.0)) {
        return Err(fields.unsupported("attention_dropout", "0.0"));
    }
    if fields.get("partial_rotary_factor").is_some_and(|v| v.as_f64() != Some(1.0)) {
        return Err(fields.unsupported("partial_rotary_factor", "1.0"));
    }
    let window_is_off = matches!(fields.get("use_sliding_window").and_then(|v| v.as_bool()), Some(false));
    if let (Some(window), false) = (fields.get("sliding_window"), window_is_off) {
        let positions = fields.get("max_position_embeddings").and_then(|v| v.as_u64());
        // A window as long as the context hides nothing.
        if !matches!((window.as_u64(), positions), (Some(w), Some(p)) if w >= p) {
            return Err(fields.unsupported("sliding_window", "attention over the whole context"));
        }
    }
    if let Some(types) = fields.get("layer_types").and_then(|v| v.as_array())
        && types.iter().any(|t| t.as_str() != Some("full_attention"))
    {
        return Err(fields.unsupported("layer_types", "`full_attention` in every layer"));
    }
    Ok(())
}

/// Reads `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of transformers 4.
fn rope(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<Rope, ModelError> {
    let (parameters, name) = match fields.nested("rope_parameters")? {
        Some(nested) => (Some(nested), "rope_parameters"),
        None => (fields.nested("rope_scaling")?, "rope_scaling"),
    };
    let outer_theta = fields.positive("rope_theta")?;
    let Some(parameters) = parameters else {
        return Ok(Rope { theta: outer_theta.unwrap_or(10000.0), scaling: RopeScaling::Default });
    };
    let theta = parameters.positive("rope_theta")?.or(outer_theta).unwrap_or(10000.0);
    if parameters.get("partial_rotary_factor").is_some_and(|v| v.as_f64() != Some(1.0)) {
        return Err(parameters.unsupported("partial_rotary_factor", "1.0"));
    }
    let key = if parameters.get("rope_type").is_some() { "rope_type" } else { "type" };
    let scaling = match parameters.text(key)? {
        Some("default") => RopeScaling::Default,
        // transformers 5 may omit the default type. In transformers 4, a scaling without a type is an
        // error.
        None if name == "rope_parameters" => RopeScaling::Default,
        None => return Err(parameters.wrong("rope_type", "`default` or `llama3`")),
        Some("llama3") => {
            let number = |field: &str| {
                parameters.positive(field)?.ok_or_else(|| parameters.wrong(field, "a number above zero"))
            };
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                return Err(
                    parameters.wrong("high_freq_factor", format!("more than `low_freq_factor`, {low}"))
                );
            }
            RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: parameters
                    .count_opt("original_max_position_embeddings", MAX_POSITIONS)?
                    .unwrap_or(max_position_embeddings),
            }
        }
        Some(_) => return Err(parameters.unsupported(key, "`default` and `llama3`")),
    };
    Ok(Rope { theta, scaling })
}

/// Reads `quantization_config`, which must be 4 bits of bitsandbytes. The weight files show which weights are
/// in 4 bits.
fn quantization(fields: &Fields<'_>) -> Result<Option<Quantization>, ModelError> {
    let Some(nested) = fields.nested("quantization_config")? else { return Ok(None) };
    const READ: &str = "4 bits of bitsandbytes (nf4, fp4), and weights in bf16, f16 or f32";
    if !matches!(nested.text("quant_method")?, None | Some("bitsandbytes")) {
        return Err(nested.unsupported("quant_method", READ));
    }
    if nested.flag("load_in_8bit")? {
        return Err(nested.unsupported("load_in_8bit", READ));
    }
    if !nested.flag("load_in_4bit")? {
        return Err(nested.wrong("load_in_4bit", "true"));
    }
    let quant_type = match nested.text("bnb_4bit_quant_type")? {
        // The default of transformers.
        None => FourBitCode::Fp4,
        Some(name) => {
            name.parse().map_err(|_| nested.unsupported("bnb_4bit_quant_type", "`nf4` and `fp4`"))?
        }
    };
    let double_quant = nested.flag("bnb_4bit_use_double_quant")?;
    Ok(Some(Quantization { quant_type, double_quant, block_size: Quantization::BLOCK_SIZE }))
}

/// Reads the saved element type. An unsupported type is reported with the tensors.
fn dtype(fields: &Fields<'_>) -> Result<Option<DType>, ModelError> {
    let name = match fields.text("dtype")? {
        Some(name) => Some(name),
        None => fields.text("torch_dtype")?,
    };
    Ok(match name.map(|n| n.trim_start_matches("torch.")) {
        Some("float32") => Some(DType::F32),
        Some("bfloat16") => Some(DType::Bf16),
        Some("float16") => Some(DType::F16),
        _ => None,
    })
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
