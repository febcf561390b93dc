//! Dot products of a few rows with the rows of a weight, for decoding. The code is generic over the
//! instruction set.

use std::mem::MaybeUninit;

use super::four_bit;
use super::micro_kernel::{BF16, F16, F32, MicroKernel, element, size_of_source, word};
use super::tile::RowMask;
use crate::{DType, FourBit};

/// Rows of a weight, which are read in place.
#[derive(Clone, Copy)]
pub(crate) enum DotRows<'a> {
    /// Rows whose elements have the type `dtype`.
    Dense {
        dtype: DType,
        /// Pointer to the first element.
        first: *const u8,
        /// Distance from one row to the next, in bytes.
        stride: usize,
    },
    /// Rows of a 4-bit weight, and the index of the first row.
    FourBit(&'a FourBit, usize),
}

/// Arguments of [`dots`]: `out[i, j] = alpha · inp[i] · w[j]`, or `+=` with `accumulate`. Rows of `inp` are
/// packed, and rows of `w` are read in place.
#[derive(Clone, Copy)]
pub(crate) struct DotJob<'a> {
    pub out: *mut f32,
    /// Distance from one row of the output to the next, in elements.
    pub out_stride: usize,
    /// Number of rows of `inp`.
    pub n: usize,
    /// Pointer to the packed rows of `inp`.
    pub inp: *const f32,
    /// Distance from one row of `inp` to the next, in 32-bit words.
    pub inp_stride: usize,
    /// Mask for the elements of `inp`. A mask requires that `inp` and `w` are f32.
    pub mask: Option<RowMask>,
    pub w_rows: usize,
    pub w: DotRows<'a>,
    /// Number of elements in a row of `w`.
    pub k: usize,
    pub alpha: f32,
    pub accumulate: bool,
    /// Whether f32 elements of `w` are rounded to bf16.
    pub round: bool,
}

/// Runs a [`DotJob`]. Each row of `w` is read from memory once.
///
/// # Safety
/// The processor must support the instruction set of `T`, and every pointer must be valid for its shape.
#[inline(always)]
pub(super) unsafe fn dots<T: MicroKernel>(job: &DotJob<'_>) {
    // SAFETY: the caller meets the safety requirements.
    unsafe {
        match job.w {
            DotRows::Dense { dtype: DType::F32, first, stride } if job.mask.is_some() => {
                dots_of::<T, F32, true>(job, first, stride);
            }
            DotRows::Dense { dtype: DType::F32, first, stride } => {
                dots_of::<T, F32, false>(job, first, stride)
            }
            DotRows::Dense { dtype: DType::Bf16, first, stride } if is_converted::<T>(job) => {
                dots_converted::<T, BF16>(job, first, stride);
            }
            DotRows::Dense { dtype: DType::F16, first, stride } if is_converted::<T>(job) => {
                dots_converted::<T, F16>(job, first, stride);
            }
            DotRows::Dense { dtype: DType::Bf16, first, stride } => {
                dots_of::<T, BF16, false>(job, first, stride)
            }
            DotRows::Dense { dtype: DType::F16, first, stride } => {
                dots_of::<T, F16, false>(job, first, stride)
            }
            DotRows::FourBit(w, row) => four_bit::dots::<T>(job, w, row),
        }
    }
}

/// Returns the maximum number of rows of `inp` in a tile. The accumulators fill half of the registers: 4 x 4
/// of 32 registers, or 2 x 4 of 16 registers.
#[inline(always)]
pub(super) const fn tallest<T: MicroKernel>() -> usize {
    if T::MR >= 8 { 4 } else { 2 }
}

/// Minimum number of rows of `inp` for which each row of `w` is converted to f32 once, instead of once per
/// tile.
const MIN_CONVERTED: usize = 12;
/// Maximum number of elements in a row of `w` that is converted. Four converted rows stay in L1.
const MAX_CONVERTED: usize = 1024;
/// Distance between two converted rows, in elements. Rows at a distance of a power of two would compete for
/// the same lines of L1.
const CONVERTED_STRIDE: usize = MAX_CONVERTED + 16;

/// Returns whether [`dots_converted`] is faster for a 16-bit weight. A tile of six rows needs 31 registers.
#[inline(always)]
fn is_converted<T: MicroKernel>(job: &DotJob<'_>) -> bool {
    T::PAIR == 1 && T::MR >= 14 && job.n >= MIN_CONVERTED && job.k <= MAX_CONVERTED
}

/// Four converted rows of a weight, aligned for whole vectors.
#[repr(align(64))]
struct Converted(MaybeUninit<[f32; 4 * CONVERTED_STRIDE]>);

/// Runs [`dots`] for many rows of `inp` and a 16-bit weight, if words are f32. Each row of `w` is converted
/// once. The results have the same bits as those of [`dots_of`].
///
/// # Safety
/// The requirements of [`dots`] apply. A row of `w` has at most [`MAX_CONVERTED`] elements.
#[inline(always)]
unsafe fn dots_converted<T: MicroKernel, const D: u8>(job: &DotJob<'_>, w: *const u8, stride: usize) {
    let mut converted = Converted(MaybeUninit::uninit());
    let converted = converted.0.as_mut_ptr().cast::<f32>();
    let whole = job.k / T::LANES;
    for j in (0..job.w_rows).step_by(4) {
        let rows = (job.w_rows - j).min(4);
        // SAFETY: the rows of `w` exist, and the buffer has room for four of them. The tiles read only
        // converted rows, and write the columns of these rows.
        unsafe {
            for c in 0..rows {
                let (row, to) = (w.add((j + c) * stride), converted.add(c * CONVERTED_STRIDE));
                for step in 0..whole {
                    let from = row.add(step * T::LANES * size_of_source::<D>());
                    T::prefetch_far(from.wrapping_add(4 * stride));
                    T::store(to.add(step * T::LANES), T::words_by_rows::<D>(from, job.round));
                }
                for i in whole * T::LANES..job.k {
                    *to.add(i) = word(1, element::<D>(row, i), 0.0, job.round);
                }
            }
            let (w, stride) = (converted.cast::<u8>().cast_const(), CONVERTED_STRIDE * size_of::<f32>());
            let job = &DotJob { out: job.out.add(j), w_rows: rows, round: false, ..*job };
            for i in (0..job.n).step_by(6) {
                match (job.n - i).min(6) {
                    1 => dot_tile::<T, F32, 1, false, false>(job, (w, stride), i, 0, 1),
                    2 => dot_tile::<T, F32, 2, false, false>(job, (w, stride), i, 0, 1),
                    3 => dot_tile::<T, F32, 3, false, false>(job, (w, stride), i, 0, 1),
                    4 => dot_tile::<T, F32, 4, false, false>(job, (w, stride), i, 0, 1),
                    5 => dot_tile::<T, F32, 5, false, false>(job, (w, stride), i, 0, 1),
                    _ => dot_tile::<T, F32, 6, false, false>(job, (w, stride), i, 0, 1),
                }
            }
        }
    }
}

/// Runs [`dots`] for one element type. Four rows of `w` are multiplied at a time.
///
/// For one or two rows of `inp`, the four rows of `w` are a quarter of `w` apart. The processor then
/// prefetches four sequential streams by itself. For more rows of `inp`, adjacent rows of `w` with explicit
/// prefetches are faster.
///
/// # Safety
/// The requirements of [`dots`] apply.
#[inline(always)]
unsafe fn dots_of<T: MicroKernel, const D: u8, const MASKED: bool>(
    job: &DotJob<'_>,
    w: *const u8,
    stride: usize,
) {
    let groups = job.w_rows.div_ceil(4);
    for group in 0..groups {
        // SAFETY: the rows of `inp` exist, and all rows of `w` are below `w_rows`.
        unsafe {
            match job.n {
                1 => dot_tile::<T, D, 1, false, MASKED>(job, (w, stride), 0, group, groups),
                2 => dot_tile::<T, D, 2, false, MASKED>(job, (w, stride), 0, group, groups),
                _ => {
                    let tallest = tallest::<T>();
                    for i in (0..job.n).step_by(tallest) {
                        let prefetch = i == 0 && group + 1 < groups;
                        match ((job.n - i).min(tallest), prefetch) {
                            (1, _) => dot_tile::<T, D, 1, false, MASKED>(job, (w, stride), i, 4 * group, 1),
                            (2, false) => {
                                dot_tile::<T, D, 2, false, MASKED>(job, (w, stride), i, 4 * group, 1)
                            }
                            (2, true) => dot_tile::<T, D, 2, true, MASKED>(job, (w, stride), i, 4 * group, 1),
                            (3, false) => {
                                dot_tile::<T, D, 3, false, MASKED>(job, (w, stride), i, 4 * group, 1)
                            }
                            (3, true) => dot_tile::<T, D, 3, true, MASKED>(job, (w, stride), i, 4 * group, 1),
                            (_, false) => {
                                dot_tile::<T, D, 4, false, MASKED>(job, (w, stride), i, 4 * group, 1)
                            }
                            (_, true) => dot_tile::<T, D, 4, true, MASKED>(job, (w, stride), i, 4 * group, 1),
                        }
                    }
                }
            }
        }
    }
}

/// Multiplies `N` rows of `inp` by four rows of `w`. The rows of `inp` begin at row `i`. The rows of `w`
/// begin at row `j`, and are `apart` rows apart. If `PREFETCH` is set, the next four rows of `w` are
/// prefetched. Each result depends only on one row of `inp` and one row of `w`, not on the rest of the tile.
///
/// # Safety
/// The requirements of [`dots`] apply, and the rows of `inp` and the first row of `w` must exist. The last
/// existing row of `w` replaces missing rows.
#[inline(always)]
unsafe fn dot_tile<T: MicroKernel, const D: u8, const N: usize, const PREFETCH: bool, const MASKED: bool>(
    job: &DotJob<'_>,
    (w, stride): (*const u8, usize),
    i: usize,
    j: usize,
    apart: usize,
) {
    let cols = (job.w_rows - j).div_ceil(apart).min(4);
    let size = size_of_source::<D>();
    let whole = job.k / (T::LANES * T::PAIR);
    // SAFETY: every row contains `whole` vectors. The remaining elements of a row of `w` are copied to a
    // buffer of zeros, and `load_first` pads the remaining elements of `inp` with zeros. If fewer than four
    // rows of `w` remain, the last row is repeated.
    unsafe {
        let inp: [*const f32; N] = std::array::from_fn(|r| job.inp.add((i + r) * job.inp_stride));
        let mask = job.mask.unwrap_or(RowMask::ALL);
        let mask: [*const u32; N] = std::array::from_fn(|r| mask.from(i + r).first);
        let w: [*const u8; 4] = std::array::from_fn(|c| w.add((j + c.min(cols - 1) * apart) * stride));
        let mut acc = [[T::zero(); 4]; N];
        for step in 0..whole {
            let mut x = [T::zero(); N];
            for r in 0..N {
                x[r] = T::load(inp[r].add(step * T::LANES));
                if MASKED {
                    x[r] = T::apply_mask(x[r], T::mask(mask[r], step));
                }
            }
            for c in 0..4 {
                let w = w[c].add(step * T::LANES * T::PAIR * size);
                if PREFETCH {
                    T::prefetch_far(w.wrapping_add(4 * stride));
                }
                let w = T::words_by_rows::<D>(w, job.round);
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
                let w = T::words_by_rows::<D>(padded.as_ptr(), job.round);
                for r in 0..N {
                    let mut x = T::load_first(inp[r].add(whole * T::LANES), left.div_ceil(T::PAIR));
                    if MASKED {
                        x = T::apply_mask(x, T::mask(mask[r], whole));
                    }
                    acc[r][c] = T::step(acc[r][c], x, w);
                }
            }
        }
        store_dots::<T, N>(job, &acc, (i, j), cols, apart);
    }
}

/// Stores the results of a tile in `N` rows and `cols` columns. The rows begin at row `i`. The columns begin
/// at column `j`, and are `apart` columns apart.
///
/// # Safety
/// The requirements of [`dots`] apply, and the rows and columns must exist.
#[inline(always)]
pub(super) unsafe fn store_dots<T: MicroKernel, const N: usize>(
    job: &DotJob<'_>,
    acc: &[[T::V; 4]; N],
    (i, j): (usize, usize),
    cols: usize,
    apart: usize,
) {
    for (r, &acc) in acc.iter().enumerate() {
        // SAFETY: the caller meets the safety requirements.
        unsafe {
            let sums = T::sums(acc);
            let out = job.out.add((i + r) * job.out_stride + j);
            if cols == 4 && apart == 1 && !job.accumulate {
                out.cast::<[f32; 4]>().write_unaligned(sums.map(|sum| job.alpha * sum));
                continue;
            }
            for c in 0..cols {
                let (out, sum) = (out.add(c * apart), job.alpha * sums[c]);
                *out = if job.accumulate { *out + sum } else { sum };
            }
        }
    }
}
