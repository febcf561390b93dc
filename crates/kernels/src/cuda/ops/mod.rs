//! Launches the kernels of each operation with their grid, block size and shared memory.
//!
//! Callers check the shapes. Each kernel is documented in `cuda/*.cu`.

pub(super) mod adamw;
pub(super) mod attention;
pub(super) mod dora;
pub(super) mod few_rows;
pub(super) mod four_bit;
pub(super) mod four_bit_fused;
pub(super) mod gated;
pub(super) mod gemv;
pub(super) mod head_loss;
pub(super) mod lora;
pub(super) mod rmsnorm;
pub(super) mod rope;
pub(super) mod rows;

use super::device::DevicePtr;
use crate::DType;

/// Default number of threads per block.
const THREADS: u32 = 256;
/// Number of bytes that a vector access reads or writes.
const VECTOR_BYTES: usize = 16;

/// A matrix in device memory: the address of its first element, and the distance between rows in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub at: DevicePtr,
    pub stride: usize,
}

impl Rows {
    /// Returns contiguous rows of `width` elements.
    pub fn dense(at: DevicePtr, width: usize) -> Self {
        Self { at, stride: width }
    }

    /// Returns whether the address of every row is aligned for vector accesses.
    fn is_aligned(self, dtype: DType) -> bool {
        self.at.0.is_multiple_of(VECTOR_BYTES as u64)
            && (self.stride * dtype.size()).is_multiple_of(VECTOR_BYTES)
    }
}

/// Returns the number of elements that a vector access reads or writes.
fn vector_len(dtype: DType) -> usize {
    VECTOR_BYTES / dtype.size()
}
