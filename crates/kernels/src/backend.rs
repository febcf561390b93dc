//! The operations of a LoRA step, as one object-safe trait.

use std::fmt;
use std::ops::Range;

use crate::{Buffer, Matrix};

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

/// Most rows whose products may be summed in an order of their own, as suits decoding. A row of a batch of more rows
/// comes out the same whatever the other rows are.
pub const FEW_ROWS: usize = 8;

/// The operations of a LoRA step on one kind of memory.
///
/// Outputs come first. `N` counts token rows of a packed batch; all matrices are row-major. A slice may
/// be longer than the shape needs: work buffers are sized once for the largest batch. "accumulates"
/// means `+=`; everything else overwrites. No operation forms a gradient of a base weight.
///
/// Results depend neither on the number of threads nor on what ran before.
///
/// # Panics
/// Every operation panics when a buffer is too short for its shape or belongs to another back end:
/// callers own the shapes, files are checked long before.
pub trait Backend: Send + Sync + fmt::Debug {
    /// What runs, in a few words: `reference`, `cpu avx512bf16, 2 threads, bf16`.
    fn name(&self) -> String;

    /// A zeroed buffer of `len` f32.
    fn alloc(&self, len: usize) -> Buffer;

    /// Copies `src` to `dst[offset ..]`.
    fn write(&self, dst: &mut Buffer, offset: usize, src: &[f32]);

    /// Copies `src[offset ..][.. dst.len()]` to `dst`.
    fn read(&self, dst: &mut [f32], src: &Buffer, offset: usize);

    /// Sets the first `len` elements to zero.
    fn zero(&self, dst: &mut Buffer, len: usize);

    /// `dst += src` over the first `len` elements.
    fn add(&self, dst: &mut Buffer, src: &Buffer, len: usize);

    /// Copies `n` rows of `cols` from row `src_row` of `src` to row `dst_row` of `dst`.
    fn copy_rows(
        &self,
        dst: &mut Buffer,
        dst_row: usize,
        src: &Buffer,
        src_row: usize,
        n: usize,
        cols: usize,
    );

    /// `out[i] = inp[rows[i]]`, rows of `cols`.
    fn gather_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &[u32], cols: usize);

    /// Backward of [`gather_rows`](Backend::gather_rows): `dinp[rows[i]] += dout[i]`.
    fn gather_rows_backward(&self, dinp: &mut Buffer, dout: &Buffer, rows: &[u32], cols: usize);

    /// `out[i] = table[ids[i]]`, `out (N, C)`, `table (V, C)`.
    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &[u32]);

    /// `out = weight · inp / rms(inp)`, `rstd[i] = 1 / sqrt(mean(inp[i]²) + eps)` kept for backward.
    /// `out`, `inp` `(N, C)`, `rstd (N)`, `weight (C)`. Source: Zhang and Sennrich, 2019, equation 4.
    fn rmsnorm_forward(
        &self,
        out: &mut Buffer,
        rstd: &mut Buffer,
        inp: &Buffer,
        weight: &Buffer,
        eps: f32,
        n: usize,
    );

    /// Backward of [`rmsnorm_forward`](Backend::rmsnorm_forward); `dinp` accumulates.
    fn rmsnorm_backward(
        &self,
        dinp: &mut Buffer,
        dout: &Buffer,
        inp: &Buffer,
        rstd: &Buffer,
        weight: &Buffer,
        n: usize,
    );

    /// `out = inp Wᵀ`, `out (N, OUT)`, `inp (N, IN)`, `w (OUT, IN)`.
    fn linear_forward(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize);

    /// Backward of [`linear_forward`](Backend::linear_forward) for a frozen `w`: `dinp += dout W`.
    fn linear_backward(&self, dinp: &mut Buffer, dout: &Buffer, w: &Matrix, n: usize);

    /// `out += scaling · (drop(inp) Aᵀ) Bᵀ` on `rows` of `out (N, OUT)` and `inp (N, IN)`.
    /// `mid (N, R)` receives `drop(inp) Aᵀ`, kept for backward. Without `dropout`, `drop` is the identity;
    /// its element index is `(row - rows.start) * IN + column`, so that rows draw the same mask wherever in a
    /// batch they stand. Source: Hu et al., 2021, section 4.1.
    fn lora_forward(
        &self,
        out: &mut Buffer,
        mid: &mut Buffer,
        inp: &Buffer,
        lora: LoraRef<'_>,
        rows: Range<usize>,
        dropout: Option<Dropout>,
    );

    /// Backward of [`lora_forward`](Backend::lora_forward). `dinp` (where wanted) and `dparams` accumulate:
    /// `dmid = scaling · dout B`, `dB += scaling · doutᵀ mid`, `dA += dmidᵀ drop(inp)`,
    /// `dinp += drop'(dmid A)`.
    fn lora_backward(
        &self,
        dinp: Option<&mut Buffer>,
        dparams: &mut Buffer,
        dout: &Buffer,
        inp: &Buffer,
        mid: &Buffer,
        lora: LoraRef<'_>,
        rows: Range<usize>,
        dropout: Option<Dropout>,
    );

    /// Rotates `x (N, heads, HS)` in place: element pairs `(i, i + HS/2)` of row `n` turn by
    /// `positions[n] · inv_freq[i]`, as Llama's `rotate_half`. `inv_freq (HS/2)` is in radians a token.
    /// Source: Su et al., 2021, section 3.2.2.
    fn rope_forward(
        &self,
        x: &mut Buffer,
        inv_freq: &[f32],
        positions: &[u32],
        heads: usize,
        head_dim: usize,
    );

    /// Backward of [`rope_forward`](Backend::rope_forward): rotates the gradient back, in place.
    fn rope_backward(
        &self,
        dx: &mut Buffer,
        inv_freq: &[f32],
        positions: &[u32],
        heads: usize,
        head_dim: usize,
    );

    /// Causal softmax attention inside each segment, scores divided by `sqrt(HS)`.
    /// `out`, `q` `(N, NH, HS)`; `k`, `v` `(M, KH, HS)`; `lse (N, NH)` receives the log of each row's softmax
    /// denominator, kept for backward. Source: Vaswani et al., 2017, equation 1; Ainslie et al., 2023 (GQA).
    fn attention_forward(
        &self,
        out: &mut Buffer,
        lse: &mut Buffer,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        segments: &[Segment],
        dims: AttentionDims,
    );

    /// Backward of [`attention_forward`](Backend::attention_forward). `dq`, `dk`, `dv` are overwritten on the
    /// rows of the segments, which must not overlap.
    fn attention_backward(
        &self,
        dq: &mut Buffer,
        dk: &mut Buffer,
        dv: &mut Buffer,
        dout: &Buffer,
        out: &Buffer,
        lse: &Buffer,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        segments: &[Segment],
        dims: AttentionDims,
    );

    /// `out = silu(gate) · up` over `len` elements, `silu(x) = x / (1 + e^-x)`.
    /// Source: Shazeer, 2020, equation 6.
    fn swiglu_forward(&self, out: &mut Buffer, gate: &Buffer, up: &Buffer, len: usize);

    /// Backward of [`swiglu_forward`](Backend::swiglu_forward); `dgate` and `dup` are overwritten.
    fn swiglu_backward(
        &self,
        dgate: &mut Buffer,
        dup: &mut Buffer,
        dout: &Buffer,
        gate: &Buffer,
        up: &Buffer,
        len: usize,
    );

    /// The loss head over rows that carry a label: `losses[i] = -log softmax(inp[i] Wᵀ)[targets[i]]` in nats,
    /// and where asked `dinp[i] = dloss · d losses[i] / d inp[i]` (overwritten). Works in chunks of rows: the
    /// full `(N, V)` logits never exist. `inp (N, C)`, `head (V, C)`.
    fn head_loss(
        &self,
        losses: &mut [f32],
        dinp: Option<&mut Buffer>,
        inp: &Buffer,
        head: &Matrix,
        targets: &[u32],
        dloss: f32,
    );

    /// One AdamW update of the first `len` parameters, decoupled decay first, as `torch.optim.AdamW`.
    /// Source: Loshchilov and Hutter, 2019, algorithm 2.
    fn adamw(
        &self,
        params: &mut Buffer,
        grads: &Buffer,
        m: &mut Buffer,
        v: &mut Buffer,
        len: usize,
        step: AdamW,
    );

    /// Sum of squares of the first `len` elements, in f64.
    fn sum_of_squares(&self, x: &Buffer, len: usize) -> f64;
}
