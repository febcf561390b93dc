//! Backward of one task: blocks of queries against one panel of keys after the other.

use super::operands::{gather, transpose};
use super::product::{Strided, product};
use super::scratch::{SCRATCH, Scratch, resize};
use super::task::{Shape, Task, backward_tasks};
use super::{KEYS, QUERIES};
use crate::attention::reference_scale;
use crate::math::{dot_lanes, exp};
use crate::simd::{Lanes, simd_fn};
use crate::{AttentionDims, Isa, Segment};

/// [`backward`](super::backward) in f32 on `isa`, one task after the other.
///
/// # Panics
/// As [`backward`](super::backward).
pub fn backward_tiled(
    isa: Isa,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[Segment],
    dims: AttentionDims,
) {
    for segment in segments {
        let kv_len = (segment.kv_start + segment.kv_len) * dims.kv_heads * dims.head_dim;
        assert!(dq.len() >= (segment.q_start + segment.q_len) * dims.heads * dims.head_dim);
        assert!(dk.len() >= kv_len && dv.len() >= kv_len);
    }
    for task in backward_tasks(segments, dims) {
        let (dq, dk, dv) = (dq.as_mut_ptr(), dk.as_mut_ptr(), dv.as_mut_ptr());
        // SAFETY: the outputs hold the rows of every segment, and nothing else writes them.
        unsafe { backward_task(isa, dq, dk, dv, dout, out, lse, q, k, v, &task, dims) };
    }
}

/// One task of a backward pass.
///
/// # Safety
/// `dq`, `dk` and `dv` are valid for writing every row of the task's segment, and no other task writes the
/// same kv head of the same segment at the same time.
pub unsafe fn backward_task(
    isa: Isa,
    dq: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    task: &Task,
    dims: AttentionDims,
) {
    let Task { segment, queries, .. } = task;
    SCRATCH.with_borrow_mut(|scratch| {
        let shape = &Shape::of(task, dims, segment.kv_len);
        let (keys, head_dim, width) = (shape.keys, dims.head_dim, shape.width);
        let before = segment.kv_len - segment.q_len;
        scratch.reserve(backward_sizes(task, dims));
        let kv_row = |j: usize| ((segment.kv_start + j) * dims.kv_heads + task.kv_head) * head_dim;
        resize(&mut scratch.k_panels, shape.padded_keys * width);
        resize(&mut scratch.v_panels, shape.padded_keys * width);
        transpose(&mut scratch.k_panels, k, kv_row, shape);
        transpose(&mut scratch.v_panels, v, kv_row, shape);
        gather(&mut scratch.k, k, kv_row, keys, shape, 1.0);
        for sums in [&mut scratch.dk, &mut scratch.dv] {
            resize(sums, keys * width);
            sums.fill(0.0);
        }
        let scale = reference_scale(dims) as f32;
        for head in shape.heads.clone() {
            for first in queries.clone().step_by(QUERIES) {
                let rows = QUERIES.min(queries.end - first);
                let q_row = |i: usize| ((segment.q_start + first + i) * dims.heads + head) * head_dim;
                gather(&mut scratch.q, q, q_row, rows, shape, scale);
                gather(&mut scratch.dout, dout, q_row, rows, shape, 1.0);
                gather(&mut scratch.out, out, q_row, rows, shape, 1.0);
                scratch.lse.clear();
                scratch.lse.extend((0..rows).map(|i| lse[q_row(i) / head_dim]));
                resize(&mut scratch.dq, rows * width);
                resize(&mut scratch.scores, rows * KEYS);
                resize(&mut scratch.dscores, rows * KEYS);
                backward_block(isa, scratch, before + first, rows, width);
                for i in 0..rows {
                    for (d, sum) in scratch.dq[i * width..][..head_dim].iter().enumerate() {
                        // SAFETY: this row and head are the task's own, as the caller promises.
                        unsafe { *dq.add(q_row(i) + d) = scale * sum };
                    }
                }
            }
        }
        for j in 0..keys {
            let (from_k, from_v) =
                (&scratch.dk[j * width..][..head_dim], &scratch.dv[j * width..][..head_dim]);
            // SAFETY: this row and kv head are the task's own, as the caller promises.
            unsafe {
                dk.add(kv_row(j)).copy_from_nonoverlapping(from_k.as_ptr(), head_dim);
                dv.add(kv_row(j)).copy_from_nonoverlapping(from_v.as_ptr(), head_dim);
            }
        }
    });
}

/// What [`backward_task`] holds.
pub fn backward_sizes(task: &Task, dims: AttentionDims) -> Scratch<usize> {
    let Shape { width, keys, padded_keys, .. } = Shape::of(task, dims, task.segment.kv_len);
    let rows = QUERIES.min(task.queries.len());
    let (block, keys, panels, scores) = (rows * width, keys * width, padded_keys * width, rows * KEYS);
    Scratch {
        q: block,
        k: keys,
        k_panels: panels,
        v_panels: panels,
        out: block,
        dout: block,
        lse: rows,
        scores,
        dscores: scores,
        dq: block,
        dk: keys,
        dv: keys,
        ..Scratch::default()
    }
}

simd_fn! {
    /// A block of query rows of one head: overwrites `dq`, adds to `dk` and `dv`.
    fn backward_block(scratch: &mut Scratch, before: usize, rows: usize, width: usize) = backward_lanes
}

#[inline(always)]
fn backward_lanes<L: Lanes>(scratch: &mut Scratch, before: usize, rows: usize, width: usize) {
    let Scratch { q, k, k_panels, v_panels, out, dout, lse, scores, dscores, dq, dk, dv, .. } = scratch;
    let keys = before + rows;
    for p in 0..keys.div_ceil(KEYS) {
        let (first, panel) = (p * KEYS, p * KEYS * width..(p + 1) * KEYS * width);
        let here = KEYS.min(keys - first);
        let q_rows = Strided { data: q, row: width, col: 1 };
        let dout_rows = Strided { data: dout, row: width, col: 1 };
        product::<L>(scores, q_rows, &k_panels[panel.clone()], (rows, KEYS, width), false);
        product::<L>(dscores, dout_rows, &v_panels[panel], (rows, KEYS, width), false);
        for i in 0..rows {
            let (s, ds) = (&mut scores[i * KEYS..][..KEYS], &mut dscores[i * KEYS..][..KEYS]);
            let delta = dot_lanes::<L>(&dout[i * width..][..width], &out[i * width..][..width]);
            let (log_sum, delta, mut at) = (L::splat(lse[i]), L::splat(delta), 0);
            while at < KEYS {
                let p = exp(L::read(s, at).sub(log_sum));
                p.write(s, at);
                p.mul(L::read(ds, at).sub(delta)).write(ds, at);
                at += L::COUNT;
            }
            let visible = (before + i + 1).saturating_sub(first).min(KEYS);
            s[visible..].fill(0.0);
            ds[visible..].fill(0.0);
        }
        let range = first * width..(first + here) * width;
        let p_columns = Strided { data: scores, row: 1, col: KEYS };
        let ds_columns = Strided { data: dscores, row: 1, col: KEYS };
        let ds_rows = Strided { data: dscores, row: KEYS, col: 1 };
        product::<L>(&mut dv[range.clone()], p_columns, dout, (here, width, rows), true);
        product::<L>(&mut dk[range.clone()], ds_columns, q, (here, width, rows), true);
        product::<L>(dq, ds_rows, &k[range], (rows, width, here), p > 0);
    }
}
