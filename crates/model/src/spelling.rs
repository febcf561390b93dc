//! Finds a known word that is similar to a misspelt word.

/// Maximum length of a word that is compared. The time of a comparison is quadratic in the length, and a key
/// in a file may have any length.
const MAX_BYTES: usize = 128;

/// Returns the word in `known` that has the smallest edit distance to `word`. Returns `None` if this distance
/// is above a third of the word's length, and above 1.
pub fn closest_word<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > MAX_BYTES {
        return None;
    }
    let limit = (word.chars().count() / 3).max(1);
    let word = word.to_lowercase();
    known.into_iter().map(|k| (edit_distance(&word, k), k)).filter(|(d, _)| *d <= limit).min().map(|(_, k)| k)
}

/// Returns the edit distance, in which a swap of two neighbouring characters is one edit (optimal string
/// alignment). Words above 128 bytes are not compared, but treated as entirely different.
pub fn edit_distance(a: &str, b: &str) -> usize {
    if a.len().max(b.len()) > MAX_BYTES {
        return a.len().max(b.len());
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut d = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            d[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = d[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let best = replaced.min(d[i - 1][j] + 1).min(d[i][j - 1] + 1);
                if swapped { best.min(d[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    d[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_matches_and_another_word_does_not() {
        let known = ["learning-rate", "lora-r", "lora-alpha", "max-steps"];
        assert_eq!(closest_word("lerning-rate", known), Some("learning-rate"));
        assert_eq!(closest_word("lora-aplha", known), Some("lora-alpha"));
        assert_eq!(closest_word("Lora-R", known), Some("lora-r"));
        assert_eq!(closest_word("gradient", known), None);
    }
}
