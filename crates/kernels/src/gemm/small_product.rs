//! Matrix multiplications of small operands, used by attention. The operands fit into the L1 and L2 caches,
//! and are multiplied in place.

use super::micro_kernel::{F32, MicroKernel};
use super::prefetch::Prefetch;

/// Arguments of [`small_product`]: `C (m, n) = A B`, or `+=` with `accumulate`. For every element, the
/// products are added in ascending order of `k`.
#[derive(Clone, Copy)]
pub(crate) struct SmallProduct {
    pub m: usize,
    /// Number of columns of C. A multiple of the vector length.
    pub n: usize,
    /// Number of 32-bit words along `k`.
    pub steps: usize,
    /// Pointer to packed `A`.
    pub a: *const f32,
    /// Distances in `A` from one row to the next, and from one word along `k` to the next, in 32-bit words.
    pub a_strides: (usize, usize),
    /// Pointer to packed `B`.
    pub b: *const f32,
    pub c: *mut f32,
    /// Distance between adjacent rows of packed `B`, and of C, in 32-bit words.
    pub stride: usize,
    pub accumulate: bool,
    /// Memory that is prefetched during the multiplication.
    pub prefetch: Prefetch,
}

/// Number of rows in the tallest tile. With four vectors per row, the accumulators fill 24 of 32 registers.
/// With two vectors per row, the accumulators fill 12 of 16 registers.
const MR: usize = 6;

/// Runs a [`SmallProduct`].
///
/// # Safety
/// The processor must support the instruction set of `T`, and every pointer must be valid for its shape.
#[inline(always)]
pub(super) unsafe fn small_product<T: MicroKernel>(job: &SmallProduct) {
    let widest = if T::MR >= 8 { 4 } else { 2 };
    let mut prefetch = job.prefetch;
    let lines = prefetch.lines().div_ceil(job.m.div_ceil(MR) * job.n.div_ceil(widest * T::LANES));
    let mut column = 0;
    while column < job.n {
        let vectors = ((job.n - column) / T::LANES).min(widest);
        for row in (0..job.m).step_by(MR) {
            // SAFETY: the caller guarantees that the processor supports the instruction set.
            unsafe { prefetch.fetch::<T>(lines) };
            macro_rules! choose {
                ($($v:literal: $($m:literal)*;)*) => {
                    match (vectors, (job.m - row).min(MR)) {
                        // SAFETY: the caller meets the safety requirements for rows below `m` and columns
                        // below `n`.
                        $($(($v, $m) if $v <= widest => unsafe { tile::<T, $m, $v>(job, row, column) },)*)*
                        _ => unreachable!("part of a vector, or no row"),
                    }
                };
            }
            choose! { 4: 6 5 4 3 2 1; 3: 6 5 4 3 2 1; 2: 6 5 4 3 2 1; 1: 6 5 4 3 2 1; }
        }
        column += vectors * T::LANES;
    }
}

/// Computes `M` rows by `V` vectors of C. The accumulators stay in registers for all of `k`.
///
/// # Safety
/// The requirements of [`small_product`] apply, and the tile must be inside C.
#[inline(always)]
unsafe fn tile<T: MicroKernel, const M: usize, const V: usize>(
    job: &SmallProduct,
    row: usize,
    column: usize,
) {
    let SmallProduct { steps, a, a_strides: (a_row, a_step), b, c, stride, .. } = *job;
    // SAFETY: the caller meets the safety requirements.
    unsafe {
        let (a, b, c) = (a.add(row * a_row), b.add(column), c.add(row * stride + column));
        let mut sums = [[T::zero(); V]; M];
        if job.accumulate {
            for i in 0..M {
                for j in 0..V {
                    sums[i][j] = T::load(c.add(i * stride + j * T::LANES));
                }
            }
        }
        for p in 0..steps {
            let mut bs = [T::zero(); V];
            for j in 0..V {
                bs[j] = T::load(b.add(p * stride + j * T::LANES));
            }
            for i in 0..M {
                let x = T::splat(*a.add(i * a_row + p * a_step));
                for j in 0..V {
                    sums[i][j] = T::step(sums[i][j], x, bs[j]);
                }
            }
        }
        for i in 0..M {
            for j in 0..V {
                T::store(c.add(i * stride + j * T::LANES), sums[i][j]);
            }
        }
    }
}

/// Packs rows of `width` elements by columns: word `p` of column `j` goes to `p * width + j`. A word is one
/// f32, or two bf16 of neighbouring rows. An odd last row is paired with zeros. `width` must be a multiple of
/// the vector length. Nothing is prefetched, because the rows are in L1 or L2.
///
/// # Safety
/// The processor must support the instruction set of `T`, and `dst` must be valid for all words.
#[inline(always)]
pub(super) unsafe fn pack_by_columns<T: MicroKernel>(dst: *mut f32, rows: &[f32], width: usize) {
    for (p, pair) in rows.chunks(T::PAIR * width).enumerate() {
        for column in (0..width).step_by(T::LANES) {
            let (first, zeros) = (pair[column..].as_ptr(), [0.0f32; 16]);
            let last = if pair.len() == T::PAIR * width {
                first.wrapping_add((T::PAIR - 1) * width)
            } else {
                zeros.as_ptr()
            };
            // SAFETY: all vectors are inside the rows, and `dst` has room for all words.
            unsafe {
                T::store(
                    dst.add(p * width + column),
                    T::words_by_columns::<F32>(first.cast(), last.cast(), true),
                )
            };
        }
    }
}
