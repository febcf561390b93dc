//! Launches of `four_bit_fused.cu`.

use super::four_bit::FourBitParts;
use super::{Rows, THREADS};
use crate::DType;
use crate::cuda::blas::Direction;
use crate::cuda::device::{Device, DevicePtr, WORKSPACE_BYTES};

/// Maximum number of rows of [`product`].
pub const MAX_ROWS: usize = 128;
/// Number of rows of the transposed result per block.
const TILE: usize = 128;
const STEP: usize = 64;
/// If a product has fewer thread blocks than this number, the inner dimension is split. The number is
/// constant, so that results are equal on every device.
const BLOCKS: usize = 264;
/// Minimum number of elements of a weight for which the fused kernel is faster than decoding the weight to
/// memory.
const MIN_ELEMENTS: usize = 8 << 20;
/// Bytes of shared memory per block: three stages of rows, codes and scales, the table of value pairs, and
/// the table of scales.
const SHARED_BYTES: usize = 3 * (16_384 + 4096 + 512) + 32_768 + 1024;

/// Shape of a product of `n` rows with a weight `(outputs, cols)`.
#[derive(Clone, Copy, Debug)]
pub struct FusedShape {
    pub direction: Direction,
    pub n: usize,
    pub outputs: usize,
    pub cols: usize,
}

/// Computes `out = inp Wᵀ`, or `out = inp W` in the backward direction. The decoded weight is not written to
/// memory.
///
/// If `add` is given, it is added to the result. `add` may equal `out`. Returns false, and computes nothing,
/// if no kernel supports the shape, or if it is faster to decode the whole weight to memory first.
pub fn product(
    device: &Device,
    dtype: DType,
    (out, add): (Rows, Option<Rows>),
    inp: Rows,
    weight: &FourBitParts,
    shape: FusedShape,
) -> bool {
    let FusedShape { outputs, cols, .. } = shape;
    outputs * cols >= MIN_ELEMENTS && launch(device, dtype, (out, add), inp, weight, shape)
}

/// Launches [`product`] for weights of every size. Tests call this function directly.
pub(in crate::cuda) fn launch(
    device: &Device,
    dtype: DType,
    (out, add): (Rows, Option<Rows>),
    inp: Rows,
    weight: &FourBitParts,
    shape: FusedShape,
) -> bool {
    let FusedShape { direction, n, outputs, cols } = shape;
    let (name, width, depth) = match direction {
        Direction::Forward => ("four_bit_fused_forward", outputs, cols),
        Direction::Backward => ("four_bit_fused_backward", cols, outputs),
    };
    let fits =
        weight.block_shift == 6 && cols.is_multiple_of(STEP) && depth.is_multiple_of(8) && n <= MAX_ROWS;
    if !fits || !inp.is_aligned(dtype) || !device.has(name, dtype) {
        return false;
    }
    let (blocks, steps) = (width.div_ceil(TILE), depth.div_ceil(STEP));
    let steps_each = steps.div_ceil((BLOCKS / blocks).clamp(1, steps));
    let splits = steps.div_ceil(steps_each);
    let bytes = 4 * splits * n * width;
    if bytes as u64 > WORKSPACE_BYTES {
        return false;
    }
    let partial = device.workspace(bytes);
    let launch = device.kernel(name, dtype).grid(blocks, splits, 1).block(THREADS).shared(SHARED_BYTES);
    let launch = launch.ptr(partial).ptr(inp.at).structure(weight).int(n).int(outputs).int(cols);
    launch.long(inp.stride).int(steps_each).run();
    let add = add.unwrap_or(Rows::dense(DevicePtr::NULL, 0));
    let sum = device
        .kernel("four_bit_fused_sum", dtype)
        .grid(n, width.div_ceil(THREADS as usize), 1)
        .block(THREADS);
    let sum = sum.ptr(out.at).ptr(partial).ptr(add.at).int(n).int(width).int(splits);
    sum.long(out.stride).long(add.stride).run();
    true
}
