//! The repository before a push: its `README.md`, and the base that the repository names.

use std::path::Path;
use std::str::Utf8Error;

use danlu_adapter::{BaseIdentity, CONFIG_FILE, IDENTITY_FILE};
use danlu_hub::{Hub, HubError, RepoName};
use danlu_loader::is_known_name;
use danlu_report::card;
use serde_json::Value;

use crate::diagnostic::Result as Diagnosed;

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The files of a repository before a push.
pub struct RemoteCard<'a> {
    hub: &'a Hub,
    name: &'a RepoName,
    identity: Option<Vec<u8>>,
    readme: Option<Vec<u8>>,
    /// Whether the Hub was reached.
    was_read: bool,
}

/// The base that a repository names.
pub struct RemoteBase {
    /// The base's name on the Hub.
    pub id: String,
    /// Whether this base counts as the base of the local files. It does if the fingerprints are equal, or if
    /// neither `danlu.json` records a base.
    pub is_ours: bool,
}

impl<'a> RemoteCard<'a> {
    /// Reads the files of a repository.
    ///
    /// # Errors
    /// If the Hub cannot be reached.
    pub fn read(hub: &'a Hub, name: &'a RepoName) -> Result<Self, HubError> {
        let identity = hub.read_small_file(name, IDENTITY_FILE, MAX_FILE_BYTES)?;
        let readme = hub.read_small_file(name, card::README_FILE, MAX_FILE_BYTES)?;
        Ok(Self { hub, name, identity, readme, was_read: true })
    }

    pub fn unread(hub: &'a Hub, name: &'a RepoName) -> Self {
        Self { hub, name, identity: None, readme: None, was_read: false }
    }

    pub fn hub(&self) -> &'a Hub {
        self.hub
    }

    /// Returns the Hub name of the base that the repository names. Returns `None` if the repository was not
    /// read, names no base on the Hub, or names a base whose fingerprint differs from that of `ours`. In
    /// `adapter_config.json`, the name `named` does not count.
    ///
    /// # Errors
    /// If the Hub cannot be reached.
    pub fn base_id(&self, ours: Option<&BaseIdentity>, named: &str) -> Diagnosed<Option<RemoteBase>> {
        if !self.was_read {
            return Ok(None);
        }
        let identity: Value =
            self.identity.as_deref().and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default();
        let there = &identity["base"];
        if there.is_object() {
            let ours = ours.and_then(|base| base.sha256.as_deref());
            let is_ours = ours.zip(there["sha256"].as_str()).map(|(ours, theirs)| ours == theirs);
            let id = there["hub_id"].as_str().filter(|id| danlu_model::is_repo_id(id));
            return Ok(id
                .filter(|_| is_ours != Some(false))
                .map(|id| RemoteBase { id: id.to_owned(), is_ours: is_ours.is_some() }));
        }
        let Some(config) = self.hub.read_small_file(self.name, CONFIG_FILE, MAX_FILE_BYTES)? else {
            return Ok(None);
        };
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        let id = config["base_model_name_or_path"].as_str().filter(|id| *id != named);
        let id = id.filter(|id| is_known_name(self.hub, Path::new(id)));
        // The repository has no fingerprint of its base. Its base counts as the local base only if the local
        // `danlu.json` records no base either.
        Ok(id.map(|id| RemoteBase { id: id.to_owned(), is_ours: ours.is_none() }))
    }

    /// Returns the `README.md` of the repository, if there is one.
    pub fn readme(&self) -> Option<Result<&str, Utf8Error>> {
        self.readme.as_deref().map(str::from_utf8)
    }
}
