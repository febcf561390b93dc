//! `/tokenize`, `/detokenize` and `/apply-template`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{RequestBody, json as respond, object};
use crate::api_error::ApiError;
use crate::app::{App, Conversation};
use crate::json_fields::Fields;
use crate::registry::Lease;
use crate::wire::{messages, template_values};

/// Returns a lease on the model of a request, or on the base if the request names no model.
async fn lease(app: &App, map: &Map<String, Value>) -> Result<Lease, ApiError> {
    match Fields::new(map).text("model")? {
        Some(_) => Ok(app.lease(map).await?.1),
        None => Ok(app.registry.base_lease()),
    }
}

/// Returns the tokens of `prompt` (vLLM), `content` (llama.cpp) or `messages`.
pub(crate) async fn tokenize(State(app): State<Arc<App>>, body: RequestBody) -> Result<Response, ApiError> {
    let map = object(body)?;
    let fields = Fields::new(&map);
    fields.check_names(&[&[
        "add_special_tokens",
        "chat_template_kwargs",
        "content",
        "messages",
        "model",
        "prompt",
        "return_token_strs",
    ]])?;
    let lease = lease(&app, &map).await?;
    let ids = if fields.get("messages").is_some() {
        app.render(&lease, conversation(&map)?).await?.1
    } else {
        let text = match fields.text("prompt")? {
            Some(text) => Some(text),
            None => fields.text("content")?,
        };
        let Some(text) = text else { return Err(fields.wrong("prompt", "a text, or `messages` instead")) };
        app.tokenize(&lease, text.to_owned(), fields.flag_or_on("add_special_tokens")?).await?
    };
    let strings = fields.flag("return_token_strs")?.then(|| {
        let token = |&id: &u32| lease.profile.tokenizer().token_str(id).unwrap_or_default();
        ids.iter().map(token).collect::<Vec<_>>()
    });
    respond_ok(&json!({
        "count": ids.len(),
        "max_model_len": app.context,
        "tokens": ids,
        "token_strs": strings,
    }))
}

pub(crate) async fn detokenize(State(app): State<Arc<App>>, body: RequestBody) -> Result<Response, ApiError> {
    let map = object(body)?;
    let fields = Fields::new(&map);
    fields.check_names(&[&["model", "tokens"]])?;
    let lease = lease(&app, &map).await?;
    let Some(ids) = fields.token_ids("tokens", app.vocab_size)? else {
        return Err(fields.wrong("tokens", "a list of token ids"));
    };
    let text = lease.profile.tokenizer().decode(&ids, false);
    // The text is in `prompt` for vLLM and in `content` for llama.cpp.
    respond_ok(&json!({"prompt": text, "content": text}))
}

pub(crate) async fn apply_template(
    State(app): State<Arc<App>>,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let map = object(body)?;
    Fields::new(&map).check_names(&[&["chat_template_kwargs", "messages", "model"]])?;
    let lease = lease(&app, &map).await?;
    let (prompt, _) = app.render(&lease, conversation(&map)?).await?;
    respond_ok(&json!({ "prompt": prompt }))
}

/// Reads the messages and the values of the template.
fn conversation(map: &Map<String, Value>) -> Result<Conversation, ApiError> {
    let values = template_values::read(&Fields::new(map))?;
    Ok(Conversation { messages: messages::read(map)?, tools: Vec::new(), values })
}

fn respond_ok(value: &Value) -> Result<Response, ApiError> {
    Ok(respond(value))
}
