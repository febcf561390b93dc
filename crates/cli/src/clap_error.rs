//! Converts clap's errors about the command line to diagnostics.

use std::any::TypeId;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

use crate::diagnostic::Diagnostic;
use crate::peer_flags;

/// Lets every flag that takes a fraction accept a negative value, such as `-1e-4`. Without this setting, clap
/// would parse the value as a flag, and the error would not show the valid range.
pub fn accept_negative(command: Command) -> Command {
    let fraction = |id: &dyn Fn(TypeId) -> bool| id(TypeId::of::<f64>()) || id(TypeId::of::<f32>());
    let command = command.mut_args(|arg| {
        let parser = arg.get_value_parser().type_id();
        if fraction(&|id| parser == id) { arg.allow_hyphen_values(true) } else { arg }
    });
    command.mut_subcommands(accept_negative)
}

/// Converts clap's error to a diagnostic.
pub fn usage(error: &Error) -> Diagnostic {
    let (arg, value) = (text(error, ContextKind::InvalidArg), text(error, ContextKind::InvalidValue));
    let synopsis = synopsis(error);
    let is_command = |word: &&str| !word.starts_with(['-', '[', '<']);
    let program = synopsis.split_whitespace().take_while(is_command).collect::<Vec<_>>().join(" ");
    let with = |diagnostic: Diagnostic, hint: Option<String>| match hint {
        Some(hint) => diagnostic.with_hint(hint),
        None => diagnostic,
    };
    let meant = |typed: &str, kind| {
        let known = text(error, kind)?;
        let near = peer_flags::close(typed, known.split("`, `"))?;
        Some(format!("did you mean `{near}`?"))
    };
    match (error.kind(), arg, value) {
        (ErrorKind::InvalidSubcommand, ..) => {
            let name = text(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            let hint = peer_flags::command_hint(&name)
                .map(str::to_owned)
                .or_else(|| meant(&name, ContextKind::SuggestedSubcommand))
                .unwrap_or_else(|| format!("`{program} --help` lists the commands"));
            Diagnostic::input(format!("unknown command `{name}`")).with_hint(hint)
        }
        (ErrorKind::UnknownArgument, Some(arg), _) if arg.starts_with('-') => {
            let hint = meant(&arg, ContextKind::SuggestedArg)
                .or_else(|| (!program.is_empty()).then(|| format!("`{program} --help` lists the flags")));
            with(Diagnostic::input(format!("unknown flag `{arg}`")), hint)
        }
        (ErrorKind::UnknownArgument, Some(arg), _) => {
            let diagnostic = Diagnostic::input(format!("unexpected argument `{arg}`"));
            with(diagnostic, (!synopsis.is_empty()).then(|| synopsis.clone()))
        }
        (ErrorKind::MissingRequiredArgument, Some(args), _) => {
            let verb = if args.contains("`, `") { "are" } else { "is" };
            let diagnostic = Diagnostic::input(format!("`{args}` {verb} missing"));
            with(diagnostic, (!synopsis.is_empty()).then(|| synopsis.clone()))
        }
        (ErrorKind::InvalidValue, Some(arg), Some(value)) if value.is_empty() => {
            Diagnostic::input(format!("`{arg}` needs a value"))
        }
        (ErrorKind::InvalidValue, Some(arg), Some(value)) => {
            let known = text(error, ContextKind::ValidValue).unwrap_or_default().replace('`', "");
            Diagnostic::input(format!("invalid value `{value}` for `{arg}`: expected one of {known}"))
        }
        (ErrorKind::ValueValidation, Some(arg), Some(value)) => {
            let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            Diagnostic::input(format!("invalid value `{value}` for `{arg}`: {}", plain(&reason)))
        }
        (ErrorKind::ArgumentConflict, Some(arg), _) => {
            let other = text(error, ContextKind::PriorArg).filter(|other| *other != arg);
            Diagnostic::input(match other {
                Some(other) => format!("`{arg}` and `{other}` cannot be used together"),
                None => format!("`{arg}` is given twice"),
            })
        }
        _ => {
            let message = error.to_string();
            let line = message.lines().next().unwrap_or_default();
            Diagnostic::input(line.trim_start_matches("error: ").replace('\'', "`"))
        }
    }
}

/// Converts an error to a diagnostic. If a separate word follows a flag, as in `--use-dora false`, a hint
/// shows the form `--use-dora=false`.
pub fn of_line(error: &Error, line: &[String]) -> Diagnostic {
    let diagnostic = usage(error);
    let Some(stray) = text(error, ContextKind::InvalidArg).filter(|arg| !arg.starts_with('-')) else {
        return diagnostic;
    };
    let before = line.iter().zip(line.iter().skip(1)).find(|(_, arg)| **arg == stray).map(|(flag, _)| flag);
    match before.filter(|flag| error.kind() == ErrorKind::UnknownArgument && flag.starts_with("--")) {
        Some(flag) => diagnostic.with_hint(format!("write `{flag}`, or `{flag}=false` to switch it off")),
        None => match stray_hint(error) {
            Some(hint) => diagnostic.with_hint(hint),
            None => diagnostic,
        },
    }
}

/// Returns the hint for a value without a flag, if the usage of the command does not help.
fn stray_hint(error: &Error) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let synopsis = synopsis(error);
    let (program, rest) = synopsis.split_once(" [OPTIONS]")?;
    match rest.trim() {
        "" => Some(format!("write the name of a flag before each value; `{program} --help` lists the flags")),
        _ if program.ends_with(" chat") => {
            Some(format!("write a question with its flag: {program} <PATH> --prompt TEXT"))
        }
        _ => None,
    }
}

/// Returns one context value of clap's error. Only the inner backticks of a list are added here: the list
/// `[a, b]` becomes ``a`, `b``.
fn text(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => Some(texts.join("`, `")),
        _ => None,
    }
}

/// Returns the usage of the command on one line.
fn synopsis(error: &Error) -> String {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return String::new() };
    let usage = usage.to_string();
    usage.trim().trim_start_matches("Usage:").trim().to_owned()
}

/// Rewrites the error of a number parser as an expectation, such as `expected a number`.
fn plain(reason: &str) -> String {
    let said = match reason {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "expected a whole number, 0 or more"
        }
        "invalid float literal" | "cannot parse float from empty string" => "expected a number",
        "number too large to fit in target type" => "expected a smaller number",
        "number too small to fit in target type" => "expected a larger number",
        other => {
            let Some((_, range)) = other.split_once(" is not in ") else { return other.to_owned() };
            let (from, to) = range.split_once("..").unwrap_or((range, ""));
            return match to.trim_start_matches('=') {
                "" => format!("expected a whole number, {from} or more"),
                to => format!("expected a whole number from {from} to {to}"),
            };
        }
    };
    said.to_owned()
}

pub fn at_least_one(text: &str) -> Result<usize, String> {
    let number: Option<usize> = text.parse().ok();
    number.filter(|number| *number > 0).ok_or_else(|| "expected a whole number, 1 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction, value_parser};

    use super::*;

    fn command() -> Command {
        let train = Command::new("train")
            .arg(Arg::new("rate").long("rate").value_name("RATE").value_parser(value_parser!(f64)))
            .arg(Arg::new("steps").long("steps").value_name("N").value_parser(value_parser!(u64)))
            .arg(
                Arg::new("threads")
                    .long("threads")
                    .value_name("N")
                    .value_parser(value_parser!(u16).range(1..=8)),
            )
            .arg(Arg::new("batch").long("batch").value_name("N").value_parser(at_least_one))
            .arg(Arg::new("dtype").long("dtype").value_name("TYPE").value_parser(["f32", "bf16"]))
            .arg(Arg::new("packing").long("packing").num_args(0..=1).require_equals(true))
            .arg(Arg::new("all").long("all").action(ArgAction::SetTrue).conflicts_with("steps"));
        let merge = Command::new("merge")
            .arg(Arg::new("adapter").required(true).value_name("ADAPTER"))
            .arg(Arg::new("output").long("output").required(true).value_name("DIR"));
        accept_negative(Command::new("danlu").subcommand_required(true).subcommand(train).subcommand(merge))
    }

    fn refusal(line: &str) -> String {
        let line: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let error = command().try_get_matches_from(&line).unwrap_err();
        let diagnostic = of_line(&error, &line).render(false);
        diagnostic.strip_prefix("error: ").unwrap().trim_end().replace("\n\nhint: ", " | ")
    }

    #[test]
    fn every_mistake_is_told_in_one_sentence() {
        for (line, told) in [
            ("danlu tran", "unknown command `tran` | did you mean `train`?"),
            ("danlu xyz", "unknown command `xyz` | `danlu --help` lists the commands"),
            ("danlu train --rtae 1", "unknown flag `--rtae` | did you mean `--rate`?"),
            ("danlu train --zzz", "unknown flag `--zzz` | `danlu train --help` lists the flags"),
            ("danlu train --rate 1 --zzz", "unknown flag `--zzz` | `danlu train --help` lists the flags"),
            (
                "danlu train x",
                "unexpected argument `x` | write the name of a flag before each value; `danlu train --help` \
                 lists the flags",
            ),
            (
                "danlu train --packing yes",
                "unexpected argument `yes` | write `--packing`, or `--packing=false` to switch it off",
            ),
            ("danlu merge a", "`--output <DIR>` is missing | danlu merge --output <DIR> <ADAPTER>"),
            (
                "danlu merge",
                "`--output <DIR>`, `<ADAPTER>` are missing | danlu merge --output <DIR> <ADAPTER>",
            ),
            ("danlu train --rate", "`--rate <RATE>` needs a value"),
            ("danlu train --rate fast", "invalid value `fast` for `--rate <RATE>`: expected a number"),
            (
                "danlu train --steps x",
                "invalid value `x` for `--steps <N>`: expected a whole number, 0 or more",
            ),
            (
                "danlu train --batch 0",
                "invalid value `0` for `--batch <N>`: expected a whole number, 1 or more",
            ),
            (
                "danlu train --threads 9",
                "invalid value `9` for `--threads <N>`: expected a whole number from 1 to 8",
            ),
            ("danlu train --dtype f8", "invalid value `f8` for `--dtype <TYPE>`: expected one of f32, bf16"),
            ("danlu train --steps 1 --all", "`--all` and `--steps <N>` cannot be used together"),
            ("danlu train --steps 1 --steps 2", "`--steps <N>` is given twice"),
        ] {
            let refused = refusal(line);
            // clap may name the two conflicting flags in either order.
            let turned = refused.replace("`--steps <N>` and `--all`", "`--all` and `--steps <N>`");
            assert_eq!(turned, told, "{line}");
        }
    }

    #[test]
    fn a_negative_fraction_reaches_its_flag() {
        let matches = command().try_get_matches_from(["danlu", "train", "--rate", "-1e-4"]).unwrap();
        let (_, train) = matches.subcommand().unwrap();
        assert_eq!(train.get_one::<f64>("rate"), Some(&-1e-4));
    }
}
