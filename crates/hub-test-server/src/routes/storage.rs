//! Routes of the storage host, which uses signed URLs instead of tokens.

use std::io::Read;

use serde_json::json;

use super::{Answer, RequestContext, download, internal};
use crate::api_error::ApiError;
use crate::http::Response;

pub(super) fn route(context: &mut RequestContext<'_, '_>, segments: &[&str]) -> Answer {
    if context.head.header("Authorization").is_some() {
        return Err(ApiError::new(400, "Only one auth mechanism allowed"));
    }
    match (context.head.method.as_str(), segments) {
        ("GET" | "HEAD", ["objects", sha256]) => {
            signed(context, &format!("get {sha256}"))?;
            let size = context.hub.store.size(sha256).ok_or_else(|| ApiError::new(404, "NoSuchKey"))?;
            Ok(download::content(context, sha256, size)?
                .with("ETag", format!("\"{sha256}\""))
                .with("Content-Type", "application/octet-stream"))
        }
        ("PUT", ["uploads", sha256]) => {
            signed(context, &format!("put {sha256}"))?;
            let (found, _) =
                context.hub.store.receive(context.body, Some(sha256)).map_err(|error| internal(&error))?;
            if found != *sha256 {
                let message =
                    format!("BadDigest: the content has SHA-256 {found}, its address says {sha256}");
                return Err(ApiError::new(400, message));
            }
            Ok(Response::empty(200).with("ETag", format!("\"{found}\"")))
        }
        ("PUT", ["uploads", sha256, number]) => {
            signed(context, &format!("put {sha256} {number}"))?;
            let Ok(number @ 1..=10_000) = number.parse::<u64>() else {
                return Err(ApiError::new(400, "InvalidPart"));
            };
            let part_size = context.hub.settings.part_size;
            let start = (number - 1) * part_size;
            let Some(whole) = context.hub.state().uploads.get(*sha256).map(|upload| upload.0) else {
                return Err(ApiError::new(404, "NoSuchUpload"));
            };
            // Only the bytes of this part are written, because the next part may already exist.
            let expected = whole.saturating_sub(start).min(part_size);
            let mut part = context.body.take(expected);
            let (tag, size) =
                context.hub.store.receive_part(sha256, start, &mut part).map_err(|error| internal(&error))?;
            let more = context.body.read(&mut [0]).map_err(|error| internal(&error))?;
            if size != expected || more > 0 {
                let message = format!("EntityTooSmall: part {number} is to have {expected} bytes");
                return Err(ApiError::new(400, message));
            }
            let tag = format!("\"{}\"", &tag[..32]);
            if let Some((_, parts)) = context.hub.state().uploads.get_mut(*sha256) {
                parts.insert(number, tag.clone());
            }
            Ok(Response::empty(200).with("ETag", tag))
        }
        _ => Ok(Response::json(404, &json!({ "error": "NoSuchKey" }))),
    }
}

fn signed(context: &RequestContext<'_, '_>, purpose: &str) -> Result<(), ApiError> {
    if context.head.target.query("X-Amz-Signature") == Some(&context.hub.signature(purpose)) {
        return Ok(());
    }
    Err(ApiError::new(403, "SignatureDoesNotMatch"))
}
