//! Tests that a correct merge passes the measurement, and that a wrong merge fails with the reason.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::{backend, golden, write_model};
use danlu_adapter::fidelity::{AdapterOnBase, Fidelity, FidelityLimits, measure};
use danlu_adapter::merge::{MergeOptions, MergeReport, REPORT_FILE, StagedMerge, merge, stage};
use danlu_adapter::{Adapter, LoraConfig};
use danlu_kernels::{Cpu, CpuOptions, DType, rng};
use danlu_model::{Decoder, LabeledSequence, ModelConfig};

fn decoder(folder: &Path) -> Decoder {
    Decoder::load(folder, Arc::new(Cpu::new(CpuOptions { threads: Some(2), ..Default::default() }))).unwrap()
}

/// Returns an adapter that changes the output of the model at `base`.
fn adapter(base: &Path, alpha: f64, size: f32) -> Adapter {
    let model = ModelConfig::read(base).unwrap();
    let mut adapter = Adapter::init(LoraConfig::new(4, alpha), &model, 1, &backend()).unwrap();
    common::randomise(&mut adapter, size);
    adapter
}

fn sequences(count: u64, len: u64, vocabulary: u64) -> Vec<LabeledSequence> {
    let sequence = |s| LabeledSequence {
        ids: (0..len).map(|i| (rng::bits(s, i) % vocabulary) as u32).collect(),
        trained: (0..len).map(|i| i > len / 2).collect(),
    };
    (0..count).map(sequence).collect()
}

fn merged(base: &Path, adapter: &Adapter, out: &Path, dtype: Option<DType>) -> Decoder {
    let options = MergeOptions { dtype, ..Default::default() };
    merge(base, adapter, &backend(), out, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    decoder(out)
}

fn staged(base: &Path, adapter: &Adapter, out: &Path) -> StagedMerge {
    stage(base, adapter, &backend(), out, &MergeOptions::default(), &mut |_| ControlFlow::Continue(()))
        .unwrap()
}

/// Returns the operands of `measure` for an adapter that replaces no tensor of its base.
fn alone<'a>(base: &'a Decoder, adapter: &'a Adapter) -> AdapterOnBase<'a> {
    AdapterOnBase { base, changed: base, adapter }
}

fn compare(base: &Path, adapter: &Adapter, merged: &Decoder, dtype: DType) -> Fidelity {
    let texts = sequences(3, 20, 100);
    measure(alone(&decoder(base), adapter), merged, None, &texts, FidelityLimits::of(dtype), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap()
}

#[test]
fn a_merge_is_as_near_as_its_type_rounds() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    write_model(&base, 1);
    let adapter = adapter(&base, 8.0, 0.5);
    let mut last = 0.0;
    for (dtype, name) in [(DType::F32, "f32"), (DType::F16, "f16"), (DType::Bf16, "bf16")] {
        let merged = merged(&base, &adapter, &folder.path().join(name), Some(dtype));
        let found = compare(&base, &adapter, &merged, dtype);
        println!("{name}: {found:?}");
        assert!(found.passed && found.faults().is_empty(), "{:?}", found.faults());
        assert_eq!((found.sequences, found.tokens, found.trained_tokens), (3, 60, 27));
        assert!(found.kl < found.kl_of_adapter / 100.0);
        assert!(found.mean_logit_difference <= found.max_logit_difference);
        // Each type has fewer bits than the previous type, so its error is larger.
        assert!(found.max_logit_difference > last);
        last = found.max_logit_difference;
    }
}

#[test]
fn a_merge_with_another_scale_or_none_at_all_fails() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    write_model(&base, 1);
    let right = adapter(&base, 8.0, 0.5);
    let wrong = merged(&base, &adapter(&base, 16.0, 0.5), &folder.path().join("wrong"), None);
    let found = compare(&base, &right, &wrong, DType::Bf16);
    assert!(!found.passed && found.faults()[0].starts_with("the divergence is"), "{found:?}");
    // This adapter is so weak that its whole effect is smaller than the fixed limit for rounding.
    let weak = adapter(&base, 8.0, 0.08);
    let found = compare(&base, &weak, &decoder(&base), DType::Bf16);
    assert!(found.kl_of_adapter < found.limits.kl && found.kl_of_adapter > 1e-5, "{found:?}");
    assert_eq!(found.kl, found.kl_of_adapter);
    assert_eq!(found.kl_limit, found.kl_of_adapter / 4.0);
    let fault = &found.faults()[0];
    assert!(!found.passed && fault.contains("is allowed; the whole adapter makes "), "{fault}");
    // `with_kl` replaces both limits. For an adapter without an effect, the limit is a thousandth of the
    // fixed limit.
    assert_eq!(found.limits.with_kl(0.5).kl_beside(found.kl_of_adapter), 0.5);
    assert_eq!(found.limits.kl_beside(0.0), found.limits.kl / 1000.0);
    assert_eq!(found.limits.kl_beside(f64::MAX), found.limits.kl);
}

#[test]
fn the_report_keeps_merge_and_measurement() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    write_model(&base, 1);
    let adapter = adapter(&base, 8.0, 0.5);
    let staged = staged(&base, &adapter, &out);
    let found = compare(&base, &adapter, &decoder(staged.folder()), DType::Bf16);
    assert!(!out.join("config.json").exists(), "a model before it was vouched for");
    let report = staged.publish(Some(&found)).unwrap();
    let kept: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join(REPORT_FILE)).unwrap()).unwrap();
    let merge: MergeReport = serde_json::from_value(kept["merge"].clone()).unwrap();
    assert_eq!(merge, report);
    let again: Fidelity = serde_json::from_value(kept["fidelity"].clone()).unwrap();
    // A decimal number in JSON may be parsed as a neighbouring float.
    assert!((again.perplexity_merged / found.perplexity_merged - 1.0).abs() < 1e-12);
    assert_eq!((again.tokens, again.limits, again.passed), (found.tokens, found.limits, found.passed));
}

#[test]
fn an_unpublished_merge_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    write_model(&base, 1);
    let adapter = adapter(&base, 8.0, 0.5);
    let staged = staged(&base, &adapter, &out);
    drop(staged);
    assert!(!out.exists());
}

#[test]
fn nothing_to_measure_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), 1);
    let (model, adapter) = (decoder(folder.path()), adapter(folder.path(), 8.0, 0.5));
    let empty = [LabeledSequence { ids: vec![], trained: vec![] }];
    for texts in [&empty[..], &[]] {
        assert!(
            measure(
                alone(&model, &adapter),
                &model,
                None,
                texts,
                FidelityLimits::of(DType::F32),
                &mut |_| { ControlFlow::Continue(()) }
            )
            .is_err()
        );
    }
    let outside = [LabeledSequence { ids: vec![5, 100], trained: vec![false, true] }];
    assert!(
        measure(alone(&model, &adapter), &model, None, &outside, FidelityLimits::of(DType::F32), &mut |_| {
            ControlFlow::Continue(())
        })
        .is_err()
    );
}

#[test]
fn the_golden_adapter_merges_within_the_limits() {
    let (Some(base), Some(folder)) = (golden("tiny"), golden("adapter_after_10_steps")) else { return };
    let model = ModelConfig::read(&base).unwrap();
    let adapter = Adapter::load(&folder, &model, &backend()).unwrap();
    let texts = sequences(2, 40, 4080);
    for dtype in [DType::F32, DType::Bf16] {
        let out = tempfile::tempdir().unwrap();
        let merged = merged(&base, &adapter, out.path(), Some(dtype));
        let found = measure(
            alone(&decoder(&base), &adapter),
            &merged,
            None,
            &texts,
            FidelityLimits::of(dtype),
            &mut |_| ControlFlow::Continue(()),
        )
        .unwrap();
        println!("{dtype:?}: {found:?}");
        assert!(found.passed, "{:?}", found.faults());
    }
}
