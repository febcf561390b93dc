//! The interface of an instruction set: vectors of *words*, and a multiply-add.
//!
//! A word is 32 bits of packed operand: one f32, or two bf16 that are adjacent along `k`. Tiles, packing and
//! dot products are generic over this trait.

use crate::{bf16_to_f32, f16_to_f32, f32_to_bf16};

/// `DType` as a constant parameter: a packing loop is compiled for each source type.
pub(super) const F32: u8 = 0;
/// As [`F32`].
pub(super) const BF16: u8 = 1;
/// As [`F32`].
pub(super) const F16: u8 = 2;

/// Bytes per element of the source type `D`.
#[inline(always)]
pub(super) const fn size_of_source<const D: u8>() -> usize {
    if D == F32 { 4 } else { 2 }
}

/// Elements of a 4-bit weight that are multiplied with one scale: the smallest block size in use.
pub(super) const PIECE: usize = 64;

/// A vector of words and its operations. All methods are inlined into functions compiled for the instruction
/// set, see `kernel_table!`.
///
/// # Safety
/// Every method needs a processor with the implementor's instruction set, and memory that is valid for the
/// words or elements it names. No method requires alignment.
pub(super) trait MicroKernel {
    /// A vector of [`LANES`](MicroKernel::LANES) words.
    type V: Copy;
    /// Words in a vector, at most 16.
    const LANES: usize;
    /// Rows of the tallest tile whose sums fit in registers; at most `LANES` and 14.
    const MR: usize;
    /// Columns of a tile: two vectors.
    const NR: usize = 2 * Self::LANES;
    /// Elements of `k` in a word: 1 for f32, 2 for bf16.
    const PAIR: usize;

    /// Returns a zeroed vector.
    unsafe fn zero() -> Self::V;
    /// Returns `v` in every lane.
    unsafe fn splat(v: f32) -> Self::V;
    /// Loads a vector.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Loads the first `n` lanes, and touches no other memory.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    /// Stores a vector.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Stores the first `n` lanes, and touches no other memory.
    unsafe fn store_first(p: *mut f32, n: usize, v: Self::V);
    /// Returns `acc + a · b` on words. For bf16 pairs, `a · b` is `a.0 · b.0 + a.1 · b.1`.
    unsafe fn step(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Returns `acc + a · b` on f32 lanes.
    unsafe fn mul_add(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// A mask of lanes.
    type Mask: Copy;
    /// Reads the mask of vector `vector` of a row. The row has one bit per lane, lowest bit first.
    unsafe fn mask(row: *const u32, vector: usize) -> Self::Mask;
    /// Returns `v` with masked lanes set to zero.
    unsafe fn apply_mask(v: Self::V, mask: Self::Mask) -> Self::V;
    /// Loads `LANES · PAIR` consecutive elements as words. `round` rounds an f32 word to bf16.
    unsafe fn words_by_rows<const D: u8>(p: *const u8, round: bool) -> Self::V;
    /// Loads `LANES` words by columns: element `i` of `p0`, with element `i` of `p1` as the second of a pair.
    unsafe fn words_by_columns<const D: u8>(p0: *const u8, p1: *const u8, round: bool) -> Self::V;
    /// Pieces of 4-bit elements that dot products look up at once: 1 or 2, limited by the table's capacity.
    const PIECES: usize;
    /// The 16 values of one piece in 4 bits, or of two.
    type Table: Copy;
    /// Returns `code · scale`, rounded to bf16 if words are pairs or `round` is set. The second scale belongs
    /// to the second piece, if there is one.
    unsafe fn table(code: &[f32; 16], scales: [f32; 2], round: bool) -> Self::Table;
    /// Returns the values of the first piece of a table.
    unsafe fn values(table: Self::Table) -> [f32; 16];
    /// Looks up `LANES · PAIR` consecutive elements as words. The first code is in the upper half of the byte
    /// at `p`. Both scales of the table are equal.
    unsafe fn lookup(table: Self::Table, p: *const u8) -> Self::V;
    /// Looks up `LANES` words by columns: code `i` at `p0` with the first scale of `table`. If words are
    /// pairs, the second of a pair is code `i` at `p1` with the second scale.
    unsafe fn lookup_by_columns(table: Self::Table, p0: *const u8, p1: *const u8) -> Self::V;
    /// Looks up one vector of the chunk of [`PIECES`](MicroKernel::PIECES) pieces at `p`, in the instruction
    /// set's fastest order: element `i` of vector `v` is element `interleaved(v · LANES · PAIR + i)` of the
    /// chunk.
    unsafe fn lookup_interleaved(table: Self::Table, p: *const u8, v: usize) -> Self::V;
    /// Returns the element of a chunk that is at `place` in its vectors.
    fn interleaved(place: usize) -> usize;
    /// Transposes the leading `LANES x LANES` words.
    unsafe fn transpose(rows: &mut [Self::V; 16]);
    /// Prefetches the cache line of `p`, which need not be valid.
    unsafe fn prefetch(p: *const u8);
    /// As [`prefetch`](MicroKernel::prefetch), into L2.
    unsafe fn prefetch_far(p: *const u8);
    /// Returns the sum of each of four vectors, always added in the same order.
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4];
}

/// Reads element `i` of little-endian elements at `p`.
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

/// Returns one word: an f32 (rounded to bf16 if asked), or a bf16 pair with the lower `k` in the lower half.
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
