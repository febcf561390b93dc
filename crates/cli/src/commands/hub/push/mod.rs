//! `danlu push`: an adapter or a model as one commit of a repository on the Hub.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use danlu_adapter::{CONFIG_FILE, LoraConfig};
use danlu_hub::{
    Differences, Hub, HubError, Left, Parcel, ParcelOptions, PushOptions, Pushed, Reason, RepoName, Stage,
    Transfer,
};
use danlu_model::files;
use danlu_train::card::{self, Card};
use serde_json::{Map, Value};

use super::{open, pull};
use crate::commands::card::hub_id;
use crate::printer::{Look, Printer};
use crate::report::{Report, Result};
use crate::scratch::Scratch;
use crate::text;

/// Longest configuration of an adapter, in bytes.
const LONGEST_CONFIG: u64 = 4 << 20;

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu push out/huanhuan you/huanhuan-lora --dry-run
  danlu push out/huanhuan-merged you/huanhuan-llama3-8b --private
  danlu push out/huanhuan you/huanhuan-lora --revision v2 --message 'A second epoch'

The repository is made where there is none. Everything arrives in one commit; a push that was cut sends only what is lacking when
it is run again. Checkpoints, logs, training data, keys, and files with a token in them stay here.";

/// The flags of `danlu push`.
#[derive(Args, Clone, Debug)]
pub struct PushArgs {
    /// Folder of the adapter or the model
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Repository on the Hub: org/name
    #[arg(value_name = "NAME")]
    pub name: RepoName,
    /// Make a new repository yours alone
    #[arg(long)]
    pub private: bool,
    /// Branch to commit to; a new one begins where main is [default: main]
    #[arg(long, value_name = "BRANCH")]
    pub revision: Option<String>,
    /// Offer the commit as a pull request
    #[arg(long)]
    pub create_pr: bool,
    /// First line of the commit [default: Upload with danlu]
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// The base's name on the Hub, where adapter_config.json names a folder
    #[arg(long, value_name = "ORG/NAME", value_parser = hub_id)]
    pub base_id: Option<String>,
    /// Say what would be sent, and send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Send this too, though it would stay here: a path in the folder, or such as '*.jsonl'
    #[arg(long, value_name = "PATH")]
    pub include: Vec<String>,
    /// Send files too in which something looks like a token
    #[arg(long)]
    pub with_tokens: bool,
}

/// Shows what goes and what stays, and sends it.
///
/// # Errors
/// If the folder holds no model, there is no token or it may not, or the Hub cannot be asked; nothing is published then.
pub fn run(args: &PushArgs, printer: &Printer) -> Result<()> {
    let hub = open()?;
    let name = match (&args.revision, args.name.named_revision()) {
        (Some(_), Some(named)) => {
            let text = format!("`--revision` and `@{named}` are two branches");
            return Err(Report::input(text).with_hint("leave one of them out"));
        }
        (Some(revision), None) => args.name.at(revision)?,
        (None, _) => args.name.clone(),
    };
    if let Some(fault) = &hub.settings().token_fault {
        return Err(HubError::from(fault.clone()).into());
    }
    let token = hub.settings().token.clone();
    let options = ParcelOptions { include: args.include.clone(), with_tokens: args.with_tokens, token };
    if options.token.is_none() && !args.dry_run {
        return Err(HubError::NoToken { what: format!("a push to `{}`", name.id()) }.into());
    }
    let mut parcel = Parcel::of(&args.folder, &options)?;
    // The page shows what its record holds, in a spelling that is not looked for.
    let is_record =
        |left: &&Left| left.path == card::CARD_FILE && matches!(left.reason, Reason::Token { .. });
    if let Some(Left { path, reason }) = parcel.left().iter().find(is_record) {
        let text = format!("`{}`: {reason}, and README.md shows it too", args.folder.join(path).display());
        let hint = "take it out of the data or the notes and write the card again; `--with-tokens` sends it as it is";
        return Err(Report::input(text).with_hint(hint));
    }
    // The folder itself stays as it is: what is to be said otherwise on the Hub is written elsewhere.
    let scratch = Scratch::new_in(&std::env::temp_dir())?;
    for (path, bytes) in said_otherwise(args, &name, printer)? {
        let place = scratch.path().join(path);
        files::write_atomic(&place, &bytes)?;
        parcel.substitute(path, &place)?;
    }
    let differences = hub.differences(&parcel, &name, &mut |transfer| {
        let (done, total) = (text::bytes(transfer.done), text::bytes(transfer.total));
        printer.live(&printer.pick(format!("比较 {done} / {total}"), format!("comparing {done} of {total}")));
    });
    printer.clear_live();
    let differences = differences?;
    show(&parcel, &differences, &name, args, printer);
    if args.dry_run {
        printer.tell("没有发送任何内容（--dry-run）", "nothing was sent (--dry-run)");
        return Ok(());
    }
    send(&hub, &parcel, &name, args, printer)
}

/// The files that say something else on the Hub than here: the card its repository, the adapter its base.
fn said_otherwise(
    args: &PushArgs,
    name: &RepoName,
    printer: &Printer,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let folder = &args.folder;
    let mut files = Vec::new();
    if let Some(mut card) = Card::read(folder)? {
        let notes = card.notes_if_as_written(folder)?;
        card.repository = Some(name.id().to_owned());
        if let Some(id) = &args.base_id {
            card.base.hub_id = Some(id.clone());
        }
        files.push((card::CARD_FILE, card.to_json()));
        match notes {
            Some(notes) => files.push((card::README_FILE, card.render(&notes).into_bytes())),
            None => printer.tell(
                &format!("README.md 改动过，原样发送；其中的代码片段可能需要改成 `{name}`"),
                &format!("README.md was edited and goes as it is; its snippets may have to name `{name}`"),
            ),
        }
    }
    if folder.join(CONFIG_FILE).is_file() {
        files.extend(adapter_config(args, printer)?.map(|bytes| (CONFIG_FILE, bytes)));
    }
    Ok(files)
}

/// `adapter_config.json` with its base by the Hub's name, where `--base-id` gives it. Otherwise a base that is a folder of
/// this machine is told: nobody else can find it.
fn adapter_config(args: &PushArgs, printer: &Printer) -> Result<Option<Vec<u8>>> {
    const BASE: &str = "base_model_name_or_path";
    let named = LoraConfig::read(&args.folder)?.base_model_name_or_path.unwrap_or_default();
    let Some(id) = &args.base_id else {
        if super::name_of(Path::new(&named)).is_none() {
            printer.tell(
                &format!("adapter_config.json 的基座是 `{named}`，本机的文件夹，别人找不到：用 `--base-id 组织/名字` 写明它在 Hub 上的名字"),
                &format!("adapter_config.json names its base `{named}`, a folder here, which nobody else finds: `--base-id ORG/NAME` says what it is on the Hub"),
            );
        }
        return Ok(None);
    };
    let path = args.folder.join(CONFIG_FILE);
    let bytes = files::read_bounded(&path, LONGEST_CONFIG)?;
    let config = serde_json::from_slice::<Map<String, Value>>(&bytes);
    let mut config = config.map_err(|error| Report::input(format!("`{}`: {error}", path.display())))?;
    config.insert(BASE.to_owned(), id.as_str().into());
    // A commit of the one named before says nothing of this one.
    config.insert("revision".to_owned(), Value::Null);
    Ok(Some(serde_json::to_vec_pretty(&config).expect("JSON that was read is written again")))
}

/// What goes, what is there already, and what stays.
fn show(parcel: &Parcel, differences: &Differences, name: &RepoName, args: &PushArgs, printer: &Printer) {
    let Differences { new, changed, unchanged, .. } = differences;
    let is_made = match (differences.exists, args.private) {
        (true, _) => printer.pick("已有的仓库", "a repository that is there"),
        (false, true) => printer.pick("新建的私有仓库", "a new private repository"),
        (false, false) => printer.pick("新建的公开仓库", "a new public repository"),
    };
    printer.out(&printer.data(Look::Bold, &format!("{} → {name} · {is_made}", parcel.folder().display())));
    let row = |mark: &str, path: &str, note: &str| {
        printer.out(&format!(
            "{} {}  {}",
            text::pad(mark, 9),
            text::pad(path, 36),
            printer.data(Look::Dim, note)
        ));
    };
    for (files, zh, en) in
        [(new, "新增", "new"), (changed, "更新", "changed"), (unchanged, "不变", "unchanged")]
    {
        for (path, size) in files {
            row(printer.pick(zh, en), path, &text::bytes(*size));
        }
    }
    for Left { path, reason } in parcel.left() {
        row(printer.pick("留下", "stays"), path, &why(*reason, printer));
    }
    let (size, count) = (text::bytes(differences.size()), new.len() + changed.len());
    printer.out(&printer.pick(
        format!("要发送 {count} 个文件，{size}"),
        format!("{}, {size}, to be sent", text::counted(count as u64, "file")),
    ));
}

/// Why a file stays, in the user's language.
fn why(reason: Reason, printer: &Printer) -> String {
    let zh = match reason {
        Reason::Checkpoint => "检查点",
        Reason::TrainerState => "训练状态",
        Reason::Log => "日志",
        Reason::Cache => "缓存",
        Reason::Temporary => "临时文件",
        Reason::Hidden => "隐藏文件",
        Reason::Key => "从名字看是密钥或密码",
        Reason::RunFile => "写有本机的路径",
        Reason::Data => "训练或评测数据",
        Reason::Token { line } => {
            return printer.pick(format!("第 {line} 行像是令牌或私钥"), reason.to_string());
        }
        Reason::Link => "指向文件夹之外的链接",
        Reason::Special => "不是普通文件",
        Reason::Name => "仓库里不能有的名字",
        _ => return reason.to_string(),
    };
    printer.pick(zh.to_owned(), reason.to_string())
}

fn send(hub: &Hub, parcel: &Parcel, name: &RepoName, args: &PushArgs, printer: &Printer) -> Result<()> {
    let start = Instant::now();
    let options = PushOptions {
        private: args.private,
        create_pr: args.create_pr,
        message: args.message.clone(),
        description: None,
    };
    let pushed = hub.push(parcel, name, &options, &mut |stage, transfer: Transfer| {
        let line = pull::progress(&transfer, start.elapsed().as_secs_f64(), printer);
        printer.live(&match stage {
            Stage::Reading => printer.pick(format!("读取 {line}"), format!("reading {line}")),
            Stage::Sending => printer.pick(format!("发送 {line}"), format!("sending {line}")),
        });
    });
    printer.clear_live();
    let Pushed { commit, url, pull_request, files, sent, ignored, .. } = pushed?;
    if !ignored.is_empty() {
        let paths = text::printable(&ignored.join(", "));
        printer.tell(
            &format!("仓库的 .gitignore 排除了：{paths}"),
            &format!("the repository's .gitignore leaves out: {paths}"),
        );
    }
    if files.is_empty() {
        printer.out(&printer.pick(
            format!("{name} 已经有全部文件，没有新的提交：{url}"),
            format!("{name} has all of it already, no commit was made: {url}"),
        ));
        return Ok(());
    }
    let (count, sent, commit) = (files.len(), text::bytes(sent), commit.get(..8).unwrap_or(&commit));
    let time = text::duration(start.elapsed().as_secs_f64());
    printer.out(&printer.pick(
        format!("一次提交（{commit}）：{count} 个文件，传输 {sent}，用时 {time}"),
        format!("one commit ({commit}): {}, {sent} sent in {time}", text::counted(count as u64, "file")),
    ));
    match pull_request {
        Some(page) => {
            printer.out(&printer.pick(format!("合并请求：{page}"), format!("pull request: {page}")))
        }
        None => {
            printer.out(&url);
            printer.out(
                &printer
                    .pick(format!("唤醒它：danlu chat {name}"), format!("to wake it up: danlu chat {name}")),
            );
        }
    }
    Ok(())
}
