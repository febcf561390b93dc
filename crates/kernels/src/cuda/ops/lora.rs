//! Launches of `lora.cu`.
//!
//! The kernels `down` and `grad` split each low-rank pair into tiles of 8 ranks. One of their thread blocks
//! processes up to 4 tiles that read the same matrix. The kernel `up` splits a pair into steps of 16 ranks.

use super::{Rows, THREADS};
use crate::cuda::device::{Device, DevicePtr, WORKSPACE_BYTES};
use crate::{DType, Dropout, LoraRef};

/// Number of ranks per tile of `down` and `grad`.
const TILE_RANKS: usize = 8;
const STEP_RANKS: usize = 16;
/// Array sizes in the structures of `lora.cu`.
const TOGETHER: usize = 4;
const MAX_BLOCKS: usize = 16;
const MAX_TILES: usize = 32;
const MAX_STEPS: usize = 32;
const MAX_OUTS: usize = 4;
/// Maximum number of rows for which several blocks divide the columns over which `down` sums.
const FEW_ROWS: usize = 1024;
/// Maximum number of rows for which a block of `up` processes 16 rows.
const UP_FEW_ROWS: usize = 512;
/// Number of rows per block of `lora_up_wide`.
const UP_BLOCK_ROWS: usize = 128;
/// Number of partial sums per row of `down` if several blocks divide its columns. A second kernel adds these
/// sums.
const PARTIAL_SUMS: usize = 8;
/// Number of columns per block of `up`.
const UP_COLUMNS: usize = 256;
const GRAD_COLUMNS: usize = 128;
/// Minimum number of rows per partial sum of `grad`.
const MIN_CHUNK: usize = 128;
const MAX_CHUNKS: usize = 16;

/// Matrix A or B of LoRA in device memory, with the stride between ranks and the stride of the other
/// dimension.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Factor {
    data: u64,
    rank_stride: i64,
    column_stride: i64,
}

impl Factor {
    /// Returns `A (R, IN)` at address `at`.
    fn of_a(at: DevicePtr, pair: &Pair) -> Self {
        Self { data: at.0, rank_stride: pair.d_in as i64, column_stride: 1 }
    }

    /// Returns `B (OUT, R)` at address `at`.
    fn of_b(at: DevicePtr, pair: &Pair) -> Self {
        Self { data: at.0, rank_stride: 1, column_stride: pair.rank as i64 }
    }

    fn at_rank(self, rank: usize) -> Self {
        Self { data: self.data.wrapping_add_signed(4 * rank as i64 * self.rank_stride), ..self }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Drop {
    key: u64,
    probability: f32,
    cols: i32,
}

/// A range of tiles that read the same matrix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    data: u64,
    stride: i64,
    cols: i32,
    first: i32,
    count: i32,
    unused: i32,
}

/// Layout of `struct DownTile` and `struct GradTile` in `lora.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Tile {
    factor: Factor,
    thin: u64,
    drop: Drop,
    thin_stride: i32,
    ranks: i32,
    scale: f32,
    unused: i32,
}

/// Layout of `struct DownGroup` and `struct GradGroup` in `lora.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Group {
    blocks: [Block; MAX_BLOCKS],
    tiles: [Tile; MAX_TILES],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct UpStep {
    factor: Factor,
    thin: u64,
    drop: Drop,
    scale: f32,
    thin_stride: i32,
    ranks: i32,
    is_last: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct UpOut {
    out: u64,
    stride: i64,
    cols: i32,
    first_step: i32,
    steps: i32,
    unused: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct UpGroup {
    steps: [UpStep; MAX_STEPS],
    outs: [UpOut; MAX_OUTS],
}

/// Low-rank pair of one projection, in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    a: DevicePtr,
    b: DevicePtr,
    /// Offsets of A and B in the flat parameters and gradients.
    offsets: [usize; 2],
    rank: usize,
    d_in: usize,
    d_out: usize,
    scaling: f32,
    dropout: Option<Dropout>,
}

impl Pair {
    /// Returns the pair in the flat parameter buffer that begins at `params`.
    pub fn at(params: DevicePtr, lora: &LoraRef<'_>, dropout: Option<Dropout>) -> Self {
        Self {
            a: params.plus(4 * lora.a),
            b: params.plus(4 * lora.b),
            offsets: [lora.a, lora.b],
            rank: lora.rank,
            d_in: lora.d_in,
            d_out: lora.d_out,
            scaling: lora.scaling,
            dropout,
        }
    }

    fn drop(&self) -> Drop {
        let Some(Dropout { probability, key }) = self.dropout else { return Drop::default() };
        Drop { key, probability, cols: self.d_in as i32 }
    }

    /// Returns the factor of the elements that dropout does not zero.
    fn drop_scale(&self) -> f32 {
        self.dropout.map_or(1.0, |dropout| 1.0 / (1.0 - dropout.probability))
    }
}

/// One factor of a pair (A or B). `thin` is the `mid` or `dmid` of the pair, `(n, rank)`.
#[derive(Clone, Copy, Debug)]
struct Part {
    factor: Factor,
    thin: Rows,
    rank: usize,
    drop: Drop,
    scale: f32,
}

/// A matrix `(n, cols)`, with the factors that read the matrix or add to it.
#[derive(Clone, Debug)]
struct Job {
    matrix: Rows,
    cols: usize,
    parts: Vec<Part>,
}

/// The tiles of one launch.
struct Launch {
    group: Group,
    blocks: usize,
    tiles: usize,
    max_cols: usize,
}

impl Launch {
    fn new() -> Self {
        let group = Group { blocks: [Block::default(); MAX_BLOCKS], tiles: [Tile::default(); MAX_TILES] };
        Self { group, blocks: 0, tiles: 0, max_cols: 0 }
    }
}

/// Splits the ranks of `part` into tiles of at most 8 ranks.
fn tiles_of(part: &Part, dtype: DType) -> impl Iterator<Item = Tile> {
    (0..part.rank).step_by(TILE_RANKS).map(move |rank| Tile {
        factor: part.factor.at_rank(rank),
        thin: part.thin.at.plus(rank * dtype.size()).0,
        drop: part.drop,
        thin_stride: part.thin.stride as i32,
        ranks: TILE_RANKS.min(part.rank - rank) as i32,
        scale: part.scale,
        unused: 0,
    })
}

/// Splits jobs into launches of at most `max_tiles` tiles.
fn launches(jobs: &[Job], dtype: DType, max_tiles: usize) -> Vec<Launch> {
    let mut all = vec![Launch::new()];
    for job in jobs {
        let tiles: Vec<Tile> = job.parts.iter().flat_map(|part| tiles_of(part, dtype)).collect();
        for tiles in tiles.chunks(TOGETHER.min(max_tiles)) {
            let mut launch = all.pop().expect("there is always one");
            if launch.blocks == MAX_BLOCKS || launch.tiles + tiles.len() > max_tiles {
                all.push(launch);
                launch = Launch::new();
            }
            launch.group.blocks[launch.blocks] = Block {
                data: job.matrix.at.0,
                stride: job.matrix.stride as i64,
                cols: job.cols as i32,
                first: launch.tiles as i32,
                count: tiles.len() as i32,
                unused: 0,
            };
            launch.group.tiles[launch.tiles..launch.tiles + tiles.len()].copy_from_slice(tiles);
            launch.blocks += 1;
            launch.tiles += tiles.len();
            launch.max_cols = launch.max_cols.max(job.cols);
            all.push(launch);
        }
    }
    all
}

/// Returns whether the tensor-core kernels support these matrices.
fn is_wide(device: &Device, dtype: DType, jobs: &[Job]) -> bool {
    let is_aligned = |job: &Job| job.matrix.is_aligned(dtype) && job.cols.is_multiple_of(8);
    device.has("lora_down", dtype) && jobs.iter().all(is_aligned)
}

/// Computes `thin = scale · drop(matrix) factorᵀ`, and overwrites `thin`. See [`Part`].
fn down(device: &Device, dtype: DType, n: usize, jobs: &[Job], partial: DevicePtr) {
    let is_wide = is_wide(device, dtype, jobs);
    for Launch { group, blocks, tiles, .. } in &launches(jobs, dtype, MAX_TILES) {
        if !is_wide {
            let launch =
                device.kernel("lora_down_plain", dtype).grid(n.div_ceil(8), *blocks, 1).block(THREADS);
            launch.structure(group).int(n).run();
        } else if n > FEW_ROWS {
            let launch =
                device.kernel("lora_down_wide", dtype).grid(n.div_ceil(32), 1, *blocks).block(THREADS);
            launch.structure(group).int(n).run();
        } else {
            let launch =
                device.kernel("lora_down", dtype).grid(n.div_ceil(16), PARTIAL_SUMS, *blocks).block(THREADS);
            launch.structure(group).ptr(partial).int(n).int(*tiles).run();
            let sums = (n * tiles * TILE_RANKS).div_ceil(THREADS as usize);
            let launch = device.kernel("lora_down_sum", dtype).grid(sums, 1, 1).block(THREADS);
            launch.structure(group).ptr(partial).int(n).int(*tiles).run();
        }
    }
}

/// Returns the number of rows per partial sum of `grad`. It depends only on `n`.
fn grad_chunk(n: usize) -> usize {
    n.div_ceil(MAX_CHUNKS).next_multiple_of(64).max(MIN_CHUNK)
}

/// Computes `factor += scale · thinᵀ drop(matrix)`. See [`Part`].
fn grad(device: &Device, dtype: DType, n: usize, jobs: &[Job], (partial, room): (DevicePtr, usize)) {
    let (chunk, is_wide) = (grad_chunk(n), is_wide(device, dtype, jobs));
    let chunks = n.div_ceil(chunk);
    let widest = jobs.iter().map(|job| job.cols).max().unwrap_or(1);
    let tile_bytes = 4 * TILE_RANKS * chunks * widest;
    let max_tiles = if chunks == 1 || !is_wide { MAX_TILES } else { (room / tile_bytes).clamp(1, MAX_TILES) };
    for Launch { group, blocks, max_cols, .. } in &launches(jobs, dtype, max_tiles) {
        if !is_wide {
            let grid = (max_cols.div_ceil(THREADS as usize), TOGETHER * TILE_RANKS, *blocks);
            let launch = device.kernel("lora_grad_plain", dtype).grid(grid.0, grid.1, grid.2).block(THREADS);
            launch.structure(group).int(n).run();
            continue;
        }
        let launch = device.kernel("lora_grad", dtype).grid(max_cols.div_ceil(GRAD_COLUMNS), chunks, *blocks);
        launch.block(THREADS).structure(group).ptr(partial).int(n).int(chunk).int(*max_cols).run();
        if chunks > 1 {
            let sums = (max_cols * TILE_RANKS).div_ceil(THREADS as usize);
            let launch = device.exact("lora_grad_sum").grid(sums, TOGETHER, *blocks).block(THREADS);
            launch.structure(group).ptr(partial).int(chunks).int(*max_cols).run();
        }
    }
}

/// Computes `matrix += Σ drop(scale · thin factor)`. See [`Part`]. A launch has at most [`MAX_STEPS`] steps.
/// The matrices have the type `types.out`.
fn up(device: &Device, types: UpTypes, n: usize, jobs: &[Job]) {
    let UpTypes { dtype, .. } = types;
    let is_wide = is_wide(device, dtype, jobs);
    let empty =
        || (UpGroup { steps: [UpStep::default(); MAX_STEPS], outs: [UpOut::default(); MAX_OUTS] }, 0, 0, 0);
    let (mut group, mut outs, mut count, mut max_cols) = empty();
    for job in jobs {
        for part in &job.parts {
            let steps: Vec<UpStep> = up_steps(part, dtype).collect();
            for steps in steps.chunks(MAX_STEPS) {
                let continues = outs > 0 && group.outs[outs - 1].out == job.matrix.at.0;
                if count + steps.len() > MAX_STEPS || !continues && outs == MAX_OUTS {
                    launch_up(device, types, n, (&group, outs, max_cols), is_wide);
                    (group, outs, count, max_cols) = empty();
                }
                if outs == 0 || group.outs[outs - 1].out != job.matrix.at.0 {
                    let (out, stride, cols) = (job.matrix.at.0, job.matrix.stride as i64, job.cols as i32);
                    group.outs[outs] =
                        UpOut { out, stride, cols, first_step: count as i32, steps: 0, unused: 0 };
                    outs += 1;
                }
                group.steps[count..count + steps.len()].copy_from_slice(steps);
                // If a pair continues in the next launch, this launch must still scale, mask and add its sum.
                group.steps[count + steps.len() - 1].is_last = 1;
                group.outs[outs - 1].steps += steps.len() as i32;
                count += steps.len();
                max_cols = max_cols.max(job.cols);
            }
        }
    }
    launch_up(device, types, n, (&group, outs, max_cols), is_wide);
}

fn up_steps(part: &Part, dtype: DType) -> impl Iterator<Item = UpStep> {
    (0..part.rank).step_by(STEP_RANKS).map(move |rank| UpStep {
        factor: part.factor.at_rank(rank),
        thin: part.thin.at.plus(rank * dtype.size()).0,
        drop: part.drop,
        scale: part.scale,
        thin_stride: part.thin.stride as i32,
        ranks: STEP_RANKS.min(part.rank - rank) as i32,
        is_last: i32::from(rank + STEP_RANKS >= part.rank),
    })
}

/// Type of the activations, and type of the matrices to which [`up`] adds.
#[derive(Clone, Copy, Debug)]
struct UpTypes {
    dtype: DType,
    out: DType,
}

impl UpTypes {
    /// Returns the kernel for outputs of the activation type, or the kernel for f32 outputs.
    fn name(self, [same, to_f32]: [&'static str; 2]) -> &'static str {
        if self.out == self.dtype { same } else { to_f32 }
    }
}

fn launch_up(
    device: &Device,
    types: UpTypes,
    n: usize,
    (group, outs, cols): (&UpGroup, usize, usize),
    is_wide: bool,
) {
    let columns = cols.div_ceil(UP_COLUMNS);
    let (names, rows) = match (is_wide, n > UP_FEW_ROWS) {
        (false, _) => (["lora_up_plain", "lora_up_plain_to_f32"], n),
        (true, false) => (["lora_up", "lora_up_to_f32"], n.div_ceil(16)),
        (true, true) => (["lora_up_wide", "lora_up_wide_to_f32"], n.div_ceil(UP_BLOCK_ROWS)),
    };
    let launch = device.kernel(types.name(names), types.dtype).grid(columns, rows, outs);
    launch.block(THREADS).structure(group).int(n).run();
}

/// A low-rank pair and its activations in the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct ForwardPair {
    pub pair: Pair,
    /// Buffer for the result `drop(inp) Aᵀ`, `(n, rank)`.
    pub mid: Rows,
    pub out: Rows,
}

/// Computes `out += scaling · (drop(inp) Aᵀ) Bᵀ` for each pair. All pairs read the `n` rows of `inp`.
/// `out_type` is `dtype` or f32.
pub fn forward(
    device: &Device,
    (dtype, out_type): (DType, DType),
    inp: Rows,
    n: usize,
    pairs: &[ForwardPair],
) {
    let Some(first) = pairs.first() else { return };
    let mids = pairs.iter().map(|ForwardPair { pair, mid, .. }| Part {
        factor: Factor::of_a(pair.a, pair),
        thin: *mid,
        rank: pair.rank,
        drop: pair.drop(),
        scale: pair.drop_scale(),
    });
    let jobs = [Job { matrix: inp, cols: first.pair.d_in, parts: mids.collect() }];
    let partial = device.workspace(4 * PARTIAL_SUMS * TILE_RANKS * MAX_TILES * n.min(FEW_ROWS));
    down(device, dtype, n, &jobs, partial);
    let outs = pairs.iter().map(|ForwardPair { pair, mid, out }| Job {
        matrix: *out,
        cols: pair.d_out,
        parts: vec![Part {
            factor: Factor::of_b(pair.b, pair),
            thin: *mid,
            rank: pair.rank,
            drop: Drop::default(),
            scale: pair.scaling,
        }],
    });
    up(device, UpTypes { dtype, out: out_type }, n, &outs.collect::<Vec<_>>());
}

/// A low-rank pair and its activations in the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct BackwardPair {
    pub pair: Pair,
    pub mid: Rows,
    pub dout: Rows,
}

/// Gradients to which the kernels add: the gradient of the input, if it is needed, and the gradient of the
/// flat parameters.
#[derive(Clone, Copy, Debug)]
pub struct Grads {
    pub dinp: Option<Rows>,
    pub dparams: DevicePtr,
}

/// Computes the gradients of [`forward`], and adds them to `grads`.
///
/// # Panics
/// If the `dmid` of all pairs do not fit in the device's scratch memory.
pub fn backward(device: &Device, dtype: DType, grads: Grads, inp: Rows, n: usize, pairs: &[BackwardPair]) {
    let Some(d_in) = pairs.first().map(|first| first.pair.d_in) else { return };
    // The scratch memory contains `dmid` of every low-rank pair, followed by partial sums.
    let mut used = 0;
    let dmids: Vec<Rows> = pairs
        .iter()
        .map(|BackwardPair { pair, .. }| {
            let stride = pair.rank.next_multiple_of(8);
            let at = device.workspace(used).plus(used);
            used += (n * stride * dtype.size()).next_multiple_of(256);
            Rows { at, stride }
        })
        .collect();
    let partial =
        device.workspace(used + 4 * PARTIAL_SUMS * TILE_RANKS * MAX_TILES * n.min(FEW_ROWS)).plus(used);
    let part = |factor, thin, pair: &Pair, drop, scale| Part { factor, thin, rank: pair.rank, drop, scale };
    let jobs: Vec<Job> = pairs
        .iter()
        .zip(&dmids)
        .map(|(BackwardPair { pair, dout, .. }, &dmid)| {
            let parts = vec![part(Factor::of_b(pair.b, pair), dmid, pair, Drop::default(), pair.scaling)];
            Job { matrix: *dout, cols: pair.d_out, parts }
        })
        .collect();
    down(device, dtype, n, &jobs, partial);
    let mut jobs: Vec<Job> = pairs
        .iter()
        .map(|BackwardPair { pair, mid, dout }| {
            let db = Factor::of_b(grads.dparams.plus(4 * pair.offsets[1]), pair);
            Job {
                matrix: *dout,
                cols: pair.d_out,
                parts: vec![part(db, *mid, pair, Drop::default(), pair.scaling)],
            }
        })
        .collect();
    let with_dmids = |factor: &dyn Fn(&Pair) -> Factor| {
        let parts = pairs.iter().zip(&dmids).map(|(BackwardPair { pair, .. }, &dmid)| {
            part(factor(pair), dmid, pair, pair.drop(), pair.drop_scale())
        });
        parts.collect::<Vec<_>>()
    };
    let da = with_dmids(&|pair| Factor::of_a(grads.dparams.plus(4 * pair.offsets[0]), pair));
    jobs.push(Job { matrix: inp, cols: d_in, parts: da });
    grad(device, dtype, n, &jobs, (partial, WORKSPACE_BYTES as usize - used));
    if let Some(dinp) = grads.dinp {
        let parts = with_dmids(&|pair| Factor::of_a(pair.a, pair));
        up(device, UpTypes { dtype, out: dtype }, n, &[Job { matrix: dinp, cols: d_in, parts }]);
    }
}
