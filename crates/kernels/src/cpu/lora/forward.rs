//! Computes `out += scaling · (drop(inp) Aᵀ) Bᵀ`, one block of rows at a time.

use std::ops::Range;

use super::{DotShape, LowRank, Own, block_rows, dropout_scale};
use crate::cpu::dropout::{WORD, draw};
use crate::cpu::pool::{Pool, SendPtr, lock};
use crate::gemm::{Kernels, Prefetch, RowMask, TileJob, TileMask, View};
use crate::lora::{LoraDims, LoraParams};

impl LowRank {
    /// Computes [`crate::lora::forward`] in f32.
    pub fn forward(
        &self,
        pool: &Pool,
        out: &mut [f32],
        mid: &mut [f32],
        inp: &[f32],
        params: LoraParams<'_>,
        rows: Range<usize>,
    ) {
        let LoraParams { a, b, dims: LoraDims { rank, d_in, d_out, scaling }, dropout } = params;
        params.check();
        assert!(
            out.len() >= rows.end * d_out && inp.len() >= rows.end * d_in && mid.len() >= rows.end * rank
        );
        if rows.is_empty() {
            return;
        }
        let Kernels { lanes, tiles, .. } = *self.kernels;
        let mut shared = lock(&self.shared);
        let width = self.tile_width();
        let b_t = self.transpose_b(pool, &mut shared.b_t, b, (rank, d_out), width);
        let (out, mid) = (SendPtr(out.as_mut_ptr()), SendPtr(mid.as_mut_ptr()));
        let block = block_rows(rows.len());
        pool.run(rows.len().div_ceil(block), |task, worker| {
            let row = rows.start + task * block;
            let m = (rows.end - row).min(block);
            let mut own = lock(&self.own[worker]);
            let Own { mask, product } = &mut *own;
            let x = &inp[row * d_in..][..m * d_in];
            let mask = dropout.map(|dropout| {
                let stride = d_in.div_ceil(WORD);
                let bits = &mut mask.words(m * stride)[..m * stride];
                for (i, bits) in bits.chunks_exact_mut(stride.max(1)).enumerate() {
                    draw(
                        self.isa,
                        bits,
                        dropout,
                        ((row - rows.start + i) * d_in) as u64,
                        x[i * d_in..].as_ptr(),
                    );
                }
                RowMask { first: bits.as_ptr(), stride }
            });
            // SAFETY: only this task accesses rows `row .. row + m` of `mid`, whose length is checked above.
            let mid = unsafe { std::slice::from_raw_parts_mut(mid.at(row * rank), m * rank) };
            let shape = DotShape { m, k: d_in, rank, alpha: dropout_scale(dropout) };
            self.dot_rows(mid, x, mask, (a.as_ptr(), d_in), shape);

            let packed = product.at_least(self.tall_words(m, rank)).as_mut_ptr();
            self.pack_panels(packed, rank, View::f32(mid, rank, 1), m, rank);
            let job = TileJob {
                m,
                n: d_out,
                steps: rank,
                a: packed,
                a_panel: rank * lanes,
                b: b_t.at(0),
                b_panel: rank * width,
                b_step: width,
                c: out.at(row * d_out),
                ldc: d_out,
                alpha: scaling,
                accumulate: true,
                mask: TileMask::Nothing,
                prefetch: Prefetch::NONE,
            };
            // SAFETY: the panels were just packed, and `Bᵀ` contains all of its panels. Only this task
            // accesses these rows of `out`, whose length is checked above.
            unsafe { tiles(&job) };
        });
    }
}
