//! Launches of `four_bit.cu`.

use super::few_rows::{self, FewRowsOut, Group};
use super::{Rows, THREADS};
use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Number of columns per block of the decode kernel.
const DECODE_COLUMNS: usize = 2048;
const DECODE_ROWS: usize = 4;
/// Number of quantization blocks per thread block of the encode kernel.
const ENCODE_BLOCKS: usize = 8;
/// Number of scales per block of the sum kernel.
const SUM_BLOCK: usize = 16_384;
/// Number of outputs per tile of [`rows`].
const ROWS_OUTPUTS: usize = 16;

/// Addresses of the arrays of a 4-bit weight. The layout is that of `struct FourBit` in `four_bit.cu`,
/// `four_bit_rows.cu` and `four_bit_fused.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FourBitParts {
    pub codes: DevicePtr,
    /// Table of 16 f32 values.
    pub table: DevicePtr,
    /// Codes of the scales. Null if `absmax` contains one scale per block.
    pub scale_codes: DevicePtr,
    pub scale_table: DevicePtr,
    pub absmax: DevicePtr,
    pub offset: f32,
    pub block_shift: i32,
    pub scale_shift: i32,
    pub unused: i32,
}

/// Decodes a weight of shape `(rows, cols)` to `out`.
pub fn decode(
    device: &Device,
    dtype: DType,
    out: DevicePtr,
    weight: &FourBitParts,
    (rows, cols): (usize, usize),
) {
    let launch = device
        .kernel("four_bit_decode", dtype)
        .grid(cols.div_ceil(DECODE_COLUMNS), rows.div_ceil(DECODE_ROWS), 1)
        .block(THREADS);
    launch.ptr(out).structure(weight).int(rows).int(cols).long(cols).run();
}

/// Outputs of [`encode`].
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    pub codes: DevicePtr,
    pub absmax: DevicePtr,
}

/// Tables for the encoder of a 4-bit type.
#[derive(Clone, Copy, Debug)]
pub struct Ladder {
    /// The 15 midpoints between neighbouring values, as f32.
    pub bounds: DevicePtr,
    /// The codes in the order of their values, as 16 bytes.
    pub order: DevicePtr,
}

/// Encodes `len` values in blocks of `1 << block_shift` values.
pub fn encode(
    device: &Device,
    dtype: DType,
    out: Encoded,
    values: DevicePtr,
    ladder: Ladder,
    (len, block_shift): (usize, u32),
) {
    let blocks = len.div_ceil(1 << block_shift).div_ceil(ENCODE_BLOCKS);
    let launch = device.kernel("four_bit_encode", dtype).grid(blocks, 1, 1).block(THREADS);
    let launch = launch.ptr(out.codes).ptr(out.absmax).ptr(values).ptr(ladder.bounds).ptr(ladder.order);
    launch.long(len).int(block_shift as usize).run();
}

/// Outputs of [`nest`].
#[derive(Clone, Copy, Debug)]
pub struct Nested {
    pub codes: DevicePtr,
    pub absmax: DevicePtr,
    /// Mean of the scales as one f32. It is added to each scale after decoding.
    pub offset: DevicePtr,
}

/// Returns the bytes of the workspace that [`mean_scale`] uses.
pub fn mean_scale_bytes(count: usize) -> usize {
    8 * count.div_ceil(SUM_BLOCK)
}

/// Computes the mean of `count` scales as one f32. Uses the workspace.
pub fn mean_scale(device: &Device, out: DevicePtr, scales: DevicePtr, count: usize) {
    let parts = count.div_ceil(SUM_BLOCK);
    let partial = device.workspace(mean_scale_bytes(count));
    let sums = device.exact("four_bit_scale_sums").grid(parts, 1, 1).block(THREADS);
    sums.ptr(partial).ptr(scales).int(count).run();
    let mean = device.exact("four_bit_scale_mean").grid(1, 1, 1).block(THREADS);
    mean.ptr(out).ptr(partial).int(parts).int(count).run();
}

/// Encodes `count` scales in 8 bits, relative to the mean at `out.offset`. `table` contains the 256 code
/// values.
pub fn nest(device: &Device, out: Nested, scales: DevicePtr, table: DevicePtr, count: usize) {
    let nest = device.exact("four_bit_nest").grid(count.div_ceil(THREADS as usize), 1, 1).block(THREADS);
    nest.ptr(out.codes).ptr(out.absmax).ptr(scales).ptr(table).ptr(out.offset).int(count).run();
}

/// Number of thread blocks of [`rows`] per multiprocessor. It is small, because each thread block fills a
/// table of value pairs for each weight.
const ROWS_BLOCKS: usize = 2;

/// Returns the bytes of dynamic shared memory of [`rows`]: a table of 32 KiB, and two buffers for the codes
/// of a step in each of 8 warps. `four_bit_rows.cu` defines the number of column blocks per step.
fn rows_shared_bytes(capability: (u32, u32)) -> usize {
    let step = if capability.0 >= 8 { 4 } else { 2 };
    (32 << 10) + 8 * 2 * ROWS_OUTPUTS * (32 * step + 32)
}

/// Computes `out = inp Wᵀ` for a few rows and weights. The decoded weights are not written to memory.
///
/// `shape` is `(n, cols)`, and `out_type` is the type of the outputs and of the operands that are added.
/// Returns false if no kernel supports the shape. See [`few_rows::fits`].
pub fn rows(
    device: &Device,
    dtype: DType,
    (outs, out_type): (&[FewRowsOut], DType),
    inp: Rows,
    weights: &[&FourBitParts],
    (n, cols): (usize, usize),
) -> bool {
    let name = if out_type == dtype { "four_bit_rows" } else { "four_bit_rows_to_f32" };
    let fits = weights.iter().all(|weight| weight.block_shift == 6)
        && cols.is_multiple_of(64)
        && inp.is_aligned(dtype)
        && few_rows::fits(n, outs);
    if !fits || !device.has(name, dtype) {
        return false;
    }
    let group = Group::new(outs, weights.iter().map(|&&weight| weight), ROWS_OUTPUTS);
    let blocks = group.tiles().min(ROWS_BLOCKS * device.info.multiprocessors as usize);
    let shared = rows_shared_bytes(device.info.capability);
    let launch = device.kernel(name, dtype).grid(blocks, 1, 1).block(THREADS).shared(shared).overlapping();
    launch.structure(&group).ptr(inp.at).int(n).int(cols).long(inp.stride).run();
    true
}
