//! Compares ten steps, and the gradients of one batch, with PyTorch and PEFT.
//!
//! The expected values for the embedded base are in `tests/expected` and were computed by
//! `reference/training.py`. The expected values in `shared/golden` are only compared if that folder exists.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{crate_folder, decoder, f32_values, json, read_examples, relative, shared};
use danlu_adapter::Adapter;
use danlu_kernels::{Buffer, DType};
use danlu_model::{Batch, Decoder, LoraRows, Workspace};
use danlu_train::{Example, Trainer};
use safetensors::SafeTensors;
use serde_json::Value;

/// A folder of expected values, with the base and the records from which the values were computed.
struct Expected {
    folder: PathBuf,
    base: PathBuf,
    examples: Vec<Example>,
    training: Value,
}

impl Expected {
    fn embedded() -> Self {
        let folder = crate_folder().join("tests/expected");
        let examples = read_examples(&folder.join("examples.json"));
        Self { training: json(&folder.join("training.json")), base: common::base_8m(), examples, folder }
    }

    fn shared() -> Option<Self> {
        let folder = shared()?.join("golden");
        let examples = read_examples(&folder.join("chat_ids.json"));
        Some(Self {
            training: json(&folder.join("training.json")),
            base: folder.join("tiny"),
            examples,
            folder,
        })
    }

    /// Returns the value of the training file at the first of `paths` that exists. One kind of training file
    /// nests its values in `train` or `batch`, so a caller passes a plain path and a nested one.
    fn value(&self, paths: [&str; 2]) -> &Value {
        paths.iter().find_map(|path| self.training.pointer(path)).expect("one of the paths is there")
    }

    fn number(&self, paths: [&str; 2]) -> f64 {
        self.value(paths).as_f64().expect("a number")
    }

    fn adapter(&self, name: &str, decoder: &Decoder) -> Adapter {
        Adapter::load(&self.folder.join(name), decoder.config(), &**decoder.backend()).unwrap()
    }
}

/// Returns the largest difference of an element divided by the largest expected element, and the L2 norm of
/// all differences divided by the expected L2 norm.
fn distance(found: &[f32], expected: &[f32]) -> (f64, f64) {
    let pairs = || found.iter().zip(expected).map(|(&f, &e)| (f64::from(f), f64::from(e)));
    let largest = pairs().map(|(_, e)| e.abs()).fold(0.0, f64::max);
    let worst = pairs().map(|(f, e)| (f - e).abs()).fold(0.0, f64::max);
    let norm = |x: f64| x.sqrt();
    let apart = norm(pairs().map(|(f, e)| (f - e).powi(2)).sum());
    let whole = norm(pairs().map(|(_, e)| e * e).sum());
    (worst / largest, apart / whole)
}

/// Largest allowed relative differences after ten steps.
struct Tolerance {
    /// Difference of the losses during and after the ten steps.
    loss: f64,
    grad_norm: f64,
    /// L2 norm of a tensor's difference divided by the L2 norm of the tensor.
    tensor: f64,
    /// Share of elements that differ by more than 1e-3 of the largest element in their tensor.
    beyond: f64,
    /// Difference of any element divided by the largest element in its tensor.
    element: f64,
}

/// danlu's order of f32 additions differs from PyTorch's. If a gradient is almost zero, AdamW still takes a
/// step as large as the learning rate, and rounding determines the direction of this step.
const EXACT: Tolerance = Tolerance { loss: 1e-4, grad_norm: 1e-4, tensor: 1e-3, beyond: 1e-3, element: 1e-2 };

#[test]
fn ten_steps_on_the_embedded_base_equal_peft() {
    let expected = Expected::embedded();
    ten_steps(&expected, decoder(&expected.base, 2), EXACT);
}

#[test]
fn ten_steps_on_the_tiny_model_equal_peft() {
    if let Some(expected) = Expected::shared() {
        ten_steps(&expected, decoder(&expected.base, 2), EXACT);
    }
}

#[test]
fn ten_steps_on_a_gpu_equal_peft() {
    let Some(backend) = common::cuda(DType::F32) else { return };
    let expected = Expected::embedded();
    ten_steps(&expected, Arc::new(Decoder::load(&expected.base, backend).unwrap()), EXACT);
}

/// bf16 has 8 significant bits, so the relative error of a loss is about 2^-8. AdamW turns rounding errors of
/// small gradients into full steps.
#[test]
fn ten_steps_on_a_gpu_in_bf16_stay_near_peft() {
    let Some(backend) = common::cuda(DType::Bf16) else { return };
    let tolerance = Tolerance { loss: 1e-2, grad_norm: 3e-2, tensor: 0.2, beyond: 1.0, element: 1.0 };
    let expected = Expected::embedded();
    ten_steps(&expected, Arc::new(Decoder::load(&expected.base, backend).unwrap()), tolerance);
}

/// f16 has 11 significant bits. The loss is scaled, so that small gradients have 11 bits too.
#[test]
fn ten_steps_on_a_gpu_in_f16_stay_near_peft() {
    let Some(backend) = common::cuda(DType::F16) else { return };
    let tolerance = Tolerance { loss: 2e-3, grad_norm: 5e-3, tensor: 5e-2, beyond: 1.0, element: 1.0 };
    let expected = Expected::embedded();
    ten_steps(&expected, Arc::new(Decoder::load(&expected.base, backend).unwrap()), tolerance);
}

fn ten_steps(expected: &Expected, decoder: Arc<Decoder>, tolerance: Tolerance) {
    let hyper = expected.value(["/hyper_parameters", "/train/hyper_parameters"]);
    let adapter = expected.adapter("adapter_initial", &decoder);
    let examples = expected.examples[..40].to_vec();
    let mut trainer =
        Trainer::new(decoder.clone(), adapter, examples, common::recipe(hyper), String::new()).unwrap();

    let steps = expected.value(["/steps", "/train/steps"]).as_array().unwrap();
    let (mut worst_loss, mut worst_norm) = (0.0f64, 0.0f64);
    for step in steps {
        let report = trainer.step().unwrap();
        assert_eq!(report.trained_tokens, step["label_tokens"].as_u64().unwrap());
        worst_loss = worst_loss.max(relative(report.loss, step["loss"].as_f64().unwrap()));
        worst_norm =
            worst_norm.max(relative(report.grad_norm, step["grad_norm_before_clip"].as_f64().unwrap()));
    }
    let batch: Vec<_> = expected.examples[..4].iter().map(|e| e.sequence.clone()).collect();
    let after = trainer.evaluate(&batch).unwrap().loss;
    let after = relative(after, expected.number(["/batch_loss_after", "/train/batch_loss_after"]));

    let target = expected.adapter("adapter_after_10_steps", &decoder);
    let backend = &**decoder.backend();
    let (found, target) = (trainer.adapter().to_vec(backend).unwrap(), target.to_vec(backend).unwrap());
    let (mut element, mut whole, mut beyond) = (0.0f64, 0.0f64, 0);
    for tensor in trainer.adapter().tensors() {
        let place = tensor.offset..tensor.offset + tensor.len();
        let (found, target) = (&found[place.clone()], &target[place]);
        let (e, w) = distance(found, target);
        (element, whole) = (element.max(e), whole.max(w));
        let largest = target.iter().fold(0.0f32, |largest, t| largest.max(t.abs()));
        beyond += found.iter().zip(target).filter(|(f, t)| (*f - *t).abs() > 1e-3 * largest).count();
    }
    println!(
        "{}: loss {worst_loss:.1e}, gradient norm {worst_norm:.1e}, loss after {after:.1e}, \
         weights {element:.1e} (element) {whole:.1e} (tensor), \
         {beyond} of {} elements beyond 1e-3",
        expected.folder.display(),
        found.len()
    );
    assert!(worst_loss < tolerance.loss, "losses differ by {worst_loss:e}");
    assert!(worst_norm < tolerance.grad_norm, "gradient norms differ by {worst_norm:e}");
    assert!(after < tolerance.loss, "the loss after ten steps differs by {after:e}");
    assert!(whole < tolerance.tensor, "weights differ by {whole:e}");
    let share = beyond as f64 / found.len() as f64;
    assert!(share <= tolerance.beyond, "{beyond} of {} elements differ by more than 1e-3", found.len());
    assert!(element < tolerance.element, "an element differs by {element:e}");
}

#[test]
fn gradients_on_the_embedded_base_equal_peft() {
    gradients(&Expected::embedded());
}

#[test]
fn gradients_on_the_tiny_model_equal_peft() {
    if let Some(expected) = Expected::shared() {
        gradients(&expected);
    }
}

/// Compares the gradient of every adapter tensor. The tolerance is 1e-4 of the tensor's largest element.
fn gradients(expected: &Expected) {
    let decoder: Arc<Decoder> = decoder(&expected.base, 2);
    let adapter = expected.adapter("adapter_for_gradients", &decoder);
    let batch = Batch::new(expected.examples[..4].iter().map(|e| &e.sequence));
    let mut grads = Buffer::host(adapter.num_parameters());
    let mut work = Workspace::new();
    let dloss = 1.0 / batch.trained_tokens() as f32;
    let rows = LoraRows::all(&adapter, batch.rows());
    let losses = decoder.losses_and_gradients(&mut work, &batch, &[rows], dloss, &mut grads).unwrap();
    let loss = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
    let loss = relative(loss, expected.number(["/batch/loss", "/batch_loss"]));

    let bytes = std::fs::read(expected.folder.join("lora_gradients.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut worst = 0.0f64;
    for tensor in adapter.tensors() {
        let view = file.tensor(&tensor.name).unwrap();
        let target = f32_values(view.data());
        let (element, _) = distance(&grads.host_slice()[tensor.offset..][..tensor.len()], &target);
        worst = worst.max(element);
    }
    println!("{}: loss {loss:.1e}, gradients {worst:.1e}", expected.folder.display());
    assert!(loss < 1e-5, "the loss differs by {loss:e}");
    assert!(worst < 1e-4, "gradients differ by {worst:e}");
}
