//! Commands on the standard input of the program, for tests that are not written in Rust.

use std::path::Path;
use std::time::Duration;

use danlu_hub_test_server::{Action, Fault, Gate, Host, HubServer, Method};
use serde_json::{Value, json};

const HELP: &str = "user {name, token, read_only}; expire {token}; member {org, user}; grant {id, user}; \
    model {id, private, gated: auto|manual, branch, message, files: {path: text}, paths: {path: local file}}; \
    commits {id}; requests; clear; \
    fault {method, path, host: hub|storage, times, after, \
    then: {status, headers, body | cut_before | cut_after | cut_upload | cut_answer | corrupt | shorten | delay | \
    redirect_to | replace | header: [name, value] | throttle}}; clear_faults";

/// Runs the command in `line`.
///
/// # Errors
/// If the command is invalid.
pub fn answer(server: &HubServer, line: &str) -> Result<Value, String> {
    let wish: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let text = |key: &str| wish[key].as_str().ok_or_else(|| format!("`{key}` is missing"));
    let done = || json!({ "done": true });
    match text("do")? {
        "help" => return Ok(json!({ "help": HELP })),
        "user" if wish["read_only"] == true => server.add_read_only_user(text("name")?, text("token")?),
        "user" => server.add_user(text("name")?, text("token")?),
        "expire" => server.expire(text("token")?),
        "member" => server.add_member(text("org")?, text("user")?),
        "grant" => server.grant(text("id")?, text("user")?),
        "model" => return model(server, &wish, text("id")?),
        "commits" => {
            let commits = server.commits(text("id")?);
            let list = commits.iter().map(|commit| {
                json!({ "id": commit.id, "parents": commit.parents, "title": commit.title, "files": commit.files })
            });
            return Ok(json!({ "commits": list.collect::<Vec<_>>(), "refs": server.revisions(text("id")?) }));
        }
        "requests" => {
            let requests = server.requests();
            let list = requests.iter().map(|record| {
                json!({
                    "method": record.method,
                    "host": if record.host == Host::Hub { "hub" } else { "storage" },
                    "target": record.target,
                    "authorization": record.authorization,
                    "range": record.range,
                    "status": record.status,
                    "received": record.received,
                    "sent": record.sent,
                })
            });
            return Ok(json!({ "requests": list.collect::<Vec<_>>() }));
        }
        "clear" => server.clear_requests(),
        "fault" => server.fault(fault(&wish)?),
        "clear_faults" => server.clear_faults(),
        other => return Err(format!("`{other}` is nothing that can be asked for")),
    }
    Ok(done())
}

fn model(server: &HubServer, wish: &Value, id: &str) -> Result<Value, String> {
    let mut model = server.model(id);
    if wish["private"] == true {
        model = model.private();
    }
    model = match wish["gated"].as_str() {
        None => model,
        Some("auto") => model.gated(Gate::Automatic),
        Some("manual") => model.gated(Gate::Manual),
        Some(other) => return Err(format!("`gated` is `{other}`, expected `auto` or `manual`")),
    };
    if let Some(branch) = wish["branch"].as_str() {
        model = model.on(branch);
    }
    if let Some(message) = wish["message"].as_str() {
        model = model.message(message);
    }
    for (path, content) in wish["files"].as_object().into_iter().flatten() {
        let content = content.as_str().ok_or_else(|| format!("`{path}` has no text"))?;
        model = model.file(path, content.as_bytes());
    }
    for (path, source) in wish["paths"].as_object().into_iter().flatten() {
        let source = Path::new(source.as_str().ok_or_else(|| format!("`{path}` has no local file"))?);
        if !source.is_file() {
            return Err(format!("`{}` is no file", source.display()));
        }
        model = model.file_from_path(path, source);
    }
    Ok(json!({ "commit": model.add() }))
}

fn fault(wish: &Value) -> Result<Fault, String> {
    let method = match wish["method"].as_str() {
        None => Method::Any,
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("POST") => Method::Post,
        Some("PUT") => Method::Put,
        Some(other) => return Err(format!("`method` is `{other}`")),
    };
    let mut fault = Fault::on(method, wish["path"].as_str().unwrap_or_default());
    fault = match wish["host"].as_str() {
        None => fault,
        Some("hub") => fault.at(Host::Hub),
        Some("storage") => fault.at(Host::Storage),
        Some(other) => return Err(format!("`host` is `{other}`, expected `hub` or `storage`")),
    };
    let count = |key: &str| wish[key].as_u64().and_then(|count| usize::try_from(count).ok());
    fault = fault.times(count("times").unwrap_or(1)).after(count("after").unwrap_or(0));
    let then = wish["then"].as_object().ok_or("`then` is missing")?;
    for (key, value) in then {
        let whole = || value.as_u64().ok_or_else(|| format!("`{key}` is no number"));
        let words = || value.as_str().map(str::to_owned).ok_or_else(|| format!("`{key}` is no text"));
        let action = match key.as_str() {
            "status" => {
                let status = u16::try_from(whole()?).map_err(|error| error.to_string())?;
                let headers = then.get("headers").and_then(Value::as_object).into_iter().flatten();
                let headers = headers
                    .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
                let body = then.get("body").and_then(Value::as_str).unwrap_or_default();
                Action::Status(status, headers.collect(), body.as_bytes().to_vec())
            }
            "headers" | "body" => continue,
            "cut_before" => Action::CutBefore,
            "cut_answer" => Action::CutAnswer,
            "corrupt" => Action::Corrupt,
            "cut_after" => Action::CutAfter(whole()?),
            "cut_upload" => Action::CutUpload(whole()?),
            "shorten" => Action::Shorten(whole()?),
            "throttle" => Action::Throttle(whole()?),
            "delay" => {
                let seconds = value.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                Action::Delay(seconds.ok_or("`delay` is no time in seconds")?)
            }
            "redirect_to" => Action::RedirectTo(words()?),
            "replace" => Action::Replace(value.clone()),
            "header" => match (value[0].as_str(), value[1].as_str()) {
                (Some(name), Some(text)) => Action::Header(name.to_owned(), text.to_owned()),
                _ => return Err("`header` is no name and value".to_owned()),
            },
            other => return Err(format!("`{other}` is nothing that can go wrong")),
        };
        fault = fault.then(action);
    }
    Ok(fault)
}
