//! `danlu push`: uploads an adapter or a model to the Hub in one commit.

mod front_matter;
mod load_check;
mod memory;
mod preview;
mod remote_card;
mod rewritten_files;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use danlu_adapter::{Adapter, CONFIG_FILE, WEIGHTS_FILE};
use danlu_hub::{
    Hub, HubError, PushOptions, PushStage, Pushed, RepoDiff, RepoName, SkipReason, SkippedFile, Transfer,
    UploadOptions, UploadSet,
};
use danlu_report::card;

use danlu_loader::{FolderKind, LoadError, Notice, adapters_below, parse_name};

use crate::args::card::hub_id;
use crate::commands::hub::{open, pull};
use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::model_loader::hub_name;
use crate::notices;
use crate::printer::Printer;
use crate::temp_dirs::TrackedTempDir;
use crate::terminal_text;
use remote_card::RemoteCard;
use rewritten_files::{ReadmeSource, RewrittenFiles};

pub const EXAMPLES: &str = "\
Examples:
  danlu push danlu-demo/adapter you/palace-lora --dry-run
  danlu push danlu-demo/merged you/palace-8m --private
  danlu push danlu-demo/adapter you/palace-lora --revision v2 --message 'Two'

A folder that danlu cannot load is refused. A missing repository is created. All files arrive \
in one commit; an interrupted push resumes when it is run again. Checkpoints, logs, training data, \
keys, and files that contain a token are not uploaded. Old shards of a replaced model are removed \
from the repository.";

/// The flags of `danlu push`.
#[derive(Args, Clone, Debug)]
pub struct PushArgs {
    /// Folder of the adapter or the model
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Repository on the Hub: org/name
    #[arg(value_name = "NAME", value_parser = parse_name)]
    pub name: RepoName,
    /// Make a new or empty repository private
    #[arg(long)]
    pub private: bool,
    /// Branch to commit to; a new branch starts at main [default: main]
    #[arg(long, value_name = "BRANCH")]
    pub revision: Option<String>,
    /// Open a pull request instead of committing to the branch
    #[arg(long)]
    pub create_pr: bool,
    /// Title of the commit [default: Upload with danlu]
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Hub name of the base, if adapter_config.json names a local folder
    #[arg(long, value_name = "ORG/NAME", value_parser = hub_id)]
    pub base_id: Option<String>,
    /// List what would be uploaded, and upload nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Also upload a file that is skipped by default: a path in the folder, or a pattern such as '*.jsonl'
    #[arg(long, value_name = "PATH")]
    pub include: Vec<String>,
    /// Upload files even if they seem to contain a token
    #[arg(long)]
    pub with_tokens: bool,
}

/// Prints the preview, and pushes.
///
/// # Errors
/// If the folder contains no model that can be loaded, no token has write access, or the Hub cannot be
/// reached. In these cases nothing is published.
pub fn run(args: &PushArgs, printer: &Printer) -> Result<()> {
    let args = &PushArgs { folder: adapter_folder(&args.folder, printer)?, ..args.clone() };
    memory::forecast(&args.folder).check("push", &args.folder, printer)?;
    let converted = as_peft(&args.folder, printer)?;
    push_folder(args, converted.as_ref().map_or(&args.folder, TrackedTempDir::path), printer)
}

/// Returns the folder to upload. If `folder` contains no model, but one subfolder with an adapter, returns
/// that subfolder.
fn adapter_folder(folder: &Path, printer: &Printer) -> Result<PathBuf> {
    if !folder.is_dir() || !matches!(FolderKind::of(folder), FolderKind::Other) {
        return Ok(folder.to_owned());
    }
    match &adapters_below(folder)[..] {
        [] => Ok(folder.to_owned()),
        [only] => {
            notices::print(&Notice::AdapterInSubfolder { folder: only.clone() }, printer);
            Ok(only.clone())
        }
        several => {
            let names: Vec<String> = several.iter().map(|path| terminal_text::shell_path(path)).collect();
            let hint = format!("name one of its adapters: {}", names.join(", "));
            Err(Diagnostic::from(LoadError::no_model(folder)).with_hint(hint))
        }
    }
}

/// Converts an adapter that is not in PEFT's format. The converted adapter is written to a temporary folder,
/// with the other files of `folder`. Returns `None` if the adapter needs no conversion.
fn as_peft(folder: &Path, printer: &Printer) -> Result<Option<TrackedTempDir>> {
    if !folder.join(CONFIG_FILE).is_file() {
        return Ok(None);
    }
    let made = TrackedTempDir::new_in(&std::env::temp_dir())?;
    let Some(original) = Adapter::convert(folder, made.path())? else { return Ok(None) };
    let failed = |path: &Path, error| Diagnostic::io("copy", path, error);
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file() && path != original) else { continue };
        let copy = made.path().join(name);
        if !copy.exists() {
            fs::copy(&path, &copy).map_err(|error| failed(&path, error))?;
        }
    }
    let name = original.file_name().unwrap_or_default().to_string_lossy();
    printer.status_bilingual(
        &format!("把 `{name}` 转成 PEFT 的 `{WEIGHTS_FILE}` 上传"),
        &format!("uploading `{name}` as PEFT's `{WEIGHTS_FILE}`"),
    );
    Ok(Some(made))
}

/// Returns the repository with the branch to push to.
fn target(args: &PushArgs) -> Result<RepoName> {
    match (&args.revision, args.name.named_revision()) {
        (Some(_), Some(named)) => {
            let text = format!("`--revision` and `@{named}` are two branches");
            Err(Diagnostic::input(text).with_hint("leave one of them out"))
        }
        (Some(revision), None) => Ok(args.name.at(revision)?),
        (None, _) => Ok(args.name.clone()),
    }
}

/// Pushes the files of the folder `files`. It differs from `args.folder` for a converted adapter.
fn push_folder(args: &PushArgs, files: &Path, printer: &Printer) -> Result<()> {
    let hub = open(printer)?;
    let name = target(args)?;
    if let Some(fault) = &hub.settings().token_fault {
        return Err(HubError::from(fault.clone()).into());
    }
    let token = hub.settings().token.clone();
    let has_token = token.is_some();
    let options = PushOptions {
        private: args.private,
        create_pr: args.create_pr,
        message: args.message.clone(),
        description: None,
    };
    options.check_message(token.as_ref())?;
    // The folder is checked before the first request.
    let (mut upload_set, needed) = upload_set(args, files, token)?;
    if !has_token && !args.dry_run {
        return Err(HubError::NoToken { what: format!("a push to `{}`", name.id()) }.into());
    }
    printer.live(&printer.pick(format!("查询 {name}"), format!("asking for {name}")));
    let page = RemoteCard::read(&hub, &name);
    printer.clear_live();
    let page = match page {
        Err(error) if args.dry_run && is_unreachable(&error) => {
            rewrite(&mut upload_set, args, &RemoteCard::unread(&hub, &name), &name, printer)?;
            preview_offline(args, &upload_set, &name, &error, printer);
            return Ok(());
        }
        page => page?,
    };
    rewrite(&mut upload_set, args, &page, &name, printer)?;
    load_check::refuse_without(&upload_set, &needed)?;
    let differences = hub.diff(&upload_set, &name, &mut |transfer| {
        let (done, total) = (terminal_text::bytes(transfer.done), terminal_text::bytes(transfer.total));
        printer.live(&printer.pick(format!("比较 {done} / {total}"), format!("comparing {done} of {total}")));
    });
    printer.clear_live();
    let differences = differences?;
    refuse(&differences, args, &hub, &name, has_token)?;
    let place = preview::describe_target(&differences, &name, args, printer);
    preview::show(args, &upload_set, &differences, (&name, &place), printer);
    if args.dry_run {
        preview::warn_of_no_card(&upload_set, &differences, printer);
        printer.status_bilingual("没有发送任何内容（--dry-run）", "nothing was uploaded (--dry-run)");
        if !has_token {
            printer.status_bilingual(
                "没有令牌：发送之前先 `danlu login`",
                "there is no token: run `danlu login` before the push",
            );
            return Ok(());
        }
        if hub.may_push(&name, &options)?.role() == Some("fineGrained") {
            printer.status_bilingual(
                "细粒度令牌：能否写入，要到发送时才知道",
                "the token is fine-grained: only the upload shows whether it may write there",
            );
        }
        return Ok(());
    }
    send(&hub, &upload_set, &name, &options, &differences, printer)?;
    preview::warn_of_no_card(&upload_set, &differences, printer);
    Ok(())
}

/// Returns whether the error means that the Hub cannot be reached.
fn is_unreachable(error: &HubError) -> bool {
    matches!(
        error,
        HubError::Offline { .. }
            | HubError::OfflineRepo { .. }
            | HubError::Connect { .. }
            | HubError::Certificate { .. }
            | HubError::Proxy { .. }
    )
}

/// Prints the files that a push would upload to an empty repository, because the Hub cannot be reached.
fn preview_offline(
    args: &PushArgs,
    upload_set: &UploadSet,
    name: &RepoName,
    error: &HubError,
    printer: &Printer,
) {
    let files = upload_set.files().iter().map(|file| (file.path().to_owned(), file.size()));
    let differences = RepoDiff {
        exists: false,
        has_revision: false,
        private: args.private.then_some(true),
        commit: None,
        new: files.collect(),
        changed: Vec::new(),
        unchanged: Vec::new(),
        removed: Vec::new(),
        others: Vec::new(),
        is_empty: true,
    };
    let place = printer.pick("没有与仓库比较", "not compared with the repository");
    preview::show(args, upload_set, &differences, (name, place), printer);
    printer.warn(&printer.pick(
        format!("连不上 Hub，列出的是全部文件：{error}"),
        format!("the Hub cannot be reached, so all files are listed: {error}"),
    ));
    printer.status_bilingual("没有发送任何内容（--dry-run）", "nothing was uploaded (--dry-run)");
}

/// Selects the files to upload. Also returns the names of the files that danlu needs to load the model.
fn upload_set(
    args: &PushArgs,
    folder: &Path,
    token: Option<danlu_hub::Token>,
) -> Result<(UploadSet, Vec<String>)> {
    if let Some(named) = hub_name(folder) {
        let text = format!("`{named}` is not a local folder, and a push uploads a folder");
        return Err(
            Diagnostic::input(text).with_hint("name the output folder of `danlu train` or `danlu merge`")
        );
    }
    let options = UploadOptions { include: args.include.clone(), with_tokens: args.with_tokens, token };
    // The folder of a stopped run has its own error.
    if folder.is_dir() && matches!(FolderKind::of(folder), FolderKind::StoppedRun { .. }) {
        return Err(LoadError::no_model(folder).into());
    }
    let upload_set = UploadSet::from_folder(folder, &options)?;
    let needed = load_check::needed(folder)?;
    load_check::refuse_without(&upload_set, &needed)?;
    Ok((upload_set, needed))
}

/// Rewrites the files whose content on the Hub must differ from the local content.
fn rewrite(
    upload_set: &mut UploadSet,
    args: &PushArgs,
    page: &RemoteCard<'_>,
    name: &RepoName,
    printer: &Printer,
) -> Result<()> {
    let RewrittenFiles { files, readme } =
        rewritten_files::files(args, upload_set.folder(), page, name, printer)?;
    for (path, bytes) in files {
        upload_set.replace(path, bytes);
    }
    if readme == ReadmeSource::Hub {
        upload_set.skip(card::README_FILE, SkipReason::EditedThere);
    }
    let has_readme = upload_set.files().iter().any(|file| file.path() == card::README_FILE);
    if readme == ReadmeSource::Both && has_readme {
        printer.warn(printer.pick(
            "Hub 上的 README.md 有本机没有的文字：那些文字保留，只更新 danlu 的部分；`--include README.md` 换成本机的",
            "README.md on the Hub has text that the local file lacks: only danlu's part is updated there; `--include README.md` uploads the local file instead",
        ));
    }
    // `README.md` shows the content of `card.json`, so an access token in `card.json` is also in `README.md`.
    let is_record =
        |left: &&SkippedFile| left.path == card::CARD_FILE && matches!(left.reason, SkipReason::Token { .. });
    if let Some(SkippedFile { path, reason }) = upload_set.skipped().iter().find(is_record) {
        let text = format!("`{}`: {reason}, and README.md shows it too", args.folder.join(path).display());
        let hint = "remove the token from the data or the notes and run `danlu card`; or upload it as it is with `--with-tokens`";
        return Err(Diagnostic::input(text).with_hint(hint));
    }
    Ok(())
}

/// Rejects a push that would fail, before anything is printed.
fn refuse(
    differences: &RepoDiff,
    args: &PushArgs,
    hub: &Hub,
    name: &RepoName,
    with_token: bool,
) -> Result<()> {
    let RepoDiff { exists, has_revision, private, is_empty, .. } = *differences;
    let repo = || name.clone();
    if args.create_pr && !exists {
        return Err(HubError::NothingToProposeTo { repo: repo(), with_token }.into());
    }
    if args.create_pr && !has_revision {
        return Err(HubError::NoRevision { repo: repo() }.into());
    }
    if args.private && exists && private.is_none() && !args.create_pr {
        return Err(hub.not_private(name).into());
    }
    if args.private && private == Some(false) && !is_empty && !args.create_pr {
        return Err(HubError::Public { repo: repo() }.into());
    }
    Ok(())
}

fn send(
    hub: &Hub,
    upload_set: &UploadSet,
    name: &RepoName,
    options: &PushOptions,
    differences: &RepoDiff,
    printer: &Printer,
) -> Result<()> {
    let start = Instant::now();
    let mut words = Some(interrupt::exit_message(stopped(name, differences.exists, printer))?);
    let mut is_committing = false;
    let pushed = hub.push(upload_set, name, options, &mut |stage, transfer: Transfer| {
        let line = pull::progress(&transfer, start.elapsed().as_secs_f64(), printer);
        let commits = stage == PushStage::Committing;
        if commits != is_committing {
            is_committing = commits;
            // Dropping a guard clears the exit message. The old guard must therefore be dropped before a new
            // message is set.
            drop(words.take());
            words = interrupt::exit_message(match commits {
                true => stopped_committing(name, printer),
                false => stopped(name, differences.exists, printer),
            })
            .ok();
        }
        printer.live(&match stage {
            PushStage::Reading => printer.pick(format!("读取 {line}"), format!("reading {line}")),
            PushStage::Sending => printer.pick(format!("发送 {line}"), format!("sending {line}")),
            PushStage::Committing => printer.pick("提交", "committing").to_owned(),
        });
    });
    printer.clear_live();
    drop(words);
    print_pushed(hub, name, &pushed?, start.elapsed().as_secs_f64(), printer);
    Ok(())
}

/// Prints the result of a push that took `seconds`.
fn print_pushed(hub: &Hub, name: &RepoName, pushed: &Pushed, seconds: f64, printer: &Printer) {
    let Pushed { commit, url, branched, pull_request, files, removed, sent, ignored, .. } = pushed;
    if !ignored.is_empty() {
        let paths = terminal_text::printable(&ignored.join(", "));
        printer.status_bilingual(
            &format!("仓库的 .gitignore 排除了：{paths}"),
            &format!("the repository's .gitignore leaves out: {paths}"),
        );
    }
    if files.is_empty() && removed.is_empty() && *branched {
        let (branch, id) = (name.revision(), name.id());
        printer.data(&printer.pick(
            format!("已建立分支 `{branch}`；{id} 的 main 已有全部文件，没有新的提交：{url}"),
            format!("created branch `{branch}`; main of {id} already has all files, so there is no new commit: {url}"),
        ));
        return;
    }
    if files.is_empty() && removed.is_empty() {
        printer.data(&printer.pick(
            format!("{name} 已经有全部文件，没有新的提交：{url}"),
            format!("{name} already has all files, so there is no new commit: {url}"),
        ));
        return;
    }
    let cache_is_stale = hub.cache_is_stale(name, commit);
    let (count, sent, commit) = (files.len(), terminal_text::bytes(*sent), commit.get(..8).unwrap_or(commit));
    let time = terminal_text::duration(seconds);
    printer.data(&printer.pick(
        format!("一次提交（{commit}）：{count} 个文件，传输 {sent}，用时 {time}"),
        format!(
            "one commit ({commit}): {}, {sent} uploaded in {time}",
            terminal_text::counted(count as u64, "file")
        ),
    ));
    if !removed.is_empty() {
        let paths = terminal_text::printable(&removed.join(", "));
        printer.data(&printer.pick(format!("已移除：{paths}"), format!("removed: {paths}")));
    }
    match pull_request {
        Some(page) => {
            printer.data(&printer.pick(format!("合并请求：{page}"), format!("pull request: {page}")))
        }
        None => {
            printer.data(url);
            let name = terminal_text::shell_word(&name.to_string());
            if cache_is_stale {
                printer.data(&printer.pick(
                    format!("本机缓存里还是旧的，先更新：danlu pull {name}"),
                    format!("the local cache has an older version, to update it: danlu pull {name}"),
                ));
            }
            let line =
                printer.pick(format!("试用：danlu chat {name}"), format!("to try it: danlu chat {name}"));
            printer.data(&line);
        }
    }
}

/// Returns the message for a push that is stopped before its commit.
fn stopped(name: &RepoName, exists: bool, printer: &Printer) -> String {
    let made = match exists {
        true => "",
        false => printer.pick("（仓库可能已经建好，是空的）", " (its repository may already exist, empty)"),
    };
    printer.pick(
        format!("已停止：没有向 {name} 提交任何内容{made}。再次运行同一条命令会接着发送"),
        format!("stopped: nothing was committed to {name}{made}. The same command resumes"),
    )
}

/// Returns the message for a push that is stopped during its commit.
fn stopped_committing(name: &RepoName, printer: &Printer) -> String {
    printer.pick(
        format!("在提交到 {name} 的过程中停止：再次运行同一条命令，会看到提交是否已完成，没有则接着做"),
        format!("stopped during the commit to {name}: run the same command to see whether it was made, and to resume if not"),
    )
}
