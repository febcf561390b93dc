//! Patterns of `--include`, such as `run.toml`, `*.jsonl` or `runs/*`.

use std::ops::Range;
use std::str::FromStr;

use wildmatch::WildMatch;

/// A path pattern. `*` and `?` do not match `/` or a leading dot.
///
/// A pattern without a `/` matches a name in any folder. If a folder matches, all of its files are included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    parts: Vec<String>,
    anywhere: bool,
}

impl FromStr for Pattern {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim_start_matches("./").trim_end_matches('/');
        let parts: Vec<String> = trimmed.split('/').map(str::to_owned).collect();
        Ok(Self { anywhere: parts.len() == 1, parts })
    }
}

impl Pattern {
    /// Returns the ranges of path segments in `parts` that the pattern matches.
    pub fn named(&self, parts: &[&str]) -> Vec<Range<usize>> {
        let starts = if self.anywhere { 0..parts.len() } else { 0..1 };
        let ranges = starts.map(|start| start..start + self.parts.len());
        let is_named = |range: &Range<usize>| {
            let named = parts.get(range.clone());
            named.is_some_and(|named| self.parts.iter().zip(named).all(|(one, part)| is_match(one, part)))
        };
        ranges.filter(is_named).collect()
    }
}

fn is_match(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    // `globset` cannot be used: its `?` matches one byte, so it does not match a Chinese character.
    WildMatch::new(pattern).matches(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pattern: &str, path: &str) -> Vec<(usize, usize)> {
        let pattern: Pattern = pattern.parse().unwrap();
        let named = pattern.named(&path.split('/').collect::<Vec<_>>());
        named.into_iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn a_pattern_means_names_paths_and_folders() {
        assert_eq!(named("run.toml", "run.toml"), [(0, 1)]);
        assert_eq!(named("run.toml", "a/run.toml"), [(1, 2)]);
        assert_eq!(named("./a/run.toml", "a/run.toml"), [(0, 2)]);
        assert!(named("a/run.toml", "b/a/run.toml").is_empty());
        assert_eq!(named("checkpoint-*/", "checkpoint-3/deep/x"), [(0, 1)]);
        assert_eq!(named("*.js?nl", "a.b.jsonl"), [(0, 1)]);
        assert_eq!(named("a/*", "a/b/c"), [(0, 2)]);
        assert_eq!(named("*a*b*", "xxaxxbaxb"), [(0, 1)]);
        assert!(named("*a*b", "xxaxxbax").is_empty());
        assert_eq!(named("甄*", "甄嬛.txt"), [(0, 1)]);
        assert_eq!(named("甄?.txt", "甄嬛.txt"), [(0, 1)]);
        assert!(named("", "x").is_empty());
        // Brackets and backslashes are literal characters here, unlike in a shell.
        assert_eq!(named("a[1]{b}\\", "a[1]{b}\\"), [(0, 1)]);
        assert!(named("a[12]", "a1").is_empty());
        // A star does not match a hidden file.
        assert!(named("*", ".env").is_empty());
        assert_eq!(named(".e*", ".env"), [(0, 1)]);
        assert_eq!(named("*", "a/.b/c"), [(0, 1), (2, 3)]);
        // The time does not grow exponentially with the number of stars.
        assert!(named(&"*a".repeat(200), &"a".repeat(199)).is_empty());
    }
}
