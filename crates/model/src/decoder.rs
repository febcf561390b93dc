//! A Llama decoder, composed by hand from paired operations: no tape, no graph.
//!
//! One block, forward; [`backward`](crate::backward) is the same list upside down:
//!
//! ```text
//! norm1 = rmsnorm(inp)            q, k, v = linear(norm1) + lora       rope(q), rope(k)
//! attn  = attention(q, k, v)      res = linear(attn) + lora + inp
//! norm2 = rmsnorm(res)            gate, up = linear(norm2) + lora
//! act   = silu(gate) · up         out = linear(act) + lora + res
//! ```
//!
//! Behind attention no row sees another: what the last layer computes from `res` on, it computes for those rows alone
//! that reach the head.

use std::mem;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use danlu_kernels::{AttentionDims, Backend, Buffer, LoraRef, Matrix, Trace};

use crate::activations::{LayerActivations, Mids, MlpActivations};
use crate::forward_pass::{ForwardPass, MANY_ROWS, PassRows};
use crate::lora::{LoraRows, LoraSource};
use crate::workspace::{GrowBuffer, PrefixKv, Workspace};
use crate::{ActivationPolicy, Batch, KvCache, ModelConfig, ModelError, Projection, Weights};

/// A base model that runs forward, and backward to its adapters.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) config: ModelConfig,
    pub(crate) backend: Arc<dyn Backend>,
    embed_tokens: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Buffer,
    pub(crate) lm_head: Matrix,
    pub(crate) inv_freq: Vec<f32>,
}

/// The frozen weights of one block, named as in the checkpoint.
#[derive(Debug)]
pub(crate) struct Layer {
    pub input_layernorm: Buffer,
    pub post_attention_layernorm: Buffer,
    /// Indexed by [`Projection`].
    pub projections: [Matrix; Projection::ALL.len()],
}

impl Layer {
    pub fn projection(&self, projection: Projection) -> &Matrix {
        &self.projections[projection.index()]
    }
}

impl Decoder {
    /// Opens a Hugging Face folder: `config.json` and safetensors, memory-mapped.
    ///
    /// # Errors
    /// If a file is missing or malformed, the model is not a supported one, or a tensor is missing, extra
    /// or misshaped.
    pub fn load(folder: &Path, backend: Arc<dyn Backend>) -> Result<Self, ModelError> {
        Self::new(ModelConfig::read(folder)?, &Weights::open(folder)?, backend)
    }

    /// A decoder over weights that are open already.
    ///
    /// # Errors
    /// If a tensor is missing, extra or misshaped.
    pub fn new(
        config: ModelConfig,
        weights: &Weights,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, ModelError> {
        weights.check_complete(&config)?;
        let matrix = |name: &str, rows, cols| weights.matrix(name, rows, cols);
        Self::build(config, backend, matrix, |name, len| Ok(Some(weights.vector_f32(name, len)?)))
    }

    /// A decoder of this shape on a back end that computes nothing: no file is opened.
    pub fn trace(config: ModelConfig, trace: Arc<Trace>) -> Self {
        let matrix = |_: &str, rows, cols| Ok(Trace::matrix(rows, cols));
        Self::build(config, trace, matrix, |_, _| Ok(None)).expect("shapes alone cannot be wrong")
    }

    /// Asks for every tensor by name and shape; a vector may have no values.
    fn build(
        config: ModelConfig,
        backend: Arc<dyn Backend>,
        matrix: impl Fn(&str, usize, usize) -> Result<Matrix, ModelError>,
        values: impl Fn(&str, usize) -> Result<Option<Vec<f32>>, ModelError>,
    ) -> Result<Self, ModelError> {
        let (v, c) = (config.vocab_size, config.hidden_size);
        let vector = |name: &str| -> Result<Buffer, ModelError> {
            let mut buffer = backend.alloc(c);
            if let Some(values) = values(name, c)? {
                backend.write(&mut buffer, 0, &values);
            }
            Ok(buffer)
        };
        let embed_tokens = matrix("model.embed_tokens.weight", v, c)?;
        let lm_head = match config.tie_word_embeddings {
            true => embed_tokens.clone(),
            false => matrix("lm_head.weight", v, c)?,
        };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let mut projections = Vec::with_capacity(Projection::ALL.len());
            for projection in Projection::ALL {
                let (rows, cols) = config.projection_shape(projection);
                projections.push(matrix(&projection.weight_name(layer), rows, cols)?);
            }
            let norm = |name: &str| vector(&format!("model.layers.{layer}.{name}.weight"));
            layers.push(Layer {
                input_layernorm: norm("input_layernorm")?,
                post_attention_layernorm: norm("post_attention_layernorm")?,
                projections: projections.try_into().expect("one matrix per projection"),
            });
        }
        let norm = vector("model.norm.weight")?;
        let inv_freq = config.inv_freq();
        Ok(Self { config, backend, embed_tokens, layers, norm, lm_head, inv_freq })
    }

    /// What `config.json` says.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What computes.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Makes every buffer that training on batches of up to `rows` rows, `labels` of them with a label, needs; `keys` are
    /// the tokens of batches that share rows.
    pub fn reserve(&self, work: &mut Workspace, rows: usize, labels: usize, keys: usize) {
        let (rows, labels) = (rows.max(MANY_ROWS), labels.max(MANY_ROWS));
        work.reserve_prefix_kv(&self.config, &*self.backend, keys);
        work.reserve(&self.config, &*self.backend, rows, self.layers.len(), labels);
        work.reserve_gradients(&self.config, &*self.backend, rows, labels);
    }

    /// The loss of every trained token in nats, in the batch's order.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn losses(
        &self,
        work: &mut Workspace,
        batch: &Batch,
        lora: Option<&dyn LoraSource>,
    ) -> Result<Vec<f32>, ModelError> {
        self.check_ids(&batch.ids)?;
        let pass = ForwardPass::over(batch, lora_rows(lora, batch.rows())).with_head(&batch.label_rows);
        work.reserve(&self.config, &*self.backend, batch.rows(), 1, batch.trained_tokens());
        self.blocks(work, &batch.ids, &pass, false, None);
        self.head_norm(work, batch.trained_tokens());
        let mut losses = vec![0.0; batch.trained_tokens()];
        self.backend.head_loss(&mut losses, None, work.head_norm.get(), &self.lm_head, &batch.targets, 0.0);
        Ok(losses)
    }

    /// The logits of every row, `(N, V)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn logits(
        &self,
        work: &mut Workspace,
        batch: &Batch,
        lora: Option<&dyn LoraSource>,
    ) -> Result<Vec<f32>, ModelError> {
        let states = self.hidden_states(work, batch, lora)?;
        Ok(self.logits_of(work, &states, 0..batch.rows()))
    }

    /// The residual stream behind the last layer, `(N, C)`: what [`Decoder::logits_of`] turns into logits, some rows
    /// at a time, where those of all rows would be too many.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn hidden_states(
        &self,
        work: &mut Workspace,
        batch: &Batch,
        lora: Option<&dyn LoraSource>,
    ) -> Result<Buffer, ModelError> {
        self.check_ids(&batch.ids)?;
        let (n, c) = (batch.rows(), self.config.hidden_size);
        work.reserve(&self.config, &*self.backend, n, 1, 0);
        self.blocks(work, &batch.ids, &ForwardPass::over(batch, lora_rows(lora, n)), false, None);
        let mut states = self.backend.alloc(n * c);
        self.backend.copy_rows(&mut states, 0, work.hidden.get(), 0, n, c);
        Ok(states)
    }

    /// The logits of `rows` of [`Decoder::hidden_states`], `(rows, V)`.
    pub fn logits_of(&self, work: &mut Workspace, states: &Buffer, rows: Range<usize>) -> Vec<f32> {
        let (n, c) = (rows.len(), self.config.hidden_size);
        work.reserve(&self.config, &*self.backend, 0, 1, n);
        self.backend.copy_rows(work.head_inp.get_mut(), 0, states, rows.start, n, c);
        self.head_logits(work, n)
    }

    /// Embeds `ids` and runs every block, over `cache` where there is one; the result stands in `work.head_inp`, or
    /// where all rows go on in `work.hidden`. With `keep`, every layer's activations stay for the backward, as far as
    /// its policy goes.
    pub(crate) fn blocks(
        &self,
        work: &mut Workspace,
        ids: &[u32],
        pass: &ForwardPass<'_>,
        keep: bool,
        mut cache: Option<&mut KvCache>,
    ) {
        let (be, c) = (&*self.backend, self.config.hidden_size);
        be.embedding_forward(work.layers[0].inp.get_mut(), &self.embed_tokens, ids);
        for layer in 0..self.layers.len() {
            let is_last = layer + 1 == self.layers.len();
            let slot = if keep { layer } else { 0 };
            let mut act = work.take_layer(slot);
            self.attend(layer, &mut act, pass, cache.as_deref_mut(), &mut work.prefix_kv);
            let LayerActivations { inp, attn, mlp, mid, .. } = &mut act;
            match &pass.head {
                Some(head) if is_last && head.rows.n == 0 => {}
                Some(head) if is_last => {
                    let width = self.config.num_attention_heads * self.config.head_dim;
                    be.gather_rows(work.hidden.get_mut(), inp.get(), head.index, c);
                    be.gather_rows(work.head_attn.get_mut(), attn.get(), head.index, width);
                    let from = (&work.head_attn, &work.hidden);
                    self.mlp(layer, mlp, mid, &mut work.head_inp, from, &head.rows);
                }
                _ => {
                    // Where everything is kept, a block writes where the next one reads.
                    let next =
                        if keep && !is_last { &mut work.layers[layer + 1].inp } else { &mut work.hidden };
                    self.mlp(layer, mlp, mid, next, (attn, inp), &pass.rows);
                }
            }
            work.put_layer(slot, act);
            if !keep && !is_last {
                mem::swap(&mut work.layers[0].inp, &mut work.hidden);
            }
        }
    }

    /// The first half of a block: from `act.inp` to `act.attn`.
    fn attend(
        &self,
        layer: usize,
        act: &mut LayerActivations,
        pass: &ForwardPass<'_>,
        cache: Option<&mut KvCache>,
        copies: &mut PrefixKv,
    ) {
        use Projection::*;
        let (be, config, weights) = (&*self.backend, &self.config, &self.layers[layer]);
        let (heads, kv_heads, head_dim) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let dims = AttentionDims { heads, kv_heads, head_dim };
        let mid = &mut act.mid;
        let mut project = |p: Projection, out: &mut GrowBuffer, inp: &GrowBuffer| {
            self.project(layer, p, out, &mut mid[p.index()], inp, &pass.rows);
        };

        let (n, eps, weight) = (pass.rows.n, config.rms_norm_eps, &weights.input_layernorm);
        be.rmsnorm_forward(act.norm1.get_mut(), act.rstd1.get_mut(), act.inp.get(), weight, eps, n);
        project(QProj, &mut act.q, &act.norm1);
        project(KProj, &mut act.k, &act.norm1);
        project(VProj, &mut act.v, &act.norm1);
        be.rope_forward(act.q.get_mut(), &self.inv_freq, pass.positions, heads, head_dim);
        be.rope_forward(act.k.get_mut(), &self.inv_freq, pass.positions, kv_heads, head_dim);
        let [keys, values] = match cache {
            None => self.keys_of([&act.k, &act.v], pass, &mut copies.kv),
            Some(cache) => {
                let (keys, values) = (&mut cache.keys[layer], &mut cache.values[layer]);
                for s in pass.segments {
                    let newest = s.kv_start + s.kv_len - s.q_len;
                    be.copy_rows(keys, newest, act.k.get(), s.q_start, s.q_len, kv_heads * head_dim);
                    be.copy_rows(values, newest, act.v.get(), s.q_start, s.q_len, kv_heads * head_dim);
                }
                [&*keys, &*values]
            }
        };
        be.attention_forward(
            act.attn.get_mut(),
            act.lse.get_mut(),
            act.q.get(),
            keys,
            values,
            pass.segments,
            dims,
        );
    }

    /// The keys and values that the segments of `pass` see: a layer's `own`, or where sequences share rows `copies`.
    pub(crate) fn keys_of<'b>(
        &self,
        own: [&'b GrowBuffer; 2],
        pass: &ForwardPass<'_>,
        copies: &'b mut [GrowBuffer; 2],
    ) -> [&'b Buffer; 2] {
        let Some(rows) = pass.keys else { return own.map(GrowBuffer::get) };
        let width = self.config.num_key_value_heads * self.config.head_dim;
        for (copy, own) in copies.iter_mut().zip(own) {
            copy.reserve(&*self.backend, rows.len() * width);
            self.backend.gather_rows(copy.get_mut(), own.get(), rows, width);
        }
        copies.each_ref().map(GrowBuffer::get)
    }

    /// The second half of a block: from the attention output and the residual stream before it to `out`.
    fn mlp(
        &self,
        layer: usize,
        act: &mut MlpActivations,
        mid: &mut Mids,
        out: &mut GrowBuffer,
        from: (&GrowBuffer, &GrowBuffer),
        rows: &PassRows<'_>,
    ) {
        let down = Projection::DownProj;
        self.mlp_activations(layer, act, mid, from, rows);
        self.project(layer, down, out, &mut mid[down.index()], &act.act, rows);
        self.backend.add(out.get_mut(), act.res.get(), rows.n * self.config.hidden_size);
    }

    /// All of the second half but the product that ends it.
    fn mlp_activations(
        &self,
        layer: usize,
        act: &mut MlpActivations,
        mid: &mut Mids,
        (attn, inp): (&GrowBuffer, &GrowBuffer),
        rows: &PassRows<'_>,
    ) {
        use Projection::*;
        let (be, config, weights) = (&*self.backend, &self.config, &self.layers[layer]);
        let (n, eps, weight) = (rows.n, config.rms_norm_eps, &weights.post_attention_layernorm);
        let mut project = |p: Projection, out: &mut GrowBuffer, inp: &GrowBuffer| {
            self.project(layer, p, out, &mut mid[p.index()], inp, rows);
        };
        project(OProj, &mut act.res, attn);
        be.add(act.res.get_mut(), inp.get(), n * config.hidden_size);
        be.rmsnorm_forward(act.norm2.get_mut(), act.rstd2.get_mut(), act.res.get(), weight, eps, n);
        project(GateProj, &mut act.gate, &act.norm2);
        project(UpProj, &mut act.up, &act.norm2);
        be.swiglu_forward(act.act.get_mut(), act.gate.get(), act.up.get(), n * config.intermediate_size);
    }

    /// Makes again what the layer's policy did not keep; the values are the same bits as before. Not for the last layer,
    /// whose backward follows its forward at once.
    pub(crate) fn restore(
        &self,
        layer: usize,
        act: &mut LayerActivations,
        policy: ActivationPolicy,
        pass: &ForwardPass<'_>,
        copies: &mut PrefixKv,
    ) {
        let (be, config, weights, n) = (&*self.backend, &self.config, &self.layers[layer], pass.rows.n);
        let eps = config.rms_norm_eps;
        match policy {
            ActivationPolicy::KeepAll => {}
            ActivationPolicy::KeepSome => {
                let weight = &weights.input_layernorm;
                be.rmsnorm_forward(act.norm1.get_mut(), act.rstd1.get_mut(), act.inp.get(), weight, eps, n);
                let (weight, mlp) = (&weights.post_attention_layernorm, &mut act.mlp);
                be.rmsnorm_forward(mlp.norm2.get_mut(), mlp.rstd2.get_mut(), mlp.res.get(), weight, eps, n);
                let len = n * config.intermediate_size;
                be.swiglu_forward(mlp.act.get_mut(), mlp.gate.get(), mlp.up.get(), len);
            }
            ActivationPolicy::Recompute => {
                self.attend(layer, act, pass, None, copies);
                self.mlp_activations(layer, &mut act.mlp, &mut act.mid, (&act.attn, &act.inp), &pass.rows);
            }
        }
    }

    /// `out = inp Wᵀ`, plus each adapter's update on its own rows.
    fn project(
        &self,
        layer: usize,
        projection: Projection,
        out: &mut GrowBuffer,
        mid: &mut GrowBuffer,
        inp: &GrowBuffer,
        rows: &PassRows<'_>,
    ) {
        let be = &*self.backend;
        let weight = self.layers[layer].projection(projection);
        be.linear_forward(out.get_mut(), inp.get(), weight, rows.computed);
        let pairs: Vec<(_, LoraRef<'_>)> =
            rows.lora.iter().filter_map(|l| Some((l, l.source.pair(layer, projection)?))).collect();
        let Some(rank) = pairs.iter().map(|(_, pair)| pair.rank).max() else { return };
        mid.reserve(be, rows.n * rank);
        for (LoraRows { rows, dropout, .. }, pair) in pairs {
            let dropout = dropout.map(|plan| plan.module(layer, projection));
            be.lora_forward(out.get_mut(), mid.get_mut(), inp.get(), pair, rows.clone(), dropout);
        }
    }

    /// The final norm of the first `n` rows of `work.head_inp`: `work.head_norm`.
    pub(crate) fn head_norm(&self, work: &mut Workspace, n: usize) {
        let (out, rstd) = (work.head_norm.get_mut(), work.head_rstd.get_mut());
        let (inp, eps) = (work.head_inp.get(), self.config.rms_norm_eps);
        self.backend.rmsnorm_forward(out, rstd, inp, &self.norm, eps, n);
    }

    /// The logits of the first `n` rows of `work.head_inp`, `(N, V)`.
    pub(crate) fn head_logits(&self, work: &mut Workspace, n: usize) -> Vec<f32> {
        self.head_norm(work, n);
        let be = &*self.backend;
        let mut logits = vec![0.0; n * self.config.vocab_size];
        work.logits.reserve(be, logits.len());
        be.linear_forward(work.logits.get_mut(), work.head_norm.get(), &self.lm_head, n);
        be.read(&mut logits, work.logits.get(), 0);
        logits
    }

    /// Checks that every id is in the vocabulary.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`] names the first that is not.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), ModelError> {
        let vocab_size = self.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(ModelError::TokenOutOfRange { id, vocab_size }),
            None => Ok(()),
        }
    }
}

fn lora_rows(source: Option<&dyn LoraSource>, n: usize) -> Vec<LoraRows<'_>> {
    source.into_iter().map(|source| LoraRows::all(source, n)).collect()
}
