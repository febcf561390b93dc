//! A small model with random weights, and the location of the shared golden files.

#![allow(dead_code)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use danlu_adapter::{Adapter, LoraConfig};
use danlu_kernels::{Backend, DType, Reference, from_f32, rng};
use danlu_model::{ModelConfig, Weights};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

pub const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_size": 48,
  "intermediate_size": 80,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "vocab_size": 100,
  "rms_norm_eps": 1e-05,
  "max_position_embeddings": 128,
  "tie_word_embeddings": true,
  "torch_dtype": "bfloat16",
  "rope_theta": 10000.0,
  "unknown_to_us": {"kept": [1, 2.5, null]}
}
"#;

pub fn config() -> ModelConfig {
    ModelConfig::parse(Path::new("config.json"), CONFIG.as_bytes()).unwrap()
}

pub fn backend() -> Reference {
    Reference::new()
}

/// Writes a model folder with random bf16 weights in `shards` files.
pub fn write_model(folder: &Path, shards: usize) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), CONFIG).unwrap();
    fs::write(folder.join("generation_config.json"), "{\"eos_token_id\": 1}").unwrap();
    fs::write(folder.join("tokenizer.json"), "{\"of\": \"the base\"}").unwrap();
    fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    fs::write(folder.join("chat_template.jinja"), "base").unwrap();
    let tensors: Vec<(String, Vec<usize>)> = config().tensors().collect();
    let mut map = serde_json::Map::new();
    for (shard, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let name = match shards {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        };
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = part
            .iter()
            .map(|(tensor, shape)| {
                let len = shape.iter().product::<usize>();
                let key = rng::key(&[tensor.len() as u64, tensor.bytes().map(u64::from).sum()]);
                // Norms are near 1, and the tables have a wide range so that logits are distinct.
                let (centre, width) = match tensor.as_str() {
                    "model.embed_tokens.weight" => (0.0, 1.0),
                    name if name.ends_with("norm.weight") => (1.0, 0.2),
                    _ => (0.02, 0.2),
                };
                let draw = |i| centre + width * (rng::uniform(key, i) - 0.5);
                let values: Vec<f32> = (0..len as u64).map(draw).collect();
                let mut bytes = vec![0; 2 * len];
                from_f32(DType::Bf16, &values, &mut bytes);
                map.insert(tensor.clone(), name.clone().into());
                (tensor.clone(), shape.clone(), bytes)
            })
            .collect();
        let views = data.iter().map(|(n, shape, bytes)| {
            (n.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
        });
        fs::write(folder.join(name), safetensors::serialize(views, None).unwrap()).unwrap();
    }
    if shards > 1 {
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

/// Sets every parameter to a random value, so that `B` is not zero.
pub fn randomise(adapter: &mut Adapter, size: f32) {
    let values: Vec<f32> =
        (0..adapter.num_parameters() as u64).map(|i| size * (rng::uniform(77, i) - 0.5)).collect();
    backend().write(&mut adapter.params, 0, &values);
}

/// Values of an f32 tensor with its name in the base and its shape.
pub type BaseTensor = (String, Vec<usize>, Vec<f32>);

/// Saves a random adapter of rank 4 and alpha 8 for `targets`. Returns the adapter.
pub fn save_random(folder: &Path, targets: &str) -> Adapter {
    let lora = LoraConfig { target_modules: targets.parse().unwrap(), ..LoraConfig::new(4, 8.0) };
    let mut adapter = Adapter::init(lora, &config(), 1, &backend()).unwrap();
    randomise(&mut adapter, 0.5);
    adapter.save(folder, &backend()).unwrap();
    adapter
}

/// Adds keys to the configuration of a saved adapter, and tensors to its weights.
pub fn add_to_adapter(folder: &Path, keys: Value, tensors: &[BaseTensor]) {
    let path = folder.join("adapter_config.json");
    let mut written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    written.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    fs::write(path, written.to_string()).unwrap();
    let path = folder.join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let own: Vec<_> = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let mut all: Vec<(String, Vec<usize>, Vec<u8>)> =
        own.into_iter().map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec())).collect();
    for (name, shape, values) in tensors {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        all.push((format!("base_model.model.{name}"), shape.clone(), bytes));
    }
    let views = all
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Returns every tensor of a model folder as f32.
pub fn read_model(folder: &Path) -> HashMap<String, Vec<f32>> {
    let weights = Weights::open(folder).unwrap();
    let widen = |t: &danlu_model::TensorInfo| {
        let mut values = vec![0.0; t.shape.iter().product()];
        danlu_kernels::to_f32(t.dtype().unwrap(), weights.bytes(t), &mut values);
        (t.name.clone(), values)
    };
    weights.tensors().iter().map(widen).collect()
}

/// Returns a golden file or folder of `shared/` next to the checkout, if present.
pub fn golden(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden")).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}
