//! `/health`, `/metrics` and `/version`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde_json::json;

use super::json as respond;
use crate::api_error::ApiError;
use crate::app::App;

pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.check_ready()?;
    Ok(respond(&json!({"status": "ok"})))
}

pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut response = Response::new(app.metrics.render(&app.gauges()).into());
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

pub(crate) async fn version() -> Response {
    respond(&json!({"version": env!("CARGO_PKG_VERSION")}))
}
