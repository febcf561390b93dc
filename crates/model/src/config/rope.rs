//! Rotary position embedding: frequencies and their scaling.

use std::f64::consts::{PI, TAU};

use serde_json::{Value, json};

use super::MAX_POSITIONS;
use crate::ModelError;
use crate::json::Fields;

/// Rotary position embedding, described by its base and its scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `rope_theta`.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

/// Scaling of the frequencies, as in `rope_type`, with the numbers of the scaling.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// No scaling.
    Default,
    /// Every frequency is divided by `factor`.
    Linear {
        /// Number by which the frequencies are divided.
        factor: f64,
    },
    /// The scaling of Llama 3.1. Frequencies with long wavelengths are divided by `factor`. Frequencies with
    /// short wavelengths do not change. Frequencies in between are interpolated.
    Llama3 {
        /// Number by which the low frequencies are divided.
        factor: f64,
        /// If a wavelength is longer than `original_max_position_embeddings / low_freq_factor`, its frequency
        /// is divided by `factor`.
        low_freq_factor: f64,
        /// If a wavelength is shorter than `original_max_position_embeddings / high_freq_factor`, its
        /// frequency does not change.
        high_freq_factor: f64,
        /// Context length in tokens with which the model was pretrained.
        original_max_position_embeddings: usize,
    },
    /// The scaling of dynamic NTK. Sequences longer than the pretrained context have a larger `theta`.
    Dynamic {
        /// Factor by which the context is extended.
        factor: f64,
        /// Context length in tokens with which the model was pretrained.
        original_max_position_embeddings: usize,
    },
    /// The scaling of LongRoPE. Every frequency has a divisor. A sequence that is longer than the original
    /// context uses a second list of divisors for all of its positions.
    LongRope {
        /// Divisor of each frequency in a short sequence.
        short_factor: Vec<f64>,
        /// Divisor of each frequency in a long sequence.
        long_factor: Vec<f64>,
        /// Factor by which cosine and sine are multiplied, for sequences of all lengths.
        attention_factor: f64,
        /// Longest short sequence in tokens.
        original_max_position_embeddings: usize,
    },
    /// The scaling of YaRN. A frequency that makes fewer than `beta_slow` turns in the original context is
    /// divided by `factor`. A frequency that makes more than `beta_fast` turns does not change.
    Yarn {
        /// Number by which the low frequencies are divided.
        factor: f64,
        /// A frequency that makes more than `beta_fast` turns in the original context does not change.
        beta_fast: f64,
        /// A frequency that makes fewer than `beta_slow` turns in the original context is divided by
        /// `factor`.
        beta_slow: f64,
        /// Factor by which cosine and sine are multiplied.
        attention_factor: f64,
        /// Whether the ends of the interpolated range are rounded to whole indices.
        truncate: bool,
        /// Context length in tokens with which the model was pretrained.
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// Returns the factor by which cosine and sine are multiplied. Queries and keys both get this factor, so
    /// an attention score gets its square.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        }
    }

    /// Returns whether the frequencies depend on the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. })
    }

    /// Returns the shortest length whose frequencies are those of a sequence of `tokens` tokens.
    pub fn effective_length(&self, tokens: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { original_max_position_embeddings: original, .. } if tokens > original => {
                tokens
            }
            RopeScaling::LongRope { original_max_position_embeddings: original, .. } if tokens > original => {
                original + 1
            }
            _ => 1,
        }
    }

    /// Returns the length whose frequencies a growing sequence of `tokens` tokens uses. With the dynamic
    /// scaling, this length grows in steps of an eighth of the original context. A cache is therefore
    /// recomputed only at each step, and not for every token.
    pub fn cached_length(&self, tokens: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { original_max_position_embeddings: original, .. } if tokens > original => {
                original + (tokens - original).next_multiple_of((original / 8).max(1))
            }
            _ => self.effective_length(tokens),
        }
    }

    /// Returns the rotation of each pair of elements in a sequence of `tokens` tokens. See
    /// [`Rope::inv_freq`].
    pub fn inv_freq_at(&self, dim: usize, tokens: usize) -> Vec<f32> {
        match &self.scaling {
            RopeScaling::Dynamic { factor, original_max_position_embeddings } => {
                let original = *original_max_position_embeddings as f64;
                let length = (tokens as f64).max(original);
                let d = dim as f64;
                // With one pair, the only frequency is 1, and the formula would divide by zero.
                let exponent = if dim > 2 { d / (d - 2.0) } else { 1.0 };
                let theta = self.theta * ((factor * length / original) - (factor - 1.0)).powf(exponent);
                Self { theta, scaling: RopeScaling::Default }.inv_freq(dim)
            }
            RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. } => {
                let is_long = tokens > *original_max_position_embeddings;
                let factors = if is_long { long_factor } else { short_factor };
                let plain = Self { theta: self.theta, scaling: RopeScaling::Default }.inv_freq(dim);
                plain.iter().zip(factors).map(|(&f, &factor)| (f64::from(f) / factor) as f32).collect()
            }
            _ => self.inv_freq(dim),
        }
    }

    /// Returns the rotation of each pair of elements of a short sequence, in radians per token, `(D / 2)`.
    /// `head_dim` is the number of rotated elements, `D`.
    ///
    /// The unscaled rotation is `theta ^ (-2i / D)`. With the `llama3` scaling, a frequency `f` whose
    /// wavelength `2π / f` is longer than `original / low_freq_factor` is divided by `factor`. A frequency
    /// whose wavelength is shorter than `original / high_freq_factor` does not change. Between both limits,
    /// the two frequencies are mixed linearly. Source: Su et al., 2021, section 3.2.2; Grattafiori et al.,
    /// 2024, section 3.4.3; Peng et al., 2023, section 3.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|i| {
            // As in PyTorch, the exponent is rounded to f32. The power is rounded to the nearest f32.
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / self.theta.powf(exponent as f64) as f32
        });
        match self.scaling {
            RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. } => self.inv_freq_at(head_dim, 1),
            RopeScaling::Default => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| (f as f64 / factor) as f32).collect(),
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
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                original_max_position_embeddings,
                ..
            } => {
                let (d, original) = (head_dim as f64, original_max_position_embeddings as f64);
                // Returns the index of the frequency that makes `turns` turns in the original context.
                let index = |turns: f64| d * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (index(beta_fast), index(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(d - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let scaled = |(i, f): (usize, f32)| {
                    let (f, r) = (f as f64, ramp(i));
                    (f * (1.0 - r) + f / factor * r) as f32
                };
                plain.enumerate().map(scaled).collect()
            }
        }
    }

    /// Returns the value of `rope_scaling` in the format of transformers 4.
    pub(super) fn scaling_json(&self) -> Value {
        match &self.scaling {
            RopeScaling::Dynamic { factor, .. } => json!({ "factor": factor, "rope_type": "dynamic" }),
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                attention_factor,
                original_max_position_embeddings,
            } => json!({
                "attention_factor": attention_factor,
                "long_factor": long_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "rope_type": "longrope",
                "short_factor": short_factor,
            }),
            RopeScaling::Default => Value::Null,
            RopeScaling::Linear { factor } => json!({ "factor": factor, "rope_type": "linear" }),
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
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
                original_max_position_embeddings,
            } => json!({
                "attention_factor": attention_factor,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "factor": factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "rope_type": "yarn",
                "truncate": truncate,
            }),
        }
    }

    /// Reads `rope_theta` and `rope_scaling` of transformers 4, or `rope_parameters` of transformers 5. If
    /// both `rope_scaling` and `rope_parameters` are present, `rope_scaling` takes precedence, as in
    /// transformers.
    pub(super) fn read(
        fields: &Fields<'_>,
        default_theta: f64,
        max_position_embeddings: usize,
    ) -> Result<Self, ModelError> {
        // Phi-3 stores the original context beside `rope_scaling`.
        let outer_original = fields.count_opt("original_max_position_embeddings", MAX_POSITIONS)?;
        let outer_theta = fields.positive("rope_theta")?;
        let (parameters, name) = match fields.nested("rope_scaling")? {
            Some(nested) => (Some(nested), "rope_scaling"),
            None => (fields.nested("rope_parameters")?, "rope_parameters"),
        };
        let Some(parameters) = parameters else {
            return Ok(Self { theta: outer_theta.unwrap_or(default_theta), scaling: RopeScaling::Default });
        };
        let theta = outer_theta.unwrap_or(default_theta);
        Self::of_parameters(&parameters, name, theta, (max_position_embeddings, outer_original))
    }

    /// Reads one object of `rope_scaling` or `rope_parameters`. If the object contains no `rope_theta`,
    /// `theta` applies. If `outer_original` is given, it replaces the context length of the object.
    pub(super) fn of_parameters(
        parameters: &Fields<'_>,
        name: &str,
        theta: f64,
        (max_position_embeddings, outer_original): (usize, Option<usize>),
    ) -> Result<Self, ModelError> {
        let theta = parameters.positive("rope_theta")?.unwrap_or(theta);
        let key = if parameters.get("rope_type").is_some() { "rope_type" } else { "type" };
        let number = |field: &str| {
            parameters.positive(field)?.ok_or_else(|| parameters.wrong(field, "a number above zero"))
        };
        let original = || -> Result<usize, ModelError> {
            let found = parameters.count_opt("original_max_position_embeddings", MAX_POSITIONS)?;
            Ok(outer_original.or(found).unwrap_or(max_position_embeddings))
        };
        let scaling = match parameters.text(key)? {
            Some("default") => RopeScaling::Default,
            // In `rope_parameters` of transformers 5, the default type may be omitted. In `rope_scaling` of
            // transformers 4, a missing type is an error.
            None if name == "rope_parameters" => RopeScaling::Default,
            None => return Err(parameters.wrong("rope_type", KINDS)),
            Some("linear") => RopeScaling::Linear { factor: number("factor")? },
            Some("dynamic") => RopeScaling::Dynamic {
                factor: number("factor")?,
                // As in transformers, the pretrained context is `max_position_embeddings`.
                original_max_position_embeddings: max_position_embeddings,
            },
            Some("longrope" | "su") => long_rope(parameters, original()?, max_position_embeddings)?,
            Some("llama3") => {
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                if high <= low {
                    let expected = format!("more than `low_freq_factor`, {low}");
                    return Err(parameters.wrong("high_freq_factor", expected));
                }
                RopeScaling::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: original()?,
                }
            }
            Some("yarn") => {
                let factor = number("factor")?;
                let truncate = match parameters.get("truncate") {
                    Some(_) => parameters.flag("truncate")?,
                    None => true,
                };
                RopeScaling::Yarn {
                    factor,
                    beta_fast: parameters.positive("beta_fast")?.unwrap_or(32.0),
                    beta_slow: parameters.positive("beta_slow")?.unwrap_or(1.0),
                    attention_factor: yarn_attention_factor(parameters, factor)?,
                    truncate,
                    original_max_position_embeddings: original()?,
                }
            }
            Some(_) => return Err(parameters.unsupported(key, KINDS)),
        };
        Ok(Self { theta, scaling })
    }
}

const KINDS: &str = "`default`, `linear`, `dynamic`, `llama3`, `yarn` and `longrope`";

/// Maximum number of LongRoPE factors. A head has one factor for each pair of elements.
const MAX_FACTORS: usize = 1 << 16;

fn long_rope(
    parameters: &Fields<'_>,
    original: usize,
    max_position_embeddings: usize,
) -> Result<RopeScaling, ModelError> {
    let factors = |name: &str| {
        let expected = "a list of numbers above zero";
        let list = parameters.get(name).and_then(Value::as_array).filter(|list| list.len() <= MAX_FACTORS);
        let list = list.ok_or_else(|| parameters.wrong(name, expected))?;
        let number = |value: &Value| value.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        let numbers: Option<Vec<f64>> = list.iter().map(number).collect();
        numbers.ok_or_else(|| parameters.wrong(name, expected))
    };
    let attention_factor = match parameters.positive("attention_factor")? {
        Some(given) => given,
        None => {
            let own = parameters.positive("factor")?;
            let scale = own.unwrap_or(max_position_embeddings as f64 / original as f64);
            if scale > 1.0 { (1.0 + scale.ln() / (original as f64).ln()).sqrt() } else { 1.0 }
        }
    };
    if !attention_factor.is_finite() {
        return Err(parameters.wrong("original_max_position_embeddings", "at least 2"));
    }
    Ok(RopeScaling::LongRope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        attention_factor,
        original_max_position_embeddings: original,
    })
}

fn yarn_attention_factor(parameters: &Fields<'_>, factor: f64) -> Result<f64, ModelError> {
    if let Some(given) = parameters.positive("attention_factor")? {
        return Ok(given);
    }
    let of = |mscale: f64| if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 };
    let (mscale, all) = (parameters.positive("mscale")?, parameters.positive("mscale_all_dim")?);
    Ok(match (mscale, all) {
        (Some(mscale), Some(all)) => of(mscale) / of(all),
        _ => of(1.0),
    })
}
