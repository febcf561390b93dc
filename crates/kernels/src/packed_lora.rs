//! A low-rank pair, packed for decoding.
//!
//! The layout of `A (R, IN)` does not change, because each row of `A` gives one dot product. `B (OUT, R)` is
//! stored as panels of 32 columns of `Bᵀ`. One vector multiply-add then adds the products of one row of `Bᵀ`
//! to neighbouring outputs:
//!
//! ```text
//! panel 0: [B[0..32, 0], B[0..32, 1], ..., B[0..32, R - 1]], panel 1: [B[32..64, 0], ...]
//! ```
//!
//! The speed of decoding is limited by the number of bytes read. Elements are therefore bf16 if bf16 stores
//! every value of the pair exactly, as for an adapter saved in bf16, and f32 otherwise. Packing never changes
//! a value.

use std::ops::Range;

use crate::lora::LoraDims;
use crate::{Buffer, DType, LoraRef, bf16_to_f32, f32_to_bf16};

/// Number of outputs in a panel of `Bᵀ`.
pub(crate) const PANEL_COLS: usize = 32;
/// Number of elements after the last panel, so that a vector load may begin at any column of this panel.
const PADDING: usize = 16;

/// `A` and `B` of one projection, packed for decoding. See [`Backend::project`](crate::Backend::project).
#[derive(Debug)]
pub struct PackedLora {
    pub(crate) dims: LoraDims,
    pub(crate) dtype: DType,
    /// `A`, with two bf16 elements in each f32 of the buffer. Empty if the elements are f32, because the
    /// unpacked `A` is then used.
    a: Buffer,
    b: Buffer,
}

/// Returns whether bf16 stores every value exactly.
fn fits_bf16(values: &[f32]) -> bool {
    values.iter().all(|&value| bf16_to_f32(f32_to_bf16(value)).to_bits() == value.to_bits())
}

/// Packs two bf16 elements into the bits of each f32. The first element is in the lower half.
fn bf16_words(values: &[f32]) -> Buffer {
    let word = |pair: &[f32]| {
        let upper = pair.get(1).map_or(0, |&value| f32_to_bf16(value) as u32);
        f32::from_bits(f32_to_bf16(pair[0]) as u32 | upper << 16)
    };
    Buffer::from_vec(values.chunks(2).map(word).collect())
}

impl PackedLora {
    /// Packs a pair in host memory.
    ///
    /// # Panics
    /// If the pair extends past the end of its buffer, or if the buffer is not in host memory.
    pub fn pack(lora: &LoraRef<'_>) -> Self {
        let [a, b] = lora.ranges().map(|range| &lora.params.host_slice()[range]);
        let (rank, d_out) = (lora.rank, lora.d_out);
        let panels = d_out.div_ceil(PANEL_COLS);
        let mut columns = vec![0.0f32; panels * PANEL_COLS * rank + PADDING];
        for (o, row) in b.chunks_exact(rank.max(1)).enumerate() {
            let panel = o / PANEL_COLS * PANEL_COLS * rank + o % PANEL_COLS;
            row.iter().enumerate().for_each(|(r, &value)| columns[panel + r * PANEL_COLS] = value);
        }
        let dims = LoraDims::of(lora);
        match fits_bf16(a) && fits_bf16(b) {
            true => Self { dims, dtype: DType::Bf16, a: bf16_words(a), b: bf16_words(&columns) },
            false => Self { dims, dtype: DType::F32, a: Buffer::host(0), b: Buffer::from_vec(columns) },
        }
    }

    /// Returns the size of the packed elements in bytes.
    pub fn bytes(&self) -> u64 {
        4 * (self.a.len() + self.b.len()) as u64
    }

    /// Returns a pointer to the first byte of `A`. `lora` is the pair from which this one was packed.
    pub(crate) fn a_of(&self, lora: &LoraRef<'_>) -> *const u8 {
        let [a, _] = lora.ranges();
        match self.dtype {
            DType::F32 => lora.params.host_slice()[a].as_ptr().cast(),
            _ => self.a.host_slice().as_ptr().cast(),
        }
    }

    /// Returns the bytes of the panels that contain the columns `cols` of `Bᵀ`.
    pub(crate) fn bytes_of(&self, cols: Range<usize>) -> Range<usize> {
        let panel = PANEL_COLS * self.dims.rank * self.dtype.size();
        cols.start / PANEL_COLS * panel..cols.end.div_ceil(PANEL_COLS) * panel
    }

    /// Returns a pointer to the first byte of the panels of `Bᵀ`.
    pub(crate) fn panels(&self) -> *const u8 {
        self.b.host_slice().as_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(values: Vec<f32>, rank: usize, d_in: usize, d_out: usize) -> PackedLora {
        let params = Buffer::from_vec(values);
        PackedLora::pack(&LoraRef { params: &params, a: 0, b: rank * d_in, rank, d_in, d_out, scaling: 1.0 })
    }

    #[test]
    fn elements_are_bf16_only_if_that_loses_nothing() {
        let exact: Vec<f32> = (0..2 * (5 + 40)).map(|i| i as f32).collect();
        let packed = pack(exact.clone(), 2, 5, 40);
        assert_eq!((packed.dtype, packed.bytes()), (DType::Bf16, 2 * (10 + 2 * 64 + 16)));
        let mut other = exact;
        other[89] = 1.0 + f32::EPSILON;
        let packed = pack(other, 2, 5, 40);
        assert_eq!((packed.dtype, packed.bytes()), (DType::F32, 4 * (2 * 64 + 16)));
    }

    #[test]
    fn a_panel_holds_a_rank_of_its_columns_after_the_other() {
        // The buffer contains A of shape (2, 1), then B of shape (34, 2) with `B[o, r] = 0.1 + 2 o + r`.
        let values: Vec<f32> = [0.0, 0.0].into_iter().chain((0..68).map(|i| 0.1 + i as f32)).collect();
        let packed = pack(values, 2, 1, 34);
        let b = packed.b.host_slice();
        assert_eq!([b[0], b[1], b[31], b[32], b[33]], [0.1, 2.1, 62.1, 1.1, 3.1]);
        assert_eq!([b[64], b[65], b[66], b[96]], [64.1, 66.1, 0.0, 65.1]);
    }
}
