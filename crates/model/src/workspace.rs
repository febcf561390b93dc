//! Work buffers of a decoder, allocated once for the largest batch and reused by every pass.

use std::mem;

use danlu_kernels::{Backend, Buffer, Element};

use crate::activations::LayerActivations;
use crate::forward_pass::PassIndices;
use crate::{ActivationPolicy, ModelConfig, Projection};

/// Buffers for activations and scratch values. The buffers can only grow. Only one pass at a time can use a
/// workspace.
///
/// A training pass stores the activations that the policy of each layer requires. A pass without backward
/// reuses the buffers of one layer for all layers.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(crate) layers: Vec<LayerActivations>,
    /// One policy per layer. Layers beyond the end of the list have the default policy.
    policies: Vec<ActivationPolicy>,
    /// Shared buffers for all layers whose policy does not store every activation.
    shared: LayerActivations,
    /// The layer whose values are in `shared`.
    shared_holds: Option<usize>,
    /// Residual stream after the last layer, `(N, C)`. If only `M` head rows are computed, this buffer
    /// contains their residual stream before the last attention output is added.
    pub(crate) hidden: GrowBuffer,
    /// Attention output of the last layer, for the rows whose losses or logits are computed, `(M, NH · HS)`.
    pub(crate) head_attn: GrowBuffer,
    /// Residual stream of the rows whose losses or logits are computed, before the final norm, `(M, C)`.
    pub(crate) head_inp: GrowBuffer,
    /// Output of the final norm, `(M, C)`.
    pub(crate) head_norm: GrowBuffer,
    /// `rstd` of the final norm, `(M)`.
    pub(crate) head_rstd: GrowBuffer,
    /// Logits `(M, V)`. Used only if the caller requests logits.
    pub(crate) logits: GrowBuffer,
    /// Logits in host memory that a caller no longer needs.
    pub(crate) spare_logits: Vec<f32>,
    /// Loss of each row with a label, `(M)`.
    pub(crate) losses: GrowBuffer,
    /// Factor by which the gradient of each loss is multiplied, `(M)`.
    pub(crate) dloss: GrowBuffer,
    /// Noise of the embeddings, `(N, C)`. Used only if training adds noise.
    pub(crate) noise: GrowBuffer,
    pub(crate) scratch: LayerScratch,
    pub(crate) grads: Gradients,
    /// Every pass reuses these buffers, because CUDA graphs require addresses that do not change.
    pub(crate) indices: PassIndices,
}

/// Buffers that one layer after another uses.
#[derive(Debug, Default)]
pub(crate) struct LayerScratch {
    /// Keys and values, copied for sequences that share rows, `(M, KH · HS)`. There is one row per token of
    /// every sequence.
    pub kv: [GrowBuffer; 2],
    /// Gradients of the copied keys and values.
    pub dkv: [GrowBuffer; 2],
    /// Output of a fused projection, or its gradient.
    pub fused: GrowBuffer,
}

/// Gradients of activations. Only `hidden` is still needed after the backward pass of a layer.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    pub hidden: GrowBuffer,
    pub norm: GrowBuffer,
    /// Gradient of the final norm's input, `(M, C)`. The backward pass of the last layer starts with this
    /// gradient.
    pub head: GrowBuffer,
    pub q: GrowBuffer,
    pub k: GrowBuffer,
    pub v: GrowBuffer,
    /// Gradients of queries and keys before their norms. Used only if the model has these norms.
    pub q_raw: GrowBuffer,
    pub k_raw: GrowBuffer,
    pub attn: GrowBuffer,
    /// Gradient of the output of attention or MLP before the norm that follows. Used only if the model has
    /// this norm.
    pub proj: GrowBuffer,
    pub gate: GrowBuffer,
    pub up: GrowBuffer,
    pub act: GrowBuffer,
    pub factors: FactorScratch,
}

/// Buffers for the backward pass of DoRA. Each array has one buffer for each projection of a group, and a
/// group has at most three projections.
#[derive(Debug, Default)]
pub(crate) struct FactorScratch {
    /// Outputs before they are scaled.
    pub out: [GrowBuffer; 3],
    /// Low-rank intermediates of these outputs.
    pub mid: [GrowBuffer; 3],
    /// Gradients of the outputs in `out`.
    pub dout: [GrowBuffer; 3],
}

/// A buffer that can grow but never shrinks.
#[derive(Debug, Default)]
pub(crate) struct GrowBuffer(Option<Buffer>);

impl GrowBuffer {
    /// Grows the buffer to at least `rows` rows of `width` elements. The contents are unspecified afterwards.
    pub fn reserve(&mut self, backend: &dyn Backend, rows: usize, width: usize, element: Element) {
        Self::reserve_group(&mut [self], backend, rows, &[width], element);
    }

    /// Grows several buffers that one operation reads or writes. See [`GrowBuffer::reserve`].
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

    /// Returns an empty workspace with these policies, one per layer. All other layers have the default
    /// policy.
    pub fn with_policies(policies: Vec<ActivationPolicy>) -> Self {
        Self { policies, ..Self::default() }
    }

    /// Frees every buffer. The policies do not change.
    pub fn clear(&mut self) {
        *self = Self::with_policies(mem::take(&mut self.policies));
    }

    /// Takes logits that are no longer needed. The next call of [`Decoder::prefill`](crate::Decoder::prefill)
    /// or [`Decoder::decode`](crate::Decoder::decode) reuses their memory.
    pub fn recycle_logits(&mut self, logits: Vec<f32>) {
        self.spare_logits = logits;
    }

    pub(crate) fn policy(&self, layer: usize) -> ActivationPolicy {
        self.policies.get(layer).copied().unwrap_or_default()
    }

    /// Moves the activations of a layer out of the workspace. Shared buffers replace the buffers that the
    /// layer does not store.
    pub(crate) fn take_layer(&mut self, layer: usize) -> LayerActivations {
        let (mut act, policy) = (mem::take(&mut self.layers[layer]), self.policy(layer));
        act.exchange(&mut self.shared, policy);
        act
    }

    /// Moves the activations that [`Workspace::take_layer`] returned back into the workspace.
    pub(crate) fn put_layer(&mut self, layer: usize, mut act: LayerActivations) {
        let policy = self.policy(layer);
        act.exchange(&mut self.shared, policy);
        self.layers[layer] = act;
        if policy != ActivationPolicy::KeepAll {
            self.shared_holds = Some(layer);
        }
    }

    /// Returns whether all activations of a layer are still in the workspace.
    pub(crate) fn holds(&self, layer: usize) -> bool {
        self.policy(layer) == ActivationPolicy::KeepAll || self.shared_holds == Some(layer)
    }

    /// Reserves buffers for `n` rows, for the activations of `layers` layers, and for `head_rows` rows whose
    /// losses or logits are computed. Activations that the policies do not store get the buffers of a single
    /// layer, which all layers share.
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
        let fused = [Projection::QkvProj, Projection::GateUpProj]
            .into_iter()
            .filter(|&fused| config.projections().any(|projection| projection == fused));
        if let Some(width) = fused.map(|fused| config.projection_shape(fused).0).max() {
            self.scratch.fused.reserve(backend, n, width, Element::Activation);
        }
        let heads = config.num_attention_heads * config.head_dim;
        self.hidden.reserve(backend, rows_behind(layers - 1), c, Element::Residual);
        self.head_attn.reserve(backend, head_rows, heads, Element::Activation);
        self.head_inp.reserve(backend, head_rows, c, Element::Residual);
        self.head_norm.reserve(backend, head_rows, c, Element::Activation);
        self.head_rstd.reserve(backend, head_rows, 1, Element::Exact);
    }

    /// Reserves the low-rank intermediates of every layer. `rank` returns the rank of a projection, or 0 if
    /// the projection has no adapter. The numbers of rows are those of [`Workspace::reserve`].
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
                let is_behind = layer > 0 && layer + 1 == layers && !projection.is_before_attention();
                let rows = if is_behind { head_rows } else { n };
                let mid = &mut act.mid[projection.index()];
                mid.reserve(backend, rows, rank(layer, projection), Element::Activation);
            }
            self.put_layer(layer, act);
        }
        self.shared_holds = None;
    }

    /// Reserves the buffers of DoRA's backward pass for `n` rows. `rank` is that of
    /// [`Workspace::reserve_mids`].
    pub(crate) fn reserve_factors(
        &mut self,
        config: &ModelConfig,
        backend: &dyn Backend,
        n: usize,
        rank: &dyn Fn(usize, Projection) -> usize,
    ) {
        let FactorScratch { out, mid, dout } = &mut self.grads.factors;
        let layers = 0..self.layers.len();
        let groups = layers.flat_map(|layer| config.projection_groups().map(|group| (layer, group)));
        for (layer, group) in groups {
            if group.iter().all(|&projection| rank(layer, projection) == 0) {
                continue;
            }
            for (i, &projection) in group.iter().enumerate() {
                let (width, rank) = (config.projection_shape(projection).0, rank(layer, projection));
                out[i].reserve(backend, n, width, Element::Activation);
                mid[i].reserve(backend, n, rank, Element::Activation);
                dout[i].reserve(backend, n, width, Element::Activation);
            }
        }
    }

    /// Reserves buffers for `keys` copied keys and for their gradients. If `keys` is 0, nothing is reserved.
    pub(crate) fn reserve_prefix_kv(&mut self, config: &ModelConfig, backend: &dyn Backend, keys: usize) {
        if keys == 0 {
            return;
        }
        let LayerScratch { kv, dkv, .. } = &mut self.scratch;
        for slot in kv.iter_mut().chain(dkv) {
            let width = config.num_key_value_heads * config.head_dim;
            slot.reserve(backend, keys, width, Element::Activation);
        }
    }

    /// Reserves the backward buffers for `n` rows, of which `head_rows` have a loss.
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
