//! The parts of a decoder that differ between model families.

use danlu_kernels::{FamilyOperation, GateActivation, RopePairs};

use super::Rope;

/// The parts of a decoder that differ between model families. The default is Llama without biases.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Architecture {
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub output_bias: bool,
    /// Whether the three projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// Whether q, k and v are one weight.
    pub fused_qkv: bool,
    /// Whether gate and up are one weight.
    pub fused_gate_up: bool,
    /// Norm of queries and keys before RoPE.
    pub qk_norm: Option<QkNorm>,
    /// Norms of a block.
    pub norms: BlockNorms,
    /// Value that is added to every stored norm weight: 1 in Gemma.
    pub norm_offset: f32,
    /// Activation function of the gate.
    pub activation: GateActivation,
    /// Factor by which the embeddings are multiplied.
    pub embedding_scale: f32,
    /// Factor by which noise of the embeddings is multiplied. In transformers, the embedding module of Gemma
    /// includes `embedding_scale`, and noise is added to its output. Granite multiplies embeddings and noise.
    pub noise_scale: f32,
    /// Factor by which the outputs of attention and MLP are multiplied before they are added to the residual
    /// stream.
    pub residual_scale: f32,
    /// Factor by which `q · k` is multiplied. `None` means `HS^-½`.
    pub attention_scale: Option<f64>,
    /// If set, scores are replaced by `cap · tanh(score / cap)`.
    pub attention_softcap: Option<f32>,
    /// If set, logits are replaced by `cap · tanh(logit / cap)`.
    pub logits_softcap: Option<f32>,
    /// Number by which the logits are divided.
    pub logits_divisor: f32,
    /// Attention of each layer. If empty, all layers have full attention and [`LayerRope::Global`].
    pub layers: Vec<LayerAttention>,
    /// Rotary embedding of layers with [`LayerRope::Local`].
    pub local_rope: Option<Rope>,
    /// The elements that a rotary embedding pairs.
    pub rope_pairs: RopePairs,
    /// Part of each head that is rotated: 1 if all elements are rotated.
    pub partial_rotary_factor: f64,
}

/// Attention of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerAttention {
    /// Number of keys to which a query attends, including its own. `None` means all earlier keys.
    pub window: Option<usize>,
    /// Rotary embedding.
    pub rope: LayerRope,
}

/// Rotary embedding of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerRope {
    /// The rotary embedding of the model.
    #[default]
    Global,
    /// The rotary embedding [`Architecture::local_rope`].
    Local,
    /// No rotary embedding.
    None,
}

/// Norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// One norm per head. All heads share one weight `(HS)`.
    PerHead,
    /// One norm over the whole projection, with a weight for each element.
    Whole,
}

/// Checkpoint names of the norms of a block. `None` if the block does not have the norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockNorms {
    /// Norm before q, k and v.
    pub before_attention: Option<&'static str>,
    /// Norm after the attention output.
    pub after_attention: Option<&'static str>,
    /// Norm before gate and up.
    pub before_mlp: Option<&'static str>,
    /// Norm after down.
    pub after_mlp: Option<&'static str>,
}

impl BlockNorms {
    /// Llama has norms before attention and before the MLP.
    pub const LLAMA: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    };
    /// Gemma 2 and 3 have norms before and after attention, and before and after the MLP.
    pub const GEMMA2: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    };
    /// GLM-4 has the same norms as Gemma 2, under other names.
    pub const GLM4: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_self_attn_layernorm"),
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: Some("post_mlp_layernorm"),
    };
    /// OLMo 2 and 3 have norms after attention and after the MLP.
    pub const OLMO2: Self = Self {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    };

    /// Returns the names of the norms in the order in which a block applies them.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        [self.before_attention, self.after_attention, self.before_mlp, self.after_mlp].into_iter().flatten()
    }
}

impl Default for Architecture {
    fn default() -> Self {
        Self {
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            fused_qkv: false,
            fused_gate_up: false,
            qk_norm: None,
            norms: BlockNorms::LLAMA,
            norm_offset: 0.0,
            activation: GateActivation::Silu,
            embedding_scale: 1.0,
            noise_scale: 1.0,
            residual_scale: 1.0,
            attention_scale: None,
            attention_softcap: None,
            logits_softcap: None,
            logits_divisor: 1.0,
            layers: Vec::new(),
            local_rope: None,
            rope_pairs: RopePairs::Halves,
            partial_rotary_factor: 1.0,
        }
    }
}

impl Architecture {
    /// Returns the attention of a layer.
    pub fn layer(&self, layer: usize) -> LayerAttention {
        self.layers.get(layer).copied().unwrap_or_default()
    }

    /// Returns the operations that the model needs and that a back end may lack.
    pub fn operations(&self) -> Vec<FamilyOperation> {
        use FamilyOperation::*;
        let has_norm_after = self.norms.after_attention.is_some() || self.norms.after_mlp.is_some();
        let needed = [
            (Bias, self.qkv_bias || self.output_bias || self.mlp_bias),
            (Geglu, self.activation == GateActivation::GeluTanh),
            (AttentionWindow, self.layers.iter().any(|layer| layer.window.is_some())),
            (AttentionSoftcap, self.attention_softcap.is_some()),
            (HeadSoftcap, self.logits_softcap.is_some()),
            (ResidualNorm, has_norm_after),
            (FusedProjection, self.fused_qkv || self.fused_gate_up),
            (PartialRope, self.rope_pairs != RopePairs::Halves || self.partial_rotary_factor != 1.0),
        ];
        needed.into_iter().filter_map(|(operation, is_needed)| is_needed.then_some(operation)).collect()
    }
}
