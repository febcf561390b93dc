//! What to say where a model should be and is not.

use std::path::Path;

use danlu_adapter::CONFIG_FILE;
use danlu_train::latest_checkpoint;

use crate::commands::train::RUN_FILE;
use crate::report::{Report, Result};

/// The report for a `path` that is neither an adapter nor a model.
pub fn at(path: &Path) -> Report {
    let shown = path.display();
    let newest = latest_checkpoint(path).ok().flatten();
    if path.join(RUN_FILE).is_file() || newest.is_some() {
        let resume = format!("danlu train --output {shown} --resume");
        let text = format!("`{shown}` is a run that was stopped before its end: there is no adapter yet");
        let hint = match newest {
            Some(newest) => {
                format!("use its newest checkpoint, `{}`, or finish the run: {resume}", newest.display())
            }
            None => format!("finish the run: {resume}"),
        };
        return Report::input(text).with_hint(hint);
    }
    if let Some(fetch) = fetching(&shown.to_string()).filter(|_| !path.exists()) {
        return Report::input(format!("`{shown}` is no folder here")).with_hint(fetch);
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
    Report::input(text).with_hint(hint)
}

/// Returns `base`, unless it is plainly something else than a model's folder.
///
/// # Errors
/// If it is an adapter, a run, a file, or the name of a model on the Hub.
pub fn unless_base(base: &Path) -> Result<&Path> {
    if base.join("config.json").is_file() {
        return Ok(base);
    }
    if base.join(CONFIG_FILE).is_file() {
        let report = Report::input(format!("`--base` is `{}`, which is an adapter", base.display()));
        return Err(report.with_hint("name the folder of the model that it was trained on"));
    }
    let on_hub = !base.exists() && fetching(&base.display().to_string()).is_some();
    if base.is_file() || base.join(RUN_FILE).is_file() || on_hub {
        return Err(at(base));
    }
    // What is left is a folder that lacks a file, or no folder: whoever reads it names the file.
    Ok(base)
}

/// How to get the folder of a model, if `name` is one on the Hub: `owner/model`, where no folder `owner` is.
pub fn fetching(name: &str) -> Option<String> {
    let (owner, model) = name.split_once('/')?;
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (is_word(owner) && is_word(model) && !Path::new(owner).exists()).then(|| {
        format!(
            "check the path; a model on the Hub is not fetched for you yet: get its folder with \
             `hf download {name} --local-dir models/{model}` (from `pip install huggingface_hub`)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub_are_told_from_paths() {
        assert!(
            fetching("meta-llama/Llama-3.2-1B")
                .unwrap()
                .contains("`hf download meta-llama/Llama-3.2-1B --local-dir models/Llama-3.2-1B`")
        );
        for path in ["models", "./models/x", "/models/x", "a/b/c", "src/model", "out/my model", "../x"] {
            assert_eq!(fetching(path), None, "{path}");
        }
    }
}
