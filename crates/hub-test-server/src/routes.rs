//! Dispatches requests by path.

mod account;
mod commit;
mod discussion;
mod download;
mod info;
mod large;
mod storage;
mod tree;
mod upload;

use std::io;

use serde_json::Value;

use crate::access::Account;
use crate::api_error::ApiError;
use crate::http::{Body, Head, Response};
use crate::hub::Hub;
use crate::recorded_request::Host;
use crate::repository::DATASETS;

/// Maximum size in bytes of a body that is read into memory.
const MAX_BODY_BYTES: u64 = 256 << 20;

/// Path segments that may follow a repository's name.
const VERBS: [&str; 12] = [
    "branch",
    "commit",
    "commits",
    "discussions",
    "paths-info",
    "preupload",
    "refs",
    "resolve",
    "revision",
    "settings",
    "tag",
    "tree",
];

/// A request and the state of the server.
pub(crate) struct RequestContext<'a, 'b> {
    pub hub: &'a Hub,
    pub head: &'a Head,
    pub body: &'a mut Body<'b>,
    pub caller: Option<Account>,
}

pub(crate) type Answer = Result<Response, ApiError>;

impl RequestContext<'_, '_> {
    /// Reads the whole body.
    ///
    /// # Errors
    /// Status 413 if the body is too long.
    pub fn bytes(&mut self) -> Result<Vec<u8>, ApiError> {
        self.body.read_whole(MAX_BODY_BYTES).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => ApiError::new(413, "Request Entity Too Large"),
            _ => ApiError::new(400, error.to_string()),
        })
    }

    /// Parses the body as JSON.
    ///
    /// # Errors
    /// Status 400 if the body is not JSON.
    pub fn json(&mut self) -> Result<Value, ApiError> {
        serde_json::from_slice(&self.bytes()?)
            .map_err(|error| ApiError::new(400, format!("Invalid JSON: {error}")))
    }
}

/// Returns an error with status 500.
pub(crate) fn internal(error: &io::Error) -> ApiError {
    ApiError::new(500, format!("Internal Error: {error}"))
}

/// Serves a request and returns the response.
pub(crate) fn answer(hub: &Hub, host: Host, head: &Head, body: &mut Body<'_>) -> Response {
    let segments: Vec<&str> = head.target.segments.iter().map(String::as_str).collect();
    let result = match host {
        Host::Storage => storage::route(&mut RequestContext { hub, head, body, caller: None }, &segments),
        Host::Hub => {
            let caller = hub.state().caller(head);
            caller.and_then(|caller| route(&mut RequestContext { hub, head, body, caller }, &segments))
        }
    };
    result.unwrap_or_else(|error| error.0)
}

fn route(context: &mut RequestContext<'_, '_>, segments: &[&str]) -> Answer {
    let method = context.head.method.as_str();
    match (method, segments) {
        ("GET", ["api", "whoami-v2"]) => account::whoami(context),
        ("POST", ["api", "repos", "create"]) => account::create(context),
        ("POST", ["api", "validate-yaml"]) => account::validate_yaml(context),
        ("POST", ["api", "complete_multipart"]) => large::complete(context),
        ("GET" | "HEAD", ["api", "resolve-cache", kind @ ("models" | "datasets"), rest @ ..]) => {
            let (id, rest) = split_id(rest, &[]);
            let id = if *kind == "datasets" { dataset_id(&id) } else { id };
            match rest {
                [revision, path @ ..] => download::cached(context, &id, revision, &path.join("/")),
                [] => Err(nothing()),
            }
        }
        (_, ["api", "models", rest @ ..]) => {
            let (id, rest) = split_id(rest, &VERBS);
            model(context, method, &id, rest)
        }
        (_, ["api", "datasets", rest @ ..]) => {
            let (id, rest) = split_id(rest, &VERBS);
            model(context, method, &dataset_id(&id), rest)
        }
        ("GET" | "HEAD", ["datasets", rest @ ..]) => match split_id(rest, &VERBS) {
            (id, ["resolve", revision, path @ ..]) => {
                download::resolve(context, &dataset_id(&id), revision, &path.join("/"))
            }
            _ => Err(nothing()),
        },
        ("POST", [.., "info", "lfs", "objects", verb]) => {
            let name = &segments[..segments.len() - 4];
            let Some(id) = name.join("/").strip_suffix(".git").map(str::to_owned) else {
                return Err(nothing());
            };
            match *verb {
                "batch" => large::batch(context, &id),
                "verify" => large::verify(context, &id),
                _ => Err(nothing()),
            }
        }
        ("GET" | "HEAD", rest) => match split_id(rest, &VERBS) {
            // Browsers do not escape the slashes in a ref such as `refs/pr/1`, so the ref has three segments.
            (id, ["resolve", "refs", kind, name, path @ ..]) => {
                download::resolve(context, &id, &format!("refs/{kind}/{name}"), &path.join("/"))
            }
            (id, ["resolve", revision, path @ ..]) => {
                download::resolve(context, &id, revision, &path.join("/"))
            }
            _ => Err(nothing()),
        },
        _ => Err(nothing()),
    }
}

fn model(context: &mut RequestContext<'_, '_>, method: &str, id: &str, rest: &[&str]) -> Answer {
    match (method, rest) {
        ("GET" | "HEAD", []) => info::model(context, id, "main"),
        ("GET" | "HEAD", ["revision", revision]) => info::model(context, id, revision),
        ("GET", ["refs"]) => info::refs(context, id),
        ("GET", ["commits", revision]) => info::commits(context, id, revision),
        ("GET", ["tree", revision, path @ ..]) => tree::list(context, id, revision, &path.join("/")),
        ("POST", ["paths-info", revision]) => tree::paths(context, id, revision),
        ("POST", ["preupload", revision]) => upload::preupload(context, id, revision),
        ("POST", ["commit", revision]) => commit::commit(context, id, revision),
        ("POST", ["branch", name]) => info::add_ref(context, id, "refs/heads", name),
        ("POST", ["tag", revision]) => info::add_tag(context, id, revision),
        ("PUT", ["settings"]) => account::settings(context, id),
        ("POST", ["discussions"]) => discussion::open(context, id),
        ("GET", ["discussions", number]) => discussion::details(context, id, number),
        _ => Err(nothing()),
    }
}

/// Returns the id of a data set in the state of the server.
fn dataset_id(id: &str) -> String {
    format!("{DATASETS}{id}")
}

fn nothing() -> ApiError {
    ApiError::new(404, "Sorry, we can't find the page you are looking for.")
}

/// Splits a path into the name of the repository and the remaining segments. The name may have a namespace.
fn split_id<'a>(segments: &'a [&'a str], verbs: &[&str]) -> (String, &'a [&'a str]) {
    match segments {
        [name] => ((*name).to_owned(), &[]),
        [name, verb, ..] if verbs.contains(verb) => ((*name).to_owned(), &segments[1..]),
        [namespace, name, rest @ ..] => (format!("{namespace}/{name}"), rest),
        [] => (String::new(), &[]),
    }
}
