use super::*;
use serde_json::{Value, json};

fn small() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100, "rms_norm_eps": 1e-5,
    })
}

fn with(changes: Value) -> Result<ModelConfig, ModelError> {
    let mut config = small();
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    ModelConfig::parse(Path::new("m/config.json"), config.to_string().as_bytes())
}

#[test]
fn both_generations_of_transformers_read_alike() {
    let four = with(json!({
        "rope_theta": 500000.0, "torch_dtype": "bfloat16", "head_dim": 16, "eos_token_id": [7, 9],
        "rope_scaling": {"type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192},
    }));
    let five = with(json!({
        "dtype": "bfloat16", "eos_token_id": [7, 9],
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    }));
    let four = four.unwrap();
    assert_eq!(four, five.unwrap());
    assert_eq!(four.dtype, Some(DType::Bf16));
    assert_eq!(four.eos_token_id, [7, 9]);
}

#[test]
fn absent_fields_take_the_library_defaults() {
    let config = with(json!({"rope_scaling": null, "pretraining_tp": 2, "eos_token_id": 3})).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim), (4, 16));
    assert_eq!(config.rope, Rope { theta: 10000.0, scaling: RopeScaling::Default });
    assert_eq!((config.max_position_embeddings, config.tie_word_embeddings), (2048, false));
    assert_eq!((config.eos_token_id, config.bos_token_id), (vec![3], None));
}

#[test]
fn heads_need_not_fill_the_hidden_size() {
    let config = with(json!({"head_dim": 6, "num_key_value_heads": 2})).unwrap();
    assert_eq!(config.projection_shape(Projection::QProj), (24, 64));
    assert_eq!(config.projection_shape(Projection::VProj), (12, 64));
    assert_eq!(config.projection_shape(Projection::OProj), (64, 24));
}

#[test]
fn num_parameters_is_the_sum_of_the_tensors() {
    for tied in [true, false] {
        let config = with(json!({"tie_word_embeddings": tied, "num_key_value_heads": 1})).unwrap();
        let sum: usize = config.tensors().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(config.num_parameters(), sum as u64);
        assert_eq!(config.tensors().count(), 2 + 2 * 9 + usize::from(!tied));
    }
}

#[test]
fn impossible_values_are_rejected_with_field_and_value() {
    for (change, message) in [
        (json!({"hidden_size": 0}), "`hidden_size` is 0, expected a whole number from 1"),
        (json!({"hidden_size": 65}), "`num_attention_heads` is 4, expected a divisor of `hidden_size`, 65"),
        (json!({"vocab_size": 1e30}), "`vocab_size` is 1e+30, expected a whole number"),
        (json!({"vocab_size": null}), "`vocab_size` is null, expected"),
        (json!({"num_hidden_layers": -1}), "`num_hidden_layers` is -1"),
        (json!({"num_key_value_heads": 3}), "`num_key_value_heads` is 3, expected a divisor"),
        (json!({"head_dim": 15}), "`head_dim` is 15, expected an even number"),
        (json!({"head_dim": 1048576}), "`head_dim` is 1048576"),
        (json!({"rms_norm_eps": "small"}), "`rms_norm_eps` is \"small\""),
        (json!({"eos_token_id": "x"}), "`eos_token_id` is \"x\", expected a token id or a list"),
        (
            json!({"rope_scaling": {"type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4}}),
            "`rope_scaling.factor` is missing",
        ),
        (
            json!({"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}}),
            "`rope_scaling.high_freq_factor` is 4, expected more than",
        ),
    ] {
        let error = with(change.clone()).unwrap_err();
        assert!(matches!(error, ModelError::Field { .. }), "{change}: {error:?}");
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.to_string().starts_with("cannot use `m/config.json`: "), "{error}");
    }
}

#[test]
fn unimplemented_settings_are_rejected_by_name() {
    for (change, message) in [
        (json!({"model_type": "pythia"}), "`model_type` is \"pythia\", supported: `llama`, `qwen2`, "),
        (json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\", supported: `silu`"),
        (json!({"sliding_window": 128}), "`sliding_window` is 128, supported: "),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "`layer_types`"),
        (
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
            "`quantization_config.quant_method` is \"gptq\"",
        ),
        (
            json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}}),
            "`quantization_config.load_in_8bit` is true",
        ),
        (
            json!({"quantization_config": {"load_in_4bit": true, "bnb_4bit_quant_type": "int4"}}),
            "`quantization_config.bnb_4bit_quant_type` is \"int4\"",
        ),
        (
            json!({"rope_scaling": {"type": "ntk", "factor": 2}}),
            "`rope_scaling.type` is \"ntk\", supported: ",
        ),
        (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5, supported: 1.0"),
    ] {
        let error = with(change.clone()).unwrap_err();
        assert!(matches!(error, ModelError::Unsupported { .. }), "{change}: {error:?}");
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn malformed_json_is_placed_by_line_and_column() {
    let error = ModelConfig::parse(Path::new("config.json"), b"{\n  \"a\": 1,\n  oops\n}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot parse `config.json:3:3`: found `o`, expected a key in double quotes"
    );
    let error = ModelConfig::parse(Path::new("config.json"), b"[1]").unwrap_err();
    assert!(error.to_string().contains("found [1], expected an object"), "{error}");
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        // The vectorised `pow` of PyTorch is exact to one unit in the last place. The interpolation rounds
        // two more times.
        assert!((f - e).abs() <= 4e-7 * e, "{i}: {f:e}, expected {e:e}");
    }
}

// Values of transformers 5.23 for head_dim 32 and theta 500000, without scaling.
const DEFAULT: [f32; 16] = [
    1.0e+00,
    4.4036663e-01,
    1.9392276e-01,
    8.53971e-02,
    3.760603e-02,
    1.656044e-02,
    7.292665e-03,
    3.211446e-03,
    1.4142134e-03,
    6.2277244e-04,
    2.742482e-04,
    1.2076974e-04,
    5.3182957e-05,
    2.3419998e-05,
    1.0313385e-05,
    4.5416705e-06,
];

// Values of transformers 5.23 for head_dim 64, theta 500000 and the llama3 scaling with factor 32, low 1,
// high 4, original 8192.
const LLAMA3: [f32; 32] = [
    1.0e+00,
    6.636013e-01,
    4.4036663e-01,
    2.9222783e-01,
    1.9392276e-01,
    1.2868738e-01,
    8.53971e-02,
    5.666962e-02,
    3.760603e-02,
    2.4955409e-02,
    1.656044e-02,
    1.0989529e-02,
    7.292665e-03,
    4.8394212e-03,
    3.211446e-03,
    1.290548e-03,
    4.295567e-04,
    9.708286e-05,
    1.9461639e-05,
    1.29147675e-05,
    8.570256e-06,
    5.6872323e-06,
    3.7740544e-06,
    2.5044671e-06,
    1.6619674e-06,
    1.1028836e-06,
    7.3187493e-07,
    4.856731e-07,
    3.222933e-07,
    2.1387423e-07,
    1.419272e-07,
    9.4183065e-08,
];

#[test]
fn inv_freq_equals_transformers() {
    let config = with(json!({"head_dim": 32, "rope_theta": 500000.0})).unwrap();
    assert_close(&config.inv_freq(), &DEFAULT);
    let config = with(json!({
        "head_dim": 64,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    }));
    assert_close(&config.unwrap().inv_freq(), &LLAMA3);
}
