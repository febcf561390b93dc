//! Encodes a long text window by window.
//!
//! The tokenizers library stores some 256 bytes for each byte of a text, so a long text is never encoded at once.
//! The ids equal those of the whole text:
//!
//! ```text
//! window = the start of the text
//! while window does not reach the end of the text:
//!     next = a window that starts at a token near the end of `window`
//!     run  = the longest run of tokens that `window` and `next` share
//!     emit the tokens of `window` up to the middle of `run`
//!     go on behind the middle of `run` in `next`
//! ```
//!
//! Both edges of a window change tokens: words are cut, and a prefix may be added. The overlap must share
//! `MIN_RUN` tokens, so that edges lie outside. Inside a word, the join is exact for byte-pair encoding: the first
//! merge across the join would happen between its two tokens, and `window` shows that they do not merge. Other
//! models are joined between words only.

use std::ops::{ControlFlow, Range};

/// Bytes of a window.
const WINDOW_BYTES: usize = 256 << 10;

/// Most bytes of a window that grows because it shares too few tokens with the next.
const MAX_WINDOW_BYTES: usize = 4 << 20;

/// Fewest tokens that two windows share at their join.
const MIN_RUN: usize = 32;

/// Most characters by which the start of a window is shifted until it shares tokens with the one before.
const MAX_SHIFT: usize = 16;

/// A token of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextToken {
    pub id: u32,
    /// Bytes of the text.
    pub range: Range<usize>,
    /// The word of its window.
    pub word: Option<u32>,
}

/// Sizes of windows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowOptions {
    pub bytes: usize,
    pub max_bytes: usize,
    /// Whether windows are joined between words only.
    pub between_words: bool,
}

impl WindowOptions {
    /// The sizes in use.
    pub fn new(between_words: bool) -> Self {
        Self { bytes: WINDOW_BYTES, max_bytes: MAX_WINDOW_BYTES, between_words }
    }
}

/// The reason why a text has no tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WindowFault<E> {
    /// A window was not encoded.
    Encode(E),
    /// A window of the largest size, at this byte, shares too few tokens with the next.
    Indivisible(usize),
}

impl<E> From<E> for WindowFault<E> {
    fn from(error: E) -> Self {
        Self::Encode(error)
    }
}

/// Passes the tokens of `text` to `visit` in order, until `visit` breaks. `encode` encodes one window.
///
/// # Errors
/// If `encode` fails, or two windows cannot be joined.
pub(crate) fn encode_windows<E>(
    text: &str,
    options: WindowOptions,
    encode: &dyn Fn(&str) -> Result<Vec<TextToken>, E>,
    visit: &mut dyn FnMut(&[TextToken]) -> ControlFlow<()>,
) -> Result<(), WindowFault<E>> {
    let mut window = Window::read(text, 0, options.bytes, encode)?;
    let mut first = 0;
    while window.end < text.len() {
        let (next, [here, there]) = match join_next(text, &window, options, encode)? {
            Some(joined) => joined,
            None if window.len() >= options.max_bytes => return Err(WindowFault::Indivisible(window.start)),
            None => {
                // The tokens before `first` are emitted, and a longer window begins alike.
                window = Window::read(text, window.start, 2 * window.len(), encode)?;
                continue;
            }
        };
        if visit(&window.tokens[first..here]).is_break() {
            return Ok(());
        }
        (window, first) = (next, there);
    }
    // Nothing follows, so the answer of `visit` has no effect.
    let _ = visit(&window.tokens[first..]);
    Ok(())
}

/// A piece of a text with its tokens.
struct Window {
    start: usize,
    end: usize,
    tokens: Vec<TextToken>,
}

impl Window {
    /// Encodes at most `bytes` bytes of `text` from `start` on.
    fn read<E>(
        text: &str,
        start: usize,
        bytes: usize,
        encode: &dyn Fn(&str) -> Result<Vec<TextToken>, E>,
    ) -> Result<Self, E> {
        let end = text.floor_char_boundary(start.saturating_add(bytes));
        let mut tokens = encode(&text[start..end])?;
        for token in &mut tokens {
            token.range = token.range.start + start..token.range.end + start;
        }
        Ok(Self { start, end, tokens })
    }

    fn len(&self) -> usize {
        self.end - self.start
    }
}

/// Reads the window after `window`. Returns it with the positions of the join in the tokens of both, or `None` if the
/// windows share too few tokens.
fn join_next<E>(
    text: &str,
    window: &Window,
    options: WindowOptions,
    encode: &dyn Fn(&str) -> Result<Vec<TextToken>, E>,
) -> Result<Option<(Window, [usize; 2])>, E> {
    let after = |overlap: usize| first_token_after(text, &window.tokens, window.end - overlap);
    let near = after(window.len() / 32);
    let far = after(window.len() / 4);
    // In a run of one character, a prefix shifts all tokens of a window. Another start shifts them back.
    let shifts = if options.between_words { 0 } else { MAX_SHIFT };
    let shifted = near.into_iter().flat_map(|from| (1..=shifts).map(move |shift| (from, shift)));
    for (from, shift) in near.into_iter().chain(far).map(|from| (from, 0)).chain(shifted) {
        let begin = window.tokens[from].range.start;
        let Some(start) = text[begin..].char_indices().nth(shift).map(|(at, _)| begin + at) else { continue };
        let next = Window::read(text, start, options.bytes, encode)?;
        // A window of one long word may be shorter than the overlap, and would not go on.
        if next.end > window.end
            && let Some(join) = join(&window.tokens[from..], &next.tokens, options.between_words)
        {
            return Ok(Some((next, [from + join[0], join[1]])));
        }
    }
    Ok(None)
}

/// Returns the first token that begins at or after byte `start`, and shares no character with the token before it.
fn first_token_after(text: &str, tokens: &[TextToken], start: usize) -> Option<usize> {
    let from = tokens.partition_point(|token| token.range.start < start);
    (from.max(1)..tokens.len()).find(|&at| {
        let begin = tokens[at].range.start;
        tokens[at - 1].range.end <= begin && text.is_char_boundary(begin)
    })
}

/// Returns the positions in both lists of the middle of the longest run of tokens that they share.
fn join(left: &[TextToken], right: &[TextToken], between_words: bool) -> Option<[usize; 2]> {
    let is_same = |l: &TextToken, r: &TextToken| l.id == r.id && l.range == r.range;
    let (mut l, mut r, mut run) = (0, 0, 0);
    // The length of the longest run, and its end in both lists.
    let mut longest = (0, 0, 0);
    while let (Some(a), Some(b)) = (left.get(l), right.get(r)) {
        if is_same(a, b) {
            (l, r, run) = (l + 1, r + 1, run + 1);
            if run > longest.0 {
                longest = (run, l, r);
            }
        } else {
            run = 0;
            let (a, b) = (a.range.start, b.range.start);
            l += usize::from(a <= b);
            r += usize::from(b <= a);
        }
    }
    let (length, l, r) = longest;
    if length < MIN_RUN {
        return None;
    }
    let margin = MIN_RUN / 2;
    let begins_word = |tokens: &[TextToken], at: usize| tokens[at].word != tokens[at - 1].word;
    // The number of tokens behind the join, nearest to the middle first.
    let mut behind: Vec<usize> = (margin..=length - margin).collect();
    behind.sort_by_key(|n| n.abs_diff(length / 2));
    let is_join = |n: &usize| !between_words || begins_word(left, l - n) && begins_word(right, r - n);
    behind.into_iter().find(is_join).map(|n| [l - n, r - n])
}

#[cfg(test)]
#[path = "encode_windows_tests.rs"]
mod tests;
