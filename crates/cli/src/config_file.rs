//! `--config run.toml`: the flags of a command, written in a file.
//!
//! Every key is a flag without its dashes, `lora_r` or `lora-r`. The flag's own parser reads the value, so
//! the file accepts exactly what the command line accepts. Flags take precedence over the file.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Command;
use toml::de::{DeTable, DeValue};

use crate::clap_error::usage;
use crate::diagnostic::{Diagnostic, Result, Snippet};
use crate::terminal_text;

/// Largest configuration file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// A configuration file, checked key by key against a command's flags.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    source: String,
    entries: BTreeMap<String, Entry>,
}

/// One key: its arguments, and the place of its value.
#[derive(Clone, Debug)]
struct Entry {
    args: Vec<String>,
    span: Range<usize>,
}

impl ConfigFile {
    /// Reads the file at `path`, whose keys are the long flags of `command`.
    ///
    /// # Errors
    /// If it cannot be read, is no TOML, has a key that is no flag, or a value its flag refuses. The place
    /// is underlined.
    pub fn read(path: &Path, command: &Command) -> Result<Self> {
        let cannot_read = |error| Diagnostic::io("read", path, error);
        let size = fs::metadata(path).map_err(cannot_read)?.len();
        if size > MAX_BYTES {
            return Err(Diagnostic::input(format!(
                "`{}` is {}, expected a configuration of at most {}",
                path.display(),
                terminal_text::bytes(size),
                terminal_text::bytes(MAX_BYTES)
            )));
        }
        let source = fs::read_to_string(path).map_err(cannot_read)?;
        Self::parse(path, source, command)
    }

    fn parse(path: &Path, source: String, command: &Command) -> Result<Self> {
        let name = &path.display().to_string();
        let snippet = |span: Range<usize>| Some(Snippet::new(name, source.clone(), span));
        let table = DeTable::parse(&source).map_err(|error| {
            let place = error.span().and_then(snippet);
            Diagnostic::input(error.message().to_owned()).with_snippet(place)
        })?;

        let mut entries = BTreeMap::new();
        for (key, value) in table.get_ref() {
            let flag = key.get_ref().replace('_', "-");
            let known = || flags(command);
            if !known().any(|known| known == flag) {
                let hint = match danlu_data::closest_word(&flag, known()) {
                    Some(near) => format!("did you mean `{}`?", near.replace('-', "_")),
                    None => "the keys are the command's flags without their dashes: see `danlu train --help`"
                        .into(),
                };
                let diagnostic = Diagnostic::input(format!("unknown key `{}`", key.get_ref()));
                return Err(diagnostic.with_snippet(snippet(key.span())).with_hint(hint));
            }
            let args = arguments(&flag, value.get_ref()).map_err(|found| {
                let diagnostic =
                    Diagnostic::input(format!("`{}` is {found}, expected a single value", key.get_ref()));
                diagnostic.with_snippet(snippet(value.span()))
            })?;
            check(command, &args).map_err(|diagnostic| diagnostic.with_snippet(snippet(value.span())))?;
            if entries.insert(flag, Entry { args, span: value.span() }).is_some() {
                let diagnostic = Diagnostic::input(format!("`{}` is given twice", key.get_ref()));
                return Err(diagnostic.with_snippet(snippet(key.span())));
            }
        }
        Ok(Self { path: path.to_owned(), source, entries })
    }

    /// Removes the keys for which `given` is true.
    pub fn without(mut self, given: impl Fn(&str) -> bool) -> Self {
        self.entries.retain(|flag, _| !given(flag));
        self
    }

    /// The arguments of every key.
    pub fn args(&self) -> Vec<String> {
        self.entries.values().flat_map(|entry| entry.args.iter().cloned()).collect()
    }

    /// The values of `flag`: one, several for a list, or none if the key is missing.
    pub fn values(&self, flag: &str) -> Vec<&str> {
        let args = self.entries.get(flag).map_or(&[][..], |entry| &entry.args);
        args.iter().filter_map(|arg| arg.strip_prefix("--")?.strip_prefix(flag)?.strip_prefix('=')).collect()
    }

    /// The folder that the file lies in.
    pub fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// The place of the value of `flag`, narrowed to `part` if that occurs in it.
    pub fn snippet(&self, flag: &str, part: &str) -> Option<Snippet> {
        let span = self.entries.get(flag)?.span.clone();
        let value = self.source.get(span.clone())?;
        let at = value.find(part).filter(|_| !part.is_empty());
        let inner = at.map(|at| span.start + at..span.start + at + part.len());
        Some(Snippet::new(self.path.display().to_string(), &self.source, inner.unwrap_or(span)))
    }
}

/// The long flags that a file may set.
fn flags(command: &Command) -> impl Iterator<Item = &str> {
    let own = command.get_arguments().filter_map(|arg| arg.get_long());
    own.filter(|flag| !["config", "help", "resume-or-start", "version"].contains(flag))
}

/// A value as arguments; `Err` names a kind of value that no flag takes.
fn arguments(flag: &str, value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
    Ok(match value {
        // A switch that is off is an absent flag, unless the flag takes `=false`.
        DeValue::Boolean(false) if flag == "resume" => vec![],
        DeValue::Boolean(true) if flag == "resume" => vec!["--resume".to_owned()],
        DeValue::Array(items) if flag == "target-modules" => {
            let names: Result<Vec<_>, _> = items.iter().map(|item| scalar(item.get_ref())).collect();
            vec![format!("--{flag}={}", names?.join(","))]
        }
        DeValue::Array(items) if flag == "data" => {
            let files =
                items.iter().map(|item| Ok::<_, &str>(format!("--{flag}={}", scalar(item.get_ref())?)));
            files.collect::<Result<_, &str>>()?
        }
        other => vec![format!("--{flag}={}", scalar(other)?)],
    })
}

fn scalar(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Float(number) => Ok(number.to_string()),
        DeValue::Boolean(switch) => Ok(switch.to_string()),
        DeValue::Datetime(_) => Err("a date"),
        DeValue::Array(_) => Err("a list"),
        DeValue::Table(_) => Err("a table"),
    }
}

/// Checks one value with the flag's own parser.
fn check(command: &Command, args: &[String]) -> Result<()> {
    let alone = command.clone().mut_args(|arg| arg.required(false)).no_binary_name(true);
    alone.try_get_matches_from(args).map(drop).map_err(|error| usage(&error))
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn command() -> Command {
        Command::new("train")
            .arg(Arg::new("lora_r").long("lora-r").value_parser(clap::value_parser!(u32)))
            .arg(Arg::new("learning_rate").long("learning-rate").value_parser(clap::value_parser!(f64)))
            .arg(Arg::new("target_modules").long("target-modules"))
            .arg(Arg::new("data").long("data").action(ArgAction::Append))
            .arg(Arg::new("dtype").long("dtype").value_parser(["f32", "bf16"]))
            .arg(Arg::new("config").long("config"))
    }

    fn parse(source: &str) -> Result<ConfigFile, String> {
        ConfigFile::parse(Path::new("run.toml"), source.to_owned(), &command())
            .map_err(|diagnostic| diagnostic.render(false))
    }

    #[test]
    fn keys_become_flags_with_dashes_or_underscores() {
        let file = parse(
            "lora_r = 16\nlearning-rate = 2e-4\ntarget_modules = [\"q_proj\", \"v_proj\"]\ndata = [\"a\", \"b\"]",
        );
        let file = file.unwrap();
        assert_eq!(
            file.args(),
            ["--data=a", "--data=b", "--learning-rate=2e-4", "--lora-r=16", "--target-modules=q_proj,v_proj"]
        );
        assert_eq!(file.values("data"), ["a", "b"]);
        assert_eq!((file.values("lora"), file.folder()), (vec![], Path::new(".")));
        assert_eq!(file.without(|flag| flag != "lora-r").args(), ["--lora-r=16"]);
    }

    #[test]
    fn a_misspelt_key_is_underlined_with_its_neighbour() {
        let expected = "\
error: unknown key `lerning_rate`
    ╭─[run.toml:2:1]
  2 │ lerning_rate = 1e-4
    · ────────────

hint: did you mean `learning_rate`?
";
        assert_eq!(parse("# a run\nlerning_rate = 1e-4").unwrap_err(), expected);
        assert!(parse("config = \"other.toml\"").is_err());
    }

    #[test]
    fn a_bad_value_is_underlined_with_what_is_expected() {
        let expected = "\
error: invalid value `fp8` for `--dtype <dtype>`: expected one of f32, bf16
    ╭─[run.toml:1:9]
  1 │ dtype = \"fp8\"
    ·         ─────
";
        assert_eq!(parse("dtype = \"fp8\"").unwrap_err(), expected);
        assert!(parse("lora_r = -1").unwrap_err().contains("  1 │ lora_r = -1\n    ·          ──\n"));
        assert!(
            parse("lora_r = [1]")
                .unwrap_err()
                .starts_with("error: `lora_r` is a list, expected a single value\n")
        );
        assert!(parse("[train]\nlora_r = 1").unwrap_err().starts_with("error: unknown key `train`\n"));
    }

    #[test]
    fn one_setting_in_two_spellings_is_refused() {
        assert!(parse("lora_r = 1\nlora-r = 2").unwrap_err().starts_with("error: `lora-r` is given twice\n"));
    }

    #[test]
    fn broken_toml_is_underlined() {
        assert!(parse("lora_r = = 3").unwrap_err().contains("╭─[run.toml:1:10]"));
    }

    #[test]
    fn a_place_can_be_narrowed_to_one_item() {
        let file = parse("target_modules = [\"q_porj\", \"v_proj\"]").unwrap();
        let diagnostic = Diagnostic::input("x").with_snippet(file.snippet("target-modules", "q_porj"));
        assert!(
            diagnostic.render(false).contains("·                    ──────\n"),
            "{}",
            diagnostic.render(false)
        );
        let diagnostic = Diagnostic::input("x").with_snippet(file.snippet("target-modules", ""));
        let whole = format!("·                  {}\n", "─".repeat(20));
        assert!(diagnostic.render(false).contains(&whole), "{}", diagnostic.render(false));
    }
}
