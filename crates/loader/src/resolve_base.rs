//! Finds the base that an adapter names.

use std::fs;
use std::path::{Path, PathBuf};

use danlu_adapter::{CONFIG_FILE, LoraConfig};
use danlu_hub::{FetchScope, RepoName, parse_snapshot_path};

use crate::check_base::FOUR_BIT_SUFFIX;
use crate::folder_kind::MODEL_CONFIG;
use crate::{LoadError, Loader, ModelRef, Notice, relative_path};

impl Loader<'_> {
    /// Resolves the base that the adapter in `folder` names. The base may be a local folder or a repository
    /// on the Hub. A relative path may be relative to the working directory, to `folder`, or to a folder
    /// above `folder`.
    pub(crate) fn adapter_base(
        &self,
        folder: &Path,
        config: &LoraConfig,
        notices: &mut Vec<Notice>,
    ) -> Result<PathBuf, LoadError> {
        let Some(name) = config.base_model_name_or_path.as_ref().filter(|name| !name.is_empty()) else {
            return Err(LoadError::UnnamedBase { path: folder.join(CONFIG_FILE) });
        };
        let path = Path::new(name);
        if let Some(found) = local_base(folder, path) {
            return Ok(found);
        }
        let reference = ModelRef::parse(path);
        let on_hub = reference.hub_name(self.hub).map(|on_hub| match &config.revision {
            Some(revision) => on_hub.at(revision),
            None => Ok(on_hub.clone()),
        });
        let Some(on_hub) = on_hub.transpose()? else {
            let error = LoadError::BaseNotFound { adapter: folder.to_owned(), base: name.clone() };
            return Err(match reference.hub_hint(self.hub).or_else(|| blocking_folder_hint(path)) {
                Some(hint) => error.and_hint(hint),
                None => error,
            });
        };
        self.hub_folder(&on_hub, FetchScope::Full, notices).map_err(|error| LoadError::BaseNotFetched {
            adapter: folder.to_owned(),
            base: name.clone(),
            source: Box::new(error),
            alternative: match name.ends_with(FOUR_BIT_SUFFIX) {
                true => {
                    "or name the folder of its 16-bit original with `--base DIR`: danlu quantizes it again"
                }
                false => "or name its folder with `--base DIR`",
            },
        })
    }
}

/// Returns the local folder of the base `name`, if there is one.
fn local_base(adapter: &Path, name: &Path) -> Option<PathBuf> {
    let is_model = |folder: &Path| folder.join(MODEL_CONFIG).is_file();
    let is_snapshot = fs::canonicalize(adapter).is_ok_and(|folder| parse_snapshot_path(&folder).is_some());
    if !is_snapshot {
        return relative_path::find_above(adapter, name, is_model);
    }
    // An adapter in the Hub's cache may come from another author, so its relative paths are not searched.
    // Only a text such as `org/model` may refer to a model folder in the working directory.
    let is_name = name.to_str().is_some_and(|text| text.parse::<RepoName>().is_ok());
    Some(name.to_owned()).filter(|name| (name.is_absolute() || is_name) && is_model(name))
}

/// If a local path has the name of a possible repository and therefore hides it, returns a hint.
fn blocking_folder_hint(path: &Path) -> Option<String> {
    let name: RepoName = path.to_str()?.parse().ok().filter(|_| path.exists())?;
    Some(format!(
        "the folder `{name}` here holds no model and hides the one on the Hub: move it away, or give `--base {name}@main`"
    ))
}
