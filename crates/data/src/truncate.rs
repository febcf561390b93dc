//! Shortens a conversation. The last answer is never cut, because the model learns from the end of an answer
//! when to stop.

use danlu_model::{Message, ModelError};

use crate::record::{Conversation, TurnLoss};

/// Length in bytes of the suffix that [`longest_end`] tests first. The next suffixes are longer.
const SHORTEST_END: usize = 1 << 12;

/// Result of [`truncate`].
#[derive(Debug, PartialEq)]
pub(crate) enum Fit {
    /// A shorter conversation that fits.
    Shorter(Conversation),
    /// No shorter conversation fits.
    Never,
}

/// Returns the longest shortened conversation for which `fits` returns true.
///
/// Text is removed in this order: messages after the last answer, the first turns, and the start of the last
/// question. The system message is never removed.
pub(crate) fn truncate(
    chat: &Conversation,
    fits: &dyn Fn(&[Message]) -> Result<bool, ModelError>,
) -> Result<Fit, ModelError> {
    let Some(last_answer) = chat.loss.iter().rposition(TurnLoss::is_trained) else {
        return Ok(Fit::Never);
    };
    let system = usize::from(chat.system().is_some());
    let turns = &chat.messages[system..=last_answer];
    let loss = &chat.loss[system..=last_answer];

    // Returns the system message and all turns that start at index `start` or later.
    let from = |start: usize| {
        let messages = [&chat.messages[..system], &turns[start..]].concat();
        let loss = [&chat.loss[..system], &loss[start..]].concat();
        Conversation { messages, loss, tools: chat.tools.clone() }
    };
    // A shortened conversation starts with a user message.
    let starts: Vec<usize> =
        (0..turns.len()).filter(|&start| start == 0 || turns[start].role == "user").collect();
    let shorter = first_that_fits(starts.len(), &|index| fits(&from(starts[index]).messages))?;
    if let Some(index) = shorter {
        return Ok(Fit::Shorter(from(starts[index])));
    }

    // The last question and its answer do not fit, so the start of the question is removed.
    let chat = from(starts.last().copied().unwrap_or(0));
    let is_question = |at: &usize| chat.messages[*at].role == "user" && !chat.loss[*at].is_trained();
    let Some(question) = (0..chat.messages.len()).rev().find(is_question) else {
        return Ok(Fit::Never);
    };
    let mut chat = chat;
    let text = std::mem::take(&mut chat.messages[question].content);
    let cut_at = |at: usize| {
        let mut chat = chat.clone();
        text[at..].clone_into(&mut chat.messages[question].content);
        chat
    };
    let longest = longest_end(&text, &|at| fits(&cut_at(at).messages))?;
    // A question of white space only is not accepted.
    Ok(match longest.map(cut_at) {
        Some(chat) if !chat.messages[question].content.trim().is_empty() => Fit::Shorter(chat),
        _ => Fit::Never,
    })
}

/// Returns the start of the longest suffix of `text` that fits. The suffix is shorter than `text` and has at
/// least one character.
///
/// Suffixes are tested from short to long, so the time depends on the length of the result and not on the
/// length of `text`.
fn longest_end(
    text: &str,
    fits: &dyn Fn(usize) -> Result<bool, ModelError>,
) -> Result<Option<usize>, ModelError> {
    let first = text.ceil_char_boundary(1);
    let mut end = text.len();
    for length in (SHORTEST_END.ilog2()..usize::BITS).map(|bits| 1usize << bits) {
        let start = text.ceil_char_boundary(text.len().saturating_sub(length)).max(first);
        if start >= end || !fits(start)? {
            // The longest suffix that fits starts between `start` and `end`.
            let cuts: Vec<usize> =
                text[start.min(end)..end].char_indices().map(|(at, _)| start + at).collect();
            let found = first_that_fits(cuts.len(), &|index| fits(cuts[index]))?;
            return Ok(found.map(|index| cuts[index]).or((end < text.len()).then_some(end)));
        }
        end = start;
    }
    Ok((end < text.len()).then_some(end))
}

/// Finds the smallest index below `len` that fits. The binary search assumes that a larger index gives a
/// shorter text.
///
/// A shorter text sometimes has more tokens, so the returned index may not be the smallest that fits. In any
/// case, `fits` has accepted the returned index.
fn first_that_fits(
    len: usize,
    fits: &dyn Fn(usize) -> Result<bool, ModelError>,
) -> Result<Option<usize>, ModelError> {
    let (mut low, mut high, mut best) = (0, len, None);
    while low < high {
        let middle = low + (high - low) / 2;
        if fits(middle)? {
            (high, best) = (middle, Some(middle));
        } else {
            low = middle + 1;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns a length of one token per character and two tokens per message.
    fn length(messages: &[Message]) -> usize {
        messages.iter().map(|message| message.content.chars().count() + 2).sum()
    }

    fn chat(turns: &[(&str, &str)], trained_from: usize) -> Conversation {
        let messages = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        let loss = (0..turns.len()).map(|at| loss_of(turns[at].0, at >= trained_from)).collect();
        Conversation { messages, loss, tools: Vec::new() }
    }

    fn loss_of(role: &str, trained: bool) -> TurnLoss {
        if role == "assistant" && trained { TurnLoss::Whole } else { TurnLoss::Context }
    }

    fn to(chat: &Conversation, budget: usize) -> Fit {
        truncate(chat, &|messages| Ok(length(messages) <= budget)).unwrap()
    }

    #[test]
    fn first_turns_are_removed_before_the_question_is_cut() {
        let long = chat(
            &[
                ("system", "s"),
                ("user", "aaaa"),
                ("assistant", "b"),
                ("user", "cdef"),
                ("assistant", "g"),
                ("user", "never answered"),
            ],
            0,
        );
        let whole =
            &[("system", "s"), ("user", "aaaa"), ("assistant", "b"), ("user", "cdef"), ("assistant", "g")];
        assert_eq!(to(&long, 21), Fit::Shorter(chat(whole, 0)));
        let last = &[("system", "s"), ("user", "cdef"), ("assistant", "g")];
        assert_eq!(to(&long, 20), Fit::Shorter(chat(last, 0)));
        let cut = &[("system", "s"), ("user", "ef"), ("assistant", "g")];
        assert_eq!(to(&long, 10), Fit::Shorter(chat(cut, 0)));
        assert_eq!(to(&long, 8), Fit::Never);
    }

    #[test]
    fn context_answers_stay_context() {
        let turns = &[("system", "s"), ("user", "aa"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
        assert_eq!(to(&chat(turns, 4), 11), Fit::Shorter(chat(&[turns[0], turns[3], turns[4]], 2)));
        assert_eq!(to(&chat(turns, 0), 11), Fit::Shorter(chat(&[turns[0], turns[3], turns[4]], 0)));
    }

    #[test]
    fn an_answer_without_a_question_is_kept_or_dropped_whole() {
        let alone = chat(&[("assistant", "abc")], 0);
        assert_eq!(to(&alone, 5), Fit::Shorter(alone.clone()));
        assert_eq!(to(&alone, 4), Fit::Never);
    }

    #[test]
    fn a_long_question_is_cut_where_a_character_more_is_too_much() {
        for (text, len) in [("a", 30_000), ("嬛", 9_000), ("é", 2_048)] {
            let long = chat(&[("user", &text.repeat(len)), ("assistant", "b")], 0);
            for kept in [1, 2, 1365, 1366, 2047, 4096, 8000].into_iter().filter(|kept| *kept < len) {
                let cut = chat(&[("user", &text.repeat(kept)), ("assistant", "b")], 0);
                assert_eq!(to(&long, kept + 5), Fit::Shorter(cut));
            }
            assert_eq!(to(&long, 5), Fit::Never);
        }
    }

    proptest! {
        #[test]
        fn the_result_fits_and_ends_in_the_whole_last_answer(
            turns in prop::collection::vec((0..2usize, "[a-z ]{1,12}"), 1..9),
            system in prop::option::of("[a-z]{1,5}"),
            budget in 0..60usize,
        ) {
            let mut messages: Vec<Message> = system.iter().map(|text| Message::new("system", text)).collect();
            messages.extend(turns.iter().map(|(role, text)| Message::new(["user", "assistant"][*role], text)));
            let loss = messages.iter().map(|message| loss_of(&message.role, true)).collect();
            let chat = Conversation { messages, loss, tools: Vec::new() };
            let answer = chat.messages.iter().rfind(|message| message.role == "assistant");
            match to(&chat, budget) {
                Fit::Never => {
                    // Nothing fits only if the budget has no room for the system message, the last answers
                    // and a whole question. A question has at most 12 characters.
                    let answers = turns.iter().rev().skip_while(|turn| turn.0 == 0).take_while(|turn| turn.0 == 1);
                    let least: usize = answers.map(|turn| turn.1.len() + 2).sum();
                    let system = system.map_or(0, |text| text.len() + 2);
                    prop_assert!(answer.is_none() || budget < least + system + 14, "{chat:?} within {budget}");
                }
                Fit::Shorter(kept) => {
                    prop_assert!(length(&kept.messages) <= budget);
                    prop_assert_eq!(kept.messages.last(), answer);
                    prop_assert_eq!(kept.system(), chat.system());
                    prop_assert!(kept.messages.len() <= chat.messages.len());
                }
            }
        }
    }
}
