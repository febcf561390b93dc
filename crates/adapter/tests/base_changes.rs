//! Tests adapters that replace tensors of the base: whole tables, rows of tokens, low-rank updates of the
//! tables, and norms.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::{backend, config, read_model, write_model};
use danlu_adapter::merge::{MergeOptions, merge};
use danlu_adapter::{Adapter, AdapterError, AdapterNote};
use danlu_kernels::{DType, rng, to_f32};
use danlu_model::{ModelConfig, Weights};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// Hidden size and vocabulary size of the model.
const C: usize = 48;
const V: usize = 100;

fn random(key: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| rng::uniform(key, i) - 0.5).collect()
}

/// Saves an adapter for `q_proj` with these additional keys and tensors.
fn saved(folder: &Path, keys: Value, tensors: &[(&str, Vec<usize>, Vec<f32>)]) {
    common::save_random(folder, "q_proj");
    let tensors =
        tensors.iter().map(|(name, shape, values)| (name.to_string(), shape.clone(), values.clone()));
    common::add_to_adapter(folder, keys, &tensors.collect::<Vec<_>>());
}

fn load(folder: &Path) -> Result<Adapter, AdapterError> {
    Adapter::load(folder, &config(), &backend())
}

fn values(weights: &Weights, name: &str) -> Vec<f32> {
    let info = weights.info(name).unwrap();
    let mut out = vec![0.0; info.shape.iter().product()];
    to_f32(info.dtype().unwrap(), weights.bytes(info), &mut out);
    out
}

/// Saves an adapter and applies it to the random base. Returns the changed base and the original table.
fn changed(keys: Value, tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> (ModelConfig, Weights, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    write_model(&folder.path().join("base"), 1);
    let base = Weights::open(&folder.path().join("base")).unwrap();
    saved(&folder.path().join("adapter"), keys, tensors);
    let adapter = load(&folder.path().join("adapter")).unwrap();
    Adapter::check(&folder.path().join("adapter")).unwrap();
    assert!(adapter.changes_base());
    let (model, weights) = adapter.changed_base(&config(), &base).unwrap().unwrap();
    weights.check_complete(&model).unwrap();
    (model, weights, values(&base, EMBEDDING))
}

#[test]
fn a_table_without_a_setting_is_that_of_head_and_embedding() {
    let table = random(5, V * C);
    let (model, weights, _) = changed(json!({}), &[("model.embed_tokens.weight", vec![V, C], table.clone())]);
    assert!(model.tie_word_embeddings && weights.info(HEAD).is_none());
    assert_eq!(values(&weights, EMBEDDING), table);
}

#[test]
fn a_saved_head_is_the_tied_models_own() {
    let head = random(5, V * C);
    let keys = json!({ "modules_to_save": ["lm_head"] });
    for name in ["lm_head.weight", "lm_head.modules_to_save.default.weight"] {
        let (model, weights, table) = changed(keys.clone(), &[(name, vec![V, C], head.clone())]);
        assert!(!model.tie_word_embeddings);
        assert_eq!((values(&weights, EMBEDDING), values(&weights, HEAD)), (table, head.clone()));
    }
}

/// In PEFT, the head of a tied model is still the original table, unless `ensure_weight_tying` is set.
#[test]
fn a_saved_embedding_leaves_the_head_unless_the_setting_ties_it() {
    let table = random(5, V * C);
    let tensors = [("model.embed_tokens.weight", vec![V, C], table.clone())];
    let keys = json!({ "modules_to_save": ["embed_tokens"] });
    let (model, weights, original) = changed(keys, &tensors);
    assert!(!model.tie_word_embeddings);
    assert_eq!((values(&weights, EMBEDDING), values(&weights, HEAD)), (table.clone(), original));
    let keys = json!({ "modules_to_save": ["embed_tokens"], "ensure_weight_tying": true });
    let (model, weights, _) = changed(keys, &tensors);
    assert!(model.tie_word_embeddings);
    assert_eq!(values(&weights, EMBEDDING), table);
}

#[test]
fn a_larger_vocabulary_changes_both_tables_and_the_configuration() {
    let table = random(5, (V + 2) * C);
    let tensors = [
        ("lm_head.weight", vec![V + 2, C], table.clone()),
        ("model.embed_tokens.weight", vec![V + 2, C], table.clone()),
    ];
    let (model, weights, _) = changed(json!({}), &tensors);
    assert_eq!((model.vocab_size, model.tie_word_embeddings), (V + 2, true));
    assert_eq!(values(&weights, EMBEDDING), table);
    // A saved embedding with more rows than the head also replaces the head.
    let keys = json!({ "modules_to_save": ["embed_tokens"] });
    let (model, ..) = changed(keys, &tensors[1..]);
    assert_eq!((model.vocab_size, model.tie_word_embeddings), (V + 2, true));
}

#[test]
fn rows_of_tokens_replace_those_of_the_table() {
    let rows = random(6, 3 * C);
    let name = "model.embed_tokens.token_adapter.trainable_tokens_delta";
    for (ids, vocab_size) in [([7, 2, 99], V), ([3, 101, 100], V + 2)] {
        for keys in [json!(ids), json!({ "embed_tokens": ids })] {
            let keys = json!({ "trainable_token_indices": keys });
            let (model, weights, mut expected) = changed(keys, &[(name, vec![3, C], rows.clone())]);
            assert_eq!((model.vocab_size, model.tie_word_embeddings), (vocab_size, true));
            expected.resize(vocab_size * C, 0.0);
            for (id, row) in ids.into_iter().zip(rows.chunks(C)) {
                expected[id * C..][..C].copy_from_slice(row);
            }
            assert!(values(&weights, EMBEDDING) == expected);
        }
    }
}

/// PEFT merges the embedding as `W + s·(B A)ᵀ` and the head as `W + s·B A`.
#[test]
fn pairs_on_the_tables_are_added_to_them() {
    let (r, s) = (4, 2.0);
    let (a, b) = (random(7, r * V), random(8, C * r));
    let (head_a, head_b) = (random(9, r * C), random(10, V * r));
    let keys = json!({ "target_modules": ["q_proj", "embed_tokens", "lm_head"] });
    let tensors = [
        ("model.embed_tokens.lora_embedding_A", vec![r, V], a.clone()),
        ("model.embed_tokens.lora_embedding_B", vec![C, r], b.clone()),
        ("lm_head.lora_A.weight", vec![r, C], head_a.clone()),
        ("lm_head.lora_B.weight", vec![V, r], head_b.clone()),
    ];
    let (model, weights, table) = changed(keys, &tensors);
    assert!(!model.tie_word_embeddings);
    let (embedding, head) = (values(&weights, EMBEDDING), values(&weights, HEAD));
    for (at, original) in table.iter().enumerate() {
        let (v, c) = (at / C, at % C);
        let delta: f32 = (0..r).map(|i| b[c * r + i] * a[i * V + v]).sum();
        assert!((embedding[at] - original - s * delta).abs() < 1e-5);
        let delta: f32 = (0..r).map(|i| head_b[v * r + i] * head_a[i * C + c]).sum();
        assert!((head[at] - original - s * delta).abs() < 1e-5);
    }
}

#[test]
fn a_saved_norm_replaces_that_of_the_base() {
    let norm = random(11, C);
    let keys = json!({ "modules_to_save": ["layers.1.input_layernorm"] });
    let name = "model.layers.1.input_layernorm.weight";
    let (model, weights, _) = changed(keys, &[(name, vec![C], norm.clone())]);
    assert!(model.tie_word_embeddings);
    assert_eq!(values(&weights, name), norm);
}

#[test]
fn a_merge_writes_the_changed_tensors_in_the_bases_type() {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter, out) =
        (folder.path().join("base"), folder.path().join("a"), folder.path().join("out"));
    let head = random(5, (V + 3) * C);
    let table = random(6, (V + 3) * C);
    let keys = json!({ "modules_to_save": ["lm_head", "embed_tokens"] });
    saved(
        &adapter,
        keys,
        &[
            ("lm_head.weight", vec![V + 3, C], head.clone()),
            ("model.embed_tokens.weight", vec![V + 3, C], table.clone()),
        ],
    );
    for shards in [1, 3] {
        write_model(&base, shards);
        let adapter = load(&adapter).unwrap();
        let note = AdapterNote::OwnTensors {
            tensors: vec![EMBEDDING.to_owned(), HEAD.to_owned()],
            vocab_sizes: Some([V, V + 3]),
        };
        assert_eq!(adapter.notes(), [note]);
        let out = out.join(shards.to_string());
        let options = MergeOptions { dtype: (shards == 1).then_some(DType::F32), ..MergeOptions::default() };
        let report =
            merge(&base, &adapter, &backend(), &out, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(report.shards.len(), shards);
        let written = ModelConfig::read(&out).unwrap();
        assert_eq!((written.vocab_size, written.tie_word_embeddings), (V + 3, false));
        let tensors = read_model(&out);
        let near =
            |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-3);
        assert!(near(&tensors[HEAD], &head) && near(&tensors[EMBEDDING], &table));
        assert_eq!(tensors[HEAD] == head, shards == 1);
        let (original, q) = (read_model(&base), "model.layers.0.self_attn.q_proj.weight");
        assert!(original[q] != tensors[q]);
        fs::remove_dir_all(&base).unwrap();
    }
}

#[test]
fn a_saved_copy_keeps_the_changes() {
    let folder = tempfile::tempdir().unwrap();
    let table = random(5, V * C);
    let keys = json!({ "modules_to_save": ["lm_head"], "ensure_weight_tying": true });
    saved(&folder.path().join("a"), keys, &[("lm_head.weight", vec![V, C], table)]);
    let adapter = load(&folder.path().join("a")).unwrap();
    adapter.save(&folder.path().join("b"), &backend()).unwrap();
    let tensors = |name: &str| fs::read(folder.path().join(name).join("adapter_model.safetensors")).unwrap();
    assert_eq!(load(&folder.path().join("b")).unwrap().config, adapter.config);
    let names = |bytes: &[u8]| -> Vec<String> {
        let mut names: Vec<_> =
            SafeTensors::deserialize(bytes).unwrap().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(&tensors("a")), names(&tensors("b")));
}

#[test]
fn what_does_not_fit_the_base_is_named() {
    let text = |keys: Value, tensors: &[(&str, Vec<usize>, Vec<f32>)]| {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path(), keys, tensors);
        load(folder.path()).unwrap_err().to_string()
    };
    let missing = text(json!({ "modules_to_save": ["lm_head"] }), &[]);
    assert!(missing.contains("base_model.model.*lm_head.weight"), "{missing}");
    let score = text(json!({}), &[("score.weight", vec![2, C], random(1, 2 * C))]);
    assert!(score.contains("1 match nothing:\n  base_model.model.score.weight"), "{score}");
    let narrow = text(json!({}), &[("model.embed_tokens.weight", vec![V, 8], random(1, V * 8))]);
    assert!(narrow.contains("has shape [100, 8], expected [100, 48]"), "{narrow}");
    let keys = json!({ "modules_to_save": ["lm_head"] });
    let one = text(keys, &[("lm_head.weight", vec![V + 2, C], random(1, (V + 2) * C))]);
    assert!(one.contains("`lm_head.weight` has shape [102, 48], expected [100, 48]"), "{one}");
    let name = "model.embed_tokens.token_adapter.trainable_tokens_delta";
    let gap = text(json!({ "trainable_token_indices": [102] }), &[(name, vec![1, C], random(1, C))]);
    assert!(gap.contains("token 100 has no row: the table has 100"), "{gap}");
    let mut values = random(1, V * C);
    values[70] = f32::NAN;
    let nan = text(json!({}), &[("model.embed_tokens.weight", vec![V, C], values)]);
    assert!(nan.contains("element 70 of tensor"), "{nan}");
    let huge = text(json!({ "trainable_token_indices": [4_000_000_000_u32] }), &[]);
    assert!(huge.contains("expected token ids up to"), "{huge}");
}
