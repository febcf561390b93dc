//! The operations of a LoRA step, as one object-safe trait.

use std::fmt;
use std::ops::Range;

use crate::{
    AdamW, AttentionDims, AttentionGrads, AttentionOperands, AttentionSaved, BackendError, Buffer,
    ColumnProducts, DeviceMemory, Element, FourBitFormat, GatedGrads, GatedOperands, HeadGrads, HeadOperands,
    Indices, LoraGrads, LoraPair, Matrix, PassSize, ProjectGrads, ProjectGroup, ProjectSaved, RmsnormSaved,
    Scalars, Segment, Segments, Store,
};

/// An operation, or a variant of one, that only some model families need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyOperation {
    /// [`Backend::add_bias`].
    Bias,
    /// [`Backend::gated_forward`] with [`GeluTanh`](crate::GateActivation::GeluTanh), and its backward.
    Geglu,
    /// Attention with a window.
    AttentionWindow,
    /// Attention with a softcap.
    AttentionSoftcap,
    /// A loss head with a softcap.
    HeadSoftcap,
    /// A norm that reads and writes the residual stream.
    ResidualNorm,
    /// [`Backend::scale_columns`] and [`Backend::column_products`], which DoRA needs.
    ColumnScale,
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
        })
    }
}

/// The operations of a LoRA step.
///
/// Outputs come first. `N` is the number of token rows of a packed batch; all matrices are row-major. A
/// buffer may be longer than its shape, because work buffers are sized once for the largest batch.
/// "Accumulates" means `+=`; everything else overwrites. No operation forms a gradient of a base weight.
///
/// Results depend neither on the number of threads nor on earlier operations.
///
/// A device may compute asynchronously. After its first failure it skips all operations, and the next
/// [`read`](Backend::read), [`read_scalars`](Backend::read_scalars) or [`place`](Backend::place) returns the
/// failure.
///
/// # Panics
/// Every operation panics if a buffer is too short for its shape or belongs to another back end. Callers are
/// responsible for shapes, which are checked when files are loaded.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Returns a short description, such as `reference` or `cpu avx512bf16, 2 threads, bf16`.
    fn name(&self) -> String;

    /// Returns the number of rows from which a row of a matrix multiplication has the same bits in every
    /// batch. Batches with fewer rows may use another order of summation, which is the same for all of them.
    fn row_invariant_from(&self) -> usize;

    /// Returns whether gradients leave the range of the activation type unless the loss is scaled.
    fn needs_loss_scale(&self) -> bool {
        false
    }

    /// Returns whether operations compute values. A trace only counts them.
    fn computes(&self) -> bool {
        true
    }

    /// Returns whether the back end implements an operation. A decoder that needs a missing one is not built.
    fn supports(&self, operation: FamilyOperation) -> bool;

    /// Allocates a zeroed buffer of `len` elements.
    fn alloc(&self, len: usize, element: Element) -> Buffer;

    /// Allocates zeroed buffers of `rows` rows, one for each width. A back end may lay them out as columns of
    /// one allocation.
    fn alloc_rows(&self, rows: usize, widths: &[usize], element: Element) -> Vec<Buffer> {
        widths.iter().map(|width| self.alloc(rows * width, element)).collect()
    }

    /// Allocates `len` zeroed scalars.
    fn alloc_scalars(&self, len: usize) -> Scalars {
        Scalars::host(len)
    }

    /// Copies `src` to `dst[offset ..]`.
    fn write(&self, dst: &mut Buffer, offset: usize, src: &[f32]);

    /// Copies `src[offset ..][.. dst.len()]` to `dst` once all earlier operations have run.
    ///
    /// # Errors
    /// If the device failed.
    fn read(&self, dst: &mut [f32], src: &Buffer, offset: usize) -> Result<(), BackendError>;

    /// Copies the first `dst.len()` scalars to `dst` once all earlier operations have run.
    ///
    /// # Errors
    /// If the device failed.
    fn read_scalars(&self, dst: &mut [f64], src: &Scalars) -> Result<(), BackendError> {
        dst.copy_from_slice(&src.values()[..dst.len()]);
        Ok(())
    }

    /// Moves the weights that multiply one input to the device, in one block if the device benefits. A host
    /// back end leaves weights in their file. Embedding tables are never placed.
    ///
    /// # Errors
    /// If the device failed or has no memory left.
    fn place(&self, group: &[Matrix]) -> Result<Vec<Matrix>, BackendError> {
        Ok(group.to_vec())
    }

    /// As [`place`](Backend::place), and encodes each matrix in 4 bits in the back end's memory.
    ///
    /// Returns `None` if the back end has no encoder for these matrices, or a value is not finite.
    ///
    /// # Errors
    /// If the device failed or has no memory left.
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

    /// Uploads `values` for use by operations, and reuses the memory of `dst` if it is large enough.
    fn upload(&self, dst: &mut Indices, values: &[u32]) {
        dst.set(values);
    }

    /// As [`upload`](Backend::upload), for segments.
    fn upload_segments(&self, dst: &mut Segments, values: &[Segment]) {
        dst.set(values);
    }

    /// Allocates the working memory of training passes up to this size. Later passes then allocate none, which
    /// matters on a device that other programs use.
    fn reserve(&self, _largest: PassSize) {}

    /// Sets the first `len` elements to zero.
    fn zero(&self, dst: &mut Buffer, len: usize);

    /// `dst += src` over the first `len` elements.
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

    /// `out[i] = inp[rows[i]]`, for rows of `cols` elements.
    fn gather_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize);

    /// Backward of [`gather_rows`](Backend::gather_rows). `dinp` has `n` rows. `dinp[r]` is the sum of
    /// `dout[i]` over all `i` with `rows[i] = r`, in ascending order of `i`.
    fn gather_rows_backward(&self, dinp: &mut Buffer, n: usize, dout: &Buffer, rows: &Indices, cols: usize);

    /// `out[rows[i]] = inp[i]`, for rows of `cols` elements. `rows` has no duplicates.
    fn scatter_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize);

    /// `out[i] = scale · table[ids[i]]`, `out (N, C)`, `table (V, C)` in host memory.
    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &Indices, scale: f32);

    /// `out[i] += bias`, `out (N, OUT)`, `bias (OUT)`. The gradient of `out` passes unchanged.
    fn add_bias(&self, out: &mut Buffer, bias: &Buffer, n: usize);

    /// `out[i, o] *= factors[offset + o]` on `rows` of `out (N, OUT)`, where `cols` is `OUT`. Source: Liu et al., 2024,
    /// equation 5 (DoRA).
    fn scale_columns(
        &self,
        out: &mut Buffer,
        factors: &Buffer,
        offset: usize,
        rows: Range<usize>,
        cols: usize,
    );

    /// Gradient of the magnitudes that [`scale_columns`](Backend::scale_columns) multiplies by `scale`:
    /// `dparams[at + o] += scale[offset + o] · Σ dout[i, o] · out[i, o]` over `rows`.
    fn column_products(
        &self,
        dparams: &mut Buffer,
        at: usize,
        operands: ColumnProducts<'_>,
        rows: Range<usize>,
    );

    /// `out = weight · inp / rms(inp)`. Stores `rstd[i] = 1 / sqrt(mean(inp[i]²) + eps)` for backward. `out`,
    /// `inp` `(N, C)`, `rstd (N)`, `weight (C)`. Source: Zhang and Sennrich, 2019, equation 4.
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

    /// `out = inp Wᵀ`, `out (N, OUT)`, `inp (N, IN)`, `w (OUT, IN)`.
    fn linear_forward(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize);

    /// Backward of [`linear_forward`](Backend::linear_forward) for a frozen `w`: `dinp = dout W`, or `+=`.
    fn linear_backward(&self, dinp: &mut Buffer, store: Store, dout: &Buffer, w: &Matrix, n: usize);

    /// `out += scaling · (drop(inp) Aᵀ) Bᵀ` on `rows` of `out (N, OUT)` and `inp (N, IN)`. `mid (N, R)`
    /// receives `drop(inp) Aᵀ` for backward. Without dropout, `drop` is the identity.
    ///
    /// The element index of dropout is `(row - rows.start) * IN + column`. A module's mask therefore does not
    /// depend on the position of its rows in the batch. Source: Hu et al., 2021, section 4.1.
    fn lora_forward(
        &self,
        out: &mut Buffer,
        mid: &mut Buffer,
        inp: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    );

    /// Backward of [`lora_forward`](Backend::lora_forward). `dparams` and the optional `dinp` accumulate:
    /// `dmid = scaling · dout B`, `dB += scaling · doutᵀ mid`, `dA += dmidᵀ drop(inp)`,
    /// `dinp += drop'(dmid A)`.
    fn lora_backward(
        &self,
        grads: LoraGrads<'_>,
        dout: &Buffer,
        inp: &Buffer,
        mid: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    );

    /// All projections of one input, with their low-rank pairs `A, B` and an optional residual.
    ///
    /// ```text
    /// out[i] = inp W[i]ᵀ + Σ over segments, on their rows: scaling · (drop(inp) Aᵀ) Bᵀ  (+ residual)
    /// ```
    ///
    /// `out[i] (N, OUT_i)`, `mid[i] (N, R_i)` as [`ProjectSaved::mid`]. A `residual (N, OUT)` requires a
    /// group of one weight. A back end may fuse all of these. The default calls the single operations in the
    /// order of the formula.
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

    /// Backward of [`project`](Backend::project). The optional `dinp` receives `Σ dout[i] W[i]` and the
    /// gradients through `A, B`, or adds them. `dparams` accumulates. The gradient of the residual is `dout`
    /// itself.
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

    /// Rotates `q (N, NH, HS)` and `k (N, KH, HS)` in place, as Llama's `rotate_half`: the elements `i` and
    /// `i + HS/2` of row `n` turn by the angle `positions[n] · inv_freq[i]`. `inv_freq (HS/2)` is in radians
    /// per token. Source: Su et al., 2021, section 3.2.2.
    fn rope_forward(
        &self,
        q: &mut Buffer,
        k: &mut Buffer,
        inv_freq: &Buffer,
        positions: &Indices,
        dims: AttentionDims,
    );

    /// Backward of [`rope_forward`](Backend::rope_forward): rotates the gradients back, in place.
    fn rope_backward(
        &self,
        dq: &mut Buffer,
        dk: &mut Buffer,
        inv_freq: &Buffer,
        positions: &Indices,
        dims: AttentionDims,
    );

    /// Causal softmax attention inside each segment, with scores divided by `sqrt(HS)`. `out (N, NH, HS)`;
    /// `lse (N, NH)` receives the log of each row's softmax denominator for backward. Source: Vaswani et al.,
    /// 2017, equation 1; Ainslie et al., 2023 (GQA).
    fn attention_forward(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>);

    /// As [`attention_forward`](Backend::attention_forward), for generated tokens: one query per segment. The
    /// result of a segment depends neither on the other segments nor on its position among the keys. It may
    /// differ from `attention_forward` in the order of its sums.
    fn attention_decode(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        self.attention_forward(out, lse, operands);
    }

    /// Backward of [`attention_forward`](Backend::attention_forward). Overwrites the gradients on the rows of
    /// the segments, which must not overlap.
    fn attention_backward(
        &self,
        grads: AttentionGrads<'_>,
        dout: &Buffer,
        saved: AttentionSaved<'_>,
        operands: AttentionOperands<'_>,
    );

    /// `out = activation(gate) · up` over `len` elements. Source: Shazeer, 2020, section 2.
    fn gated_forward(&self, out: &mut Buffer, operands: GatedOperands<'_>, len: usize);

    /// Backward of [`gated_forward`](Backend::gated_forward). Overwrites both gradients.
    fn gated_backward(&self, grads: GatedGrads<'_>, dout: &Buffer, operands: GatedOperands<'_>, len: usize);

    /// The loss head over rows that carry a label: `losses[first + i] = -log softmax(inp[i] Wᵀ)[targets[i]]`
    /// in nats. With `grads`, also `dinp[i] = dloss[i] · d loss / d inp[i]`. The logits are computed in
    /// blocks, so the full `(N, V)` never exists.
    fn head_loss(
        &self,
        losses: &mut Buffer,
        first: usize,
        operands: HeadOperands<'_>,
        grads: Option<HeadGrads<'_>>,
    );

    /// One AdamW update of the first `len` parameters, as `torch.optim.AdamW`: decoupled decay first. Source:
    /// Loshchilov and Hutter, 2019, algorithm 2.
    fn adamw(
        &self,
        params: &mut Buffer,
        grads: &Buffer,
        m: &mut Buffer,
        v: &mut Buffer,
        len: usize,
        step: AdamW,
    );

    /// Writes the sum of squares of the first `len` elements to `out[at]`, in f64.
    fn sum_of_squares(&self, out: &mut Scalars, at: usize, x: &Buffer, len: usize);
}

/// [`Backend::project`] by single operations.
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
        backend.linear_forward(out, inp, w, n);
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
