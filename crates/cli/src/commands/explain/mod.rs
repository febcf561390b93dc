//! `danlu explain`: explains a term of fine-tuning in a few sentences. The glossary of the guide has the same
//! text.

use clap::Args;

use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

pub const EXAMPLES: &str = "\
Examples:
  danlu explain
  danlu explain rank
  danlu explain perplexity --lang zh";

const ENGLISH: &str = include_str!("en.md");
const CHINESE: &str = include_str!("zh.md");

/// Maximum width of a line, in cells.
const MAX_WIDTH: usize = 100;

#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// A term, such as rank, loss or nf4; without it, all terms are listed
    term: Option<String>,
}

/// A section of a glossary, which explains one term.
struct Term<'a> {
    /// The English name, and the Chinese name if there is one.
    names: Vec<&'a str>,
    sentences: Vec<&'a str>,
}

/// Returns the terms of a glossary in the order of the file.
fn terms(glossary: &str) -> impl Iterator<Item = Term<'_>> {
    glossary.split("## ").skip(1).map(|section| {
        let (heading, text) = section.split_once('\n').unwrap_or((section, ""));
        let sentences = text.lines().filter(|line| !line.is_empty()).collect();
        Term { names: heading.split(" · ").collect(), sentences }
    })
}

/// Prints the explanation of a term, or lists all terms.
///
/// # Errors
/// If the glossary has no such term.
pub fn run(args: &ExplainArgs, printer: &Printer) -> Result<()> {
    let glossary = printer.pick(CHINESE, ENGLISH);
    let Some(wanted) = &args.term else {
        for term in terms(glossary) {
            printer.data(&format!("  {}", term.names.join(" · ")));
        }
        printer.status("");
        printer.status_bilingual(
            "用 `danlu explain 术语` 查看说明",
            "`danlu explain TERM` explains one of them",
        );
        return Ok(());
    };
    let wanted = wanted.to_lowercase().replace([' ', '_'], "-");
    let is_wanted = |name: &&str| name.to_lowercase() == wanted;
    let name = terms(CHINESE).find(|term| term.names.iter().any(is_wanted)).map(|term| term.names[0]);
    let Some(term) = terms(glossary).find(|term| Some(term.names[0]) == name) else {
        return Err(unknown(&wanted));
    };
    printer.data(&printer.paint_data(Style::Bold, &term.names.join(" · ")));
    for sentence in term.sentences {
        for line in terminal_text::wrap(&sentence.replace('`', ""), printer.width().min(MAX_WIDTH)) {
            printer.data(&line);
        }
    }
    Ok(())
}

fn unknown(term: &str) -> Diagnostic {
    let names = || terms(CHINESE).flat_map(|term| term.names);
    // The start of a name is more likely meant than a name with another letter.
    let longer = if term.chars().count() > 1 { names().find(|name| name.starts_with(term)) } else { None };
    let hint = match longer.or_else(|| danlu_data::closest_word(term, names())) {
        Some(near) => format!("run `danlu explain {near}`"),
        None => "run `danlu explain` to list all terms".to_owned(),
    };
    Diagnostic::input(format!("cannot explain `{term}`: the glossary has no such term")).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_LINES: usize = 20;

    #[test]
    fn both_languages_explain_the_same_terms() {
        let names = |glossary| terms(glossary).map(|term| term.names[0]).collect::<Vec<_>>();
        assert_eq!(names(ENGLISH), names(CHINESE));
        assert!(names(ENGLISH).is_sorted());
    }

    #[test]
    fn each_explanation_fits_a_screen() {
        for term in terms(ENGLISH).chain(terms(CHINESE)) {
            let lines: usize = term.sentences.iter().map(|line| terminal_text::wrap(line, 80).len()).sum();
            assert!((2..=MAX_LINES).contains(&lines), "{}: {lines} lines", term.names[0]);
        }
    }

    #[test]
    fn references_to_other_terms_exist() {
        for glossary in [ENGLISH, CHINESE] {
            for term in terms(glossary) {
                let references = term
                    .sentences
                    .iter()
                    .filter_map(|line| line.strip_prefix("See also: ").or(line.strip_prefix("另见：")));
                for other in references.flat_map(|line| line.split([',', '、'])) {
                    let found = terms(glossary).any(|term| term.names[0] == other.trim());
                    assert!(found, "`{}` refers to `{other}`", term.names[0]);
                }
            }
        }
    }
}
