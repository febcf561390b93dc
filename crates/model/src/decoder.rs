//! Forward pass of a decoder. Each operation has a backward operation. There is no tape and no graph.
//!
//! This is the forward pass of one block of Llama. [`backward`](crate::backward) runs the same operations in
//! reverse:
//!
//! ```text
//! norm1 = rmsnorm(inp)            q, k, v = linear(norm1) + lora       rope(q), rope(k)
//! attn  = attention(q, k, v)      res = linear(attn) + lora + inp
//! norm2 = rmsnorm(res)            gate, up = linear(norm2) + lora
//! act   = silu(gate) · up         out = linear(act) + lora + res
//! ```
//!
//! [`Architecture`] describes how other families differ, for example by biases, norms of q and k, and norms
//! after attention and MLP.
//!
//! After attention, no row depends on another row. The last layer therefore computes `res` and all later
//! values only for the rows whose losses or logits are needed (the head rows).

use std::mem;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::slice;
use std::sync::Arc;

use danlu_kernels::{
    AttentionDims, AttentionOperands, Backend, Buffer, Element, GatedOperands, HeadOperands, Indices,
    LoraPair, LoraSegment, Matrix, PassSize, ProjectGroup, RopeOperands, Segment, Trace,
};

#[cfg(doc)]
use crate::Architecture;
use crate::activations::{LayerActivations, Mids, MlpActivations};
use crate::forward_pass::{ForwardPass, PassIndices, PassRows, SplitIndices};
use crate::lora::{LoraRows, LoraSource, OutputFactors};
use crate::workspace::{GrowBuffer, LayerScratch, Workspace};
use crate::{
    ActivationPolicy, Batch, KvCache, LayerRope, ModelConfig, ModelError, Projection, Quantization,
    QuantizeProgress, Weights, projections,
};

/// A base model with a forward pass, and with a backward pass that computes the gradients of its adapters.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) config: ModelConfig,
    pub(crate) backend: Arc<dyn Backend>,
    embed_tokens: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Buffer,
    pub(crate) lm_head: Matrix,
    /// The rotary frequencies for [`LayerRope::Global`] and [`LayerRope::Local`].
    pub(crate) inv_freq: [Buffer; 2],
}

/// Frozen weights of one block. The names are those of the checkpoint.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Weight of the norm [`BlockNorms::before_attention`](crate::BlockNorms::before_attention).
    pub before_attention: Option<Buffer>,
    /// Weight of the norm after the attention output.
    pub after_attention: Option<Buffer>,
    /// Weight of the norm before gate and up.
    pub before_mlp: Option<Buffer>,
    /// Weight of the norm after down.
    pub after_mlp: Option<Buffer>,
    /// Weights of the norms of queries and keys.
    pub qk_norm: Option<[Buffer; 2]>,
    /// Indexed by [`Projection`]. `None` if the model does not have the projection.
    pub projections: [Option<Matrix>; Projection::ALL.len()],
    pub biases: [Option<Buffer>; Projection::ALL.len()],
}

/// Name, number of rows and number of columns of a weight.
type TensorName = (String, usize, usize);

/// Releases the mapped memory of weights that were copied to a device.
fn release_placed(weights: &Weights, backend: &dyn Backend, names: &[TensorName]) {
    if backend.device_memory().is_some() {
        names.iter().filter_map(|(name, ..)| weights.info(name)).for_each(|info| weights.release(info));
    }
}

/// Places the weight of the loss head. On a device, also releases the mapped memory of the weight.
fn place_head(
    weights: Option<&Weights>,
    backend: &dyn Backend,
    name: TensorName,
    head: &Matrix,
) -> Result<Matrix, ModelError> {
    let mut placed = backend.place(slice::from_ref(head))?;
    if let Some(weights) = weights {
        release_placed(weights, backend, &[name]);
    }
    Ok(placed.pop().expect("one matrix for one"))
}

/// Inputs of the second half of a block (after attention).
struct BranchInput<'a> {
    attn: &'a GrowBuffer,
    /// Residual stream before attention.
    inp: &'a GrowBuffer,
    rows: &'a PassRows<'a>,
    /// Indices of gate and up in the output of a fused projection.
    split: &'a SplitIndices,
}

impl Layer {
    /// Builds a layer. `vector` returns a vector by name and length. The last argument of `vector` is true
    /// for the weight of a norm.
    fn build(
        config: &ModelConfig,
        layer: usize,
        placed: Vec<Matrix>,
        vector: &dyn Fn(&str, usize, bool) -> Result<Buffer, ModelError>,
    ) -> Result<Self, ModelError> {
        let path = |name: &str| format!("model.layers.{layer}.{name}.weight");
        let norm =
            |name: Option<&str>| name.map(|name| vector(&path(name), config.hidden_size, true)).transpose();
        let mut projections = Projection::ALL.map(|_| None);
        for (projection, matrix) in config.projections().zip(placed) {
            projections[projection.index()] = Some(matrix);
        }
        let mut biases = Projection::ALL.map(|_| None);
        for projection in config.projections().filter(|&p| config.has_bias(p)) {
            let (d_out, _) = config.projection_shape(projection);
            biases[projection.index()] = Some(vector(&projection.bias_name(layer), d_out, false)?);
        }
        let norms = config.architecture.norms;
        let qk_norm = match config.qk_norm_widths() {
            Some([q, k]) => {
                let of = |name, width| vector(&path(name), width, true);
                Some([of("self_attn.q_norm", q)?, of("self_attn.k_norm", k)?])
            }
            None => None,
        };
        Ok(Self {
            before_attention: norm(norms.before_attention)?,
            after_attention: norm(norms.after_attention)?,
            before_mlp: norm(norms.before_mlp)?,
            after_mlp: norm(norms.after_mlp)?,
            qk_norm,
            projections,
            biases,
        })
    }

    pub fn projection(&self, projection: Projection) -> &Matrix {
        self.projections[projection.index()].as_ref().expect("the model has this projection")
    }
}

impl Decoder {
    /// Opens a model folder in the format of Hugging Face: `config.json` and the weight files of
    /// [`Weights::open`]. The weight files are memory-mapped.
    ///
    /// # Errors
    /// If a file is missing or malformed, the model is not supported, or a tensor is missing, unexpected or
    /// misshaped.
    pub fn load(folder: &Path, backend: Arc<dyn Backend>) -> Result<Self, ModelError> {
        Self::new(ModelConfig::read(folder)?, &Weights::open(folder)?, backend)
    }

    /// Builds a decoder from opened weights.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or misshaped.
    pub fn new(
        config: ModelConfig,
        weights: &Weights,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, ModelError> {
        weights.check_complete(&config)?;
        let place = backend.clone();
        let matrix = |name: &str, rows, cols| weights.matrix(name, rows, cols);
        let group = |names: &[TensorName]| {
            let matrices: Result<Vec<_>, _> = names.iter().map(|(name, r, c)| matrix(name, *r, *c)).collect();
            let placed = place.place(&matrices?)?;
            release_placed(weights, &*place, names);
            Ok(placed)
        };
        let vector = |name: &str, len| Ok(Some(weights.vector_f32(name, len)?));
        Self::build(config, backend, Some(weights), matrix, group, vector)
    }

    /// Builds a decoder as [`Decoder::new`] does. Every projection of a layer is quantized to 4 bits while it
    /// is loaded.
    ///
    /// The back end quantizes the projections if it can. Otherwise, `threads` threads of the host quantize
    /// the projections. Both ways give the same bits.
    ///
    /// # Errors
    /// The errors of [`Decoder::new`]. Also returns an error if weights are in 4 bits already, if a value is
    /// not finite, or if `progress` stops.
    pub fn quantized(
        config: ModelConfig,
        weights: &Weights,
        backend: Arc<dyn Backend>,
        (quantization, threads): (Quantization, usize),
        progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
    ) -> Result<Self, ModelError> {
        weights.check_complete(&config)?;
        weights.refuse_four_bit()?;
        let place = backend.clone();
        let matrix = |name: &str, rows, cols| weights.matrix(name, rows, cols);
        let stored = |name: &str| weights.info(name).map_or(0, |info| info.range.len() as u64);
        let total = projections(&config).map(|(name, ..)| stored(&name)).sum();
        let mut bytes = 0;
        let group = |names: &[TensorName]| {
            let matrices: Result<Vec<_>, _> = names.iter().map(|(name, r, c)| matrix(name, *r, *c)).collect();
            let placed = match place.place_encoded(&matrices?, quantization.format())? {
                Some(placed) => placed,
                None => {
                    let encode = |(name, rows, cols): &TensorName| {
                        let weight = weights.encode(name, quantization, threads)?;
                        Ok(Matrix::four_bit(Arc::new(weight), *rows, *cols))
                    };
                    place.place(&names.iter().map(encode).collect::<Result<Vec<_>, ModelError>>()?)?
                }
            };
            release_placed(weights, &*place, names);
            bytes += names.iter().map(|(name, ..)| stored(name)).sum::<u64>();
            match progress(QuantizeProgress { bytes, total }) {
                ControlFlow::Continue(()) => Ok(placed),
                ControlFlow::Break(()) => Err(ModelError::Stopped),
            }
        };
        let vector = |name: &str, len| Ok(Some(weights.vector_f32(name, len)?));
        Self::build(config, backend, Some(weights), matrix, group, vector)
    }

    /// Builds a decoder of this shape on a back end that computes nothing. No file is opened.
    pub fn trace(config: ModelConfig, trace: Arc<Trace>) -> Self {
        let matrix = |_: &str, rows, cols| Ok(Trace::matrix(rows, cols));
        let group = |names: &[TensorName]| {
            Ok(names.iter().map(|&(_, rows, cols)| Trace::matrix(rows, cols)).collect())
        };
        Self::build(config, trace, None, matrix, group, |_, _| Ok(None))
            .expect("shapes alone cannot be wrong")
    }

    /// Builds a decoder. `matrix` returns a weight by its name and shape. `values` returns a vector by its
    /// name and length, or `None` on a back end that computes nothing.
    ///
    /// `placed` returns the projections of a group in the memory of the back end. If there are weight files,
    /// `weights` contains their tensors.
    fn build(
        config: ModelConfig,
        backend: Arc<dyn Backend>,
        weights: Option<&Weights>,
        matrix: impl Fn(&str, usize, usize) -> Result<Matrix, ModelError>,
        mut placed: impl FnMut(&[TensorName]) -> Result<Vec<Matrix>, ModelError>,
        values: impl Fn(&str, usize) -> Result<Option<Vec<f32>>, ModelError>,
    ) -> Result<Self, ModelError> {
        let missing = config.operations().into_iter().find(|&needed| !backend.supports(needed));
        if let Some(operation) = missing {
            let (family, backend) = (config.model_type.clone(), backend.name());
            return Err(ModelError::MissingOperation { family, backend, operation });
        }
        let (v, c, offset) = (config.vocab_size, config.hidden_size, config.architecture.norm_offset);
        let vector = |name: &str, len: usize, change: &dyn Fn(f32) -> f32| -> Result<Buffer, ModelError> {
            let mut buffer = backend.alloc(len, Element::Exact);
            if let Some(mut values) = values(name, len)? {
                values.iter_mut().for_each(|value| *value = change(*value));
                backend.write(&mut buffer, 0, &values);
            }
            Ok(buffer)
        };
        let embedding = "model.embed_tokens.weight";
        let embed_tokens = matrix(embedding, v, c)?;
        let (name, head) = match config.tie_word_embeddings {
            true => (embedding, embed_tokens.clone()),
            false => ("lm_head.weight", matrix("lm_head.weight", v, c)?),
        };
        let lm_head = place_head(weights, &*backend, (name.to_owned(), v, c), &head)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let mut projections = Vec::with_capacity(Projection::ALL.len());
            for group in config.projection_groups() {
                let name = |&projection: &Projection| {
                    let (rows, cols) = config.projection_shape(projection);
                    (projection.weight_name(layer), rows, cols)
                };
                projections.extend(placed(&group.iter().map(name).collect::<Vec<_>>())?);
            }
            layers.push(Layer::build(&config, layer, projections, &|name, len, is_norm| {
                vector(name, len, &|value| if is_norm { value + offset } else { value })
            })?);
        }
        let divisor = config.architecture.logits_divisor;
        let norm = vector("model.norm.weight", c, &|value| (value + offset) / divisor)?;
        let inv_freq = [Some(&config.rope), config.architecture.local_rope.as_ref()].map(|rope| {
            let frequencies = rope.map_or_else(Vec::new, |rope| rope.inv_freq(config.rotary_dim()));
            let mut buffer = backend.alloc(frequencies.len(), Element::Exact);
            backend.write(&mut buffer, 0, &frequencies);
            buffer
        });
        Ok(Self { config, backend, embed_tokens, layers, norm, lm_head, inv_freq })
    }

    /// Returns the model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the weight of a projection, in the format in which the decoder uses it.
    pub fn projection(&self, layer: usize, projection: Projection) -> &Matrix {
        self.layers[layer].projection(projection)
    }

    /// Returns the back end.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Allocates the training buffers of `work` for batches of up to `rows` rows. At most `labels` of these
    /// rows have a label. `keys` is the largest number of tokens in a batch with shared prefixes.
    pub fn reserve(&self, work: &mut Workspace, rows: usize, labels: usize, keys: usize) {
        let [rows, labels] = self.computed_rows([rows, labels]);
        work.reserve_prefix_kv(&self.config, &*self.backend, keys);
        work.reserve(&self.config, &*self.backend, rows, self.layers.len(), labels);
        work.reserve_gradients(&self.config, &*self.backend, rows, labels);
    }

    /// Allocates the remaining memory that training passes of this size need: the low-rank intermediates of
    /// `lora` and the working memory of the back end. Later passes then allocate nothing.
    pub fn reserve_pass(&self, work: &mut Workspace, lora: &dyn LoraSource, rows: usize, labels: usize) {
        let [rows, labels] = self.computed_rows([rows, labels]);
        let rank = |layer, projection| lora.pair(layer, projection).map_or(0, |pair| pair.rank);
        work.reserve_mids(&*self.backend, (rows, labels), &rank);
        if lora.scales_outputs() {
            work.reserve_factors(&self.config, &*self.backend, rows, &rank);
        }
        let ModelConfig { hidden_size, head_dim, vocab_size, .. } = self.config;
        self.backend.reserve(PassSize { rows, labels, hidden_size, head_dim, vocab_size });
    }

    /// Raises both row counts to at least [`Backend::row_invariant_from`], because training pads its matrix
    /// multiplications to this number of rows.
    fn computed_rows(&self, rows: [usize; 2]) -> [usize; 2] {
        rows.map(|rows| rows.max(self.backend.row_invariant_from()))
    }

    /// Returns the loss of every trained token in nats, in the order of the batch.
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
        let (be, labels) = (&*self.backend, batch.trained_tokens());
        let mut pass = ForwardPass::over(batch, lora_rows(lora, batch.rows())).with_head(&batch.label_rows);
        work.reserve(&self.config, be, batch.rows(), 1, labels);
        work.losses.reserve(be, labels, 1, Element::Exact);
        pass.upload((be, &self.config), mem::take(&mut work.indices), &batch.ids, &batch.targets);
        self.blocks(work, &pass, false, None);
        self.head_norm(work, labels);
        let operands = self.head_operands(&work.head_norm, &pass.indices.targets);
        be.head_loss(work.losses.get_mut(), 0, operands, None);
        work.indices = pass.indices;
        self.read_losses(work, labels)
    }

    pub(crate) fn read_losses(&self, work: &Workspace, n: usize) -> Result<Vec<f32>, ModelError> {
        let mut losses = vec![0.0; n];
        self.backend.read(&mut losses, work.losses.get(), 0)?;
        Ok(losses)
    }

    /// Returns the logits of every row, `(N, V)`.
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
        self.logits_of(work, &states, 0..batch.rows())
    }

    /// Returns the residual stream after the last layer, `(N, C)`. [`Decoder::logits_of`] computes the logits
    /// of some of these rows at a time.
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
        let mut pass = ForwardPass::over(batch, lora_rows(lora, n));
        pass.upload((&*self.backend, &self.config), mem::take(&mut work.indices), &batch.ids, &[]);
        self.blocks(work, &pass, false, None);
        work.indices = pass.indices;
        let mut states = self.backend.alloc(n * c, Element::Residual);
        self.backend.copy_rows(&mut states, 0, work.hidden.get(), 0, n, c);
        Ok(states)
    }

    /// Returns the logits `(rows, V)` of the given rows of [`Decoder::hidden_states`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn logits_of(
        &self,
        work: &mut Workspace,
        states: &Buffer,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, ModelError> {
        let (n, c) = (rows.len(), self.config.hidden_size);
        work.reserve(&self.config, &*self.backend, 0, 1, n);
        self.backend.copy_rows(work.head_inp.get_mut(), 0, states, rows.start, n, c);
        let mut logits = vec![0.0; n * self.config.vocab_size];
        self.head_product(work, n, false);
        self.read_logits(&mut logits, work)?;
        Ok(logits)
    }

    /// Embeds the ids of an uploaded pass and runs every block. If a `cache` is given, attention reads the
    /// cache and adds the new keys and values. The result is written to `work.head_inp`, or to `work.hidden`
    /// if the pass selects no head rows. With `keep`, every layer stores the activations that its policy
    /// requires.
    pub(crate) fn blocks(
        &self,
        work: &mut Workspace,
        pass: &ForwardPass<'_>,
        keep: bool,
        mut cache: Option<&mut KvCache>,
    ) {
        let (be, c) = (&*self.backend, self.config.hidden_size);
        let scale = self.config.stream_embedding_scale();
        be.embedding_forward(work.layers[0].inp.get_mut(), &self.embed_tokens, &pass.indices.ids, scale);
        if pass.rows.lora.iter().any(|lora| lora.noise.is_some()) {
            self.add_noise(work, pass);
        }
        for layer in 0..self.layers.len() {
            let is_last = layer + 1 == self.layers.len();
            let slot = if keep { layer } else { 0 };
            let mut act = work.take_layer(slot);
            self.attend(layer, &mut act, pass, cache.as_deref_mut(), &mut work.scratch);
            let LayerActivations { inp, attn, mlp, mid, .. } = &mut act;
            match &pass.head {
                Some(head) if is_last && head.rows.n == 0 => {}
                Some(head) if is_last => {
                    let width = self.config.num_attention_heads * self.config.head_dim;
                    be.gather_rows(work.hidden.get_mut(), inp.get(), &pass.indices.head, c);
                    be.gather_rows(work.head_attn.get_mut(), attn.get(), &pass.indices.head, width);
                    let from = BranchInput {
                        attn: &work.head_attn,
                        inp: &work.hidden,
                        rows: &head.rows,
                        split: &pass.indices.head_gate_up,
                    };
                    self.mlp(layer, (mlp, mid), &mut work.head_inp, from, &mut work.scratch);
                }
                _ => {
                    // With `keep`, each layer has its own input buffer. A block then writes its output to the
                    // input buffer of the next block.
                    let next =
                        if keep && !is_last { &mut work.layers[layer + 1].inp } else { &mut work.hidden };
                    let split = &pass.indices.gate_up;
                    let from = BranchInput { attn, inp, rows: &pass.rows, split };
                    self.mlp(layer, (mlp, mid), next, from, &mut work.scratch);
                }
            }
            work.put_layer(slot, act);
            if !keep && !is_last {
                mem::swap(&mut work.layers[0].inp, &mut work.hidden);
            }
        }
    }

    /// Adds NEFTune's noise to the embeddings. The host draws the noise, so every back end gets the same
    /// noise.
    fn add_noise(&self, work: &mut Workspace, pass: &ForwardPass<'_>) {
        let (be, c) = (&*self.backend, self.config.hidden_size);
        let (len, scale) = (pass.rows.n * c, self.config.stream_noise_scale());
        work.noise.reserve(be, pass.rows.n, c, Element::Residual);
        if be.computes() {
            let mut values = vec![0.0; len];
            for LoraRows { rows, noise, .. } in &pass.rows.lora {
                let Some(noise) = noise else { continue };
                let is_own = |segment: &&Segment| rows.contains(&segment.q_start);
                for &Segment { q_start, q_len, kv_len, .. } in pass.segments.iter().filter(is_own) {
                    let first = (q_start - rows.start) * c;
                    noise.write(&mut values[q_start * c..][..q_len * c], first, (kv_len, c), scale);
                }
            }
            be.write(work.noise.get_mut(), 0, &values);
        }
        be.add(work.layers[0].inp.get_mut(), work.noise.get(), len);
    }

    /// Runs the first half of a block, up to attention: reads `act.inp` and writes `act.attn`.
    fn attend(
        &self,
        layer: usize,
        act: &mut LayerActivations,
        pass: &ForwardPass<'_>,
        cache: Option<&mut KvCache>,
        scratch: &mut LayerScratch,
    ) {
        use Projection::*;
        let (be, config, weights) = (&*self.backend, &self.config, &self.layers[layer]);
        let dims = self.attention_dims();
        let AttentionDims { kv_heads, head_dim, .. } = dims;
        let (n, eps) = (pass.rows.n, config.stream_eps());
        if let Some(weight) = &weights.before_attention {
            be.rmsnorm_forward(act.norm1.get_mut(), act.rstd1.get_mut(), act.inp.get(), weight, eps, n);
        }
        let inp = weights.before_attention.as_ref().map_or(&act.inp, |_| &act.norm1);
        let out = match &weights.qk_norm {
            Some(_) => [&mut act.q_raw, &mut act.k_raw, &mut act.v],
            None => [&mut act.q, &mut act.k, &mut act.v],
        };
        match config.architecture.fused_qkv {
            false => {
                self.project(layer, &[QProj, KProj, VProj], out, &mut act.mid, (inp, None), &pass.rows);
            }
            true => {
                let fused = &mut scratch.fused;
                self.project(layer, &[QkvProj], [fused], &mut act.mid, (inp, None), &pass.rows);
                self.split(out, &scratch.fused, &pass.indices.qkv, head_dim);
            }
        }
        if let Some([q_norm, k_norm]) = &weights.qk_norm {
            for (out, rstd, inp, weight, width) in [
                (&mut act.q, &mut act.q_rstd, &act.q_raw, q_norm, dims.heads * head_dim),
                (&mut act.k, &mut act.k_rstd, &act.k_raw, k_norm, kv_heads * head_dim),
            ] {
                let rows = n * width / weight.len();
                be.rmsnorm_forward(
                    out.get_mut(),
                    rstd.get_mut(),
                    inp.get(),
                    weight,
                    config.rms_norm_eps,
                    rows,
                );
            }
        }
        if let Some(operands) = self.rope_operands(layer, &pass.indices) {
            be.rope_forward(act.q.get_mut(), act.k.get_mut(), operands);
        }
        let [k, v] = match cache {
            None => self.keys_of([&act.k, &act.v], pass, &mut scratch.kv),
            Some(cache) => {
                let (keys, values) = (&mut cache.keys[layer], &mut cache.values[layer]);
                let rows = &pass.indices.cache_rows;
                be.scatter_rows([keys, values], [act.k.get(), act.v.get()], rows, kv_heads * head_dim);
                [&*keys, &*values]
            }
        };
        let scores = config.attention_scores(layer);
        let segments = &pass.indices.segments;
        let operands = AttentionOperands { q: act.q.get(), k, v, segments, dims, scores };
        let (out, lse) = (act.attn.get_mut(), act.lse.get_mut());
        match pass.is_generated {
            true => be.attention_decode(out, lse, operands),
            false => be.attention_forward(out, lse, operands),
        }
    }

    pub(crate) fn attention_dims(&self) -> AttentionDims {
        let ModelConfig { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } =
            self.config;
        AttentionDims { heads, kv_heads, head_dim }
    }

    /// Returns the rotary embedding of a layer, or `None` if the layer has none.
    pub(crate) fn rope_operands<'b>(
        &'b self,
        layer: usize,
        indices: &'b PassIndices,
    ) -> Option<RopeOperands<'b>> {
        let (dims, positions) = (self.attention_dims(), &indices.positions);
        let rotation = self.config.rotation(self.config.layer_rope(layer)?);
        let (inv_freq, tables) = match self.config.architecture.layer(layer).rope {
            LayerRope::Global => match &indices.rope.inv_freq {
                Some(of_lengths) => (of_lengths, indices.rope.tables.as_ref()),
                None => (&self.inv_freq[0], None),
            },
            LayerRope::Local => (&self.inv_freq[1], None),
            LayerRope::None => return None,
        };
        Some(RopeOperands { inv_freq, positions, tables, dims, rotation })
    }

    /// Copies q, k and v, or gate and up, from the output of their fused projection to separate buffers.
    /// [`SplitIndices`] explains the pieces, which have `width` elements.
    fn split<const N: usize>(
        &self,
        out: [&mut GrowBuffer; N],
        fused: &GrowBuffer,
        indices: &SplitIndices,
        width: usize,
    ) {
        for (out, index) in out.into_iter().zip(&indices.parts) {
            self.backend.gather_rows(out.get_mut(), fused.get(), index, width);
        }
    }

    pub(crate) fn head_operands<'b>(&'b self, inp: &'b GrowBuffer, targets: &'b Indices) -> HeadOperands<'b> {
        let softcap = self.config.architecture.logits_softcap;
        HeadOperands { inp: inp.get(), head: &self.lm_head, targets, softcap }
    }

    /// Returns the keys and values of the segments of `pass`. If no sequences share rows, these are the
    /// layer's `own` keys and values. Otherwise, the rows of each sequence are copied to `copies`.
    pub(crate) fn keys_of<'b>(
        &self,
        own: [&'b GrowBuffer; 2],
        pass: &ForwardPass<'_>,
        copies: &'b mut [GrowBuffer; 2],
    ) -> [&'b Buffer; 2] {
        let Some(rows) = pass.keys else { return own.map(GrowBuffer::get) };
        let width = self.config.num_key_value_heads * self.config.head_dim;
        for (copy, own) in copies.iter_mut().zip(own) {
            copy.reserve(&*self.backend, rows.len(), width, Element::Activation);
            self.backend.gather_rows(copy.get_mut(), own.get(), &pass.indices.keys, width);
        }
        copies.each_ref().map(GrowBuffer::get)
    }

    /// Runs the second half of a block, after attention: reads the attention output and the residual stream,
    /// and writes `out`.
    fn mlp(
        &self,
        layer: usize,
        (act, mid): (&mut MlpActivations, &mut Mids),
        out: &mut GrowBuffer,
        from: BranchInput<'_>,
        scratch: &mut LayerScratch,
    ) {
        let rows = from.rows;
        self.mlp_activations(layer, (act, mid), from, scratch);
        let down = &[Projection::DownProj];
        let Some(weight) = &self.layers[layer].after_mlp else {
            return self.project(layer, down, [out], mid, (&act.act, Some(&act.res)), rows);
        };
        let (be, n, c) = (&*self.backend, rows.n, self.config.hidden_size);
        self.project(layer, down, [&mut act.mlp_proj], mid, (&act.act, None), rows);
        let (rstd, inp) = (act.mlp_rstd.get_mut(), act.mlp_proj.get());
        be.rmsnorm_forward(out.get_mut(), rstd, inp, weight, self.config.rms_norm_eps, n);
        be.add(out.get_mut(), act.res.get(), n * c);
    }

    /// Runs the second half of a block without its last matrix multiplication.
    fn mlp_activations(
        &self,
        layer: usize,
        (act, mid): (&mut MlpActivations, &mut Mids),
        from: BranchInput<'_>,
        scratch: &mut LayerScratch,
    ) {
        use Projection::*;
        let (be, config, weights) = (&*self.backend, &self.config, &self.layers[layer]);
        let BranchInput { attn, inp, rows, split } = from;
        let n = rows.n;
        match &weights.after_attention {
            None => self.project(layer, &[OProj], [&mut act.res], mid, (attn, Some(inp)), rows),
            Some(weight) => {
                self.project(layer, &[OProj], [&mut act.attn_proj], mid, (attn, None), rows);
                let (out, rstd) = (act.res.get_mut(), act.attn_rstd.get_mut());
                be.rmsnorm_forward(out, rstd, act.attn_proj.get(), weight, config.rms_norm_eps, n);
                be.add(act.res.get_mut(), inp.get(), n * config.hidden_size);
            }
        }
        let norm2 = self.norm_before_mlp(layer, act, n);
        let out = [&mut act.gate, &mut act.up];
        let inp = if norm2 { &act.norm2 } else { &act.res };
        match config.architecture.fused_gate_up {
            false => self.project(layer, &[GateProj, UpProj], out, mid, (inp, None), rows),
            true => {
                self.project(layer, &[GateUpProj], [&mut scratch.fused], mid, (inp, None), rows);
                self.split(out, &scratch.fused, split, config.intermediate_size);
            }
        }
        self.gate_activation(act, n);
    }

    /// Computes `act.norm2`, if the block has a norm before the MLP. Returns whether the block has this norm.
    fn norm_before_mlp(&self, layer: usize, act: &mut MlpActivations, n: usize) -> bool {
        let Some(weight) = &self.layers[layer].before_mlp else { return false };
        let (out, rstd) = (act.norm2.get_mut(), act.rstd2.get_mut());
        self.backend.rmsnorm_forward(out, rstd, act.res.get(), weight, self.config.stream_eps(), n);
        true
    }

    fn gate_activation(&self, act: &mut MlpActivations, n: usize) {
        let (out, gate, up) = (act.act.get_mut(), act.gate.get(), act.up.get());
        let len = n * self.config.intermediate_size;
        let activation = self.config.architecture.activation;
        self.backend.gated_forward(out, GatedOperands { gate, up, activation }, len);
    }

    /// Recomputes the activations that the layer's policy did not store. The recomputed bits are the same.
    /// The last layer does not need this call: its backward pass directly follows its forward pass, so no
    /// other layer has overwritten the shared buffers.
    pub(crate) fn restore(
        &self,
        layer: usize,
        act: &mut LayerActivations,
        policy: ActivationPolicy,
        pass: &ForwardPass<'_>,
        scratch: &mut LayerScratch,
    ) {
        let (n, eps) = (pass.rows.n, self.config.stream_eps());
        match policy {
            ActivationPolicy::KeepAll => {}
            ActivationPolicy::KeepSome => {
                if let Some(weight) = &self.layers[layer].before_attention {
                    let (out, rstd) = (act.norm1.get_mut(), act.rstd1.get_mut());
                    self.backend.rmsnorm_forward(out, rstd, act.inp.get(), weight, eps, n);
                }
                self.norm_before_mlp(layer, &mut act.mlp, n);
                self.gate_activation(&mut act.mlp, n);
            }
            ActivationPolicy::Recompute => {
                self.attend(layer, act, pass, None, scratch);
                let LayerActivations { inp, attn, mlp, mid, .. } = act;
                let from = BranchInput { attn, inp, rows: &pass.rows, split: &pass.indices.gate_up };
                self.mlp_activations(layer, (mlp, mid), from, scratch);
            }
        }
    }

    /// Computes `out[i] = inp Wᵀ` for each projection of a group, and adds the update of each adapter to the
    /// rows of that adapter. Then applies DoRA's factors, and adds the residual and the biases.
    fn project<const N: usize>(
        &self,
        layer: usize,
        group: &[Projection; N],
        out: [&mut GrowBuffer; N],
        mid: &mut Mids,
        (inp, residual): (&GrowBuffer, Option<&GrowBuffer>),
        rows: &PassRows<'_>,
    ) {
        let be = &*self.backend;
        let lora = lora_segments(layer, group, rows);
        let mut mid =
            mid.get_disjoint_mut(group.map(Projection::index)).expect("projections of one group differ");
        for (i, mid) in mid.iter_mut().enumerate() {
            let ranks = lora.iter().filter_map(|segment| segment.pairs[i].map(|pair| pair.lora.rank));
            mid.reserve(be, rows.n, ranks.max().unwrap_or(0), Element::Activation);
        }
        let weights = group.map(|projection| self.layers[layer].projection(projection));
        let operands = ProjectGroup { weights: &weights, lora: &lora, is_generated: rows.is_generated };
        let residual = residual.map(GrowBuffer::get);
        let (mut out, mut mid) = (out.map(GrowBuffer::get_mut), mid.map(GrowBuffer::get_mut));
        let factors = factor_segments(layer, group, rows);
        // The factors must be applied before the residual is added. `project` therefore gets the residual
        // only if there are no factors.
        let fused = residual.filter(|_| factors.is_empty());
        be.project(&mut out, &mut mid, inp.get(), operands, fused, rows.computed);
        for (i, rows, factors) in &factors {
            be.scale_columns(out[*i], factors.values, factors.offset, rows.clone(), weights[*i].rows());
        }
        if let Some(residual) = residual.filter(|_| !factors.is_empty()) {
            be.add(out[0], residual, rows.n * weights[0].rows());
        }
        for (out, projection) in out.into_iter().zip(group) {
            if let Some(bias) = &self.layers[layer].biases[projection.index()] {
                be.add_bias(out, bias, rows.n);
            }
        }
    }

    pub(crate) fn head_norm(&self, work: &mut Workspace, n: usize) {
        let (out, rstd) = (work.head_norm.get_mut(), work.head_rstd.get_mut());
        let (inp, eps) = (work.head_inp.get(), self.config.stream_eps());
        self.backend.rmsnorm_forward(out, rstd, inp, &self.norm, eps, n);
    }

    /// Computes the logits `(N, V)` of the first `n` rows of `work.head_inp` into `work.logits`. The softcap
    /// is not yet applied. With `is_generated`, products are summed in the order that decoding uses.
    pub(crate) fn head_product(&self, work: &mut Workspace, n: usize, is_generated: bool) {
        self.head_norm(work, n);
        let be = &*self.backend;
        work.logits.reserve(be, n, self.config.vocab_size, Element::Exact);
        let (out, inp) = (work.logits.get_mut(), work.head_norm.get());
        match is_generated {
            true => be.linear_decode(out, inp, &self.lm_head, n),
            false => be.linear_forward(out, inp, &self.lm_head, n),
        }
    }

    /// Reads the first rows of `work.logits`, and applies the softcap. `logits` has the length of these rows.
    pub(crate) fn read_logits(&self, logits: &mut [f32], work: &Workspace) -> Result<(), ModelError> {
        self.backend.read(logits, work.logits.get(), 0)?;
        if let Some(cap) = self.config.architecture.logits_softcap {
            logits.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        Ok(())
    }

    /// Checks that every id is in the vocabulary.
    ///
    /// # Errors
    /// Returns [`ModelError::TokenOutOfRange`] with the first id that is outside the vocabulary.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), ModelError> {
        let vocab_size = self.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(ModelError::TokenOutOfRange { id, vocab_size }),
            None => Ok(()),
        }
    }
}

/// Returns the DoRA factors of each adapter of `rows`, for the projections of a group. Each entry contains
/// the index of the projection, the rows, and the factors.
pub(crate) fn factor_segments<'a>(
    layer: usize,
    group: &[Projection],
    rows: &'a PassRows<'_>,
) -> Vec<(usize, Range<usize>, OutputFactors<'a>)> {
    let of_adapter = |lora: &'a LoraRows<'_>| {
        let of = move |(i, &projection): (usize, &Projection)| {
            Some((i, lora.rows.clone(), lora.source.output_factors(layer, projection)?))
        };
        group.iter().enumerate().filter_map(of).collect::<Vec<_>>()
    };
    rows.lora.iter().flat_map(of_adapter).collect()
}

fn lora_rows(source: Option<&dyn LoraSource>, n: usize) -> Vec<LoraRows<'_>> {
    source.into_iter().map(|source| LoraRows::all(source, n)).collect()
}

/// Returns the low-rank matrices of each adapter of `rows`, for the projections of a group. An adapter that
/// adapts none of these projections is skipped.
pub(crate) fn lora_segments<'a>(
    layer: usize,
    group: &[Projection],
    rows: &'a PassRows<'_>,
) -> Vec<LoraSegment<'a>> {
    let segment = |LoraRows { rows, source, dropout, .. }: &'a LoraRows<'_>| {
        let pair = |&projection: &Projection| {
            let dropout = dropout.map(|plan| plan.module(layer, projection));
            Some(LoraPair { lora: source.pair(layer, projection)?, dropout })
        };
        let pairs: Vec<_> = group.iter().map(pair).collect();
        let packed = group.iter().map(|&projection| source.packed(layer, projection)).collect();
        pairs.iter().any(Option::is_some).then(|| LoraSegment { rows: rows.clone(), pairs, packed })
    };
    rows.lora.iter().filter_map(segment).collect()
}
