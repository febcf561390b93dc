//! The section about the merge check, which compares the merged model with the adapter on its base.

use std::fmt::Write as _;

use danlu_adapter::merge::{MergeBase, QuantizedFidelity, UnquantizedFidelity};

use super::markdown::plain;
use super::{Merge, Page};
use crate::number_format::thousands;
use crate::page::number;

pub(super) fn render(page: &Page<'_>, merge: &Merge) -> String {
    page.section("合并核对", "Merge check")
        + &heading(page, merge)
        + &table(page, merge)
        + &unmeasured_quantization(page)
        + &another_base(page)
        + &form_of_base(page, merge)
}

/// Returns the values after and before quantization. Old cards contain only the values after quantization.
fn quantized(merge: &Merge) -> Option<(QuantizedFidelity, UnquantizedFidelity)> {
    let figures = merge.quantized?;
    Some((figures, figures.before?))
}

fn heading(page: &Page<'_>, merge: &Merge) -> String {
    let (sequences, tokens) =
        (thousands(merge.fidelity.sequences as u64), thousands(merge.fidelity.tokens as u64));
    let (model_zh, model) = match quantized(merge) {
        Some((figures, _)) => {
            let code = figures.quantization.quant_type;
            (format!("{code} 模型"), format!("The {code} model"))
        }
        None => ("合并后的模型".to_owned(), "The merged model".to_owned()),
    };
    page.pick(
        format!("{model_zh}与“基座 + 适配器”相比，{sequences} 段文本，{tokens} 个词元：\n\n"),
        format!("{model} compared with base + adapter, on {sequences} texts of {tokens} tokens:\n\n"),
    )
}

fn table(page: &Page<'_>, merge: &Merge) -> String {
    let f = &merge.fidelity;
    let mut out = page.pick("| 指标 | 值 |\n|---|---:|\n", "| measure | value |\n|---|---:|\n").to_owned();
    let mut row = |zh: &str, en: &str, value: String| {
        let _ = writeln!(out, "| {} | {value} |", page.pick(zh, en));
    };
    row("KL 散度（奈特/词元）", "KL divergence (nats per token)", number(f.kl));
    row("适配器带来的 KL", "KL from base to base + adapter", number(f.kl_of_adapter));
    row("最大 logit 差", "largest logit difference", number(f.max_logit_difference));
    row("首选词元一致", "same top token", format!("{:.2}%", 100.0 * f.same_choice));
    row("困惑度：基座", "perplexity: base", format!("{:.4}", f.perplexity_base));
    row("困惑度：基座 + 适配器", "perplexity: base + adapter", format!("{:.4}", f.perplexity_adapter));
    row("困惑度：合并后", "perplexity: merged", format!("{:.4}", f.perplexity_merged));
    let mut divergence = |zh: &str, en: &str, kl: f64, perplexity: f64| {
        row(zh, en, format!("{}, {:.4}", number(kl), perplexity));
    };
    if let Some((figures, before)) = quantized(merge) {
        let code = figures.quantization.quant_type;
        let (zh, en) = (
            format!("量化为 {code} 之前：KL，困惑度"),
            format!("before quantization to {code}: KL, perplexity"),
        );
        divergence(&zh, &en, before.kl, before.perplexity);
        if let Some(kept) = figures.adapter_kept {
            row("保留的适配器效果", "effect of the adapter that is kept", format!("{:.0}%", 100.0 * kept));
        }
    } else if let Some(figures) = &merge.quantized {
        let code = figures.quantization.quant_type;
        let (zh, en) = (
            format!("量化为 {code} 之后：KL，困惑度"),
            format!("after quantization to {code}: KL, perplexity"),
        );
        divergence(&zh, &en, figures.kl, figures.perplexity);
    }
    out + "\n"
}

fn unmeasured_quantization(page: &Page<'_>) -> String {
    let Some(four) = &page.card.in_four_bits else { return String::new() };
    let code = four.quantization.quant_type;
    page.pick(
        format!("以上数值在量化为 {code} 之前测得，量化的代价没有测量。\n\n"),
        format!("These values were measured before quantization to {code}. The cost of {code} was not measured.\n\n"),
    )
}

fn another_base(page: &Page<'_>) -> String {
    let Some(trained) = &page.card.trained_on else { return String::new() };
    let (here, trained) = (plain(page.card.base.shown()), plain(trained.shown()));
    page.pick(
        format!(
            "适配器是在另一个基座（{trained}，见“训练”）上训练的，不是这个基座（{here}）。训练的结果不适用于这个模型。\n\n"
        ),
        format!(
            "The adapter was trained on another base ({trained}, see Training), not on this one ({here}). \
             The results of training do not apply to this model.\n\n"
        ),
    )
}

fn form_of_base(page: &Page<'_>, merge: &Merge) -> String {
    if merge.forms.is_empty() && merge.base != MergeBase::Dequantized {
        return String::new();
    }
    let trained_unquantized = page.card.training.as_ref().is_some_and(|run| run.over().is_none());
    let text = match merge.base {
        MergeBase::Dequantized if trained_unquantized => page.pick(
            "适配器在未量化的基座上训练，合并到由 4 位还原的基座上。",
            "The adapter was trained on the unquantized base and merged into a dequantized one.",
        ),
        MergeBase::Original => page.pick(
            "适配器在 4 位基座上训练，合并到原始基座上。",
            "The adapter was trained on a 4-bit base and merged into the original base.",
        ),
        MergeBase::Dequantized => page.pick(
            "适配器在 4 位基座上训练，合并到由它还原的基座上。",
            "The adapter was trained on a 4-bit base and merged into that base, dequantized.",
        ),
    };
    format!("{text}\n\n")
}
