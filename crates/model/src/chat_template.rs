//! Chat templates. A template renders a conversation to text, and returns the byte ranges of the assistant's
//! messages.

use std::collections::{BTreeMap, HashSet};
use std::error::Error as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ModelError;
use crate::guarded_thread::{self, NoResult, WorkLimits};
use crate::jinja::{self, BASE_FUEL, Clock, Raised};
use crate::template_rewrite;

/// Maximum size of a template. Published templates are smaller than 64 kB.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
const NAME: &str = "chat";

/// Limits of one rendering, which grow with the conversation. An endless template usually runs out of fuel
/// (instructions and text) long before it reaches these limits.
const BASE_LIMITS: WorkLimits = WorkLimits { time: Duration::from_secs(5), bytes: 160 << 20 };

/// Maximum size of a rendered text in bytes. Each byte of the conversation raises this limit by 16 bytes.
const BASE_OUTPUT: usize = 1 << 20;

/// Fuel (instructions and text) that an ordinary rendering uses. The amount grows with the conversation.
const ORDINARY_FUEL: u64 = 50_000;

/// Maximum fuel (instructions and text) that all renderings of a template together may use beyond
/// [`ORDINARY_FUEL`]. Using this much fuel takes a few seconds.
const MAX_EXCESS_FUEL: u64 = 100_000_000;

/// If this many consecutive renderings run out of fuel, the template is not rendered again.
const MAX_EXHAUSTED: u64 = 3;

const OUT_OF_FUEL: &str = "it does far more work than a conversation needs";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Author of the message: `system`, `user`, `assistant` or another role that the template accepts.
    pub role: String,
    /// Text of the message.
    pub content: String,
    /// Other keys that the template may read, such as `tool_calls`. A key `content` replaces the text of the
    /// message.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// Returns a message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: serde_json::Map::new() }
    }
}

/// A rendered conversation, with the byte ranges of the assistant's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Text of the whole conversation.
    pub text: String,
    /// Byte ranges in `text`, one for each message of the assistant, in ascending order. Each range includes
    /// the end-of-turn token.
    pub spans: Vec<Range<usize>>,
}

/// A Jinja chat template that renders conversations as transformers does.
#[derive(Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    env: Arc<Environment<'static>>,
    spent: Arc<Spent>,
    clock: Clock,
    variables: BTreeMap<String, String>,
    marks_generation: bool,
    end_of_turn: Option<String>,
    added_end: Option<String>,
    turn_starts: Vec<String>,
    default_system: Option<String>,
    values: BTreeMap<String, serde_json::Value>,
    tools: Value,
    tools_bytes: usize,
    /// The template for conversations with tools, if the model has a separate one.
    tool_use: Option<Arc<ChatTemplate>>,
}

/// Fuel that the renderings of a template have used. All copies of the template share this counter.
#[derive(Default)]
struct Spent {
    /// Fuel used beyond the ordinary amount.
    excess: AtomicU64,
    /// Number of consecutive renderings, up to the latest one, that ran out of fuel.
    exhausted: AtomicU64,
    /// The reason why the template is not rendered again.
    abandoned: OnceLock<String>,
}

impl Spent {
    /// Counts the fuel (instructions and text) that a rendering used beyond the ordinary amount. Abandons the
    /// template if its renderings use too much fuel in total, or if three consecutive renderings run out of
    /// fuel.
    fn add(&self, excess: u64, is_exhausted: bool) {
        let excess = excess + self.excess.fetch_add(excess, Ordering::Relaxed);
        let in_a_row = match is_exhausted {
            true => 1 + self.exhausted.fetch_add(1, Ordering::Relaxed),
            false => {
                self.exhausted.store(0, Ordering::Relaxed);
                0
            }
        };
        if excess > MAX_EXCESS_FUEL || in_a_row >= MAX_EXHAUSTED {
            self.abandoned.get_or_init(|| OUT_OF_FUEL.to_owned());
        }
    }
}

impl ChatTemplate {
    /// Compiles `source`, which was read from `path`.
    ///
    /// `variables` are the named tokens (`bos_token`, `eos_token`, ...) that the template may write.
    /// `special_tokens` are the texts of all special tokens, including the end-of-turn token.
    ///
    /// # Errors
    /// If the template is not valid Jinja, or is too long.
    pub fn new(
        path: &Path,
        source: &str,
        variables: BTreeMap<String, String>,
        special_tokens: &[String],
    ) -> Result<Self, ModelError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let message = format!("it is {} bytes long, at most {MAX_TEMPLATE_BYTES} are read", source.len());
            return Err(ModelError::Template { path: path.to_owned(), line: None, message });
        }
        // Jinja converts the line breaks of a template, so a template of Windows renders the same text.
        let unix = source.replace("\r\n", "\n").replace('\r', "\n");
        let (rewritten, marks_generation) = jinja::rewrite_generation(&unix);
        let rewritten = template_rewrite::bound_values(&rewritten, &jinja::syntax()).map_err(|e| {
            ModelError::Template { path: path.to_owned(), line: Some(e.line), message: e.message }
        })?;
        let clock = Clock::system();
        let (env, undeclared) = compile(path, rewritten, clock.clone())?;
        let mut template = Self {
            path: path.to_owned(),
            source: source.to_owned(),
            env: Arc::new(env),
            spent: Arc::default(),
            clock,
            variables,
            marks_generation,
            end_of_turn: None,
            added_end: None,
            turn_starts: Vec::new(),
            default_system: None,
            values: BTreeMap::new(),
            tools: Value::from(()),
            tools_bytes: 0,
            tool_use: None,
        };
        template.check_names(undeclared)?;
        template.end_of_turn = template.find_end_of_turn(special_tokens);
        if template.end_of_turn.is_none() {
            template.turn_starts = template.find_turn_starts(special_tokens);
            template.end_of_turn = template.turn_starts.first().cloned();
        }
        if template.end_of_turn.is_none() {
            template.added_end = template.find_missing_end(special_tokens);
            template.end_of_turn.clone_from(&template.added_end);
        }
        // The date is fixed, because a default system message with today's date would be different tomorrow.
        template.clock.set(Some(0));
        template.default_system = template.find_default_system();
        template.clock.set(None);
        Ok(template)
    }

    /// Sets the template for conversations with tools.
    pub fn with_tool_use(self, tool_use: Self) -> Self {
        Self { tool_use: Some(Arc::new(tool_use)), ..self }
    }

    /// Rejects a template that writes an undefined name such as `user_token`, because the name would render
    /// as empty text. The seven standard names may be undefined, because transformers renders them as empty
    /// text too.
    fn check_names(&self, undeclared: HashSet<String>) -> Result<(), ModelError> {
        const STANDARD: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
        const GIVEN: [&str; 5] =
            ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"];
        let is_missing = |name: &String| {
            let is_known = STANDARD.contains(&name.as_str())
                || GIVEN.contains(&name.as_str())
                || self.variables.contains_key(name);
            let uses = name_uses(&self.source, name);
            let is_token = name.ends_with("_token");
            !is_known && !uses.is_tested && (is_token || uses.is_written)
        };
        match undeclared.into_iter().filter(is_missing).min() {
            None => Ok(()),
            Some(name) => {
                let message = format!("it writes `{name}`, which no file of the tokenizer defines");
                Err(ModelError::Template { path: self.path.clone(), line: None, message })
            }
        }
    }

    /// Returns a copy that passes these tools to the template.
    pub fn with_tools(&self, tools: &[serde_json::Value]) -> Self {
        let tools_bytes = tools.iter().map(text_bytes).sum();
        let template = self.tool_use.as_deref().unwrap_or(self).clone();
        Self { tools: Value::from(Serde(tools)), tools_bytes, values: self.values.clone(), ..template }
    }

    /// Returns a copy that passes `value` to the template under `name`, such as `enable_thinking`.
    pub fn with_value(&self, name: &str, value: serde_json::Value) -> Self {
        let mut values = self.values.clone();
        values.insert(name.to_owned(), value);
        Self { values, ..self.clone() }
    }

    /// Returns a copy that does not append an EOS token to answers. See [`ChatTemplate::added_end`].
    pub fn without_added_end(&self) -> Self {
        let end_of_turn = self.end_of_turn.clone().filter(|_| self.added_end.is_none());
        Self { added_end: None, end_of_turn, ..self.clone() }
    }

    /// Returns whether the template uses the current date.
    pub fn asks_for_date(&self) -> bool {
        self.source.contains("strftime_now")
            || self.tool_use.as_ref().is_some_and(|other| other.asks_for_date())
    }

    /// Returns the date that the template would get now, in the form `YYYY-MM-DD`.
    pub fn today(&self) -> String {
        self.clock.date()
    }

    /// Fixes the template's time to `seconds` since 1970. The time of all clones is fixed too.
    pub fn stop_clock(&self, seconds: u64) {
        self.clock.set(Some(seconds));
        if let Some(tool_use) = &self.tool_use {
            tool_use.stop_clock(seconds);
        }
    }

    /// Returns the Jinja text, unchanged.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the SHA-256 of the Jinja text, in hexadecimal.
    pub fn sha256(&self) -> String {
        hex::encode(Sha256::digest(self.source.as_bytes()))
    }

    /// Returns the special token that ends an assistant's turn: the first special token after the text of the
    /// message.
    pub fn end_of_turn(&self) -> Option<&str> {
        self.end_of_turn.as_deref()
    }

    /// Returns the special tokens that begin the turn after an answer, if the template writes no token at the
    /// end of an answer. For example, `<|user|>` of GLM-4 ends the answer of the assistant. The first of
    /// these tokens begins the turn of the user. danlu appends the first token to a conversation that ends
    /// with an answer.
    pub fn turn_starts(&self) -> &[String] {
        &self.turn_starts
    }

    /// If the template writes no end token, returns the EOS token that danlu appends to each answer.
    pub fn added_end(&self) -> Option<&str> {
        self.added_end.as_deref()
    }

    /// Returns the system message that the template adds to a conversation without a system message.
    pub fn default_system(&self) -> Option<&str> {
        self.default_system.as_deref()
    }

    /// Renders a conversation. With `add_generation_prompt`, the text ends at the position where the
    /// assistant's reply starts.
    ///
    /// # Errors
    /// If the template raises an exception, fails, or exceeds the work limit.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ModelError> {
        Ok(self.render_marked(messages, add_generation_prompt)?.text)
    }

    /// Renders a conversation and finds the byte ranges (spans) of the assistant's messages.
    ///
    /// A template with `{% generation %}` marks the spans itself. If an end-of-turn token follows such a
    /// span, the token is added to the span. Without this token, the model would not learn to stop.
    ///
    /// For other templates, the span of message `i` is the text of `messages[..=i]` without the text of
    /// `messages[..i]` and without the generation prompt. The span ends with the end-of-turn token. A line
    /// break after that token is excluded. Some templates render a message differently if other messages
    /// follow. For these templates, the span is the part of the text that changes if the content of the
    /// message is replaced.
    ///
    /// # Errors
    /// The errors of [`ChatTemplate::render`]. Also returns an error if no span is found for a message.
    pub fn assistant_spans(&self, messages: &[Message]) -> Result<Rendered, ModelError> {
        let mut rendered = self.render_marked(messages, false)?;
        if self.marks_generation {
            let header = self.generation_header(messages, &rendered.text);
            let Rendered { text, spans } = &mut rendered;
            for span in spans {
                *span = self.marked_answer(text, span.clone(), &header);
            }
            return Ok(rendered);
        }
        let mut last = 0;
        for (index, message) in messages.iter().enumerate() {
            if message.role != "assistant" {
                continue;
            }
            let span = match self.span_by_prefix(messages, index, &rendered.text) {
                Some(span) => span,
                None => self.span_of_answer(messages, index, &rendered.text)?,
            };
            if span.start < last {
                let reason = "its text lies before that of an earlier message".to_owned();
                return Err(ModelError::NoMask { index, reason });
            }
            last = span.end;
            if !span.is_empty() {
                rendered.spans.push(span);
            }
        }
        Ok(rendered)
    }

    /// Renders the conversation and finds the spans of the messages at `indices`, which must ascend. A span
    /// contains the message's text and its end-of-turn token.
    ///
    /// If `indices` are all assistant messages, the spans are those of [`ChatTemplate::assistant_spans`]. The
    /// number of these spans may differ from the number of indices. For any other indices, there is one span
    /// per index.
    ///
    /// # Errors
    /// The errors of [`ChatTemplate::assistant_spans`].
    pub fn message_spans(
        &self,
        messages: &[Message],
        indices: &[usize],
    ) -> Result<(String, Vec<Range<usize>>), ModelError> {
        let is_answer = |index: &usize| messages[*index].role == "assistant";
        let answers: Vec<usize> = (0..messages.len()).filter(is_answer).collect();
        if indices == answers {
            let Rendered { text, spans } = self.assistant_spans(messages)?;
            return Ok((text, spans));
        }
        let Rendered { text, spans: marked } = self.render_marked(messages, false)?;
        let mut spans = Vec::with_capacity(indices.len());
        let header = match self.marks_generation {
            true => self.generation_header(messages, &text),
            false => String::new(),
        };
        for &index in indices {
            let span = match answers.iter().position(|answer| *answer == index) {
                Some(nth) if self.marks_generation => {
                    self.marked_span(&text, &marked, nth, (answers.len(), &header), index)?
                }
                Some(_) => match self.span_by_prefix(messages, index, &text) {
                    Some(span) => span,
                    None => self.span_of_answer(messages, index, &text)?,
                },
                None => self.span_by_substitution(messages, index, &text)?,
            };
            spans.push(span);
        }
        Ok((text, spans))
    }

    /// Returns the span that `{% generation %}` marks for the assistant's answer number `nth`. The first
    /// answer is 0.
    fn marked_span(
        &self,
        text: &str,
        marked: &[Range<usize>],
        nth: usize,
        (answers, header): (usize, &str),
        index: usize,
    ) -> Result<Range<usize>, ModelError> {
        if marked.len() != answers {
            let reason = format!(
                "the template marks {} parts in {answers} answers, and only some of them are to be trained",
                marked.len()
            );
            return Err(ModelError::NoMask { index, reason });
        }
        Ok(self.marked_answer(text, marked[nth].clone(), header))
    }

    /// Returns the text that the template appends to `text` as the generation prompt.
    fn generation_header(&self, messages: &[Message], text: &str) -> String {
        let prompt = self.render(messages, true).unwrap_or_default();
        prompt.strip_prefix(text).unwrap_or_default().to_owned()
    }

    /// Returns the answer in a part that the template marks with `{% generation %}`. The part may begin with
    /// the generation prompt, which the model does not write. The part may also end after the end of the
    /// turn.
    fn marked_answer(&self, text: &str, marked: Range<usize>, header: &str) -> Range<usize> {
        let part = &text[marked.clone()];
        let start = if part.starts_with(header) { marked.start + header.len() } else { marked.start };
        let last = self.end_of_turn.as_ref().and_then(|token| {
            text[start..marked.end].rfind(token.as_str()).map(|at| start + at + token.len())
        });
        let is_blank = |end: &usize| text[*end..marked.end].trim().is_empty();
        start..last.filter(is_blank).unwrap_or_else(|| self.past_end_of_turn(text, marked.end))
    }

    /// If a longer conversation only appends text to the rendering, returns the span of message `index`.
    fn span_by_prefix(&self, messages: &[Message], index: usize, text: &str) -> Option<Range<usize>> {
        let before = self.render(&messages[..index], true).ok()?;
        let after = match index + 1 == messages.len() {
            true => text.to_owned(),
            false => self.render(&messages[..=index], false).ok()?,
        };
        let turn = after.strip_prefix(before.as_str())?;
        let start = before.len();
        let end = match &self.end_of_turn {
            None => after.len(),
            Some(token) => match turn.rfind(token.as_str()) {
                Some(at) => start + at + token.len(),
                // Some templates write the end of a turn only if another turn follows.
                None => self.past_end_of_turn(text, after.len()),
            },
        };
        (after.get(..end.min(after.len())).is_some_and(|known| text.starts_with(known))).then_some(start..end)
    }

    /// Returns the span of message `index`. The span is the part of `text` that changes with the content of
    /// the message.
    fn span_by_substitution(
        &self,
        messages: &[Message],
        index: usize,
        text: &str,
    ) -> Result<Range<usize>, ModelError> {
        let no = |reason: &str| ModelError::NoMask { index, reason: reason.to_owned() };
        let [marker, _] = unused_characters(messages, &self.source);
        let mut changed = messages.to_vec();
        changed[index].content = marker.to_string();
        let changed = self.render(&changed, false)?;
        let mut parts = changed.split(marker);
        let (Some(head), Some(tail), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(no(if changed.contains(marker) {
                "the template writes its content more than once"
            } else {
                "the template leaves its content out"
            }));
        };
        let outside = head.len() + tail.len();
        if text.len() < outside || !text.starts_with(head) || !text.ends_with(tail) {
            return Err(no("the template changes other turns when the content of this message changes"));
        }
        let content_end = text.len() - tail.len();
        let start = match messages[index].role == "assistant" {
            true => self.answer_start(messages, index, head),
            false => head.len(),
        };
        Ok(start..self.past_end_of_turn(text, content_end))
    }

    /// Returns the span of an answer whose rendering changes if other messages follow. For example, Qwen3
    /// writes a blank line before a tool call if the answer has a text. A marker in place of an empty text
    /// would add this line. The span of a tool call is therefore found by its prompt and its end-of-turn
    /// token.
    fn span_of_answer(
        &self,
        messages: &[Message],
        index: usize,
        text: &str,
    ) -> Result<Range<usize>, ModelError> {
        let error = match self.span_by_substitution(messages, index, text) {
            Ok(span) => return Ok(span),
            Err(error) => error,
        };
        let has_call = messages[index].extra.contains_key("tool_calls");
        let span = if has_call { self.span_by_prompt(messages, index, text) } else { None };
        span.ok_or(error)
    }

    /// Returns the text from the end of the prompt of answer `index` to the next end-of-turn token. Returns
    /// `None` if the answer itself contains this token.
    fn span_by_prompt(&self, messages: &[Message], index: usize, text: &str) -> Option<Range<usize>> {
        let token = self.end_of_turn.as_deref()?;
        let prompt = self.render(&messages[..index], true).ok()?;
        let reply = text.strip_prefix(prompt.as_str())?;
        let Message { content, extra, .. } = &messages[index];
        let is_written = content.contains(token) || extra.values().any(|v| v.to_string().contains(token));
        let end = reply.find(token).filter(|_| !is_written)? + token.len();
        Some(prompt.len()..prompt.len() + end)
    }

    /// Returns the position in `head` at which the reply of the model starts. `head` is the text before the
    /// content of the answer `index`. Blanks between the prompt and the content are part of the reply.
    fn answer_start(&self, messages: &[Message], index: usize, head: &str) -> usize {
        let [marker, _] = unused_characters(messages, &self.source);
        let mut before = messages[..index].to_vec();
        let Some(last) = before.last_mut() else { return head.len() };
        last.content = marker.to_string();
        let prompt = self.render(&before, true).unwrap_or_default();
        let Some((_, written)) = prompt.rsplit_once(marker) else { return head.len() };
        match head.rfind(written).map(|at| at + written.len()) {
            Some(start) if !written.is_empty() && head[start..].trim().is_empty() => start,
            _ => head.len(),
        }
    }

    /// Returns the position after the end-of-turn token that follows `at`. White space before the token is
    /// skipped. Returns `at` if no end-of-turn token follows.
    fn past_end_of_turn(&self, text: &str, at: usize) -> usize {
        let rest = text.get(at..).unwrap_or_default().trim_start();
        let ends = self.end_of_turn.iter().chain(&self.turn_starts);
        match ends.into_iter().find(|token| rest.starts_with(token.as_str())) {
            Some(token) => text.len() - rest.len() + token.len(),
            None => at,
        }
    }

    /// Renders the conversation with a marker character at each end of every `{% generation %}` block.
    /// Returns the text without the markers, and the byte range of each block that is not empty.
    fn render_marked(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, ModelError> {
        let [open, close] = unused_characters(messages, &self.source);
        let mut context: BTreeMap<&str, Value> =
            self.variables.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))).collect();
        let turn = |m: &Message| {
            let end = self.added_end.as_deref().filter(|_| m.role == "assistant").unwrap_or_default();
            let said = [
                ("role", Value::from(m.role.as_str())),
                ("content", Value::from(format!("{}{end}", m.content))),
            ];
            let extra = m.extra.iter().map(|(key, value)| (key.as_str(), Value::from(Serde(value))));
            Value::from_pairs(said.into_iter().chain(extra))
        };
        context.insert("messages", messages.iter().map(turn).collect::<Vec<_>>().into());
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        // As in transformers, both names are always defined. danlu has no documents, so `documents` is None.
        context.insert("tools", self.tools.clone());
        context.insert("documents", Value::from(()));
        context.insert(jinja::OPEN, Value::from(open.to_string()));
        context.insert(jinja::CLOSE, Value::from(close.to_string()));
        for (name, value) in &self.values {
            context.insert(name, Value::from(Serde(value)));
        }
        let mut text = self.run(Value::from(context), messages)?;
        let ends_with_answer = messages.last().is_some_and(|last| last.role == "assistant");
        if let Some(start) = self.turn_starts.first().filter(|_| ends_with_answer && !add_generation_prompt) {
            text.push_str(start);
        }
        if !self.marks_generation {
            return Ok(Rendered { text, spans: Vec::new() });
        }
        let mut rendered = Rendered { text: String::with_capacity(text.len()), spans: Vec::new() };
        let mut start = None;
        for c in text.chars() {
            if c == open {
                start.get_or_insert(rendered.text.len());
            } else if c == close {
                let span = start.take().unwrap_or(rendered.text.len())..rendered.text.len();
                if !span.is_empty() {
                    rendered.spans.push(span);
                }
            } else {
                rendered.text.push(c);
            }
        }
        Ok(rendered)
    }

    /// Renders `context` on a separate thread, within limits that grow with the size of `messages`.
    fn run(&self, context: Value, messages: &[Message]) -> Result<String, ModelError> {
        let fault = |message: String| ModelError::Template { path: self.path.clone(), line: None, message };
        if let Some(reason) = self.spent.abandoned.get() {
            return Err(fault(reason.clone()));
        }
        let extra = |m: &Message| m.extra.values().map(text_bytes).sum::<usize>();
        let input: usize =
            self.tools_bytes + messages.iter().map(|m| m.content.len() + extra(m)).sum::<usize>();
        let allowance = 1000 * messages.len() as u64 + input as u64 / 2;
        let mut env = Arc::clone(&self.env);
        if allowance > BASE_FUEL / 4 {
            Arc::make_mut(&mut env).set_fuel(Some(BASE_FUEL + allowance));
        }
        let limits = WorkLimits {
            time: BASE_LIMITS.time + Duration::from_micros(input as u64),
            bytes: BASE_LIMITS.bytes + 32 * input as u64,
        };
        let rendered = guarded_thread::run(limits, move || {
            let captured = env.get_template(NAME)?.render_captured(context)?;
            let fuel = captured.state().fuel_levels().map_or(0, |(spent, _)| spent);
            Ok::<_, minijinja::Error>((captured.into_output(), fuel))
        });
        let rendered = rendered.map_err(|reason| {
            let message = reason.to_string();
            if reason.is_abandoned() {
                drop(self.spent.abandoned.set(message.clone()));
            }
            fault(message)
        })?;
        let fuel = match &rendered {
            Ok((_, fuel)) => *fuel,
            Err(e) if e.kind() == ErrorKind::OutOfFuel => BASE_FUEL + allowance,
            Err(_) => 0,
        };
        let is_exhausted = fuel >= BASE_FUEL + allowance;
        self.spent.add(fuel.saturating_sub(ORDINARY_FUEL + allowance), is_exhausted);
        let (text, _) = rendered.map_err(|e| failed(&self.path, &e))?;
        let limit = BASE_OUTPUT + 16 * input;
        if text.len() > limit {
            let message =
                format!("it writes {} bytes for {input} bytes of text, at most {limit}", text.len());
            return Err(fault(message));
        }
        Ok(text)
    }

    /// Returns the first special token that follows the assistant's content in a test conversation.
    fn find_end_of_turn(&self, special_tokens: &[String]) -> Option<String> {
        let [marker, _] = unused_characters(&[], &self.source);
        let turns = [Message::new("user", "a"), Message::new("assistant", marker)];
        let text = self.render(&turns, false).ok()?;
        let after = text.rsplit_once(marker)?.1;
        let first = |token: &&String| after.find(token.as_str());
        let found = special_tokens.iter().filter(|t| !t.is_empty() && first(t).is_some());
        // If two tokens start at the same position, the longest token is chosen, as in a tokenizer.
        found.min_by_key(|token| (first(token), std::cmp::Reverse(token.len()))).cloned()
    }

    /// Returns the special tokens that begin the turn of the user or of a tool after an answer. The list is
    /// empty unless the token of the user directly follows the answer and begins every turn of the user.
    fn find_turn_starts(&self, special_tokens: &[String]) -> Vec<String> {
        let [marker, _] = unused_characters(&[], &self.source);
        let next = |role: &str| {
            let answer = Message::new("assistant", marker);
            let turns =
                [Message::new("user", "a"), answer, Message::new(role, "b"), Message::new("assistant", "c")];
            let text = self.render(&turns, false).ok()?;
            let (before, after) = text.rsplit_once(marker)?;
            let starts =
                special_tokens.iter().filter(|token| !token.is_empty() && after.starts_with(token.as_str()));
            let start = starts.max_by_key(|token| token.len())?.clone();
            let is_bos = self.variables.get("bos_token") == Some(&start);
            // A token that also begins the answer cannot end the answer.
            (!is_bos).then_some((before.matches(start.as_str()).count() == 1, start))
        };
        match next("user") {
            Some((true, user)) => {
                let of_tool = next("tool").map(|(_, start)| start).filter(|start| *start != user);
                [user].into_iter().chain(of_tool).collect()
            }
            _ => Vec::new(),
        }
    }

    /// If the template writes each message exactly once and never writes the EOS token, returns the EOS
    /// token.
    fn find_missing_end(&self, special_tokens: &[String]) -> Option<String> {
        let eos = self.variables.get("eos_token").filter(|eos| special_tokens.contains(eos))?;
        let [marker, _] = unused_characters(&[], &self.source);
        let turn = |role: &str| Message::new(role, marker);
        let text =
            self.render(&[turn("user"), turn("assistant"), turn("user"), turn("assistant")], false).ok()?;
        (text.matches(marker).count() == 4 && !text.contains(eos.as_str())).then(|| eos.clone())
    }

    /// Returns the system message that the template adds to a conversation without a system message. The text
    /// is compared with that of a conversation whose system message is a marker.
    fn find_default_system(&self) -> Option<String> {
        let [marker, user] = unused_characters(&[], &self.source);
        let user = Message::new("user", user);
        let with = self.render(&[Message::new("system", marker), user.clone()], false).ok()?;
        let without = self.render(&[user], false).ok()?;
        let (head, tail) = with.split_once(marker)?;
        let default = without.strip_prefix(head)?.strip_suffix(tail)?;
        // If no special token surrounds the text, the text belongs to the first message and is not a system
        // message.
        let bos = self.variables.get("bos_token").map_or("", |token| token.as_str());
        (!default.is_empty() || !head.replace(bos, "").trim().is_empty()).then(|| default.to_owned())
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({} bytes, end of turn {:?})", self.source.len(), self.end_of_turn)
    }
}

/// How a template uses a name.
struct NameUses {
    /// Whether a condition or a default covers the case that the name is undefined.
    is_tested: bool,
    /// Whether the value of the name is written.
    is_written: bool,
}

/// Returns how a template uses a name, judged by the words and signs around it.
fn name_uses(source: &str, name: &str) -> NameUses {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
    let mut uses = NameUses { is_tested: false, is_written: false };
    for (at, _) in source.match_indices(name) {
        let (before, after) = (&source[..at], &source[at + name.len()..]);
        if before.ends_with(is_word) || after.starts_with(is_word) {
            continue;
        }
        let (before, after) = (before.trim_end(), after.trim_start());
        let follows = |word: &str| before.strip_suffix(word).is_some_and(|rest| !rest.ends_with(is_word));
        let precedes = |word: &str| after.strip_prefix(word).is_some_and(|rest| !rest.starts_with(is_word));
        let filter = after.strip_prefix('|').map(str::trim_start).unwrap_or_default();
        uses.is_tested |= ["if", "elif", "not", "and", "or", "in", "set"].into_iter().any(follows)
            || ["is", "or", "and", "if", "in", "="].into_iter().any(precedes)
            || filter.starts_with("default");
        let opens = ["{{", "{{-", "{{+", "+", "~"].iter().any(|sign| before.ends_with(sign));
        let ends = ["}}", "-}}", "+", "~", "|"].iter().any(|sign| after.starts_with(sign));
        uses.is_written |= opens && ends;
    }
    uses
}

/// Returns two private-use characters that occur neither in the messages nor in the template.
fn unused_characters(messages: &[Message], source: &str) -> [char; 2] {
    let taken =
        |c: char| source.contains(c) || messages.iter().any(|m| m.content.contains(c) || m.role.contains(c));
    let mut free = ('\u{f0000}'..='\u{ffffd}').filter(|&c| !taken(c));
    // No natural text contains every private-use character. For a text that does, the markers are ambiguous,
    // and the spans may be wrong.
    let first = free.next().unwrap_or('\u{f0000}');
    [first, free.next().unwrap_or('\u{f0001}')]
}

/// Compiles `source` on a separate thread with a large stack, because the parser and the compiler recurse.
/// Also returns the names that the template reads.
fn compile(
    path: &Path,
    source: String,
    clock: Clock,
) -> Result<(Environment<'static>, HashSet<String>), ModelError> {
    let compiled = guarded_thread::run(BASE_LIMITS, move || {
        let mut env = jinja::environment(clock);
        env.add_template_owned(NAME, source)?;
        let undeclared = env.get_template(NAME)?.undeclared_variables(false);
        Ok::<_, minijinja::Error>((env, undeclared))
    });
    let fault = |reason: NoResult| ModelError::Template {
        path: path.to_owned(),
        line: None,
        message: reason.to_string(),
    };
    compiled.map_err(fault)?.map_err(|e| failed(path, &e))
}

/// Returns the size of a JSON value: the bytes of all strings, and a few bytes for each item.
fn text_bytes(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(list) => list.iter().map(text_bytes).sum(),
        serde_json::Value::Object(map) => map.iter().map(|(key, value)| key.len() + text_bytes(value)).sum(),
        _ => 8,
    }
}

fn failed(path: &Path, e: &minijinja::Error) -> ModelError {
    let mut source = e.source();
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return ModelError::Refused { message: message.clone() };
        }
        source = inner.source();
    }
    let message = match e.kind() {
        ErrorKind::OutOfFuel => OUT_OF_FUEL.to_owned(),
        kind => e.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
    };
    ModelError::Template { path: path.to_owned(), line: e.line(), message }
}

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
