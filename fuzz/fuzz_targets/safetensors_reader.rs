//! `just fuzz safetensors_reader 180`
//!
//! The input is a file with its header length or, depending on the first byte, without it. In the second
//! case, the correct length is inserted, so that the fuzzer tests the JSON and not the length.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use danlu_model::{ModelConfig, Weights};
use libfuzzer_sys::fuzz_target;

static CONFIG: LazyLock<ModelConfig> = LazyLock::new(|| {
    let text = br#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 5}"#;
    ModelConfig::parse(Path::new("config.json"), text).expect("a valid configuration")
});

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let bytes = match choice % 2 {
        0 => data.to_vec(),
        _ => {
            // The header ends at the last closing brace. The tensors follow.
            let header = data.iter().rposition(|&b| b == b'}').map_or(data.len(), |at| at + 1);
            let mut bytes = (header as u64).to_le_bytes().to_vec();
            bytes.extend(data);
            bytes
        }
    };
    let Ok(weights) = Weights::from_bytes(Path::new("model.safetensors"), bytes) else { return };
    let _ = weights.check_complete(&CONFIG);
    for info in weights.tensors() {
        assert_eq!(weights.info(&info.name), Some(info));
        let bytes = weights.bytes(info).len();
        let elements: usize = info.shape.iter().product();
        if let Some(dtype) = info.dtype() {
            assert_eq!(bytes, elements * dtype.size());
        }
        match *info.shape.as_slice() {
            [len] => drop(weights.vector_f32(&info.name, len)),
            [rows, cols] => drop(weights.matrix(&info.name, rows, cols)),
            _ => {}
        }
    }
});
