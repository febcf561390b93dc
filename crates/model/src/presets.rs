//! Well-known model shapes with a name, for measuring speed and memory without a download.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use danlu_kernels::DType;

use crate::{Architecture, ModelConfig, Rope, RopeScaling};

/// A well-known model shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preset {
    /// The embedded base of the demo, with 8 million parameters and a vocabulary of 8,192 tokens.
    Base8m,
    /// Like [`Preset::Base8m`], with 28 million parameters.
    Base28m,
    /// 125 million parameters. Most of them are in the tied embedding table, which has the size of Llama 3's
    /// vocabulary.
    Llama125m,
    /// Llama-3.2-1B.
    Llama3_2_1b,
    /// Llama-3-8B.
    Llama3_8b,
    /// Qwen3-0.6B.
    Qwen3_0_6b,
    /// The text model Gemma 3 1B.
    Gemma3_1b,
    /// Phi-4-mini, with 3.8 billion parameters. All factors of its rotary embedding are 1.
    Phi4Mini,
}

impl Preset {
    /// All presets. The smallest of each family is the first.
    pub const ALL: [Self; 8] = [
        Self::Base8m,
        Self::Base28m,
        Self::Llama125m,
        Self::Llama3_2_1b,
        Self::Llama3_8b,
        Self::Qwen3_0_6b,
        Self::Gemma3_1b,
        Self::Phi4Mini,
    ];

    /// Returns the name that [`FromStr`] accepts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base8m => "base-8m",
            Self::Base28m => "base-28m",
            Self::Llama125m => "llama-125m",
            Self::Llama3_2_1b => "llama-3.2-1b",
            Self::Llama3_8b => "llama-3-8b",
            Self::Qwen3_0_6b => "qwen3-0.6b",
            Self::Gemma3_1b => "gemma-3-1b",
            Self::Phi4Mini => "phi-4-mini",
        }
    }

    /// Returns the `config.json` of a shape outside the Llama family.
    fn text(self) -> Option<&'static str> {
        match self {
            Self::Qwen3_0_6b => Some(include_str!("presets/qwen3-0.6b.json")),
            Self::Gemma3_1b => Some(include_str!("presets/gemma-3-1b.json")),
            Self::Phi4Mini => Some(include_str!("presets/phi-4-mini.json")),
            _ => None,
        }
    }

    /// Returns the `config.json` of the shape with this configuration, if the shape has its own text.
    pub(crate) fn text_of(config: &ModelConfig) -> Option<&'static str> {
        Self::ALL.into_iter().find(|shape| shape.text().is_some() && shape.config() == *config)?.text()
    }

    /// Returns the configuration. The Llama shapes are from Grattafiori et al., 2024, table 3, and from the
    /// `config.json` of these models.
    pub fn config(self) -> ModelConfig {
        if let Some(text) = self.text() {
            let path = Path::new("config.json");
            return ModelConfig::parse(path, text.as_bytes()).expect("a test parses each text");
        }
        match self {
            Self::Base8m => small(256, 704, 4, 2),
            Self::Base28m => small(512, 1408, 8, 4),
            Self::Llama125m => ModelConfig { tie_word_embeddings: true, ..llama3(768, 2048, 12, 12, 4) },
            Self::Llama3_2_1b => {
                let scaling = RopeScaling::Llama3 {
                    factor: 32.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 8192,
                };
                ModelConfig {
                    head_dim: 64,
                    max_position_embeddings: 131_072,
                    tie_word_embeddings: true,
                    rope: Rope { theta: 500_000.0, scaling },
                    ..llama3(2048, 8192, 16, 32, 8)
                }
            }
            Self::Llama3_8b => llama3(4096, 14_336, 32, 32, 8),
            Self::Qwen3_0_6b | Self::Gemma3_1b | Self::Phi4Mini => unreachable!("the shape has a text"),
        }
    }
}

fn llama3(hidden: usize, intermediate: usize, layers: usize, heads: usize, kv_heads: usize) -> ModelConfig {
    ModelConfig {
        model_type: "llama".to_owned(),
        hidden_size: hidden,
        intermediate_size: intermediate,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: hidden / heads,
        vocab_size: 128_256,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: false,
        rope: Rope { theta: 500_000.0, scaling: RopeScaling::Default },
        architecture: Architecture::default(),
        is_nested: false,
        dtype: Some(DType::Bf16),
        quantization: None,
        bos_token_id: Some(128_000),
        eos_token_id: vec![128_001],
    }
}

/// Returns the configuration of an embedded base with eight layers and a small vocabulary. The special tokens
/// are the last ids of the vocabulary.
fn small(hidden: usize, intermediate: usize, heads: usize, kv_heads: usize) -> ModelConfig {
    ModelConfig {
        vocab_size: 8192,
        max_position_embeddings: 1024,
        tie_word_embeddings: true,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        bos_token_id: Some(8182),
        eos_token_id: vec![8186],
        ..llama3(hidden, intermediate, 8, heads, kv_heads)
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The error for a name that is not the name of a [`Preset`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPreset(
    /// The name.
    pub String,
);

impl fmt::Display for UnknownPreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no shape; there are {}", self.0, Preset::ALL.map(Preset::name).join(", "))
    }
}

impl std::error::Error for UnknownPreset {}

impl FromStr for Preset {
    type Err = UnknownPreset;

    fn from_str(name: &str) -> Result<Self, UnknownPreset> {
        let known = Self::ALL.into_iter().find(|shape| shape.name().eq_ignore_ascii_case(name));
        known.ok_or_else(|| UnknownPreset(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_parameters_of_their_models() {
        let parameters = |shape: Preset| shape.config().num_parameters();
        // The expected numbers are transformers' `model.num_parameters()` for meta-llama's models and for the
        // embedded bases.
        assert_eq!(parameters(Preset::Llama3_2_1b), 1_235_814_400);
        assert_eq!(parameters(Preset::Llama3_8b), 8_030_261_248);
        assert_eq!(parameters(Preset::Base8m), 7_999_744);
        // The published numbers of the models on the Hub.
        assert_eq!(parameters(Preset::Qwen3_0_6b), 596_049_920);
        assert_eq!(parameters(Preset::Gemma3_1b), 999_885_952);
        assert_eq!(parameters(Preset::Phi4Mini), 3_836_021_760);
        for shape in Preset::ALL {
            let counted: usize = shape.config().tensors().map(|(_, s)| s.iter().product::<usize>()).sum();
            assert_eq!(counted as u64, parameters(shape), "{shape}");
        }
    }

    #[test]
    fn rank_8_on_every_projection_of_the_8b_trains_20_971_520() {
        let config = Preset::Llama3_8b.config();
        let of_layer = config.projections().map(|p| {
            let (d_out, d_in) = config.projection_shape(p);
            8 * (d_out + d_in)
        });
        assert_eq!(of_layer.sum::<usize>() * config.num_hidden_layers, 20_971_520);
    }

    #[test]
    fn a_shape_written_down_reads_back_equal() {
        for shape in Preset::ALL {
            let (config, path) = (shape.config(), Path::new("config.json"));
            assert_eq!(ModelConfig::parse(path, &config.to_json()).unwrap(), config, "{shape}");
        }
    }

    #[test]
    fn the_small_shapes_are_the_bases_that_danlu_brings() {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/base-8m");
        assert_eq!(ModelConfig::read(&assets).unwrap(), Preset::Base8m.config());
    }

    #[test]
    fn every_name_parses_back() {
        for shape in Preset::ALL {
            assert_eq!(shape.to_string().parse(), Ok(shape));
        }
        let message = "llama-9b".parse::<Preset>().unwrap_err().to_string();
        assert!(message.contains("`llama-9b`") && message.contains("llama-3.2-1b"), "{message}");
    }
}
