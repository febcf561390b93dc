//! Ollama's API, limited to the routes that its clients and chat front ends use.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::{RequestBody, json as respond, object};
use crate::api_error::ApiError;
use crate::app::{App, Conversation, ReplySettings, blocking};
use crate::constraint::Constraint;
use crate::json_fields::Fields;
use crate::stream;
use crate::wire::ollama::{OllamaAnswer, OllamaChat, timestamp, without_tag};

/// An error in Ollama's format.
pub(crate) struct OllamaError(ApiError);

impl From<ApiError> for OllamaError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for OllamaError {
    fn into_response(self) -> Response {
        self.0.into_ollama()
    }
}

fn model_name(map: &Map<String, Value>) -> Result<&str, ApiError> {
    let fields = Fields::new(map);
    fields.text("model")?.ok_or_else(|| fields.wrong("model", "the name of a model"))
}

pub(crate) async fn chat(State(app): State<Arc<App>>, body: RequestBody) -> Result<Response, OllamaError> {
    app.check_ready()?;
    let map = object(body)?;
    let request = OllamaChat::read(&map)?;
    let model = model_name(&map)?;
    let lease = app.registry.lease(without_tag(model)).await?;
    let sampling = &request.sampling;
    let constraint = Constraint::compile(&app, &lease, &request.output, sampling).await?;
    let (messages, tools, values) = (request.messages, request.output.tools.shown(), request.template_values);
    let (_, ids) = app.render(&lease, Conversation { messages, tools, values }).await?;
    let settings = ReplySettings { sampling, top_logprobs: None, constraint: &constraint };
    let reply = app.submit(vec![ids], settings, lease).await?;
    let answer = OllamaAnswer::new(model);
    match request.streams {
        true => Ok(stream::respond(reply, answer, "application/x-ndjson")),
        false => Ok(respond(&answer.whole(reply).await?)),
    }
}

pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    let base = app.base_name().to_owned();
    let parameters = parameter_size(&app);
    let entry = |name: &str, digest: String, size: u64, created: u64, parent: &str| {
        json!({
            "name": name,
            "model": name,
            "modified_at": timestamp(Some(created)),
            "size": size,
            "digest": digest,
            "details": details(&app, parent, &parameters),
        })
    };
    let mut models = vec![entry(&base, String::new(), app.base_bytes(), app.started, "")];
    for (name, alias, _) in app.registry.aliases() {
        models.push(entry(&name, alias.generation.to_string(), alias.bytes, alias.created, &base));
    }
    respond(&json!({ "models": models }))
}

pub(crate) async fn show(State(app): State<Arc<App>>, body: RequestBody) -> Result<Response, OllamaError> {
    let map = object(body)?;
    let name = without_tag(model_name(&map)?);
    let lease = app.registry.lease(name).await?;
    let tokens = Arc::clone(&lease.profile.tokens);
    let has_tools = blocking(move || Ok(tokens.calls().is_ok())).await?;
    let parent = if lease.generation.is_some() { app.base_name() } else { "" };
    let template = lease.profile.tokenizer().template().map(|template| template.source().to_owned());
    Ok(respond(&json!({
        "template": template.unwrap_or_default(),
        "system": lease.profile.default_system,
        "details": details(&app, parent, &parameter_size(&app)),
        "model_info": {
            "general.architecture": app.family(),
            "general.parameter_count": app.parameters(),
            format!("{}.context_length", app.family()): app.context,
        },
        "capabilities": if has_tools { json!(["completion", "tools"]) } else { json!(["completion"]) },
    })))
}

fn details(app: &App, parent: &str, parameters: &str) -> Value {
    json!({
        "parent_model": parent,
        "format": "safetensors",
        "family": app.family(),
        "families": [app.family()],
        "parameter_size": parameters,
        "quantization_level": app.quantization_level(),
    })
}

/// Returns the number of parameters in Ollama's format, such as `8.0M`.
fn parameter_size(app: &App) -> String {
    match app.parameters() as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n => format!("{:.1}M", n / 1e6),
    }
}
