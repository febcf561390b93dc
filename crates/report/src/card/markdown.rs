//! Escapes untrusted text for Markdown, YAML, Python and the shell.

use std::fmt::Write as _;

/// Returns the text on one line.
pub(crate) fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Escapes text for a sentence, a heading or a table cell. The result is on one line.
///
/// Characters that have a meaning in Markdown, HTML or formulas are replaced by character references.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in line(text).replace("://", ":\0/").chars() {
        match c {
            '\\' | '|' | '<' | '>' | '&' | '`' | '*' | '_' | '[' | ']' | '~' | '$' | '#' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            // This replacement prevents a URL from becoming a link.
            '\0' => out.push_str("&#47;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Escapes text of several lines for a table cell, and truncates the text to `most` characters.
pub(crate) fn cell(text: &str, most: usize) -> String {
    let mut clipped: String = text.trim().chars().take(most).collect();
    if clipped.len() < text.trim().len() {
        clipped.push('…');
    }
    clipped.lines().map(plain).collect::<Vec<_>>().join("<br>")
}

/// Formats a name as inline code, on one line.
pub(crate) fn code(text: &str) -> String {
    // Markdown does not decode character references between backticks. A name that contains a special
    // character is therefore written with `<code>`.
    let text = line(text);
    match text.contains(['`', '|', '\\']) || text.is_empty() {
        true => format!("<code>{}</code>", plain(&text)),
        false => format!("`{text}`"),
    }
}

/// Returns the text in a code fence. The fence is longer than any run of backticks in the text.
pub(crate) fn fenced(text: &str, language: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n\n", text.trim_end())
}

/// Returns a string literal that is valid in Python, JSON and YAML.
pub(crate) fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_breaks_out_of_its_place() {
        assert_eq!(plain("pal|ace\n& <b>*x*</b>"), "pal&#124;ace &#38; &#60;b&#62;&#42;x&#42;&#60;/b&#62;");
        assert_eq!(plain("![x](http://a.b)"), "!&#91;x&#93;(http:&#47;/a.b)");
        assert_eq!(plain("$$x$$ \\(y\\)"), "&#36;&#36;x&#36;&#36; &#92;(y&#92;)");
        assert_eq!(cell(" 一\n二|三 ", 9), "一<br>二&#124;三");
        assert_eq!(cell("一二三", 2), "一二…");
        assert_eq!(code("a_b"), "`a_b`");
        assert_eq!(code("a`|b"), "<code>a&#96;&#124;b</code>");
        assert_eq!(fenced("```\nx", "text"), "````text\n```\nx\n````\n\n");
    }
}
