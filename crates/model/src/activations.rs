//! The activations that a layer stores or recomputes for its backward pass.

use std::fmt;
use std::mem;

use danlu_kernels::{Backend, Element};

use crate::workspace::GrowBuffer;
use crate::{ModelConfig, Projection};

/// The activations that a layer stores between its forward and its backward pass. No policy changes a result:
/// recomputed values have the same bits, and a dropout mask is computed again from its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ActivationPolicy {
    /// Stores every activation.
    KeepAll,
    /// Stores the results of attention and of all matrix multiplications. The layer recomputes the norms
    /// before attention and before the MLP, and the product of the activated gate and `up`.
    #[default]
    KeepSome,
    /// Stores the input of the layer, and `drop(inp) Aᵀ` of `down_proj`. If a norm follows `down_proj`, also
    /// stores the output of `down_proj`. The layer recomputes all other activations before its backward pass.
    Recompute,
}

impl ActivationPolicy {
    /// Returns the policy's name in a memory plan: `keep all`.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeepAll => "keep all",
            Self::KeepSome => "keep some",
            Self::Recompute => "recompute",
        }
    }
}

impl fmt::Display for ActivationPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Buffers for the backward pass of one layer, which is a block of attention and MLP.
#[derive(Debug, Default)]
pub(crate) struct LayerActivations {
    /// Residual stream at the start of the block, `(N, C)`.
    pub inp: GrowBuffer,
    /// Output of the norm before attention, `(N, C)`.
    pub norm1: GrowBuffer,
    /// `rstd` of the norm before attention, `(N)`.
    pub rstd1: GrowBuffer,
    /// Queries after RoPE, `(N, NH · HS)`.
    pub q: GrowBuffer,
    /// Keys after RoPE, `(N, KH · HS)`.
    pub k: GrowBuffer,
    /// Values, `(N, KH · HS)`.
    pub v: GrowBuffer,
    /// Queries before their norm. Used only if the model has such a norm.
    pub q_raw: GrowBuffer,
    /// Keys before their norm.
    pub k_raw: GrowBuffer,
    /// `rstd` of the norm of queries.
    pub q_rstd: GrowBuffer,
    /// `rstd` of the norm of keys.
    pub k_rstd: GrowBuffer,
    /// Attention output, `(N, NH · HS)`.
    pub attn: GrowBuffer,
    /// Logarithms of the softmax denominators, `(N, NH)`.
    pub lse: GrowBuffer,
    /// Buffers of the second half of the block.
    pub mlp: MlpActivations,
    /// `drop(inp) Aᵀ` of each projection that has low-rank matrices.
    pub mid: Mids,
}

/// Buffers of the second half of the block (after attention), with `M` rows. In the last layer, `M` is the
/// number of rows whose losses or logits are computed. In the other layers, `M = N`.
#[derive(Debug, Default)]
pub(crate) struct MlpActivations {
    /// Residual stream between attention and MLP, `(M, C)`.
    pub res: GrowBuffer,
    /// Output of the norm before the MLP, `(M, C)`.
    pub norm2: GrowBuffer,
    /// `rstd` of the norm before the MLP, `(M)`.
    pub rstd2: GrowBuffer,
    /// Output of the gate projection, `(M, FF)`.
    pub gate: GrowBuffer,
    /// Output of the up projection, `(M, FF)`.
    pub up: GrowBuffer,
    /// Activated gate times `up`, `(M, FF)`.
    pub act: GrowBuffer,
    /// Attention output before the norm that follows it, `(M, C)`. Used only if the model has this norm.
    pub attn_proj: GrowBuffer,
    /// `rstd` of the norm that follows attention, `(M)`.
    pub attn_rstd: GrowBuffer,
    /// MLP output before the norm that follows it, `(M, C)`. Used only if the model has this norm.
    pub mlp_proj: GrowBuffer,
    /// `rstd` of the norm that follows the MLP, `(M)`.
    pub mlp_rstd: GrowBuffer,
}

/// `drop(inp) Aᵀ` of each [`Projection`]. The shape is `(N, R)` for q, k and v, and `(M, R)` for the other
/// projections.
pub(crate) type Mids = [GrowBuffer; Projection::ALL.len()];

/// The policies that store a buffer. For example, `KeepSome` means that `KeepAll` and `KeepSome` store the
/// buffer, and that `Recompute` does not.
type KeptUnder = ActivationPolicy;

/// Buffers that one operation reads or writes, with the same number of rows and the same element type.
struct BufferGroup<'a> {
    buffers: Vec<&'a mut GrowBuffer>,
    /// Number of elements in a row of each buffer.
    widths: Vec<usize>,
    element: Element,
    kept_under: KeptUnder,
}

impl<'a> BufferGroup<'a> {
    fn one(buffer: &'a mut GrowBuffer, width: usize, element: Element, kept_under: KeptUnder) -> Self {
        Self { buffers: vec![buffer], widths: vec![width], element, kept_under }
    }
}

impl LayerActivations {
    /// Returns the buffers of this struct except `mid` and `mlp`.
    fn groups(&mut self, config: &ModelConfig) -> Vec<BufferGroup<'_>> {
        use ActivationPolicy::*;
        use Element::{Activation, Exact, Residual};
        let (c, heads) = (config.hidden_size, config.num_attention_heads);
        let (q, kv) = (heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let norms = config.architecture.norms;
        let mut groups = vec![
            BufferGroup::one(&mut self.inp, c, Residual, Recompute),
            BufferGroup::one(&mut self.attn, q, Activation, KeepSome),
            BufferGroup::one(&mut self.lse, heads, Exact, KeepSome),
        ];
        if norms.before_attention.is_some() {
            groups.push(BufferGroup::one(&mut self.norm1, c, Activation, KeepAll));
            groups.push(BufferGroup::one(&mut self.rstd1, 1, Exact, KeepSome));
        }
        let Some([q_norm, k_norm]) = config.qk_norm_widths() else {
            groups.push(BufferGroup {
                buffers: vec![&mut self.q, &mut self.k, &mut self.v],
                widths: vec![q, kv, kv],
                element: Activation,
                kept_under: KeepSome,
            });
            return groups;
        };
        // Buffers that share an allocation have gaps between their rows. The norm of each head needs rows
        // without gaps, so each of these buffers has its own allocation.
        for (buffer, width, element) in [
            (&mut self.q, q, Activation),
            (&mut self.k, kv, Activation),
            (&mut self.v, kv, Activation),
            (&mut self.q_raw, q, Activation),
            (&mut self.k_raw, kv, Activation),
            (&mut self.q_rstd, q / q_norm, Exact),
            (&mut self.k_rstd, kv / k_norm, Exact),
        ] {
            groups.push(BufferGroup::one(buffer, width, element, KeepSome));
        }
        groups
    }

    /// Reserves the buffers that `policy` stores or, if `shared` is true, those that `policy` does not store.
    /// The buffers of the second half of the block get `m` rows, and all other buffers get `n` rows.
    pub fn reserve(
        &mut self,
        config: &ModelConfig,
        backend: &dyn Backend,
        (n, m): (usize, usize),
        policy: ActivationPolicy,
        shared: bool,
    ) {
        let reserve = |mut group: BufferGroup<'_>, rows: usize| {
            if (policy <= group.kept_under) != shared {
                let BufferGroup { buffers, widths, element, .. } = &mut group;
                GrowBuffer::reserve_group(buffers, backend, rows, widths, *element);
            }
        };
        self.groups(config).into_iter().for_each(|group| reserve(group, n));
        self.mlp.groups(config).into_iter().for_each(|group| reserve(group, m));
    }

    /// Swaps the buffers that `policy` does not store with those of `shared`.
    pub fn exchange(&mut self, shared: &mut Self, policy: ActivationPolicy) {
        match policy {
            ActivationPolicy::KeepAll => {}
            ActivationPolicy::KeepSome => {
                mem::swap(&mut self.norm1, &mut shared.norm1);
                mem::swap(&mut self.mlp.norm2, &mut shared.mlp.norm2);
                mem::swap(&mut self.mlp.act, &mut shared.mlp.act);
            }
            ActivationPolicy::Recompute => {
                mem::swap(self, shared);
                mem::swap(&mut self.inp, &mut shared.inp);
                // One operation computes `drop(inp) Aᵀ` together with the output of the projection. The layer
                // stores `drop(inp) Aᵀ` of `down_proj`, so that this last matrix multiplication of the block
                // is not repeated.
                let down = Projection::DownProj.index();
                mem::swap(&mut self.mid[down], &mut shared.mid[down]);
                // If a norm follows, the layer also stores the output of that matrix multiplication.
                mem::swap(&mut self.mlp.mlp_proj, &mut shared.mlp.mlp_proj);
                mem::swap(&mut self.mlp.mlp_rstd, &mut shared.mlp.mlp_rstd);
            }
        }
    }
}

impl MlpActivations {
    fn groups(&mut self, config: &ModelConfig) -> Vec<BufferGroup<'_>> {
        use ActivationPolicy::*;
        use Element::{Activation, Exact, Residual};
        let (c, ff) = (config.hidden_size, config.intermediate_size);
        let gate_up = BufferGroup {
            buffers: vec![&mut self.gate, &mut self.up],
            widths: vec![ff, ff],
            element: Activation,
            kept_under: KeepSome,
        };
        let norms = config.architecture.norms;
        let mut groups = vec![
            BufferGroup::one(&mut self.res, c, Residual, KeepSome),
            gate_up,
            BufferGroup::one(&mut self.act, ff, Activation, KeepAll),
        ];
        if norms.before_mlp.is_some() {
            groups.push(BufferGroup::one(&mut self.norm2, c, Activation, KeepAll));
            groups.push(BufferGroup::one(&mut self.rstd2, 1, Exact, KeepSome));
        }
        if norms.after_attention.is_some() {
            groups.push(BufferGroup::one(&mut self.attn_proj, c, Residual, KeepSome));
            groups.push(BufferGroup::one(&mut self.attn_rstd, 1, Exact, KeepSome));
        }
        if norms.after_mlp.is_some() {
            groups.push(BufferGroup::one(&mut self.mlp_proj, c, Residual, Recompute));
            groups.push(BufferGroup::one(&mut self.mlp_rstd, 1, Exact, Recompute));
        }
        groups
    }
}
