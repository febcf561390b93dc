//! From a record to token ids, with a mark on each token that carries a loss.
//!
//! A conversation is rendered once, tokenised once as a whole, and each token finds its mark by the bytes it stands
//! for. So the ids are those that chatting with the model gives, by construction.

use std::ops::Range;

use danlu_model::{LabeledSequence, Message, ModelError, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::{
    record::{BadRecord, Conversation, Mismatch, Record, RecordContent, RecordFault},
    truncate::{Fit, truncate},
};

/// How records become token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodeOptions {
    /// The longest sequence, in tokens.
    pub max_length: usize,
    /// Whether questions and system messages are trained too, not only answers.
    pub train_on_prompt: bool,
    /// The system message for conversations that have none.
    pub default_system: Option<String>,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { max_length: 1024, train_on_prompt: false, default_system: None }
    }
}

/// A record as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Ids and marks; empty if the record was dropped.
    pub sequence: LabeledSequence,
    /// The rendered text.
    pub text: String,
    /// The bytes of `text` that each token stands for. Tokens that share a character all have its range; one that
    /// stands for nothing in the text, such as the BOS in front of a document, has an empty range.
    pub offsets: Vec<Range<usize>>,
    /// What `max_length` did to it.
    pub truncation: Truncation,
}

/// What became of a record that may be too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// It fits.
    None,
    /// It fits without some of its text. The last answer and its end-of-turn token are whole.
    Shortened {
        /// How many tokens it had.
        tokens: usize,
    },
    /// Not even the last answer with its question's end fits; the sequence is empty.
    Dropped {
        /// How many tokens it had.
        tokens: usize,
    },
}

/// Encodes a record.
///
/// - **BOS**: a conversation has the one its template writes, or none, as in transformers'
///   `apply_chat_template(tokenize=True)` and in `danlu chat`; the tokenizer adds no second one. A document gets
///   one in front and an EOS behind, unless its text has them.
/// - **Loss**: on each answer and its end-of-turn token; with `train_on_prompt`, on all but BOS; in a document, on
///   all but BOS. A token that straddles the border of an answer belongs to the side that has more of its bytes,
///   and to the prompt when both have as many.
/// - **Truncation**: a conversation loses what follows the last answer, then its first turns, then the front of the
///   last question; the system message and the last answer stay whole, or the record is dropped. A document
///   loses its end.
///
/// # Errors
/// If the template refuses the conversation or the tokenizer the text.
pub fn encode(
    record: &Record,
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
) -> Result<Encoded, Box<BadRecord>> {
    let encoded = match &record.content {
        RecordContent::Text(text) => document(text, tokenizer, options.max_length),
        RecordContent::Chat(chat) => conversation(chat, tokenizer, options),
    };
    encoded.map_err(|error| {
        let found = match &error {
            ModelError::Refused { message } => {
                format!("a conversation that the model's chat template refuses ({message})")
            }
            other => format!("a conversation that the model's chat template cannot render ({other})"),
        };
        Box::new(Mismatch::new(RecordFault::Template, found, "one that it renders").at(record.source.clone()))
    })
}

fn conversation(
    chat: &Conversation,
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
) -> Result<Encoded, ModelError> {
    let with_system = chat.with_default_system(options.default_system.as_deref());
    let chat = with_system.as_ref().unwrap_or(chat);
    let tokens = count(&chat.messages, tokenizer)?;
    if tokens <= options.max_length {
        return masked(chat, tokenizer, options, Truncation::None);
    }
    let fits = |messages: &[Message]| Ok(count(messages, tokenizer)? <= options.max_length);
    match truncate(chat, &fits)? {
        Fit::Shorter(chat) => masked(&chat, tokenizer, options, Truncation::Shortened { tokens }),
        Fit::Never => Ok(dropped(tokenizer.template()?.render(&chat.messages, false)?, tokens)),
    }
}

/// How many tokens messages take.
fn count(messages: &[Message], tokenizer: &Tokenizer) -> Result<usize, ModelError> {
    Ok(tokenizer.encode(&tokenizer.template()?.render(messages, false)?)?.len())
}

fn masked(
    chat: &Conversation,
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
    truncation: Truncation,
) -> Result<Encoded, ModelError> {
    let rendered = tokenizer.template()?.assistant_spans(&chat.messages)?;
    let context = chat.messages[..chat.trained_from].iter().filter(|m| m.role == "assistant").count();
    if context > 0 {
        let answers = chat.messages.iter().filter(|m| m.role == "assistant").count();
        if rendered.spans.len() != answers {
            let reason = format!(
                "the template marks {} parts in {answers} answers, and only some of them are to be trained",
                rendered.spans.len()
            );
            return Err(ModelError::NoMask { index: chat.trained_from, reason });
        }
    }
    let spans = &rendered.spans[context..];
    let (ids, offsets): (Vec<u32>, Vec<_>) =
        tokenizer.encode_with_offsets(&rendered.text)?.into_iter().unzip();
    let bos = tokenizer.bos_id();
    let mut trained = mask(&offsets, spans);
    if options.train_on_prompt {
        trained = ids.iter().map(|id| Some(*id) != bos).collect();
    }
    if let Some(first) = trained.first_mut() {
        *first = false;
    }
    Ok(Encoded { sequence: LabeledSequence { ids, trained }, text: rendered.text, offsets, truncation })
}

/// Which tokens lie in the spans, by more than half of their bytes.
fn mask(offsets: &[Range<usize>], spans: &[Range<usize>]) -> Vec<bool> {
    let mut next = 0;
    offsets
        .iter()
        .map(|token| {
            // Both lists ascend, so that one pass over them does.
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

fn document(text: &str, tokenizer: &Tokenizer, max_length: usize) -> Result<Encoded, ModelError> {
    let (mut ids, mut offsets): (Vec<u32>, Vec<_>) = tokenizer.encode_with_offsets(text)?.into_iter().unzip();
    if let Some(bos) = tokenizer.bos_id().filter(|bos| ids.first() != Some(bos)) {
        ids.insert(0, bos);
        offsets.insert(0, 0..0);
    }
    if let Some(eos) = tokenizer.eos_id().filter(|eos| ids.last() != Some(eos)) {
        ids.push(eos);
        offsets.push(text.len()..text.len());
    }
    let tokens = ids.len();
    if max_length < 2 && tokens > max_length {
        return Ok(dropped(text.to_owned(), tokens));
    }
    let truncation = if tokens > max_length { Truncation::Shortened { tokens } } else { Truncation::None };
    ids.truncate(max_length);
    offsets.truncate(max_length);
    let trained = (0..ids.len()).map(|index| index > 0).collect();
    Ok(Encoded { sequence: LabeledSequence { ids, trained }, text: text.to_owned(), offsets, truncation })
}

fn dropped(text: String, tokens: usize) -> Encoded {
    let truncation = Truncation::Dropped { tokens };
    Encoded { sequence: LabeledSequence::default(), text, offsets: Vec::new(), truncation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straddling_token_belongs_to_the_side_with_more_of_its_bytes() {
        let tokens = [0..2, 2..5, 5..9, 9..11, 11..11, 11..14];
        assert_eq!(mask(&tokens, std::slice::from_ref(&(3..7))), [false, true, false, false, false, false]);
        assert_eq!(mask(&tokens, std::slice::from_ref(&(4..10))), [false, false, true, false, false, false]);
        assert_eq!(mask(&tokens, &[0..3, 3..5, 11..14]), [true, true, false, false, false, true]);
        assert_eq!(mask(&tokens, &[]), [false; 6]);
    }

    #[test]
    fn tokens_that_share_a_character_share_its_mark() {
        assert_eq!(
            mask(&[0..3, 0..3, 3..6, 3..6], std::slice::from_ref(&(3..6))),
            [false, false, true, true]
        );
    }
}
