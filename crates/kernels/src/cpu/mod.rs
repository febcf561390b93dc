//! The CPU back end: blocked matrix multiplication, vector loops, and one thread pool.

mod disjoint_slice;
mod dropout;
pub(crate) mod head_loss;
pub(crate) mod lora;
pub(crate) mod pool;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Mutex;

use self::disjoint_slice::DisjointSlice;
use self::head_loss::HeadLoss;
use self::lora::{LowRank, decode_pairs, is_packed};
use self::pool::{Pool, Scratch, SendPtr, lock};
use crate::attention::{AttentionInputs, DecodeAttention};
use crate::backend::project_singly;
use crate::gemm::{Before, Gemm, Product, SkinnyGemm, View};
use crate::lora::LoraParams;
use crate::rope::RopeTable;
use crate::{
    AdamW, AttentionGrads, AttentionOperands, AttentionSaved, Backend, BackendError, Buffer, ColumnProducts,
    DType, Element, FamilyOperation, GatedGrads, GatedOperands, HeadGrads, HeadOperands, Indices, Isa,
    LoraGrads, LoraPair, Matrix, ProjectGroup, RmsnormSaved, RopeOperands, Scalars, Segment, Store, adamw,
    attention, rmsnorm, rope, row_ops,
};

/// Number of rows that one task of [`Backend::scatter_rows`] copies.
const SCATTERED_ROWS: usize = 8;

/// Options of a [`Cpu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Number of threads, including the calling thread. `None` selects the system's available parallelism.
    pub threads: Option<usize>,
    /// Instruction set. `None` selects the widest instruction set that this machine supports.
    pub isa: Option<Isa>,
    /// Type of the operands of matrix multiplications. With [`DType::Bf16`], both operands of a
    /// multiplication by a base weight are rounded to bf16, and sums are f32. If the instruction set
    /// multiplies bf16 pairs, attention also rounds its operands. With any other type, no operand is rounded.
    pub dtype: DType,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { threads: None, isa: None, dtype: DType::F32 }
    }
}

impl CpuOptions {
    /// Returns the instruction set, the number of threads, and whether matrix multiplications round to bf16.
    pub(crate) fn resolve(&self) -> (Isa, usize, bool) {
        let offered = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = self.threads.unwrap_or_else(offered).max(1);
        (self.isa.unwrap_or_else(Isa::detect), threads, self.dtype == DType::Bf16)
    }
}

/// Returns the name of a CPU back end with these options.
pub(crate) fn describe(isa: Isa, threads: usize, bf16: bool) -> String {
    let plural = if threads == 1 { "" } else { "s" };
    format!("cpu {isa}, {threads} thread{plural}, {}", if bf16 { "bf16" } else { "f32" })
}

/// The CPU back end. Buffers are in host memory. Weights are read in place, usually from a memory-mapped
/// file.
pub struct Cpu {
    isa: Isa,
    bf16: bool,
    pool: Pool,
    gemm: Gemm,
    skinny_gemm: SkinnyGemm,
    low_rank: LowRank,
    attention: attention::OperandFormat,
    /// Working memory that the tasks of [`Backend::attention_decode`] share.
    decode_attention: Mutex<Scratch>,
    head_loss: HeadLoss,
    rope: Mutex<RopeTable>,
}

impl Cpu {
    /// Starts a back end with its own threads.
    ///
    /// # Panics
    /// If this machine does not support `options.isa`. See [`Isa::is_supported`].
    pub fn new(options: CpuOptions) -> Self {
        let (isa, threads, bf16) = options.resolve();
        let pool = Pool::new(threads);
        let threads = pool.threads();
        Self {
            isa,
            bf16,
            gemm: Gemm::new(isa, bf16, threads),
            skinny_gemm: SkinnyGemm::new(isa, bf16),
            low_rank: LowRank::new(isa, threads),
            attention: attention::OperandFormat::new(isa, bf16),
            decode_attention: Mutex::default(),
            head_loss: HeadLoss::new(isa, bf16, threads),
            rope: Mutex::default(),
            pool,
        }
    }

    /// Returns the instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Returns the bytes of working memory. The attention buffers of the threads are not counted.
    #[cfg(test)]
    pub(crate) fn scratch_bytes(&self) -> crate::ScratchBytes {
        crate::ScratchBytes {
            products: self.gemm.allocated_bytes() + self.skinny_gemm.allocated_bytes(),
            low_rank: self.low_rank.allocated_bytes(),
            attention: lock(&self.decode_attention).allocated_bytes(),
            head: self.head_loss.allocated_bytes(),
            rope: lock(&self.rope).allocated_bytes(),
        }
    }

    /// Computes `out = inp Wᵀ` for a few rows.
    fn few_rows(&self, out: &mut [f32], inp: &[f32], w: &Matrix, n: usize) {
        self.skinny_gemm.forward(&self.pool, &mut [out], inp, (&[w], n), Before::NOTHING, |_, _, _| {});
    }

    /// Rotates every head of queries and keys, or of their gradients. The table of angles is recomputed only
    /// if the angles or the rotation differ from those of the previous call.
    fn rotate(&self, xs: [&mut Buffer; 2], operands: RopeOperands<'_>, backward: bool) {
        let (angles, rotation) = (operands.host_angles(), operands.rotation);
        let mut table = lock(&self.rope);
        if !table.is_for(angles, rotation) {
            *table = RopeTable::new(angles, rotation);
        }
        let table = &*table;
        for (x, heads) in xs.into_iter().zip(operands.heads()) {
            let cols = heads.heads * heads.head_dim;
            let x = DisjointSlice::new(x.host_slice_mut());
            self.pool.over_rows(angles.positions.len(), cols, |range| {
                // SAFETY: the ranges of the tasks are disjoint.
                let rows = unsafe { x.range(flat(&range, cols)) };
                rope::rotate_rows(self.isa, rows, table, range.start, heads, backward);
            });
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Returns the range of elements in a range of rows.
fn flat(rows: &Range<usize>, cols: usize) -> Range<usize> {
    rows.start * cols..rows.end * cols
}

impl Backend for Cpu {
    fn name(&self) -> String {
        describe(self.isa, self.pool.threads(), self.bf16)
    }

    fn row_invariant_from(&self) -> usize {
        SkinnyGemm::MAX_ROWS + 1
    }

    fn max_generated_rows(&self) -> usize {
        SkinnyGemm::MAX_GENERATED_ROWS
    }

    fn supports(&self, _operation: FamilyOperation) -> bool {
        true
    }

    fn run_host_tasks(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool.run(tasks, |index, _| task(index));
    }

    fn alloc(&self, len: usize, _element: Element) -> Buffer {
        Buffer::host(len)
    }

    fn write(&self, dst: &mut Buffer, offset: usize, src: &[f32]) {
        dst.host_slice_mut()[offset..][..src.len()].copy_from_slice(src);
    }

    fn read(&self, dst: &mut [f32], src: &Buffer, offset: usize) -> Result<(), BackendError> {
        let src = &src.host_slice()[offset..][..dst.len()];
        let (len, dst) = (dst.len(), DisjointSlice::new(dst));
        // SAFETY: the ranges of the tasks are disjoint.
        self.pool.over_rows(len, 1, |range| unsafe { dst.range(range.clone()) }.copy_from_slice(&src[range]));
        Ok(())
    }

    fn zero(&self, dst: &mut Buffer, len: usize) {
        let dst = DisjointSlice::new(&mut dst.host_slice_mut()[..len]);
        // SAFETY: the ranges of the tasks are disjoint.
        self.pool.over_rows(len, 1, |range| unsafe { dst.range(range) }.fill(0.0));
    }

    fn add(&self, dst: &mut Buffer, src: &Buffer, len: usize) {
        let (dst, src) = (DisjointSlice::new(&mut dst.host_slice_mut()[..len]), &src.host_slice()[..len]);
        // SAFETY: the ranges of the tasks are disjoint.
        self.pool.over_rows(len, 1, |range| row_ops::add(unsafe { dst.range(range.clone()) }, &src[range]));
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
        row_ops::copy_rows(dst.host_slice_mut(), dst_row, src.host_slice(), src_row, n, cols);
    }

    fn gather_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize) {
        let (out, inp, rows) = (DisjointSlice::new(out.host_slice_mut()), inp.host_slice(), rows.values());
        self.pool.over_rows(rows.len(), cols, |range| {
            // SAFETY: the ranges of the tasks are disjoint.
            let out = unsafe { out.range(flat(&range, cols)) };
            row_ops::gather_rows(out, inp, &rows[range], cols);
        });
    }

    fn gather_rows_backward(&self, dinp: &mut Buffer, n: usize, dout: &Buffer, rows: &Indices, cols: usize) {
        self.zero(dinp, n * cols);
        // One thread adds all rows, because `rows` may contain a row twice. There are so few rows that more
        // threads would not be faster.
        row_ops::add_rows(dinp.host_slice_mut(), dout.host_slice(), rows.values(), cols);
    }

    fn scatter_rows(&self, out: [&mut Buffer; 2], inp: [&Buffer; 2], rows: &Indices, cols: usize) {
        let rows = rows.values();
        let (out, inp) =
            (out.map(|out| DisjointSlice::new(out.host_slice_mut())), inp.map(Buffer::host_slice));
        // A row of the KV cache is usually in no processor cache, so copying it takes long enough to share
        // even a few rows among threads.
        self.pool.run(rows.len().div_ceil(SCATTERED_ROWS), |task, _| {
            for i in task * SCATTERED_ROWS..rows.len().min((task + 1) * SCATTERED_ROWS) {
                let row = rows[i] as usize;
                for (out, inp) in out.iter().zip(inp) {
                    // SAFETY: `rows` has no duplicates, so the rows of the tasks are disjoint.
                    let out = unsafe { out.range(row * cols..(row + 1) * cols) };
                    out.copy_from_slice(&inp[i * cols..][..cols]);
                }
            }
        });
    }

    fn join_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize) {
        row_ops::scatter_rows(out.host_slice_mut(), inp.host_slice(), rows.values(), cols);
    }

    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &Indices, scale: f32) {
        let (cols, ids) = (table.cols(), ids.values());
        let out = DisjointSlice::new(out.host_slice_mut());
        self.pool.over_rows(ids.len(), cols, |range| {
            // SAFETY: the ranges of the tasks are disjoint.
            let out = unsafe { out.range(flat(&range, cols)) };
            row_ops::embedding_forward(out, table, &ids[range], scale);
        });
    }

    fn add_bias(&self, out: &mut Buffer, bias: &Buffer, n: usize) {
        let (out, bias) = (DisjointSlice::new(out.host_slice_mut()), bias.host_slice());
        self.pool.over_rows(n, bias.len(), |range| {
            // SAFETY: the ranges of the tasks are disjoint.
            row_ops::add_bias(unsafe { out.range(flat(&range, bias.len())) }, bias);
        });
    }

    fn scale_columns(
        &self,
        out: &mut Buffer,
        factors: &Buffer,
        offset: usize,
        rows: Range<usize>,
        cols: usize,
    ) {
        let factors = &factors.host_slice()[offset..][..cols];
        let out = DisjointSlice::new(&mut out.host_slice_mut()[rows.start * cols..rows.end * cols]);
        self.pool.over_rows(rows.len(), cols, |range| {
            // SAFETY: the ranges of the tasks are disjoint.
            row_ops::scale_columns(unsafe { out.range(flat(&range, cols)) }, factors);
        });
    }

    fn column_products(
        &self,
        dparams: &mut Buffer,
        at: usize,
        ColumnProducts { dout, out, scale, offset, cols }: ColumnProducts<'_>,
        rows: Range<usize>,
    ) {
        let elements = rows.start * cols..rows.end * cols;
        let operands = (&dout.host_slice()[elements.clone()], &out.host_slice()[elements]);
        let scale = &scale.host_slice()[offset..][..cols];
        let sums = DisjointSlice::new(&mut dparams.host_slice_mut()[at..][..cols]);
        // One task adds up whole columns, so the number of threads does not change the result.
        self.pool.over_rows(cols, rows.len(), |columns| {
            // SAFETY: the ranges of the tasks are disjoint.
            let sums = unsafe { sums.range(columns.clone()) };
            row_ops::column_products(sums, operands, &scale[columns.clone()], columns, cols);
        });
    }

    fn rmsnorm_forward(
        &self,
        out: &mut Buffer,
        rstd: &mut Buffer,
        inp: &Buffer,
        weight: &Buffer,
        eps: f32,
        n: usize,
    ) {
        let (weight, inp) = (weight.host_slice(), inp.host_slice());
        let cols = weight.len();
        let (out, rstd) =
            (DisjointSlice::new(out.host_slice_mut()), DisjointSlice::new(rstd.host_slice_mut()));
        self.pool.over_rows(n, cols, |range| {
            let all = flat(&range, cols);
            // SAFETY: the ranges of the tasks are disjoint.
            let (out, rstd) = unsafe { (out.range(all.clone()), rstd.range(range)) };
            rmsnorm::forward_rows(self.isa, out, rstd, &inp[all], weight, eps);
        });
    }

    fn rmsnorm_backward(
        &self,
        dinp: &mut Buffer,
        store: Store,
        dout: &Buffer,
        saved: RmsnormSaved<'_>,
        n: usize,
    ) {
        let (weight, inp) = (saved.weight.host_slice(), saved.inp.host_slice());
        let (dout, rstd) = (dout.host_slice(), saved.rstd.host_slice());
        let cols = weight.len();
        let dinp = DisjointSlice::new(dinp.host_slice_mut());
        self.pool.over_rows(n, cols, |range| {
            let all = flat(&range, cols);
            // SAFETY: the ranges of the tasks are disjoint.
            let dinp = unsafe { dinp.range(all.clone()) };
            if store == Store::Overwrite {
                dinp.fill(0.0);
            }
            rmsnorm::backward_rows(self.isa, dinp, &dout[all.clone()], &inp[all], &rstd[range], weight);
        });
    }

    fn linear_forward(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        let (out, inp) = (out.host_slice_mut(), inp.host_slice());
        if n <= SkinnyGemm::MAX_ROWS {
            return self.few_rows(out, inp, w, n);
        }
        let (d_out, d_in) = (w.rows(), w.cols());
        let product = Product {
            c: out,
            ldc: d_out,
            a: View::f32(inp, d_in, 1),
            b: View::rows_of(w),
            m: n,
            n: d_out,
            k: d_in,
            alpha: 1.0,
            accumulate: false,
        };
        self.gemm.product(&self.pool, product);
    }

    fn linear_decode(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        let (out, inp) = (out.host_slice_mut(), inp.host_slice());
        self.few_rows(out, inp, w, n);
    }

    fn linear_backward(&self, dinp: &mut Buffer, store: Store, dout: &Buffer, w: &Matrix, n: usize) {
        let (d_out, d_in) = (w.rows(), w.cols());
        let product = Product {
            c: dinp.host_slice_mut(),
            ldc: d_in,
            a: View::f32(dout.host_slice(), d_out, 1),
            b: View::cols_of(w),
            m: n,
            n: d_in,
            k: d_out,
            alpha: 1.0,
            accumulate: store.accumulates(),
        };
        self.gemm.product(&self.pool, product);
    }

    fn lora_forward(
        &self,
        out: &mut Buffer,
        mid: &mut Buffer,
        inp: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    ) {
        let (out, mid, inp) = (out.host_slice_mut(), mid.host_slice_mut(), inp.host_slice());
        self.low_rank.forward(&self.pool, out, mid, inp, LoraParams::of(&pair), rows);
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
        let dinp = grads.dinp.map(Buffer::host_slice_mut);
        let dparams = pair.lora.grads(grads.dparams.host_slice_mut());
        let inputs = (dout.host_slice(), inp.host_slice(), mid.host_slice());
        self.low_rank.backward(&self.pool, dinp, dparams, inputs, LoraParams::of(&pair), rows);
    }

    fn project(
        &self,
        out: &mut [&mut Buffer],
        mid: &mut [&mut Buffer],
        inp: &Buffer,
        group: ProjectGroup<'_>,
        residual: Option<&Buffer>,
        n: usize,
    ) {
        let is_few = n <= SkinnyGemm::MAX_ROWS || group.is_generated;
        if !is_few || !is_packed(group.lora) {
            return project_singly(self, out, mid, inp, group, residual, n);
        }
        assert!(residual.is_none() || group.weights.len() == 1, "a residual beside several weights");
        let (inp, residual) = (inp.host_slice(), residual.map(Buffer::host_slice));
        let pairs = decode_pairs(mid, inp, &group, n);
        let shrink = lora::shrink_tasks(&pairs);
        let before = Before {
            tasks: shrink.len(),
            run: &|task| self.low_rank.shrink(inp, &pairs, &shrink[task]),
            prefetch: &|weight, cols| lora::prefetch_columns(&pairs, weight, cols),
        };
        let mut out: Vec<&mut [f32]> = out.iter_mut().map(|out| out.host_slice_mut()).collect();
        self.skinny_gemm.forward(&self.pool, &mut out, inp, (group.weights, n), before, |i, out, cols| {
            let d_out = group.weights[i].rows();
            // SAFETY: `out` has `n` rows, and only this task accesses these columns.
            unsafe { self.low_rank.expand(out, &pairs, i, cols.clone()) };
            let Some(residual) = residual else { return };
            for row in 0..n {
                let cells = row * d_out + cols.start..row * d_out + cols.end;
                // SAFETY: `out` has `n` rows, and only this task accesses these columns.
                let out = unsafe { std::slice::from_raw_parts_mut(out.at(cells.start), cells.len()) };
                row_ops::add(out, &residual[cells]);
            }
        });
    }

    fn rope_forward(&self, q: &mut Buffer, k: &mut Buffer, operands: RopeOperands<'_>) {
        self.rotate([q, k], operands, false);
    }

    fn rope_backward(&self, dq: &mut Buffer, dk: &mut Buffer, operands: RopeOperands<'_>) {
        self.rotate([dq, dk], operands, true);
    }

    fn attention_forward(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        let inputs = AttentionInputs::of(&operands);
        let AttentionInputs { segments, dims, .. } = inputs;
        let (out, lse) = (out.host_slice_mut(), lse.host_slice_mut());
        let rows = check_disjoint(segments, |s| s.q_start..s.q_start + s.q_len);
        assert!(out.len() >= rows * dims.heads * dims.head_dim && lse.len() >= rows * dims.heads);
        let (out, lse) = (SendPtr(out.as_mut_ptr()), SendPtr(lse.as_mut_ptr()));
        let tasks = attention::forward_tasks(segments, dims);
        self.pool.run(tasks.len(), |index, _| {
            // SAFETY: the outputs contain the rows of every segment, and no two segments share a row. The
            // tasks of one segment write different heads or queries.
            unsafe { attention::forward_task(self.attention, out.at(0), lse.at(0), inputs, &tasks[index]) };
        });
    }

    fn attention_decode(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        let inputs = AttentionInputs::of(&operands);
        let AttentionInputs { segments, dims, scores, .. } = inputs;
        let (out, lse) = (out.host_slice_mut(), lse.host_slice_mut());
        let rows = check_disjoint(segments, |s| s.q_start..s.q_start + s.q_len);
        assert!(out.len() >= rows * dims.heads * dims.head_dim && lse.len() >= rows * dims.heads);
        let (out, lse) = (SendPtr(out.as_mut_ptr()), SendPtr(lse.as_mut_ptr()));
        let decode = DecodeAttention::new(self.attention, inputs, self.pool.threads());
        let mut shared = lock(&self.decode_attention);
        let shared = shared.at_least(attention::shared_len(segments, dims, scores.window));
        let shared = SendPtr(shared.as_mut_ptr());
        // SAFETY: the outputs contain the rows of every segment, and no two segments share a row. `shared`
        // has the length that the tasks need, and the pool runs each task once.
        self.pool.run(decode.tasks(), |task, _| unsafe { decode.run(task, shared, out.at(0), lse.at(0)) });
    }

    fn attention_backward(
        &self,
        grads: AttentionGrads<'_>,
        dout: &Buffer,
        saved: AttentionSaved<'_>,
        operands: AttentionOperands<'_>,
    ) {
        let inputs = AttentionInputs::of(&operands);
        let AttentionInputs { segments, dims, .. } = inputs;
        let (dout, out, lse) = (dout.host_slice(), saved.out.host_slice(), saved.lse.host_slice());
        let [dq, dk, dv] = [grads.dq, grads.dk, grads.dv].map(Buffer::host_slice_mut);
        let q_rows = check_disjoint(segments, |s| s.q_start..s.q_start + s.q_len);
        let kv_len =
            check_disjoint(segments, |s| s.kv_start..s.kv_start + s.kv_len) * dims.kv_heads * dims.head_dim;
        assert!(dq.len() >= q_rows * dims.heads * dims.head_dim && dk.len() >= kv_len && dv.len() >= kv_len);
        let grads = [dq, dk, dv].map(|grad| SendPtr(grad.as_mut_ptr()));
        let tasks = attention::backward_tasks(segments, dims);
        self.pool.run(tasks.len(), |index, _| {
            let grads = grads.map(|grad| grad.at(0));
            // SAFETY: the outputs contain the rows of every segment, and no two segments share a row. One
            // task processes one key head of a segment, and all query heads that read this key head.
            unsafe { attention::backward_task(self.attention, grads, dout, out, lse, inputs, &tasks[index]) };
        });
    }

    fn gated_forward(&self, out: &mut Buffer, operands: GatedOperands<'_>, len: usize) {
        let [gate, up] = [operands.gate, operands.up].map(Buffer::host_slice);
        let out = DisjointSlice::new(out.host_slice_mut());
        self.pool.over_rows(len, 1, |range| {
            // SAFETY: the ranges of the tasks are disjoint.
            let out = unsafe { out.range(range.clone()) };
            operands.activation.forward_rows(self.isa, out, &gate[range.clone()], &up[range]);
        });
    }

    fn gated_backward(&self, grads: GatedGrads<'_>, dout: &Buffer, operands: GatedOperands<'_>, len: usize) {
        let inputs = [dout, operands.gate, operands.up].map(Buffer::host_slice);
        let [dgate, dup] = [grads.dgate, grads.dup].map(|grad| DisjointSlice::new(grad.host_slice_mut()));
        self.pool.over_rows(len, 1, |range| {
            // SAFETY: the ranges of the tasks are disjoint.
            let (dgate, dup) = unsafe { (dgate.range(range.clone()), dup.range(range.clone())) };
            let [dout, gate, up] = inputs.map(|input| &input[range.clone()]);
            operands.activation.backward_rows(self.isa, dgate, dup, dout, gate, up);
        });
    }

    fn head_loss(
        &self,
        losses: &mut Buffer,
        first: usize,
        operands: HeadOperands<'_>,
        grads: Option<HeadGrads<'_>>,
    ) {
        let HeadOperands { inp, head, targets, softcap } = operands;
        let grads = grads.map(|grads| (grads.dinp.host_slice_mut(), grads.dloss.host_slice()));
        let losses = &mut losses.host_slice_mut()[first..];
        self.head_loss.loss(&self.pool, losses, grads, inp.host_slice(), (head, softcap), targets.values());
    }

    fn adamw(
        &self,
        params: &mut Buffer,
        grads: &Buffer,
        m: &mut Buffer,
        v: &mut Buffer,
        range: Range<usize>,
        step: AdamW,
    ) {
        let [params, m, v] =
            [params, m, v].map(|buffer| DisjointSlice::new(&mut buffer.host_slice_mut()[range.clone()]));
        let grads = &grads.host_slice()[range.clone()];
        self.pool.over_rows(range.len(), 1, |range| {
            // SAFETY: the ranges of the tasks are disjoint.
            let (params, m, v) =
                unsafe { (params.range(range.clone()), m.range(range.clone()), v.range(range.clone())) };
            adamw::step_range(self.isa, params, &grads[range], m, v, step);
        });
    }

    fn sum_of_squares(&self, out: &mut Scalars, at: usize, x: &Buffer, len: usize) {
        // The chunks have a fixed size and their sums are added in order, so the number of threads does not
        // change the result.
        const CHUNK: usize = 64 << 10;
        let chunks: Vec<&[f32]> = x.host_slice()[..len].chunks(CHUNK).collect();
        let sums: Vec<_> = chunks.iter().map(|_| std::sync::OnceLock::new()).collect();
        self.pool.run(chunks.len(), |index, _| {
            let _ = sums[index].set(adamw::sum_of_squares_chunk(self.isa, chunks[index]));
        });
        out.values_mut()[at] = sums.iter().filter_map(|sum| sum.get()).sum();
    }
}

/// Returns the end of the last row range. Panics if two segments share a row.
fn check_disjoint(segments: &[Segment], rows: impl Fn(&Segment) -> Range<usize>) -> usize {
    let mut ranges: Vec<_> = segments.iter().map(rows).filter(|r| !r.is_empty()).collect();
    ranges.sort_by_key(|r| r.start);
    assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start), "overlapping segments");
    ranges.last().map_or(0, |r| r.end)
}
