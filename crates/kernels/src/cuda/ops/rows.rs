//! Launches of `rows.cu`.

use super::{Rows, THREADS, vector_len};
use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Number of columns per block of [`gather_rows_backward`].
const GATHER_COLUMNS: usize = 1024;

/// Computes `dst += src`.
pub fn add(device: &Device, dtype: DType, dst: DevicePtr, src: DevicePtr, len: usize) {
    let blocks = len.div_ceil(THREADS as usize * vector_len(dtype));
    device.kernel("add", dtype).grid(blocks, 1, 1).block(THREADS).ptr(dst).ptr(src).long(len).run();
}

/// Computes `dst += src` with an f32 `dst` and an f16 `src`.
pub fn add_to_f32(device: &Device, dst: DevicePtr, src: DevicePtr, len: usize) {
    let launch = device.kernel("add_to_f32", DType::F16).grid(len.div_ceil(THREADS as usize), 1, 1);
    launch.block(THREADS).ptr(dst).ptr(src).long(len).run();
}

/// Rounds f32 elements to f16.
pub fn round(device: &Device, out: DevicePtr, inp: DevicePtr, len: usize) {
    let launch = device.kernel("round", DType::F16).grid(len.div_ceil(THREADS as usize), 1, 1);
    launch.block(THREADS).ptr(out).ptr(inp).long(len).run();
}

/// Computes `out[i] *= factors` for `n` rows of `cols` columns. `factors` is f32.
pub fn scale_columns(
    device: &Device,
    dtype: DType,
    out: Rows,
    factors: DevicePtr,
    (n, cols): (usize, usize),
) {
    let launch = device.kernel("scale_columns", dtype).grid(n, 1, 1).block(THREADS);
    launch.ptr(out.at).ptr(factors).int(cols).long(out.stride).run();
}

/// Computes `out[i] += bias` for `n` rows of `cols` columns. `bias` is f32.
pub fn add_bias(device: &Device, dtype: DType, out: Rows, bias: DevicePtr, (n, cols): (usize, usize)) {
    let launch = device.kernel("add_bias", dtype).grid(n, 1, 1).block(THREADS);
    launch.ptr(out.at).ptr(bias).int(cols).long(out.stride).run();
}

/// Returns the number of threads that copy a row of `cols` elements.
fn lanes(dtype: DType, cols: usize) -> usize {
    cols.div_ceil(vector_len(dtype)).next_power_of_two().min(THREADS as usize)
}

/// Computes `out[i] = inp[rows[i]]` for `n` rows of `cols` columns.
pub fn gather_rows(
    device: &Device,
    dtype: DType,
    out: Rows,
    inp: Rows,
    rows: DevicePtr,
    (n, cols): (usize, usize),
) {
    let lanes = lanes(dtype, cols);
    let blocks = n.div_ceil(THREADS as usize / lanes);
    let launch = device.kernel("gather_rows", dtype).grid(blocks, 1, 1).block(THREADS);
    let launch = launch.ptr(out.at).ptr(inp.at).ptr(rows).int(n).int(cols).int(lanes);
    launch.long(out.stride).long(inp.stride).run();
}

/// Computes `out[rows[i]] = inp[i]` for `n` rows of `cols` columns of one or two matrices with the same
/// strides. `rows` has no duplicates.
pub fn scatter_rows<const N: usize>(
    device: &Device,
    dtype: DType,
    out: [Rows; N],
    inp: [Rows; N],
    rows: DevicePtr,
    (n, cols): (usize, usize),
) {
    let lanes = lanes(dtype, cols);
    let blocks = n.div_ceil(THREADS as usize / lanes);
    let launch = device.kernel("scatter_rows", dtype).grid(blocks, N, 1).block(THREADS).overlapping();
    let launch = launch.ptr(out[0].at).ptr(out[N - 1].at).ptr(inp[0].at).ptr(inp[N - 1].at).ptr(rows);
    launch.int(n).int(cols).int(lanes).long(out[0].stride).long(inp[0].stride).run();
}

/// Shape of the operands of [`gather_rows_backward`].
#[derive(Clone, Copy, Debug)]
pub struct GatherShape {
    /// Number of rows of `dinp`.
    pub n: usize,
    /// Number of rows of `dout`.
    pub count: usize,
    pub cols: usize,
}

/// Computes `dinp[r]` as the sum of `dout[i]` over all `i` with `rows[i] == r`. Overwrites `dinp`.
pub fn gather_rows_backward(
    device: &Device,
    dtype: DType,
    dinp: Rows,
    dout: Rows,
    rows: DevicePtr,
    shape: GatherShape,
) {
    let GatherShape { n, count, cols } = shape;
    let launch =
        device.kernel("gather_rows_backward", dtype).grid(n, cols.div_ceil(GATHER_COLUMNS), 1).block(THREADS);
    launch.ptr(dinp.at).ptr(dout.at).ptr(rows).int(count).int(cols).long(dinp.stride).long(dout.stride).run();
}
