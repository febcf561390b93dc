//! Builds and validates conversations.

use danlu_model::Message;

use crate::record::{Conversation, Mismatch, RecordContent, RecordFault, TurnLoss};

/// Maximum number of messages in a conversation. The time of [`encode`](crate::encode()) is quadratic in the
/// number of messages.
const MAX_MESSAGES: usize = 4096;

impl Conversation {
    /// Adds a message.
    pub fn push(&mut self, message: Message, loss: TurnLoss) {
        self.messages.push(message);
        self.loss.push(loss);
    }

    /// Adds a question and its answer. Only the answer has a loss.
    pub(crate) fn push_exchange(&mut self, question: impl Into<String>, answer: impl Into<String>) {
        self.push(message("user", question), TurnLoss::Context);
        self.push(message("assistant", answer), TurnLoss::Whole);
    }

    /// Adds a system message unless `text` is blank. In most data sets, a blank text means that there is no
    /// system message.
    pub(crate) fn push_system(&mut self, text: Option<&str>) {
        if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
            self.push(message("system", text), TurnLoss::Context);
        }
    }

    /// Iterates over the messages that have a loss.
    pub fn answers(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().zip(&self.loss).filter(|(_, loss)| loss.is_trained()).map(|(message, _)| message)
    }

    /// Returns the system message, if there is one.
    pub fn system(&self) -> Option<&str> {
        let first = self.messages.first()?;
        (first.role == "system").then_some(first.content.as_str())
    }

    /// Returns the conversation with `text` as its system message. Returns `None` if the conversation already
    /// has a system message or if `text` is blank.
    pub(crate) fn with_default_system(&self, text: Option<&str>) -> Option<Self> {
        let mut chat = Self { tools: self.tools.clone(), ..Self::default() };
        chat.push_system(text.filter(|_| self.system().is_none()));
        if chat.messages.is_empty() {
            return None;
        }
        chat.messages.extend(self.messages.iter().cloned());
        chat.loss.extend(self.loss.iter().cloned());
        Some(chat)
    }
}

pub(crate) fn message(role: &str, content: impl Into<String>) -> Message {
    Message::new(role, content)
}

/// Validates everything except the order of the roles, which the chat template checks.
pub(crate) fn validate(mut chat: Conversation) -> Result<RecordContent, Mismatch> {
    if chat.messages.len() > MAX_MESSAGES {
        let found = format!("a conversation of {} messages", chat.messages.len());
        return Err(Mismatch::new(RecordFault::Unsupported, found, format!("at most {MAX_MESSAGES}")));
    }
    let blank = |message: &Message| message.content.trim().is_empty() && message.extra.is_empty();
    for (index, message) in chat.messages.iter().enumerate() {
        // An empty system message switches off the default system message of a template.
        let is_system = index == 0 && message.role == "system";
        if blank(message) && !is_system {
            let found = format!("an empty `{}` message (message {})", message.role, index + 1);
            return Err(Mismatch::new(RecordFault::Empty, found, "text"));
        }
    }
    if chat.answers().next().is_none() {
        let found = match chat.messages.len() {
            0 => "no messages".to_owned(),
            _ if chat.messages.iter().any(|message| message.role == "assistant") => {
                "a conversation whose answers are all masked".to_owned()
            }
            n => format!("{n} message{} and none by the assistant", if n == 1 { "" } else { "s" }),
        };
        let fault = if chat.loss.contains(&TurnLoss::Masked) {
            RecordFault::Untrained
        } else {
            RecordFault::Conversation
        };
        return Err(Mismatch::new(fault, found, "an `assistant` message to learn from"));
    }
    // `push` reserves room for at least four messages. In a file of millions of records, unused room adds up.
    chat.messages.shrink_to_fit();
    chat.loss.shrink_to_fit();
    Ok(RecordContent::Chat(chat))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(roles: &[(&str, &str)]) -> Result<RecordContent, String> {
        let mut chat = Conversation::default();
        for (role, content) in roles {
            let loss = if *role == "assistant" { TurnLoss::Whole } else { TurnLoss::Context };
            chat.push(message(role, *content), loss);
        }
        validate(chat).map_err(|mismatch| format!("{} | {}", mismatch.found, mismatch.expected))
    }

    #[test]
    fn a_conversation_without_an_answer_is_rejected() {
        let refused = |roles: &[(&str, &str)]| check(roles).unwrap_err();
        assert_eq!(refused(&[]), "no messages | an `assistant` message to learn from");
        assert_eq!(
            refused(&[("user", "hi")]),
            "1 message and none by the assistant | an `assistant` message to learn from"
        );
        assert_eq!(
            refused(&[("user", "hi"), ("assistant", " \n")]),
            "an empty `assistant` message (message 2) | text"
        );
    }

    #[test]
    fn a_blank_system_message_stays() {
        let RecordContent::Chat(chat) =
            check(&[("system", ""), ("user", "hi"), ("assistant", "ho")]).unwrap()
        else {
            panic!("a chat")
        };
        assert_eq!(chat.system(), Some(""));
        assert_eq!(chat.messages.len(), 3);
        assert_eq!(chat.with_default_system(Some("s")), None);
    }
}
