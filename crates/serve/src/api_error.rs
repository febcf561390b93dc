//! Errors of the API, in the formats of OpenAI, vLLM and Ollama.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use danlu_generate::GenerateError;
use danlu_loader::LoadError;
use danlu_model::ModelError;
use serde_json::{Value, json};

/// Header from which OpenAI's clients read whether to retry.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An error response: a request was rejected, or it failed.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    /// The field `type` of OpenAI's error format.
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after: Option<u64>,
    is_final: bool,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let (code, param) = (None, None);
        Self { status, kind, code, param, message: message.into(), retry_after: None, is_final: false }
    }

    /// Returns the error for an invalid request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// Returns the error for a field with an invalid value.
    pub fn field(name: &str, message: impl Into<String>) -> Self {
        Self::invalid(message).with_param(name)
    }

    /// Returns the error for a missing route, model or adapter.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    /// Returns the error for a `model` that names neither the base nor an adapter.
    pub fn unknown_model(name: &str, nearest: &[String]) -> Self {
        let near = match nearest {
            [] => String::new(),
            names => format!(" Nearest names: {}.", names.join(", ")),
        };
        let message = format!("The model `{}` does not exist.{near}", shortened(name));
        Self::not_found(message).with_param("model").with_code("model_not_found")
    }

    /// Returns the error for a route that does not accept this method.
    pub fn method(method: &str, path: &str) -> Self {
        let message = format!("cannot {method} `{}`: the route does not accept this method", shortened(path));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// Returns the error for a body above the size limit.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("cannot read the body: it is longer than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    /// Returns the error for a body that did not arrive in time.
    pub fn too_slow(limit: Duration) -> Self {
        let seconds = limit.as_secs_f64();
        let message = format!("cannot read the body: it did not arrive within {seconds} seconds");
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message).with_code("request_timeout")
    }

    /// Returns the error for a missing or wrong key.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message).with_code("invalid_api_key")
    }

    /// Returns the error for an action that this client may not perform.
    pub fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message).with_code(code)
    }

    /// Returns the error for a request that expects a state which another client has changed.
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self { is_final: true, ..Self::new(StatusCode::CONFLICT, "invalid_request_error", message) }
            .with_code(code)
    }

    /// Returns the error for a limit that is reached. `retry_after` is the number of seconds until a retry.
    pub fn too_many(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { retry_after: Some(retry_after.max(1)), ..error }.with_code(code)
    }

    /// Returns the error for a server that is shutting down or whose engine has ended.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        Self { retry_after: Some(2), ..error }.with_code("unavailable")
    }

    /// Returns the error for an internal failure. A retry would fail too.
    pub fn internal(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message);
        Self { is_final: true, ..error }
    }

    /// Returns the error for a prompt that is longer than the context, or too long together with its reply.
    /// `reply` is 0 if the prompt alone is too long.
    pub fn context_length(prompt: usize, reply: usize, context: usize) -> Self {
        let asked = match reply {
            0 => format!("the prompt has {prompt} tokens"),
            reply => format!(
                "the prompt has {prompt} tokens and the reply {reply}, together {}",
                prompt.saturating_add(reply)
            ),
        };
        Self::invalid(format!("cannot answer: {asked}, and the context has {context}"))
            .with_param("messages")
            .with_code("context_length_exceeded")
    }

    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub fn with_param(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }

    /// Returns the message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the body in OpenAI's format, in which `code` is a string or null.
    pub fn body(&self) -> Value {
        let Self { kind, code, param, message, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }

    /// Returns the response in vLLM's format, in which `code` is the HTTP status.
    pub fn into_vllm(self, kind: &str) -> Response {
        let (message, param) = (&self.message, &self.param);
        let code = self.status.as_u16();
        self.respond(json!({"error": {"message": message, "type": kind, "param": param, "code": code}}))
    }

    /// Returns the response in Ollama's format.
    pub fn into_ollama(self) -> Response {
        self.respond(json!({"error": self.message}))
    }

    fn respond(&self, body: Value) -> Response {
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status, [(header::CONTENT_TYPE, json)], body.to_string()).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.is_final {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(self.body())
    }
}

impl From<ModelError> for ApiError {
    /// Converts the error of a template or a tokenizer that rejects the messages.
    fn from(error: ModelError) -> Self {
        Self::invalid(with_hint(error.to_string(), error.hint()))
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let message = error.to_string();
        match error {
            GenerateError::Setting { .. }
            | GenerateError::EmptyPrompt
            | GenerateError::PromptTooLong { .. } => Self::invalid(message),
            error => Self::internal(with_hint(message, error.hint())),
        }
    }
}

impl From<LoadError> for ApiError {
    /// Converts the error of an adapter that cannot be loaded.
    fn from(error: LoadError) -> Self {
        let mut message = error.to_string();
        for detail in error.details() {
            message = format!("{message}; {detail}");
        }
        Self::invalid(with_hint(message, error.hint()))
    }
}

fn with_hint(message: String, hint: Option<String>) -> String {
    match hint {
        Some(hint) => format!("{message}\nhint: {hint}"),
        None => message,
    }
}

/// Shortens a text from a client for an error message.
pub(crate) fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 120;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
