//! Launches of `attention_decode.cu` for generated tokens, of `attention.cu`, and of `attention_plain.cu` for
//! all types and shapes that `attention.cu` does not support. `attention.cu` supports heads of 64, 96, 128 or
//! 256 elements in bf16. Below compute capability 8.0, it supports heads of 64, 96 or 128 elements in f16.

use super::{Rows, THREADS};
use crate::cuda::device::{Device, DevicePtr, WORKSPACE_BYTES};
use crate::cuda::launch::KernelLaunch;
use crate::{AttentionDims, AttentionScores, DType, Segment};

/// Number of threads in a block.
const BLOCK: u32 = 128;
/// Number of warps per block of the row-sum kernel.
const SUM_WARPS: usize = 8;
/// Number of rows per tile of the plain kernels.
const PLAIN_TILE: usize = 16;
/// Number of keys per tile of the dK/dV kernel, and per step of the forward kernel. [`NARROW_KEY_TILE`] names
/// an exception.
const KEY_TILE: usize = 64;
/// Number of keys per step of the dQ kernel and, from compute capability 8.0 on, of the forward kernel for
/// heads of 128 elements.
const NARROW_KEY_TILE: usize = 32;

/// Work lists of one pass, one for each [`Side`] and tile size. The tiles with the most work are first in
/// each list.
#[derive(Clone, Debug, Default)]
pub struct Tiles {
    /// All lists. A tile has two `u32`: the index of its segment, and its own index in the segment.
    pub words: Vec<u32>,
    /// Index of the first word of each list, and its number of tiles.
    lists: Vec<(usize, usize)>,
    segments: usize,
    longest_kv: usize,
    /// Whether every segment has one query.
    is_decoding: bool,
}

/// Whether a tile covers queries or keys, and the number of rows per tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Queries(usize),
    Keys(usize),
}

/// All lists that kernels read.
const LISTS: [Side; 5] = [
    Side::Queries(PLAIN_TILE),
    Side::Queries(64),
    Side::Queries(128),
    Side::Keys(PLAIN_TILE),
    Side::Keys(KEY_TILE),
];

impl Tiles {
    /// Builds the work lists for these segments.
    ///
    /// # Panics
    /// If there are more than 2^32 rows.
    pub fn of(segments: &[Segment]) -> Self {
        let mut tiles = Self {
            segments: segments.len(),
            longest_kv: segments.iter().map(|s| s.kv_len).max().unwrap_or(0),
            is_decoding: segments.iter().all(|s| s.q_len == 1),
            ..Self::default()
        };
        for side in LISTS {
            let mut list = Vec::new();
            for (i, segment) in segments.iter().enumerate() {
                let (size, rows) = match side {
                    Side::Queries(size) => (size, segment.q_len),
                    Side::Keys(size) => (size, segment.kv_len),
                };
                list.extend((0..rows.div_ceil(size)).map(|tile| (work(side, segment, tile), i, tile)));
            }
            // The sort is stable, so tiles with equal work stay in segment order.
            list.sort_by_key(|&(work, ..)| std::cmp::Reverse(work));
            tiles.lists.push((tiles.words.len(), list.len()));
            let word = |n: usize| u32::try_from(n).expect("a tile's number fits in 32 bits");
            tiles.words.extend(list.iter().flat_map(|&(_, segment, tile)| [word(segment), word(tile)]));
        }
        tiles
    }

    fn list(&self, side: Side) -> (usize, usize) {
        let at = LISTS.iter().position(|&s| s == side).expect("each kernel's tiles have a list");
        self.lists[at]
    }
}

/// Returns the number of keys that a tile of queries reads, or the number of queries that a tile of keys
/// reads.
fn work(side: Side, segment: &Segment, tile: usize) -> usize {
    let before = segment.kv_len - segment.q_len;
    match side {
        Side::Queries(size) => segment.kv_len.min(before + (tile + 1) * size),
        Side::Keys(size) => segment.q_len - (tile * size).saturating_sub(before),
    }
}

/// Segments and their tiles in device memory.
#[derive(Clone, Copy, Debug)]
pub struct SegmentsOnDevice<'a> {
    /// Array of segments, each with four `u32`.
    pub segments: DevicePtr,
    /// Copy of [`Tiles::words`].
    pub words: DevicePtr,
    pub tiles: &'a Tiles,
}

impl SegmentsOnDevice<'_> {
    fn list(&self, side: Side) -> (DevicePtr, usize) {
        let (first, count) = self.tiles.list(side);
        (self.words.plus(4 * first), count)
    }
}

/// Operands of the forward and the backward pass. `k` and `v` have the same stride.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    pub q: Rows,
    pub k: Rows,
    pub v: Rows,
    pub segments: SegmentsOnDevice<'a>,
    pub dims: AttentionDims,
    pub scores: AttentionScores,
}

/// Number of keys in a window that hides no key.
const NO_WINDOW: usize = 1 << 30;

/// Returns the number of keys in the window, as the kernels expect it.
fn window(scores: AttentionScores) -> usize {
    scores.window.map_or(NO_WINDOW, |window| window.min(NO_WINDOW))
}

/// Adds the scale, the window and the cap of the scores to the parameters of `launch`.
fn score_parameters(launch: KernelLaunch<'_>, scores: AttentionScores) -> KernelLaunch<'_> {
    launch.float(scores.scale).int(window(scores)).float(scores.softcap.unwrap_or(0.0))
}

/// Tile sizes and kernel names for one head size.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    dtype: DType,
    head: usize,
    is_plain: bool,
    /// Whether the compute capability is below 8.0. Such devices have less shared memory and no asynchronous
    /// copies.
    is_old: bool,
}

impl Geometry {
    fn of(device: &Device, dtype: DType, operands: &Operands<'_>, others: &[Rows]) -> Self {
        let head = operands.dims.head_dim;
        let is_old = device.info.capability.0 < 8;
        let name = matrix_name(FORWARD, head);
        let has_kernel = name.is_some_and(|name| device.has(name, dtype));
        let rows = [operands.q, operands.k, operands.v];
        let is_aligned = rows.iter().chain(others).all(|rows| rows.is_aligned(dtype));
        Self { dtype, head, is_plain: !has_kernel || !is_aligned, is_old }
    }

    /// Returns the number of queries per tile.
    fn query_tile(self) -> usize {
        match self.is_plain {
            true => PLAIN_TILE,
            false if self.is_old || self.head == 256 => 64,
            false => 128,
        }
    }

    /// Returns the number of keys per step of the forward kernel.
    fn forward_keys(self) -> usize {
        if self.head == 128 && !self.is_old { NARROW_KEY_TILE } else { KEY_TILE }
    }

    fn key_tile(self) -> usize {
        if self.is_plain { PLAIN_TILE } else { KEY_TILE }
    }

    /// Returns the bytes that `rows` rows of a head use in shared memory.
    fn shared_rows(self, rows: usize) -> usize {
        if self.is_plain { 0 } else { rows * (self.head + 8) * 2 }
    }

    /// Returns the number of queries per step of the dK/dV kernel, and the number of steps that are in shared
    /// memory at once.
    fn moving_queries(self) -> (usize, usize) {
        match (self.is_old, self.head) {
            (true, _) => (32, 1),
            (false, 64) => (64, 2),
            (false, 128) => (64, 1),
            (false, 256) => (16, 1),
            (false, _) => (32, 2),
        }
    }

    fn kernel<'a>(self, device: &'a Device, names: [&'static str; 5]) -> KernelLaunch<'a> {
        let name = matrix_name(names, self.head).filter(|_| !self.is_plain).unwrap_or(names[0]);
        device.kernel(name, self.dtype).block(BLOCK)
    }

    /// Adds the head size to the parameters of `launch`, if the kernel is plain. Other kernels do not have
    /// this parameter.
    fn head_parameter(self, launch: KernelLaunch<'_>) -> KernelLaunch<'_> {
        if self.is_plain { launch.int(self.head) } else { launch }
    }
}

/// Returns the name of the tensor-core kernel for a head size, if there is one. `names[0]` is the plain
/// kernel.
fn matrix_name(names: [&'static str; 5], head: usize) -> Option<&'static str> {
    let at = [64, 96, 128, 256].iter().position(|&size| size == head)?;
    Some(names[at + 1])
}

const FORWARD: [&str; 5] = [
    "attention_forward",
    "attention_forward_hs64",
    "attention_forward_hs96",
    "attention_forward_hs128",
    "attention_forward_hs256",
];
const BACKWARD_Q: [&str; 5] = [
    "attention_backward_q",
    "attention_backward_q_hs64",
    "attention_backward_q_hs96",
    "attention_backward_q_hs128",
    "attention_backward_q_hs256",
];
/// Kernel for heads of 128 elements on devices whose shared memory has room for two steps of keys.
const BACKWARD_Q_WIDE: &str = "attention_backward_q_hs128_wide";
const BACKWARD_KV: [&str; 5] = [
    "attention_backward_kv",
    "attention_backward_kv_hs64",
    "attention_backward_kv_hs96",
    "attention_backward_kv_hs128",
    "attention_backward_kv_hs256",
];

/// Computes `out`, and the logarithm of each row's softmax denominator.
pub fn forward(device: &Device, dtype: DType, out: Rows, lse: DevicePtr, operands: Operands<'_>) {
    let Operands { q, k, v, segments, dims, .. } = operands;
    if decode(device, dtype, (out, lse), operands) {
        return;
    }
    let geometry = Geometry::of(device, dtype, &operands, &[out]);
    let tile = geometry.query_tile();
    let (tiles, count) = segments.list(Side::Queries(tile));
    let launch = geometry
        .kernel(device, FORWARD)
        .grid(dims.heads, count, 1)
        .shared(geometry.shared_rows(tile + 2 * geometry.forward_keys()))
        .ptr(out.at)
        .ptr(lse)
        .ptr(q.at)
        .ptr(k.at)
        .ptr(v.at)
        .ptr(segments.segments)
        .ptr(tiles)
        .int(dims.kv_heads);
    let launch = geometry.head_parameter(launch).long(out.stride).long(q.stride).long(k.stride);
    score_parameters(launch, operands.scores).run();
}

/// Number of keys per block of the decode kernel.
const DECODE_KEYS: usize = 64;
const DECODE_HEADS: usize = 4;
/// Number of elements of a head per lane of the decode kernel.
const DECODE_LANE: usize = 8;
const MAX_DECODE_HEAD: usize = 256;

/// Computes [`forward`] for segments with one query. The keys are divided among blocks.
///
/// Returns false, and computes nothing, if a segment has more than one query, or if the kernel does not
/// support the shape.
fn decode(device: &Device, dtype: DType, (out, lse): (Rows, DevicePtr), operands: Operands<'_>) -> bool {
    let Operands { q, k, v, segments, dims, scores } = operands;
    let AttentionDims { heads, kv_heads, head_dim } = dims;
    let Tiles { is_decoding, longest_kv, segments: count, .. } = *segments.tiles;
    let is_aligned = [q, k, v].iter().all(|rows| rows.is_aligned(dtype));
    let fits = head_dim.is_multiple_of(DECODE_LANE) && head_dim <= MAX_DECODE_HEAD;
    // The number of splits is a power of two, so that consecutive tokens mostly have the same launches, which
    // a graph can replay. Blocks without keys return at once.
    let splits = longest_kv.div_ceil(DECODE_KEYS).next_power_of_two();
    let bytes = 4 * count * heads * splits * (head_dim + 2);
    if !is_decoding || !is_aligned || !fits || bytes as u64 > WORKSPACE_BYTES {
        return false;
    }
    let partial = device.workspace(bytes);
    let parts = kv_heads * (heads / kv_heads).div_ceil(DECODE_HEADS);
    let launch =
        device.kernel("attention_decode", dtype).grid(parts, splits, count).block(BLOCK).overlapping();
    let launch = launch.ptr(out.at).ptr(lse).ptr(partial).ptr(q.at).ptr(k.at).ptr(v.at);
    let launch = launch.ptr(segments.segments).int(heads).int(kv_heads).int(head_dim);
    let launch = launch.long(out.stride).long(q.stride).long(k.stride).int(splits);
    score_parameters(launch, scores).run();
    // If one thread block processes all keys of a segment, the first kernel writes the final result of this
    // segment.
    if splits > 1 {
        let join =
            device.kernel("attention_decode_join", dtype).grid(heads, count, 1).block(BLOCK).overlapping();
        let join = join.ptr(out.at).ptr(lse).ptr(partial).ptr(segments.segments).int(head_dim);
        join.long(out.stride).int(splits).int(window(scores)).run();
    }
    true
}

/// Values that the forward pass saved, and the gradient of the output.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    pub dout: Rows,
    pub out: Rows,
    pub lse: DevicePtr,
    /// Number of query rows.
    pub n: usize,
}

/// Gradients of `q`, `k` and `v`. `dk` and `dv` have the same stride.
#[derive(Clone, Copy, Debug)]
pub struct Grads {
    pub dq: Rows,
    pub dk: Rows,
    pub dv: Rows,
}

/// Computes the gradients of `q`, `k` and `v`, and overwrites them.
pub fn backward(device: &Device, dtype: DType, grads: Grads, saved: Saved, operands: Operands<'_>) {
    let Saved { dout, out, n, .. } = saved;
    let AttentionDims { heads, head_dim, .. } = operands.dims;
    let delta = device.workspace(4 * n * heads);
    let sums =
        device.kernel("attention_row_sums", dtype).grid((n * heads).div_ceil(SUM_WARPS), 1, 1).block(THREADS);
    let sums = sums.ptr(delta).ptr(out.at).ptr(dout.at).int(n).int(heads).int(head_dim);
    sums.long(out.stride).long(dout.stride).run();
    let geometry = Geometry::of(device, dtype, &operands, &[dout, grads.dq, grads.dk, grads.dv]);
    backward_kv(device, geometry, grads, (saved, delta), operands);
    backward_q(device, geometry, grads, (saved, delta), operands);
}

/// Adds the parameters that both backward kernels have to `launch`.
fn backward_inputs<'a>(
    launch: KernelLaunch<'a>,
    (saved, delta): (Saved, DevicePtr),
    operands: &Operands<'_>,
    tiles: DevicePtr,
) -> KernelLaunch<'a> {
    let Operands { q, k, v, segments, dims, .. } = operands;
    let launch = launch.ptr(saved.dout.at).ptr(q.at).ptr(k.at).ptr(v.at).ptr(saved.lse).ptr(delta);
    launch.ptr(segments.segments).ptr(tiles).int(dims.heads).int(dims.kv_heads)
}

fn backward_kv(
    device: &Device,
    geometry: Geometry,
    grads: Grads,
    saved: (Saved, DevicePtr),
    operands: Operands<'_>,
) {
    let Operands { q, k, segments, dims, .. } = operands;
    let (tiles, count) = segments.list(Side::Keys(geometry.key_tile()));
    // A thread block of the tensor-core kernel writes at most 128 columns of a head, so a head of 256 columns
    // needs two thread blocks.
    let halves = if geometry.head == 256 && !geometry.is_plain { 2 } else { 1 };
    let (queries, stages) = geometry.moving_queries();
    let rows = if geometry.is_plain { 0 } else { 8 * stages * queries };
    let launch = geometry
        .kernel(device, BACKWARD_KV)
        .grid(dims.kv_heads, count, halves)
        .shared(geometry.shared_rows(2 * KEY_TILE + 2 * stages * queries) + rows)
        .ptr(grads.dk.at)
        .ptr(grads.dv.at);
    let launch = geometry.head_parameter(backward_inputs(launch, saved, &operands, tiles));
    let launch = launch.long(grads.dk.stride).long(saved.0.dout.stride).long(q.stride).long(k.stride);
    score_parameters(launch, operands.scores).run();
}

fn backward_q(
    device: &Device,
    geometry: Geometry,
    grads: Grads,
    saved: (Saved, DevicePtr),
    operands: Operands<'_>,
) {
    let Operands { q, k, segments, dims, .. } = operands;
    let tile = geometry.query_tile();
    let (tiles, count) = segments.list(Side::Queries(tile));
    let shared = |stages: usize| geometry.shared_rows(2 * tile + 2 * stages * NARROW_KEY_TILE);
    // The wide variant has two steps of keys in shared memory at once, the other variant one. Both variants
    // add in the same order.
    let is_wide = geometry.head == 128 && !geometry.is_old && shared(2) <= device.info.shared as usize;
    let launch = match is_wide && !geometry.is_plain {
        true => device.kernel(BACKWARD_Q_WIDE, geometry.dtype).block(BLOCK).shared(shared(2)),
        false => {
            let stages = if geometry.head == 64 && !geometry.is_old { 2 } else { 1 };
            geometry.kernel(device, BACKWARD_Q).shared(shared(stages))
        }
    };
    let launch = launch.grid(dims.heads, count, 1).ptr(grads.dq.at);
    let launch = geometry.head_parameter(backward_inputs(launch, saved, &operands, tiles));
    let launch = launch.long(grads.dq.stride).long(saved.0.dout.stride).long(q.stride).long(k.stride);
    score_parameters(launch, operands.scores).run();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once_the_longest_first() {
        let segment = |q_len, kv_len| Segment { q_start: 0, q_len, kv_start: 0, kv_len };
        let segments = [segment(1, 1), segment(130, 390), segment(200, 200), segment(64, 64)];
        let tiles = Tiles::of(&segments);
        for side in LISTS {
            let (first, count) = tiles.list(side);
            let list = &tiles.words[first..first + 2 * count];
            let mut found: Vec<_> = list.chunks(2).map(|t| (t[0] as usize, t[1] as usize)).collect();
            let works: Vec<_> = found.iter().map(|&(s, t)| work(side, &segments[s], t)).collect();
            assert!(works.is_sorted_by(|a, b| a >= b), "{side:?}: {works:?}");
            found.sort();
            let expected: Vec<_> = segments
                .iter()
                .enumerate()
                .flat_map(|(i, s)| {
                    let (size, rows) = match side {
                        Side::Queries(size) => (size, s.q_len),
                        Side::Keys(size) => (size, s.kv_len),
                    };
                    (0..rows.div_ceil(size)).map(move |tile| (i, tile))
                })
                .collect();
            assert_eq!(found, expected, "{side:?}");
        }
    }
}
