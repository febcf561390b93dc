//! The model card: the `README.md` of an adapter or a merged model, which the Hugging Face Hub shows as a
//! page.
//!
//! danlu owns the text between `<!-- danlu:begin -->` and `<!-- danlu:end -->`, and its own keys in the front
//! matter. All other text belongs to the author. In the author's text, danlu changes only the notes, and only
//! if `--notes` is given.
//!
//! `card.json` ([`Card`]) contains every value of danlu's part, so that danlu can write this part again. A
//! card contains no paths. Bases, data and folders are identified by their names.

mod author_notes;
#[expect(clippy::module_inception, reason = "the file bears the name of its noun")]
mod card;
mod data;
mod front_matter;
mod introduction;
mod license;
mod markdown;
mod merge;
mod quantized;
mod readme;
mod results;
mod snippets;
mod text_language;
mod training;

use std::fs;
use std::path::Path;

use danlu_model::{Extra, files};

use crate::{Language, ReportError};

pub use author_notes::notes_of;
pub use card::{CARD_FILE, Card, CardLanguage, Lora, Merge, Training};
pub use license::{is_license, license_of};
pub use quantized::InFourBits;
pub use readme::{Readme, ReadmeFault};
pub use text_language::TextLanguage;

/// Name of the card's file.
pub const README_FILE: &str = "README.md";

/// Name of the file with the loss chart.
pub const PICTURE_FILE: &str = "loss.svg";

/// A link to danlu in Markdown.
const DANLU: &str = "[danlu](https://github.com/danlu-rs/danlu)";

/// Maximum size of a `README.md`.
const MAX_README_BYTES: u64 = 16 << 20;

impl Card {
    /// Returns a complete `README.md`, in which the author's notes follow danlu's part.
    pub fn render(&self, notes: &str) -> String {
        self.updated("", Some(notes)).expect("an empty file has no fault")
    }

    /// Returns `readme` with this card as danlu's part. The author's notes are replaced only if `notes` is
    /// given. If `readme` has no text, a section for the notes is added.
    ///
    /// # Errors
    /// If the markers or the front matter are invalid.
    pub fn updated(&self, readme: &str, notes: Option<&str>) -> Result<String, ReadmeFault> {
        let readme = Readme::parse(readme)?;
        let out = readme.updated(&front_matter::entries(self), &self.block())?;
        Ok(match (notes, readme.is_blank()) {
            (None, false) => out,
            (notes, _) => author_notes::with_notes(&out, self.language.order(), notes.unwrap_or_default()),
        })
    }

    /// Selects the `README.md` to publish: the folder's file (`here`) or the Hub's file (`there`).
    ///
    /// The published file contains every line that the author wrote in the Hub's file.
    ///
    /// # Errors
    /// If the markers or the front matter of the folder's file are invalid.
    pub fn to_publish(&self, here: Option<&str>, there: Option<&str>) -> Result<ToPublish, ReadmeFault> {
        let ours = match here {
            // A file without markers belongs to the author and is not changed.
            Some(text) if is_authors_alone(text)? => text.to_owned(),
            text => self.updated(text.unwrap_or_default(), None)?,
        };
        match there {
            Some(there) if !keeps_text(&ours, there)? => match Readme::parse(there) {
                Ok(readme) if readme.has_block() => self.updated(there, None).map(ToPublish::Theirs),
                _ => Ok(ToPublish::Nothing),
            },
            _ => Ok(ToPublish::Ours(ours)),
        }
    }

    /// Returns `card.json` and a `README.md` that contains these notes.
    pub fn files(&self, notes: &str) -> [Extra; 2] {
        [(CARD_FILE, self.to_json()), (README_FILE, self.render(notes).into_bytes())]
    }

    /// Serializes the card as `card.json`.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("plain fields with names become JSON");
        json.push(b'\n');
        json
    }

    /// Writes `card.json` and updates the folder's `README.md`. The author's notes are replaced only if
    /// `notes` is given.
    ///
    /// # Errors
    /// If a file cannot be read or written, or if `README.md` is invalid. If `README.md` is invalid, no file
    /// is written.
    pub fn write(&self, folder: &Path, notes: Option<&str>) -> Result<(), ReportError> {
        let path = folder.join(README_FILE);
        let before = read_readme(folder)?.unwrap_or_default();
        let readme = self
            .updated(&before, notes)
            .map_err(|fault| ReportError::Readme { path: path.clone(), fault })?;
        self.write_record(folder)?;
        Ok(files::write_atomic(&path, readme.as_bytes())?)
    }

    /// Writes `card.json` without updating `README.md`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_record(&self, folder: &Path) -> Result<(), ReportError> {
        Ok(files::write_atomic(&folder.join(CARD_FILE), &self.to_json())?)
    }

    /// Returns the lines between danlu's markers. A card in two languages has one half for each language.
    fn block(&self) -> String {
        let languages = self.language.order();
        let both = languages.len() > 1;
        let mut out = format!("<!-- {} -->\n\n# {}\n\n", marks_note(languages), markdown::plain(&self.name));
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
        // A prompt or a reply may contain danlu's markers. The spaces in such markers are removed, so that
        // they have no effect.
        [readme::BEGIN, readme::END].iter().fold(out, |out, mark| out.replace(mark, &mark.replace(' ', "")))
    }
}

/// The `README.md` that a push uploads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToPublish {
    /// The updated file of the folder.
    Ours(String),
    /// The updated file of the Hub. The Hub's file contains text by the author that the folder's file does
    /// not contain.
    Theirs(String),
    /// No file is uploaded. The Hub's file has no markers, and contains text by the author that the folder's
    /// file does not contain.
    Nothing,
}

/// Returns whether a `README.md` contains text but no markers.
///
/// # Errors
/// If the markers or the front matter are invalid.
pub fn is_authors_alone(readme: &str) -> Result<bool, ReadmeFault> {
    let readme = Readme::parse(readme)?;
    Ok(!readme.has_block() && !readme.is_blank())
}

/// Returns whether `ours` contains every line that the author wrote in `theirs`, in the same order. Returns
/// `false` if `theirs` has invalid markers or an invalid front matter.
///
/// # Errors
/// If the markers or the front matter of `ours` are invalid.
pub fn keeps_text(ours: &str, theirs: &str) -> Result<bool, ReadmeFault> {
    let ours = Readme::parse(ours)?;
    Ok(Readme::parse(theirs)
        .is_ok_and(|theirs| readme::keeps_every_line(&theirs.author_lines(), &ours.author_lines())))
}

/// Reads the author's notes from a folder's `README.md`. Returns `None` if there are no notes.
///
/// # Errors
/// If the file cannot be read.
pub fn read_notes(folder: &Path) -> Result<Option<String>, ReportError> {
    Ok(read_readme(folder)?.and_then(|readme| notes_of(&readme)))
}

/// Writes the author's notes into a folder's `README.md`. A new file also gets danlu's begin and end marker,
/// between which danlu later inserts the card.
///
/// # Errors
/// If the file cannot be read or written, or if its markers or its front matter are invalid.
pub fn write_notes(folder: &Path, language: CardLanguage, notes: &str) -> Result<(), ReportError> {
    let path = folder.join(README_FILE);
    let before = read_readme(folder)?;
    let before = before.unwrap_or_else(|| format!("{}\n{}\n", readme::BEGIN, readme::END));
    Readme::parse(&before).map_err(|fault| ReportError::Readme { path: path.clone(), fault })?;
    Ok(files::write_atomic(&path, author_notes::with_notes(&before, language.order(), notes).as_bytes())?)
}

/// Reads the `README.md` of a folder. Returns `None` if the folder has no such file.
///
/// # Errors
/// If the file cannot be read, or if it is not UTF-8.
pub fn read_readme(folder: &Path) -> Result<Option<String>, ReportError> {
    let path = folder.join(README_FILE);
    if !fs::exists(&path).unwrap_or(true) {
        return Ok(None);
    }
    let text = String::from_utf8(files::read_bounded(&path, MAX_README_BYTES)?);
    text.map(Some).map_err(|error| {
        let fault = ReadmeFault::NotUtf8 { at: error.utf8_error().valid_up_to() };
        ReportError::Readme { path, fault }
    })
}

fn title(language: Language) -> &'static str {
    language.pick("中文", "English")
}

/// Returns a note for the author that explains which text danlu replaces.
fn marks_note(languages: &[Language]) -> String {
    let note = |language: &Language| {
        language.pick(
            "danlu 会重写这两个标记之间的内容，标记之外的文字归你所有，不会改动。",
            "danlu rewrites the text between these two marks. Text outside of them is yours and stays as it is.",
        )
    };
    languages.iter().map(note).collect::<Vec<_>>().join(" ")
}

/// A card in one language.
struct Page<'a> {
    card: &'a Card,
    language: Language,
    heading: &'static str,
}

impl Page<'_> {
    fn pick<T>(&self, zh: T, en: T) -> T {
        self.language.pick(zh, en)
    }

    fn section(&self, zh: &str, en: &str) -> String {
        format!("{} {}\n\n", self.heading, self.pick(zh, en))
    }

    fn half(&self) -> String {
        let run = self.card.training.as_ref();
        if let (Some(four), None) = (&self.card.in_four_bits, &self.card.lora) {
            return quantized::render(self, four);
        }
        let mut out = introduction::render(self);
        // The results were measured on a different base, so they do not apply to this model.
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

#[cfg(test)]
mod tests;
