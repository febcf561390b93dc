//! Lays out text in terminal cells. A Chinese character is two cells wide.

use std::path::Path;

pub use danlu_model::{format_bytes as bytes, shell_word};
pub use danlu_report::number_format::{duration, thousands};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Returns the width of `text` in cells. `text` must not contain escape codes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Appends blanks to `text` until it is `cells` wide.
pub fn pad(text: &str, cells: usize) -> String {
    format!("{text}{}", " ".repeat(cells.saturating_sub(width(text))))
}

/// Puts blanks before `text` until it is `cells` wide.
pub fn pad_left(text: &str, cells: usize) -> String {
    format!("{}{text}", " ".repeat(cells.saturating_sub(width(text))))
}

/// Truncates `text` to `cells`, and marks the cut with an ellipsis.
pub fn clip(text: &str, cells: usize) -> String {
    if width(text) <= cells {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > cells {
            break;
        }
        out.push(c);
    }
    out + "…"
}

/// Puts `text` on one line. Line ends become `⏎`, and other control characters become blanks.
pub fn one_line(text: &str) -> String {
    text.trim_end()
        .chars()
        .map(|c| {
            if c == '\n' {
                '⏎'
            } else if c.is_control() {
                ' '
            } else {
                c
            }
        })
        .collect()
}

/// Removes control characters. Text from a model or a file then cannot move the cursor or change colours.
pub fn printable(text: &str) -> String {
    text.chars().filter(|&c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Wraps `text` to lines of `cells`. A line can end at a blank or between wide characters, but never before
/// closing punctuation.
pub fn wrap(text: &str, cells: usize) -> Vec<String> {
    let cells = cells.max(2);
    let mut lines = Vec::new();
    for paragraph in printable(text).replace('\t', "    ").split('\n') {
        let (mut line, mut used) = (String::new(), 0);
        for piece in pieces(paragraph) {
            let piece_width = width(piece);
            if used > 0 && used + width(piece.trim_end()) > cells {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
                used = 0;
            }
            if piece_width <= cells {
                line.push_str(piece);
                used += piece_width;
                continue;
            }
            // A word that is longer than a line is split at the end of the line.
            for c in piece.chars() {
                let c_width = c.width().unwrap_or(0);
                if used + c_width > cells {
                    lines.push(std::mem::take(&mut line));
                    used = 0;
                }
                line.push(c);
                used += c_width;
            }
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// Splits `text` into pieces that stay on one line. A piece is a word with the blanks after it, or a wide
/// character with its closing punctuation.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut previous: Option<char> = None;
    for (at, c) in text.char_indices() {
        if let Some(p) = previous {
            let wide = p.width() == Some(2) || c.width() == Some(2);
            let closing = "，。！？；：、）》」』”’…,.!?;:)]".contains(c);
            let breaks = (p == ' ' && c != ' ') || (wide && !closing && c != ' ');
            if breaks {
                pieces.push(&text[start..at]);
                start = at;
            }
        }
        previous = Some(c);
    }
    if start < text.len() {
        pieces.push(&text[start..]);
    }
    pieces
}

/// Formats two texts in columns below their titles. Both columns together are `cells` wide.
pub fn side_by_side(titles: [&str; 2], texts: [&str; 2], cells: usize) -> String {
    let column = cells.saturating_sub(3).max(8) / 2;
    let [left, right] = texts.map(|text| wrap(text, column));
    let rule = "─".repeat(column);
    let mut out =
        format!("{} │ {}\n{rule}─┼─{rule}\n", pad(&clip(titles[0], column), column), clip(titles[1], column));
    for i in 0..left.len().max(right.len()) {
        let [l, r] = [&left, &right].map(|lines| lines.get(i).map_or("", String::as_str));
        out += format!("{} │ {r}", pad(l, column)).trim_end();
        out.push('\n');
    }
    out
}

/// Quotes a path for a shell.
pub fn shell_path(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

/// Formats a count with its noun: `1 record`, `1,234 records`.
pub fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// Wraps `text` to `cells`. Every line after the first is indented by `indent` cells.
pub fn hang(text: &str, indent: usize, cells: usize) -> String {
    wrap(text, cells.saturating_sub(indent)).join(&format!("\n{}", " ".repeat(indent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_lines_never_exceed_the_width_and_lose_no_character() {
        for text in
            ["皇上万福金安，臣妾告退。", "a few words and 一些中文 mixed", "abcdefghijklmnop", "", "一"]
        {
            for cells in 2..30 {
                let lines = wrap(text, cells);
                // A wide character and its closing punctuation stay on one line, so a line may need four
                // cells.
                assert!(lines.iter().all(|l| width(l) <= cells.max(4)), "{cells} {lines:?}");
                let squeeze = |s: &str| s.replace(' ', "");
                assert_eq!(squeeze(&lines.concat()), squeeze(text));
            }
        }
    }

    #[test]
    fn columns_line_up_under_chinese() {
        let out = side_by_side(["before", "之后"], ["你好，世界。", "hello"], 23);
        assert_eq!(out, "before     │ 之后\n───────────┼───────────\n你好，世   │ hello\n界。       │\n");
    }

    #[test]
    fn clipped_text_fits_and_says_so() {
        assert_eq!(clip("甄嬛传", 6), "甄嬛传");
        assert_eq!(clip("甄嬛传", 5), "甄嬛…");
        assert_eq!(clip("甄嬛传", 4), "甄…");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(1_500_000_000), "1.5 GB");
        assert_eq!(bytes(999), "999 B");
    }

    #[test]
    fn a_path_is_one_word_of_a_command() {
        assert_eq!(shell_path(Path::new("out/甄嬛-8b")), "out/甄嬛-8b");
        assert_eq!(shell_path(Path::new("my models/x")), "'my models/x'");
        assert_eq!(shell_path(Path::new("it's; rm -r ~")), r"'it'\''s; rm -r ~'");
    }

    #[test]
    fn one_thing_is_singular() {
        assert_eq!(
            [0, 1, 2, 1234].map(|n| counted(n, "record")),
            ["0 records", "1 record", "2 records", "1,234 records"]
        );
    }

    #[test]
    fn further_lines_hang_under_the_first() {
        assert_eq!(hang("one two three", 4, 12), "one two\n    three");
        assert_eq!(hang("short", 4, 12), "short");
    }

    #[test]
    fn shown_text_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\r\n"), "a[31mb\n");
        assert_eq!(one_line("a\nb\u{7}c\n"), "a⏎b c");
    }
}
