//! The section about the results: losses, a chart of the losses, and a comparison of replies.

use std::fmt::Write as _;

use danlu_model::Quantization;

use super::markdown::cell;
use super::{Merge, PICTURE_FILE, Page, Training};

/// Maximum number of characters that are shown of each question and each reply.
const MAX_REPLY_CHARS: usize = 400;

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
                format!("在 {records} 条留出的记录上测得。"),
                format!("Measured on {records} held-out records."),
            );
        }
        None => {
            out += page.pick(
                "没有留出记录，因此没有留出集损失。",
                "No records were held out: there is no held-out loss.",
            );
        }
    }
    if let Some((first, last)) = run.train_loss {
        let _ = write!(
            out,
            "{}",
            page.pick(
                format!("训练损失：前十分之一的步平均 {first:.3}，后十分之一平均 {last:.3}。"),
                format!(" Mean training loss: {first:.3} over the first tenth of the steps, {last:.3} over the last."),
            )
        );
    }
    out += &in_four_bits(page);
    out += "\n\n";
    for finding in run.verdict.findings().iter().filter(|finding| finding.is_warning()) {
        let _ = writeln!(out, "> {}{}\n", page.pick("注意：", "Warning: "), finding.text(page.language));
    }
    if page.card.has_picture {
        let _ = writeln!(out, "![{}]({PICTURE_FILE})\n", page.pick("损失曲线", "The loss over the steps"));
    }
    out
}

/// Returns a note for the card of a 4-bit model: the results above it were measured with the adapter on its
/// base. For other models, the note is empty.
fn in_four_bits(page: &Page<'_>) -> String {
    let Some(Quantization { quant_type: code, .. }) = page.card.four_bit() else { return String::new() };
    let merge = page.card.merge.as_ref().filter(|merge| merge.quantized.is_some());
    let (known_zh, known) = match merge {
        Some(Merge { fidelity: f, quantized: Some(figures), .. }) => {
            let (before, after) = (f.perplexity_adapter, figures.perplexity);
            (
                format!(
                    "在合并核对的文本上，{code} 模型的困惑度是 {after:.4}，“基座 + 适配器”是 {before:.4}。"
                ),
                format!(
                    " On the texts of the merge check, the {code} model has a perplexity of {after:.4}, base + adapter one of {before:.4}."
                ),
            )
        }
        _ => (String::new(), String::new()),
    };
    page.pick(
        format!("以上数值属于“基座 + 适配器”，不属于这个 {code} 模型。{known_zh}"),
        format!(" These values belong to base + adapter, not to the {code} model.{known}"),
    )
}

fn replies(page: &Page<'_>, run: &Training) -> String {
    if run.replies.is_empty() {
        return String::new();
    }
    let mut out = page.section("训练前后的回答", "Replies before and after");
    let (most, dtype) = (run.reply_tokens, run.settings.dtype);
    let (over_zh, over) = match run.over() {
        Some(Quantization { quant_type, .. }) => {
            (format!("，基座为 {quant_type}"), format!(" over a {quant_type} base"))
        }
        None => (String::new(), String::new()),
    };
    let (but_zh, but) = match page.card.four_bit() {
        Some(Quantization { quant_type, .. }) => (
            format!("这些不是 {quant_type} 模型的回答。"),
            format!(" These are not replies of the {quant_type} model."),
        ),
        None => (String::new(), String::new()),
    };
    out += &page.pick(
        format!("以 {dtype} 计算{over_zh}，贪心解码，最多 {most} 个词元，未经挑选。{but_zh}\n\n| 问 | 基座 | 基座 + 适配器 |\n|---|---|---|\n"),
        format!("Computed in {dtype}{over}, greedy, at most {most} tokens, without selection.{but}\n\n| question | base | base + adapter |\n|---|---|---|\n"),
    );
    for reply in &run.replies {
        let said = [&reply.prompt, &reply.before, &reply.after].map(|text| match text.trim() {
            "" => page.pick("（空）", "(empty)").to_owned(),
            text => cell(text, MAX_REPLY_CHARS),
        });
        let _ = writeln!(out, "| {} |", said.join(" | "));
    }
    out + "\n"
}
