//! The configuration file with a comment on every key.

use std::fmt::Write as _;
use std::path::Path;

use danlu_train::TrainSettings;

use super::proposal::Proposal;
use crate::lang::Lang;
use crate::terminal_text;

/// The text of the file. Each added key is written with a comment.
struct CommentedKeys {
    text: String,
    lang: Lang,
}

impl CommentedKeys {
    /// Appends a key with its value, below a comment in the chosen language.
    fn add(&mut self, name: &str, value: toml::Value, zh: &str, en: &str) {
        let comment = self.lang.pick(zh, en);
        writeln!(self.text, "\n# {comment}\n{name} = {value}").expect("a String takes all text");
    }
}

/// Renders the file. Its first comment is the command that starts the run, with `path`.
pub fn render(proposal: &Proposal, path: &Path, lang: Lang) -> String {
    let word = terminal_text::shell_path(path);
    let text = lang.pick(
        format!("# 开始训练：danlu train --config {word}\n# 各术语的意思：danlu explain\n"),
        format!("# To start: danlu train --config {word}\n# The terms: danlu explain\n"),
    );
    let mut keys = CommentedKeys { text, lang };
    add_files(&mut keys, proposal);
    add_learning(&mut keys, &proposal.run.settings);
    add_passes(&mut keys, proposal);
    add_checkpoints(&mut keys, proposal);
    keys.text
}

/// Adds the base, the data, the output folder and the system message.
fn add_files(keys: &mut CommentedKeys, proposal: &Proposal) {
    let (files, settings) = (&proposal.run.files, &proposal.run.settings);
    let path_value = |path: &Path| toml::Value::from(path.display().to_string());
    keys.add(
        "base",
        path_value(&files.base),
        "基座：文件夹、Hub 上的名字，或 demo（内置的小模型）。",
        "The base: a folder, a Hub name, or demo (the embedded one).",
    );
    keys.add(
        "data",
        toml::Value::Array(files.data.iter().map(|path| path_value(path)).collect()),
        "训练数据，可以有多个文件。",
        "The training data, one or more files.",
    );
    keys.add(
        "output",
        path_value(&files.output),
        "适配器写到这个文件夹，须为新的或空的。",
        "The folder of the adapter, new or empty.",
    );
    if let Some(system) = &settings.default_system {
        keys.add(
            "default_system",
            system.clone().into(),
            "系统消息：模型是谁。训练和聊天都会用到。",
            "The system message: who the model is. Training and chat use it.",
        );
    }
}

/// Adds the size of the adapter, the learning rate and the length of the training.
fn add_learning(keys: &mut CommentedKeys, settings: &TrainSettings) {
    keys.add(
        "lora_r",
        i64::from(settings.lora_r).into(),
        "秩：适配器的大小。翻倍则大小翻倍，效果通常变化很小。",
        "Rank: the size of the adapter. Twice the rank is twice the size, and seldom much better.",
    );
    keys.add(
        "lora_alpha",
        settings.lora_alpha.into(),
        "适配器的输出乘以 alpha / 秩。",
        "The output of the adapter is multiplied by alpha / rank.",
    );
    keys.add(
        "learning_rate",
        settings.learning_rate.into(),
        "学习率：每一步走多远。损失忽上忽下就调小，下降太慢就调大。",
        "How far a step moves. Lower it if the loss jumps, raise it if the loss hardly falls.",
    );
    keys.add(
        "lr_scheduler_type",
        settings.lr_scheduler_type.name().into(),
        "学习率随步数下降的方式。",
        "How the learning rate falls over the steps.",
    );
    match settings.max_steps {
        Some(steps) => keys.add(
            "max_steps",
            (steps as i64).into(),
            "训练多少步。要训练整份数据，请换成 num_train_epochs = 2。",
            "The number of steps. For whole passes over the data, write num_train_epochs = 2 instead.",
        ),
        None => keys.add(
            "num_train_epochs",
            settings.num_train_epochs.into(),
            "数据训练几遍。留出集损失开始上升，就是遍数太多了。",
            "Passes over the data. If the held-out loss rises, there are too many.",
        ),
    }
}

/// Adds the settings on which the memory of a step depends, and the memory limit.
fn add_passes(keys: &mut CommentedKeys, proposal: &Proposal) {
    let settings = &proposal.run.settings;
    keys.add(
        "per_device_train_batch_size",
        (settings.per_device_train_batch_size as i64).into(),
        "一次计算几条记录。内存不够就调小。",
        "Records per pass. Lower it if memory is short.",
    );
    keys.add(
        "gradient_accumulation_steps",
        (settings.gradient_accumulation_steps as i64).into(),
        "几次计算合成一步。",
        "Passes per step.",
    );
    keys.add(
        "max_length",
        (settings.max_length as i64).into(),
        "记录的最大长度（词元）。更长的从问题开头截断。",
        "The longest record in tokens. Longer ones lose the start of their question.",
    );
    if let Some(quantization) = settings.quantization() {
        keys.add(
            "quant",
            quantization.quant_type.to_string().into(),
            "基座用 4 位存储，内存约为四分之一。",
            "The base in 4 bits, in about a quarter of the memory.",
        );
    }
    if let Some(limit) = proposal.run.limits.memory {
        keys.add(
            "memory_limit",
            format!("{limit}B").into(),
            "内存上限。danlu 用重算来换内存，结果不变。",
            "The memory limit. danlu recomputes to stay below it, with equal results.",
        );
    }
}

/// Adds the number of checkpoints and the language of the card.
fn add_checkpoints(keys: &mut CommentedKeys, proposal: &Proposal) {
    let settings = &proposal.run.settings;
    if let Some(kept) = settings.save_total_limit {
        keys.add(
            "save_total_limit",
            (kept as i64).into(),
            "保留最新的几个检查点。中断后用 --resume 继续。",
            "Number of checkpoints to keep: only the newest stay. --resume continues from one.",
        );
    }
    if let Some(language) = proposal.run.card.args.card_lang {
        keys.add("card_lang", language.name().into(), "模型卡片的语言。", "Language of the model card.");
    }
}
