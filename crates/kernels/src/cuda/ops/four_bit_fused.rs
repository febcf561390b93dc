//! Launches of `four_bit_fused.cu`.

use super::four_bit::FourBitParts;
use super::{Rows, THREADS};
use crate::DType;
use crate::cuda::blas::Direction;
use crate::cuda::device::{Device, DevicePtr, WORKSPACE_BYTES};

/// Most rows of a product.
pub const MAX_ROWS: usize = 128;
/// Rows of the transposed result that a block takes, and how much of the inner dimension at a time.
const TILE: usize = 128;
const STEP: usize = 64;
/// Blocks that fill the largest device: below, the inner dimension is split. Fixed, so that bits do not depend on it.
const BLOCKS: usize = 264;
/// Smallest weight for which this is faster than a decoded one.
const MIN_ELEMENTS: usize = 8 << 20;
/// Shared bytes of a block: three steps of rows, codes and scales, the table of pairs, the table of scales.
const SHARED_BYTES: usize = 3 * (16_384 + 4096 + 512) + 32_768 + 1024;

/// A product of `n` rows with a weight `(outputs, cols)`.
#[derive(Clone, Copy, Debug)]
pub struct FusedShape {
    pub direction: Direction,
    pub n: usize,
    pub outputs: usize,
    pub cols: usize,
}

/// `out = inp Wᵀ`, or backward `out = inp W`, plus `add` where given (it may be `out`), of up to [`MAX_ROWS`] rows and
/// without decoding the weight. Returns whether there is a kernel for this shape, and it is worth it.
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

/// [`product`] of any size.
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
