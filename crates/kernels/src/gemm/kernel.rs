//! The register tile of a product, once for every instruction set.

use super::ahead::Ahead;
use super::lanes::Lanes;

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
