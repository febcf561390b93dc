//! The files that say something else on the Hub than here: the card its repository, the adapter its base.

use std::path::Path;

use danlu_adapter::{CONFIG_FILE, LoraConfig};
use danlu_hub::{Hub, RepoName};
use danlu_model::files;
use danlu_report::card::{self, Card};
use serde_json::{Map, Value};

use super::remote_card::{RemoteBase, RemoteCard};
use super::{PushArgs, front_matter};
use crate::commands::hub::is_hub_name;
use crate::commands::nearby;
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;
use crate::terminal_text;

/// Where an adapter's configuration names its base.
const BASE: &str = "base_model_name_or_path";

/// Longest configuration of an adapter, in bytes.
const LONGEST_CONFIG: u64 = 4 << 20;

/// Longest card that is looked into for the names in it.
const LONGEST_CARD: u64 = 16 << 20;

/// What goes otherwise than it is here.
#[derive(Default)]
pub struct RewrittenFiles {
    /// Names and bytes of these files.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// What is to be known of a card that goes as it is: it does not name the repository.
    pub edited: Option<[String; 2]>,
}

/// What goes otherwise than it is here. The folder itself stays as it is, and the next push says the same again.
///
/// # Errors
/// If the card or the adapter's configuration cannot be read, or the Hub cannot be asked.
pub fn files(
    args: &PushArgs,
    hub: &Hub,
    page: &RemoteCard<'_>,
    name: &RepoName,
    printer: &Printer,
) -> Result<RewrittenFiles> {
    let folder = &args.folder;
    let mut rewritten = RewrittenFiles::default();
    let card = Card::read(folder)?;
    let named = match folder.join(CONFIG_FILE).is_file() {
        true => LoraConfig::read(folder)?.base_model_name_or_path,
        false => None,
    };
    let base_id = base_id(args, hub, page, card.as_ref(), named.as_deref(), printer)?;
    let is_recorded = card.is_some();
    let mut commit = None;
    if let Some(mut card) = card {
        // A run that was killed before it wrote its page has left the record: its page comes along.
        let notes = card.notes_if_as_written(folder)?;
        card.repository = Some(name.id().to_owned());
        // A pull request is for the main branch.
        let branch = Some(name.revision()).filter(|branch| *branch != "main" && !args.create_pr);
        card.revision = branch.map(str::to_owned);
        if let Some(id) = &base_id {
            card.base = card.base.with_hub_id(id);
            commit.clone_from(&card.base.revision);
        }
        match notes {
            Some(notes) => rewritten.files.extend(card.files(&notes)),
            None => {
                rewritten.edited = edited(folder, name, card.base.hub_id.as_deref())?;
                rewritten.files.push((card::CARD_FILE, card.to_json()));
            }
        }
    }
    if let Some(named) = named {
        let bytes = base_id.as_ref().map(|id| adapter_config(folder, id, commit)).transpose()?;
        rewritten.files.extend(bytes.map(|bytes| (CONFIG_FILE, bytes)));
        let readme = folder.join(card::README_FILE);
        if let Some(id) = base_id.filter(|_| !is_recorded && readme.is_file()) {
            let readme = files::read_bounded(&readme, LONGEST_CARD)?;
            let renamed = front_matter::renamed(&String::from_utf8_lossy(&readme), &named, &id);
            if renamed.as_bytes() != readme {
                rewritten.files.push((card::README_FILE, renamed.into_bytes()));
            }
        }
    }
    Ok(rewritten)
}

/// The base's name on the Hub where it is to be rewritten in place of what stands here: where that was asked for, or the card
/// knows it and the adapter's configuration names something else, or the page has it already and is of this base. A base that nobody else finds
/// is told.
fn base_id(
    args: &PushArgs,
    hub: &Hub,
    page: &RemoteCard<'_>,
    card: Option<&Card>,
    named: Option<&str>,
    printer: &Printer,
) -> Result<Option<String>> {
    if args.base_id.is_some() {
        return Ok(args.base_id.clone());
    }
    let named_id = named.and_then(|named| named.parse::<RepoName>().ok());
    match card {
        Some(Card { base, .. }) if base.hub_id.is_some() => {
            let is_named = named_id.is_some_and(|name| Some(name.id()) == base.hub_id.as_deref());
            return Ok(base.hub_id.clone().filter(|_| !is_named));
        }
        Some(_) => {}
        None => {
            let Some(named) = named.map(Path::new) else { return Ok(None) };
            let is_folder = nearby::find(&args.folder, named, Path::is_dir).is_some();
            if !is_folder && named_id.is_some() && is_hub_name(hub, named) {
                return Ok(None);
            }
        }
    }
    match page.base_id(card, named.unwrap_or_default())? {
        Some(RemoteBase { id, is_ours: true }) => {
            printer.status_bilingual(
                &format!("基座仍写作 `{id}`，与 Hub 上一致；要改用 `--base-id`"),
                &format!("the base goes on being called `{id}`, as it is there; `--base-id` says otherwise"),
            );
            return Ok(Some(id));
        }
        Some(RemoteBase { id, is_ours: false }) => printer.warn(&printer.pick(
            format!("Hub 上的页面称基座为 `{id}`，是否就是这里的基座无从得知：如果是，用 `--base-id {id}` 写明"),
            format!("the page there calls its base `{id}`, and nothing tells whether that is the base here: if it is, `--base-id {id}` says so"),
        )),
        None => {}
    }
    if let Some(named) = named {
        warn_of_folder(&args.folder, named, printer)?;
    }
    Ok(None)
}

/// Warns of a base that nobody else finds, and of the lines that would show a path of this machine to everyone.
fn warn_of_folder(folder: &Path, named: &str, printer: &Printer) -> Result<()> {
    if !is_path(named) {
        let is_folder = nearby::find(folder, Path::new(named), Path::is_dir).is_some();
        let (zh, en) = match is_folder || named.parse::<RepoName>().is_err() {
            true => ("本机的文件夹", "a folder here"),
            false => (
                "这里没有的文件夹，或 Hub 上没有的名字",
                "neither a folder here nor a name that the Hub knows",
            ),
        };
        printer.warn(&printer.pick(
            format!("adapter_config.json 的基座是 `{named}`，{zh}，别人找不到：用 `--base-id 组织/名字` 写明它在 Hub 上的名字"),
            format!("adapter_config.json names its base `{named}`, {en}, which nobody else finds: `--base-id ORG/NAME` says what it is on the Hub"),
        ));
        return Ok(());
    }
    let config = files::read_bounded(&folder.join(CONFIG_FILE), LONGEST_CONFIG)?;
    let config = String::from_utf8_lossy(&config);
    let line = config.lines().position(|line| line.contains(BASE)).map_or(1, |i| i + 1);
    let mut places = vec![format!("{CONFIG_FILE}:{line}")];
    let readme = folder.join(card::README_FILE);
    if readme.is_file() {
        let readme = files::read_bounded(&readme, LONGEST_CARD)?;
        let bases = front_matter::bases(&String::from_utf8_lossy(&readme));
        let paths = bases.iter().filter(|(_, base)| is_path(base));
        places.extend(paths.map(|(line, _)| format!("{}:{line}", card::README_FILE)));
    }
    let places = places.join(", ");
    printer.warn(&printer.pick(
        format!("{places}：写有本机的路径 `{named}`，人人都会看到，却没有人能找到：用 `--base-id 组织/名字` 换成基座在 Hub 上的名字"),
        format!("{places}: the path `{named}` of this machine, which everyone would see and nobody finds: `--base-id ORG/NAME` puts the base's name on the Hub in its place"),
    ));
    Ok(())
}

/// Whether a base's name can be nothing but a path of some machine.
fn is_path(named: &str) -> bool {
    named.starts_with(['/', '~', '.', '\\']) || named.get(1..2) == Some(":")
}

/// What is to be known of a card that was edited by hand and goes as it is: the command that writes it again, where it does
/// not name the repository.
fn edited(folder: &Path, name: &RepoName, base_id: Option<&str>) -> Result<Option<[String; 2]>> {
    let readme = files::read_bounded(&folder.join(card::README_FILE), LONGEST_CARD)?;
    if String::from_utf8_lossy(&readme).contains(name.id()) {
        return Ok(None);
    }
    let base = base_id.map(|id| format!(" --base-id {id}")).unwrap_or_default();
    let command =
        format!("danlu card {} --name {}{base} --overwrite", terminal_text::shell_path(folder), name.id());
    Ok(Some([
        format!(
            "README.md 改动过，原样发送；其中的代码片段可能需要改成 `{name}`。`{command}` 重新生成，手工改动会丢失"
        ),
        format!(
            "README.md was edited and goes as it is; its snippets may have to name `{name}`. `{command}` writes it again, without what was edited"
        ),
    ]))
}

/// `adapter_config.json` with its base by the name on the Hub, at the commit there that is known.
fn adapter_config(folder: &Path, id: &str, commit: Option<String>) -> Result<Vec<u8>> {
    let path = folder.join(CONFIG_FILE);
    let bytes = files::read_bounded(&path, LONGEST_CONFIG)?;
    let config = serde_json::from_slice::<Map<String, Value>>(&bytes);
    let mut config = config.map_err(|error| Diagnostic::input(format!("`{}`: {error}", path.display())))?;
    let before = config.insert(BASE.to_owned(), id.into());
    // A commit of the one named before says nothing of another.
    if commit.is_some() || before.is_none_or(|before| before != id) {
        config.insert("revision".to_owned(), commit.into());
    }
    Ok(serde_json::to_vec_pretty(&config).expect("JSON that was read is written again"))
}
