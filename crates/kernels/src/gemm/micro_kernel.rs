//! The operations that every instruction set implements: vectors of *words*, and a multiply-add.
//!
//! A word is 32 bits of a packed operand: one f32, or two bf16 that are adjacent along `k`. The code for
//! tiles, packing and dot products is generic over this trait.

use crate::{bf16_to_f32, f16_to_f32, f32_to_bf16};

/// `DType` as a const generic parameter. A packing loop is compiled for each source type.
pub(super) const F32: u8 = 0;
pub(super) const BF16: u8 = 1;
pub(super) const F16: u8 = 2;

/// Returns the number of bytes per element of the source type `D`.
#[inline(always)]
pub(super) const fn size_of_source<const D: u8>() -> usize {
    if D == F32 { 4 } else { 2 }
}

/// Number of consecutive elements of a 4-bit weight that are decoded with one scale (a "piece"). danlu
/// accepts no model with smaller blocks.
pub(super) const PIECE: usize = 64;

/// A vector of words and its operations. `kernel_table!` compiles functions for each instruction set, and all
/// methods are inlined into these functions.
///
/// # Safety
/// The processor must support the instruction set of the implementor. Memory must be valid for all words or
/// elements that a method reads or writes. No method requires alignment.
pub(super) trait MicroKernel {
    /// A vector of [`LANES`](MicroKernel::LANES) words.
    type V: Copy;
    /// Number of 32-bit words in a vector, at most 16.
    const LANES: usize;
    /// Number of rows in the tallest tile whose accumulators fit in registers. At most `LANES`, and at most
    /// 14.
    const MR: usize;
    /// Number of columns in a tile: two vectors.
    const NR: usize = 2 * Self::LANES;
    /// Number of elements along `k` in a word: 1 for f32, 2 for bf16.
    const PAIR: usize;

    unsafe fn zero() -> Self::V;
    /// Returns `v` in every lane.
    unsafe fn splat(v: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    /// Loads the first `n` lanes, and reads no other memory.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Stores the first `n` lanes, and writes no other memory.
    unsafe fn store_first(p: *mut f32, n: usize, v: Self::V);
    /// Returns `acc + a · b` on words. For bf16 pairs, `a · b` is `a.0 · b.0 + a.1 · b.1`.
    unsafe fn step(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Returns `acc + a · b` on f32 lanes.
    unsafe fn mul_add(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// A mask of lanes.
    type Mask: Copy;
    /// Reads the mask of vector number `vector` from a row of bits, which has one bit per lane with the
    /// lowest bit first.
    unsafe fn mask(row: *const u32, vector: usize) -> Self::Mask;
    /// Returns `v`, with zeros in all lanes whose bit in the mask is not set.
    unsafe fn apply_mask(v: Self::V, mask: Self::Mask) -> Self::V;
    /// Loads `LANES · PAIR` consecutive elements as words. If `round` is set, f32 words are rounded to bf16.
    unsafe fn words_by_rows<const D: u8>(p: *const u8, round: bool) -> Self::V;
    /// Loads `LANES` words by columns. Word `i` contains element `i` of `p0`. If words are pairs, the second
    /// element of word `i` is element `i` of `p1`.
    unsafe fn words_by_columns<const D: u8>(p0: *const u8, p1: *const u8, round: bool) -> Self::V;
    /// Number of [pieces](PIECE) of a 4-bit weight that dot products decode at once: 1 or 2. A
    /// [`Table`](MicroKernel::Table) has room for the values of that many pieces.
    const PIECES: usize;
    /// The 16 values of a 4-bit type, multiplied by the scales of one or two [pieces](PIECE).
    type Table: Copy;
    /// Returns the 16 values in `code`, multiplied by each scale. The products are rounded to bf16 if words
    /// are pairs or `round` is set. The second scale belongs to the second piece, and is ignored if `PIECES`
    /// is 1.
    unsafe fn table(code: &[f32; 16], scales: [f32; 2], round: bool) -> Self::Table;
    /// Returns the values with the first scale of a table.
    unsafe fn values(table: Self::Table) -> [f32; 16];
    /// Decodes `LANES · PAIR` consecutive elements as words. The first code is in the upper half of the byte
    /// at `p`. Both scales of the table must be equal.
    unsafe fn lookup(table: Self::Table, p: *const u8) -> Self::V;
    /// Decodes `LANES` words by columns. Word `i` contains code `i` of `p0`, with the first scale of `table`.
    /// If words are pairs, the second element of word `i` is code `i` of `p1`, with the second scale.
    unsafe fn lookup_by_columns(table: Self::Table, p0: *const u8, p1: *const u8) -> Self::V;
    /// Decodes vector `v` of the [`PIECES`](MicroKernel::PIECES) pieces at `p`, in the fastest order for the
    /// instruction set. Element `i` of the vector is element `interleaved(v · LANES · PAIR + i)` of the
    /// pieces.
    unsafe fn lookup_interleaved(table: Self::Table, p: *const u8, v: usize) -> Self::V;
    /// Returns the index, in the weight's order, of the element that `lookup_interleaved` puts at index
    /// `place`.
    fn interleaved(place: usize) -> usize;
    /// Transposes the square of the first `LANES x LANES` words.
    unsafe fn transpose(rows: &mut [Self::V; 16]);
    /// Prefetches the cache line at `p`. The address `p` need not be valid.
    unsafe fn prefetch(p: *const u8);
    /// Like [`prefetch`](MicroKernel::prefetch), but into L2.
    unsafe fn prefetch_far(p: *const u8);
    /// Returns the sum of the lanes of each of four vectors. The lanes are always added in the same order.
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4];
}

/// Reads element `i` of the little-endian elements at `p`.
///
/// # Safety
/// The element must be inside the allocation of `p`.
#[inline(always)]
pub(super) unsafe fn element<const D: u8>(p: *const u8, i: usize) -> f32 {
    // SAFETY: the caller guarantees that the element exists. Byte arrays need no alignment.
    unsafe {
        let p = p.add(i * size_of_source::<D>());
        match D {
            F32 => f32::from_le_bytes(p.cast::<[u8; 4]>().read()),
            BF16 => bf16_to_f32(u16::from_le_bytes(p.cast::<[u8; 2]>().read())),
            _ => f16_to_f32(u16::from_le_bytes(p.cast::<[u8; 2]>().read())),
        }
    }
}

/// Returns one word. If `pair` is 2, the word contains `e0` and `e1` as bf16, with `e0` in the lower half.
/// Otherwise the word is `e0` as f32, and `round` rounds `e0` to bf16.
#[inline(always)]
pub(super) fn word(pair: usize, e0: f32, e1: f32, round: bool) -> f32 {
    if pair == 2 {
        f32::from_bits(f32_to_bf16(e0) as u32 | (f32_to_bf16(e1) as u32) << 16)
    } else if round {
        bf16_to_f32(f32_to_bf16(e0))
    } else {
        e0
    }
}
