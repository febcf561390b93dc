//! Tests that runs on a GPU are repeatable and can be resumed with bit-identical results. Without a GPU, the
//! tests are skipped.

mod common;

use std::sync::Arc;

use common::{adapter_bytes, base_8m, cuda, examples, finish, settings, tokens};
use danlu_adapter::Adapter;
use danlu_kernels::DType;
use danlu_model::{ActivationPolicy, Decoder};
use danlu_train::{PassGrouping, TrainSettings, Trainer};

/// Number of tokens in the longest micro-batch, which has three records of `max_length`. The records share a
/// prefix, so attention copies the keys of all these tokens.
const MAX_ROWS: usize = 3 * 128;

/// Returns a trainer that splits micro-batches into parts of about 48 tokens and recomputes all layers.
fn trainer_in_parts(decoder: &Arc<Decoder>, settings: &TrainSettings) -> Trainer {
    let config = settings.lora_config("base-8m");
    let adapter = Adapter::init(config, decoder.config(), settings.seed, &**decoder.backend()).unwrap();
    let examples = examples(12);
    let mut trainer =
        Trainer::new(decoder.clone(), adapter, examples, settings.clone(), String::new()).unwrap();
    let policies = vec![ActivationPolicy::Recompute; decoder.config().num_hidden_layers];
    trainer.reserve(
        policies,
        PassGrouping { fuse: false, max_rows: Some(48), unshared: false },
        (MAX_ROWS, MAX_ROWS, MAX_ROWS),
    );
    trainer
}

#[test]
fn a_run_in_parts_repeats_and_resumes_to_the_bit() {
    let settings = TrainSettings { per_device_train_batch_size: 3, ..settings() };
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let Some(backend) = cuda(dtype) else { return };
        let decoder = Arc::new(Decoder::load(&base_8m(), backend).unwrap());
        let straight = || {
            let mut trainer = trainer_in_parts(&decoder, &settings);
            finish(&mut trainer);
            adapter_bytes(&trainer)
        };
        let expected = straight();
        assert!(straight() == expected, "{dtype:?}: a second run writes other bytes");

        let output = tempfile::tempdir().unwrap();
        let mut first = trainer_in_parts(&decoder, &settings);
        first.step().unwrap();
        let folder = first.save_checkpoint(output.path(), &tokens()).unwrap();
        let mut second = trainer_in_parts(&decoder, &settings);
        assert_eq!(second.resume(&folder).unwrap().backend_changed, None);
        finish(&mut second);
        assert!(adapter_bytes(&second) == expected, "{dtype:?}: a resumed run writes other bytes");
    }
}

#[test]
fn no_step_allocates_device_memory() {
    let Some(backend) = cuda(DType::Bf16) else { return };
    let decoder = Arc::new(Decoder::load(&base_8m(), backend).unwrap());
    let settings = TrainSettings { per_device_train_batch_size: 3, ..settings() };
    let mut trainer = trainer_in_parts(&decoder, &settings);
    let allocated = || decoder.backend().device_memory().unwrap().allocated;
    let reserved = allocated();
    trainer.step().unwrap();
    let lists = allocated() - reserved;
    // A step only allocates the lists of positions, segments and token ids.
    assert!(lists < 64 << 10, "{lists} bytes");
    finish(&mut trainer);
    assert!(allocated() - reserved < 64 << 10, "{} bytes", allocated() - reserved);
}
