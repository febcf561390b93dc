//! Backward of one task: for each block of queries, a loop over panels of keys.

use super::gather::{gather, round};
use super::operand_format::{OperandFormat, StridedOperand};
use super::scratch::{total, with_buffers};
use super::task::{Block, Shape, Task};
use super::{KEYS, QUERIES};
use crate::AttentionDims;
use crate::attention::{AttentionInputs, reference_scale};
use crate::gemm::Prefetch;
use crate::math::{dot_lanes, exp};
use crate::simd::{Lanes, simd_fn};

/// Computes one task of a backward pass.
///
/// # Safety
/// `dq`, `dk` and `dv` are valid for writing every row of the task's segment. No other task writes the same
/// kv head of the same segment at the same time.
#[expect(clippy::too_many_lines, reason = "one pass over a tile, whose buffers stay borrowed")]
pub(crate) unsafe fn backward_task(
    format: OperandFormat,
    [dq, dk, dv]: [*mut f32; 3],
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    inputs: AttentionInputs<'_>,
    task: &Task,
) {
    let AttentionInputs { q, k, v, dims, .. } = inputs;
    let shape = &Shape::of(task, dims, format);
    let (head_dim, width, factor) = (shape.head_dim, shape.width, reference_scale(dims) as f32);
    with_buffers(lens(format, shape), |buffers| {
        let [k_panels, v_panels, k_rows, dk_rows, dv_rows, q_rows, dout_rows, out_rows, dq_rows, rest @ ..] =
            buffers;
        let [
            q_by_rows,
            dout_by_rows,
            q_by_columns,
            dout_by_columns,
            scores,
            dscores,
            p_by_columns,
            ds_by_rows,
            ds_by_columns,
        ] = rest;
        format.pack_panels(k_panels, shape.key_rows(k));
        format.pack_panels(v_panels, shape.key_rows(v));
        format.pack_by_columns(k_rows, width, shape.key_rows(k));
        dk_rows.fill(0.0);
        dv_rows.fill(0.0);
        let mut blocks = shape.blocks().peekable();
        while let Some(block) = blocks.next() {
            let (rows, panels) = (block.rows, block.keys().div_ceil(KEYS));
            let mut next =
                |inp: &[f32]| blocks.peek().map_or(Prefetch::NONE, |next| next.prefetch(inp.as_ptr()));
            let prefetch = [next(q), next(dout), next(out), block.prefetch(dq)];
            let (q_rows, dout_rows) = (&mut q_rows[..rows * width], &mut dout_rows[..rows * width]);
            gather(format.isa, q_rows, width, q, block, factor);
            gather(format.isa, dout_rows, width, dout, block, 1.0);
            gather(format.isa, out_rows, width, out, block, 1.0);
            if format.are_pairs() {
                // Rounded as the products round it: a common offset of all values then cancels out of the
                // scores' gradient.
                round(format.isa, dout_rows);
            }
            let mut lses_deltas = [[0.0; 2]; QUERIES];
            deltas(format.isa, &mut lses_deltas[..rows], dout_rows, out_rows, width);
            for (i, [log_sum, _]) in lses_deltas[..rows].iter_mut().enumerate() {
                *log_sum = lse[block.row(i) / head_dim];
            }
            let strided = |data| StridedOperand { data, row: format.of(width), step: 1 };
            let (q_by_columns, dout_by_columns) = (
                format.by_columns(q_by_columns, q_rows, width),
                format.by_columns(dout_by_columns, dout_rows, width),
            );
            let (q_by_rows, dout_by_rows) = (
                strided(format.by_rows(q_by_rows, q_rows)),
                strided(format.by_rows(dout_by_rows, dout_rows)),
            );
            let (scores, dscores) = (&mut scores[..rows * KEYS], &mut dscores[..rows * KEYS]);
            for first in (0..block.keys()).step_by(KEYS) {
                let here = KEYS.min(block.keys() - first);
                let [q, dout, out, dq] = prefetch.map(|prefetch| prefetch.part(first / KEYS, panels));
                let panel = first * shape.steps..;
                let tile = (rows, format.whole(here), shape.steps);
                format.product(scores, q_by_rows, &k_panels[panel.clone()], KEYS, tile, false, q);
                format.product(dscores, dout_by_rows, &v_panels[panel], KEYS, tile, false, dout);
                weigh(format.isa, scores, dscores, &lses_deltas, block, first);

                let columns = |data| StridedOperand { data, row: 1, step: KEYS };
                let dkv_shape = (here, width, format.of(rows));
                let p = columns(format.by_columns(p_by_columns, scores, KEYS));
                format.product(
                    &mut dv_rows[first * width..],
                    p,
                    dout_by_columns,
                    width,
                    dkv_shape,
                    true,
                    out,
                );
                let ds = columns(format.by_columns(ds_by_columns, dscores, KEYS));
                format.product(&mut dk_rows[first * width..], ds, q_by_columns, width, dkv_shape, true, dq);
                let ds = StridedOperand {
                    data: format.by_rows(ds_by_rows, dscores),
                    row: format.of(KEYS),
                    step: 1,
                };
                let (k, by_keys) = (&k_rows[format.of(first) * width..], (rows, width, format.of(here)));
                format.product(dq_rows, ds, k, width, by_keys, first > 0, Prefetch::NONE);
            }
            for i in 0..rows {
                let sums = &mut dq_rows[i * width..][..head_dim];
                sums.iter_mut().for_each(|sum| *sum *= factor);
                // SAFETY: the caller guarantees that only this task writes this row and head.
                unsafe { dq.add(block.row(i)).copy_from_nonoverlapping(sums.as_ptr(), head_dim) };
            }
        }
        for j in 0..shape.keys {
            let (from_k, from_v) = (&dk_rows[j * width..][..head_dim], &dv_rows[j * width..][..head_dim]);
            // SAFETY: the caller guarantees that only this task writes this row and kv head.
            unsafe {
                dk.add(shape.key_row(j)).copy_from_nonoverlapping(from_k.as_ptr(), head_dim);
                dv.add(shape.key_row(j)).copy_from_nonoverlapping(from_v.as_ptr(), head_dim);
            }
        }
    });
}

/// Returns the number of elements that [`backward_task`] needs.
pub(crate) fn backward_len(format: OperandFormat, task: &Task, dims: AttentionDims) -> usize {
    total(lens(format, &Shape::of(task, dims, format)))
}

/// Lengths of the buffers, in the order in which [`backward_task`] names them.
fn lens(format: OperandFormat, shape: &Shape<'_>) -> [usize; 18] {
    let (rows, width) = (shape.rows(), shape.width);
    let (keys, block, scores) = (shape.keys * width, rows * width, rows * KEYS);
    let (by_rows, by_columns) = (format.pairs(block), format.pairs(rows) * width);
    let (p, ds) = (format.pairs(rows) * KEYS, format.pairs(scores));
    let k_rows = format.of(shape.keys) * width;
    [
        shape.panels,
        shape.panels,
        k_rows,
        keys,
        keys,
        block,
        block,
        block,
        block,
        by_rows,
        by_rows,
        by_columns,
        by_columns,
        scores,
        scores,
        p,
        ds,
        p,
    ]
}

simd_fn! {
    /// Writes `dout · out` of each row to the second element of its `lses_deltas`.
    fn deltas(lses_deltas: &mut [[f32; 2]], dout: &[f32], out: &[f32], width: usize) = deltas_lanes
}

#[inline(always)]
fn deltas_lanes<L: Lanes>(lses_deltas: &mut [[f32; 2]], dout: &[f32], out: &[f32], width: usize) {
    let rows = dout.chunks_exact(width).zip(out.chunks_exact(width));
    for ([_, delta], (dout, out)) in lses_deltas.iter_mut().zip(rows) {
        *delta = dot_lanes::<L>(dout, out);
    }
}

simd_fn! {
    /// Turns the scores of a panel into attention weights `p`, and `dscores` from `dp` into `ds`. Both become
    /// zero where a row does not see the key. The panel begins at key `first`.
    fn weigh(
        scores: &mut [f32],
        dscores: &mut [f32],
        lses_deltas: &[[f32; 2]; QUERIES],
        block: Block,
        first: usize,
    ) = weigh_lanes
}

#[inline(always)]
fn weigh_lanes<L: Lanes>(
    scores: &mut [f32],
    dscores: &mut [f32],
    lses_deltas: &[[f32; 2]; QUERIES],
    block: Block,
    first: usize,
) {
    for i in 0..block.rows {
        let (s, ds) = (&mut scores[i * KEYS..][..KEYS], &mut dscores[i * KEYS..][..KEYS]);
        let ([log_sum, delta], mut at) = (lses_deltas[i].map(L::splat), 0);
        let visible = block.visible(i).saturating_sub(first).min(KEYS);
        while at < visible {
            let p = exp(L::read(s, at).sub(log_sum));
            p.write(s, at);
            p.mul(L::read(ds, at).sub(delta)).write(ds, at);
            at += L::COUNT;
        }
        s[visible..].fill(0.0);
        ds[visible..].fill(0.0);
    }
}
