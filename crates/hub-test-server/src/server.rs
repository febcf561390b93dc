//! The server's interface for tests.

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
    /// Sets the port of the Hub listener. The default is 0, which takes a free port.
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Sets the folder where content is stored. This folder is not deleted. The default is a temporary
    /// folder.
    pub fn root(self, root: impl Into<PathBuf>) -> Self {
        Self { root: Some(root.into()), ..self }
    }

    /// Sets the number of entries on a page of a tree. The default is 1000.
    pub fn page(mut self, entries: usize) -> Self {
        self.settings.page = entries.max(1);
        self
    }

    /// Sets the size above which a file is large. The default is 10 MiB.
    ///
    /// Files with names such as `*.safetensors`, and files with a zero byte near their start, are large at
    /// any size above zero.
    pub fn large_over(mut self, bytes: u64) -> Self {
        self.settings.large_over = bytes;
        self
    }

    /// Requires that files above `over` bytes are uploaded in parts of `part` bytes. The defaults are 5 GiB
    /// and 64 MiB.
    pub fn multipart(mut self, over: u64, part: u64) -> Self {
        self.settings.multipart_over = over;
        self.settings.part_size = part.max(1);
        self
    }

    /// Sets whether `/resolve/` of a small file redirects to `/api/resolve-cache/` on the same host by a
    /// relative URL.
    pub fn resolve_cache(mut self, redirects: bool) -> Self {
        self.settings.resolve_cache = redirects;
        self
    }

    /// Starts the server.
    ///
    /// # Errors
    /// If the port is not available, or the folder cannot be created.
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
    /// Id of the commit.
    pub id: String,
    /// Ids of the parent commits.
    pub parents: Vec<String>,
    /// First line of the commit message.
    pub title: String,
    /// The commit message after its first line.
    pub description: String,
    /// User name of the commit's author.
    pub author: String,
    /// Sizes of the files, by path.
    pub files: BTreeMap<String, u64>,
}

/// A running server. Dropping this value stops the server.
pub struct HubServer {
    hub: Arc<Hub>,
    listeners: Vec<Listener>,
}

impl HubServer {
    /// Starts a server on free ports, with the default settings.
    ///
    /// # Panics
    /// If there is no free port, or no temporary folder can be created.
    pub fn start() -> Self {
        Self::builder().start().expect("a port and a temporary folder")
    }

    /// Returns a builder for a server with other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns the URL of the Hub listener, `http://127.0.0.1:PORT`. Clients use it as `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        self.hub.endpoint.clone()
    }

    /// Returns the URL of the storage listener.
    pub fn storage_endpoint(&self) -> String {
        self.hub.storage_endpoint.clone()
    }

    /// Adds a user and a token with write access.
    pub fn add_user(&self, name: &str, token: &str) {
        self.add_account(name, token, true);
    }

    /// Adds a user with a read-only token. If the user exists, adds the token to this user.
    pub fn add_read_only_user(&self, name: &str, token: &str) {
        self.add_account(name, token, false);
    }

    fn add_account(&self, name: &str, token: &str, writes: bool) {
        let account = Account { name: name.to_owned(), writes, expired: false };
        self.hub.state().accounts.insert(token.to_owned(), account);
    }

    /// Makes a token expire.
    pub fn expire(&self, token: &str) {
        if let Some(account) = self.hub.state().accounts.get_mut(token) {
            account.expired = true;
        }
    }

    /// Adds `user` to the organisation `org`.
    pub fn add_member(&self, org: &str, user: &str) {
        self.hub.state().members.push((org.to_owned(), user.to_owned()));
    }

    /// Grants `user` access to the gated repository `id`.
    pub fn grant(&self, id: &str, user: &str) {
        if let Some(repository) = self.hub.state().repositories.get_mut(id) {
            repository.granted.push(user.to_owned());
        }
    }

    /// Adds a public model. If the model exists, adds a commit on `main`. Returns the id of the commit.
    ///
    /// # Panics
    /// If the files cannot be written.
    pub fn add_model(&self, id: &str, files: &[(&str, &[u8])]) -> String {
        files.iter().fold(self.model(id), |model, (path, content)| model.file(path, content)).add()
    }

    /// Returns a builder that adds a commit. The builder can also make the repository private or gated, add
    /// large files, and select a branch. The id of a data set starts with `datasets/`.
    pub fn model(&self, id: &str) -> ModelBuilder<'_> {
        ModelBuilder::new(&self.hub, id)
    }

    /// Adds a commit on `main` with these files. Other files do not change. Returns the id of the commit.
    ///
    /// # Panics
    /// If the files cannot be written.
    pub fn commit(&self, id: &str, files: &[(&str, &[u8])]) -> String {
        self.add_model(id, files)
    }

    /// Adds a commit on `main`. The commit contains the file at `path` as the large file `name`.
    ///
    /// The file is hashed in chunks and then linked, so it is never completely in memory.
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

    /// Opens a file that may be larger than memory.
    pub fn open(&self, id: &str, revision: &str, path: &str) -> Option<std::fs::File> {
        let state = self.hub.state();
        let entry = state.repositories.get(id)?.resolve(revision)?.commit.tree.get(path)?;
        self.hub.store.open(&entry.sha256).ok()
    }

    /// Returns the SHA-256 of all files, by path.
    pub fn hashes(&self, id: &str, revision: &str) -> BTreeMap<String, String> {
        let state = self.hub.state();
        let tree = state
            .repositories
            .get(id)
            .and_then(|repository| Some(&repository.resolve(revision)?.commit.tree));
        tree.into_iter().flatten().map(|(path, entry)| (path.clone(), entry.sha256.clone())).collect()
    }

    /// Returns the commits of all refs. Examples of refs are `refs/heads/main` and `refs/pr/1`.
    pub fn revisions(&self, id: &str) -> BTreeMap<String, String> {
        self.hub.state().repositories.get(id).map(|repository| repository.refs().clone()).unwrap_or_default()
    }

    /// Returns all commits of a repository, with the oldest first. Returns an empty list for an unknown
    /// repository.
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

    /// Returns whether a repository is private, or `None` if it does not exist.
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

    /// Returns all requests in order of arrival, since the server started or since the records were last
    /// cleared.
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
