//! The small base model inside the binary. `danlu demo` trains this model, `danlu data` uses its tokenizer,
//! and `--base demo` selects it.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use danlu_model::Tokenizer;

use crate::diagnostic::{Diagnostic, Result};

pub const BASE_NAME: &str = "base-8m";

/// The value of `--base` that selects the embedded base.
pub const DEMO_NAME: &str = "demo";

const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../assets/base-8m/config.json")),
    ("generation_config.json", include_bytes!("../assets/base-8m/generation_config.json")),
    ("model.safetensors", include_bytes!("../assets/base-8m/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/base-8m/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/base-8m/tokenizer_config.json")),
];

/// Writes the base to `folder`, in the layout of a Hugging Face model.
///
/// # Errors
/// If the folder or a file cannot be written.
pub fn write_base(folder: &Path) -> Result<()> {
    write(folder, |_, _| false)
}

/// Returns whether `path` is the name of the embedded base. A local file or folder with this name takes
/// precedence.
pub fn is_demo(path: &Path) -> bool {
    path == Path::new(DEMO_NAME) && !path.exists()
}

/// Replaces [`DEMO_NAME`] by the folder of the embedded base. Returns any other path unchanged.
///
/// # Errors
/// If the folder cannot be written.
pub fn resolve(path: &Path) -> Result<Cow<'_, Path>> {
    match is_demo(path) {
        true => cached().map(Cow::Owned),
        false => Ok(Cow::Borrowed(path)),
    }
}

/// Returns the folder of the embedded base in the user's cache, after writing the files that are missing or
/// differ.
///
/// An adapter names its base by path, so this folder must still exist after the process ends.
fn cached() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache"))).ok_or_else(|| {
        let diagnostic = Diagnostic::input("cannot write the embedded base: there is no home folder");
        diagnostic.with_hint("set `XDG_CACHE_HOME` to a folder")
    })?;
    let folder = cache.join("danlu").join(BASE_NAME);
    write(&folder, |name, bytes| fs::read(folder.join(name)).is_ok_and(|found| found == bytes))?;
    Ok(folder)
}

/// Writes all files except the weights to `folder`.
fn write_tokenizer(folder: &Path) -> Result<()> {
    write(folder, |name, _| name == "model.safetensors")
}

/// Returns the tokenizer of the embedded base.
///
/// # Errors
/// If the tokenizer's files cannot be written to a temporary folder.
pub fn tokenizer() -> Result<Tokenizer> {
    let folder =
        tempfile::tempdir().map_err(|error| Diagnostic::io("write to", &std::env::temp_dir(), error))?;
    write_tokenizer(folder.path())?;
    Ok(Tokenizer::read(folder.path())?)
}

/// Writes the files for which `is_skipped` returns false.
fn write(folder: &Path, is_skipped: impl Fn(&str, &[u8]) -> bool) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Diagnostic::io("create", folder, error))?;
    for (name, bytes) in FILES.iter().filter(|(name, bytes)| !is_skipped(name, bytes)) {
        let path = folder.join(name);
        danlu_model::files::write_atomic(&path, bytes)?;
    }
    Ok(())
}
