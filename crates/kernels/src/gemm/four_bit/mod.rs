//! 4-bit weights as operands of matrix multiplications. Looking up a code replaces the code by its value,
//! `table[code] · scale`. Codes are looked up in place, one block at a time.

mod dots;
mod pack_aligned;
mod wide_dots;

use std::mem::MaybeUninit;

use super::KC;
use super::micro_kernel::{BF16, F32, MicroKernel};
use super::pack::{COLUMN_STEPS, Elements, PackJob, View, pack_of, prefetch_steps};
use crate::four_bit::code;
use crate::{DType, FourBit};

pub(super) use dots::{chunk, dots, interleave, is_aligned};

/// Number of columns that are looked up at once when packing by columns.
const ACROSS: usize = 128;
/// Size of the buffer for looked-up values, in bytes. The buffer holds 16 rows of the longest block of `k`.
const BUFFER: usize = 16 * KC * 4;

/// A buffer for looked-up values, aligned for whole vectors.
#[repr(align(64))]
struct Buffer(MaybeUninit<[u8; BUFFER]>);

impl Buffer {
    fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    fn start(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

/// Returns the size in bytes of a value in [`Buffer`]. The value is bf16 if words are pairs, and f32 if they
/// are not.
#[inline(always)]
const fn size<T: MicroKernel>() -> usize {
    4 / T::PAIR
}

/// Packs part of a 4-bit weight. If blocks end at vector boundaries, [`pack_aligned`] writes the values to
/// panels directly. Otherwise, the values of a few rows (a "strip") are written to a buffer in L1, and packed
/// from this buffer.
///
/// # Safety
/// The requirements of [`pack`](super::pack::pack) apply.
#[inline(always)]
pub(super) unsafe fn pack<T: MicroKernel>(job: &PackJob<'_>, w: &FourBit) {
    let View { outer, k, .. } = job.src;
    // SAFETY: the caller meets the safety requirements.
    unsafe {
        if k == 1 && pack_aligned::is_aligned_by_rows::<T>(job, w) {
            return pack_aligned::pack_by_rows::<T>(job, w);
        }
        if k != 1 && pack_aligned::is_aligned_by_columns::<T>(job, w) {
            return pack_aligned::pack_by_columns::<T>(job, w);
        }
    }
    let mut buffer = Buffer::new();
    let buffer = buffer.start();
    // SAFETY: each strip fits in the buffer, and is written before the strip is packed. The caller guarantees
    // that the elements of the job are inside the weight.
    unsafe {
        if k == 1 {
            debug_assert!(job.k_len <= KC * T::PAIR);
            for first in (0..job.outers).step_by(T::LANES) {
                let outers = (job.outers - first).min(T::LANES);
                for i in 0..outers {
                    let to = buffer.add(i * job.k_len * size::<T>());
                    expand::<T>(to, w, (job.outer + first + i) * outer + job.k, job.k_len, job.round);
                }
                pack_strip::<T>(job, buffer, (first, outers), (0, job.k_len), (job.k_len, 1));
            }
            return;
        }
        let rows = COLUMN_STEPS * T::PAIR;
        for row in (0..job.k_len).step_by(rows) {
            prefetch_steps::<T>(job, row / T::PAIR);
            let rows = (job.k_len - row).min(rows);
            for first in (0..job.outers).step_by(ACROSS) {
                let outers = (job.outers - first).min(ACROSS);
                for i in 0..rows {
                    let to = buffer.add(i * outers * size::<T>());
                    expand::<T>(to, w, (job.k + row + i) * k + job.outer + first, outers, job.round);
                }
                pack_strip::<T>(job, buffer, (first, outers), (row, rows), (1, outers));
            }
        }
    }
}

/// Packs the values of one strip from `buffer`. `outers` and `ks` are ranges `(first, count)` within the job.
/// The last argument is the strides `(outer, k)` of the buffer.
///
/// # Safety
/// The requirements of [`pack`] apply, and the buffer must contain these elements.
#[inline(always)]
unsafe fn pack_strip<T: MicroKernel>(
    job: &PackJob<'_>,
    buffer: *const u8,
    outers: (usize, usize),
    ks: (usize, usize),
    (outer, k): (usize, usize),
) {
    let len = outers.1 * ks.1 * size::<T>();
    let (dtype, panel) = (if T::PAIR == 2 { DType::Bf16 } else { DType::F32 }, job.panel);
    let dst = job
        .dst
        .wrapping_add(outers.0 / job.width * panel + outers.0 % job.width + ks.0 / T::PAIR * job.width);
    // SAFETY: `len` bytes of the buffer were written. A strip begins at a boundary of vectors and of
    // words, so its panels line up with the panels of the job.
    unsafe {
        let bytes = std::slice::from_raw_parts(buffer, len);
        let src = View { bytes, elements: Elements::Dense(dtype), outer, k };
        // The values in the buffer are already rounded.
        let strip = PackJob { dst, src, outer: 0, outers: outers.1, k: 0, k_len: ks.1, round: false, ..*job };
        if T::PAIR == 2 { pack_of::<T, BF16>(&strip) } else { pack_of::<T, F32>(&strip) }
    }
}

/// Looks up `n` consecutive elements from element `first` on, and writes the values to `to`.
///
/// # Safety
/// The processor must support the instruction set of `T`. The elements must be inside the weight, and `to`
/// must be valid for these elements.
#[inline(always)]
unsafe fn expand<T: MicroKernel>(mut to: *mut u8, w: &FourBit, first: usize, n: usize, round: bool) {
    let (codes, scales) = (w.codes(), w.scales().view());
    let vector = T::LANES * T::PAIR;
    let (mut e, end) = (first, first + n);
    while e < end {
        let block = e >> w.block_log2();
        let until = end.min((block + 1) << w.block_log2());
        let scale = scales.at(block);
        // SAFETY: a vector is looked up only if all elements of the vector are needed and the first code
        // begins a byte. Other elements are looked up one by one.
        unsafe {
            let table = T::table(w.table(), [scale; 2], round);
            if e.is_multiple_of(2) {
                while e + vector <= until {
                    T::store(to.cast(), T::lookup(table, codes.as_ptr().add(e / 2)));
                    to = to.add(vector * size::<T>());
                    e += vector;
                }
            }
            if e < until {
                let values = T::values(table);
                for e in e..until {
                    let value = values[code(codes[e / 2], e)];
                    if T::PAIR == 2 {
                        to.cast::<u16>().write_unaligned((value.to_bits() >> 16) as u16);
                    } else {
                        to.cast::<f32>().write_unaligned(value);
                    }
                    to = to.add(size::<T>());
                }
                e = until;
            }
        }
    }
}
