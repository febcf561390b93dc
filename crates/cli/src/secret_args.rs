//! Rejects an access token on the command line. Without this check, the token could be printed, sent as a
//! name, or published.

use danlu_hub::has_secret;

use crate::diagnostic::{Diagnostic, Result};

/// Flags of `chat` for free text. This text never leaves the machine, so it is not checked.
const PROMPTS: [&str; 3] = ["-p", "--prompt", "--system"];

/// Checks the arguments after the program's name. The arguments of `danlu login` are not checked here,
/// because this command rejects every argument.
///
/// # Errors
/// If an argument contains a token or a private key. The error does not repeat the secret.
pub fn refuse_secrets(args: &[String]) -> Result<()> {
    if args.first().is_some_and(|command| command == "login") {
        return Ok(());
    }
    let is_prompt = |at: usize| {
        let flag = args[at].split_once('=').map_or(args[at].as_str(), |(flag, _)| flag);
        let is_value = at > 0 && PROMPTS.contains(&args[at - 1].as_str());
        args[0] == "chat" && (is_value || PROMPTS.contains(&flag))
    };
    match (0..args.len()).find(|&at| !is_prompt(at) && has_secret(&args[at], None)) {
        None => Ok(()),
        Some(at) => {
            let text =
                format!("cannot use argument {}: it contains an access token or a private key", at + 1);
            Err(Diagnostic::input(text).with_hint(
                "run `danlu login`, which reads a token from the terminal; revoke this one, because the shell's history has it",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_refused_and_not_repeated() {
        // The token is assembled here, so that secret scanners ignore this file.
        let token = format!("hf_{}", "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dE3f");
        let check = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| arg.replace("TOKEN", &token)).collect();
            refuse_secrets(&args).map_err(|diagnostic| diagnostic.render(false))
        };
        for args in [
            &["pull", "TOKEN"][..],
            &["pull", "org/TOKEN"],
            &["TOKEN"],
            &["push", "out", "me/x", "--message", "with TOKEN"],
            &["push", "out", "me/x", "--revision=TOKEN"],
            &["chat", "TOKEN"],
        ] {
            let error = check(args).unwrap_err();
            assert!(error.contains("access token") && !error.contains(&token), "{error}");
        }
        for args in [
            &["login", "TOKEN"][..],
            &["chat", "out", "-p", "TOKEN"],
            &["chat", "out", "--prompt=TOKEN"],
            &[],
        ] {
            check(args).unwrap();
        }
        check(&["pull", "org/name"]).unwrap();
    }
}
