//! Translates errors and hints to Chinese.
//!
//! A pattern is an English text with `{}` in place of each value. The Chinese text contains the same values,
//! in the same order or by number, such as `{1}`. A text without a pattern stays English. An error is printed
//! in both languages, because users search for the English text.
//!
//! A test reads the sources of all crates, and fails if a message or a hint has no pattern.

mod hints;
mod messages;
mod phrases;
#[cfg(test)]
mod source_tests;

use hints::HINTS;
use messages::MESSAGES;
use phrases::PHRASES;

use crate::peer_flags;

/// Returns a message in Chinese, or `None` if no pattern matches.
pub fn message(text: &str) -> Option<String> {
    translate(MESSAGES, text)
}

/// Returns a line below a message in Chinese, such as the fault of a record. Returns `None` if no pattern
/// matches.
pub fn detail(text: &str) -> Option<String> {
    translate(PHRASES, text).or_else(|| message(text))
}

/// Returns a hint in Chinese, or `None` if a part of it has no pattern.
pub fn hint(text: &str) -> Option<String> {
    if let Some(chinese) = peer_flags::chinese_hint(text) {
        return Some(chinese.to_owned());
    }
    let parts: Option<Vec<String>> = text.split("; ").map(|part| translate(HINTS, part)).collect();
    parts.map(|parts| parts.join("；").replace("？；", "？"))
}

fn translate(patterns: &[(&str, &str)], text: &str) -> Option<String> {
    let matches = patterns.iter().filter_map(|(english, chinese)| {
        let found = values(english, text)?;
        let values: Vec<String> = english
            .split("{}")
            .zip(&found)
            .map(|(before, value)| inner(patterns, before, value).unwrap_or_else(|| (*value).to_owned()))
            .collect();
        Some((english.len() - 2 * values.len(), fill(chinese, &values)))
    });
    let best = matches.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map(|(_, chinese)| chinese)
}

/// Translates the value after the text `before` of a pattern, if the value is a message or a phrase.
fn inner(patterns: &[(&str, &str)], before: &str, value: &str) -> Option<String> {
    let is_quoted = before.ends_with(['`', '"', '\'']);
    let is_message = before.ends_with(": ");
    if is_quoted {
        return None;
    }
    // A pattern for every text would match a phrase, so only other patterns are tried.
    let message = if is_message { translate(patterns, value) } else { None };
    message.or_else(|| if is_phrase_place(before) { translate(PHRASES, value) } else { None })
}

/// Returns whether a phrase may follow the text `before` of a pattern. Elsewhere, a value is a name.
fn is_phrase_place(before: &str) -> bool {
    [": ", "found ", "expected ", "use ", "with ", "; "].iter().any(|end| before.ends_with(end))
        || before.is_empty()
}

/// Inserts values into a Chinese text. `{}` is replaced by the next value, and `{1}` by the second value.
fn fill(chinese: &str, values: &[String]) -> String {
    let (mut out, mut rest, mut next) = (String::new(), chinese, 0);
    while let Some((before, after)) = rest.split_once('{') {
        out += before;
        let place = after.split_once('}').filter(|(number, _)| number.bytes().all(|b| b.is_ascii_digit()));
        let Some((number, after)) = place else {
            // This brace is a part of the text.
            out.push('{');
            rest = after;
            continue;
        };
        let index = number.parse().unwrap_or(next);
        next += usize::from(number.is_empty());
        let value = values.get(index).map_or("", String::as_str);
        // A blank stands between a Chinese and another word, but not between two Chinese words.
        if value.starts_with(is_ideograph)
            && out.strip_suffix(' ').is_some_and(|out| out.ends_with(is_ideograph))
        {
            out.pop();
        }
        out += value;
        let tight = after.strip_prefix(' ').filter(|after| after.starts_with(is_ideograph));
        rest = tight.filter(|_| value.ends_with(is_ideograph)).unwrap_or(after);
    }
    out + rest
}

fn is_ideograph(c: char) -> bool {
    ('\u{4e00}'..='\u{9fff}').contains(&c)
}

/// Returns the values in `text`. For the pattern ``cannot read `{}`: {}``, the text ``cannot read `a`: no``
/// has the values `a` and `no`. Returns `None` if `text` does not match.
fn values<'a>(pattern: &str, text: &'a str) -> Option<Vec<&'a str>> {
    let mut pieces = pattern.split("{}");
    let mut rest = text.strip_prefix(pieces.next()?)?;
    let mut found = Vec::new();
    let pieces: Vec<&str> = pieces.collect();
    for (i, piece) in pieces.iter().enumerate() {
        let is_last = i + 1 == pieces.len();
        let at = match (is_last, piece.is_empty()) {
            (true, _) => rest.len().checked_sub(piece.len()).filter(|at| rest.get(*at..) == Some(*piece))?,
            (false, _) => rest.find(piece)?,
        };
        found.push(&rest[..at]);
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_move_into_the_chinese_text() {
        for (english, chinese) in [
            ("cannot read `a b`: it does not exist", "无法读取 `a b`：文件不存在"),
            ("invalid value `x` for `--lr <N>`: expected a number", "`--lr <N>` 的值 `x` 无效：应为数字"),
            ("unknown flag `--foo`", "没有参数 `--foo`"),
            (
                "cannot read `a`: every record is invalid; the first: a:2 (record 1): found an empty `output`, \
                 expected an answer",
                "无法读取 `a`：所有记录都有错；第一处：a:2（第 1 条）：这里是空的 `output`，应为回答",
            ),
            ("cannot write `x/y`: the folder `x` does not exist", "无法写入 `x/y`：文件夹 `x` 不存在"),
            ("cannot load `text`: it does not exist", "无法加载 `text`：不存在"),
            ("step 3: the loss is NaN; its records: a:1", "第 3 步：loss 为 NaN；所用记录：a:1"),
        ] {
            assert_eq!(message(english).as_deref(), Some(chinese));
        }
        assert_eq!(message("something else"), None);
        assert_eq!(
            message("cannot read `{}`: it does not exist").as_deref(),
            Some("无法读取 `{}`：文件不存在")
        );
    }

    #[test]
    fn a_hint_is_translated_as_a_whole_or_not_at_all() {
        assert_eq!(hint("did you mean `train`?").as_deref(), Some("是不是 `train`？"));
        assert_eq!(
            hint("check the path; `hf:a/b` and `--yes` download without asking").as_deref(),
            Some("检查路径；`hf:a/b` 与 `--yes` 不询问直接下载")
        );
        assert_eq!(hint("check the path; and something new"), None);
    }

    #[test]
    fn each_pattern_has_as_many_places_in_both_languages() {
        for (english, chinese) in MESSAGES.iter().chain(HINTS) {
            let places = english.matches("{}").count();
            let numbered = (0..places).filter(|i| chinese.contains(&format!("{{{i}}}"))).count();
            assert_eq!(chinese.matches("{}").count() + numbered, places, "{english}");
        }
    }
}
