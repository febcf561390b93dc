//! Routes for pull requests, limited to what a client needs for a commit.

use serde_json::{Value, json};

use super::{Answer, RequestContext};
use crate::api_error::ApiError;
use crate::clock;
use crate::http::Response;

pub(super) fn open(context: &mut RequestContext<'_, '_>, id: &str) -> Answer {
    let wish = context.json()?;
    let title = wish.get("title").and_then(Value::as_str).unwrap_or_default().to_owned();
    if title.len() < 3 {
        return Err(ApiError::new(400, "A title has at least 3 characters"));
    }
    let mut state = context.hub.state();
    state.writer(id, context.caller.clone(), true)?;
    let Some(repository) = state.repositories.get_mut(id) else { return Err(ApiError::repository(true)) };
    let pull_request = wish.get("pullRequest") == Some(&Value::Bool(true));
    let main = repository.resolve("main").map(|revision| revision.commit.id.clone());
    let number = repository.discuss(&title);
    if let (true, Some(main)) = (pull_request, main) {
        repository.point(&format!("refs/pr/{number}"), &main);
    }
    let url = format!("{}/{id}/discussions/{number}", context.hub.endpoint);
    Ok(Response::json(200, &json!({ "num": number, "url": url, "pullRequest": pull_request })))
}

pub(super) fn details(context: &mut RequestContext<'_, '_>, id: &str, number: &str) -> Answer {
    let state = context.hub.state();
    let repository = state.visible(id, context.caller.as_ref())?;
    let found = number
        .parse::<usize>()
        .ok()
        .and_then(|number| Some((number, repository.discussions.get(number.checked_sub(1)?)?)));
    let Some((number, title)) = found else { return Err(ApiError::new(404, "Discussion not found")) };
    let pull_request = repository.refs().contains_key(&format!("refs/pr/{number}"));
    let mut value = json!({
        "num": number,
        "title": title,
        "author": { "name": repository.namespace() },
        "createdAt": clock::date(repository.created),
        "status": if pull_request { "draft" } else { "open" },
        "repo": { "name": id, "type": "model" },
        "isPullRequest": pull_request,
        "events": [],
    });
    if pull_request {
        value["changes"] = json!({ "base": "refs/heads/main" });
        value["filesWithConflicts"] = json!([]);
        value["diff"] = json!("");
    }
    Ok(Response::json(200, &value))
}
