//! Validates conversations.

use danlu_model::Message;

use crate::record::{Conversation, Mismatch, RecordContent, RecordFault};

/// Most messages of one conversation. Finding the answers takes quadratic time.
const MAX_MESSAGES: usize = 4096;

/// Roles that every chat template supports.
pub(crate) const ROLES: [&str; 3] = ["system", "user", "assistant"];

impl Conversation {
    /// Assistant messages that are trained.
    pub fn answers(&self) -> impl Iterator<Item = &Message> {
        self.messages[self.trained_from..].iter().filter(|message| message.role == "assistant")
    }

    /// The system message, if there is one.
    pub fn system(&self) -> Option<&str> {
        let first = self.messages.first()?;
        (first.role == "system").then_some(first.content.as_str())
    }

    /// Returns the conversation with `text` as its system message, unless it has one or `text` is blank.
    pub(crate) fn with_default_system(&self, text: Option<&str>) -> Option<Self> {
        let text = system(text.filter(|_| self.system().is_none()))?;
        let messages = std::iter::once(text).chain(self.messages.iter().cloned()).collect();
        let trained_from = if self.trained_from == 0 { 0 } else { self.trained_from + 1 };
        Some(Self { messages, trained_from })
    }
}

/// Builds a message.
pub(crate) fn message(role: &str, content: impl Into<String>) -> Message {
    Message::new(role, content)
}

/// Builds a system message, or `None` for a blank text.
pub(crate) fn system(text: Option<&str>) -> Option<Message> {
    text.filter(|text| !text.trim().is_empty()).map(|text| message("system", text))
}

/// Validates messages as a conversation.
///
/// Two turns of one role in a row are legal here, because templates differ. The template may reject them.
pub(crate) fn conversation(
    mut messages: Vec<Message>,
    mut trained_from: usize,
) -> Result<RecordContent, Mismatch> {
    if messages.len() > MAX_MESSAGES {
        let found = format!("a conversation of {} messages", messages.len());
        return Err(Mismatch::new(RecordFault::Unsupported, found, format!("at most {MAX_MESSAGES}")));
    }
    let blank = |message: &Message| message.content.trim().is_empty();
    if messages.first().is_some_and(|first| first.role == "system" && blank(first)) {
        messages.remove(0);
        trained_from = trained_from.saturating_sub(1);
    }
    for (index, message) in messages.iter().enumerate() {
        if index > 0 && message.role == "system" {
            let found = format!("a `system` message as message {}", index + 1);
            return Err(Mismatch::new(
                RecordFault::Conversation,
                found,
                "`system` as the first message only",
            ));
        }
        if blank(message) {
            let found = format!("an empty `{}` message (message {})", message.role, index + 1);
            return Err(Mismatch::new(RecordFault::Empty, found, "text"));
        }
    }
    let conversation = Conversation { messages, trained_from };
    if conversation.answers().next().is_none() {
        let found = match conversation.messages.len() {
            0 => "no messages".to_owned(),
            n => format!("{n} message{} and none by the assistant", if n == 1 { "" } else { "s" }),
        };
        return Err(Mismatch::new(RecordFault::Conversation, found, "an `assistant` message to learn from"));
    }
    Ok(RecordContent::Chat(conversation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(roles: &[(&str, &str)]) -> Result<RecordContent, String> {
        let messages = roles.iter().map(|(role, content)| message(role, *content)).collect();
        conversation(messages, 0).map_err(|mismatch| format!("{} | {}", mismatch.found, mismatch.expected))
    }

    #[test]
    fn what_would_train_wrongly_is_refused() {
        let refused = |roles: &[(&str, &str)]| check(roles).unwrap_err();
        assert_eq!(refused(&[]), "no messages | an `assistant` message to learn from");
        assert_eq!(
            refused(&[("user", "hi")]),
            "1 message and none by the assistant | an `assistant` message to learn from"
        );
        assert_eq!(
            refused(&[("user", "hi"), ("system", "be kind"), ("assistant", "yes")]),
            "a `system` message as message 2 | `system` as the first message only"
        );
        assert_eq!(
            refused(&[("user", "hi"), ("assistant", " \n")]),
            "an empty `assistant` message (message 2) | text"
        );
    }

    #[test]
    fn a_blank_system_message_stands_for_none() {
        let RecordContent::Chat(chat) =
            check(&[("system", ""), ("user", "hi"), ("assistant", "ho")]).unwrap()
        else {
            panic!("a chat")
        };
        assert_eq!(chat.system(), None);
        assert_eq!(chat.messages.len(), 2);
        assert_eq!(chat.answers().count(), 1);
    }
}
