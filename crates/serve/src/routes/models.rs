//! `/v1/models`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::json as respond;
use crate::api_error::ApiError;
use crate::app::App;
use crate::registry::Alias;

pub(crate) async fn list(State(app): State<Arc<App>>) -> Response {
    let mut cards: Vec<Value> =
        app.registry.options().base_names.iter().map(|name| base_card(&app, name)).collect();
    cards.extend(
        app.registry.aliases().iter().map(|(name, alias, resident)| card(&app, name, alias, *resident)),
    );
    respond(&json!({"object": "list", "data": cards}))
}

pub(crate) async fn retrieve(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    if app.registry.is_base(&id) {
        return Ok(respond(&base_card(&app, &id)));
    }
    match app.registry.alias(&id) {
        Some((alias, resident)) => Ok(respond(&card(&app, &id, &alias, resident))),
        None => Err(ApiError::unknown_model(&id, &[])),
    }
}

fn base_card(app: &App, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.started,
        "owned_by": "danlu",
        "root": name,
        "parent": null,
        "max_model_len": app.context,
        "permission": [],
    })
}

fn card(app: &App, name: &str, alias: &Alias, resident: bool) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": alias.created,
        "owned_by": "danlu",
        // In this field, vLLM returns a path on the server. The public name reveals no path.
        "root": alias.source.public_name().unwrap_or_else(|| name.to_owned()),
        "parent": app.base_name(),
        "max_model_len": app.context,
        "permission": [],
        "adapter_generation": alias.generation.to_string(),
        "rank": alias.rank,
        "resident": resident,
    })
}
