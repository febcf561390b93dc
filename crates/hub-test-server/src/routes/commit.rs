//! Routes for commits.

use serde_json::json;

use super::{Answer, RequestContext, internal};
use crate::api_error::ApiError;
use crate::change::{Change, parse_commit};
use crate::clock;
use crate::http::Response;
use crate::repository::{Entry, Tree};

pub(super) fn commit(context: &mut RequestContext<'_, '_>, id: &str, name: &str) -> Answer {
    let proposes = context.head.target.asks("create_pr");
    let who = context.hub.state().writer(id, context.caller.clone(), proposes)?;
    let bytes = context.bytes()?;
    let (header, changes) = parse_commit(&bytes).map_err(|message| ApiError::new(400, message))?;
    // Content is stored before the lock is taken. If the commit fails, nothing refers to the content.
    let mut ready = Vec::new();
    for change in changes {
        ready.push(match change {
            Change::File { path, content } => {
                let sha256 = context.hub.store.put(&content).map_err(|error| internal(&error))?;
                Ready::Put(path, Entry::regular(&content, sha256))
            }
            Change::Large { path, sha256, size } => match context.hub.store.size(&sha256) {
                Some(found) if size.is_none_or(|size| size == found) => {
                    Ready::Put(path, Entry::large(sha256, found))
                }
                _ => {
                    let message = "Your push was rejected because an LFS pointer pointed to a file that does not \
                                   exist. Offending file:";
                    return Err(ApiError::new(400, format!("{message} {path}")));
                }
            },
            Change::DeleteFile(path) => Ready::DeleteFile(path),
            Change::DeleteFolder(path) => Ready::DeleteFolder(path),
        });
    }

    let mut state = context.hub.state();
    state.writer(id, context.caller.clone(), proposes)?;
    let Some(repository) = state.repositories.get_mut(id) else { return Err(ApiError::repository(true)) };
    let revision = repository.resolve(name).ok_or_else(|| ApiError::revision(name))?;
    let parent = revision.commit.id.clone();
    let moves = revision.moves.clone();
    let tree = apply(revision.commit.tree.clone(), ready, &parent)?;
    if header.parent.is_some_and(|expected| expected != parent) {
        return Err(ApiError::new(412, "A commit has happened since. Please refresh and try again."));
    }
    let number = proposes.then(|| repository.discuss(&header.summary));
    let target = match number {
        Some(number) => format!("refs/pr/{number}"),
        None => moves.ok_or_else(|| ApiError::new(400, format!("\"{name}\" is no branch")))?,
    };
    let words = (header.summary.as_str(), header.description.as_str());
    let oid = repository.add_commit(&target, Some(parent), words, &who.name, clock::now(), tree);
    let endpoint = &context.hub.endpoint;
    let mut answer = json!({
        "success": true,
        "commitOid": oid,
        "commitUrl": format!("{endpoint}/{id}/commit/{oid}"),
        "hookOutput": "",
    });
    if let Some(number) = number {
        answer["pullRequestUrl"] = json!(format!("{endpoint}/{id}/discussions/{number}"));
    }
    Ok(Response::json(200, &answer))
}

enum Ready {
    Put(String, Entry),
    DeleteFile(String),
    DeleteFolder(String),
}

fn apply(mut tree: Tree, changes: Vec<Ready>, parent: &str) -> Result<Tree, ApiError> {
    let missing = |path: &str| {
        let error = ApiError::new(404, format!("A file with this name doesn't exist: {path}"));
        ApiError(error.code("EntryNotFound").0.with("X-Repo-Commit", parent))
    };
    for change in changes {
        match change {
            Ready::Put(path, entry) => {
                tree.insert(path, entry);
            }
            Ready::DeleteFile(path) => {
                tree.remove(&path).ok_or_else(|| missing(&path))?;
            }
            Ready::DeleteFolder(path) => {
                let prefix = format!("{}/", path.trim_end_matches('/'));
                let before = tree.len();
                tree.retain(|path, _| !path.starts_with(&prefix));
                if tree.len() == before {
                    return Err(missing(&path));
                }
            }
        }
    }
    // A path cannot be a file and a folder at the same time.
    for path in tree.keys() {
        let folder = format!("{path}/");
        if tree.range(folder.clone()..).next().is_some_and(|(next, _)| next.starts_with(&folder)) {
            return Err(ApiError::new(400, format!("\"{path}\" cannot be both a file and a folder")));
        }
    }
    Ok(tree)
}
