//! Tests the values of a merge against PEFT and the formula, the files and element types, and the state after
//! a failure.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::{backend, golden, read_model, write_model};
use danlu_adapter::merge::{MergeOptions, MergeReport, merge};
use danlu_adapter::{Adapter, AdapterError, LoraConfig};
use danlu_kernels::{Backend, DType, bf16_to_f32, f32_to_bf16};
use danlu_model::{ModelConfig, Weights};
use serde_json::Value;

fn adapter(size: f32) -> Adapter {
    let config =
        LoraConfig { target_modules: "q_proj,down_proj".parse().unwrap(), ..LoraConfig::new(4, 8.0) };
    let mut adapter = Adapter::init(config, &common::config(), 1, &backend()).unwrap();
    common::randomise(&mut adapter, size);
    adapter
}

fn run(
    base: &Path,
    adapter: &Adapter,
    out: &Path,
    options: MergeOptions,
) -> Result<MergeReport, AdapterError> {
    merge(base, adapter, &backend(), out, &options, &mut |_| ControlFlow::Continue(()))
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn figures_are_those_of_pefts_merge_and_unload() {
    let (Some(base), Some(folder), Some(sums)) =
        (golden("tiny"), golden("adapter_after_10_steps"), golden("merged_checksums.json"))
    else {
        return;
    };
    let sums: Value = serde_json::from_slice(&fs::read(sums).unwrap()).unwrap();
    let adapter = Adapter::load(&folder, &ModelConfig::read(&base).unwrap(), &backend()).unwrap();
    for (dtype, key) in [(Some(DType::F32), "f32"), (None, "bf16")] {
        let out = tempfile::tempdir().unwrap();
        run(&base, &adapter, out.path(), MergeOptions { dtype, ..Default::default() }).unwrap();
        let merged = read_model(out.path());
        let expected = sums[key].as_object().unwrap();
        assert_eq!(merged.len(), expected.len());
        for (name, expected) in expected {
            let values = &merged[name];
            let number = |k: &str| expected[k].as_f64().unwrap();
            let sum: f64 = values.iter().map(|&v| v as f64).sum();
            let l2 = values.iter().map(|&v| (v as f64).powi(2)).sum::<f64>().sqrt();
            // In f32, dot products of length 8 are summed in a different order. In bf16, an element near a
            // rounding boundary may be rounded in the other direction, which changes its value by one part in
            // 2⁸.
            let (sum_slack, l2_slack, step) =
                if key == "f32" { (1e-5, 1e-8, 1e-7) } else { (2e-3, 1e-6, 1.0 / 256.0) };
            assert!((sum - number("sum")).abs() <= sum_slack, "{key} {name}: sum {sum} {}", number("sum"));
            assert!((l2 / number("l2") - 1.0).abs() <= l2_slack, "{key} {name}: l2 {l2} {}", number("l2"));
            for (v, e) in values.iter().zip(expected["first8"].as_array().unwrap()) {
                let e = e.as_f64().unwrap();
                assert!((*v as f64 - e).abs() <= step * e.abs() + 1e-9, "{key} {name}: {v} {e}");
            }
        }
    }
}

#[test]
fn a_weight_is_rounded_once_after_adding_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    write_model(&base, 1);
    let adapter = adapter(0.3);
    let report = run(&base, &adapter, &out, MergeOptions::default()).unwrap();
    assert_eq!(
        (report.merged_tensors, report.dtype, report.scaling),
        (6, vec!["bfloat16".to_owned()], vec![2.0])
    );
    let (before, after) = (read_model(&base), read_model(&out));
    let params = adapter.to_vec(&backend()).unwrap();
    let mut touched = BTreeSet::new();
    for m in adapter.modules() {
        let name = m.projection.weight_name(m.layer);
        for (e, (w, merged)) in before[&name].iter().zip(&after[&name]).enumerate() {
            let (o, i) = (e / m.d_in, e % m.d_in);
            let delta: f32 =
                (0..m.rank).map(|r| params[m.b + o * m.rank + r] * params[m.a + r * m.d_in + i]).sum();
            assert_eq!(bf16_to_f32(f32_to_bf16(w + m.scaling * delta)), *merged, "{name} {e}");
        }
        touched.insert(name);
    }
    assert!(before.iter().all(|(name, values)| touched.contains(name) || after[name] == *values));
    // A tied model has no head tensor, neither before nor after the merge.
    assert!(!after.contains_key("lm_head.weight") && after.len() == before.len());
    assert_eq!(fs::read(base.join("config.json")).unwrap(), fs::read(out.join("config.json")).unwrap());
}

#[test]
fn merging_twice_equals_merging_once_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    write_model(&base, 2);
    let mut first = None;
    for threads in [1, 2, 7] {
        let out = folder.path().join(threads.to_string());
        run(&base, &adapter(0.3), &out, MergeOptions { threads: Some(threads), ..Default::default() })
            .unwrap();
        let files: Vec<Vec<u8>> = names(&out).iter().map(|n| fs::read(out.join(n)).unwrap()).collect();
        assert!(first.get_or_insert_with(|| files.clone()) == &files);
    }
}

#[test]
fn an_adapter_of_zeros_leaves_every_byte_of_the_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    write_model(&base, 2);
    run(&base, &adapter(0.0), &out, MergeOptions::default()).unwrap();
    let (before, after) = (Weights::open(&base).unwrap(), Weights::open(&out).unwrap());
    for info in before.tensors() {
        assert!(before.bytes(info) == after.bytes(after.info(&info.name).unwrap()), "{}", info.name);
    }
}

#[test]
fn shards_stay_as_they_are_unless_a_size_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    write_model(&base, 3);
    let kept = folder.path().join("kept");
    let report = run(&base, &adapter(0.3), &kept, MergeOptions::default()).unwrap();
    assert_eq!(report.shards[2], "model-00003-of-00003.safetensors");
    let files = |w: &Weights| w.tensors().iter().map(|t| (t.name.clone(), t.file)).collect::<BTreeSet<_>>();
    assert_eq!(files(&Weights::open(&base).unwrap()), files(&Weights::open(&kept).unwrap()));
    let index: Value =
        serde_json::from_slice(&fs::read(kept.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 2 * common::config().num_parameters());
    assert_eq!(index["weight_map"].as_object().unwrap().len(), read_model(&base).len());

    let one = folder.path().join("one");
    let options = MergeOptions { max_shard_size: Some(1 << 30), ..Default::default() };
    let report = run(&base, &adapter(0.3), &one, options).unwrap();
    assert_eq!(report.shards, ["model.safetensors"]);
    assert!(!one.join("model.safetensors.index.json").exists());
    assert_eq!(read_model(&one), read_model(&kept));

    let many = folder.path().join("many");
    let options = MergeOptions { max_shard_size: Some(20_000), ..Default::default() };
    let report = run(&base, &adapter(0.3), &many, options).unwrap();
    assert!(report.shards.len() > 3);
    assert!(report.shards.iter().all(|s| fs::metadata(many.join(s)).unwrap().len() < 22_000));
    assert_eq!(read_model(&many), read_model(&kept));
    let on_disk: u64 = names(&many).iter().map(|n| fs::metadata(many.join(n)).unwrap().len()).sum();
    assert_eq!(report.bytes, on_disk);
}

#[test]
fn another_type_changes_the_configuration_and_loses_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    write_model(&base, 1);
    for (dtype, name) in [(DType::F32, "float32"), (DType::F16, "float16")] {
        let out = folder.path().join(name);
        let report =
            run(&base, &adapter(0.3), &out, MergeOptions { dtype: Some(dtype), ..Default::default() })
                .unwrap();
        assert_eq!(report.dtype, [name]);
        assert!(Weights::open(&out).unwrap().tensors().iter().all(|t| t.dtype() == Some(dtype)));
        let read =
            |f: &Path| serde_json::from_slice::<Value>(&fs::read(f.join("config.json")).unwrap()).unwrap();
        let mut expected = read(&base);
        expected["torch_dtype"] = name.into();
        assert_eq!(read(&out), expected);
        assert_eq!(ModelConfig::read(&out).unwrap().dtype, Some(dtype));
    }
}

#[test]
fn the_tokenizer_trained_with_is_the_one_that_goes_along() {
    let folder = tempfile::tempdir().unwrap();
    let (base, own) = (folder.path().join("base"), folder.path().join("adapter"));
    write_model(&base, 1);
    adapter(0.3).save(&own, &backend()).unwrap();
    let load = || Adapter::load(&own, &common::config(), &backend()).unwrap();
    let text = |out: &Path, name: &str| fs::read_to_string(out.join(name)).ok();

    let out = folder.path().join("of_the_base");
    run(&base, &load(), &out, MergeOptions::default()).unwrap();
    assert_eq!(text(&out, "tokenizer.json").unwrap(), "{\"of\": \"the base\"}");
    assert_eq!(text(&out, "generation_config.json").unwrap(), "{\"eos_token_id\": 1}");

    fs::write(own.join("tokenizer.json"), "own").unwrap();
    fs::write(own.join("tokenizer_config.json"), "own").unwrap();
    fs::write(own.join("danlu.json"), "more").unwrap();
    let out = folder.path().join("of_the_adapter");
    let also_copy = vec!["danlu.json".to_owned(), "../base/config.json".to_owned(), "absent".to_owned()];
    run(&base, &load(), &out, MergeOptions { also_copy, ..Default::default() }).unwrap();
    assert_eq!(text(&out, "tokenizer.json").unwrap(), "own");
    assert_eq!(text(&out, "danlu.json").unwrap(), "more");
    // The base's `chat_template.jinja` is not copied, because it would override the template in the adapter's
    // `tokenizer_config.json`.
    assert_eq!(text(&out, "chat_template.jinja"), None);
}

#[test]
fn a_failed_merge_leaves_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    write_model(&base, 1);
    let error =
        run(&base, &adapter(1e19), &out, MergeOptions { dtype: Some(DType::F16), ..Default::default() });
    let message = error.unwrap_err().to_string();
    assert!(
        message.starts_with("cannot write tensor `") && message.contains(", beyond the range of F16"),
        "{message}"
    );
    assert!(!out.exists());

    let mut broken = adapter(0.3);
    let m = broken.modules()[0];
    backend().write(&mut broken.params, m.b, &[f32::INFINITY]);
    fs::create_dir(&out).unwrap();
    let error = run(&base, &broken, &out, MergeOptions::default()).unwrap_err();
    assert!(matches!(error, AdapterError::NotFinite { .. }), "{error}");
    assert!(names(&out).is_empty());

    // The next merge removes the temporary folder of an interrupted merge.
    fs::create_dir(out.join(".danlu-tmp-model")).unwrap();
    fs::write(out.join(".danlu-tmp-model/model.safetensors"), "half").unwrap();
    run(&base, &adapter(0.3), &out, MergeOptions::default()).unwrap();
    assert!(!names(&out).contains(".danlu-tmp-model"));

    // A complete model is not overwritten.
    let error = run(&base, &adapter(0.3), &out, MergeOptions::default()).unwrap_err();
    assert!(error.to_string().contains("already holds other things"), "{error}");
    let error = run(&base, &adapter(0.3), &base, MergeOptions::default()).unwrap_err();
    assert!(error.to_string().contains("already holds other things"), "{error}");
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    write_model(&base, 1);
    for (from, to) in
        [("\"intermediate_size\": 80", "\"intermediate_size\": 96"), ("layers\": 3", "layers\": 4")]
    {
        let text = common::CONFIG.replace(from, to);
        let other = ModelConfig::parse(Path::new("config.json"), text.as_bytes()).unwrap();
        let adapter = Adapter::init(LoraConfig::new(4, 8.0), &other, 0, &backend()).unwrap();
        let error = run(&base, &adapter, &folder.path().join("out"), MergeOptions::default()).unwrap_err();
        assert!(matches!(error, AdapterError::Shape { .. } | AdapterError::Model(_)), "{error}");
    }
}

#[test]
fn progress_ends_at_the_total_and_the_report_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    write_model(&base, 2);
    let mut last = (0, 0);
    let report = merge(&base, &adapter(0.3), &backend(), &out, &MergeOptions::default(), &mut |p| {
        assert!(p.bytes > last.0 && p.bytes <= p.total);
        last = (p.bytes, p.total);
        ControlFlow::Continue(())
    });
    assert_eq!((last.0, last.1), (last.1, 2 * common::config().num_parameters()));
    assert!(report.is_ok());
}
