//! Finds the messages and hints in the sources of all crates, and checks that each has a Chinese text.

use std::fs;
use std::path::{Path, PathBuf};

use super::{hint, message};

/// Texts that are never printed alone, such as names and fragments.
const SKIPPED: [&str; 4] =
    ["version https://git-lfs", "--output DIR", "{first}; {more}", "danlu train --output {} --resume"];

/// Returns the sources of the crates whose messages are printed. Tests are removed from these sources.
fn sources() -> Vec<String> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut folders: Vec<PathBuf> = fs::read_dir(crates)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !["hub-test-server", "kernels", "serve"].iter().any(|name| path.ends_with(name)))
        .map(|path| path.join("src"))
        .collect();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let is_test = path.to_string_lossy().contains("tests");
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" && !is_test => {
                    let source = fs::read_to_string(&path).unwrap();
                    sources.push(source.split("#[cfg(test)]\nmod").next().unwrap().to_owned());
                }
                _ => {}
            }
        }
    }
    sources
}

/// Returns the string literal at the start of `code`, unescaped, and the code after it.
fn literal(code: &str) -> Option<(String, &str)> {
    let code = code.trim_start().strip_prefix('"')?;
    let (mut text, mut chars) = (String::new(), code.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((text, &code[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => text.push('\n'),
                '\n' => {
                    let rest = chars.as_str().trim_start().len();
                    while chars.as_str().len() > rest {
                        chars.next();
                    }
                }
                other => text.push(other),
            },
            c => text.push(c),
        }
    }
    None
}

/// Returns `pattern` with a sample in place of each value. Returns `None` for a pattern of fewer than two
/// words, and for one of [`SKIPPED`].
fn filled(pattern: &str) -> Option<String> {
    let (mut text, mut own, mut rest) = (String::new(), String::new(), pattern);
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        (text, own) = (text + before, own + before);
        rest = match brace.get(..2) {
            Some("{{") | Some("}}") => {
                text.push_str(&brace[..1]);
                &brace[2..]
            }
            _ => match brace[1..].split_once('}') {
                Some((name, after)) if brace.starts_with('{') && !name.contains([' ', '"', '%']) => {
                    text.push('7');
                    after
                }
                // This brace is a part of a text that is not a format string.
                _ => {
                    text.push_str(&brace[..1]);
                    &brace[1..]
                }
            },
        };
    }
    (text, own) = (text + rest, own + rest);
    let words = own.split(|c: char| !c.is_alphabetic()).filter(|word| word.len() > 1).count();
    (words > 1 && own.contains(' ') && !SKIPPED.contains(&pattern)).then_some(text)
}

/// Returns the literal after each `start`. The literal may be inside `format!`.
fn after(source: &str, start: &str) -> Vec<String> {
    let found = source.split(start).skip(1).filter_map(|code| {
        let code = code.trim_start();
        let code = code.strip_prefix("format!(").unwrap_or(code);
        Some(literal(code)?.0)
    });
    found.collect()
}

/// Returns the literals in all functions whose name contains `hint`.
fn in_hint_functions(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for code in source.split("fn ").skip(1).filter(|code| code.split('(').next().unwrap().contains("hint")) {
        // A function at the top level or in an `impl` ends at the first closing brace with the indentation of
        // `fn`.
        let end = ["\n    }\n", "\n}\n"].into_iter().filter_map(|end| code.find(end)).min();
        let mut rest = &code[..end.unwrap_or(code.len())];
        while let Some(at) = rest.find('"') {
            let Some((text, after)) = literal(&rest[at..]) else { break };
            found.push(text);
            rest = after;
        }
    }
    found
}

fn assert_none(what: &str, mut missing: Vec<String>) {
    missing.sort();
    missing.dedup();
    assert!(missing.is_empty(), "{} {what} without Chinese:\n{}", missing.len(), missing.join("\n"));
}

#[test]
fn every_error_of_a_library_has_chinese() {
    let patterns: Vec<String> = sources().iter().flat_map(|source| after(source, "#[error(")).collect();
    assert!(patterns.len() > 100, "only {} patterns were found", patterns.len());
    let missing =
        patterns.into_iter().filter(|pattern| filled(pattern).is_some_and(|text| message(&text).is_none()));
    assert_none("messages", missing.collect());
}

#[test]
fn every_message_of_a_command_has_chinese() {
    let starts =
        ["Diagnostic::input(", "Diagnostic::bug(", "let text = ", "let text =\n", "let error = format!("];
    let patterns = sources().into_iter().filter(|source| source.contains("Diagnostic::"));
    let patterns = patterns.flat_map(|source| starts.map(|start| after(&source, start)).concat());
    let missing = patterns.filter(|pattern| filled(pattern).is_some_and(|text| message(&text).is_none()));
    assert_none("messages", missing.collect());
}

#[test]
fn every_hint_has_chinese() {
    let starts = ["with_hint(", "and_hint(", "or_hint(", "let hint = ", "let hint =\n"];
    let patterns = sources().into_iter().flat_map(|source| {
        let mut found = in_hint_functions(&source);
        found.extend(starts.map(|start| after(&source, start)).concat());
        found
    });
    let missing = patterns.filter(|pattern| filled(pattern).is_some_and(|text| hint(&text).is_none()));
    assert_none("hints", missing.collect());
}
