//! Finds what a chat template does to the messages of each record, with markers in place of their texts.
//!
//! Records of one shape (the same roles, thoughts and outer white space) are rendered once.

use std::collections::HashMap;

use danlu_model::{ChatTemplate, Message, Tokenizer};
use serde_json::json;

use crate::{
    Encoded, Truncation,
    record::{Record, RecordContent, RecordSource, TurnLoss},
};

/// First marker. Plane 16 is for private use, so no text has these characters by chance.
const FIRST_MARKER: u32 = 0x10_0000;

/// White space around a marker. A template that trims removes it, and none writes it.
const BLANK: char = '\u{2003}';

/// The end of a thought inside an answer.
const THOUGHT_END: &str = "</think>";

/// Message keys that hold an answer's reasoning.
const REASONING_KEYS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// What a template does to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TemplateEffect {
    /// It does not write a system message.
    SystemDropped,
    /// It does not write a user message.
    QuestionDropped,
    /// It does not write an answer.
    AnswerDropped,
    /// It does not write the thought (`<think>…</think>`) of an answer.
    ThoughtDropped,
    /// It does not write a tool call.
    CallDropped,
    /// It does not describe the record's tools.
    ToolsDropped,
    /// It writes a message more than once.
    Repeated,
    /// It removes white space around a message.
    Trimmed,
    /// It writes other text before the last answer than before a generation.
    PromptDiffers,
    /// No token that stops a generation follows an answer.
    EndMissing,
}

/// One effect, with the records it concerns.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateFinding {
    /// The effect.
    pub effect: TemplateEffect,
    /// Number of records with the effect.
    pub count: usize,
    /// The first of them.
    pub first: RecordSource,
}

/// What matters of a message for a template: its role, and the traits that templates act upon.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Trait {
    role: String,
    thinks: bool,
    /// Whether the reasoning stands under this key of its own.
    reasoning_key: Option<&'static str>,
    calls: bool,
    blank_before: bool,
    blank_after: bool,
}

impl Trait {
    fn of(message: &Message) -> Self {
        Self {
            role: message.role.clone(),
            thinks: message.content.contains(THOUGHT_END),
            reasoning_key: REASONING_KEYS.into_iter().find(|key| message.extra.contains_key(*key)),
            calls: message.extra.contains_key("tool_calls"),
            blank_before: message.content.starts_with(char::is_whitespace),
            blank_after: message.content.ends_with(char::is_whitespace),
        }
    }
}

/// Collects the effects of a template over the records of a run.
#[derive(Debug)]
pub struct TemplateAudit<'a> {
    tokenizer: &'a Tokenizer,
    /// Effects by the traits of all messages, and whether the record has tools.
    shapes: HashMap<(Vec<Trait>, bool), Vec<TemplateEffect>>,
    findings: Vec<TemplateFinding>,
    records: usize,
}

impl<'a> TemplateAudit<'a> {
    /// An audit of the tokenizer's template.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, shapes: HashMap::new(), findings: Vec::new(), records: 0 }
    }

    /// Adds a record. `encoded` is empty for a dropped one.
    pub fn add(&mut self, record: &Record, encoded: &Encoded) {
        let (RecordContent::Chat(chat), Ok(template)) = (&record.content, self.tokenizer.template()) else {
            return;
        };
        self.records += 1;
        let shape = (chat.messages.iter().map(Trait::of).collect(), !chat.tools.is_empty());
        let effects =
            self.shapes.entry(shape).or_insert_with_key(|(shape, tools)| effects(shape, *tools, template));
        let effects = effects.clone();
        for effect in effects {
            self.count(effect, record);
        }
        let is_whole = |loss: &TurnLoss| !matches!(loss, TurnLoss::Parts(_));
        if chat.loss.iter().all(is_whole) && !self.every_answer_ends(encoded) {
            self.count(TemplateEffect::EndMissing, record);
        }
    }

    /// Whether each run of trained tokens ends with one that stops a generation.
    fn every_answer_ends(&self, encoded: &Encoded) -> bool {
        if matches!(encoded.truncation, Truncation::Dropped { .. }) {
            return true;
        }
        let (ids, trained) = (&encoded.sequence.ids, &encoded.sequence.trained);
        let is_last = |at: &usize| trained[*at] && !trained.get(at + 1).copied().unwrap_or(false);
        (0..ids.len()).filter(is_last).all(|at| self.tokenizer.stop_ids().contains(&ids[at]))
    }

    fn count(&mut self, effect: TemplateEffect, record: &Record) {
        match self.findings.iter_mut().find(|finding| finding.effect == effect) {
            Some(finding) => finding.count += 1,
            None => self.findings.push(TemplateFinding { effect, count: 1, first: record.source.clone() }),
        }
    }

    /// Number of conversations that were added.
    pub fn records(&self) -> usize {
        self.records
    }

    /// The effects found, in the order of [`TemplateEffect`].
    pub fn into_findings(mut self) -> Vec<TemplateFinding> {
        self.findings.sort_by_key(|finding| finding.effect);
        self.findings
    }
}

/// Stands in the definition of a tool.
const TOOL_MARKER: char = '\u{10fffd}';

/// The marker of a message's text, or of its reasoning or call.
fn marker(index: usize, part: u32) -> char {
    char::from_u32(FIRST_MARKER + 3 * index as u32 + part).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// A message of this shape, with markers for its parts.
fn probe((index, part): (usize, &Trait)) -> Message {
    let blank = |is_there: bool| if is_there { String::from(BLANK) } else { String::new() };
    let thought = match part.thinks {
        true => format!("<think>\n{}\n{THOUGHT_END}\n\n", marker(index, 1)),
        false => String::new(),
    };
    let (before, after) = (blank(part.blank_before), blank(part.blank_after));
    let mut message = Message::new(&part.role, format!("{before}{thought}{}{after}", marker(index, 0)));
    if let Some(key) = part.reasoning_key {
        message.extra.insert(key.to_owned(), marker(index, 1).to_string().into());
    }
    if part.calls {
        let arguments = json!({ "a": marker(index, 2).to_string() });
        let call =
            json!([{ "id": "0", "type": "function", "function": { "name": "f", "arguments": arguments } }]);
        message.extra.insert("tool_calls".to_owned(), call);
    }
    message
}

/// Renders a conversation of this shape with markers, and compares what comes out. Empty if the template
/// rejects it.
fn effects(shape: &[Trait], has_tools: bool, template: &ChatTemplate) -> Vec<TemplateEffect> {
    let messages: Vec<Message> = shape.iter().enumerate().map(probe).collect();
    let tool = json!({ "type": "function", "function": { "name": TOOL_MARKER.to_string(), "description": "", "parameters": {} } });
    let with_tools = has_tools.then(|| template.with_tools(&[tool]));
    let template = with_tools.as_ref().unwrap_or(template);
    let Ok(text) = template.render(&messages, false) else { return Vec::new() };
    let mut found = Vec::new();
    if has_tools && !text.contains(TOOL_MARKER) {
        found.push(TemplateEffect::ToolsDropped);
    }
    for (index, part) in shape.iter().enumerate() {
        let dropped = match part.role.as_str() {
            "system" => TemplateEffect::SystemDropped,
            "assistant" => TemplateEffect::AnswerDropped,
            _ => TemplateEffect::QuestionDropped,
        };
        match text.matches(marker(index, 0)).count() {
            // Templates write a call in place of the text.
            0 if !part.calls => found.push(dropped),
            0 | 1 => {}
            _ => found.push(TemplateEffect::Repeated),
        }
        let is_whole = text.contains(marker(index, 0));
        if (part.thinks && is_whole || part.reasoning_key.is_some()) && !text.contains(marker(index, 1)) {
            found.push(TemplateEffect::ThoughtDropped);
        }
        if part.calls && !text.contains(marker(index, 2)) {
            found.push(TemplateEffect::CallDropped);
        }
    }
    let blanks = |text: &str| text.matches(BLANK).count();
    let written: usize = messages.iter().map(|message| blanks(&message.content)).sum();
    if blanks(&text) < written && found.is_empty() {
        found.push(TemplateEffect::Trimmed);
    }
    if let Some(last) = shape.iter().rposition(|part| part.role == "assistant")
        && let Ok(prompt) = template.render(&messages[..last], true)
        && !text.starts_with(&prompt)
    {
        found.push(TemplateEffect::PromptDiffers);
    }
    found.sort();
    found.dedup();
    found
}
