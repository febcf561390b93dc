//! Backward pass of the decoder: runs the operations of each block in reverse order, and stops at the lowest
//! layer with an adapter.

use std::array;
use std::mem;
use std::ops::Range;

use danlu_kernels::{
    AttentionDims, AttentionGrads, AttentionOperands, AttentionSaved, Backend, Buffer, ColumnProducts,
    Element, GatedGrads, GatedOperands, HeadGrads, Indices, ProjectGrads, ProjectGroup, ProjectSaved,
    RmsnormSaved, Store,
};

use crate::activations::{LayerActivations, Mids};
use crate::decoder::{Decoder, factor_segments, lora_segments};
use crate::forward_pass::{ForwardPass, PassRows, SplitIndices};
use crate::lora::{LoraRows, OutputFactors};
use crate::workspace::{FactorScratch, Gradients, GrowBuffer, Workspace};
use crate::{Batch, ModelError, Projection};

/// Outputs of [`Decoder::add_gradients`], which remain in the memory of the device between the passes of a
/// step.
#[derive(Debug)]
pub struct StepBuffers<'a> {
    /// Gradients of the adapter's parameters, in the same layout as the parameters.
    pub grads: &'a mut Buffer,
    /// One loss per trained token of the step.
    pub losses: &'a mut Buffer,
    /// Index of this pass's first loss in `losses`.
    pub first: usize,
}

impl Decoder {
    /// Runs forward and backward over a batch. Returns the loss of every trained token in nats. Adds `dloss ·
    /// d(sum of losses) / d(adapter parameters)` to `grads`, as [`Decoder::add_gradients`] does.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or the device fails.
    pub fn losses_and_gradients(
        &self,
        work: &mut Workspace,
        batch: &Batch,
        lora: &[LoraRows<'_>],
        dloss: f32,
        grads: &mut Buffer,
    ) -> Result<Vec<f32>, ModelError> {
        let labels = batch.trained_tokens();
        let mut losses = mem::take(&mut work.losses);
        losses.reserve(&*self.backend, labels, 1, Element::Exact);
        let into = StepBuffers { grads, losses: losses.get_mut(), first: 0 };
        let added = self.add_gradients(work, batch, lora, &vec![dloss; labels], into);
        work.losses = losses;
        added?;
        self.read_losses(work, labels)
    }

    /// Runs forward and backward over a batch. Writes the loss of every trained token, in nats, to
    /// `into.losses`. Adds `Σ dloss[i] · d losses[i] / d(adapter parameters)` to `into.grads`.
    ///
    /// The gradients have the layout of the parameter buffer of `lora`. The entries of `lora` add their
    /// gradients in order. The gradients of base weights are not computed. Nothing is computed for layers
    /// below the lowest adapted layer. A batch without a trained token adds nothing.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn add_gradients(
        &self,
        work: &mut Workspace,
        batch: &Batch,
        lora: &[LoraRows<'_>],
        dloss: &[f32],
        into: StepBuffers<'_>,
    ) -> Result<(), ModelError> {
        self.check_ids(&batch.ids)?;
        let (be, labels) = (&*self.backend, batch.trained_tokens());
        if labels == 0 {
            return Ok(());
        }
        let least = be.row_invariant_from();
        let mut pass =
            ForwardPass::over(batch, lora.to_vec()).with_head(&batch.label_rows).with_many_rows(least);
        self.reserve(work, batch.rows(), labels, pass.keys.map_or(0, <[u32]>::len));
        pass.upload((be, &self.config), mem::take(&mut work.indices), &batch.ids, &batch.targets);
        be.write(work.dloss.get_mut(), 0, dloss);
        self.blocks(work, &pass, true, None);
        self.head_norm(work, labels);
        self.head_backward(work, &pass.indices.targets, into.losses, into.first);
        self.blocks_backward(work, &pass, into.grads);
        work.indices = pass.indices;
        Ok(())
    }

    /// Computes the losses of the rows with a label. Writes the gradient of `work.head_inp` to
    /// `work.grads.head`.
    fn head_backward(&self, work: &mut Workspace, targets: &Indices, losses: &mut Buffer, first: usize) {
        let be = &*self.backend;
        let operands = self.head_operands(&work.head_norm, targets);
        let grads = HeadGrads { dinp: work.grads.norm.get_mut(), dloss: work.dloss.get() };
        be.head_loss(losses, first, operands, Some(grads));
        let saved = RmsnormSaved { inp: work.head_inp.get(), rstd: work.head_rstd.get(), weight: &self.norm };
        let Gradients { head, norm, .. } = &mut work.grads;
        be.rmsnorm_backward(head.get_mut(), Store::Overwrite, norm.get(), saved, targets.len());
    }

    /// Runs the backward pass of the blocks, from `work.grads.head` down to the lowest adapted layer.
    fn blocks_backward(&self, work: &mut Workspace, pass: &ForwardPass<'_>, grads: &mut Buffer) {
        let lora = &pass.rows.lora;
        let lowest = (0..self.layers.len())
            .find(|&layer| {
                lora.iter().any(|l| Projection::ALL.iter().any(|&p| l.source.pair(layer, p).is_some()))
            })
            .unwrap_or(self.layers.len());
        for layer in (lowest..self.layers.len()).rev() {
            let mut act = work.take_layer(layer);
            if !work.holds(layer) {
                let policy = work.policy(layer);
                self.restore(layer, &mut act, policy, pass, &mut work.scratch);
            }
            let is_last = layer + 1 == self.layers.len();
            let (d, fused) = (&mut work.grads, &mut work.scratch.fused);
            match &pass.head {
                Some(head) if is_last => {
                    // `d.q` is not used before the backward pass of attention, so `d.q` serves as scratch
                    // memory here.
                    mem::swap(&mut d.hidden, &mut d.head);
                    mem::swap(&mut d.attn, &mut d.q);
                    let from = BranchSaved {
                        act: &act,
                        attn: &work.head_attn,
                        rows: &head.rows,
                        split: &pass.indices.head_gate_up,
                    };
                    self.mlp_backward(layer, from, (d, fused), grads);
                    mem::swap(&mut d.hidden, &mut d.head);
                    mem::swap(&mut d.attn, &mut d.q);
                    let width = self.config.num_attention_heads * self.config.head_dim;
                    self.scatter(
                        &mut d.hidden,
                        &d.head,
                        &pass.indices.head,
                        (pass.rows.n, self.config.hidden_size),
                    );
                    self.scatter(&mut d.attn, &d.q, &pass.indices.head, (pass.rows.n, width));
                }
                _ => {
                    let split = &pass.indices.gate_up;
                    let from = BranchSaved { act: &act, attn: &act.attn, rows: &pass.rows, split };
                    self.mlp_backward(layer, from, (d, fused), grads);
                }
            }
            self.attend_backward(layer, &act, work, pass, grads, layer > lowest);
            work.put_layer(layer, act);
        }
    }

    /// For each of `n` rows of `cols` elements, computes `dinp[r] = Σ dout[i]` over every `i` with `rows[i] =
    /// r`.
    fn scatter(&self, dinp: &mut GrowBuffer, dout: &GrowBuffer, rows: &Indices, (n, cols): (usize, usize)) {
        self.backend.gather_rows_backward(dinp.get_mut(), n, dout.get(), rows, cols);
    }

    /// Backward pass of the second half of a block (after attention). At the start, `d.hidden` contains the
    /// gradient of the block's output. At the end, `d.hidden` contains the gradient of the residual stream
    /// between the two halves, and `d.attn` contains the gradient of `attn`.
    fn mlp_backward(
        &self,
        layer: usize,
        from: BranchSaved<'_>,
        (d, fused): (&mut Gradients, &mut GrowBuffer),
        grads: &mut Buffer,
    ) {
        use Projection::*;
        let BranchSaved { act, attn, rows, split } = from;
        let (be, n, LayerActivations { mlp: act, mid, .. }) = (&*self.backend, rows.n, act);
        let (weights, c) = (&self.layers[layer], self.config.hidden_size);
        let dout = norm_after_backward(be, d, weights.after_mlp.as_ref(), (&act.mlp_proj, &act.mlp_rstd), n);
        let mut dact = mem::take(&mut d.act);
        let mut scratch = mem::take(&mut d.factors);
        let down = (&[DownProj], [dout.of(d)], &act.act);
        self.project_backward(layer, (Some(&mut dact), &mut scratch), grads, down, mid, rows);
        (d.act, d.factors) = (dact, scratch);
        let (dgate, dup, len) = (d.gate.get_mut(), d.up.get_mut(), n * self.config.intermediate_size);
        let (dact, gate, up) = (d.act.get(), act.gate.get(), act.up.get());
        let activation = self.config.architecture.activation;
        be.gated_backward(GatedGrads { dgate, dup }, dact, GatedOperands { gate, up, activation }, len);
        let inp = weights.before_mlp.as_ref().map_or(&act.res, |_| &act.norm2);
        let dinp = (Some(&mut d.norm), &mut d.factors);
        match self.config.architecture.fused_gate_up {
            false => {
                let gate_up = (&[GateProj, UpProj], [&d.gate, &d.up], inp);
                self.project_backward(layer, dinp, grads, gate_up, mid, rows);
            }
            true => {
                self.join(fused, [&d.gate, &d.up], split, self.config.intermediate_size);
                let gate_up = (&[GateUpProj], [&*fused], inp);
                self.project_backward(layer, dinp, grads, gate_up, mid, rows);
            }
        }
        match &weights.before_mlp {
            Some(weight) => {
                let saved = RmsnormSaved { inp: act.res.get(), rstd: act.rstd2.get(), weight };
                be.rmsnorm_backward(d.hidden.get_mut(), Store::Accumulate, d.norm.get(), saved, n);
            }
            None => be.add(d.hidden.get_mut(), d.norm.get(), n * c),
        }
        let saved = (&act.attn_proj, &act.attn_rstd);
        let dout = norm_after_backward(be, d, weights.after_attention.as_ref(), saved, n);
        let mut dattn = mem::take(&mut d.attn);
        let mut scratch = mem::take(&mut d.factors);
        let o = (&[OProj], [dout.of(d)], attn);
        self.project_backward(layer, (Some(&mut dattn), &mut scratch), grads, o, mid, rows);
        (d.attn, d.factors) = (dattn, scratch);
    }

    /// Backward pass of the first half of a block (up to attention). At the start, `d.attn` contains the
    /// gradient of the attention output, and `d.hidden` contains the gradient of the residual stream. If
    /// `wanted` is true, the function writes the gradient of the block's input to `d.hidden`. If `wanted` is
    /// false, the function computes only the gradients of the adapters.
    fn attend_backward(
        &self,
        layer: usize,
        act: &LayerActivations,
        work: &mut Workspace,
        pass: &ForwardPass<'_>,
        grads: &mut Buffer,
        wanted: bool,
    ) {
        use Projection::*;
        let Workspace { grads: d, scratch: copies, .. } = work;
        let (be, config, n) = (&*self.backend, &self.config, pass.rows.n);
        let (weights, dims) = (&self.layers[layer], self.attention_dims());
        let AttentionDims { kv_heads, head_dim, .. } = dims;
        let [k, v] = self.keys_of([&act.k, &act.v], pass, &mut copies.kv);
        let [dk, dv] = match pass.keys {
            None => [&mut d.k, &mut d.v],
            Some(_) => copies.dkv.each_mut(),
        };
        let grads_of = AttentionGrads { dq: d.q.get_mut(), dk: dk.get_mut(), dv: dv.get_mut() };
        let saved = AttentionSaved { out: act.attn.get(), lse: act.lse.get() };
        let (segments, scores) = (&pass.indices.segments, config.attention_scores(layer));
        let operands = AttentionOperands { q: act.q.get(), k, v, segments, dims, scores };
        be.attention_backward(grads_of, d.attn.get(), saved, operands);
        if pass.keys.is_some() {
            for (own, dout) in [&mut d.k, &mut d.v].into_iter().zip(&copies.dkv) {
                self.scatter(own, dout, &pass.indices.keys, (n, kv_heads * head_dim));
            }
        }
        if let Some(operands) = self.rope_operands(layer, &pass.indices) {
            be.rope_backward(d.q.get_mut(), d.k.get_mut(), operands);
        }
        if let Some([q_norm, k_norm]) = &weights.qk_norm {
            for (dinp, dout, inp, rstd, weight, width) in [
                (&mut d.q_raw, &d.q, &act.q_raw, &act.q_rstd, q_norm, dims.heads * head_dim),
                (&mut d.k_raw, &d.k, &act.k_raw, &act.k_rstd, k_norm, kv_heads * head_dim),
            ] {
                let saved = RmsnormSaved { inp: inp.get(), rstd: rstd.get(), weight };
                let rows = n * width / weight.len();
                be.rmsnorm_backward(dinp.get_mut(), Store::Overwrite, dout.get(), saved, rows);
            }
        }
        let dout = match &weights.qk_norm {
            Some(_) => [&d.q_raw, &d.k_raw, &d.v],
            None => [&d.q, &d.k, &d.v],
        };
        let inp = weights.before_attention.as_ref().map_or(&act.inp, |_| &act.norm1);
        let dinp = (wanted.then_some(&mut d.norm), &mut d.factors);
        match config.architecture.fused_qkv {
            false => {
                let qkv = (&[QProj, KProj, VProj], dout, inp);
                self.project_backward(layer, dinp, grads, qkv, &act.mid, &pass.rows);
            }
            true => {
                self.join(&mut copies.fused, dout, &pass.indices.qkv, head_dim);
                let qkv = (&[QkvProj], [&copies.fused], inp);
                self.project_backward(layer, dinp, grads, qkv, &act.mid, &pass.rows);
            }
        }
        if !wanted {
            return;
        }
        match &weights.before_attention {
            Some(weight) => {
                let saved = RmsnormSaved { inp: act.inp.get(), rstd: act.rstd1.get(), weight };
                be.rmsnorm_backward(d.hidden.get_mut(), Store::Accumulate, d.norm.get(), saved, n);
            }
            None => be.add(d.hidden.get_mut(), d.norm.get(), n * config.hidden_size),
        }
    }

    /// Copies the gradients of q, k and v, or of gate and up, to the gradient of their fused projection.
    /// [`SplitIndices`] explains the pieces, which have `width` elements.
    fn join<const N: usize>(
        &self,
        fused: &mut GrowBuffer,
        parts: [&GrowBuffer; N],
        indices: &SplitIndices,
        width: usize,
    ) {
        for (part, index) in parts.into_iter().zip(&indices.parts) {
            self.backend.join_rows(fused.get_mut(), part.get(), index, width);
        }
    }

    /// Backward pass of a group of projections with one input. If the gradient of the input is needed,
    /// computes `dinp = Σ dout W`. Each adapter gets the gradients of its own rows.
    fn project_backward<const N: usize>(
        &self,
        layer: usize,
        (dinp, scratch): (Option<&mut GrowBuffer>, &mut FactorScratch),
        dparams: &mut Buffer,
        (group, dout, inp): (&[Projection; N], [&GrowBuffer; N], &GrowBuffer),
        mid: &Mids,
        rows: &PassRows<'_>,
    ) {
        let lora = lora_segments(layer, group, rows);
        let weights = group.map(|projection| self.layers[layer].projection(projection));
        let mid = group.map(|projection| mid[projection.index()].get());
        let factors = factor_segments(layer, group, rows);
        let operands = ProjectGroup { weights: &weights, lora: &lora, is_generated: false };
        let mut dout = dout.map(GrowBuffer::get);
        if !factors.is_empty() {
            self.factors_backward(scratch, dparams, (dout, inp), operands, &factors, rows);
            dout = array::from_fn(|i| scratch.dout[i].get());
        }
        let grads = ProjectGrads { dinp: dinp.map(GrowBuffer::get_mut), store: Store::Overwrite, dparams };
        let saved = ProjectSaved { inp: inp.get(), mid: &mid };
        self.backend.project_backward(grads, &dout, saved, operands, rows.n);
    }

    /// Backward pass of the DoRA factors. Adds the gradients of the magnitudes to `dparams`. Recomputes the
    /// outputs before scaling, and writes their gradients to `scratch.dout`.
    fn factors_backward<const N: usize>(
        &self,
        scratch: &mut FactorScratch,
        dparams: &mut Buffer,
        (dout, inp): ([&Buffer; N], &GrowBuffer),
        operands: ProjectGroup<'_>,
        factors: &[(usize, Range<usize>, OutputFactors<'_>)],
        rows: &PassRows<'_>,
    ) {
        let (be, n) = (&*self.backend, rows.n.max(rows.computed));
        for (i, dout) in dout.iter().enumerate() {
            let cols = operands.weights[i].rows();
            let ranks =
                operands.lora.iter().filter_map(|segment| segment.pairs[i].map(|pair| pair.lora.rank));
            scratch.out[i].reserve(be, n, cols, Element::Activation);
            scratch.mid[i].reserve(be, n, ranks.max().unwrap_or(0), Element::Activation);
            scratch.dout[i].reserve(be, n, cols, Element::Activation);
            be.copy_rows(scratch.dout[i].get_mut(), 0, dout, 0, rows.n, cols);
        }
        let mut out: Vec<&mut Buffer> = scratch.out[..N].iter_mut().map(GrowBuffer::get_mut).collect();
        let mut mid: Vec<&mut Buffer> = scratch.mid[..N].iter_mut().map(GrowBuffer::get_mut).collect();
        be.project(&mut out, &mut mid, inp.get(), operands, None, rows.computed);
        for (i, rows, factors) in factors {
            let &OutputFactors { values, inverse_norms, offset, magnitude } = factors;
            let (out, cols) = (scratch.out[*i].get(), operands.weights[*i].rows());
            // `column_products` reads the copy of the gradient, because the copy has the type of `out`. The
            // copy is scaled only afterwards.
            let dout = scratch.dout[*i].get();
            let products = ColumnProducts { dout, out, scale: inverse_norms, offset, cols };
            be.column_products(dparams, magnitude, products, rows.clone());
            be.scale_columns(scratch.dout[*i].get_mut(), values, offset, rows.clone(), cols);
        }
    }
}

/// Values that the backward pass of the second half of a block (after attention) reads.
#[derive(Clone, Copy)]
struct BranchSaved<'a> {
    act: &'a LayerActivations,
    attn: &'a GrowBuffer,
    rows: &'a PassRows<'a>,
    /// Indices of gate and up in the output of a fused projection.
    split: &'a SplitIndices,
}

/// The field of [`Gradients`] that contains the gradient of the attention output or of the MLP output.
#[derive(Clone, Copy)]
enum BranchGradient {
    Hidden,
    Proj,
}

impl BranchGradient {
    fn of(self, d: &Gradients) -> &GrowBuffer {
        match self {
            Self::Hidden => &d.hidden,
            Self::Proj => &d.proj,
        }
    }
}

/// Backward pass of a norm after attention or the MLP: reads the gradient from `d.hidden` and writes to
/// `d.proj`. If the model has no such norm, the gradient is `d.hidden` itself.
fn norm_after_backward(
    backend: &dyn Backend,
    d: &mut Gradients,
    weight: Option<&Buffer>,
    (inp, rstd): (&GrowBuffer, &GrowBuffer),
    n: usize,
) -> BranchGradient {
    let Some(weight) = weight else { return BranchGradient::Hidden };
    let saved = RmsnormSaved { inp: inp.get(), rstd: rstd.get(), weight };
    backend.rmsnorm_backward(d.proj.get_mut(), Store::Overwrite, d.hidden.get(), saved, n);
    BranchGradient::Proj
}
