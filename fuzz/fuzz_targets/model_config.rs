//! `just fuzz model_config 300`
//!
//! Reads a `config.json`, whose sizes are not trusted.

#![no_main]

use std::path::Path;

use danlu_model::{ModelConfig, projections};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(config) = ModelConfig::parse(Path::new("config.json"), data) else { return };
    // Names are produced one by one, because a configuration may declare billions of layers.
    for (name, ..) in projections(&config).take(1000) {
        assert!(!name.is_empty());
    }
});
