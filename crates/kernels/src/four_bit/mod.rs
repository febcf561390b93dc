//! Weights in 4 bits, in the format of bitsandbytes. A weight has 4-bit codes, one scale for each block of
//! elements, and a table of 16 values.
//!
//! The matrix is row-major. Two elements share a byte of codes, and the element with the even index uses the
//! upper half. A block has `block_size` consecutive elements, and may continue in the next row. The value of
//! an element is `table[code] · scale` in f32. A multiplication in bf16 rounds this value, as for any other
//! weight. The scales may be stored as 8-bit codes ("double quantization").

mod encode;
mod tables;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

pub use encode::{FourBitCode, NESTED_BLOCK, NestedScales, encode_blocks, nest};
pub use tables::{FP4, NF4, dynamic_u8};

use crate::{Bytes, DType};

/// One frozen weight in 4 bits.
#[derive(Clone, Debug)]
pub struct FourBit {
    codes: Bytes,
    scales: Scales,
    table: [f32; 16],
    block_log2: u32,
    dtype: DType,
    len: usize,
}

/// Format of a 4-bit weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FourBitFormat {
    /// The 4-bit type, which defines the table of values.
    pub code: FourBitCode,
    /// Number of elements that share a scale. A power of two.
    pub block_size: usize,
    /// Whether the scales are stored as 8-bit codes.
    pub nested: bool,
}

/// The scales of all blocks of a weight.
#[derive(Clone, Debug)]
pub enum Scales {
    /// Scales as little-endian f32.
    Plain(Bytes),
    /// Scales as 8-bit codes. Scale `i` is `table[codes[i]] · absmax[i / block_size] + offset`.
    Nested {
        /// One 8-bit code for each block of weights.
        codes: Bytes,
        /// The value of each 8-bit code.
        table: Arc<[f32; 256]>,
        /// The largest magnitude in each block of scales, as little-endian f32.
        absmax: Bytes,
        /// Number of scales in a block of scales. A power of two.
        block_size: usize,
        /// The mean of the scales, which was subtracted before the scales were encoded.
        offset: f32,
    },
}

impl Scales {
    /// Returns whether there is exactly one scale for each of `blocks` blocks.
    pub fn fit(&self, blocks: usize) -> bool {
        match self {
            Self::Plain(absmax) => blocks.checked_mul(4) == Some(absmax.as_slice().len()),
            Self::Nested { codes, absmax, block_size, .. } => {
                codes.as_slice().len() == blocks
                    && block_size.is_power_of_two()
                    && blocks.div_ceil(*block_size).checked_mul(4) == Some(absmax.as_slice().len())
            }
        }
    }

    /// Returns a view of the scales as slices, for inner loops.
    #[inline(always)]
    pub(crate) fn view(&self) -> ScaleView<'_> {
        match self {
            Self::Plain(absmax) => ScaleView::Plain(absmax.as_slice()),
            Self::Nested { codes, table, absmax, block_size, offset } => ScaleView::Nested {
                codes: codes.as_slice(),
                table,
                absmax: absmax.as_slice(),
                shift: block_size.trailing_zeros(),
                offset: *offset,
            },
        }
    }
}

/// A view of [`Scales`] as slices, for inner loops.
#[derive(Clone, Copy)]
pub(crate) enum ScaleView<'a> {
    Plain(&'a [u8]),
    Nested { codes: &'a [u8], table: &'a [f32; 256], absmax: &'a [u8], shift: u32, offset: f32 },
}

/// Maximum number of blocks in a group, a range of consecutive blocks. The scales of a group are in one
/// table, and one byte per block selects a scale from this table.
pub(crate) const GROUP: usize = 256;

/// The bytes that select the scales of a group if the scales are not nested: 0, 1, ... 255.
static IN_ORDER: [u8; GROUP] = {
    let mut bytes = [0; GROUP];
    let mut i = 0;
    while i < GROUP {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};

impl<'a> ScaleView<'a> {
    /// Returns the binary logarithm of the number of blocks in a group. See [`GROUP`].
    #[inline(always)]
    pub fn group_log2(&self) -> u32 {
        let most = GROUP.ilog2();
        match *self {
            Self::Plain(_) => most,
            Self::Nested { shift, .. } => shift.min(most),
        }
    }

    /// Writes the scales of group `group` to `scales`, and returns `bytes`. Block `i` of the group has the
    /// scale `scales[bytes[i]]`, with the same bits as from [`at`](ScaleView::at).
    #[inline(always)]
    pub fn group(&self, group: usize, scales: &mut [f32; GROUP]) -> &'a [u8] {
        let first = group << self.group_log2();
        match *self {
            Self::Plain(absmax) => {
                let absmax = &absmax[4 * first..absmax.len().min(4 * (first + GROUP))];
                for (scale, absmax) in scales.iter_mut().zip(absmax.chunks_exact(4)) {
                    *scale = f32_at(absmax, 0);
                }
                &IN_ORDER
            }
            Self::Nested { codes, table, absmax, shift, offset } => {
                let largest = f32_at(absmax, first >> shift);
                for (scale, value) in scales.iter_mut().zip(table) {
                    *scale = value * largest + offset;
                }
                &codes[first..]
            }
        }
    }

    /// Returns the scale of block `block`.
    #[inline(always)]
    pub fn at(&self, block: usize) -> f32 {
        match *self {
            Self::Plain(absmax) => f32_at(absmax, block),
            Self::Nested { codes, table, absmax, shift, offset } => {
                table[codes[block] as usize] * f32_at(absmax, block >> shift) + offset
            }
        }
    }
}

#[inline(always)]
fn f32_at(bytes: &[u8], i: usize) -> f32 {
    let bytes = &bytes[4 * i..4 * i + 4];
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl FourBit {
    /// Creates a weight of `len` elements. `dtype` is the type of the weight before quantization.
    ///
    /// # Panics
    /// If a block size is not a power of two, if `block_size` is 1, or if the number of codes or scales does
    /// not match `len`. Callers validate the contents of files before they call this function.
    pub fn new(
        codes: Bytes,
        scales: Scales,
        table: [f32; 16],
        block_size: usize,
        dtype: DType,
        len: usize,
    ) -> Self {
        assert!(block_size.is_power_of_two() && block_size >= 2, "blocks of {block_size}");
        assert_eq!(codes.as_slice().len(), len.div_ceil(2), "codes of {len} elements");
        assert!(scales.fit(len.div_ceil(block_size)), "scales of {len} elements in blocks of {block_size}");
        Self { codes, scales, table, block_log2: block_size.trailing_zeros(), dtype, len }
    }

    /// Returns the number of elements.
    #[allow(clippy::len_without_is_empty, reason = "a weight is never asked whether it is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns the codes, two per byte.
    pub fn codes(&self) -> &[u8] {
        self.codes.as_slice()
    }

    /// Returns the scale of each block.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Returns the value of each code before the scale is applied.
    pub fn table(&self) -> &[f32; 16] {
        &self.table
    }

    /// Returns the number of elements in a block.
    pub fn block_size(&self) -> usize {
        1 << self.block_log2
    }

    /// Returns log2 of [`FourBit::block_size`].
    pub(crate) fn block_log2(&self) -> u32 {
        self.block_log2
    }

    /// Returns the type of the weight before quantization.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the total size of the codes and scales in bytes.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(absmax) => absmax.as_slice().len(),
            Scales::Nested { codes, absmax, .. } => codes.as_slice().len() + absmax.as_slice().len(),
        };
        self.codes().len() + scales
    }

    /// Writes the values of the elements in the range `elements` to `out`.
    ///
    /// # Panics
    /// If the range ends past the last element, or if `out` and the range have different lengths.
    pub fn decode(&self, elements: Range<usize>, out: &mut [f32]) {
        assert!(elements.end <= self.len && out.len() == elements.len());
        let (codes, scales) = (self.codes(), self.scales.view());
        let mut e = elements.start;
        while e < elements.end {
            let block = e >> self.block_log2;
            let end = elements.end.min((block + 1) << self.block_log2);
            let scale = scales.at(block);
            let values = self.table.map(|v| v * scale);
            for (o, e) in out[e - elements.start..end - elements.start].iter_mut().zip(e..end) {
                *o = values[code(codes[e / 2], e)];
            }
            e = end;
        }
    }
}

/// Returns the code of element `e` from the byte that contains the code.
#[inline(always)]
pub(crate) fn code(byte: u8, e: usize) -> usize {
    (if e.is_multiple_of(2) { byte >> 4 } else { byte & 15 }) as usize
}
