//! Encodes a record as token ids with a loss mask.
//!
//! A conversation is rendered and tokenized as a whole, so training and chat produce the same ids. A token
//! has a loss if most of its bytes in the rendered text are part of an answer.

use std::{
    borrow::Cow,
    ops::{ControlFlow, Range},
};

use danlu_model::{ChatTemplate, LabeledSequence, Message, ModelError, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::{
    record::{BadRecord, Conversation, Mismatch, Record, RecordContent, RecordFault, TurnLoss},
    truncate::{Fit, truncate},
};

/// Options of [`encode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodeOptions {
    /// Maximum length of a sequence in tokens.
    pub max_length: usize,
    /// Whether system and user messages have a loss too.
    pub train_on_prompt: bool,
    /// System message for conversations without a system message.
    pub default_system: Option<String>,
    /// Whether an EOS token is added to each document, and to each answer that the template writes without an
    /// end-of-turn token.
    pub add_eos_token: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { max_length: 1024, train_on_prompt: false, default_system: None, add_eos_token: true }
    }
}

/// An encoded record.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedRecord {
    /// Token ids and loss mask. The sequence is empty for a dropped record.
    pub sequence: LabeledSequence,
    /// The rendered text.
    pub text: String,
    /// Byte range in `text` for each token. Tokens that share a character have the same range. A token
    /// without text, such as the BOS token of a document, has an empty range.
    pub offsets: Vec<Range<usize>>,
    /// Effect of the length limit.
    pub truncation: Truncation,
}

/// Effect of the length limit on a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// The record does not exceed the limit.
    None,
    /// Text was removed. The last answer and its end-of-turn token are complete.
    Shortened {
        /// Number of tokens before truncation.
        tokens: usize,
    },
    /// The record exceeds the limit even with the shortest question. The sequence is empty.
    Dropped {
        /// Number of tokens before truncation.
        tokens: usize,
    },
}

/// Encodes a record.
///
/// - **BOS**: in a conversation, only the template adds a BOS token, as in transformers'
///   `apply_chat_template`. A document gets the tokens that the tokenizer adds before a text, unless the text
///   contains them already.
/// - **EOS**: see [`EncodeOptions::add_eos_token`].
/// - **Loss**: an answer and its end-of-turn token have a loss. In a document, every token except the first
///   has a loss. A token across the border of an answer has a loss if more than half of its bytes belong to
///   the answer.
/// - **Loss with `train_on_prompt`**: every token has a loss, except the first token, BOS tokens, and
///   messages that the data masks.
/// - **Truncation**: `truncate.rs` shortens a conversation, or drops the conversation if no shorter version
///   fits. A document is cut at the end.
///
/// # Errors
/// If the template rejects the conversation or the tokenizer rejects the text.
pub fn encode(
    record: &Record,
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
) -> Result<EncodedRecord, Box<BadRecord>> {
    let encoded = match &record.content {
        RecordContent::Text(text) => document(text, tokenizer, options),
        RecordContent::Chat(chat) => conversation(chat, tokenizer, options),
    };
    encoded.map_err(|error| {
        let found = match &error {
            ModelError::Refused { message } => {
                format!("a conversation that the model's chat template refuses ({message})")
            }
            ModelError::Tokenizer { message, .. } => format!("a text that danlu cannot encode ({message})"),
            other => format!("a conversation that the model's chat template cannot render ({other})"),
        };
        Box::new(Mismatch::new(RecordFault::Template, found, "one that it renders").at(record.source.clone()))
    })
}

fn conversation(
    chat: &Conversation,
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
) -> Result<EncodedRecord, ModelError> {
    let with_system = chat.with_default_system(options.default_system.as_deref());
    let chat = with_system.as_ref().unwrap_or(chat);
    let mut template = match &chat.tools[..] {
        [] => Cow::Borrowed(tokenizer.template()?),
        tools => Cow::Owned(tokenizer.template()?.with_tools(tools)),
    };
    if !options.add_eos_token && template.added_end().is_some() {
        template = Cow::Owned(template.without_added_end());
    }
    let count = |messages: &[Message], limit: usize| -> Result<usize, ModelError> {
        tokenizer.count(&template.render(messages, false)?, limit)
    };
    let tokens = count(&chat.messages, usize::MAX)?;
    if tokens <= options.max_length {
        return masked(chat, tokenizer, &template, options, Truncation::None);
    }
    let fits = |messages: &[Message]| Ok(count(messages, options.max_length)? <= options.max_length);
    match truncate(chat, &fits)? {
        Fit::Shorter(chat) => masked(&chat, tokenizer, &template, options, Truncation::Shortened { tokens }),
        Fit::Never => Ok(dropped(template.render(&chat.messages, false)?, tokens)),
    }
}

fn masked(
    chat: &Conversation,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    options: &EncodeOptions,
    truncation: Truncation,
) -> Result<EncodedRecord, ModelError> {
    let with_loss: Vec<usize> = (0..chat.messages.len()).filter(|at| chat.loss[*at].is_trained()).collect();
    let (text, spans) = template.message_spans(&chat.messages, &with_loss)?;
    let in_parts = with_loss.iter().find(|at| matches!(chat.loss[**at], TurnLoss::Parts(_)));
    let trained_spans = match in_parts {
        None => spans,
        Some(&index) if spans.len() != with_loss.len() => {
            let reason = format!("the template marks {} parts in {} answers", spans.len(), with_loss.len());
            return Err(ModelError::NoMask { index, reason });
        }
        Some(_) => {
            let parts = with_loss.iter().zip(spans).map(|(at, span)| trained_parts(chat, *at, span, &text));
            parts.collect::<Result<Vec<_>, _>>()?.concat()
        }
    };
    let (ids, offsets): (Vec<u32>, Vec<_>) = tokenizer.encode_with_offsets(&text)?.into_iter().unzip();
    let mut trained = mask(&offsets, &trained_spans);
    if options.train_on_prompt {
        let masked: Vec<usize> =
            (0..chat.messages.len()).filter(|at| chat.loss[*at] == TurnLoss::Masked).collect();
        let (_, spans) = template.message_spans(&chat.messages, &masked)?;
        let excluded = mask(&offsets, &spans);
        let bos = tokenizer.bos_id();
        trained = ids.iter().zip(excluded).map(|(id, excluded)| Some(*id) != bos && !excluded).collect();
    }
    if let Some(first) = trained.first_mut() {
        *first = false;
    }
    Ok(EncodedRecord { sequence: LabeledSequence { ids, trained }, text, offsets, truncation })
}

/// Returns the byte ranges in `text` that have a loss, for the message `index`, which is rendered at `span`.
fn trained_parts(
    chat: &Conversation,
    index: usize,
    span: Range<usize>,
    text: &str,
) -> Result<Vec<Range<usize>>, ModelError> {
    let TurnLoss::Parts(parts) = &chat.loss[index] else { return Ok(vec![span]) };
    let content = &chat.messages[index].content;
    let Some(start) = text[span.clone()].find(content.as_str()).map(|at| span.start + at) else {
        let reason = "the template changes its text, and only parts of the text are trained".to_owned();
        return Err(ModelError::NoMask { index, reason });
    };
    let end = |part: &Range<usize>| if part.end == content.len() { span.end } else { start + part.end };
    Ok(parts.iter().map(|part| start + part.start..end(part)).collect())
}

/// Returns, for each token, whether more than half of its bytes are inside the spans.
fn mask(offsets: &[Range<usize>], spans: &[Range<usize>]) -> Vec<bool> {
    let mut next = 0;
    offsets
        .iter()
        .map(|token| {
            // Both lists are in ascending order, so one scan is enough.
            while next < spans.len() && spans[next].end <= token.start {
                next += 1;
            }
            let overlap =
                |span: &Range<usize>| span.end.min(token.end).saturating_sub(span.start.max(token.start));
            let here = spans[next..].iter().take_while(|span| span.start < token.end).map(overlap);
            2 * here.sum::<usize>() > token.len()
        })
        .collect()
}

fn document(
    text: &str,
    tokenizer: &Tokenizer,
    &EncodeOptions { max_length, add_eos_token, .. }: &EncodeOptions,
) -> Result<EncodedRecord, ModelError> {
    let starts = tokenizer.starting_ids()?;
    // `visit_tokens` passes the tokens of a long text in several pieces. Tokens after `max_length` are
    // counted, but not stored.
    let room = max_length.max(starts.len());
    let (mut ids, mut offsets, mut tokens) = (Vec::new(), Vec::new(), 0);
    tokenizer.visit_tokens(text, &mut |piece| {
        tokens += piece.len();
        for (id, range) in &piece[..piece.len().min(room - ids.len())] {
            ids.push(*id);
            offsets.push(range.clone());
        }
        ControlFlow::Continue(())
    })?;
    if !ids.starts_with(&starts) {
        tokens += starts.len();
        offsets.splice(..0, starts.iter().map(|_| 0..0));
        ids.splice(..0, starts);
    }
    if let Some(eos) = tokenizer.eos_id().filter(|_| add_eos_token && !ends_a_turn(text, tokenizer)) {
        tokens += 1;
        if ids.len() + 1 == tokens {
            ids.push(eos);
            offsets.push(text.len()..text.len());
        }
    }
    if max_length < 2 && tokens > max_length {
        return Ok(dropped(text.to_owned(), tokens));
    }
    let truncation = if tokens > max_length { Truncation::Shortened { tokens } } else { Truncation::None };
    ids.truncate(max_length);
    offsets.truncate(max_length);
    let trained = (0..ids.len()).map(|index| index > 0).collect();
    Ok(EncodedRecord {
        sequence: LabeledSequence { ids, trained },
        text: text.to_owned(),
        offsets,
        truncation,
    })
}

/// Returns whether `text` ends with a token that stops generation. White space may follow the token.
fn ends_a_turn(text: &str, tokenizer: &Tokenizer) -> bool {
    let text = text.trim_end();
    tokenizer.stop_ids().iter().filter_map(|id| tokenizer.token_str(*id)).any(|token| text.ends_with(&token))
}

/// Returns whether a document contains an end-of-turn token before its end. Such a document is a conversation
/// that another program rendered.
pub fn is_rendered(text: &str, tokenizer: &Tokenizer) -> bool {
    let end = tokenizer.template().ok().and_then(|template| template.end_of_turn().map(str::to_owned));
    end.is_some_and(|end| text.trim_end().trim_end_matches(end.as_str()).contains(end.as_str()))
}

const TEMPLATE_MARKS: [&str; 14] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "[INST]",
    "[/INST]",
    "### Instruction:",
    "### Response:",
    "### Human:",
];

/// Returns a mark of a chat template that the tokenizer encodes as ordinary text. Most texts with such a mark
/// were rendered for another model.
pub fn foreign_mark(text: &str, tokenizer: &Tokenizer) -> Option<&'static str> {
    let is_foreign =
        |mark: &&str| text.contains(mark) && !tokenizer.specials().iter().any(|token| token == mark);
    TEMPLATE_MARKS.into_iter().find(is_foreign)
}

fn dropped(text: String, tokens: usize) -> EncodedRecord {
    let truncation = Truncation::Dropped { tokens };
    EncodedRecord { sequence: LabeledSequence::default(), text, offsets: Vec::new(), truncation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_across_a_border_joins_the_side_with_more_bytes() {
        let tokens = [0..2, 2..5, 5..9, 9..11, 11..11, 11..14];
        assert_eq!(mask(&tokens, std::slice::from_ref(&(3..7))), [false, true, false, false, false, false]);
        assert_eq!(mask(&tokens, std::slice::from_ref(&(4..10))), [false, false, true, false, false, false]);
        assert_eq!(mask(&tokens, &[0..3, 3..5, 11..14]), [true, true, false, false, false, true]);
        assert_eq!(mask(&tokens, &[]), [false; 6]);
    }

    #[test]
    fn tokens_of_one_character_share_its_mark() {
        assert_eq!(
            mask(&[0..3, 0..3, 3..6, 3..6], std::slice::from_ref(&(3..6))),
            [false, false, true, true]
        );
    }
}
