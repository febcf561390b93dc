//! Prints the result of a merge as a table.

use std::path::Path;

use danlu_adapter::fidelity::Fidelity;
use danlu_adapter::merge::{MergeBase, MergeReport, QuantizedFidelity, REPORT_FILE};

use crate::lesson;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

pub fn print(report: &MergeReport, f: &Fidelity, text: Option<&Path>, output: &Path, printer: &Printer) {
    let (size, tensors) = (terminal_text::bytes(report.bytes), report.merged_tensors);
    let dtype =
        report.quantized.map_or_else(|| report.dtype.join(", "), |q| q.quantization.quant_type.to_string());
    let seconds = report.seconds;
    printer.status(&printer.pick(
        format!(
            "合并了 {tensors} 个张量，写出 {size}（{dtype}），用时 {seconds:.1} 秒：{}",
            output.display()
        ),
        format!("merged {tensors} tensors, wrote {size} ({dtype}) in {seconds:.1}s: {}", output.display()),
    ));
    print_comparison(report, f, text, printer);
    print_fidelity(report, f, printer);
    print_forms(report, printer);
    print_verdict(report, f, output, printer);
}

fn row(zh: &str, en: &str, value: String, printer: &Printer) {
    printer.data(&format!("  {} {value}", terminal_text::pad(printer.pick(zh, en), 30)));
}

/// Prints the measured text, and the compared models.
fn print_comparison(report: &MergeReport, f: &Fidelity, text: Option<&Path>, printer: &Printer) {
    let (sequences, tokens) = (f.sequences, f.tokens);
    let text = match text {
        Some(file) => printer.pick(
            format!("{} 的 {sequences} 条记录", file.display()),
            format!("{} of {}", terminal_text::counted(sequences as u64, "record"), file.display()),
        ),
        None => printer.pick(
            format!("danlu 自带的 {sequences} 段文本"),
            format!("{} that danlu brings", terminal_text::counted(sequences as u64, "text")),
        ),
    };
    let code = report.quantized.map(|figures| figures.quantization.quant_type);
    let (written_zh, written) = match code {
        Some(code) => (format!("{code} 模型"), format!("the model in {code}")),
        None => ("合并后的模型".to_owned(), "the merged model".to_owned()),
    };
    let (against_zh, against) = match report.merge_base {
        _ if report.forms.is_empty() => ("“基座+适配器”", "the adapter on its base"),
        MergeBase::Original => ("“原始基座+适配器”", "the adapter on the original base"),
        MergeBase::Dequantized => ("“4 位还原的基座+适配器”", "the adapter on the dequantized base"),
    };
    printer.status(&printer.pick(
        format!("核对：{text}，{tokens} 个词元，{written_zh}与{against_zh}相比"),
        format!("measured on {text}, {tokens} tokens: {written} compared with {against}"),
    ));
}

/// Prints the differences between the merged model and base plus adapter.
fn print_fidelity(report: &MergeReport, f: &Fidelity, printer: &Printer) {
    let row = |zh: &str, en: &str, value: String| row(zh, en, value, printer);
    let limit = |value: String| printer.pick(format!("（上限 {value}）"), format!(" (limit {value})"));
    row("最大 logit 差", "largest logit difference", format!("{:.2e}", f.max_logit_difference));
    row("平均 logit 差", "mean logit difference", format!("{:.2e}", f.mean_logit_difference));
    printer.teach(lesson::LOGIT_DIFFERENCE);
    row(
        "KL 散度，每词元",
        "KL divergence a token",
        format!("{:.2e}{}", f.kl, limit(format!("{:.2e}", f.kl_limit))),
    );
    printer.teach(lesson::DIVERGENCE);
    row("适配器本身的 KL", "KL the adapter makes", format!("{:.2e}", f.kl_of_adapter));
    row("首选词元一致", "same likeliest token", format!("{:.2}%", 100.0 * f.same_choice));
    printer.teach(lesson::SAME_TOKEN);
    row("困惑度 基座", "perplexity of the base", format!("{:.4}", f.perplexity_base));
    row("困惑度 基座+适配器", "perplexity of base + adapter", format!("{:.4}", f.perplexity_adapter));
    match report.quantized.and_then(|figures| figures.before) {
        None => {
            row("困惑度 合并后", "perplexity merged", format!("{:.4}", f.perplexity_merged));
            printer.teach(lesson::MERGED_PERPLEXITY);
        }
        Some(before) => {
            let code = report.quantized.map_or("", |figures| figures.quantization.quant_type.name());
            let name = printer.pick(format!("困惑度 {code}"), format!("perplexity in {code}"));
            row(&name, &name, format!("{:.4}", f.perplexity_merged));
            let name = printer
                .pick(format!("转为 {code} 之前：KL，困惑度"), format!("before {code}: KL, perplexity"));
            row(&name, &name, format!("{:.2e}, {:.4}", before.kl, before.perplexity));
        }
    }
}

/// Prints the fidelity of a merge into each form of the base.
fn print_forms(report: &MergeReport, printer: &Printer) {
    if !report.forms.is_empty() {
        printer.data(printer.pick(
            "与训练时相比，即“4 位还原的基座+适配器”：",
            "compared with the trained model, the adapter on the dequantized base:",
        ));
    }
    for figures in &report.forms {
        let (form, merged) = (figures.form.name(), figures.merged);
        let chosen = merged && figures.form == report.merge_base;
        let form_zh = match figures.form {
            MergeBase::Original => "原始基座",
            MergeBase::Dequantized => " 4 位还原的基座",
        };
        let name = match merged {
            true => {
                printer.pick(format!("合并到{form_zh}：KL，困惑度"), format!("into {form}: KL, perplexity"))
            }
            false => printer
                .pick(format!("不合并，在{form_zh}上：KL，困惑度"), format!("beside {form}: KL, perplexity")),
        };
        let mark = if chosen { printer.pick("（选用）", " (chosen)") } else { "" };
        row(&name, &name, format!("{:.2e}, {:.4}{mark}", figures.kl, figures.perplexity), printer);
    }
}

fn print_verdict(report: &MergeReport, f: &Fidelity, output: &Path, printer: &Printer) {
    let verdict = match f.passed {
        true => printer.paint_data(Style::Green, printer.pick("通过", "passed")),
        false => printer.paint_data(Style::Red, printer.pick("未通过", "failed")),
    };
    let cost = report.quantized.map(|figures| cost(&figures, printer)).unwrap_or_default();
    printer.data(&format!("{verdict}{cost} · {}", output.join(REPORT_FILE).display()));
    if report.quantized.is_some() && !f.passed {
        printer.status_bilingual(
            "不带 `--to` 的合并能保住适配器；不合并，直接用 4 位基座加适配器，也能",
            "a merge without `--to` keeps the adapter's effect, and so does the unmerged adapter on its 4-bit base",
        );
    }
}

/// Describes how much quantization to 4 bits changed the merged model.
fn cost(figures: &QuantizedFidelity, printer: &Printer) -> String {
    let (code, after) = (figures.quantization.quant_type, figures.perplexity);
    let (left_zh, left) = match figures.adapter_kept {
        Some(0.0) => ("适配器的作用一点不剩".to_owned(), "none of the adapter's effect is left".to_owned()),
        Some(kept) => {
            let percent = format!("{:.0}%", 100.0 * kept);
            (format!("适配器的作用还剩 {percent}"), format!("{percent} of the adapter's effect is left"))
        }
        None => ("适配器本来就没有作用".to_owned(), "the adapter has no effect".to_owned()),
    };
    let perplexity =
        figures.before.map_or_else(|| format!("{after:.4}"), |b| format!("{:.4} → {after:.4}", b.perplexity));
    printer.pick(
        format!("：转为 {code} 后{left_zh}，困惑度 {perplexity}"),
        format!(": in {code}, {left}, and the perplexity is {perplexity}"),
    )
}
