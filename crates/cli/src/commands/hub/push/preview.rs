//! Preview of a push. The preview shows which files are uploaded, removed or skipped.

use danlu_hub::{RepoDiff, RepoName, SkipReason, SkippedFile, UploadSet};
use danlu_report::card;

use super::PushArgs;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

/// Prints the files that are uploaded, unchanged, removed and skipped. `place` describes the repository
/// `name`.
pub fn show(
    args: &PushArgs,
    upload_set: &UploadSet,
    differences: &RepoDiff,
    (name, place): (&RepoName, &str),
    printer: &Printer,
) {
    let RepoDiff { new, changed, unchanged, removed, .. } = differences;
    printer.data(&printer.paint_data(Style::Bold, &format!("{} → {name} · {place}", args.folder.display())));
    let row = |mark: &str, path: &str, note: &str| {
        printer.data(&format!(
            "{} {}  {}",
            terminal_text::pad(mark, 9),
            terminal_text::pad(&terminal_text::one_line(path), 36),
            printer.paint_data(Style::Dim, note)
        ));
    };
    for (files, zh, en) in [
        (new, "新增", "new"),
        (changed, "更新", "changed"),
        (unchanged, "不变", "unchanged"),
        (removed, "移除", "removed"),
    ] {
        for (path, size) in files {
            row(printer.pick(zh, en), path, &terminal_text::bytes(*size));
        }
    }
    for SkippedFile { path, reason } in upload_set.skipped() {
        row(printer.pick("留下", "stays"), path, &why(*reason, printer));
    }
    let (size, count) = (terminal_text::bytes(differences.size()), new.len() + changed.len());
    printer.data(&printer.pick(
        format!("要发送 {count} 个文件，{size}"),
        format!("{}, {size}, to be sent", terminal_text::counted(count as u64, "file")),
    ));
    if !removed.is_empty() {
        let count = removed.len() as u64;
        printer.data(&printer.pick(
            format!("同一次提交移除原模型的 {count} 个权重文件"),
            format!(
                "the same commit removes {} of the previous model",
                terminal_text::counted(count, "file")
            ),
        ));
    }
}

/// Describes the repository and the branch, and whether they will be created.
pub fn describe_target(
    differences: &RepoDiff,
    name: &RepoName,
    args: &PushArgs,
    printer: &Printer,
) -> String {
    let branch = name.revision();
    if !differences.exists {
        let made = match args.private {
            true => printer.pick("新建的私有仓库", "a new private repository"),
            false => printer.pick("新建的公开仓库", "a new public repository"),
        };
        return match branch {
            "main" => made.to_owned(),
            _ => printer.pick(format!("{made}，分支 `{branch}`"), format!("{made}, branch `{branch}`")),
        };
    }
    match () {
        () if args.create_pr => {
            printer.pick("给已有仓库的合并请求", "a pull request to the existing repository").to_owned()
        }
        () if !differences.has_revision => printer.pick(
            format!("已有仓库的新分支 `{branch}`，从 main 开始"),
            format!("a new branch `{branch}` of the existing repository, starting at main"),
        ),
        () if args.private && differences.private == Some(false) => printer
            .pick(
                "已有的空公开仓库，先改为私有",
                "the existing public and empty repository: made private first",
            )
            .to_owned(),
        () => printer.pick("已有的仓库", "the existing repository").to_owned(),
    }
}

/// Warns if the page of the repository will not show the card of this model.
pub fn warn_of_no_card(upload_set: &UploadSet, differences: &RepoDiff, printer: &Printer) {
    let is_card = |left: &&SkippedFile| left.path == card::README_FILE;
    let Some(SkippedFile { path, reason }) = upload_set.skipped().iter().find(is_card) else { return };
    if *reason == SkipReason::EditedThere {
        printer.warn(&printer.pick(
            format!("Hub 上的 {path} 有本机没有的文字，保持原样；`--include {path}` 换成本机的"),
            format!("{path} on the Hub has text that the local file lacks, and is not changed; `--include {path}` uploads the local file instead"),
        ));
        return;
    }
    let why = why(*reason, printer);
    printer.warn(&match differences.others.iter().any(|there| there == path) {
        true => printer.pick(
            format!("{path} 留在本机（{why}）：页面保留原有的 {path}"),
            format!("{path} is not uploaded ({why}): the page keeps its current {path}"),
        ),
        false => printer.pick(
            format!("{path} 留在本机（{why}）：页面没有这个模型的卡片"),
            format!("{path} is not uploaded ({why}): the page has no card for this model"),
        ),
    });
}

/// Describes why a file is skipped.
fn why(reason: SkipReason, printer: &Printer) -> String {
    let zh = match reason {
        SkipReason::Checkpoint => "检查点",
        SkipReason::TrainerState => "训练状态",
        SkipReason::Log => "日志",
        SkipReason::Cache => "缓存",
        SkipReason::Temporary => "临时文件",
        SkipReason::Hidden => "隐藏文件",
        SkipReason::Key => "从名字看是密钥或密码",
        SkipReason::RunFile => "写有本机的路径",
        SkipReason::Data => "训练或评测数据",
        SkipReason::Token { line } => {
            return printer.pick(format!("第 {line} 行像是令牌或私钥"), reason.to_string());
        }
        SkipReason::TokenInName => "路径里有像令牌的文字",
        SkipReason::EditedThere => "Hub 上的有这里没有的文字，保持原样",
        SkipReason::Link => "指向文件夹之外的链接",
        SkipReason::Special => "不是普通文件",
        SkipReason::Name => "仓库里不能有的名字",
        _ => return reason.to_string(),
    };
    printer.pick(zh.to_owned(), reason.to_string())
}
