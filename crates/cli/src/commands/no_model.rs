//! What to say where a model should be and is not.

use std::path::{Path, PathBuf};

use danlu_adapter::{CONFIG_FILE, RUN_FILE, latest_checkpoint};
use danlu_hub::FetchScope;

use crate::commands::hub;
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;
use crate::terminal_text;

/// The diagnostic for a `path` that is neither an adapter nor a model.
pub fn at(path: &Path) -> Diagnostic {
    let shown = path.display();
    let newest = latest_checkpoint(path).ok().flatten();
    if path.join(RUN_FILE).is_file() || newest.is_some() {
        let resume = format!("danlu train --output {} --resume", terminal_text::shell_path(path));
        let text = format!("`{shown}` is a run that was stopped before its end: there is no adapter yet");
        let hint = match newest {
            Some(newest) => {
                format!("use its newest checkpoint, `{}`, or finish the run: {resume}", newest.display())
            }
            None => format!("finish the run: {resume}"),
        };
        return Diagnostic::input(text).with_hint(hint);
    }
    let (text, hint) = match path {
        path if !path.exists() => {
            (format!("`{shown}` does not exist"), "name the folder of an adapter, a merged model or a base")
        }
        path if path.is_file() => {
            (format!("`{shown}` is a file, expected a folder"), "name the folder that holds `config.json`")
        }
        _ => (
            format!("`{shown}` holds neither `{CONFIG_FILE}` nor `config.json`"),
            "name the folder of an adapter, a merged model or a base",
        ),
    };
    Diagnostic::input(text).with_hint(hint)
}

/// Whether a folder is that of a run that has left no adapter yet.
pub fn is_stopped_run(folder: &Path) -> bool {
    let has_model = [CONFIG_FILE, "config.json"].iter().any(|name| folder.join(name).is_file());
    !has_model && (folder.join(RUN_FILE).is_file() || matches!(latest_checkpoint(folder), Ok(Some(_))))
}

/// The folder of the base that `base` names, here or on the Hub; that it is a model's is known only where it is not plain
/// that it is something else.
///
/// # Errors
/// If it is an adapter, a run or a file, or a name that neither the cache nor the Hub has.
pub fn base(base: &Path, scope: FetchScope, printer: &Printer) -> Result<PathBuf> {
    let folder = hub::folder(base, scope, printer)?;
    if folder.join("config.json").is_file() {
        return Ok(folder);
    }
    if folder.join(CONFIG_FILE).is_file() {
        let diagnostic = Diagnostic::input(format!("`--base` is `{}`, which is an adapter", base.display()));
        return Err(diagnostic.with_hint("name the folder of the model that it was trained on"));
    }
    if base.is_file() || base.join(RUN_FILE).is_file() {
        return Err(at(base));
    }
    // What is left is a folder that lacks a file, or no folder: whoever reads it names the file.
    Ok(folder)
}
