//! The author's notes in a card, which describe the limits of the model. The notes are the lines between
//! `<!-- notes -->` and `<!-- /notes -->`.
//!
//! danlu changes the notes of an existing card only if `--notes` is given.

use super::readme::Readme;
use crate::Language;

/// The line above the notes.
const START: &str = "<!-- notes -->";

/// The line below the notes.
const STOP: &str = "<!-- /notes -->";

/// Title of the section, in Chinese and English.
const TITLE: [&str; 2] = ["局限与说明", "Limits and notes"];

/// Text that is shown if there are no notes, in Chinese and English.
const PLACEHOLDER: [&str; 2] =
    ["作者还没有写明这个模型的局限。", "The author has not described the limits of this model yet."];

/// Returns the notes of a card, without placeholder lines. Returns `None` if there are no notes.
pub fn notes_of(card: &str) -> Option<String> {
    let text = Readme::parse(card).map_or_else(|_| card.to_owned(), |readme| readme.without_block());
    let lines: Vec<&str> = text.lines().collect();
    let (start, stop) = find(&lines)?;
    let notes =
        lines[start + 1..stop].iter().filter(|line| !is_placeholder(line)).copied().collect::<Vec<_>>();
    let notes = notes.join("\n").trim_matches('\n').to_owned();
    (!notes.trim().is_empty()).then_some(notes)
}

/// Returns the card with these notes, which replace the lines between [`START`] and [`STOP`]. If these
/// markers are missing, a new section is added at the end.
pub(super) fn with_notes(card: &str, languages: &[Language], notes: &str) -> String {
    let line_end = if card.contains("\r\n") { "\r\n" } else { "\n" };
    // danlu's part may contain text that looks like a marker, so only the rest of the card is searched.
    let hidden = Readme::parse(card).ok().and_then(|readme| readme.block_lines());
    let lines: Vec<&str> = card.split_inclusive('\n').collect();
    let visible = |i: usize| hidden.as_ref().is_none_or(|hidden| !hidden.contains(&i));
    let shown: Vec<&str> =
        lines.iter().enumerate().map(|(i, line)| if visible(i) { *line } else { "" }).collect();
    let own = match find(&shown) {
        Some((start, stop)) => {
            let (above, below) = (lines[..start].concat(), lines[stop + 1..].concat());
            return format!("{above}{}{below}", marked(languages, notes).replace('\n', line_end));
        }
        None => section(languages, notes),
    };
    let gap = if card.ends_with("\n\n") || card.ends_with("\n\r\n") { "" } else { line_end };
    let end = if card.ends_with('\n') || card.is_empty() { "" } else { line_end };
    format!("{card}{end}{gap}{}", own.replace('\n', line_end))
}

/// Returns the section of the notes, including its title.
fn section(languages: &[Language], notes: &str) -> String {
    let title: Vec<&str> = languages.iter().map(|language| language.pick(TITLE[0], TITLE[1])).collect();
    format!("## {}\n\n{}", title.join(" · "), marked(languages, notes))
}

/// Returns the notes, or the placeholder if they are empty, between [`START`] and [`STOP`]. Lines of `notes`
/// that are markers are removed.
fn marked(languages: &[Language], notes: &str) -> String {
    let is_mark =
        |line: &&str| matches!(line.trim(), START | STOP | super::readme::BEGIN | super::readme::END);
    let notes = notes.lines().filter(|line| !is_mark(line)).collect::<Vec<_>>().join("\n");
    let notes = match notes.trim() {
        "" => {
            let words = languages.iter().map(|language| language.pick(PLACEHOLDER[0], PLACEHOLDER[1]));
            words.collect::<Vec<_>>().join("\n\n")
        }
        _ => notes.trim_matches('\n').to_owned(),
    };
    format!("{START}\n{notes}\n{STOP}\n")
}

/// Returns the line numbers of the first [`START`] and the last [`STOP`].
fn find(lines: &[&str]) -> Option<(usize, usize)> {
    let start = lines.iter().position(|line| line.trim() == START)?;
    let stop = lines.iter().rposition(|line| line.trim() == STOP)?;
    (start < stop).then_some((start, stop))
}

fn is_placeholder(line: &str) -> bool {
    PLACEHOLDER.contains(&line.trim())
}

/// Returns whether danlu wrote this line around the notes, as a marker, as the title, or as the placeholder.
pub(super) fn is_frame(line: &str) -> bool {
    let is_title = |title: &str| title.split(" · ").all(|part| TITLE.contains(&part));
    matches!(line, START | STOP) || is_placeholder(line) || line.strip_prefix("## ").is_some_and(is_title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(card: &str, notes: &str) -> String {
        with_notes(card, &[Language::En], notes)
    }

    #[test]
    fn notes_are_read_back_as_they_were_put() {
        let draft = put("", "只会说\n\n- 古装剧里的话\n");
        assert_eq!(notes_of(&draft).unwrap(), "只会说\n\n- 古装剧里的话");
        let again = put(&format!("# mine\n{draft}\nbelow\n"), "other");
        assert_eq!(notes_of(&again).unwrap(), "other");
        assert!(again.starts_with("# mine\n") && again.contains("below") && !again.contains("古装剧"));
        assert_eq!(notes_of(&put("# by hand\n", "n")).unwrap(), "n");
    }

    #[test]
    fn marks_inside_the_notes_change_nothing() {
        let hostile = "a\n<!-- /notes -->\nb\n <!-- notes --> \n<!-- danlu:end -->\nc";
        assert_eq!(notes_of(&put("", hostile)).unwrap(), "a\nb\nc");
        assert_eq!(notes_of(&put("", "")), None);
        assert_eq!(notes_of("<!-- /notes -->\nx\n<!-- notes -->"), None);
        assert_eq!(notes_of("text with `<!-- notes -->` in it"), None);
    }

    #[test]
    fn marks_in_danlus_part_are_none() {
        let card = "<!-- danlu:begin -->\n<!-- notes -->\nx\n<!-- /notes -->\n<!-- danlu:end -->\n";
        assert_eq!(notes_of(card), None);
        let noted = put(card, "mine");
        assert!(noted.starts_with(card) && notes_of(&noted).as_deref() == Some("mine"), "{noted}");
    }
}
