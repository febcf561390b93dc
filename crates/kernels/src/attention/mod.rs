//! Causal grouped-query attention over segments. This module contains the reference implementation. The tiled
//! version is in `tiled`, and the version for generated tokens is in `decode`.

mod decode;
#[cfg(test)]
mod tests;
mod tiled;

pub(crate) use decode::{DecodeAttention, shared_len, task_len};
#[cfg(test)]
pub(crate) use tiled::scratch_bytes;
pub(crate) use tiled::{
    OperandFormat, backward_len, backward_task, backward_tasks, forward_len, forward_task, forward_tasks,
};

use std::ops::Range;

use crate::math::dot_f64;
use crate::{AttentionDims, AttentionOperands, AttentionScores, Segment};

/// [`AttentionOperands`] as slices of host memory.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// Queries `(N, NH, HS)`, after the rotary embedding.
    pub q: &'a [f32],
    /// Keys `(M, KH, HS)` of `M` rows, after the rotary embedding.
    pub k: &'a [f32],
    /// Values `(M, KH, HS)`.
    pub v: &'a [f32],
    /// The query rows of each sequence, and the keys that are visible to these rows.
    pub segments: &'a [Segment],
    /// Number of heads, and size of a head.
    pub dims: AttentionDims,
    /// Scale, window and cap of the scores.
    pub scores: AttentionScores,
}

impl<'a> AttentionInputs<'a> {
    /// Borrows the slices of `operands`.
    ///
    /// # Panics
    /// If a buffer is not in host memory.
    pub fn of(operands: &AttentionOperands<'a>) -> Self {
        let AttentionOperands { q, k, v, segments, dims, scores } = *operands;
        let [q, k, v] = [q, k, v].map(crate::Buffer::host_slice);
        Self { q, k, v, segments: segments.values(), dims, scores }
    }
}

/// Computes causal softmax attention inside each segment. With the scores `s` of the visible keys, as
/// [`AttentionScores`] defines them: `out = softmax(s) v` and `lse = log(sum(exp(s)))`.
///
/// | operand  | shape         | note                                         |
/// |----------|---------------|----------------------------------------------|
/// | `out`    | `(N, NH, HS)` |                                              |
/// | `lse`    | `(N, NH)`     | stored for backward                          |
/// | `q`      | `(N, NH, HS)` |                                              |
/// | `k`, `v` | `(M, KH, HS)` | query head `h` reads kv head `h / (NH / KH)` |
///
/// Source of the attention: Vaswani et al., 2017, equation 1, <https://arxiv.org/abs/1706.03762>. Source of
/// grouped queries: Ainslie et al., 2023, <https://arxiv.org/abs/2305.13245>.
///
/// # Panics
/// If a segment has more queries than keys, or reaches past the end of a slice. If `NH` is not a multiple of
/// `KH`.
pub fn forward(out: &mut [f32], lse: &mut [f32], inputs: AttentionInputs<'_>) {
    let AttentionInputs { q, k, v, segments, dims, scores: params } = inputs;
    let AttentionDims { heads, kv_heads, head_dim } = dims;
    check_dims(segments, dims);
    let scale = params.scale as f64;
    for segment in segments {
        for (i, head) in queries(segment, heads) {
            let row = (segment.q_start + i) * heads + head;
            let kv = |j: usize| ((segment.kv_start + j) * kv_heads + head / (heads / kv_heads)) * head_dim;
            let keys = params.visible(segment, i);
            let query = &q[row * head_dim..][..head_dim];
            let score = |j: usize| params.cap(scale * dot_f64(query, &k[kv(j)..][..head_dim])).0;
            let scores: Vec<f64> = keys.clone().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse[row] = (max + sum.ln()) as f32;
            let mut mixed = vec![0.0f64; head_dim];
            for (j, s) in keys.zip(&scores) {
                let weight = (s - max).exp() / sum;
                for (o, &v) in mixed.iter_mut().zip(&v[kv(j)..][..head_dim]) {
                    *o += weight * v as f64;
                }
            }
            for (o, mixed) in out[row * head_dim..][..head_dim].iter_mut().zip(mixed) {
                *o = mixed as f32;
            }
        }
    }
}

/// Computes the gradients of [`forward`]. The rows of the segments are overwritten.
///
/// `c` is the derivative of the softcap, or 1 without a softcap. With `p = exp(s - lse)` and
/// `ds = c · p · (dout · v - dout · out)`, the gradients are:
///
/// - `dq = scale · Σ ds k`
/// - `dk = scale · Σ ds q`
/// - `dv = Σ p dout`
///
/// The sums of `dk` and `dv` include every query to which the key is visible, and every query head that reads
/// the kv head.
///
/// # Panics
/// In the same cases as [`forward`].
pub fn backward(
    [dq, dk, dv]: [&mut [f32]; 3],
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    inputs: AttentionInputs<'_>,
) {
    let AttentionInputs { q, k, v, segments, dims, scores: params } = inputs;
    let AttentionDims { heads, kv_heads, head_dim } = dims;
    check_dims(segments, dims);
    let scale = params.scale as f64;
    for segment in segments {
        let kv_width = kv_heads * head_dim;
        let mut sum_k = vec![0.0f64; segment.kv_len * kv_width];
        let mut sum_v = sum_k.clone();
        for (i, head) in queries(segment, heads) {
            let row = (segment.q_start + i) * heads + head;
            let local = |j: usize| j * kv_width + head / (heads / kv_heads) * head_dim;
            let kv = |j: usize| segment.kv_start * kv_width + local(j);
            let query = &q[row * head_dim..][..head_dim];
            let dy = &dout[row * head_dim..][..head_dim];
            let delta = dot_f64(dy, &out[row * head_dim..][..head_dim]);
            let mut sum_q = vec![0.0f64; head_dim];
            for j in params.visible(segment, i) {
                let (key, value) = (&k[kv(j)..][..head_dim], &v[kv(j)..][..head_dim]);
                let (score, slope) = params.cap(scale * dot_f64(query, key));
                let p = (score - lse[row] as f64).exp();
                let ds = scale * slope * p * (dot_f64(dy, value) - delta);
                for d in 0..head_dim {
                    sum_q[d] += ds * key[d] as f64;
                    sum_k[local(j) + d] += ds * query[d] as f64;
                    sum_v[local(j) + d] += p * dy[d] as f64;
                }
            }
            narrow(&mut dq[row * head_dim..][..head_dim], &sum_q);
        }
        narrow(&mut dk[segment.kv_start * kv_width..][..sum_k.len()], &sum_k);
        narrow(&mut dv[segment.kv_start * kv_width..][..sum_v.len()], &sum_v);
    }
}

fn queries(segment: &Segment, heads: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    (0..segment.q_len).flat_map(move |i| (0..heads).map(move |head| (i, head)))
}

impl AttentionScores {
    /// Returns the keys of `segment` that are visible to query `i` of the segment.
    fn visible(&self, segment: &Segment, i: usize) -> Range<usize> {
        let end = segment.kv_len - segment.q_len + i + 1;
        end.saturating_sub(self.window.unwrap_or(end))..end
    }

    /// Returns the capped score and its derivative.
    fn cap(&self, score: f64) -> (f64, f64) {
        let Some(cap) = self.softcap.map(f64::from) else { return (score, 1.0) };
        let t = (score / cap).tanh();
        (cap * t, 1.0 - t * t)
    }
}

fn check_dims(segments: &[Segment], dims: AttentionDims) {
    assert!(dims.kv_heads > 0 && dims.heads.is_multiple_of(dims.kv_heads), "{dims:?}");
    for segment in segments {
        assert!(segment.q_len <= segment.kv_len, "{segment:?}");
    }
}

fn narrow(out: &mut [f32], inp: &[f64]) {
    for (o, &x) in out.iter_mut().zip(inp) {
        *o = x as f32;
    }
}
