//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::{RequestBody, json, object};
use crate::api_error::ApiError;
use crate::app::{App, Conversation, ReplySettings};
use crate::constraint::Constraint;
use crate::stream;
use crate::wire::chat::{ChatAnswer, ChatRequest};

pub(crate) async fn create(State(app): State<Arc<App>>, body: RequestBody) -> Result<Response, ApiError> {
    app.check_ready()?;
    let map = object(body)?;
    let request = ChatRequest::read(&map, app.vocab_size)?;
    let (model, lease) = app.lease(&map).await?;
    let answer = ChatAnswer::new(&model, lease.clone(), &request);
    let ChatRequest { messages, template_values: values, sampling, output, top_logprobs, .. } = request;
    let constraint = Constraint::compile(&app, &lease, &output, &sampling).await?;
    let conversation = Conversation { messages, tools: output.tools.shown(), values };
    let (_, ids) = app.render(&lease, conversation).await?;
    let settings = ReplySettings { sampling: &sampling, top_logprobs, constraint: &constraint };
    let reply = app.submit(vec![ids], settings, lease).await?;
    match request.streams {
        true => Ok(stream::respond(reply, answer, "text/event-stream; charset=utf-8")),
        false => Ok(json(&answer.whole(reply).await?)),
    }
}
