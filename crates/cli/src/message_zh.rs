//! Chinese for errors and hints.
//!
//! A pattern is the English text with `{}` for each value. The Chinese text takes the values in the same order, or by
//! number. A text without a pattern stays English. Errors show both languages, since people search for the English.

/// Patterns of messages, the most specific first.
const MESSAGES: &[(&str, &str)] = &[
    ("cannot read `{}`: it does not exist", "无法读取 `{}`：文件不存在"),
    ("cannot read `{}`: permission denied", "无法读取 `{}`：没有权限"),
    ("cannot read `{}`: it is a folder{}", "无法读取 `{}`：这是文件夹{}"),
    ("cannot read `{}`: it is UTF-16, expected UTF-8", "无法读取 `{}`：编码是 UTF-16，应为 UTF-8"),
    ("cannot read `{}`: it contains no records", "无法读取 `{}`：里面没有记录"),
    ("cannot read `{}`: every record is invalid; the first: {}", "无法读取 `{}`：所有记录都有错；第一处：{}"),
    ("cannot read `{}`: {}", "无法读取 `{}`：{}"),
    ("cannot load `{}`: it does not exist", "无法加载 `{}`：不存在"),
    ("cannot load `{}`: {}", "无法加载 `{}`：{}"),
    ("cannot write to `{}`: {}", "无法写入 `{}`：{}"),
    ("cannot write `{}`: it exists already", "无法写入 `{}`：文件已存在"),
    ("cannot write `{}`: {}", "无法写入 `{}`：{}"),
    ("cannot create `{}`: {}", "无法创建 `{}`：{}"),
    (
        "cannot train into `{}`: a checkpoint and the adapter need {}, and the disk has {} free",
        "无法训练到 `{}`：检查点与适配器需要 {}，磁盘只剩 {}",
    ),
    ("cannot translate this {} file: `{}` is `{}`", "无法翻译这个 {} 配置：`{}` 是 `{}`"),
    ("cannot reach {}: {}", "无法连接 {}：{}"),
    ("cannot find the model `{}` at {}", "在 {1} 上找不到模型 `{0}`"),
    ("cannot find `{}` at {}", "在 {1} 上找不到 `{0}`"),
    (
        "cannot download `{}`: it needs {} bytes, and the disk of `{}` has {} free",
        "无法下载 `{}`：需要 {} 字节，`{}` 所在磁盘只剩 {}",
    ),
    ("`{}` does not exist", "`{}` 不存在"),
    ("`{}` is not a local folder, and is not downloaded", "`{}` 不是本地文件夹，也没有下载"),
    ("`{}` is not a folder", "`{}` 不是文件夹"),
    ("`{}` is gated: {}", "`{}` 需要先申请访问权限：{}"),
    (
        "`{}` is neither an adapter nor a model: it has no `adapter_config.json` and no `config.json`",
        "`{}` 既不是适配器也不是模型：没有 `adapter_config.json` 和 `config.json`",
    ),
    ("`{}` is an adapter, expected a base model", "`{}` 是适配器，应为基座模型"),
    ("`{}` is an adapter, expected a base", "`{}` 是适配器，应为基座"),
    ("`{}` is a model, expected an adapter", "`{}` 是模型，应为适配器"),
    ("`{}` is in 4 bits already: `{}`", "`{}` 已经是 4 位：`{}`"),
    ("`{}` holds a run already", "`{}` 里已经有一次训练"),
    ("`{}` holds no run to resume", "`{}` 里没有可继续的训练"),
    ("`{}` is missing: {}", "缺少 `{}`：{}"),
    ("`{}` is missing", "缺少 `{}`"),
    ("`{}` are missing", "缺少 `{}`"),
    ("`{}` needs a value", "`{}` 需要一个值"),
    ("`{}` is given twice", "`{}` 写了两次"),
    ("`{}` and `{}` cannot be used together", "`{}` 与 `{}` 不能同时使用"),
    ("`{}` is {}, expected {}", "`{}` 是 {}，应为 {}"),
    ("unknown command `{}`", "没有命令 `{}`"),
    ("unknown flag `{}`", "没有参数 `{}`"),
    ("unknown key `{}`", "没有设置项 `{}`"),
    ("unexpected argument `{}`", "多余的参数 `{}`"),
    ("invalid value `{}` for `{}`: {}", "`{1}` 的值 `{0}` 无效：{2}"),
    ("the run needs at least {} of memory, and {} is available", "训练至少需要 {} 内存，可用的只有 {}"),
    ("the run needs at least {} of memory, and the limit is {}", "训练至少需要 {} 内存，上限是 {}"),
    ("{} tokens of {} exceed the model's context of {}", "{1} 的 {0} 个词元超过模型的上下文长度 {2}"),
    ("another danlu is writing to `{}`", "另一个 danlu 正在写 `{}`"),
    ("no record is left to train on: {} dropped, {} bad", "没有可训练的记录：丢弃 {} 条，坏记录 {} 条"),
    ("no record is left to train on: {}", "没有可训练的记录：{}"),
    ("{} bad records", "{} 条坏记录"),
    ("{} bad record", "{} 条坏记录"),
    (
        "the adapter `{}` was trained on `{}`, which is no model folder here",
        "适配器 `{}` 是在 `{}` 上训练的，这里没有这个模型文件夹",
    ),
    (
        "the merged model differs from base plus adapter: only its report was saved",
        "合并后的模型与“基座+适配器”不一致：只保存了报告",
    ),
    ("merging into `{}` needs {} bytes and the disk has {} free", "合并到 `{}` 需要 {} 字节，磁盘只剩 {}"),
    ("the prompt is {} tokens, and the context holds {}", "提示有 {} 个词元，上下文只能放 {} 个"),
    ("there is no token: run `danlu login` before the push", "没有令牌：请先运行 `danlu login`"),
    ("the token of `{}` is read-only", "`{}` 的令牌只读"),
    ("{} rejected the token{}", "{} 拒绝了令牌{}"),
    ("stopped before the merge was complete: no files were left", "合并完成前已停止：没有留下文件"),
    ("stopped", "已停止"),
    ("step {}: the {} is {}; its records: {}", "第 {} 步：{} 为 {}；所用记录：{}"),
];

/// Patterns for parts of hints. `; ` separates the parts.
const HINTS: &[(&str, &str)] = &[
    ("check the path for a typing mistake", "检查路径是否写错"),
    ("check the path", "检查路径"),
    ("did you mean `{}`?", "是不是 `{}`？"),
    ("`{} --help` lists the flags", "`{} --help` 列出全部参数"),
    ("`{} --help` lists the commands", "`{} --help` 列出全部命令"),
    ("name the folder of an adapter, a merged model or a base", "请给出适配器、合并后的模型或基座的文件夹"),
    ("if it is on the Hub, write `{}`, or run `{}` first", "如果在 Hub 上，请写 `{}`，或先运行 `{}`"),
    ("there is no folder `{}` here", "本机没有文件夹 `{}`"),
    ("`{}` and `--yes` download without asking", "`{}` 与 `--yes` 不询问直接下载"),
    (
        "continue it with `--resume`, or start a new run in a new folder",
        "用 `--resume` 继续，或换一个新文件夹",
    ),
    ("omit `--resume` to start one", "去掉 `--resume` 即可新开一次训练"),
    ("use `{}`, which fits", "改用 `{}` 就放得下"),
    (
        "use a smaller model, or quantize a 16-bit base with `--quant nf4`",
        "换更小的模型，或用 `--quant nf4` 量化 16 位基座",
    ),
    ("use at most {}, or a model with a longer context", "最多 {}，或换上下文更长的模型"),
    ("correct them, or skip them with `--skip-bad`", "改正它们，或用 `--skip-bad` 跳过"),
    (
        "correct them, or skip them with `danlu train --skip-bad`",
        "改正它们，或用 `danlu train --skip-bad` 跳过",
    ),
    (
        "correct them (`{}` lists all), or skip them with `--skip-bad`",
        "改正它们（`{}` 列出全部），或用 `--skip-bad` 跳过",
    ),
    ("free some space, or choose another --output", "清理磁盘，或换一个 --output"),
    (
        "use a wider type, `--dtype f32`, or raise `--threshold` if the difference is acceptable",
        "用更宽的类型 `--dtype f32`；差别可以接受时调高 `--threshold`",
    ),
    ("wait until it finishes, or stop it", "等它结束，或停止它"),
    ("name its folder with `{}`", "用 `{}` 指出它的文件夹"),
    ("save it as UTF-8", "另存为 UTF-8"),
    ("use a file for supervised fine-tuning with LoRA", "请用 LoRA 监督微调的配置"),
    ("danlu trains nothing else", "danlu 只做这一种训练"),
    ("use `--memory-limit`", "用 `--memory-limit`"),
    ("try a larger `--max-length`", "试试更大的 `--max-length`"),
    ("run `danlu login`{}", "运行 `danlu login`{}"),
];

/// Returns a message in Chinese, or `None` without a pattern for it.
pub fn message(text: &str) -> Option<String> {
    translate(MESSAGES, text)
}

/// Returns a hint in Chinese, or `None` if a part of it has no pattern.
pub fn hint(text: &str) -> Option<String> {
    let parts: Option<Vec<String>> = text.split("; ").map(|part| translate(HINTS, part)).collect();
    parts.map(|parts| parts.join("；"))
}

fn translate(patterns: &[(&str, &str)], text: &str) -> Option<String> {
    patterns.iter().find_map(|(english, chinese)| {
        let values = values(english, text)?;
        Some(fill(chinese, &values))
    })
}

/// Puts values into a Chinese text: `{}` takes the next one, `{1}` the second.
fn fill(chinese: &str, values: &[&str]) -> String {
    let (mut out, mut rest, mut next) = (String::new(), chinese, 0);
    while let Some((before, after)) = rest.split_once('{') {
        let (number, after) = after.split_once('}').unwrap_or((after, ""));
        let index = number.parse().unwrap_or(next);
        next += usize::from(number.is_empty());
        out += before;
        out += values.get(index).copied().unwrap_or_default();
        rest = after;
    }
    out + rest
}

/// Returns the values of `text` at the places of `pattern`.
fn values<'a>(pattern: &str, text: &'a str) -> Option<Vec<&'a str>> {
    let mut pieces = pattern.split("{}");
    let mut rest = text.strip_prefix(pieces.next()?)?;
    let mut found = Vec::new();
    let pieces: Vec<&str> = pieces.collect();
    for (i, piece) in pieces.iter().enumerate() {
        let is_last = i + 1 == pieces.len();
        let at = match (is_last, piece.is_empty()) {
            (true, _) => rest.len().checked_sub(piece.len()).filter(|at| rest.get(*at..) == Some(*piece))?,
            (false, _) => rest.find(piece)?,
        };
        found.push(&rest[..at]);
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_move_into_the_chinese_text() {
        for (english, chinese) in [
            ("cannot read `a b`: it does not exist", "无法读取 `a b`：文件不存在"),
            (
                "invalid value `x` for `--lr <N>`: expected a number",
                "`--lr <N>` 的值 `x` 无效：expected a number",
            ),
            ("unknown flag `--foo`", "没有参数 `--foo`"),
            ("step 3: the loss is NaN; its records: a:1", "第 3 步：loss 为 NaN；所用记录：a:1"),
        ] {
            assert_eq!(message(english).as_deref(), Some(chinese));
        }
        assert_eq!(message("something else"), None);
        assert_eq!(
            message("cannot read `{}`: it does not exist").as_deref(),
            Some("无法读取 `{}`：文件不存在")
        );
    }

    #[test]
    fn a_hint_is_translated_as_a_whole_or_not_at_all() {
        assert_eq!(hint("did you mean `train`?").as_deref(), Some("是不是 `train`？"));
        assert_eq!(
            hint("check the path; `hf:a/b` and `--yes` download without asking").as_deref(),
            Some("检查路径；`hf:a/b` 与 `--yes` 不询问直接下载")
        );
        assert_eq!(hint("check the path; and something new"), None);
    }

    #[test]
    fn each_pattern_has_as_many_places_in_both_languages() {
        for (english, chinese) in MESSAGES.iter().chain(HINTS) {
            let places = english.matches("{}").count();
            let numbered = (0..places).filter(|i| chinese.contains(&format!("{{{i}}}"))).count();
            assert_eq!(chinese.matches("{}").count() + numbered, places, "{english}");
        }
    }
}
