//! The test server as a program, which prints its URLs as one line of JSON and ends when its standard input
//! is closed.

mod control;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use danlu_hub_test_server::HubServer;
use serde_json::json;

const HELP: &str = "\
A local server that answers as the Hugging Face Hub does, for tests.

Usage: hub-test-server [OPTIONS]

Prints {\"endpoint\": ..., \"storage_endpoint\": ...}, then answers every line of JSON on its input with one, and runs
until its input ends. `{\"do\": \"help\"}` lists what a line can ask for.

  --port PORT              the Hub's port (default: a free one)
  --root DIR               where contents are kept (default: a temporary folder)
  --token TOKEN=USER       a user who may write; may be repeated
  --page ENTRIES           entries in one page of a tree (default: 1000)
  --large-over BYTES       a file of more bytes is a large one (default: 10485760)
  --multipart OVER,PART    large files over OVER bytes are sent in parts of PART bytes
  --resolve-cache          small files are redirected to /api/resolve-cache/
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}\nhint: `hub-test-server --help` lists the options");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut builder = HubServer::builder();
    let mut tokens = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("`{name}` lacks its value"));
        builder = match name.as_str() {
            "--help" => {
                print!("{HELP}");
                return Ok(());
            }
            "--port" => builder.port(number(&name, &value()?)?),
            "--root" => builder.root(value()?),
            "--page" => builder.page(number(&name, &value()?)?),
            "--large-over" => builder.large_over(number(&name, &value()?)?),
            "--multipart" => {
                let text = value()?;
                let (over, part) =
                    text.split_once(',').ok_or_else(|| format!("`{name} {text}` is no OVER,PART"))?;
                builder.multipart(number(&name, over)?, number(&name, part)?)
            }
            "--resolve-cache" => builder.resolve_cache(true),
            "--token" => {
                let text = value()?;
                let (token, user) =
                    text.split_once('=').ok_or_else(|| format!("`{name}` is no TOKEN=USER"))?;
                tokens.push((token.to_owned(), user.to_owned()));
                builder
            }
            _ => return Err(format!("`{name}` is no option")),
        };
    }
    let server = builder.start().map_err(|error| format!("cannot start: {error}"))?;
    for (token, user) in tokens {
        server.add_user(&user, &token);
    }
    let mut out = io::stdout();
    let mut say = |line: serde_json::Value| {
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| format!("cannot write: {error}"))
    };
    say(json!({ "endpoint": server.endpoint(), "storage_endpoint": server.storage_endpoint() }))?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| format!("cannot read: {error}"))?;
        say(control::answer(&server, &line).unwrap_or_else(|message| json!({ "error": message })))?;
    }
    Ok(())
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("`{name} {text}` is no number that fits"))
}
