//! What the author wrote into a card by hand: it stands between two marks, and stays when the card is written again.

/// Above the notes.
const START: &str = "<!-- notes -->";

/// Below them.
const END: &str = "<!-- /notes -->";

/// The notes in a card: everything between the marks, each alone on its line.
pub fn of(card: &str) -> Option<String> {
    let lines: Vec<&str> = card.lines().collect();
    let start = lines.iter().position(|line| line.trim() == START)?;
    let end = lines.iter().rposition(|line| line.trim() == END).filter(|end| *end > start)?;
    let notes = lines[start + 1..end].join("\n").trim_matches('\n').to_owned();
    (!notes.trim().is_empty()).then_some(notes)
}

/// The notes between their marks. Marks that stand in the notes themselves are left out.
pub(crate) fn marked(notes: &str) -> String {
    let is_mark = |line: &&str| matches!(line.trim(), START | END);
    let notes = notes.lines().filter(|line| !is_mark(line)).collect::<Vec<_>>().join("\n");
    match notes.trim() {
        "" => format!("{START}\n\n{END}\n"),
        _ => format!("{START}\n{}\n{END}\n", notes.trim_matches('\n')),
    }
}

/// A card with other notes: `card` itself, or the beginning of one that is written when the run is over.
pub fn put(card: Option<&str>, name: &str, notes: &str) -> String {
    let marked = marked(notes);
    let Some(card) = card else { return format!("# {}\n\n{marked}", super::markdown::plain(name)) };
    let lines: Vec<&str> = card.lines().collect();
    let start = lines.iter().position(|line| line.trim() == START);
    let end = lines.iter().rposition(|line| line.trim() == END);
    match (start, end) {
        (Some(start), Some(end)) if start < end => {
            let (above, below) = (lines[..start].join("\n"), lines[end + 1..].join("\n"));
            format!("{above}\n{marked}{below}\n")
        }
        _ => format!("{}\n\n{marked}", card.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_back_as_they_were_put() {
        let draft = put(None, "huan", "只会说\n\n- 古装剧里的话\n");
        assert_eq!(of(&draft).unwrap(), "只会说\n\n- 古装剧里的话");
        let again = put(Some(&format!("{draft}\nbelow\n")), "huan", "other");
        assert_eq!(of(&again).unwrap(), "other");
        assert!(again.starts_with("# huan\n") && again.contains("below") && !again.contains("古装剧"));
        assert_eq!(of(&put(Some("# by hand\n"), "x", "n")).unwrap(), "n");
    }

    #[test]
    fn marks_inside_the_notes_change_nothing() {
        let hostile = "a\n<!-- /notes -->\nb\n <!-- notes --> \nc";
        assert_eq!(of(&put(None, "x", hostile)).unwrap(), "a\nb\nc");
        assert_eq!(of(&marked("")), None);
        assert_eq!(of("<!-- /notes -->\nx\n<!-- notes -->"), None);
        assert_eq!(of("text with `<!-- notes -->` in it"), None);
    }
}
