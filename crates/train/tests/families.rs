//! Compares tiny models of every supported family with transformers and PEFT. The expected values are in
//! `shared/golden/families`. Without this folder, the tests are skipped.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{backends, decoder, f32_values, ids, json, relative, shared};
use danlu_adapter::Adapter;
use danlu_adapter::merge::{MergeOptions, merge};
use danlu_generate::{GenerateOptions, SamplingOptions, generate};
use danlu_kernels::{Backend, Buffer, DType, Element};
use danlu_model::{Batch, Decoder, LabeledSequence, LoraRows, LoraSource, ModelConfig, Weights, Workspace};
use danlu_train::{Example, TrainSettings, Trainer};
use safetensors::SafeTensors;
use serde_json::Value;

/// Largest allowed difference of a logit, which is the tolerance in the golden files.
const LOGIT: f32 = 3e-4;

const FAMILIES: [&str; 15] = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3",
    "phi3",
    "glm4",
    "glm",
    "granite",
    "smollm3",
    "olmo2",
    "olmo3",
];

fn families() -> Vec<PathBuf> {
    let Some(shared) = shared() else { return Vec::new() };
    FAMILIES.map(|family| shared.join("golden/families").join(family)).to_vec()
}

/// Returns the back ends that have every operation of the model.
fn backends_for(folder: &Path) -> Vec<Arc<dyn Backend>> {
    backends().into_iter().filter(|backend| runs_on(&**backend, folder)).collect()
}

/// The tensors of a golden file, by name.
struct Golden(Vec<u8>);

impl Golden {
    fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        f32_values(SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data())
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let integer = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().unwrap());
        file.tensor(name).unwrap().data().chunks_exact(8).map(integer).collect()
    }
}

fn prompt(golden: &Golden, name: &str) -> Batch {
    let ids: Vec<u32> = golden.integers(name).into_iter().map(|id| id as u32).collect();
    Batch::new([&LabeledSequence { trained: vec![false; ids.len()], ids }])
}

fn assert_logits(
    decoder: &Decoder,
    lora: Option<&dyn LoraSource>,
    batch: &Batch,
    expected: &[f32],
    what: &str,
) {
    let found = decoder.logits(&mut Workspace::new(), batch, lora).unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
    assert!(worst < LOGIT, "{what}: {worst:e}");
}

fn adapter(folder: &Path, name: &str, decoder: &Decoder) -> Adapter {
    Adapter::load(&folder.join(name), decoder.config(), &**decoder.backend()).unwrap()
}

#[test]
fn logits_equal_transformers() {
    for folder in families() {
        let golden = Golden::read(&folder.join("logits.safetensors"));
        for backend in backends_for(&folder) {
            let what = format!("{}: {}", folder.display(), backend.name());
            let decoder = Decoder::load(&folder.join("model"), backend).unwrap();
            for i in 0..2 {
                let batch = prompt(&golden, &format!("prompt_{i}.ids"));
                let expected = golden.floats(&format!("prompt_{i}.logits"));
                assert_logits(&decoder, None, &batch, &expected, &what);
            }
            let batch = prompt(&golden, "prompt_0.ids");
            let lora = adapter(&folder, "adapter_for_gradients", &decoder);
            let expected = golden.floats("prompt_0.logits_adapter_for_gradients");
            assert_logits(&decoder, Some(&lora), &batch, &expected, &what);
            let batch = prompt(&golden, "prompt_1.ids");
            let lora = adapter(&folder, "adapter_after_10_steps", &decoder);
            assert_logits(
                &decoder,
                Some(&lora),
                &batch,
                &golden.floats("prompt_1.logits_after_10_steps"),
                &what,
            );
        }
    }
}

#[test]
fn both_spellings_of_a_configuration_mean_the_same() {
    for folder in families() {
        let five = ModelConfig::read(&folder.join("model")).unwrap();
        let path = folder.join("config_transformers_4.json");
        let four = ModelConfig::parse(&path, &std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(four, five, "{}", folder.display());
    }
}

/// Returns the rows of `batch.safetensors` without padding.
fn golden_batch(golden: &Golden) -> Batch {
    let [input, mask, labels] = ["input_ids", "attention_mask", "labels"].map(|name| golden.integers(name));
    let len = input.len() / 4;
    let rows = (0..4).map(|row| {
        let kept: Vec<usize> = (row * len..(row + 1) * len).filter(|&i| mask[i] == 1).collect();
        LabeledSequence {
            ids: kept.iter().map(|&i| input[i] as u32).collect(),
            trained: kept.iter().map(|&i| labels[i] != -100).collect(),
        }
    });
    Batch::new(&rows.collect::<Vec<_>>())
}

#[test]
fn loss_and_gradients_equal_peft() {
    for folder in families() {
        for backend in backends_for(&folder) {
            loss_and_gradients(&folder, &backend);
        }
    }
}

fn loss_and_gradients(folder: &Path, backend: &Arc<dyn Backend>) {
    let what = format!("{}: {}", folder.display(), backend.name());
    let decoder = Decoder::load(&folder.join("model"), backend.clone()).unwrap();
    let adapter = adapter(folder, "adapter_for_gradients", &decoder);
    let golden = Golden::read(&folder.join("batch.safetensors"));
    let batch = golden_batch(&golden);
    let mut grads: Buffer = backend.alloc(adapter.num_parameters(), Element::Exact);
    let (dloss, rows) = (1.0 / batch.trained_tokens() as f32, LoraRows::all(&adapter, batch.rows()));
    let losses =
        decoder.losses_and_gradients(&mut Workspace::new(), &batch, &[rows], dloss, &mut grads).unwrap();
    let loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
    let expected = f64::from(golden.floats("loss")[0]);
    assert!(relative(loss, expected) < 1e-5, "{what}: {loss}, expected {expected}");
    let golden = Golden::read(&folder.join("lora_gradients.safetensors"));
    let mut all = vec![0.0; adapter.num_parameters()];
    backend.read(&mut all, &grads, 0).unwrap();
    for tensor in adapter.tensors() {
        let expected = golden.floats(&adapter.file_name(&tensor));
        let found = &all[tensor.offset..][..tensor.len()];
        let largest = expected.iter().fold(0.0f32, |largest, e| largest.max(e.abs()));
        let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max) / largest;
        assert!(worst < 1e-4, "{what}: {}: {worst:e}", tensor.name);
    }
}

fn example((i, row): (usize, &Value)) -> Example {
    let labels = row["labels"].as_array().unwrap().iter().map(|label| label.as_i64().unwrap() >= 0);
    let sequence = LabeledSequence { ids: ids(&row["input_ids"]), trained: labels.collect() };
    Example { sequence, origin: format!("training.json:{i}") }
}

#[test]
fn ten_losses_equal_peft() {
    for folder in families() {
        let decoder = decoder(&folder.join("model"), 2);
        ten_losses(&folder, decoder, Tolerance { loss: 1e-5, grad_norm: 3e-5, tensor: 1e-2 });
    }
}

/// Returns whether the back end has every operation of the model.
fn runs_on(backend: &dyn Backend, folder: &Path) -> bool {
    let config = ModelConfig::read(&folder.join("model")).unwrap();
    config.operations().into_iter().all(|operation| backend.supports(operation))
}

#[test]
fn ten_losses_on_a_gpu_equal_peft() {
    for (dtype, tolerance) in [
        (DType::F32, Tolerance { loss: 1e-4, grad_norm: 1e-4, tensor: 2e-2 }),
        (DType::Bf16, Tolerance { loss: 1e-2, grad_norm: 5e-2, tensor: 0.5 }),
        (DType::F16, Tolerance { loss: 2e-3, grad_norm: 1e-2, tensor: 0.3 }),
    ] {
        let Some(backend) = common::cuda(dtype) else { return };
        for folder in families().iter().filter(|folder| runs_on(&*backend, folder)) {
            let decoder = Decoder::load(&folder.join("model"), backend.clone()).unwrap();
            ten_losses(folder, Arc::new(decoder), tolerance);
        }
    }
}

/// Largest allowed relative differences after ten steps. The difference of a tensor is divided by the
/// distance that the ten steps move this tensor.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    loss: f64,
    grad_norm: f64,
    tensor: f64,
}

fn ten_losses(folder: &Path, decoder: Arc<Decoder>, tolerance: Tolerance) {
    let what = format!("{}: {}", folder.display(), decoder.backend().name());
    let training = json(&folder.join("training.json"));
    let rows = training["steps"].as_array().unwrap().iter().flat_map(|step| {
        step["micro_batches"].as_array().unwrap().iter().flat_map(|batch| batch.as_array().unwrap())
    });
    let examples: Vec<Example> = rows.enumerate().map(example).collect();
    let start = adapter(folder, "adapter_initial", &decoder);
    let hyper = &training["hyper_parameters"];
    let count = |name: &str| usize::try_from(hyper[name].as_u64().unwrap()).unwrap();
    let settings = TrainSettings {
        per_device_train_batch_size: count("micro_batch"),
        gradient_accumulation_steps: count("accum"),
        ..common::recipe(hyper)
    };
    let mut trainer = Trainer::new(decoder.clone(), start, examples, settings, String::new()).unwrap();
    let (mut worst_loss, mut worst_norm, mut worst_tensor) = (0.0f64, 0.0f64, 0.0f64);
    for step in training["steps"].as_array().unwrap() {
        let report = trainer.step().unwrap();
        let [loss, norm] = ["loss", "gradient_norm_before_clip"].map(|name| step[name].as_f64().unwrap());
        assert_eq!(report.trained_tokens, step["label_tokens"].as_u64().unwrap(), "{what}");
        worst_loss = worst_loss.max(relative(report.loss, loss));
        worst_norm = worst_norm.max(relative(report.grad_norm, norm));
    }
    let target = adapter(folder, "adapter_after_10_steps", &decoder).to_vec(&**decoder.backend()).unwrap();
    let start = adapter(folder, "adapter_initial", &decoder).to_vec(&**decoder.backend()).unwrap();
    let found = trainer.adapter().to_vec(&**decoder.backend()).unwrap();
    for tensor in trainer.adapter().tensors() {
        let at = tensor.offset..tensor.offset + tensor.len();
        let distance = |a: &[f32], b: &[f32]| {
            let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let apart = distance(&found[at.clone()], &target[at.clone()]);
        worst_tensor = worst_tensor.max(apart / distance(&start[at.clone()], &target[at]));
    }
    let found = format!("{what}: loss {worst_loss:.1e}, norm {worst_norm:.1e}, tensor {worst_tensor:.1e}");
    println!("{found}");
    let fits = worst_loss < tolerance.loss && worst_norm < tolerance.grad_norm;
    assert!(fits && worst_tensor < tolerance.tensor, "{found}, allowed {tolerance:?}");
}

#[test]
fn merged_weights_logits_and_greedy_texts_equal_peft() {
    for folder in families() {
        let (base, merged) = (folder.join("model"), tempfile::tempdir().unwrap());
        let maker = decoder(&base, 2);
        let lora = adapter(&folder, "adapter_after_10_steps", &maker);
        let options = MergeOptions { dtype: Some(DType::F32), threads: Some(2), ..MergeOptions::default() };
        merge(&base, &lora, &**maker.backend(), merged.path(), &options, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        assert_sums(&folder, merged.path());
        let golden = Golden::read(&folder.join("logits.safetensors"));
        let expected = golden.floats("prompt_1.logits_merged");
        let texts = json(&folder.join("generations.json"));
        for backend in backends_for(&folder) {
            let what = format!("{}: {}", folder.display(), backend.name());
            let whole = Decoder::load(merged.path(), backend.clone()).unwrap();
            assert_logits(&whole, None, &prompt(&golden, "prompt_1.ids"), &expected, &what);
            let base = Decoder::load(&base, backend).unwrap();
            let lora = adapter(&folder, "adapter_after_10_steps", &base);
            for case in texts.as_array().unwrap() {
                let prompt = ids(&case["prompt_ids"]);
                assert_eq!(greedy(&base, None, &prompt), ids(&case["base"]["new_ids"]), "{what}");
                assert_eq!(greedy(&base, Some(&lora), &prompt), ids(&case["adapter"]["new_ids"]), "{what}");
                assert_eq!(greedy(&whole, None, &prompt), ids(&case["merged"]["new_ids"]), "{what}");
            }
        }
    }
}

/// Compares the norm and the first elements of every merged tensor with PEFT.
fn assert_sums(folder: &Path, merged: &Path) {
    let weights = Weights::open(merged).unwrap();
    for (name, expected) in json(&folder.join("merged_checksums.json")).as_object().unwrap() {
        // In the expected values of `gemma3`, names begin with `model.language_model.`, as in transformers.
        let info = weights.info(&name.replacen("model.language_model.", "model.", 1)).unwrap();
        let values = f32_values(weights.bytes(info));
        let l2 = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        assert!(relative(l2, expected["l2"].as_f64().unwrap()) < 1e-6, "{}: {name}", folder.display());
        for (found, expected) in values.iter().zip(expected["first8"].as_array().unwrap()) {
            assert!(
                (f64::from(*found) - expected.as_f64().unwrap()).abs() < 1e-6,
                "{}: {name}",
                folder.display()
            );
        }
    }
}

fn greedy(decoder: &Decoder, lora: Option<&Adapter>, prompt: &[u32]) -> Vec<u32> {
    let lora = lora.map(|lora| lora as &dyn LoraSource);
    // The reference does not stop at the end token, so this test does not stop either.
    let options =
        GenerateOptions { max_new_tokens: 16, stop_ids: [].into(), sampling: SamplingOptions::greedy() };
    let mut go_on = |_| ControlFlow::Continue(());
    generate(decoder, &mut Workspace::new(), lora, prompt, &options, &mut go_on).unwrap().ids
}

#[test]
fn real_configurations_have_the_published_number_of_parameters() {
    let Some(shared) = shared() else { return };
    let models = json(&shared.join("golden/families/real_shapes.json"));
    let mut read = 0;
    for (name, model) in models["models"].as_object().unwrap() {
        let family = model["config"]["model_type"].as_str().unwrap();
        if !FAMILIES.contains(&family) {
            continue;
        }
        let config = ModelConfig::parse(Path::new(name), model["config"].to_string().as_bytes()).unwrap();
        let vision = if config.is_nested { vision_parameters(&model["config"]) } else { 0 };
        assert_eq!(config.num_parameters() + vision, model["parameters"].as_u64().unwrap(), "{name}");
        let parsed = &model["parsed"];
        assert_eq!(
            config.head_dim as u64,
            parsed["head_dim"].as_u64().unwrap_or(config.head_dim as u64),
            "{name}"
        );
        read += 1;
    }
    assert_eq!(read, 24);
}

/// Returns the number of parameters of SigLIP and of the projector in Gemma 3. danlu does not read these.
fn vision_parameters(config: &Value) -> u64 {
    let vision = |key: &str| config["vision_config"][key].as_u64().unwrap();
    let (width, inner, patch) = (vision("hidden_size"), vision("intermediate_size"), vision("patch_size"));
    let positions = (vision("image_size") / patch).pow(2);
    let attention = 4 * (width * width + width);
    let mlp = 2 * width * inner + inner + width;
    let layers = vision("num_hidden_layers") * (attention + mlp + 4 * width);
    let embeddings = 3 * patch * patch * width + width + positions * width;
    let projector = width * config["text_config"]["hidden_size"].as_u64().unwrap() + width;
    embeddings + layers + 2 * width + projector
}

#[test]
fn rope_frequencies_equal_transformers() {
    let Some(shared) = shared() else { return };
    let cases = json(&shared.join("golden/families/rope_cases.json"));
    let mut read = 0;
    for case in cases["cases"].as_array().unwrap() {
        let heads = 2;
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": heads * case["head_dim"].as_u64().unwrap(),
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": heads, "vocab_size": 8,
            "max_position_embeddings": case["max_position_embeddings"], "rope_theta": case["rope_theta"],
            "rope_scaling": case["rope_scaling"],
        });
        let name = case["name"].as_str().unwrap();
        let config = ModelConfig::parse(Path::new(name), config.to_string().as_bytes()).unwrap();
        let expected = case["inv_freq"].as_array().unwrap();
        let length = case["sequence_length"].as_u64().unwrap() as usize;
        let found = config.rope.inv_freq_at(config.head_dim, length);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(relative(f64::from(*found), expected.as_f64().unwrap()) < 1e-5, "{name}: {found}");
        }
        let factor = case["attention_scaling"].as_f64().unwrap();
        assert!(relative(config.rope.attention_factor(), factor) < 1e-6, "{name}");
        read += 1;
    }
    assert_eq!(read, 19);
}
