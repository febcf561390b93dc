//! The launches of each operation: grid, block and shared memory of every kernel are chosen here.
//!
//! Callers own the shapes. What a kernel computes stands above it in `cuda/*.cu`.

pub(super) mod adamw;
pub(super) mod attention;
pub(super) mod embedding;
pub(super) mod four_bit;
pub(super) mod four_bit_fused;
pub(super) mod gemv;
pub(super) mod head_loss;
pub(super) mod lora;
pub(super) mod rmsnorm;
pub(super) mod rope;
pub(super) mod rows;
pub(super) mod swiglu;

use super::device::DevicePtr;
use crate::DType;

/// Threads of a block where nothing else is said.
const THREADS: u32 = 256;
/// Bytes of one vector access.
const VECTOR_BYTES: usize = 16;

/// A matrix on the device: its first element, and how many elements lie between the starts of its rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub at: DevicePtr,
    pub stride: usize,
}

impl Rows {
    /// Rows of `width` elements, one after the other.
    pub fn dense(at: DevicePtr, width: usize) -> Self {
        Self { at, stride: width }
    }

    /// Whether every row begins on a vector.
    fn is_aligned(self, dtype: DType) -> bool {
        self.at.0.is_multiple_of(VECTOR_BYTES as u64)
            && (self.stride * dtype.size()).is_multiple_of(VECTOR_BYTES)
    }
}

/// Elements of a vector access.
fn vector_len(dtype: DType) -> usize {
    VECTOR_BYTES / dtype.size()
}
