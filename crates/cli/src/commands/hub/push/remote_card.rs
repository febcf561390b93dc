//! The page that is there before a push: what it says of the base, and whether somebody edited it since it was sent.

use std::path::Path;

use danlu_adapter::CONFIG_FILE;
use danlu_hub::{Hub, RepoName, SkipReason, UploadSet};
use danlu_report::card::{self, Card};
use serde_json::Value;

use crate::commands::hub::is_hub_name;
use crate::diagnostic::Result;

/// Longest file of it that is looked into, in bytes.
const LONGEST: u64 = 16 << 20;

/// The page that is there.
pub struct RemoteCard<'a> {
    hub: &'a Hub,
    name: &'a RepoName,
    record: Option<Vec<u8>>,
    readme: Option<Vec<u8>>,
}

/// What the page calls its base.
pub struct RemoteBase {
    /// Its name on the Hub.
    pub id: String,
    /// Whether it is the base here: by the sums of both, where there are records.
    pub is_ours: bool,
}

impl<'a> RemoteCard<'a> {
    /// Reads what is there of it.
    ///
    /// # Errors
    /// If the Hub cannot be asked.
    pub fn read(hub: &'a Hub, name: &'a RepoName) -> Result<Self> {
        let record = hub.read_small_file(name, card::CARD_FILE, LONGEST)?;
        let readme = hub.read_small_file(name, card::README_FILE, LONGEST)?;
        Ok(Self { hub, name, record, readme })
    }

    /// The Hub's name of the base that the page gives, unless it is known to be another base than that of `card`, or only
    /// what the adapter's configuration here says.
    ///
    /// # Errors
    /// If the Hub cannot be asked.
    pub fn base_id(&self, card: Option<&Card>, named: &str) -> Result<Option<RemoteBase>> {
        if let Some(record) = &self.record {
            let record: Value = serde_json::from_slice(record).unwrap_or_default();
            let there = &record["base"];
            let ours = card.and_then(|card| card.base.sha256.as_deref());
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
        let id = id.filter(|id| is_hub_name(self.hub, Path::new(id)));
        // Where nobody ever noted a sum, the last push is all that is known.
        Ok(id.map(|id| RemoteBase { id: id.to_owned(), is_ours: card.is_none() }))
    }

    /// Lets `README.md` stay here where it would replace one that was edited there, unless that is wanted; says whether.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn keep_edited(&self, upload_set: &mut UploadSet, overwrite: bool) -> Result<bool> {
        let Some(readme) = self.readme.as_ref().filter(|_| !overwrite) else { return Ok(false) };
        // Without a record whatever somebody wrote there is theirs.
        let is_ours = match &self.record {
            Some(record) => card::is_as_sent(record, readme),
            None => is_stub(readme),
        };
        if is_ours {
            return Ok(false);
        }
        let Some(ours) = sum(upload_set)? else { return Ok(false) };
        let is_edited = ours != card::sha256(readme);
        if is_edited {
            upload_set.skip(card::README_FILE, SkipReason::EditedThere);
        }
        Ok(is_edited)
    }

    /// The bytes of `card.json` as they go, with the sum of the `README.md` that goes, or that was sent last.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn with_sent(&self, record: Vec<u8>, upload_set: &UploadSet) -> Result<Vec<u8>> {
        let sent = match sum(upload_set)? {
            Some(sum) => Some(sum),
            None => self.record.as_deref().and_then(card::sent_readme),
        };
        Ok(card::with_sent_readme(record, sent))
    }
}

/// Whether nobody wrote anything: the Hub's form for a new repository leaves a head with the licence, and no more.
fn is_stub(readme: &[u8]) -> bool {
    let readme = String::from_utf8_lossy(readme);
    let mut lines = readme.lines().map(str::trim_end);
    match lines.next() {
        None => true,
        Some("---") => {
            let head = lines.by_ref().take_while(|line| *line != "---");
            head.filter(|line| !line.is_empty()).all(|line| line.starts_with("license:"))
                && lines.all(str::is_empty)
        }
        Some(_) => false,
    }
}

/// The SHA-256 of the `README.md` that goes.
fn sum(upload_set: &UploadSet) -> Result<Option<String>> {
    let readme = upload_set.files().iter().find(|file| file.path() == card::README_FILE);
    Ok(readme.map(|file| file.sha256(&mut |_| {}).map(str::to_owned)).transpose()?)
}
