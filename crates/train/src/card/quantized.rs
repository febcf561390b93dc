//! The card of a base that was put into 4 bits: short, for the base's own says what the model is.

use danlu_model::Quantization;

use super::front_matter::Front;
use super::markdown::{code, fenced, line, literal, plain, shell_word};
use super::{BaseName, DANLU};
use crate::report::Language;

/// What the card of a base in 4 bits says.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedCard {
    /// The model's name: its folder's.
    pub name: String,
    /// The base it was made from.
    pub base: BaseName,
    /// How.
    pub quantization: Quantization,
    /// Modules that are not in 4 bits, beyond those that never are.
    pub skipped: Vec<String>,
    /// The base's licence, which is its own too.
    pub license: Option<String>,
    /// Sizes before and after, in words.
    pub sizes: (String, String),
    /// Version of danlu that wrote it.
    pub version: String,
}

impl QuantizedCard {
    /// The page.
    pub fn render(&self, language: Language) -> String {
        let base_id = self.base.hub_id.as_deref();
        let tags = ["danlu", "bitsandbytes", "4-bit"].map(str::to_owned).into();
        let front = Front {
            base: base_id,
            relation: "quantized",
            library: "transformers",
            license: self.license.as_deref(),
            languages: &[],
            datasets: &[],
            tags,
        };
        let base = match base_id {
            Some(id) => format!("[{}](https://huggingface.co/{})", plain(id), line(id)),
            None => code(&self.base.name),
        };
        let Quantization { quant_type, block_size, double_quant } = self.quantization;
        let (scales_zh, scales) = match double_quant {
            true => ("缩放系数也转为 8 位（双重量化）", "their scales in 8 bits (double quantisation)"),
            false => ("缩放系数为 f32", "their scales in f32"),
        };
        let (but_zh, but) = match &self.skipped[..] {
            [] => (String::new(), String::new()),
            names => {
                let names = names.iter().map(|name| code(name)).collect::<Vec<_>>().join(", ");
                (format!("（{names} 除外）"), format!(" (but for {names})"))
            }
        };
        let ((before, after), version) = (&self.sizes, plain(&self.version));
        let about = language.pick(
            format!(
                "{base} 的 4 位版本：投影层{but_zh}为 {quant_type}，每 {block_size} 个权重一块，{scales_zh}；词嵌入、输出层与归一化层保持原样。\
                 没有训练过。权重从 {before} 变为 {after}，由 {DANLU} {version} 的 `danlu quantize` 写成，即 bitsandbytes 自己的格式。"
            ),
            format!(
                "{base} in 4 bits: its projections{but} in {quant_type}, in blocks of {block_size} weights, {scales}; embeddings, head and norms \
                 are as they were. Nothing was trained. The weights went from {before} to {after}; `danlu quantize` of {DANLU} {version} \
                 wrote them in bitsandbytes' own format."
            ),
        );
        let title = language.pick("用法", "Use it");
        let name = line(&self.name);
        let repository = format!("your-name/{name}");
        let place = language.pick(
            "`your-name` 换成仓库主人的名字，或把整个名字换成本地文件夹。",
            "Put the owner of this repository for `your-name`, or a local folder for the whole.",
        );
        let chat = fenced(&format!("danlu chat {}", shell_word(&repository)), "sh");
        let repository = literal(&repository);
        let load = fenced(
            &format!(
                "# pip install torch transformers accelerate bitsandbytes\n\
                 from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained({repository})\n\
                 tokenizer = AutoTokenizer.from_pretrained({repository})"
            ),
            "python",
        );
        format!(
            "{}# {}\n\n{about}\n\n## {title}\n\n{place}\n\n{chat}{load}",
            front.render(),
            plain(&self.name)
        )
    }
}

#[cfg(test)]
mod tests {
    use danlu_kernels::FourBitCode;

    use super::*;

    #[test]
    fn a_quantized_base_names_its_base_its_licence_and_its_sizes() {
        let card = QuantizedCard {
            name: "Llama-3.2-1B-nf4".into(),
            base: BaseName { hub_id: Some("meta-llama/Llama-3.2-1B".into()), ..BaseName::default() },
            quantization: Quantization::new(FourBitCode::Nf4),
            skipped: vec!["down_proj".into()],
            license: Some("llama3.2".into()),
            sizes: ("2.5 GB".into(), "1.0 GB".into()),
            version: "0.1.0".into(),
        };
        let english = card.render(Language::En);
        assert!(english.starts_with(
            "---\nbase_model: \"meta-llama/Llama-3.2-1B\"\nbase_model_relation: quantized\nlibrary_name: transformers\n\
             pipeline_tag: text-generation\nlicense: \"llama3.2\"\ntags:\n- \"danlu\"\n- \"bitsandbytes\"\n- \"4-bit\"\n\
             - \"base_model:quantized:meta-llama/Llama-3.2-1B\"\n---\n\n# Llama-3.2-1B-nf4\n"
        ), "{english}");
        assert!(english.contains("its projections (but for `down_proj`) in nf4"), "{english}");
        assert!(english.contains("went from 2.5 GB to 1.0 GB"), "{english}");
        assert!(english.contains("from_pretrained(\"your-name/Llama-3.2-1B-nf4\")\n"), "{english}");
        assert!(card.render(Language::Zh).contains("双重量化"));
        let local = QuantizedCard { base: BaseName { name: "a|b".into(), ..BaseName::default() }, ..card };
        let local = local.render(Language::En);
        assert!(
            !local.contains("base_model") && local.contains("<code>a&#124;b</code> in 4 bits"),
            "{local}"
        );
    }
}
