//! Loads an adapter from its source: downloads, reads and checks its files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use danlu_hub::{FetchScope, Hub, HubSettings, RepoName};
use danlu_loader::{
    AdapterFiles, CheckDepth, FolderKind, HubSource, LoadError, LoadedBase, Loader, check_base,
};

use super::generation::{AdapterSource, Generation};
use crate::metrics::Metrics;
use crate::model_profile::ModelProfiles;

/// Loads adapters for one base.
pub(crate) struct AdapterLoader {
    pub base: Arc<LoadedBase>,
    pub profiles: ModelProfiles,
    pub metrics: Arc<Metrics>,
}

impl AdapterLoader {
    /// Loads an adapter.
    ///
    /// # Errors
    /// If the adapter cannot be downloaded, a file is invalid, or the adapter was made for a different base.
    pub fn load(&self, source: &AdapterSource) -> Result<Generation, LoadError> {
        let started = Instant::now();
        let (folder, from) = match source {
            AdapterSource::Folder(folder) => (folder.clone(), "disk"),
            AdapterSource::Hub(name) => fetch(name)?,
        };
        let loaded = self.load_folder(&folder);
        match &loaded {
            Ok(generation) => {
                self.metrics.adapter_loaded(from, started.elapsed());
                let (id, millis) = (generation.id.to_string(), started.elapsed().as_millis() as u64);
                tracing::info!(
                    id,
                    rank = generation.rank,
                    bytes = generation.bytes,
                    millis,
                    "adapter loaded"
                );
            }
            Err(error) => tracing::warn!(%error, "cannot load an adapter"),
        }
        loaded
    }

    fn load_folder(&self, folder: &Path) -> Result<Generation, LoadError> {
        match FolderKind::of(folder) {
            FolderKind::Adapter => {}
            FolderKind::Model => return Err(LoadError::NotAnAdapter { path: folder.to_owned() }),
            kind => return Err(LoadError::NoModel { path: folder.to_owned(), kind }),
        }
        let files = AdapterFiles::open(folder)?;
        let (base, decoder) = (self.base.files(), self.base.decoder());
        let mut notices = Vec::new();
        check_base(&files, base, CheckDepth::Sample, &mut notices)?;
        for notice in &notices {
            tracing::warn!(?notice, "adapter and base differ");
        }
        let adapter = self.base.load_adapter(&files)?;
        let profile = self.profiles.of_adapter(&files)?;
        Ok(Generation::new(adapter, profile, decoder)?)
    }
}

/// Returns the cache folder of a repository. Downloads the repository if it is not cached.
fn fetch(name: &RepoName) -> Result<(PathBuf, &'static str), LoadError> {
    let hub = Hub::new(HubSettings::from_env()?);
    if let Some(folder) = hub.cached_folder(name, FetchScope::Full)? {
        return Ok((folder, "disk"));
    }
    let observer = |_: danlu_loader::Progress<'_>| std::ops::ControlFlow::Continue(());
    let source: &dyn HubSource = &hub;
    let pulled = Loader::new(source, &observer).fetch(name, FetchScope::Full)?;
    Ok((pulled.folder, "hub"))
}
