//! Tests which settings of `adapter_config.json` are read, written and rejected, and which modules they
//! select.

mod common;

use danlu_adapter::{Adapter, AdapterError, LoraConfig, Module, TargetModules, targets};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(value: Value) -> Result<LoraConfig, AdapterError> {
    LoraConfig::parse(value.to_string().as_bytes())
}

/// Returns a configuration in which these keys are changed.
fn with(changes: Value) -> Value {
    let mut value =
        json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"] });
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    value
}

fn resolve(changes: Value) -> Result<Vec<Module>, AdapterError> {
    targets::resolve(&parse(with(changes))?, &common::config())
}

fn paths(changes: Value) -> Vec<String> {
    resolve(changes).unwrap().iter().map(|m| m.path().replace("model.layers.", "")).collect()
}

/// PEFT 0.3 accepts these twelve keys and rejects all other keys.
#[test]
fn the_smallest_configuration_has_the_keys_of_the_first_peft() {
    let text = LoraConfig::new(8, 16.0).to_json();
    let written: Value = serde_json::from_str(&text).unwrap();
    let keys: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "base_model_name_or_path",
        "bias",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "lora_alpha",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "r",
        "target_modules",
        "task_type",
    ];
    assert_eq!(keys, expected);
    assert!(text.starts_with("{\n  \"base_model_name_or_path\": null,\n"));
}

#[test]
fn a_configuration_of_peft_keeps_its_meaning() {
    let Some(folder) = common::golden("adapter_initial") else { return };
    let of_peft: Value =
        serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    let written: Value = serde_json::from_str(&LoraConfig::read(&folder).unwrap().to_json()).unwrap();
    for (key, value) in written.as_object().unwrap() {
        assert_eq!(of_peft[key], *value, "{key}");
    }
}

#[test]
fn a_configuration_survives_being_written() {
    for changes in [
        json!({}),
        json!({ "use_rslora": true, "lora_dropout": 0.05, "lora_alpha": 12.5, "revision": "main" }),
        json!({ "base_model_name_or_path": "模型/甄嬛 \u{1f525} \"x\"" }),
        json!({ "target_modules": ".*\\.(q|k)_proj", "exclude_modules": ["layers.0.self_attn.q_proj"] }),
        json!({ "rank_pattern": { "z": 2, "a": 3 }, "alpha_pattern": { "v_proj": 3 } }),
        json!({ "layers_to_transform": [0, 2], "layers_pattern": "layers" }),
        json!({ "use_dora": true, "modules_to_save": ["lm_head", "norm"], "ensure_weight_tying": true }),
        json!({ "trainable_token_indices": { "embed_tokens": [5, 9], "lm_head": [3] } }),
    ] {
        let config = parse(with(changes)).unwrap();
        let text = config.to_json();
        assert!(text.is_ascii());
        assert_eq!(LoraConfig::parse(text.as_bytes()).unwrap(), config, "{text}");
    }
    let written = LoraConfig::parse(LoraConfig::new(8, 16.0).to_json().as_bytes()).unwrap();
    assert_eq!(written.target_modules, TargetModules::AllLinear);
}

#[test]
fn early_releases_are_read() {
    // These are the keys that PEFT 0.5 writes.
    let config = parse(json!({
        "auto_mapping": null, "base_model_name_or_path": "x", "bias": "none", "fan_in_fan_out": false,
        "inference_mode": true, "init_lora_weights": true, "layers_pattern": null, "layers_to_transform": null,
        "lora_alpha": 16.0, "lora_dropout": 0.1, "modules_to_save": null, "peft_type": "LORA", "r": 8,
        "revision": null, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"
    }));
    assert_eq!(config.unwrap().lora_alpha, 16.0);
}

#[test]
fn targets_match_as_in_peft() {
    assert_eq!(resolve(json!({})).unwrap().len(), 6);
    assert_eq!(resolve(json!({ "target_modules": "ALL-linear" })).unwrap().len(), 21);
    let list = json!({ "target_modules": ["model.layers.1.mlp.up_proj", "0.self_attn.q_proj"] });
    assert_eq!(paths(list), ["0.self_attn.q_proj", "1.mlp.up_proj"]);
    let regex =
        json!({ "target_modules": r"model\.layers\.[12]\.mlp\.(up|down)_proj|.*\.0\.self_attn\.o_proj" });
    let expected =
        ["0.self_attn.o_proj", "1.mlp.up_proj", "1.mlp.down_proj", "2.mlp.up_proj", "2.mlp.down_proj"];
    assert_eq!(paths(regex), expected);
    let excluded =
        json!({ "target_modules": "all-linear", "exclude_modules": r".*(mlp|k_proj|v_proj|\.[12]\.).*" });
    assert_eq!(paths(excluded), ["0.self_attn.q_proj", "0.self_attn.o_proj"]);
    let layers = json!({ "layers_to_transform": 2 });
    assert_eq!(paths(layers), ["2.self_attn.q_proj", "2.self_attn.v_proj"]);
    let layers = json!({ "layers_to_transform": [0, 2], "layers_pattern": ["h", "layers"], "target_modules": ["q_proj"] });
    assert_eq!(paths(layers), ["0.self_attn.q_proj", "2.self_attn.q_proj"]);
}

#[test]
fn the_first_pattern_that_matches_gives_rank_and_alpha() {
    let modules = resolve(json!({
        "rank_pattern": { "layers.1.self_attn.q_proj": 2, "q_proj": 6 },
        "alpha_pattern": { r"[02]\.self_attn\.v_proj": 32, "model.layers.1.self_attn.v_proj": 3 },
    }))
    .unwrap();
    let found: Vec<_> = modules.iter().map(|m| (m.layer, m.projection.name(), m.rank, m.scaling)).collect();
    let expected = [
        (0, "q_proj", 6, 8.0 / 6.0),
        (0, "v_proj", 4, 8.0),
        (1, "q_proj", 2, 4.0),
        (1, "v_proj", 4, 0.75),
        (2, "q_proj", 6, 8.0 / 6.0),
        (2, "v_proj", 4, 8.0),
    ];
    assert_eq!(found, expected);
    // A key must match all characters between a dot and the end of the path, so `_proj` matches no module.
    assert!(matches!(
        resolve(json!({ "rank_pattern": { "_proj": 2 } })),
        Err(AdapterError::UnusedPattern { .. })
    ));
    assert!(matches!(
        resolve(json!({ "alpha_pattern": { "up_proj": 2 } })),
        Err(AdapterError::UnusedPattern { .. })
    ));
}

#[test]
fn rslora_divides_by_the_root_of_the_rank() {
    assert_eq!(resolve(json!({ "use_rslora": true })).unwrap()[0].scaling, 4.0);
    assert_eq!(resolve(json!({})).unwrap()[0].scaling, 2.0);
}

#[test]
fn modules_lie_without_gaps_or_overlap() {
    let modules = resolve(json!({ "target_modules": "all-linear", "rank_pattern": { "mlp.*": 3 } })).unwrap();
    let mut end = 0;
    for m in modules {
        assert_eq!((m.a, m.b), (end, end + m.rank * m.d_in));
        end = m.b + m.d_out * m.rank;
    }
    let config = LoraConfig::new(4, 8.0);
    let adapter = Adapter::init(config, &common::config(), 0, &common::backend()).unwrap();
    assert_eq!(adapter.num_parameters(), 4 * 3 * (2 * (48 + 64) + 2 * (48 + 32) + 3 * (48 + 80)));
}

#[test]
fn a_target_is_never_silently_without_effect() {
    let message = |changes: Value| resolve(changes).unwrap_err();
    let error = message(json!({ "target_modules": ["q_proj", "q_porj"] }));
    assert_eq!(error.to_string(), "cannot adapt `q_porj`: it matches no module of the base model");
    assert!(error.hint().unwrap().contains("`down_proj`"));
    assert!(matches!(message(json!({ "target_modules": "q_proj" })), AdapterError::NoSuchTarget { .. }));
    assert!(matches!(message(json!({ "target_modules": "" })), AdapterError::NoSuchTarget { .. }));
    let error = message(json!({ "target_modules": ["q_proj", "lm_head"] }));
    assert_eq!(
        error.to_string(),
        "cannot adapt `lm_head`: it matches `lm_head`, which is not yet supported as a target"
    );
    let error = message(json!({ "target_modules": ["embed_tokens"] }));
    assert!(error.to_string().contains("`model.embed_tokens`, which is not yet supported"));
    let error = message(json!({ "target_modules": r".*self_attn.*" }));
    assert!(error.to_string().ends_with("`model.layers.0.self_attn`, which is not a linear projection"));
    let error = message(json!({ "exclude_modules": ["q_proj", "v_proj"] }));
    assert!(error.to_string().contains("matches 6, and all are excluded"));
    let error = message(json!({ "layers_to_transform": [1, 3] }));
    assert!(error.to_string().contains("layer 3 of `layers_to_transform`: the base model has 3"));
    assert!(matches!(
        message(json!({ "rank_pattern": { "q_proj": 65 } })),
        AdapterError::RankTooLarge { .. }
    ));
}

#[test]
fn settings_that_change_results_are_rejected_by_name() {
    for (key, value) in [
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 2]])),
        ("target_parameters", json!(["experts.w"])),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({ "nblocks": 2 })),
        ("kasa_config", json!({ "beta": 1 })),
        ("alora_invocation_tokens", json!([1, 2])),
        ("megatron_config", json!({ "x": 1 })),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("loftq")),
        ("peft_type", json!("LOHA")),
        ("task_type", json!("SEQ_CLS")),
        ("of_next_year", json!(3)),
    ] {
        let error = parse(with(json!({ key: value }))).unwrap_err();
        assert!(matches!(&error, AdapterError::Unsupported { key: k, .. } if k == key), "{key}: {error}");
        assert!(error.to_string().contains(&value.to_string()) && error.hint().is_some(), "{error}");
    }
    for (key, value) in [
        ("of_next_year", json!(false)),
        ("of_next_year", json!({})),
        ("modules_to_save", json!([])),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(false)),
        ("ensure_weight_tying", json!(true)),
        ("qalora_group_size", json!(32)),
    ] {
        parse(with(json!({ key: value }))).unwrap();
    }
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    for (key, value) in [
        ("r", json!(0)),
        ("r", json!(-8)),
        ("r", json!(8.5)),
        ("r", json!(1u64 << 40)),
        ("lora_alpha", json!(0)),
        ("lora_alpha", json!(1e300)),
        ("lora_alpha", json!("16")),
        ("r", json!(null)),
        ("lora_alpha", json!(null)),
        ("lora_dropout", json!(null)),
        ("lora_dropout", json!(1)),
        ("lora_dropout", json!(-0.1)),
        ("rank_pattern", json!([1])),
        ("target_modules", json!(null)),
        ("target_modules", json!([])),
        ("target_modules", json!([1])),
        ("use_rslora", json!("yes")),
        ("modules_to_save", json!([1])),
        ("trainable_token_indices", json!([-1])),
        ("trainable_token_indices", json!({ "embed_tokens": 7 })),
    ] {
        let error = parse(with(json!({ key: value }))).unwrap_err();
        assert!(matches!(&error, AdapterError::Value { key: k, .. } if k == key), "{key}: {error}");
    }
    let error = parse(with(json!({ "rank_pattern": { "q_proj": 0 } }))).unwrap_err();
    assert!(error.to_string().starts_with("`rank_pattern.q_proj` is 0"), "{error}");
    let error = LoraConfig::parse(b"{\"r\": 8,\n \"lora_alpha\" 16}").unwrap_err();
    assert!(error.to_string().starts_with("line 2, column"), "{error}");
    let error = parse(json!({ "r": 8, "target_modules": ["q_proj"] })).unwrap_err();
    assert!(error.to_string().starts_with("`peft_type` is missing"), "{error}");
}

#[test]
fn a_pattern_that_never_ends_is_an_error() {
    let error = resolve(json!({ "target_modules": r"(?=(.+)+!)x|(\w+\.?)*(?<=a)\1!" })).unwrap_err();
    assert!(matches!(error, AdapterError::Pattern { .. } | AdapterError::NoSuchTarget { .. }), "{error}");
    for pattern in ["a)|(b", "(", "[", "(?P<n"] {
        let error = resolve(json!({ "target_modules": pattern })).unwrap_err();
        assert!(matches!(&error, AdapterError::Pattern { key, .. } if key == "target_modules"), "{error}");
        let error = resolve(json!({ "rank_pattern": { pattern: 2 } })).unwrap_err();
        assert!(matches!(&error, AdapterError::Pattern { key, .. } if key == "rank_pattern"), "{error}");
    }
}

#[test]
fn targets_on_a_command_line_are_names_a_shorthand_or_a_pattern() {
    let list = |names: &[&str]| TargetModules::List(names.iter().map(|n| (*n).to_owned()).collect());
    assert_eq!("All-Linear".parse::<TargetModules>().unwrap(), TargetModules::AllLinear);
    assert_eq!("q_proj, v_proj".parse::<TargetModules>().unwrap(), list(&["q_proj", "v_proj"]));
    assert_eq!(
        "model.layers.0.mlp.up_proj".parse::<TargetModules>().unwrap(),
        list(&["model.layers.0.mlp.up_proj"])
    );
    assert_eq!(".*_proj".parse::<TargetModules>().unwrap(), TargetModules::Regex(".*_proj".to_owned()));
    assert!(" , ".parse::<TargetModules>().is_err());
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_.*+()\\[\\]{}0-9|?^$]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z_.*]{0,8}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_panic_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = LoraConfig::parse(&bytes);
    }

    #[test]
    fn no_values_panic_the_parser_or_the_matching(
        values in prop::collection::vec((prop::sample::select(vec![
            "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "rank_pattern",
            "alpha_pattern", "layers_to_transform", "layers_pattern", "revision", "bias",
        ]), json_value()), 0..4)
    ) {
        let mut value = with(json!({}));
        value.as_object_mut().unwrap().extend(values.into_iter().map(|(k, v)| (k.to_owned(), v)));
        if let Ok(config) = parse(value) {
            let again = LoraConfig::parse(config.to_json().as_bytes()).unwrap();
            prop_assert_eq!(&again, &config);
            let _ = targets::resolve(&config, &common::config());
        }
    }
}
