//! The operands of [`Backend`](crate::Backend)'s operations, grouped.

use std::ops::Range;

use crate::{Buffer, Indices, Matrix, Segments};

/// A contiguous run of tokens that attends within itself.
///
/// Query `i` (of `q_len`) sees keys `0 ..= kv_len - q_len + i` of the segment. In training the two
/// ranges coincide; when decoding, the keys are a cache and the queries its newest rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row of the segment in `q` and `out`.
    pub q_start: usize,
    /// Rows of the segment in `q` and `out`, at most `kv_len`.
    pub q_len: usize,
    /// First row of the segment in `k` and `v`.
    pub kv_start: usize,
    /// Rows of the segment in `k` and `v`.
    pub kv_len: usize,
}

/// Head layout of grouped-query attention: `heads` is a multiple of `kv_heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// Query heads, `NH`.
    pub heads: usize,
    /// Key and value heads, `KH`.
    pub kv_heads: usize,
    /// Head size, `HS`.
    pub head_dim: usize,
}

/// Inputs of attention, forward and backward.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOperands<'a> {
    /// `(N, NH, HS)`, rotated.
    pub q: &'a Buffer,
    /// `(M, KH, HS)`, rotated.
    pub k: &'a Buffer,
    /// `(M, KH, HS)`.
    pub v: &'a Buffer,
    /// Which rows see which keys.
    pub segments: &'a Segments,
    /// The heads.
    pub dims: AttentionDims,
}

/// Results of attention's forward that its backward reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// `(N, NH, HS)`.
    pub out: &'a Buffer,
    /// Log of each row's softmax denominator, `(N, NH)`.
    pub lse: &'a Buffer,
}

/// Gradients that attention's backward writes, shaped as `q`, `k` and `v`.
#[derive(Debug)]
pub struct AttentionGrads<'a> {
    /// Gradient of `q`.
    pub dq: &'a mut Buffer,
    /// Gradient of `k`.
    pub dk: &'a mut Buffer,
    /// Gradient of `v`.
    pub dv: &'a mut Buffer,
}

/// Inputs of a norm's forward that its backward reads.
#[derive(Clone, Copy, Debug)]
pub struct RmsnormSaved<'a> {
    /// `(N, C)`.
    pub inp: &'a Buffer,
    /// `1 / rms` of each row, `(N)`.
    pub rstd: &'a Buffer,
    /// `(C)`.
    pub weight: &'a Buffer,
}

/// One projection's low-rank pair, inside a flat parameter buffer.
///
/// `A (R, IN)` starts at `a` and `B (OUT, R)` at `b`, both row-major. Gradients use a second buffer of the
/// same layout.
#[derive(Clone, Copy, Debug)]
pub struct LoraRef<'a> {
    /// The flat parameters.
    pub params: &'a Buffer,
    /// Offset of `A` in `params`, in elements.
    pub a: usize,
    /// Offset of `B` in `params`, in elements.
    pub b: usize,
    /// `R`.
    pub rank: usize,
    /// `IN`.
    pub d_in: usize,
    /// `OUT`.
    pub d_out: usize,
    /// alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    pub scaling: f32,
}

/// LoRA dropout for one module in one micro-batch: element `i` of the module's input is kept when
/// [`rng::keep`](crate::rng::keep)`(key, i, probability)`, and then scaled by `1 / (1 - probability)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zeroing an element, in `[0, 1)`.
    pub probability: f32,
    /// Names seed, step, micro-batch, layer and module: see [`rng::key`](crate::rng::key).
    pub key: u64,
}

/// A low-rank pair and the dropout of its input.
#[derive(Clone, Copy, Debug)]
pub struct LoraPair<'a> {
    /// The pair.
    pub lora: LoraRef<'a>,
    /// Drops elements of the pair's input, while training. The base product sees all of them.
    pub dropout: Option<Dropout>,
}

/// Gradients that a low-rank pair's backward adds to.
#[derive(Debug)]
pub struct LoraGrads<'a> {
    /// Gradient of the input `(N, IN)`, where wanted.
    pub dinp: Option<&'a mut Buffer>,
    /// Gradients of the parameters, laid out as they are.
    pub dparams: &'a mut Buffer,
}

/// Rows that run with one adapter.
#[derive(Clone, Debug)]
pub struct LoraSegment<'a> {
    /// Rows of the pass. Segments are ascending and share no row.
    pub rows: Range<usize>,
    /// The adapter's pair for each weight of the group, where it has one.
    pub pairs: Vec<Option<LoraPair<'a>>>,
}

/// Weights that multiply one input, and the low-rank pairs beside them.
#[derive(Clone, Copy, Debug)]
pub struct ProjectGroup<'a> {
    /// `(OUT_i, IN)` each, placed together.
    pub weights: &'a [&'a Matrix],
    /// Empty for the bare base.
    pub lora: &'a [LoraSegment<'a>],
}

/// Inputs of a projection's forward that its backward reads.
#[derive(Clone, Copy, Debug)]
pub struct ProjectSaved<'a> {
    /// `(N, IN)`.
    pub inp: &'a Buffer,
    /// `drop(inp) Aᵀ` of each weight's pair, `(N, R_i)`; empty where no segment has one.
    pub mid: &'a [&'a Buffer],
}

/// Gradients that a projection's backward writes.
#[derive(Debug)]
pub struct ProjectGrads<'a> {
    /// Gradient of the input `(N, IN)`, where wanted.
    pub dinp: Option<&'a mut Buffer>,
    /// Whether `dinp` is overwritten.
    pub store: Store,
    /// Gradients of the adapter's parameters. They accumulate.
    pub dparams: &'a mut Buffer,
}

/// Inputs of the loss head.
#[derive(Clone, Copy, Debug)]
pub struct HeadOperands<'a> {
    /// Rows that carry a label, `(N, C)`.
    pub inp: &'a Buffer,
    /// `(V, C)`.
    pub head: &'a Matrix,
    /// The labels, `(N)`.
    pub targets: &'a Indices,
}

/// Gradient of the loss head.
#[derive(Debug)]
pub struct HeadGrads<'a> {
    /// Gradient of the input `(N, C)`, overwritten.
    pub dinp: &'a mut Buffer,
    /// Gradient of each row's loss, `(N)`.
    pub dloss: &'a Buffer,
}

/// How an operation writes its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `=`
    Overwrite,
    /// `+=`
    Accumulate,
}

impl Store {
    /// Whether results are added to what is there.
    pub fn accumulates(self) -> bool {
        self == Self::Accumulate
    }
}

/// What AdamW needs besides its buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
    /// Steps taken including this one, from 1, for the bias correction.
    pub step: u32,
    /// Every gradient is multiplied by this first (the clipping factor).
    pub grad_scale: f32,
}
