//! Forward of one task: blocks of queries against all the keys that they see.

use super::operands::{gather, transpose};
use super::product::{Strided, product};
use super::scratch::{SCRATCH, Scratch, resize};
use super::task::{Shape, Task, forward_tasks};
use super::{KEYS, QUERIES};
use crate::attention::reference_scale;
use crate::simd::{Lanes, simd_fn};
use crate::softmax::{exponentials, largest, scale};
use crate::{AttentionDims, Isa, Segment};

/// [`forward`](super::forward) in f32 on `isa`, one task after the other.
///
/// # Panics
/// As [`forward`](super::forward).
pub fn forward_tiled(
    isa: Isa,
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    dims: AttentionDims,
) {
    for segment in segments {
        let rows = segment.q_start + segment.q_len;
        assert!(out.len() >= rows * dims.heads * dims.head_dim && lse.len() >= rows * dims.heads);
    }
    for task in forward_tasks(segments, dims) {
        // SAFETY: the outputs hold the rows of every segment, and nothing else writes them.
        unsafe { forward_task(isa, out.as_mut_ptr(), lse.as_mut_ptr(), q, k, v, &task, dims) };
    }
}

/// One task of a forward pass.
///
/// # Safety
/// `out` and `lse` are valid for writing every row of the task's segment, and no other task writes the same
/// kv head of the same queries at the same time.
pub unsafe fn forward_task(
    isa: Isa,
    out: *mut f32,
    lse: *mut f32,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    task: &Task,
    dims: AttentionDims,
) {
    let Task { segment, queries, .. } = task;
    SCRATCH.with_borrow_mut(|scratch| {
        let before = segment.kv_len - segment.q_len;
        let shape = &Shape::of(task, dims, before + queries.end);
        let (keys, head_dim) = (shape.keys, dims.head_dim);
        scratch.reserve(forward_sizes(task, dims));
        let kv_row = |j: usize| ((segment.kv_start + j) * dims.kv_heads + task.kv_head) * head_dim;
        resize(&mut scratch.k_panels, shape.padded_keys * shape.width);
        transpose(&mut scratch.k_panels, k, kv_row, shape);
        gather(&mut scratch.v, v, kv_row, keys, shape, 1.0);
        for head in shape.heads.clone() {
            for first in queries.clone().step_by(QUERIES) {
                let rows = QUERIES.min(queries.end - first);
                let q_row = |i: usize| ((segment.q_start + first + i) * dims.heads + head) * head_dim;
                gather(&mut scratch.q, q, q_row, rows, shape, reference_scale(dims) as f32);
                resize(&mut scratch.out, rows * shape.width);
                resize(&mut scratch.scores, rows * (before + first + rows).div_ceil(KEYS) * KEYS);
                resize(&mut scratch.lse, rows);
                let Scratch { q, k_panels, v, out: mixed, scores, lse: sums, .. } = &mut *scratch;
                forward_block(isa, mixed, sums, scores, q, k_panels, v, before + first, rows, shape.width);
                for i in 0..rows {
                    let mixed = &mixed[i * shape.width..][..head_dim];
                    // SAFETY: this row and head are the task's own, as the caller promises.
                    unsafe {
                        out.add(q_row(i)).copy_from_nonoverlapping(mixed.as_ptr(), head_dim);
                        *lse.add(q_row(i) / head_dim) = sums[i];
                    }
                }
            }
        }
    });
}

/// What [`forward_task`] holds.
pub fn forward_sizes(task: &Task, dims: AttentionDims) -> Scratch<usize> {
    let before = task.segment.kv_len - task.segment.q_len;
    let Shape { width, keys, padded_keys, .. } = Shape::of(task, dims, before + task.queries.end);
    let rows = QUERIES.min(task.queries.len());
    let scores = |first: usize| {
        let rows = QUERIES.min(task.queries.end - first);
        rows * (before + first + rows).next_multiple_of(KEYS)
    };
    Scratch {
        q: rows * width,
        v: keys * width,
        k_panels: padded_keys * width,
        out: rows * width,
        lse: rows,
        scores: task.queries.clone().step_by(QUERIES).map(scores).max().unwrap_or(0),
        ..Scratch::default()
    }
}

simd_fn! {
    /// A block of query rows of one head: `out (rows, width)`, `lse (rows)`. Row `i` sees the first
    /// `before + i + 1` keys; `scores` holds the rows' scores, panel after panel.
    fn forward_block(
        out: &mut [f32],
        lse: &mut [f32],
        scores: &mut [f32],
        q: &[f32],
        k_panels: &[f32],
        v: &[f32],
        before: usize,
        rows: usize,
        width: usize,
    ) = forward_lanes
}

#[inline(always)]
fn forward_lanes<L: Lanes>(
    out: &mut [f32],
    lse: &mut [f32],
    scores: &mut [f32],
    q: &[f32],
    k_panels: &[f32],
    v: &[f32],
    before: usize,
    rows: usize,
    width: usize,
) {
    let keys = before + rows;
    // Scores of panel `p` are `(rows, KEYS)` at `p * rows * KEYS`.
    for (panel, k) in scores.chunks_exact_mut(rows * KEYS).zip(k_panels.chunks_exact(width * KEYS)) {
        product::<L>(panel, Strided { data: q, row: width, col: 1 }, k, (rows, KEYS, width), false);
    }
    for i in 0..rows {
        let visible = before + i + 1;
        let mut max = f32::NEG_INFINITY;
        for (p, panel) in scores.chunks_exact_mut(rows * KEYS).enumerate() {
            let row = &mut panel[i * KEYS..][..KEYS];
            row[visible.saturating_sub(p * KEYS).min(KEYS)..].fill(f32::NEG_INFINITY);
            max = max.max(largest::<L>(row));
        }
        let mut sum = 0.0;
        for panel in scores.chunks_exact_mut(rows * KEYS) {
            sum += exponentials::<L>(&mut panel[i * KEYS..][..KEYS], max);
        }
        lse[i] = sum;
        // Kept beside the sum until the products are done.
        out[i * width] = max;
    }
    let maxima: [f32; QUERIES] = std::array::from_fn(|i| if i < rows { out[i * width] } else { 0.0 });
    for (p, panel) in scores.chunks_exact(rows * KEYS).enumerate() {
        let here = KEYS.min(keys - p * KEYS);
        let weights = Strided { data: panel, row: KEYS, col: 1 };
        product::<L>(out, weights, &v[p * KEYS * width..], (rows, width, here), p > 0);
    }
    for i in 0..rows {
        scale::<L>(&mut out[i * width..][..width], 1.0 / lse[i]);
        lse[i] = maxima[i] + lse[i].ln();
    }
}
