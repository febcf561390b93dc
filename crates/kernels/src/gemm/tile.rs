//! The register tile of a product, once for every instruction set.

use super::micro_kernel::MicroKernel;
use super::partition::part;
use super::prefetch::Prefetch;

/// A bit for each element of some rows: those count whose bit is set. A row begins with the lowest bit of a
/// word, and what its last word has beyond the row may be anything.
#[derive(Clone, Copy)]
pub(crate) struct RowMask {
    /// First word of the first row.
    pub first: *const u32,
    /// Words from one row to the next.
    pub stride: usize,
}

impl RowMask {
    /// In place of bits that nothing reads.
    pub const ALL: Self = Self { first: std::ptr::null(), stride: 0 };

    /// From row `row` on.
    #[inline(always)]
    pub fn from(self, row: usize) -> Self {
        Self { first: self.first.wrapping_add(row * self.stride), ..self }
    }
}

/// Dropout mask applied in a tile product.
#[derive(Clone, Copy)]
pub(crate) enum TileMask {
    /// Nothing.
    Nothing,
    /// Some of `B`, in place and of f32: the rest is read as zero.
    B(RowMask),
    /// Some of the product: the rest is zero.
    Product(RowMask),
}

/// [`TileMask`] as a constant parameter.
const MASK_NOTHING: u8 = 0;
/// See [`MASK_NOTHING`].
const MASK_B: u8 = 1;
/// See [`MASK_NOTHING`].
const MASK_PRODUCT: u8 = 2;

/// `C (m, n) = alpha · A B`, or `+=`, from packed `A` and from `B` packed or in place.
#[derive(Clone, Copy)]
pub(crate) struct TileJob {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Words of `k`.
    pub steps: usize,
    /// Panels of at most [`MicroKernel::MR`] rows, `LANES` words a step.
    pub a: *const f32,
    /// Words from one panel of `A` to the next.
    pub a_panel: usize,
    /// First panel of `NR` columns.
    pub b: *const f32,
    /// Words from one panel of `B` to the next.
    pub b_panel: usize,
    /// Words from one step of `B` to the next.
    pub b_step: usize,
    /// First element of C.
    pub c: *mut f32,
    /// Elements from one row of C to the next.
    pub ldc: usize,
    /// Multiplies the product.
    pub alpha: f32,
    /// Whether to add to C or to overwrite it.
    pub accumulate: bool,
    /// Dropout mask.
    pub mask: TileMask,
    /// Memory to prefetch meanwhile.
    pub prefetch: Prefetch,
}

/// Runs a [`TileJob`]: each panel of `A` stays in L1 while the panels of `B` pass.
///
/// # Safety
/// The instruction set of `T` must be there and every pointer valid for its shape; `B` in place may be
/// read only up to column `n`.
#[inline(always)]
pub(super) unsafe fn tiles<T: MicroKernel>(job: &TileJob) {
    let width = T::NR;
    let (panels, across) = (job.m.div_ceil(T::MR), job.n.div_ceil(width));
    let mut prefetch = job.prefetch;
    let lines = prefetch.lines().div_ceil((panels * across).max(1));
    for p in 0..panels {
        let (row, rows) = part(job.m, panels, p);
        for j in 0..across {
            // SAFETY: panel `p` of A and `j` of B exist, and `row + rows <= m`, `cols <= n - j * width`.
            unsafe {
                let at = Tile {
                    a: job.a.add(p * job.a_panel),
                    b: job.b.add(j * job.b_panel),
                    c: job.c.add(row * job.ldc + j * width),
                    cols: (job.n - j * width).min(width),
                    mask: RowMask::ALL,
                    vector: 2 * j,
                };
                let prefetch = (&mut prefetch, lines);
                match job.mask {
                    TileMask::Nothing => tile_of_rows::<T, MASK_NOTHING>(rows, job, at, prefetch),
                    TileMask::B(mask) => {
                        tile_of_rows::<T, MASK_B>(rows, job, Tile { mask, ..at }, prefetch);
                    }
                    TileMask::Product(mask) => {
                        let at = Tile { mask: mask.from(row), ..at };
                        tile_of_rows::<T, MASK_PRODUCT>(rows, job, at, prefetch);
                    }
                }
            }
        }
    }
}

/// One tile of a [`TileJob`].
#[derive(Clone, Copy)]
struct Tile {
    /// Its panel of `A`.
    a: *const f32,
    /// Its panel of `B`.
    b: *const f32,
    /// Its first element of `C`.
    c: *mut f32,
    /// Its columns, at most [`MicroKernel::NR`].
    cols: usize,
    /// The mask from its first row on.
    mask: RowMask,
    /// The vector of a row of `mask` that its first column begins.
    vector: usize,
}

/// Chooses the tile compiled for `rows`.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn tile_of_rows<T: MicroKernel, const MASKED: u8>(
    rows: usize,
    job: &TileJob,
    at: Tile,
    prefetch: (&mut Prefetch, usize),
) {
    macro_rules! choose {
        ($($m:literal)*) => {
            match rows {
                // SAFETY: as the caller's; the condition keeps tiles that cannot occur from being compiled.
                $($m if $m <= T::MR => unsafe {
                    if at.cols == T::NR {
                        tile::<T, $m, false, MASKED>(job, at, prefetch)
                    } else {
                        tile::<T, $m, true, MASKED>(job, at, prefetch)
                    }
                },)*
                _ => unreachable!("a panel of {rows} rows"),
            }
        };
    }
    choose!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// One tile of `M x NR` sums, all in registers over the whole of `steps`, `k` ascending.
///
/// # Safety
/// As [`tiles`]; without `TAIL` all `NR` columns exist.
#[inline(always)]
unsafe fn tile<T: MicroKernel, const M: usize, const TAIL: bool, const MASKED: u8>(
    job: &TileJob,
    at: Tile,
    (prefetch, mut lines): (&mut Prefetch, usize),
) {
    let Tile { mut a, mut b, c, cols, mut mask, vector } = at;
    let (lower, upper) = (cols.min(T::LANES), cols.saturating_sub(T::LANES));
    // SAFETY: the caller vouches for `steps` steps of A and B and for `M` rows of `cols` columns of C; a
    // tail loads only its columns. `wrapping_add` where the right half may not exist.
    unsafe {
        let mut acc = [[T::zero(); 2]; M];
        // Rows of C lie apart, often by a power of two: they are rarely still in L1.
        for i in 0..M {
            let c = c.wrapping_add(i * job.ldc);
            T::prefetch(c.cast());
            T::prefetch(c.wrapping_add(T::NR - 1).cast());
        }
        // A few lines at a time, all over the tile: many at once would delay the loads of the tile itself.
        let mut left = job.steps;
        let (group, at_once) = ((job.steps / lines.max(1)).max(1), lines.div_ceil(job.steps.max(1)));
        while left > 0 {
            prefetch.fetch::<T>(at_once.min(lines));
            lines -= at_once.min(lines);
            let steps = group.min(left);
            left -= steps;
            for _ in 0..steps {
                let (mut b0, mut b1) = if TAIL {
                    (T::load_first(b, lower), T::load_first(b.wrapping_add(T::LANES), upper))
                } else {
                    (T::load(b), T::load(b.add(T::LANES)))
                };
                if MASKED == MASK_B {
                    (b0, b1) = mask_both::<T>((b0, b1), mask, vector);
                    mask = mask.from(1);
                }
                for i in 0..M {
                    let a = T::splat(*a.add(i));
                    acc[i][0] = T::step(acc[i][0], a, b0);
                    acc[i][1] = T::step(acc[i][1], a, b1);
                }
                a = a.add(T::LANES);
                b = b.wrapping_add(job.b_step);
            }
        }
        store_tile::<T, M, TAIL, MASKED>(job, at, acc);
    }
}

/// Stores the sums of a tile.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn store_tile<T: MicroKernel, const M: usize, const TAIL: bool, const MASKED: u8>(
    job: &TileJob,
    Tile { c, cols, mask, vector, .. }: Tile,
    acc: [[T::V; 2]; M],
) {
    let (lower, upper) = (cols.min(T::LANES), cols.saturating_sub(T::LANES));
    // SAFETY: as the caller's; a tail loads and stores only its columns.
    unsafe {
        let alpha = T::splat(job.alpha);
        for i in 0..M {
            let c0 = c.add(i * job.ldc);
            let c1 = c0.wrapping_add(T::LANES);
            let [mut s0, mut s1] = acc[i];
            if MASKED == MASK_PRODUCT {
                (s0, s1) = mask_both::<T>((s0, s1), mask.from(i), vector);
            }
            let (mut old0, mut old1) = (T::zero(), T::zero());
            if TAIL {
                if job.accumulate {
                    (old0, old1) = (T::load_first(c0, lower), T::load_first(c1, upper));
                }
                T::store_first(c0, lower, T::mul_add(old0, alpha, s0));
                T::store_first(c1, upper, T::mul_add(old1, alpha, s1));
            } else {
                if job.accumulate {
                    (old0, old1) = (T::load(c0), T::load(c1));
                }
                T::store(c0, T::mul_add(old0, alpha, s0));
                T::store(c1, T::mul_add(old1, alpha, s1));
            }
        }
    }
}

/// Vectors `vector` and the next of a row, zero where an element does not count.
///
/// # Safety
/// The instruction set of `T` must be there and the row's words readable.
#[inline(always)]
unsafe fn mask_both<T: MicroKernel>((v0, v1): (T::V, T::V), mask: RowMask, vector: usize) -> (T::V, T::V) {
    // SAFETY: as the caller's; a word has the bits of both vectors, or of more.
    unsafe {
        (T::apply_mask(v0, T::mask(mask.first, vector)), T::apply_mask(v1, T::mask(mask.first, vector + 1)))
    }
}
