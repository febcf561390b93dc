//! State of the server that both listeners share.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard};

use sha2::{Digest, Sha256};

use crate::access::Accounts;
use crate::fault::Faults;
use crate::recorded_request::{Records, lock};
use crate::repository::{Entry, Repository};
use crate::settings::Settings;
use crate::store::Store;

/// Repositories and users.
#[derive(Default)]
pub(crate) struct State {
    pub accounts: Accounts,
    /// Pairs of an organisation and a member.
    pub members: Vec<(String, String)>,
    pub repositories: BTreeMap<String, Repository>,
    /// Multipart uploads by hash. Each entry contains the size of the file, and the ETags of the uploaded
    /// parts by part number.
    pub uploads: BTreeMap<String, (u64, BTreeMap<u64, String>)>,
}

pub(crate) struct Hub {
    pub endpoint: String,
    pub storage_endpoint: String,
    pub settings: Settings,
    pub store: Store,
    pub faults: Faults,
    pub records: Records,
    /// Secret that is used to sign URLs.
    pub secret: String,
    pub state: Mutex<State>,
}

impl Hub {
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns the signature for a URL of the storage host. The storage host checks signatures instead of
    /// tokens.
    pub fn signature(&self, purpose: &str) -> String {
        hex::encode(Sha256::digest(format!("{}:{purpose}", self.secret)))[..40].to_owned()
    }

    /// Stores `content` and returns its entry. The settings determine whether the file is large.
    ///
    /// # Errors
    /// If the content cannot be written.
    pub fn keep(&self, path: &str, content: &[u8]) -> io::Result<Entry> {
        let sha256 = self.store.put(content)?;
        let sample = &content[..content.len().min(512)];
        Ok(if self.settings.is_large(path, content.len() as u64, sample) {
            Entry::large(sha256, content.len() as u64)
        } else {
            Entry::regular(content, sha256)
        })
    }
}
