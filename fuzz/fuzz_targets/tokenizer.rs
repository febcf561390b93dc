//! `just fuzz tokenizer 300`
//!
//! Reads a `tokenizer.json` from a folder, then encodes and decodes a text.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use danlu_model::Tokenizer;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a writable disk"));

fuzz_target!(|data: &[u8]| {
    fs::write(FOLDER.path().join("tokenizer.json"), data).expect("a writable disk");
    let Ok(tokenizer) = Tokenizer::read(FOLDER.path()) else { return };
    let text = "Hello, 甄嬛! \u{1f375} <|begin|>\n\tx  1234";
    if let Ok(ids) = tokenizer.encode(text) {
        tokenizer.decode(&ids, true);
    }
    if let Ok(pieces) = tokenizer.encode_with_offsets(text) {
        assert!(pieces.iter().all(|(_, range)| range.end <= text.len()));
    }
});
