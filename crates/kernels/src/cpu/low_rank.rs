//! The LoRA products: shapes so thin that each pass reads its large operand once, in place, and packs only
//! the thin one.
//!
//! Rows are cut into blocks whose size depends on their number alone, so sums over rows have one order.

use std::ops::Range;
use std::sync::Mutex;

use super::dropout::{add_scaled, factors, scale_by, scaled};
use super::pool::{Pool, Scratch, SendPtr, lock};
use crate::gemm::{Ahead, DotJob, DotRows, Kernels, PackJob, TileJob, View, part};
use crate::lora::LoraDims;
use crate::{DType, Dropout, Isa};

/// Columns of a gradient that one task sums over all rows.
const COLS: usize = 256;
/// Rows of activations multiplied by `A` while they are in L1.
const DOT_ROWS: usize = 4;

/// LoRA products in f32 on one instruction set, with their working memory.
pub(crate) struct LowRank {
    isa: Isa,
    kernels: &'static Kernels,
    shared: Mutex<Shared>,
    own: Vec<Mutex<Own>>,
}

/// What all tasks of one operation read.
#[derive(Default)]
struct Shared {
    /// `Bᵀ (R, OUT)`, rows padded to whole vectors.
    b_t: Scratch,
    /// `dmid (N, R)`.
    dmid: Scratch,
    /// Panels of `midᵀ`, of `dmidᵀ` and of `dmid`, block by block.
    panels: [Scratch; 3],
}

/// What one worker writes.
#[derive(Default)]
struct Own {
    inp: Scratch,
    factors: Scratch,
    product: Scratch,
}

/// Elements of each part of the working memory, in the order of the fields of [`Shared`].
pub(crate) struct Sizes {
    /// `b_t`, `dmid`, then the panels.
    pub shared: [usize; 5],
    /// `inp`, `factors`, `product` of each worker.
    pub own: [usize; 3],
}

/// Rows in a block: fewer when there are few, so that every thread has some.
fn block_rows(n: usize) -> usize {
    if n >= 256 { 64 } else { 16 }
}

impl LowRank {
    /// Products on `isa` for a pool of `threads`.
    pub fn new(isa: Isa, threads: usize) -> Self {
        Self {
            isa,
            kernels: Kernels::select(isa, false),
            shared: Mutex::default(),
            own: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }

    /// What [`LowRank::forward`] holds for `rows` rows.
    pub fn forward_sizes(&self, rows: usize, dims: LoraDims, dropout: bool) -> Sizes {
        let Kernels { lanes, rows: tile_rows, .. } = *self.kernels;
        let m = block_rows(rows).min(rows);
        let dropped = if dropout { m * dims.d_in } else { 0 };
        let product = m.div_ceil(tile_rows) * dims.rank * lanes;
        Sizes { shared: [dims.rank * self.b_stride(dims.d_out), 0, 0, 0, 0], own: [dropped, 0, product] }
    }

    /// What [`LowRank::backward`] holds for `rows` rows.
    pub fn backward_sizes(&self, rows: usize, dims: LoraDims, dropout: bool) -> Sizes {
        let block = block_rows(rows);
        let (blocks, m) = (rows.div_ceil(block), block.min(rows));
        let [thin, tall] = self.block_words(block, dims.rank).map(|words| blocks * words);
        let masked = if dropout { m * COLS } else { 0 };
        Sizes {
            shared: [dims.rank * self.b_stride(dims.d_out), rows * dims.rank, thin, thin, tall],
            own: [masked, masked, masked.max(dims.rank * COLS)],
        }
    }

    /// Bytes held at present.
    #[cfg(test)]
    pub fn held(&self) -> u64 {
        let shared = lock(&self.shared);
        let own = self.own.iter().map(|own| {
            let own = lock(own);
            own.inp.held() + own.factors.held() + own.product.held()
        });
        let panels: u64 = shared.panels.iter().map(Scratch::held).sum();
        shared.b_t.held() + shared.dmid.held() + panels + own.sum::<u64>()
    }

    /// Distance of the rows of `Bᵀ`.
    fn b_stride(&self, d_out: usize) -> usize {
        d_out.next_multiple_of(self.kernels.lanes)
    }

    /// Words of a block of `midᵀ`, and of one of `dmid`.
    fn block_words(&self, block: usize, rank: usize) -> [usize; 2] {
        let Kernels { lanes, rows: tile_rows, .. } = *self.kernels;
        [rank.div_ceil(tile_rows) * block * lanes, block.div_ceil(tile_rows) * rank * lanes]
    }

    /// As [`crate::lora::forward`].
    pub fn forward(
        &self,
        pool: &Pool,
        out: &mut [f32],
        mid: &mut [f32],
        inp: &[f32],
        (a, b): (&[f32], &[f32]),
        dims: LoraDims,
        rows: Range<usize>,
        dropout: Option<Dropout>,
    ) {
        let LoraDims { rank, d_in, d_out, scaling } = dims;
        assert_eq!((a.len(), b.len()), (rank * d_in, d_out * rank));
        assert!(
            out.len() >= rows.end * d_out && inp.len() >= rows.end * d_in && mid.len() >= rows.end * rank
        );
        let Kernels { lanes, rows: tile_rows, tiles, .. } = *self.kernels;
        let mut shared = lock(&self.shared);
        let (b_t, b_stride) = self.transpose_b(pool, &mut shared.b_t, b, rank, d_out);
        let (out, mid) = (SendPtr(out.as_mut_ptr()), SendPtr(mid.as_mut_ptr()));
        let block = block_rows(rows.len());
        pool.run(rows.len().div_ceil(block), |task, worker| {
            let row = rows.start + task * block;
            let m = (rows.end - row).min(block);
            let mut own = lock(&self.own[worker]);
            let Own { inp: dropped, product, .. } = &mut *own;
            let x = &inp[row * d_in..][..m * d_in];
            let x = match dropout {
                None => x,
                Some(dropout) => {
                    let dropped = &mut dropped.at_least(m * d_in)[..m * d_in];
                    factors(self.isa, dropped, dropout, (row - rows.start) as u64 * d_in as u64);
                    scale_by(self.isa, dropped, x);
                    dropped
                }
            };
            // SAFETY: this task alone touches rows `row .. row + m` of `mid`, checked above.
            let mid = unsafe { std::slice::from_raw_parts_mut(mid.at(row * rank), m * rank) };
            self.dot_rows(mid, x, (m, d_in), (a.as_ptr(), d_in), rank, 1.0);

            let packed = product.at_least(m.div_ceil(tile_rows) * rank * lanes).as_mut_ptr();
            self.pack_panels(packed, rank, View::f32(mid, rank, 1), m, rank);
            let job = TileJob {
                m,
                n: d_out,
                steps: rank,
                a: packed,
                a_panel: rank * lanes,
                b: b_t.at(0),
                b_panel: 2 * lanes,
                b_step: b_stride,
                c: out.at(row * d_out),
                ldc: d_out,
                alpha: scaling,
                accumulate: true,
                ahead: Ahead::NONE,
            };
            // SAFETY: the panels were just packed, `Bᵀ` has `rank` rows of `d_out`, and this task alone
            // touches its rows of `out`, checked above.
            unsafe { tiles(&job) };
        });
    }

    /// As [`crate::lora::backward`].
    pub fn backward(
        &self,
        pool: &Pool,
        dinp: Option<&mut [f32]>,
        (da, db): (&mut [f32], &mut [f32]),
        (dout, inp, mid): (&[f32], &[f32], &[f32]),
        (a, b): (&[f32], &[f32]),
        dims: LoraDims,
        rows: Range<usize>,
        dropout: Option<Dropout>,
    ) {
        let LoraDims { rank, d_in, d_out, scaling } = dims;
        assert_eq!((a.len(), b.len()), (rank * d_in, d_out * rank));
        assert_eq!((da.len(), db.len()), (a.len(), b.len()));
        assert!(
            dout.len() >= rows.end * d_out && inp.len() >= rows.end * d_in && mid.len() >= rows.end * rank
        );
        assert!(dinp.as_ref().is_none_or(|dinp| dinp.len() >= rows.end * d_in));
        let Kernels { lanes, tiles, .. } = *self.kernels;
        let mut shared = lock(&self.shared);
        let Shared { b_t, dmid, panels } = &mut *shared;
        let (b_t, b_stride) = self.transpose_b(pool, b_t, b, rank, d_out);

        // First every row's `dmid`, and the panels that the sums below share.
        let block = block_rows(rows.len());
        let blocks = rows.len().div_ceil(block);
        let [thin_block, tall_block] = self.block_words(block, rank);
        let dmid = SendPtr(dmid.at_least(rows.len() * rank).as_mut_ptr());
        let [mid_t, dmid_t, dmid_panels] = panels;
        let mid_t = SendPtr(mid_t.at_least(blocks * thin_block).as_mut_ptr());
        let dmid_t = SendPtr(dmid_t.at_least(blocks * thin_block).as_mut_ptr());
        let dmid_panels = SendPtr(dmid_panels.at_least(blocks * tall_block).as_mut_ptr());
        pool.run(blocks, |task, _| {
            let row = rows.start + task * block;
            let m = (rows.end - row).min(block);
            // SAFETY: this task alone touches its rows of `dmid`.
            let dmid = unsafe { std::slice::from_raw_parts_mut(dmid.at(task * block * rank), m * rank) };
            let dy = &dout[row * d_out..][..m * d_out];
            self.dot_rows(dmid, dy, (m, d_out), (b_t.at(0).cast_const(), b_stride), rank, scaling);
            let mid = &mid[row * rank..][..m * rank];
            self.pack_panels(mid_t.at(task * thin_block), block, View::f32(mid, 1, rank), rank, m);
            self.pack_panels(dmid_t.at(task * thin_block), block, View::f32(dmid, 1, rank), rank, m);
            self.pack_panels(dmid_panels.at(task * tall_block), rank, View::f32(dmid, rank, 1), m, rank);
        });

        // Then columns: those of `dB`, and those of `dA` together with `dinp`, which share a mask.
        let out_tasks = d_out.div_ceil(COLS);
        let (da, db) = (SendPtr(da.as_mut_ptr()), SendPtr(db.as_mut_ptr()));
        let dinp = dinp.map(|dinp| SendPtr(dinp.as_mut_ptr()));
        pool.run(out_tasks + d_in.div_ceil(COLS), |task, worker| {
            let mut own = lock(&self.own[worker]);
            let Own { inp: dropped, factors: mask, product } = &mut *own;
            let thin = TileJob {
                m: rank,
                n: 0,
                steps: 0,
                a: std::ptr::null(),
                a_panel: block * lanes,
                b: std::ptr::null(),
                b_panel: 2 * lanes,
                b_step: 0,
                c: std::ptr::null_mut(),
                ldc: COLS,
                alpha: 1.0,
                accumulate: true,
                ahead: Ahead::NONE,
            };
            if task < out_tasks {
                let col = task * COLS;
                let n = (d_out - col).min(COLS);
                let sums = &mut product.at_least(rank * COLS)[..rank * COLS];
                for index in 0..blocks {
                    let row = rows.start + index * block;
                    let job = TileJob {
                        n,
                        steps: (rows.end - row).min(block),
                        a: mid_t.at(index * thin_block),
                        b: dout[row * d_out + col..].as_ptr(),
                        b_step: d_out,
                        c: sums.as_mut_ptr(),
                        accumulate: index > 0,
                        ..thin
                    };
                    // SAFETY: block `index` is packed, `dout` holds its rows, `sums` is `(rank, COLS)`.
                    unsafe { tiles(&job) };
                }
                if blocks > 0 {
                    // SAFETY: this task alone touches rows `col .. col + n` of `db`.
                    let db = unsafe { std::slice::from_raw_parts_mut(db.at(col * rank), n * rank) };
                    for (j, db) in db.chunks_exact_mut(rank.max(1)).enumerate() {
                        for (r, db) in db.iter_mut().enumerate() {
                            *db += scaling * sums[r * COLS + j];
                        }
                    }
                }
                return;
            }
            let col = (task - out_tasks) * COLS;
            let n = (d_in - col).min(COLS);
            for index in 0..blocks {
                let row = rows.start + index * block;
                let m = (rows.end - row).min(block);
                let (mut x, mut x_stride) = (inp[row * d_in + col..].as_ptr(), d_in);
                if let Some(dropout) = dropout {
                    let (dropped, mask) = (dropped.at_least(m * COLS), mask.at_least(m * COLS));
                    for i in 0..m {
                        let first = (row + i) * d_in + col;
                        let mask = &mut mask[i * COLS..][..n];
                        factors(self.isa, mask, dropout, (first - rows.start * d_in) as u64);
                        let dropped = &mut dropped[i * COLS..][..n];
                        scaled(self.isa, dropped, &inp[first..][..n], mask);
                    }
                    (x, x_stride) = (dropped.as_ptr(), COLS);
                }
                let job = TileJob {
                    n,
                    steps: m,
                    a: dmid_t.at(index * thin_block),
                    b: x,
                    b_step: x_stride,
                    c: da.at(col),
                    ldc: d_in,
                    ..thin
                };
                // SAFETY: block `index` is packed, `x` holds `m` rows of `n`, and this task alone touches
                // its columns of `da`.
                unsafe { tiles(&job) };

                let Some(dinp) = dinp else { continue };
                let tall = TileJob {
                    m,
                    steps: rank,
                    a: dmid_panels.at(index * tall_block),
                    a_panel: rank * lanes,
                    b: a[col..].as_ptr(),
                    b_step: d_in,
                    c: dinp.at(row * d_in + col),
                    ..job
                };
                if dropout.is_none() {
                    // SAFETY: as above; this task alone touches its columns of `dinp`.
                    unsafe { tiles(&tall) };
                    continue;
                }
                let product = product.at_least(m * COLS);
                // SAFETY: as above, into `product (m, COLS)`.
                unsafe { tiles(&TileJob { c: product.as_mut_ptr(), ldc: COLS, accumulate: false, ..tall }) };
                let mask = mask.at_least(m * COLS);
                for i in 0..m {
                    // SAFETY: this task alone touches these columns of `dinp`.
                    let dinp = unsafe { std::slice::from_raw_parts_mut(dinp.at((row + i) * d_in + col), n) };
                    let (product, mask) = (&product[i * COLS..][..n], &mask[i * COLS..][..n]);
                    add_scaled(self.isa, dinp, product, mask);
                }
            }
        });
    }

    /// `Bᵀ (R, OUT)` and the distance of its rows.
    fn transpose_b(
        &self,
        pool: &Pool,
        b_t: &mut Scratch,
        b: &[f32],
        rank: usize,
        d_out: usize,
    ) -> (SendPtr, usize) {
        let pack = self.kernels.pack;
        let stride = self.b_stride(d_out);
        let b_t = SendPtr(b_t.at_least(rank * stride).as_mut_ptr());
        let src = View::f32(b, rank, 1);
        src.check(d_out, rank);
        pool.run(d_out.div_ceil(COLS), |task, _| {
            let outer = task * COLS;
            let (dst, outers) = (b_t.at(outer), (d_out - outer).min(COLS));
            let job = PackJob {
                dst,
                width: stride,
                panel: 0,
                src,
                outer,
                outers,
                k: 0,
                k_len: rank,
                round: false,
                ahead: Ahead::NONE,
            };
            // SAFETY: the view was checked; `COLS` is whole vectors and `stride` rounds up to them.
            unsafe { pack(&job) };
        });
        (b_t, stride)
    }

    /// `out (m, R) = alpha · inp wᵀ`, `inp (m, k)`, `w (R, k)` with rows `w_stride` apart.
    fn dot_rows(
        &self,
        out: &mut [f32],
        inp: &[f32],
        (m, k): (usize, usize),
        (w, w_stride): (*const f32, usize),
        rank: usize,
        alpha: f32,
    ) {
        assert!(out.len() >= m * rank && inp.len() >= m * k);
        for i in (0..m).step_by(DOT_ROWS) {
            let job = DotJob {
                out: out[i * rank..].as_mut_ptr(),
                out_stride: rank,
                n: (m - i).min(DOT_ROWS),
                inp: inp[i * k..].as_ptr(),
                inp_stride: k,
                w_rows: rank,
                w: DotRows::Dense { dtype: DType::F32, first: w.cast(), stride: w_stride * 4 },
                k,
                alpha,
                accumulate: false,
                round: false,
            };
            // SAFETY: rows `i ..` of `out` and `inp` exist as asserted; callers hand `rank` rows of `w`.
            unsafe { (self.kernels.dots)(&job) };
        }
    }

    /// Packs `outers` rows of `k_len` as panels of `panel_steps` steps.
    fn pack_panels(&self, dst: *mut f32, panel_steps: usize, src: View<'_>, outers: usize, k_len: usize) {
        let Kernels { lanes, rows, pack, .. } = *self.kernels;
        src.check(outers, k_len);
        let panels = outers.div_ceil(rows);
        for panel in 0..panels {
            let (outer, outers) = part(outers, panels, panel);
            let dst = dst.wrapping_add(panel * panel_steps * lanes);
            let job = PackJob {
                dst,
                width: lanes,
                panel: 0,
                src,
                outer,
                outers,
                k: 0,
                k_len,
                round: false,
                ahead: Ahead::NONE,
            };
            // SAFETY: the view was checked; callers hand room for all panels, and `k_len <= panel_steps`.
            unsafe { pack(&job) };
        }
    }
}
