//! Serves the preupload request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Answer, RequestContext};
use crate::api_error::ApiError;
use crate::http::Response;
use crate::settings::is_ignored;

pub(super) fn preupload(context: &mut RequestContext<'_, '_>, id: &str, name: &str) -> Answer {
    let wish = context.json()?;
    let Some(files) = wish.get("files").and_then(Value::as_array) else {
        return Err(ApiError::new(400, "No files are named"));
    };
    let state = context.hub.state();
    state.writer(id, context.caller.clone(), context.head.target.asks("create_pr"))?;
    let repository = state.visible(id, context.caller.as_ref())?;
    let commit = repository.resolve(name).ok_or_else(|| ApiError::revision(name))?.commit;
    let stored = commit.tree.get(".gitignore").and_then(|entry| context.hub.store.open(&entry.sha256).ok());
    let stored = stored.and_then(|file| std::io::read_to_string(file).ok());
    let lines =
        wish.get("gitIgnore").and_then(Value::as_str).map(str::to_owned).or(stored).unwrap_or_default();
    let mut answers = Vec::new();
    for file in files {
        let path = file.get("path").and_then(Value::as_str);
        let size = file.get("size").and_then(Value::as_u64);
        let sample = file.get("sample").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
        let (Some(path), Some(size), Some(sample)) = (path, size, sample) else {
            return Err(ApiError::new(400, "A file has to have a path, a size and a sample in base64"));
        };
        let large = context.hub.settings.is_large(path, size, &sample);
        let mut answer = json!({
            "path": path,
            "uploadMode": if large { "lfs" } else { "regular" },
            "shouldIgnore": is_ignored(&lines, path),
        });
        if let Some(entry) = commit.tree.get(path) {
            answer["oid"] = json!(entry.tag());
        }
        answers.push(answer);
    }
    Ok(Response::json(200, &json!({ "files": answers, "commitOid": commit.id })))
}
