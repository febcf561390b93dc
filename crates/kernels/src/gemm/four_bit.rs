//! Weights in 4 bits as operands: looked up a block at a time, where the codes lie.

use std::mem::MaybeUninit;

use super::BLOCK_STEPS;
use super::kernel::{DotJob, store_dots, tallest};
use super::lanes::{BF16, CHUNK, F32, Lanes};
use super::pack::{ACROSS_STEPS, Elements, PackJob, View, pack_of};
use crate::four_bit::code;
use crate::{DType, FourBit};

/// Columns whose rows are looked up together when they are packed across.
const ACROSS: usize = 128;
/// Bytes for elements that wait to be packed: a panel of the longest block of `k`.
const BUFFER: usize = 16 * BLOCK_STEPS * 4;

/// A place for looked-up elements, aligned for whole vectors.
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

/// Bytes of an element once looked up: bf16 where words are pairs, f32 where not.
#[inline(always)]
const fn size<T: Lanes>() -> usize {
    4 / T::PAIR
}

/// Packs a part of a weight in 4 bits: strips are looked up into a buffer that stays in L1, and packed from there.
///
/// # Safety
/// As [`pack`](super::pack::pack).
#[inline(always)]
pub(super) unsafe fn pack<T: Lanes>(job: &PackJob<'_>, w: &FourBit) {
    let View { outer, k, .. } = job.src;
    let mut buffer = Buffer::new();
    let buffer = buffer.start();
    // SAFETY: each strip fits the buffer, its elements are inside the weight as the caller vouches, and it is filled
    // before it is packed.
    unsafe {
        if k == 1 {
            debug_assert!(job.k_len <= BLOCK_STEPS * T::PAIR);
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
        let rows = ACROSS_STEPS * T::PAIR;
        for row in (0..job.k_len).step_by(rows) {
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

/// Packs the elements of `buffer`: those of `outers` and `ks`, each `(first, count)` within the job, with strides
/// `(outer, k)`.
///
/// # Safety
/// As [`pack`], and the buffer holds them.
#[inline(always)]
unsafe fn pack_strip<T: Lanes>(
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
    // SAFETY: the buffer holds that many bytes, all written; panels of the strip are where the job's are, as strips
    // begin at whole vectors and whole words.
    unsafe {
        let bytes = std::slice::from_raw_parts(buffer, len);
        let src = View { bytes, elements: Elements::Dense(dtype), outer, k };
        // The values are rounded already.
        let strip = PackJob { dst, src, outer: 0, outers: outers.1, k: 0, k_len: ks.1, round: false, ..*job };
        if T::PAIR == 2 { pack_of::<T, BF16>(&strip) } else { pack_of::<T, F32>(&strip) }
    }
}

/// Looks up `n` elements from `first` on, and writes them to `to` one after another.
///
/// # Safety
/// The instruction set of `T` must be there, the elements inside the weight, and `to` valid for them.
#[inline(always)]
unsafe fn expand<T: Lanes>(mut to: *mut u8, w: &FourBit, first: usize, n: usize, round: bool) {
    let (codes, scales) = (w.codes(), w.scales().view());
    let vector = T::LANES * T::PAIR;
    let (mut e, end) = (first, first + n);
    while e < end {
        let block = e >> w.block_log2();
        let until = end.min((block + 1) << w.block_log2());
        let scale = scales.at(block);
        // SAFETY: a vector is looked up where all of its elements are wanted, and begin a byte; single ones otherwise.
        unsafe {
            let table = T::table(w.table(), scale, round);
            if e.is_multiple_of(2) {
                while e + vector <= until {
                    T::store(to.cast(), T::looked_up(table, codes.as_ptr().add(e / 2)));
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

/// Whether no chunk of a row of `k` crosses a block or a row, so that codes are looked up in registers, and `inp` is to
/// be dealt as they are.
pub(crate) fn is_regular(w: &FourBit, k: usize) -> bool {
    k.is_multiple_of(CHUNK) && w.block_size() >= CHUNK
}

/// Runs a [`DotJob`] over a weight in 4 bits, from row `row` of it.
///
/// # Safety
/// As [`dots`](super::kernel::dots).
#[inline(always)]
pub(super) unsafe fn dots<T: Lanes>(job: &DotJob<'_>, w: &FourBit, row: usize) {
    let regular = is_regular(w, job.k);
    for j in (0..job.w_rows).step_by(4) {
        let mut i = 0;
        while i < job.n {
            let rows = (job.n - i).min(tallest::<T>());
            // SAFETY: rows `i .. i + rows` and `j ..` exist.
            unsafe {
                match (rows, regular) {
                    (1, true) => dot_tile::<T, 1>(job, w, row, (i, j)),
                    (2, true) => dot_tile::<T, 2>(job, w, row, (i, j)),
                    (3, true) => dot_tile::<T, 3>(job, w, row, (i, j)),
                    (_, true) => dot_tile::<T, 4>(job, w, row, (i, j)),
                    (1, false) => ragged_tile::<T, 1>(job, w, row, (i, j)),
                    (2, false) => ragged_tile::<T, 2>(job, w, row, (i, j)),
                    (3, false) => ragged_tile::<T, 3>(job, w, row, (i, j)),
                    (_, false) => ragged_tile::<T, 4>(job, w, row, (i, j)),
                }
            }
            i += rows;
        }
    }
}

/// Bytes of codes that are on their way from memory while others are multiplied.
const AHEAD: usize = 4 << 10;

/// Chunks whose scales are decoded at a time.
const SPAN: usize = 16;

/// `N` rows of `inp`, dealt, from row `i` against up to four rows of `w` from row `row + j`, as the dense tile does it:
/// the sum of one pair of rows does not depend on which others share its tile.
///
/// # Safety
/// As [`dots`], the rows exist, and `w` is regular.
#[inline(always)]
unsafe fn dot_tile<T: Lanes, const N: usize>(
    job: &DotJob<'_>,
    w: &FourBit,
    row: usize,
    (i, j): (usize, usize),
) {
    let cols = (job.w_rows - j).min(4);
    let (vectors, stride) = (CHUNK / (T::LANES * T::PAIR), job.k / 2);
    // Whole groups of rows, so that every line is asked for once.
    let ahead = 4 * stride * AHEAD.div_ceil(4 * stride);
    let (per_row, shift) = (job.k / CHUNK, w.block_log2() - CHUNK.ilog2());
    // SAFETY: the rows exist; rows past the last of `w` repeat the last. Whole chunks lie inside every row of `inp`
    // and of `w`. A prefetch needs no valid address.
    unsafe {
        let inp: [*const f32; N] = std::array::from_fn(|r| job.inp.add((i + r) * job.inp_stride));
        let first: [usize; 4] = std::array::from_fn(|c| (row + j + c.min(cols - 1)) * per_row);
        let codes = first.map(|chunk| w.codes().as_ptr().add(chunk * (CHUNK / 2)));
        let scales_of = w.scales().view();
        let mut acc = [[T::zero(); 4]; N];
        for span in (0..per_row).step_by(SPAN) {
            let chunks = (per_row - span).min(SPAN);
            let mut scales = [[0.0f32; SPAN]; 4];
            for c in 0..4 {
                scales_of.fill(&mut scales[c][..chunks], first[c] + span, shift);
                if job.ahead {
                    T::prefetch_far(scales_of.place((first[c] + span + ahead / (CHUNK / 2)) >> shift));
                }
            }
            for s in 0..chunks {
                let mut x = [[T::zero(); 16]; N];
                for r in 0..N {
                    for v in 0..vectors {
                        x[r][v] = T::load(inp[r].add((span + s) * (CHUNK / T::PAIR) + v * T::LANES));
                    }
                }
                for c in 0..4 {
                    let p = codes[c].add((span + s) * (CHUNK / 2));
                    // A line holds two chunks.
                    if job.ahead && s % 2 == 0 {
                        T::prefetch_far(p.wrapping_add(ahead));
                    }
                    let table = T::table(w.table(), scales[c][s], job.round);
                    for v in 0..vectors {
                        let w = T::looked_up_dealt(table, p, v);
                        for r in 0..N {
                            acc[r][c] = T::step(acc[r][c], x[r][v], w);
                        }
                    }
                }
            }
        }
        store_dots::<T, N>(job, &acc, (i, j), cols);
    }
}

/// As [`dot_tile`], for rows that are no whole chunks or begin inside a block: `inp` is in order.
///
/// # Safety
/// As [`dots`], and the rows exist.
#[inline(always)]
unsafe fn ragged_tile<T: Lanes, const N: usize>(
    job: &DotJob<'_>,
    w: &FourBit,
    row: usize,
    (i, j): (usize, usize),
) {
    let cols = (job.w_rows - j).min(4);
    let (vector, k) = (T::LANES * T::PAIR, job.k);
    // SAFETY: the rows exist; rows past the last of `w` repeat the last. What is left of a row is padded: `inp` by
    // `load_first`, the buffer with zeros.
    unsafe {
        let inp: [*const f32; N] = std::array::from_fn(|r| job.inp.add((i + r) * job.inp_stride));
        let first: [usize; 4] = std::array::from_fn(|c| (row + j + c.min(cols - 1)) * k);
        let mut acc = [[T::zero(); 4]; N];
        for done in (0..k).step_by(CHUNK) {
            let n = (k - done).min(CHUNK);
            for c in 0..4 {
                let mut chunk = [0u32; CHUNK];
                expand::<T>(chunk.as_mut_ptr().cast(), w, first[c] + done, n, job.round);
                for v in 0..n.div_ceil(vector) {
                    let w = T::load(chunk.as_ptr().add(v * T::LANES).cast());
                    let words = n.div_ceil(T::PAIR) - v * T::LANES;
                    for r in 0..N {
                        let x = inp[r].add(done / T::PAIR + v * T::LANES);
                        let x = if words >= T::LANES { T::load(x) } else { T::load_first(x, words) };
                        acc[r][c] = T::step(acc[r][c], x, w);
                    }
                }
            }
        }
        store_dots::<T, N>(job, &acc, (i, j), cols);
    }
}
