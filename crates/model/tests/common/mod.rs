//! Small models and adapters for tests of the decoder.
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use danlu_kernels::{Backend, Buffer, Cpu, CpuOptions, DType, Element, Isa, LoraRef, Reference, rng};
use danlu_model::{LoraSource, ModelConfig, Projection};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Returns `shared/` next to the checkout, if present.
pub fn shared() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if !path.is_dir() {
        eprintln!("skipped: no shared/ beside the checkout");
        return None;
    }
    Some(path)
}

/// Returns every back end in f32: the reference loops, then the CPU back end for each instruction set of this
/// machine.
pub fn backends() -> Vec<Arc<dyn Backend>> {
    let cpu = |isa| Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), dtype: DType::F32 });
    let mut backends: Vec<Arc<dyn Backend>> = vec![Arc::new(Reference::new())];
    backends.extend(Isa::supported().map(|isa| Arc::new(cpu(isa)) as Arc<dyn Backend>));
    backends
}

/// Writes a random Llama model with 2 layers, hidden size 24, grouped-query attention and an untied head.
pub fn write_random_model(folder: &Path) {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 50, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": false,
        "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let config = ModelConfig::read(folder).unwrap();
    let (v, c) = (config.vocab_size, config.hidden_size);
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![v, c]),
        ("lm_head.weight".to_owned(), vec![v, c]),
        ("model.norm.weight".to_owned(), vec![c]),
    ]);
    for layer in 0..config.num_hidden_layers {
        for p in config.projections() {
            let (rows, cols) = config.projection_shape(p);
            shapes.insert(format!("{}.weight", p.module_path(layer)), vec![rows, cols]);
        }
        shapes.insert(format!("model.layers.{layer}.input_layernorm.weight"), vec![c]);
        shapes.insert(format!("model.layers.{layer}.post_attention_layernorm.weight"), vec![c]);
    }
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let mut stream = rng::Stream::new(rng::key(&[9, i as u64]));
            let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
            let values =
                (0..shape.iter().product::<usize>()).map(|_| centre + 0.6 * (stream.next_uniform() - 0.5));
            let bytes = values.flat_map(|v: f32| v.to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(n, s, b)| (n.clone(), TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// An adapter in one flat buffer. The buffer contains A and B of each module, in the order of the modules.
pub struct FlatAdapter {
    pub params: Buffer,
    pub modules: Vec<(usize, Projection, usize, usize, usize, usize)>,
    pub rank: usize,
    pub scaling: f32,
}

impl FlatAdapter {
    /// Builds an adapter. `fill(layer, projection, "A" | "B", len)` returns the values. For `None`, the
    /// projection has no adapter.
    pub fn new(
        config: &ModelConfig,
        backend: &dyn Backend,
        rank: usize,
        scaling: f32,
        mut fill: impl FnMut(usize, Projection, &str, usize) -> Option<Vec<f32>>,
    ) -> Self {
        let (mut values, mut modules) = (Vec::new(), Vec::new());
        for layer in 0..config.num_hidden_layers {
            for p in config.projections() {
                let (d_out, d_in) = config.projection_shape(p);
                let Some(a) = fill(layer, p, "A", rank * d_in) else { continue };
                let b = fill(layer, p, "B", d_out * rank).unwrap();
                modules.push((layer, p, values.len(), values.len() + a.len(), d_in, d_out));
                values.extend(a);
                values.extend(b);
            }
        }
        let mut params = backend.alloc(values.len(), Element::Exact);
        backend.write(&mut params, 0, &values);
        Self { params, modules, rank, scaling }
    }

    /// Builds an adapter with uniform values in both A and B, so that no gradient is zero.
    pub fn random(config: &ModelConfig, backend: &dyn Backend, rank: usize) -> Self {
        let mut stream = rng::Stream::new(77);
        Self::new(config, backend, rank, 2.0, |_, _, _, len| {
            Some((0..len).map(|_| 0.4 * (stream.next_uniform() - 0.5)).collect())
        })
    }

    /// Builds an adapter from the tensors of a PEFT file.
    pub fn from_peft(
        config: &ModelConfig,
        backend: &dyn Backend,
        file: &Path,
        rank: usize,
        scaling: f32,
    ) -> Self {
        let bytes = std::fs::read(file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        Self::new(config, backend, rank, scaling, |layer, p, side, _| {
            let name = format!("base_model.model.{}.lora_{side}.weight", p.module_path(layer));
            Some(f32_values(tensors.tensor(&name).unwrap().data()))
        })
    }
}

impl LoraSource for FlatAdapter {
    fn pair(&self, layer: usize, projection: Projection) -> Option<LoraRef<'_>> {
        let &(_, _, a, b, d_in, d_out) = self.modules.iter().find(|m| (m.0, m.1) == (layer, projection))?;
        Some(LoraRef { params: &self.params, a, b, rank: self.rank, d_in, d_out, scaling: self.scaling })
    }
}

pub fn f32_values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn i64_values(bytes: &[u8]) -> Vec<i64> {
    bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Returns the largest difference relative to the largest expected magnitude.
pub fn relative_to_max(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let max = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    found.iter().zip(expected).fold(0f32, |m, (f, e)| m.max((f - e).abs())) / max
}
