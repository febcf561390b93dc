//! The model card: the `README.md` of an adapter, or of a merged model, as a page of the Hugging Face Hub.
//!
//! Everything it says is kept beside it in `card.json` ([`Card`]), so that it can be written again: in another
//! language, under the name it is published with, or for the model that an adapter is merged into. Nothing in
//! it is a path: bases, data and folders go by their names only.

mod card;
mod data;
mod front_matter;
mod introduction;
mod license;
mod markdown;
mod merge;
mod notes;
mod published_readme;
mod quantized;
mod results;
mod snippets;
mod text_language;
mod training;

use std::fs;
use std::path::Path;

use danlu_model::{Extra, files, hex};
use sha2::{Digest, Sha256};

use crate::{Language, ReportError};

pub use card::{CARD_FILE, Card, CardLanguage, Lora, Merge, Training};
pub use license::{is_license, license_of};
pub use notes::{of as notes_of, put as put_notes};
pub use published_readme::{is_as_sent, sent_readme, with_sent_readme};
pub use quantized::InFourBits;
pub use text_language::TextLanguage;

/// Name of a card.
pub const README_FILE: &str = "README.md";

/// Name of the picture beside it.
pub const PICTURE_FILE: &str = "loss.svg";

/// Who wrote it.
const DANLU: &str = "[danlu](https://github.com/danlu-rs/danlu)";

/// Largest card that is looked into for notes.
const MAX_README: u64 = 16 << 20;

impl Card {
    /// The page, complete, with the author's notes at its end.
    ///
    /// A card in two languages has a half for each, and the notes once, below both.
    pub fn render(&self, notes: &str) -> String {
        let mut out = front_matter::render(self);
        let languages = self.language.order();
        let both = languages.len() > 1;
        out += &format!("# {}\n\n", markdown::plain(&self.name));
        if both {
            let links = languages.iter().map(|l| format!("[{0}](#{1})", title(*l), title(*l).to_lowercase()));
            out += &format!("{}\n\n", links.collect::<Vec<_>>().join(" · "));
        }
        for &language in languages {
            if both {
                out += &format!("## {}\n\n", title(language));
            }
            let page = Page { card: self, language, heading: if both { "###" } else { "##" } };
            out += &page.half();
        }
        out + &notes_section(languages, notes)
    }

    /// The notes in a folder's `README.md`, where nobody wrote anywhere else in it since it was written; none where
    /// somebody did. Where there is no `README.md`, nobody did.
    ///
    /// # Errors
    /// If there is a card that cannot be read.
    pub fn notes_if_as_written(&self, folder: &Path) -> Result<Option<String>, ReportError> {
        let Some(readme) = readme(folder)? else { return Ok(Some(String::new())) };
        let readme = String::from_utf8_lossy(&readme);
        let notes = notes_of(&readme).unwrap_or_default();
        let is_as_written = match &self.readme_sha256 {
            Some(sum) => *sum == sum_without_notes(&readme),
            // A record of before that was noted, or of a run that is about to write its first card.
            None => readme == self.render(&notes),
        };
        let is_draft = || readme == put_notes(None, &self.name, &notes);
        Ok((is_as_written || is_draft()).then_some(notes))
    }

    /// `card.json`, and `README.md` with these notes.
    pub fn files(mut self, notes: &str) -> [Extra; 2] {
        let readme = self.render(notes);
        self.readme_sha256 = Some(sum_without_notes(&readme));
        [(CARD_FILE, self.to_json()), (README_FILE, readme.into_bytes())]
    }

    /// The bytes of `card.json`.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("plain fields with names become JSON");
        json.push(b'\n');
        json
    }

    /// Writes `card.json`, then `README.md` with the notes that the folder's `README.md` holds now.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn write(&self, folder: &Path) -> Result<(), ReportError> {
        let notes = read_notes(folder)?.unwrap_or_default();
        self.write_with(folder, &notes)
    }

    /// Writes `card.json`, then `README.md` with these notes.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_with(&self, folder: &Path, notes: &str) -> Result<(), ReportError> {
        for (name, bytes) in self.clone().files(notes) {
            files::write_atomic(&folder.join(name), &bytes)?;
        }
        Ok(())
    }

    /// Writes `card.json` alone, beside a `README.md` that somebody else wrote.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_record(&self, folder: &Path) -> Result<(), ReportError> {
        Ok(files::write_atomic(&folder.join(CARD_FILE), &self.to_json())?)
    }
}

/// The SHA-256 of a card but for its notes, which may change by hand.
fn sum_without_notes(readme: &str) -> String {
    hex(&Sha256::digest(put_notes(Some(readme), "", "")))
}

/// The SHA-256 of a file's bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The notes in a folder's card, if it has any.
///
/// # Errors
/// If there is a card that cannot be read.
pub fn read_notes(folder: &Path) -> Result<Option<String>, ReportError> {
    Ok(readme(folder)?.and_then(|readme| notes_of(&String::from_utf8_lossy(&readme))))
}

/// Puts notes into a folder's card, or begins one with them.
///
/// # Errors
/// If the card cannot be read or written.
pub fn write_notes(folder: &Path, name: &str, notes: &str) -> Result<(), ReportError> {
    let card = readme(folder)?;
    let card = card.as_deref().map(String::from_utf8_lossy);
    let card = put_notes(card.as_deref(), name, notes);
    Ok(files::write_atomic(&folder.join(README_FILE), card.as_bytes())?)
}

/// A folder's card, if it has one.
fn readme(folder: &Path) -> Result<Option<Vec<u8>>, ReportError> {
    let path = folder.join(README_FILE);
    if !fs::exists(&path).unwrap_or(true) {
        return Ok(None);
    }
    Ok(Some(files::read_bounded(&path, MAX_README)?))
}

fn title(language: Language) -> &'static str {
    language.pick("中文", "English")
}

/// One language of a card.
struct Page<'a> {
    card: &'a Card,
    language: Language,
    heading: &'static str,
}

impl Page<'_> {
    /// One of two wordings.
    fn pick<T>(&self, zh: T, en: T) -> T {
        self.language.pick(zh, en)
    }

    /// The title of a section.
    fn section(&self, zh: &str, en: &str) -> String {
        format!("{} {}\n\n", self.heading, self.pick(zh, en))
    }

    fn half(&self) -> String {
        let run = self.card.training.as_ref();
        if let (Some(four), None) = (&self.card.in_four_bits, &self.card.lora) {
            return quantized::render(self, four);
        }
        let mut out = introduction::render(self);
        // What was measured on another base says nothing of this model.
        if let Some(run) = run.filter(|_| self.card.trained_on.is_none()) {
            out += &results::render(self, run);
        }
        out += &snippets::render(self);
        if let Some(merge) = &self.card.merge {
            out += &merge::render(self, merge);
        }
        if let Some(run) = run {
            out += &data::render(self, run);
        }
        out + &training::render(self, run)
    }
}

fn notes_section(languages: &[Language], notes: &str) -> String {
    let say = |zh: &str, en: &str, between: &str| {
        languages.iter().map(|l| l.pick(zh, en).to_owned()).collect::<Vec<_>>().join(between)
    };
    let title = say("局限与说明", "Limits and notes", " · ");
    let keep = say(
        "下面两个标记之间由作者手写，重新生成时保留。",
        "What stands between the two marks is written by hand and kept when the card is written again.",
        " ",
    );
    let none = match notes.trim().is_empty() {
        true => {
            say(
                "作者还没有写这个模型的局限。",
                "The author has not written down the limits of this model yet.",
                "\n\n",
            ) + "\n\n"
        }
        false => String::new(),
    };
    format!("## {title}\n\n{none}<!-- {keep} -->\n{}", notes::marked(notes))
}

#[cfg(test)]
mod tests;
