//! How near a merged model is to the adapter on its base.

use std::fmt::Write as _;

use danlu_adapter::merge::MergeBase;

use super::markdown::plain;
use super::{Merge, Page};
use crate::number_format::thousands;
use crate::page::number;

pub(super) fn render(page: &Page<'_>, merge: &Merge) -> String {
    let f = &merge.fidelity;
    let mut out = page.section("合并核对", "How true the merge is");
    let (sequences, tokens) = (thousands(f.sequences as u64), thousands(f.tokens as u64));
    // A card of before this was known has the figures of the merge that went into 4 bits.
    let before = merge.quantized.and_then(|figures| Some((figures, figures.before?)));
    let (written_zh, written) = match &before {
        Some((figures, _)) => {
            let code = figures.quantization.quant_type;
            (format!("{code} 模型"), format!("The model in {code}"))
        }
        None => ("合并后的模型".to_owned(), "The merged model".to_owned()),
    };
    out += &page.pick(
        format!("{written_zh}与“基座 + 适配器”相比，{sequences} 段文本，{tokens} 个词元：\n\n"),
        format!("{written} against base + adapter, on {sequences} texts of {tokens} tokens:\n\n"),
    );
    out += page.pick("| 指标 | 值 |\n|---|---:|\n", "| measure | value |\n|---|---:|\n");
    let mut row = |zh: &str, en: &str, value: String| {
        let _ = writeln!(out, "| {} | {value} |", page.pick(zh, en));
    };
    row("KL 散度（奈特/词元）", "KL divergence (nats per token)", number(f.kl));
    row("适配器本身的 KL", "KL that the adapter makes", number(f.kl_of_adapter));
    row("最大 logit 差", "largest logit difference", number(f.max_logit_difference));
    row("首选词元一致", "same likeliest token", format!("{:.2}%", 100.0 * f.same_choice));
    row("困惑度：基座", "perplexity: base", format!("{:.4}", f.perplexity_base));
    row("困惑度：基座 + 适配器", "perplexity: base + adapter", format!("{:.4}", f.perplexity_adapter));
    row("困惑度：合并后", "perplexity: merged", format!("{:.4}", f.perplexity_merged));
    if let Some((figures, before)) = &before {
        let code = figures.quantization.quant_type;
        let (zh, en) = (
            format!("转为 {code} 之前：KL，困惑度"),
            format!("before it was put into {code}: KL, perplexity"),
        );
        row(&zh, &en, format!("{}, {:.4}", number(before.kl), before.perplexity));
        if let Some(kept) = figures.adapter_kept {
            row("适配器的作用还剩", "what the adapter does, left", format!("{:.0}%", 100.0 * kept));
        }
    } else if let Some(figures) = &merge.quantized {
        let code = figures.quantization.quant_type;
        let (zh, en) =
            (format!("转为 {code} 之后：KL，困惑度"), format!("put into {code} after that: KL, perplexity"));
        row(&zh, &en, format!("{}, {:.4}", number(figures.kl), figures.perplexity));
    }
    out.push('\n');
    if let Some(four) = &page.card.in_four_bits {
        let code = four.quantization.quant_type;
        out += &page.pick(
            format!("以上是转为 {code} 之前测得的；转为 {code} 的代价没有测量。\n\n"),
            format!("This was measured before the model was put into {code}; what {code} costs was not measured.\n\n"),
        );
    }
    if let Some(trained) = &page.card.trained_on {
        let (here, trained) = (plain(page.card.base.shown()), plain(trained.shown()));
        out += &page.pick(
            format!("适配器不是在这个基座（{here}）上训练的，训练时的基座是另一个（{trained}，见“训练”）：训练时测得的效果不适用于这个模型。\n\n"),
            format!("The adapter was not trained on this base ({here}) but on another ({trained}, see Training): what was measured in training is not true of this model.\n\n"),
        );
    }
    let is_of_wide = page.card.training.as_ref().is_some_and(|run| run.over().is_none());
    if !merge.forms.is_empty() || merge.base == MergeBase::Dequantized {
        out += match merge.base {
            MergeBase::Dequantized if is_of_wide => page.pick(
                "适配器是在未量化的基座上训练的，合并到了由 4 位还原的基座上。",
                "The adapter was trained over the base before it was put into 4 bits, and is merged into a dequantized one.",
            ),
            MergeBase::Original => page.pick(
                "适配器是在 4 位基座上训练的，合并到了原始基座上。",
                "The adapter was trained over a base in 4 bits and is merged into the original base.",
            ),
            MergeBase::Dequantized => page.pick(
                "适配器是在 4 位基座上训练的，合并到了由 4 位还原的基座上。",
                "The adapter was trained over a base in 4 bits and is merged into that base, dequantized.",
            ),
        };
        out += "\n\n";
    }
    out
}
