//! Measures the time of every operation of another back end.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::backend::project_singly;
use crate::cpu::pool::lock;
use crate::{
    AdamW, AttentionGrads, AttentionOperands, AttentionSaved, Backend, BackendError, Buffer, ColumnProducts,
    DeviceMemory, Element, FamilyOperation, FourBitFormat, GatedGrads, GatedOperands, HeadGrads,
    HeadOperands, Indices, LoraGrads, LoraPair, LoraRef, Matrix, PassSize, ProjectGroup, RmsnormSaved,
    RopeOperands, Scalars, Segment, Segments, Store,
};

/// The calls of one operation with one shape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProfileRow {
    /// Number of calls.
    pub calls: u64,
    /// Seconds of all calls.
    pub seconds: f64,
    /// Floating-point operations of all calls. They are counted only for matrix products and attention, and
    /// are 0 for other operations.
    pub flops: f64,
}

/// A back end that passes every operation to another back end, and measures the time of the operation. That
/// back end must finish each operation before the call returns, as [`Cpu`](crate::Cpu) does.
#[derive(Debug)]
pub struct Profile {
    inner: Arc<dyn Backend>,
    measured: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    rows: BTreeMap<String, ProfileRow>,
    /// Time until the last pause.
    seconds: f64,
    /// Start of the measurement, or `None` during a pause.
    start: Option<Instant>,
}

impl Measured {
    fn pause(&mut self) {
        self.seconds += self.start.take().map_or(0.0, |start| start.elapsed().as_secs_f64());
    }
}

impl Profile {
    /// Wraps `inner`. Nothing is measured before [`Profile::resume`].
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, measured: Mutex::default() }
    }

    /// Discards all measurements so far.
    pub fn clear(&self) {
        *lock(&self.measured) = Measured::default();
    }

    /// Starts the measurement, or continues it after a pause.
    pub fn resume(&self) {
        lock(&self.measured).start.get_or_insert_with(Instant::now);
    }

    /// Stops the measurement until [`Profile::resume`].
    pub fn pause(&self) {
        lock(&self.measured).pause();
    }

    /// Stops the measurement. Returns the measured time in seconds, and the operations with their shapes, the
    /// slowest first. The measured time includes the time outside all operations.
    pub fn finish(&self) -> (f64, Vec<(String, ProfileRow)>) {
        let mut measured = lock(&self.measured);
        measured.pause();
        let mut rows: Vec<_> = measured.rows.iter().map(|(name, row)| (name.clone(), *row)).collect();
        rows.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
        (measured.seconds, rows)
    }

    /// Runs an operation, and adds its time to the row `name`.
    fn timed<T>(&self, name: impl Into<String>, flops: f64, run: impl FnOnce(&dyn Backend) -> T) -> T {
        let start = Instant::now();
        let result = run(&*self.inner);
        let seconds = start.elapsed().as_secs_f64();
        let mut measured = lock(&self.measured);
        if measured.start.is_some() {
            let row = measured.rows.entry(name.into()).or_default();
            row.calls += 1;
            row.seconds += seconds;
            row.flops += flops;
        }
        result
    }

    /// Runs a multiplication of `n` rows by a weight.
    fn product(&self, name: &str, n: usize, w: &Matrix, run: impl FnOnce(&dyn Backend)) {
        let (d_out, d_in) = (w.rows(), w.cols());
        let flops = 2.0 * n as f64 * d_out as f64 * d_in as f64;
        self.timed(format!("{name} {n} x {d_in} x {d_out}"), flops, run);
    }

    /// Runs a low-rank operation with `count` multiplications by each of `A` and `B`.
    fn low_rank(
        &self,
        name: &str,
        (n, lora): (usize, LoraRef<'_>),
        count: f64,
        run: impl FnOnce(&dyn Backend),
    ) {
        let LoraRef { rank, d_in, d_out, .. } = lora;
        let flops = 2.0 * count * (n * rank * (d_in + d_out)) as f64;
        self.timed(format!("{name} {n} x {d_in} x {d_out}, r {rank}"), flops, run);
    }

    /// Runs attention with `count` products for each pair of a query and a visible key.
    fn attention(
        &self,
        name: &str,
        AttentionOperands { segments, dims, .. }: AttentionOperands<'_>,
        count: f64,
        run: impl FnOnce(&dyn Backend),
    ) {
        let pairs = |s: &Segment| (s.q_len * (2 * s.kv_len - s.q_len + 1)) as f64 / 2.0;
        let pairs: f64 = segments.values().iter().map(pairs).sum();
        self.timed(name, 2.0 * count * pairs * (dims.heads * dims.head_dim) as f64, run);
    }
}

impl Backend for Profile {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn row_invariant_from(&self) -> usize {
        self.inner.row_invariant_from()
    }

    fn max_generated_rows(&self) -> usize {
        self.inner.max_generated_rows()
    }

    fn needs_loss_scale(&self) -> bool {
        self.inner.needs_loss_scale()
    }

    fn computes(&self) -> bool {
        self.inner.computes()
    }

    fn supports(&self, operation: FamilyOperation) -> bool {
        self.inner.supports(operation)
    }

    fn run_host_tasks(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.timed("run_host_tasks", 0.0, |be| be.run_host_tasks(tasks, task));
    }

    fn alloc(&self, len: usize, element: Element) -> Buffer {
        self.timed("alloc", 0.0, |be| be.alloc(len, element))
    }

    fn alloc_rows(&self, rows: usize, widths: &[usize], element: Element) -> Vec<Buffer> {
        self.timed("alloc", 0.0, |be| be.alloc_rows(rows, widths, element))
    }

    fn alloc_scalars(&self, len: usize) -> Scalars {
        self.inner.alloc_scalars(len)
    }

    fn write(&self, dst: &mut Buffer, offset: usize, src: &[f32]) {
        self.timed("write", 0.0, |be| be.write(dst, offset, src));
    }

    fn read(&self, dst: &mut [f32], src: &Buffer, offset: usize) -> Result<(), BackendError> {
        self.timed("read", 0.0, |be| be.read(dst, src, offset))
    }

    fn read_scalars(&self, dst: &mut [f64], src: &Scalars) -> Result<(), BackendError> {
        self.inner.read_scalars(dst, src)
    }

    fn place(&self, group: &[Matrix]) -> Result<Vec<Matrix>, BackendError> {
        self.inner.place(group)
    }

    fn place_encoded(
        &self,
        group: &[Matrix],
        format: FourBitFormat,
    ) -> Result<Option<Vec<Matrix>>, BackendError> {
        self.inner.place_encoded(group, format)
    }

    fn device_memory(&self) -> Option<DeviceMemory> {
        self.inner.device_memory()
    }

    fn upload(&self, dst: &mut Indices, values: &[u32]) {
        self.inner.upload(dst, values);
    }

    fn upload_segments(&self, dst: &mut Segments, values: &[Segment]) {
        self.inner.upload_segments(dst, values);
    }

    fn reserve(&self, largest: PassSize) {
        self.inner.reserve(largest);
    }

    fn run_sequence(&self, operations: &mut dyn FnMut()) {
        self.inner.run_sequence(operations);
    }

    fn zero(&self, dst: &mut Buffer, len: usize) {
        self.timed("zero", 0.0, |be| be.zero(dst, len));
    }

    fn add(&self, dst: &mut Buffer, src: &Buffer, len: usize) {
        self.timed("add", 0.0, |be| be.add(dst, src, len));
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
        self.timed("copy_rows", 0.0, |be| be.copy_rows(dst, dst_row, src, src_row, n, cols));
    }

    fn gather_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize) {
        self.timed("gather_rows", 0.0, |be| be.gather_rows(out, inp, rows, cols));
    }

    fn gather_rows_backward(&self, dinp: &mut Buffer, n: usize, dout: &Buffer, rows: &Indices, cols: usize) {
        self.timed("gather_rows_backward", 0.0, |be| be.gather_rows_backward(dinp, n, dout, rows, cols));
    }

    fn scatter_rows(&self, out: [&mut Buffer; 2], inp: [&Buffer; 2], rows: &Indices, cols: usize) {
        self.timed("scatter_rows", 0.0, |be| be.scatter_rows(out, inp, rows, cols));
    }

    fn join_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize) {
        self.timed("join_rows", 0.0, |be| be.join_rows(out, inp, rows, cols));
    }

    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &Indices, scale: f32) {
        self.timed("embedding_forward", 0.0, |be| be.embedding_forward(out, table, ids, scale));
    }

    fn add_bias(&self, out: &mut Buffer, bias: &Buffer, n: usize) {
        self.timed("add_bias", 0.0, |be| be.add_bias(out, bias, n));
    }

    fn scale_columns(
        &self,
        out: &mut Buffer,
        factors: &Buffer,
        offset: usize,
        rows: Range<usize>,
        cols: usize,
    ) {
        self.timed("scale_columns", 0.0, |be| be.scale_columns(out, factors, offset, rows, cols));
    }

    fn column_products(
        &self,
        dparams: &mut Buffer,
        at: usize,
        operands: ColumnProducts<'_>,
        rows: Range<usize>,
    ) {
        self.timed("column_products", 0.0, |be| be.column_products(dparams, at, operands, rows));
    }

    fn row_norms(&self, norms: &mut Buffer, at: usize, w: &Matrix, lora: LoraRef<'_>) -> bool {
        self.timed("row_norms", 0.0, |be| be.row_norms(norms, at, w, lora))
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
        self.timed("rmsnorm_forward", 0.0, |be| be.rmsnorm_forward(out, rstd, inp, weight, eps, n));
    }

    fn rmsnorm_backward(
        &self,
        dinp: &mut Buffer,
        store: Store,
        dout: &Buffer,
        saved: RmsnormSaved<'_>,
        n: usize,
    ) {
        self.timed("rmsnorm_backward", 0.0, |be| be.rmsnorm_backward(dinp, store, dout, saved, n));
    }

    fn linear_forward(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        self.product("linear_forward", n, w, |be| be.linear_forward(out, inp, w, n));
    }

    fn linear_decode(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        self.product("linear_decode", n, w, |be| be.linear_decode(out, inp, w, n));
    }

    fn linear_backward(&self, dinp: &mut Buffer, store: Store, dout: &Buffer, w: &Matrix, n: usize) {
        self.product("linear_backward", n, w, |be| be.linear_backward(dinp, store, dout, w, n));
    }

    fn lora_forward(
        &self,
        out: &mut Buffer,
        mid: &mut Buffer,
        inp: &Buffer,
        pair: LoraPair<'_>,
        rows: Range<usize>,
    ) {
        let run = |be: &dyn Backend| be.lora_forward(out, mid, inp, pair, rows.clone());
        self.low_rank("lora_forward", (rows.len(), pair.lora), 1.0, run);
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
        let run = |be: &dyn Backend| be.lora_backward(grads, dout, inp, mid, pair, rows.clone());
        self.low_rank("lora_backward", (rows.len(), pair.lora), 2.0, run);
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
        // `Cpu` runs the operations of many rows one by one, so each of them has a row of its own.
        if !group.is_generated && n >= self.row_invariant_from() {
            return project_singly(self, out, mid, inp, group, residual, n);
        }
        let elements: usize = group.weights.iter().map(|w| w.rows() * w.cols()).sum();
        let outs: Vec<String> = group.weights.iter().map(|w| w.rows().to_string()).collect();
        let adapters = match group.lora.len() {
            0 => String::new(),
            count => format!(", {count} adapters"),
        };
        let name = format!("project {n} x {} x {}{adapters}", group.weights[0].cols(), outs.join("+"));
        let flops = 2.0 * n as f64 * elements as f64;
        self.timed(name, flops, |be| be.project(out, mid, inp, group, residual, n));
    }

    fn rope_forward(&self, q: &mut Buffer, k: &mut Buffer, operands: RopeOperands<'_>) {
        self.timed("rope_forward", 0.0, |be| be.rope_forward(q, k, operands));
    }

    fn rope_backward(&self, dq: &mut Buffer, dk: &mut Buffer, operands: RopeOperands<'_>) {
        self.timed("rope_backward", 0.0, |be| be.rope_backward(dq, dk, operands));
    }

    fn attention_forward(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        self.attention("attention_forward", operands, 2.0, |be| be.attention_forward(out, lse, operands));
    }

    fn attention_decode(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        self.attention("attention_decode", operands, 2.0, |be| be.attention_decode(out, lse, operands));
    }

    fn attention_backward(
        &self,
        grads: AttentionGrads<'_>,
        dout: &Buffer,
        saved: AttentionSaved<'_>,
        operands: AttentionOperands<'_>,
    ) {
        let run = |be: &dyn Backend| be.attention_backward(grads, dout, saved, operands);
        self.attention("attention_backward", operands, 5.0, run);
    }

    fn gated_forward(&self, out: &mut Buffer, operands: GatedOperands<'_>, len: usize) {
        self.timed("gated_forward", 0.0, |be| be.gated_forward(out, operands, len));
    }

    fn gated_backward(&self, grads: GatedGrads<'_>, dout: &Buffer, operands: GatedOperands<'_>, len: usize) {
        self.timed("gated_backward", 0.0, |be| be.gated_backward(grads, dout, operands, len));
    }

    fn head_loss(
        &self,
        losses: &mut Buffer,
        first: usize,
        operands: HeadOperands<'_>,
        grads: Option<HeadGrads<'_>>,
    ) {
        let HeadOperands { head, targets, .. } = operands;
        // The gradient needs a second product.
        let rows = if grads.is_some() { 2 * targets.len() } else { targets.len() };
        let flops = 2.0 * (rows * head.rows()) as f64 * head.cols() as f64;
        let name = format!("head_loss {} x {} x {}", targets.len(), head.cols(), head.rows());
        self.timed(name, flops, |be| be.head_loss(losses, first, operands, grads));
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
        self.timed("adamw", 0.0, |be| be.adamw(params, grads, m, v, range, step));
    }

    fn sum_of_squares(&self, out: &mut Scalars, at: usize, x: &Buffer, len: usize) {
        self.timed("sum_of_squares", 0.0, |be| be.sum_of_squares(out, at, x, len));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reference;

    #[test]
    fn every_call_has_a_row_with_its_shape_and_work() {
        let profile = Profile::new(Arc::new(Reference::new()));
        profile.zero(&mut Buffer::host(1), 1);
        profile.resume();
        let w = Matrix::from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3);
        let inp = Buffer::from_vec(vec![1.0; 6]);
        let mut out = profile.alloc(4, Element::Activation);
        profile.linear_forward(&mut out, &inp, &w, 2);
        profile.linear_forward(&mut out, &inp, &w, 2);
        assert_eq!(out.host_slice(), [6.0, 15.0, 6.0, 15.0]);
        profile.pause();
        profile.zero(&mut out, 4);
        let (seconds, rows) = profile.finish();
        let (_, row) = rows.iter().find(|(name, _)| name == "linear_forward 2 x 3 x 2").unwrap();
        // A product has two operations for each row, input and output.
        assert_eq!((row.calls, row.flops), (2, 2.0 * 2.0 * (2 * 3 * 2) as f64));
        assert!(row.seconds > 0.0 && rows.len() == 2, "{rows:?}");
        assert!(seconds >= rows.iter().map(|(_, row)| row.seconds).sum::<f64>());
        profile.clear();
        assert!(profile.finish().1.is_empty());
    }
}
