//! Responses of the server.

use std::fs::File;

use serde_json::Value;

pub(crate) enum Content {
    /// Bytes in memory.
    Bytes(Vec<u8>),
    /// A part of a file.
    File { file: File, start: u64, length: u64 },
}

/// Status, headers and content of a response. `Content-Length` and `Connection` are added when it is sent.
pub(crate) struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub content: Content,
}

impl Response {
    /// Creates a response without content.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), content: Content::Bytes(Vec::new()) }
    }

    /// Creates a response with `value` as JSON.
    pub fn json(status: u16, value: &Value) -> Self {
        let content = Content::Bytes(value.to_string().into_bytes());
        Self { status, headers: Vec::new(), content }.with("Content-Type", "application/json; charset=utf-8")
    }

    /// Sets the header `name`.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Returns the size of the content.
    pub fn length(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File { length, .. } => *length,
        }
    }
}

/// Returns the reason phrase of a status.
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        416 => "Range Not Satisfiable",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}
