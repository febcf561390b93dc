//! The words of the page, in both languages.

use serde::{Deserialize, Serialize};

/// Language of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Simplified Chinese.
    Zh,
    /// English.
    #[default]
    En,
}

impl Language {
    /// One of two wordings.
    pub fn pick<T>(self, zh: T, en: T) -> T {
        match self {
            Self::Zh => zh,
            Self::En => en,
        }
    }

    pub(crate) fn labels(self) -> &'static Labels {
        match self {
            Self::Zh => &ZH,
            Self::En => &EN,
        }
    }
}

pub(crate) struct Labels {
    pub html_lang: &'static str,
    pub title: &'static str,
    pub on_base: &'static str,
    pub held_out_loss: &'static str,
    pub train_loss: &'static str,
    pub perplexity: &'static str,
    pub speed: &'static str,
    pub memory: &'static str,
    pub planned: &'static str,
    pub trainable: &'static str,
    pub of_parameters: &'static str,
    pub steps: &'static str,
    pub step: &'static str,
    pub tokens: &'static str,
    pub loss: &'static str,
    pub loss_note: &'static str,
    pub raw: &'static str,
    pub smoothed: &'static str,
    pub held_out: &'static str,
    pub learning_rate: &'static str,
    pub tokens_per_second: &'static str,
    pub replies: &'static str,
    pub replies_note: &'static str,
    pub before: &'static str,
    pub after: &'static str,
    pub empty_reply: &'static str,
    pub data: &'static str,
    pub file: &'static str,
    pub format: &'static str,
    pub records: &'static str,
    pub training_records: &'static str,
    pub held_out_records: &'static str,
    pub all_tokens: &'static str,
    pub trained_tokens: &'static str,
    pub longest: &'static str,
    pub shortened: &'static str,
    pub dropped: &'static str,
    pub skipped: &'static str,
    pub settings: &'static str,
    pub not_set: &'static str,
    pub made_by: &'static str,
}

static EN: Labels = Labels {
    html_lang: "en",
    title: "Training report",
    on_base: "a LoRA adapter on",
    held_out_loss: "Held-out loss",
    train_loss: "Training loss",
    perplexity: "perplexity",
    speed: "Speed",
    memory: "Peak memory",
    planned: "planned",
    trainable: "Trained",
    of_parameters: "of {} parameters",
    steps: "steps",
    step: "step",
    tokens: "tokens",
    loss: "Loss",
    loss_note: "Nats per token. Each step sees other records, so its own loss jumps; the smoothed line shows the \
        course. Held-out records are never trained on.",
    raw: "each step",
    smoothed: "smoothed",
    held_out: "held-out",
    learning_rate: "Learning rate",
    tokens_per_second: "Tokens per second",
    replies: "Before and after",
    replies_note: "The same question to the base alone and with the adapter.",
    before: "Before: base",
    after: "After: base + adapter",
    empty_reply: "(empty)",
    data: "Data",
    file: "File",
    format: "Format",
    records: "Records",
    training_records: "Training records",
    held_out_records: "Held-out records",
    all_tokens: "Tokens",
    trained_tokens: "carry a loss",
    longest: "Longest record",
    shortened: "Shortened to fit",
    dropped: "Left out: too long",
    skipped: "Left out: unreadable",
    settings: "Settings",
    not_set: "not set",
    made_by: "Made by",
};

static ZH: Labels = Labels {
    html_lang: "zh-CN",
    title: "训练报告",
    on_base: "LoRA 适配器，基座：",
    held_out_loss: "留出集损失",
    train_loss: "训练损失",
    perplexity: "困惑度",
    speed: "速度",
    memory: "内存峰值",
    planned: "预计",
    trainable: "可训练参数",
    of_parameters: "占全部 {} 个参数",
    steps: "步",
    step: "步",
    tokens: "词元",
    loss: "损失",
    loss_note: "单位：奈特每词元。每一步看到的记录不同，单步损失会跳动；平滑线显示走势。留出集从不参与训练。",
    raw: "每一步",
    smoothed: "平滑",
    held_out: "留出集",
    learning_rate: "学习率",
    tokens_per_second: "每秒词元数",
    replies: "训练前后对比",
    replies_note: "同一个问题，分别由基座和基座加适配器回答。",
    before: "训练前：基座",
    after: "训练后：基座 + 适配器",
    empty_reply: "（空）",
    data: "数据",
    file: "文件",
    format: "格式",
    records: "记录数",
    training_records: "训练记录",
    held_out_records: "留出记录",
    all_tokens: "词元数",
    trained_tokens: "计入损失",
    longest: "最长记录",
    shortened: "截短的记录",
    dropped: "因过长而舍弃",
    skipped: "因无法读取而跳过",
    settings: "设置",
    not_set: "未设置",
    made_by: "由以下程序生成：",
};
