//! The trait [`Backend`]: the operations of LoRA training and of token generation.

use std::fmt;
use std::ops::Range;

use crate::{
    AdamW, AttentionGrads, AttentionOperands, AttentionSaved, BackendError, Buffer, ColumnProducts,
    DeviceMemory, Element, FourBitFormat, GatedGrads, GatedOperands, HeadGrads, HeadOperands, Indices,
    LoraGrads, LoraPair, LoraRef, Matrix, PassSize, ProjectGrads, ProjectGroup, ProjectSaved, RmsnormSaved,
    RopeOperands, Scalars, Segment, Segments, Store,
};

/// An operation, or a variant of one, that only some model families need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyOperation {
    /// The operation [`Backend::add_bias`].
    Bias,
    /// The operation [`Backend::gated_forward`] with [`GeluTanh`](crate::GateActivation::GeluTanh), and its
    /// backward.
    Geglu,
    /// Sliding-window attention.
    AttentionWindow,
    /// Attention with capped scores, `softcap · tanh(score / softcap)`.
    AttentionSoftcap,
    /// A loss head with capped logits, `softcap · tanh(logit / softcap)`.
    HeadSoftcap,
    /// A norm of the output of attention or MLP, before this output is added to the residual stream.
    ResidualNorm,
    /// The operations [`Backend::scale_columns`] and [`Backend::column_products`], which DoRA needs.
    ColumnScale,
    /// A weight that contains several projections, for example queries, keys and values.
    FusedProjection,
    /// A [`RopeRotation`](crate::RopeRotation) that is not
    /// [whole](crate::RopeRotation::is_whole).
    PartialRope,
    /// A rotary embedding with several [tables](RopeOperands::tables) of frequencies, which are selected by
    /// the length of the sequence.
    RopeTables,
}

impl fmt::Display for FamilyOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bias => "a bias",
            Self::Geglu => "a GELU gate",
            Self::AttentionWindow => "sliding-window attention",
            Self::AttentionSoftcap => "a softcap of attention scores",
            Self::HeadSoftcap => "a softcap of logits",
            Self::ResidualNorm => "a norm after attention and MLP",
            Self::ColumnScale => "a factor for each output, as DoRA needs",
            Self::FusedProjection => "several projections in one weight",
            Self::PartialRope => "a rotation of a part of each head",
            Self::RopeTables => "rotary frequencies that depend on the length",
        })
    }
}

/// The operations of LoRA training and of token generation. Each model calls them through this trait.
///
/// Output arguments come first. `N` is the number of token rows of a packed batch. All matrices are
/// row-major. A buffer may be longer than its shape. "Accumulates" means `+=`; other operations overwrite
/// their output. No operation computes the gradient of a base weight.
///
/// Results depend neither on the number of threads nor on earlier operations.
///
/// A device may compute asynchronously. After the first failure of a device, all operations are skipped. The
/// next [`read`](Backend::read), [`read_scalars`](Backend::read_scalars) or [`place`](Backend::place) returns
/// the failure.
///
/// # Panics
/// Every operation panics if a buffer is too short for its shape, or is in memory that the back end cannot
/// access. Callers must pass correct shapes. Shapes are checked when files are loaded.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Returns a short description, such as `reference` or `cpu avx512bf16, 2 threads, bf16`.
    fn name(&self) -> String;

    /// Returns the smallest `n` such that a matrix multiplication gives a row the same bits in every batch of
    /// `n` or more rows. All smaller batches share another order of additions. CUDA returns 1, but does not
    /// guarantee equal bits in small batches.
    fn row_invariant_from(&self) -> usize;

    /// Returns the largest number of rows that [`linear_decode`](Backend::linear_decode) accepts.
    fn max_generated_rows(&self) -> usize {
        generated_rows_below(self.row_invariant_from())
    }

    /// Returns whether the caller must scale the loss, because activations are f16 and small gradients would
    /// underflow to zero.
    fn needs_loss_scale(&self) -> bool {
        false
    }

    /// Returns whether operations compute values. A [`Trace`](crate::Trace) does not: it only counts bytes
    /// and FLOP.
    fn computes(&self) -> bool {
        true
    }

    /// Returns whether the back end implements an operation. A decoder cannot be built if the back end lacks
    /// an operation that the model needs.
    fn supports(&self, operation: FamilyOperation) -> bool;

    /// Calls `task(index)` for every index below `tasks`, in any order. If the back end has threads on the
    /// host, these threads share the calls. Returns when all calls have ended.
    ///
    /// # Panics
    /// If a task panics, or if a task runs an operation that uses the same threads.
    fn run_host_tasks(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }

    /// Allocates a zeroed buffer of `len` elements.
    fn alloc(&self, len: usize, element: Element) -> Buffer;

    /// Allocates zeroed buffers of `rows` rows, one buffer for each width. A back end may place these buffers
    /// side by side, as columns of one allocation.
    fn alloc_rows(&self, rows: usize, widths: &[usize], element: Element) -> Vec<Buffer> {
        widths.iter().map(|width| self.alloc(rows * width, element)).collect()
    }

    /// Allocates `len` zeroed scalars.
    fn alloc_scalars(&self, len: usize) -> Scalars {
        Scalars::host(len)
    }

    /// Copies `src` to `dst[offset ..]`.
    fn write(&self, dst: &mut Buffer, offset: usize, src: &[f32]);

    /// Copies `src[offset ..][.. dst.len()]` to `dst` after all earlier operations have run.
    ///
    /// # Errors
    /// If the device failed.
    fn read(&self, dst: &mut [f32], src: &Buffer, offset: usize) -> Result<(), BackendError>;

    /// Copies the first `dst.len()` scalars to `dst` after all earlier operations have run.
    ///
    /// # Errors
    /// If the device failed.
    fn read_scalars(&self, dst: &mut [f64], src: &Scalars) -> Result<(), BackendError> {
        dst.copy_from_slice(&src.values()[..dst.len()]);
        Ok(())
    }

    /// Copies weights to the device. All weights of a group multiply the same input, so the device may store
    /// them as one block. A host back end copies nothing, and reads the weights from their file. Embedding
    /// tables are never placed.
    ///
    /// # Errors
    /// If the device failed or does not have enough memory.
    fn place(&self, group: &[Matrix]) -> Result<Vec<Matrix>, BackendError> {
        Ok(group.to_vec())
    }

    /// Copies weights to the device as [`place`](Backend::place) does, but encodes each matrix in 4 bits.
    ///
    /// Returns `None` if the back end has no encoder for these matrices, or if a value is not finite.
    ///
    /// # Errors
    /// If the device failed or does not have enough memory.
    fn place_encoded(
        &self,
        _group: &[Matrix],
        _format: FourBitFormat,
    ) -> Result<Option<Vec<Matrix>>, BackendError> {
        Ok(None)
    }

    /// Returns the memory of the device, or `None` for a host back end.
    fn device_memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// Copies `values` to `dst` and to the device. Reuses the memory of `dst` if it is large enough.
    fn upload(&self, dst: &mut Indices, values: &[u32]) {
        dst.set(values);
    }

    /// Copies segments to `dst` and to the device, as [`upload`](Backend::upload) does for numbers.
    fn upload_segments(&self, dst: &mut Segments, values: &[Segment]) {
        dst.set(values);
    }

    /// Allocates the working memory that operations need in training passes of at most this size. Later
    /// operations then allocate no working memory, so they do not fail if other programs fill the device's
    /// memory. Host back ends do nothing.
    fn reserve(&self, _largest: PassSize) {}

    /// Runs operations that are repeated with the same buffers and shapes, such as those of a decoded token.
    /// A device may record the operations and submit them at once, so `operations` must not call
    /// [`read`](Backend::read).
    fn run_sequence(&self, operations: &mut dyn FnMut()) {
        operations();
    }

    /// Sets the first `len` elements to zero.
    fn zero(&self, dst: &mut Buffer, len: usize);

    /// Computes `dst += src` over the first `len` elements.
    fn add(&self, dst: &mut Buffer, src: &Buffer, len: usize);

    /// Copies `n` rows of `cols` elements from row `src_row` of `src` to row `dst_row` of `dst`.
    fn copy_rows(
        &self,
        dst: &mut Buffer,
        dst_row: usize,
        src: &Buffer,
        src_row: usize,
        n: usize,
        cols: usize,
    );

    /// Computes `out[i] = inp[rows[i]]`, for rows of `cols` elements.
    fn gather_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize);

    /// Backward of [`gather_rows`](Backend::gather_rows). `dinp` has `n` rows. `dinp[r]` is the sum of
    /// `dout[i]` over all `i` with `rows[i] = r`. The terms are added in ascending order of `i`.
    fn gather_rows_backward(&self, dinp: &mut Buffer, n: usize, dout: &Buffer, rows: &Indices, cols: usize);

    /// Computes `out[b][rows[i]] = inp[b][i]` for both buffers `b`, for rows of `cols` elements. `rows` has
    /// no duplicates.
    fn scatter_rows(&self, out: [&mut Buffer; 2], inp: [&Buffer; 2], rows: &Indices, cols: usize);

    /// Computes `out[rows[i]] = inp[i]`, for rows of `cols` elements. `rows` has no duplicates.
    fn join_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize);

    /// Computes `out[i] = scale · table[ids[i]]`. Shapes: `out (N, C)`, and `table (V, C)` in host memory.
    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &Indices, scale: f32);

    /// Computes `out[i] += bias`. Shapes: `out (N, OUT)`, `bias (OUT)`. No backward is needed: the bias is
    /// frozen, and the sum has the same gradient as the value before the addition.
    fn add_bias(&self, out: &mut Buffer, bias: &Buffer, n: usize);

    /// Computes `out[i, o] *= factors[offset + o]` on the rows `rows` of `out (N, OUT)`. `cols` is `OUT`.
    /// Source: Liu et al., 2024, equation 5 (DoRA).
    fn scale_columns(
        &self,
        out: &mut Buffer,
        factors: &Buffer,
        offset: usize,
        rows: Range<usize>,
        cols: usize,
    );

    /// Adds the gradient of DoRA's magnitudes:
    /// `dparams[at + o] += scale[offset + o] · Σᵢ dout[i, o] · out[i, o]`, where `i` runs over `rows`. The
    /// forward is [`scale_columns`](Backend::scale_columns).
    fn column_products(
        &self,
        dparams: &mut Buffer,
        at: usize,
        operands: ColumnProducts<'_>,
        rows: Range<usize>,
    );

    /// Computes the norms of the rows of `W + scaling · B A`: `norms[at + o] = |W[o] + scaling · B[o] A|`.
    /// DoRA divides its magnitudes by them.
    ///
    /// Returns false, and computes nothing, if the weight is in host memory. The caller then reads its rows.
    fn row_norms(&self, _norms: &mut Buffer, _at: usize, _w: &Matrix, _lora: LoraRef<'_>) -> bool {
        false
    }

    /// Computes `out = weight · inp / rms(inp)`. Stores `rstd[i] = 1 / sqrt(mean(inp[i]²) + eps)` for the
    /// backward pass. Shapes: `out` and `inp` `(N, C)`, `rstd (N)`, `weight (C)`. Source: Zhang and Sennrich,
    /// 2019, equation 4.
    fn rmsnorm_forward(
        &self,
        out: &mut Buffer,
        rstd: &mut Buffer,
        inp: &Buffer,
        weight: &Buffer,
        eps: f32,
        n: usize,
    );

    /// Backward of [`rmsnorm_forward`](Backend::rmsnorm_forward).
    fn rmsnorm_backward(
        &self,
        dinp: &mut Buffer,
        store: Store,
        dout: &Buffer,
        saved: RmsnormSaved<'_>,
        n: usize,
    );

    /// Computes `out = inp Wᵀ`. Shapes: `out (N, OUT)`, `inp (N, IN)`, `w (OUT, IN)`.
    fn linear_forward(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize);

    /// Computes [`linear_forward`](Backend::linear_forward) for generated tokens. `n` is at most
    /// [`max_generated_rows`](Backend::max_generated_rows). On the CPU, a row has the same bits for every
    /// such `n`.
    fn linear_decode(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        self.linear_forward(out, inp, w, n);
    }

    /// Backward of [`linear_forward`](Backend::linear_forward) for a frozen `w`: computes `dinp = dout W` or
    /// `dinp += dout W`.
    fn linear_backward(&self, dinp: &mut Buffer, store: Store, dout: &Buffer, w: &Matrix, n: usize);

    /// Computes `out += scaling · (drop(inp) Aᵀ) Bᵀ` on the rows `rows` of `out (N, OUT)` and `inp (N, IN)`.
    /// `mid (N, R)` receives `drop(inp) Aᵀ` for the backward pass. Without dropout, `drop` is the identity.
    ///
    /// Dropout numbers the elements from `rows.start`: `(row - rows.start) * IN + column`. The mask therefore
    /// does not depend on where the rows are in the batch. Source: Hu et al., 2021, section 4.1.
    fn lora_forward(
        &self,
        out: &mut Buffer,
        mid: &mut Buffer,
        inp: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    );

    /// Backward of [`lora_forward`](Backend::lora_forward), with the same dropout mask. Computes
    /// `dmid = scaling · dout B`, `dB += scaling · doutᵀ mid`, `dA += dmidᵀ drop(inp)` and
    /// `dinp += drop(dmid A)`. `dparams` contains `dA` and `dB`. `dinp` is optional.
    fn lora_backward(
        &self,
        grads: LoraGrads<'_>,
        dout: &Buffer,
        inp: &Buffer,
        mid: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    );

    /// Computes all projections of one input, with their low-rank pairs `A, B` and an optional residual.
    ///
    /// ```text
    /// out[i] = inp W[i]ᵀ + Σ over segments, on their rows: scaling · (drop(inp) Aᵀ) Bᵀ  (+ residual)
    /// ```
    ///
    /// Shapes: `out[i] (N, OUT_i)`, and `mid[i] (N, R_i)` as in [`ProjectSaved::mid`]. A `residual (N, OUT)`
    /// requires a group of one weight. A back end may fuse these operations. The default implementation runs
    /// them separately, in the order of the formula.
    fn project(
        &self,
        out: &mut [&mut Buffer],
        mid: &mut [&mut Buffer],
        inp: &Buffer,
        group: ProjectGroup<'_>,
        residual: Option<&Buffer>,
        n: usize,
    ) {
        project_singly(self, out, mid, inp, group, residual, n);
    }

    /// Backward of [`project`](Backend::project). The optional `dinp` receives `Σ dout[i] W[i]` plus the
    /// gradients through `A, B`. `grads.store` determines whether `dinp` is overwritten or added to.
    /// Gradients of `A, B` are added to `dparams`. The gradient of the residual equals `dout`, so it is not
    /// computed.
    fn project_backward(
        &self,
        grads: ProjectGrads<'_>,
        dout: &[&Buffer],
        saved: ProjectSaved<'_>,
        group: ProjectGroup<'_>,
        n: usize,
    ) {
        let ProjectGrads { mut dinp, mut store, dparams } = grads;
        for (i, (dout, w)) in dout.iter().zip(group.weights).enumerate() {
            if let Some(dinp) = dinp.as_deref_mut() {
                self.linear_backward(dinp, store, dout, w, n);
                store = Store::Accumulate;
            }
            for segment in group.lora {
                if let Some(pair) = segment.pairs[i] {
                    let grads = LoraGrads { dinp: dinp.as_deref_mut(), dparams };
                    self.lora_backward(grads, dout, saved.inp, saved.mid[i], pair, segment.rows.clone());
                }
            }
        }
    }

    /// Rotates `q (N, NH, HS)` and `k (N, KH, HS)` in place. Pair `i` of row `n` turns by the angle
    /// `positions[n] · inv_freq[tables[n], i]`. Source: Su et al., 2021, section 3.2.2.
    fn rope_forward(&self, q: &mut Buffer, k: &mut Buffer, operands: RopeOperands<'_>);

    /// Backward of [`rope_forward`](Backend::rope_forward). Rotates the gradients in place, in the opposite
    /// direction.
    fn rope_backward(&self, dq: &mut Buffer, dk: &mut Buffer, operands: RopeOperands<'_>);

    /// Computes causal softmax attention inside each segment. `operands.scores` defines how scores are
    /// computed. The shape of `out` is `(N, NH, HS)`. `lse (N, NH)` receives the logarithm of each row's
    /// softmax denominator for the backward pass. Source: Vaswani et al., 2017, equation 1; Ainslie et al.,
    /// 2023 (GQA).
    fn attention_forward(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>);

    /// Computes [`attention_forward`](Backend::attention_forward) for generated tokens, with one query per
    /// segment. The result of a segment depends neither on other segments nor on where its keys are stored.
    /// The order of additions may differ from that of `attention_forward`.
    fn attention_decode(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        self.attention_forward(out, lse, operands);
    }

    /// Backward of [`attention_forward`](Backend::attention_forward). Overwrites the gradients on the rows of
    /// the segments. Segments must not overlap.
    fn attention_backward(
        &self,
        grads: AttentionGrads<'_>,
        dout: &Buffer,
        saved: AttentionSaved<'_>,
        operands: AttentionOperands<'_>,
    );

    /// Computes `out = activation(gate) · up` over `len` elements. Source: Shazeer, 2020, section 2.
    fn gated_forward(&self, out: &mut Buffer, operands: GatedOperands<'_>, len: usize);

    /// Backward of [`gated_forward`](Backend::gated_forward). Overwrites both gradients.
    fn gated_backward(&self, grads: GatedGrads<'_>, dout: &Buffer, operands: GatedOperands<'_>, len: usize);

    /// Computes the loss of rows that have a label: `losses[first + i] = -log softmax(inp[i] Wᵀ)[targets[i]]`
    /// in nats. With `grads`, also computes `dinp[i] = dloss[i] · d losses[first + i] / d inp[i]`. The logits
    /// are computed in blocks, so the full `(N, V)` matrix never exists.
    fn head_loss(
        &self,
        losses: &mut Buffer,
        first: usize,
        operands: HeadOperands<'_>,
        grads: Option<HeadGrads<'_>>,
    );

    /// Computes one AdamW update of the parameters `range`, as `torch.optim.AdamW` does: the decoupled decay
    /// comes first. Source: Loshchilov and Hutter, 2019, algorithm 2.
    fn adamw(
        &self,
        params: &mut Buffer,
        grads: &Buffer,
        m: &mut Buffer,
        v: &mut Buffer,
        range: Range<usize>,
        step: AdamW,
    );

    /// Writes the sum of squares of the first `len` elements to `out[at]`, in f64.
    fn sum_of_squares(&self, out: &mut Scalars, at: usize, x: &Buffer, len: usize);
}

/// Computes the default of [`Backend::max_generated_rows`].
pub(crate) fn generated_rows_below(row_invariant_from: usize) -> usize {
    match row_invariant_from {
        0 | 1 => usize::MAX,
        from => from - 1,
    }
}

/// Computes [`Backend::project`] with separate operations.
pub(crate) fn project_singly<B: Backend + ?Sized>(
    backend: &B,
    out: &mut [&mut Buffer],
    mid: &mut [&mut Buffer],
    inp: &Buffer,
    group: ProjectGroup<'_>,
    residual: Option<&Buffer>,
    n: usize,
) {
    assert!(residual.is_none() || group.weights.len() == 1, "a residual beside several weights");
    for (i, (out, w)) in out.iter_mut().zip(group.weights).enumerate() {
        match group.is_generated {
            true => backend.linear_decode(out, inp, w, n),
            false => backend.linear_forward(out, inp, w, n),
        }
        for segment in group.lora {
            if let Some(pair) = segment.pairs[i] {
                backend.lora_forward(out, mid[i], inp, pair, segment.rows.clone());
            }
        }
        if let Some(residual) = residual {
            backend.add(out, residual, n * w.rows());
        }
    }
}
