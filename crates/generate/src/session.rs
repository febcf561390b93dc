//! A conversation: history in, streamed text out.

use std::ops::ControlFlow;
use std::sync::Arc;

use danlu_model::{Decoder, LoraSource, Message, SlotId, Tokenizer};

use crate::generate::generate_in;
use crate::{Engine, GenerateError, GenerateOptions, Generated};

/// The assistant's reply, with its token counts and times.
#[derive(Clone, Debug)]
pub struct ChatReply {
    /// The reply, complete characters only.
    pub text: String,
    /// Tokens and times.
    pub generated: Generated,
    /// Messages left out of this prompt, oldest first, because the context is full.
    pub forgotten: usize,
}

/// A chat with one model: system prompt, history, and the keys and values of the conversation so far.
pub struct ChatSession<'a> {
    tokenizer: &'a Tokenizer,
    engine: Engine<'a>,
    slot: SlotId,
    /// Most tokens of a prompt and its reply.
    context: usize,
    options: GenerateOptions,
    system: Option<String>,
    history: Vec<Message>,
}

impl<'a> ChatSession<'a> {
    /// A chat of at most `context_tokens`, or of the model's maximum if that is less. The tokenizer's end
    /// tokens are added to `options.stop_ids`.
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

    /// The system prompt, if one is set.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Sets or removes the system prompt; the history stays.
    pub fn set_system(&mut self, system: Option<String>) {
        self.system = system;
    }

    /// Every message so far, without the system prompt.
    pub fn history(&self) -> &[Message] {
        &self.history
    }

    /// Forgets the history; the system prompt stays.
    pub fn reset(&mut self) {
        self.history.clear();
    }

    /// The whole conversation as messages, system prompt first.
    pub fn messages(&self) -> Vec<Message> {
        self.with_system(&self.history)
    }

    /// Answers `user`. `on_text` gets the reply piece by piece, in whole characters, and may stop it. The
    /// text up to then stays in the history.
    ///
    /// # Errors
    /// If the message alone does not fit, the template refuses the conversation, or the model gives no
    /// usable logit. The history is then as before.
    pub fn reply(
        &mut self,
        user: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<ChatReply, GenerateError> {
        let mut history = self.history.clone();
        history.push(Message::new("user", user));
        let (prompt, forgotten) = self.prompt(&history)?;
        // Every turn draws its own numbers, the same on every run.
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
        // The reply has ended, so there is nothing left to stop.
        let _ = say(stream.finish());
        history.push(Message::new("assistant", &text));
        self.history = history;
        Ok(ChatReply { text, generated, forgotten })
    }

    /// The prompt's tokens, with as much of `history` as leaves room for a reply, and how many messages
    /// were left out.
    fn prompt(&self, history: &[Message]) -> Result<(Vec<u32>, usize), GenerateError> {
        let capacity = self.context;
        let room = capacity - self.options.max_new_tokens.min(capacity / 2);
        let mut forgotten = 0;
        loop {
            let text = self.tokenizer.template()?.render(&self.with_system(&history[forgotten..]), true)?;
            let ids = self.tokenizer.encode(&text)?;
            // A question and its answer leave together; the newest message always stays.
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
