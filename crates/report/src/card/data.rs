//! The section about the data: files, counts, skipped records, and tokens that have a loss.

use std::fmt::Write as _;

use super::markdown::{fenced, line, plain};
use super::{Page, Training};
use crate::number_format::thousands;

pub(super) fn render(page: &Page<'_>, run: &Training) -> String {
    let mut out = page.section("数据", "Data");
    if !page.card.datasets.is_empty() {
        let link = |id: &String| format!("[{}](https://huggingface.co/datasets/{})", plain(id), line(id));
        let links = page.card.datasets.iter().map(link).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "{}{links}\n", page.pick("来源：", "Source: "));
    }
    out += &(files(page, run) + &counts(page, run) + &treatment(page, run));
    out
}

fn files(page: &Page<'_>, run: &Training) -> String {
    if run.data.files.is_empty() {
        return String::new();
    }
    let head = page.pick("| 文件 | 格式 | 记录数 | SHA-256 |", "| file | format | records | SHA-256 |");
    let mut out = format!("{head}\n|---|---|---:|---|\n");
    for file in &run.data.files {
        let (name, format, hash) = (plain(&file.name), plain(&file.format), plain(&file.sha256));
        let _ = writeln!(out, "| {name} | {format} | {} | {hash} |", thousands(file.records));
    }
    out + "\n"
}

fn counts(page: &Page<'_>, run: &Training) -> String {
    let data = &run.data;
    let [trained, held, tokens, loss, longest] =
        [data.training_records, data.held_out_records, data.tokens, data.trained_tokens, data.longest]
            .map(thousands);
    let mut out = page.pick(
        format!("训练 {trained} 条，留出 {held} 条。训练部分有 {tokens} 个词元，其中 {loss} 个计入损失；最长的一条有 {longest} 个词元。"),
        format!("Trained on {trained} records, with {held} held out. They have {tokens} tokens, {loss} of which carry a loss. The longest record has {longest} tokens."),
    );
    for (count, zh, en) in [
        (data.skipped, "条无法读取，已跳过。", "records could not be read and were skipped."),
        (
            data.dropped,
            "条的答案放不下，已舍弃。",
            "records were dropped, because no part of their answer fits.",
        ),
        (
            data.shortened,
            "条过长，截去了问题的开头。",
            "records were too long: the start of their question was cut.",
        ),
    ] {
        if count > 0 {
            let count = thousands(count);
            out += &page.pick(format!("{count} {zh}"), format!(" {count} {en}"));
        }
    }
    out + "\n\n"
}

fn treatment(page: &Page<'_>, run: &Training) -> String {
    let (s, mut items) = (&run.settings, Vec::new());
    let is_text = |format: &str| format == "text";
    let files = &run.data.files;
    let documents = !files.is_empty() && files.iter().all(|file| is_text(&file.format));
    if !documents && let Some(hash) = &run.template_sha256 {
        let hash: String = plain(hash).chars().take(12).collect();
        items.push(page.pick(
            format!("对话用基座自带的聊天模板生成（SHA-256 {hash}…），每条只有一个 BOS。"),
            format!(
                "The base's own chat template (SHA-256 {hash}…) renders the conversations, with one BOS each."
            ),
        ));
    }
    items.push(
        match (documents, s.train_on_prompt) {
            (true, _) => page.pick("全文计入损失。", "Every token of a text carries a loss."),
            (false, true) => page.pick("问题和回答都计入损失。", "Questions and answers carry a loss."),
            (false, false) => page.pick(
                "只有回答计入损失，包括结束回答的词元。",
                "Only answers carry a loss, including the token that ends them.",
            ),
        }
        .to_owned(),
    );
    let most = thousands(s.max_length as u64);
    items.push(match s.packing {
        true => page.pick(
            format!("每条最多 {most} 个词元；多条记录拼成一行，互不可见，没有填充。"),
            format!("At most {most} tokens per record. Rows are packed without padding, and attention stays within a record."),
        ),
        false => page.pick(
            format!("每条最多 {most} 个词元，没有填充。"),
            format!("At most {most} tokens per record, without padding."),
        ),
    });
    let mut out: String = items.iter().map(|item| format!("- {item}\n")).collect();
    out.push('\n');
    if let Some(system) = &s.default_system {
        out += page.pick(
            "没有系统提示的对话使用这一条：\n\n",
            "Conversations without a system prompt use this one:\n\n",
        );
        out += &fenced(system, "text");
    }
    out
}
