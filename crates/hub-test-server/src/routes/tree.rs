//! Routes that list files and folders.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Answer, RequestContext};
use crate::api_error::ApiError;
use crate::clock;
use crate::git;
use crate::http::{Response, parse_form};
use crate::repository::{Commit, Entry};

/// Maximum number of entries on a page with expanded entries. The Hub returns fewer entries per page if each
/// entry needs a lookup.
const EXPANDED_PAGE: usize = 50;

pub(super) fn list(context: &mut RequestContext<'_, '_>, id: &str, name: &str, folder: &str) -> Answer {
    let state = context.hub.state();
    let repository = state.visible(id, context.caller.as_ref())?;
    let commit = repository.resolve(name).ok_or_else(|| ApiError::revision(name))?.commit;
    let target = &context.head.target;
    let (recursive, expand) = (target.asks("recursive"), target.asks("expand"));
    let all = entries(commit, expand);
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let inside: Vec<&Value> = all
        .iter()
        .filter_map(|(path, value)| {
            let rest = path.strip_prefix(&prefix)?;
            (recursive || !rest.contains('/')).then_some(value)
        })
        .collect();
    if inside.is_empty() && !folder.is_empty() {
        return Err(ApiError::entry(folder, &commit.id));
    }
    let most = if expand { EXPANDED_PAGE } else { 1000 }.min(context.hub.settings.page);
    let limit = target.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(most).clamp(1, most);
    let start = target.query("cursor").and_then(|cursor| cursor.parse::<usize>().ok()).unwrap_or(0);
    let page: Vec<&Value> = inside.iter().skip(start).take(limit).copied().collect();
    let mut response = Response::json(200, &json!(page)).with("X-Repo-Commit", &commit.id);
    let next = start.saturating_add(page.len());
    if next < inside.len() && !page.is_empty() {
        let query = target.query_without("cursor");
        let and = if query.is_empty() { "" } else { "&" };
        let link =
            format!("<{}{}?{query}{and}cursor={next}>; rel=\"next\"", context.hub.endpoint, target.path());
        response = response.with("Link", link);
    }
    Ok(response)
}

pub(super) fn paths(context: &mut RequestContext<'_, '_>, id: &str, name: &str) -> Answer {
    let bytes = context.bytes()?;
    let is_json =
        context.head.header("Content-Type").is_some_and(|kind| kind.starts_with("application/json"));
    let (wanted, expand) = if is_json {
        let wish: Value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::new(400, format!("Invalid JSON: {error}")))?;
        let list = wish.get("paths").and_then(Value::as_array).cloned().unwrap_or_default();
        let list = list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
        (list, wish.get("expand") == Some(&Value::Bool(true)))
    } else {
        let form = parse_form(&String::from_utf8_lossy(&bytes));
        let expand = form.iter().any(|(key, value)| key == "expand" && value.eq_ignore_ascii_case("true"));
        (form.into_iter().filter(|(key, _)| key == "paths").map(|(_, value)| value).collect(), expand)
    };
    let state = context.hub.state();
    let repository = state.visible(id, context.caller.as_ref())?;
    let commit = repository.resolve(name).ok_or_else(|| ApiError::revision(name))?.commit;
    let all = entries(commit, expand);
    let found: Vec<&Value> = wanted.iter().filter_map(|path| all.get(path.trim_end_matches('/'))).collect();
    Ok(Response::json(200, &json!(found)))
}

/// Returns the entries of all files and folders of a commit, by path.
fn entries(commit: &Commit, expand: bool) -> BTreeMap<String, Value> {
    let ids = commit.tree.iter().map(|(path, entry)| (path.clone(), entry.oid.clone())).collect();
    let folders =
        git::folder_ids(&ids).into_iter().filter(|(path, _)| !path.is_empty()).map(|(path, oid)| {
            let value = json!({ "type": "directory", "oid": oid, "size": 0, "path": path });
            (path, value)
        });
    let files = commit.tree.iter().map(|(path, entry)| (path.clone(), file(path, entry)));
    let mut all: BTreeMap<String, Value> = folders.chain(files).collect();
    if expand {
        let last = json!({ "id": commit.id, "title": commit.title, "date": clock::date(commit.seconds) });
        for value in all.values_mut() {
            value["lastCommit"] = last.clone();
        }
    }
    all
}

fn file(path: &str, entry: &Entry) -> Value {
    let mut value = json!({ "type": "file", "oid": entry.oid, "size": entry.size, "path": path });
    if let Some(pointer) = entry.pointer_size {
        value["lfs"] = json!({ "oid": entry.sha256, "size": entry.size, "pointerSize": pointer });
    }
    value
}
