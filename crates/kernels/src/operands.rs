//! Structs that group the operands of [`Backend`](crate::Backend)'s operations.

use std::ops::Range;

use crate::rope::{RopeAngles, RopeHeads};
use crate::{Buffer, GateActivation, Indices, Matrix, PackedLora, Segments};

/// A contiguous range of tokens. The tokens of a segment attend only to keys of this segment.
///
/// Query `i` of the segment's `q_len` queries attends to the keys `0 ..= kv_len - q_len + i` of the segment.
/// In training, the segment has as many keys as queries. In decoding, the keys are in the cache, and the
/// queries belong to the newest keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row of the segment in `q` and `out`.
    pub q_start: usize,
    /// Number of rows of the segment in `q` and `out`, at most `kv_len`.
    pub q_len: usize,
    /// First row of the segment in `k` and `v`.
    pub kv_start: usize,
    /// Number of rows of the segment in `k` and `v`.
    pub kv_len: usize,
}

/// Number and size of heads in grouped-query attention. `heads` is a multiple of `kv_heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// Number of query heads, `NH`.
    pub heads: usize,
    /// Number of key and value heads, `KH`.
    pub kv_heads: usize,
    /// Head size, `HS`.
    pub head_dim: usize,
}

/// Parameters that turn `q · k` into attention scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionScores {
    /// Factor that multiplies every score.
    pub scale: f32,
    /// Maximum number of keys to which a query attends, including the key of its own token. With `None`, a
    /// query attends to the key of its own token and to all earlier keys.
    pub window: Option<usize>,
    /// If given, each score becomes `softcap · tanh(score / softcap)`.
    pub softcap: Option<f32>,
}

impl AttentionScores {
    /// Returns Llama's parameters: the score is `q · k / sqrt(HS)`, and all earlier keys are visible.
    pub fn of_head_dim(head_dim: usize) -> Self {
        Self { scale: (1.0 / (head_dim as f64).sqrt()) as f32, window: None, softcap: None }
    }
}

/// The elements of a head that form pairs in a rotary embedding. `D` is the number of rotated elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopePairs {
    /// The elements `i` and `i + D/2`, as in Llama.
    #[default]
    Halves,
    /// The elements `2i` and `2i + 1`, as in GLM.
    Neighbours,
}

/// The part of each head that a rotary embedding changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeRotation {
    /// Number of rotated elements of each head, `D`. They are the first elements of the head.
    pub dim: usize,
    /// Which elements form pairs.
    pub pairs: RopePairs,
    /// Factor that multiplies every rotated element.
    pub scale: f32,
}

impl RopeRotation {
    /// Returns Llama's rotation: all elements of a head, in halves, without a factor.
    pub fn whole(head_dim: usize) -> Self {
        Self { dim: head_dim, pairs: RopePairs::Halves, scale: 1.0 }
    }

    /// Returns whether this is the rotation of [`RopeRotation::whole`].
    pub fn is_whole(&self, head_dim: usize) -> bool {
        *self == Self::whole(head_dim)
    }
}

/// Inputs of a rotary embedding other than queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct RopeOperands<'a> {
    /// Frequencies in radians per token: `T` tables of `D/2` frequencies.
    pub inv_freq: &'a Buffer,
    /// Index of each row in its sequence, `(N)`.
    pub positions: &'a Indices,
    /// Index of the table for each token row, `(N)`. `None` if every row uses table 0.
    pub tables: Option<&'a Indices>,
    /// Number and size of heads.
    pub dims: AttentionDims,
    /// The rotated part of each head.
    pub rotation: RopeRotation,
}

impl<'a> RopeOperands<'a> {
    /// Returns the operands that determine the angles, for host back ends.
    pub(crate) fn host_angles(&self) -> RopeAngles<'a> {
        RopeAngles {
            inv_freq: self.inv_freq.host_slice(),
            positions: self.positions.values(),
            tables: self.tables.map_or(&[], Indices::values),
        }
    }

    /// Returns the heads of queries and of keys.
    pub(crate) fn heads(&self) -> [RopeHeads; 2] {
        let AttentionDims { heads, kv_heads, head_dim } = self.dims;
        [heads, kv_heads].map(|heads| RopeHeads { heads, head_dim })
    }
}

/// Inputs of the forward and the backward of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOperands<'a> {
    /// Rotated queries, `(N, NH, HS)`.
    pub q: &'a Buffer,
    /// Rotated keys, `(M, KH, HS)`, where `M` is the number of key rows.
    pub k: &'a Buffer,
    /// Values, `(M, KH, HS)`.
    pub v: &'a Buffer,
    /// The segments, which determine the visible keys of each query row.
    pub segments: &'a Segments,
    /// Number and size of heads.
    pub dims: AttentionDims,
    /// Scale, window and cap of the scores.
    pub scores: AttentionScores,
}

/// Results of attention's forward that attention's backward reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// Output of attention, `(N, NH, HS)`.
    pub out: &'a Buffer,
    /// Logarithm of each row's softmax denominator, `(N, NH)`.
    pub lse: &'a Buffer,
}

/// Gradients that attention's backward writes. They have the shapes of `q`, `k` and `v`.
#[derive(Debug)]
pub struct AttentionGrads<'a> {
    /// Gradient of `q`.
    pub dq: &'a mut Buffer,
    /// Gradient of `k`.
    pub dk: &'a mut Buffer,
    /// Gradient of `v`.
    pub dv: &'a mut Buffer,
}

/// Values from RMSNorm's forward that RMSNorm's backward reads.
#[derive(Clone, Copy, Debug)]
pub struct RmsnormSaved<'a> {
    /// Input of the norm, `(N, C)`.
    pub inp: &'a Buffer,
    /// `1 / rms` of each row, `(N)`.
    pub rstd: &'a Buffer,
    /// Weight of the norm, `(C)`.
    pub weight: &'a Buffer,
}

/// The low-rank matrices `A, B` of one projection, inside a flat parameter buffer.
///
/// `A (R, IN)` starts at offset `a` and `B (OUT, R)` at offset `b`. Both are row-major. Gradients are in a
/// second buffer with the same layout.
#[derive(Clone, Copy, Debug)]
pub struct LoraRef<'a> {
    /// Buffer of all parameters.
    pub params: &'a Buffer,
    /// Offset of `A` in `params`, in elements.
    pub a: usize,
    /// Offset of `B` in `params`, in elements.
    pub b: usize,
    /// Rank, `R`.
    pub rank: usize,
    /// Input width, `IN`.
    pub d_in: usize,
    /// Output width, `OUT`.
    pub d_out: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scaling: f32,
}

/// LoRA dropout of one module in one micro-batch. If [`rng::keep`](crate::rng::keep)`(key, i, probability)`
/// is true, element `i` of the module's input is multiplied by `1 / (1 - probability)`. Otherwise the element
/// becomes zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an element is set to zero, in `[0, 1)`.
    pub probability: f32,
    /// Key of the random stream, computed from seed, step, micro-batch, layer and module by
    /// [`rng::key`](crate::rng::key).
    pub key: u64,
}

/// The low-rank matrices `A, B` of one projection, and the dropout of their input.
#[derive(Clone, Copy, Debug)]
pub struct LoraPair<'a> {
    /// The matrices `A` and `B`.
    pub lora: LoraRef<'a>,
    /// Dropout of `A`'s input in training. The multiplication by the base weight does not use dropout.
    pub dropout: Option<Dropout>,
}

/// Gradients to which [`lora_backward`](crate::Backend::lora_backward) adds.
#[derive(Debug)]
pub struct LoraGrads<'a> {
    /// Gradient of the input, `(N, IN)`. `None` if it is not needed.
    pub dinp: Option<&'a mut Buffer>,
    /// Gradients of the parameters. They have the layout of the parameters.
    pub dparams: &'a mut Buffer,
}

/// A range of rows that use one adapter.
#[derive(Clone, Debug)]
pub struct LoraSegment<'a> {
    /// Rows of the pass. Segments are in ascending order and do not overlap.
    pub rows: Range<usize>,
    /// The adapter's `A, B` for each weight of the [`ProjectGroup`]. `None` if the adapter does not change
    /// that weight.
    pub pairs: Vec<Option<LoraPair<'a>>>,
    /// The same `A, B`, packed for decoding, or `None` if they are not packed. A back end may ignore them.
    pub packed: Vec<Option<&'a PackedLora>>,
}

/// Weights that multiply one input, and their low-rank pairs `A, B`.
#[derive(Clone, Copy, Debug)]
pub struct ProjectGroup<'a> {
    /// The weights, `(OUT_i, IN)` each. One call of [`place`](crate::Backend::place) placed all of them.
    pub weights: &'a [&'a Matrix],
    /// One entry per adapter. Empty if only the base is used.
    pub lora: &'a [LoraSegment<'a>],
    /// Whether the rows are generated tokens. See [`Backend::linear_decode`](crate::Backend::linear_decode).
    pub is_generated: bool,
}

/// Values from a projection's forward that its backward reads.
#[derive(Clone, Copy, Debug)]
pub struct ProjectSaved<'a> {
    /// Input of the projection, `(N, IN)`.
    pub inp: &'a Buffer,
    /// `drop(inp) Aᵀ` of each weight, `(N, R_i)`. A buffer is empty if no adapter changes its weight.
    pub mid: &'a [&'a Buffer],
}

/// Gradients that a projection's backward writes.
#[derive(Debug)]
pub struct ProjectGrads<'a> {
    /// Gradient of the input, `(N, IN)`. `None` if it is not needed.
    pub dinp: Option<&'a mut Buffer>,
    /// Whether `dinp` is overwritten or added to.
    pub store: Store,
    /// Gradients of the adapter's parameters. The backward adds to them.
    pub dparams: &'a mut Buffer,
}

/// Inputs of a gated activation.
#[derive(Clone, Copy, Debug)]
pub struct GatedOperands<'a> {
    /// Input of the activation.
    pub gate: &'a Buffer,
    /// Factor that multiplies the activated gate.
    pub up: &'a Buffer,
    /// Activation function of the gate.
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
    /// Rows that have a label, `(N, C)`.
    pub inp: &'a Buffer,
    /// Weight of the loss head, `(V, C)`.
    pub head: &'a Matrix,
    /// Token id that each row must predict, `(N)`.
    pub targets: &'a Indices,
    /// If given, each logit becomes `softcap · tanh(logit / softcap)`.
    pub softcap: Option<f32>,
}

/// Size of the largest training pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassSize {
    /// Number of token rows.
    pub rows: usize,
    /// Number of rows that have a label.
    pub labels: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Head size.
    pub head_dim: usize,
    /// Number of rows of the loss head's weight.
    pub vocab_size: usize,
}

/// Gradients that the loss head reads and writes.
#[derive(Debug)]
pub struct HeadGrads<'a> {
    /// Gradient of the input, `(N, C)`. It is overwritten.
    pub dinp: &'a mut Buffer,
    /// Gradient with respect to each row's loss, `(N)`.
    pub dloss: &'a Buffer,
}

/// How an operation writes its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Writes with `=`.
    Overwrite,
    /// Writes with `+=`.
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
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// Number that is added to the square root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay. It is multiplied by the learning rate.
    pub weight_decay: f32,
    /// Number of this step for the bias correction. The first step is 1.
    pub step: u32,
    /// Factor that multiplies every gradient before its use, for clipping.
    pub grad_scale: f32,
}

/// Operands of [`Backend::column_products`](crate::Backend::column_products).
#[derive(Clone, Copy, Debug)]
pub struct ColumnProducts<'a> {
    /// Gradient of the scaled output, `(N, OUT)`.
    pub dout: &'a Buffer,
    /// The output before it was scaled, `(N, OUT)`.
    pub out: &'a Buffer,
    /// Factors that multiply the sums.
    pub scale: &'a Buffer,
    /// Index of the first factor in `scale`.
    pub offset: usize,
    /// Number of columns, `OUT`.
    pub cols: usize,
}
