//! Tests that DoRA adapters are merged as in PEFT: `W' = m / |W + s·B A| · (W + s·B A)` for each row.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::{backend, config, read_model, write_model};
use danlu_adapter::merge::{MergeOptions, merge};
use danlu_adapter::{Adapter, AdapterError, LoraConfig};
use danlu_kernels::{Backend, Cpu, CpuOptions, DType, Element, Reference, rng};
use danlu_model::{Batch, Decoder, LabeledSequence, LoraRows, Workspace};
use serde_json::json;

const TARGETS: &str = "q_proj,o_proj,up_proj,down_proj";

/// Saves an adapter with random matrices, and with magnitudes that have the name `name`.
fn saved(folder: &Path, name: &str) {
    let adapter = common::save_random(folder, TARGETS);
    let magnitudes = adapter.modules().iter().enumerate().map(|(i, module)| {
        let values = (0..module.d_out as u64).map(|o| 0.5 + rng::uniform(i as u64, o)).collect();
        (format!("{}.{name}", module.path()), vec![module.d_out], values)
    });
    common::add_to_adapter(folder, json!({"use_dora": true}), &magnitudes.collect::<Vec<_>>());
}

fn load(folder: &Path) -> Result<Adapter, AdapterError> {
    Adapter::load(folder, &config(), &backend())
}

#[test]
fn the_merge_is_the_formula_and_the_forward_pass_agrees_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let [base, adapter, out] = ["base", "adapter", "out"].map(|name| folder.path().join(name));
    write_model(&base, 1);
    saved(&adapter, "lora_magnitude_vector");
    Adapter::check(&adapter).unwrap();
    let mut adapter = load(&adapter).unwrap();
    let options = MergeOptions { dtype: Some(DType::F32), ..MergeOptions::default() };
    merge(&base, &adapter, &backend(), &out, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let (original, merged) = (read_model(&base), read_model(&out));
    let params = adapter.to_vec(&backend()).unwrap();
    for m in adapter.modules() {
        let name = m.projection.weight_name(m.layer);
        let (w, found) = (&original[&name], &merged[&name]);
        for o in 0..m.d_out {
            let row: Vec<f64> = (0..m.d_in)
                .map(|i| {
                    let product = |r| f64::from(params[m.b + o * m.rank + r] * params[m.a + r * m.d_in + i]);
                    let delta: f64 = (0..m.rank).map(product).sum();
                    f64::from(w[o * m.d_in + i]) + f64::from(m.scaling) * delta
                })
                .collect();
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            let magnitude = f64::from(params[m.magnitude.unwrap() + o]);
            for (i, value) in row.iter().enumerate() {
                let expected = magnitude / norm * value;
                // The tolerance covers the rounding of four products that are added in f32.
                assert!((f64::from(found[o * m.d_in + i]) - expected).abs() < 1e-6, "{name} {o} {i}");
            }
        }
    }
    let ids: Vec<u32> = (0..24).map(|i| i * 7 % 100).collect();
    let sequence = LabeledSequence { trained: vec![true; ids.len()], ids };
    let backends: [Arc<dyn Backend>; 2] = [
        Arc::new(Reference::new()),
        Arc::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() })),
    ];
    for backend in backends {
        let (base, merged) =
            (Decoder::load(&base, backend.clone()).unwrap(), Decoder::load(&out, backend.clone()).unwrap());
        adapter.prepare(&base, 3).unwrap();
        let (batch, mut work) = (Batch::new([&sequence]), Workspace::new());
        let with = base.logits(&mut work, &batch, Some(&adapter)).unwrap();
        let whole = merged.logits(&mut work, &batch, None).unwrap();
        let alone = base.logits(&mut work, &batch, None).unwrap();
        let difference = |x: &[f32]| x.iter().zip(&whole).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        // Rounding of f32 sums changes a logit by less than 2e-4. The adapter changes the logits by more than
        // 0.1.
        assert!(difference(&with) < 2e-4, "{}: {}", backend.name(), difference(&with));
        assert!(difference(&alone) > 0.1);
        // `losses` computes only some rows of the last layer, in contrast to `logits`.
        let losses = base.losses(&mut work, &batch, Some(&adapter)).unwrap();
        let expected = merged.losses(&mut work, &batch, None).unwrap();
        assert!(losses.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-4));
    }
}

#[test]
fn magnitudes_are_read_under_every_name_and_survive_being_saved() {
    for name in ["lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default"] {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path(), name);
        let adapter = load(folder.path()).unwrap();
        let again = folder.path().join("again");
        adapter.save(&again, &backend()).unwrap();
        let read = load(&again).unwrap();
        assert_eq!(read.to_vec(&backend()).unwrap(), adapter.to_vec(&backend()).unwrap());
        assert!(read.config.use_dora && read.notes().is_empty());
        Adapter::check(&again).unwrap();
    }
}

#[test]
fn a_missing_or_unused_magnitude_is_named() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path(), "lora_magnitude_vector");
    let path = folder.path().join("adapter_config.json");
    let text = fs::read_to_string(&path).unwrap().replace("\"use_dora\":true", "\"use_dora\":false");
    fs::write(&path, text).unwrap();
    for error in [load(folder.path()).unwrap_err(), Adapter::check(folder.path()).unwrap_err()] {
        assert!(error.to_string().contains("q_proj.lora_magnitude_vector"), "{error}");
    }
}

/// Returns an untrained DoRA adapter and the decoder of its base.
fn untrained(base: &Path) -> (Adapter, Decoder) {
    let decoder = Decoder::load(base, Arc::new(Reference::new())).unwrap();
    let lora =
        LoraConfig { use_dora: true, target_modules: TARGETS.parse().unwrap(), ..LoraConfig::new(2, 4.0) };
    let mut adapter = Adapter::init(lora, decoder.config(), 1, &**decoder.backend()).unwrap();
    adapter.prepare(&decoder, 2).unwrap();
    (adapter, decoder)
}

fn sequence() -> LabeledSequence {
    let ids: Vec<u32> = (0..10).map(|i| i * 7 % 100).collect();
    LabeledSequence { trained: (0..10).map(|i| i > 5).collect(), ids }
}

#[test]
fn an_untrained_adapter_has_no_effect() {
    let base = tempfile::tempdir().unwrap();
    write_model(base.path(), 1);
    let (adapter, decoder) = untrained(base.path());
    let (sequence, mut work) = (sequence(), Workspace::new());
    let batch = Batch::new([&sequence]);
    let with = decoder.logits(&mut work, &batch, Some(&adapter)).unwrap();
    let without = decoder.logits(&mut work, &batch, None).unwrap();
    assert!(with.iter().zip(&without).all(|(x, y)| (x - y).abs() < 1e-5));
}

/// The norms are treated as constants in the backward pass, as in PEFT: Liu et al., 2024, section 4.3.
#[test]
fn gradients_match_finite_differences_with_constant_norms() {
    let base = tempfile::tempdir().unwrap();
    write_model(base.path(), 1);
    let (mut adapter, decoder) = untrained(base.path());
    let backend = decoder.backend().clone();
    let mut params = adapter.to_vec(&*backend).unwrap();
    for module in adapter.modules() {
        let pairs = module.a..module.magnitude.unwrap();
        params[pairs].iter_mut().enumerate().for_each(|(i, p)| *p += 0.2 * (rng::uniform(3, i as u64) - 0.5));
    }
    backend.write(&mut adapter.params, 0, &params);
    adapter.prepare(&decoder, 1).unwrap();
    let (sequence, mut work) = (sequence(), Workspace::new());
    let batch = Batch::new([&sequence]);
    let mut grads = backend.alloc(params.len(), Element::Exact);
    let lora = [LoraRows::all(&adapter, batch.rows())];
    decoder.losses_and_gradients(&mut work, &batch, &lora, 1.0, &mut grads).unwrap();
    let mut found = vec![0.0; params.len()];
    backend.read(&mut found, &grads, 0).unwrap();
    let mut loss_at = |adapter: &mut Adapter, index: usize, value: f32, prepare: bool| -> f32 {
        backend.write(&mut adapter.params, index, &[value]);
        if prepare {
            adapter.prepare(&decoder, 1).unwrap();
        }
        let losses = decoder.losses(&mut work, &batch, Some(&*adapter)).unwrap();
        losses.iter().sum()
    };
    for module in adapter.modules().to_vec() {
        let magnitude = module.magnitude.unwrap();
        for (index, is_magnitude) in [(module.a + 5, false), (module.b + 3, false), (magnitude + 2, true)] {
            let (value, step) = (params[index], 2e-2);
            let up = loss_at(&mut adapter, index, value + step, is_magnitude);
            let down = loss_at(&mut adapter, index, value - step, is_magnitude);
            loss_at(&mut adapter, index, value, is_magnitude);
            let expected = (up - down) / (2.0 * step);
            // The tolerance covers f32 rounding of the losses and the error of a finite difference.
            let tolerance = 2e-3 + 0.03 * expected.abs();
            assert!(
                (found[index] - expected).abs() < tolerance,
                "{}: {} {expected}",
                module.path(),
                found[index]
            );
        }
    }
}
