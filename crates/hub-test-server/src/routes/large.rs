//! Uploads of large files: the batch request of git-lfs, the completion of a multipart upload, and the
//! verification.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Answer, RequestContext, download, internal};
use crate::api_error::ApiError;
use crate::http::Response;
use crate::hub::Hub;

fn lfs(response: Response) -> Response {
    response.with("Content-Type", "application/vnd.git-lfs+json; charset=utf-8")
}

pub(super) fn batch(context: &mut RequestContext<'_, '_>, id: &str) -> Answer {
    let wish = context.json()?;
    let uploads = wish.get("operation").and_then(Value::as_str) == Some("upload");
    if uploads {
        // A batch request for a pull request names no branch. Every user may upload files for a pull request,
        // also to the repository of another owner.
        let proposes = wish.get("ref").is_none();
        context.hub.state().writer(id, context.caller.clone(), proposes)?;
    } else {
        let state = context.hub.state();
        let repository = state.visible(id, context.caller.as_ref())?;
        state.passes_gate(repository, context.caller.as_ref())?;
    }
    let in_parts = match wish.get("transfers").and_then(Value::as_array) {
        Some(transfers) => transfers.iter().any(|name| name == "multipart"),
        None => false,
    };
    let Some(objects) = wish.get("objects").and_then(Value::as_array) else {
        return Err(ApiError::new(422, "No objects are named"));
    };
    let mut answers = Vec::new();
    let mut any_in_parts = false;
    for object in objects {
        let (oid, size) =
            (object.get("oid").and_then(Value::as_str), object.get("size").and_then(Value::as_u64));
        let (Some(oid), Some(size)) = (oid.filter(|oid| is_sha256(oid)), size) else {
            let error = json!({ "code": 422, "message": "oid is no SHA-256, or size no number" });
            answers
                .push(json!({ "oid": oid.unwrap_or_default(), "size": size.unwrap_or(0), "error": error }));
            continue;
        };
        let mut answer = json!({ "oid": oid, "size": size, "authenticated": true });
        match (context.hub.store.size(oid), uploads) {
            (Some(_), true) => {}
            (Some(_), false) => {
                answer["actions"] =
                    json!({ "download": { "href": download::address(context.hub, oid), "header": {} } });
            }
            (None, false) => answer["error"] = json!({ "code": 404, "message": "Object does not exist" }),
            (None, true) => {
                let parts = in_parts && size > context.hub.settings.multipart_over;
                any_in_parts |= parts;
                let upload =
                    if parts { upload_in_parts(context.hub, oid, size) } else { upload(context.hub, oid) };
                let verify = format!("{}/{id}.git/info/lfs/objects/verify", context.hub.endpoint);
                answer["actions"] = json!({ "upload": upload, "verify": { "href": verify, "header": {} } });
            }
        }
        answers.push(answer);
    }
    let transfer = if any_in_parts { "multipart" } else { "basic" };
    Ok(lfs(Response::json(200, &json!({ "transfer": transfer, "objects": answers }))))
}

fn upload(hub: &Hub, oid: &str) -> Value {
    let signature = hub.signature(&format!("put {oid}"));
    let href =
        format!("{}/uploads/{oid}?X-Amz-Expires=3600&X-Amz-Signature={signature}", hub.storage_endpoint);
    json!({ "href": href, "header": {} })
}

fn upload_in_parts(hub: &Hub, oid: &str, size: u64) -> Value {
    hub.state().uploads.entry(oid.to_owned()).or_insert((size, BTreeMap::new())).0 = size;
    let mut header = Map::new();
    header.insert("chunk_size".to_owned(), json!(hub.settings.part_size.to_string()));
    for number in 1..=size.div_ceil(hub.settings.part_size) {
        let signature = hub.signature(&format!("put {oid} {number}"));
        let part = format!(
            "{}/uploads/{oid}/{number}?partNumber={number}&X-Amz-Expires=3600&X-Amz-Signature={signature}",
            hub.storage_endpoint
        );
        header.insert(format!("{number:05}"), json!(part));
    }
    let signature = hub.signature(&format!("complete {oid}"));
    let href = format!("{}/api/complete_multipart?uploadId={oid}&signature={signature}", hub.endpoint);
    json!({ "href": href, "header": header })
}

/// Completes a multipart upload. The URL is signed, because clients send no token with this request.
pub(super) fn complete(context: &mut RequestContext<'_, '_>) -> Answer {
    let wish = context.json()?;
    let oid = context.head.target.query("uploadId").unwrap_or_default().to_owned();
    if context.head.target.query("signature") != Some(&context.hub.signature(&format!("complete {oid}"))) {
        return Err(ApiError::new(403, "Invalid signature"));
    }
    let named: BTreeMap<u64, String> = wish
        .get("parts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|part| Some((part.get("partNumber")?.as_u64()?, part.get("etag")?.as_str()?.to_owned())))
        .collect();
    let size = {
        let mut state = context.hub.state();
        let Some((size, parts)) = state.uploads.get(&oid).cloned() else {
            // A client may repeat the completion after the upload has finished.
            return match context.hub.store.size(&oid) {
                Some(_) => Ok(Response::json(200, &json!({ "success": true }))),
                None => Err(ApiError::new(404, "NoSuchUpload")),
            };
        };
        if wish.get("oid").and_then(Value::as_str) != Some(&oid) || named != parts {
            return Err(ApiError::new(400, "InvalidPart: these are not the parts that have come"));
        }
        let count = size.div_ceil(context.hub.settings.part_size);
        if parts.len() as u64 != count {
            return Err(ApiError::new(
                400,
                format!("InvalidPart: {} of {count} parts have come", parts.len()),
            ));
        }
        state.uploads.remove(&oid);
        size
    };
    let (found, length) = context.hub.store.complete(&oid, &oid).map_err(|error| internal(&error))?;
    if found != oid {
        let message = format!("The parts have SHA-256 {found} and {length} bytes, expected {oid} and {size}");
        return Err(ApiError::new(400, message));
    }
    Ok(Response::json(200, &json!({ "success": true })))
}

pub(super) fn verify(context: &mut RequestContext<'_, '_>, id: &str) -> Answer {
    let wish = context.json()?;
    context.hub.state().writer(id, context.caller.clone(), true)?;
    let oid = wish.get("oid").and_then(Value::as_str).unwrap_or_default();
    let size = wish.get("size").and_then(Value::as_u64);
    match context.hub.store.size(oid).filter(|_| is_sha256(oid)) {
        None => Err(ApiError::new(404, "Object does not exist")),
        found if found != size => Err(ApiError::new(422, "The object has another size")),
        Some(_) => Ok(lfs(Response::json(200, &json!({ "message": "The object is there" })))),
    }
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
