//! Model families: the flags of each family, and the defaults for keys that a `config.json` omits.

use danlu_kernels::{GateActivation, RopePairs};

use super::architecture::{Architecture, BlockNorms, LayerAttention, LayerRope, QkNorm};
use super::{MAX_POSITIONS, Rope};
use crate::ModelError;
use crate::json::Fields;

/// Default values of a family for keys that are missing in `config.json`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    pub theta: f64,
    pub eps: f64,
    pub tied: bool,
    /// `None` means `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    pub max_positions: usize,
    /// Sizes that a nested configuration may omit. `None` means that the key is required.
    pub hidden: Option<usize>,
    pub intermediate: Option<usize>,
    pub layers: Option<usize>,
    pub heads: Option<usize>,
    pub kv_heads: Option<usize>,
    pub vocab: Option<usize>,
}

/// Sizes on which the flags of a family depend.
pub(super) struct Sizes {
    pub layers: usize,
    pub hidden: usize,
    pub max_positions: usize,
}

pub(super) struct Family {
    pub name: &'static str,
    pub defaults: Defaults,
    /// Whether the configuration of the text model is in `text_config`.
    pub is_nested: bool,
    pub read: ReadFlags,
}

const LLAMA: Defaults = Defaults {
    theta: 1e4,
    eps: 1e-6,
    tied: false,
    head_dim: None,
    max_positions: 2048,
    hidden: None,
    intermediate: None,
    layers: None,
    heads: None,
    kv_heads: None,
    vocab: None,
};
const GEMMA: Defaults = Defaults { tied: true, head_dim: Some(256), max_positions: 8192, ..LLAMA };
const GEMMA3: Defaults = Defaults { theta: 1e6, max_positions: 131_072, ..GEMMA };
/// The defaults of Gemma 3's `text_config`, as in transformers' `Gemma3TextConfig`.
const GEMMA3_NESTED: Defaults = Defaults {
    hidden: Some(2304),
    intermediate: Some(9216),
    layers: Some(26),
    heads: Some(8),
    kv_heads: Some(4),
    vocab: Some(262_208),
    ..GEMMA3
};
const GLM: Defaults = Defaults { eps: 1.5625e-7, head_dim: Some(128), max_positions: 131_072, ..LLAMA };

type ReadFlags = fn(&Fields<'_>, &Sizes) -> Result<Architecture, ModelError>;

const fn family(name: &'static str, defaults: Defaults, read: ReadFlags) -> Family {
    Family { name, defaults, is_nested: false, read }
}

/// All supported families. The tests compare each family with golden values.
pub(super) const FAMILIES: &[Family] = &[
    family("llama", LLAMA, llama),
    family("qwen2", Defaults { max_positions: 32_768, ..LLAMA }, qwen2),
    family("qwen3", Defaults { head_dim: Some(128), max_positions: 32_768, ..LLAMA }, qwen3),
    family("mistral", Defaults { max_positions: 131_072, ..LLAMA }, mistral),
    family("gemma", GEMMA, gemma),
    family("gemma2", GEMMA, gemma2),
    family("gemma3_text", GEMMA3, gemma3),
    Family { is_nested: true, ..family("gemma3", GEMMA3_NESTED, gemma3_nested) },
    family("phi3", Defaults { eps: 1e-5, max_positions: 4096, ..LLAMA }, phi3),
    family("glm4", GLM, glm4),
    family("glm", GLM, glm),
    family("granite", LLAMA, granite),
    family("smollm3", Defaults { theta: 2e6, tied: true, max_positions: 32_768, ..LLAMA }, smollm3),
    family("olmo2", Defaults { eps: 1e-5, ..LLAMA }, olmo2),
    family("olmo3", Defaults { theta: 5e5, eps: 1e-5, max_positions: 65_536, ..LLAMA }, olmo3),
];

/// Unsupported families: the start of `model_type`, the reason, and the most similar family that is
/// supported.
const REFUSED: &[(&str, &str, &str)] = &[
    ("glm4_moe", "it has experts", "a dense model such as Qwen3"),
    ("gemma3n", "it has embeddings per layer", "`gemma3_text` (Gemma 3 270M or 1B)"),
    ("gemma4", "it has embeddings per layer", "`gemma3_text` (Gemma 3 270M or 1B)"),
    ("qwen3_5", "it has a gated delta rule", "a Qwen3 model"),
    ("qwen3_moe", "it has experts", "a dense Qwen3 model"),
    ("qwen2_moe", "it has experts", "a dense Qwen2.5 model"),
    ("qwen2_vl", "it has a vision tower", "a Qwen2.5 text model"),
    ("qwen2_5_vl", "it has a vision tower", "a Qwen2.5 text model"),
    ("qwen3_vl", "it has a vision tower", "a Qwen3 text model"),
    ("qwen", "it needs code of its own", "a Qwen2.5 or Qwen3 model"),
    ("mixtral", "it has experts", "a Mistral 7B model"),
    ("mistral3", "it has a vision tower", "Mistral Small 24B 2501"),
    ("ministral3", "it scales queries by their position", "a Mistral 7B model"),
    ("gpt_oss", "it has experts", "a Qwen3 model"),
    ("granitemoe", "it has experts or state spaces", "Granite 3.3"),
    ("llama4", "it has experts", "a Llama 3 model"),
    ("mllama", "it has a vision tower", "a Llama 3.2 text model"),
    ("chatglm", "it needs code of its own", "a Qwen3 model"),
    ("baichuan", "it needs code of its own", "a Qwen3 model"),
    ("internlm", "its q, k, v are one weight, or it needs code of its own", "a Qwen3 model"),
    ("minicpm", "it needs code of its own", "a Llama 3 model"),
    ("phi", "its layers are built in another way", "a Qwen3 or Llama 3 model"),
    ("gpt2", "its layers are built in another way", "a SmolLM2 model (`llama`)"),
    ("gpt_neox", "its layers are built in another way", "a SmolLM2 model (`llama`)"),
    ("falcon", "its layers are built in another way", "a Llama 3 model"),
    ("deepseek", "it has latent attention", "DeepSeek-R1-Distill (`qwen2`, `llama`)"),
    ("glm", "it has experts or a vision tower", "GLM-4-0414 (`glm4`)"),
    ("cohere", "its attention and MLP run side by side", "a Llama 3 model"),
    ("starcoder2", "its MLP has no gate", "Qwen2.5-Coder (`qwen2`)"),
    ("opt", "its layers are built in another way", "a SmolLM2 model (`llama`)"),
    ("bloom", "its layers are built in another way", "a SmolLM2 model (`llama`)"),
    ("lfm2", "it has convolutions", "a Qwen3 model"),
    ("ernie4_5", "it rotates neighbouring elements of whole heads", "a Qwen3 model"),
    ("hunyuan", "its norms of q and k come after the rotation", "a Qwen3 model"),
    ("exaone", "its layers mix other norms and rotations", "a Qwen3 model"),
    ("seed_oss", "its attention output has a dropout of its own", "a Qwen3 model"),
    ("kimi", "it has latent attention", "a Qwen3 model"),
    ("mamba", "it has state spaces", "a SmolLM2 model (`llama`)"),
];

/// Returns the family of the model that a `config.json` describes.
pub(super) fn find(fields: &Fields<'_>) -> Result<&'static Family, ModelError> {
    let names = || FAMILIES.iter().map(|family| format!("`{}`", family.name)).collect::<Vec<_>>().join(", ");
    let Some(model_type) = fields.text("model_type")? else {
        return Err(fields.wrong("model_type", format!("one of {}", names())));
    };
    if let Some(family) = FAMILIES.iter().find(|family| family.name == model_type) {
        if !["phi3", "glm", "glm4"].contains(&family.name) {
            refuse_partial_rotation(fields)?;
        }
        return Ok(family);
    }
    let refused = REFUSED.iter().find(|(start, ..)| model_type.starts_with(start));
    Err(match refused {
        Some(&(_, reason, nearest)) => ModelError::Family {
            path: fields.path().to_owned(),
            family: model_type.to_owned(),
            reason,
            nearest,
        },
        None => fields.unsupported("model_type", names()),
    })
}

fn llama(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    let is_off = fields.get("use_sliding_window").is_some() && !fields.flag("use_sliding_window")?;
    if !is_off && window(fields, None, sizes)?.is_some() {
        return Err(fields.unsupported("sliding_window", "attention over the whole context"));
    }
    if local_flags(fields, sizes, |_| false)?.contains(&true) {
        return Err(fields.unsupported("layer_types", "`full_attention` in every layer"));
    }
    with_biases(fields)
}

/// Returns the flags of Llama, with the biases that `attention_bias` and `mlp_bias` enable.
fn with_biases(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    require_silu(fields)?;
    let bias = fields.flag("attention_bias")?;
    Ok(Architecture {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: fields.flag("mlp_bias")?,
        ..Architecture::default()
    })
}

fn qwen2(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    require_silu(fields)?;
    Ok(Architecture { qkv_bias: true, layers: qwen_layers(fields, sizes)?, ..Architecture::default() })
}

fn qwen3(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    require_silu(fields)?;
    let bias = fields.flag("attention_bias")?;
    Ok(Architecture {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(QkNorm::PerHead),
        layers: qwen_layers(fields, sizes)?,
        ..Architecture::default()
    })
}

/// Returns the attention of each layer. If `use_sliding_window` is set, layers from `max_window_layers` on
/// have a window.
fn qwen_layers(fields: &Fields<'_>, sizes: &Sizes) -> Result<Vec<LayerAttention>, ModelError> {
    if !fields.flag("use_sliding_window")? {
        return Ok(Vec::new());
    }
    let window = window(fields, Some(4096), sizes)?;
    let first = fields.count_opt("max_window_layers", MAX_POSITIONS)?.unwrap_or(28);
    layers(fields, sizes, window, |layer| layer >= first)
}

fn mistral(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    require_silu(fields)?;
    let window = window(fields, Some(4096), sizes)?;
    Ok(Architecture { layers: layers(fields, sizes, window, |_| true)?, ..Architecture::default() })
}

fn gemma_base(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    let activation = match fields.text("hidden_activation")? {
        Some(name) => Some(name),
        None => fields.text("hidden_act")?,
    };
    // Gemma 1 writes `gelu` but means the tanh approximation. transformers reads `gelu` in the same way.
    if !matches!(activation, None | Some("gelu" | "gelu_pytorch_tanh")) {
        return Err(fields.unsupported("hidden_activation", "`gelu_pytorch_tanh`"));
    }
    if fields.flag("use_bidirectional_attention")? {
        return Err(fields.unsupported("use_bidirectional_attention", "false"));
    }
    let bias = fields.flag("attention_bias")?;
    Ok(Architecture {
        qkv_bias: bias,
        output_bias: bias,
        norm_offset: 1.0,
        activation: GateActivation::GeluTanh,
        embedding_scale: (sizes.hidden as f64).sqrt() as f32,
        ..Architecture::default()
    })
}

fn gemma(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    gemma_base(fields, sizes)
}

fn gemma2(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    let window = window(fields, Some(4096), sizes)?;
    Ok(Architecture {
        norms: BlockNorms::GEMMA2,
        attention_scale: Some(query_scale(fields)?),
        attention_softcap: softcap(fields, "attn_logit_softcapping", Some(50.0))?,
        logits_softcap: softcap(fields, "final_logit_softcapping", Some(30.0))?,
        layers: layers(fields, sizes, window, |layer| layer % 2 == 0)?,
        ..gemma_base(fields, sizes)?
    })
}

fn gemma3(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    let window = window(fields, Some(4096), sizes)?;
    let pattern = fields.count_opt("sliding_window_pattern", MAX_POSITIONS)?.unwrap_or(6);
    let is_local = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    let local_theta = fields.positive("rope_local_base_freq")?.unwrap_or(1e4);
    let (mut layers, local_rope) = local_layers(fields, sizes, (window, local_theta), is_local)?;
    layers.resize(sizes.layers, LayerAttention::default());
    Ok(Architecture {
        qk_norm: Some(QkNorm::PerHead),
        norms: BlockNorms::GEMMA2,
        attention_scale: Some(query_scale(fields)?),
        logits_softcap: softcap(fields, "final_logit_softcapping", None)?,
        layers,
        local_rope: Some(local_rope),
        ..gemma_base(fields, sizes)?
    })
}

/// Returns the flags of the text model in a model with a vision tower. transformers ignores the softcap of
/// the logits in such a model.
fn gemma3_nested(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    Ok(Architecture { logits_softcap: None, ..gemma3(fields, sizes)? })
}

fn phi3(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    require_silu(fields)?;
    let window = window(fields, None, sizes)?;
    Ok(Architecture {
        fused_qkv: true,
        fused_gate_up: true,
        partial_rotary_factor: rotary_factor(fields, 1.0)?,
        layers: layers(fields, sizes, window, |_| true)?,
        ..Architecture::default()
    })
}

fn glm(fields: &Fields<'_>, _sizes: &Sizes) -> Result<Architecture, ModelError> {
    require_silu(fields)?;
    let bias = fields.get("attention_bias").is_none() || fields.flag("attention_bias")?;
    Ok(Architecture {
        qkv_bias: bias,
        fused_gate_up: true,
        rope_pairs: RopePairs::Neighbours,
        partial_rotary_factor: rotary_factor(fields, 0.5)?,
        ..Architecture::default()
    })
}

fn glm4(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    Ok(Architecture { norms: BlockNorms::GLM4, ..glm(fields, sizes)? })
}

/// Reads the part of each head that is rotated, in the spelling of transformers 4 or 5.
fn rotary_factor(fields: &Fields<'_>, default: f64) -> Result<f64, ModelError> {
    if let Some(factor) = fields.positive("partial_rotary_factor")? {
        return Ok(factor);
    }
    for name in ["rope_parameters", "rope_scaling"] {
        if let Some(nested) = fields.nested(name)?
            && let Some(factor) = nested.positive("partial_rotary_factor")?
        {
            return Ok(factor);
        }
    }
    Ok(default)
}

/// Rejects a partial rotation, which these families do not have in transformers.
fn refuse_partial_rotation(fields: &Fields<'_>) -> Result<(), ModelError> {
    if rotary_factor(fields, 1.0)? != 1.0 {
        return Err(fields.unsupported("partial_rotary_factor", "1.0"));
    }
    Ok(())
}

fn granite(fields: &Fields<'_>, _sizes: &Sizes) -> Result<Architecture, ModelError> {
    let number = |name: &str| Ok::<_, ModelError>(fields.positive(name)?.unwrap_or(1.0));
    Ok(Architecture {
        embedding_scale: number("embedding_multiplier")? as f32,
        noise_scale: number("embedding_multiplier")? as f32,
        residual_scale: number("residual_multiplier")? as f32,
        attention_scale: Some(number("attention_multiplier")?),
        logits_divisor: number("logits_scaling")? as f32,
        ..with_biases(fields)?
    })
}

fn smollm3(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    let window = match fields.flag("use_sliding_window")? {
        true => window(fields, None, sizes)?,
        false => None,
    };
    let interval = fields.count_opt("no_rope_layer_interval", MAX_POSITIONS)?.unwrap_or(4);
    let list = fields.get("no_rope_layers").and_then(|list| list.as_array());
    // In `no_rope_layers`, 1 marks a layer with RoPE, and 0 marks a layer without RoPE.
    let has_rope = |layer: usize| match list {
        Some(list) => list.get(layer).is_none_or(|value| value.as_u64() != Some(0)),
        None => !(layer + 1).is_multiple_of(interval),
    };
    let mut layers = layers(fields, sizes, window, |_| true)?;
    layers.resize(sizes.layers, LayerAttention::default());
    for (i, layer) in layers.iter_mut().enumerate() {
        layer.rope = if has_rope(i) { LayerRope::Global } else { LayerRope::None };
    }
    Ok(Architecture { layers, ..with_biases(fields)? })
}

fn olmo2(fields: &Fields<'_>, _sizes: &Sizes) -> Result<Architecture, ModelError> {
    require_silu(fields)?;
    let bias = fields.flag("attention_bias")?;
    Ok(Architecture {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(QkNorm::Whole),
        norms: BlockNorms::OLMO2,
        ..Architecture::default()
    })
}

fn olmo3(fields: &Fields<'_>, sizes: &Sizes) -> Result<Architecture, ModelError> {
    let window = window(fields, Some(4096), sizes)?;
    let theta = fields.positive("rope_theta")?.unwrap_or(5e5);
    let is_local = |layer: usize| !(layer + 1).is_multiple_of(4);
    let (layers, local_rope) = local_layers(fields, sizes, (window, theta), is_local)?;
    Ok(Architecture { layers, local_rope: Some(local_rope), ..olmo2(fields, sizes)? })
}

fn require_silu(fields: &Fields<'_>) -> Result<(), ModelError> {
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(_) => Err(fields.unsupported("hidden_act", "`silu`")),
    }
}

/// Reads `query_pre_attn_scalar`. Scores are multiplied by the inverse square root of this value.
fn query_scale(fields: &Fields<'_>) -> Result<f64, ModelError> {
    Ok(1.0 / fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt())
}

/// Reads a softcap. If the key is missing, the default applies. If the value is null, there is no softcap.
fn softcap(fields: &Fields<'_>, name: &str, default: Option<f32>) -> Result<Option<f32>, ModelError> {
    if fields.is_missing(name) {
        return Ok(default);
    }
    Ok(fields.positive(name)?.map(|cap| cap as f32))
}

/// Reads `sliding_window`. If the key is missing, the default applies. If the value is null, there is no
/// window. A window that is as long as the context has no effect.
fn window(fields: &Fields<'_>, default: Option<usize>, sizes: &Sizes) -> Result<Option<usize>, ModelError> {
    let window = match fields.is_missing("sliding_window") {
        true => default,
        false => fields.count_opt("sliding_window", MAX_POSITIONS)?,
    };
    Ok(window.filter(|&window| window < sizes.max_positions))
}

/// Returns the attention of each layer. `layer_types` contains the type of each layer, which determines
/// whether the layer has the window. If this key is missing, `is_local` selects the layers that have the
/// window.
fn layers(
    fields: &Fields<'_>,
    sizes: &Sizes,
    window: Option<usize>,
    is_local: impl Fn(usize) -> bool,
) -> Result<Vec<LayerAttention>, ModelError> {
    let local = local_flags(fields, sizes, is_local)?;
    if window.is_none() || !local.contains(&true) {
        return Ok(Vec::new());
    }
    let layer =
        |is_local: bool| LayerAttention { window: window.filter(|_| is_local), rope: LayerRope::Global };
    Ok(local.into_iter().map(layer).collect())
}

fn local_flags(
    fields: &Fields<'_>,
    sizes: &Sizes,
    is_local: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ModelError> {
    let Some(types) = fields.get("layer_types") else {
        return Ok((0..sizes.layers).map(is_local).collect());
    };
    const EXPECTED: &str = "`full_attention` or `sliding_attention` for each layer";
    let types = types.as_array().filter(|types| types.len() == sizes.layers);
    let types = types.ok_or_else(|| fields.wrong("layer_types", EXPECTED))?;
    let flag = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(fields.unsupported("layer_types", EXPECTED)),
    };
    types.iter().map(flag).collect()
}

/// Returns the attention of each layer, as [`layers`] does, for families whose local layers have a separate
/// rotary embedding. transformers 4 never scales this embedding.
fn local_layers(
    fields: &Fields<'_>,
    sizes: &Sizes,
    (window, theta): (Option<usize>, f64),
    is_local: impl Fn(usize) -> bool,
) -> Result<(Vec<LayerAttention>, Rope), ModelError> {
    let layer = |is_local: bool| LayerAttention {
        window: window.filter(|_| is_local),
        rope: if is_local { LayerRope::Local } else { LayerRope::Global },
    };
    let layers = local_flags(fields, sizes, is_local)?.into_iter().map(layer).collect();
    let plain = Rope { theta, scaling: super::RopeScaling::Default };
    let rope = match fields.nested("rope_parameters")? {
        Some(both) if fields.get("rope_scaling").is_none() => match both.nested("sliding_attention")? {
            Some(local) => {
                Rope::of_parameters(&local, "rope_parameters", theta, (sizes.max_positions, None))?
            }
            None => plain,
        },
        _ => plain,
    };
    Ok((layers, rope))
}
