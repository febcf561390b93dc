//! Whether what would be sent can be loaded where it arrives.

use std::path::{Path, PathBuf};

use danlu_adapter::TokenIdentity;
use danlu_adapter::{Adapter, AdapterError, CONFIG_FILE, WEIGHTS_FILE};
use danlu_hub::{SkipReason, SkippedFile, UploadSet};
use danlu_model::{INDEX_FILE, ModelConfig, ModelError, SINGLE_FILE, Tokenizer, Weights};

use crate::diagnostic::{Diagnostic, Result};

/// One of these makes a folder a whole model's.
const MODEL: [&str; 2] = [SINGLE_FILE, INDEX_FILE];

/// What to do about a file here that is damaged.
const WRITE_AGAIN: &str =
    "nothing was sent: put the file back, or write the folder again with `danlu train` or `danlu merge`";

/// What to do about a model that danlu does not know.
const OTHER_TOOLS: &str = "danlu sends only what it can load itself: `hf upload NAME DIR` of Python's huggingface_hub sends any folder";

/// A folder's tokenizer, as far as it has one.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// Opens a folder's files as far as headers tell, without reading a weight; the names of those that it takes to load it.
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
    let opened = opened.and_then(|needed| Ok((needed, TokenIdentity::read(folder)?)));
    let (mut needed, _) = opened.map_err(|diagnostic| diagnostic.or_hint(WRITE_AGAIN))?;
    needed.extend(TOKENIZER.into_iter().filter(|name| folder.join(name).is_file()).map(str::to_owned));
    Ok(needed)
}

/// Sees that all of `needed` goes.
///
/// # Errors
/// If one of them stays here.
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

/// An error without the file that it was found in.
fn unpacked(error: &AdapterError) -> &AdapterError {
    match error {
        AdapterError::InFile { source, .. } => unpacked(source),
        error => error,
    }
}

/// The diagnostic of an error in a folder of one's own, which nobody fetched.
fn of_model(error: &ModelError, diagnostic: Diagnostic) -> Diagnostic {
    match error {
        ModelError::Header { message, .. } if message.contains("version https://git-lfs") => diagnostic,
        ModelError::FileSize { .. } | ModelError::Header { .. } | ModelError::Json { .. } => {
            diagnostic.with_hint(WRITE_AGAIN)
        }
        ModelError::Unsupported { .. } => diagnostic.and_hint(OTHER_TOOLS),
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
    Tokenizer::read(folder)?.check_fits(&config)?;
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    let mut needed: Vec<String> = weights.files().iter().filter_map(name).collect();
    if !needed.iter().any(|name| name == SINGLE_FILE) {
        needed.push(INDEX_FILE.to_owned());
    }
    needed.push("config.json".to_owned());
    Ok(needed)
}

/// The error that nobody can load what would be sent without the file of this name.
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
