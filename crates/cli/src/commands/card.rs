//! The flags of a model card, and `danlu card`, which writes one again.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use danlu_adapter::fidelity::Fidelity;
use danlu_adapter::merge::MergeReport;
use danlu_adapter::{BaseIdentity, CONFIG_FILE, LoraConfig, TokenIdentity};
use danlu_loader::{LoadError, ModelFiles, folder_name, identify_base};
use danlu_model::{Extra, files};
use danlu_report::card::{self, CARD_FILE, Card, CardLanguage, Lora, Merge, PICTURE_FILE, Training};
use danlu_report::{ReportError, RunSummary, page};

use crate::commands::doctor;
use crate::commands::train::{REPLY_TOKENS, RunConfig};
use crate::diagnostic::{Diagnostic, Result};
use crate::lang::Lang;
use crate::model_loader::hub_name;
use crate::printer::Printer;
use crate::terminal_text;

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu card out/huanhuan --card-lang both --license apache-2.0
  danlu card out/huanhuan --notes limits.md --base-id meta-llama/Llama-3.2-1B

`train` and `merge` write the card themselves; this writes it again, without training. \
What earlier flags set stays until a flag changes it. \
Only the text between `<!-- danlu:begin -->` and `<!-- danlu:end -->` and danlu's own keys of the front matter are written; \
the rest of README.md is yours and stays as it is.";

/// Largest file of notes, in bytes.
const MAX_NOTES: u64 = 1 << 20;

/// In which languages a card is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CardLang {
    /// Simplified Chinese.
    Zh,
    /// English.
    En,
    /// Both, the language of the run first.
    Both,
}

impl CardLang {
    /// As the flag spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zh => "zh",
            Self::En => "en",
            Self::Both => "both",
        }
    }

    fn of(self, lang: Lang) -> CardLanguage {
        match self {
            Self::Zh => CardLanguage::Zh,
            Self::En => CardLanguage::En,
            Self::Both => lang.pick(CardLanguage::ZhEn, CardLanguage::EnZh),
        }
    }
}

/// What only the author knows of a card.
#[derive(Args, Clone, Debug, Default)]
pub struct CardArgs {
    /// Languages of the model card (README.md): zh, en or both [default: the language of what is printed]
    #[arg(long, value_name = "LANG", hide_possible_values = true, help_heading = "Model card")]
    pub card_lang: Option<CardLang>,
    /// The model's licence as the Hub spells it, such as apache-2.0 [default: what the base's own card says]
    #[arg(long, value_name = "ID", value_parser = license, help_heading = "Model card")]
    pub license: Option<String>,
    /// The base's name on the Hub, for links and snippets, where its folder does not tell it
    #[arg(long, value_name = "OWNER/NAME", value_parser = hub_id, help_heading = "Model card")]
    pub base_id: Option<String>,
    /// Names of the data on the Hub, between commas
    #[arg(long, value_name = "OWNER/NAME", value_delimiter = ',', value_parser = hub_id, help_heading = "Model card")]
    pub dataset_id: Vec<String>,
}

/// The file that the author's notes are read from.
#[derive(Args, Clone, Debug, Default)]
pub struct NotesArgs {
    /// Markdown for the card's section on limits, in place of the text between its notes marks
    #[arg(long, value_name = "FILE", help_heading = "Model card")]
    pub notes: Option<PathBuf>,
}

fn license(id: &str) -> Result<String, String> {
    match card::is_license(id) {
        true => Ok(id.to_owned()),
        false => Err("expected small letters, digits, dashes and dots, such as apache-2.0".to_owned()),
    }
}

/// The value of a flag that names a repository.
pub fn hub_id(id: &str) -> Result<String, String> {
    match danlu_model::is_repo_id(id) {
        true => Ok(id.to_owned()),
        false => Err("expected owner/name, as in the address of its page".to_owned()),
    }
}

impl CardArgs {
    /// The languages that were asked for, or that of the run.
    pub fn language(&self, lang: Lang) -> CardLanguage {
        self.card_lang.map_or(lang.pick(CardLanguage::Zh, CardLanguage::En), |asked| asked.of(lang))
    }

    /// Sets what was given, over what the card says.
    fn apply(&self, card: &mut Card, lang: Lang) {
        if let Some(asked) = self.card_lang {
            card.language = asked.of(lang);
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
    /// The notes, where a file was named.
    ///
    /// # Errors
    /// If it cannot be read, or is no text.
    pub fn read(&self) -> Result<Option<String>> {
        let Some(path) = &self.notes else { return Ok(None) };
        let bytes = files::read_bounded(path, MAX_NOTES)?;
        String::from_utf8(bytes).map(Some).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let text = format!("`{}` is no UTF-8 text: byte {at} begins no character", path.display());
            Diagnostic::input(text).with_hint("save it as UTF-8")
        })
    }
}

/// Writes the card of a finished run, and its picture.
///
/// Settings of the card that the author changed since the run began stay. A `README.md` without danlu's marks stays as
/// it is, and so does one whose marks are damaged: no such fault may cost a finished run.
///
/// # Errors
/// If the folder cannot be read or written.
pub fn write_for_run(
    run: &RunConfig,
    summary: &RunSummary,
    lora: &LoraConfig,
    tokens: &TokenIdentity,
    base: BaseIdentity,
    earlier: Option<&Card>,
    printer: &Printer,
) -> Result<(), ReportError> {
    let lang = printer.lang;
    let template = tokens.fingerprint().template_sha256.clone();
    let mut training = Training::of(summary, template, REPLY_TOKENS, doctor::processor());
    let recorded = earlier.and_then(|card| card.training.as_ref()?.memory);
    // A resumed run measures its own part only, which may be no more than writing the adapter again.
    if recorded > training.memory {
        training.memory = recorded;
    }
    training.stored = tokens.quantization().filter(|_| run.settings.quantization().is_none());
    let mut card = Card {
        lora: Some(Lora::of(lora)),
        training: Some(training),
        version: summary.version.clone(),
        ..bare(summary.adapter_name.clone(), base, &run.files.base, lang)
    };
    match earlier {
        None => run.card.args.apply(&mut card, lang),
        Some(earlier) => {
            card.repository.clone_from(&earlier.repository);
            card.language = earlier.language;
            card.license = earlier.license.clone().or(card.license);
            if let Some(id) = &earlier.base.hub_id {
                card.base = card.base.with_hub_id(id);
            }
            card.datasets.clone_from(&earlier.datasets);
            run.card.given.apply(&mut card, lang);
        }
    }
    let first = card.language.order().first().copied().unwrap_or_default();
    let picture = page::picture(summary, first);
    card.has_picture = !picture.is_empty();
    if card.has_picture {
        files::write_atomic(&run.files.output.join(PICTURE_FILE), picture.as_bytes())?;
    }
    card.write_record(&run.files.output)?;
    let output = terminal_text::shell_path(&run.files.output);
    let readme = card::read_readme(&run.files.output)?.unwrap_or_default();
    match card::is_authors_alone(&readme) {
        Ok(true) => printer.status_bilingual(
            &format!("README.md 没有 danlu 的标记，保持原样（`danlu card {output}` 把卡片写在它下面）"),
            &format!("README.md has no danlu marks and stays as it is (`danlu card {output}` adds the card below its text)"),
        ),
        Ok(false) => match card.write(&run.files.output, None) {
            Err(error @ ReportError::Readme { .. }) => warn_of_readme(&error, &output, printer),
            result => result?,
        },
        Err(fault) => {
            let path = run.files.output.join(card::README_FILE);
            warn_of_readme(&ReportError::Readme { path, fault }, &output, printer);
        }
    }
    Ok(())
}

/// Warns that the card of a run is not written, and names the command that writes it.
fn warn_of_readme(error: &ReportError, output: &str, printer: &Printer) {
    let hint = error.hint().unwrap_or_default();
    printer.warn(&printer.pick(
        format!("没有写模型卡片：{error}（{hint}，然后 `danlu card {output}`）"),
        format!("the model card is not written: {error} ({hint}, then `danlu card {output}`)"),
    ));
}

/// The card of a model to be merged, settled before anything is merged: the adapter's own, or as much as its
/// configuration tells.
pub struct MergedCard {
    card: Card,
    notes: String,
    picture: Option<Vec<u8>>,
}

impl MergedCard {
    /// From the adapter of `model`, with the notes that the command line may add.
    ///
    /// # Errors
    /// If a file of the card, or the notes, cannot be read.
    pub fn of(model: &ModelFiles, notes: &NotesArgs, lang: Lang) -> Result<Self> {
        let adapter = model.own_folder();
        let mut card = match Card::read(adapter)? {
            Some(card) => card,
            None => unrecorded(adapter, model.base().folder(), lang)?,
        };
        let picture = adapter.join(PICTURE_FILE);
        let picture = match card.has_picture && picture.is_file() {
            true => Some(files::read_bounded(&picture, MAX_NOTES)?),
            false => None,
        };
        card.has_picture = picture.is_some();
        let notes = match notes.read()? {
            Some(notes) => notes,
            None => card::read_notes(adapter)?.unwrap_or_default(),
        };
        Ok(Self { card, notes, picture })
    }

    /// The card where the adapter goes into another base than it was trained on: what was measured in training is not of
    /// this model, and the licence is that of the base in `folder`.
    pub fn on_another_base(&mut self, base: BaseIdentity, folder: &Path) {
        self.card.license = card::license_of(folder);
        let trained = std::mem::replace(&mut self.card.base, base);
        self.card.trained_on = Some(trained);
        (self.card.has_picture, self.picture) = (false, None);
    }

    /// Sets what was given on the command line, over what is known of adapter and base.
    pub fn apply(&mut self, args: &CardArgs, lang: Lang) {
        args.apply(&mut self.card, lang);
    }

    /// The files of the card in the merged model's folder.
    pub fn files(self, output: &Path, report: &MergeReport, fidelity: &Fidelity) -> Vec<Extra> {
        let card = self.card.merged(folder_name(output), Merge::of(report, fidelity));
        let picture = self.picture.map(|picture| (PICTURE_FILE, picture));
        card.files(&self.notes).into_iter().chain(picture).collect()
    }
}

/// What is known of an adapter that left no record: a checkpoint, or another program's.
fn unrecorded(adapter: &Path, base: &Path, lang: Lang) -> Result<Card> {
    let config = LoraConfig::read(adapter)?;
    let named = config.base_model_name_or_path.clone().unwrap_or_default();
    let card = bare(folder_name(adapter), identify_base(&named, base), base, lang);
    Ok(Card { lora: Some(Lora::of(&config)), ..card })
}

/// A card that knows no more than the base in `folder`, its licence, and the language of the run.
pub fn bare(name: String, base: BaseIdentity, folder: &Path, lang: Lang) -> Card {
    let language = lang.pick(CardLanguage::Zh, CardLanguage::En);
    Card::new(name, language, base, card::license_of(folder))
}

/// The flags of `danlu card`.
#[derive(Args, Clone, Debug)]
pub struct WriteArgs {
    /// Folder of an adapter that `train` wrote, of a merged model, or of one that `quantize` wrote
    pub folder: PathBuf,
    /// The name it has, or will have, on the Hub: what its snippets say
    #[arg(long, value_name = "OWNER/NAME", value_parser = hub_id, help_heading = "Model card")]
    pub name: Option<String>,
    #[command(flatten)]
    pub card: CardArgs,
    #[command(flatten)]
    pub notes: NotesArgs,
}

/// Writes the card again.
///
/// # Errors
/// If the folder holds no record of one, or a file cannot be read or written.
pub fn run(args: &WriteArgs, printer: &Printer) -> Result<()> {
    let folder = &args.folder;
    let Some(mut card) = Card::read(folder)? else {
        let is_model = [CONFIG_FILE, "config.json"].iter().any(|name| folder.join(name).is_file());
        if !is_model {
            let report = Diagnostic::from(LoadError::no_model(folder));
            return Err(match hub_name(folder) {
                Some(_) => report
                    .and_hint("a card is written into a folder here, and `danlu push` takes it to the Hub"),
                None => report,
            });
        }
        let text =
            format!("`{}` holds no `{CARD_FILE}`, from which its card could be written", folder.display());
        return Err(Diagnostic::input(text)
            .with_hint("`danlu train`, `danlu merge` and `danlu quantize` leave one beside the card"));
    };
    let notes = args.notes.read()?;
    let readme = card::read_readme(folder)?.unwrap_or_default();
    let is_added = card::is_authors_alone(&readme).unwrap_or(false);
    args.card.apply(&mut card, printer.lang);
    card.name = folder_name(folder);
    // Another repository has branches of its own.
    if args.name.is_some() && args.name != card.repository {
        card.repository.clone_from(&args.name);
        card.revision = None;
    }
    card.write(folder, notes.as_deref())?;
    let shown = folder.join(card::README_FILE);
    if is_added {
        let path = shown.display();
        printer.status_bilingual(
            &format!("`{path}` 没有 danlu 的标记：卡片写在原有文字之下"),
            &format!("`{path}` had no danlu marks: the card stands below your text"),
        );
    }
    let bytes = fs::metadata(&shown).map_err(|error| Diagnostic::io("read", &shown, error))?.len();
    let (shown, size) = (shown.display(), terminal_text::bytes(bytes));
    printer
        .data(&printer.pick(format!("模型卡片  {shown}（{size}）"), format!("model card  {shown} ({size})")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_author_are_spelt_as_the_hub_spells_them() {
        assert_eq!(hub_id("meta-llama/Llama-3.2-1B").as_deref(), Ok("meta-llama/Llama-3.2-1B"));
        assert!(hub_id("/home/me/base").is_err() && hub_id("base").is_err());
        assert_eq!(license("llama3.2").as_deref(), Ok("llama3.2"));
        assert!(license("Apache 2.0").is_err() && license("").is_err());
    }

    #[test]
    fn both_languages_begin_with_that_of_the_run() {
        assert_eq!(CardLang::Both.of(Lang::Zh), CardLanguage::ZhEn);
        assert_eq!(CardLang::Both.of(Lang::En), CardLanguage::EnZh);
        assert_eq!(CardLang::En.of(Lang::Zh), CardLanguage::En);
    }
}
