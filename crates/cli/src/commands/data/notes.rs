//! What `data check` and `train` warn of: keys and lists that are not read, and what the chat template does.

use danlu_data::{Columns, Dataset, TemplateEffect, TemplateFinding};
use danlu_model::Tokenizer;

use super::place;
use crate::printer::Printer;
use crate::terminal_text;

/// Warnings about how a file was read.
pub fn about_file(dataset: &Dataset, printer: &Printer) -> Vec<String> {
    let file = terminal_text::printable(&dataset.fingerprint.name);
    let mut notes = Vec::new();
    if let Some(renamed) = renamed(&dataset.aliases) {
        notes.push(
            printer.pick(format!("{file}：{renamed}"), format!("{file}: {renamed} (--columns changes it)")),
        );
    }
    if !dataset.unread_lists.is_empty() {
        let lists: Vec<_> = dataset.unread_lists.iter().map(|name| terminal_text::printable(name)).collect();
        let lists = lists.join(", ");
        notes.push(printer.pick(
            format!("{file}：只读取第一个列表，未读取：{lists}"),
            format!("{file}: only the first list is read, not {lists}"),
        ));
    }
    notes
}

fn renamed(aliases: &Columns) -> Option<String> {
    let pairs: Vec<_> = aliases.pairs().map(|(ours, theirs)| format!("`{theirs}` → `{ours}`")).collect();
    (!pairs.is_empty()).then(|| pairs.join(", "))
}

/// What the chat template does to the records, one line per effect. `records` is the number of conversations.
pub fn about_template(findings: &[TemplateFinding], records: usize, printer: &Printer) -> Vec<String> {
    findings.iter().map(|finding| describe(finding, records, printer)).collect()
}

fn describe(finding: &TemplateFinding, records: usize, printer: &Printer) -> String {
    let (zh, en) = match finding.effect {
        TemplateEffect::SystemDropped => ("丢弃系统提示词", "leaves out a system message"),
        TemplateEffect::QuestionDropped => ("丢弃用户的话", "leaves out a user message"),
        TemplateEffect::AnswerDropped => ("丢弃答案", "leaves out an answer"),
        TemplateEffect::ThoughtDropped => {
            ("丢弃答案里的思考（<think>）", "leaves out the reasoning (<think>) of an answer")
        }
        TemplateEffect::CallDropped => ("丢弃工具调用", "leaves out a tool call"),
        TemplateEffect::ToolsDropped => ("不写出工具的定义", "leaves out the definitions of tools"),
        TemplateEffect::Repeated => ("把一段话写了不止一次", "writes a message more than once"),
        TemplateEffect::Trimmed => ("去掉话两端的空白", "removes white space around a message"),
        _ => (
            "没有在答案后写结束词元，模型学不会停",
            "writes no end token after an answer, so the model never learns to stop",
        ),
    };
    let (count, first) = (finding.count, place(&finding.first, printer));
    printer.pick(
        format!("对话模板{zh}：{records} 条中有 {count} 条，最早在 {first}"),
        format!(
            "the chat template {en}: {count} of {}, first {first}",
            terminal_text::counted(records as u64, "record")
        ),
    )
}

/// The note about an EOS token that danlu adds behind answers.
pub fn about_added_end(tokenizer: &Tokenizer, printer: &Printer) -> Option<String> {
    let end = tokenizer.template().ok()?.added_end()?.to_owned();
    Some(printer.pick(
        format!("对话模板没有结束词元：每个答案后加 `{end}`，并参与训练"),
        format!("the chat template has no end-of-turn token: `{end}` follows each answer and is trained"),
    ))
}
