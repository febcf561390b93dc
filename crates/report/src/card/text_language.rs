//! Detects the languages of a data set by its characters and words, for the Hub's key `language`.

/// Words that are frequent in English and rare in other languages.
const ENGLISH: [&str; 16] = [
    "the", "of", "and", "to", "is", "in", "it", "you", "that", "for", "are", "was", "with", "my", "i", "what",
];

/// Minimum share of a script in a text. A Han character, a kana, and a word in another script each count as
/// one.
const SHARE: f64 = 0.1;

/// Counts of characters and words. The languages are determined from these counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextLanguage {
    /// Number of Han characters. Each Han character counts as one word.
    han: u64,
    /// Number of kana. If there is at least one kana per 20 Han characters, the Han characters are treated as
    /// Japanese.
    kana: u64,
    /// Number of words in other scripts.
    words: u64,
    /// Number of words that [`ENGLISH`] contains.
    english: u64,
}

impl TextLanguage {
    /// Adds the characters and words of a text to the counts.
    pub fn add(&mut self, text: &str) {
        let mut word = String::new();
        for c in text.chars().chain([' ']) {
            let (is_han, is_kana) = (
                matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}'),
                matches!(c, '\u{3040}'..='\u{30ff}'),
            );
            self.han += u64::from(is_han);
            self.kana += u64::from(is_kana);
            if c.is_alphabetic() && !is_han && !is_kana {
                word.extend(c.to_lowercase());
            } else if !word.is_empty() {
                self.words += 1;
                self.english += u64::from(ENGLISH.contains(&word.as_str()));
                word.clear();
            }
        }
    }

    /// Returns the detected languages, most frequent first: `zh`, `en`, both or none.
    pub fn codes(&self) -> Vec<String> {
        let all = (self.han + self.kana + self.words) as f64;
        let is_part = |count: u64| count > 0 && count as f64 >= SHARE * all;
        let zh = is_part(self.han) && self.kana * 20 < self.han;
        // In an English text, about a third of the words are in `ENGLISH`. A tenth is enough, so that mixed
        // texts count as English too.
        let en = is_part(self.words) && self.english as f64 >= 0.1 * self.words as f64;
        let mut codes: Vec<&str> =
            [(zh, "zh"), (en, "en")].into_iter().filter_map(|(is, code)| is.then_some(code)).collect();
        if self.words > self.han {
            codes.reverse();
        }
        codes.into_iter().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_named_where_they_are_certain() {
        let codes = |texts: &[&str]| {
            let mut language = TextLanguage::default();
            texts.iter().for_each(|text| language.add(text));
            language.codes()
        };
        assert_eq!(codes(&["臣妾给皇上请安。", "本宫住在长春宫，不用 iPhone。"]), ["zh"]);
        assert_eq!(codes(&["The soup is in the pot, and it is for you."]), ["en"]);
        assert_eq!(codes(&["The soup is in the pot.", "汤在锅里。"]), ["en", "zh"]);
        for other in [
            "La soupe est dans la marmite.",
            "スープは鍋の中にあります。",
            "국이 냄비에 있다",
            "12 + 3 = 15",
            "",
        ] {
            assert_eq!(codes(&[other]), [""; 0], "{other}");
        }
    }
}
