//! Encodes a long text window by window.
//!
//! The tokenizers library needs some 256 bytes of memory for each byte of a text. Therefore danlu never
//! encodes a long text as a whole. The resulting ids are the same as for the whole text:
//!
//! ```text
//! window = the start of the text
//! while window does not reach the end of the text:
//!     next = a window that starts at a token near the end of `window`
//!     run  = the longest run of tokens that `window` and `next` share
//!     emit the tokens of `window` up to the middle of `run`
//!     continue after the middle of `run` in `next`
//! ```
//!
//! The tokens at both edges of a window may be wrong: words are cut, and the tokenizer may add a prefix such
//! as `▁`. The two windows must share `MIN_RUN` tokens, so that these edges are outside the shared run. For
//! byte-pair encoding, a join inside a word is also exact. The first merge across the join would merge the
//! two tokens at the join, but `window` shows that these tokens are not merged. For other tokenizers, windows
//! are joined only between words.

use std::ops::{ControlFlow, Range};

/// Size of a window in bytes.
const WINDOW_BYTES: usize = 256 << 10;

/// Maximum size of a window. A window grows if it shares too few tokens with the next window.
const MAX_WINDOW_BYTES: usize = 4 << 20;

/// Minimum number of tokens that two windows share where they are joined.
const MIN_RUN: usize = 32;

/// Maximum number of characters by which the start of a window is shifted. The start is shifted until the
/// window shares enough tokens with the previous window.
const MAX_SHIFT: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextToken {
    pub id: u32,
    /// Byte range of the token in the text.
    pub range: Range<usize>,
    /// Index of the word in its window, if the token belongs to a word.
    pub word: Option<u32>,
}

/// Sizes of windows, and the places where two windows may be joined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowOptions {
    pub bytes: usize,
    pub max_bytes: usize,
    /// Whether windows are joined between words only.
    pub between_words: bool,
}

impl WindowOptions {
    pub fn new(between_words: bool) -> Self {
        Self { bytes: WINDOW_BYTES, max_bytes: MAX_WINDOW_BYTES, between_words }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WindowFault<E> {
    /// A window could not be encoded.
    Encode(E),
    /// The window that starts at this byte has the maximum size, and still shares too few tokens with the
    /// next window.
    Indivisible(usize),
}

impl<E> From<E> for WindowFault<E> {
    fn from(error: E) -> Self {
        Self::Encode(error)
    }
}

/// Passes the tokens of `text` to `visit` in order, until `visit` breaks. `encode` returns the tokens of one
/// window.
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
                // The tokens before `first` were already emitted. A longer window starts with the same
                // tokens.
                window = Window::read(text, window.start, 2 * window.len(), encode)?;
                continue;
            }
        };
        if visit(&window.tokens[first..here]).is_break() {
            return Ok(());
        }
        (window, first) = (next, there);
    }
    // This was the last call of `visit`, so its return value has no effect.
    let _ = visit(&window.tokens[first..]);
    Ok(())
}

struct Window {
    start: usize,
    end: usize,
    tokens: Vec<TextToken>,
}

impl Window {
    /// Encodes at most `bytes` bytes of `text`, starting at byte `start`.
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

/// Reads a window that overlaps the end of `window`. Returns the new window, and the token at which the two
/// are joined, as an index into the tokens of each. Returns `None` if the windows share too few tokens.
fn join_next<E>(
    text: &str,
    window: &Window,
    options: WindowOptions,
    encode: &dyn Fn(&str) -> Result<Vec<TextToken>, E>,
) -> Result<Option<(Window, [usize; 2])>, E> {
    let after = |overlap: usize| first_token_after(text, &window.tokens, window.end - overlap);
    let near = after(window.len() / 32);
    let far = after(window.len() / 4);
    // In a long run of one character, such as `aaaa…`, the start of a window determines where its tokens
    // begin. A different start can align them with the tokens of the previous window.
    let shifts = if options.between_words { 0 } else { MAX_SHIFT };
    let shifted = near.into_iter().flat_map(|from| (1..=shifts).map(move |shift| (from, shift)));
    for (from, shift) in near.into_iter().chain(far).map(|from| (from, 0)).chain(shifted) {
        let begin = window.tokens[from].range.start;
        let Some(start) = text[begin..].char_indices().nth(shift).map(|(at, _)| begin + at) else { continue };
        let next = Window::read(text, start, options.bytes, encode)?;
        // If `window` was extended for one long word, the next window may end before `window` ends. Such a
        // window makes no progress.
        if next.end > window.end
            && let Some(join) = join(&window.tokens[from..], &next.tokens, options.between_words)
        {
            return Ok(Some((next, [from + join[0], join[1]])));
        }
    }
    Ok(None)
}

/// Returns the first token that starts at or after byte `start`. A token that shares a character with the
/// token before it is skipped.
fn first_token_after(text: &str, tokens: &[TextToken], start: usize) -> Option<usize> {
    let from = tokens.partition_point(|token| token.range.start < start);
    (from.max(1)..tokens.len()).find(|&at| {
        let begin = tokens[at].range.start;
        tokens[at - 1].range.end <= begin && text.is_char_boundary(begin)
    })
}

/// Finds the longest run of tokens that both lists share, and returns a position near its middle as an index
/// into each list. With `between_words`, a word starts at this position. Returns `None` if there is no such
/// position, or if the run is shorter than `MIN_RUN`.
fn join(left: &[TextToken], right: &[TextToken], between_words: bool) -> Option<[usize; 2]> {
    let is_same = |l: &TextToken, r: &TextToken| l.id == r.id && l.range == r.range;
    let (mut l, mut r, mut run) = (0, 0, 0);
    // The length of the longest run, and the end of this run in both lists.
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
    // Numbers of tokens by which the join can precede the end of the run. Numbers close to half of the run's
    // length come first.
    let mut behind: Vec<usize> = (margin..=length - margin).collect();
    behind.sort_by_key(|n| n.abs_diff(length / 2));
    let is_join = |n: &usize| !between_words || begins_word(left, l - n) && begins_word(right, r - n);
    behind.into_iter().find(is_join).map(|n| [l - n, r - n])
}

#[cfg(test)]
#[path = "encode_windows_tests.rs"]
mod tests;
