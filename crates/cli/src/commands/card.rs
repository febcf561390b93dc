//! `danlu card`: updates the model card of a folder.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use danlu_adapter::{CONFIG_FILE, IDENTITY_FILE, TrainingIdentity};
use danlu_loader::{LoadError, folder_name};
use danlu_model::files;
use danlu_report::card::{self, CARD_FILE, Card};

use crate::args::card::hub_id;
use crate::args::{CardArgs, NotesArgs};
use crate::diagnostic::{Diagnostic, Result};
use crate::model_loader::hub_name;
use crate::printer::Printer;
use crate::terminal_text;

pub const EXAMPLES: &str = "\
Examples:
  danlu card danlu-demo/adapter --card-lang both --license apache-2.0
  danlu card danlu-demo/adapter --base-id you/base-8m --name you/palace-lora

`train` and `merge` write the card themselves; this command updates it without training. \
Values of earlier flags stay until a flag changes them. \
Only the text between `<!-- danlu:begin -->` and `<!-- danlu:end -->`, and danlu's own keys of the front matter, are written. \
The rest of README.md is yours and is not changed.";

/// The flags of `danlu card`.
#[derive(Args, Clone, Debug)]
pub struct WriteArgs {
    /// Folder written by `train`, `merge` or `quantize`
    pub folder: PathBuf,
    /// Hub name of the model, for the snippets
    #[arg(long, value_name = "OWNER/NAME", value_parser = hub_id, help_heading = "Model card")]
    pub name: Option<String>,
    #[command(flatten)]
    pub card: CardArgs,
    #[command(flatten)]
    pub notes: NotesArgs,
}

/// Updates the card from `card.json`.
///
/// # Errors
/// If the folder has no `card.json`, or a file cannot be read or written.
pub fn run(args: &WriteArgs, printer: &Printer) -> Result<()> {
    let folder = &args.folder;
    let Some(mut card) = Card::read(folder)? else {
        let is_model = [CONFIG_FILE, "config.json"].iter().any(|name| folder.join(name).is_file());
        if !is_model {
            let diagnostic = Diagnostic::from(LoadError::no_model(folder));
            return Err(match hub_name(folder) {
                Some(_) => {
                    diagnostic.and_hint("name a local folder; `danlu push` then uploads the card to the Hub")
                }
                None => diagnostic,
            });
        }
        let text = format!("`{}` holds no `{CARD_FILE}`, which the card is written from", folder.display());
        return Err(Diagnostic::input(text)
            .with_hint("name a folder written by `danlu train`, `danlu merge` or `danlu quantize`"));
    };
    let notes = args.notes.read()?;
    let readme = card::read_readme(folder)?.unwrap_or_default();
    let is_added = card::is_authors_alone(&readme).unwrap_or(false);
    args.card.apply(&mut card, printer.lang);
    card.name = folder_name(folder);
    // The revision is a branch of the old repository, so a new repository name removes it.
    if args.name.is_some() && args.name != card.repository {
        card.repository.clone_from(&args.name);
        card.revision = None;
    }
    let identity = match &args.card.base_id {
        Some(_) => identity_with_base(folder, &card)?,
        None => None,
    };
    card.write(folder, notes.as_deref())?;
    if let Some(bytes) = identity {
        files::write_atomic(&folder.join(IDENTITY_FILE), &bytes)?;
    }
    let shown = folder.join(card::README_FILE);
    if is_added {
        let path = shown.display();
        printer.status_bilingual(
            &format!("`{path}` 没有 danlu 的标记：卡片写在原有文字之下"),
            &format!("`{path}` had no danlu marks: the card is added below your text"),
        );
    }
    let bytes = fs::metadata(&shown).map_err(|error| Diagnostic::io("read", &shown, error))?.len();
    let (shown, size) = (shown.display(), terminal_text::bytes(bytes));
    printer
        .data(&printer.pick(format!("模型卡片  {shown}（{size}）"), format!("model card  {shown} ({size})")));
    Ok(())
}

/// Returns the folder's `danlu.json` with the base's Hub name from the card, because `push` and later runs
/// read the name in this file. Returns `None` if the folder has no `danlu.json`, or the card has no Hub name
/// of the base.
fn identity_with_base(folder: &Path, card: &Card) -> Result<Option<Vec<u8>>> {
    let Some(identity) = TrainingIdentity::read(folder)? else { return Ok(None) };
    let Some(id) = &card.base.hub_id else { return Ok(None) };
    let base = identity.base().unwrap_or(&card.base).clone().with_hub_id(id);
    Ok(Some(TrainingIdentity::json_with_base(folder, &base)?))
}
