//! Finds stop strings, even if a stop string consists of several tokens.

/// Finds stop strings in a text that arrives in several pieces. If the end of the text may be the start of a
/// stop string, this end is not returned yet.
#[derive(Clone, Debug)]
pub(crate) struct StopText {
    stops: Vec<String>,
    /// Whether the returned text includes the stop string.
    includes_stop: bool,
    pending: String,
    stopped: Option<usize>,
}

impl StopText {
    pub fn new(stops: Vec<String>, includes_stop: bool) -> Self {
        Self { stops, includes_stop, pending: String::new(), stopped: None }
    }

    /// Returns the stop string that ended the text.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.map(|i| self.stops[i].as_str())
    }

    /// Adds a piece of text. Returns the text that can no longer be part of a stop string. If a stop string
    /// is found, returns the text before it, and the stop string itself if `includes_stop` is set. Later
    /// calls return an empty string.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.pending.push_str(piece);
        let found = |(i, stop): (usize, &String)| self.pending.find(stop.as_str()).map(|at| (at, i));
        // If the text contains several stop strings, the one that ends first is used.
        let first =
            self.stops.iter().enumerate().filter_map(found).min_by_key(|&(at, i)| at + self.stops[i].len());
        if let Some((at, i)) = first {
            self.stopped = Some(i);
            let end = if self.includes_stop { at + self.stops[i].len() } else { at };
            self.pending.truncate(end);
            return std::mem::take(&mut self.pending);
        }
        let held = self.held();
        let rest = self.pending.split_off(self.pending.len() - held);
        std::mem::replace(&mut self.pending, rest)
    }

    /// Returns the remaining text, which is not part of a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }

    /// Returns the length of the longest end of the text that is also the start of a stop string.
    fn held(&self) -> usize {
        self.stops.iter().map(|stop| overlap(&self.pending, stop)).max().unwrap_or(0)
    }
}

/// Returns the length of the longest end of `text` that is the start of `word`, but not the whole word.
pub(crate) fn overlap(text: &str, word: &str) -> usize {
    let longest = text.len().min(word.len().saturating_sub(1));
    let is_tail = |&n: &usize| {
        text.is_char_boundary(text.len() - n)
            && word.as_bytes().starts_with(&text.as_bytes()[text.len() - n..])
    };
    (1..=longest).rev().find(is_tail).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the output of each `push` and of `finish`, and the stop string that was found.
    fn run(stops: &[&str], includes_stop: bool, pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let mut text = StopText::new(stops.iter().map(|s| (*s).to_owned()).collect(), includes_stop);
        let mut out: Vec<String> = pieces.iter().map(|piece| text.push(piece)).collect();
        out.push(text.finish());
        (out, text.stopped().map(str::to_owned))
    }

    #[test]
    fn a_stop_string_over_three_pieces_leaks_nothing() {
        let (out, stopped) = run(&["</end>"], false, &["a<", "/e", "nd>b", "c"]);
        assert_eq!((out.concat().as_str(), stopped.as_deref()), ("a", Some("</end>")));
        assert_eq!(out[0], "a", "the text before it is not delayed");
    }

    #[test]
    fn a_tail_that_becomes_no_stop_string_comes_later() {
        let (out, stopped) = run(&["。。", "。完"], false, &["好。", "不", "。"]);
        assert_eq!(out, ["好", "。不", "", "。"]);
        assert_eq!(stopped, None);
    }

    #[test]
    fn the_stop_string_that_is_complete_first_counts() {
        let (out, stopped) = run(&["bcd", "c"], false, &["abcde"]);
        assert_eq!((out.concat().as_str(), stopped.as_deref()), ("ab", Some("c")));
        let (out, _) = run(&["bc"], true, &["ab", "cd"]);
        assert_eq!(out.concat(), "abc");
    }
}
