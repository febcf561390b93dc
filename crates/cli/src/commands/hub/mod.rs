//! Models by name: wherever a folder is accepted, so is `org/name[@revision]`.

pub mod account;
pub mod pull;
pub mod push;

use std::path::{Path, PathBuf};

use danlu_hub::{Extent, Hub, HubSettings, RepoName};

use crate::printer::Printer;
use crate::report::{Report, Result};

/// The Hub that the variables name.
///
/// # Errors
/// If one of them has a fault.
pub fn open() -> Result<Hub> {
    Ok(Hub::new(HubSettings::from_env()?)?)
}

/// The name on the Hub that `path` is, where it is no path: a folder here comes first, and `owner/model` where a folder
/// `owner` is here is a mistake in a path.
pub fn name_of(path: &Path) -> Option<RepoName> {
    let name: RepoName = path.to_str()?.parse().ok()?;
    let owner = Path::new(name.id().split('/').next()?);
    (!path.exists() && !owner.exists()).then_some(name)
}

/// The folder that `path` stands for: itself, or that of the model of this name, fetched where it is not in the cache.
///
/// # Errors
/// If it is a name, and neither the cache nor the Hub has such a model.
pub fn folder(path: &Path, extent: Extent, printer: &Printer) -> Result<PathBuf> {
    match name_of(path) {
        None => Ok(path.to_owned()),
        Some(name) => named(&name, extent, printer),
    }
}

/// The folder of the model of this name, fetched where it is not in the cache.
///
/// # Errors
/// If neither the cache nor the Hub has it.
pub fn named(name: &RepoName, extent: Extent, printer: &Printer) -> Result<PathBuf> {
    let hub = open()?;
    let found = match hub.cached(name, extent)? {
        Some(folder) => Ok(folder),
        None => pull::fetch(&hub, name, extent, printer).map(|pulled| pulled.folder),
    };
    // It may have been meant as a path.
    found.map_err(|report| report.and_hint(format!("there is no folder `{}` here", name.id())))
}

impl From<danlu_hub::HubError> for Report {
    fn from(error: danlu_hub::HubError) -> Self {
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
