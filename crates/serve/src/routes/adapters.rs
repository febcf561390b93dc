//! Loads and unloads adapters with vLLM's API.

use std::path::Path;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use danlu_generate::GenerationId;
use serde_json::{Map, Value, json};

use super::{RequestBody, json as respond, object};
use crate::api_error::ApiError;
use crate::app::App;
use crate::generation_hex::parse_generation;
use crate::json_fields::Fields;
use crate::registry::{AdapterSource, LoadRequest, SetError, check_alias, no_room, resolve_path};
use crate::security::Access;

/// Values of `type` in vLLM's errors.
const USER_INPUT: &str = "InvalidUserInput";
const BAD_REQUEST: &str = "Bad Request";
const NOT_FOUND: &str = "NotFoundError";

/// An error with vLLM's `type`.
pub(crate) struct VllmError(ApiError, &'static str);

impl From<ApiError> for VllmError {
    fn from(error: ApiError) -> Self {
        let kind = match error.status {
            StatusCode::NOT_FOUND => NOT_FOUND,
            StatusCode::BAD_REQUEST => BAD_REQUEST,
            StatusCode::FORBIDDEN => "PermissionError",
            StatusCode::CONFLICT => "ConflictError",
            StatusCode::TOO_MANY_REQUESTS => "lora_load_busy",
            _ => "InternalServerError",
        };
        Self(error, kind)
    }
}

impl IntoResponse for VllmError {
    fn into_response(self) -> Response {
        self.0.into_vllm(self.1)
    }
}

fn user_input(message: impl Into<String>) -> VllmError {
    VllmError(ApiError::invalid(message), USER_INPUT)
}

/// A client that may load and unload adapters.
pub(crate) struct Admin;

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let access = parts.extensions.get().copied().unwrap_or(Access::Open);
        app.security.check_admin(access).map(|()| Self)
    }
}

pub(crate) async fn load(
    State(app): State<Arc<App>>,
    _: Admin,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Response, VllmError> {
    let map = json_body(&headers, body)?;
    let (name, path) = (required(&map, "lora_name")?, required(&map, "lora_path")?);
    if name.is_empty() || path.is_empty() {
        return Err(user_input("Both 'lora_name' and 'lora_path' must be provided."));
    }
    check_alias(name).map_err(user_input)?;
    if app.registry.is_base(name) {
        let message = format!("The lora adapter '{name}' has the same name as the base model.");
        return Err(user_input(message));
    }
    let fields = Fields::new(&map);
    if fields.flag("is_3d_lora_weight")? {
        return Err(user_input("cannot honour `is_3d_lora_weight`: adapters of experts are not supported"));
    }
    let request = LoadRequest {
        name: name.to_owned(),
        source: source(&app, path, fields.text("revision")?)?,
        replaces: fields.flag("load_inplace")? || fields.get("expected_generation").is_some(),
        expected: expected_generation(&fields)?,
        pinned: fields.flag("pinned")?,
    };
    match app.registry.set(request).await {
        Ok(_) => Ok(plain(format!("Success: LoRA adapter '{name}' added successfully."))),
        Err(error) => Err(load_error(name, path, error)),
    }
}

pub(crate) async fn unload(
    State(app): State<Arc<App>>,
    _: Admin,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Response, VllmError> {
    let map = json_body(&headers, body)?;
    let name = required(&map, "lora_name")?;
    if name.is_empty() {
        return Err(user_input("'lora_name' needs to be provided to unload a LoRA adapter."));
    }
    let expected = expected_generation(&Fields::new(&map))?;
    match app.registry.remove(name, expected) {
        Ok(()) => Ok(plain(format!("Success: LoRA adapter '{name}' removed successfully."))),
        Err(error) => Err(load_error(name, "", error)),
    }
}

/// Returns a success. Like vLLM's, the response is plain text without a content type.
fn plain(text: String) -> Response {
    Response::new(axum::body::Body::from(text))
}

fn json_body(headers: &HeaderMap, body: RequestBody) -> Result<Map<String, Value>, VllmError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("application/json"));
    if !is_json {
        let message = "cannot read the body: its content type is not `application/json`";
        return Err(VllmError(ApiError::invalid(message).with_param("body"), BAD_REQUEST));
    }
    Ok(object(body)?)
}

/// Returns a required field. The value may be empty.
fn required<'a>(map: &'a Map<String, Value>, name: &str) -> Result<&'a str, VllmError> {
    match map.get(name).and_then(Value::as_str) {
        Some(text) => Ok(text),
        None => {
            let message = format!("cannot use `{name}`: expected a string");
            Err(VllmError(ApiError::invalid(message).with_param(&format!("body.{name}")), BAD_REQUEST))
        }
    }
}

fn expected_generation(fields: &Fields<'_>) -> Result<Option<GenerationId>, VllmError> {
    let Some(text) = fields.text("expected_generation")? else { return Ok(None) };
    match parse_generation(text) {
        Some(id) => Ok(Some(id)),
        None => Err(fields.wrong("expected_generation", "64 hexadecimal digits").into()),
    }
}

/// Returns the source in `lora_path`: an allowed repository, or a path inside the adapter root.
fn source(app: &App, path: &str, revision: Option<&str>) -> Result<AdapterSource, VllmError> {
    if let Some(name) = app.registry.allowed_hub_name(path) {
        let name = match revision {
            Some(revision) => name.at(revision).map_err(|error| user_input(error.to_string()))?,
            None => name,
        };
        return Ok(AdapterSource::Hub(name));
    }
    if revision.is_some() {
        return Err(user_input(
            "cannot honour `revision`: `lora_path` is no repository that `--allow-hub` permits",
        ));
    }
    let root = app.registry.options().adapter_root.as_deref();
    Ok(AdapterSource::Folder(resolve_path(root, path)?))
}

fn load_error(name: &str, path: &str, error: SetError) -> VllmError {
    match error {
        SetError::IsLoaded => user_input(format!(
            "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set \
             'load_inplace' to True."
        )),
        SetError::Unknown => {
            let message = format!("The lora adapter '{name}' cannot be found.");
            VllmError(ApiError::not_found(message), NOT_FOUND)
        }
        SetError::IsBusy => {
            let message = format!("cannot load '{name}': another load of that name is running");
            ApiError::too_many("lora_load_busy", message, 1).into()
        }
        SetError::Mismatch { found } => {
            let found = found.map_or_else(|| "none".to_owned(), |id| id.to_string());
            let message = format!("cannot change '{name}': its generation is {found}, not the expected one");
            ApiError::conflict("lora_generation_mismatch", message).into()
        }
        SetError::NoRoom { bytes, max } => no_room(name, bytes, max).into(),
        SetError::TooLarge { bytes, max } => user_input(format!(
            "cannot load '{name}': it needs {bytes} bytes, and the limit leaves room for {max} \
             (lora_byte_limit_exceeded)"
        )),
        SetError::Load(error) => match *error {
            danlu_loader::LoadError::NoModel { .. } if !Path::new(path).join("config.json").exists() => {
                VllmError(ApiError::not_found(format!("No adapter found for {path}")), NOT_FOUND)
            }
            // vLLM returns status 500 for these errors. This server returns another status, because clients
            // repeat a request after status 500.
            error => VllmError(error.into(), USER_INPUT),
        },
        SetError::LoaderEnded => ApiError::internal("cannot load: the loader has ended").into(),
    }
}

pub(crate) async fn list(State(app): State<Arc<App>>, Extension(access): Extension<Access>) -> Response {
    let is_admin = access == Access::Admin;
    let aliases = app.registry.aliases();
    let entry = |(name, alias, resident): &(String, crate::registry::Alias, bool)| {
        let mut entry = json!({
            "id": name,
            "object": "lora_adapter",
            "generation": alias.generation.to_string(),
            "rank": alias.rank,
            "bytes": alias.bytes,
            "pinned": alias.pinned,
            "resident": resident,
        });
        if is_admin {
            entry["source"] = alias.source.to_string().into();
        }
        entry
    };
    let generation = |generation: crate::registry::GenerationState| {
        json!({
            "generation": generation.id.to_string(),
            "aliases": generation.aliases,
            "rank": generation.rank,
            "bytes": generation.bytes,
            "retired": generation.retired,
            "active_leases": generation.active_leases,
        })
    };
    respond(&json!({
        "object": "list",
        "data": aliases.iter().map(entry).collect::<Vec<_>>(),
        "generations": app.registry.generations().into_iter().map(generation).collect::<Vec<_>>(),
        "resident_bytes": app.registry.resident_bytes(),
        "max_bytes": app.registry.options().max_bytes,
    }))
}
