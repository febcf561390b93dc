//! Work buffers of a decoder. They are allocated once for the largest batch and reused by every pass.

use std::mem;

use danlu_kernels::{Backend, Buffer, Element};

use crate::activations::LayerActivations;
use crate::forward_pass::PassIndices;
use crate::{ActivationPolicy, ModelConfig, Projection};

/// Grow-only activations and scratch. One workspace serves one pass at a time.
///
/// A training pass stores the activations of each layer that its policy names. A pass without backward reuses
/// the buffers of one layer.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(crate) layers: Vec<LayerActivations>,
    /// One per layer. Further layers have the default policy.
    policies: Vec<ActivationPolicy>,
    /// Buffers for all layers with a policy that does not store everything.
    shared: LayerActivations,
    /// The layer whose values are in `shared`.
    shared_holds: Option<usize>,
    /// Residual stream after the last layer, `(N, C)`. If rows are selected for the head: the residual stream
    /// of these `M` rows, before the last attention output is added.
    pub(crate) hidden: GrowBuffer,
    /// Attention output of the last layer for the rows that reach the head, `(M, NH · HS)`.
    pub(crate) head_attn: GrowBuffer,
    /// Rows that reach the head, `(M, C)`, before and after the final norm, with the norm's `rstd (M)`.
    pub(crate) head_inp: GrowBuffer,
    pub(crate) head_norm: GrowBuffer,
    pub(crate) head_rstd: GrowBuffer,
    /// `(M, V)`, only if the caller requests logits.
    pub(crate) logits: GrowBuffer,
    /// Loss of each row that reaches the head, and the gradient of each loss, `(M)`.
    pub(crate) losses: GrowBuffer,
    pub(crate) dloss: GrowBuffer,
    pub(crate) prefix_kv: PrefixKv,
    pub(crate) grads: Gradients,
    /// Reused by every pass, so that their addresses on a device do not change.
    pub(crate) indices: PassIndices,
}

/// Keys and values of one layer, copied for sequences with shared rows, `(M, KH · HS)`: one row per token of
/// every sequence.
#[derive(Debug, Default)]
pub(crate) struct PrefixKv {
    pub kv: [GrowBuffer; 2],
    /// Gradients of the copies.
    pub dkv: [GrowBuffer; 2],
}

/// Gradients of activations. Only `hidden` outlives a layer.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    pub hidden: GrowBuffer,
    pub norm: GrowBuffer,
    /// Gradient of the rows that reach the head, `(M, C)`. The last layer starts from it.
    pub head: GrowBuffer,
    pub q: GrowBuffer,
    pub k: GrowBuffer,
    pub v: GrowBuffer,
    /// Gradients of queries and keys before their norms, if the model has them.
    pub q_raw: GrowBuffer,
    pub k_raw: GrowBuffer,
    pub attn: GrowBuffer,
    /// Gradient of an output of attention or MLP before the norm that follows, if the model has one.
    pub proj: GrowBuffer,
    pub gate: GrowBuffer,
    pub up: GrowBuffer,
    pub act: GrowBuffer,
    pub factors: FactorScratch,
}

/// Buffers for the backward pass of DoRA, for up to three projections of one input.
#[derive(Debug, Default)]
pub(crate) struct FactorScratch {
    /// Outputs before they are scaled, and their low-rank intermediate values.
    pub out: [GrowBuffer; 3],
    pub mid: [GrowBuffer; 3],
    /// Gradients of these outputs.
    pub dout: [GrowBuffer; 3],
}

/// A grow-only buffer.
#[derive(Debug, Default)]
pub(crate) struct GrowBuffer(Option<Buffer>);

impl GrowBuffer {
    /// Grows to at least `rows` rows of `width`. The contents are unspecified afterwards.
    pub fn reserve(&mut self, backend: &dyn Backend, rows: usize, width: usize, element: Element) {
        Self::reserve_group(&mut [self], backend, rows, &[width], element);
    }

    /// As [`GrowBuffer::reserve`], for buffers that one operation reads or writes.
    pub fn reserve_group(
        group: &mut [&mut Self],
        backend: &dyn Backend,
        rows: usize,
        widths: &[usize],
        element: Element,
    ) {
        let is_short = |(slot, width): (&&mut Self, &usize)| {
            slot.0.as_ref().is_none_or(|buffer| buffer.len() < rows * width)
        };
        if group.iter().zip(widths).any(is_short) {
            group.iter_mut().for_each(|slot| slot.0 = None);
            for (slot, buffer) in group.iter_mut().zip(backend.alloc_rows(rows, widths, element)) {
                slot.0 = Some(buffer);
            }
        }
    }

    pub fn get(&self) -> &Buffer {
        self.0.as_ref().expect("a slot is reserved before the pass that reads it")
    }

    pub fn get_mut(&mut self) -> &mut Buffer {
        self.0.as_mut().expect("a slot is reserved before the pass that writes it")
    }
}

impl Workspace {
    /// Returns an empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns an empty workspace with these policies. Further layers have the default policy.
    pub fn with_policies(policies: Vec<ActivationPolicy>) -> Self {
        Self { policies, ..Self::default() }
    }

    /// Frees every buffer; the policies stay.
    pub fn clear(&mut self) {
        *self = Self::with_policies(mem::take(&mut self.policies));
    }

    /// Returns the policy of a layer.
    pub(crate) fn policy(&self, layer: usize) -> ActivationPolicy {
        self.policies.get(layer).copied().unwrap_or_default()
    }

    /// Takes the activations of a layer. Shared buffers fill in for those that the layer does not store.
    pub(crate) fn take_layer(&mut self, layer: usize) -> LayerActivations {
        let (mut act, policy) = (mem::take(&mut self.layers[layer]), self.policy(layer));
        act.exchange(&mut self.shared, policy);
        act
    }

    /// Puts back the activations that [`Workspace::take_layer`] returned.
    pub(crate) fn put_layer(&mut self, layer: usize, mut act: LayerActivations) {
        let policy = self.policy(layer);
        act.exchange(&mut self.shared, policy);
        self.layers[layer] = act;
        if policy != ActivationPolicy::KeepAll {
            self.shared_holds = Some(layer);
        }
    }

    /// Returns whether all activations of a layer are still valid.
    pub(crate) fn holds(&self, layer: usize) -> bool {
        self.policy(layer) == ActivationPolicy::KeepAll || self.shared_holds == Some(layer)
    }

    /// Reserves `n` rows, the activations of `layers` layers and `head_rows` rows at the head. All layers
    /// share the buffers of a single layer.
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
        let rows_behind = |layer| if layer > 0 && layer + 1 == layers { head_rows } else { n };
        for layer in 0..layers {
            let (rows, policy) = ((n, rows_behind(layer)), self.policy(layer));
            self.layers[layer].reserve(config, backend, rows, policy, false);
            self.shared.reserve(config, backend, rows, policy, true);
        }
        let heads = config.num_attention_heads * config.head_dim;
        self.hidden.reserve(backend, rows_behind(layers - 1), c, Element::Residual);
        self.head_attn.reserve(backend, head_rows, heads, Element::Activation);
        self.head_inp.reserve(backend, head_rows, c, Element::Residual);
        self.head_norm.reserve(backend, head_rows, c, Element::Activation);
        self.head_rstd.reserve(backend, head_rows, 1, Element::Exact);
    }

    /// Reserves the low-rank intermediates of every layer. `rank` returns the rank of a projection, 0 without
    /// an adapter. Rows are those of [`Workspace::reserve`].
    pub(crate) fn reserve_mids(
        &mut self,
        backend: &dyn Backend,
        (n, head_rows): (usize, usize),
        rank: &dyn Fn(usize, Projection) -> usize,
    ) {
        let layers = self.layers.len();
        for layer in 0..layers {
            let mut act = self.take_layer(layer);
            for projection in Projection::ALL {
                let is_behind =
                    layer > 0 && layer + 1 == layers && !Projection::GROUPS[0].contains(&projection);
                let rows = if is_behind { head_rows } else { n };
                let mid = &mut act.mid[projection.index()];
                mid.reserve(backend, rows, rank(layer, projection), Element::Activation);
            }
            self.put_layer(layer, act);
        }
        self.shared_holds = None;
    }

    /// Reserves `keys` copied keys and their gradients, if there are any.
    pub(crate) fn reserve_prefix_kv(&mut self, config: &ModelConfig, backend: &dyn Backend, keys: usize) {
        if keys == 0 {
            return;
        }
        let PrefixKv { kv, dkv } = &mut self.prefix_kv;
        for slot in kv.iter_mut().chain(dkv) {
            let width = config.num_key_value_heads * config.head_dim;
            slot.reserve(backend, keys, width, Element::Activation);
        }
    }

    /// Reserves the backward buffers of `n` rows, `head_rows` of them trained.
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
        let ff = config.intermediate_size;
        grads.hidden.reserve(backend, n, c, Element::Residual);
        grads.norm.reserve(backend, n, c, Element::Activation);
        grads.head.reserve(backend, head_rows, c, Element::Residual);
        if config.architecture.qk_norm.is_some() {
            let widths = [(&mut grads.q, q), (&mut grads.k, kv), (&mut grads.v, kv)];
            for (buffer, width) in widths.into_iter().chain([(&mut grads.q_raw, q), (&mut grads.k_raw, kv)]) {
                buffer.reserve(backend, n, width, Element::Activation);
            }
        } else {
            let qkv = &mut [&mut grads.q, &mut grads.k, &mut grads.v];
            GrowBuffer::reserve_group(qkv, backend, n, &[q, kv, kv], Element::Activation);
        }
        let norms = config.architecture.norms;
        if norms.after_attention.is_some() || norms.after_mlp.is_some() {
            grads.proj.reserve(backend, n, c, Element::Residual);
        }
        grads.attn.reserve(backend, n, q, Element::Activation);
        let gate_up = &mut [&mut grads.gate, &mut grads.up];
        GrowBuffer::reserve_group(gate_up, backend, n, &[ff, ff], Element::Activation);
        grads.act.reserve(backend, n, ff, Element::Activation);
        self.dloss.reserve(backend, head_rows, 1, Element::Exact);
    }
}
