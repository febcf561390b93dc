//! Compares ten steps with DoRA with PEFT. The expected values were computed by `reference/dora.py`.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{crate_folder, decoder, json, read_examples, relative};
use danlu_adapter::{Adapter, LoraConfig};
use danlu_kernels::DType;
use danlu_model::Decoder;
use danlu_train::Trainer;

/// Returns an adapter with DoRA and the matrices of the folder `initial`.
fn adapter(initial: &Path, decoder: &Decoder) -> Adapter {
    let (config, backend) = (decoder.config(), &**decoder.backend());
    let plain = Adapter::load(initial, config, backend).unwrap();
    let values = plain.to_vec(backend).unwrap();
    let dora = LoraConfig { use_dora: true, ..plain.config.clone() };
    let mut adapter = Adapter::init(dora, config, 0, backend).unwrap();
    let targets: Vec<_> = adapter.tensors().collect();
    for tensor in plain.tensors() {
        let target = targets.iter().find(|target| target.name == tensor.name).unwrap();
        backend.write(&mut adapter.params, target.offset, &values[tensor.offset..][..tensor.len()]);
    }
    adapter
}

/// Largest allowed relative differences of the losses, of the gradient norms and of the trained tensors.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    loss: f64,
    norm: f64,
    tensor: f64,
}

/// The tolerances are those of `golden.rs`, for the same reasons.
const EXACT: Tolerance = Tolerance { loss: 1e-4, norm: 1e-4, tensor: 1e-3 };

#[test]
fn ten_steps_with_dora_equal_peft() {
    ten_steps(decoder(&common::base_8m(), 2), EXACT);
}

#[test]
fn ten_steps_with_dora_on_a_gpu_equal_peft() {
    let sixteen = Tolerance { loss: 1e-2, norm: 0.1, tensor: 2e-2 };
    for (dtype, tolerance) in [(DType::F32, EXACT), (DType::Bf16, sixteen), (DType::F16, sixteen)] {
        let Some(backend) = common::cuda(dtype) else { return };
        ten_steps(Arc::new(Decoder::load(&common::base_8m(), backend).unwrap()), tolerance);
    }
}

fn ten_steps(decoder: Arc<Decoder>, tolerance: Tolerance) {
    let folder = crate_folder().join("tests/expected");
    let expected = json(&folder.join("dora.json"));
    let hyper = &json(&folder.join("training.json"))["hyper_parameters"];
    let examples = read_examples(&folder.join("examples.json"))[..40].to_vec();
    let start = adapter(&folder.join("adapter_initial"), &decoder);
    let batch: Vec<_> = examples[..4].iter().map(|example| example.sequence.clone()).collect();
    let mut trainer =
        Trainer::new(decoder.clone(), start, examples, common::recipe(hyper), String::new()).unwrap();
    let (mut worst_loss, mut worst_norm) = (0.0f64, 0.0f64);
    for step in expected["steps"].as_array().unwrap() {
        let report = trainer.step().unwrap();
        worst_loss = worst_loss.max(relative(report.loss, step["loss"].as_f64().unwrap()));
        let norm = step["grad_norm_before_clip"].as_f64().unwrap();
        worst_norm = worst_norm.max(relative(report.grad_norm, norm));
    }
    let after = trainer.evaluate(&batch).unwrap().loss;
    let after = relative(after, expected["batch_loss_after"].as_f64().unwrap());
    let values = trainer.adapter().to_vec(&**decoder.backend()).unwrap();
    let mut whole = 0.0f64;
    for tensor in trainer.adapter().tensors() {
        let squares = values[tensor.offset..][..tensor.len()].iter().map(|v| f64::from(*v).powi(2));
        let l2 = squares.sum::<f64>().sqrt();
        whole = whole.max(relative(l2, expected["l2"][&tensor.name].as_f64().unwrap()));
    }
    let name = decoder.backend().name();
    let found = format!(
        "{name}: loss {worst_loss:.1e}, norm {worst_norm:.1e}, after {after:.1e}, adapter {whole:.1e}"
    );
    println!("{found}");
    let Tolerance { loss, norm, tensor } = tolerance;
    assert!(
        worst_loss < loss && worst_norm < norm && after < loss && whole < tensor,
        "{found}, {tolerance:?}"
    );
}
