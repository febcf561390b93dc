use std::path::Path;

use proptest::prelude::*;
use tokenizers::{ModelWrapper, Tokenizer};

use super::*;
use crate::TokenSpan;

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m/tokenizer.json");
const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/tokenizers");
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/tokenizer");

/// Returns each tokenizer of the repository, and those of `shared/` if this folder exists.
fn tokenizers() -> Vec<(String, Tokenizer)> {
    let mut files = vec![BASE.to_owned(), format!("{SEEDS}/bpe.json"), format!("{SEEDS}/unigram.json")];
    if let Ok(folders) = std::fs::read_dir(SHARED) {
        let folders = folders.map(|folder| folder.unwrap().path().join("tokenizer.json"));
        files.extend(folders.filter(|file| file.exists()).map(|file| file.display().to_string()));
    }
    files.sort();
    files.into_iter().map(|file| (file.clone(), Tokenizer::from_file(Path::new(&file)).unwrap())).collect()
}

fn options(inner: &Tokenizer, bytes: usize) -> WindowOptions {
    let between_words = !matches!(inner.get_model(), ModelWrapper::BPE(_));
    WindowOptions { bytes, max_bytes: 1 << 20, between_words }
}

fn tokens(inner: &Tokenizer, text: &str) -> Result<Vec<TextToken>, String> {
    let encoding = inner.encode(text, false).map_err(|e| e.to_string())?;
    let ids = encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_word_ids());
    Ok(ids.map(|((&id, &(start, end)), &word)| TextToken { id, range: start..end, word }).collect())
}

/// Returns the ids and ranges of `text` encoded window by window, and the length of the longest window.
fn in_windows(
    inner: &Tokenizer,
    text: &str,
    bytes: usize,
) -> Result<(Vec<TokenSpan>, usize), WindowFault<String>> {
    let longest = std::cell::Cell::new(0);
    let encode = |window: &str| {
        longest.set(longest.get().max(window.len()));
        tokens(inner, window)
    };
    let mut found = Vec::new();
    encode_windows(text, options(inner, bytes), &encode, &mut |piece| {
        found.extend(piece.iter().map(|token| (token.id, token.range.clone())));
        ControlFlow::Continue(())
    })?;
    Ok((found, longest.get()))
}

fn check(inner: &Tokenizer, name: &str, text: &str, bytes: usize) {
    let whole: Vec<_> =
        tokens(inner, text).unwrap().into_iter().map(|token| (token.id, token.range)).collect();
    let (found, _) = in_windows(inner, text, bytes).unwrap();
    if found != whole {
        let at = found.iter().zip(&whole).position(|(a, b)| a != b).unwrap_or(found.len().min(whole.len()));
        let near = |list: &[TokenSpan]| format!("{:?}", list.get(at..list.len().min(at + 4)));
        panic!("{name}, windows of {bytes}: token {at} is {}, expected {}", near(&found), near(&whole));
    }
}

/// Parts of texts that are hard to divide. The number is how often the part may be repeated.
const PARTS: [(&str, usize); 27] = [
    ("臣妾做不到啊", 200),
    ("甄嬛", 900),
    ("龘靐", 300),
    ("。”他说：“", 60),
    ("The quick brown fox doesn't jump; ", 60),
    (" ", 3000),
    ("\n", 2000),
    (" \n", 500),
    ("\t", 700),
    ("\r\n", 300),
    ("a", 4000),
    ("ab", 1500),
    ("A", 900),
    ("啊", 1200),
    ("7", 2000),
    ("3.14159", 200),
    ("-", 1500),
    ("=*", 700),
    ("👩‍👩‍👧", 100),
    ("🍵", 400),
    ("e\u{301}", 300),
    ("\u{301}", 200),
    ("สวัสดี", 200),
    ("    return foo_bar(x)\n", 80),
    ("▁", 300),
    ("한국어 ", 120),
    ("supercalifragilistic", 100),
];

/// Returns a text made of these parts. Between some parts there are added tokens of the tokenizer.
fn text(choices: &[(usize, usize, usize)], added: &[String]) -> String {
    let mut text = String::new();
    for &(part, times, token) in choices {
        let (part, most) = PARTS[part % PARTS.len()];
        text.push_str(&part.repeat(1 + times % most));
        if let Some(token) = added.get(token) {
            text.push_str(token);
        }
    }
    text
}

fn added(inner: &Tokenizer) -> Vec<String> {
    let mut added: Vec<String> =
        inner.get_added_tokens_decoder().into_values().map(|token| token.content).take(3000).collect();
    added.sort();
    added
}

#[test]
fn windows_give_the_ids_and_ranges_of_the_whole_text() {
    let tokenizers = tokenizers();
    let choices = prop::collection::vec((0..PARTS.len(), 0..5000usize, 0..40usize), 2..14);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(12));
    let strategy = (choices, 900..6000usize);
    runner
        .run(&strategy, |(choices, bytes)| {
            for (name, inner) in &tokenizers {
                check(inner, name, &text(&choices, &added(inner)), bytes);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_long_run_of_one_part_needs_no_long_window() {
    const BYTES: usize = 64 << 10;
    for (name, inner) in tokenizers() {
        // The small tokenizers of the fuzz targets have no tokens for most of these characters.
        if name.starts_with(SEEDS) {
            continue;
        }
        for part in ["甄嬛", "啊", " ", "\n", "a", "ab", "7", "-", "🍵", "▁", "<|x|>"] {
            let text = part.repeat(1 + 100_000 / part.len());
            let (found, longest) = in_windows(&inner, &text, BYTES).unwrap();
            let whole = tokens(&inner, &text).unwrap();
            assert!(
                found.iter().map(|token| token.0).eq(whole.iter().map(|token| token.id)),
                "{name}: {part:?}"
            );
            assert!(longest <= BYTES, "{name}: {part:?} needs a window of {longest} bytes");
        }
    }
}

#[test]
fn a_text_without_a_place_to_join_is_refused() {
    let inner = Tokenizer::from_file(format!("{SEEDS}/unigram.json")).unwrap();
    let encode = |window: &str| tokens(&inner, window);
    let options = WindowOptions { bytes: 1000, max_bytes: 4000, between_words: true };
    let mut visited = 0;
    let text = "a".repeat(10_000);
    let fault = encode_windows(&text, options, &encode, &mut |_| {
        visited += 1;
        ControlFlow::Continue(())
    });
    assert_eq!((fault, visited), (Err(WindowFault::Indivisible(0)), 0));
}

#[test]
fn a_visitor_that_breaks_ends_the_work() {
    let inner = Tokenizer::from_file(BASE).unwrap();
    let windows = std::cell::Cell::new(0);
    let encode = |window: &str| {
        windows.set(windows.get() + 1);
        tokens(&inner, window)
    };
    let text = "The quick brown fox. ".repeat(10_000);
    let mut count = 0;
    encode_windows(&text, options(&inner, 4096), &encode, &mut |piece| {
        count += piece.len();
        if count > 1000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert!(count > 1000 && windows.get() < 5, "{count} tokens of {} windows", windows.get());
}
