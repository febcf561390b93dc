//! `/v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::{RequestBody, json, object};
use crate::api_error::ApiError;
use crate::app::{App, ReplySettings};
use crate::constraint::Constraint;
use crate::stream;
use crate::wire::completion::{CompletionAnswer, CompletionRequest, Prompt};

pub(crate) async fn create(State(app): State<Arc<App>>, body: RequestBody) -> Result<Response, ApiError> {
    app.check_ready()?;
    let map = object(body)?;
    let request = CompletionRequest::read(&map, app.vocab_size)?;
    let (model, lease) = app.lease(&map).await?;
    let (mut prompts, mut texts) = (Vec::new(), Vec::new());
    for prompt in &request.prompts {
        match prompt {
            Prompt::Text(text) => {
                prompts.push(app.tokenize(&lease, text.clone(), true).await?);
                texts.push(text.clone());
            }
            Prompt::Ids(ids) => {
                prompts.push(ids.clone());
                texts.push(lease.profile.tokenizer().decode(ids, true));
            }
        }
    }
    let answer = CompletionAnswer::new(&model, lease.clone(), &request, texts);
    let settings = ReplySettings {
        sampling: &request.sampling,
        top_logprobs: request.logprobs,
        constraint: &Constraint::default(),
    };
    let reply = app.submit(prompts, settings, lease).await?;
    match request.streams {
        true => Ok(stream::respond(reply, answer, "text/event-stream; charset=utf-8")),
        false => Ok(json(&answer.whole(reply).await?)),
    }
}
