//! Whether what would be sent can be loaded where it arrives.

use std::path::{Path, PathBuf};

use danlu_adapter::{Adapter, CONFIG_FILE, WEIGHTS_FILE};
use danlu_hub::{Left, Parcel, Reason};
use danlu_model::{INDEX_FILE, ModelConfig, Tokenizer, Weights};
use danlu_train::TokenIdentity;

use crate::report::{Report, Result};

/// A model's weights in one file.
const SINGLE: &str = "model.safetensors";

/// A folder's tokenizer, as far as it has one.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// Opens a folder's files as far as headers tell, without reading a weight; the names of those that it takes to load it.
///
/// # Errors
/// If a file of the adapter or the model has a fault.
pub fn needed(folder: &Path) -> Result<Vec<String>> {
    let is_adapter = folder.join(CONFIG_FILE).is_file();
    let opened = if is_adapter { adapter(folder) } else { model(folder) };
    let opened = opened.and_then(|needed| Ok((needed, TokenIdentity::read(folder)?)));
    let (mut needed, _) = opened.map_err(|report| {
        report.or_hint("nothing was sent: put the file back, or write the folder again with `danlu train` or `danlu merge`")
    })?;
    needed.extend(TOKENIZER.into_iter().filter(|name| folder.join(name).is_file()).map(str::to_owned));
    Ok(needed)
}

/// Sees that all of `needed` goes.
///
/// # Errors
/// If one of them stays here.
pub fn refuse_without(parcel: &Parcel, needed: &[String]) -> Result<()> {
    let goes = |name: &str| parcel.files().iter().any(|file| file.path() == name);
    match needed.iter().find(|name| !goes(name)) {
        Some(name) => Err(stays(parcel, name)),
        None => Ok(()),
    }
}

/// The files that an adapter needs.
fn adapter(folder: &Path) -> Result<Vec<String>> {
    Adapter::check(folder)?;
    if TOKENIZER.iter().all(|name| folder.join(name).is_file()) {
        Tokenizer::read(folder)?;
    }
    Ok([CONFIG_FILE, WEIGHTS_FILE].map(str::to_owned).into())
}

/// The files that a model needs.
fn model(folder: &Path) -> Result<Vec<String>> {
    let config = ModelConfig::read(folder)?;
    let weights = Weights::open(folder)?;
    weights.check_complete(&config)?;
    if folder.join(TOKENIZER[0]).is_file() {
        Tokenizer::read(folder)?.check_fits(&config)?;
    }
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    let mut needed: Vec<String> = weights.files().iter().filter_map(name).collect();
    if !needed.iter().any(|name| name == SINGLE) {
        needed.push(INDEX_FILE.to_owned());
    }
    needed.push("config.json".to_owned());
    Ok(needed)
}

/// The error that nobody can load what would be sent without the file of this name.
fn stays(parcel: &Parcel, name: &str) -> Report {
    let left = parcel.left().iter().find(|left| left.path == name);
    let path = parcel.folder().join(name);
    let Some(Left { reason, .. }) = left else {
        return Report::ours(format!("`{}` is neither sent nor left out", path.display()));
    };
    let hint = match reason {
        Reason::Token { .. } => "take it out, or send it as it is with `--with-tokens`".to_owned(),
        Reason::Link => {
            "put the file itself there: `cp -rL` copies a folder with what its links mean".to_owned()
        }
        _ => format!("give it back the name it is looked for by, or send it with `--include {name}`"),
    };
    let text = format!(
        "`{}` would stay here, and without it nothing that is sent can be loaded: {reason}",
        path.display()
    );
    Report::input(text).with_hint(hint)
}
