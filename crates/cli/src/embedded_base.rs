//! The small base model inside the binary. `demo` trains it, and `data` uses its tokenizer.

use std::fs;
use std::path::Path;

use danlu_model::Tokenizer;

use crate::diagnostic::{Diagnostic, Result};

/// Name of the embedded base.
pub const BASE_NAME: &str = "base-8m";

/// Its files, by name.
const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../assets/base-8m/config.json")),
    ("generation_config.json", include_bytes!("../assets/base-8m/generation_config.json")),
    ("model.safetensors", include_bytes!("../assets/base-8m/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/base-8m/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/base-8m/tokenizer_config.json")),
];

/// Writes the base to `folder`, as a Hugging Face folder.
///
/// # Errors
/// If the folder or a file cannot be written.
pub fn write_base(folder: &Path) -> Result<()> {
    write(folder, |_| true)
}

/// Writes the files of the tokenizer to `folder`: all but the weights.
fn write_tokenizer(folder: &Path) -> Result<()> {
    write(folder, |name| name != "model.safetensors")
}

/// The base's tokenizer.
///
/// # Errors
/// If its files cannot be written to the temporary folder.
pub fn tokenizer() -> Result<Tokenizer> {
    let folder =
        tempfile::tempdir().map_err(|error| Diagnostic::io("write to", &std::env::temp_dir(), error))?;
    write_tokenizer(folder.path())?;
    Ok(Tokenizer::read(folder.path())?)
}

fn write(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Diagnostic::io("create", folder, error))?;
    for (name, bytes) in FILES.iter().filter(|(name, _)| wanted(name)) {
        let path = folder.join(name);
        danlu_model::files::write_atomic(&path, bytes)?;
    }
    Ok(())
}
