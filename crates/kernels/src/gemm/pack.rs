//! Packing: converts an operand of any type, alignment and orientation to panels of 32-bit words.

use std::ops::Range;

use super::four_bit;
use super::micro_kernel::{BF16, F16, F32, MicroKernel, element, size_of_source, word};
use super::prefetch::Prefetch;
use crate::matrix::HostMatrix;
use crate::{DType, FourBit, Matrix};

/// Number of words along `k` that are packed for all panels before the next words. The number is small,
/// because rows whose addresses differ by a power of two compete for few lines of L1.
pub(super) const COLUMN_STEPS: usize = 4;
/// Distance of the prefetches when an operand is packed by columns, in words along `k`.
const PREFETCH_STEPS: usize = 2 * COLUMN_STEPS;

/// An operand that is read in place, indexed by `(outer, k)`. The outer dimension is the rows of `A` or the
/// columns of `B`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) elements: Elements<'a>,
    pub(super) outer: usize,
    pub(super) k: usize,
}

/// The encoding of the elements of an operand.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    Dense(DType),
    /// 4-bit codes, two per byte.
    FourBit(&'a FourBit),
}

impl Elements<'_> {
    /// Returns the size of `n` elements in bytes.
    fn bytes(self, n: usize) -> usize {
        match self {
            Self::Dense(dtype) => n * dtype.size(),
            Self::FourBit(_) => n.div_ceil(2),
        }
    }
}

impl<'a> View<'a> {
    /// Returns a view of f32 elements with these strides.
    pub fn f32(data: &'a [f32], outer: usize, k: usize) -> Self {
        // SAFETY: an f32 has four bytes, and bytes need no alignment.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) };
        Self { bytes, elements: Elements::Dense(DType::F32), outer, k }
    }

    /// Returns a view of a weight `(OUT, IN)`. The rows are `outer` and the columns are `k`, as in `inp Wᵀ`.
    ///
    /// # Panics
    /// If the weight is not in host memory.
    pub fn rows_of(w: &'a Matrix) -> Self {
        let (bytes, elements) = match w.host() {
            HostMatrix::Dense(dtype, bytes) => (bytes, Elements::Dense(dtype)),
            HostMatrix::FourBit(weight) => (weight.codes(), Elements::FourBit(weight)),
        };
        Self { bytes, elements, outer: w.cols(), k: 1 }
    }

    /// Returns a view of a weight `(OUT, IN)`. The columns are `outer` and the rows are `k`, as in `dout W`.
    ///
    /// # Panics
    /// If the weight is not in host memory.
    pub fn cols_of(w: &'a Matrix) -> Self {
        Self { outer: 1, k: w.cols(), ..Self::rows_of(w) }
    }

    /// Returns a prefetch of elements `outer .. outer + outers` by `k .. k + k_len`.
    pub fn prefetch(&self, outer: usize, outers: usize, k: usize, k_len: usize) -> Prefetch {
        let bytes = |n| self.elements.bytes(n);
        let start = self.bytes.as_ptr().wrapping_add(bytes(outer * self.outer + k * self.k));
        if self.k == 1 {
            Prefetch::new(start, outers, bytes(k_len), bytes(self.outer))
        } else {
            Prefetch::new(start, k_len, bytes(outers), bytes(self.k))
        }
    }

    /// Panics unless the view contains `(outers, k)` elements. The unsafe code below relies on this check.
    pub fn check(&self, outers: usize, k: usize) {
        if outers > 0 && k > 0 {
            let last = (outers - 1) * self.outer + (k - 1) * self.k;
            let len = match self.elements {
                Elements::Dense(dtype) => self.bytes.len() / dtype.size(),
                Elements::FourBit(weight) => weight.len(),
            };
            assert!(last < len, "an operand shorter than its shape");
        }
    }
}

/// Arguments of [`pack`]: elements `outer .. outer + outers` by `k .. k + k_len` of a view.
#[derive(Clone, Copy)]
pub(crate) struct PackJob<'a> {
    /// Pointer to the first panel. Word `s` of row `i` of `A`, or of column `i` of `B`, goes to
    /// `s * width + i`. Only whole vectors are written, so words from `outers` to the next multiple of
    /// `LANES` are undefined.
    pub dst: *mut f32,
    /// Distance in a panel from one word along `k` to the next, in 32-bit words. A multiple of the vector
    /// length.
    pub width: usize,
    /// Distance from one panel to the next, in 32-bit words.
    pub panel: usize,
    pub src: View<'a>,
    /// First row of `A`, or first column of `B`.
    pub outer: usize,
    pub outers: usize,
    /// First element of `k`.
    pub k: usize,
    /// Number of elements along `k`. If words are pairs and this number is odd, the last element is paired
    /// with zero.
    pub k_len: usize,
    /// Whether f32 words are rounded to bf16.
    pub round: bool,
    /// Memory that is prefetched during packing.
    pub prefetch: Prefetch,
}

impl<'a> PackJob<'a> {
    /// Returns a job that packs elements of `src` into one panel, without a prefetch.
    pub fn new(
        dst: *mut f32,
        width: usize,
        src: View<'a>,
        (outer, outers): (usize, usize),
        (k, k_len): (usize, usize),
        round: bool,
    ) -> Self {
        Self { dst, width, panel: 0, src, outer, outers, k, k_len, round, prefetch: Prefetch::NONE }
    }
}

/// Runs a [`PackJob`].
///
/// # Safety
/// The processor must support the instruction set of `T`. The elements must be inside the view, and `dst`
/// must be valid for all words.
#[inline(always)]
pub(super) unsafe fn pack<T: MicroKernel>(job: &PackJob<'_>) {
    let mut prefetch = job.prefetch;
    // SAFETY: the caller meets the safety requirements.
    unsafe {
        prefetch.fetch::<T>(prefetch.lines());
        match job.src.elements {
            Elements::Dense(DType::F32) => pack_of::<T, F32>(job),
            Elements::Dense(DType::Bf16) => pack_of::<T, BF16>(job),
            Elements::Dense(DType::F16) => pack_of::<T, F16>(job),
            Elements::FourBit(weight) => four_bit::pack::<T>(job, weight),
        }
    }
}

/// Runs [`pack`] for one element type.
///
/// # Safety
/// The requirements of [`pack`] apply.
#[inline(always)]
pub(super) unsafe fn pack_of<T: MicroKernel, const D: u8>(job: &PackJob<'_>) {
    // If the operand is not contiguous along `k`, a few words along `k` are packed for all panels at a time.
    // Packing one panel after the other would read only one or two cache lines of every memory page.
    let steps_at_once = if job.src.k == 1 { usize::MAX } else { COLUMN_STEPS };
    let steps = job.k_len.div_ceil(T::PAIR);
    for step in (0..steps).step_by(steps_at_once) {
        if job.src.k != 1 {
            // SAFETY: the caller meets the safety requirements.
            unsafe { prefetch_steps::<T>(job, step) };
        }
        for first in (0..job.outers).step_by(T::LANES) {
            let valid = (job.outers - first).min(T::LANES);
            let dst = job.dst.wrapping_add(first / job.width * job.panel + first % job.width);
            // SAFETY: the caller meets the safety requirements for lanes `first .. first + valid`.
            unsafe {
                if job.src.k == 1 {
                    pack_by_rows::<T, D>(job, dst, first, valid);
                } else {
                    let steps = step..steps.min(step + COLUMN_STEPS);
                    pack_by_columns::<T, D>(job, dst, first, valid, steps);
                }
            }
        }
    }
}

/// Prefetches some rows that follow word `step` along `k`, for packing by columns.
///
/// # Safety
/// The processor must support the instruction set of `T`.
#[inline(always)]
pub(super) unsafe fn prefetch_steps<T: MicroKernel>(job: &PackJob<'_>, step: usize) {
    let next = (step + PREFETCH_STEPS) * T::PAIR;
    if next < job.k_len {
        let rows = (job.k_len - next).min(COLUMN_STEPS * T::PAIR);
        let mut prefetch = job.src.prefetch(job.outer, job.outers, job.k + next, rows);
        // SAFETY: the caller guarantees that the processor supports the instruction set.
        unsafe { prefetch.fetch::<T>(prefetch.lines()) };
    }
}

/// Packs an operand that is contiguous along `k`. Squares of `LANES x LANES` words are read and transposed.
///
/// # Safety
/// The requirements of [`pack`] apply.
#[inline(always)]
unsafe fn pack_by_rows<T: MicroKernel, const D: u8>(
    job: &PackJob<'_>,
    mut dst: *mut f32,
    first: usize,
    valid: usize,
) {
    let size = size_of_source::<D>();
    let square = T::LANES * T::PAIR;
    // SAFETY: rows past `valid` repeat the last row, and whole squares end inside `k_len`. The last square is
    // read in place if the square ends inside the operand. Otherwise the square is copied to a buffer of
    // zeros first.
    unsafe {
        let rows: [*const u8; 16] = std::array::from_fn(|i| {
            let outer = job.outer + first + i.min(valid - 1);
            job.src.bytes.as_ptr().add((outer * job.src.outer + job.k) * size)
        });
        for s in 0..job.k_len / square {
            let mut v = [T::zero(); 16];
            for i in 0..T::LANES {
                v[i] = T::words_by_rows::<D>(rows[i].add(s * square * size), job.round);
            }
            T::transpose(&mut v);
            for i in 0..T::LANES {
                T::store(dst.add(i * job.width), v[i]);
            }
            dst = dst.wrapping_add(T::LANES * job.width);
        }
        let left = job.k_len % square;
        if left > 0 {
            let mut v = [T::zero(); 16];
            let end = job.src.bytes.as_ptr_range().end;
            for i in 0..T::LANES {
                let rest = rows[i].add((job.k_len - left) * size);
                // Words past the last are not stored. Zeros are needed only if the number of elements is odd,
                // because the last element is then paired with zero.
                if left.is_multiple_of(T::PAIR) && rest.wrapping_add(square * size) <= end {
                    v[i] = T::words_by_rows::<D>(rest, job.round);
                    continue;
                }
                let mut padded = [0u8; 128];
                std::ptr::copy_nonoverlapping(rest, padded.as_mut_ptr(), left * size);
                v[i] = T::words_by_rows::<D>(padded.as_ptr(), job.round);
            }
            T::transpose(&mut v);
            for i in 0..left.div_ceil(T::PAIR) {
                T::store(dst.add(i * job.width), v[i]);
            }
        }
    }
}

/// Packs an operand that is not contiguous along `k`. Elements are read in place, and as whole vectors if
/// `outer` is contiguous.
///
/// # Safety
/// The requirements of [`pack`] apply.
#[inline(always)]
unsafe fn pack_by_columns<T: MicroKernel, const D: u8>(
    job: &PackJob<'_>,
    dst: *mut f32,
    first: usize,
    valid: usize,
    steps: Range<usize>,
) {
    let View { bytes, outer, k, .. } = job.src;
    let (size, len) = (size_of_source::<D>(), bytes.len() / size_of_source::<D>());
    let at = |step: usize| (job.outer + first) * outer + (job.k + step * T::PAIR) * k;

    // A whole vector is read if the vector ends inside the operand. Lanes past `valid` may then be undefined.
    // All other elements are read one by one.
    let mut whole =
        if outer == 1 { steps.end.min(job.k_len / T::PAIR).max(steps.start) } else { steps.start };
    while whole > steps.start && at(whole - 1) + (T::PAIR - 1) * k + T::LANES > len {
        whole -= 1;
    }
    // SAFETY: whole vectors end inside the operand, and single elements are inside the shape.
    unsafe {
        let mut p0 = bytes.as_ptr().wrapping_add(at(steps.start) * size);
        let mut to = dst.wrapping_add(steps.start * job.width);
        for _ in steps.start..whole {
            let p1 = p0.wrapping_add((T::PAIR - 1) * k * size);
            T::store(to, T::words_by_columns::<D>(p0, p1, job.round));
            p0 = p0.wrapping_add(T::PAIR * k * size);
            to = to.wrapping_add(job.width);
        }
        for step in whole..steps.end {
            let paired = step * T::PAIR + T::PAIR <= job.k_len;
            for i in 0..valid {
                let e0 = element::<D>(bytes.as_ptr(), at(step) + i * outer);
                let e1 = if T::PAIR == 2 && paired {
                    element::<D>(bytes.as_ptr(), at(step) + i * outer + k)
                } else {
                    0.0
                };
                *dst.add(step * job.width + i) = word(T::PAIR, e0, e1, job.round);
            }
        }
    }
}

/// Packs `src` in the format that dot products require for `inp`. If words are pairs and the number of
/// elements is odd, the last element is paired with zero.
///
/// # Safety
/// The processor must support the instruction set of `T`, and `dst` must be valid for all words.
#[inline(always)]
pub(super) unsafe fn pack_row<T: MicroKernel>(dst: *mut f32, src: &[f32], round: bool) {
    let vector = T::LANES * T::PAIR;
    for (i, src) in src.chunks(vector).enumerate() {
        // SAFETY: a short last chunk is copied to a buffer, and only the words of the chunk are stored.
        unsafe {
            let dst = dst.add(i * T::LANES);
            if src.len() == vector {
                T::store(dst, T::words_by_rows::<F32>(src.as_ptr().cast(), round));
            } else {
                let mut padded = [0.0f32; 32];
                padded[..src.len()].copy_from_slice(src);
                let v = T::words_by_rows::<F32>(padded.as_ptr().cast(), round);
                T::store_first(dst, src.len().div_ceil(T::PAIR), v);
            }
        }
    }
}
