//! Routes with information about repositories, refs and commits.

use serde_json::{Value, json};

use super::{Answer, RequestContext};
use crate::api_error::ApiError;
use crate::clock;
use crate::http::Response;
use crate::repository::{Entry, Gate};

pub(super) fn model(context: &mut RequestContext<'_, '_>, id: &str, name: &str) -> Answer {
    let state = context.hub.state();
    let repository = state.visible(id, context.caller.as_ref())?;
    let commit = repository.resolve(name).ok_or_else(|| ApiError::revision(name))?.commit;
    let blobs = context.head.target.asks("blobs");
    let siblings: Vec<Value> = commit.tree.iter().map(|(path, entry)| sibling(path, entry, blobs)).collect();
    Ok(Response::json(
        200,
        &json!({
            "_id": format!("{:024x}", repository.created),
            "id": repository.public_id(),
            "modelId": repository.public_id(),
            "author": repository.namespace(),
            "sha": commit.id,
            "lastModified": clock::date(commit.seconds),
            "createdAt": clock::date(repository.created),
            "private": repository.private,
            "gated": match repository.gate {
                Gate::Open => json!(false),
                Gate::Automatic => json!("auto"),
                Gate::Manual => json!("manual"),
            },
            "disabled": false,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            "spaces": [],
        }),
    ))
}

fn sibling(path: &str, entry: &Entry, blobs: bool) -> Value {
    let mut value = json!({ "rfilename": path });
    if blobs {
        value["size"] = json!(entry.size);
        value["blobId"] = json!(entry.oid);
        if let Some(pointer) = entry.pointer_size {
            value["lfs"] = json!({ "sha256": entry.sha256, "size": entry.size, "pointerSize": pointer });
        }
    }
    value
}

pub(super) fn refs(context: &mut RequestContext<'_, '_>, id: &str) -> Answer {
    let state = context.hub.state();
    let repository = state.visible(id, context.caller.as_ref())?;
    let under = |prefix: &str| -> Vec<Value> {
        let refs = repository.refs().iter().filter_map(|(full, target)| {
            let name = full.strip_prefix(prefix)?;
            Some(json!({ "name": name, "ref": full, "targetCommit": target }))
        });
        refs.collect()
    };
    let mut value = json!({ "branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": under("refs/convert/") });
    if context.head.target.asks("include_prs") {
        value["pullRequests"] = json!(under("refs/pr/"));
    }
    Ok(Response::json(200, &value))
}

pub(super) fn commits(context: &mut RequestContext<'_, '_>, id: &str, name: &str) -> Answer {
    let state = context.hub.state();
    let repository = state.visible(id, context.caller.as_ref())?;
    let commit = repository.resolve(name).ok_or_else(|| ApiError::revision(name))?.commit;
    let history = repository.history(&commit.id);
    let list: Vec<Value> = history
        .iter()
        .map(|commit| {
            json!({
                "id": commit.id,
                "title": commit.title,
                "message": commit.description,
                "authors": [{ "user": commit.author, "avatar": "" }],
                "date": clock::date(commit.seconds),
            })
        })
        .collect();
    Ok(Response::json(200, &json!(list)).with("X-Total-Count", list.len().to_string()))
}

/// Adds a branch or a tag at the commit `startingPoint`.
pub(super) fn add_ref(context: &mut RequestContext<'_, '_>, id: &str, folder: &str, name: &str) -> Answer {
    let wish = context.json()?;
    let start = wish.get("startingPoint").and_then(Value::as_str).unwrap_or("main").to_owned();
    point(context, id, &format!("{folder}/{name}"), &start)
}

pub(super) fn add_tag(context: &mut RequestContext<'_, '_>, id: &str, revision: &str) -> Answer {
    let wish = context.json()?;
    let Some(tag) = wish.get("tag").and_then(Value::as_str) else {
        return Err(ApiError::new(400, "No tag is named"));
    };
    point(context, id, &format!("refs/tags/{tag}"), revision)
}

fn point(context: &mut RequestContext<'_, '_>, id: &str, full: &str, start: &str) -> Answer {
    let mut state = context.hub.state();
    state.writer(id, context.caller.clone(), false)?;
    let Some(repository) = state.repositories.get_mut(id) else { return Err(ApiError::repository(true)) };
    if repository.refs().contains_key(full) {
        return Err(ApiError::new(409, "Reference already exists"));
    }
    let target = repository.resolve(start).ok_or_else(|| ApiError::revision(start))?.commit.id.clone();
    repository.point(full, &target);
    Ok(Response::json(200, &json!({ "success": true })))
}
