//! Launches of `rope.cu`.

use super::{Rows, THREADS, vector_len};
use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Cosines and sines for the positions of one pass, `(n, half)` f32 each.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub cosines: DevicePtr,
    pub sines: DevicePtr,
    pub n: usize,
    /// Half of the head size.
    pub half: usize,
}

/// Direction of the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Forward,
    Backward,
}

/// Computes the table for these frequencies and positions.
pub fn fill_table(device: &Device, table: Table, inv_freq: DevicePtr, positions: DevicePtr) {
    let Table { cosines, sines, n, half } = table;
    let launch = device.exact("rope_table").grid((n * half).div_ceil(THREADS as usize), 1, 1).block(THREADS);
    let launch = launch.ptr(cosines).ptr(sines).ptr(inv_freq).ptr(positions).ptr(DevicePtr::NULL);
    launch.int(n).int(half).float(1.0).run();
}

/// Rotates the heads of each row of `q` and `k` in place. `heads` contains the number of heads of `q` and of
/// `k`.
pub fn rope(device: &Device, dtype: DType, [q, k]: [Rows; 2], table: Table, heads: [usize; 2], turn: Turn) {
    let Table { cosines, sines, n, half } = table;
    let parts = heads[0].max(heads[1]) * half.div_ceil(vector_len(dtype));
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    let launch = device
        .kernel("rope", dtype)
        .grid(n, parts.div_ceil(THREADS as usize), 2)
        .block(THREADS)
        .overlapping();
    let launch = launch.ptr(q.at).ptr(k.at).ptr(cosines).ptr(sines).int(heads[0]).int(heads[1]);
    // All elements of a head are rotated, and a pair is one element of each half.
    launch.int(2 * half).int(half).int(0).long(q.stride).long(k.stride).float(sign).run();
}
