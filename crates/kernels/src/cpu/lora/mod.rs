//! LoRA's matrix multiplications. One operand has only `R` rows or columns, and only this operand is packed.
//! The other operand is read in place. A dropout mask is applied when an operand is read or when a result is
//! added. Masked copies are never stored.
//!
//! The number of rows in a block depends only on the total number of rows, so the order of sums over rows is
//! fixed.

mod backward;
mod decode;
mod forward;

use std::sync::Mutex;

pub(crate) use self::decode::{decode_pairs, is_packed, prefetch_columns, shrink_tasks};
use super::dropout::WORD;
#[cfg(test)]
use super::pool::lock;
use super::pool::{Pool, Scratch, SendPtr};
use crate::gemm::{DotJob, DotRows, Kernels, PackJob, RowMask, View};
use crate::lora::LoraDims;
use crate::{DType, Dropout, Isa};

/// Maximum number of columns of a gradient that one task computes. The task adds up all rows.
const COLS: usize = 128;
/// Minimum number of columns of such a task. Every larger number is a multiple of this number.
const MIN_COLS: usize = 32;
/// Number of rows, in whole blocks, whose contributions to a gradient are added at once. The packed operands
/// of these rows stay in L1.
const SUM_ROWS: usize = 256;
/// Number of rows of activations that are multiplied by `A` while the rows are in L1.
const DOT_ROWS: usize = 4;

/// LoRA's matrix multiplications in f32 with one instruction set, and their working memory.
pub(crate) struct LowRank {
    isa: Isa,
    kernels: &'static Kernels,
    shared: Mutex<Shared>,
    own: Vec<Mutex<Own>>,
}

/// Packed operands that all tasks of one operation read.
#[derive(Default)]
struct Shared {
    /// `Bᵀ (R, OUT)`. Its rows are padded to whole vectors.
    b_t: Scratch,
    /// Gradient of `mid`, `(N, R)`.
    dmid: Scratch,
    /// Packed `midᵀ`, packed `dmidᵀ`, and `dmid` packed block by block.
    panels: [Scratch; 3],
}

/// Working memory of one thread.
#[derive(Default)]
struct Own {
    /// Bits of the dropout mask.
    mask: Scratch,
    product: Scratch,
}

/// Number of elements of each buffer of the working memory.
pub(crate) struct Sizes {
    /// Lengths of `b_t`, `dmid` and the three panels.
    pub shared: [usize; 5],
    /// Lengths of `mask` and `product` of each thread.
    pub own: [usize; 2],
}

/// Shape of [`LowRank::dot_rows`], and the factor of its result.
#[derive(Clone, Copy)]
struct DotShape {
    m: usize,
    k: usize,
    rank: usize,
    alpha: f32,
}

/// Returns the number of rows in a block. Blocks are smaller if there are fewer rows, so that every thread
/// gets some blocks.
fn block_rows(n: usize) -> usize {
    if n >= 256 { 64 } else { 16 }
}

/// Returns the number of columns of a gradient that one task computes, so that each thread gets some of the
/// `cols` columns. The number does not change any sum.
fn strip_cols(cols: usize, threads: usize) -> usize {
    match threads {
        1 => COLS,
        _ => (cols / threads).next_multiple_of(MIN_COLS).clamp(MIN_COLS, COLS),
    }
}

/// Returns the factor of the elements that dropout does not zero.
fn dropout_scale(dropout: Option<Dropout>) -> f32 {
    dropout.map_or(1.0, |dropout| 1.0 / (1.0 - dropout.probability))
}

impl LowRank {
    /// Creates the multiplications for `isa` and for a pool of `threads` threads.
    pub fn new(isa: Isa, threads: usize) -> Self {
        Self {
            isa,
            kernels: Kernels::select(isa, false),
            shared: Mutex::default(),
            own: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }

    /// Returns the sizes of the working memory of [`LowRank::forward`] for `rows` rows.
    pub fn forward_sizes(&self, rows: usize, dims: LoraDims, dropout: bool) -> Sizes {
        if rows == 0 {
            return Sizes { shared: [0; 5], own: [0; 2] };
        }
        let m = block_rows(rows).min(rows);
        let mask = if dropout { m * dims.d_in.div_ceil(WORD) } else { 0 };
        let b_t = dims.rank * dims.d_out.next_multiple_of(self.tile_width());
        Sizes { shared: [b_t, 0, 0, 0, 0], own: [mask, self.tall_words(m, dims.rank)] }
    }

    /// Returns the sizes of the working memory of [`LowRank::backward`] for `rows` rows.
    pub fn backward_sizes(&self, rows: usize, dims: LoraDims, dropout: bool) -> Sizes {
        if rows == 0 {
            return Sizes { shared: [0; 5], own: [0; 2] };
        }
        let block = block_rows(rows);
        let thin = self.thin_words(rows, dims.rank);
        let tall = rows.div_ceil(block) * self.tall_words(block, dims.rank);
        let mask = if dropout { rows.min(SUM_ROWS) * (COLS / WORD) } else { 0 };
        Sizes {
            shared: [dims.rank * self.whole_width(dims.d_out), rows * dims.rank, thin, thin, tall],
            own: [mask, dims.rank * COLS],
        }
    }

    #[cfg(test)]
    pub fn allocated_bytes(&self) -> u64 {
        let shared = lock(&self.shared);
        let own = self.own.iter().map(|own| {
            let own = lock(own);
            own.mask.allocated_bytes() + own.product.allocated_bytes()
        });
        let panels: u64 = shared.panels.iter().map(Scratch::allocated_bytes).sum();
        shared.b_t.allocated_bytes() + shared.dmid.allocated_bytes() + panels + own.sum::<u64>()
    }

    /// Returns the number of columns of a panel that contains all of `Bᵀ`.
    fn whole_width(&self, d_out: usize) -> usize {
        d_out.next_multiple_of(self.kernels.lanes)
    }

    fn tile_width(&self) -> usize {
        self.kernels.nr
    }

    /// Returns the number of elements of packed `midᵀ (R, N)`.
    fn thin_words(&self, rows: usize, rank: usize) -> usize {
        rank.div_ceil(self.kernels.mr) * rows * self.kernels.lanes
    }

    /// Returns the number of elements of `m` packed rows of `mid (N, R)`.
    fn tall_words(&self, m: usize, rank: usize) -> usize {
        m.div_ceil(self.kernels.mr) * rank * self.kernels.lanes
    }

    /// Packs `Bᵀ (R, OUT)` into panels of `width` columns, rounded up to whole vectors.
    fn transpose_b(
        &self,
        pool: &Pool,
        b_t: &mut Scratch,
        b: &[f32],
        (rank, d_out): (usize, usize),
        width: usize,
    ) -> SendPtr {
        let pack = self.kernels.pack;
        let panel = rank * width;
        let b_t = SendPtr(b_t.at_least(d_out.div_ceil(width) * panel).as_mut_ptr());
        let src = View::f32(b, rank, 1);
        src.check(d_out, rank);
        pool.run(d_out.div_ceil(COLS), |task, _| {
            let outer = task * COLS;
            let outers = (d_out - outer).min(COLS);
            let dst = b_t.at(outer / width * panel + outer % width);
            let job = PackJob { panel, ..PackJob::new(dst, width, src, (outer, outers), (0, rank), false) };
            // SAFETY: `check` covers the view. `COLS` columns are whole panels, or they are in the only
            // panel, which is made of whole vectors.
            unsafe { pack(&job) };
        });
        b_t
    }

    /// Computes `out (m, R) = alpha · inp wᵀ`. Masked elements of `inp (m, k)` count as zero. The rows of
    /// `w (R, k)` are `w_stride` elements apart.
    fn dot_rows(
        &self,
        out: &mut [f32],
        inp: &[f32],
        mask: Option<RowMask>,
        (w, w_stride): (*const f32, usize),
        DotShape { m, k, rank, alpha }: DotShape,
    ) {
        assert!(out.len() >= m * rank && inp.len() >= m * k);
        for i in (0..m).step_by(DOT_ROWS) {
            let job = DotJob {
                out: out[i * rank..].as_mut_ptr(),
                out_stride: rank,
                n: (m - i).min(DOT_ROWS),
                inp: inp[i * k..].as_ptr(),
                inp_stride: k,
                mask: mask.map(|mask| mask.from(i)),
                w_rows: rank,
                w: DotRows::Dense { dtype: DType::F32, first: w.cast(), stride: w_stride * 4 },
                k,
                alpha,
                accumulate: false,
                round: false,
            };
            // SAFETY: the assertions above check that the rows from `i` on exist in `out` and `inp`. Callers
            // pass `rank` rows of `w` and the mask bits of `m` rows of `k` elements.
            unsafe { (self.kernels.dots)(&job) };
        }
    }

    /// Packs `m` rows of `k` elements into panels with room for `panel_steps` elements per row. `dst` has
    /// space for all panels.
    fn pack_panels(&self, dst: *mut f32, panel_steps: usize, src: View<'_>, m: usize, k: usize) {
        // SAFETY: callers pass a `dst` with space for all panels.
        unsafe { self.kernels.pack_panels(dst, panel_steps * self.kernels.lanes, src, (m, k), false) };
    }
}
