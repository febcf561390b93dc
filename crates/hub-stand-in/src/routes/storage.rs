//! The storage host: signed addresses instead of tokens.

use std::io::Read;

use serde_json::json;

use super::{Answer, Call, download, internal};
use crate::http::Response;
use crate::refusal::Refusal;

pub(super) fn route(call: &mut Call<'_, '_>, segments: &[&str]) -> Answer {
    if call.head.header("Authorization").is_some() {
        return Err(Refusal::new(400, "Only one auth mechanism allowed"));
    }
    match (call.head.method.as_str(), segments) {
        ("GET" | "HEAD", ["objects", sha256]) => {
            signed(call, &format!("get {sha256}"))?;
            let size = call.hub.store.size(sha256).ok_or_else(|| Refusal::new(404, "NoSuchKey"))?;
            Ok(download::content(call, sha256, size)?
                .with("ETag", format!("\"{sha256}\""))
                .with("Content-Type", "application/octet-stream"))
        }
        ("PUT", ["uploads", sha256]) => {
            signed(call, &format!("put {sha256}"))?;
            let (found, _) =
                call.hub.store.receive(call.body, Some(sha256)).map_err(|error| internal(&error))?;
            if found != *sha256 {
                let message =
                    format!("BadDigest: the content has SHA-256 {found}, its address says {sha256}");
                return Err(Refusal::new(400, message));
            }
            Ok(Response::empty(200).with("ETag", format!("\"{found}\"")))
        }
        ("PUT", ["uploads", sha256, number]) => {
            signed(call, &format!("put {sha256} {number}"))?;
            let Ok(number @ 1..=10_000) = number.parse::<u64>() else {
                return Err(Refusal::new(400, "InvalidPart"));
            };
            let part_size = call.hub.settings.part_size;
            let start = (number - 1) * part_size;
            let Some(whole) = call.hub.state().uploads.get(*sha256).map(|upload| upload.0) else {
                return Err(Refusal::new(404, "NoSuchUpload"));
            };
            // No more than its own bytes are written: the next part may be there already.
            let expected = whole.saturating_sub(start).min(part_size);
            let mut part = call.body.take(expected);
            let (tag, size) =
                call.hub.store.receive_part(sha256, start, &mut part).map_err(|error| internal(&error))?;
            let more = call.body.read(&mut [0]).map_err(|error| internal(&error))?;
            if size != expected || more > 0 {
                let message = format!("EntityTooSmall: part {number} is to have {expected} bytes");
                return Err(Refusal::new(400, message));
            }
            let tag = format!("\"{}\"", &tag[..32]);
            if let Some((_, parts)) = call.hub.state().uploads.get_mut(*sha256) {
                parts.insert(number, tag.clone());
            }
            Ok(Response::empty(200).with("ETag", tag))
        }
        _ => Ok(Response::json(404, &json!({ "error": "NoSuchKey" }))),
    }
}

fn signed(call: &Call<'_, '_>, purpose: &str) -> Result<(), Refusal> {
    if call.head.target.query("X-Amz-Signature") == Some(&call.hub.signature(purpose)) {
        return Ok(());
    }
    Err(Refusal::new(403, "SignatureDoesNotMatch"))
}
