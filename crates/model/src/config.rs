//! `config.json`: the sizes and flags of a decoder, in the formats of transformers 4 and 5.

mod architecture;
mod family;
mod rope;

use std::path::Path;

use danlu_kernels::{AttentionScores, DType, FamilyOperation, FourBitCode, RopeRotation};
use serde_json::{Value, json};

pub use self::architecture::{Architecture, BlockNorms, LayerAttention, LayerRope, QkNorm};
use self::family::Sizes;
pub use self::rope::{Rope, RopeScaling};
use crate::json::{self, Fields};
use crate::sidecar_files::torch_name;
use crate::{ModelError, Preset, Projection, Quantization, files};

/// Upper limits of sizes. No real model reaches these limits. Below them, the product of two sizes cannot
/// overflow.
const MAX_HIDDEN: u64 = 1 << 20;
const MAX_INTERMEDIATE: u64 = 1 << 24;
const MAX_VOCABULARY: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1 << 12;
const MAX_HEADS: u64 = 1 << 16;
const MAX_POSITIONS: u64 = 1 << 31;

/// A checked configuration of a decoder. Every size is at least 1, and products of sizes do not overflow.
///
/// The fields have the same names as in `config.json`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Family of the model, such as `llama` or `qwen3`.
    pub model_type: String,
    /// Width of the residual stream, `C`.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder layers, `L`.
    pub num_hidden_layers: usize,
    /// Query heads, `NH`.
    pub num_attention_heads: usize,
    /// Key and value heads, `KH`, which divides `NH`.
    pub num_key_value_heads: usize,
    /// Head size `HS`, an even number. `NH * HS` may differ from `C`.
    pub head_dim: usize,
    /// Vocabulary size, `V`.
    pub vocab_size: usize,
    /// Context length in tokens with which the model was pretrained.
    pub max_position_embeddings: usize,
    /// Value added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Whether the embedding table is also the output head.
    pub tie_word_embeddings: bool,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Flags of the model's family.
    pub architecture: Architecture,
    /// Whether the text model is part of a model with a vision tower. danlu reads only the text model.
    pub is_nested: bool,
    /// Element type of the saved weights, if it is supported.
    pub dtype: Option<DType>,
    /// Quantization of the projections, if they are stored in 4 bits.
    pub quantization: Option<Quantization>,
    /// Id of the token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Ids of the tokens that end a text.
    pub eos_token_id: Vec<u32>,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// If the file cannot be read, or describes a model that is impossible or not supported. The error names
    /// the field.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        Self::parse(&path, &files::read_bounded(&path, json::MAX_CONFIG_BYTES)?)
    }

    /// Parses the bytes of a `config.json`. `path` is used only in error messages.
    ///
    /// # Errors
    /// The errors of [`ModelConfig::read`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        Self::from_value(path, &json::parse(path, bytes)?)
    }

    pub(crate) fn from_value(path: &Path, value: &Value) -> Result<Self, ModelError> {
        let outer = Fields::new(path, value)?;
        let family = family::find(&outer)?;
        let text = match family.is_nested {
            true => outer.nested("text_config")?,
            false => None,
        };
        if family.is_nested && text.is_none() {
            return Err(outer.wrong("text_config", "an object"));
        }
        // The outer object of a nested configuration has its own element type, quantization and tokens.
        let fields = text.as_ref().unwrap_or(&outer);
        Self::of_fields(fields, &outer, family)
    }

    /// Reads the configuration of a text model. `outer` is the object at the top level of the file.
    fn of_fields(
        fields: &Fields<'_>,
        outer: &Fields<'_>,
        family: &'static family::Family,
    ) -> Result<Self, ModelError> {
        let defaults = family.defaults;
        refuse_variants(fields)?;

        // A nested configuration contains only the sizes that differ from the defaults of transformers'
        // class.
        let size = |name: &str, most, default: Option<usize>| match default {
            Some(default) => Ok(fields.count_opt(name, most)?.unwrap_or(default)),
            None => fields.count(name, most),
        };
        let hidden_size = size("hidden_size", MAX_HIDDEN, defaults.hidden)?;
        let num_attention_heads = size("num_attention_heads", MAX_HEADS, defaults.heads)?;
        let num_key_value_heads = fields
            .count_opt("num_key_value_heads", MAX_HEADS)?
            .unwrap_or(defaults.kv_heads.unwrap_or(num_attention_heads));
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of `num_attention_heads`, {num_attention_heads}");
            return Err(fields.wrong("num_key_value_heads", expected));
        }
        let head_dim = match fields.count_opt("head_dim", MAX_HIDDEN)? {
            Some(size) => size,
            None if let Some(size) = defaults.head_dim => size,
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
            fields.count_opt("max_position_embeddings", MAX_POSITIONS)?.unwrap_or(defaults.max_positions);
        let num_hidden_layers = size("num_hidden_layers", MAX_LAYERS, defaults.layers)?;
        let sizes =
            Sizes { layers: num_hidden_layers, hidden: hidden_size, max_positions: max_position_embeddings };

        let config = Self {
            model_type: family.name.to_owned(),
            hidden_size,
            intermediate_size: size("intermediate_size", MAX_INTERMEDIATE, defaults.intermediate)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", MAX_VOCABULARY, defaults.vocab)?,
            max_position_embeddings,
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(defaults.eps) as f32,
            tie_word_embeddings: match fields.get("tie_word_embeddings") {
                Some(_) => fields.flag("tie_word_embeddings")?,
                None if outer.get("tie_word_embeddings").is_some() => outer.flag("tie_word_embeddings")?,
                None => defaults.tied,
            },
            rope: global_rope(fields, defaults.theta, max_position_embeddings)?,
            architecture: (family.read)(fields, &sizes)?,
            is_nested: family.is_nested,
            dtype: dtype(outer)?,
            quantization: quantization(outer)?,
            bos_token_id: token_ids(fields, outer, "bos_token_id")?.first().copied(),
            eos_token_id: token_ids(fields, outer, "eos_token_id")?,
        };
        config.check_rotation(fields)?;
        Ok(config)
    }

    /// Returns the text of a `config.json` that both transformers 4 and 5 can read.
    pub fn to_json(&self) -> Vec<u8> {
        if let Some(text) = Preset::text_of(self) {
            return text.as_bytes().to_vec();
        }
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
            // Writes the decimal 1e-5, and not the seventeen digits of the nearest f32.
            "rms_norm_eps": self.rms_norm_eps.to_string().parse::<f64>().unwrap_or(self.rms_norm_eps.into()),
            "rope_scaling": self.rope.scaling_json(),
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

    /// Returns the shape `(OUT, IN)` of a projection's weight.
    pub fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        match projection {
            Projection::QProj => (q, self.hidden_size),
            Projection::KProj | Projection::VProj => (kv, self.hidden_size),
            Projection::OProj => (self.hidden_size, q),
            Projection::GateProj | Projection::UpProj => (self.intermediate_size, self.hidden_size),
            Projection::DownProj => (self.hidden_size, self.intermediate_size),
            Projection::QkvProj => (q + 2 * kv, self.hidden_size),
            Projection::GateUpProj => (2 * self.intermediate_size, self.hidden_size),
        }
    }

    /// Returns the projections of a layer in the order of the forward pass. All projections of a group have
    /// the same input.
    pub fn projection_groups(&self) -> [&'static [Projection]; 4] {
        use Projection::*;
        let Architecture { fused_qkv, fused_gate_up, .. } = self.architecture;
        [
            if fused_qkv { &[QkvProj] } else { &[QProj, KProj, VProj] },
            &[OProj],
            if fused_gate_up { &[GateUpProj] } else { &[GateProj, UpProj] },
            &[DownProj],
        ]
    }

    /// Returns the projections of a layer, in the order of [`ModelConfig::projection_groups`].
    pub fn projections(&self) -> impl Iterator<Item = Projection> + use<> {
        self.projection_groups().into_iter().flatten().copied()
    }

    /// Returns the module path that PEFT gives a projection. If the text model is nested, the path contains
    /// `language_model`.
    pub fn module_path(&self, layer: usize, projection: Projection) -> String {
        let path = projection.module_path(layer);
        if self.is_nested { path.replacen("model.", "model.language_model.", 1) } else { path }
    }

    /// Returns the name and shape of every tensor of the checkpoint, in the order in which a forward pass
    /// reads them.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let table = vec![self.vocab_size, hidden];
        let layers = (0..self.num_hidden_layers).flat_map(move |layer| self.layer_tensors(layer));
        let head = (!self.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), table.clone()));
        std::iter::once(("model.embed_tokens.weight".to_owned(), table))
            .chain(layers)
            .chain([("model.norm.weight".to_owned(), vec![hidden])])
            .chain(head)
    }

    fn layer_tensors(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let norm = |name: &str, width| (format!("model.layers.{layer}.{name}.weight"), vec![width]);
        let mut tensors: Vec<_> =
            self.architecture.norms.names().map(|name| norm(name, self.hidden_size)).collect();
        for projection in self.projections() {
            let (d_out, d_in) = self.projection_shape(projection);
            tensors.push((projection.weight_name(layer), vec![d_out, d_in]));
            if self.has_bias(projection) {
                tensors.push((projection.bias_name(layer), vec![d_out]));
            }
        }
        if let Some([q, k]) = self.qk_norm_widths() {
            tensors.extend([norm("self_attn.q_norm", q), norm("self_attn.k_norm", k)]);
        }
        tensors
    }

    /// Returns whether a projection has a bias.
    pub fn has_bias(&self, projection: Projection) -> bool {
        let Architecture { qkv_bias, output_bias, mlp_bias, .. } = self.architecture;
        match projection {
            Projection::QProj | Projection::KProj | Projection::VProj | Projection::QkvProj => qkv_bias,
            Projection::OProj => output_bias,
            Projection::GateProj | Projection::UpProj | Projection::DownProj | Projection::GateUpProj => {
                mlp_bias
            }
        }
    }

    /// Returns the lengths of the norm weights of queries and keys.
    pub fn qk_norm_widths(&self) -> Option<[usize; 2]> {
        let heads = [self.num_attention_heads, self.num_key_value_heads];
        self.architecture.qk_norm.map(|norm| match norm {
            QkNorm::PerHead => [self.head_dim; 2],
            QkNorm::Whole => heads.map(|heads| heads * self.head_dim),
        })
    }

    /// Returns the epsilon of norms over the residual stream. The decoder divides the residual stream by
    /// `residual_scale`, so that attention and MLP add to the residual stream without a factor. The epsilon
    /// is therefore divided by the square of `residual_scale`.
    pub(crate) fn stream_eps(&self) -> f32 {
        self.rms_norm_eps / self.architecture.residual_scale.powi(2)
    }

    /// Returns the factor of the embeddings in the residual stream. The factor includes the division by
    /// `residual_scale`.
    pub(crate) fn stream_embedding_scale(&self) -> f32 {
        self.architecture.embedding_scale / self.architecture.residual_scale
    }

    /// Returns the factor of [`EmbeddingNoise`](crate::EmbeddingNoise) in the residual stream.
    pub(crate) fn stream_noise_scale(&self) -> f32 {
        self.architecture.noise_scale / self.architecture.residual_scale
    }

    /// Returns the rotary embedding of a layer, or `None` if the layer has none.
    pub fn layer_rope(&self, layer: usize) -> Option<&Rope> {
        match self.architecture.layer(layer).rope {
            LayerRope::Global => Some(&self.rope),
            LayerRope::Local => Some(self.architecture.local_rope.as_ref().unwrap_or(&self.rope)),
            LayerRope::None => None,
        }
    }

    /// Returns the operations that the model needs and that a back end may lack.
    pub fn operations(&self) -> Vec<FamilyOperation> {
        let tables = self.rope.depends_on_length().then_some(FamilyOperation::RopeTables);
        self.architecture.operations().into_iter().chain(tables).collect()
    }

    /// Returns the number of elements of each head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        // As in transformers, the product is rounded down.
        (self.head_dim as f64 * self.architecture.partial_rotary_factor) as usize
    }

    /// Returns the rotation of each head in a layer. The attention factor of YaRN or LongRoPE is applied here
    /// only if a part of each head is rotated. If all of it is rotated, [`ModelConfig::attention_scores`]
    /// applies the factor.
    pub fn rotation(&self, rope: &Rope) -> RopeRotation {
        let (dim, pairs) = (self.rotary_dim(), self.architecture.rope_pairs);
        let scale = if dim == self.head_dim { 1.0 } else { rope.attention_factor() as f32 };
        RopeRotation { dim, pairs, scale }
    }

    /// Checks that the rotated part of a head consists of pairs, and that LongRoPE has one factor for each
    /// pair.
    fn check_rotation(&self, fields: &Fields<'_>) -> Result<(), ModelError> {
        let dim = self.rotary_dim();
        if dim == 0 || !dim.is_multiple_of(2) || dim > self.head_dim {
            let expected = format!("a part of `head_dim`, {}, that is an even number", self.head_dim);
            return Err(fields.wrong("partial_rotary_factor", expected));
        }
        if let RopeScaling::LongRope { short_factor, long_factor, .. } = &self.rope.scaling
            && (short_factor.len() != dim / 2 || long_factor.len() != dim / 2)
        {
            let found = [short_factor.len(), long_factor.len()];
            let expected = format!("{} factors in both lists, found {found:?}", dim / 2);
            return Err(fields.wrong("rope_scaling", expected));
        }
        Ok(())
    }

    /// Returns the scale, the window and the softcap of a layer's attention scores. If all elements of a head
    /// are rotated, the scale includes the attention factor of YaRN or LongRoPE.
    pub fn attention_scores(&self, layer: usize) -> AttentionScores {
        let scale = self.architecture.attention_scale.unwrap_or(1.0 / (self.head_dim as f64).sqrt());
        let is_whole = self.rotary_dim() == self.head_dim;
        let factor = self.layer_rope(layer).filter(|_| is_whole).map_or(1.0, Rope::attention_factor);
        AttentionScores {
            scale: (scale * factor * factor) as f32,
            window: self.architecture.layer(layer).window,
            softcap: self.architecture.attention_softcap,
        }
    }

    /// Returns the number of parameters. A table that is both embedding and head counts once.
    pub fn num_parameters(&self) -> u64 {
        self.tensors().map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Returns the rotation of each pair of elements, in radians per token, `(D / 2)`.
    pub fn inv_freq(&self) -> Vec<f32> {
        self.rope.inv_freq(self.rotary_dim())
    }
}

/// Rejects settings that change the results and that danlu does not support. The error names the field.
fn refuse_variants(fields: &Fields<'_>) -> Result<(), ModelError> {
    if fields.get("attention_dropout").is_some_and(|v| v.as_f64() != Some(0.0)) {
        return Err(fields.unsupported("attention_dropout", "0.0"));
    }
    Ok(())
}

/// Reads token ids of the outer object. If the outer object has none, reads those of the nested object.
fn token_ids(fields: &Fields<'_>, outer: &Fields<'_>, name: &str) -> Result<Vec<u32>, ModelError> {
    let found = outer.token_ids(name)?;
    if found.is_empty() { fields.token_ids(name) } else { Ok(found) }
}

/// Reads the rotary embedding of layers with full attention. If transformers 5 wrote the configuration of a
/// Gemma 3 or OLMo 3 model, these settings are in a nested object.
fn global_rope(
    fields: &Fields<'_>,
    default_theta: f64,
    max_position_embeddings: usize,
) -> Result<Rope, ModelError> {
    if fields.get("rope_scaling").is_none()
        && let Some(both) = fields.nested("rope_parameters")?
        && let Some(full) = both.nested("full_attention")?
    {
        let positions = (max_position_embeddings, None);
        return Rope::of_parameters(&full, "rope_parameters", default_theta, positions);
    }
    Rope::read(fields, default_theta, max_position_embeddings)
}

/// Reads `quantization_config`, which must be a 4-bit format of bitsandbytes. The weight files, and not this
/// field, show which weights are in 4 bits.
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
        // transformers uses this 4-bit type by default.
        None => FourBitCode::Fp4,
        Some(name) => {
            name.parse().map_err(|_| nested.unsupported("bnb_4bit_quant_type", "`nf4` and `fp4`"))?
        }
    };
    let double_quant = nested.flag("bnb_4bit_use_double_quant")?;
    Ok(Some(Quantization { quant_type, double_quant, block_size: Quantization::BLOCK_SIZE }))
}

/// Reads the element type of the saved weights. An unsupported type is no error here, because the error is
/// returned when the tensors are read.
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
