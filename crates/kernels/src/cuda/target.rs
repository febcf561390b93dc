//! The memory sizes of a [`Cuda`](super::Cuda) back end. They allow memory plans without a device.

use super::arena::allocated_bytes;
use super::backend::{HEAD_ROWS, stored_dtype};
use super::{blas, device, weight};
use crate::trace::{ScratchPool, TraceTarget, TracedOp};
use crate::{DType, Element, FamilyOperation, FourBitFormat};

/// Memory of the driver's context on an H200. A memory plan does not include it.
const CONTEXT_BYTES: u64 = 530 << 20;
/// Memory for ranges of the allocator that stay unused. A memory plan does not include it.
const SPARE_BYTES: u64 = 256 << 20;

/// Host memory of the driver, of cuBLASLt and of the ring for copies, measured on an H200 with driver 580 and
/// cuBLASLt 13.1.
pub const HOST_BYTES: u64 = 395 << 20;
/// Host memory of the graph that generates a token, measured on the same machine.
pub const HOST_GRAPH_BYTES: u64 = 35 << 20;

/// Returns the bytes that a plan may use on a device with `free` free bytes and an open context.
pub fn usable_bytes(free: u64) -> u64 {
    free.saturating_sub(SPARE_BYTES)
}

/// Returns the bytes that a memory plan may use on an idle device with `total` bytes.
pub fn usable_bytes_of(total: u64) -> u64 {
    usable_bytes(total.saturating_sub(CONTEXT_BYTES))
}

/// Returns the bytes of a weight of `len` elements in device memory. The weight has 4 bits if `format` is
/// given, and otherwise it is dense and has type `dtype`.
pub fn placed_bytes(len: usize, format: Option<FourBitFormat>, dtype: DType) -> u64 {
    weight::placed_bytes(len, format, dtype)
}

/// Computes the sizes of the allocations of a [`Cuda`](super::Cuda) back end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CudaTarget {
    /// Type of activations.
    pub dtype: DType,
    /// Number of elements of the largest 4-bit weight, or 0 if no weight has 4 bits.
    pub largest_four_bit: usize,
}

impl TraceTarget for CudaTarget {
    fn name(&self) -> String {
        format!("cuda, {:?}", self.dtype).to_lowercase()
    }

    fn row_invariant_from(&self) -> usize {
        1
    }

    fn supports(&self, _operation: FamilyOperation) -> bool {
        // A plan is computed for every model. If the back end lacks an operation, loading the model returns
        // an error.
        true
    }

    fn dtype(&self, element: Element) -> DType {
        stored_dtype(self.dtype, element)
    }

    fn allocated_bytes(&self, bytes: u64) -> u64 {
        allocated_bytes(bytes)
    }

    fn scratch(&self, op: TracedOp<'_>, grow: &mut dyn FnMut(ScratchPool, u64)) {
        let size = self.dtype.size();
        if self.largest_four_bit > 0 {
            grow(ScratchPool::Products(0), allocated_bytes((self.largest_four_bit * size) as u64));
        }
        grow(ScratchPool::Products(1), device::WORKSPACE_BYTES);
        grow(ScratchPool::Products(2), blas::WORKSPACE_BYTES);
        match op {
            TracedOp::Head { n, v, .. } => {
                let logits = n.min(HEAD_ROWS) * v * size;
                grow(ScratchPool::Head(0), allocated_bytes(logits as u64));
            }
            TracedOp::Rope { n, half, .. } => {
                grow(ScratchPool::Rope, allocated_bytes(8 * (n * half) as u64));
            }
            TracedOp::Linear { n, d_out, d_in, backward, dtype, .. } if dtype != self.dtype => {
                let rounded = n * if backward { d_out } else { d_in } * size;
                grow(ScratchPool::Products(3), allocated_bytes(rounded as u64));
            }
            TracedOp::Linear { .. }
            | TracedOp::Lora { .. }
            | TracedOp::Attention { .. }
            | TracedOp::DecodeAttention { .. } => {}
        }
    }
}
