//! Patterns of data files, such as `data/train-*` or `**/*.json`.

/// Returns whether `path` matches `pattern`.
///
/// `*`, `?` and `[a-z]` match within a path segment. The segment `**` matches any number of segments. A
/// segment of the path that starts with `.` or `__` matches only if the pattern's segment starts with `.` or
/// `__` too.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.trim_start_matches("./").split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    // `reached[i]` is true if the pattern's segments so far match the first `i` segments of the path. Unlike
    // backtracking, this algorithm never needs exponential time.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        for start in 0..=path.len() {
            if !reached[start] {
                continue;
            }
            if part == "**" {
                next[start] = true;
                for end in start..path.len() {
                    if is_hidden(path[end]) {
                        break;
                    }
                    next[end + 1] = true;
                }
            } else if start < path.len() && segment_matches(part, path[start]) {
                next[start + 1] = true;
            }
        }
        reached = next;
    }
    reached[path.len()]
}

/// Returns whether a name is hidden, or is a special folder such as `__pycache__`.
fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name.starts_with("__")
}

fn segment_matches(pattern: &str, name: &str) -> bool {
    if is_hidden(name) && !is_hidden(pattern) {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; name.len() + 1];
        let (set, len) = set_at(&pattern[at..]);
        at += len;
        if pattern[at - len] == '*' {
            let first = reached.iter().position(|is_reached| *is_reached).unwrap_or(next.len());
            next[first..].fill(true);
        } else {
            for (end, c) in name.iter().enumerate() {
                next[end + 1] = reached[end] && set.contains(*c);
            }
        }
        reached = next;
    }
    reached[name.len()]
}

/// The characters that one element of a pattern matches.
enum CharSet<'a> {
    Any,
    One(char),
    /// The characters and ranges between brackets.
    Listed {
        listed: &'a [char],
        is_negated: bool,
    },
}

impl CharSet<'_> {
    fn contains(&self, c: char) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => *one == c,
            Self::Listed { listed, is_negated } => {
                let mut rest = *listed;
                let mut is_listed = false;
                while let [first, tail @ ..] = rest {
                    if let ['-', last, after @ ..] = tail {
                        is_listed |= (*first..=*last).contains(&c);
                        rest = after;
                    } else {
                        is_listed |= *first == c;
                        rest = tail;
                    }
                }
                is_listed != *is_negated
            }
        }
    }
}

/// Returns the first element of a pattern, and its length. A `[` without a `]` is a plain character.
fn set_at(pattern: &[char]) -> (CharSet<'_>, usize) {
    match pattern {
        ['*' | '?', ..] => (CharSet::Any, 1),
        ['[', rest @ ..] => {
            let is_negated = matches!(rest, ['!' | '^', ..]);
            let skipped = usize::from(is_negated);
            // A `]` directly after the `[` is a plain character of the set.
            let end = rest.iter().skip(skipped + 1).position(|c| *c == ']').map(|end| end + skipped + 1);
            match end {
                Some(end) => (CharSet::Listed { listed: &rest[skipped..end], is_negated }, end + 2),
                None => (CharSet::One('['), 1),
            }
        }
        [one, ..] => (CharSet::One(*one), 1),
        [] => (CharSet::Any, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_within_a_segment_and_double_stars_do_not() {
        for (pattern, path, expected) in [
            ("data/train-*", "data/train-00000-of-00002.parquet", true),
            ("data/train-*", "data/deep/train-0.parquet", false),
            ("*.json", "a.json", true),
            ("*.json", "data/a.json", false),
            ("**/*.json", "a.json", true),
            ("**/*.json", "a/b/c.json", true),
            ("**", "a/b/c.json", true),
            ("data/**", "data/a/b.csv", true),
            ("data/**", "other/b.csv", false),
            ("./train.jsonl", "train.jsonl", true),
            ("part-[0-9]?.csv", "part-3a.csv", true),
            ("part-[!0-9].csv", "part-3.csv", false),
            ("part-[]x].csv", "part-].csv", true),
            ("a[b", "a[b", true),
            ("甄?.json", "甄嬛.json", true),
            ("*", ".hidden", false),
            ("**/*", "__pycache__/x", false),
            ("**", "a/.git/x", false),
            (".h*", ".hidden", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        // The time does not grow exponentially with the number of stars.
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
        assert!(!matches(&format!("{}x", "**/".repeat(100)), &format!("{}y", "a/".repeat(100))));
    }
}
