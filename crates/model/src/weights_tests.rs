use super::*;
use std::fs;

/// Returns a safetensors file of f32 tensors. All elements of a tensor are its index in the list. The
/// elements of a head are 0.
fn file_of(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            let value = if *name == "lm_head.weight" { 0.0 } else { i as f32 };
            data.extend(value.to_le_bytes());
        }
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    with_header(&serde_json::Value::Object(header).to_string(), &data)
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn read(bytes: Vec<u8>) -> Result<Weights, ModelError> {
    Weights::from_bytes(Path::new("m/model.safetensors"), bytes)
}

fn config(tied: bool) -> ModelConfig {
    let text = format!(
        r#"{{"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 5, "tie_word_embeddings": {tied}}}"#
    );
    ModelConfig::parse(Path::new("config.json"), text.as_bytes()).unwrap()
}

fn tensors_of(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    config.tensors().collect()
}

fn built(tensors: &[(String, Vec<usize>)]) -> Weights {
    let tensors: Vec<_> = tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    read(file_of(&tensors)).unwrap()
}

#[test]
fn tensors_come_in_the_order_of_their_bytes() {
    let weights = read(file_of(&[("z", &[2, 3]), ("a", &[4]), ("m", &[0])])).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["z", "a", "m"]);
    assert_eq!(weights.vector_f32("a", 4).unwrap(), [1.0; 4]);
    assert_eq!(weights.matrix("z", 2, 3).unwrap().to_vec(), [0.0; 6]);
    assert_eq!(weights.bytes(weights.info("a").unwrap()).len(), 16);
    let error = weights.matrix("z", 3, 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot load `m/model.safetensors`: tensor `z` has shape [2, 3], expected [3, 2]"
    );
    assert!(matches!(weights.vector_f32("q", 1), Err(ModelError::NoTensor { .. })));
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let whole = file_of(&[("a", &[4]), ("b", &[2])]);
    for end in 0..whole.len() {
        let error = read(whole[..end].to_vec()).unwrap_err();
        assert!(matches!(error, ModelError::FileSize { .. }), "{end}: {error}");
    }
    let error = read(whole[..whole.len() - 3].to_vec()).unwrap_err();
    let message = format!("it has {} bytes, expected {}", whole.len() - 3, whole.len());
    assert!(error.to_string().contains(&message), "{error}");
    let mut longer = whole;
    longer.push(0);
    assert!(matches!(read(longer), Err(ModelError::FileSize { .. })));
}

#[test]
fn a_header_of_very_many_tensors_is_refused() {
    let tensors: Vec<String> = (0..140_000)
        .map(|n| format!(r#""{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let fault = read(with_header(&format!("{{{}}}", tensors.join(",")), &[])).unwrap_err().to_string();
    assert!(fault.contains("it has 140000 tensors, expected at most 131072"), "{fault}");
}

#[test]
fn headers_that_lie_are_refused() {
    for header in [
        // The offsets overlap, leave a gap, do not match the shape, are in the wrong order, or overflow.
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
        r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
        r#"{"b":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
        r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}, "c":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
        r#"{"b":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,8]}}"#,
        r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#,
        r#"{"b":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"b":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
        r#"{"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
        "{}",
    ] {
        let error = read(with_header(header, &[0; 8])).unwrap_err();
        assert!(
            matches!(error, ModelError::Header { .. } | ModelError::FileSize { .. }),
            "{header}: {error}"
        );
        assert!(error.hint().is_some());
    }
    let error = read(b"version https://git-lfs.github.com/spec/v1".to_vec()).unwrap_err();
    assert!(error.to_string().contains("begins with \"version https://git-lfs"), "{error}");
    assert!(error.hint().unwrap().contains("git lfs pull"), "{:?}", error.hint());
}

#[test]
fn the_exact_set_of_tensors_is_accepted() {
    for tied in [true, false] {
        let config = config(tied);
        let mut tensors = tensors_of(&config);
        built(&tensors).check_complete(&config).unwrap();
        tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![1]));
        if tied {
            tensors.push(("lm_head.weight".to_owned(), vec![5, 4]));
        }
        built(&tensors).check_complete(&config).unwrap();
    }
}

#[test]
fn a_head_that_differs_from_its_tied_table_is_refused() {
    let config = config(true);
    let mut tensors = tensors_of(&config);
    tensors.insert(0, ("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![1]));
    tensors.push(("lm_head.weight".to_owned(), vec![5, 4]));
    let error = built(&tensors).check_complete(&config).unwrap_err();
    assert!(error.to_string().contains("`lm_head.weight` differs"), "{error}");
    assert!(error.hint().unwrap().contains("`tie_word_embeddings`"));
}

#[test]
fn empty_tensors_are_named_for_what_they_are() {
    let config = config(true);
    let mut tensors = tensors_of(&config);
    tensors[1].1 = vec![0];
    let error = built(&tensors).check_complete(&config).unwrap_err().to_string();
    assert!(error.contains("is empty, expected [4]: DeepSpeed ZeRO-3"), "{error}");
}

#[test]
fn shards_without_an_index_are_read_if_all_are_there() {
    let [one, two] = [file_of(&[("a", &[2])]), file_of(&[("_orig_mod.b", &[3])])];
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let folder = folder_with(&[(names[0], &one), (names[1], &two)]);
    assert_eq!(Weights::open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
    fs::remove_file(folder.path().join(names[0])).unwrap();
    let error = Weights::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("of 2 shards 1 are there"), "{error}");
}

#[test]
fn every_wrong_tensor_is_named_with_both_shapes() {
    let config = config(true);
    let mut tensors = tensors_of(&config);
    tensors.retain(|(name, _)| name != "model.norm.weight");
    tensors[0].1 = vec![6, 4];
    tensors.push(("model.layers.1.mlp.up_proj.weight".to_owned(), vec![6, 4]));
    tensors.push(("lm_head.weight".to_owned(), vec![6, 4]));
    let error = built(&tensors).check_complete(&config).unwrap_err().to_string();
    assert!(error.contains("`model.norm.weight` [4] is missing"), "{error}");
    assert!(error.contains("`model.embed_tokens.weight` has shape [6, 4], expected [5, 4]"), "{error}");
    assert!(error.contains("`model.layers.1.mlp.up_proj.weight` [6, 4] is unknown"), "{error}");
    assert!(error.contains("`lm_head.weight` [6, 4] is unknown"), "{error}");
}

#[test]
fn an_untied_model_needs_its_head() {
    let tensors = tensors_of(&config(true));
    let error = built(&tensors).check_complete(&config(false)).unwrap_err().to_string();
    assert!(error.contains("`lm_head.weight` [5, 4] is missing"), "{error}");
}

#[test]
fn another_element_type_is_refused_by_name() {
    let header = r#"{"b":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}"#;
    let weights = read(with_header(header, &[0; 8])).unwrap();
    let error = weights.check_complete(&config(true)).unwrap_err();
    assert!(error.to_string().contains("tensor `b` is F8_E4M3, expected"), "{error}");
    assert!(matches!(weights.vector_f32("b", 8), Err(ModelError::DType { .. })));
}

fn folder_with(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn shards_are_read_through_their_index() {
    let one = file_of(&[("b", &[2]), ("unlisted", &[1])]);
    let two = file_of(&[("unused", &[1]), ("a", &[3])]);
    let index =
        br#"{"metadata": {"total_size": 20}, "weight_map": {"a": "2.safetensors", "b": "1.safetensors"}}"#;
    let folder = folder_with(&[("1.safetensors", &one), ("2.safetensors", &two), (INDEX_FILE, index)]);
    let weights = Weights::open(folder.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(weights.files().len(), 2);
    let a = weights.matrix("a", 1, 3);
    assert!(matches!(a, Err(ModelError::Shape { .. })));
    assert_eq!(weights.vector_f32("a", 3).unwrap(), [1.0; 3]);
}

#[test]
fn an_index_cannot_point_outside_its_folder_or_to_missing_tensors() {
    let shard = file_of(&[("b", &[2])]);
    for (entry, message) in [
        (r#"{"b": "../x.safetensors"}"#, "beside the index"),
        (r#"{"b": "/etc/x.safetensors"}"#, "beside the index"),
        (r#"{"b": "sub/x.safetensors"}"#, "beside the index"),
        (r#"{"b": ""}"#, "beside the index"),
        (r#"{"b": "passwd"}"#, "beside the index"),
        (r#"{"b": "2.safetensors"}"#, "shard `2.safetensors` is missing, with 1 tensors"),
        ("{}", "`weight_map` is empty"),
        ("[]", "found a list, expected an object"),
    ] {
        let index = format!(r#"{{"weight_map": {entry}}}"#);
        let folder = folder_with(&[("1.safetensors", &shard), (INDEX_FILE, index.as_bytes())]);
        let error = Weights::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains(message), "{entry}: {error}");
    }
}

#[test]
fn a_folder_without_safetensors_lists_other_weights() {
    let folder = folder_with(&[("tf_model.h5", b""), ("config.json", b"{}")]);
    let error = Weights::open(folder.path()).unwrap_err();
    assert!(error.to_string().ends_with(", only `tf_model.h5`"), "{error}");
    assert!(error.hint().unwrap().contains("save_pretrained"), "{error}");
    let error = Weights::open(folder_with(&[]).path()).unwrap_err();
    assert!(matches!(error, ModelError::NoWeights { other: None, .. }), "{error}");
    let error = Weights::open(&folder.path().join("absent")).unwrap_err();
    assert!(error.to_string().ends_with("it does not exist"), "{error}");
    fs::create_dir(folder.path().join(SINGLE_FILE)).unwrap();
    assert!(Weights::open(folder.path()).unwrap_err().to_string().contains("it is a folder"));
}

#[test]
fn the_demonstration_model_is_complete() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m"));
    let config = ModelConfig::read(folder).unwrap();
    Weights::open(folder).unwrap().check_complete(&config).unwrap();
}

#[test]
fn a_sharded_model_is_complete() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/models/base-28m"));
    if !folder.exists() {
        eprintln!("skipped: `{}` is not here", folder.display());
        return;
    }
    let config = ModelConfig::read(folder).unwrap();
    let weights = Weights::open(folder).unwrap();
    weights.check_complete(&config).unwrap();
    assert_eq!(weights.files().len(), 4);
    assert_eq!(config.num_parameters(), 27_795_968);
}

#[test]
fn a_head_alone_is_the_table_of_a_tied_model() {
    let (folder, tied) = (tempfile::tempdir().unwrap(), config(true));
    let mut tensors = tensors_of(&tied);
    for (name, _) in &mut tensors {
        *name = name.replace("model.embed_tokens", "lm_head");
    }
    let tensors: Vec<_> = tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    fs::write(folder.path().join("model.safetensors"), file_of(&tensors)).unwrap();
    let weights = Weights::open(folder.path()).unwrap();
    weights.check_complete(&tied).unwrap();
    assert!(weights.info("model.embed_tokens.weight").is_some());
    let error = weights.check_complete(&config(false)).unwrap_err().to_string();
    assert!(error.ends_with("\n  `model.embed_tokens.weight` [5, 4] is missing"), "{error}");
}

#[test]
fn hints_name_the_cause_of_unexpected_tensors() {
    let tied = config(true);
    for (name, shape, hint) in [
        ("model.layers.0.mlp.up_proj.lora_A.weight", vec![2, 4], "merge the adapter first"),
        ("score.weight", vec![1, 4], "classifier or a reward model"),
    ] {
        let mut tensors = tensors_of(&tied);
        tensors.push((name.to_owned(), shape));
        let error = built(&tensors).check_complete(&tied).unwrap_err();
        assert!(error.hint().unwrap().contains(hint), "{error}");
    }
    for (file, hint) in [
        ("consolidated.safetensors", "convert_mistral_weights_to_hf.py"),
        ("__0_0.distcp", "accelerate merge-weights"),
        ("global_step10", "zero_to_fp32.py"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(file), "x").unwrap();
        let error = Weights::open(folder.path()).err().unwrap();
        assert!(error.hint().unwrap().contains(hint), "{error}");
    }
}
