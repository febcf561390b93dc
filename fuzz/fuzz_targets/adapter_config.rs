//! `just fuzz adapter_config 180`
//!
//! An accepted configuration can be written and read again. It selects at least one module, or causes an
//! error. No pattern in it makes matching slow.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use danlu_adapter::{LoraConfig, targets};
use danlu_model::ModelConfig;
use libfuzzer_sys::fuzz_target;

static MODEL: LazyLock<ModelConfig> = LazyLock::new(|| {
    let text = br#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 5}"#;
    ModelConfig::parse(Path::new("config.json"), text).expect("a valid configuration")
});

fuzz_target!(|data: &[u8]| {
    let Ok(config) = LoraConfig::parse(data) else { return };
    let again = LoraConfig::parse(config.to_json().as_bytes()).expect("a written configuration is readable");
    // Alpha and dropout may change by one ulp in the round trip; all other fields are equal.
    assert_eq!(again.target_modules.clone(), expanded(&config));
    assert_eq!((again.r, &again.rank_pattern), (config.r, &config.rank_pattern));
    if let Ok(modules) = targets::resolve(&config, &MODEL) {
        assert!(!modules.is_empty());
        let mut end = 0;
        for m in modules {
            assert_eq!((m.a, m.b), (end, end + m.rank * m.d_in));
            assert!(m.rank > 0 && m.scaling > 0.0);
            end = m.b + m.d_out * m.rank;
        }
    }
});

/// Expands the shorthand `all-linear` to module names, as `to_json` does.
fn expanded(config: &LoraConfig) -> danlu_adapter::TargetModules {
    use danlu_adapter::TargetModules::{AllLinear, List};
    match &config.target_modules {
        AllLinear => List(danlu_model::Projection::ALL.map(|p| p.name().to_owned()).to_vec()),
        other => other.clone(),
    }
}
