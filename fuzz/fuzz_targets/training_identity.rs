//! `just fuzz training_identity 300`
//!
//! Reads the `danlu.json` of an adapter, and replaces the base in the file.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use danlu_adapter::{BaseIdentity, TrainingIdentity};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a writable disk"));

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.path().join("danlu.json");
    fs::write(&path, data).expect("a writable disk");
    let Ok(Some(_)) = TrainingIdentity::read(FOLDER.path()) else { return };
    let base = BaseIdentity::of_snapshot("org/name", "main");
    // Writing fails if another key contains half of a surrogate pair, such as `\ud800`.
    let Ok(bytes) = TrainingIdentity::json_with_base(FOLDER.path(), &base) else { return };
    fs::write(&path, bytes).expect("a writable disk");
    let identity = TrainingIdentity::read(FOLDER.path()).expect("a written file is readable");
    assert_eq!(identity.expect("the file exists").base(), Some(&base));
});
