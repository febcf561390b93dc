//! What a product kernel asks of an instruction set: vectors of *words*, and one multiply-add on them.
//!
//! A word is 32 bits of packed operand: one f32, or two neighbouring `k` as a pair of bf16. Tiles, packing
//! and dot products are written once on this trait; an instruction set differs only in what it puts here.

use crate::{bf16_to_f32, f16_to_f32, f32_to_bf16};

/// `DType` as a constant parameter, so that a packing loop is compiled for one source type.
pub(super) const F32: u8 = 0;
/// See [`F32`].
pub(super) const BF16: u8 = 1;
/// See [`F32`].
pub(super) const F16: u8 = 2;

/// Bytes per element of the source type `D`.
#[inline(always)]
pub(super) const fn size_of_source<const D: u8>() -> usize {
    if D == F32 { 4 } else { 2 }
}

/// Elements of a weight in 4 bits that share a scale in dot products: the smallest block in common use.
pub(super) const PIECE: usize = 64;

/// A vector of words and its operations. All of them are inlined into functions compiled for the
/// instruction set, see `kernel_table!`.
///
/// # Safety
/// Every method needs a processor with the instruction set of the implementor, and memory valid for the
/// words or elements it names. Nothing needs alignment.
pub(super) trait MicroKernel {
    /// A vector of [`LANES`](MicroKernel::LANES) words.
    type V: Copy;
    /// Words in a vector, at most 16.
    const LANES: usize;
    /// Rows of the tallest tile whose sums stay in registers; at most `LANES` and 14.
    const MR: usize;
    /// Columns of a tile: two vectors.
    const NR: usize = 2 * Self::LANES;
    /// Elements of `k` in a word: 1 for f32, 2 for bf16.
    const PAIR: usize;

    /// All zero.
    unsafe fn zero() -> Self::V;
    /// Every lane `v`.
    unsafe fn splat(v: f32) -> Self::V;
    /// Loads a vector.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Loads the first `n` lanes and touches no other memory.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    /// Stores a vector.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Stores the first `n` lanes and touches no other memory.
    unsafe fn store_first(p: *mut f32, n: usize, v: Self::V);
    /// `acc + a · b` on words: the product of a pair is the sum of its two products.
    unsafe fn step(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// `acc + a · b` on f32 lanes.
    unsafe fn mul_add(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Which lanes of a vector count.
    type Mask: Copy;
    /// Those of vector `vector` of a row that has a bit for each lane, the lowest first.
    unsafe fn mask(row: *const u32, vector: usize) -> Self::Mask;
    /// `v`, zero in lanes that do not count.
    unsafe fn apply_mask(v: Self::V, mask: Self::Mask) -> Self::V;
    /// `LANES · PAIR` consecutive elements as words; `round` rounds an f32 word to bf16.
    unsafe fn words_by_rows<const D: u8>(p: *const u8, round: bool) -> Self::V;
    /// `LANES` words across: element `i` of `p0`, paired with element `i` of `p1` where words are pairs.
    unsafe fn words_by_columns<const D: u8>(p0: *const u8, p1: *const u8, round: bool) -> Self::V;
    /// Pieces of 4 bits that dot products look up at once, 1 or 2: as many as a table holds.
    const PIECES: usize;
    /// The 16 values of a piece in 4 bits, or of both.
    type Table: Copy;
    /// `code · scale`, rounded to bf16 where words are pairs or `round` asks for it; the second scale is that of the second
    /// piece, where there is one.
    unsafe fn table(code: &[f32; 16], scales: [f32; 2], round: bool) -> Self::Table;
    /// The values of the first piece of a table.
    unsafe fn values(table: Self::Table) -> [f32; 16];
    /// `LANES · PAIR` consecutive elements as words, looked up by their codes: the first in the upper half of the
    /// byte at `p`. The table's scales are the same.
    unsafe fn lookup(table: Self::Table, p: *const u8) -> Self::V;
    /// `LANES` words across, looked up: the element of code `i` at `p0` by the first scale of `table`, paired where words are
    /// pairs with that of code `i` at `p1` by the second.
    unsafe fn lookup_by_columns(table: Self::Table, p0: *const u8, p1: *const u8) -> Self::V;
    /// A vector of the chunk of [`PIECES`](MicroKernel::PIECES) pieces at `p`, looked up in whatever order is quickest: element
    /// `i` of vector `v` is element `dealt(v · LANES · PAIR + i)` of the chunk.
    unsafe fn lookup_interleaved(table: Self::Table, p: *const u8, v: usize) -> Self::V;
    /// Where in a chunk the element at that place of its vectors comes from.
    fn interleaved(place: usize) -> usize;
    /// Transposes the leading `LANES x LANES` words.
    unsafe fn transpose(rows: &mut [Self::V; 16]);
    /// Asks for the cache line of `p`, which need not be valid.
    unsafe fn prefetch(p: *const u8);
    /// As [`prefetch`](MicroKernel::prefetch), into the second cache.
    unsafe fn prefetch_far(p: *const u8);
    /// The sum of each of four vectors, always added in the same order.
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4];
}

/// Reads element `i` of little-endian `bytes`.
///
/// # Safety
/// The element must lie inside the allocation of `p`.
#[inline(always)]
pub(super) unsafe fn element<const D: u8>(p: *const u8, i: usize) -> f32 {
    // SAFETY: the caller vouches for the element; arrays of bytes need no alignment.
    unsafe {
        let p = p.add(i * size_of_source::<D>());
        match D {
            F32 => f32::from_le_bytes(p.cast::<[u8; 4]>().read()),
            BF16 => bf16_to_f32(u16::from_le_bytes(p.cast::<[u8; 2]>().read())),
            _ => f16_to_f32(u16::from_le_bytes(p.cast::<[u8; 2]>().read())),
        }
    }
}

/// One word: an f32 (rounded to bf16 where asked), or a bf16 pair with the lower `k` in the lower half.
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
