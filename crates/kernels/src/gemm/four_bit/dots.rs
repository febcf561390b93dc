//! Dot products with a 4-bit weight, for decoding. Codes are looked up in registers.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::expand;
use super::wide_dots::{BLOCK, MAX_ROWS, STRIDE, Words, rows_of_tile, with_rows};
use crate::FourBit;
use crate::four_bit::{GROUP, ScaleView};
use crate::gemm::dots::{DotJob, store_dots, tallest};
use crate::gemm::micro_kernel::{MicroKernel, PIECE};
use crate::gemm::pack::pack_row;
use crate::gemm::partition::part;

/// Returns the number of elements that dot products decode at once (a "chunk"): [`MicroKernel::PIECES`]
/// pieces.
#[inline(always)]
pub(in crate::gemm) const fn chunk<T: MicroKernel>() -> usize {
    PIECE * T::PIECES
}

/// Returns whether the fast path, [`aligned_dots`], supports rows of `k` elements. Rows, and [groups](GROUP)
/// of blocks that share a table of scales, must consist of whole [chunks](chunk), and blocks of whole
/// [pieces](PIECE). On the fast path, the elements of `inp` are in the order of [`interleave`].
pub(in crate::gemm) fn is_aligned(w: &FourBit, k: usize, chunk: usize) -> bool {
    k.is_multiple_of(chunk)
        && w.block_size() >= PIECE
        && (w.block_size() << w.scales().view().group_log2()).is_multiple_of(chunk)
}

/// Packs a row of f32. The elements of each [`chunk`] are put into the order in which
/// [`MicroKernel::lookup_interleaved`] returns the weight's elements.
///
/// # Safety
/// The requirements of [`pack_row`] apply, and `row` must consist of whole chunks.
#[inline(always)]
pub(in crate::gemm) unsafe fn interleave<T: MicroKernel>(dst: *mut f32, row: &[f32], round: bool) {
    for (i, row) in row.chunks_exact(chunk::<T>()).enumerate() {
        let mut interleaved = [0.0; 2 * PIECE];
        for place in 0..chunk::<T>() {
            interleaved[place] = row[T::interleaved(place)];
        }
        // SAFETY: the caller meets the safety requirements.
        unsafe { pack_row::<T>(dst.add(i * (chunk::<T>() / T::PAIR)), &interleaved[..chunk::<T>()], round) };
    }
}

/// Runs a [`DotJob`] on a 4-bit weight. The job starts at row `row` of the weight.
///
/// # Safety
/// The requirements of [`dots`](crate::gemm::dots::dots) apply.
#[inline(always)]
pub(in crate::gemm) unsafe fn dots<T: MicroKernel>(job: &DotJob<'_>, w: &FourBit, row: usize) {
    if is_aligned(w, job.k, chunk::<T>()) {
        // SAFETY: the caller meets the safety requirements.
        return unsafe {
            if w.block_size() == PIECE {
                aligned_dots::<T, true>(job, w, row)
            } else {
                aligned_dots::<T, false>(job, w, row)
            }
        };
    }
    for j in (0..job.w_rows).step_by(4) {
        let mut i = 0;
        while i < job.n {
            let rows = (job.n - i).min(tallest::<T>());
            // SAFETY: rows `i .. i + rows` of `inp` exist, and the rows of `w` from `j` on exist.
            unsafe {
                match rows {
                    1 => unaligned_tile::<T, 1>(job, w, row, (i, j)),
                    2 => unaligned_tile::<T, 2>(job, w, row, (i, j)),
                    3 => unaligned_tile::<T, 3>(job, w, row, (i, j)),
                    _ => unaligned_tile::<T, 4>(job, w, row, (i, j)),
                }
            }
            i += rows;
        }
    }
}

/// Runs [`dots`] with an [aligned](is_aligned) weight. One [`Walk`] reads the first half of the rows and
/// another reads the second half. Each walk reads in ascending order, so the processor prefetches both halves
/// by itself. Explicit prefetches of scattered rows are slower.
///
/// # Safety
/// The requirements of [`dots`] apply, and `w` must be aligned. With `SHORT`, each block must be one piece.
#[inline(always)]
unsafe fn aligned_dots<T: MicroKernel, const SHORT: bool>(job: &DotJob<'_>, w: &FourBit, row: usize) {
    if job.n > tallest::<T>() {
        // SAFETY: the caller meets the safety requirements.
        return unsafe { wide_dots::<T, SHORT>(job, w, row) };
    }
    let per_row = job.k / PIECE;
    let apart = job.w_rows.div_ceil(2);
    let mut walks = [Walk::new(w), Walk::new(w)];
    for j in 0..apart {
        let cols = if j + apart < job.w_rows { 2 } else { 1 };
        for (c, walk) in walks.iter_mut().enumerate() {
            // If only one row remains, both walks read this row.
            walk.to((row + j + c.min(cols - 1) * apart) * per_row);
        }
        let mut i = 0;
        while i < job.n {
            let rows = (job.n - i).min(tallest::<T>());
            // SAFETY: rows `i .. i + rows` of `inp` and the rows of both walks exist.
            unsafe {
                match rows {
                    1 => dot_tile::<T, 1, SHORT>(job, &mut walks, (i, j), (cols, apart), w.table()),
                    2 => dot_tile::<T, 2, SHORT>(job, &mut walks, (i, j), (cols, apart), w.table()),
                    3 => dot_tile::<T, 3, SHORT>(job, &mut walks, (i, j), (cols, apart), w.table()),
                    _ => dot_tile::<T, 4, SHORT>(job, &mut walks, (i, j), (cols, apart), w.table()),
                }
            }
            i += rows;
        }
    }
}

/// Distance of the prefetches ahead of the codes that are read, in bytes. Codes are prefetched into L2,
/// because in L1 they would evict `inp`.
const PREFETCH_BYTES: usize = 4 << 10;

/// A position in a 4-bit weight, which moves from row to row.
struct Walk<'a> {
    codes: *const u8,
    scales: ScaleView<'a>,
    /// Binary logarithm of the number of [pieces](PIECE) in a block.
    piece_log2: u32,
    /// Binary logarithm of the number of [pieces](PIECE) in a group of blocks.
    group_log2: u32,
    /// Index of the first [piece](PIECE) of the current row.
    first: usize,
    /// The group of blocks whose scales are in `values`.
    group: usize,
    /// Pointer such that `bytes + block` is the byte that selects the scale of block `block` of the weight.
    bytes: *const u8,
    values: [f32; GROUP],
}

impl<'a> Walk<'a> {
    #[inline(always)]
    fn new(w: &'a FourBit) -> Self {
        let scales = w.scales().view();
        let piece_log2 = w.block_log2() - PIECE.ilog2();
        Self {
            codes: w.codes().as_ptr(),
            scales,
            piece_log2,
            group_log2: piece_log2 + scales.group_log2(),
            first: 0,
            group: usize::MAX,
            bytes: std::ptr::null(),
            values: [0.0; GROUP],
        }
    }

    /// Moves to the row whose first piece is `first`.
    #[inline(always)]
    fn to(&mut self, first: usize) {
        self.first = first;
    }

    /// Computes the scales of the group of blocks that contains [piece](PIECE) `piece` of the row. Returns
    /// the index of the piece at which this group ends.
    #[inline(always)]
    fn enter(&mut self, piece: usize) -> usize {
        let group = (self.first + piece) >> self.group_log2;
        if group != self.group {
            let bytes = self.scales.group(group, &mut self.values);
            self.bytes = bytes.as_ptr().wrapping_sub(group << self.scales.group_log2());
            self.group = group;
        }
        ((group + 1) << self.group_log2) - self.first
    }

    /// Returns the scale of [piece](PIECE) `piece` of the row.
    ///
    /// # Safety
    /// The piece must be in the current group. With `SHORT`, each block must be one piece.
    #[inline(always)]
    unsafe fn scale<const SHORT: bool>(&self, piece: usize) -> f32 {
        let piece = self.first + piece;
        let block = if SHORT { piece } else { piece >> self.piece_log2 };
        // SAFETY: each block of the group has a byte, and the caller guarantees that this block is in the
        // group.
        let byte = unsafe { *self.bytes.wrapping_add(block) };
        self.values[byte as usize]
    }
}

/// Multiplies `N` rows of `inp`, in the order of [`interleave`], by the current row of each walk. The rows of
/// `inp` begin at row `i`. The dot products go to columns `j` and `j + apart` of `out`. Each result depends
/// only on one row of `inp` and one row of the weight, not on the rest of the tile.
///
/// # Safety
/// The requirements of [`dots`] apply. Rows `i .. i + N` of `inp` and the rows of both walks must exist, and
/// the weight must be aligned. With `SHORT`, each block must be one piece.
#[inline(always)]
unsafe fn dot_tile<T: MicroKernel, const N: usize, const SHORT: bool>(
    job: &DotJob<'_>,
    walks: &mut [Walk<'_>; 2],
    (i, j): (usize, usize),
    (cols, apart): (usize, usize),
    code: &[f32; 16],
) {
    let (per_row, vectors) = (job.k / PIECE, chunk::<T>() / (T::LANES * T::PAIR));
    // SAFETY: the rows exist and consist of whole chunks. If there are two columns, `out` contains both
    // columns. In an aligned weight, groups consist of whole chunks, and `until` is the end of the nearer
    // group. Both pieces of a chunk are therefore in the current group. A prefetch needs no valid address.
    unsafe {
        let inp: [*const f32; N] = std::array::from_fn(|r| job.inp.add((i + r) * job.inp_stride));
        let codes = [0, 1].map(|c| walks[c].codes.add(walks[c].first * (PIECE / 2)));
        // Even and odd vectors have separate accumulators, so that consecutive additions are independent.
        let mut acc = [[[T::zero(); 2]; 2]; N];
        let mut piece = 0;
        while piece < per_row {
            let until = walks.iter_mut().fold(per_row, |until, walk| until.min(walk.enter(piece)));
            while piece < until {
                for c in 0..2 {
                    let codes = codes[c].add(piece * (PIECE / 2));
                    // A cache line contains the codes of two pieces, so one prefetch covers both.
                    if T::PIECES == 2 || piece.is_multiple_of(2) {
                        T::prefetch_far(codes.wrapping_add(PREFETCH_BYTES));
                    }
                    let scales =
                        [walks[c].scale::<SHORT>(piece), walks[c].scale::<SHORT>(piece + T::PIECES - 1)];
                    let table = T::table(code, scales, job.round);
                    for v in 0..vectors {
                        let w = T::lookup_interleaved(table, codes, v);
                        for r in 0..N {
                            let x = T::load(inp[r].add(piece * (PIECE / T::PAIR) + v * T::LANES));
                            acc[r][c][v % 2] = T::step(acc[r][c][v % 2], x, w);
                        }
                    }
                }
                piece += T::PIECES;
            }
        }
        store_pairs::<T, N>(job, &acc, (i, j), (cols, apart));
    }
}

/// Adds the accumulators of even and odd vectors, and stores the results of a tile.
///
/// # Safety
/// The processor must support the instruction set of `T`, and the rows and columns of `out` must exist.
#[inline(always)]
unsafe fn store_pairs<T: MicroKernel, const N: usize>(
    job: &DotJob<'_>,
    acc: &[[[T::V; 2]; 2]; N],
    (i, j): (usize, usize),
    (cols, apart): (usize, usize),
) {
    for (r, &[[a, b], [c, d]]) in acc.iter().enumerate() {
        // SAFETY: the caller meets the safety requirements.
        unsafe {
            let [a, b, c, d] = T::sums([a, b, c, d]);
            let out = job.out.add((i + r) * job.out_stride + j);
            for (c, sum) in [a + b, c + d].into_iter().enumerate().take(cols) {
                let out = out.add(c * apart);
                let old = if job.accumulate { *out } else { 0.0 };
                *out = old + job.alpha * sum;
            }
        }
    }
}

/// Runs [`aligned_dots`] for more rows of `inp` than one tile has. Each code is decoded once for all rows of
/// `inp`. The results have the same bits as those of [`dot_tile`].
///
/// # Safety
/// The requirements of [`aligned_dots`] apply.
#[inline(always)]
unsafe fn wide_dots<T: MicroKernel, const SHORT: bool>(job: &DotJob<'_>, w: &FourBit, row: usize) {
    let per_row = job.k / PIECE;
    let apart = job.w_rows.div_ceil(2);
    let (mut walks, mut words) = ([Walk::new(w), Walk::new(w)], Words::new());
    for first in (0..job.n).step_by(MAX_ROWS) {
        let rows = (job.n - first).min(MAX_ROWS);
        for j in 0..apart {
            let cols = if j + apart < job.w_rows { 2 } else { 1 };
            for (c, walk) in walks.iter_mut().enumerate() {
                // If only one row remains, both walks read this row.
                walk.to((row + j + c.min(cols - 1) * apart) * per_row);
            }
            let place = (first, rows, j);
            // SAFETY: the rows of `inp` and of both walks exist, and `words` has room for two rows.
            unsafe {
                two_rows::<T, SHORT>(job, &mut walks, words.start(), place, (cols, apart), w.table());
            }
        }
    }
}

/// Multiplies rows of `inp` by the current row of each walk. `place` contains the first row of `inp`, the
/// number of rows, and the first column of `out`.
///
/// # Safety
/// The requirements of [`wide_dots`] apply. The rows must exist, and there are at most [`MAX_ROWS`].
#[inline(always)]
unsafe fn two_rows<T: MicroKernel, const SHORT: bool>(
    job: &DotJob<'_>,
    walks: &mut [Walk<'_>; 2],
    words: *mut f32,
    (first, rows, j): (usize, usize, usize),
    (cols, apart): (usize, usize),
    code: &[f32; 16],
) {
    let (per_row, per_block, piece_words) = (job.k / PIECE, BLOCK * T::PAIR / PIECE, PIECE / T::PAIR);
    let tiles = rows.div_ceil(rows_of_tile::<T>());
    let mut sums = [const { MaybeUninit::<[[T::V; 2]; 2]>::uninit() }; MAX_ROWS];
    // SAFETY: a block has at most `BLOCK` words per row. The first block initialises the sums of every tile,
    // and a row has at least one chunk.
    unsafe {
        for start in (0..per_row).step_by(per_block) {
            let end = per_row.min(start + per_block);
            look_up::<T, SHORT>(walks, words, start..end, code, job.round);
            let vectors = (end - start) * piece_words / T::LANES;
            for tile in 0..tiles {
                let (row, count) = part(rows, tiles, tile);
                let sums = sums.as_mut_ptr().add(row).cast();
                let inp = job.inp.add((first + row) * job.inp_stride + start * piece_words);
                let inp = (inp, job.inp_stride);
                with_rows!(count, T, |N| add_tile::<T, N>(sums, inp, words, vectors, start == 0));
            }
        }
        for tile in 0..tiles {
            let (row, count) = part(rows, tiles, tile);
            let sums: *const [[T::V; 2]; 2] = sums.as_ptr().add(row).cast();
            let i = first + row;
            with_rows!(count, T, |N| {
                store_pairs::<T, N>(job, &sums.cast::<[_; N]>().read(), (i, j), (cols, apart));
            });
        }
    }
}

/// Decodes the [pieces](PIECE) `pieces` of the current row of each walk into `words`. The two decoded rows
/// are [`STRIDE`] words apart.
///
/// # Safety
/// The requirements of [`wide_dots`] apply, and the pieces must exist.
#[inline(always)]
unsafe fn look_up<T: MicroKernel, const SHORT: bool>(
    walks: &mut [Walk<'_>; 2],
    words: *mut f32,
    pieces: Range<usize>,
    code: &[f32; 16],
    round: bool,
) {
    let vectors = chunk::<T>() / (T::LANES * T::PAIR);
    // SAFETY: the rows exist and consist of whole chunks. `until` is the end of the nearer group, so both
    // pieces of a chunk are in the current group. A prefetch needs no valid address.
    unsafe {
        let codes = [0, 1].map(|c| walks[c].codes.add(walks[c].first * (PIECE / 2)));
        let mut piece = pieces.start;
        while piece < pieces.end {
            let until = walks.iter_mut().fold(pieces.end, |until, walk| until.min(walk.enter(piece)));
            while piece < until {
                let to = words.add((piece - pieces.start) * (PIECE / T::PAIR));
                for c in 0..2 {
                    let codes = codes[c].add(piece * (PIECE / 2));
                    if T::PIECES == 2 || piece.is_multiple_of(2) {
                        T::prefetch_far(codes.wrapping_add(PREFETCH_BYTES));
                    }
                    let scales =
                        [walks[c].scale::<SHORT>(piece), walks[c].scale::<SHORT>(piece + T::PIECES - 1)];
                    let table = T::table(code, scales, round);
                    for v in 0..vectors {
                        let word = T::lookup_interleaved(table, codes, v);
                        T::store(to.add(c * STRIDE + v * T::LANES), word);
                    }
                }
                piece += T::PIECES;
            }
        }
    }
}

/// Adds the products of at most [`BLOCK`] words of each row to the sums of a tile. With `is_first`, the sums
/// start at zero. Even and odd vectors have separate sums.
///
/// # Safety
/// The processor must support the instruction set of `T`. `N` sums and `N` rows of `inp`, and an even number
/// of `vectors` in each row, must exist. The rows of `inp` must be `stride` words apart.
#[inline(always)]
unsafe fn add_tile<T: MicroKernel, const N: usize>(
    sums: *mut [[T::V; 2]; 2],
    (inp, stride): (*const f32, usize),
    words: *const f32,
    vectors: usize,
    is_first: bool,
) {
    // SAFETY: the caller meets the safety requirements.
    unsafe {
        let inp: [*const f32; N] = std::array::from_fn(|r| inp.add(r * stride));
        let sums = sums.cast::<[[[T::V; 2]; 2]; N]>();
        let mut acc = if is_first { [[[T::zero(); 2]; 2]; N] } else { sums.read() };
        for pair in 0..vectors / 2 {
            for half in 0..2 {
                let at = (2 * pair + half) * T::LANES;
                let mut x = [T::zero(); N];
                for r in 0..N {
                    x[r] = T::load(inp[r].add(at));
                }
                for c in 0..2 {
                    let w = T::load(words.add(c * STRIDE + at));
                    for r in 0..N {
                        acc[r][c][half] = T::step(acc[r][c][half], x[r], w);
                    }
                }
            }
        }
        sums.write(acc);
    }
}

/// Multiplies `N` rows of `inp` by at most four rows of `w`, on the slow path. The rows of `inp` begin at row
/// `i`, and are not interleaved. The rows of `w` begin at row `row + j`. A row of `w` need not consist of
/// whole chunks, and may begin inside a block.
///
/// # Safety
/// The requirements of [`dots`] apply, and the rows must exist.
#[inline(always)]
unsafe fn unaligned_tile<T: MicroKernel, const N: usize>(
    job: &DotJob<'_>,
    w: &FourBit,
    row: usize,
    (i, j): (usize, usize),
) {
    let cols = (job.w_rows - j).min(4);
    let (vector, k) = (T::LANES * T::PAIR, job.k);
    // SAFETY: the rows exist. If fewer than four rows of `w` remain, the last row is repeated. At the end of
    // a row, `load_first` replaces missing elements of `inp` by zeros, and `piece` contains zeros after the
    // values of `w`.
    unsafe {
        let inp: [*const f32; N] = std::array::from_fn(|r| job.inp.add((i + r) * job.inp_stride));
        let first: [usize; 4] = std::array::from_fn(|c| (row + j + c.min(cols - 1)) * k);
        let mut acc = [[T::zero(); 4]; N];
        for done in (0..k).step_by(PIECE) {
            let n = (k - done).min(PIECE);
            for c in 0..4 {
                let mut piece = [0u32; PIECE];
                expand::<T>(piece.as_mut_ptr().cast(), w, first[c] + done, n, job.round);
                for v in 0..n.div_ceil(vector) {
                    let w = T::load(piece.as_ptr().add(v * T::LANES).cast());
                    let words = n.div_ceil(T::PAIR) - v * T::LANES;
                    for r in 0..N {
                        let x = inp[r].add(done / T::PAIR + v * T::LANES);
                        let x = if words >= T::LANES { T::load(x) } else { T::load_first(x, words) };
                        acc[r][c] = T::step(acc[r][c], x, w);
                    }
                }
            }
        }
        store_dots::<T, N>(job, &acc, (i, j), cols, 1);
    }
}
