//! The server as tests hold it.

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
use crate::model::Model;
use crate::record::{Host, Record, Records};
use crate::settings::Settings;
use crate::store::Store;

/// What a server is to be like.
#[derive(Default)]
pub struct Builder {
    settings: Settings,
    port: u16,
    root: Option<PathBuf>,
}

impl Builder {
    /// The Hub's port; 0, as it is at first, takes a free one.
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Contents are kept there and stay; otherwise in a temporary folder that goes with the server.
    pub fn root(self, root: impl Into<PathBuf>) -> Self {
        Self { root: Some(root.into()), ..self }
    }

    /// Entries in one page of a tree: 1000 at first.
    pub fn page(mut self, entries: usize) -> Self {
        self.settings.page = entries.max(1);
        self
    }

    /// A file of more bytes is a large one, kept by git-lfs: 10 MiB at first. Names like `*.safetensors` and first
    /// bytes that are no text make a file large as well.
    pub fn large_over(mut self, bytes: u64) -> Self {
        self.settings.large_over = bytes;
        self
    }

    /// Large files over so many bytes are uploaded in parts of `part` bytes: 5 GiB and 64 MiB at first.
    pub fn multipart(mut self, over: u64, part: u64) -> Self {
        self.settings.multipart_over = over;
        self.settings.part_size = part.max(1);
        self
    }

    /// `/resolve/` of a small file redirects to `/api/resolve-cache/` on the same host, by a relative address.
    pub fn resolve_cache(mut self, redirects: bool) -> Self {
        self.settings.resolve_cache = redirects;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// If a port cannot be had or the folder not be made.
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
    /// Its id.
    pub id: String,
    /// Ids of its parents.
    pub parents: Vec<String>,
    /// The first line of its message.
    pub title: String,
    /// The rest of its message.
    pub description: String,
    /// Who made it.
    pub author: String,
    /// Its files: path and size.
    pub files: BTreeMap<String, u64>,
}

/// A running server. It stops when it is dropped.
pub struct HubServer {
    hub: Arc<Hub>,
    listeners: Vec<Listener>,
}

impl HubServer {
    /// A server on free ports, as the Hub is in everything that can be set.
    ///
    /// # Panics
    /// If there is no port or no temporary folder to be had.
    pub fn start() -> Self {
        Self::builder().start().expect("a port and a temporary folder")
    }

    /// For a server that is otherwise.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The Hub's address, for `HF_ENDPOINT`: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        self.hub.endpoint.clone()
    }

    /// The address of the host that moves large files.
    pub fn storage_endpoint(&self) -> String {
        self.hub.storage_endpoint.clone()
    }

    /// A user whose token may write.
    pub fn add_user(&self, name: &str, token: &str) {
        self.add_account(name, token, true);
    }

    /// A user, or another token of one, that may only read.
    pub fn add_read_only_user(&self, name: &str, token: &str) {
        self.add_account(name, token, false);
    }

    fn add_account(&self, name: &str, token: &str, writes: bool) {
        let account = Account { name: name.to_owned(), writes, expired: false };
        self.hub.state().accounts.insert(token.to_owned(), account);
    }

    /// From now on `token` has expired.
    pub fn expire(&self, token: &str) {
        if let Some(account) = self.hub.state().accounts.get_mut(token) {
            account.expired = true;
        }
    }

    /// `user` may write in the namespace of the organisation `org`.
    pub fn add_member(&self, org: &str, user: &str) {
        self.hub.state().members.push((org.to_owned(), user.to_owned()));
    }

    /// `user` may have the files of the gated repository `id`.
    pub fn grant(&self, id: &str, user: &str) {
        if let Some(repository) = self.hub.state().repositories.get_mut(id) {
            repository.granted.push(user.to_owned());
        }
    }

    /// A public model, or another commit on the `main` of one; answers the commit's id.
    ///
    /// # Panics
    /// If the files cannot be written.
    pub fn add_model(&self, id: &str, files: &[(&str, &[u8])]) -> String {
        files.iter().fold(self.model(id), |model, (path, content)| model.file(path, content)).add()
    }

    /// For a model that is private, gated, has big files or another branch: see [`Model`].
    pub fn model(&self, id: &str) -> Model<'_> {
        Model::new(&self.hub, id)
    }

    /// A new commit on `main` with these files beside those that are there; answers its id.
    ///
    /// # Panics
    /// If the files cannot be written.
    pub fn commit(&self, id: &str, files: &[(&str, &[u8])]) -> String {
        self.add_model(id, files)
    }

    /// A new commit on `main` with the file at `path` under the name `name`, always a large one. It is hashed in
    /// pieces and linked, so a file of many gigabytes costs no memory.
    ///
    /// # Panics
    /// If it cannot be read, linked or copied.
    pub fn add_file_from_path(&self, id: &str, name: &str, path: &Path) -> String {
        self.model(id).file_from_path(name, path).add()
    }

    /// The content of a file.
    pub fn read(&self, id: &str, revision: &str, path: &str) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        io::Read::read_to_end(&mut self.open(id, revision, path)?, &mut content).ok()?;
        Some(content)
    }

    /// The content of a file, for one too big for memory.
    pub fn open(&self, id: &str, revision: &str, path: &str) -> Option<std::fs::File> {
        let state = self.hub.state();
        let entry = state.repositories.get(id)?.resolve(revision)?.commit.tree.get(path)?;
        self.hub.store.open(&entry.sha256).ok()
    }

    /// SHA-256 of the content that the server keeps, in hexadecimal, by path.
    pub fn hashes(&self, id: &str, revision: &str) -> BTreeMap<String, String> {
        let state = self.hub.state();
        let tree = state
            .repositories
            .get(id)
            .and_then(|repository| Some(&repository.resolve(revision)?.commit.tree));
        tree.into_iter().flatten().map(|(path, entry)| (path.clone(), entry.sha256.clone())).collect()
    }

    /// Refs and the commits that they point at: `refs/heads/main`, `refs/pr/1` and so on.
    pub fn revisions(&self, id: &str) -> BTreeMap<String, String> {
        self.hub.state().repositories.get(id).map(|repository| repository.refs().clone()).unwrap_or_default()
    }

    /// Every commit of a repository, oldest first; none for an unknown one.
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

    /// Whether there is a repository of this name, and whether it is private.
    pub fn is_private(&self, id: &str) -> Option<bool> {
        self.hub.state().repositories.get(id).map(|repository| repository.private)
    }

    /// From now on this goes wrong.
    pub fn fault(&self, fault: Fault) {
        self.hub.faults.add(fault);
    }

    /// From now on nothing does.
    pub fn clear_faults(&self) {
        self.hub.faults.clear();
    }

    /// Every request since the start, or since they were cleared, in the order in which they came.
    pub fn requests(&self) -> Vec<Record> {
        self.hub.records.all()
    }

    /// Forgets the requests so far.
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
