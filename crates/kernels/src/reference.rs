//! The oracle: every operation as its formula reads, one thread, sums in f64.

use std::ops::Range;

use crate::lora::LoraDims;
use crate::{
    AdamW, AttentionDims, Backend, Buffer, Dropout, LoraRef, Matrix, Segment, adamw, attention, head_loss,
    linear, lora, rmsnorm, rope, row_ops, swiglu,
};

/// A back end of plain loops. Slow; what the others are tested against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Reference {
    /// The only one there is.
    pub fn new() -> Self {
        Self
    }
}

impl Backend for Reference {
    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn alloc(&self, len: usize) -> Buffer {
        Buffer::host(len)
    }

    fn write(&self, dst: &mut Buffer, offset: usize, src: &[f32]) {
        dst.host_slice_mut()[offset..][..src.len()].copy_from_slice(src);
    }

    fn read(&self, dst: &mut [f32], src: &Buffer, offset: usize) {
        dst.copy_from_slice(&src.host_slice()[offset..][..dst.len()]);
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

    fn gather_rows(&self, out: &mut Buffer, inp: &Buffer, rows: &[u32], cols: usize) {
        row_ops::gather_rows(out.host_slice_mut(), inp.host_slice(), rows, cols);
    }

    fn gather_rows_backward(&self, dinp: &mut Buffer, dout: &Buffer, rows: &[u32], cols: usize) {
        row_ops::gather_rows_backward(dinp.host_slice_mut(), dout.host_slice(), rows, cols);
    }

    fn embedding_forward(&self, out: &mut Buffer, table: &Matrix, ids: &[u32]) {
        row_ops::embedding_forward(out.host_slice_mut(), table, ids);
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
        dout: &Buffer,
        inp: &Buffer,
        rstd: &Buffer,
        weight: &Buffer,
        n: usize,
    ) {
        let (dout, inp, rstd) = (dout.host_slice(), inp.host_slice(), rstd.host_slice());
        rmsnorm::backward(dinp.host_slice_mut(), dout, inp, rstd, weight.host_slice(), n);
    }

    fn linear_forward(&self, out: &mut Buffer, inp: &Buffer, w: &Matrix, n: usize) {
        linear::forward(out.host_slice_mut(), inp.host_slice(), w, n);
    }

    fn linear_backward(&self, dinp: &mut Buffer, dout: &Buffer, w: &Matrix, n: usize) {
        linear::backward(dinp.host_slice_mut(), dout.host_slice(), w, n);
    }

    fn lora_forward(
        &self,
        out: &mut Buffer,
        mid: &mut Buffer,
        inp: &Buffer,
        lora: LoraRef<'_>,
        rows: Range<usize>,
        dropout: Option<Dropout>,
    ) {
        let params = lora.params.host_slice();
        let (a, b) =
            (&params[lora.a..][..lora.rank * lora.d_in], &params[lora.b..][..lora.d_out * lora.rank]);
        let (out, mid, inp) = (out.host_slice_mut(), mid.host_slice_mut(), inp.host_slice());
        lora::forward(out, mid, inp, a, b, LoraDims::of(&lora), rows, dropout);
    }

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
    ) {
        let (a_range, b_range) =
            (lora.a..lora.a + lora.rank * lora.d_in, lora.b..lora.b + lora.d_out * lora.rank);
        let params = lora.params.host_slice();
        let [da, db] = dparams
            .host_slice_mut()
            .get_disjoint_mut([a_range.clone(), b_range.clone()])
            .expect("a pair's A and B lie apart, inside the gradient buffer");
        let (dout, inp, mid) = (dout.host_slice(), inp.host_slice(), mid.host_slice());
        let (a, b) = (&params[a_range], &params[b_range]);
        let dinp = dinp.map(Buffer::host_slice_mut);
        lora::backward(dinp, da, db, dout, inp, mid, a, b, LoraDims::of(&lora), rows, dropout);
    }

    fn rope_forward(
        &self,
        x: &mut Buffer,
        inv_freq: &[f32],
        positions: &[u32],
        heads: usize,
        head_dim: usize,
    ) {
        rope::forward(x.host_slice_mut(), inv_freq, positions, heads, head_dim);
    }

    fn rope_backward(
        &self,
        dx: &mut Buffer,
        inv_freq: &[f32],
        positions: &[u32],
        heads: usize,
        head_dim: usize,
    ) {
        rope::backward(dx.host_slice_mut(), inv_freq, positions, heads, head_dim);
    }

    fn attention_forward(
        &self,
        out: &mut Buffer,
        lse: &mut Buffer,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        segments: &[Segment],
        dims: AttentionDims,
    ) {
        let (q, k, v) = (q.host_slice(), k.host_slice(), v.host_slice());
        attention::forward(out.host_slice_mut(), lse.host_slice_mut(), q, k, v, segments, dims);
    }

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
    ) {
        let (dq, dk, dv) = (dq.host_slice_mut(), dk.host_slice_mut(), dv.host_slice_mut());
        let (dout, out, lse) = (dout.host_slice(), out.host_slice(), lse.host_slice());
        let (q, k, v) = (q.host_slice(), k.host_slice(), v.host_slice());
        attention::backward(dq, dk, dv, dout, out, lse, q, k, v, segments, dims);
    }

    fn swiglu_forward(&self, out: &mut Buffer, gate: &Buffer, up: &Buffer, len: usize) {
        let (gate, up) = (&gate.host_slice()[..len], &up.host_slice()[..len]);
        swiglu::forward(&mut out.host_slice_mut()[..len], gate, up);
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
        let (dgate, dup) = (&mut dgate.host_slice_mut()[..len], &mut dup.host_slice_mut()[..len]);
        let (dout, gate, up) =
            (&dout.host_slice()[..len], &gate.host_slice()[..len], &up.host_slice()[..len]);
        swiglu::backward(dgate, dup, dout, gate, up);
    }

    fn head_loss(
        &self,
        losses: &mut [f32],
        dinp: Option<&mut Buffer>,
        inp: &Buffer,
        head: &Matrix,
        targets: &[u32],
        dloss: f32,
    ) {
        let dinp = dinp.map(Buffer::host_slice_mut);
        head_loss::head_loss(losses, dinp, inp.host_slice(), head, targets, dloss);
    }

    fn adamw(
        &self,
        params: &mut Buffer,
        grads: &Buffer,
        m: &mut Buffer,
        v: &mut Buffer,
        len: usize,
        step: AdamW,
    ) {
        let (params, grads) = (&mut params.host_slice_mut()[..len], &grads.host_slice()[..len]);
        adamw::step(params, grads, &mut m.host_slice_mut()[..len], &mut v.host_slice_mut()[..len], step);
    }

    fn sum_of_squares(&self, x: &Buffer, len: usize) -> f64 {
        adamw::sum_of_squares(&x.host_slice()[..len])
    }
}
