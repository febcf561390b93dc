//! Launches of `dora.cu`.

use super::Rows;
use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Number of rows of the weight that a block of `row_norms` reads.
const NORM_ROWS: usize = 8;
/// Number of columns that a block of `column_products` adds up.
const PRODUCT_COLUMNS: usize = 32;
const PRODUCT_THREADS: u32 = 1024;

/// A low-rank update `scaling · B A` of a weight. `a` and `b` are f32.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub a: DevicePtr,
    pub b: DevicePtr,
    pub rank: usize,
    pub scaling: f32,
}

/// Computes the norms of the rows of `W + scaling · B A`. The shape of `w` is `(n, cols)`.
pub fn row_norms(
    device: &Device,
    dtype: DType,
    norms: DevicePtr,
    w: DevicePtr,
    update: Update,
    (n, cols): (usize, usize),
) {
    let Update { a, b, rank, scaling } = update;
    let launch = device.kernel("row_norms", dtype).grid(n.div_ceil(NORM_ROWS), 1, 1).block(super::THREADS);
    launch.ptr(norms).ptr(w).ptr(a).ptr(b).int(n).int(cols).int(rank).float(scaling).run();
}

/// Computes `dmagnitudes[o] += scale[o] · Σ dout[i, o] · out[i, o]` over `n` rows of `cols` columns.
pub fn column_products(
    device: &Device,
    dtype: DType,
    dmagnitudes: DevicePtr,
    [dout, out]: [Rows; 2],
    scale: DevicePtr,
    (n, cols): (usize, usize),
) {
    let blocks = cols.div_ceil(PRODUCT_COLUMNS);
    let launch = device.kernel("column_products", dtype).grid(blocks, 1, 1).block(PRODUCT_THREADS);
    let launch = launch.ptr(dmagnitudes).ptr(dout.at).ptr(out.at).ptr(scale).int(n).int(cols);
    launch.long(dout.stride).long(out.stride).run();
}
