//! Tests that adapter folders in PEFT's format are read and written without changing a tensor, and that
//! damaged folders are rejected.

mod common;

use std::fs;
use std::path::Path;

use common::{backend, config, golden};
use danlu_adapter::{Adapter, AdapterError, AdapterNote, LoraConfig, TargetModules};
use danlu_kernels::{Reference, rng};
use danlu_model::{LoraSource, ModelConfig, Projection};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

fn lora(rank: u32, targets: &str) -> LoraConfig {
    LoraConfig { target_modules: targets.parse().unwrap(), ..LoraConfig::new(rank, 2.0 * rank as f64) }
}

fn init(config: LoraConfig, seed: u64) -> Adapter {
    Adapter::init(config, &common::config(), seed, &backend()).unwrap()
}

/// Saves a small adapter with random values.
fn saved(folder: &Path) -> Adapter {
    let mut adapter = init(lora(4, "q_proj,down_proj"), 1);
    common::randomise(&mut adapter, 1.0);
    adapter.save(folder, &backend()).unwrap();
    adapter
}

fn load(folder: &Path) -> Result<Adapter, AdapterError> {
    Adapter::load(folder, &config(), &backend())
}

/// Rewrites an adapter file with edited tensors.
fn edit(
    folder: &Path,
    change: impl Fn(&str, Vec<usize>, Vec<u8>) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
) {
    let path = folder.join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors: Vec<_> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .flat_map(|(name, view)| change(&name, view.shape().to_vec(), view.data().to_vec()))
        .collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn tensors_of_peft_load_and_save_byte_for_byte() {
    for name in ["adapter_initial", "adapter_after_10_steps", "adapter_for_gradients"] {
        let (Some(folder), Some(base)) = (golden(name), golden("tiny")) else { return };
        let adapter = Adapter::load(&folder, &ModelConfig::read(&base).unwrap(), &backend()).unwrap();
        assert_eq!((adapter.modules().len(), adapter.source()), (28, Some(folder.as_path())));
        assert_eq!(Adapter::check(&folder).unwrap(), adapter.config);
        let out = tempfile::tempdir().unwrap();
        adapter.save(out.path(), &backend()).unwrap();
        let tensors = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
        assert!(tensors(&folder) == tensors(out.path()), "{name}");
    }
}

#[test]
fn an_adapter_survives_being_saved() {
    let out = tempfile::tempdir().unwrap();
    let mut config = lora(4, "all-linear");
    config.rank_pattern = vec![("layers.1.*".to_owned(), 2), ("k_proj".to_owned(), 7)];
    let mut adapter = init(config, 3);
    common::randomise(&mut adapter, 1.0);
    adapter.save(&out.path().join("new/folder"), &backend()).unwrap();
    let again = load(&out.path().join("new/folder")).unwrap();
    assert_eq!(again.to_vec(&backend()).unwrap(), adapter.to_vec(&backend()).unwrap());
    assert_eq!(again.modules(), adapter.modules());
    let names: Vec<String> = again.tensors().map(|t| t.name).collect();
    assert_eq!(names[0], "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
}

#[test]
fn a_fresh_adapter_has_no_effect_and_depends_on_seed_and_module() {
    let (adapter, all) = (init(lora(4, "q_proj,up_proj"), 7), init(lora(4, "all-linear"), 7));
    let (values, of_all) = (adapter.to_vec(&backend()).unwrap(), all.to_vec(&backend()).unwrap());
    for m in adapter.modules() {
        let a = &values[m.a..][..m.rank * m.d_in];
        let bound = 1.0 / (m.d_in as f32).sqrt();
        assert!(a.iter().all(|v| v.abs() <= bound) && a.iter().any(|v| v.abs() > 0.8 * bound));
        assert!(values[m.b..][..m.d_out * m.rank].iter().all(|&v| v == 0.0));
        // An additional target does not change the values of the other targets.
        assert_eq!(a, &of_all[all.module(m.layer, m.projection).unwrap().a..][..a.len()]);
    }
    assert_ne!(init(lora(4, "q_proj,up_proj"), 8).to_vec(&backend()).unwrap(), values);
    assert_eq!(init(lora(4, "q_proj,up_proj"), 7).to_vec(&backend()).unwrap(), values);
    // The values differ between layers.
    let q = &values[..4 * 48];
    assert_ne!(q, &values[adapter.module(1, Projection::QProj).unwrap().a..][..4 * 48]);
}

#[test]
fn a_decoder_is_given_the_pairs_and_nothing_else() {
    let adapter = init(lora(4, "q_proj,down_proj"), 7);
    let pair = adapter.pair(2, Projection::DownProj).unwrap();
    assert_eq!((pair.rank, pair.d_in, pair.d_out, pair.scaling), (4, 80, 48, 2.0));
    assert!(adapter.pair(2, Projection::UpProj).is_none());
    assert!(adapter.pair(3, Projection::DownProj).is_none());
}

#[test]
fn half_precision_and_tensor_names_with_an_adapter_name_are_read() {
    for (dtype, to) in [(Dtype::BF16, danlu_kernels::DType::Bf16), (Dtype::F16, danlu_kernels::DType::F16)] {
        let out = tempfile::tempdir().unwrap();
        let values = saved(out.path()).to_vec(&backend()).unwrap();
        edit(out.path(), |name, shape, data| {
            let mut wide = vec![0.0; data.len() / 4];
            danlu_kernels::to_f32(danlu_kernels::DType::F32, &data, &mut wide);
            let mut narrow = vec![0; data.len() / 2];
            danlu_kernels::from_f32(to, &wide, &mut narrow);
            vec![(name.replace(".weight", ".default.weight"), dtype, shape, narrow)]
        });
        let loaded = load(out.path()).unwrap().to_vec(&backend()).unwrap();
        assert!(loaded.iter().zip(&values).all(|(x, y)| (x - y).abs() <= y.abs() / 256.0 + 1e-6));
        assert_ne!(loaded, values);
    }
}

#[test]
fn every_tensor_binds_or_both_sides_are_named() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    edit(out.path(), |name, shape, data| {
        vec![(
            name.replace("base_model.model.model.layers.1", "base_model.vision.layers.1"),
            Dtype::F32,
            shape,
            data,
        )]
    });
    let message = load(out.path()).unwrap_err().to_string();
    assert!(
        message.contains("4 match nothing:\n  base_model.vision.layers.1.mlp.down_proj.lora_A.weight"),
        "{message}"
    );
    assert!(
        message.contains("4 are missing:\n  base_model.model.model.layers.1.self_attn.q_proj.lora_A"),
        "{message}"
    );

    saved(out.path());
    edit(out.path(), |name, shape, data| {
        let extra = (name.replace(".weight", ".default.weight"), Dtype::F32, shape.clone(), data.clone());
        vec![(name.to_owned(), Dtype::F32, shape, data), extra]
    });
    assert!(load(out.path()).unwrap_err().to_string().contains("12 match nothing"));

    saved(out.path());
    let mut other = LoraConfig::read(out.path()).unwrap();
    other.target_modules = TargetModules::List(vec!["q_proj".to_owned()]);
    fs::write(out.path().join("adapter_config.json"), other.to_json()).unwrap();
    assert!(load(out.path()).unwrap_err().to_string().contains("6 match nothing"));
}

#[test]
fn shapes_are_those_of_base_and_rank() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    let mut other = LoraConfig::read(out.path()).unwrap();
    other.r = 8;
    fs::write(out.path().join("adapter_config.json"), other.to_json()).unwrap();
    let error = load(out.path()).unwrap_err();
    assert!(
        error.to_string().ends_with("q_proj.lora_A.weight` has shape [4, 48], expected [8, 48]"),
        "{error}"
    );
    let hint = error.hint().unwrap();
    assert!(hint.contains("base_model_name_or_path") && hint.contains("`adapter_config.json`"), "{hint}");
}

#[test]
fn values_must_be_finite_and_of_a_float_type() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    edit(out.path(), |name, shape, mut data| {
        data[20..24].copy_from_slice(&f32::NAN.to_le_bytes());
        vec![(name.to_owned(), Dtype::F32, shape, data)]
    });
    assert!(load(out.path()).unwrap_err().to_string().contains(": element 5 of tensor `"));
    saved(out.path());
    edit(out.path(), |name, shape, data| vec![(name.to_owned(), Dtype::I32, shape, data)]);
    assert!(load(out.path()).unwrap_err().to_string().contains(" is I32, expected"));
}

#[test]
fn a_folder_without_tensors_is_an_error_that_names_the_file() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    fs::rename(out.path().join("adapter_model.safetensors"), out.path().join("adapter_model.bin")).unwrap();
    let error = load(out.path()).unwrap_err();
    assert!(error.to_string().contains("adapter_model.bin`: cannot read the pickle"), "{error}");
    assert!(error.hint().unwrap().contains("safetensors"));
    fs::rename(out.path().join("adapter_model.bin"), out.path().join("model.safetensors")).unwrap();
    let error = load(out.path()).unwrap_err();
    assert!(error.to_string().contains("only `model.safetensors`"), "{error}");
    let error = load(&out.path().join("nowhere")).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    let path = out.path().join("adapter_model.safetensors");
    let whole = fs::read(&path).unwrap();
    for len in [0, 7, 8, 100, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(load(out.path()).is_err(), "{len} bytes");
    }
    let header = |length: u64, json: &str| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes
    };
    let huge = r#"{"x":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#;
    for bytes in
        [header(u64::MAX, "{}"), header(1 << 40, "{}"), header(2, "[]"), header(huge.len() as u64, huge)]
    {
        fs::write(&path, bytes).unwrap();
        assert!(load(out.path()).is_err());
    }
    let json_len = u64::from_le_bytes(whole[..8].try_into().unwrap());
    for i in 0..400 {
        let mut bytes = whole.clone();
        let at = rng::bits(9, i) % (8 + json_len);
        bytes[at as usize] = rng::bits(10, i) as u8;
        fs::write(&path, &bytes).unwrap();
        let _ = load(out.path());
    }
}

#[test]
fn a_configuration_larger_than_the_file_allocates_nothing() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    // This configuration would require about 70 TB of parameters.
    let text = common::CONFIG.replace("\"hidden_size\": 48", "\"hidden_size\": 65536");
    let text = text.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1000");
    let text = text.replace("\"intermediate_size\": 80", "\"intermediate_size\": 65536");
    let Ok(model) = ModelConfig::parse(Path::new("config.json"), text.as_bytes()) else { return };
    let mut config = LoraConfig::read(out.path()).unwrap();
    config.r = 65536;
    fs::write(out.path().join("adapter_config.json"), config.to_json()).unwrap();
    let error = Adapter::load(out.path(), &model, &Reference::new()).unwrap_err();
    assert!(error.to_string().contains("are missing"), "{error}");
}

/// Returns the error inside the file, without the path of the file.
fn bare(error: AdapterError) -> AdapterError {
    match error {
        AdapterError::InFile { source, .. } => bare(*source),
        error => error,
    }
}

#[test]
fn a_folder_is_checked_without_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let check = || Adapter::check(folder).map_err(bare);
    saved(folder);
    assert_eq!(check().unwrap().r, 4);
    let (config, weights) = (folder.join("adapter_config.json"), folder.join("adapter_model.safetensors"));
    let text = fs::read_to_string(&config).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        fs::write(&config, text.replace(from, to)).unwrap();
        let checked = check();
        fs::write(&config, &text).unwrap();
        checked
    };
    // The configuration has a wrong rank for all modules, a wrong rank for some modules, or wrong targets.
    let is_shape = |error: &AdapterError| matches!(error, AdapterError::Shape { expected, found, .. } if expected != found);
    assert!(is_shape(&with("\"r\": 4", "\"r\": 8").unwrap_err()));
    assert!(is_shape(&with("\"r\": 4", "\"r\": 4, \"rank_pattern\": {\"q_proj\": 2}").unwrap_err()));
    let error = with("\"q_proj\",", "\"q_proj\", \"v_proj\",").unwrap_err();
    assert!(matches!(error, AdapterError::Binding { missing, .. } if missing == ["v_proj"]));
    let error = with("\"q_proj\",", "").unwrap_err();
    assert!(matches!(error, AdapterError::Binding { unbound, .. } if !unbound.is_empty()));
    let error = with("\"r\": 4", "\"r\": 4, \"exclude_modules\": [\"q_proj\"]").unwrap_err();
    assert!(matches!(error, AdapterError::Binding { unbound, .. } if !unbound.is_empty()));

    // The cases are a missing matrix, a duplicate matrix, an unknown name, an empty file, a truncated file,
    // and no file.
    let whole = fs::read(&weights).unwrap();
    type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;
    let edited = |change: &dyn Fn(&str) -> Vec<String>| {
        edit(folder, |name, shape, data| -> Tensors {
            let one = |name| (name, Dtype::F32, shape.clone(), data.clone());
            change(name).into_iter().map(one).collect()
        });
        let checked = check();
        fs::write(&weights, &whole).unwrap();
        checked
    };
    let last = |name: &str| name.contains("lora_B");
    let named = |name: &str| vec![name.replace(".weight", ".default.weight")];
    assert!(edited(&named).is_ok());
    let binds = |checked: Result<LoraConfig, AdapterError>| {
        assert!(matches!(checked.unwrap_err(), AdapterError::Binding { .. }));
    };
    binds(edited(&|name| if last(name) { Vec::new() } else { vec![name.to_owned()] }));
    binds(edited(&|name| [named(name), vec![name.to_owned()]].concat()));
    binds(edited(&|name| vec![name.replace("base_model.model.", "")]));
    let empty = edited(&|_| Vec::new()).unwrap_err().to_string();
    assert!(empty.ends_with("it contains no tensors"), "{empty}");
    for cut in [0, 7, 20, whole.len() - 1] {
        fs::write(&weights, &whole[..cut]).unwrap();
        assert!(matches!(check().unwrap_err(), AdapterError::Model(_)), "{cut}");
    }
    fs::remove_file(&weights).unwrap();
    let error = check().unwrap_err();
    assert!(matches!(error, AdapterError::NoWeights { .. }) && error.hint().is_some());
}

fn values(adapter: &Adapter) -> Vec<f32> {
    adapter.to_vec(&backend()).unwrap()
}

#[test]
fn tensors_with_names_of_other_programs_bind() {
    let out = tempfile::tempdir().unwrap();
    let saved = saved(out.path());
    for prefix in ["_orig_mod.base_model.model.", "module.base_model.model.base_model.model.", ""] {
        let folder = tempfile::tempdir().unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(out.path().join(file), folder.path().join(file)).unwrap();
        }
        edit(folder.path(), |name, shape, data| {
            let name = name.replace("base_model.model.", prefix).replace(".weight", ".mine.weight");
            vec![(name, Dtype::F32, shape, data)]
        });
        let read = load(folder.path()).unwrap();
        assert_eq!(values(&read), values(&saved), "{prefix}");
        let [AdapterNote::RenamedTensors { count, wrapper, .. }] = read.notes() else {
            panic!("{:?}", read.notes())
        };
        assert_eq!(*count, 12);
        assert_eq!(wrapper.is_some(), !prefix.is_empty());
    }
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    edit(out.path(), |name, shape, data| {
        let again = name.replace(".weight", ".other.weight");
        vec![(name.to_owned(), Dtype::F32, shape.clone(), data.clone()), (again, Dtype::F32, shape, data)]
    });
    assert!(load(out.path()).unwrap_err().to_string().contains("match nothing"));
}

#[test]
fn empty_tensors_are_named_for_what_they_are() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    edit(out.path(), |name, _, _| vec![(name.to_owned(), Dtype::F32, vec![0], Vec::new())]);
    let error = load(out.path()).unwrap_err();
    assert!(error.to_string().contains("is empty: its shape is [0]"), "{error}");
    assert!(error.hint().unwrap().contains("ZeRO-3") && !error.is_of_another_base());
}

#[test]
fn a_file_without_tensors_is_named_for_what_it_is() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    edit(out.path(), |_, _, _| Vec::new());
    for error in [load(out.path()).unwrap_err(), Adapter::check(out.path()).unwrap_err()] {
        assert!(error.to_string().ends_with("it contains no tensors"), "{error}");
        assert!(error.hint().unwrap().contains("`save_pretrained`"));
    }
}

#[test]
fn a_name_that_matches_nothing_is_a_note_in_a_finished_adapter() {
    let out = tempfile::tempdir().unwrap();
    let saved = saved(out.path());
    let path = out.path().join("adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["target_modules"].as_array_mut().unwrap().push("W_pack".into());
    config["rank_pattern"] = serde_json::json!({ "query_key_value": 2 });
    config["exclude_modules"] = serde_json::json!(["lm_head", "vision_tower"]);
    config["modules_to_save"] = serde_json::json!(["classifier"]);
    fs::write(&path, config.to_string()).unwrap();
    let read = load(out.path()).unwrap();
    assert_eq!(values(&read), values(&saved));
    let unused = |key, name: &str| AdapterNote::UnusedNames { key, names: vec![name.to_owned()] };
    let expected = [
        unused("target_modules", "W_pack"),
        unused("rank_pattern", "query_key_value"),
        unused("exclude_modules", "vision_tower"),
        unused("modules_to_save", "classifier"),
    ];
    assert_eq!(read.notes(), expected);
    assert!(Adapter::check(out.path()).is_ok());
    let error = Adapter::init(read.config.clone(), &common::config(), 1, &backend()).unwrap_err();
    assert!(matches!(error, AdapterError::NoSuchTarget { .. }));
}

#[test]
fn layers_that_do_not_exist_are_the_cause_and_not_the_targets() {
    let out = tempfile::tempdir().unwrap();
    saved(out.path());
    let path = out.path().join("adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["target_modules"].as_array_mut().unwrap().push("W_pack".into());
    config["layers_to_transform"] = serde_json::json!([99]);
    fs::write(&path, config.to_string()).unwrap();
    let error = load(out.path()).unwrap_err();
    assert!(error.hint().unwrap().contains("`layers_to_transform`"), "{error}");
}

#[test]
fn an_adapter_of_mlx_lm_is_read() {
    let out = tempfile::tempdir().unwrap();
    let saved = saved(out.path());
    edit(out.path(), |name, shape, data| {
        let name = name
            .replace("base_model.model.", "")
            .replace(".lora_A.weight", ".lora_a")
            .replace(".lora_B.weight", ".lora_b");
        let [rows, cols] = shape[..] else { panic!("{shape:?}") };
        let element = |row: usize, col: usize| data[4 * (row * cols + col)..][..4].to_vec();
        let transposed =
            (0..cols).flat_map(|col| (0..rows).flat_map(move |row| element(row, col)).collect::<Vec<u8>>());
        vec![(name, Dtype::F32, vec![cols, rows], transposed.collect())]
    });
    let folder = tempfile::tempdir().unwrap();
    fs::copy(out.path().join("adapter_model.safetensors"), folder.path().join("adapters.safetensors"))
        .unwrap();
    let config = serde_json::json!({
        "adapter_path": "adapters", "fine_tune_type": "lora", "model": "x", "num_layers": 16, "train": true,
        "lora_parameters": { "rank": 4, "scale": 2.0, "dropout": 0.0 },
    });
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let read = load(folder.path()).unwrap();
    assert_eq!(values(&read), values(&saved));
    assert_eq!(read.modules(), saved.modules());
    let full = config.to_string().replace("lora\",\"model", "full\",\"model");
    fs::write(folder.path().join("adapter_config.json"), full).unwrap();
    assert!(load(folder.path()).unwrap_err().to_string().contains("`fine_tune_type` is \"full\""));
}

#[test]
fn an_adapter_of_mlx_converts_to_pefts_files() {
    let shared = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/cases"));
    let out = tempfile::tempdir().unwrap();
    for case in ["t2-06", "t2-07"] {
        let Ok(entries) = fs::read_dir(shared.join(case)) else { return };
        let folders = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        let folder = folders.into_iter().find(|path| path.join("adapter_config.json").is_file()).unwrap();
        let out = out.path().join(case);
        fs::create_dir(&out).unwrap();
        assert!(Adapter::convert(&folder, &out).unwrap().is_some(), "{case}");
        Adapter::check(&out).unwrap();
        let model = ModelConfig::read(&shared.join("base-tiny")).unwrap();
        let load = |folder: &Path| Adapter::load(folder, &model, &backend()).unwrap();
        let (original, converted) = (load(&folder), load(&out));
        assert_eq!(converted.modules(), original.modules());
        assert_eq!(converted.to_vec(&backend()).unwrap(), original.to_vec(&backend()).unwrap());
        assert_eq!(converted.notes(), []);
        assert!(Adapter::convert(&out, &out).unwrap().is_none());
    }
}
