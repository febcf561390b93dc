//! What a model answers to the questions of a data set: greedy, so that only the model makes the difference.

use std::ops::ControlFlow;

use danlu_data::{Record, RecordContent};
use danlu_generate::{GenerateOptions, Sampling, generate};
use danlu_model::{Decoder, LoraSource, Message, Tokenizer, Workspace};

use crate::diagnostic::Result;
use crate::terminal_text;

/// A question from the data, with what came before it and what the data answers.
#[derive(Clone, Debug)]
pub struct Question {
    /// The conversation up to and with the question.
    pub messages: Vec<Message>,
    /// The answer in the data.
    pub answer: String,
}

impl Question {
    /// The question itself.
    pub fn text(&self) -> &str {
        self.messages.last().map_or("", |message| &message.content)
    }

    /// The last question of a record, if it is a conversation that ends in an answer.
    pub fn of(record: &Record) -> Option<Self> {
        let RecordContent::Chat(conversation) = &record.content else { return None };
        let (answer, messages) = conversation.messages.split_last()?;
        let asks = answer.role == "assistant" && messages.last()?.role == "user";
        asks.then(|| Self { messages: messages.to_vec(), answer: answer.content.clone() })
    }
}

/// `count` questions spread evenly over `records`.
pub fn questions<'a>(records: impl IntoIterator<Item = &'a Record>, count: usize) -> Vec<Question> {
    let all: Vec<Question> = records.into_iter().filter_map(Question::of).collect();
    let count = count.min(all.len());
    (0..count).map(|i| all[i * all.len() / count].clone()).collect()
}

/// The model's answer, one line or several, without anything a terminal would obey.
///
/// # Errors
/// If the template refuses the conversation, or it does not fit the model.
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
    let options = GenerateOptions { max_new_tokens, stop_ids, sampling: Sampling::greedy() };
    let generated = generate(decoder, work, lora, &prompt, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(terminal_text::printable(tokenizer.decode(&generated.ids, true).trim()))
}
