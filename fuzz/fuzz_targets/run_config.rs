//! `just fuzz run_config 300`
//!
//! Reads a configuration file of `danlu train`. The first byte selects TOML, YAML or JSON. An accepted file
//! is written as TOML and read again, with the same number of flags.

#![no_main]
// The included modules have items that this target does not use.
#![allow(dead_code, unused_imports)]

#[path = "../../crates/cli/src/clap_error.rs"]
mod clap_error;
#[path = "../../crates/cli/src/config_file.rs"]
mod config_file;
#[path = "../../crates/cli/src/diagnostic.rs"]
mod diagnostic;
#[path = "../../crates/cli/src/lang.rs"]
mod lang;
#[path = "../../crates/cli/src/lesson.rs"]
mod lesson;
#[path = "../../crates/cli/src/message_zh/mod.rs"]
mod message_zh;
#[path = "../../crates/cli/src/peer_config/mod.rs"]
mod peer_config;
#[path = "../../crates/cli/src/peer_flags/mod.rs"]
mod peer_flags;
#[path = "../../crates/cli/src/printer.rs"]
mod printer;
#[path = "../../crates/cli/src/style.rs"]
mod style;
#[path = "../../crates/cli/src/temp_dirs.rs"]
mod temp_dirs;
#[path = "../../crates/cli/src/terminal_text.rs"]
mod terminal_text;

use std::fs;
use std::str::FromStr;
use std::sync::LazyLock;

use clap::{Arg, Command, value_parser};
use config_file::ConfigFile;
use danlu_adapter::{TargetModules, parse_byte_size};
use danlu_data::Format;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a writable disk"));

/// Flags of `danlu train`. Each kind of value occurs.
static TRAIN: LazyLock<Command> = LazyLock::new(|| {
    let flag = |name: &'static str| Arg::new(name).long(name);
    let texts = [
        "base",
        "output",
        "resume",
        "lr-scheduler-type",
        "default-system",
        "chat-template",
        "dtype",
        "quant",
    ];
    let counts = [
        "max-length",
        "per-device-train-batch-size",
        "gradient-accumulation-steps",
        "max-steps",
        "seed",
        "logging-steps",
        "save-steps",
        "eval-steps",
        "save-total-limit",
        "lora-r",
    ];
    let numbers = [
        "learning-rate",
        "num-train-epochs",
        "warmup-ratio",
        "weight-decay",
        "max-grad-norm",
        "lora-alpha",
        "lora-dropout",
        "val-size",
    ];
    let switches = ["packing", "train-on-prompt", "skip-bad", "use-rslora", "shuffle-dataset"];
    let switch = |name| {
        let arg = flag(name).num_args(0..=1).require_equals(true).default_missing_value("true");
        arg.value_parser(value_parser!(bool))
    };
    Command::new("train")
        .args(texts.map(flag))
        .args(counts.map(|name| flag(name).value_parser(value_parser!(u64))))
        .args(numbers.map(|name| flag(name).value_parser(value_parser!(f64))))
        .args(switches.map(switch))
        .arg(flag("data").num_args(1..))
        .arg(flag("format").value_parser(Format::from_str))
        .arg(flag("memory-limit").value_parser(parse_byte_size))
        .arg(flag("target-modules").value_parser(TargetModules::from_str))
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let name = ["run.toml", "run.yaml", "run.json"][usize::from(kind % 3)];
    let path = FOLDER.path().join(name);
    fs::write(&path, data).expect("a writable disk");
    let file = match ConfigFile::read(&path, &TRAIN) {
        Ok(file) => file,
        Err(diagnostic) => {
            assert!(diagnostic.render(false).starts_with("error: "));
            return;
        }
    };
    let written = FOLDER.path().join("written.toml");
    fs::write(&written, file.to_toml()).expect("a writable disk");
    if let Ok(again) = ConfigFile::read(&written, &TRAIN) {
        assert_eq!(again.args().len(), file.args().len());
    }
});
