//! Copies the query rows of a block into contiguous memory.

use super::task::Block;
use crate::simd::{Lanes, simd_fn};
use crate::{bf16_to_f32, f32_to_bf16};

simd_fn! {
    /// Copies the rows of a block from `inp (N, NH, HS)`, multiplied by `factor`. Each row is padded with
    /// zeros to `width`.
    pub(super) fn gather(out: &mut [f32], width: usize, inp: &[f32], block: Block, factor: f32) = gather_lanes
}

#[inline(always)]
fn gather_lanes<L: Lanes>(out: &mut [f32], width: usize, inp: &[f32], block: Block, factor: f32) {
    let factor = L::splat(factor);
    for (i, out) in out[..block.rows * width].chunks_exact_mut(width).enumerate() {
        let (inp, mut at) = (&inp[block.row(i)..][..block.head_dim], 0);
        while at < inp.len() {
            L::read(inp, at).mul(factor).write(out, at);
            at += L::COUNT;
        }
        out[at..].fill(0.0);
    }
}

simd_fn! {
    /// Rounds the values to bf16 precision.
    pub(super) fn round(values: &mut [f32]) = round_body
}

#[allow(
    clippy::extra_unused_type_parameters,
    reason = "plain loops: only what they are compiled for differs"
)]
#[inline(always)]
fn round_body<L>(values: &mut [f32]) {
    for v in values {
        *v = bf16_to_f32(f32_to_bf16(*v));
    }
}
