//! Backward pass of one task: for each block of queries, a loop over panels of keys.

use super::gather::{gather, round};
use super::operand_format::{OperandFormat, StridedOperand, TileShape};
use super::scratch::{total, with_buffers};
use super::task::{Block, Shape, Task};
use super::{KEYS, QUERIES};
use crate::AttentionDims;
use crate::attention::AttentionInputs;
use crate::gemm::Prefetch;
use crate::math::{dot_lanes, exp, tanh};
use crate::simd::{Lanes, simd_fn};

/// Computes one task of a backward pass.
///
/// # Safety
/// `dq`, `dk` and `dv` must be valid for writing every row of the task's segment. No other task may write the
/// same kv head of the same segment at the same time.
pub(crate) unsafe fn backward_task(
    format: OperandFormat,
    [dq, dk, dv]: [*mut f32; 3],
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    inputs: AttentionInputs<'_>,
    task: &Task,
) {
    let AttentionInputs { q, k, v, dims, scores: params, .. } = inputs;
    let shape = &Shape::of(task, dims, format, params.window);
    let (head_dim, width, factor) = (shape.head_dim, shape.width, params.scale);
    with_buffers(lens(format, shape), |buffers| {
        let mut buffers = Buffers::of(buffers);
        format.pack_panels(buffers.k_panels, shape.key_rows(k));
        format.pack_panels(buffers.v_panels, shape.key_rows(v));
        format.pack_by_columns(buffers.k_rows, width, shape.key_rows(k));
        buffers.dk_rows.fill(0.0);
        buffers.dv_rows.fill(0.0);
        let mut blocks = shape.blocks().peekable();
        while let Some(block) = blocks.next() {
            let mut next =
                |inp: &[f32]| blocks.peek().map_or(Prefetch::NONE, |next| next.prefetch(inp.as_ptr()));
            let prefetch = [next(q), next(dout), next(out), block.prefetch(dq)];
            let mut lses_deltas = buffers.gather(format, width, [q, dout, out], block, factor);
            for (i, [log_sum, _]) in lses_deltas[..block.rows].iter_mut().enumerate() {
                *log_sum = lse[block.row(i) / head_dim];
            }
            buffers.add_gradients(format, shape, (block, params.softcap), &lses_deltas, prefetch);
            for i in 0..block.rows {
                let sums = &mut buffers.dq_rows[i * width..][..head_dim];
                sums.iter_mut().for_each(|sum| *sum *= factor);
                // SAFETY: the caller guarantees that no other task writes this row and head.
                unsafe { dq.add(block.row(i)).copy_from_nonoverlapping(sums.as_ptr(), head_dim) };
            }
        }
        for j in 0..shape.keys {
            let row = j * width..j * width + head_dim;
            let (from_k, from_v) = (&buffers.dk_rows[row.clone()], &buffers.dv_rows[row]);
            // SAFETY: the caller guarantees that no other task writes this row and kv head.
            unsafe {
                dk.add(shape.key_row(j)).copy_from_nonoverlapping(from_k.as_ptr(), head_dim);
                dv.add(shape.key_row(j)).copy_from_nonoverlapping(from_v.as_ptr(), head_dim);
            }
        }
    });
}

/// The working memory of one task. Fields that end in `by_rows` or `by_columns` are bf16 copies, and are
/// empty if the operands are f32.
struct Buffers<'a> {
    k_panels: &'a mut [f32],
    v_panels: &'a mut [f32],
    k_rows: &'a mut [f32],
    dk_rows: &'a mut [f32],
    dv_rows: &'a mut [f32],
    q_rows: &'a mut [f32],
    dout_rows: &'a mut [f32],
    out_rows: &'a mut [f32],
    dq_rows: &'a mut [f32],
    q_by_rows: &'a mut [f32],
    dout_by_rows: &'a mut [f32],
    q_by_columns: &'a mut [f32],
    dout_by_columns: &'a mut [f32],
    scores: &'a mut [f32],
    dscores: &'a mut [f32],
    p_by_columns: &'a mut [f32],
    ds_by_rows: &'a mut [f32],
    ds_by_columns: &'a mut [f32],
}

impl<'a> Buffers<'a> {
    /// Names the buffers, which are in the order of [`lens`].
    fn of(buffers: [&'a mut [f32]; 18]) -> Self {
        let [k_panels, v_panels, k_rows, dk_rows, dv_rows, q_rows, dout_rows, out_rows, dq_rows, rest @ ..] =
            buffers;
        let [q_by_rows, dout_by_rows, q_by_columns, dout_by_columns, scores, dscores, rest @ ..] = rest;
        let [p_by_columns, ds_by_rows, ds_by_columns] = rest;
        Self {
            k_panels,
            v_panels,
            k_rows,
            dk_rows,
            dv_rows,
            q_rows,
            dout_rows,
            out_rows,
            dq_rows,
            q_by_rows,
            dout_by_rows,
            q_by_columns,
            dout_by_columns,
            scores,
            dscores,
            p_by_columns,
            ds_by_rows,
            ds_by_columns,
        }
    }

    /// Copies the rows of a block to the buffers. Returns a pair for each row: zero, which the caller
    /// replaces by `lse`, and `dout · out`.
    fn gather(
        &mut self,
        format: OperandFormat,
        width: usize,
        [q, dout, out]: [&[f32]; 3],
        block: Block,
        factor: f32,
    ) -> [[f32; 2]; QUERIES] {
        let len = block.rows * width;
        let (q_rows, dout_rows) = (&mut self.q_rows[..len], &mut self.dout_rows[..len]);
        gather(format.isa, q_rows, width, q, block, factor);
        gather(format.isa, dout_rows, width, dout, block, 1.0);
        gather(format.isa, self.out_rows, width, out, block, 1.0);
        if format.are_pairs() {
            // The matrix product `dout · v` rounds `dout` to bf16, so `dout · out` must use the same rounded
            // `dout`. Otherwise a constant that is added to all values would not cancel in
            // `dout · v - dout · out`.
            round(format.isa, dout_rows);
        }
        let mut lses_deltas = [[0.0; 2]; QUERIES];
        deltas(format.isa, &mut lses_deltas[..block.rows], dout_rows, self.out_rows, width);
        lses_deltas
    }

    /// Adds the gradients of the current block to `dk_rows` and `dv_rows`, and overwrites `dq_rows`.
    fn add_gradients(
        &mut self,
        format: OperandFormat,
        shape: &Shape<'_>,
        (block, softcap): (Block, Option<f32>),
        lses_deltas: &[[f32; 2]; QUERIES],
        prefetch: [Prefetch; 4],
    ) {
        let (rows, width, panels) = (block.rows, shape.width, block.keys().div_ceil(KEYS));
        let (q_rows, dout_rows) = (&self.q_rows[..rows * width], &self.dout_rows[..rows * width]);
        let strided = |data| StridedOperand { data, row: format.of(width), step: 1 };
        let q_by_columns = format.by_columns(self.q_by_columns, q_rows, width);
        let dout_by_columns = format.by_columns(self.dout_by_columns, dout_rows, width);
        let q_by_rows = strided(format.by_rows(self.q_by_rows, q_rows));
        let dout_by_rows = strided(format.by_rows(self.dout_by_rows, dout_rows));
        let (scores, dscores) = (&mut self.scores[..rows * KEYS], &mut self.dscores[..rows * KEYS]);
        let start = block.panels().next().unwrap_or(0);
        for first in block.panels() {
            let here = KEYS.min(block.keys() - first);
            let [q, dout, out, dq] = prefetch.map(|prefetch| prefetch.part(first / KEYS, panels));
            let (n, steps) = (format.whole(here), shape.steps);
            let tile = TileShape { m: rows, n, steps, stride: KEYS, accumulate: false };
            let panel = first * shape.steps..;
            format.product(scores, q_by_rows, &self.k_panels[panel.clone()], tile, q);
            format.product(dscores, dout_by_rows, &self.v_panels[panel], tile, dout);
            weigh(format.isa, scores, dscores, lses_deltas, (block, softcap), first);

            let columns = |data| StridedOperand { data, row: 1, step: KEYS };
            let steps = format.of(rows);
            let tile = TileShape { m: here, n: width, steps, stride: width, accumulate: true };
            let p = columns(format.by_columns(self.p_by_columns, scores, KEYS));
            format.product(&mut self.dv_rows[first * width..], p, dout_by_columns, tile, out);
            let ds = columns(format.by_columns(self.ds_by_columns, dscores, KEYS));
            format.product(&mut self.dk_rows[first * width..], ds, q_by_columns, tile, dq);
            let data = format.by_rows(self.ds_by_rows, dscores);
            let ds = StridedOperand { data, row: format.of(KEYS), step: 1 };
            let (k, steps) = (&self.k_rows[format.of(first) * width..], format.of(here));
            let tile = TileShape { m: rows, n: width, steps, stride: width, accumulate: first > start };
            format.product(self.dq_rows, ds, k, tile, Prefetch::NONE);
        }
    }
}

/// Returns the number of elements of working memory that [`backward_task`] needs.
pub(crate) fn backward_len(format: OperandFormat, task: &Task, dims: AttentionDims) -> usize {
    total(lens(format, &Shape::of(task, dims, format, None)))
}

/// Returns the lengths of the buffers, in the order of the fields of [`Buffers`].
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
    /// Writes `dout · out` of each row to the second number of the row in `lses_deltas`.
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
    /// Replaces the scores of a panel by attention weights `p`, and `dout · v` in `dscores` by the gradient
    /// `ds` of the scores. Both are zero for keys that are not visible. The panel begins at key `first`.
    fn weigh(
        scores: &mut [f32],
        dscores: &mut [f32],
        lses_deltas: &[[f32; 2]; QUERIES],
        masks: (Block, Option<f32>),
        first: usize,
    ) = weigh_lanes
}

#[inline(always)]
fn weigh_lanes<L: Lanes>(
    scores: &mut [f32],
    dscores: &mut [f32],
    lses_deltas: &[[f32; 2]; QUERIES],
    (block, softcap): (Block, Option<f32>),
    first: usize,
) {
    for i in 0..block.rows {
        let (s, ds) = (&mut scores[i * KEYS..][..KEYS], &mut dscores[i * KEYS..][..KEYS]);
        let ([log_sum, delta], mut at) = (lses_deltas[i].map(L::splat), 0);
        let visible = block.visible(i).saturating_sub(first).min(KEYS);
        let hidden = block.first(i).saturating_sub(first).min(visible);
        while at < visible {
            let (mut score, mut slope) = (L::read(s, at), L::splat(1.0));
            if let Some(cap) = softcap {
                let t = tanh(score.mul(L::splat(1.0 / cap)));
                (score, slope) = (t.mul(L::splat(cap)), L::splat(1.0).sub(t.mul(t)));
            }
            let p = exp(score.sub(log_sum));
            p.write(s, at);
            p.mul(L::read(ds, at).sub(delta)).mul(slope).write(ds, at);
            at += L::COUNT;
        }
        for values in [s, ds] {
            values[..hidden].fill(0.0);
            values[visible..].fill(0.0);
        }
    }
}
