//! Launches of `gemv.cu`.

use super::few_rows::{self, FewRowsOut, Group};
use super::{Rows, THREADS};
use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Number of outputs per block of the tensor-core kernel.
const OUTPUTS: usize = 16;
const EXACT_OUTPUTS: usize = 8;

/// Computes `out = inp Wᵀ` for up to [`MAX_PARTS`](few_rows::MAX_PARTS) dense weights and up to
/// [`MAX_ROWS`](few_rows::MAX_ROWS) rows of `inp (n, cols)`. [`FewRowsOut::add`], if given, is added to the
/// result.
///
/// `out_type` is the type of the outputs and of the added operands: `dtype` or f32. Returns false if no
/// kernel supports the shape.
pub fn forward(
    device: &Device,
    dtype: DType,
    (outs, out_type): (&[FewRowsOut], DType),
    inp: Rows,
    weights: &[DevicePtr],
    (n, cols): (usize, usize),
) -> bool {
    let is_exact = dtype == DType::F32;
    let name = if out_type == dtype { "gemv" } else { "gemv_to_f32" };
    let is_aligned = |&weight: &DevicePtr| Rows::dense(weight, cols).is_aligned(dtype);
    let is_wide = cols.is_multiple_of(8) && inp.is_aligned(dtype) && weights.iter().all(is_aligned);
    let has_type = out_type == dtype || out_type == DType::F32;
    if !few_rows::fits(n, outs) || !is_exact && !is_wide || !has_type {
        return false;
    }
    let tile = if is_exact { EXACT_OUTPUTS } else { OUTPUTS };
    let group = Group::new(outs, weights.iter().copied(), tile);
    let launch = device.kernel(name, dtype).grid(group.tiles(), 1, 1).block(THREADS).overlapping();
    launch.structure(&group).ptr(inp.at).int(n).int(cols).long(inp.stride).run();
    true
}
