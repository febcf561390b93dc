//! Tests that fused micro-batches give the same bits as separate micro-batches.

mod common;

use std::sync::Arc;

use common::{adapter_bytes, base_8m, examples, finish, settings};
use danlu_adapter::Adapter;
use danlu_kernels::{Cpu, CpuOptions, DType, Isa};
use danlu_model::Decoder;
use danlu_train::{PassGrouping, TrainSettings, Trainer};

/// Returns the losses and gradient norms of one run, and the bytes of its adapter.
fn run(
    isa: Isa,
    dtype: DType,
    settings: &TrainSettings,
    fuse_micro_batches: bool,
) -> (Vec<(f64, f64)>, Vec<u8>) {
    let backend = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), dtype }));
    let decoder = Arc::new(Decoder::load(&base_8m(), backend.clone()).unwrap());
    let config = settings.lora_config("base-8m");
    let adapter = Adapter::init(config, decoder.config(), settings.seed, &*backend).unwrap();
    let mut trainer = Trainer::new(decoder, adapter, examples(6), settings.clone(), String::new()).unwrap();
    trainer.reserve(
        Vec::new(),
        PassGrouping { fuse: fuse_micro_batches, max_rows: None, unshared: false },
        (0, 0, 0),
    );
    finish(&mut trainer);
    let history = trainer.history().iter().map(|step| (step.loss, step.grad_norm)).collect();
    (history, adapter_bytes(&trainer))
}

#[test]
fn fused_micro_batches_change_no_bit() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for dtype in [DType::F32, DType::Bf16] {
            for (size, dropout) in [(1, 0.1), (2, 0.1), (2, 0.0)] {
                let settings = TrainSettings {
                    per_device_train_batch_size: size,
                    gradient_accumulation_steps: 3,
                    lora_dropout: dropout,
                    ..settings()
                };
                let [apart, fused] =
                    [false, true].map(|fuse_micro_batches| run(isa, dtype, &settings, fuse_micro_batches));
                assert_eq!(apart, fused, "{isa} {dtype:?}, {size} records a micro-batch");
            }
        }
    }
}
