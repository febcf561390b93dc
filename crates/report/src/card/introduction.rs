//! The first paragraph of a card: the kind of model, its base, and its size.

use super::markdown::{code, line, plain};
use super::{DANLU, Page};
use crate::number_format::thousands;

pub(super) fn render(page: &Page<'_>) -> String {
    let card = page.card;
    let base = base(page);
    let (rank, alpha) = card.lora.as_ref().map_or((0, 0.0), |lora| (lora.r, lora.alpha));
    let what = match &card.merge {
        None => page.pick(
            format!("{base} 的 LoRA 适配器（秩 {rank}，alpha {alpha}）。这个仓库只有适配器，使用时还需要基座。"),
            format!("A LoRA adapter (rank {rank}, alpha {alpha}) for {base}. This repository holds only the adapter: running it needs the base."),
        ),
        Some(merge) => {
            let dtype = match card.four_bit() {
                Some(quantization) => quantization.quant_type.to_string(),
                None => merge.dtype.join(", "),
            };
            page.pick(
                format!("{base} 与一个 LoRA 适配器（秩 {rank}，alpha {alpha}）合并成的完整模型（{dtype}），不需要 PEFT，也不需要另外下载基座。"),
                format!("A full model ({dtype}): {base} with a LoRA adapter (rank {rank}, alpha {alpha}) merged into it. It runs without PEFT and without the base."),
            )
        }
    };
    let trained = match &card.training {
        Some(run) => {
            let (trained, percent) = (thousands(run.trainable_parameters), run.trainable_percent());
            let version = plain(&run.version);
            page.pick(
                format!("由 {DANLU} {version} 训练：{trained} 个可训练参数，占总数的 {percent:.3}%。"),
                format!(
                    " Trained with {DANLU} {version}: {trained} trainable parameters, {percent:.3}% of the total."
                ),
            )
        }
        None => page.pick(
            format!("由 {DANLU} {} 合并，没有适配器的训练记录。", plain(&card.version)),
            format!(
                " Merged with {DANLU} {}. There is no record of the adapter's training.",
                plain(&card.version)
            ),
        ),
    };
    format!("{what}{trained}\n\n")
}

/// Returns the name of the base, as a link if the base is on the Hub.
pub(super) fn base(page: &Page<'_>) -> String {
    match &page.card.base.hub_id {
        Some(id) => format!("[{}](https://huggingface.co/{})", plain(id), line(id)),
        None => code(&page.card.base.name),
    }
}
