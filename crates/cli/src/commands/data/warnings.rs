//! Warnings of `data check` and `train` about renamed columns, about lists in a JSON file that are not read,
//! and about the effects of the chat template.

use std::collections::HashSet;

use danlu_data::{
    Columns, Dataset, Record, RecordContent, RecordSource, TemplateEffect, TemplateFinding, foreign_mark,
    is_rendered, record_hashes,
};
use danlu_model::Tokenizer;

use super::place;
use crate::printer::Printer;
use crate::terminal_text;

/// Returns warnings about a file.
pub fn of_file(dataset: &Dataset, printer: &Printer) -> Vec<String> {
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

/// Returns one line for each effect of the chat template. `records` is the number of conversations.
pub fn of_template(findings: &[TemplateFinding], records: usize, printer: &Printer) -> Vec<String> {
    findings.iter().map(|finding| describe(finding, records, printer)).collect()
}

fn describe(finding: &TemplateFinding, records: usize, printer: &Printer) -> String {
    let (zh, en) = match finding.effect {
        TemplateEffect::SystemDropped => ("丢弃系统提示词", "drops a system message"),
        TemplateEffect::QuestionDropped => ("丢弃用户的话", "drops a user message"),
        TemplateEffect::AnswerDropped => ("丢弃答案", "leaves out an answer"),
        TemplateEffect::ThoughtDropped => {
            ("丢弃答案里的思考（<think>）", "drops the reasoning (<think>) of an answer")
        }
        TemplateEffect::CallDropped => ("丢弃工具调用", "leaves out a tool call"),
        TemplateEffect::ToolsDropped => ("不写出工具的定义", "drops the definitions of tools"),
        TemplateEffect::Repeated => ("把一段话写了不止一次", "writes a message more than once"),
        TemplateEffect::PromptDiffers => (
            "在答案前写的文字与生成时不同",
            "writes different text before the last answer and before a generation",
        ),
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

/// Counts records whose texts contain special tokens or marks of another template, documents that look like
/// rendered conversations, and records that are equal to an earlier one.
#[derive(Debug, Default)]
pub struct TextWarnings {
    specials: Option<(usize, RecordSource, String)>,
    rendered: Option<(usize, RecordSource)>,
    foreign: Option<(usize, RecordSource, &'static str)>,
    /// Hashes of all records so far.
    seen: HashSet<u128>,
    repeated: Option<(usize, RecordSource)>,
}

impl TextWarnings {
    /// Adds a record.
    pub fn add(&mut self, record: &Record, tokenizer: &Tokenizer) {
        if !self.seen.insert(record_hashes(&record.content).0) {
            self.repeated.get_or_insert_with(|| (0, record.source.clone())).0 += 1;
        }
        if let Some(mark) = record.content.texts().find_map(|text| foreign_mark(text, tokenizer)) {
            self.foreign.get_or_insert_with(|| (0, record.source.clone(), mark)).0 += 1;
        }
        match &record.content {
            RecordContent::Text(text) if is_rendered(text, tokenizer) => {
                self.rendered.get_or_insert_with(|| (0, record.source.clone())).0 += 1;
            }
            RecordContent::Text(_) => {}
            RecordContent::Chat(chat) => {
                let special = chat.messages.iter().find_map(|message| tokenizer.special_in(&message.content));
                if let Some(token) = special {
                    let first = || (0, record.source.clone(), token.to_owned());
                    self.specials.get_or_insert_with(first).0 += 1;
                }
            }
        }
    }

    /// Returns one warning for each kind of finding.
    pub fn warnings(&self, printer: &Printer) -> Vec<String> {
        let specials = self.specials.as_ref().map(|(count, first, token)| {
            let (records, first) = (terminal_text::counted(*count as u64, "record"), place(first, printer));
            printer.pick(
                format!("{count} 条记录的文字里写着特殊词元，会当作控制符，最早是 {first}的 `{token}`"),
                format!("{records} with a special token in the text, which acts as a control token: first `{token}`, {first}"),
            )
        });
        let rendered = self.rendered.as_ref().map(|(count, first)| {
            let (records, first) = (terminal_text::counted(*count as u64, "document"), place(first, printer));
            printer.pick(
                format!("{count} 条文本是已经渲染好的对话，问题也参与训练，最早在 {first}"),
                format!(
                    "{records} that look like rendered conversations: questions are trained too, first {first}"
                ),
            )
        });
        let foreign = self.foreign.as_ref().map(|(count, first, mark)| {
            let (records, first) = (terminal_text::counted(*count as u64, "record"), place(first, printer));
            printer.pick(
                format!("{count} 条记录的文字里写着对话模板的标记，这个分词器当作普通文字，最早是 {first}的 `{mark}`"),
                format!("{records} with marks of a chat template, which this tokenizer encodes as ordinary text: first `{mark}`, {first}"),
            )
        });
        let repeated = self.repeated.as_ref().map(|(count, first)| {
            let (records, first) = (terminal_text::counted(*count as u64, "record"), place(first, printer));
            printer.pick(
                format!("{count} 条记录与前面的记录完全相同，最早是 {first}"),
                format!("{records} equal to an earlier one, first {first}"),
            )
        });
        specials.into_iter().chain(rendered).chain(foreign).chain(repeated).collect()
    }
}

/// Returns a notice if danlu adds an EOS token after answers, or would add this token without
/// `--add-eos-token=false`.
pub fn added_eos(tokenizer: &Tokenizer, is_added: bool, printer: &Printer) -> Option<String> {
    let end = tokenizer.template().ok()?.added_end()?.to_owned();
    if !is_added {
        return Some(printer.pick(
            "对话模板没有结束词元，按 `--add-eos-token=false` 也不添加：模型学不会停下".to_owned(),
            "the chat template has no end-of-turn token, and `--add-eos-token=false` adds none: the model does not learn to stop"
                .to_owned(),
        ));
    }
    Some(printer.pick(
        format!("对话模板没有结束词元：每个答案后加 `{end}`，并参与训练"),
        format!("the chat template has no end-of-turn token: `{end}` follows each answer and is trained"),
    ))
}
