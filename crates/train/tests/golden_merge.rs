//! Compares the merged model with transformers and PEFT on every back end. Without the folder
//! `shared/golden`, the tests are skipped. `crates/adapter/tests/merging.rs` compares the values of the
//! merged tensors.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::{backends, decoder, f32_values, ids, json, shared};
use danlu_adapter::Adapter;
use danlu_adapter::merge::{MergeOptions, merge};
use danlu_generate::{GenerateOptions, SamplingOptions, generate};
use danlu_kernels::DType;
use danlu_model::{Batch, Decoder, LabeledSequence, Workspace};
use safetensors::SafeTensors;

/// Merges an adapter into `golden/tiny` in f32, and calls `visit` with the merged model for every back end.
fn on_every_back_end(golden: &Path, adapter: &str, mut visit: impl FnMut(&str, &Decoder)) {
    let base = golden.join("tiny");
    let maker = decoder(&base, 1);
    let adapter = Adapter::load(&golden.join(adapter), maker.config(), &**maker.backend()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = MergeOptions { dtype: Some(DType::F32), threads: Some(2), ..MergeOptions::default() };
    merge(&base, &adapter, &**maker.backend(), folder.path(), &options, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    for backend in backends() {
        let name = backend.name();
        visit(&name, &Decoder::load(folder.path(), backend).unwrap());
    }
}

/// The tolerance is 1e-5 of the largest logit, as for the base, because a merge in f32 only changes the order
/// of sums.
#[test]
fn merged_logits_equal_pefts_adapter_on_the_base() {
    let Some(shared) = shared() else { return };
    let golden = shared.join("golden");
    let bytes = std::fs::read(golden.join("adapter_for_gradients_logits_prompt_0.safetensors")).unwrap();
    let expected = f32_values(SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data());
    let largest = expected.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let ids = ids(&json(&golden.join("prompts.json"))[0]["ids"]);
    let batch = Batch::new([&LabeledSequence { trained: vec![false; ids.len()], ids }]);
    on_every_back_end(&golden, "adapter_for_gradients", |backend, merged| {
        let found = merged.logits(&mut Workspace::new(), &batch, None).unwrap();
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max) / largest;
        println!("{backend}: {worst:.1e}");
        assert!(worst < 1e-5, "{backend}: {worst:e}");
    });
}

#[test]
fn merged_greedy_generations_equal_transformers() {
    let Some(shared) = shared() else { return };
    let golden = shared.join("golden");
    let generations = json(&golden.join("generations.json"));
    on_every_back_end(&golden, "adapter_after_10_steps", |backend, merged| {
        for case in generations["merged"].as_array().unwrap() {
            let target = ids(&case["new_ids"]);
            let options = GenerateOptions {
                max_new_tokens: target.len(),
                // The reference does not stop at the end token, so this test does not stop either.
                stop_ids: [].into(),
                sampling: SamplingOptions::greedy(),
            };
            let mut go_on = |_| ControlFlow::Continue(());
            let prompt = ids(&case["prompt_ids"]);
            let found = generate(merged, &mut Workspace::new(), None, &prompt, &options, &mut go_on).unwrap();
            assert_eq!(found.ids, target, "{backend}: {}", case["prompt"]);
        }
    });
}
