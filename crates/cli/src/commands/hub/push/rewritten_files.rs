//! Files that are rewritten before the upload.
//!
//! The card gets the name of the repository. `adapter_config.json` and `danlu.json` get the Hub name of the
//! base.

use std::path::Path;

use danlu_adapter::{BaseIdentity, CONFIG_FILE, IDENTITY_FILE, LoraConfig, TrainingIdentity};
use danlu_hub::{Hub, RepoName};
use danlu_loader::{is_known_name, relative_path};
use danlu_model::files;
use danlu_report::ReportError;
use danlu_report::card::{self, Card, ToPublish};
use serde_json::{Map, Value};

use super::remote_card::{RemoteBase, RemoteCard};
use super::{PushArgs, front_matter};
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;

/// The key that names the base in an adapter's configuration.
const BASE: &str = "base_model_name_or_path";

/// Largest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Largest `README.md` that is searched for paths, in bytes.
const MAX_README_BYTES: u64 = 16 << 20;

/// The rewritten files of a push.
pub struct RewrittenFiles {
    /// Names and contents of the rewritten files.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// The origin of the uploaded `README.md`.
    pub readme: ReadmeSource,
}

/// The origin of the repository's `README.md` after a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadmeSource {
    /// The file of the local folder.
    Folder,
    /// The file on the Hub, in which only danlu's part is updated.
    Both,
    /// The file on the Hub, unchanged.
    Hub,
}

/// Rewrites files for the upload. The local folder does not change.
///
/// # Errors
/// If the card or the adapter's configuration cannot be read, or the Hub cannot be reached.
pub fn files(
    args: &PushArgs,
    folder: &Path,
    page: &RemoteCard<'_>,
    name: &RepoName,
    printer: &Printer,
) -> Result<RewrittenFiles> {
    let card = Card::read(folder)?;
    let identity = TrainingIdentity::read(folder)?;
    let named = match folder.join(CONFIG_FILE).is_file() {
        true => LoraConfig::read(folder)?.base_model_name_or_path,
        false => None,
    };
    let trained = identity.as_ref().and_then(TrainingIdentity::base);
    let bases = Bases { has_card: card.is_some(), trained, named: named.as_deref() };
    let base_id = base_id(args, page.hub(), page, bases, printer)?;
    let here = card::read_readme(folder)?;
    // With `--include README.md`, the folder's file replaces the file on the Hub.
    let there = page.readme().filter(|_| !args.include.iter().any(|path| path == card::README_FILE));
    let is_text = !matches!(there, Some(Err(_)));
    let there = there.and_then(|readme| readme.ok());
    let mut files = Vec::new();
    let readme = match card {
        Some(mut card) => {
            card.repository = Some(name.id().to_owned());
            // A pull request targets `main`, so the card names no branch.
            let branch = Some(name.revision()).filter(|branch| *branch != "main" && !args.create_pr);
            card.revision = branch.map(str::to_owned);
            if let Some(id) = &base_id {
                card.base = trained.unwrap_or(&card.base).clone().with_hub_id(id);
            }
            files.push((card::CARD_FILE, card.to_json()));
            let path = folder.join(card::README_FILE);
            card.to_publish(here.as_deref(), there).map_err(|fault| ReportError::Readme { path, fault })?
        }
        None => authors_readme(here, there, named.as_deref().zip(base_id.as_deref())),
    };
    let (readme, text) = match readme {
        // The `README.md` on the Hub is not UTF-8. The author may have written this file, so it is not
        // replaced.
        _ if !is_text => (ReadmeSource::Hub, None),
        ToPublish::Ours(text) => (ReadmeSource::Folder, Some(text)),
        ToPublish::Theirs(text) => (ReadmeSource::Both, Some(text)),
        ToPublish::Nothing => (ReadmeSource::Hub, None),
    };
    files.extend(text.filter(|text| !text.is_empty()).map(|text| (card::README_FILE, text.into_bytes())));
    if let Some(id) = base_id.filter(|_| named.is_some()) {
        let base = trained.map(|base| base.clone().with_hub_id(&id));
        let commit = base.as_ref().and_then(|base| base.revision.clone());
        files.push((CONFIG_FILE, adapter_config(folder, &id, commit)?));
        if let Some(base) = base {
            files.push((IDENTITY_FILE, TrainingIdentity::json_with_base(folder, &base)?));
        }
    }
    Ok(RewrittenFiles { files, readme })
}

/// Returns the `README.md` to publish for a folder without a card. A local name of the base is replaced by
/// the Hub name.
fn authors_readme(here: Option<String>, there: Option<&str>, renamed: Option<(&str, &str)>) -> ToPublish {
    let here = here.unwrap_or_default();
    let here = match renamed {
        Some((named, id)) => front_matter::renamed(&here, named, id),
        None => here,
    };
    match there {
        Some(there) if !here.is_empty() && !card::keeps_text(&here, there).unwrap_or(false) => {
            ToPublish::Nothing
        }
        _ => ToPublish::Ours(here),
    }
}

/// The bases that the files of the folder name.
#[derive(Clone, Copy)]
struct Bases<'a> {
    has_card: bool,
    /// The base that `danlu.json` records.
    trained: Option<&'a BaseIdentity>,
    /// The base that `adapter_config.json` names.
    named: Option<&'a str>,
}

/// Returns the Hub name of the base, if a file must name the base.
///
/// The name comes from `--base-id`, else from `danlu.json`, else from the repository if its base is the same.
/// The repository is needed for adapters of earlier versions, which recorded no base in `danlu.json`. Warns
/// if the base cannot be found from another computer.
fn base_id(
    args: &PushArgs,
    hub: &Hub,
    page: &RemoteCard<'_>,
    bases: Bases<'_>,
    printer: &Printer,
) -> Result<Option<String>> {
    let Bases { has_card, trained, named } = bases;
    if args.base_id.is_some() {
        return Ok(args.base_id.clone());
    }
    let named_id = named.and_then(|named| named.parse::<RepoName>().ok());
    if let Some(id) = trained.and_then(|base| base.hub_id.as_deref()) {
        let is_named = named_id.is_some_and(|name| name.id() == id);
        return Ok(Some(id.to_owned()).filter(|_| !is_named));
    }
    if !has_card || trained.is_none() {
        let Some(named) = named.map(Path::new) else { return Ok(None) };
        let is_folder = relative_path::find_above(&args.folder, named, Path::is_dir).is_some();
        if !is_folder && named_id.is_some() && is_known_name(hub, named) {
            return Ok(None);
        }
    }
    match page.base_id(trained, named.unwrap_or_default())? {
        Some(RemoteBase { id, is_ours: true }) => {
            printer.status_bilingual(
                &format!("基座仍是 `{id}`，与 Hub 上一致；要改用 `--base-id`"),
                &format!("the base stays `{id}`, as on the Hub; change it with `--base-id`"),
            );
            return Ok(Some(id));
        }
        Some(RemoteBase { id, is_ours: false }) => printer.warn(&printer.pick(
            format!("Hub 上的仓库写的基座是 `{id}`，不一定是这里的基座：如果是，请加 `--base-id {id}`"),
            format!("the repository names its base `{id}`, which may differ from the local base: if both are the same, pass `--base-id {id}`"),
        )),
        None => {}
    }
    if let Some(named) = named {
        warn_of_folder(&args.folder, named, printer)?;
    }
    Ok(None)
}

/// Warns if the base cannot be found from another computer, and lists the lines that contain local paths.
fn warn_of_folder(folder: &Path, named: &str, printer: &Printer) -> Result<()> {
    if !is_path(named) {
        let is_folder = relative_path::find_above(folder, Path::new(named), Path::is_dir).is_some();
        let (zh, en) = match is_folder || named.parse::<RepoName>().is_err() {
            true => ("本机的文件夹", "a local folder"),
            false => {
                ("这里没有的文件夹，或 Hub 上没有的名字", "neither a local folder nor a name on the Hub")
            }
        };
        printer.warn(&printer.pick(
            format!("adapter_config.json 的基座是 `{named}`（{zh}），别人找不到：用 `--base-id 组织/名字` 写明它在 Hub 上的名字"),
            format!("adapter_config.json names its base `{named}`, {en}, which others cannot find: pass its name on the Hub with `--base-id ORG/NAME`"),
        ));
        return Ok(());
    }
    let config = files::read_bounded(&folder.join(CONFIG_FILE), MAX_CONFIG_BYTES)?;
    let config = String::from_utf8_lossy(&config);
    let line = config.lines().position(|line| line.contains(BASE)).map_or(1, |i| i + 1);
    let mut places = vec![format!("{CONFIG_FILE}:{line}")];
    let readme = folder.join(card::README_FILE);
    if readme.is_file() {
        let readme = files::read_bounded(&readme, MAX_README_BYTES)?;
        let bases = front_matter::bases(&String::from_utf8_lossy(&readme));
        let paths = bases.iter().filter(|(_, base)| is_path(base));
        places.extend(paths.map(|(line, _)| format!("{}:{line}", card::README_FILE)));
    }
    let places = places.join(", ");
    printer.warn(&printer.pick(
        format!("{places}：本机路径 `{named}` 会公开，别人也找不到：用 `--base-id 组织/名字` 换成基座在 Hub 上的名字"),
        format!("{places}: the local path `{named}` would be public, and others cannot find it: pass the base's name on the Hub with `--base-id ORG/NAME`"),
    ));
    Ok(())
}

/// Returns whether the name of a base can only be a path.
fn is_path(named: &str) -> bool {
    named.starts_with(['/', '~', '.', '\\']) || named.get(1..2) == Some(":")
}

/// Returns `adapter_config.json` with the base's Hub name, and its commit if known.
fn adapter_config(folder: &Path, id: &str, commit: Option<String>) -> Result<Vec<u8>> {
    let path = folder.join(CONFIG_FILE);
    let bytes = files::read_bounded(&path, MAX_CONFIG_BYTES)?;
    let config = serde_json::from_slice::<Map<String, Value>>(&bytes);
    let mut config = config.map_err(|error| Diagnostic::input(format!("`{}`: {error}", path.display())))?;
    let before = config.insert(BASE.to_owned(), id.into());
    // A `revision` is a commit of one base. Under a different name, the old commit would be wrong.
    if commit.is_some() || before.is_none_or(|before| before != id) {
        config.insert("revision".to_owned(), commit.into());
    }
    Ok(serde_json::to_vec_pretty(&config).expect("JSON that was read is written again"))
}
