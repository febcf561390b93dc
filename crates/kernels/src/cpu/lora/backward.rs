//! `dA`, `dB` and `dinp`: first `dmid` of every row, then sums over rows, a strip of columns at a time.

use std::ops::Range;

use super::{COLS, LowRank, Own, SUM_ROWS, Shared, block_rows, dropout_scale};
use crate::cpu::dropout::{WORD, draw};
use crate::cpu::pool::{Pool, SendPtr, lock};
use crate::gemm::{Kernels, Prefetch, RowMask, TileJob, TileMask, View};
use crate::lora::{LoraDims, LoraParams};

impl LowRank {
    /// As [`crate::lora::backward`].
    pub fn backward(
        &self,
        pool: &Pool,
        dinp: Option<&mut [f32]>,
        [da, db]: [&mut [f32]; 2],
        (dout, inp, mid): (&[f32], &[f32], &[f32]),
        params: LoraParams<'_>,
        rows: Range<usize>,
    ) {
        let LoraParams { a, b, dims: LoraDims { rank, d_in, d_out, scaling }, dropout } = params;
        params.check();
        assert_eq!((da.len(), db.len()), (a.len(), b.len()));
        assert!(
            dout.len() >= rows.end * d_out && inp.len() >= rows.end * d_in && mid.len() >= rows.end * rank
        );
        assert!(dinp.as_ref().is_none_or(|dinp| dinp.len() >= rows.end * d_in));
        if rows.is_empty() {
            return;
        }
        let Kernels { lanes, nr, tiles, .. } = *self.kernels;
        let mut shared = lock(&self.shared);
        let Shared { b_t, dmid, panels } = &mut *shared;
        let b_stride = self.whole_width(d_out);
        let b_t = self.transpose_b(pool, b_t, b, (rank, d_out), b_stride);

        // First every row's `dmid`, and the panels that the sums below share.
        let n = rows.len();
        let block = block_rows(n);
        let blocks = n.div_ceil(block);
        let [thin_words, tall_words] = [self.thin_words(n, rank), self.tall_words(block, rank)];
        let dmid = SendPtr(dmid.at_least(n * rank).as_mut_ptr());
        let [mid_t, dmid_t, dmid_panels] = panels;
        let mid_t = SendPtr(mid_t.at_least(thin_words).as_mut_ptr());
        let dmid_t = SendPtr(dmid_t.at_least(thin_words).as_mut_ptr());
        let dmid_panels = SendPtr(dmid_panels.at_least(blocks * tall_words).as_mut_ptr());
        pool.run(blocks, |task, _| {
            let first = task * block;
            let (row, m) = (rows.start + first, (n - first).min(block));
            // SAFETY: this task alone touches its rows of `dmid`.
            let dmid = unsafe { std::slice::from_raw_parts_mut(dmid.at(first * rank), m * rank) };
            let dy = &dout[row * d_out..][..m * d_out];
            self.dot_rows(dmid, dy, None, (m, d_out), (b_t.at(0).cast_const(), b_stride), rank, scaling);
            let mid = &mid[row * rank..][..m * rank];
            self.pack_panels(mid_t.at(first * lanes), n, View::f32(mid, 1, rank), rank, m);
            self.pack_panels(dmid_t.at(first * lanes), n, View::f32(dmid, 1, rank), rank, m);
            self.pack_panels(dmid_panels.at(task * tall_words), rank, View::f32(dmid, rank, 1), m, rank);
        });

        // Then columns: those of `dA` together with `dinp`, which share bits, and at last the cheaper ones of `dB`.
        let in_tasks = d_in.div_ceil(COLS);
        let (da, db) = (SendPtr(da.as_mut_ptr()), SendPtr(db.as_mut_ptr()));
        let dinp = dinp.map(|dinp| SendPtr(dinp.as_mut_ptr()));
        pool.run(in_tasks + d_out.div_ceil(COLS), |task, worker| {
            let mut own = lock(&self.own[worker]);
            let Own { mask, product } = &mut *own;
            let thin = TileJob {
                m: rank,
                n: 0,
                steps: 0,
                a: std::ptr::null(),
                a_panel: n * lanes,
                b: std::ptr::null(),
                b_panel: nr,
                b_step: 0,
                c: std::ptr::null_mut(),
                ldc: COLS,
                alpha: 1.0,
                accumulate: true,
                mask: TileMask::Nothing,
                prefetch: Prefetch::NONE,
            };
            if task >= in_tasks {
                let col = (task - in_tasks) * COLS;
                let cols = (d_out - col).min(COLS);
                let sums = &mut product.at_least(rank * COLS)[..rank * COLS];
                for first in (0..n).step_by(SUM_ROWS) {
                    let job = TileJob {
                        n: cols,
                        steps: (n - first).min(SUM_ROWS),
                        a: mid_t.at(first * lanes),
                        b: dout[(rows.start + first) * d_out + col..].as_ptr(),
                        b_step: d_out,
                        c: sums.as_mut_ptr(),
                        accumulate: first > 0,
                        ..thin
                    };
                    // SAFETY: all rows are packed, `dout` holds them, `sums` is `(rank, COLS)`.
                    unsafe { tiles(&job) };
                }
                // SAFETY: this task alone touches rows `col .. col + cols` of `db`.
                let db = unsafe { std::slice::from_raw_parts_mut(db.at(col * rank), cols * rank) };
                for (j, db) in db.chunks_exact_mut(rank.max(1)).enumerate() {
                    for (r, db) in db.iter_mut().enumerate() {
                        *db += scaling * sums[r * COLS + j];
                    }
                }
                return;
            }
            let col = task * COLS;
            let cols = (d_in - col).min(COLS);
            // Rows of `A` that lie a power of two apart would push each other out of the first cache.
            let strip = &mut product.at_least(rank * COLS)[..rank * COLS];
            if dinp.is_some() {
                for (strip, a) in strip.chunks_exact_mut(COLS).zip(a.chunks_exact(d_in)) {
                    strip[..cols].copy_from_slice(&a[col..][..cols]);
                }
            }
            for first in (0..n).step_by(SUM_ROWS) {
                let m = (n - first).min(SUM_ROWS);
                let mask = dropout.map(|dropout| {
                    let (stride, words) = (COLS / WORD, cols.div_ceil(WORD));
                    let bits = mask.words(m * stride);
                    for (i, bits) in bits.chunks_exact_mut(stride).take(m).enumerate() {
                        let at = (first + i) * d_in + col;
                        let x = inp[rows.start * d_in + at..].as_ptr();
                        draw(self.isa, &mut bits[..words], dropout, at as u64, x);
                    }
                    RowMask { first: bits.as_ptr(), stride }
                });
                let job = TileJob {
                    n: cols,
                    steps: m,
                    a: dmid_t.at(first * lanes),
                    b: inp[(rows.start + first) * d_in + col..].as_ptr(),
                    b_step: d_in,
                    c: da.at(col),
                    ldc: d_in,
                    alpha: dropout_scale(dropout),
                    mask: mask.map_or(TileMask::Nothing, TileMask::B),
                    ..thin
                };
                // SAFETY: all rows are packed, `inp` holds them, `kept` their bits, and this task alone touches its
                // columns of `da`.
                unsafe { tiles(&job) };

                let Some(dinp) = dinp else { continue };
                for first_of_block in (first..first + m).step_by(block) {
                    let tall = TileJob {
                        m: (n - first_of_block).min(block),
                        steps: rank,
                        a: dmid_panels.at(first_of_block / block * tall_words),
                        a_panel: rank * lanes,
                        b: strip.as_ptr(),
                        b_step: COLS,
                        c: dinp.at((rows.start + first_of_block) * d_in + col),
                        mask: mask.map_or(TileMask::Nothing, |mask| {
                            TileMask::Product(mask.from(first_of_block - first))
                        }),
                        ..job
                    };
                    // SAFETY: as above; this task alone touches its columns of `dinp`.
                    unsafe { tiles(&tall) };
                }
            }
        });
    }
}
