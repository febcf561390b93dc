//! The repository before a push: its `README.md`, and the base that it names.

use std::path::Path;

use danlu_adapter::{BaseIdentity, CONFIG_FILE, IDENTITY_FILE};
use danlu_hub::{Hub, RepoName};
use danlu_loader::is_known_name;
use danlu_report::card;
use serde_json::Value;

use crate::diagnostic::Result;

/// Longest file that is read of it, in bytes.
const LONGEST: u64 = 16 << 20;

/// The page that is there.
pub struct RemoteCard<'a> {
    hub: &'a Hub,
    name: &'a RepoName,
    identity: Option<Vec<u8>>,
    readme: Option<Vec<u8>>,
}

/// The base as the repository names it.
pub struct RemoteBase {
    /// Its name on the Hub.
    pub id: String,
    /// Whether it is the base here: by the sums of both, where there are records.
    pub is_ours: bool,
}

impl<'a> RemoteCard<'a> {
    /// Reads the files of the card from the Hub.
    ///
    /// # Errors
    /// If the Hub cannot be asked.
    pub fn read(hub: &'a Hub, name: &'a RepoName) -> Result<Self> {
        let identity = hub.read_small_file(name, IDENTITY_FILE, LONGEST)?;
        let readme = hub.read_small_file(name, card::README_FILE, LONGEST)?;
        Ok(Self { hub, name, identity, readme })
    }

    /// The Hub's name of the base in the repository, unless it is another base than `ours`, or `named`
    /// already.
    ///
    /// # Errors
    /// If the Hub cannot be asked.
    pub fn base_id(&self, ours: Option<&BaseIdentity>, named: &str) -> Result<Option<RemoteBase>> {
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
        let Some(config) = self.hub.read_small_file(self.name, CONFIG_FILE, LONGEST)? else {
            return Ok(None);
        };
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        let id = config["base_model_name_or_path"].as_str().filter(|id| *id != named);
        let id = id.filter(|id| is_known_name(self.hub, Path::new(id)));
        // Where no fingerprint was ever recorded, the last push is all that is known.
        Ok(id.map(|id| RemoteBase { id: id.to_owned(), is_ours: ours.is_none() }))
    }

    /// The `README.md` that is there; none where it is no text.
    pub fn readme(&self) -> Option<&str> {
        self.readme.as_deref().and_then(|readme| str::from_utf8(readme).ok())
    }
}
