//! Excludes the tokens that a grammar does not allow.
//!
//! Computing a mask takes about 50 microseconds, and sometimes milliseconds. A separate thread computes the
//! mask of the next token while the model computes the logits.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use llguidance::Matcher;
use llguidance::toktrie::{SimpleVob, TokTrie};

use super::GrammarFactory;

/// A matcher that needs its next mask.
struct MaskJob {
    matcher: Box<Matcher>,
    /// The token that was chosen since the last mask.
    token: Option<u32>,
    done: SyncSender<Masked>,
}

/// A matcher with the mask of its next token.
struct Masked {
    matcher: Box<Matcher>,
    mask: Result<SimpleVob, String>,
}

/// Sends work to the thread that computes masks. The thread ends after the last sender was dropped.
#[derive(Clone)]
pub(crate) struct MaskWorker(Sender<MaskJob>);

impl MaskWorker {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start() -> std::io::Result<Self> {
        let (jobs, receiver) = channel::<MaskJob>();
        let run = move || {
            for MaskJob { mut matcher, token, done } in receiver {
                let consumed = token.map_or(Ok(()), |token| matcher.consume_token(token));
                let mask = consumed.and_then(|()| matcher.compute_mask_or_eos());
                let mask = mask.map_err(|error| error.to_string());
                // The send fails if the sequence has ended.
                let _ = done.send(Masked { matcher, mask });
            }
        };
        thread::Builder::new().name("grammar".to_owned()).spawn(run)?;
        Ok(Self(jobs))
    }

    /// Requests the mask after `token`.
    fn request(&self, matcher: Box<Matcher>, token: Option<u32>) -> MaskState {
        let (done, masked) = sync_channel(1);
        // If the thread has ended, the receiver returns an error.
        let _ = self.0.send(MaskJob { matcher, token, done });
        MaskState::Requested(masked)
    }
}

/// The text after which a grammar applies, such as `<tool_call>`.
#[derive(Clone)]
pub(crate) struct Trigger {
    pub text: String,
    pub factory: Arc<GrammarFactory>,
}

enum MaskState {
    /// Every token is allowed until the trigger occurs in the reply. `tail` is the end of the reply's text.
    Free { matcher: Box<Matcher>, trigger: Trigger, tail: Vec<u8> },
    /// The worker computes the next mask.
    Requested(Receiver<Masked>),
    /// The mask was applied, and the next token is not chosen yet.
    Used(Box<Matcher>),
    /// The worker has ended, or the grammar failed.
    Failed(String),
}

/// Excludes the tokens that the grammar of one reply does not allow. Each of the `n` replies to a request has
/// its own mask.
pub(crate) struct TokenMask {
    state: MaskState,
    worker: MaskWorker,
}

impl TokenMask {
    /// Returns the mask of a new reply. With a trigger, the grammar applies to the text after the trigger.
    pub fn new(matcher: &Matcher, trigger: Option<Trigger>, worker: MaskWorker) -> Self {
        let matcher = Box::new(matcher.clone());
        let state = match trigger {
            Some(trigger) => MaskState::Free { matcher, trigger, tail: Vec::new() },
            None => worker.request(matcher, None),
        };
        Self { state, worker }
    }

    /// Sets the logits of the tokens that the grammar does not allow to minus infinity. Changes nothing
    /// before the trigger.
    ///
    /// # Errors
    /// If the grammar is too complex, or the worker has ended.
    pub fn apply(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let masked = match &self.state {
            MaskState::Free { .. } | MaskState::Used(_) => return Ok(()),
            MaskState::Failed(reason) => return Err(reason.clone()),
            MaskState::Requested(masked) => masked.recv(),
        };
        let failed = match masked {
            Err(_) => "the thread of grammars has ended".to_owned(),
            Ok(Masked { mask: Err(reason), .. }) => format!("the grammar fails: {reason}"),
            Ok(Masked { mask: Ok(mask), matcher }) => {
                mask.iter_unset_entries(|id| {
                    if let Some(logit) = logits.get_mut(id) {
                        *logit = f32::NEG_INFINITY;
                    }
                });
                self.state = MaskState::Used(matcher);
                return Ok(());
            }
        };
        self.state = MaskState::Failed(failed.clone());
        Err(failed)
    }

    /// Reads the chosen token, and requests the mask for the next token.
    pub fn advance(&mut self, id: u32) {
        let state = std::mem::replace(&mut self.state, MaskState::Failed(String::new()));
        self.state = match state {
            MaskState::Used(matcher) => self.worker.request(matcher, Some(id)),
            MaskState::Free { matcher, trigger, mut tail } => {
                let trie = trigger.factory.tokens().tok_trie();
                tail.extend(text_of(trie, id));
                match after_trigger(&mut tail, trigger.text.as_bytes()) {
                    Some(rest) => match begun(&matcher, trie, &rest) {
                        Some(begun) => self.worker.request(begun, None),
                        // The text after the trigger is no call, so every token stays allowed.
                        None => MaskState::Free { matcher, tail: Vec::new(), trigger },
                    },
                    None => MaskState::Free { matcher, trigger, tail },
                }
            }
            other => other,
        };
    }
}

/// Returns the bytes of a token's text.
fn text_of(trie: &TokTrie, id: u32) -> &[u8] {
    let bytes = trie.token(id);
    bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
}

/// Returns the bytes after the trigger. Shortens `tail` to the bytes that can become a part of the trigger.
fn after_trigger(tail: &mut Vec<u8>, trigger: &[u8]) -> Option<Vec<u8>> {
    let found = tail.windows(trigger.len()).position(|window| window == trigger);
    if let Some(at) = found {
        return Some(tail.split_off(at + trigger.len()));
    }
    tail.drain(..tail.len().saturating_sub(trigger.len() - 1));
    None
}

/// Returns a matcher that has read `rest`, or `None` if the grammar does not allow `rest`.
fn begun(matcher: &Matcher, trie: &TokTrie, rest: &[u8]) -> Option<Box<Matcher>> {
    let mut matcher = Box::new(matcher.clone());
    let ids = trie.greedy_tokenize(rest);
    let is_read = matcher.try_consume_tokens(&ids).is_ok_and(|read| read == ids.len());
    is_read.then_some(matcher)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_over_several_tokens_is_found_once() {
        let mut tail = Vec::new();
        let mut push = |bytes: &[u8]| {
            tail.extend(bytes);
            after_trigger(&mut tail, b"<call>")
        };
        assert_eq!(push(b"some text <ca"), None);
        assert_eq!(push(b"ll"), None);
        assert_eq!(push(b">{\"a"), Some(b"{\"a".to_vec()));
    }
}
