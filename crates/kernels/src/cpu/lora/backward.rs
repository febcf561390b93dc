//! Computes `dA`, `dB` and `dinp`. First `dmid` is computed for every row. Then each task computes one strip
//! of at most [`COLS`] columns of a gradient, summed over all rows.

use std::ops::Range;

use super::{COLS, DotShape, LowRank, Own, SUM_ROWS, Shared, block_rows, dropout_scale, strip_cols};
use crate::Dropout;
use crate::cpu::dropout::{WORD, draw};
use crate::cpu::pool::{Pool, Scratch, SendPtr, lock};
use crate::gemm::{Kernels, Prefetch, RowMask, TileJob, TileMask, View};
use crate::lora::{LoraDims, LoraParams};

impl LowRank {
    /// Computes [`crate::lora::backward`] in f32.
    pub fn backward(
        &self,
        pool: &Pool,
        dinp: Option<&mut [f32]>,
        [da, db]: [&mut [f32]; 2],
        (dout, inp, mid): (&[f32], &[f32], &[f32]),
        params: LoraParams<'_>,
        rows: Range<usize>,
    ) {
        let LoraParams { a, b, dims: LoraDims { rank, d_in, d_out, .. }, .. } = params;
        params.check();
        assert_eq!((da.len(), db.len()), (a.len(), b.len()));
        assert!(
            dout.len() >= rows.end * d_out && inp.len() >= rows.end * d_in && mid.len() >= rows.end * rank
        );
        assert!(dinp.as_ref().is_none_or(|dinp| dinp.len() >= rows.end * d_in));
        if rows.is_empty() {
            return;
        }
        let mut shared = lock(&self.shared);
        let Shared { b_t, dmid, panels } = &mut *shared;
        let b_t =
            (self.transpose_b(pool, b_t, b, (rank, d_out), self.whole_width(d_out)), self.whole_width(d_out));
        let n = rows.len();
        let block = block_rows(n);
        let lens = [self.thin_words(n, rank), self.thin_words(n, rank)];
        let [mid_t, dmid_t, dmid_panels] = panels;
        let sums = Sums {
            first_row: rows.start,
            n,
            block,
            tall_words: self.tall_words(block, rank),
            dmid: SendPtr(dmid.at_least(n * rank).as_mut_ptr()),
            mid_t: SendPtr(mid_t.at_least(lens[0]).as_mut_ptr()),
            dmid_t: SendPtr(dmid_t.at_least(lens[1]).as_mut_ptr()),
            dmid_panels: SendPtr(
                dmid_panels.at_least(n.div_ceil(block) * self.tall_words(block, rank)).as_mut_ptr(),
            ),
            dout,
            inp,
            mid,
            params,
        };
        // The first parallel region computes `dmid` of every row, and packs the operands of the second
        // region.
        pool.run(n.div_ceil(block), |task, _| self.dmid_rows(&sums, task, b_t));
        // The second parallel region computes strips of columns. One task computes both `dA` and `dinp` of a
        // strip, because both need the strip's dropout mask. `dB` is cheaper, so its tasks run last.
        let strip = |d: usize| {
            let cols = strip_cols(d, pool.threads());
            (d.div_ceil(cols), move |task: usize| (task * cols, (d - task * cols).min(cols)))
        };
        let ((in_tasks, strip_in), (out_tasks, strip_out)) = (strip(d_in), strip(d_out));
        let (da, db) = (SendPtr(da.as_mut_ptr()), SendPtr(db.as_mut_ptr()));
        let dinp = dinp.map(|dinp| SendPtr(dinp.as_mut_ptr()));
        pool.run(in_tasks + out_tasks, |task, worker| {
            let own = &mut lock(&self.own[worker]);
            match task.checked_sub(in_tasks) {
                Some(task) => self.sum_db(&sums, strip_out(task), own, db),
                None => self.sum_da(&sums, strip_in(task), own, da, dinp),
            }
        });
    }

    /// Computes `dmid` of a block of rows, and packs it.
    fn dmid_rows(&self, sums: &Sums<'_>, task: usize, (b_t, b_stride): (SendPtr, usize)) {
        let LoraDims { rank, d_out, scaling, .. } = sums.params.dims;
        let (lanes, n, first) = (self.kernels.lanes, sums.n, task * sums.block);
        let (row, m) = (sums.first_row + first, (n - first).min(sums.block));
        // SAFETY: only this task accesses these rows of `dmid`.
        let dmid = unsafe { std::slice::from_raw_parts_mut(sums.dmid.at(first * rank), m * rank) };
        let dy = &sums.dout[row * d_out..][..m * d_out];
        let shape = DotShape { m, k: d_out, rank, alpha: scaling };
        self.dot_rows(dmid, dy, None, (b_t.at(0).cast_const(), b_stride), shape);
        let mid = &sums.mid[row * rank..][..m * rank];
        self.pack_panels(sums.mid_t.at(first * lanes), n, View::f32(mid, 1, rank), rank, m);
        self.pack_panels(sums.dmid_t.at(first * lanes), n, View::f32(dmid, 1, rank), rank, m);
        let tall = sums.dmid_panels.at(task * sums.tall_words);
        self.pack_panels(tall, rank, View::f32(dmid, rank, 1), m, rank);
    }

    /// Returns the fields that the multiplications by packed `midᵀ` and packed `dmidᵀ` have in common.
    fn thin_job(&self, sums: &Sums<'_>) -> TileJob {
        let Kernels { lanes, nr, .. } = *self.kernels;
        TileJob {
            m: sums.params.dims.rank,
            n: 0,
            steps: 0,
            a: std::ptr::null(),
            a_panel: sums.n * lanes,
            b: std::ptr::null(),
            b_panel: nr,
            b_step: 0,
            c: std::ptr::null_mut(),
            ldc: COLS,
            alpha: 1.0,
            accumulate: true,
            mask: TileMask::Nothing,
            prefetch: Prefetch::NONE,
        }
    }

    /// Computes `dB += scaling · doutᵀ mid` for a strip of outputs, `(first, count)`.
    fn sum_db(&self, sums: &Sums<'_>, (col, cols): (usize, usize), own: &mut Own, db: SendPtr) {
        let LoraDims { rank, d_out, scaling, .. } = sums.params.dims;
        let product = &mut own.product.at_least(rank * COLS)[..rank * COLS];
        for first in (0..sums.n).step_by(SUM_ROWS) {
            let job = TileJob {
                n: cols,
                steps: (sums.n - first).min(SUM_ROWS),
                a: sums.mid_t.at(first * self.kernels.lanes),
                b: sums.dout[(sums.first_row + first) * d_out + col..].as_ptr(),
                b_step: d_out,
                c: product.as_mut_ptr(),
                accumulate: first > 0,
                ..self.thin_job(sums)
            };
            // SAFETY: all rows are packed, `dout` contains these rows, and `product` is `(rank, COLS)`.
            unsafe { (self.kernels.tiles)(&job) };
        }
        // SAFETY: only this task accesses rows `col .. col + cols` of `db`.
        let db = unsafe { std::slice::from_raw_parts_mut(db.at(col * rank), cols * rank) };
        for (j, db) in db.chunks_exact_mut(rank.max(1)).enumerate() {
            for (r, db) in db.iter_mut().enumerate() {
                *db += scaling * product[r * COLS + j];
            }
        }
    }

    /// Computes `dA += dmidᵀ drop(inp)` and the optional `dinp += drop(dmid A)` with the same dropout mask,
    /// for a strip of inputs, `(first, count)`.
    fn sum_da(
        &self,
        sums: &Sums<'_>,
        (col, cols): (usize, usize),
        own: &mut Own,
        da: SendPtr,
        dinp: Option<SendPtr>,
    ) {
        let LoraParams { a, dims: LoraDims { rank, d_in, .. }, dropout, .. } = sums.params;
        let Own { mask, product } = own;
        // The strip is copied, because rows of `A` that are a power of two apart would evict each other from
        // L1.
        let strip = &mut product.at_least(rank * COLS)[..rank * COLS];
        if dinp.is_some() {
            for (strip, a) in strip.chunks_exact_mut(COLS).zip(a.chunks_exact(d_in)) {
                strip[..cols].copy_from_slice(&a[col..][..cols]);
            }
        }
        for first in (0..sums.n).step_by(SUM_ROWS) {
            let m = (sums.n - first).min(SUM_ROWS);
            let mask = dropout.map(|dropout| self.draw_mask(sums, mask, dropout, (first, m), (col, cols)));
            let job = TileJob {
                n: cols,
                steps: m,
                a: sums.dmid_t.at(first * self.kernels.lanes),
                b: sums.inp[(sums.first_row + first) * d_in + col..].as_ptr(),
                b_step: d_in,
                c: da.at(col),
                ldc: d_in,
                alpha: dropout_scale(dropout),
                mask: mask.map_or(TileMask::Nothing, TileMask::B),
                ..self.thin_job(sums)
            };
            // SAFETY: all rows are packed, `inp` contains these rows, and the mask contains their bits. Only
            // this task accesses these columns of `da`.
            unsafe { (self.kernels.tiles)(&job) };

            let Some(dinp) = dinp else { continue };
            for row in (first..first + m).step_by(sums.block) {
                let tall = TileJob {
                    m: (sums.n - row).min(sums.block),
                    steps: rank,
                    a: sums.dmid_panels.at(row / sums.block * sums.tall_words),
                    a_panel: rank * self.kernels.lanes,
                    b: strip.as_ptr(),
                    b_step: COLS,
                    c: dinp.at((sums.first_row + row) * d_in + col),
                    mask: mask.map_or(TileMask::Nothing, |mask| TileMask::Product(mask.from(row - first))),
                    ..job
                };
                // SAFETY: all rows are packed, and only this task accesses these columns of `dinp`.
                unsafe { (self.kernels.tiles)(&tall) };
            }
        }
    }

    /// Draws the dropout mask of `m` rows and `cols` columns. The first row is `first`, and the first column
    /// is `col`.
    fn draw_mask(
        &self,
        sums: &Sums<'_>,
        bits: &mut Scratch,
        dropout: Dropout,
        (first, m): (usize, usize),
        (col, cols): (usize, usize),
    ) -> RowMask {
        let (stride, words, d_in) = (COLS / WORD, cols.div_ceil(WORD), sums.params.dims.d_in);
        let bits = bits.words(m * stride);
        for (i, bits) in bits.chunks_exact_mut(stride).take(m).enumerate() {
            let at = (first + i) * d_in + col;
            let x = sums.inp[sums.first_row * d_in + at..].as_ptr();
            draw(self.isa, &mut bits[..words], dropout, at as u64, x);
        }
        RowMask { first: bits.as_ptr(), stride }
    }
}

/// Operands that all tasks of a backward pass share.
struct Sums<'a> {
    first_row: usize,
    /// Number of rows.
    n: usize,
    /// Number of rows in one block.
    block: usize,
    /// Number of elements in the packed `dmid` of one block.
    tall_words: usize,
    /// Gradient of `mid`, `(n, R)`.
    dmid: SendPtr,
    /// Packed `midᵀ`.
    mid_t: SendPtr,
    /// Packed `dmidᵀ`.
    dmid_t: SendPtr,
    /// `dmid`, packed block by block.
    dmid_panels: SendPtr,
    dout: &'a [f32],
    inp: &'a [f32],
    mid: &'a [f32],
    params: LoraParams<'a>,
}
