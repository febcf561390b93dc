//! Routes for the account of a token, the settings of a repository, and the creation of repositories.

use serde_json::{Value, json};

use super::{Answer, RequestContext, internal};
use crate::api_error::ApiError;
use crate::clock;
use crate::http::Response;
use crate::repository::{Repository, Tree};

pub(super) fn whoami(context: &mut RequestContext<'_, '_>) -> Answer {
    let Some(who) = &context.caller else { return Err(ApiError::new(401, "Invalid username or password.")) };
    let state = context.hub.state();
    let orgs: Vec<Value> = state
        .members
        .iter()
        .filter(|(_, user)| *user == who.name)
        .map(|(org, _)| json!({ "type": "org", "name": org, "fullname": org, "roleInOrg": "write" }))
        .collect();
    let role = if who.writes { "write" } else { "read" };
    Ok(Response::json(
        200,
        &json!({
            "type": "user",
            "id": format!("{:024x}", who.name.len()),
            "name": who.name,
            "fullname": who.name,
            "email": format!("{}@example.org", who.name),
            "emailVerified": true,
            "canPay": false,
            "isPro": false,
            "orgs": orgs,
            "auth": { "type": "access_token", "accessToken": { "displayName": "test", "role": role, "createdAt": clock::date(0) } },
        }),
    ))
}

pub(super) fn create(context: &mut RequestContext<'_, '_>) -> Answer {
    let wish = context.json()?;
    let Some(who) = context.caller.clone() else {
        return Err(ApiError::new(401, "Invalid username or password."));
    };
    let text = |key: &str| wish.get(key).and_then(Value::as_str);
    if text("type").is_some_and(|kind| kind != "model") {
        return Err(ApiError::new(400, "Only models are kept here"));
    }
    let Some(name) = text("name").filter(|name| is_name(name)) else {
        return Err(ApiError::new(400, "Invalid repository name"));
    };
    let namespace = text("organization").unwrap_or(&who.name);
    let id = format!("{namespace}/{name}");
    let private =
        wish.get("private").and_then(Value::as_bool).unwrap_or(text("visibility") == Some("private"));
    let attributes = context.hub.settings.attributes();
    let entry =
        context.hub.keep(".gitattributes", attributes.as_bytes()).map_err(|error| internal(&error))?;

    let mut state = context.hub.state();
    if !who.writes || !state.owns(&who.name, namespace) {
        let message =
            format!("You don't have the rights to create a model under the namespace \"{namespace}\"");
        return Err(ApiError::new(403, message));
    }
    let url = format!("{}/{id}", context.hub.endpoint);
    if state.repositories.contains_key(&id) {
        let message = "You already created this model repo";
        let body = json!({ "error": message, "url": url });
        return Ok(Response::json(409, &body).with("X-Error-Message", message));
    }
    let now = clock::now();
    let mut repository = Repository::new(&id, now);
    repository.private = private;
    let tree = Tree::from([(".gitattributes".to_owned(), entry)]);
    repository.add_commit("refs/heads/main", None, ("initial commit", ""), &who.name, now, tree);
    state.repositories.insert(id.clone(), repository);
    Ok(Response::json(
        200,
        &json!({ "url": url, "name": id, "id": format!("{:024x}", state.repositories.len()) }),
    ))
}

/// Changes the visibility of a repository. `huggingface_hub` sends `visibility`, and its older versions send
/// `private`.
pub(super) fn settings(context: &mut RequestContext<'_, '_>, id: &str) -> Answer {
    let wish = context.json()?;
    let private = match (wish.get("visibility").and_then(Value::as_str), wish.get("private")) {
        (Some("private"), None) => true,
        (Some("public"), None) => false,
        (None, Some(Value::Bool(private))) => *private,
        _ => return Err(ApiError::new(400, "Neither a visibility nor whether it is private is given")),
    };
    let mut state = context.hub.state();
    state.writer(id, context.caller.clone(), false)?;
    let Some(repository) = state.repositories.get_mut(id) else { return Err(ApiError::repository(true)) };
    repository.private = private;
    Ok(Response::json(200, &json!({ "private": private })))
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&name.len())
        && name.chars().all(plain)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
        && !["--", "..", ".git"]
            .iter()
            .any(|bad| if *bad == ".git" { name.ends_with(bad) } else { name.contains(bad) })
}

/// Checks that the front matter of a card has an end, and that its lines look like YAML.
pub(super) fn validate_yaml(context: &mut RequestContext<'_, '_>) -> Answer {
    let card = context.json()?;
    let content = card.get("content").and_then(Value::as_str).unwrap_or_default();
    let warning = || json!([{ "message": "empty or missing yaml metadata in repo card" }]);
    let Some(rest) = content.strip_prefix("---\n") else {
        return Ok(Response::json(200, &json!({ "errors": [], "warnings": warning() })));
    };
    let Some((matter, _)) = rest.split_once("\n---") else {
        return Ok(Response::json(200, &json!({ "errors": [], "warnings": warning() })));
    };
    let odd = matter.lines().find(|line| {
        let line = line.trim();
        !(line.is_empty()
            || line.starts_with(['#', '-'])
            || line.contains(':')
            || line.starts_with([']', '[', '}', '{', '"']))
    });
    match odd {
        None => Ok(Response::json(200, &json!({ "errors": [], "warnings": [] }))),
        Some(line) => {
            let error = format!("YAML Metadata Error: can not read `{line}`");
            Ok(Response::json(400, &json!({ "errors": [{ "message": error }], "warnings": [] })))
        }
    }
}
