//! Tests that a run can be resumed and repeated, does not depend on the batch size, and rejects invalid
//! input.

mod common;

use std::fs;
use std::path::Path;

use common::{adapter_bytes, examples, finish, settings, tokens, trainer};
use danlu_adapter::{InitLoraWeights, TrainingIdentity, checkpoints, latest_checkpoint};
use danlu_model::{ActivationPolicy, LabeledSequence, Tokenizer};
use danlu_train::{
    PassGrouping, StepMetrics, TrainError, TrainSettings, latest_whole_checkpoint, sweep_leftovers,
};
use sha2::{Digest, Sha256};

/// Returns the metrics without durations, because the duration of a step may differ between runs.
fn timeless(history: &[StepMetrics]) -> Vec<StepMetrics> {
    history.iter().map(|s| StepMetrics { seconds: 0.0, ..*s }).collect()
}

#[test]
fn resumed_run_equals_straight_run() {
    for (packing, use_dora) in [(false, false), (true, false), (false, true)] {
        // danlu trains DoRA without dropout.
        let lora_dropout = if use_dora { 0.0 } else { settings().lora_dropout };
        let settings = TrainSettings { num_train_epochs: 2.0, packing, use_dora, lora_dropout, ..settings() };
        let mut straight = trainer(&settings, examples(9), 2);
        finish(&mut straight);

        let output = tempfile::tempdir().unwrap();
        let mut first = trainer(&settings, examples(9), 2);
        // The run is interrupted inside an epoch, and between two entries of the log.
        for _ in 0..first.total_steps() / 2 {
            first.step().unwrap();
        }
        let held_out = [examples(10)[9].sequence.clone()];
        let evaluation = first.evaluate(&held_out).unwrap();
        first.log_evaluation(&evaluation);
        let folder = first.save_checkpoint(output.path(), &tokens()).unwrap();
        drop(first);

        let mut second = trainer(&settings, examples(9), 2);
        let resumed = second.resume(&folder).unwrap();
        assert_eq!((resumed.step, resumed.backend_changed), (second.total_steps() / 2, None));
        finish(&mut second);
        assert_eq!(timeless(second.history()), timeless(straight.history()));
        assert_eq!(adapter_bytes(&second), adapter_bytes(&straight));
        assert_eq!(second.state().num_input_tokens_seen, straight.state().num_input_tokens_seen);
        // Both logs are equal, except for the evaluation before the interruption.
        let (mut log, evaluations) = (second.state().log_history.clone(), second.state().evaluations());
        assert_eq!(evaluations, [(resumed.step, evaluation.loss)]);
        log.retain(|entry| !matches!(entry, danlu_train::LogEntry::Eval { .. }));
        assert_eq!(log, straight.state().log_history);
    }
}

#[test]
fn resume_reports_that_a_step_is_divided_into_other_passes() {
    let mut first = trainer(&settings(), examples(6), 2);
    first.step().unwrap();
    let output = tempfile::tempdir().unwrap();
    let folder = first.save_checkpoint(output.path(), &tokens()).unwrap();
    let mut second = trainer(&settings(), examples(6), 2);
    let policies = vec![ActivationPolicy::default(); 8];
    second.reserve(
        policies,
        PassGrouping { fuse: false, max_rows: Some(48), unshared: false },
        (384, 384, 384),
    );
    let (before, now) = second.resume(&folder).unwrap().backend_changed.unwrap();
    assert_eq!(now, format!("{before}, passes of 48 tokens"));
}

#[test]
fn a_resumed_run_equals_a_straight_run_with_each_method() {
    let small = || TrainSettings { lora_dropout: 0.0, max_steps: Some(4), ..settings() };
    let start = |init_lora_weights| TrainSettings { init_lora_weights, ..small() };
    for settings in [
        TrainSettings { use_dora: true, ..small() },
        TrainSettings { loraplus_lr_ratio: Some(16.0), ..small() },
        TrainSettings { neftune_noise_alpha: Some(5.0), per_device_train_batch_size: 2, ..small() },
        TrainSettings { layers_to_transform: Some(vec![1, 2]), ..small() },
        start(InitLoraWeights::Gaussian),
        start(InitLoraWeights::Orthogonal),
        start(InitLoraWeights::Olora),
        TrainSettings { use_dora: true, ..start(InitLoraWeights::Olora) },
    ] {
        let mut straight = trainer(&settings, examples(6), 2);
        let output = tempfile::tempdir().unwrap();
        straight.step().unwrap();
        straight.step().unwrap();
        let folder = straight.save_checkpoint(output.path(), &tokens()).unwrap();
        finish(&mut straight);
        let mut second = trainer(&settings, examples(6), 2);
        assert_eq!(second.resume(&folder).unwrap().step, 2);
        finish(&mut second);
        assert_eq!(timeless(second.history()), timeless(straight.history()), "{settings:?}");
        assert_eq!(adapter_bytes(&second), adapter_bytes(&straight), "{settings:?}");
    }
}

#[test]
fn noise_belongs_to_a_record_and_not_to_its_pass() {
    let run = |neftune_noise_alpha, fuse| {
        let settings = TrainSettings {
            lora_dropout: 0.0,
            neftune_noise_alpha,
            per_device_train_batch_size: 2,
            max_steps: Some(2),
            ..settings()
        };
        let mut trainer = trainer(&settings, examples(8), 2);
        trainer.reserve(Vec::new(), PassGrouping { fuse, ..PassGrouping::default() }, (1, 1, 0));
        finish(&mut trainer);
        timeless(trainer.history())
    };
    assert_eq!(run(Some(5.0), true), run(Some(5.0), false));
    assert_eq!(run(Some(0.0), true), run(None, true));
    assert_ne!(run(Some(5.0), true), run(None, true));
}

#[test]
fn threads_do_not_change_a_byte() {
    let run = |threads| {
        let mut trainer = trainer(&settings(), examples(6), threads);
        finish(&mut trainer);
        adapter_bytes(&trainer)
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(3), one);
}

#[test]
fn two_times_two_records_equal_one_times_four() {
    let run = |batch, accumulation| {
        let settings = TrainSettings {
            lora_dropout: 0.0,
            per_device_train_batch_size: batch,
            gradient_accumulation_steps: accumulation,
            ..settings()
        };
        let mut trainer = trainer(&settings, examples(8), 2);
        finish(&mut trainer);
        trainer.history().to_vec()
    };
    let reference = run(4, 1);
    assert_eq!(reference.len(), 2);
    for (batch, accumulation) in [(2, 2), (1, 4)] {
        for (a, b) in run(batch, accumulation).iter().zip(&reference) {
            assert_eq!((a.trained_tokens, a.tokens, a.epoch), (b.trained_tokens, b.tokens, b.epoch));
            // Only the order of sums in f32 differs between the runs.
            assert!((a.loss - b.loss).abs() < 1e-6 * b.loss, "{} {}", a.loss, b.loss);
            assert!(
                (a.grad_norm - b.grad_norm).abs() < 1e-5 * b.grad_norm,
                "{} {}",
                a.grad_norm,
                b.grad_norm
            );
        }
    }
}

#[test]
fn training_lowers_the_loss_on_what_it_sees() {
    let settings = TrainSettings { num_train_epochs: 6.0, lora_dropout: 0.0, ..settings() };
    let mut trainer = trainer(&settings, examples(6), 2);
    let seen: Vec<LabeledSequence> = examples(6).into_iter().map(|e| e.sequence).collect();
    let before = trainer.evaluate(&seen).unwrap();
    finish(&mut trainer);
    let after = trainer.evaluate(&seen).unwrap();
    assert!(after.loss < before.loss - 0.2, "{} {}", before.loss, after.loss);
    assert_eq!(after.perplexity, after.loss.exp());
    assert!(matches!(trainer.step(), Err(TrainError::Finished { steps: 18 })));
}

#[test]
fn another_run_is_refused_with_both_values() {
    let output = tempfile::tempdir().unwrap();
    let mut first = trainer(&settings(), examples(6), 2);
    first.step().unwrap();
    let folder = first.save_checkpoint(output.path(), &tokens()).unwrap();
    let refused = |settings: TrainSettings, examples| {
        trainer(&settings, examples, 2).resume(&folder).unwrap_err().to_string()
    };
    let error = refused(TrainSettings { learning_rate: 5e-4, seed: 7, ..settings() }, examples(6));
    assert!(error.contains("`learning_rate` was 0.001 and is 0.0005; `seed` was 42 and is 7"), "{error}");
    let error = refused(settings(), examples(5));
    assert!(error.contains("`data` was 6 records") && error.contains("is 5 records"), "{error}");
    let mut other = examples(6);
    other[3].sequence.ids[5] += 1;
    assert!(refused(settings(), other).contains("`data` was 6 records"));
    let quiet = TrainSettings { save_steps: 7, logging_steps: 1, ..settings() };
    assert_eq!(trainer(&quiet, examples(6), 2).resume(&folder).unwrap().step, 1);
}

#[test]
fn a_damaged_checkpoint_is_refused_by_file() {
    let output = tempfile::tempdir().unwrap();
    let mut first = trainer(&settings(), examples(6), 2);
    first.step().unwrap();
    let folder = first.save_checkpoint(output.path(), &tokens()).unwrap();
    let mut names: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 10, "{names:?}");
    for name in names {
        let path = folder.join(&name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        // In a tensor file, this position is in a weight or a moment, which is still a valid number after the
        // flip.
        let place = flipped.len() - 2;
        flipped[place] ^= 1;
        for damaged in [Some(flipped), Some(whole[..whole.len() / 2].to_vec()), Some(Vec::new()), None] {
            match damaged {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            assert_eq!(latest_whole_checkpoint(output.path()).unwrap(), None);
            let error = trainer(&settings(), examples(6), 2).resume(&folder).unwrap_err().to_string();
            assert!(error.contains(&name), "{name}: {error}");
        }
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(latest_whole_checkpoint(output.path()).unwrap(), Some(folder.clone()));
    trainer(&settings(), examples(6), 2).resume(&folder).unwrap();
}

#[test]
fn a_checkpoint_of_another_version_is_told_as_one() {
    let output = tempfile::tempdir().unwrap();
    let mut first = trainer(&settings(), examples(6), 2);
    first.step().unwrap();
    let folder = first.save_checkpoint(output.path(), &tokens()).unwrap();
    let refused = || {
        assert_eq!(latest_whole_checkpoint(output.path()).unwrap(), None);
        let error = trainer(&settings(), examples(6), 2).resume(&folder).unwrap_err();
        let text = error.to_string().replace(&folder.display().to_string(), "checkpoint-1");
        (text, error.hint().unwrap())
    };
    let state = fs::read_to_string(folder.join("danlu_state.json")).unwrap();
    for (format, age, article) in [(1, "older", "an"), (3, "newer", "a")] {
        // A different version of the format may have different fields.
        let other = format!("\"format\": {format},\n  \"other\": 1");
        fs::write(folder.join("danlu_state.json"), state.replace("\"format\": 2", &other)).unwrap();
        let sums = folder.join("checksums.sha256");
        let kept = fs::read(&sums).unwrap();
        fs::remove_file(&sums).unwrap();
        let (text, hint) = refused();
        let told = format!(
            "cannot resume `checkpoint-1`: it has format {format} of {article} {age} danlu, and this one resumes format 2"
        );
        assert_eq!(text, told);
        assert_eq!(hint, format!("finish the run with the {age} danlu, or start again in another folder"));
        fs::write(&sums, kept).unwrap();
    }
    fs::write(folder.join("danlu_state.json"), &state).unwrap();
    fs::remove_file(folder.join("checksums.sha256")).unwrap();
    let (text, hint) = refused();
    assert!(
        text.starts_with("cannot read `checkpoint-1/checksums.sha256`: it is missing, so the files"),
        "{text}"
    );
    assert!(hint.starts_with("resume from an older checkpoint"), "{hint}");
}

/// Changes a file of a checkpoint, and updates the checksum of the file.
fn tamper(folder: &Path, name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>) {
    let sum = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let (path, sums) = (folder.join(name), folder.join("checksums.sha256"));
    let bytes = fs::read(&path).unwrap();
    let changed = change(bytes.clone());
    fs::write(&path, &changed).unwrap();
    fs::write(&sums, fs::read_to_string(&sums).unwrap().replace(&sum(&bytes), &sum(&changed))).unwrap();
}

#[test]
fn a_tampered_checkpoint_is_refused_by_what_it_says() {
    let output = tempfile::tempdir().unwrap();
    let mut first = trainer(&settings(), examples(6), 2);
    first.step().unwrap();
    let folder = first.save_checkpoint(output.path(), &tokens()).unwrap();
    let refused = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let whole = fs::read(folder.join(name)).unwrap();
        tamper(&folder, name, change);
        let error = trainer(&settings(), examples(6), 2).resume(&folder).unwrap_err().to_string();
        assert!(error.contains(name) && !error.contains("SHA-256"), "{name}: {error}");
        tamper(&folder, name, &|_| whole.clone());
        error
    };
    refused("history.jsonl", &|_| Vec::new());
    refused("history.jsonl", &|bytes| bytes.repeat(2));
    let replace = |from: &'static str, to: &'static str| {
        move |bytes| String::from_utf8(bytes).unwrap().replace(from, to).into_bytes()
    };
    let error = refused("danlu_state.json", &replace("\"step_in_epoch\": 1", "\"step_in_epoch\": 2"));
    assert!(error.contains("`cursor.step_in_epoch` is 2, expected 1"), "{error}");
    refused("danlu_state.json", &replace("\"global_step\": 1", "\"global_step\": 4000000000"));
    refused("trainer_state.json", &replace("\"global_step\": 1", "\"global_step\": 3"));
    let nan = |mut bytes: Vec<u8>| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    };
    refused("optimizer.safetensors", &nan);
    refused("adapter_model.safetensors", &nan);
    trainer(&settings(), examples(6), 2).resume(&folder).unwrap();
}

#[test]
fn checkpoints_appear_whole_and_the_oldest_go() {
    let output = tempfile::tempdir().unwrap();
    let settings = TrainSettings { save_total_limit: Some(2), ..settings() };
    let mut trainer = trainer(&settings, examples(8), 2);
    let names = || {
        let mut names: Vec<_> = fs::read_dir(output.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    for expected in
        [&["checkpoint-1"][..], &["checkpoint-1", "checkpoint-2"], &["checkpoint-2", "checkpoint-3"]]
    {
        trainer.step().unwrap();
        trainer.save_checkpoint(output.path(), &tokens()).unwrap();
        assert_eq!(names(), expected);
    }
    // A second checkpoint at the same step replaces the first.
    trainer.save_checkpoint(output.path(), &tokens()).unwrap();
    assert_eq!(names(), ["checkpoint-2", "checkpoint-3"]);

    // The incomplete folder of a killed run is never used as a checkpoint, and `sweep_leftovers` removes this
    // folder.
    for name in [".danlu-tmp-half", "checkpoint-99", "checkpoint-x", "checkpoint-007"] {
        fs::create_dir(output.path().join(name)).unwrap();
    }
    fs::write(output.path().join(".danlu-tmp-half/danlu_state.json"), "{").unwrap();
    assert_eq!(latest_checkpoint(output.path()).unwrap().unwrap(), output.path().join("checkpoint-3"));
    assert_eq!(checkpoints(output.path()).unwrap().len(), 2);
    sweep_leftovers(output.path()).unwrap();
    assert!(!output.path().join(".danlu-tmp-half").exists());
    assert_eq!(latest_checkpoint(&output.path().join("absent")).unwrap(), None);
}

#[test]
fn a_save_that_fails_leaves_the_checkpoint_before_it() {
    let output = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&settings(), examples(6), 2);
    trainer.step().unwrap();
    let folder = trainer.save_checkpoint(output.path(), &tokens()).unwrap();
    let bytes = fs::read(folder.join("optimizer.safetensors")).unwrap();
    trainer.step().unwrap();
    // The tokenizer file is now too large to copy. The adapter is written before the tokenizer file.
    let base = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(common::base_8m().join(name), base.path().join(name)).unwrap();
    }
    let identity = TrainingIdentity::new(base.path(), &Tokenizer::read(base.path()).unwrap(), None);
    let file = fs::File::options().write(true).open(base.path().join("tokenizer.json")).unwrap();
    file.set_len(2 << 30).unwrap();
    let error = trainer.save_checkpoint(output.path(), &identity).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    let left = fs::read_dir(output.path()).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(left.collect::<Vec<_>>(), std::slice::from_ref(&folder));
    assert_eq!(latest_checkpoint(output.path()).unwrap().unwrap(), folder);
    assert_eq!(fs::read(folder.join("optimizer.safetensors")).unwrap(), bytes);
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    // With this alpha, the first change of B makes the next forward pass overflow.
    let settings = TrainSettings { lora_alpha: 1e30, max_grad_norm: 1.0, ..settings() };
    let mut trainer = trainer(&settings, examples(8), 2);
    let error = loop {
        let before = adapter_bytes(&trainer);
        let steps = trainer.global_step();
        if let Err(error) = trainer.step() {
            assert_eq!(adapter_bytes(&trainer), before);
            assert_eq!((trainer.global_step(), trainer.history().len() as u64), (steps, steps));
            break error;
        }
        assert!(steps < 3, "nothing overflowed");
    };
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("examples.json:") && text.starts_with("cannot take step "), "{text}");
}

#[test]
fn records_that_cannot_be_trained_on_are_refused_by_origin() {
    let base = common::base_8m();
    let decoder = common::decoder(&base, 1);
    let refused = |change: &dyn Fn(&mut LabeledSequence)| {
        let mut examples = examples(3);
        change(&mut examples[1].sequence);
        let config = settings().lora_config("base-8m");
        let adapter =
            danlu_adapter::Adapter::init(config, decoder.config(), 1, &**decoder.backend()).unwrap();
        let new = danlu_train::Trainer::new(decoder.clone(), adapter, examples, settings(), String::new());
        new.unwrap_err().to_string()
    };
    let untrained = refused(&|s| s.trained.fill(false));
    assert!(untrained.starts_with("cannot train on `examples.json:1`: none of its"), "{untrained}");
    assert!(refused(&|s| s.trained.pop().map_or((), drop)).contains("loss mask"));
    assert!(refused(&|s| s.ids[2] = u32::MAX).contains("token id 4294967295"));
    let long = |s: &mut LabeledSequence| (s.ids, s.trained) = (vec![1; 200], vec![true; 200]);
    assert!(refused(&long).contains("has 200 tokens, and `max_length` is 128"));
}

#[test]
fn an_adapter_says_in_what_other_tokens_differ() {
    let folder = tempfile::tempdir().unwrap();
    let base = common::base_8m();
    let tokenizer = Tokenizer::read(&base).unwrap();
    assert_eq!(TrainingIdentity::read(folder.path()).unwrap(), None);
    let identity = TrainingIdentity::new(&base, &tokenizer, Some("你是甄嬛。".into()));
    identity.write(folder.path()).unwrap();
    let read = TrainingIdentity::read(folder.path()).unwrap().unwrap();
    assert!(read.differences(&tokenizer).is_empty());
    assert_eq!(read.default_system(), Some("你是甄嬛。"));
    assert_eq!(read.fingerprint(), identity.fingerprint());

    let path = |name: &str| -> std::path::PathBuf { Path::new(folder.path()).join(name) };
    let config = fs::read_to_string(path("tokenizer_config.json")).unwrap();
    let other = tempfile::tempdir().unwrap();
    fs::copy(path("tokenizer.json"), other.path().join("tokenizer.json")).unwrap();
    fs::write(
        other.path().join("tokenizer_config.json"),
        config.replace("<|start_header_id|>", "<|eot_id|>"),
    )
    .unwrap();
    let differences = read.differences(&Tokenizer::read(other.path()).unwrap());
    let [template] = &differences[..] else { panic!("{differences:?}") };
    assert!(template.starts_with("chat template (sha256): ") && template.ends_with(" now"), "{template}");

    fs::write(path("danlu.json"), "{").unwrap();
    let error = TrainingIdentity::read(folder.path()).unwrap_err();
    assert!(
        error.to_string().ends_with("danlu.json`: line 1: found no end of an object, expected `}`"),
        "{error}"
    );
    assert!(error.hint().unwrap().starts_with("copy the file from a checkpoint"));
}
