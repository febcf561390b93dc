//! The register tile of a matrix multiplication, generic over the instruction set.

use super::micro_kernel::MicroKernel;
use super::partition::part;
use super::prefetch::Prefetch;

/// A dropout mask with one bit per element. An element is replaced by zero if its bit is 0. Each row begins
/// at the lowest bit of a 32-bit word. The unused bits in the last word of a row are undefined.
#[derive(Clone, Copy)]
pub(crate) struct RowMask {
    /// Pointer to the first word of the first row.
    pub first: *const u32,
    /// Distance from one row to the next, in 32-bit words.
    pub stride: usize,
}

impl RowMask {
    /// A placeholder for masks that are never read.
    pub const ALL: Self = Self { first: std::ptr::null(), stride: 0 };

    /// Returns the mask of the rows from row `row` on.
    #[inline(always)]
    pub fn from(self, row: usize) -> Self {
        Self { first: self.first.wrapping_add(row * self.stride), ..self }
    }
}

/// Dropout mask applied in a tile multiplication.
#[derive(Clone, Copy)]
pub(crate) enum TileMask {
    Nothing,
    /// Elements of `B` whose bit is not set are read as zero. `B` must be f32, and is read in place.
    B(RowMask),
    /// Elements of the product whose bit is not set become zero.
    Product(RowMask),
}

/// [`TileMask`] as a const generic parameter.
const MASK_NOTHING: u8 = 0;
const MASK_B: u8 = 1;
const MASK_PRODUCT: u8 = 2;

/// Arguments of [`tiles`]: `C (m, n) = alpha · A B`, or `+=` with `accumulate`. `A` is packed. `B` is packed
/// or read in place.
#[derive(Clone, Copy)]
pub(crate) struct TileJob {
    pub m: usize,
    pub n: usize,
    /// Number of 32-bit words along `k`.
    pub steps: usize,
    /// Pointer to the first panel of `A`. A panel has at most [`MicroKernel::MR`] rows, and `LANES` words for
    /// each of the `steps`.
    pub a: *const f32,
    /// Distance from one panel of `A` to the next, in 32-bit words.
    pub a_panel: usize,
    /// Pointer to the first panel of `B`. A panel has `NR` columns.
    pub b: *const f32,
    /// Distance from one panel of `B` to the next, in 32-bit words.
    pub b_panel: usize,
    /// Distance in `B` from one word along `k` to the next, in 32-bit words.
    pub b_step: usize,
    pub c: *mut f32,
    /// Distance from one row of C to the next, in elements.
    pub ldc: usize,
    pub alpha: f32,
    pub accumulate: bool,
    pub mask: TileMask,
    /// Memory that is prefetched during the multiplication.
    pub prefetch: Prefetch,
}

/// Runs a [`TileJob`]. Each panel of `A` stays in L1 while the panel is multiplied by all panels of `B`.
///
/// # Safety
/// The processor must support the instruction set of `T`, and every pointer must be valid for its shape. If
/// `B` is not packed, only columns below `n` are read.
#[inline(always)]
pub(super) unsafe fn tiles<T: MicroKernel>(job: &TileJob) {
    let width = T::NR;
    let (panels, across) = (job.m.div_ceil(T::MR), job.n.div_ceil(width));
    let mut prefetch = job.prefetch;
    let lines = prefetch.lines().div_ceil((panels * across).max(1));
    for p in 0..panels {
        let (row, rows) = part(job.m, panels, p);
        for j in 0..across {
            // SAFETY: panel `p` of `A` and panel `j` of `B` exist. `row + rows <= m`, and
            // `cols <= n - j * width`.
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
    /// Pointer to the panel of `A`.
    a: *const f32,
    /// Pointer to the panel of `B`.
    b: *const f32,
    /// Pointer to the first element of the tile in C.
    c: *mut f32,
    /// Number of columns, at most [`MicroKernel::NR`].
    cols: usize,
    /// The mask, from the first row of the tile on.
    mask: RowMask,
    /// Position of the tile's first vector within a row of the mask.
    vector: usize,
}

/// Runs the tile function that was compiled for `rows` rows.
///
/// # Safety
/// The requirements of [`tiles`] apply.
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
                // SAFETY: the caller meets the safety requirements. The condition avoids compiling tiles of
                // more than `MR` rows.
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

/// Computes one tile of `M x NR` elements over all `steps`, in ascending order of `k`. The accumulators stay
/// in registers.
///
/// # Safety
/// The requirements of [`tiles`] apply. If `TAIL` is not set, all `NR` columns must exist.
#[inline(always)]
unsafe fn tile<T: MicroKernel, const M: usize, const TAIL: bool, const MASKED: u8>(
    job: &TileJob,
    at: Tile,
    (prefetch, mut lines): (&mut Prefetch, usize),
) {
    let Tile { mut a, mut b, c, cols, mut mask, vector } = at;
    let (lower, upper) = (cols.min(T::LANES), cols.saturating_sub(T::LANES));
    // SAFETY: the caller guarantees that `A` and `B` have `steps` words along `k`, and that C has `M` rows
    // and `cols` columns. With `TAIL`, only existing columns are loaded. The right half of the columns may
    // not exist, so the code uses `wrapping_add`.
    unsafe {
        let mut acc = [[T::zero(); 2]; M];
        // The addresses of the rows of C often differ by a power of two. Such rows compete for few lines of
        // L1, so they are probably not in L1. The prefetch hides the delay.
        for i in 0..M {
            let c = c.wrapping_add(i * job.ldc);
            T::prefetch(c.cast());
            T::prefetch(c.wrapping_add(T::NR - 1).cast());
        }
        // The prefetches are spread over the tile, because many prefetches at once would delay the loads of
        // the tile.
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

/// Stores the accumulators of a tile in C.
///
/// # Safety
/// The requirements of [`tile`] apply.
#[inline(always)]
unsafe fn store_tile<T: MicroKernel, const M: usize, const TAIL: bool, const MASKED: u8>(
    job: &TileJob,
    Tile { c, cols, mask, vector, .. }: Tile,
    acc: [[T::V; 2]; M],
) {
    let (lower, upper) = (cols.min(T::LANES), cols.saturating_sub(T::LANES));
    // SAFETY: the caller meets the safety requirements. With `TAIL`, only existing columns are loaded and
    // stored.
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

/// Returns `v0` and `v1`, with zeros in all lanes whose bit is not set. The bits are those of vectors number
/// `vector` and `vector + 1`.
///
/// # Safety
/// The processor must support the instruction set of `T`, and the words of the mask must be readable.
#[inline(always)]
unsafe fn mask_both<T: MicroKernel>((v0, v1): (T::V, T::V), mask: RowMask, vector: usize) -> (T::V, T::V) {
    // SAFETY: the caller meets the safety requirements. One word of the mask contains the bits of both
    // vectors.
    unsafe {
        (T::apply_mask(v0, T::mask(mask.first, vector)), T::apply_mask(v1, T::mask(mask.first, vector + 1)))
    }
}
