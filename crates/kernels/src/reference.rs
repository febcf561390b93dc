//! The reference for tests: each operation is computed by its formula, on one thread, with sums in f64.

use std::ops::Range;

use crate::attention::AttentionInputs;
use crate::lora::LoraParams;
use crate::{
    AdamW, AttentionGrads, AttentionOperands, AttentionSaved, Backend, BackendError, Buffer, ColumnProducts,
    Element, FamilyOperation, GatedGrads, GatedOperands, HeadGrads, HeadOperands, Indices, LoraGrads,
    LoraPair, Matrix, RmsnormSaved, RopeOperands, Scalars, Store, adamw, attention, head_loss, linear, lora,
    rmsnorm, rope, row_ops,
};

/// A back end of simple loops. It is slow. Tests compare the other back ends with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Reference {
    /// Creates the back end, which has neither settings nor state.
    pub fn new() -> Self {
        Self
    }
}

impl Backend for Reference {
    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn row_invariant_from(&self) -> usize {
        1
    }

    fn supports(&self, _operation: FamilyOperation) -> bool {
        true
    }

    fn alloc(&self, len: usize, _element: Element) -> Buffer {
        Buffer::host(len)
    }

    fn write(&self, dst: &mut Buffer, offset: usize, src: &[f32]) {
        dst.host_slice_mut()[offset..][..src.len()].copy_from_slice(src);
    }

    fn read(&self, dst: &mut [f32], src: &Buffer, offset: usize) -> Result<(), BackendError> {
        dst.copy_from_slice(&src.host_slice()[offset..][..dst.len()]);
        Ok(())
    }

    fn zero(&self, dst: &mut Buffer, len: usize) {
        dst.host_slice_mut()[..len].fill(0.0);
    }

    fn add(&self, dst: &mut Buffer, src: &Buffer, len: usize) {
        row_ops::add(&mut dst.host_slice_mut()[..len], &src.host_slice()[..len]);
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
        row_ops::gather_rows(out.host_slice_mut(), inp.host_slice(), rows.values(), cols);
    }

    fn gather_rows_backward(&self, dinp: &mut Buffer, n: usize, dout: &Buffer, rows: &Indices, cols: usize) {
        let dinp = &mut dinp.host_slice_mut()[..n * cols];
        dinp.fill(0.0);
        row_ops::add_rows(dinp, dout.host_slice(), rows.values(), cols);
    }

    fn scatter_rows(&self, out: [&mut Buffer; 2], inp: [&Buffer; 2], rows: &Indices, cols: usize) {
        for (out, inp) in out.into_iter().zip(inp) {
            row_ops::scatter_rows(out.host_slice_mut(), inp.host_slice(), rows.values(), cols);
        }
    }

    fn join_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &Indices, cols: usize) {
        row_ops::scatter_rows(out.host_slice_mut(), inp.host_slice(), rows.values(), cols);
    }

    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &Indices, scale: f32) {
        row_ops::embedding_forward(out.host_slice_mut(), table, ids.values(), scale);
    }

    fn add_bias(&self, out: &mut Buffer, bias: &Buffer, n: usize) {
        let bias = bias.host_slice();
        row_ops::add_bias(&mut out.host_slice_mut()[..n * bias.len()], bias);
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
        row_ops::scale_columns(&mut out.host_slice_mut()[rows.start * cols..rows.end * cols], factors);
    }

    fn column_products(
        &self,
        dparams: &mut Buffer,
        at: usize,
        ColumnProducts { dout, out, scale, offset, cols }: ColumnProducts<'_>,
        rows: Range<usize>,
    ) {
        let of = |buffer: &'_ Buffer| buffer.host_slice()[rows.start * cols..rows.end * cols].to_vec();
        let scale = &scale.host_slice()[offset..][..cols];
        let sums = &mut dparams.host_slice_mut()[at..][..cols];
        row_ops::column_products(sums, (&of(dout), &of(out)), scale, 0..cols, cols);
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
        let (out, rstd) = (out.host_slice_mut(), rstd.host_slice_mut());
        rmsnorm::forward(out, rstd, inp.host_slice(), weight.host_slice(), eps, n);
    }

    fn rmsnorm_backward(
        &self,
        dinp: &mut Buffer,
        store: Store,
        dout: &Buffer,
        saved: RmsnormSaved<'_>,
        n: usize,
    ) {
        let weight = saved.weight.host_slice();
        let dinp = dinp.host_slice_mut();
        if store == Store::Overwrite {
            dinp[..n * weight.len()].fill(0.0);
        }
        let (inp, rstd) = (saved.inp.host_slice(), saved.rstd.host_slice());
        rmsnorm::backward(dinp, dout.host_slice(), inp, rstd, weight, n);
    }

    fn linear_forward(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        linear::forward(out.host_slice_mut(), inp.host_slice(), w, n);
    }

    fn linear_backward(&self, dinp: &mut Buffer, store: Store, dout: &Buffer, w: &Matrix, n: usize) {
        linear::backward(dinp.host_slice_mut(), store, dout.host_slice(), w, n);
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
        lora::forward(out, mid, inp, LoraParams::of(&pair), rows);
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
        let (dout, inp, mid) = (dout.host_slice(), inp.host_slice(), mid.host_slice());
        lora::backward(dinp, dparams, dout, inp, mid, LoraParams::of(&pair), rows);
    }

    fn rope_forward(&self, q: &mut Buffer, k: &mut Buffer, operands: RopeOperands<'_>) {
        let (angles, [q_heads, k_heads]) = (operands.host_angles(), operands.heads());
        rope::forward(q.host_slice_mut(), angles, q_heads, operands.rotation);
        rope::forward(k.host_slice_mut(), angles, k_heads, operands.rotation);
    }

    fn rope_backward(&self, dq: &mut Buffer, dk: &mut Buffer, operands: RopeOperands<'_>) {
        let (angles, [q_heads, k_heads]) = (operands.host_angles(), operands.heads());
        rope::backward(dq.host_slice_mut(), angles, q_heads, operands.rotation);
        rope::backward(dk.host_slice_mut(), angles, k_heads, operands.rotation);
    }

    fn attention_forward(&self, out: &mut Buffer, lse: &mut Buffer, operands: AttentionOperands<'_>) {
        let inputs = AttentionInputs::of(&operands);
        attention::forward(out.host_slice_mut(), lse.host_slice_mut(), inputs);
    }

    fn attention_backward(
        &self,
        grads: AttentionGrads<'_>,
        dout: &Buffer,
        saved: AttentionSaved<'_>,
        operands: AttentionOperands<'_>,
    ) {
        let grads = [grads.dq, grads.dk, grads.dv].map(Buffer::host_slice_mut);
        let (out, lse) = (saved.out.host_slice(), saved.lse.host_slice());
        attention::backward(grads, dout.host_slice(), out, lse, AttentionInputs::of(&operands));
    }

    fn gated_forward(&self, out: &mut Buffer, operands: GatedOperands<'_>, len: usize) {
        let [gate, up] = [operands.gate, operands.up].map(|input| &input.host_slice()[..len]);
        operands.activation.forward(&mut out.host_slice_mut()[..len], gate, up);
    }

    fn gated_backward(&self, grads: GatedGrads<'_>, dout: &Buffer, operands: GatedOperands<'_>, len: usize) {
        let [dgate, dup] = [grads.dgate, grads.dup].map(|grad| &mut grad.host_slice_mut()[..len]);
        let [dout, gate, up] = [dout, operands.gate, operands.up].map(|input| &input.host_slice()[..len]);
        operands.activation.backward(dgate, dup, dout, gate, up);
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
        head_loss::head_loss(losses, grads, inp.host_slice(), (head, softcap), targets.values());
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
        let [params, m, v] = [params, m, v].map(|buffer| &mut buffer.host_slice_mut()[range.clone()]);
        adamw::step(params, &grads.host_slice()[range], m, v, step);
    }

    fn sum_of_squares(&self, out: &mut Scalars, at: usize, x: &Buffer, len: usize) {
        out.values_mut()[at] = adamw::sum_of_squares(&x.host_slice()[..len]);
    }
}
