//! Forward pass of one task: for each block of queries, a loop over all visible keys.

use super::gather::gather;
use super::operand_format::{OperandFormat, StridedOperand, TileShape};
use super::scratch::{total, with_buffers};
use super::task::{Block, Shape, Task};
use super::{KEYS, QUERIES, cap_lanes};
use crate::attention::AttentionInputs;
use crate::gemm::Prefetch;
use crate::simd::{Lanes, WIDEST, simd_fn};
use crate::softmax::{exponentials, scale};
use crate::{AttentionDims, bf16_to_f32, f32_to_bf16};

/// Computes one task of a forward pass.
///
/// # Safety
/// `out` and `lse` must be valid for writing every row of the task's segment. No other task may write the
/// same kv head of the same queries at the same time.
pub(crate) unsafe fn forward_task(
    format: OperandFormat,
    out: *mut f32,
    lse: *mut f32,
    inputs: AttentionInputs<'_>,
    task: &Task,
) {
    let AttentionInputs { q, k, v, dims, scores: params, .. } = inputs;
    let shape = &Shape::of(task, dims, format, params.window);
    let (head_dim, width) = (shape.head_dim, shape.width);
    with_buffers(lens(format, shape), |[q_rows, q_pairs, k_panels, v_rows, weighted, scores, p_pairs]| {
        format.pack_panels(k_panels, shape.key_rows(k));
        format.pack_by_columns(v_rows, width, shape.key_rows(v));
        let mut blocks = shape.blocks().peekable();
        while let Some(block) = blocks.next() {
            let (rows, panels) = (block.rows, block.keys().div_ceil(KEYS));
            let next = blocks.peek().map_or(Prefetch::NONE, |next| next.prefetch(q.as_ptr()));
            let q_rows = &mut q_rows[..rows * width];
            gather(format.isa, q_rows, width, q, block, params.scale);
            let q_by_rows =
                StridedOperand { data: format.by_rows(q_pairs, q_rows), row: format.of(width), step: 1 };
            for first in block.panels() {
                let (scores, k) = (&mut scores[first * rows..], &k_panels[first * shape.steps..]);
                let n = format.whole(KEYS.min(block.keys() - first));
                let tile = TileShape { m: rows, n, steps: shape.steps, stride: KEYS, accumulate: false };
                format.product(scores, q_by_rows, k, tile, next.part(first / KEYS, panels));
            }
            let (mut sums, mut lses) = ([0.0; QUERIES], [0.0; QUERIES]);
            softmax(format.isa, scores, &mut sums, &mut lses, block, params.softcap);
            if format.are_pairs() {
                // The matrix product rounds the weights to bf16. `out` is divided by the sum of the rounded
                // weights, so that the weights sum to 1. A constant that is added to all values is then added
                // unchanged to `out`.
                rounded_sums(format.isa, &mut sums[..rows], scores, block);
            }
            let start = block.panels().next().unwrap_or(0);
            for first in block.panels() {
                let weights = format.by_rows(p_pairs, &scores[first * rows..][..rows * KEYS]);
                let weights = StridedOperand { data: weights, row: format.of(KEYS), step: 1 };
                let steps = format.of(KEYS.min(block.keys() - first));
                let tile = TileShape { m: rows, n: width, steps, stride: width, accumulate: first > start };
                let prefetch = block.prefetch(out).part(first / KEYS, panels);
                format.product(weighted, weights, &v_rows[format.of(first) * width..], tile, prefetch);
            }
            scale_rows(format.isa, weighted, width, &sums[..rows]);
            for i in 0..rows {
                let (weighted, row) = (&weighted[i * width..][..head_dim], block.row(i));
                // SAFETY: the caller guarantees that no other task writes this row and head.
                unsafe {
                    out.add(row).copy_from_nonoverlapping(weighted.as_ptr(), head_dim);
                    *lse.add(row / head_dim) = lses[i];
                }
            }
        }
    });
}

/// Returns the number of elements of working memory that [`forward_task`] needs.
pub(crate) fn forward_len(format: OperandFormat, task: &Task, dims: AttentionDims) -> usize {
    total(lens(format, &Shape::of(task, dims, format, None)))
}

/// Returns the lengths of the buffers, in the order in which [`forward_task`] names the buffers.
fn lens(format: OperandFormat, shape: &Shape<'_>) -> [usize; 7] {
    let block = shape.rows() * shape.width;
    let scores = shape.blocks().map(|b| b.rows * b.keys().next_multiple_of(KEYS)).max().unwrap_or(0);
    [
        block,
        format.pairs(block),
        shape.panels,
        format.of(shape.keys) * shape.width,
        block,
        scores,
        format.pairs(shape.rows() * KEYS),
    ]
}

simd_fn! {
    /// Replaces scores by `e^(score - max)` for visible keys, and by zero for all other keys. `scores` has
    /// panels of shape `(rows, KEYS)`. The sum of each row is written to `sums`, and the log of the softmax
    /// denominator to `lse`.
    fn softmax(
        scores: &mut [f32],
        sums: &mut [f32; QUERIES],
        lse: &mut [f32; QUERIES],
        block: Block,
        softcap: Option<f32>,
    ) = softmax_lanes
}

#[inline(always)]
fn softmax_lanes<L: Lanes>(
    scores: &mut [f32],
    sums: &mut [f32; QUERIES],
    lse: &mut [f32; QUERIES],
    block: Block,
    softcap: Option<f32>,
) {
    for i in 0..block.rows {
        let (begin, visible) = (block.first(i), block.visible(i));
        // For each panel: the offset of the row, the range of visible scores, and the end of this range
        // rounded up to whole vectors.
        let panels = block.panels().map(|first| {
            let seen = visible.saturating_sub(first).min(KEYS);
            let hidden = begin.saturating_sub(first).min(seen);
            (first * block.rows + i * KEYS, hidden..seen, seen.next_multiple_of(L::COUNT))
        });
        let mut max = L::splat(f32::NEG_INFINITY);
        for (row, seen, whole) in panels.clone() {
            let row = &mut scores[row..][..whole];
            if let Some(cap) = softcap {
                cap_lanes::<L>(row, cap);
            }
            row[..seen.start].fill(f32::NEG_INFINITY);
            row[seen.end..].fill(f32::NEG_INFINITY);
            for at in (0..whole).step_by(L::COUNT) {
                max = max.max(L::read(row, at));
            }
        }
        let max = max.largest();
        for (row, _, whole) in panels {
            let (row, rest) = scores[row..][..KEYS].split_at_mut(whole);
            sums[i] += exponentials::<L>(row, max);
            rest.fill(0.0);
        }
        lse[i] = max + sums[i].ln();
    }
}

simd_fn! {
    /// Rounds each score to bf16, and writes the sum of each row to `sums`. `scores` has panels of shape
    /// `(rows, KEYS)`.
    fn rounded_sums(sums: &mut [f32], scores: &[f32], block: Block) = rounded_sums_body
}

#[allow(
    clippy::extra_unused_type_parameters,
    reason = "plain loops: only what they are compiled for differs"
)]
#[inline(always)]
fn rounded_sums_body<L>(sums: &mut [f32], scores: &[f32], block: Block) {
    let rows = sums.len();
    for (i, sum) in sums.iter_mut().enumerate() {
        let mut parts = [0.0; WIDEST];
        for first in block.panels() {
            for weights in scores[first * rows + i * KEYS..][..KEYS].chunks_exact(WIDEST) {
                for (part, &weight) in parts.iter_mut().zip(weights) {
                    *part += bf16_to_f32(f32_to_bf16(weight));
                }
            }
        }
        *sum = parts.iter().sum();
    }
}

simd_fn! {
    /// Divides each row of `width` elements by the sum of the row in `sums`.
    fn scale_rows(rows: &mut [f32], width: usize, sums: &[f32]) = scale_rows_lanes
}

#[inline(always)]
fn scale_rows_lanes<L: Lanes>(rows: &mut [f32], width: usize, sums: &[f32]) {
    for (row, sum) in rows.chunks_exact_mut(width).zip(sums) {
        scale::<L>(row, 1.0 / sum);
    }
}
