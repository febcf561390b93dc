//! Compares logits, gradients and replies with PyTorch and PEFT on every back end. The expected values are in
//! `shared/golden`, if this folder exists. `crates/train/tests/golden_merge.rs` compares the merged model.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{FlatAdapter, backends, f32_values, i64_values, relative_to_max, shared};
use danlu_kernels::{Backend, Element};
use danlu_model::{Batch, Decoder, LabeledSequence, LoraRows, LoraSource, SlotInput, Workspace};
use safetensors::SafeTensors;

fn sequence(ids: impl IntoIterator<Item = u32>) -> LabeledSequence {
    let ids: Vec<u32> = ids.into_iter().collect();
    let trained = vec![false; ids.len()];
    LabeledSequence { ids, trained }
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn logits_equal_transformers() {
    let Some(shared) = shared() else { return };
    let golden = shared.join("golden");
    let bytes = std::fs::read(golden.join("logits.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for backend in backends() {
        let name = backend.name();
        let decoder = Decoder::load(&golden.join("tiny"), backend).unwrap();
        let mut work = Workspace::new();
        for prompt in 0..3 {
            let ids = i64_values(tensors.tensor(&format!("prompt_{prompt}.ids")).unwrap().data());
            let expected = f32_values(tensors.tensor(&format!("prompt_{prompt}.logits")).unwrap().data());
            let batch = Batch::new([&sequence(ids.iter().map(|&i| i as u32))]);
            let found = decoder.logits(&mut work, &batch, None).unwrap();
            let difference = relative_to_max(&found, &expected);
            println!("{name}: prompt {prompt}: {difference:.1e}");
            assert!(difference < 1e-5, "{name}: prompt {prompt}: {difference}");
        }
    }
}

#[test]
fn loss_and_lora_gradients_equal_peft() {
    let Some(shared) = shared() else { return };
    for backend in backends() {
        loss_and_gradients(&shared.join("golden"), backend);
    }
}

fn loss_and_gradients(golden: &Path, backend: Arc<dyn Backend>) {
    let name = backend.name();
    let decoder = Decoder::load(&golden.join("tiny"), backend.clone()).unwrap();
    let file = golden.join("adapter_for_gradients/adapter_model.safetensors");
    let adapter = FlatAdapter::from_peft(decoder.config(), &*backend, &file, 8, 4.0);
    let mut work = Workspace::new();

    let bytes = std::fs::read(golden.join("adapter_for_gradients_logits_prompt_0.safetensors")).unwrap();
    let expected = f32_values(SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data());
    let prompts: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("prompts.json")).unwrap()).unwrap();
    let prompt = Batch::new([&sequence(ids(&prompts[0]["ids"]))]);
    let found = decoder.logits(&mut work, &prompt, Some(&adapter)).unwrap();
    let difference = relative_to_max(&found, &expected);
    println!("{name}: logits with the adapter: {difference:.1e}");
    assert!(difference < 1e-5, "{name}: {difference}");

    let bytes = std::fs::read(golden.join("batch.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let input = tensors.tensor("input_ids").unwrap();
    let (rows, len) = (input.shape()[0], input.shape()[1]);
    let input = i64_values(input.data());
    let mask = i64_values(tensors.tensor("attention_mask").unwrap().data());
    let labels = i64_values(tensors.tensor("labels").unwrap().data());
    let sequences: Vec<LabeledSequence> = (0..rows)
        .map(|r| {
            let kept: Vec<usize> = (r * len..(r + 1) * len).filter(|&i| mask[i] == 1).collect();
            LabeledSequence {
                ids: kept.iter().map(|&i| input[i] as u32).collect(),
                trained: kept.iter().map(|&i| labels[i] != -100).collect(),
            }
        })
        .collect();
    let batch = Batch::new(&sequences);
    let mut grads = backend.alloc(adapter.params.len(), Element::Exact);
    let dloss = 1.0 / batch.trained_tokens() as f32;
    let rows = LoraRows::all(&adapter, batch.rows());
    let losses = decoder.losses_and_gradients(&mut work, &batch, &[rows], dloss, &mut grads).unwrap();
    let loss = losses.iter().map(|&l| l as f64).sum::<f64>() / losses.len() as f64;
    let expected = f32_values(tensors.tensor("loss").unwrap().data())[0] as f64;
    println!("{name}: loss {loss} against {expected}");
    assert!((loss / expected - 1.0).abs() < 1e-5, "{name}: {loss}, expected {expected}");

    let bytes = std::fs::read(golden.join("lora_gradients.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut worst = 0f32;
    for (layer, p, a, b, d_in, d_out) in &adapter.modules {
        for (side, start, count) in [("A", a, adapter.rank * d_in), ("B", b, d_out * adapter.rank)] {
            let tensor = format!("base_model.model.{}.lora_{side}.weight", p.module_path(*layer));
            let mut found = vec![0.0; count];
            backend.read(&mut found, &grads, *start).unwrap();
            let difference = relative_to_max(&found, &f32_values(expected.tensor(&tensor).unwrap().data()));
            worst = worst.max(difference);
            assert!(difference < 1e-4, "{name}: {tensor}: {difference}");
        }
    }
    println!("{name}: gradients {worst:.1e} of the largest of each tensor");
}

#[test]
fn greedy_generations_equal_transformers() {
    let Some(shared) = shared() else { return };
    let golden = shared.join("golden");
    let file = golden.join("adapter_after_10_steps/adapter_model.safetensors");
    let cases: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("generations.json")).unwrap()).unwrap();
    for backend in backends() {
        let name = backend.name();
        let decoder = Decoder::load(&golden.join("tiny"), backend).unwrap();
        let adapter = FlatAdapter::from_peft(decoder.config(), &**decoder.backend(), &file, 8, 4.0);
        for (kind, lora) in [("base", None), ("adapter", Some(&adapter as &dyn LoraSource))] {
            for case in cases[kind].as_array().unwrap() {
                let expected = ids(&case["new_ids"]);
                let found = greedy(&decoder, lora, &ids(&case["prompt_ids"]), expected.len());
                assert_eq!(found, expected, "{name}: {kind}: {}", case["prompt"]);
            }
        }
    }
}

/// Returns `count` tokens of greedy decoding. Decoding continues after an end-of-turn token.
fn greedy(decoder: &Decoder, lora: Option<&dyn LoraSource>, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut work = Workspace::new();
    let mut cache = decoder.new_cache();
    let slot = cache.add(prompt.len() + count);
    let mut logits = decoder.prefill(&mut work, &mut cache, &[SlotInput::new(slot, prompt, lora)]).unwrap();
    let mut found = Vec::new();
    loop {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
        found.push(best);
        if found.len() == count {
            return found;
        }
        logits = decoder.decode(&mut work, &mut cache, &[SlotInput::new(slot, &[best], lora)]).unwrap();
    }
}
