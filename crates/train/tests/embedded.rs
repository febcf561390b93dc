//! Compares the embedded base and data with transformers and PEFT: token ids and labels, logits, greedy
//! replies, and the merge. These tests need no shared files. All expected values in `tests/expected` were
//! computed by `reference/training.py` with torch 2.15.

mod common;

use std::ops::ControlFlow;
use std::path::PathBuf;

use common::{backends, base_8m, crate_folder, f32_values, ids, json, relative};
use danlu_adapter::Adapter;
use danlu_adapter::merge::{MergeOptions, merge};
use danlu_data::{EncodeOptions, ReadOptions, encode};
use danlu_generate::{GenerateOptions, SamplingOptions, generate};
use danlu_kernels::{DType, to_f32};
use danlu_model::{Batch, Decoder, LabeledSequence, LoraSource, Message, Tokenizer, Weights, Workspace};
use safetensors::SafeTensors;
use serde_json::Value;

fn expected(name: &str) -> PathBuf {
    crate_folder().join("tests/expected").join(name)
}

fn palace() -> PathBuf {
    crate_folder().join("../cli/assets/palace.json")
}

#[test]
fn the_embedded_data_is_what_the_values_were_computed_from() {
    let found = danlu_data::read(&palace(), &ReadOptions::default()).unwrap().fingerprint.sha256;
    assert_eq!(found, json(&expected("training.json"))["data_sha256"].as_str().unwrap());
}

/// Compares the template, the begin-of-text token, the line break before an input, and the mask.
#[test]
fn encoded_records_equal_transformers_ids_and_labels() {
    let tokenizer = Tokenizer::read(&base_8m()).unwrap();
    let dataset = danlu_data::read(&palace(), &ReadOptions::default()).unwrap();
    let examples = json(&expected("examples.json"));
    let examples = examples.as_array().unwrap();
    assert_eq!(examples.len(), 40);
    for (index, (record, example)) in dataset.records.iter().zip(examples).enumerate() {
        let found = encode(record, &tokenizer, &EncodeOptions::default()).unwrap();
        let LabeledSequence { ids: found, trained } = found.sequence;
        assert_eq!(found, ids(&example["input_ids"]), "record {index}");
        let labels: Vec<i64> = example["labels"].as_array().unwrap().iter().flat_map(Value::as_i64).collect();
        let marked = found.iter().zip(&trained).map(|(&id, &trained)| if trained { id.into() } else { -100 });
        assert_eq!(marked.collect::<Vec<i64>>(), labels, "record {index}");
        assert_eq!(found.iter().filter(|&&id| Some(id) == tokenizer.bos_id()).count(), 1, "record {index}");
    }
}

#[test]
fn rendered_prompts_equal_transformers_generation_prompts() {
    let tokenizer = Tokenizer::read(&base_8m()).unwrap();
    for prompt in json(&expected("training.json"))["prompts"].as_array().unwrap() {
        let message = Message::new("user", prompt["prompt"].as_str().unwrap());
        let text = tokenizer.template().unwrap().render(&[message], true).unwrap();
        assert_eq!(tokenizer.encode(&text).unwrap(), ids(&prompt["prompt_ids"]), "{text}");
    }
}

/// Trains an adapter, and merges the adapter in f32 into a new folder.
fn merged_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let decoder = common::decoder(&base_8m(), 1);
    let adapter = trained_adapter(&decoder);
    let options = MergeOptions { dtype: Some(DType::F32), threads: Some(2), ..MergeOptions::default() };
    merge(&base_8m(), &adapter, &**decoder.backend(), folder.path(), &options, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    folder
}

fn trained_adapter(decoder: &Decoder) -> Adapter {
    Adapter::load(&expected("adapter_after_10_steps"), decoder.config(), &**decoder.backend()).unwrap()
}

/// Calls `visit` with the base, the base with its adapter, and the merged model, for every back end.
fn on_every_model(mut visit: impl FnMut(&str, &str, &Decoder, Option<&dyn LoraSource>)) {
    let folder = merged_folder();
    for backend in backends() {
        let name = backend.name();
        let base = Decoder::load(&base_8m(), backend.clone()).unwrap();
        let adapter = trained_adapter(&base);
        visit(&name, "base", &base, None);
        visit(&name, "adapter", &base, Some(&adapter));
        let merged = Decoder::load(folder.path(), backend).unwrap();
        visit(&name, "merged", &merged, None);
    }
}

/// The largest logit is about 12, and the tolerance is 1e-4. In PyTorch, f32 and f64 logits differ by 7e-6.
/// The tolerance is larger because danlu's order of additions differs from PyTorch's.
#[test]
fn logits_of_base_adapter_and_merge_equal_transformers() {
    let training = json(&expected("training.json"));
    let bytes = std::fs::read(expected("logits.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    on_every_model(|backend, kind, decoder, lora| {
        for (i, prompt) in training["prompts"].as_array().unwrap().iter().enumerate() {
            let ids = ids(&prompt["prompt_ids"]);
            let sequence = LabeledSequence { trained: vec![false; ids.len()], ids };
            let batch = Batch::new([&sequence]);
            let logits = decoder.logits(&mut Workspace::new(), &batch, lora).unwrap();
            let target = f32_values(tensors.tensor(&format!("prompt_{i}.{kind}")).unwrap().data());
            let found = &logits[logits.len() - target.len()..];
            let worst = found.iter().zip(&target).map(|(f, t)| (f - t).abs()).fold(0.0, f32::max);
            println!("{backend}: {kind}, prompt {i}: {worst:.1e}");
            assert!(worst < 1e-4, "{backend}: {kind}, prompt {i}: {worst:e}");
        }
    });
}

/// For all chosen prompts, the logits of the two most likely tokens differ by at least 5e-3. Rounding
/// therefore cannot change the most likely token.
#[test]
fn greedy_replies_of_base_adapter_and_merge_equal_transformers() {
    let training = json(&expected("training.json"));
    on_every_model(|backend, kind, decoder, lora| {
        for prompt in training["prompts"].as_array().unwrap() {
            let target = ids(&prompt[kind]["new_ids"]);
            assert_eq!(target.len(), 24);
            let sampling = SamplingOptions::greedy();
            // The reference does not stop at the end-of-turn token, so this test does not stop either.
            let options = GenerateOptions { max_new_tokens: 24, stop_ids: [].into(), sampling };
            let ids = ids(&prompt["prompt_ids"]);
            let mut go_on = |_| ControlFlow::Continue(());
            let found = generate(decoder, &mut Workspace::new(), lora, &ids, &options, &mut go_on).unwrap();
            assert_eq!(found.ids, target, "{backend}: {kind}, {}", prompt["prompt"]);
        }
    });
}

/// An inner product of length 2 may or may not use a fused multiply-add. One rounding more or less changes an
/// element by 6e-8 of its value. In the sums over a tensor, these differences average out.
#[test]
fn merged_projections_have_the_figures_of_pefts_merge() {
    let folder = merged_folder();
    let weights = Weights::open(folder.path()).unwrap();
    let sums = json(&expected("merged_checksums.json"));
    let sums = sums.as_object().unwrap();
    assert_eq!(sums.len(), 56);
    let (mut worst_sum, mut worst_l2, mut worst_element) = (0.0f64, 0.0f64, 0.0f64);
    for (name, target) in sums {
        let info = weights.info(name).unwrap();
        let mut values = vec![0.0; info.shape.iter().product()];
        to_f32(info.dtype().unwrap(), weights.bytes(info), &mut values);
        let wide = || values.iter().map(|&v| f64::from(v));
        let number = |key: &str| target[key].as_f64().unwrap();
        let l2 = wide().map(|v| v * v).sum::<f64>().sqrt();
        worst_sum = worst_sum.max((wide().sum::<f64>() - number("sum")).abs() / number("l2"));
        worst_l2 = worst_l2.max(relative(l2, number("l2")));
        worst_element =
            worst_element.max(relative(wide().map(f64::abs).fold(0.0, f64::max), number("abs_max")));
        for (found, target) in wide().zip(target["first4"].as_array().unwrap()) {
            worst_element = worst_element.max((found - target.as_f64().unwrap()).abs() / number("abs_max"));
        }
    }
    println!("sums {worst_sum:.1e} of L2, L2 {worst_l2:.1e}, elements {worst_element:.1e} of the largest");
    assert!(worst_sum < 1e-7, "a sum differs by {worst_sum:e} of its tensor's L2");
    assert!(worst_l2 < 1e-8, "an L2 differs by {worst_l2:e}");
    assert!(worst_element < 2e-7, "an element differs by {worst_element:e} of its tensor's largest");
}

/// The relative tolerance is 1e-5, because the order of f32 additions differs.
#[test]
fn the_loss_of_the_base_equals_transformers() {
    let training = json(&expected("training.json"));
    let examples = common::examples(4);
    let batch = Batch::new(examples.iter().map(|e| &e.sequence));
    let target = training["batch"]["loss_of_base"].as_f64().unwrap();
    assert_eq!(batch.trained_tokens() as u64, training["batch"]["label_tokens"].as_u64().unwrap());
    for backend in backends() {
        let decoder = Decoder::load(&base_8m(), backend.clone()).unwrap();
        let losses = decoder.losses(&mut Workspace::new(), &batch, None).unwrap();
        let found = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
        println!("{}: {:.1e}", backend.name(), relative(found, target));
        assert!(relative(found, target) < 1e-5, "{}: {found}, {target}", backend.name());
    }
}
