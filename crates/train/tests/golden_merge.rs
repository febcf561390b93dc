//! The merged model against transformers and PEFT (`shared/golden`, where present), on every back end. The figures
//! of its tensors are held in `crates/adapter/tests/merging.rs`.

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

/// `golden/tiny` with one of its adapters merged in f32, on every back end.
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

/// Within 1e-5 of the largest logit, as for the base: a merge in f32 only sums in another order.
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
                // As in the reference, the end token does not end.
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
