//! The card of a quantized base. This card is short, because the card of the base describes the model.

use danlu_model::Quantization;
use danlu_model::shell_word;
use serde::{Deserialize, Serialize};

use super::markdown::{code, fenced, line, literal, plain};
use super::snippets::{at_branch, revision_argument};
use super::{DANLU, Page, introduction};

/// The quantization of a full model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InFourBits {
    /// 4-bit type, block size, and type of the scales.
    pub quantization: Quantization,
    /// Modules that the user excluded from quantization.
    pub skipped: Vec<String>,
    /// Sizes of the weights before and after quantization, formatted as text.
    pub sizes: (String, String),
}

pub(super) fn render(page: &Page<'_>, four: &InFourBits) -> String {
    let base = introduction::base(page);
    let Quantization { quant_type, block_size, double_quant } = four.quantization;
    let (scales_zh, scales) = match double_quant {
        true => ("缩放系数也转为 8 位（双重量化）", "scales in 8 bits (double quantization)"),
        false => ("缩放系数为 f32", "scales in f32"),
    };
    let (but_zh, but) = match &four.skipped[..] {
        [] => (String::new(), String::new()),
        names => {
            let names = names.iter().map(|name| code(name)).collect::<Vec<_>>().join(", ");
            (format!("（{names} 除外）"), format!(" (except {names})"))
        }
    };
    let ((before, after), version) = (&four.sizes, plain(&page.card.version));
    let about = page.pick(
            format!(
                "{base} 的 4 位版本：投影层{but_zh}为 {quant_type}，每 {block_size} 个权重一块，{scales_zh}；词嵌入、输出层与归一化层保持原样。\
                 没有经过训练。权重从 {before} 变为 {after}，由 {DANLU} {version} 的 `danlu quantize` 写成 bitsandbytes 的格式。"
            ),
            format!(
                "{base} in 4 bits. Its projections{but} are in {quant_type}, in blocks of {block_size} weights, with {scales}. \
                 Embeddings, head and norms are unchanged. The model was not trained. The weights went from {before} to {after}. \
                 `danlu quantize` of {DANLU} {version} wrote them in the format of bitsandbytes."
            ),
        );
    let title = page.section("用法", "Use it");
    let repository = page.card.repository.as_deref().map_or_else(|| page.card.name_on_hub(), line);
    let place = match page.card.repository {
        Some(_) => "",
        None => page.pick(
            "把 `your-name` 换成仓库所有者的名字，或把整个名字换成本地文件夹。\n\n",
            "Replace `your-name` with the owner of the repository, or the whole name with a local folder.\n\n",
        ),
    };
    let branch = page.card.revision.as_deref().map(line);
    let model = at_branch(&repository, branch.as_ref());
    let chat = fenced(&format!("danlu chat {}", shell_word(&model)), "sh");
    let repository = literal(&repository) + &revision_argument(branch.as_ref());
    let load = fenced(
        &format!(
            "# pip install torch transformers accelerate bitsandbytes\n\
                 from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained({repository})\n\
                 tokenizer = AutoTokenizer.from_pretrained({repository})"
        ),
        "python",
    );
    format!("{about}\n\n{title}{place}{chat}{load}")
}

#[cfg(test)]
mod tests {
    use danlu_kernels::FourBitCode;

    use super::*;
    use crate::card::{Card, CardLanguage};
    use danlu_adapter::BaseIdentity;

    #[test]
    fn a_quantized_base_names_its_base_its_licence_and_its_sizes() {
        let base = BaseIdentity { hub_id: Some("meta-llama/Llama-3.2-1B".into()), ..BaseIdentity::default() };
        let card = Card::new("Llama-3.2-1B-nf4".into(), CardLanguage::En, base, Some("llama3.2".into()));
        let in_four_bits = InFourBits {
            quantization: Quantization::new(FourBitCode::Nf4),
            skipped: vec!["down_proj".into()],
            sizes: ("2.5 GB".into(), "1.0 GB".into()),
        };
        let card = Card { in_four_bits: Some(in_four_bits), version: "0.1.0".into(), ..card };
        let english = card.render("");
        assert!(english.starts_with(
            "---\nbase_model: \"meta-llama/Llama-3.2-1B\"\nbase_model_relation: quantized\nlibrary_name: transformers\n\
             pipeline_tag: text-generation\nlicense: \"llama3.2\"\ntags:\n- \"danlu\"\n- \"bitsandbytes\"\n- \"4-bit\"\n\
             - \"base_model:quantized:meta-llama/Llama-3.2-1B\"\n---\n\n<!-- danlu:begin -->\n"
        ), "{english}");
        assert!(english.contains("-->\n\n# Llama-3.2-1B-nf4\n"), "{english}");
        assert!(english.contains("Its projections (except `down_proj`) are in nf4"), "{english}");
        assert!(english.contains("went from 2.5 GB to 1.0 GB"), "{english}");
        assert!(english.contains("from_pretrained(\"your-name/Llama-3.2-1B-nf4\")\n"), "{english}");
        assert!(Card { language: CardLanguage::Zh, ..card.clone() }.render("").contains("双重量化"));
        let named = Card { repository: Some("me/nf4".into()), ..card.clone() }.render("");
        assert!(named.contains("danlu chat me/nf4\n") && !named.contains("your-name"), "{named}");
        let four = card.in_four_bits.clone().unwrap();
        let branched =
            Card { repository: Some("me/nf4".into()), revision: Some("v2".into()), ..card.clone() };
        let shown = branched.render("");
        assert!(shown.contains("danlu chat me/nf4@v2\n"), "{shown}");
        assert_eq!(shown.matches("from_pretrained(\"me/nf4\", revision=\"v2\")").count(), 2, "{shown}");
        let again = branched.quantized("again".into(), four);
        assert_eq!((again.repository, again.revision), (None, None));
        let local = Card { base: BaseIdentity { name: "a|b".into(), ..BaseIdentity::default() }, ..card };
        let local = local.render("");
        assert!(
            !local.contains("base_model") && local.contains("<code>a&#124;b</code> in 4 bits"),
            "{local}"
        );
    }
}
