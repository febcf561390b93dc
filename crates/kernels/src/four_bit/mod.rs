//! Weights in 4 bits, in the format of bitsandbytes: codes, a scale for each block, a table of 16 values.
//!
//! Element `e` of a row-major matrix has its code in half a byte; even elements use the upper half. Blocks of
//! `block_size` elements continue across the ends of rows. A value is `table[code] · scale` in f32. A bf16
//! multiplication rounds it like any other weight. The scales may themselves be 8-bit codes ("double
//! quantization").

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

/// Format of an encoded weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FourBitFormat {
    /// Table of values.
    pub code: FourBitCode,
    /// Elements that share a scale, a power of two.
    pub block_size: usize,
    /// Whether scales are 8-bit codes.
    pub nested: bool,
}

/// The scale of each block.
#[derive(Clone, Debug)]
pub enum Scales {
    /// Little-endian f32.
    Plain(Bytes),
    /// `table[codes[i]] · absmax[i / block_size] + offset`.
    Nested {
        /// One byte for each block of weights.
        codes: Bytes,
        /// The value of each byte.
        table: Arc<[f32; 256]>,
        /// Little-endian f32, one for each block of scales.
        absmax: Bytes,
        /// Scales in a block, a power of two.
        block_size: usize,
        /// The mean of the scales, which the codes leave out.
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

    /// Returns the scales as slices, for loops.
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

/// [`Scales`] as slices, for loops.
#[derive(Clone, Copy)]
pub(crate) enum ScaleView<'a> {
    Plain(&'a [u8]),
    Nested { codes: &'a [u8], table: &'a [f32; 256], absmax: &'a [u8], shift: u32, offset: f32 },
}

/// Most blocks of a group. Within a group, one byte selects a block's scale.
pub(crate) const GROUP: usize = 256;

/// The selecting bytes of a group whose scales are not nested.
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
    /// Returns the binary logarithm of the blocks in a group.
    #[inline(always)]
    pub fn group_log2(&self) -> u32 {
        let most = GROUP.ilog2();
        match *self {
            Self::Plain(_) => most,
            Self::Nested { shift, .. } => shift.min(most),
        }
    }

    /// Writes the scales of group `group` to a table, and returns the byte that selects each block's scale in
    /// it. A scale is computed once for many blocks, with the same bits as in [`at`](ScaleView::at).
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
    /// Makes a weight of `len` elements. `dtype` is the type of the weight before quantization.
    ///
    /// # Panics
    /// If there are not `len` codes, if a block size is not a power of two of at least 2, or if the number of
    /// scales is wrong. Callers check files first.
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

    /// Returns the value of each code before scaling.
    pub fn table(&self) -> &[f32; 16] {
        &self.table
    }

    /// Returns the elements of a block.
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

    /// Returns the bytes of codes and scales.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(absmax) => absmax.as_slice().len(),
            Scales::Nested { codes, absmax, .. } => codes.as_slice().len() + absmax.as_slice().len(),
        };
        self.codes().len() + scales
    }

    /// Writes the values of `elements` to `out`.
    ///
    /// # Panics
    /// If the range reaches past the end, or `out` has another length.
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

/// Returns the code of element `e` from its byte.
#[inline(always)]
pub(crate) fn code(byte: u8, e: usize) -> usize {
    (if e.is_multiple_of(2) { byte >> 4 } else { byte & 15 }) as usize
}
