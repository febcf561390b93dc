//! The backward of a decoder: each block's list upside down, down to the lowest adapter.

use danlu_kernels::{AttentionDims, Buffer};

use crate::activations::LayerActivations;
use crate::decoder::{Decoder, Pass, batch_pass};
use crate::lora::LoraRows;
use crate::workspace::{Gradients, Slot, Workspace};
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
        let (be, config) = (&*self.backend, &self.config);
        let (n, labels) = (batch.tokens(), batch.trained_tokens());
        let pass = batch_pass(batch, lora);
        self.reserve(work, n, labels);
        self.blocks(work, &batch.ids, &pass, true);
        self.head_rows(work, &batch.label_rows);

        let mut losses = vec![0.0; labels];
        let (dnorm, norm) = (work.grads.norm.get_mut(), work.head_norm.get());
        be.head_loss(&mut losses, Some(dnorm), norm, &self.lm_head, &batch.targets, dloss);
        let c = config.hidden_size;
        be.zero(work.grads.head.get_mut(), labels * c);
        let (dhead, inp, rstd) = (work.grads.head.get_mut(), work.head_inp.get(), work.head_rstd.get());
        be.rmsnorm_backward(dhead, work.grads.norm.get(), inp, rstd, &self.norm, labels);
        be.zero(work.grads.hidden.get_mut(), n * c);
        be.gather_rows_backward(work.grads.hidden.get_mut(), work.grads.head.get(), &batch.label_rows, c);

        let lowest = (0..self.layers.len())
            .find(|&layer| {
                lora.iter().any(|l| Projection::ALL.iter().any(|&p| l.source.pair(layer, p).is_some()))
            })
            .unwrap_or(self.layers.len());
        for layer in (lowest..self.layers.len()).rev() {
            let mut act = work.take_layer(layer);
            if !work.holds(layer) {
                self.restore(layer, &mut act, work.policy(layer), &pass);
            }
            self.block_backward(layer, &act, &mut work.grads, &pass, grads, layer > lowest);
            work.put_layer(layer, act);
        }
        Ok(losses)
    }

    /// Backward of one block: `d.hidden` holds the gradient of its output and receives that of its input
    /// (where `wanted`; otherwise only what the adapters need is computed).
    fn block_backward(
        &self,
        layer: usize,
        act: &LayerActivations,
        d: &mut Gradients,
        pass: &Pass<'_>,
        grads: &mut Buffer,
        wanted: bool,
    ) {
        use Projection::*;
        let (be, config, weights) = (&*self.backend, &self.config, &self.layers[layer]);
        let (n, c, ff) = (pass.n, config.hidden_size, config.intermediate_size);
        let (heads, kv_heads, head_dim) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let dims = AttentionDims { heads, kv_heads, head_dim };
        let mut project = |p: Projection, dinp: Option<&mut Slot>, dout: &Slot, inp: &Slot| {
            self.project_backward(layer, p, dinp, grads, dout, inp, &act.mid[p.index()], pass);
        };

        be.zero(d.act.get_mut(), n * ff);
        project(DownProj, Some(&mut d.act), &d.hidden, &act.act);
        let (dgate, dup) = (d.gate.get_mut(), d.up.get_mut());
        be.swiglu_backward(dgate, dup, d.act.get(), act.gate.get(), act.up.get(), n * ff);
        be.zero(d.norm.get_mut(), n * c);
        project(GateProj, Some(&mut d.norm), &d.gate, &act.norm2);
        project(UpProj, Some(&mut d.norm), &d.up, &act.norm2);
        let weight = &weights.post_attention_layernorm;
        be.rmsnorm_backward(d.hidden.get_mut(), d.norm.get(), act.res.get(), act.rstd2.get(), weight, n);

        be.zero(d.attn.get_mut(), n * heads * head_dim);
        project(OProj, Some(&mut d.attn), &d.hidden, &act.attn);
        be.attention_backward(
            d.q.get_mut(),
            d.k.get_mut(),
            d.v.get_mut(),
            d.attn.get(),
            act.attn.get(),
            act.lse.get(),
            act.q.get(),
            act.k.get(),
            act.v.get(),
            pass.segments,
            dims,
        );
        be.rope_backward(d.q.get_mut(), &self.inv_freq, pass.positions, heads, head_dim);
        be.rope_backward(d.k.get_mut(), &self.inv_freq, pass.positions, kv_heads, head_dim);
        be.zero(d.norm.get_mut(), n * c);
        for (p, dout) in [(QProj, &d.q), (KProj, &d.k), (VProj, &d.v)] {
            project(p, wanted.then_some(&mut d.norm), dout, &act.norm1);
        }
        if wanted {
            let (dinp, weight) = (d.hidden.get_mut(), &weights.input_layernorm);
            be.rmsnorm_backward(dinp, d.norm.get(), act.inp.get(), act.rstd1.get(), weight, n);
        }
    }

    /// Backward of a projection: `dinp += dout W` where wanted, and each adapter's share on its own rows.
    fn project_backward(
        &self,
        layer: usize,
        projection: Projection,
        mut dinp: Option<&mut Slot>,
        grads: &mut Buffer,
        dout: &Slot,
        inp: &Slot,
        mid: &Slot,
        pass: &Pass<'_>,
    ) {
        let be = &*self.backend;
        if let Some(dinp) = dinp.as_deref_mut() {
            be.linear_backward(dinp.get_mut(), dout.get(), self.layers[layer].projection(projection), pass.n);
        }
        for LoraRows { rows, source, dropout } in pass.lora {
            let Some(pair) = source.pair(layer, projection) else { continue };
            let (dinp, rows) = (dinp.as_deref_mut().map(Slot::get_mut), rows.clone());
            let dropout = dropout.map(|plan| plan.module(layer, projection));
            be.lora_backward(dinp, grads, dout.get(), inp.get(), mid.get(), pair, rows, dropout);
        }
    }
}
