//! Launches of `four_bit.cu`.

use super::{Rows, THREADS};
use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Columns and rows that a block decodes.
const DECODE_COLUMNS: usize = 2048;
const DECODE_ROWS: usize = 4;
/// Blocks of weights that a block of threads encodes.
const ENCODE_BLOCKS: usize = 8;
/// Scales whose sum a block takes.
const SUM_BLOCK: usize = 16_384;

/// The parts of a weight in device memory: `FourBit` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FourBitParts {
    pub codes: DevicePtr,
    /// 16 f32.
    pub table: DevicePtr,
    /// Null where `absmax` has a scale for each block.
    pub scale_codes: DevicePtr,
    pub scale_table: DevicePtr,
    pub absmax: DevicePtr,
    pub offset: f32,
    pub block_shift: i32,
    pub scale_shift: i32,
    pub unused: i32,
}

/// Writes the values of a weight `(rows, cols)` to `out`, one row after the other.
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

/// Where the codes and scales of a weight go.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    pub codes: DevicePtr,
    pub absmax: DevicePtr,
}

/// The middles between neighbouring values of a code (15 f32), and the codes in their order (16 bytes).
#[derive(Clone, Copy, Debug)]
pub struct Ladder {
    pub bounds: DevicePtr,
    pub order: DevicePtr,
}

/// Encodes `len` values in blocks of `1 << block_shift`.
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

/// Where the scales of a weight go in 8 bits.
#[derive(Clone, Copy, Debug)]
pub struct Nested {
    pub codes: DevicePtr,
    pub absmax: DevicePtr,
    /// The mean, one f32.
    pub offset: DevicePtr,
}

/// Encodes `count` scales in 8 bits; `table` holds the 256 values of the code.
pub fn nest(device: &Device, out: Nested, scales: DevicePtr, table: DevicePtr, count: usize) {
    let parts = count.div_ceil(SUM_BLOCK);
    let partial = device.workspace(8 * parts);
    let sums = device.exact("four_bit_scale_sums").grid(parts, 1, 1).block(THREADS);
    sums.ptr(partial).ptr(scales).int(count).run();
    let mean = device.exact("four_bit_scale_mean").grid(1, 1, 1).block(THREADS);
    mean.ptr(out.offset).ptr(partial).int(parts).int(count).run();
    let nest = device.exact("four_bit_nest").grid(count.div_ceil(THREADS as usize), 1, 1).block(THREADS);
    nest.ptr(out.codes).ptr(out.absmax).ptr(scales).ptr(table).ptr(out.offset).int(count).run();
}

/// Most rows that [`rows`] multiplies.
pub const MAX_ROWS: usize = 8;
/// Outputs of a tile, and most blocks, which take one tile after another.
const ROWS_OUTPUTS: usize = 16;
const ROWS_BLOCKS: usize = 4096;

/// `out = inp Wᵀ` for up to [`MAX_ROWS`] rows `(n, outputs, cols)` without decoding the weight, where there is a kernel
/// for its shape; returns whether there was.
pub fn rows(
    device: &Device,
    dtype: DType,
    out: Rows,
    inp: Rows,
    weight: &FourBitParts,
    (n, outputs, cols): (usize, usize, usize),
) -> bool {
    let fits = weight.block_shift == 6 && cols.is_multiple_of(64) && n <= MAX_ROWS && inp.is_aligned(dtype);
    if !fits || !device.has("four_bit_rows", dtype) {
        return false;
    }
    let blocks = outputs.div_ceil(ROWS_OUTPUTS).min(ROWS_BLOCKS);
    let launch = device.kernel("four_bit_rows", dtype).grid(blocks, 1, 1).block(THREADS);
    let launch = launch.ptr(out.at).ptr(inp.at).structure(weight).int(n).int(outputs).int(cols);
    launch.long(out.stride).long(inp.stride).run();
    true
}
