//! The register tile of a product and the dot products of a few rows, once for every instruction set.

use super::ahead::Ahead;
use super::four_bit;
use super::lanes::{BF16, F16, F32, Lanes, size_of_source};
use crate::{DType, FourBit};

/// `C (m, n) = alpha · A B`, or `+=`, from packed `A` and from `B` packed or in place.
#[derive(Clone, Copy)]
pub(crate) struct TileJob {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Words of `k`.
    pub steps: usize,
    /// Panels of at most [`Lanes::ROWS`] rows, `LANES` words a step.
    pub a: *const f32,
    /// Words from one panel of `A` to the next.
    pub a_panel: usize,
    /// First panel of `2 LANES` columns.
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
    /// What to fetch from memory meanwhile.
    pub ahead: Ahead,
}

/// Rows of a weight as they lie in memory, one after another.
#[derive(Clone, Copy)]
pub(crate) enum DotRows<'a> {
    /// Elements of one type.
    Dense {
        /// That type.
        dtype: DType,
        /// First element.
        first: *const u8,
        /// Bytes from one row to the next.
        stride: usize,
    },
    /// Rows of a weight in 4 bits, from this one on.
    FourBit(&'a FourBit, usize),
}

/// `out[i, j] = alpha · inp[i] · w[j]`, or `+=`: rows of words against rows as they lie in memory.
#[derive(Clone, Copy)]
pub(crate) struct DotJob<'a> {
    /// First element of the output.
    pub out: *mut f32,
    /// Elements from one row of the output to the next.
    pub out_stride: usize,
    /// Rows of `inp`.
    pub n: usize,
    /// First word of `inp`.
    pub inp: *const f32,
    /// Words from one row of `inp` to the next.
    pub inp_stride: usize,
    /// Rows of `w`.
    pub w_rows: usize,
    /// Those rows.
    pub w: DotRows<'a>,
    /// Elements of a row of `w`.
    pub k: usize,
    /// Multiplies the product.
    pub alpha: f32,
    /// Whether to add to the output or to overwrite it.
    pub accumulate: bool,
    /// Whether f32 words of `w` are rounded to bf16.
    pub round: bool,
    /// Whether to fetch rows of `w` from memory before their turn.
    pub ahead: bool,
}

/// Rows `part` of `parts` nearly equal parts of `m` rows, as `(first, count)`.
#[inline(always)]
pub(crate) fn part(m: usize, parts: usize, part: usize) -> (usize, usize) {
    let (size, longer) = (m / parts, m % parts);
    (part * size + part.min(longer), size + usize::from(part < longer))
}

/// Runs a [`TileJob`]: each panel of `A` stays in L1 while the panels of `B` pass.
///
/// # Safety
/// The instruction set of `T` must be there and every pointer valid for its shape; `B` in place may be
/// read only up to column `n`.
#[inline(always)]
pub(super) unsafe fn tiles<T: Lanes>(job: &TileJob) {
    let width = 2 * T::LANES;
    let (panels, across) = (job.m.div_ceil(T::ROWS), job.n.div_ceil(width));
    let mut ahead = job.ahead;
    let lines = ahead.lines().div_ceil((panels * across).max(1));
    for p in 0..panels {
        let (row, rows) = part(job.m, panels, p);
        for j in 0..across {
            // SAFETY: panel `p` of A and `j` of B exist, and `row + rows <= m`, `cols <= n - j * width`.
            unsafe {
                let a = job.a.add(p * job.a_panel);
                let b = job.b.add(j * job.b_panel);
                let c = job.c.add(row * job.ldc + j * width);
                ahead.fetch::<T>(lines);
                tile_of_rows::<T>(rows, job, a, b, c, (job.n - j * width).min(width));
            }
        }
    }
}

/// Chooses the tile compiled for `rows`.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn tile_of_rows<T: Lanes>(
    rows: usize,
    job: &TileJob,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    cols: usize,
) {
    macro_rules! choose {
        ($($m:literal)*) => {
            match rows {
                // SAFETY: as the caller's; the condition keeps tiles that cannot occur from being compiled.
                $($m if $m <= T::ROWS => unsafe {
                    if cols == 2 * T::LANES {
                        tile::<T, $m, false>(job, a, b, c, cols)
                    } else {
                        tile::<T, $m, true>(job, a, b, c, cols)
                    }
                },)*
                _ => unreachable!("a panel of {rows} rows"),
            }
        };
    }
    choose!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// One tile of `M x 2 LANES` sums, all in registers over the whole of `steps`, `k` ascending.
///
/// # Safety
/// As [`tiles`]; without `TAIL` all `2 LANES` columns exist.
#[inline(always)]
unsafe fn tile<T: Lanes, const M: usize, const TAIL: bool>(
    job: &TileJob,
    mut a: *const f32,
    mut b: *const f32,
    c: *mut f32,
    cols: usize,
) {
    let (left, right) = (cols.min(T::LANES), cols.saturating_sub(T::LANES));
    // SAFETY: the caller vouches for `steps` steps of A and B and for `M` rows of `cols` columns of C; a
    // tail loads and stores only its columns. `wrapping_add` where the right half may not exist.
    unsafe {
        let mut acc = [[T::zero(); 2]; M];
        // Rows of C lie apart, often by a power of two: they are rarely still in L1.
        for i in 0..M {
            let c = c.wrapping_add(i * job.ldc);
            T::prefetch(c.cast());
            T::prefetch(c.wrapping_add(2 * T::LANES - 1).cast());
        }
        for _ in 0..job.steps {
            let (b0, b1) = if TAIL {
                (T::load_first(b, left), T::load_first(b.wrapping_add(T::LANES), right))
            } else {
                (T::load(b), T::load(b.add(T::LANES)))
            };
            for i in 0..M {
                let a = T::splat(*a.add(i));
                acc[i][0] = T::step(acc[i][0], a, b0);
                acc[i][1] = T::step(acc[i][1], a, b1);
            }
            a = a.add(T::LANES);
            b = b.wrapping_add(job.b_step);
        }
        let alpha = T::splat(job.alpha);
        for i in 0..M {
            let c0 = c.add(i * job.ldc);
            let c1 = c0.wrapping_add(T::LANES);
            let [s0, s1] = acc[i];
            if TAIL {
                let (old0, old1) = if job.accumulate {
                    (T::load_first(c0, left), T::load_first(c1, right))
                } else {
                    (T::zero(), T::zero())
                };
                T::store_first(c0, left, T::mul_add(old0, alpha, s0));
                T::store_first(c1, right, T::mul_add(old1, alpha, s1));
            } else {
                let (old0, old1) =
                    if job.accumulate { (T::load(c0), T::load(c1)) } else { (T::zero(), T::zero()) };
                T::store(c0, T::mul_add(old0, alpha, s0));
                T::store(c1, T::mul_add(old1, alpha, s1));
            }
        }
    }
}

/// Runs a [`DotJob`]: each group of four rows of `w` is read from memory once.
///
/// # Safety
/// The instruction set of `T` must be there and every pointer valid for its shape.
#[inline(always)]
pub(super) unsafe fn dots<T: Lanes>(job: &DotJob<'_>) {
    // SAFETY: as the caller's.
    unsafe {
        match job.w {
            DotRows::Dense { dtype: DType::F32, first, stride } => dots_of::<T, F32>(job, first, stride),
            DotRows::Dense { dtype: DType::Bf16, first, stride } => dots_of::<T, BF16>(job, first, stride),
            DotRows::Dense { dtype: DType::F16, first, stride } => dots_of::<T, F16>(job, first, stride),
            DotRows::FourBit(w, row) => four_bit::dots::<T>(job, w, row),
        }
    }
}

/// Rows of `inp` in a tile of dot products: four by four fill half of 32 registers; with 16 registers two do.
#[inline(always)]
pub(super) const fn tallest<T: Lanes>() -> usize {
    if T::ROWS >= 8 { 4 } else { 2 }
}

/// [`dots`] for one element type.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn dots_of<T: Lanes, const D: u8>(job: &DotJob<'_>, w: *const u8, stride: usize) {
    let tallest = tallest::<T>();
    for j in (0..job.w_rows).step_by(4) {
        let four_follow = job.ahead && j + 8 <= job.w_rows;
        let mut i = 0;
        while i < job.n {
            let rows = (job.n - i).min(tallest);
            // The rows that follow are fetched once, by the first tile.
            let ahead = four_follow && i == 0;
            // SAFETY: rows `i .. i + rows` and `j ..` exist.
            unsafe {
                match (rows, ahead) {
                    (1, true) => dot_tile::<T, D, 1, true>(job, (w, stride), (i, j)),
                    (1, false) => dot_tile::<T, D, 1, false>(job, (w, stride), (i, j)),
                    (2, _) => dot_tile::<T, D, 2, false>(job, (w, stride), (i, j)),
                    (3, _) => dot_tile::<T, D, 3, false>(job, (w, stride), (i, j)),
                    (_, true) => dot_tile::<T, D, 4, true>(job, (w, stride), (i, j)),
                    (_, false) => dot_tile::<T, D, 4, false>(job, (w, stride), (i, j)),
                }
            }
            i += rows;
        }
    }
}

/// `N` rows of `inp` from row `i` against up to four rows of `w` from row `j`. The sum of one pair of rows
/// does not depend on which others share its tile.
///
/// # Safety
/// As [`dots`], and the rows exist.
#[inline(always)]
unsafe fn dot_tile<T: Lanes, const D: u8, const N: usize, const AHEAD: bool>(
    job: &DotJob<'_>,
    (w, stride): (*const u8, usize),
    (i, j): (usize, usize),
) {
    let size = size_of_source::<D>();
    let cols = (job.w_rows - j).min(4);
    let whole = job.k / (T::LANES * T::PAIR);
    // SAFETY: `whole` vectors lie inside every row; what is left of a row of `w` is copied aside, padded with
    // zeros, and `load_first` pads that of `inp`. Rows past the last of `w` repeat the last.
    unsafe {
        let inp: [*const f32; N] = std::array::from_fn(|r| job.inp.add((i + r) * job.inp_stride));
        let w: [*const u8; 4] = std::array::from_fn(|c| w.add((j + c.min(cols - 1)) * stride));
        let mut acc = [[T::zero(); 4]; N];
        for step in 0..whole {
            let mut x = [T::zero(); N];
            for r in 0..N {
                x[r] = T::load(inp[r].add(step * T::LANES));
            }
            for c in 0..4 {
                let w = w[c].add(step * T::LANES * T::PAIR * size);
                if AHEAD {
                    T::prefetch_far(w.wrapping_add(4 * stride));
                }
                let w = T::words_along::<D>(w, job.round);
                for r in 0..N {
                    acc[r][c] = T::step(acc[r][c], x[r], w);
                }
            }
        }
        let left = job.k - whole * T::LANES * T::PAIR;
        if left > 0 {
            for c in 0..4 {
                let mut padded = [0u8; 128];
                let rest = w[c].add(whole * T::LANES * T::PAIR * size);
                std::ptr::copy_nonoverlapping(rest, padded.as_mut_ptr(), left * size);
                let w = T::words_along::<D>(padded.as_ptr(), job.round);
                for r in 0..N {
                    let x = T::load_first(inp[r].add(whole * T::LANES), left.div_ceil(T::PAIR));
                    acc[r][c] = T::step(acc[r][c], x, w);
                }
            }
        }
        store_dots::<T, N>(job, &acc, (i, j), cols);
    }
}

/// Stores the sums of a tile of dot products, at row `i` and column `j`.
///
/// # Safety
/// As [`dots`], and the rows and `cols` columns exist.
#[inline(always)]
pub(super) unsafe fn store_dots<T: Lanes, const N: usize>(
    job: &DotJob<'_>,
    acc: &[[T::V; 4]; N],
    (i, j): (usize, usize),
    cols: usize,
) {
    for (r, &acc) in acc.iter().enumerate() {
        // SAFETY: as the caller's.
        unsafe {
            let sums = T::sums(acc);
            let out = job.out.add((i + r) * job.out_stride + j);
            for c in 0..cols {
                let old = if job.accumulate { *out.add(c) } else { 0.0 };
                *out.add(c) = old + job.alpha * sums[c];
            }
        }
    }
}
