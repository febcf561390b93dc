//! Launches of `gemv.cu`.

use super::{Rows, THREADS};
use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Most rows of [`forward`].
pub const MAX_ROWS: usize = 8;
/// Outputs per block of the tensor-core kernel.
const OUTPUTS: usize = 16;
const EXACT_OUTPUTS: usize = 8;

/// Computes `out = inp Wᵀ` for up to [`MAX_ROWS`] rows of a dense weight.
///
/// `shape` is `(n, outputs, cols)`. `out_type` is `dtype` or f32. Returns false if no kernel fits the shape.
pub fn forward(
    device: &Device,
    dtype: DType,
    (out, out_type): (Rows, DType),
    inp: Rows,
    weight: DevicePtr,
    (n, outputs, cols): (usize, usize, usize),
) -> bool {
    let is_exact = dtype == DType::F32;
    let name = if out_type == dtype { "gemv" } else { "gemv_to_f32" };
    let is_wide =
        cols.is_multiple_of(8) && inp.is_aligned(dtype) && Rows::dense(weight, cols).is_aligned(dtype);
    if n > MAX_ROWS || !is_exact && !is_wide || out_type != dtype && out_type != DType::F32 {
        return false;
    }
    let tile = if is_exact { EXACT_OUTPUTS } else { OUTPUTS };
    let launch = device.kernel(name, dtype).grid(outputs.div_ceil(tile), 1, 1).block(THREADS);
    let launch = launch.ptr(out.at).ptr(inp.at).ptr(weight).int(n).int(outputs).int(cols);
    launch.long(out.stride).long(inp.stride).run();
    true
}
