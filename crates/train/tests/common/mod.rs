//! The embedded base, and records for tests.
#![allow(dead_code, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use danlu_adapter::{Adapter, TrainingIdentity};
use danlu_kernels::cuda::{Cuda, CudaOptions};
use danlu_kernels::{Backend, Cpu, CpuOptions, DType, Isa, Reference};
use danlu_model::{Decoder, LabeledSequence, Tokenizer, base_fingerprint};
use danlu_train::{Example, LrSchedulerType, TrainSettings, Trainer};

pub fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the folder `shared/` next to the checkout, if it exists.
pub fn shared() -> Option<PathBuf> {
    let path = crate_folder().join("../../../shared");
    if !path.is_dir() {
        eprintln!("skipped: no shared/ beside the checkout");
        return None;
    }
    Some(path)
}

pub fn base_8m() -> PathBuf {
    crate_folder().join("../cli/assets/base-8m")
}

pub fn decoder(folder: &Path, threads: usize) -> Arc<Decoder> {
    let options = CpuOptions { threads: Some(threads), isa: None, dtype: DType::F32 };
    Arc::new(Decoder::load(folder, Arc::new(Cpu::new(options))).unwrap())
}

/// Returns every back end in f32: the reference loops, each instruction set of this machine, and the first
/// GPU.
pub fn backends() -> Vec<Arc<dyn Backend>> {
    let cpu = |isa| Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), dtype: DType::F32 });
    let mut backends: Vec<Arc<dyn Backend>> = vec![Arc::new(Reference::new())];
    backends.extend(Isa::supported().map(|isa| Arc::new(cpu(isa)) as Arc<dyn Backend>));
    backends.extend(cuda(DType::F32));
    backends
}

/// Returns the first GPU. Without a GPU, prints a message and returns `None`.
pub fn cuda(dtype: DType) -> Option<Arc<dyn Backend>> {
    match Cuda::open(CudaOptions { device: 0, dtype }) {
        Ok(cuda) => Some(Arc::new(cuda)),
        Err(error) => {
            assert!(std::env::var_os("DANLU_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

pub fn f32_values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn relative(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs()
}

/// Returns the settings with which PEFT computed the ten expected steps.
pub fn recipe(hyper: &serde_json::Value) -> TrainSettings {
    let number = |name: &str| hyper[name].as_f64().unwrap();
    TrainSettings {
        lora_dropout: 0.0,
        learning_rate: number("lr"),
        lr_scheduler_type: LrSchedulerType::Constant,
        weight_decay: number("weight_decay"),
        max_grad_norm: number("max_grad_norm"),
        max_steps: Some(number("steps") as u64),
        shuffle_dataset: false,
        ..TrainSettings::default()
    }
}

/// Reads records of the form `{ "input_ids": [...], "labels": [...] }`. A label is -100 if its token has no
/// loss.
pub fn read_examples(path: &Path) -> Vec<Example> {
    let records = json(path);
    let integers = |value: &serde_json::Value| {
        value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect::<Vec<_>>()
    };
    let example = |(i, record): (usize, &serde_json::Value)| Example {
        sequence: LabeledSequence {
            ids: integers(&record["input_ids"]).into_iter().map(|id| id as u32).collect(),
            trained: integers(&record["labels"]).into_iter().map(|label| label >= 0).collect(),
        },
        origin: format!("{}:{i}", path.file_name().unwrap().to_string_lossy()),
    };
    records.as_array().unwrap().iter().enumerate().map(example).collect()
}

/// Returns the first `count` records of the embedded data.
pub fn examples(count: usize) -> Vec<Example> {
    let mut examples = read_examples(&crate_folder().join("tests/expected/examples.json"));
    examples.truncate(count);
    examples
}

/// Returns settings for a small and fast run: rank 2, one record per micro-batch, and dropout.
pub fn settings() -> TrainSettings {
    TrainSettings {
        lora_r: 2,
        lora_alpha: 8.0,
        learning_rate: 1e-3,
        per_device_train_batch_size: 1,
        logging_steps: 3,
        max_length: 128,
        ..TrainSettings::default()
    }
}

pub fn trainer(settings: &TrainSettings, examples: Vec<Example>, threads: usize) -> Trainer {
    let base = base_8m();
    let decoder = decoder(&base, threads);
    let config = settings.lora_config("base-8m");
    let adapter = Adapter::init(config, decoder.config(), settings.seed, &**decoder.backend()).unwrap();
    Trainer::new(decoder, adapter, examples, settings.clone(), base_fingerprint(&base).unwrap()).unwrap()
}

pub fn tokens() -> TrainingIdentity {
    let base = base_8m();
    TrainingIdentity::new(&base, &Tokenizer::read(&base).unwrap(), None)
}

pub fn finish(trainer: &mut Trainer) {
    while !trainer.is_finished() {
        trainer.step().unwrap();
    }
}

pub fn adapter_bytes(trainer: &Trainer) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    trainer.save_adapter(folder.path()).unwrap();
    std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap()
}
