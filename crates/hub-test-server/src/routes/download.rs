//! Routes that download files.

use super::{Answer, RequestContext, internal};
use crate::api_error::ApiError;
use crate::http::{Content, Range, Response, encode, parse_range};
use crate::hub::Hub;
use crate::repository::{DATASETS, Entry};

/// Serves `/resolve/`. The response is the content of a small file, or a redirect to the storage for a large
/// file.
pub(super) fn resolve(context: &mut RequestContext<'_, '_>, id: &str, name: &str, path: &str) -> Answer {
    let (commit, entry) = find(context, id, name, path)?;
    if entry.pointer_size.is_some() {
        return Ok(described(Response::empty(302), context.hub, &commit, &entry)
            .with("Location", address(context.hub, &entry.sha256)));
    }
    if context.hub.settings.resolve_cache {
        let parts: Vec<String> = path.split('/').map(encode).collect();
        let kind = if id.starts_with(DATASETS) { "" } else { "models/" };
        let to =
            format!("/api/resolve-cache/{kind}{id}/{commit}/{}?etag=%22{}%22", parts.join("/"), entry.oid);
        return Ok(described(Response::empty(307), context.hub, &commit, &entry).with("Location", to));
    }
    small(context, &commit, &entry)
}

/// Serves a small file of a commit under `/api/resolve-cache/`.
pub(super) fn cached(context: &mut RequestContext<'_, '_>, id: &str, commit: &str, path: &str) -> Answer {
    let (commit, entry) = find(context, id, commit, path)?;
    small(context, &commit, &entry)
}

fn find(
    context: &RequestContext<'_, '_>,
    id: &str,
    name: &str,
    path: &str,
) -> Result<(String, Entry), ApiError> {
    let state = context.hub.state();
    let repository = state.visible(id, context.caller.as_ref())?;
    state.passes_gate(repository, context.caller.as_ref())?;
    let commit = repository.resolve(name).ok_or_else(|| ApiError::revision(name))?.commit;
    let entry = commit.tree.get(path).ok_or_else(|| ApiError::entry(path, &commit.id))?;
    Ok((commit.id.clone(), entry.clone()))
}

fn small(context: &RequestContext<'_, '_>, commit: &str, entry: &Entry) -> Answer {
    let response = content(context, &entry.sha256, entry.size)?;
    Ok(described(response, context.hub, commit, entry)
        .with("ETag", format!("\"{}\"", entry.oid))
        .with("Content-Type", "text/plain; charset=utf-8"))
}

fn described(response: Response, hub: &Hub, commit: &str, entry: &Entry) -> Response {
    response
        .with("X-Repo-Commit", commit)
        .with("X-Linked-Size", entry.size.to_string())
        .with("X-Linked-ETag", format!("\"{}\"", entry.tag()))
        .with("Accept-Ranges", "bytes")
        .with("Access-Control-Allow-Origin", hub.endpoint.as_str())
}

/// Returns the URL of a large file on the storage host.
pub(super) fn address(hub: &Hub, sha256: &str) -> String {
    let signature = hub.signature(&format!("get {sha256}"));
    format!("{}/objects/{sha256}?X-Amz-Expires=3600&X-Amz-Signature={signature}", hub.storage_endpoint)
}

/// Returns the content with the hash `sha256`, or its requested range.
pub(super) fn content(context: &RequestContext<'_, '_>, sha256: &str, size: u64) -> Answer {
    let file = context.hub.store.open(sha256).map_err(|error| internal(&error))?;
    let whole = |status, start, length| Response {
        status,
        headers: vec![("Accept-Ranges".to_owned(), "bytes".to_owned())],
        content: Content::File { file, start, length },
    };
    Ok(match parse_range(context.head.header("Range"), size) {
        Range::Whole => whole(200, 0, size),
        Range::Part { start, length } => {
            let range = format!("bytes {start}-{}/{size}", start + length - 1);
            whole(206, start, length).with("Content-Range", range)
        }
        Range::Unsatisfiable => {
            let error = ApiError::new(416, "The requested range cannot be satisfied");
            return Err(ApiError(error.0.with("Content-Range", format!("bytes */{size}"))));
        }
    })
}
