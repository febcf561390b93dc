//! `danlu push`: an adapter or a model as one commit of a repository on the Hub.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use danlu_hub::{
    Differences, Hub, HubError, Left, Parcel, ParcelOptions, PushOptions, Pushed, Reason, RepoName, Stage,
    Transfer,
};
use danlu_train::card;

use super::{open, pull};
use crate::printer::{Look, Printer};
use crate::report::{Report, Result};
use crate::text;

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
    let token = hub.settings().token.clone();
    let options = ParcelOptions { include: args.include.clone(), with_tokens: args.with_tokens, token };
    if options.token.is_none() && !args.dry_run {
        return Err(HubError::NoToken { what: format!("a push to `{}`", name.id()) }.into());
    }
    // Looked at first: a folder that is no model is not to be written into.
    let mut parcel = Parcel::of(&args.folder, &options)?;
    if sign_card(&args.folder, name.id(), args.dry_run, printer)? {
        parcel = Parcel::of(&args.folder, &options)?;
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

/// Puts the repository's name into the card, where danlu wrote it and nobody changed it but for the notes; whether it did.
fn sign_card(folder: &Path, id: &str, is_dry: bool, printer: &Printer) -> Result<bool> {
    let Some(mut card) = card::Card::read(folder)? else { return Ok(false) };
    if card.repository.as_deref() == Some(id) {
        return Ok(false);
    }
    if !card.is_as_written(folder)? {
        printer.tell(
            &format!("README.md 改动过，保持原样；其中的代码片段可能需要改成 `{id}`"),
            &format!("README.md was edited and stays as it is; its snippets may have to name `{id}`"),
        );
        return Ok(false);
    }
    if is_dry {
        printer.tell(
            &format!("README.md 发送时会写上仓库名 `{id}`"),
            &format!("README.md will name the repository, `{id}`, when it is sent"),
        );
        return Ok(false);
    }
    card.repository = Some(id.to_owned());
    card.write(folder)?;
    Ok(true)
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
    let Pushed { commit, url, pull_request, files, sent, .. } = pushed?;
    if files.is_empty() {
        printer.out(&printer.pick(
            format!("{name} 已经有全部文件，没有新的提交：{url}"),
            format!("{name} has all of it already, no commit was made: {url}"),
        ));
        return Ok(());
    }
    let (count, sent, commit) = (files.len(), text::bytes(sent), &commit[..8]);
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
