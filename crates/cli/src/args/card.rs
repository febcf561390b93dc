//! Flags of the model card.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use danlu_model::files;
use danlu_report::card::{self, Card, CardLanguage};

use crate::diagnostic::{Diagnostic, Result};
use crate::lang::Lang;

/// Largest notes file that is read, in bytes.
const MAX_NOTES_BYTES: u64 = 1 << 20;

/// The languages of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CardLang {
    Zh,
    En,
    /// Both languages. The language of the terminal comes first.
    Both,
}

impl CardLang {
    pub fn name(self) -> &'static str {
        match self {
            Self::Zh => "zh",
            Self::En => "en",
            Self::Both => "both",
        }
    }

    fn in_lang(self, lang: Lang) -> CardLanguage {
        match self {
            Self::Zh => CardLanguage::Zh,
            Self::En => CardLanguage::En,
            Self::Both => lang.pick(CardLanguage::ZhEn, CardLanguage::EnZh),
        }
    }
}

/// Card values that only the author can give.
#[derive(Args, Clone, Debug, Default)]
pub struct CardArgs {
    /// Languages of the model card (README.md): zh, en or both [default: the language of the terminal]
    #[arg(long, value_name = "LANG", hide_possible_values = true, help_heading = "Model card")]
    pub card_lang: Option<CardLang>,
    /// The model's licence in the Hub's spelling, such as apache-2.0 [default: the licence of the base]
    #[arg(long, value_name = "ID", value_parser = license, help_heading = "Model card")]
    pub license: Option<String>,
    /// Hub name of the base for links and snippets, if the base is a local folder
    #[arg(long, value_name = "OWNER/NAME", value_parser = hub_id, help_heading = "Model card")]
    pub base_id: Option<String>,
    /// Names of the data sets on the Hub, separated by commas
    #[arg(long, value_name = "OWNER/NAME", value_delimiter = ',', value_parser = hub_id, help_heading = "Model card")]
    pub dataset_id: Vec<String>,
}

/// The file with the author's notes.
#[derive(Args, Clone, Debug, Default)]
pub struct NotesArgs {
    /// Markdown file with your notes on the model's limits; replaces the notes in the card
    #[arg(long, value_name = "FILE", help_heading = "Model card")]
    pub notes: Option<PathBuf>,
}

fn license(id: &str) -> Result<String, String> {
    match card::is_license(id) {
        true => Ok(id.to_owned()),
        false => Err("expected small letters, digits, dashes and dots, such as apache-2.0".to_owned()),
    }
}

/// Parses the name of a repository.
pub fn hub_id(id: &str) -> Result<String, String> {
    match danlu_model::is_repo_id(id) {
        true => Ok(id.to_owned()),
        false => Err("expected owner/name, as in the address of its page".to_owned()),
    }
}

impl CardArgs {
    pub fn language(&self, lang: Lang) -> CardLanguage {
        self.card_lang.map_or(lang.pick(CardLanguage::Zh, CardLanguage::En), |asked| asked.in_lang(lang))
    }

    /// Overwrites the values of a card for which a flag is given.
    pub fn apply(&self, card: &mut Card, lang: Lang) {
        if let Some(asked) = self.card_lang {
            card.language = asked.in_lang(lang);
        }
        if self.license.is_some() {
            card.license.clone_from(&self.license);
        }
        if let Some(id) = &self.base_id {
            card.base = std::mem::take(&mut card.base).with_hub_id(id);
        }
        if !self.dataset_id.is_empty() {
            card.datasets.clone_from(&self.dataset_id);
        }
    }
}

impl NotesArgs {
    /// Reads the notes, if a file was given.
    ///
    /// # Errors
    /// If the file cannot be read, or is not UTF-8.
    pub fn read(&self) -> Result<Option<String>> {
        let Some(path) = &self.notes else { return Ok(None) };
        let bytes = files::read_bounded(path, MAX_NOTES_BYTES)?;
        String::from_utf8(bytes).map(Some).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let text = format!("`{}` is not UTF-8 text: the fault is at byte {at}", path.display());
            Diagnostic::input(text).with_hint("save it as UTF-8")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_and_licences_have_the_hubs_form() {
        assert_eq!(hub_id("meta-llama/Llama-3.2-1B").as_deref(), Ok("meta-llama/Llama-3.2-1B"));
        assert!(hub_id("/home/me/base").is_err() && hub_id("base").is_err());
        assert_eq!(license("llama3.2").as_deref(), Ok("llama3.2"));
        assert!(license("Apache 2.0").is_err() && license("").is_err());
    }

    #[test]
    fn both_languages_start_with_that_of_the_terminal() {
        assert_eq!(CardLang::Both.in_lang(Lang::Zh), CardLanguage::ZhEn);
        assert_eq!(CardLang::Both.in_lang(Lang::En), CardLanguage::EnZh);
        assert_eq!(CardLang::En.in_lang(Lang::Zh), CardLanguage::En);
    }
}
