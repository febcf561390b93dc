//! `/set`: the sampling of a running chat.

use danlu_generate::{ChatSession, SamplingOptions};

use crate::diagnostic::{Diagnostic, Result};

/// The names that `/set` accepts.
pub const NAMES: [&str; 7] =
    ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_new_tokens"];

/// Formats all settings, one per line.
pub fn list(session: &ChatSession<'_>) -> String {
    let options = session.options();
    let SamplingOptions { temperature, top_p, top_k, min_p, repetition_penalty, seed } = options.sampling;
    format!(
        "temperature {temperature}\ntop_p {top_p}\ntop_k {top_k}\nmin_p {min_p}\n\
         repetition_penalty {repetition_penalty}\nseed {seed}\nmax_new_tokens {}",
        options.max_new_tokens
    )
}

/// Sets one value.
///
/// # Errors
/// If the name is unknown, or the value is not a number in range.
pub fn set(session: &mut ChatSession<'_>, name: &str, value: &str) -> Result<()> {
    let name = name.trim_start_matches("--").replace('-', "_");
    let mut sampling = session.options().sampling.clone();
    match name.as_str() {
        "temperature" => sampling.temperature = parse(&name, value)?,
        "top_p" => sampling.top_p = parse(&name, value)?,
        "top_k" => sampling.top_k = parse(&name, value)?,
        "min_p" => sampling.min_p = parse(&name, value)?,
        "repetition_penalty" => sampling.repetition_penalty = parse(&name, value)?,
        "seed" => sampling.seed = parse(&name, value)?,
        "max_new_tokens" => {
            session.set_max_new_tokens(parse(&name, value)?);
            return Ok(());
        }
        _ => {
            let text = format!("cannot set `{name}`: there is no such setting");
            return Err(Diagnostic::input(text).with_hint(format!("the settings are {}", NAMES.join(", "))));
        }
    }
    Ok(session.set_sampling(sampling)?)
}

fn parse<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| {
        Diagnostic::input(format!("cannot set `{name}` to `{value}`: expected a number"))
            .with_hint("write a name and a value, such as /set temperature 0.5")
    })
}
