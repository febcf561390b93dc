//! Parts of a decoder in which model families differ.

use danlu_kernels::{FamilyOperation, GateActivation};

use super::Rope;

/// Parts of a decoder in which model families differ. The default is Llama without biases.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Architecture {
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub output_bias: bool,
    /// Whether the three projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// Norm of queries and keys before RoPE.
    pub qk_norm: Option<QkNorm>,
    /// Norms of a block.
    pub norms: BlockNorms,
    /// Added to every stored norm weight: 1 in Gemma.
    pub norm_offset: f32,
    /// Activation of the gate.
    pub activation: GateActivation,
    /// Factor of the embeddings.
    pub embedding_scale: f32,
    /// Factor of what attention and MLP add to the residual stream.
    pub residual_scale: f32,
    /// Factor of `q · k`. `None` means `HS^-½`.
    pub attention_scale: Option<f64>,
    /// Scores become `cap · tanh(score / cap)`.
    pub attention_softcap: Option<f32>,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logits_softcap: Option<f32>,
    /// Divisor of the logits.
    pub logits_divisor: f32,
    /// Attention of each layer. Empty: full attention and [`LayerRope::Global`] in all layers.
    pub layers: Vec<LayerAttention>,
    /// Rotary embedding of layers with [`LayerRope::Local`].
    pub local_rope: Option<Rope>,
}

/// Attention of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerAttention {
    /// Number of keys that a query sees, with its own. `None`: all earlier keys.
    pub window: Option<usize>,
    /// Rotary embedding.
    pub rope: LayerRope,
}

/// Rotary embedding of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerRope {
    /// That of the model.
    #[default]
    Global,
    /// [`Architecture::local_rope`].
    Local,
    /// None.
    None,
}

/// Norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// One weight `(HS)` for every head, over the elements of a head.
    PerHead,
    /// A weight for each element, over the whole projection.
    Whole,
}

/// Checkpoint names of the norms of a block, where it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockNorms {
    /// Before q, k and v.
    pub before_attention: Option<&'static str>,
    /// After the attention output.
    pub after_attention: Option<&'static str>,
    /// Before gate and up.
    pub before_mlp: Option<&'static str>,
    /// After down.
    pub after_mlp: Option<&'static str>,
}

impl BlockNorms {
    /// Llama: before attention and MLP.
    pub const LLAMA: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    };
    /// Gemma 2 and 3: before and after both.
    pub const GEMMA2: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    };
    /// OLMo 2 and 3: after both.
    pub const OLMO2: Self = Self {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    };

    /// Returns the names in the order in which a block applies them.
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
            qk_norm: None,
            norms: BlockNorms::LLAMA,
            norm_offset: 0.0,
            activation: GateActivation::Silu,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            attention_scale: None,
            attention_softcap: None,
            logits_softcap: None,
            logits_divisor: 1.0,
            layers: Vec::new(),
            local_rope: None,
        }
    }
}

impl Architecture {
    /// Returns the attention of a layer.
    pub fn layer(&self, layer: usize) -> LayerAttention {
        self.layers.get(layer).copied().unwrap_or_default()
    }

    /// Returns the operations that a back end may lack.
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
        ];
        needed.into_iter().filter_map(|(operation, is_needed)| is_needed.then_some(operation)).collect()
    }
}
