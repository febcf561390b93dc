//! A repository: commits, their trees, and refs.

use std::collections::BTreeMap;

use crate::git;

/// A file of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Git's id of the content. For a large file, the id of its pointer.
    pub oid: String,
    /// Key of the content in the store.
    pub sha256: String,
    pub size: u64,
    /// Size of the pointer, for a large file.
    pub pointer_size: Option<u64>,
}

impl Entry {
    pub fn regular(content: &[u8], sha256: String) -> Self {
        Self { oid: git::blob_id(content), sha256, size: content.len() as u64, pointer_size: None }
    }

    pub fn large(sha256: String, size: u64) -> Self {
        let pointer = git::pointer(&sha256, size);
        let oid = git::blob_id(pointer.as_bytes());
        Self { oid, sha256, size, pointer_size: Some(pointer.len() as u64) }
    }

    /// Returns the checksum that a client compares: SHA-256 for a large file, git's id otherwise.
    pub fn tag(&self) -> &str {
        if self.pointer_size.is_some() { &self.sha256 } else { &self.oid }
    }
}

/// Files by path.
pub(crate) type Tree = BTreeMap<String, Entry>;

/// A commit.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub id: String,
    pub parents: Vec<String>,
    pub title: String,
    pub description: String,
    pub author: String,
    pub seconds: u64,
    pub tree: Tree,
}

/// Whether reading the files needs permission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// No permission is needed.
    #[default]
    Open,
    /// Accepting the terms grants access.
    Automatic,
    /// The owner grants access.
    Manual,
}

/// A model repository.
pub(crate) struct Repository {
    pub id: String,
    pub private: bool,
    pub gate: Gate,
    /// Users with access to a gated repository.
    pub granted: Vec<String>,
    pub created: u64,
    commits: Vec<Commit>,
    /// Commit ids by ref, such as `refs/heads/main`, `refs/tags/v1` or `refs/pr/1`.
    refs: BTreeMap<String, String>,
    /// Titles of discussions. A discussion with a ref is a pull request.
    pub discussions: Vec<String>,
}

/// A resolved revision.
pub(crate) struct Revision<'a> {
    pub commit: &'a Commit,
    /// The ref that a new commit may move, if any.
    pub moves: Option<String>,
}

impl Repository {
    pub fn new(id: &str, seconds: u64) -> Self {
        Self {
            id: id.to_owned(),
            private: false,
            gate: Gate::Open,
            granted: Vec::new(),
            created: seconds,
            commits: Vec::new(),
            refs: BTreeMap::new(),
            discussions: Vec::new(),
        }
    }

    /// Returns the owner, a user or an organisation; empty if there is none.
    pub fn namespace(&self) -> &str {
        git::split(&self.id).0
    }

    /// Resolves a branch, a tag, `refs/...` or a full commit id. As on the Hub, abbreviated ids fail.
    pub fn resolve(&self, name: &str) -> Option<Revision<'_>> {
        let branch = format!("refs/heads/{name}");
        let tag = format!("refs/tags/{name}");
        let full = if name.starts_with("refs/") { name.to_owned() } else { branch };
        if let Some(id) = self.refs.get(&full) {
            let moves = Some(full).filter(|full| !full.starts_with("refs/tags/"));
            return self.commit(id).map(|commit| Revision { commit, moves });
        }
        let id = self.refs.get(&tag).map_or(name, String::as_str);
        self.commit(id).map(|commit| Revision { commit, moves: None })
    }

    pub fn commit(&self, id: &str) -> Option<&Commit> {
        self.commits.iter().find(|commit| commit.id == id)
    }

    /// Returns the commit `id` and its ancestors, newest first.
    pub fn history(&self, id: &str) -> Vec<&Commit> {
        let mut history = Vec::new();
        let mut next = self.commit(id);
        while let Some(commit) = next {
            history.push(commit);
            next = commit.parents.first().and_then(|parent| self.commit(parent));
        }
        history
    }

    /// Returns all commits, oldest first, including those without a ref.
    pub fn all_commits(&self) -> &[Commit] {
        &self.commits
    }

    pub fn refs(&self) -> &BTreeMap<String, String> {
        &self.refs
    }

    /// Sets the ref `name` to `id`.
    pub fn point(&mut self, name: &str, id: &str) {
        self.refs.insert(name.to_owned(), id.to_owned());
    }

    /// Adds a discussion and returns its number.
    pub fn discuss(&mut self, title: &str) -> usize {
        self.discussions.push(title.to_owned());
        self.discussions.len()
    }

    /// Adds a commit of `tree` on `parent`, sets the ref `name` to it, and returns its id.
    pub fn add_commit(
        &mut self,
        name: &str,
        parent: Option<String>,
        (title, description): (&str, &str),
        author: &str,
        seconds: u64,
        tree: Tree,
    ) -> String {
        let files = tree.iter().map(|(path, entry)| (path.clone(), entry.oid.clone())).collect();
        let root = git::folder_ids(&files).remove("").unwrap_or_default();
        let parents: Vec<String> = parent.into_iter().collect();
        let message = format!("{title}\n\n{description}");
        // git gives equal commits of one second the same id. A later time makes the id unique.
        let mut stamp = seconds;
        let mut id = git::commit_id(&root, &parents, author, stamp, &message);
        while self.commit(&id).is_some() {
            stamp += 1;
            id = git::commit_id(&root, &parents, author, stamp, &message);
        }
        self.commits.push(Commit {
            id: id.clone(),
            parents,
            title: title.to_owned(),
            description: description.to_owned(),
            author: author.to_owned(),
            seconds: stamp,
            tree,
        });
        self.point(name, &id);
        id
    }
}
