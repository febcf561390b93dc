//! Jinja in a sandbox, with the settings that transformers uses for chat templates. A template cannot read
//! files, gets the time only through `strftime_now`, and can do only a limited amount of work.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::{template_rewrite, template_values};

/// Maximum fuel of one rendering. One instruction or 64 bytes of text cost one unit of fuel. The amount grows
/// with the conversation. An endless loop uses up this fuel in less than 0.1 seconds.
pub(crate) const BASE_FUEL: u64 = 1_000_000;

/// The filter that replaces a `{% generation %}` block. The filter writes one marker character before its
/// text and one after its text.
const GENERATION: &str = "danlu_generation";
pub(crate) const OPEN: &str = "danlu_generation_open";
pub(crate) const CLOSE: &str = "danlu_generation_close";

/// The source of an error that a template raises with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Raised(pub String);

/// Maximum number of characters in the message of `raise_exception`.
const MAX_RAISED_CHARS: usize = 2000;

/// Maximum number of blanks for each level of the indentation of `tojson`.
const MAX_INDENT: usize = 64;
/// Maximum length of the separators of `tojson`.
const MAX_SEPARATORS: usize = 64;

/// The clock of a template, which returns a fixed number of seconds since 1970 or the time of the system.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<AtomicU64>);

impl Clock {
    /// Value for a clock that returns the time of the system.
    const SYSTEM: u64 = u64::MAX;

    pub fn system() -> Self {
        Self(Arc::new(AtomicU64::new(Self::SYSTEM)))
    }

    /// Fixes the time of this clock and of all its clones to `seconds`. With `None`, the clock follows the
    /// time of the system again.
    pub fn set(&self, seconds: Option<u64>) {
        self.0.store(seconds.unwrap_or(Self::SYSTEM), Ordering::Relaxed);
    }

    /// Returns the date in the form `YYYY-MM-DD`.
    pub fn date(&self) -> String {
        utc(self.now()).date_naive().to_string()
    }

    fn now(&self) -> u64 {
        match self.0.load(Ordering::Relaxed) {
            Self::SYSTEM => u64::try_from(Utc::now().timestamp()).unwrap_or(0),
            seconds => seconds,
        }
    }
}

/// Returns the syntax of chat templates. The blanks before a block tag and the line break after the tag are
/// removed.
pub(crate) fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.expect("the default delimiters are valid")
}

/// Returns an environment like transformers' `ImmutableSandboxedEnvironment`. Block tags are trimmed, and
/// loop controls and the methods of Python's types are available.
pub(crate) fn environment(clock: Clock) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_syntax(syntax());
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(BASE_FUEL));
    env.set_unknown_method_callback(python_method);
    env.set_formatter(|out, state, value| match value.kind() {
        // Constants are spelled as in Python.
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        _ => {
            template_values::check_written(state, value, 0)?;
            minijinja::escape_formatter(out, state, value)
        }
    });
    env.remove_global("debug");
    env.add_filter(template_rewrite::BOUND, template_values::bound);
    env.add_filter(template_rewrite::BOUND_MEMBER, template_values::bound_member);
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let message: String = message.to_string().chars().take(MAX_RAISED_CHARS).collect();
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: &str| strftime(format, clock.now()));
    env.add_filter("tojson", tojson);
    env.add_filter(GENERATION, |state: &State, body: &str| {
        let sentinel = |name| state.lookup(name).map(|v| v.to_string()).unwrap_or_default();
        format!("{}{body}{}", sentinel(OPEN), sentinel(CLOSE))
    });
    env
}

/// Rewrites transformers' `{% generation %}` blocks, which Jinja does not have, to filter blocks with the
/// same white space. Also returns whether there were any such blocks.
pub(crate) fn rewrite_generation(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source;
    let mut any = false;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let body = &tag[..end];
        let word = match body.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace()) {
            "generation" => "generation",
            "endgeneration" => "endgeneration",
            _ => continue,
        };
        let replacement = if word == "generation" { &format!("filter {GENERATION}") } else { "endfilter" };
        out.push_str(&body.replacen(word, replacement, 1));
        rest = &tag[end..];
        any = true;
    }
    out.push_str(rest);
    (out, any)
}

/// Implements the methods of Python's strings, lists and dictionaries that templates call.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        // minijinja charges fuel only for the text that a method returns. The text that the method reads is
        // charged here.
        state.consume_fuel(1 + text.len() as u64 / 64)?;
        let cut = match method {
            "removeprefix" => str::strip_prefix::<&str>,
            "removesuffix" => str::strip_suffix::<&str>,
            "format" => {
                template_values::check_format(state, text, args)?;
                return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
            }
            "join" => {
                args.iter().try_for_each(|list| template_values::check_written(state, list, 0))?;
                return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
            }
            _ => return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
        };
        let (end,): (&str,) = minijinja::value::from_args(args)?;
        return Ok(Value::from(cut(text, end).unwrap_or(text)));
    }
    if method == "count" {
        template_values::check_written(state, value, 0)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Implements `json.dumps` with the defaults of transformers. The separators are `", "` and `": "`, and
/// non-ASCII characters are not escaped.
fn tojson(state: &State, value: Value, positional: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let escape_ascii = match positional.first() {
        Some(flag) => flag.is_true(),
        None => options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    let indent = match positional.get(1) {
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(usize::try_from(indent.clone())?),
        None => options.get::<Option<usize>>("indent")?,
    };
    if let Some(indent) = indent.filter(|&indent| indent > MAX_INDENT) {
        let message = format!("tojson: an indent of {indent}, expected at most {MAX_INDENT}");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let (item, key) = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are a pair")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    if item.len() + key.len() > MAX_SEPARATORS {
        let message = format!(
            "tojson: separators of {} characters, expected at most {MAX_SEPARATORS}",
            item.len() + key.len()
        );
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    template_values::check_written(state, &value, indent.unwrap_or(0))?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut json = serde_json::to_value(&value).map_err(failed)?;
    if sort {
        json.sort_all_objects();
    }
    let style = PythonStyle { indent, item, key, escape_ascii, depth: 0, has_items: false };
    let mut out = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut out, style)).map_err(failed)?;
    String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

struct PythonStyle {
    indent: Option<usize>,
    item: String,
    key: String,
    escape_ascii: bool,
    depth: usize,
    has_items: bool,
}

impl PythonStyle {
    fn new_line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        (0..indent * self.depth).try_for_each(|_| out.write_all(b" "))
    }

    fn begin<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_items = false;
        out.write_all(bracket)
    }

    fn end<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_items {
            self.new_line(out)?;
        }
        self.has_items = true;
        out.write_all(bracket)
    }

    fn next<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.has_items = true;
        self.new_line(out)
    }
}

impl Formatter for PythonStyle {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        if !self.escape_ascii {
            return out.write_all(text.as_bytes());
        }
        let mut units = [0; 2];
        text.chars().try_for_each(|c| match c {
            // Python and serde_json do not escape DEL.
            c if c.is_ascii() => write!(out, "{c}"),
            c => c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}")),
        })
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        match escape {
            CharEscape::Quote => out.write_all(b"\\\""),
            CharEscape::ReverseSolidus => out.write_all(b"\\\\"),
            CharEscape::Solidus => out.write_all(b"/"),
            CharEscape::Backspace => out.write_all(b"\\b"),
            CharEscape::FormFeed => out.write_all(b"\\f"),
            CharEscape::LineFeed => out.write_all(b"\\n"),
            CharEscape::CarriageReturn => out.write_all(b"\\r"),
            CharEscape::Tab => out.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(out, "\\u{byte:04x}"),
        }
    }
}

/// Formats a time by `strftime` codes, in UTC. A date in a prompt must not depend on the time zone of the
/// machine.
///
/// Only those codes are supported that give the same output in Python and in this crate's formatter.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    const CODES: &str = "YymBbhdAaHIMSpFTZ%";
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        let code = match chars.next() {
            Some('-') => chars.next(),
            code => code,
        };
        if !code.is_some_and(|code| CODES.contains(code)) {
            let code = code.map_or_else(String::new, String::from);
            let message = format!("strftime_now: the code `%{code}` is not supported");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(utc(seconds).format(format).to_string())
}

/// Returns the UTC time at `seconds` since 1970, or the last time that can be represented.
fn utc(seconds: u64) -> DateTime<Utc> {
    let time = i64::try_from(seconds).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    time.unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let value: serde_json::Value =
            serde_json::from_str(r#"{"b": [1, 2.5, {}, []], "a": "甄\"\n", "n": null}"#).unwrap();
        environment(Clock::system())
            .render_str(source, minijinja::context! { x => Value::from(minijinja::value::Serde(value)), none_ => (), yes => true })
            .unwrap()
    }

    #[test]
    fn tojson_writes_what_python_writes() {
        assert_eq!(render("{{ x | tojson }}"), r#"{"b": [1, 2.5, {}, []], "a": "甄\"\n", "n": null}"#);
        assert_eq!(render("{{ x.a | tojson(ensure_ascii=true) }}"), r#""\u7504\"\n""#);
        assert_eq!(
            render("{{ x | tojson(indent=2) }}"),
            "{\n  \"b\": [\n    1,\n    2.5,\n    {},\n    []\n  ],\n  \"a\": \"甄\\\"\\n\",\n  \"n\": null\n}"
        );
        assert_eq!(render("{{ x.b | tojson(separators=(',', ':')) }}"), "[1,2.5,{},[]]");
        assert_eq!(render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}"), r#"{"a": 2, "b": 1}"#);
    }

    #[test]
    fn python_methods_and_constants_are_known() {
        assert_eq!(render("{{ 'a-b'.split('-')[-1].upper() }}{{ ' x '.strip() }}"), "Bx");
        assert_eq!(render("{{ 'abc'.removeprefix('a').removesuffix('c') }}{{ x.get('q', 'd') }}"), "bd");
        assert_eq!(render("{{ none_ }} {{ yes }} {{ missing }}"), "None True ");
        assert_eq!(
            render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"),
            "01"
        );
    }

    #[test]
    fn block_tags_take_their_whole_line() {
        assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
    }

    #[test]
    fn generation_tags_become_filters_in_place() {
        let (text, any) = rewrite_generation("{%- generation -%} x {%+ endgeneration %}{% if generation %}");
        assert!(any);
        assert_eq!(text, "{%- filter danlu_generation -%} x {%+ endfilter %}{% if generation %}");
        assert!(!rewrite_generation("{% set generation = 1 %}{{ generation }} {% unclosed").1);
    }

    #[test]
    fn dates_are_the_calendars() {
        // The expected text is the output of `date -u -d @N`.
        assert_eq!(strftime("%d %b %Y %H:%M:%S %a", 0).unwrap(), "01 Jan 1970 00:00:00 Thu");
        assert_eq!(strftime("%-d %B %Y, %A %I%p", 1_709_212_500).unwrap(), "29 February 2024, Thursday 01PM");
        assert_eq!(strftime("%F %T %%", 4_102_444_799).unwrap(), "2099-12-31 23:59:59 %");
        assert!(strftime("%Q", 0).unwrap_err().to_string().contains("`%Q`"));
    }

    #[test]
    fn a_stopped_clock_tells_one_day_to_every_copy() {
        let clock = Clock::system();
        let env = environment(clock.clone());
        let today = |env: &Environment<'_>| env.render_str("{{ strftime_now('%d %b %Y') }}", ()).unwrap();
        clock.set(Some(1_709_212_500));
        assert_eq!(today(&env.clone()), "29 Feb 2024");
        clock.set(None);
        assert_ne!(today(&env), "29 Feb 2024");
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        for source in [
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "{{ 'x' * 99999999999 }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ [1] | tojson(indent=4000000000) }}",
        ] {
            assert!(environment(Clock::system()).render_str(source, ()).is_err(), "{source}");
        }
    }
}
