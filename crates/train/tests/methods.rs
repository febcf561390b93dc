//! Compares ten steps of each way to start or change a run with PEFT and transformers. The expected values
//! were computed by `reference/methods.py`.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{crate_folder, decoder, json, read_examples, relative};
use danlu_adapter::{Adapter, InitLoraWeights, LoraConfig};
use danlu_model::Decoder;
use danlu_train::{TrainSettings, Trainer};
use serde_json::Value;

fn expected() -> Value {
    json(&folder().join("methods.json"))
}

fn folder() -> PathBuf {
    crate_folder().join("tests/expected")
}

/// Returns the settings of PEFT's ten steps, with rank 2 and alpha 8.
fn recipe() -> TrainSettings {
    let hyper = &json(&folder().join("training.json"))["hyper_parameters"];
    TrainSettings { lora_r: 2, lora_alpha: 8.0, ..common::recipe(hyper) }
}

/// Returns an adapter whose matrices A are the first rows of those in `adapter_initial`, and whose matrices B
/// are zero.
fn initial(settings: &TrainSettings, decoder: &Decoder) -> Adapter {
    let (config, backend) = (decoder.config(), &**decoder.backend());
    let plain = Adapter::load(&folder().join("adapter_initial"), config, backend).unwrap();
    let values = plain.to_vec(backend).unwrap();
    let mut adapter = Adapter::init(settings.lora_config("base-8m"), config, 0, backend).unwrap();
    for module in adapter.modules().to_vec() {
        let from = plain.module(module.layer, module.projection).unwrap();
        let rows = &values[from.a..][..module.rank * module.d_in];
        backend.write(&mut adapter.params, module.a, rows);
    }
    adapter
}

/// Runs ten steps, and compares losses, norms of gradients, and the norms of the adapter's tensors.
fn ten_steps(
    settings: &TrainSettings,
    decoder: &Arc<Decoder>,
    adapter: Adapter,
    expected: &Value,
) -> Trainer {
    let examples = read_examples(&folder().join("examples.json"))[..40].to_vec();
    let batch: Vec<_> = examples[..4].iter().map(|example| example.sequence.clone()).collect();
    let mut trainer =
        Trainer::new(decoder.clone(), adapter, examples, settings.clone(), String::new()).unwrap();
    let (mut worst_loss, mut worst_norm) = (0.0f64, 0.0f64);
    for step in expected["steps"].as_array().unwrap() {
        let report = trainer.step().unwrap();
        worst_loss = worst_loss.max(relative(report.loss, step["loss"].as_f64().unwrap()));
        let norm = step["grad_norm_before_clip"].as_f64().unwrap();
        worst_norm = worst_norm.max(relative(report.grad_norm, norm));
    }
    let after = trainer.evaluate(&batch).unwrap().loss;
    let after = relative(after, expected["batch_loss_after"].as_f64().unwrap());
    // The tolerances are those of `golden.rs`, for the same reasons.
    let found = format!("loss {worst_loss:.1e}, norm {worst_norm:.1e}, after {after:.1e}");
    println!("{found}");
    assert!(worst_loss < 1e-4 && worst_norm < 1e-4 && after < 1e-4, "{found}");
    trainer
}

/// Compares the norm of each tensor of the adapter.
fn compare_tensors(trainer: &Trainer, expected: &Value) {
    let values = trainer.adapter().to_vec(&**trainer.decoder().backend()).unwrap();
    let norms = expected["l2"].as_object().unwrap();
    assert_eq!(norms.len(), trainer.adapter().tensors().count());
    for tensor in trainer.adapter().tensors() {
        let squares = values[tensor.offset..][..tensor.len()].iter().map(|v| f64::from(*v).powi(2));
        let l2 = relative(squares.sum::<f64>().sqrt(), norms[&tensor.name].as_f64().unwrap());
        assert!(l2 < 1e-3, "{}: {l2:.1e}", tensor.name);
    }
}

#[test]
fn ten_steps_with_loraplus_equal_peft() {
    let (expected, decoder) = (&expected()["loraplus"], decoder(&common::base_8m(), 2));
    let settings = TrainSettings { loraplus_lr_ratio: expected["ratio"].as_f64(), ..recipe() };
    let adapter = initial(&settings, &decoder);
    compare_tensors(&ten_steps(&settings, &decoder, adapter, expected), expected);
}

#[test]
fn ten_steps_with_neftune_equal_transformers() {
    let (expected, decoder) = (&expected()["neftune"], decoder(&common::base_8m(), 2));
    let settings = TrainSettings {
        neftune_noise_alpha: expected["alpha"].as_f64(),
        seed: expected["seed"].as_u64().unwrap(),
        per_device_train_batch_size: 1,
        gradient_accumulation_steps: 4,
        ..recipe()
    };
    let adapter = initial(&settings, &decoder);
    compare_tensors(&ten_steps(&settings, &decoder, adapter, expected), expected);
}

#[test]
fn ten_steps_with_patterns_equal_peft() {
    let (expected, decoder) = (&expected()["patterns"], decoder(&common::base_8m(), 2));
    let mut settings = serde_json::to_value(recipe()).unwrap();
    settings.as_object_mut().unwrap().extend(expected["config"].as_object().unwrap().clone());
    let settings: TrainSettings = serde_json::from_value(settings).unwrap();
    let adapter = initial(&settings, &decoder);
    compare_tensors(&ten_steps(&settings, &decoder, adapter, expected), expected);
}

#[test]
fn ten_steps_with_olora_equal_peft_and_save_its_conversion() {
    let (expected, decoder) = (&expected()["olora"], decoder(&common::base_8m(), 2));
    let settings = TrainSettings { init_lora_weights: InitLoraWeights::Olora, weight_decay: 0.0, ..recipe() };
    let lora = settings.lora_config("base-8m");
    let adapter = Adapter::init(lora, decoder.config(), 0, &**decoder.backend()).unwrap();
    let trainer = ten_steps(&settings, &decoder, adapter, expected);

    let saved = tempfile::tempdir().unwrap();
    trainer.save_adapter(saved.path()).unwrap();
    let config = json(&saved.path().join(danlu_adapter::CONFIG_FILE));
    for (key, value) in expected["saved_config"].as_object().unwrap() {
        let numbers = (config[key].as_f64(), value.as_f64());
        assert!(config[key] == *value || numbers.0 == numbers.1, "{key}: {} {value}", config[key]);
    }
    // The signs of the columns of Q may differ from LAPACK's, so the products are compared.
    let read = Adapter::load(saved.path(), decoder.config(), &**decoder.backend()).unwrap();
    let values = read.to_vec(&**decoder.backend()).unwrap();
    for module in read.modules() {
        let norm = delta_norm(module, &values);
        let of_peft = expected["delta_l2"][format!("base_model.model.{}", module.path())].as_f64().unwrap();
        // The difference of two products of norm 1 loses some digits.
        assert!(relative(norm, of_peft) < 1e-2, "{}: {norm} {of_peft}", module.path());
    }
}

/// Returns the norm of `scaling · B A`.
fn delta_norm(module: &danlu_adapter::Module, values: &[f32]) -> f64 {
    let &danlu_adapter::Module { rank, d_in, d_out, scaling, a, b, .. } = module;
    let at = |o: usize, i: usize| {
        let term = |k: usize| f64::from(values[b + o * rank + k]) * f64::from(values[a + k * d_in + i]);
        f64::from(scaling) * (0..rank).map(term).sum::<f64>()
    };
    let squares = (0..d_out).flat_map(|o| (0..d_in).map(move |i| (o, i))).map(|(o, i)| at(o, i).powi(2));
    squares.sum::<f64>().sqrt()
}

#[test]
fn ten_steps_from_an_adapter_equal_peft() {
    let (expected, decoder) = (&expected()["init_adapter"], decoder(&common::base_8m(), 2));
    let start = folder().join("adapter_after_10_steps");
    let adapter = Adapter::load(&start, decoder.config(), &**decoder.backend()).unwrap();
    compare_tensors(&ten_steps(&recipe(), &decoder, adapter, expected), expected);
}

#[test]
fn olora_changes_nothing_before_the_first_step() {
    let decoder = decoder(&common::base_8m(), 2);
    let examples = read_examples(&folder().join("examples.json"))[..4].to_vec();
    let batch: Vec<_> = examples.iter().map(|example| example.sequence.clone()).collect();
    let loss = |config: LoraConfig| {
        let settings = TrainSettings { init_lora_weights: config.init_lora_weights, ..recipe() };
        let settings = TrainSettings { weight_decay: 0.0, ..settings };
        let adapter = Adapter::init(config, decoder.config(), 0, &**decoder.backend()).unwrap();
        let mut trainer =
            Trainer::new(decoder.clone(), adapter, examples.clone(), settings, String::new()).unwrap();
        trainer.evaluate(&batch).unwrap().loss
    };
    let plain = loss(LoraConfig::new(2, 8.0));
    let olora = loss(LoraConfig { init_lora_weights: InitLoraWeights::Olora, ..LoraConfig::new(2, 8.0) });
    assert!(relative(olora, plain) < 1e-6, "{olora} {plain}");
}
