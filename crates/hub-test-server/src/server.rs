//! The interface for tests.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::access::Account;
use crate::clock;
use crate::fault::{Fault, Faults};
use crate::hub::{Hub, State};
use crate::listener::Listener;
use crate::model_builder::ModelBuilder;
use crate::recorded_request::{Host, RecordedRequest, Records};
use crate::settings::Settings;
use crate::store::Store;

/// Options of a server.
#[derive(Default)]
pub struct Builder {
    settings: Settings,
    port: u16,
    root: Option<PathBuf>,
}

impl Builder {
    /// Sets the port of the Hub; 0, the default, takes a free port.
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Stores content in this folder, which is not deleted. The default is a temporary folder.
    pub fn root(self, root: impl Into<PathBuf>) -> Self {
        Self { root: Some(root.into()), ..self }
    }

    /// Sets the number of entries in a page of a tree; 1000 by default.
    pub fn page(mut self, entries: usize) -> Self {
        self.settings.page = entries.max(1);
        self
    }

    /// Sets the size above which a file is large; 10 MiB by default.
    ///
    /// Names such as `*.safetensors` and binary content make a file large as well.
    pub fn large_over(mut self, bytes: u64) -> Self {
        self.settings.large_over = bytes;
        self
    }

    /// Uploads large files above `over` bytes in parts of `part` bytes; 5 GiB and 64 MiB by default.
    pub fn multipart(mut self, over: u64, part: u64) -> Self {
        self.settings.multipart_over = over;
        self.settings.part_size = part.max(1);
        self
    }

    /// Redirects `/resolve/` of a small file to `/api/resolve-cache/` on the same host, by a relative URL.
    pub fn resolve_cache(mut self, redirects: bool) -> Self {
        self.settings.resolve_cache = redirects;
        self
    }

    /// Starts the server.
    ///
    /// # Errors
    /// If a port is taken, or the folder cannot be created.
    pub fn start(self) -> io::Result<HubServer> {
        let store = Store::new(self.root.as_deref())?;
        let sockets = (TcpListener::bind(("127.0.0.1", self.port))?, TcpListener::bind(("127.0.0.1", 0))?);
        let (endpoint, storage_endpoint) =
            (format!("http://{}", sockets.0.local_addr()?), format!("http://{}", sockets.1.local_addr()?));
        let hub = Arc::new(Hub {
            secret: format!("{endpoint} {storage_endpoint} {}", clock::now()),
            endpoint,
            storage_endpoint,
            settings: self.settings,
            store,
            faults: Faults::default(),
            records: Records::default(),
            state: State::default().into(),
        });
        let listeners = vec![
            Listener::start(sockets.0, Host::Hub, hub.clone())?,
            Listener::start(sockets.1, Host::Storage, hub.clone())?,
        ];
        Ok(HubServer { hub, listeners })
    }
}

/// A commit of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitInfo {
    /// The id.
    pub id: String,
    /// Ids of the parents.
    pub parents: Vec<String>,
    /// First line of the message.
    pub title: String,
    /// Rest of the message.
    pub description: String,
    /// The author.
    pub author: String,
    /// Path and size of the files.
    pub files: BTreeMap<String, u64>,
}

/// A running server. Dropping it stops it.
pub struct HubServer {
    hub: Arc<Hub>,
    listeners: Vec<Listener>,
}

impl HubServer {
    /// Starts a server on free ports, with the Hub's settings.
    ///
    /// # Panics
    /// If there is no free port or no temporary folder.
    pub fn start() -> Self {
        Self::builder().start().expect("a port and a temporary folder")
    }

    /// Returns a builder for other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The Hub's URL, for `HF_ENDPOINT`: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        self.hub.endpoint.clone()
    }

    /// The URL of the storage host.
    pub fn storage_endpoint(&self) -> String {
        self.hub.storage_endpoint.clone()
    }

    /// Adds a user with a token that may write.
    pub fn add_user(&self, name: &str, token: &str) {
        self.add_account(name, token, true);
    }

    /// Adds a user with a read-only token, or another such token for an existing user.
    pub fn add_read_only_user(&self, name: &str, token: &str) {
        self.add_account(name, token, false);
    }

    fn add_account(&self, name: &str, token: &str, writes: bool) {
        let account = Account { name: name.to_owned(), writes, expired: false };
        self.hub.state().accounts.insert(token.to_owned(), account);
    }

    /// Expires a token.
    pub fn expire(&self, token: &str) {
        if let Some(account) = self.hub.state().accounts.get_mut(token) {
            account.expired = true;
        }
    }

    /// Adds `user` to the organisation `org`.
    pub fn add_member(&self, org: &str, user: &str) {
        self.hub.state().members.push((org.to_owned(), user.to_owned()));
    }

    /// Gives `user` access to the gated repository `id`.
    pub fn grant(&self, id: &str, user: &str) {
        if let Some(repository) = self.hub.state().repositories.get_mut(id) {
            repository.granted.push(user.to_owned());
        }
    }

    /// Adds a public model, or another commit on its `main`. Returns the commit's id.
    ///
    /// # Panics
    /// If the files cannot be written.
    pub fn add_model(&self, id: &str, files: &[(&str, &[u8])]) -> String {
        files.iter().fold(self.model(id), |model, (path, content)| model.file(path, content)).add()
    }

    /// Builds a commit with options: private, gated, large files, or another branch.
    pub fn model(&self, id: &str) -> ModelBuilder<'_> {
        ModelBuilder::new(&self.hub, id)
    }

    /// Adds a commit on `main` with these files; existing files stay. Returns its id.
    ///
    /// # Panics
    /// If the files cannot be written.
    pub fn commit(&self, id: &str, files: &[(&str, &[u8])]) -> String {
        self.add_model(id, files)
    }

    /// Adds a commit on `main` with the file at `path` as the large file `name`.
    ///
    /// The file is hashed in chunks and linked, so its size costs no memory.
    ///
    /// # Panics
    /// If the file cannot be read, linked or copied.
    pub fn add_file_from_path(&self, id: &str, name: &str, path: &Path) -> String {
        self.model(id).file_from_path(name, path).add()
    }

    /// Returns the content of a file.
    pub fn read(&self, id: &str, revision: &str, path: &str) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        io::Read::read_to_end(&mut self.open(id, revision, path)?, &mut content).ok()?;
        Some(content)
    }

    /// Returns a reader for a file larger than memory.
    pub fn open(&self, id: &str, revision: &str, path: &str) -> Option<std::fs::File> {
        let state = self.hub.state();
        let entry = state.repositories.get(id)?.resolve(revision)?.commit.tree.get(path)?;
        self.hub.store.open(&entry.sha256).ok()
    }

    /// Returns the SHA-256 of each file, by path.
    pub fn hashes(&self, id: &str, revision: &str) -> BTreeMap<String, String> {
        let state = self.hub.state();
        let tree = state
            .repositories
            .get(id)
            .and_then(|repository| Some(&repository.resolve(revision)?.commit.tree));
        tree.into_iter().flatten().map(|(path, entry)| (path.clone(), entry.sha256.clone())).collect()
    }

    /// Returns refs and their commits: `refs/heads/main`, `refs/pr/1` and so on.
    pub fn revisions(&self, id: &str) -> BTreeMap<String, String> {
        self.hub.state().repositories.get(id).map(|repository| repository.refs().clone()).unwrap_or_default()
    }

    /// Returns all commits of a repository, oldest first. An unknown repository has none.
    pub fn commits(&self, id: &str) -> Vec<CommitInfo> {
        let state = self.hub.state();
        let commits =
            state.repositories.get(id).map(|repository| repository.all_commits()).unwrap_or_default();
        let info = |commit: &crate::repository::Commit| CommitInfo {
            id: commit.id.clone(),
            parents: commit.parents.clone(),
            title: commit.title.clone(),
            description: commit.description.clone(),
            author: commit.author.clone(),
            files: commit.tree.iter().map(|(path, entry)| (path.clone(), entry.size)).collect(),
        };
        commits.iter().map(info).collect()
    }

    /// Whether a repository is private; `None` if it is unknown.
    pub fn is_private(&self, id: &str) -> Option<bool> {
        self.hub.state().repositories.get(id).map(|repository| repository.private)
    }

    /// Injects a fault.
    pub fn fault(&self, fault: Fault) {
        self.hub.faults.add(fault);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.hub.faults.clear();
    }

    /// Returns all requests since the start or the last clear, in order of arrival.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.hub.records.all()
    }

    /// Clears the recorded requests.
    pub fn clear_requests(&self) {
        self.hub.records.clear();
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.listeners.clear();
        self.hub.store.close();
    }
}

impl std::fmt::Debug for HubServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubServer").field("endpoint", &self.hub.endpoint).finish_non_exhaustive()
    }
}
