//! Models by name: wherever the folder of a model or an adapter is read, `org/name[@revision]` may stand.

pub mod account;
pub mod pull;
pub mod push;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use danlu_hub::{FetchScope, Hub, HubError, HubSettings, RepoName};

use crate::commands::no_model;
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;
use crate::style::Color;

/// The Hub that the variables name; pauses that it asks for are said.
///
/// # Errors
/// If one of them has a fault.
pub fn open(printer: &Printer) -> Result<Hub> {
    Ok(Hub::new(HubSettings::from_env()?).on_wait(pauses(printer)))
}

/// Says how long is waited: in the live line by the second, else once.
fn pauses(printer: &Printer) -> impl Fn(&str, Duration, Duration) + Send + Sync + 'static {
    // Whoever waits may be one of several threads.
    let printer = Mutex::new(Printer::new(printer.lang, Color::Auto, false));
    move |host, left, of| {
        let printer = printer.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = left.as_secs_f64().ceil();
        let zh = format!("{host} 要求等待 {seconds} 秒，之后自动继续");
        let en = format!("{host} asks to wait {seconds} s, then it goes on");
        match (printer.has_live_line(), left.is_zero()) {
            (true, true) => printer.clear_live(),
            (true, false) => printer.live(&printer.pick(zh, en)),
            (false, _) if left == of => printer.status_bilingual(&zh, &en),
            (false, _) => {}
        }
    }
}

/// The name on the Hub that `path` is, where it is no path: a folder here comes first. Where a folder `owner` is here,
/// `owner/model` is a name if the cache has that model, and otherwise a mistake in a path; with a revision it is always a
/// name.
pub fn name_of(path: &Path) -> Option<RepoName> {
    let name = spelt(path)?;
    let owner = Path::new(name.id().split('/').next()?);
    // The address of a page begins otherwise.
    let is_hidden = path.starts_with(owner) && owner.exists();
    (name.named_revision().is_some() || !is_hidden || is_cached(&name)).then_some(name)
}

/// How to name the model on the Hub, where `path` may mean it and a folder here stands before it.
pub fn hidden(path: &Path) -> Option<String> {
    let name = spelt(path).filter(|_| name_of(path).is_none())?;
    Some(format!("if it is the Hub's, say `{name}@main`, or `danlu pull {name}` first"))
}

/// What to do where the folder `path` is here, and `path` may mean a model on the Hub all the same.
pub fn in_the_way(path: &Path) -> Option<String> {
    let name: RepoName = path.to_str()?.parse().ok().filter(|_| path.exists())?;
    Some(format!(
        "`{name}` here holds no model and hides the Hub's: move it away, or give `--base {name}@main`"
    ))
}

/// Whether `path` is spelt as a name is; it may be a path all the same.
pub fn is_spelt(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.parse::<RepoName>().is_ok())
}

/// The name that is spelt so, where no path is.
fn spelt(path: &Path) -> Option<RepoName> {
    name(path.to_str()?).ok().filter(|_| !path.exists())
}

/// A name as it is typed, or pasted as its page's address.
///
/// # Errors
/// If it is neither.
pub fn name(text: &str) -> Result<RepoName, HubError> {
    text.parse().or_else(|error| {
        let endpoint = std::env::var("HF_ENDPOINT").ok().and_then(|text| text.parse().ok());
        RepoName::from_page_url(text, endpoint.as_ref()).ok_or(error)
    })
}

/// The same name, where its revision is the beginning of the commit whose snapshot `folder` is: others know the commit by all
/// of it.
pub fn with_whole_commit(name: RepoName, folder: &Path) -> RepoName {
    let commit = folder.file_name().and_then(|commit| commit.to_str()).unwrap_or_default();
    let is_part = name.named_revision().is_some_and(|part| part.len() >= 7 && commit.starts_with(part));
    if is_part { name.at(commit).unwrap_or(name) } else { name }
}

/// Whether `path` is a name of which the cache or the Hub knows; a folder may be spelt so as well.
pub fn is_hub_name(hub: &Hub, path: &Path) -> bool {
    let name = path.to_str().and_then(|text| text.parse().ok());
    name.is_some_and(|name| is_cached(&name) || hub.repo_exists(&name) == Some(true))
}

fn is_cached(name: &RepoName) -> bool {
    let settings = HubSettings::from_env().ok();
    settings.is_some_and(|settings| {
        matches!(Hub::new(settings).cached_folder(name, FetchScope::Full), Ok(Some(_)))
    })
}

/// The folder that `path` stands for: itself, or that of the model of this name, fetched where it is not in the cache.
///
/// # Errors
/// If it is a name, and neither the cache nor the Hub has such a model; if it may be one, and a folder here hides it.
pub fn folder(path: &Path, scope: FetchScope, printer: &Printer) -> Result<PathBuf> {
    match (name_of(path), hidden(path)) {
        (Some(name), _) => named(&name, scope, printer),
        (None, Some(hint)) => Err(no_model::at(path).and_hint(hint)),
        (None, None) => Ok(path.to_owned()),
    }
}

/// The folder of the model of this name, fetched where it is not in the cache.
///
/// # Errors
/// If neither the cache nor the Hub has it.
pub fn named(name: &RepoName, scope: FetchScope, printer: &Printer) -> Result<PathBuf> {
    let hub = open(printer)?;
    let found = match hub.cached_folder(name, scope)? {
        Some(folder) => {
            complete(&hub, name, &folder, printer);
            Ok(folder)
        }
        None => pull::fetch(&hub, name, scope, printer).map(|pulled| pulled.folder),
    };
    // It may have been meant as a path.
    found.map_err(|diagnostic| diagnostic.and_hint(format!("there is no folder `{}` here", name.id())))
}

/// Fetches what a program that needs less may have left out of a model in the cache; where nobody can be asked, what is
/// there does, and that is said.
pub fn complete(hub: &Hub, name: &RepoName, folder: &Path, printer: &Printer) {
    let missing_optional_files = hub.missing_optional_files(name, folder);
    if missing_optional_files.is_empty() {
        return;
    }
    let why = match hub.settings().offline {
        true => "HF_HUB_OFFLINE".to_owned(),
        false => match hub.fetch_missing_files(name, folder) {
            Ok(()) => return,
            Err(error) => error.to_string(),
        },
    };
    let files = missing_optional_files.iter().map(|file| format!("`{file}`")).collect::<Vec<_>>();
    printer.warn(&printer.pick(
        format!("缓存中的 `{name}` 没有 {}，也无法查询 Hub 上有没有（{why}）：就这样继续，结果可能因此不同", files.join("、")),
        format!(
            "`{name}` is in the cache without {}, and whether the Hub has it is not known ({why}): going on without, which may change results",
            files.join(", ")
        ),
    ));
}

impl From<HubError> for Diagnostic {
    fn from(error: HubError) -> Self {
        Self::from_error(&error, error.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!(name_of(Path::new("meta-llama/Llama-3.2-1B@main")).unwrap().revision(), "main");
        for path in ["models", "./models/x", "/models/x", "a/b/c", "src/model", "out/my model", "../x"] {
            assert!(name_of(Path::new(path)).is_none(), "{path}");
        }
    }
}
