//! All routes, and the checks before and after every request.

mod adapters;
mod chat;
mod completions;
mod models;
mod ollama;
mod operation;
mod tokens;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value};

use crate::api_error::ApiError;
use crate::app::{App, no_route};
use crate::json_fields::parse_object;
use crate::metrics::SlowPart;
use crate::random_id::random_id;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum size of a client's request id in bytes. A longer id is replaced by a new one.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Routes that need no key, because probes and metric scrapers have none.
const OPEN_ROUTES: [&str; 2] = ["/health", "/metrics"];

pub(crate) fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/v1/lora_adapters", get(adapters::list))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(tokens::apply_template))
        .route("/health", get(operation::health))
        .route("/metrics", get(operation::metrics))
        .route("/version", get(operation::version))
        .route("/api/chat", post(ollama::chat))
        .route("/api/tags", get(ollama::tags))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(operation::version))
        .fallback(missing)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(app.max_body_bytes))
        .layer(from_fn_with_state(Arc::clone(app), guard))
        .with_state(Arc::clone(app))
}

async fn missing(request: Request) -> ApiError {
    no_route(request.uri().path())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::method(request.method().as_str(), request.uri().path())
}

/// Checks the headers and the key of a request, and sets the request id of the response. The log contains the
/// method, the path and the request id, and no other text from the client.
async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let id = request_id(&request);
    let checked = app.security.check_site(&method, request.headers()).and_then(|()| {
        match OPEN_ROUTES.contains(&path.as_str()) {
            true => Ok(crate::security::Access::Open),
            false => app.security.access(request.headers()),
        }
    });
    let counted = RequestCount::of(&app);
    let checked = checked.and_then(|access| counted.map(|counted| (access, counted)));
    let mut response = match checked {
        Ok((access, _counted)) => {
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Err(error) if path.starts_with("/api/") => error.into_ollama(),
        Err(error) => error.into_response(),
    };
    let (status, millis) = (response.status().as_u16(), started.elapsed().as_millis() as u64);
    tracing::info!(id, %method, path, status, millis, "request");
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}

/// Counts a request while its handler runs. [`App::max_requests`] limits this count, which bounds the memory
/// for request bodies.
struct RequestCount(Arc<App>);

impl RequestCount {
    fn of(app: &Arc<App>) -> Result<Self, ApiError> {
        let before = app.requests.fetch_add(1, Ordering::Relaxed);
        let counted = Self(Arc::clone(app));
        match before < app.max_requests {
            true => Ok(counted),
            false => {
                app.metrics.request_rejected();
                let message = format!("cannot take the request: {before} others are being read or answered");
                Err(ApiError::too_many("server_overloaded", message, 1))
            }
        }
    }
}

impl Drop for RequestCount {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the client's request id. If the id is missing, too long, or not printable ASCII, returns a new id.
fn request_id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_plain = |id: &&str| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
    };
    given.filter(is_plain).map_or_else(|| random_id("req-"), str::to_owned)
}

/// Body of a request. An error is a value here, because each API has its own format for errors.
struct RequestBody(Result<Bytes, ApiError>);

impl FromRequest<Arc<App>> for RequestBody {
    type Rejection = Infallible;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Infallible> {
        let read = tokio::time::timeout(app.body_time, Bytes::from_request(request, app)).await;
        Ok(Self(match read {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::too_large(app.max_body_bytes))
            }
            Ok(Err(_)) => Err(ApiError::invalid("cannot read the body: the connection broke")),
            Err(_) => {
                app.metrics.client_timed_out(SlowPart::Body);
                Err(ApiError::too_slow(app.body_time))
            }
        }))
    }
}

fn object(body: RequestBody) -> Result<Map<String, Value>, ApiError> {
    parse_object(&body.0?)
}

fn json(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    response
        .headers_mut()
        .insert(axum::http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
