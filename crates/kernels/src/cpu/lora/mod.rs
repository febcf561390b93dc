//! The LoRA products: shapes so thin that each pass reads its large operand once, in place, and packs only
//! the thin one. What dropout drops is masked where an operand is read or a product added, and never stored.
//!
//! Rows are cut into blocks whose size depends on their number alone, so sums over rows have one order.

mod backward;
mod forward;

use std::sync::Mutex;

use super::dropout::WORD;
#[cfg(test)]
use super::pool::lock;
use super::pool::{Pool, Scratch, SendPtr};
use crate::gemm::{DotJob, DotRows, Kernels, PackJob, RowMask, View};
use crate::lora::LoraDims;
use crate::{DType, Dropout, Isa};

/// Columns of a gradient that one task sums over all rows.
const COLS: usize = 128;
/// Rows that a sum takes at a time, whole blocks: what is packed of them stays in L1.
const SUM_ROWS: usize = 256;
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
    /// Panels of `midᵀ` and of `dmidᵀ`, and of `dmid` block by block.
    panels: [Scratch; 3],
}

/// What one worker writes.
#[derive(Default)]
struct Own {
    /// The bits of what dropout keeps.
    mask: Scratch,
    product: Scratch,
}

/// Elements of each part of the working memory, in the order of the fields of [`Shared`].
pub(crate) struct Sizes {
    /// `b_t`, `dmid`, then the panels.
    pub shared: [usize; 5],
    /// `kept` and `product` of each worker.
    pub own: [usize; 2],
}

/// The shape of [`LowRank::dot_rows`], and the factor of its result.
#[derive(Clone, Copy)]
struct DotShape {
    m: usize,
    k: usize,
    rank: usize,
    alpha: f32,
}

/// Rows in a block: fewer when there are few, so that every thread has some.
fn block_rows(n: usize) -> usize {
    if n >= 256 { 64 } else { 16 }
}

/// What multiplies the elements that dropout keeps.
fn dropout_scale(dropout: Option<Dropout>) -> f32 {
    dropout.map_or(1.0, |dropout| 1.0 / (1.0 - dropout.probability))
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
        if rows == 0 {
            return Sizes { shared: [0; 5], own: [0; 2] };
        }
        let m = block_rows(rows).min(rows);
        let mask = if dropout { m * dims.d_in.div_ceil(WORD) } else { 0 };
        let b_t = dims.rank * dims.d_out.next_multiple_of(self.tile_width());
        Sizes { shared: [b_t, 0, 0, 0, 0], own: [mask, self.tall_words(m, dims.rank)] }
    }

    /// What [`LowRank::backward`] holds for `rows` rows.
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

    /// Bytes held at present.
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

    /// Columns of a panel that holds all of `Bᵀ`.
    fn whole_width(&self, d_out: usize) -> usize {
        d_out.next_multiple_of(self.kernels.lanes)
    }

    /// Columns of a panel as tiles take them.
    fn tile_width(&self) -> usize {
        self.kernels.nr
    }

    /// Words of the panels of `midᵀ (R, N)`, each with a step for every row.
    fn thin_words(&self, rows: usize, rank: usize) -> usize {
        rank.div_ceil(self.kernels.mr) * rows * self.kernels.lanes
    }

    /// Words of the panels of `m` rows of `mid (N, R)`.
    fn tall_words(&self, m: usize, rank: usize) -> usize {
        m.div_ceil(self.kernels.mr) * rank * self.kernels.lanes
    }

    /// `Bᵀ (R, OUT)` in panels of `width` columns, whole vectors.
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
            // SAFETY: the view was checked; `COLS` is whole panels or part of the only one, which is whole vectors.
            unsafe { pack(&job) };
        });
        b_t
    }

    /// `out (m, R) = alpha · inp wᵀ`, with masked elements of `inp (m, k)` taken as zero, `w (R, k)` with rows
    /// `w_stride` apart.
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
            // SAFETY: rows `i ..` of `out` and `inp` exist as asserted; callers hand `rank` rows of `w` and the bits of
            // `m` rows of `k`.
            unsafe { (self.kernels.dots)(&job) };
        }
    }

    /// Packs `m` rows of `k` as panels of `panel_steps` steps, at least `k`; `dst` has room for all of them.
    fn pack_panels(&self, dst: *mut f32, panel_steps: usize, src: View<'_>, m: usize, k: usize) {
        // SAFETY: callers hand room for all panels.
        unsafe { self.kernels.pack_panels(dst, panel_steps * self.kernels.lanes, src, (m, k), false) };
    }
}
