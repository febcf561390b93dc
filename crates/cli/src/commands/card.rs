//! `danlu card`: writes the model card of a folder again.

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

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu card out/huanhuan --card-lang both --license apache-2.0
  danlu card out/huanhuan --notes limits.md --base-id meta-llama/Llama-3.2-1B

`train` and `merge` write the card themselves; this writes it again, without training. \
What earlier flags set stays until a flag changes it. \
Only the text between `<!-- danlu:begin -->` and `<!-- danlu:end -->` and danlu's own keys of the front matter are written; \
the rest of README.md is yours and stays as it is.";

/// The flags of `danlu card`.
#[derive(Args, Clone, Debug)]
pub struct WriteArgs {
    /// Folder that `train`, `merge` or `quantize` wrote
    pub folder: PathBuf,
    /// The repository on the Hub, for the snippets
    #[arg(long, value_name = "OWNER/NAME", value_parser = hub_id, help_heading = "Model card")]
    pub name: Option<String>,
    #[command(flatten)]
    pub card: CardArgs,
    #[command(flatten)]
    pub notes: NotesArgs,
}

/// Writes the card again from `card.json`.
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
                Some(_) => diagnostic
                    .and_hint("a card is written into a folder here, and `danlu push` takes it to the Hub"),
                None => diagnostic,
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
    // A branch belongs to its repository.
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
            &format!("`{path}` had no danlu marks: the card stands below your text"),
        );
    }
    let bytes = fs::metadata(&shown).map_err(|error| Diagnostic::io("read", &shown, error))?.len();
    let (shown, size) = (shown.display(), terminal_text::bytes(bytes));
    printer
        .data(&printer.pick(format!("模型卡片  {shown}（{size}）"), format!("model card  {shown} ({size})")));
    Ok(())
}

/// Returns the `danlu.json` of an adapter with the base of its card, for `push` and later runs. Other folders have none.
fn identity_with_base(folder: &Path, card: &Card) -> Result<Option<Vec<u8>>> {
    let Some(identity) = TrainingIdentity::read(folder)? else { return Ok(None) };
    let Some(id) = &card.base.hub_id else { return Ok(None) };
    let base = identity.base().unwrap_or(&card.base).clone().with_hub_id(id);
    Ok(Some(TrainingIdentity::json_with_base(folder, &base)?))
}
