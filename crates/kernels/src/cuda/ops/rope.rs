//! Launches of `rope.cu`.

use super::{Rows, THREADS, vector_len};
use crate::cuda::device::{Device, DevicePtr};
use crate::{DType, RopePairs};

/// Cosines and sines for the positions of one pass, `(n, half)` f32 each.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub cosines: DevicePtr,
    pub sines: DevicePtr,
    pub n: usize,
    /// Number of rotated pairs of each head.
    pub half: usize,
}

/// The angles of a pass, and the factor of all cosines and sines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Angles {
    pub inv_freq: DevicePtr,
    pub positions: DevicePtr,
    /// Row of `inv_freq` for each row, or null if every row uses row 0.
    pub tables: DevicePtr,
    pub scale: f32,
}

/// The heads of `q` and `k`. The first elements of each head are rotated.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Number of heads of `q` and of `k`.
    pub counts: [usize; 2],
    pub head_dim: usize,
    pub pairs: RopePairs,
}

/// Direction of the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Forward,
    Backward,
}

/// Computes the table for these angles.
pub fn fill_table(device: &Device, table: Table, angles: Angles) {
    let Table { cosines, sines, n, half } = table;
    let Angles { inv_freq, positions, tables, scale } = angles;
    let launch = device.exact("rope_table").grid((n * half).div_ceil(THREADS as usize), 1, 1).block(THREADS);
    let launch = launch.ptr(cosines).ptr(sines).ptr(inv_freq).ptr(positions).ptr(tables);
    launch.int(n).int(half).float(scale).run();
}

/// Rotates the heads of each row of `q` and `k` in place.
pub fn rope(device: &Device, dtype: DType, [q, k]: [Rows; 2], table: Table, heads: Heads, turn: Turn) {
    let Table { cosines, sines, n, half } = table;
    let Heads { counts: [heads, kv_heads], head_dim, pairs } = heads;
    let parts = heads.max(kv_heads) * half.div_ceil(vector_len(dtype));
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    let launch = device
        .kernel("rope", dtype)
        .grid(n, parts.div_ceil(THREADS as usize), 2)
        .block(THREADS)
        .overlapping();
    let launch = launch.ptr(q.at).ptr(k.at).ptr(cosines).ptr(sines).int(heads).int(kv_heads);
    let neighbours = usize::from(pairs == RopePairs::Neighbours);
    launch.int(head_dim).int(half).int(neighbours).long(q.stride).long(k.stride).float(sign).run();
}
