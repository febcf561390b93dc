//! `just fuzz pickle 180`, from the pickles in `seeds`.
//!
//! Reads an `adapter_model.bin`. The input is the pickle inside the archive or, if it starts with `PK`, the
//! whole archive.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use danlu_adapter::Adapter;
use danlu_kernels::Reference;
use danlu_model::ModelConfig;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const CONFIG: &str = r#"{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_type": "LORA"}"#;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a writable disk");
    fs::write(folder.path().join("adapter_config.json"), CONFIG).expect("a writable disk");
    folder
});

static MODEL: LazyLock<ModelConfig> = LazyLock::new(|| {
    let text = br#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 5}"#;
    ModelConfig::parse(Path::new("config.json"), text).expect("a valid configuration")
});

/// Returns an archive as `torch.save` writes it. The checksums are zero, because danlu does not verify them.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let storage = [0u8; 64];
    let entries = [("a/data.pkl", pickle), ("a/data/0", &storage[..]), ("a/data/1", &storage[..])];
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let local = file.len() as u32;
        let size = (bytes.len() as u32).to_le_bytes();
        let lengths = [(name.len() as u16).to_le_bytes(), [0, 0]].concat();
        let common = [&[0u8; 16][..], &size, &size, &lengths].concat();
        file.extend([b"PK\x03\x04", &common[2..], name.as_bytes(), bytes].concat());
        let ends = [&[0u8; 10][..], &local.to_le_bytes()].concat();
        directory.extend([b"PK\x01\x02", &common[..], &ends, name.as_bytes()].concat());
    }
    let place = (file.len() as u32).to_le_bytes();
    let count = (entries.len() as u16).to_le_bytes();
    let size = (directory.len() as u32).to_le_bytes();
    file.append(&mut directory);
    file.extend([b"PK\x05\x06", &[0u8; 4][..], &count, &count, &size, &place, &[0, 0]].concat());
    file
}

fuzz_target!(|data: &[u8]| {
    let file = if data.starts_with(b"PK") { data.to_vec() } else { archive(data) };
    fs::write(FOLDER.path().join("adapter_model.bin"), file).expect("a writable disk");
    drop(Adapter::load(FOLDER.path(), &MODEL, &Reference::new()));
});
