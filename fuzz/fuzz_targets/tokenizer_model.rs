//! `just fuzz tokenizer_model 180`
//!
//! Reads a SentencePiece `tokenizer.model`, and encodes and decodes a text.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use danlu_model::Tokenizer;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a writable disk");
    let config = r#"{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "legacy": true}"#;
    fs::write(folder.path().join("tokenizer_config.json"), config).expect("a writable disk");
    folder
});

fuzz_target!(|data: &[u8]| {
    fs::write(FOLDER.path().join("tokenizer.model"), data).expect("a writable disk");
    let Ok(tokenizer) = Tokenizer::read(FOLDER.path()) else { return };
    let text = "Hello, 甄嬛! \u{1f375} <s>\n\tx  1234";
    if let Ok(ids) = tokenizer.encode(text) {
        tokenizer.decode(&ids, true);
    }
});
