//! Verifies that the uploaded files can be loaded.

use std::path::{Path, PathBuf};

use danlu_adapter::TrainingIdentity;
use danlu_adapter::{Adapter, AdapterError, CONFIG_FILE, WEIGHTS_FILE};
use danlu_hub::{SkipReason, SkippedFile, UploadSet};
use danlu_model::{INDEX_FILE, ModelConfig, ModelError, SINGLE_FILE, Tokenizer, Weights};

use crate::diagnostic::{Diagnostic, Result};

/// A folder with one of these holds a whole model.
const MODEL: [&str; 2] = [SINGLE_FILE, INDEX_FILE];

/// The hint for a damaged file.
const WRITE_AGAIN: &str =
    "nothing was sent: put the file back, or write the folder again with `danlu train` or `danlu merge`";

/// The hint for a model that danlu does not support.
const OTHER_TOOLS: &str = "danlu sends only what it can load itself: `hf upload NAME DIR` of Python's huggingface_hub sends any folder";

/// The files of a tokenizer.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// Opens the files of a folder, headers only. Returns the names of those that loading needs.
///
/// # Errors
/// If a file of the adapter or the model has a fault.
pub fn needed(folder: &Path) -> Result<Vec<String>> {
    let is_adapter = folder.join(CONFIG_FILE).is_file();
    if let Some(weights) = MODEL.into_iter().find(|name| is_adapter && folder.join(name).is_file()) {
        let text = format!(
            "`{}` holds an adapter (`{CONFIG_FILE}`) and a model (`{weights}`): who loads it finds only one of them",
            folder.display()
        );
        return Err(Diagnostic::input(text)
            .with_hint("put each into a folder of its own, and push them to two names"));
    }
    let opened = if is_adapter { adapter(folder) } else { model(folder) };
    let opened = opened.and_then(|needed| Ok((needed, TrainingIdentity::read(folder)?)));
    let (mut needed, _) = opened.map_err(|diagnostic| diagnostic.or_hint(WRITE_AGAIN))?;
    needed.extend(TOKENIZER.into_iter().filter(|name| folder.join(name).is_file()).map(str::to_owned));
    Ok(needed)
}

/// Refuses an upload without one of the `needed` files.
///
/// # Errors
/// If one of them is skipped.
pub fn refuse_without(upload_set: &UploadSet, needed: &[String]) -> Result<()> {
    let goes = |name: &str| upload_set.files().iter().any(|file| file.path() == name);
    match needed.iter().find(|name| !goes(name)) {
        Some(name) => Err(stays(upload_set, name)),
        None => Ok(()),
    }
}

/// The files that an adapter needs.
fn adapter(folder: &Path) -> Result<Vec<String>> {
    Adapter::check(folder).map_err(|error| match unpacked(&error) {
        AdapterError::Unsupported { .. } => Diagnostic::from(error).and_hint(OTHER_TOOLS),
        AdapterError::Header { .. } => Diagnostic::from(error).with_hint(WRITE_AGAIN),
        AdapterError::Model(inner) => of_model(inner, Diagnostic::from_error(&error, inner.hint())),
        _ => error.into(),
    })?;
    if TOKENIZER.iter().all(|name| folder.join(name).is_file()) {
        Tokenizer::read(folder)?;
    }
    Ok([CONFIG_FILE, WEIGHTS_FILE].map(str::to_owned).into())
}

/// The error inside the name of its file.
fn unpacked(error: &AdapterError) -> &AdapterError {
    match error {
        AdapterError::InFile { source, .. } => unpacked(source),
        error => error,
    }
}

/// The diagnostic of an error in a local folder, which was not downloaded.
fn of_model(error: &ModelError, diagnostic: Diagnostic) -> Diagnostic {
    match error {
        ModelError::Header { message, .. } if message.contains("version https://git-lfs") => diagnostic,
        ModelError::FileSize { .. } | ModelError::Header { .. } | ModelError::Json { .. } => {
            diagnostic.with_hint(WRITE_AGAIN)
        }
        ModelError::Unsupported { .. } | ModelError::Family { .. } => diagnostic.and_hint(OTHER_TOOLS),
        _ => diagnostic,
    }
}

/// The files that a model needs.
fn model(folder: &Path) -> Result<Vec<String>> {
    let diagnose = |error: ModelError| of_model(&error, Diagnostic::from_error(&error, error.hint()));
    let config = ModelConfig::read(folder).map_err(diagnose)?;
    let weights = Weights::open(folder).map_err(diagnose)?;
    weights.check_complete(&config).map_err(diagnose)?;
    let tokenizer = folder.join(TOKENIZER[0]);
    if !tokenizer.is_file() {
        let text =
            format!("`{}` is missing: nobody can talk to a model without its tokenizer", tokenizer.display());
        return Err(Diagnostic::input(text).with_hint(
            "copy it and tokenizer_config.json from the base, or write the folder again with `danlu merge`",
        ));
    }
    Tokenizer::read(folder)?;
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    let mut needed: Vec<String> = weights.files().iter().filter_map(name).collect();
    if !needed.iter().any(|name| name == SINGLE_FILE) {
        needed.push(INDEX_FILE.to_owned());
    }
    needed.push("config.json".to_owned());
    Ok(needed)
}

/// The diagnostic of a needed file that is skipped.
fn stays(upload_set: &UploadSet, name: &str) -> Diagnostic {
    let left = upload_set.skipped().iter().find(|left| left.path == name);
    let path = upload_set.folder().join(name);
    let Some(SkippedFile { reason, .. }) = left else {
        return Diagnostic::bug(format!("`{}` is neither sent nor left out", path.display()));
    };
    let hint = match reason {
        SkipReason::Token { .. } => "take it out, or send it as it is with `--with-tokens`".to_owned(),
        SkipReason::Link => {
            "put the file itself there: `cp -rL` copies a folder with what its links mean".to_owned()
        }
        _ => format!("give it back the name it is looked for by, or send it with `--include {name}`"),
    };
    let text = format!(
        "`{}` would stay here, and without it nothing that is sent can be loaded: {reason}",
        path.display()
    );
    Diagnostic::input(text).with_hint(hint)
}
