//! Tests the guide in `docs/guide`. Each command of a `console` block runs on the embedded base, and its
//! output must match the page.
//!
//! The pages run in the order of `SUMMARY.md`, and all of them use one folder.
//!
//! - In a `console` block, a line `$ danlu ...` is a command. The lines below a command are a part of its
//!   output.
//! - A block with a second word, such as `csv mine.csv`, is first saved as a file with this name.
//! - In the output on a page, a line `...` matches any number of lines, and `…` matches any text within a
//!   line.
//! - Numbers may differ by 2%, and sizes by 25%. Times and speeds may differ by any amount.
//! - A command must fail if its output on the page contains a line that starts with `error:`. Every other
//!   command must succeed.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::Scene;
use danlu_hub_test_server::HubServer;

const LANGUAGES: [(&str, &str); 2] = [("en", "README.md"), ("zh", "README.zh.md")];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns the targets of the Markdown links in a page.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(link, _)| link)).collect()
}

/// Returns the pages of a guide, in the order of `SUMMARY.md`.
fn pages(language: &str) -> Vec<PathBuf> {
    let folder = repository().join("docs/guide").join(language);
    let summary = fs::read_to_string(folder.join("SUMMARY.md")).unwrap();
    links(&summary).into_iter().map(|link| folder.join(link)).collect()
}

/// A fenced block, with the words after the fence and the lines inside.
struct Block<'a> {
    info: Vec<&'a str>,
    lines: Vec<&'a str>,
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let fenced = page.split("\n```").skip(1).step_by(2);
    let block = |text| {
        let (info, body) = str::split_once(text, '\n').unwrap_or((text, ""));
        Block { info: info.split_whitespace().collect(), lines: body.lines().collect() }
    };
    fenced.map(block).collect()
}

/// Returns the commands of a block, each with the output lines that the page shows.
fn commands<'a>(block: &Block<'a>) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for &line in &block.lines {
        match (line.strip_prefix("$ "), found.last_mut()) {
            (Some(command), _) => found.push((command, Vec::new())),
            (None, Some((_, shown))) => shown.push(line),
            (None, None) => panic!("a console block starts with output: {line}"),
        }
    }
    found
}

/// Splits a command line into words. Double quotes keep the blanks of a word.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The kind of a number, which determines how far the number may be from the number on the page.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Size,
    Speed,
}

#[derive(Clone, Copy)]
enum Token {
    Char(char),
    Number(f64, Kind),
    /// The sign `…`, which matches any text.
    Any,
}

/// Returns the kind of a number, derived from the text after the number.
fn kind(rest: &str) -> Kind {
    let rest = rest.trim_start();
    let unit: String = rest.chars().take_while(|c| c.is_ascii_alphabetic() || *c == '/').collect();
    let is_chinese_time = ["秒", "分", "小时", "词元/秒"].iter().any(|unit| rest.starts_with(unit));
    match unit.as_str() {
        "s" | "ms" | "min" | "h" | "tok/s" | "GFLOP/s" | "GB/s" => Kind::Speed,
        _ if is_chinese_time || rest.starts_with("G elements a second") => Kind::Speed,
        "kB" | "KB" | "MB" | "GB" | "MiB" | "GiB" => Kind::Size,
        _ => Kind::Plain,
    }
}

/// Returns a line without the minutes and hours of its times. For example, `1m 06s` becomes `06s`.
fn without_minutes(line: &str) -> String {
    let words: Vec<&str> = line.trim().split(' ').collect();
    let is_time = |word: &str, unit: char| {
        word.split_once(unit)
            .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    let is_minutes = |at: usize| {
        let next = words.get(at + 1).copied().unwrap_or("");
        (words[at].ends_with('m') && is_time(words[at], 'm') && is_time(next, 's'))
            || (words[at].ends_with('h') && is_time(words[at], 'h') && is_time(next, 'm'))
    };
    let kept: Vec<&str> = (0..words.len()).filter(|&at| !is_minutes(at)).map(|at| words[at]).collect();
    kept.join(" ")
}

fn tokens(line: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let line = without_minutes(line);
    let mut rest = line.as_str();
    while let Some(c) = rest.chars().next() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits > 0 {
            let mut end =
                rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || ",.".contains(c)).len();
            let exponent = rest[end..].strip_prefix('e').map(|text| text.strip_prefix('-').unwrap_or(text));
            let exponent_digits = exponent
                .map_or(0, |text| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len());
            if exponent_digits > 0 {
                end = rest.len() - exponent.unwrap().len() + exponent_digits;
            }
            let text = rest[..end].trim_end_matches([',', '.']);
            let number = text.replace(',', "").parse();
            let Ok(number) = number else {
                // A number with two points, such as the version 0.1.0, is compared as text.
                tokens.extend(text.chars().map(Token::Char));
                rest = &rest[text.len()..];
                continue;
            };
            rest = &rest[text.len()..];
            tokens.push(Token::Number(number, kind(rest)));
            continue;
        }
        match c {
            '…' => tokens.push(Token::Any),
            c if c.is_whitespace() => {
                if !matches!(tokens.last(), Some(Token::Char(' '))) {
                    tokens.push(Token::Char(' '));
                }
            }
            c => tokens.push(Token::Char(c)),
        }
        rest = &rest[c.len_utf8()..];
    }
    tokens
}

fn is_close(page: f64, real: f64, kind: Kind) -> bool {
    let larger = page.abs().max(real.abs());
    let difference = (page - real).abs();
    match kind {
        Kind::Plain => difference <= 0.02 * larger + 0.01,
        Kind::Size => difference <= 0.25 * larger,
        Kind::Speed => true,
    }
}

fn match_tokens(page: &[Token], real: &[Token]) -> bool {
    match (page, real) {
        ([], []) => true,
        ([Token::Any, page @ ..], real) => (0..=real.len()).any(|skip| match_tokens(page, &real[skip..])),
        ([Token::Char(a), page @ ..], [Token::Char(b), real @ ..]) => a == b && match_tokens(page, real),
        ([Token::Number(a, kind), page @ ..], [Token::Number(b, _), real @ ..]) => {
            is_close(*a, *b, *kind) && match_tokens(page, real)
        }
        _ => false,
    }
}

/// Returns the first line of the page that the output lacks.
fn missing<'a>(shown: &[&'a str], output: &str) -> Option<&'a str> {
    let output: Vec<Vec<Token>> = output.lines().map(tokens).collect();
    let mut from = 0;
    for part in shown.split(|line| line.trim() == "...") {
        let page: Vec<Vec<Token>> = part.iter().map(|line| tokens(line)).collect();
        let fits =
            |at: usize, len: usize| page[..len].iter().zip(&output[at..]).all(|(a, b)| match_tokens(a, b));
        let places = || from..=output.len().saturating_sub(page.len());
        match places().find(|&at| at + page.len() <= output.len() && fits(at, page.len())) {
            Some(at) => from = at + page.len(),
            None => {
                let longest = (0..page.len()).take_while(|&len| places().any(|at| fits(at, len))).last();
                return Some(part[longest.unwrap_or(0)]);
            }
        }
    }
    None
}

/// Runs the command `line`. Returns the exit code, and the output to stdout and stderr in one text, in the
/// order of the writes.
fn run(scene: &Scene, locale: &str, line: &str) -> (i32, String) {
    let words = words(line);
    assert_eq!(words[0], "danlu", "the guide types `{line}`");
    let args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let path = scene.path("terminal.log");
    let terminal = fs::File::create(&path).unwrap();
    let mut command = scene.command(&args);
    command.env("LANG", locale).stdout(terminal.try_clone().unwrap()).stderr(terminal);
    let status = command.status().unwrap();
    (status.code().unwrap_or(-1), fs::read_to_string(&path).unwrap())
}

/// Runs the commands of a guide and compares their output.
fn run_guide(language: &str, locale: &str) {
    let mut scene = Scene::new();
    let hub = HubServer::start();
    hub.add_user("you", "hf_yours");
    scene.endpoint = hub.endpoint();
    fs::create_dir(scene.path("hf")).unwrap();
    scene.write("hf/token", "hf_yours");
    let mut failures = Vec::new();
    for page in pages(language) {
        let text = fs::read_to_string(&page).unwrap();
        for block in blocks(&text) {
            if let [_, name] = block.info[..] {
                scene.write(name, &format!("{}\n", block.lines.join("\n")));
            }
            if block.info != ["console"] {
                continue;
            }
            for (line, shown) in commands(&block) {
                let (code, output) = run(&scene, locale, line);
                if line == "danlu demo" {
                    check_readme(language, &output);
                }
                let expected_code = i32::from(shown.iter().any(|line| line.starts_with("error:")));
                let fault = match missing(&shown, &output) {
                    _ if code != expected_code => format!("exit code {code}, expected {expected_code}"),
                    Some(line) => format!("the output lacks `{line}`"),
                    None => continue,
                };
                failures.push(format!("{}: $ {line}\n{fault}\n{output}", page.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Compares the `text` block of the README with the output of the demo.
fn check_readme(language: &str, demo: &str) {
    let (_, name) = LANGUAGES.into_iter().find(|(it, _)| *it == language).unwrap();
    let text = fs::read_to_string(repository().join(name)).unwrap();
    let shown = blocks(&text).into_iter().find(|block| block.info == ["text"]).unwrap();
    let missing = missing(&shown.lines, demo);
    assert!(missing.is_none(), "{name} shows `{}`, which the demo does not print\n{demo}", missing.unwrap());
}

#[test]
fn commands_of_the_english_guide_print_what_the_page_shows() {
    run_guide("en", "C");
}

#[test]
fn commands_of_the_chinese_guide_print_what_the_page_shows() {
    run_guide("zh", "zh_CN.UTF-8");
}

#[test]
fn both_guides_have_the_same_pages_and_commands() {
    let [english, chinese] = LANGUAGES.map(|(language, _)| {
        let pages = pages(language);
        let folder = repository().join("docs/guide").join(language);
        let listed: BTreeSet<_> = pages.iter().cloned().collect();
        let found = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let found: BTreeSet<_> = found
            .filter(|path| path.extension().is_some_and(|it| it == "md") && !path.ends_with("SUMMARY.md"))
            .collect();
        assert_eq!(listed, found, "SUMMARY.md lists the pages of its folder");
        pages.into_iter().map(move |page| {
            let text = fs::read_to_string(&page).unwrap();
            let console = blocks(&text).into_iter().filter(|block| block.info == ["console"]);
            let typed: usize = console.map(|block| commands(&block).len()).sum();
            (page.file_name().unwrap().to_owned(), typed)
        })
    });
    assert_eq!(english.collect::<Vec<_>>(), chinese.collect::<Vec<_>>());
}

#[test]
fn links_between_pages_lead_to_files() {
    let root = repository();
    let mut folders = vec![root.join("docs")];
    let mut pages = ["README.md", "README.zh.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
        .map(|name| root.join(name))
        .to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "md") {
                pages.push(path);
            }
        }
    }
    assert!(pages.len() > 30, "{pages:?}");
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let file = link.split_once('#').map_or(link, |(file, _)| file);
            let target = page.parent().unwrap().join(file);
            assert!(target.exists(), "{} links to `{link}`", page.display());
        }
    }
}

#[test]
fn glossary_pages_have_the_texts_of_explain() {
    for (language, _) in LANGUAGES {
        let page = repository().join("docs/guide").join(language).join("13-glossary.md");
        let source = repository().join("crates/cli/src/commands/explain").join(format!("{language}.md"));
        let (page, source) = (fs::read_to_string(page).unwrap(), fs::read_to_string(source).unwrap());
        assert!(page.ends_with(&source), "copy `explain/{language}.md` below the heading of the glossary");
    }
}
