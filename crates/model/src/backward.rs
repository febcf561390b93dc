//! The backward of a decoder: each block's list upside down, down to the lowest adapter.

use std::mem;

use danlu_kernels::{AttentionDims, Buffer};

use crate::activations::{LayerActivations, Mids, MlpActivations};
use crate::decoder::Decoder;
use crate::forward_pass::{ForwardPass, PassRows};
use crate::lora::LoraRows;
use crate::workspace::{Gradients, GrowBuffer, PrefixKv, Workspace};
use crate::{Batch, ModelError, Projection};

impl Decoder {
    /// Forward and backward of a batch: the loss of every trained token in nats, and
    /// `grads += dloss · d(sum of losses) / d(adapter parameters)`.
    ///
    /// `grads` has the layout of the buffer that `lora`'s pairs point into, and receives the share of one entry of
    /// `lora` after the other. No gradient of a base weight is formed, and nothing is computed below the lowest
    /// layer with a pair.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn losses_and_gradients(
        &self,
        work: &mut Workspace,
        batch: &Batch,
        lora: &[LoraRows<'_>],
        dloss: f32,
        grads: &mut Buffer,
    ) -> Result<Vec<f32>, ModelError> {
        self.check_ids(&batch.ids)?;
        let (be, labels) = (&*self.backend, batch.trained_tokens());
        let pass = ForwardPass::over(batch, lora.to_vec()).with_head(&batch.label_rows).with_many_rows();
        self.reserve(work, batch.rows(), labels, pass.keys.map_or(0, <[u32]>::len));
        self.blocks(work, &batch.ids, &pass, true, None);
        self.head_norm(work, labels);

        let mut losses = vec![0.0; labels];
        let (dnorm, norm) = (work.grads.norm.get_mut(), work.head_norm.get());
        be.head_loss(&mut losses, Some(dnorm), norm, &self.lm_head, &batch.targets, dloss);
        be.zero(work.grads.head.get_mut(), labels * self.config.hidden_size);
        let (dhead, inp, rstd) = (work.grads.head.get_mut(), work.head_inp.get(), work.head_rstd.get());
        be.rmsnorm_backward(dhead, work.grads.norm.get(), inp, rstd, &self.norm, labels);

        let lowest = (0..self.layers.len())
            .find(|&layer| {
                lora.iter().any(|l| Projection::ALL.iter().any(|&p| l.source.pair(layer, p).is_some()))
            })
            .unwrap_or(self.layers.len());
        for layer in (lowest..self.layers.len()).rev() {
            let mut act = work.take_layer(layer);
            if !work.holds(layer) {
                let policy = work.policy(layer);
                self.restore(layer, &mut act, policy, &pass, &mut work.prefix_kv);
            }
            let (d, is_last) = (&mut work.grads, layer + 1 == self.layers.len());
            match &pass.head {
                Some(head) if is_last => {
                    // `d.q` has no other use before attention's own backward.
                    mem::swap(&mut d.hidden, &mut d.head);
                    mem::swap(&mut d.attn, &mut d.q);
                    self.mlp_backward(layer, &act.mlp, &act.mid, &work.head_attn, d, grads, &head.rows);
                    mem::swap(&mut d.hidden, &mut d.head);
                    mem::swap(&mut d.attn, &mut d.q);
                    let width = self.config.num_attention_heads * self.config.head_dim;
                    self.scatter(&mut d.hidden, &d.head, head.index, (pass.rows.n, self.config.hidden_size));
                    self.scatter(&mut d.attn, &d.q, head.index, (pass.rows.n, width));
                }
                _ => self.mlp_backward(layer, &act.mlp, &act.mid, &act.attn, d, grads, &pass.rows),
            }
            self.attend_backward(layer, &act, d, &mut work.prefix_kv, &pass, grads, layer > lowest);
            work.put_layer(layer, act);
        }
        Ok(losses)
    }

    /// `dinp[r] = Σ dout[i]` over all `rows[i] = r`, for each of `n` rows of `cols`.
    fn scatter(&self, dinp: &mut GrowBuffer, dout: &GrowBuffer, rows: &[u32], (n, cols): (usize, usize)) {
        self.backend.zero(dinp.get_mut(), n * cols);
        self.backend.gather_rows_backward(dinp.get_mut(), dout.get(), rows, cols);
    }

    /// Backward of a block's second half: `d.hidden` holds the gradient of its output and receives that of the residual
    /// stream before it, `d.attn` receives that of `attn`.
    fn mlp_backward(
        &self,
        layer: usize,
        act: &MlpActivations,
        mid: &Mids,
        attn: &GrowBuffer,
        d: &mut Gradients,
        grads: &mut Buffer,
        rows: &PassRows<'_>,
    ) {
        use Projection::*;
        let (be, config, n) = (&*self.backend, &self.config, rows.n);
        let (c, ff) = (config.hidden_size, config.intermediate_size);
        let mut project = |p: Projection, dinp: &mut GrowBuffer, dout: &GrowBuffer, inp: &GrowBuffer| {
            self.project_backward(layer, p, Some(dinp), grads, dout, inp, &mid[p.index()], rows);
        };

        be.zero(d.act.get_mut(), n * ff);
        project(DownProj, &mut d.act, &d.hidden, &act.act);
        let (dgate, dup) = (d.gate.get_mut(), d.up.get_mut());
        be.swiglu_backward(dgate, dup, d.act.get(), act.gate.get(), act.up.get(), n * ff);
        be.zero(d.norm.get_mut(), n * c);
        project(GateProj, &mut d.norm, &d.gate, &act.norm2);
        project(UpProj, &mut d.norm, &d.up, &act.norm2);
        let weight = &self.layers[layer].post_attention_layernorm;
        be.rmsnorm_backward(d.hidden.get_mut(), d.norm.get(), act.res.get(), act.rstd2.get(), weight, n);
        be.zero(d.attn.get_mut(), n * config.num_attention_heads * config.head_dim);
        project(OProj, &mut d.attn, &d.hidden, attn);
    }

    /// Backward of a block's first half: `d.attn` holds the gradient of its output, `d.hidden` that of the residual
    /// stream beside it, and receives that of the block's input (where `wanted`; otherwise only what the adapters need
    /// is computed).
    fn attend_backward(
        &self,
        layer: usize,
        act: &LayerActivations,
        d: &mut Gradients,
        copies: &mut PrefixKv,
        pass: &ForwardPass<'_>,
        grads: &mut Buffer,
        wanted: bool,
    ) {
        use Projection::*;
        let (be, config, n) = (&*self.backend, &self.config, pass.rows.n);
        let (heads, kv_heads, head_dim) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let dims = AttentionDims { heads, kv_heads, head_dim };
        let [keys, values] = self.keys_of([&act.k, &act.v], pass, &mut copies.kv);
        let [dk, dv] = match pass.keys {
            None => [&mut d.k, &mut d.v],
            Some(_) => copies.dkv.each_mut(),
        };
        be.attention_backward(
            d.q.get_mut(),
            dk.get_mut(),
            dv.get_mut(),
            d.attn.get(),
            act.attn.get(),
            act.lse.get(),
            act.q.get(),
            keys,
            values,
            pass.segments,
            dims,
        );
        if let Some(rows) = pass.keys {
            for (own, dout) in [&mut d.k, &mut d.v].into_iter().zip(&copies.dkv) {
                self.scatter(own, dout, rows, (n, kv_heads * head_dim));
            }
        }
        be.rope_backward(d.q.get_mut(), &self.inv_freq, pass.positions, heads, head_dim);
        be.rope_backward(d.k.get_mut(), &self.inv_freq, pass.positions, kv_heads, head_dim);
        be.zero(d.norm.get_mut(), n * config.hidden_size);
        for (p, dout) in [(QProj, &d.q), (KProj, &d.k), (VProj, &d.v)] {
            let (dinp, mid) = (wanted.then_some(&mut d.norm), &act.mid[p.index()]);
            self.project_backward(layer, p, dinp, grads, dout, &act.norm1, mid, &pass.rows);
        }
        if wanted {
            let (dinp, weight) = (d.hidden.get_mut(), &self.layers[layer].input_layernorm);
            be.rmsnorm_backward(dinp, d.norm.get(), act.inp.get(), act.rstd1.get(), weight, n);
        }
    }

    /// Backward of a projection: `dinp += dout W` where wanted, and each adapter's share on its own rows.
    fn project_backward(
        &self,
        layer: usize,
        projection: Projection,
        mut dinp: Option<&mut GrowBuffer>,
        grads: &mut Buffer,
        dout: &GrowBuffer,
        inp: &GrowBuffer,
        mid: &GrowBuffer,
        rows: &PassRows<'_>,
    ) {
        let be = &*self.backend;
        if let Some(dinp) = dinp.as_deref_mut() {
            be.linear_backward(dinp.get_mut(), dout.get(), self.layers[layer].projection(projection), rows.n);
        }
        for LoraRows { rows, source, dropout } in &rows.lora {
            let Some(pair) = source.pair(layer, projection) else { continue };
            let (dinp, rows) = (dinp.as_deref_mut().map(GrowBuffer::get_mut), rows.clone());
            let dropout = dropout.map(|plan| plan.module(layer, projection));
            be.lora_backward(dinp, grads, dout.get(), inp.get(), mid.get(), pair, rows, dropout);
        }
    }
}
