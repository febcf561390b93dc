//! Adds models and commits to the server.

use std::path::Path;

use crate::clock;
use crate::hub::Hub;
use crate::repository::{Entry, Gate, Repository, Tree};

/// A commit to add. The repository is created if it does not exist.
#[must_use = "nothing is there before `add`"]
pub struct ModelBuilder<'a> {
    hub: &'a Hub,
    id: String,
    private: Option<bool>,
    gate: Option<Gate>,
    branch: String,
    message: String,
    changes: Vec<(String, Option<Entry>)>,
}

impl<'a> ModelBuilder<'a> {
    pub(crate) fn new(hub: &'a Hub, id: &str) -> Self {
        Self {
            hub,
            id: id.to_owned(),
            private: None,
            gate: None,
            branch: "refs/heads/main".to_owned(),
            message: "Upload".to_owned(),
            changes: Vec::new(),
        }
    }

    /// Makes the repository private.
    pub fn private(self) -> Self {
        Self { private: Some(true), ..self }
    }

    /// Makes the repository gated: users need access before they can read files.
    pub fn gated(self, gate: Gate) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Sets the ref that the commit is added to. The default is `refs/heads/main`. A new ref starts at
    /// `main`.
    pub fn on(self, full_name: &str) -> Self {
        Self { branch: full_name.to_owned(), ..self }
    }

    /// Sets the commit message.
    pub fn message(self, message: &str) -> Self {
        Self { message: message.to_owned(), ..self }
    }

    /// Adds a file. The server stores the file in LFS if its name, its size or its content requires this.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn file(mut self, path: &str, content: &[u8]) -> Self {
        let entry = self.hub.keep(path, content).expect("a content that can be written");
        self.changes.push((path.to_owned(), Some(entry)));
        self
    }

    /// Adds the file at `source` as the large file `path`.
    ///
    /// # Panics
    /// If the file cannot be read, linked or copied.
    pub fn file_from_path(mut self, path: &str, source: &Path) -> Self {
        let (sha256, size) = self.hub.store.take_in(source).expect("a file that can be read and linked");
        self.changes.push((path.to_owned(), Some(Entry::large(sha256, size))));
        self
    }

    /// Deletes a file.
    pub fn without(mut self, path: &str) -> Self {
        self.changes.push((path.to_owned(), None));
        self
    }

    /// Adds the commit to the server and returns its id.
    pub fn add(self) -> String {
        let now = clock::now();
        let mut state = self.hub.state();
        let repository =
            state.repositories.entry(self.id.clone()).or_insert_with(|| Repository::new(&self.id, now));
        repository.private = self.private.unwrap_or(repository.private);
        repository.gate = self.gate.unwrap_or(repository.gate);
        let parent = repository.resolve(&self.branch).or_else(|| repository.resolve("main"));
        let (parent, mut tree) =
            parent.map_or((None, Tree::new()), |at| (Some(at.commit.id.clone()), at.commit.tree.clone()));
        for (path, entry) in self.changes {
            match entry {
                Some(entry) => tree.insert(path, entry),
                None => tree.remove(&path),
            };
        }
        let author = repository.namespace().to_owned();
        repository.add_commit(&self.branch, parent, (&self.message, ""), &author, now, tree)
    }
}
