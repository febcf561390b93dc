//! The work buffers of a decoder, allocated once for the largest batch and reused by every pass.

use std::mem;

use danlu_kernels::{Backend, Buffer, Element};

use crate::activations::LayerActivations;
use crate::forward_pass::PassIndices;
use crate::{ActivationPolicy, ModelConfig};

/// Grow-only activations and scratch. One workspace serves one pass at a time.
///
/// A training pass stores the activations of each layer by its policy. A pass without backward reuses one
/// layer's.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(crate) layers: Vec<LayerActivations>,
    /// One for each layer. Layers beyond them have the default.
    policies: Vec<ActivationPolicy>,
    /// Buffers shared by the layers that do not store everything.
    shared: LayerActivations,
    /// The layer whose values stand in `shared`.
    shared_holds: Option<usize>,
    /// The residual stream after the last layer `(N, C)`. If rows are selected for the head: of these `M`
    /// rows, before the last attention is added.
    pub(crate) hidden: GrowBuffer,
    /// The last layer's attention output on the rows that reach the head, `(M, NH · HS)`.
    pub(crate) head_attn: GrowBuffer,
    /// Rows that reach the head `(M, C)`, before and after the final norm, with its `rstd (M)`.
    pub(crate) head_inp: GrowBuffer,
    pub(crate) head_norm: GrowBuffer,
    pub(crate) head_rstd: GrowBuffer,
    /// `(M, V)`, only if the caller needs logits.
    pub(crate) logits: GrowBuffer,
    /// The loss of each of those rows, and the gradient of each loss, `(M)`.
    pub(crate) losses: GrowBuffer,
    pub(crate) dloss: GrowBuffer,
    pub(crate) prefix_kv: PrefixKv,
    pub(crate) grads: Gradients,
    /// Passes take them in turn, so that their addresses on a device do not change.
    pub(crate) indices: PassIndices,
}

/// Copies of one layer's keys and values for sequences that share rows, `(M, KH · HS)`: a row for every token
/// of every sequence.
#[derive(Debug, Default)]
pub(crate) struct PrefixKv {
    pub kv: [GrowBuffer; 2],
    /// Their gradients.
    pub dkv: [GrowBuffer; 2],
}

/// Gradients of activations. Only `hidden` lives longer than one layer.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    pub hidden: GrowBuffer,
    pub norm: GrowBuffer,
    /// Of the rows that reach the head, `(M, C)`: what the last layer begins with.
    pub head: GrowBuffer,
    pub q: GrowBuffer,
    pub k: GrowBuffer,
    pub v: GrowBuffer,
    pub attn: GrowBuffer,
    pub gate: GrowBuffer,
    pub up: GrowBuffer,
    pub act: GrowBuffer,
}

/// A grow-only buffer.
#[derive(Debug, Default)]
pub(crate) struct GrowBuffer(Option<Buffer>);

impl GrowBuffer {
    /// Grows to at least `rows` rows of `width`; the contents are then unspecified.
    pub fn reserve(&mut self, backend: &dyn Backend, rows: usize, width: usize, element: Element) {
        Self::reserve_group(&mut [self], backend, rows, &[width], element);
    }

    /// As [`GrowBuffer::reserve`], for buffers that one operation reads or writes together.
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

    /// The buffer.
    pub fn get(&self) -> &Buffer {
        self.0.as_ref().expect("a slot is reserved before the pass that reads it")
    }

    /// As [`GrowBuffer::get`], to write.
    pub fn get_mut(&mut self) -> &mut Buffer {
        self.0.as_mut().expect("a slot is reserved before the pass that writes it")
    }
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty workspace with these policies. Layers beyond them have the default policy.
    pub fn with_policies(policies: Vec<ActivationPolicy>) -> Self {
        Self { policies, ..Self::default() }
    }

    /// Gives every buffer back; the policies stay.
    pub fn clear(&mut self) {
        *self = Self::with_policies(mem::take(&mut self.policies));
    }

    /// The policy of a layer.
    pub(crate) fn policy(&self, layer: usize) -> ActivationPolicy {
        self.policies.get(layer).copied().unwrap_or_default()
    }

    /// Takes a layer's activations out, with shared buffers in place of those that it does not store.
    pub(crate) fn take_layer(&mut self, layer: usize) -> LayerActivations {
        let (mut act, policy) = (mem::take(&mut self.layers[layer]), self.policy(layer));
        act.exchange(&mut self.shared, policy);
        act
    }

    /// Puts back the activations from [`Workspace::take_layer`].
    pub(crate) fn put_layer(&mut self, layer: usize, mut act: LayerActivations) {
        let policy = self.policy(layer);
        act.exchange(&mut self.shared, policy);
        self.layers[layer] = act;
        if policy != ActivationPolicy::KeepAll {
            self.shared_holds = Some(layer);
        }
    }

    /// Whether all activations of a layer are still valid.
    pub(crate) fn holds(&self, layer: usize) -> bool {
        self.policy(layer) == ActivationPolicy::KeepAll || self.shared_holds == Some(layer)
    }

    /// Makes room for `n` rows, the activations of `layers` layers and `head_rows` rows at the head. A single
    /// layer's buffers serve one layer after the other.
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

    /// Makes room for `keys` copied keys and their gradients, where there are any.
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

    /// Makes room for the backward of `n` rows with `head_rows` trained ones.
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
        let qkv = &mut [&mut grads.q, &mut grads.k, &mut grads.v];
        GrowBuffer::reserve_group(qkv, backend, n, &[q, kv, kv], Element::Activation);
        grads.attn.reserve(backend, n, q, Element::Activation);
        let gate_up = &mut [&mut grads.gate, &mut grads.up];
        GrowBuffer::reserve_group(gate_up, backend, n, &[ff, ff], Element::Activation);
        grads.act.reserve(backend, n, ff, Element::Activation);
        self.dloss.reserve(backend, head_rows, 1, Element::Exact);
    }
}
