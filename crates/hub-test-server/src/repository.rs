//! A repository: commits, their trees, and refs.

use std::collections::BTreeMap;

use crate::git;

/// A file in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Git's id of the content. For a large file, this is the id of its pointer file.
    pub oid: String,
    /// SHA-256 of the content, which is its key in the store.
    pub sha256: String,
    pub size: u64,
    /// Size of the pointer file, if the file is large.
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

    /// Returns the checksum that a client compares: the SHA-256 of a large file, and git's id of any other
    /// file.
    pub fn tag(&self) -> &str {
        if self.pointer_size.is_some() { &self.sha256 } else { &self.oid }
    }
}

/// Files by path.
pub(crate) type Tree = BTreeMap<String, Entry>;

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

/// Whether users need permission to read the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// No permission is needed.
    #[default]
    Open,
    /// A user gets access by accepting the terms.
    Automatic,
    /// The owner must grant access.
    Manual,
}

/// Prefix of the id of a data set.
pub(crate) const DATASETS: &str = "datasets/";

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

/// A revision name resolved to a commit.
pub(crate) struct Revision<'a> {
    pub commit: &'a Commit,
    /// The ref that a new commit moves, or `None` for a tag or a commit id.
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

    /// Returns the owner, which is a user or an organisation. Returns an empty string if there is no owner.
    pub fn namespace(&self) -> &str {
        git::split(self.public_id()).0
    }

    /// Returns the id in responses, which does not contain the prefix of a data set.
    pub fn public_id(&self) -> &str {
        self.id.strip_prefix(DATASETS).unwrap_or(&self.id)
    }

    /// Resolves a branch, a tag, a full ref such as `refs/pr/1`, or a full commit id. As on the Hub, an
    /// abbreviated commit id is not found.
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

    /// Returns the commit `id` and its ancestors, with the newest first.
    pub fn history(&self, id: &str) -> Vec<&Commit> {
        let mut history = Vec::new();
        let mut next = self.commit(id);
        while let Some(commit) = next {
            history.push(commit);
            next = commit.parents.first().and_then(|parent| self.commit(parent));
        }
        history
    }

    /// Returns all commits, with the oldest first. Includes commits that no ref leads to.
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

    /// Adds a commit of `tree` with the parent `parent`. Sets the ref `name` to the commit, and returns its
    /// id.
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
        // In git, two equal commits in the same second have the same id. The new commit gets a later time, so
        // that its id is unique.
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
