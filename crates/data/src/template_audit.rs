//! Detects how a chat template changes the messages of each record. The template renders markers instead of
//! the texts, and the output is searched for these markers.
//!
//! Records whose messages agree in role, reasoning, tool calls and white space share one rendering.

use std::collections::HashMap;

use danlu_model::{ChatTemplate, Message, Tokenizer};
use serde_json::json;

use crate::{
    EncodedRecord, Truncation,
    record::{Record, RecordContent, RecordSource, TurnLoss},
};

/// The first marker. Markers are characters of plane 16, which is for private use, so ordinary text does not
/// contain them.
const FIRST_MARKER: u32 = 0x10_0000;

/// White space around each marker. A template that trims texts removes this character, and no template writes
/// this character itself.
const BLANK: char = '\u{2003}';

const THOUGHT_END: &str = "</think>";

/// Message keys for the reasoning of an answer.
const REASONING_KEYS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// An effect of a chat template on a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TemplateEffect {
    /// The template omits a system message.
    SystemDropped,
    /// The template omits a user message.
    QuestionDropped,
    /// The template omits an answer.
    AnswerDropped,
    /// The template omits the reasoning (`<think>…</think>`) of an answer.
    ThoughtDropped,
    /// The template omits a tool call.
    CallDropped,
    /// The template omits the definitions of tools.
    ToolsDropped,
    /// The template writes a message more than once.
    Repeated,
    /// The template removes white space around a message.
    Trimmed,
    /// The text before the last answer differs from the prompt that chat would use for this answer.
    PromptDiffers,
    /// No token that stops generation follows an answer.
    EndMissing,
}

/// An effect of the template, and the number of records with this effect.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateFinding {
    /// The effect.
    pub effect: TemplateEffect,
    /// Number of records with the effect.
    pub count: usize,
    /// The first record with the effect.
    pub first: RecordSource,
}

/// The properties of a message that a template may depend on: the role, and the parts of the message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Trait {
    role: String,
    thinks: bool,
    /// Key of the message's reasoning, if the message has such a key.
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

/// Collects the effects of a template on the records of a run.
#[derive(Debug)]
pub struct TemplateAudit<'a> {
    tokenizer: &'a Tokenizer,
    /// Effects for each combination of the traits of all messages and the presence of tools.
    shapes: HashMap<(Vec<Trait>, bool), Vec<TemplateEffect>>,
    findings: Vec<TemplateFinding>,
    records: usize,
}

impl<'a> TemplateAudit<'a> {
    /// Creates an audit of the tokenizer's template.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, shapes: HashMap::new(), findings: Vec::new(), records: 0 }
    }

    /// Adds a conversation, and ignores a document. `encoded` is empty if the record was dropped.
    pub fn add(&mut self, record: &Record, encoded: &EncodedRecord) {
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

    /// Returns whether each range of trained tokens ends with a token that stops generation.
    fn every_answer_ends(&self, encoded: &EncodedRecord) -> bool {
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

    /// Returns the number of conversations that were added.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Returns the effects in the order of [`TemplateEffect`].
    pub fn into_findings(mut self) -> Vec<TemplateFinding> {
        self.findings.sort_by_key(|finding| finding.effect);
        self.findings
    }
}

/// The marker inside the definition of a tool.
const TOOL_MARKER: char = '\u{10fffd}';

/// Returns the marker for one part of a message: its text, its reasoning or its tool call.
fn marker(index: usize, part: u32) -> char {
    char::from_u32(FIRST_MARKER + 3 * index as u32 + part).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Creates a message that has these traits and contains markers.
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

/// Renders messages with these traits and returns the effects of the template. The list is empty if the
/// template rejects the conversation.
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
            // A template may write the tool call instead of the text.
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
