//! The texts of the demo in both languages.

use std::path::Path;

use crate::embedded_base::BASE_NAME;
use crate::embedded_data::{COOK, EmbeddedData};
use crate::lang::Lang;
use crate::terminal_text;

/// A step of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Shows records and their trained tokens.
    Data,
    /// Trains the adapter.
    Train,
    /// Compares replies before and after the training.
    Compare,
    /// Merges the adapter into the base.
    Merge,
    /// Loads the merged model, and chats with it.
    Reload,
    /// Lists the commands for the user's own files.
    Yours,
}

impl Step {
    pub const COUNT: usize = 6;

    pub fn number(self) -> usize {
        self as usize + 1
    }

    /// Returns the title and the explanation.
    pub fn text(self, lang: Lang) -> (&'static str, &'static str) {
        match self {
            Self::Data => lang.pick(
                (
                    "看数据",
                    "先看三条记录，再看其中一条变成词元后的样子。只有标出的部分（回答，连同结束符）计损失：\
                     模型学的是怎么答，以及什么时候停。",
                ),
                (
                    "The data",
                    "Three records, then one of them as tokens. Only the marked part is trained: the answer and \
                     its end-of-turn token. The model learns how to answer, and when to stop.",
                ),
            ),
            Self::Train => lang.pick(
                (
                    "炼丹",
                    "基座的权重一个也不改，只在每个投影旁边训练一对小矩阵 B·A（LoRA）。所以又快又省，炼出来的适配器也只有一点点大。",
                ),
                (
                    "Training",
                    "The weights of the base do not change. Training adds two small matrices B·A to each projection \
                     (LoRA). That is fast, needs little memory, and gives a small adapter.",
                ),
            ),
            Self::Compare => lang.pick(
                (
                    "前后对比",
                    "留出的记录没有参加训练：它们的损失下降，说明学到的是说话的方式，而不是背下了答案。\
                     困惑度是损失的另一种写法：模型平均在多少个词元之间拿不准，越低越好。下面是同一个问题，训练前后的回答。",
                ),
                (
                    "Before and after",
                    "The held-out records were not trained on. If their loss falls, the model learned a style and \
                     did not memorize answers. The perplexity is the same figure in other words: the number of tokens \
                     between which the model hesitates. Below are the same questions before and after.",
                ),
            ),
            Self::Merge => lang.pick(
                (
                    "合并",
                    "把适配器加回基座：W + s·B·A，在 f32 里相加，只舍入一次。然后从磁盘重新载入，和“基座+适配器”逐项比较：\
                     合并得好不好，要量过才知道。最好懂的是“首选词元一致”：100 个词元里，合并前后有几个选得一样。",
                ),
                (
                    "Merging",
                    "The adapter is added to the base: W + s·B·A, in f32, rounded once. The result is loaded again and \
                     compared with base plus adapter, to prove that the merge is correct. The plainest figure is `same \
                     likeliest token`: how many of 100 tokens both would choose.",
                ),
            ),
            Self::Reload => lang.pick(
                ("从磁盘载入，聊几句", "合并后的文件夹就是一个普通的 Hugging Face 模型，不再需要适配器；聊天模板也在里面。"),
                (
                    "Loaded back, and talking",
                    "The merged folder is an ordinary Hugging Face model without an adapter. It includes the chat \
                     template.",
                ),
            ),
            Self::Yours => lang.pick(
                ("接着做", "刚才的每一步都是一条命令，文件都留着。下面几行可以直接粘贴运行。"),
                ("Go on from here", "Each step above is a command. The lines below use its files, and can be pasted as they are."),
            ),
        }
    }
}

pub fn opening(lang: Lang, root: &Path, data: EmbeddedData) -> String {
    let root = root.display();
    let opening = lang.pick(
        format!(
            "丹炉：在一个 800 万参数的小基座上，把适配器的一生走一遍，大约一分钟。\n\
             基座、数据都在程序里，不联网；所有文件写到 {root}/"
        ),
        format!(
            "danlu: trains, merges and tests an adapter on a base of 8 million parameters, in about a minute.\n\
             Base and data are in the binary, nothing is downloaded. All files are written to {root}/"
        ),
    );
    let note = match data == COOK {
        true => lang.pick(UNLEARNT_ZH, UNLEARNT_EN),
        false => lang.pick("", CHINESE_EN),
    };
    opening + note
}

/// A note about the English data, in Chinese and English. The base has read only Chinese text.
const UNLEARNT_ZH: &str = "\n基座只读过中文：这份英文数据的损失会下降，但回答不会是通顺的英文。";
const UNLEARNT_EN: &str = "\nThe base has read Chinese only: the loss on this English data falls, but the replies are \
     not English sentences.\nA small base that knows English: danlu chat hf:HuggingFaceTB/SmolLM2-135M-Instruct";

/// A note about the Chinese data for an English reader.
const CHINESE_EN: &str = "\nThe base has read Chinese only, so the questions and replies are Chinese.";

/// Formats the held-out loss before and after the training, also as perplexity.
pub fn held_out(lang: Lang, records: u64, before: f64, after: f64) -> String {
    let (p0, p1) = (before.exp(), after.exp());
    lang.pick(
        format!("留出集 {records} 条：损失 {before:.3} → {after:.3}，困惑度 {p0:.1} → {p1:.1}"),
        format!("{records} held-out records: loss {before:.3} → {after:.3}, perplexity {p0:.1} → {p1:.1}"),
    )
}

pub fn before_after(lang: Lang) -> (&'static str, &'static str) {
    lang.pick(("训练前（基座）", "训练后（基座+适配器）"), ("before (base)", "after (base + adapter)"))
}

/// Returns the next commands, each with its purpose. The commands use the files of the demo, so the user need
/// not edit them.
pub fn commands(lang: Lang, root: &Path, data: EmbeddedData) -> Vec<(&'static str, String)> {
    let at = |name: &str| terminal_text::shell_path(&root.join(name));
    let (merged, base, again) = (at("merged"), at(BASE_NAME), at("again"));
    let file = at(data.file);
    vec![
        (lang.pick("和刚炼好的模型聊天", "chat with the merged model"), format!("danlu chat {merged}")),
        (
            lang.pick(
                "改一个设置，再训练一次：秩从 8 改为 16",
                "train again with one setting changed: rank 16, not 8",
            ),
            format!(
                "danlu train --base {base} --data {file} --output {again} --lora-r 16 --lr 1e-3 --max-steps 60"
            ),
        ),
        (lang.pick("和基座比一比", "compare it with the base"), format!("danlu compare {again}")),
        (
            lang.pick("合并成一个模型", "make one model of it"),
            format!("danlu merge {again} --output {again}-merged"),
        ),
    ]
}

/// Returns the closing advice of the demo: use a larger base.
pub fn larger_base(lang: Lang) -> &'static str {
    lang.pick(
        "\n这个小基座只会模仿口气，听不懂问题。想要像样的回答，换一个大些的基座，用自己的数据：danlu new",
        "\nThis small base imitates a tone and understands no question. For sensible answers, take a larger base and \
         your own data: danlu new",
    )
}

/// Lists the files of the demo.
pub fn files(lang: Lang, root: &Path) -> String {
    let root = root.display();
    lang.pick(
        format!(
            "\n{root}/adapter        PEFT 适配器、说明卡片、训练报告 report.html（用浏览器打开看看）\n\
             {root}/merged         合并后的模型、merge_report.json\n\
             {root}/base-8m        基座"
        ),
        format!(
            "\n{root}/adapter        the PEFT adapter, its card, and report.html (open it in a browser)\n\
             {root}/merged         the merged model and merge_report.json\n\
             {root}/base-8m        the base"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_told_in_both_languages() {
        let steps = [Step::Data, Step::Train, Step::Compare, Step::Merge, Step::Reload, Step::Yours];
        assert_eq!(steps.len(), Step::COUNT);
        for (i, step) in steps.into_iter().enumerate() {
            assert_eq!(step.number(), i + 1);
            let (zh, en) = (step.text(Lang::Zh), step.text(Lang::En));
            let is_chinese = |text: &str| text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
            assert!(is_chinese(zh.0) && is_chinese(zh.1), "{step:?}");
            assert!(
                !en.0.is_empty() && !en.1.is_empty() && !is_chinese(en.0) && !is_chinese(en.1),
                "{step:?}"
            );
        }
    }
}
