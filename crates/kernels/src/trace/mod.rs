//! A back end that computes nothing. The model's code runs on this back end, which records the bytes and the
//! FLOP that another back end, the target, would need.

mod cpu;
mod ledger;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use self::ledger::Ledger;
pub use self::ledger::{Footprint, ScratchBytes, ScratchPool};
use crate::backend::generated_rows_below;
use crate::lora::LoraDims;
use crate::{
    AdamW, AttentionDims, AttentionGrads, AttentionOperands, AttentionSaved, Backend, BackendError, Buffer,
    ColumnProducts, CpuOptions, DType, Element, FamilyOperation, GatedGrads, GatedOperands, HeadGrads,
    HeadOperands, Indices, LoraGrads, LoraPair, Matrix, RmsnormSaved, RopeOperands, Scalars, Segment, Store,
};

/// The back end whose memory a [`Trace`] records.
pub trait TraceTarget: fmt::Debug + Send + Sync {
    /// Returns the name of the back end.
    fn name(&self) -> String;

    /// Returns the result of [`Backend::row_invariant_from`] on this back end.
    fn row_invariant_from(&self) -> usize;

    /// Returns the result of [`Backend::max_generated_rows`] on this back end.
    fn max_generated_rows(&self) -> usize {
        generated_rows_below(self.row_invariant_from())
    }

    /// Returns the result of [`Backend::supports`] on this back end.
    fn supports(&self, operation: FamilyOperation) -> bool;

    /// Returns the data type that stores `element`.
    fn dtype(&self, element: Element) -> DType;

    /// Returns the bytes of one row in all buffers that one [`Backend::alloc_rows`] allocates.
    fn row_bytes(&self, widths: &[usize], element: Element) -> u64 {
        (widths.iter().sum::<usize>() * self.dtype(element).size()) as u64
    }

    /// Returns the bytes that the allocator uses for a request of `bytes`.
    fn allocated_bytes(&self, bytes: u64) -> u64 {
        bytes
    }

    /// Calls `grow` for each pool that an operation uses, with the bytes that the operation needs.
    fn scratch(&self, op: TracedOp<'_>, grow: &mut dyn FnMut(ScratchPool, u64));
}

/// An operation that uses working memory.
#[derive(Clone, Copy, Debug)]
pub enum TracedOp<'a> {
    /// A multiplication by a frozen weight. In the forward pass, its shape is `(n, d_in) x (d_in, d_out)`.
    Linear {
        /// Number of rows.
        n: usize,
        /// Output width of the weight, `OUT`.
        d_out: usize,
        /// Input width of the weight, `IN`.
        d_in: usize,
        /// Whether the operation is [`Backend::linear_decode`].
        is_generated: bool,
        /// Whether the operation computes the gradient of the input.
        backward: bool,
        /// Type of the rows.
        dtype: DType,
    },
    /// A multiplication by `A` and `B`.
    Lora {
        /// Number of rows.
        rows: usize,
        /// Shape of the pair.
        dims: LoraDims,
        /// Whether dropout applies to the input.
        dropout: bool,
        /// Whether this is the backward pass.
        backward: bool,
    },
    /// Attention.
    Attention {
        /// The segments, which determine the visible keys of each query row.
        segments: &'a [Segment],
        /// Number and size of heads.
        dims: AttentionDims,
        /// Whether this is the backward pass.
        backward: bool,
    },
    /// Attention of generated tokens.
    DecodeAttention {
        /// The segments, which determine the visible keys of each query.
        segments: &'a [Segment],
        /// Number and size of heads.
        dims: AttentionDims,
        /// Maximum number of keys that a query attends to.
        window: Option<usize>,
    },
    /// The loss head.
    Head {
        /// Number of rows that have a label.
        n: usize,
        /// Vocabulary size, `V`.
        v: usize,
        /// Hidden size, `C`.
        c: usize,
        /// Whether the gradient of the input is computed.
        gradient: bool,
    },
    /// The rotary embedding.
    Rope {
        /// Number of rows.
        n: usize,
        /// Number of rotated pairs of a head.
        half: usize,
        /// Number of stored frequencies.
        frequencies: usize,
        /// Length of [`RopeOperands::tables`](crate::RopeOperands::tables), or 0 without tables.
        tables: usize,
    },
}

/// Records the memory and the FLOP of another back end, the target. Every value that is read from a trace is
/// zero.
///
/// The sizes of working memory come from the functions that also size the buffers of the real back end. The
/// trace assumes that every thread has run the largest task.
#[derive(Debug)]
pub struct Trace {
    target: Box<dyn TraceTarget>,
    ledger: Ledger,
}

impl Trace {
    /// Creates a trace of a [`Cpu`](crate::Cpu) with these options.
    ///
    /// # Panics
    /// If this machine does not support `options.isa`. See [`Isa::is_supported`](crate::Isa::is_supported).
    pub fn new(options: CpuOptions) -> Self {
        Self::of(Box::new(cpu::CpuTarget::new(options)))
    }

    /// Creates a trace of `target`.
    pub fn of(target: Box<dyn TraceTarget>) -> Self {
        Self { target, ledger: Ledger::default() }
    }

    /// Returns the bytes and the FLOP so far.
    pub fn footprint(&self) -> Footprint {
        self.ledger.footprint()
    }

    /// Resets the peak, the working memory and the FLOP. The bytes of live buffers are not reset.
    pub fn restart(&self) {
        self.ledger.restart();
    }

    /// Returns a frozen weight of this shape, without elements.
    pub fn matrix(rows: usize, cols: usize) -> Matrix {
        Matrix::opaque(Arc::new(()), rows, cols)
    }

    fn scratch(&self, op: TracedOp<'_>) {
        self.target.scratch(op, &mut |pool, bytes| self.ledger.grow(pool, bytes));
    }

    /// Records the working memory and the FLOP of a multiplication by a frozen weight.
    fn product(&self, n: usize, w: &Matrix, (is_generated, backward): (bool, bool), dtype: DType) {
        let (d_out, d_in) = (w.rows(), w.cols());
        self.scratch(TracedOp::Linear { n, d_out, d_in, is_generated, backward, dtype });
        self.ledger.add_flops(2 * (n * w.rows()) as u64 * w.cols() as u64);
    }

    /// Records the FLOP of attention over the visible keys of each query.
    fn attention(
        &self,
        segments: &[Segment],
        (dims, window): (AttentionDims, Option<usize>),
        backward: bool,
    ) {
        let seen = |s: &Segment| {
            let (q, past) = (s.q_len as u64, (s.kv_len - s.q_len) as u64);
            let all = q * past + q * (q + 1) / 2;
            let Some(window) = window.map(|window| window as u64) else { return all };
            // From the last `beyond` queries, the window hides `before + 1`, `before + 2`, ...
            // `before + beyond` keys.
            let (beyond, before) = (q.min((past + q).saturating_sub(window)), past.saturating_sub(window));
            all - beyond * before - beyond * (beyond + 1) / 2
        };
        let (pairs, products) = (segments.iter().map(seen).sum::<u64>(), if backward { 5 } else { 2 });
        self.ledger.add_flops(2 * products * pairs * (dims.heads * dims.head_dim) as u64);
    }
}

/// Panics if a buffer of attention is too short.
fn check_attention([out, lse]: [&Buffer; 2], operands: AttentionOperands<'_>) {
    let AttentionOperands { q, k, v, segments, dims, .. } = operands;
    for s in segments.values() {
        check(out, (s.q_start + s.q_len) * dims.heads * dims.head_dim);
        check(q, (s.q_start + s.q_len) * dims.heads * dims.head_dim);
        check(lse, (s.q_start + s.q_len) * dims.heads);
        check(k, (s.kv_start + s.kv_len) * dims.kv_heads * dims.head_dim);
        check(v, (s.kv_start + s.kv_len) * dims.kv_heads * dims.head_dim);
    }
}

/// Panics if a buffer is too short, because a memory plan for a wrong shape would be useless.
fn check(buffer: &Buffer, len: usize) {
    assert!(buffer.len() >= len, "a buffer of {} elements where {len} are needed", buffer.len());
}

impl Backend for Trace {
    fn name(&self) -> String {
        format!("trace of {}", self.target.name())
    }

    fn row_invariant_from(&self) -> usize {
        self.target.row_invariant_from()
    }

    fn max_generated_rows(&self) -> usize {
        self.target.max_generated_rows()
    }

    fn computes(&self) -> bool {
        false
    }

    fn supports(&self, operation: FamilyOperation) -> bool {
        self.target.supports(operation)
    }

    fn alloc(&self, len: usize, element: Element) -> Buffer {
        let dtype = self.target.dtype(element);
        let bytes = self.target.allocated_bytes((dtype.size() * len) as u64);
        Buffer::opaque(Box::new(self.ledger.alloc(bytes)), len, dtype)
    }

    fn alloc_rows(&self, rows: usize, widths: &[usize], element: Element) -> Vec<Buffer> {
        let dtype = self.target.dtype(element);
        // All of these buffers share one allocation. The bytes of the allocation are counted for the first
        // buffer.
        let mut bytes = self.target.allocated_bytes(rows as u64 * self.target.row_bytes(widths, element));
        let buffer = |width: &usize| {
            let allocation = self.ledger.alloc(std::mem::take(&mut bytes));
            Buffer::opaque(Box::new(allocation), rows * width, dtype)
        };
        widths.iter().map(buffer).collect()
    }

    fn write(&self, dst: &mut Buffer, offset: usize, src: &[f32]) {
        check(dst, offset + src.len());
    }

    fn read(&self, dst: &mut [f32], src: &Buffer, offset: usize) -> Result<(), BackendError> {
        check(src, offset + dst.len());
        dst.fill(0.0);
        Ok(())
    }

    fn zero(&self, dst: &mut Buffer, len: usize) {
        check(dst, len);
    }

    fn add(&self, dst: &mut Buffer, src: &Buffer, len: usize) {
        check(dst, len);
        check(src, len);
        self.ledger.add_flops(len as u64);
    }

    fn copy_rows(
        &self,
        dst: &mut Buffer,
        dst_row: usize,
        src: &Buffer,
        src_row: usize,
        n: usize,
        cols: usize,
    ) {
        check(dst, (dst_row + n) * cols);
        check(src, (src_row + n) * cols);
    }

    fn gather_rows(&self, out: &mut Buffer, _inp: &Buffer, rows: &Indices, cols: usize) {
        check(out, rows.len() * cols);
    }

    fn gather_rows_backward(&self, dinp: &mut Buffer, n: usize, dout: &Buffer, rows: &Indices, cols: usize) {
        check(dinp, n * cols);
        check(dout, rows.len() * cols);
        self.ledger.add_flops((rows.len() * cols) as u64);
    }

    fn scatter_rows(&self, _out: [&mut Buffer; 2], inp: [&Buffer; 2], rows: &Indices, cols: usize) {
        inp.iter().for_each(|inp| check(inp, rows.len() * cols));
    }

    fn join_rows(&self, _out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize) {
        check(inp, rows.len() * cols);
    }

    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &Indices, _scale: f32) {
        check(out, ids.len() * table.cols());
    }

    fn add_bias(&self, out: &mut Buffer, bias: &Buffer, n: usize) {
        check(out, n * bias.len());
        self.ledger.add_flops((n * bias.len()) as u64);
    }

    fn scale_columns(
        &self,
        out: &mut Buffer,
        factors: &Buffer,
        offset: usize,
        rows: Range<usize>,
        cols: usize,
    ) {
        check(out, rows.end * cols);
        check(factors, offset + cols);
        self.ledger.add_flops((rows.len() * cols) as u64);
    }

    fn column_products(
        &self,
        dparams: &mut Buffer,
        at: usize,
        ColumnProducts { dout, out, scale, offset, cols }: ColumnProducts<'_>,
        rows: Range<usize>,
    ) {
        check(dparams, at + cols);
        check(scale, offset + cols);
        check(dout, rows.end * cols);
        check(out, rows.end * cols);
        self.ledger.add_flops(2 * (rows.len() * cols) as u64);
    }

    fn rmsnorm_forward(
        &self,
        out: &mut Buffer,
        rstd: &mut Buffer,
        inp: &Buffer,
        weight: &Buffer,
        _eps: f32,
        n: usize,
    ) {
        let len = n * weight.len();
        check(out, len);
        check(inp, len);
        check(rstd, n);
        self.ledger.add_flops(4 * len as u64);
    }

    fn rmsnorm_backward(
        &self,
        dinp: &mut Buffer,
        _store: Store,
        dout: &Buffer,
        saved: RmsnormSaved<'_>,
        n: usize,
    ) {
        let len = n * saved.weight.len();
        check(dinp, len);
        check(dout, len);
        check(saved.inp, len);
        check(saved.rstd, n);
        self.ledger.add_flops(8 * len as u64);
    }

    fn linear_forward(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        check(out, n * w.rows());
        check(inp, n * w.cols());
        self.product(n, w, (false, false), inp.dtype());
    }

    fn linear_decode(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        check(out, n * w.rows());
        check(inp, n * w.cols());
        self.product(n, w, (true, false), inp.dtype());
    }

    fn linear_backward(&self, dinp: &mut Buffer, _store: Store, dout: &Buffer, w: &Matrix, n: usize) {
        check(dinp, n * w.cols());
        check(dout, n * w.rows());
        self.product(n, w, (false, true), dout.dtype());
    }

    fn lora_forward(
        &self,
        out: &mut Buffer,
        mid: &mut Buffer,
        inp: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    ) {
        let LoraPair { lora, dropout } = pair;
        check(out, rows.end * lora.d_out);
        check(mid, rows.end * lora.rank);
        check(inp, rows.end * lora.d_in);
        let (dims, dropout) = (LoraDims::of(&lora), dropout.is_some());
        self.scratch(TracedOp::Lora { rows: rows.len(), dims, dropout, backward: false });
        self.ledger.add_flops(2 * (rows.len() * lora.rank * (lora.d_in + lora.d_out)) as u64);
    }

    fn lora_backward(
        &self,
        grads: LoraGrads<'_>,
        dout: &Buffer,
        inp: &Buffer,
        mid: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    ) {
        let (LoraPair { lora, dropout }, wanted) = (pair, grads.dinp.is_some());
        if let Some(dinp) = grads.dinp {
            check(dinp, rows.end * lora.d_in);
        }
        check(grads.dparams, lora.b + lora.d_out * lora.rank);
        check(dout, rows.end * lora.d_out);
        check(inp, rows.end * lora.d_in);
        check(mid, rows.end * lora.rank);
        let (dims, dropout) = (LoraDims::of(&lora), dropout.is_some());
        self.scratch(TracedOp::Lora { rows: rows.len(), dims, dropout, backward: true });
        let products = 2 * lora.d_out + if wanted { 2 } else { 1 } * lora.d_in;
        self.ledger.add_flops(2 * (rows.len() * lora.rank * products) as u64);
    }

    fn rope_forward(&self, q: &mut Buffer, k: &mut Buffer, operands: RopeOperands<'_>) {
        let RopeOperands { inv_freq, positions, tables, dims, rotation } = operands;
        let n = positions.len();
        check(q, n * dims.heads * dims.head_dim);
        check(k, n * dims.kv_heads * dims.head_dim);
        let (frequencies, tables) = (inv_freq.len(), tables.map_or(0, Indices::len));
        self.scratch(TracedOp::Rope { n, half: rotation.dim / 2, frequencies, tables });
        self.ledger.add_flops(3 * (n * (dims.heads + dims.kv_heads) * rotation.dim) as u64);
    }

    fn rope_backward(&self, dq: &mut Buffer, dk: &mut Buffer, operands: RopeOperands<'_>) {
        self.rope_forward(dq, dk, operands);
    }

    fn attention_forward(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        check_attention([out, lse], operands);
        let (segments, dims) = (operands.segments.values(), operands.dims);
        self.scratch(TracedOp::Attention { segments, dims, backward: false });
        self.attention(segments, (dims, operands.scores.window), false);
    }

    fn attention_decode(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        check_attention([out, lse], operands);
        let (segments, dims, window) = (operands.segments.values(), operands.dims, operands.scores.window);
        self.scratch(TracedOp::DecodeAttention { segments, dims, window });
        self.attention(segments, (dims, window), false);
    }

    fn attention_backward(
        &self,
        grads: AttentionGrads<'_>,
        _dout: &Buffer,
        _saved: AttentionSaved<'_>,
        operands: AttentionOperands<'_>,
    ) {
        let AttentionOperands { segments, dims, scores, .. } = operands;
        for s in segments.values() {
            check(grads.dq, (s.q_start + s.q_len) * dims.heads * dims.head_dim);
            check(grads.dk, (s.kv_start + s.kv_len) * dims.kv_heads * dims.head_dim);
            check(grads.dv, (s.kv_start + s.kv_len) * dims.kv_heads * dims.head_dim);
        }
        let segments = segments.values();
        self.scratch(TracedOp::Attention { segments, dims, backward: true });
        self.attention(segments, (dims, scores.window), true);
    }

    fn gated_forward(&self, out: &mut Buffer, operands: GatedOperands<'_>, len: usize) {
        for buffer in [&*out, operands.gate, operands.up] {
            check(buffer, len);
        }
        self.ledger.add_flops(5 * len as u64);
    }

    fn gated_backward(&self, grads: GatedGrads<'_>, dout: &Buffer, operands: GatedOperands<'_>, len: usize) {
        for buffer in [&*grads.dgate, &*grads.dup, dout, operands.gate, operands.up] {
            check(buffer, len);
        }
        self.ledger.add_flops(10 * len as u64);
    }

    fn head_loss(
        &self,
        losses: &mut Buffer,
        first: usize,
        operands: HeadOperands<'_>,
        grads: Option<HeadGrads<'_>>,
    ) {
        let HeadOperands { inp, head, targets, .. } = operands;
        let (n, v, c, gradient) = (targets.len(), head.rows(), head.cols(), grads.is_some());
        check(losses, first + n);
        check(inp, n * c);
        if let Some(grads) = grads {
            check(grads.dinp, n * c);
            check(grads.dloss, n);
        }
        self.scratch(TracedOp::Head { n, v, c, gradient });
        let products = if gradient { 2 } else { 1 };
        self.ledger.add_flops((n * v) as u64 * (2 * products * c as u64 + 5));
    }

    fn adamw(
        &self,
        params: &mut Buffer,
        grads: &Buffer,
        m: &mut Buffer,
        v: &mut Buffer,
        range: Range<usize>,
        _step: AdamW,
    ) {
        for buffer in [&*params, grads, &*m, &*v] {
            check(buffer, range.end);
        }
        self.ledger.add_flops(15 * range.len() as u64);
    }

    fn sum_of_squares(&self, _out: &mut Scalars, _at: usize, x: &Buffer, len: usize) {
        check(x, len);
        self.ledger.add_flops(2 * len as u64);
    }
}
