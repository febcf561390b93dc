//! The files that say something else on the Hub than here: the card its repository, the adapter its base.

use std::path::Path;

use danlu_adapter::{CONFIG_FILE, LoraConfig};
use danlu_hub::RepoName;
use danlu_model::files;
use danlu_train::card::{self, Card};
use serde_json::{Map, Value};

use super::PushArgs;
use crate::commands::hub::name_of;
use crate::printer::Printer;
use crate::report::{Report, Result};

/// Longest configuration of an adapter, in bytes.
const LONGEST_CONFIG: u64 = 4 << 20;

/// Longest card that is looked into for the repository's name.
const LONGEST_CARD: u64 = 16 << 20;

/// Names and bytes of these files. The folder itself stays as it is, and the next push says the same again.
///
/// # Errors
/// If the card or the adapter's configuration cannot be read.
pub fn files(args: &PushArgs, name: &RepoName, printer: &Printer) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let folder = &args.folder;
    let mut files = Vec::new();
    let mut base_id = args.base_id.clone();
    if let Some(mut card) = Card::read(folder)? {
        // A run that was killed before it wrote its page has left the record: its page comes along.
        let notes = card.notes_if_as_written(folder)?;
        card.repository = Some(name.id().to_owned());
        match &args.base_id {
            Some(id) => card.base.hub_id = Some(id.clone()),
            None => base_id.clone_from(&card.base.hub_id),
        }
        match notes {
            Some(notes) => files.extend(card.files(&notes)),
            None => {
                files.push((card::CARD_FILE, card.to_json()));
                tell_of_edited(folder, name, printer)?;
            }
        }
    }
    if folder.join(CONFIG_FILE).is_file() {
        let bytes = adapter_config(folder, args.base_id.is_some(), base_id, printer)?;
        files.extend(bytes.map(|bytes| (CONFIG_FILE, bytes)));
    }
    Ok(files)
}

/// A card that was written by hand goes as it is, which is worth a word where it does not name the repository.
fn tell_of_edited(folder: &Path, name: &RepoName, printer: &Printer) -> Result<()> {
    let readme = files::read_bounded(&folder.join(card::README_FILE), LONGEST_CARD)?;
    if !String::from_utf8_lossy(&readme).contains(name.id()) {
        printer.tell(
            &format!("README.md 改动过，原样发送；其中的代码片段可能需要改成 `{name}`"),
            &format!("README.md was edited and goes as it is; its snippets may have to name `{name}`"),
        );
    }
    Ok(())
}

/// `adapter_config.json` with its base by the name on the Hub, where that was asked for, or the card knows it and the file
/// names a folder. Otherwise a base that is a folder of this machine is told: nobody else can find it.
fn adapter_config(
    folder: &Path,
    is_asked: bool,
    base_id: Option<String>,
    printer: &Printer,
) -> Result<Option<Vec<u8>>> {
    const BASE: &str = "base_model_name_or_path";
    let named = LoraConfig::read(folder)?.base_model_name_or_path.unwrap_or_default();
    if !is_asked && name_of(Path::new(&named)).is_some() {
        return Ok(None);
    }
    let Some(id) = base_id else {
        printer.tell(
            &format!("adapter_config.json 的基座是 `{named}`，本机的文件夹，别人找不到：用 `--base-id 组织/名字` 写明它在 Hub 上的名字"),
            &format!("adapter_config.json names its base `{named}`, a folder here, which nobody else finds: `--base-id ORG/NAME` says what it is on the Hub"),
        );
        return Ok(None);
    };
    let path = folder.join(CONFIG_FILE);
    let bytes = files::read_bounded(&path, LONGEST_CONFIG)?;
    let config = serde_json::from_slice::<Map<String, Value>>(&bytes);
    let mut config = config.map_err(|error| Report::input(format!("`{}`: {error}", path.display())))?;
    config.insert(BASE.to_owned(), id.into());
    // A commit of the one named before says nothing of this one.
    config.insert("revision".to_owned(), Value::Null);
    Ok(Some(serde_json::to_vec_pretty(&config).expect("JSON that was read is written again")))
}
