//! The work buffers of a decoder: made once for the largest batch, reused by every pass.

use danlu_kernels::{Backend, Buffer};

use crate::{ModelConfig, Projection};

/// Grow-only activations and scratch. One workspace serves one pass at a time.
///
/// A training pass keeps what each layer's backward needs; a pass without backward reuses one layer's.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(crate) layers: Vec<LayerActivations>,
    /// The residual stream after the last layer, `(N, C)`.
    pub(crate) hidden: Slot,
    /// Rows that reach the head `(M, C)`, before and after the final norm, with its `rstd (M)`.
    pub(crate) head_inp: Slot,
    pub(crate) head_norm: Slot,
    pub(crate) head_rstd: Slot,
    /// `(M, V)`, only where a caller asks for logits.
    pub(crate) logits: Slot,
    pub(crate) grads: Gradients,
}

/// What the backward of one layer reads.
#[derive(Debug, Default)]
pub(crate) struct LayerActivations {
    /// The residual stream at entry, `(N, C)`.
    pub inp: Slot,
    /// Input norm, `(N, C)` and `(N)`.
    pub norm1: Slot,
    pub rstd1: Slot,
    /// `(N, NH · HS)` and twice `(N, KH · HS)`, rotated.
    pub q: Slot,
    pub k: Slot,
    pub v: Slot,
    /// Attention output `(N, NH · HS)` and its log denominators `(N, NH)`.
    pub attn: Slot,
    pub lse: Slot,
    /// The residual stream between attention and MLP, `(N, C)`.
    pub res: Slot,
    /// Post-attention norm, `(N, C)` and `(N)`.
    pub norm2: Slot,
    pub rstd2: Slot,
    /// `(N, FF)` each.
    pub gate: Slot,
    pub up: Slot,
    pub act: Slot,
    /// `drop(inp) Aᵀ` of each projection, `(N, R)`.
    pub mid: [Slot; Projection::ALL.len()],
}

/// Gradients of activations; none outlives one layer but `hidden`.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    pub hidden: Slot,
    pub norm: Slot,
    pub head: Slot,
    pub q: Slot,
    pub k: Slot,
    pub v: Slot,
    pub attn: Slot,
    pub gate: Slot,
    pub up: Slot,
    pub act: Slot,
}

/// A buffer that grows to what was last asked of it.
#[derive(Debug, Default)]
pub(crate) struct Slot(Option<Buffer>);

impl Slot {
    /// Grows to at least `len` elements; the contents are then unspecified.
    pub fn reserve(&mut self, backend: &dyn Backend, len: usize) {
        if self.0.as_ref().is_none_or(|buffer| buffer.len() < len) {
            self.0 = None;
            self.0 = Some(backend.alloc(len));
        }
    }

    /// The buffer.
    pub fn get(&self) -> &Buffer {
        self.0.as_ref().expect("a slot is reserved before the pass that reads it")
    }

    /// As [`Slot::get`], to write.
    pub fn get_mut(&mut self) -> &mut Buffer {
        self.0.as_mut().expect("a slot is reserved before the pass that writes it")
    }
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for `n` tokens, the activations of `layers` layers and `head_rows` rows at the head.
    pub(crate) fn reserve(
        &mut self,
        config: &ModelConfig,
        backend: &dyn Backend,
        n: usize,
        layers: usize,
        head_rows: usize,
    ) {
        let c = config.hidden_size;
        if self.layers.len() < layers {
            self.layers.resize_with(layers, LayerActivations::default);
        }
        for layer in &mut self.layers[..layers] {
            layer.reserve(config, backend, n);
        }
        self.hidden.reserve(backend, n * c);
        self.head_inp.reserve(backend, head_rows * c);
        self.head_norm.reserve(backend, head_rows * c);
        self.head_rstd.reserve(backend, head_rows);
    }

    /// Makes room for the backward of `n` tokens with `head_rows` trained ones.
    pub(crate) fn reserve_gradients(
        &mut self,
        config: &ModelConfig,
        backend: &dyn Backend,
        n: usize,
        head_rows: usize,
    ) {
        let c = config.hidden_size;
        let (q, kv) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let grads = &mut self.grads;
        for slot in [&mut grads.hidden, &mut grads.norm] {
            slot.reserve(backend, n * c);
        }
        grads.head.reserve(backend, head_rows * c);
        for slot in [&mut grads.q, &mut grads.attn] {
            slot.reserve(backend, n * q);
        }
        for slot in [&mut grads.k, &mut grads.v] {
            slot.reserve(backend, n * kv);
        }
        for slot in [&mut grads.gate, &mut grads.up, &mut grads.act] {
            slot.reserve(backend, n * config.intermediate_size);
        }
    }
}

impl LayerActivations {
    fn reserve(&mut self, config: &ModelConfig, backend: &dyn Backend, n: usize) {
        let (c, ff, heads) = (config.hidden_size, config.intermediate_size, config.num_attention_heads);
        let (q, kv) = (heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        for slot in [&mut self.inp, &mut self.norm1, &mut self.res, &mut self.norm2] {
            slot.reserve(backend, n * c);
        }
        for slot in [&mut self.rstd1, &mut self.rstd2] {
            slot.reserve(backend, n);
        }
        for slot in [&mut self.q, &mut self.attn] {
            slot.reserve(backend, n * q);
        }
        for slot in [&mut self.k, &mut self.v] {
            slot.reserve(backend, n * kv);
        }
        self.lse.reserve(backend, n * heads);
        for slot in [&mut self.gate, &mut self.up, &mut self.act] {
            slot.reserve(backend, n * ff);
        }
    }
}
