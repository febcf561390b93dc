//! What the training changed: losses, their picture, and replies side by side.

use std::fmt::Write as _;

use super::markdown::cell;
use super::{PICTURE_FILE, Page, Training};

/// Characters of a question or a reply that are shown.
const MOST: usize = 400;

pub(super) fn render(page: &Page<'_>, run: &Training) -> String {
    losses(page, run) + &replies(page, run)
}

fn losses(page: &Page<'_>, run: &Training) -> String {
    let mut out = page.section("效果", "Result");
    match run.held_out {
        Some((before, after)) => {
            let records = run.data.held_out_records;
            let head = page.pick("| | 基座 | 基座 + 适配器 |", "| | base | base + adapter |");
            let loss = page.pick("留出集损失（奈特/词元）", "held-out loss (nats per token)");
            let perplexity = page.pick("留出集困惑度", "held-out perplexity");
            let _ = writeln!(out, "{head}\n|---|---:|---:|\n| {loss} | {before:.4} | {after:.4} |");
            let _ = writeln!(out, "| {perplexity} | {:.2} | {:.2} |\n", before.exp(), after.exp());
            out += &page.pick(
                format!("在 {records} 条没有参加训练的记录上测得。"),
                format!("Measured on {records} records that were not trained on."),
            );
        }
        None => {
            out += page.pick(
                "没有留出记录，因此没有训练之外的损失。",
                "No records were held out, so there is no loss beyond the training data.",
            );
        }
    }
    if let Some((first, last)) = run.train_loss {
        let _ = write!(
            out,
            "{}",
            page.pick(
                format!("训练损失最初 {first:.3}，最后 {last:.3}（最初与最后十分之一的步）。"),
                format!(" Training loss {first:.3} at first, {last:.3} at last (first and last tenth of the steps)."),
            )
        );
    }
    out += "\n\n";
    if page.card.has_picture {
        let _ = writeln!(out, "![{}]({PICTURE_FILE})\n", page.pick("损失曲线", "The loss over the steps"));
    }
    out
}

fn replies(page: &Page<'_>, run: &Training) -> String {
    if run.replies.is_empty() {
        return String::new();
    }
    let mut out = page.section("训练前后的回答", "Replies before and after");
    let most = run.reply_tokens;
    out += &page.pick(
        format!("贪心解码，最多 {most} 个词元，没有挑选。\n\n| 问 | 基座 | 基座 + 适配器 |\n|---|---|---|\n"),
        format!("Greedy, at most {most} tokens, not picked by hand.\n\n| question | base | base + adapter |\n|---|---|---|\n"),
    );
    for reply in &run.replies {
        let said = [&reply.prompt, &reply.before, &reply.after].map(|text| match text.trim() {
            "" => page.pick("（空）", "(empty)").to_owned(),
            text => cell(text, MOST),
        });
        let _ = writeln!(out, "| {} |", said.join(" | "));
    }
    out + "\n"
}
