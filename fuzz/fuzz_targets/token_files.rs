//! `just fuzz token_files 180`
//!
//! Reads four files beside a valid `tokenizer.json`: `tokenizer_config.json`, `special_tokens_map.json`,
//! `added_tokens.json` and `generation_config.json`. In the input, they are separated by zero bytes.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use danlu_model::Tokenizer;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const NAMES: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"];

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a writable disk");
    let tokenizer = include_bytes!("../seeds/tokenizer/bpe.json");
    fs::write(folder.path().join("tokenizer.json"), tokenizer).expect("a writable disk");
    folder
});

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(NAMES.len(), |&byte| byte == 0);
    for name in NAMES {
        let path = FOLDER.path().join(name);
        match parts.next() {
            Some(part) => fs::write(path, part).expect("a writable disk"),
            None => drop(fs::remove_file(path)),
        }
    }
    let Ok(tokenizer) = Tokenizer::read(FOLDER.path()) else { return };
    let _ = tokenizer.encode("Hello, 甄嬛! <|begin|>");
    let fingerprint = tokenizer.fingerprint();
    assert_eq!(fingerprint, tokenizer.fingerprint());
});
