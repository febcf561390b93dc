//! The back end that computes nothing: it books the bytes that [`Cpu`](crate::Cpu) would hold, and the work it
//! would do, while the very same code runs over it.

mod ledger;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

pub use self::ledger::{Footprint, ScratchBytes};
use self::ledger::{Ledger, ScratchPool};
use crate::cpu::head_loss::HeadLoss;
use crate::cpu::lora::{LowRank, Sizes};
use crate::cpu::pool::Scratch;
use crate::cpu::{CpuOptions, describe};
use crate::gemm::{Gemm, SkinnyGemm};
use crate::lora::LoraDims;
use crate::rope::RopeTable;
use crate::{
    AdamW, AttentionDims, AttentionGrads, AttentionOperands, AttentionSaved, Backend, BackendError, Buffer,
    DType, Element, HeadGrads, HeadOperands, Indices, Isa, LoraGrads, LoraPair, Matrix, RmsnormSaved,
    Scalars, Segment, Store, attention,
};

/// Ledger what a [`Cpu`](crate::Cpu) of the same options would use. Whatever is read from it is zero.
///
/// Working memory comes from the functions by which `Cpu` sizes its own; every thread is taken to have met the
/// largest task.
#[derive(Debug)]
pub struct Trace {
    isa: Isa,
    threads: usize,
    bf16: bool,
    ledger: Ledger,
}

impl Trace {
    /// A trace of a [`Cpu`](crate::Cpu) with these options.
    ///
    /// # Panics
    /// If `options.isa` is not supported by this machine, see [`Isa::is_supported`].
    pub fn new(options: CpuOptions) -> Self {
        let (isa, threads, bf16) = options.resolve();
        assert!(isa.is_supported(), "this machine does not run {isa}");
        Self { isa, threads, bf16, ledger: Ledger::default() }
    }

    /// Bytes and work so far.
    pub fn footprint(&self) -> Footprint {
        self.ledger.footprint()
    }

    /// Forgets peak, working memory and work; buffers that are alive stay booked.
    pub fn restart(&self) {
        self.ledger.restart();
    }

    /// A frozen weight of this shape, without elements.
    pub fn matrix(rows: usize, cols: usize) -> Matrix {
        Matrix::opaque(Arc::new(()), rows, cols)
    }

    /// The working memory of one product with the base, and its work.
    fn product(&self, m: usize, n: usize, k: usize) {
        let gemm = Gemm::new(self.isa, self.bf16, self.threads);
        let [a, b] = gemm.scratch(self.threads, m, n, k);
        self.ledger.grow(ScratchPool::Products(0), Scratch::bytes(a));
        self.ledger.grow(ScratchPool::Products(1), self.threads as u64 * Scratch::bytes(b));
        self.ledger.add_flops(2 * (m * n) as u64 * k as u64);
    }

    fn low_rank(&self, Sizes { shared, own }: Sizes) {
        for (i, len) in shared.into_iter().enumerate() {
            self.ledger.grow(ScratchPool::LowRank(i), Scratch::bytes(len));
        }
        for (i, len) in own.into_iter().enumerate() {
            self.ledger
                .grow(ScratchPool::LowRank(shared.len() + i), self.threads as u64 * Scratch::bytes(len));
        }
    }

    /// Each thread's tiles of the largest task, and the work of `products` products over the keys that each query sees.
    fn attention(
        &self,
        tasks: &[attention::Task],
        len: fn(attention::OperandFormat, &attention::Task, AttentionDims) -> usize,
        segments: &[Segment],
        dims: AttentionDims,
        products: u64,
    ) {
        let format = attention::OperandFormat::new(self.isa, self.bf16);
        let largest = tasks.iter().map(|task| len(format, task, dims)).max().unwrap_or(0);
        self.ledger.grow(ScratchPool::Attention, self.threads as u64 * Scratch::bytes(largest));
        let seen = |s: &Segment| {
            let (q, past) = (s.q_len as u64, (s.kv_len - s.q_len) as u64);
            q * past + q * (q + 1) / 2
        };
        let pairs: u64 = segments.iter().map(seen).sum();
        self.ledger.add_flops(2 * products * pairs * (dims.heads * dims.head_dim) as u64);
    }
}

/// Panics where a buffer is shorter than `Cpu` would need it: a plan of a wrong shape is worth nothing.
fn check(buffer: &Buffer, len: usize) {
    assert!(buffer.len() >= len, "a buffer of {} elements where {len} are needed", buffer.len());
}

impl Backend for Trace {
    fn name(&self) -> String {
        format!("trace of {}", describe(self.isa, self.threads, self.bf16))
    }

    fn row_invariant_from(&self) -> usize {
        SkinnyGemm::MAX_ROWS + 1
    }

    fn alloc(&self, len: usize, _element: Element) -> Buffer {
        let dtype = DType::F32;
        Buffer::opaque(Box::new(self.ledger.alloc((dtype.size() * len) as u64)), len, dtype)
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

    fn scatter_rows(&self, _out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize) {
        check(inp, rows.len() * cols);
    }

    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &Indices) {
        check(out, ids.len() * table.cols());
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
        if n <= SkinnyGemm::MAX_ROWS {
            let words = SkinnyGemm::new(self.isa, self.bf16).scratch(n, w.cols());
            self.ledger.grow(ScratchPool::Products(2), Scratch::bytes(words));
            return self.ledger.add_flops(2 * (n * w.rows()) as u64 * w.cols() as u64);
        }
        self.product(n, w.rows(), w.cols());
    }

    fn linear_backward(&self, dinp: &mut Buffer, _store: Store, dout: &Buffer, w: &Matrix, n: usize) {
        check(dinp, n * w.cols());
        check(dout, n * w.rows());
        self.product(n, w.cols(), w.rows());
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
        let low_rank = LowRank::new(self.isa, 0);
        self.low_rank(low_rank.forward_sizes(rows.len(), LoraDims::of(&lora), dropout.is_some()));
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
        let low_rank = LowRank::new(self.isa, 0);
        self.low_rank(low_rank.backward_sizes(rows.len(), LoraDims::of(&lora), dropout.is_some()));
        let products = 2 * lora.d_out + if wanted { 2 } else { 1 } * lora.d_in;
        self.ledger.add_flops(2 * (rows.len() * lora.rank * products) as u64);
    }

    fn rope_forward(
        &self,
        q: &mut Buffer,
        k: &mut Buffer,
        inv_freq: &Buffer,
        positions: &Indices,
        dims: AttentionDims,
    ) {
        let n = positions.len();
        check(q, n * dims.heads * dims.head_dim);
        check(k, n * dims.kv_heads * dims.head_dim);
        self.ledger.grow(ScratchPool::Rope, RopeTable::bytes(inv_freq.len(), n));
        self.ledger.add_flops(3 * (n * (dims.heads + dims.kv_heads) * dims.head_dim) as u64);
    }

    fn rope_backward(
        &self,
        dq: &mut Buffer,
        dk: &mut Buffer,
        inv_freq: &Buffer,
        positions: &Indices,
        dims: AttentionDims,
    ) {
        self.rope_forward(dq, dk, inv_freq, positions, dims);
    }

    fn attention_forward(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        let AttentionOperands { q, k, v, segments, dims } = operands;
        for s in segments.values() {
            check(out, (s.q_start + s.q_len) * dims.heads * dims.head_dim);
            check(q, (s.q_start + s.q_len) * dims.heads * dims.head_dim);
            check(lse, (s.q_start + s.q_len) * dims.heads);
            check(k, (s.kv_start + s.kv_len) * dims.kv_heads * dims.head_dim);
            check(v, (s.kv_start + s.kv_len) * dims.kv_heads * dims.head_dim);
        }
        let tasks = attention::forward_tasks(segments.values(), dims);
        self.attention(&tasks, attention::forward_len, segments.values(), dims, 2);
    }

    fn attention_backward(
        &self,
        grads: AttentionGrads<'_>,
        _dout: &Buffer,
        _saved: AttentionSaved<'_>,
        operands: AttentionOperands<'_>,
    ) {
        let AttentionOperands { segments, dims, .. } = operands;
        for s in segments.values() {
            check(grads.dq, (s.q_start + s.q_len) * dims.heads * dims.head_dim);
            check(grads.dk, (s.kv_start + s.kv_len) * dims.kv_heads * dims.head_dim);
            check(grads.dv, (s.kv_start + s.kv_len) * dims.kv_heads * dims.head_dim);
        }
        let tasks = attention::backward_tasks(segments.values(), dims);
        self.attention(&tasks, attention::backward_len, segments.values(), dims, 5);
    }

    fn swiglu_forward(&self, out: &mut Buffer, gate: &Buffer, up: &Buffer, len: usize) {
        check(out, len);
        check(gate, len);
        check(up, len);
        self.ledger.add_flops(5 * len as u64);
    }

    fn swiglu_backward(
        &self,
        dgate: &mut Buffer,
        dup: &mut Buffer,
        dout: &Buffer,
        gate: &Buffer,
        up: &Buffer,
        len: usize,
    ) {
        for buffer in [&*dgate, &*dup, dout, gate, up] {
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
        let HeadOperands { inp, head, targets } = operands;
        let (n, v, c, gradient) = (targets.len(), head.rows(), head.cols(), grads.is_some());
        check(losses, first + n);
        check(inp, n * c);
        if let Some(grads) = grads {
            check(grads.dinp, n * c);
            check(grads.dloss, n);
        }
        let scratch = HeadLoss::new(self.isa, self.bf16, 0).scratch(self.threads, n, (v, c), gradient);
        self.ledger.grow(ScratchPool::Head(0), Scratch::bytes(scratch[0]));
        self.ledger.grow(ScratchPool::Head(1), self.threads as u64 * Scratch::bytes(scratch[1]));
        let products = if gradient { 2 } else { 1 };
        self.ledger.add_flops((n * v) as u64 * (2 * products * c as u64 + 5));
    }

    fn adamw(
        &self,
        params: &mut Buffer,
        grads: &Buffer,
        m: &mut Buffer,
        v: &mut Buffer,
        len: usize,
        _step: AdamW,
    ) {
        for buffer in [&*params, grads, &*m, &*v] {
            check(buffer, len);
        }
        self.ledger.add_flops(15 * len as u64);
    }

    fn sum_of_squares(&self, _out: &mut Scalars, _at: usize, x: &Buffer, len: usize) {
        check(x, len);
        self.ledger.add_flops(2 * len as u64);
    }
}
