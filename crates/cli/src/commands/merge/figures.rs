//! What a merge did, in a table.

use std::path::Path;

use danlu_adapter::fidelity::Fidelity;
use danlu_adapter::merge::{MergeReport, REPORT_FILE};

use crate::printer::{Look, Printer};
use crate::text;

/// The figures of a merge.
pub fn print(report: &MergeReport, f: &Fidelity, text: Option<&Path>, output: &Path, printer: &Printer) {
    let (size, tensors) = (text::bytes(report.bytes), report.merged_tensors);
    let dtype =
        report.quantized.map_or_else(|| report.dtype.join(", "), |q| q.quantization.quant_type.to_string());
    let seconds = report.seconds;
    printer.say(&printer.pick(
        format!(
            "合并了 {tensors} 个张量，写出 {size}（{dtype}），用时 {seconds:.1} 秒：{}",
            output.display()
        ),
        format!("merged {tensors} tensors, wrote {size} ({dtype}) in {seconds:.1}s: {}", output.display()),
    ));
    let (sequences, tokens) = (f.sequences, f.tokens);
    let text = match text {
        Some(file) => printer.pick(
            format!("{} 的 {sequences} 条记录", file.display()),
            format!("{} of {}", text::counted(sequences as u64, "record"), file.display()),
        ),
        None => printer.pick(
            format!("danlu 自带的 {sequences} 段文本"),
            format!("{} that danlu brings", text::counted(sequences as u64, "text")),
        ),
    };
    printer.say(&printer.pick(
        format!("核对：{text}，{tokens} 个词元，合并后的模型与“基座+适配器”相比"),
        format!("measured on {text}, {tokens} tokens: the merged model against adapter on base"),
    ));
    let row = |zh: &str, en: &str, value: String| {
        printer.out(&format!("  {} {value}", text::pad(printer.pick(zh, en), 30)));
    };
    let limit = |value: String| printer.pick(format!("（上限 {value}）"), format!(" (limit {value})"));
    row("最大 logit 差", "largest logit difference", format!("{:.2e}", f.max_logit_difference));
    row("平均 logit 差", "mean logit difference", format!("{:.2e}", f.mean_logit_difference));
    row(
        "KL 散度，每词元",
        "KL divergence a token",
        format!("{:.2e}{}", f.kl, limit(format!("{:.2e}", f.kl_limit))),
    );
    row("适配器本身的 KL", "KL the adapter makes", format!("{:.2e}", f.kl_of_adapter));
    row("首选词元一致", "same likeliest token", format!("{:.2}%", 100.0 * f.same_choice));
    row("困惑度 基座", "perplexity of the base", format!("{:.4}", f.perplexity_base));
    row("困惑度 基座+适配器", "perplexity of base + adapter", format!("{:.4}", f.perplexity_adapter));
    row("困惑度 合并后", "perplexity merged", format!("{:.4}", f.perplexity_merged));
    for figures in &report.forms {
        let (form, merged) = (figures.form.name(), figures.merged);
        let chosen = merged && figures.form == report.merge_base;
        let name = match merged {
            true => {
                printer.pick(format!("合并到 {form}：KL，困惑度"), format!("into {form}: KL, perplexity"))
            }
            false => printer
                .pick(format!("不合并，在 {form} 上：KL，困惑度"), format!("beside {form}: KL, perplexity")),
        };
        let mark = if chosen { printer.pick("（选用）", " (chosen)") } else { "" };
        row(&name, &name, format!("{:.2e}, {:.4}{mark}", figures.kl, figures.perplexity));
    }
    if let Some(figures) = &report.quantized {
        let code = figures.quantization.quant_type;
        let name = printer.pick(format!("转为 {code} 后：KL，困惑度"), format!("in {code}: KL, perplexity"));
        row(&name, &name, format!("{:.2e}, {:.4}", figures.kl, figures.perplexity));
    }
    let verdict = match f.passed {
        true => printer.data(Look::Green, printer.pick("通过", "passed")),
        false => printer.data(Look::Red, printer.pick("未通过", "failed")),
    };
    printer.out(&format!("{verdict} · {}", output.join(REPORT_FILE).display()));
}
