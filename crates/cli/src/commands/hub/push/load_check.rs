//! Checks that the uploaded files can be loaded.

use std::path::{Path, PathBuf};

use danlu_adapter::TrainingIdentity;
use danlu_adapter::{Adapter, AdapterError, CONFIG_FILE, WEIGHTS_FILE};
use danlu_hub::{SkipReason, SkippedFile, UploadSet};
use danlu_model::{INDEX_FILE, ModelConfig, ModelError, SINGLE_FILE, Tokenizer, Weights};

use crate::diagnostic::{Diagnostic, Result};

/// A folder that contains one of these files is a whole model.
const MODEL: [&str; 2] = [SINGLE_FILE, INDEX_FILE];

/// The hint for a damaged file.
const WRITE_AGAIN: &str =
    "restore the file, or write the folder again with `danlu train` or `danlu merge`; nothing was uploaded";

/// The hint for a model that danlu does not support.
const OTHER_TOOLS: &str = "upload it with `hf upload NAME DIR` of Python's huggingface_hub; danlu uploads only models that it can load";

/// The files of a tokenizer.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// Checks the files of an adapter or a model. Only the headers of the weights are read. Returns the names of
/// the files that are needed to load the folder.
///
/// # Errors
/// If a file of the adapter or the model is invalid.
pub fn needed(folder: &Path) -> Result<Vec<String>> {
    let is_adapter = folder.join(CONFIG_FILE).is_file();
    if let Some(weights) = MODEL.into_iter().find(|name| is_adapter && folder.join(name).is_file()) {
        let text = format!(
            "`{}` holds an adapter (`{CONFIG_FILE}`) and a model (`{weights}`): loaders would find only one of them",
            folder.display()
        );
        return Err(Diagnostic::input(text)
            .with_hint("put each into its own folder, and push them to two repositories"));
    }
    let opened = if is_adapter { adapter(folder) } else { model(folder) };
    let opened = opened.and_then(|needed| Ok((needed, TrainingIdentity::read(folder)?)));
    let (mut needed, _) = opened.map_err(|diagnostic| diagnostic.or_hint(WRITE_AGAIN))?;
    needed.extend(TOKENIZER.into_iter().filter(|name| folder.join(name).is_file()).map(str::to_owned));
    Ok(needed)
}

/// Rejects an upload that does not contain each of the `needed` files.
///
/// # Errors
/// If a needed file is skipped.
pub fn refuse_without(upload_set: &UploadSet, needed: &[String]) -> Result<()> {
    let goes = |name: &str| upload_set.files().iter().any(|file| file.path() == name);
    match needed.iter().find(|name| !goes(name)) {
        Some(name) => Err(stays(upload_set, name)),
        None => Ok(()),
    }
}

/// Returns the files that an adapter needs.
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

/// Returns the inner error, without the name of the file.
fn unpacked(error: &AdapterError) -> &AdapterError {
    match error {
        AdapterError::InFile { source, .. } => unpacked(source),
        error => error,
    }
}

/// Converts the error of a local folder to a diagnostic. Hints about downloads are replaced, because the
/// folder was not downloaded.
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

/// Returns the files that a model needs.
fn model(folder: &Path) -> Result<Vec<String>> {
    let diagnose = |error: ModelError| of_model(&error, Diagnostic::from_error(&error, error.hint()));
    let config = ModelConfig::read(folder).map_err(diagnose)?;
    let weights = Weights::open(folder).map_err(diagnose)?;
    weights.check_complete(&config).map_err(diagnose)?;
    let tokenizer = folder.join(TOKENIZER[0]);
    if !tokenizer.is_file() {
        let text =
            format!("`{}` is missing: a model cannot be used without its tokenizer", tokenizer.display());
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

/// Returns the diagnostic for a needed file that is skipped.
fn stays(upload_set: &UploadSet, name: &str) -> Diagnostic {
    let left = upload_set.skipped().iter().find(|left| left.path == name);
    let path = upload_set.folder().join(name);
    let Some(SkippedFile { reason, .. }) = left else {
        return Diagnostic::bug(format!("`{}` can be neither uploaded nor skipped", path.display()));
    };
    let hint = match reason {
        SkipReason::Token { .. } => {
            "remove the token, or upload the file as it is with `--with-tokens`".to_owned()
        }
        SkipReason::Link => {
            "replace the link by the file: `cp -rL` copies a folder and follows its links".to_owned()
        }
        _ => format!("restore the name that loaders expect, or upload it with `--include {name}`"),
    };
    let text = format!(
        "`{}` would be skipped, and the upload cannot be loaded without it: {reason}",
        path.display()
    );
    Diagnostic::input(text).with_hint(hint)
}
