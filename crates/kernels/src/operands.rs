//! The operands of [`Backend`](crate::Backend)'s operations, grouped.

use std::ops::Range;

use crate::{Buffer, GateActivation, Indices, Matrix, PackedLora, Segments};

/// A contiguous range of tokens that attends only to itself.
///
/// Query `i` (of `q_len`) sees keys `0 ..= kv_len - q_len + i` of the segment. In training, both ranges
/// coincide. In decoding, the keys are a cache and the queries its newest rows.
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

/// Head layout of grouped-query attention. `heads` is a multiple of `kv_heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// Query heads, `NH`.
    pub heads: usize,
    /// Key and value heads, `KH`.
    pub kv_heads: usize,
    /// Head size, `HS`.
    pub head_dim: usize,
}

/// How attention scores are computed from `q · k`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionScores {
    /// Factor of every score.
    pub scale: f32,
    /// Number of keys that a query sees, with its own. `None`: all earlier keys.
    pub window: Option<usize>,
    /// Scores become `softcap · tanh(score / softcap)`.
    pub softcap: Option<f32>,
}

impl AttentionScores {
    /// Returns Llama's scores: `q · k / sqrt(HS)` over all earlier keys.
    pub fn of_head_dim(head_dim: usize) -> Self {
        Self { scale: (1.0 / (head_dim as f64).sqrt()) as f32, window: None, softcap: None }
    }
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
    /// The keys that each query row sees.
    pub segments: &'a Segments,
    /// Head layout.
    pub dims: AttentionDims,
    /// Scale, window and cap of the scores.
    pub scores: AttentionScores,
}

/// Results of attention's forward that its backward reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// The output, `(N, NH, HS)`.
    pub out: &'a Buffer,
    /// Log of each row's softmax denominator, `(N, NH)`.
    pub lse: &'a Buffer,
}

/// Gradients that attention's backward writes, with the shapes of `q`, `k` and `v`.
#[derive(Debug)]
pub struct AttentionGrads<'a> {
    /// Gradient of `q`.
    pub dq: &'a mut Buffer,
    /// Gradient of `k`.
    pub dk: &'a mut Buffer,
    /// Gradient of `v`.
    pub dv: &'a mut Buffer,
}

/// Inputs of RMSNorm's forward that its backward reads.
#[derive(Clone, Copy, Debug)]
pub struct RmsnormSaved<'a> {
    /// `(N, C)`.
    pub inp: &'a Buffer,
    /// `1 / rms` of each row, `(N)`.
    pub rstd: &'a Buffer,
    /// `(C)`.
    pub weight: &'a Buffer,
}

/// The low-rank matrices `A, B` of one projection, inside a flat parameter buffer.
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

/// LoRA dropout of one module in one micro-batch. Element `i` of the module's input is kept if
/// [`rng::keep`](crate::rng::keep)`(key, i, probability)`, and then scaled by `1 / (1 - probability)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zeroing an element, in `[0, 1)`.
    pub probability: f32,
    /// A random key derived from seed, step, micro-batch, layer and module: see
    /// [`rng::key`](crate::rng::key).
    pub key: u64,
}

/// The low-rank matrices `A, B` of one projection, and the dropout of their input.
#[derive(Clone, Copy, Debug)]
pub struct LoraPair<'a> {
    /// `A` and `B`.
    pub lora: LoraRef<'a>,
    /// Dropout of `A`'s input in training. The multiplication by the base weight always uses the full input.
    pub dropout: Option<Dropout>,
}

/// Gradients that [`lora_backward`](crate::Backend::lora_backward) adds to.
#[derive(Debug)]
pub struct LoraGrads<'a> {
    /// Gradient of the input `(N, IN)`, if needed.
    pub dinp: Option<&'a mut Buffer>,
    /// Gradients of the parameters, in the layout of the parameters.
    pub dparams: &'a mut Buffer,
}

/// A range of rows that use one adapter.
#[derive(Clone, Debug)]
pub struct LoraSegment<'a> {
    /// Rows of the pass. Segments are ascending and share no row.
    pub rows: Range<usize>,
    /// The adapter's `A, B` for each weight of the group, or `None` for a weight that the adapter leaves out.
    pub pairs: Vec<Option<LoraPair<'a>>>,
    /// The same matrices packed for decoding, where they are. A back end may ignore them.
    pub packed: Vec<Option<&'a PackedLora>>,
}

/// Weights that multiply one input, and their low-rank pairs `A, B`.
#[derive(Clone, Copy, Debug)]
pub struct ProjectGroup<'a> {
    /// `(OUT_i, IN)` each, placed by one call of [`place`](crate::Backend::place).
    pub weights: &'a [&'a Matrix],
    /// One entry per adapter. Empty for the base alone.
    pub lora: &'a [LoraSegment<'a>],
}

/// Inputs of a projection's forward that its backward reads.
#[derive(Clone, Copy, Debug)]
pub struct ProjectSaved<'a> {
    /// `(N, IN)`.
    pub inp: &'a Buffer,
    /// `drop(inp) Aᵀ` of each weight, `(N, R_i)`. Empty if no segment adapts the weight.
    pub mid: &'a [&'a Buffer],
}

/// Gradients that a projection's backward writes.
#[derive(Debug)]
pub struct ProjectGrads<'a> {
    /// Gradient of the input `(N, IN)`, if needed.
    pub dinp: Option<&'a mut Buffer>,
    /// Whether `dinp` is overwritten or accumulated.
    pub store: Store,
    /// Gradients of the adapter's parameters, accumulated.
    pub dparams: &'a mut Buffer,
}

/// Inputs of a gated activation.
#[derive(Clone, Copy, Debug)]
pub struct GatedOperands<'a> {
    /// Input of the activation.
    pub gate: &'a Buffer,
    /// Factor of the activated gate.
    pub up: &'a Buffer,
    /// Function of the gate.
    pub activation: GateActivation,
}

/// Gradients that a gated activation's backward writes.
#[derive(Debug)]
pub struct GatedGrads<'a> {
    /// Gradient of `gate`.
    pub dgate: &'a mut Buffer,
    /// Gradient of `up`.
    pub dup: &'a mut Buffer,
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
    /// Logits become `softcap · tanh(logit / softcap)`.
    pub softcap: Option<f32>,
}

/// Size of the largest training pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassSize {
    /// Token rows.
    pub rows: usize,
    /// Rows that carry a label.
    pub labels: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Rows of the loss head's weight.
    pub vocab_size: usize,
}

/// Gradients of the loss head.
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
    /// Returns whether results are added to the existing values.
    pub fn accumulates(self) -> bool {
        self == Self::Accumulate
    }
}

/// Hyperparameters of one AdamW step.
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
    /// Number of this step, from 1, for the bias correction.
    pub step: u32,
    /// Factor of every gradient before its use, for clipping.
    pub grad_scale: f32,
}

/// Operands of [`Backend::column_products`](crate::Backend::column_products).
#[derive(Clone, Copy, Debug)]
pub struct ColumnProducts<'a> {
    /// Gradient of the scaled output, `(N, OUT)`.
    pub dout: &'a Buffer,
    /// The output before it was scaled, `(N, OUT)`.
    pub out: &'a Buffer,
    /// Factors of the sums.
    pub scale: &'a Buffer,
    /// Index of the first factor in `scale`.
    pub offset: usize,
    /// `OUT`.
    pub cols: usize,
}
