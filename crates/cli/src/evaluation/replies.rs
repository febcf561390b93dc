//! Greedy replies to the questions of a data set. With greedy decoding, only the weights can make two replies
//! differ.

use std::ops::ControlFlow;

use danlu_data::{Record, RecordContent};
use danlu_generate::{GenerateOptions, SamplingOptions, generate};
use danlu_model::{Decoder, LoraSource, Message, Tokenizer, Workspace};

use crate::diagnostic::Result;
use crate::terminal_text;

/// A question with its conversation and the expected answer.
#[derive(Clone, Debug)]
pub struct Question {
    /// The conversation, whose last message is the question.
    pub messages: Vec<Message>,
    pub answer: String,
}

impl Question {
    pub fn text(&self) -> &str {
        self.messages.last().map_or("", |message| &message.content)
    }

    /// Returns the last question of a record, if the record's conversation ends with an answer.
    pub fn of(record: &Record) -> Option<Self> {
        let RecordContent::Chat(conversation) = &record.content else { return None };
        let (answer, messages) = conversation.messages.split_last()?;
        let asks = answer.role == "assistant" && messages.last()?.role == "user";
        asks.then(|| Self { messages: messages.to_vec(), answer: answer.content.clone() })
    }
}

/// Returns up to `count` questions, spread evenly over `records`.
pub fn questions<'a>(records: impl IntoIterator<Item = &'a Record>, count: usize) -> Vec<Question> {
    let all: Vec<Question> = records.into_iter().filter_map(Question::of).collect();
    let count = count.min(all.len());
    (0..count).map(|i| all[i * all.len() / count].clone()).collect()
}

/// Returns the model's reply, without control characters.
///
/// # Errors
/// If the template rejects the conversation, or the conversation exceeds the context.
pub fn reply(
    decoder: &Decoder,
    work: &mut Workspace,
    lora: Option<&dyn LoraSource>,
    tokenizer: &Tokenizer,
    messages: &[Message],
    max_new_tokens: usize,
) -> Result<String> {
    let prompt = tokenizer.encode(&tokenizer.template()?.render(messages, true)?)?;
    let stop_ids = tokenizer.stop_ids().clone();
    let options = GenerateOptions { max_new_tokens, stop_ids, sampling: SamplingOptions::greedy() };
    let generated = generate(decoder, work, lora, &prompt, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(terminal_text::printable(tokenizer.decode(&generated.ids, true).trim()))
}
