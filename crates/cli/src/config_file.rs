//! `--config run.toml`: reads the flags of a command from a TOML, YAML or JSON file.
//!
//! Files of axolotl, LLaMA-Factory, TRL and mlx-lm are translated (see [`peer_config`](crate::peer_config)).
//! In danlu's own files, every key is a flag without its dashes, such as `lora_r` or `lora-r`. The flag's own
//! parser reads the value, so the file accepts exactly the values that the command line accepts. Flags on the
//! command line take precedence over the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Command;
use danlu_model::files;
use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use crate::clap_error::usage;
use crate::diagnostic::{Diagnostic, Result, Snippet};
use crate::peer_config::{Tool, Translation};
use crate::peer_flags::{self, PeerFlag};
use crate::terminal_text;

/// Flags whose value in a file may be a list. The flag separates the items by commas.
const LISTS: [&str; 3] = ["target-modules", "exclude-modules", "layers-to-transform"];

/// Flags whose value in a file may be a table.
const TABLES: [&str; 2] = ["rank-pattern", "alpha-pattern"];

/// Largest configuration file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// A configuration file, checked key by key against a command's flags.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    source: String,
    entries: BTreeMap<String, Entry>,
    translation: Option<Translation>,
}

/// One key of the file: its arguments, and the byte range of its value.
#[derive(Clone, Debug)]
struct Entry {
    args: Vec<String>,
    span: Range<usize>,
}

impl ConfigFile {
    /// Reads the file at `path`, whose keys are the long flags of `command`.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, a key is not a flag, or a flag rejects its value. The error
    /// underlines the position in the file.
    pub fn read(path: &Path, command: &Command) -> Result<Self> {
        let cannot_read = |error| Diagnostic::io("read", path, error);
        // A file below `/dev` or `/proc` may be a pipe of the shell, such as `<(translate a.yaml)`.
        let file = match path.starts_with("/dev") || path.starts_with("/proc") {
            true => File::open(path).map_err(cannot_read)?,
            false => files::open_regular(path)?,
        };
        let mut source = String::new();
        let size = file.metadata().map_err(cannot_read)?.len();
        // A device such as `/dev/zero` has no end, so the read stops after the limit.
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut source);
        let size = size.max(read.as_ref().map_or(0, |bytes| *bytes as u64));
        if size > MAX_BYTES || source.len() as u64 > MAX_BYTES {
            return Err(Diagnostic::input(format!(
                "`{}` is {}, expected a configuration of at most {}",
                path.display(),
                terminal_text::bytes(size),
                terminal_text::bytes(MAX_BYTES)
            )));
        }
        read.map_err(cannot_read)?;
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "yaml" | "yml" => Self::of_keys(path, parse_yaml(path, &source)?, source, command),
            "json" => Self::of_keys(path, parse_json(path, &source)?, source, command),
            _ => Self::parse(path, source, command),
        }
    }

    /// Converts the keys of a YAML or JSON file. The keys are danlu's own or those of another tool.
    fn of_keys(path: &Path, keys: Map<String, Value>, source: String, command: &Command) -> Result<Self> {
        let snippet = |key: &str| {
            let span = find_value(&source, key)?;
            Some(Snippet::new(path.display().to_string(), source.clone(), span))
        };
        let span = |key: &str| find_value(&source, key).unwrap_or_default();
        let mut entries = BTreeMap::new();
        let translation = match Tool::recognize(&keys) {
            Some(tool) => Some(Translation::of(tool, &keys, command)?),
            None => None,
        };
        if let Some(translation) = &translation {
            for (key, (flag, values)) in translation.flags() {
                let args: Vec<String> = values.iter().map(|value| format!("--{flag}={value}")).collect();
                check(command, &args).map_err(|diagnostic| diagnostic.with_snippet(snippet(key)))?;
                // Two keys may set one flag, such as `adapter: qlora` and `load_in_4bit`.
                entries.entry(flag.clone()).or_insert(Entry { args, span: span(key) });
            }
            return Ok(Self {
                path: path.to_owned(),
                source,
                entries,
                translation: Some(translation.clone()),
            });
        }
        for (key, value) in &keys {
            let flag =
                known_flag(key, command).map_err(|diagnostic| diagnostic.with_snippet(snippet(key)))?;
            let args = json_arguments(&flag, value).ok_or_else(|| {
                Diagnostic::input(format!("`{key}` is a table, expected a single value"))
                    .with_snippet(snippet(key))
            })?;
            check(command, &args).map_err(|diagnostic| diagnostic.with_snippet(snippet(key)))?;
            if entries.insert(flag, Entry { args, span: span(key) }).is_some() {
                return Err(Diagnostic::input(format!("`{key}` is given twice")).with_snippet(snippet(key)));
            }
        }
        Ok(Self { path: path.to_owned(), source, entries, translation })
    }

    /// Returns the translation, if the file belongs to another tool.
    pub fn translation(&self) -> Option<&Translation> {
        self.translation.as_ref()
    }

    /// Returns the configuration as TOML with danlu's keys.
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::new();
        for flag in self.entries.keys() {
            let values: Vec<toml::Value> = self.values(flag).into_iter().map(toml_value).collect();
            let value = match <[toml::Value; 1]>::try_from(values) {
                Ok([value]) => value,
                Err(values) => values.into(),
            };
            table.insert(flag.replace('-', "_"), value);
        }
        table.to_string()
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
            let flag = known_flag(key.get_ref(), command)
                .map_err(|diagnostic| diagnostic.with_snippet(snippet(key.span())))?;
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
        Ok(Self { path: path.to_owned(), source, entries, translation: None })
    }

    pub fn without(mut self, given: impl Fn(&str) -> bool) -> Self {
        self.entries.retain(|flag, _| !given(flag));
        self
    }

    pub fn args(&self) -> Vec<String> {
        self.entries.values().flat_map(|entry| entry.args.iter().cloned()).collect()
    }

    /// Returns the values of `flag`: several for a list, and none if the file lacks the flag.
    pub fn values(&self, flag: &str) -> Vec<&str> {
        let args = self.entries.get(flag).map_or(&[][..], |entry| &entry.args);
        args.iter().filter_map(|arg| arg.strip_prefix("--")?.strip_prefix(flag)?.strip_prefix('=')).collect()
    }

    pub fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Returns the position of the value of `flag`. If the value contains `part`, returns the position of
    /// `part`.
    pub fn snippet(&self, flag: &str, part: &str) -> Option<Snippet> {
        let span = self.entries.get(flag)?.span.clone();
        let value = self.source.get(span.clone())?;
        let at = value.find(part).filter(|_| !part.is_empty());
        let inner = at.map(|at| span.start + at..span.start + at + part.len());
        Some(Snippet::new(self.path.display().to_string(), &self.source, inner.unwrap_or(span)))
    }
}

/// Returns the flag that a key sets. The key is the flag's own name, or another tool's name for the flag,
/// such as `lr` for `learning-rate`.
fn known_flag(key: &str, command: &Command) -> Result<String> {
    let name = key.replace('_', "-");
    let known = || flags(command);
    if known().any(|known| known == name) {
        return Ok(name);
    }
    let unknown = Diagnostic::input(format!("unknown key `{key}`"));
    match peer_flags::meaning(&name) {
        Some(PeerFlag::Same(same)) => {
            if let Some(flag) = same.iter().find(|flag| known().any(|known| known == **flag)) {
                return Ok((*flag).to_owned());
            }
        }
        Some(PeerFlag::Switch(args)) => {
            let (flag, value) = args.trim_start_matches("--").split_once('=').unwrap_or((args, "true"));
            return Err(unknown.with_hint(format!("write `{} = \"{value}\"`", flag.replace('-', "_"))));
        }
        Some(PeerFlag::Advice(hint, _)) => return Err(unknown.with_hint(hint)),
        None => {}
    }
    Err(unknown.with_hint(match peer_flags::close(&name, known()) {
        Some(near) => format!("did you mean `{}`?", near.replace('-', "_")),
        None => "write the command's flags without their dashes: `danlu train --help` lists them".into(),
    }))
}

/// Parses YAML. Aliases are expanded within the parser's limits.
fn parse_yaml(path: &Path, source: &str) -> Result<Map<String, Value>> {
    let name = path.display();
    let keys: Value = serde_saphyr::from_str(source).map_err(|error| {
        let message = error.to_string();
        let reason = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Diagnostic::input(format!("cannot read `{name}`: {reason}"))
            .with_hint("correct the YAML, or pass the settings as flags")
    })?;
    top_level(path, keys)
}

fn parse_json(path: &Path, source: &str) -> Result<Map<String, Value>> {
    let keys: Value = serde_json::from_str(source).map_err(|error| {
        Diagnostic::input(format!("cannot read `{}`: {error}", path.display()))
            .with_hint("correct the JSON, or pass the settings as flags")
    })?;
    top_level(path, keys)
}

fn top_level(path: &Path, keys: Value) -> Result<Map<String, Value>> {
    match keys {
        Value::Object(keys) => Ok(keys),
        _ => {
            let text = format!("cannot read `{}`: expected keys with values", path.display());
            Err(Diagnostic::input(text).with_hint("write one setting per line, such as `base: models/base`"))
        }
    }
}

/// Returns the range of the value of a top-level key in YAML or JSON. The value must be on the line of the
/// key.
fn find_value(source: &str, key: &str) -> Option<Range<usize>> {
    let mut start = 0;
    for line in source.split_inclusive('\n') {
        let text = line.trim_start_matches(['"', '\'', ' ', '{', ',']);
        let rest = text.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'', ' ']));
        if let Some(value) = rest.and_then(|rest| rest.strip_prefix(':')) {
            let value = value.trim_start();
            let from = start + line.len() - value.len();
            return Some(from..from + value.trim_end().trim_end_matches(',').len());
        }
        start += line.len();
    }
    None
}

fn json_arguments(flag: &str, value: &Value) -> Option<Vec<String>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(switch) => Some(switch.to_string()),
        _ => None,
    };
    match value {
        Value::Null => Some(Vec::new()),
        Value::Bool(switch) if flag == "resume" => {
            Some(switch.then(|| "--resume".to_owned()).into_iter().collect())
        }
        Value::Array(items) if flag == "data" => {
            items.iter().map(|item| Some(format!("--{flag}={}", scalar(item)?))).collect()
        }
        Value::Object(_) if TABLES.contains(&flag) => Some(vec![format!("--{flag}={value}")]),
        Value::Array(items) if LISTS.contains(&flag) => {
            let names = items.iter().map(scalar).collect::<Option<Vec<_>>>()?;
            Some(vec![format!("--{flag}={}", names.join(","))])
        }
        other => {
            let value = scalar(other)?;
            Some(vec![format!("--{flag}={}", peer_flags::own_value(flag, &value).unwrap_or(&value))])
        }
    }
}

/// Converts a flag's value to TOML. A text that parses as a number or a boolean becomes a number or a
/// boolean.
fn toml_value(text: &str) -> toml::Value {
    if let Ok(number) = text.parse::<i64>() {
        return number.into();
    }
    match (text.parse::<bool>(), text.parse::<f64>()) {
        (Ok(switch), _) => switch.into(),
        (_, Ok(number)) if number.is_finite() => number.into(),
        _ => text.into(),
    }
}

/// Returns the long flags that a file may set.
fn flags(command: &Command) -> impl Iterator<Item = &str> {
    let own = command.get_arguments().filter_map(|arg| arg.get_long());
    own.filter(|flag| !["config", "help", "json", "open", "resume-or-start", "version"].contains(flag))
}

/// Converts a value to arguments. For a value that no flag accepts, `Err` is its kind, such as `a date`.
fn arguments(flag: &str, value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
    Ok(match value {
        // `--resume` takes a checkpoint and no boolean. `resume = true` therefore becomes a bare `--resume`,
        // and `resume = false` becomes nothing.
        DeValue::Boolean(false) if flag == "resume" => vec![],
        DeValue::Boolean(true) if flag == "resume" => vec!["--resume".to_owned()],
        DeValue::Table(table) if TABLES.contains(&flag) => {
            let mut object = Map::new();
            for (key, value) in table {
                let number = scalar(value.get_ref())?.parse();
                let number = number.map_err(|_| "a table with a value that is no number")?;
                object.insert(key.get_ref().to_string(), Value::Number(number));
            }
            vec![format!("--{flag}={}", Value::Object(object))]
        }
        DeValue::Array(items) if LISTS.contains(&flag) => {
            let names: Result<Vec<_>, _> = items.iter().map(|item| scalar(item.get_ref())).collect();
            vec![format!("--{flag}={}", names?.join(","))]
        }
        DeValue::Array(items) if flag == "data" => {
            let files =
                items.iter().map(|item| Ok::<_, &str>(format!("--{flag}={}", scalar(item.get_ref())?)));
            files.collect::<Result<_, &str>>()?
        }
        other => {
            let value = scalar(other)?;
            vec![format!("--{flag}={}", peer_flags::own_value(flag, &value).unwrap_or(&value))]
        }
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
            .arg(Arg::new("layers_to_transform").long("layers-to-transform"))
            .arg(Arg::new("rank_pattern").long("rank-pattern"))
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
    fn lists_and_tables_become_one_argument() {
        let file = parse("layers_to_transform = [0, 3]\nrank_pattern = { v_proj = 4, \"a.b\" = 2 }").unwrap();
        assert_eq!(file.values("layers-to-transform"), ["0,3"]);
        assert_eq!(file.values("rank-pattern"), [r#"{"v_proj":4,"a.b":2}"#]);
        assert!(parse("rank_pattern = { v_proj = \"x\" }").unwrap_err().contains("that is no number"));
        assert!(parse("rank_pattern = { v_proj = [1] }").unwrap_err().contains("is a list"));
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

    fn written(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn yaml_and_json_set_the_same_flags_as_toml() {
        for (name, text) in [
            (
                "a.yaml",
                "lora_r: 16\nlearning-rate: 2e-4\ntarget_modules: [q_proj, v_proj]\ndata:\n  - a\n  - b\n",
            ),
            (
                "a.json",
                r#"{"lora_r": 16, "learning_rate": 2e-4, "target_modules": ["q_proj", "v_proj"], "data": ["a", "b"]}"#,
            ),
        ] {
            let (_folder, path) = written(name, text);
            let file = ConfigFile::read(&path, &command()).unwrap();
            assert_eq!(file.values("lora-r"), ["16"], "{name}");
            assert_eq!(file.values("learning-rate"), ["0.0002"], "{name}");
            assert_eq!(file.values("target-modules"), ["q_proj,v_proj"], "{name}");
            assert_eq!(file.values("data"), ["a", "b"], "{name}");
            let again = ConfigFile::parse(Path::new("a.toml"), file.to_toml(), &command()).unwrap();
            assert_eq!(again.args(), file.args(), "{name}");
        }
    }

    #[test]
    fn faults_of_yaml_and_json_are_named() {
        for (name, text, says) in [
            ("a.yaml", "lora_r: [16", "error: cannot read `"),
            ("a.yaml", "- a\n- b\n", "expected keys with values"),
            ("a.json", "{\"lora_r\": 16,}", "error: cannot read `"),
            ("a.yaml", "lerning_rate: 1\n", "did you mean `learning_rate`?"),
            ("a.yaml", "lora_r: x\n", "  1 │ lora_r: x\n    ·         ─\n"),
            ("a.yaml", "lora_r:\n  a: 1\n", "`lora_r` is a table, expected a single value"),
            ("a.yaml", "gradient_checkpointing: true\n", "--memory-limit"),
        ] {
            let (_folder, path) = written(name, text);
            let error = ConfigFile::read(&path, &command()).unwrap_err().render(false);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn nested_aliases_do_not_exhaust_the_memory() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, before) in "bcdefghijklm".chars().zip("abcdefghijkl".chars()) {
            let items = vec![format!("*{before}"); 9].join(", ");
            text += &format!("{name}: &{name} [{items}]\n");
        }
        let (_folder, path) = written("bomb.yaml", &text);
        assert!(ConfigFile::read(&path, &command()).is_err());
    }
}
