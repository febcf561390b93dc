//! The texts of the demo in both languages.

use std::path::Path;

use crate::lang::Lang;
use crate::terminal_text;

/// A step of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Shows records, and their trained tokens.
    Data,
    /// Trains.
    Train,
    /// Compares replies before and after.
    Compare,
    /// Merges adapter and base.
    Merge,
    /// Loads the merged model, and chats.
    Reload,
    /// Lists the commands for the user's own files.
    Yours,
}

impl Step {
    /// Number of steps.
    pub const COUNT: usize = 6;

    pub fn number(self) -> usize {
        self as usize + 1
    }

    /// Returns title and explanation.
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
                    "留出的记录没有参加训练：它们的损失下降，说明学到的是说话的方式，而不是背下了答案。下面是同一个问题，训练前后的回答。",
                ),
                (
                    "Before and after",
                    "The held-out records were not trained on. If their loss falls, the model learned a style and \
                     did not memorize answers. Below are the same questions before and after.",
                ),
            ),
            Self::Merge => lang.pick(
                (
                    "合并",
                    "把适配器加回基座：W + s·B·A，在 f32 里相加，只舍入一次。然后从磁盘重新载入，和“基座+适配器”逐项比较：\
                     合并得好不好，要量过才知道。",
                ),
                (
                    "Merging",
                    "The adapter is added to the base: W + s·B·A, in f32, rounded once. The result is loaded again and \
                     compared with base plus adapter, to prove that the merge is correct.",
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
                ("换成你的数据和模型", "刚才的每一步都是一条命令，文件都留着，可以接着玩。"),
                ("Now with your data and your model", "Each step above is a command. Its files are in the output folder."),
            ),
        }
    }
}

/// The introduction.
pub fn opening(lang: Lang, root: &Path) -> String {
    let root = root.display();
    lang.pick(
        format!(
            "丹炉：在一个 800 万参数的小基座上，把适配器的一生走一遍，大约一分钟。\n\
             基座、数据都在程序里，不联网；所有文件写到 {root}/"
        ),
        format!(
            "danlu: trains, merges and tests an adapter on a base of 8 million parameters, in about a minute.\n\
             Base and data are in the binary, nothing is downloaded. All files are written to {root}/"
        ),
    )
}

/// Formats the held-out loss before and after, also as perplexity.
pub fn held_out(lang: Lang, records: u64, before: f64, after: f64) -> String {
    let (p0, p1) = (before.exp(), after.exp());
    lang.pick(
        format!("留出集 {records} 条：损失 {before:.3} → {after:.3}，困惑度 {p0:.1} → {p1:.1}"),
        format!("{records} held-out records: loss {before:.3} → {after:.3}, perplexity {p0:.1} → {p1:.1}"),
    )
}

/// Titles of the two columns.
pub fn before_after(lang: Lang) -> (&'static str, &'static str) {
    lang.pick(("训练前（基座）", "训练后（基座+适配器）"), ("before (base)", "after (base + adapter)"))
}

/// Returns the next commands, each with its purpose.
pub fn commands(lang: Lang, root: &Path) -> Vec<(&'static str, String)> {
    let merged = terminal_text::shell_path(&root.join("merged"));
    vec![
        (lang.pick("和刚炼好的模型聊天", "chat with the merged model"), format!("danlu chat {merged}")),
        (
            lang.pick("看看你的数据会怎样被训练", "check your own data"),
            "danlu data check mine.json --base DIR".to_owned(),
        ),
        (
            lang.pick(
                "用你的数据，训练你的模型（Hugging Face 的 Llama 文件夹）",
                "train your model on it (a Llama folder from Hugging Face)",
            ),
            "danlu train --base DIR --data mine.json --val-size 50 --output out/mine".to_owned(),
        ),
        (lang.pick("和基座比一比", "compare it with the base"), "danlu compare out/mine".to_owned()),
        (
            lang.pick("合并成一个模型", "make one model of it"),
            "danlu merge out/mine --output out/mine-merged".to_owned(),
        ),
    ]
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
