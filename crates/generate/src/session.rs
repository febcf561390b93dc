//! A conversation with one model, which streams the text of its replies.

use std::ops::ControlFlow;
use std::sync::Arc;

use danlu_model::{Decoder, LoraSource, Message, SlotId, Tokenizer};

use crate::generate::generate_in;
use crate::{Engine, GenerateError, GenerateOptions, Generated, SamplingOptions};

/// A reply of the assistant, with token counts and durations.
#[derive(Clone, Debug)]
pub struct ChatReply {
    /// Text of the reply, in complete characters.
    pub text: String,
    /// Token ids, token counts and durations.
    pub generated: Generated,
    /// Number of old messages that were left out of the prompt of this reply to fit the context.
    pub forgotten: usize,
}

/// A chat with one model: the system prompt, the history, and the keys and values of the conversation.
pub struct ChatSession<'a> {
    tokenizer: &'a Tokenizer,
    engine: Engine<'a>,
    slot: SlotId,
    /// Maximum number of tokens of a prompt and its reply together.
    context: usize,
    options: GenerateOptions,
    system: Option<String>,
    history: Vec<Message>,
}

impl<'a> ChatSession<'a> {
    /// Returns a chat with a context of `context_tokens` tokens, or of the model's maximum if that is lower.
    /// Adds the tokenizer's end tokens to `options.stop_ids`.
    ///
    /// # Errors
    /// If a sampling setting is out of range.
    pub fn new(
        decoder: &'a Decoder,
        tokenizer: &'a Tokenizer,
        lora: Option<&'a dyn LoraSource>,
        context_tokens: usize,
        mut options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        options.sampling.check()?;
        options.stop_ids.extend(tokenizer.stop_ids());
        let context = context_tokens.min(decoder.config().max_position_embeddings);
        let mut engine = Engine::new(decoder);
        let slot = engine.open(context, lora.map(|lora| Arc::new(lora) as _));
        Ok(Self { tokenizer, engine, slot, context, options, system: None, history: Vec::new() })
    }

    /// Returns the system prompt, if one is set.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Sets or removes the system prompt. The history does not change.
    pub fn set_system(&mut self, system: Option<String>) {
        self.system = system;
    }

    /// Returns every message except the system prompt.
    pub fn history(&self) -> &[Message] {
        &self.history
    }

    /// Replaces the history.
    pub fn set_history(&mut self, history: Vec<Message>) {
        self.history = history;
    }

    /// Removes the last question and its reply. Returns the question, or `None` if there is none.
    pub fn undo(&mut self) -> Option<String> {
        let question = self.history.iter().rposition(|message| message.role == "user")?;
        let removed = self.history.split_off(question);
        removed.into_iter().next().map(|message| message.content)
    }

    /// Returns the limits and sampling settings of replies.
    pub fn options(&self) -> &GenerateOptions {
        &self.options
    }

    /// Sets the sampling settings, from the next reply on.
    ///
    /// # Errors
    /// If a value is out of range. The settings are then unchanged.
    pub fn set_sampling(&mut self, sampling: SamplingOptions) -> Result<(), GenerateError> {
        sampling.check()?;
        self.options.sampling = sampling;
        Ok(())
    }

    /// Sets the maximum length of a reply in tokens. 0 becomes 1.
    pub fn set_max_new_tokens(&mut self, tokens: usize) {
        self.options.max_new_tokens = tokens.max(1);
    }

    /// Clears the history. The system prompt stays.
    pub fn reset(&mut self) {
        self.history.clear();
    }

    /// Returns the whole conversation, with the system prompt first.
    pub fn messages(&self) -> Vec<Message> {
        self.with_system(&self.history)
    }

    /// Generates the reply to the message `user`. `on_text` receives the text while it is generated, always
    /// in complete characters, and can stop the reply. After a stop, the history contains the text up to that
    /// point.
    ///
    /// # Errors
    /// If the prompt exceeds the context even without old messages, the template rejects the conversation, or
    /// every logit is NaN or minus infinity. The history is then unchanged.
    pub fn reply(
        &mut self,
        user: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<ChatReply, GenerateError> {
        let mut history = self.history.clone();
        history.push(Message::new("user", user));
        let (prompt, forgotten) = self.prompt(&history)?;
        // Each turn has its own random numbers, which are the same in every run.
        let mut options = self.options.clone();
        options.sampling.seed = options.sampling.seed.wrapping_add(self.history.len() as u64);

        let mut stream = self.tokenizer.decode_stream(true);
        let mut text = String::new();
        let mut say = |piece: Option<String>| match piece {
            None => ControlFlow::Continue(()),
            Some(piece) => {
                text.push_str(&piece);
                on_text(&piece)
            }
        };
        let mut on_token = |id| say(stream.push(id));
        let generated =
            generate_in(&mut self.engine, self.slot, self.context, &prompt, &options, &mut on_token)?;
        // The reply has already ended, so a request to stop has no effect.
        let _ = say(stream.finish());
        history.push(Message::new("assistant", &text));
        self.history = history;
        Ok(ChatReply { text, generated, forgotten })
    }

    /// Returns the tokens of the prompt, and the number of old messages that are left out to leave room for a
    /// reply.
    fn prompt(&self, history: &[Message]) -> Result<(Vec<u32>, usize), GenerateError> {
        let capacity = self.context;
        let room = capacity - self.options.max_new_tokens.min(capacity / 2);
        let mut forgotten = 0;
        loop {
            let text = self.tokenizer.template()?.render(&self.with_system(&history[forgotten..]), true)?;
            let ids = self.tokenizer.encode(&text)?;
            // A question is removed together with its answer. The newest message is never removed.
            if ids.len() <= room || forgotten + 2 >= history.len() {
                if ids.len() > capacity {
                    return Err(GenerateError::PromptTooLong { prompt: ids.len(), context: capacity });
                }
                return Ok((ids, forgotten));
            }
            forgotten += 2;
        }
    }

    fn with_system(&self, history: &[Message]) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        system.chain(history.iter().cloned()).collect()
    }
}
