//! Checks a `tokenizer.json` before the tokenizers library reads it.
//!
//! The library trusts the file. It allocates as much memory as a character map declares, uses offsets of the
//! map without a check, and recurses once per byte of a token. Each error of these checks names a field of
//! the file.

use std::collections::{HashMap, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Maximum length of a token in bytes. The library's trie has one level per byte, and the library recurses
/// once per level.
pub(crate) const MAX_TOKEN_BYTES: usize = 4096;

/// Maximum id of a token. To write a vocabulary, the library iterates over all ids up to the largest.
const MAX_TOKEN_ID: u64 = 1 << 24;

/// Maximum length of a token prefix or suffix. The library writes the prefix or suffix once for each
/// character of a text.
const MAX_AFFIX_BYTES: usize = 64;

/// Maximum length of a word for WordPiece. The running time grows with the square of the length.
const MAX_WORD_CHARS: u64 = 10_000;

/// Maximum length of a text that a normalizer inserts for one match.
const MAX_INSERTED_BYTES: usize = 1024;

/// Maximum number of bytes that all normalizers, or all decoders, together create from one byte.
const MAX_GROWTH: usize = 64;

/// Maximum number of steps of a normalizer, pre-tokenizer or decoder. The steps of nested sequences count
/// too.
const MAX_STEPS: usize = 256;

/// Maximum number of merges. The library needs 700 bytes for each merge. The largest known tokenizers have
/// 600,000.
const MAX_MERGES: usize = 1 << 20;

const MAX_TOKENS: usize = 1 << 21;

const MAX_ADDED_TOKENS: usize = 1 << 19;

/// Maximum number of ids that a post-processor adds to one text.
const MAX_INSERTED_IDS: usize = 1024;

/// The parts of `tokenizer.json` that are checked.
#[derive(Deserialize)]
pub(crate) struct TokenizerFile {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    post_processor: Option<PostProcessor>,
    model: Model,
}

/// A step that adds ids to a text.
#[derive(Default, Deserialize)]
struct PostProcessor {
    #[serde(default)]
    single: Vec<Piece>,
    #[serde(default)]
    special_tokens: HashMap<String, InsertedToken>,
    #[serde(default)]
    processors: Vec<PostProcessor>,
}

/// A part of a template: the text, or the name of inserted ids.
#[derive(Deserialize)]
struct Piece {
    #[serde(default, rename = "Sequence")]
    text: Option<IgnoredAny>,
    #[serde(default, rename = "SpecialToken")]
    inserted: Option<PieceName>,
}

#[derive(Deserialize)]
struct PieceName {
    id: String,
}

#[derive(Deserialize)]
struct InsertedToken {
    ids: List,
}

#[derive(Deserialize)]
struct Added {
    content: Token,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default, deserialize_with = "vocabulary")]
    vocab: Vocabulary,
    #[serde(default)]
    merges: Option<List>,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
}

/// Counts and extremes of a vocabulary.
#[derive(Default)]
struct Vocabulary {
    tokens: usize,
    /// Length of all tokens together in bytes.
    bytes: usize,
    longest_token: usize,
    largest_id: u64,
}

impl Vocabulary {
    fn add(&mut self, token: &Token) {
        self.tokens += 1;
        self.bytes += token.0;
        self.longest_token = self.longest_token.max(token.0);
    }
}

impl TokenizerFile {
    /// Parses the file.
    ///
    /// # Errors
    /// If the file is not the JSON of a tokenizer. The error is the message of serde_json.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }

    /// Returns the BPE dropout: the share of merges that the library would skip at random.
    pub fn dropout(&self) -> Option<f32> {
        self.model.dropout.filter(|dropout| *dropout != 0.0)
    }

    /// Returns whether the time to search a pattern of the file can grow much faster than the length of the
    /// text.
    pub fn has_slow_pattern(&self) -> bool {
        let steps = [&self.normalizer, &self.pre_tokenizer, &self.decoder].map(steps);
        let patterns = steps.iter().flatten().filter_map(|step| step.pointer("/pattern/Regex")?.as_str());
        patterns.into_iter().any(is_slow_pattern)
    }

    /// Checks everything that the library does not check.
    ///
    /// # Errors
    /// If a field has a value that the library cannot use, or can use only with far more memory or time than
    /// usual.
    pub fn check(&self) -> Result<(), String> {
        self.check_counts()?;
        let Model { vocab, continuing_subword_prefix, end_of_word_suffix, max_input_chars_per_word, .. } =
            &self.model;
        let Vocabulary { longest_token, largest_id, .. } = vocab;
        if *longest_token > MAX_TOKEN_BYTES {
            return Err(format!(
                "`model.vocab` has a token of {longest_token} bytes, expected at most {MAX_TOKEN_BYTES}"
            ));
        }
        if let Some(added) = self.added_tokens.iter().find(|added| added.content.0 > MAX_TOKEN_BYTES) {
            let bytes = added.content.0;
            return Err(format!(
                "`added_tokens` has a token of {bytes} bytes, expected at most {MAX_TOKEN_BYTES}"
            ));
        }
        if *largest_id > MAX_TOKEN_ID {
            return Err(format!("`model.vocab` has the id {largest_id}, expected at most {MAX_TOKEN_ID}"));
        }
        let affixes = [
            ("continuing_subword_prefix", continuing_subword_prefix),
            ("end_of_word_suffix", end_of_word_suffix),
        ];
        for (name, affix) in affixes {
            let bytes = affix.as_ref().map_or(0, String::len);
            if bytes > MAX_AFFIX_BYTES {
                return Err(format!("`model.{name}` has {bytes} bytes, expected at most {MAX_AFFIX_BYTES}"));
            }
        }
        if let Some(chars) = max_input_chars_per_word.filter(|chars| *chars > MAX_WORD_CHARS) {
            return Err(format!(
                "`model.max_input_chars_per_word` is {chars}, expected at most {MAX_WORD_CHARS}"
            ));
        }
        for (name, part) in [
            ("normalizer", &self.normalizer),
            ("pre_tokenizer", &self.pre_tokenizer),
            ("decoder", &self.decoder),
        ] {
            check_steps(name, &steps(part))?;
        }
        self.post_processor.as_ref().map_or(Ok(()), check_post_processor)
    }

    fn check_counts(&self) -> Result<(), String> {
        // A merge joins two parts of a token, and a token has fewer such pairs than bytes. More merges can
        // only be repetitions.
        let max_merges = MAX_MERGES.min(self.model.vocab.bytes);
        for (name, count, most) in [
            ("model.vocab", self.model.vocab.tokens, MAX_TOKENS),
            ("model.merges", self.model.merges.as_ref().map_or(0, |list| list.0), max_merges),
            ("added_tokens", self.added_tokens.len(), MAX_ADDED_TOKENS),
        ] {
            if count > most {
                return Err(format!("`{name}` has {count} entries, expected at most {most}"));
            }
        }
        Ok(())
    }
}

/// Checks how often a post-processor repeats a text, and how many ids it adds. If several steps repeat the
/// text, the numbers of repetitions are multiplied.
fn check_post_processor(first: &PostProcessor) -> Result<(), String> {
    let (mut copies, mut inserted) = (1usize, 0usize);
    let mut open = vec![first];
    while let Some(step) = open.pop() {
        let texts = step.single.iter().filter(|piece| piece.text.is_some()).count();
        let names = step.single.iter().filter_map(|piece| piece.inserted.as_ref());
        let ids = names.filter_map(|name| step.special_tokens.get(&name.id)).map(|token| token.ids.0);
        copies = copies.saturating_mul(texts.max(1));
        inserted = inserted.saturating_mul(texts.max(1)).saturating_add(ids.sum());
        if copies > MAX_GROWTH {
            return Err(format!(
                "`post_processor` repeats a text {copies} times, expected at most {MAX_GROWTH}"
            ));
        }
        if inserted > MAX_INSERTED_IDS {
            return Err(format!(
                "`post_processor` adds {inserted} ids to a text, expected at most {MAX_INSERTED_IDS}"
            ));
        }
        open.extend(&step.processors);
    }
    Ok(())
}

/// Returns the steps of a part of the file. The steps of nested sequences are part of the same list.
fn steps(part: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    let mut open = vec![part];
    while let Some(step) = open.pop() {
        let lists = ["normalizers", "pretokenizers", "decoders"].map(|name| step.get(name)?.as_array());
        match lists.into_iter().flatten().next() {
            Some(list) => open.extend(list.iter().rev()),
            None => found.push(step),
        }
    }
    found
}

fn check_steps(part: &str, steps: &[&Value]) -> Result<(), String> {
    if steps.len() > MAX_STEPS {
        return Err(format!("`{part}` has {} steps, expected at most {MAX_STEPS}", steps.len()));
    }
    let mut growth = 1usize;
    for step in steps {
        growth = growth.saturating_mul(check_step(step).map_err(|fault| format!("`{part}`: {fault}"))?);
        if growth > MAX_GROWTH {
            return Err(format!(
                "`{part}` makes {growth} bytes of one, expected at most {MAX_GROWTH}: a text would grow at every step"
            ));
        }
    }
    Ok(())
}

/// Checks one step. Returns the maximum number of bytes that the step creates from one byte.
fn check_step(step: &Value) -> Result<usize, String> {
    let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default();
    let inserted = |name: &str| match text(name).len() {
        bytes if bytes > MAX_INSERTED_BYTES => {
            Err(format!("`{name}` has {bytes} bytes, expected at most {MAX_INSERTED_BYTES}"))
        }
        bytes => Ok(bytes),
    };
    match text("type") {
        "FixedLength" if step.get("length").and_then(Value::as_u64) == Some(0) => {
            Err("`length` is 0, expected at least 1".to_owned())
        }
        "Prepend" => inserted("prepend").map(|_| 1),
        "Replace" => {
            let bytes = inserted("content")?;
            match step.pointer("/pattern/String").and_then(Value::as_str) {
                Some("") => Err("`pattern` is empty, which matches between all characters".to_owned()),
                Some(pattern) => Ok(bytes.div_ceil(pattern.len()).max(1)),
                // Such a pattern matches at most once, at the start of the text.
                None if is_anchored(step) => Ok(1),
                // Such a pattern can match the empty text before each character.
                None if matches_nothing(step) => Ok(1 + bytes),
                None => Ok(bytes.max(1)),
            }
        }
        "Precompiled" => check_charsmap(text("precompiled_charsmap")),
        "BPEDecoder" if text("suffix").is_empty() => Ok(2),
        // A byte that is not printable ASCII becomes a character of two bytes. The third byte is for the
        // space that is added before the text.
        "ByteLevel" => Ok(3),
        // A mark of three bytes, `▁`, is added before each piece of one byte or more.
        "Metaspace" => Ok(4),
        _ => Ok(1),
    }
}

/// Returns whether a step's pattern matches only at the start of a text.
fn is_anchored(step: &Value) -> bool {
    let pattern = step.pointer("/pattern/Regex").and_then(Value::as_str).unwrap_or_default();
    pattern.starts_with("\\A") && !pattern.contains('|')
}

/// Returns whether a step's pattern may match the empty text. The answer is only an estimate from the
/// characters of the pattern.
fn matches_nothing(step: &Value) -> bool {
    let pattern = step.pointer("/pattern/Regex").and_then(Value::as_str).unwrap_or_default();
    pattern.is_empty()
        || pattern.contains(['*', '?', '|', '^', '$'])
        || pattern.contains("{0")
        || pattern.contains("\\b")
}

/// Returns whether a search for a pattern may backtrack. This is the case for a repeated group, a back
/// reference, and a lookaround, except for the lookahead `(?!\S)` of byte-level tokenizers.
fn is_slow_pattern(pattern: &str) -> bool {
    let pattern = pattern.replace(r"(?!\S)", "");
    let is_reference = |pair: &[u8]| pair[0] == b'\\' && pair[1].is_ascii_digit() && pair[1] != b'0';
    [")*", ")+", "){", "(?=", "(?!", "(?<", r"\k"].iter().any(|part| pattern.contains(part))
        || pattern.as_bytes().windows(2).any(is_reference)
}

/// Checks a character map of SentencePiece. Returns the maximum number of bytes that the map creates from one
/// byte.
///
/// The map consists of a little-endian size, a double-array trie of that many bytes, and texts that end with
/// NUL. A unit of the trie has its label in the low byte, a flag at bit 8, and the offset of its children
/// above bit 10.
fn check_charsmap(encoded: &str) -> Result<usize, String> {
    let fault = |what: &str| format!("`precompiled_charsmap` {what}");
    let map = STANDARD.decode(encoded).map_err(|e| fault(&format!("is not base64: {e}")))?;
    let (size, rest) = map.split_first_chunk().ok_or_else(|| fault("has no size"))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size > rest.len() || !size.is_multiple_of(4) || size == 0 {
        let found = format!("declares a trie of {size} bytes and has {}", rest.len());
        return Err(fault(&found));
    }
    let (trie, texts) = rest.split_at(size);
    let texts = std::str::from_utf8(texts).map_err(|_| fault("has texts that are not UTF-8"))?;
    let units: Vec<u32> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    check_trie(&units, texts).map_err(|found| fault(&found))
}

/// Follows every path of the trie, shortest first. Checks that each path stays inside the trie and ends at a
/// text. Returns the maximum number of bytes that a text has per byte of its path.
fn check_trie(units: &[u32], texts: &str) -> Result<usize, String> {
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let outside = |unit: usize| format!("has a trie of {} units that leads to unit {unit}", units.len());
    let mut growth = 1;
    let mut visited = vec![false; units.len()];
    let mut open = VecDeque::from([(offset(units[0]), 1)]);
    while let Some((node, length)) = open.pop_front() {
        for label in 1..=u8::MAX {
            let child = node ^ usize::from(label);
            let &unit = units.get(child).ok_or_else(|| outside(child))?;
            if unit & ((1 << 31) | 0xff) != u32::from(label) || visited[child] {
                continue;
            }
            visited[child] = true;
            let next = child ^ offset(unit);
            if (unit >> 8) & 1 == 1 {
                let &leaf = units.get(next).ok_or_else(|| outside(next))?;
                let start = (leaf & (u32::MAX >> 1)) as usize;
                let Some(text) = texts.get(start..) else {
                    return Err(format!("leads to a text at byte {start} of {}", texts.len()));
                };
                let bytes = text.find('\0').unwrap_or(text.len());
                growth = growth.max(bytes.div_ceil(length));
            }
            open.push_back((next, length + 1));
        }
    }
    Ok(growth)
}

/// Reads the vocabulary of any kind of model. A vocabulary is an object of ids or a list of tokens with
/// scores.
fn vocabulary<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vocabulary, D::Error> {
    struct Extremes;

    impl<'de> Visitor<'de> for Extremes {
        type Value = Vocabulary;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a vocabulary")
        }

        fn visit_unit<E>(self) -> Result<Vocabulary, E> {
            Ok(Vocabulary::default())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
            let mut found = Vocabulary::default();
            while let Some((token, id)) = map.next_entry::<Token, u64>()? {
                found.add(&token);
                found.largest_id = found.largest_id.max(id);
            }
            Ok(found)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
            let mut found = Vocabulary::default();
            while let Some((token, _)) = list.next_element::<(Token, IgnoredAny)>()? {
                found.add(&token);
            }
            Ok(found)
        }
    }
    deserializer.deserialize_any(Extremes)
}

/// Number of values in a list. The values are not stored.
struct List(usize);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;

        impl<'de> Visitor<'de> for Values {
            type Value = List;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(List(count))
            }
        }
        deserializer.deserialize_seq(Values)
    }
}

struct Token(usize);

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Token;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a token")
            }

            fn visit_str<E>(self, token: &str) -> Result<Token, E> {
                Ok(Token(token.len()))
            }
        }
        deserializer.deserialize_str(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(part: &str, step: Value) -> Result<(), String> {
        let mut file = json!({ "model": { "type": "BPE", "vocab": { "a": 0 }, "merges": [] } });
        file[part] = step;
        TokenizerFile::parse(file.to_string().as_bytes())?.check()
    }

    fn charsmap(units: &[u32], texts: &str) -> Value {
        let mut map = (4 * units.len() as u32).to_le_bytes().to_vec();
        map.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        map.extend_from_slice(texts.as_bytes());
        json!({ "type": "Precompiled", "precompiled_charsmap": STANDARD.encode(map) })
    }

    /// Returns a trie with a single path, `a`. The leaf of the path has the value `leaf`.
    fn one_path(leaf: u32) -> Vec<u32> {
        let mut units = vec![0; 512];
        // The children of the root start at 256, and `a` is one of these children. The children of `a` start
        // at 0, and one of them is the leaf.
        units[0] = 256 << 10;
        let child = 256 ^ u32::from(b'a');
        units[child as usize] = u32::from(b'a') | (1 << 8) | ((child ^ 1) << 10);
        units[1] = (1 << 31) | leaf;
        units
    }

    #[test]
    fn a_character_map_is_followed_before_it_is_used() {
        assert_eq!(check("normalizer", charsmap(&one_path(2), "x\0yz\0")), Ok(()));
        for (units, texts, expected) in [
            (vec![1 << 30; 4], "", "that leads to unit"),
            (one_path(9), "x\0", "a text at byte 9 of 2"),
            (one_path(1), "\u{7504}", "a text at byte 1 of 3"),
            (one_path(0), &"x".repeat(65), "makes 65 bytes of one"),
        ] {
            let fault = check("normalizer", charsmap(&units, texts)).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        }
        for (map, expected) in
            [("AAAA", "has no size"), ("/////wEB", "4294967295 bytes and has 2"), ("%", "base64")]
        {
            let step = json!({ "type": "Precompiled", "precompiled_charsmap": map });
            let fault =
                check("normalizer", json!({ "type": "Sequence", "normalizers": [step] })).unwrap_err();
            assert!(fault.starts_with("`normalizer`: `precompiled_charsmap`"), "{fault}");
            assert!(fault.contains(expected), "{fault}");
        }
    }

    #[test]
    fn steps_that_grow_a_text_are_refused() {
        let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
        let sequence = |steps: Vec<Value>| json!({ "type": "Sequence", "normalizers": steps });
        let space = replace(json!({ "String": " " }), "▁");
        let newline = replace(json!({ "String": "\n" }), "<|newline|>");
        let sound = sequence(vec![json!({ "type": "Prepend", "prepend": "▁" }), space, newline]);
        assert_eq!(check("normalizer", sound), Ok(()));
        let once = replace(json!({ "Regex": r"\A▁" }), "▁▁");
        assert_eq!(check("normalizer", sequence(vec![once; 8])), Ok(()));
        let grow = replace(json!({ "Regex": "." }), "aaaaaaaaaa");
        for (step, expected) in [
            (sequence(vec![grow.clone(), grow]), "makes 100 bytes of one"),
            (replace(json!({ "String": "" }), "a"), "`pattern` is empty"),
            (replace(json!({ "String": "a" }), &"a".repeat(2000)), "`content` has 2000 bytes"),
            (json!({ "type": "Prepend", "prepend": "a".repeat(2000) }), "`prepend` has 2000 bytes"),
        ] {
            let fault = check("normalizer", step).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        }
        let fault = check("pre_tokenizer", json!({ "type": "FixedLength", "length": 0 })).unwrap_err();
        assert_eq!(fault, "`pre_tokenizer`: `length` is 0, expected at least 1");
    }

    #[test]
    fn steps_that_repeat_a_text_are_refused() {
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false });
        let sequence =
            |step: &Value, count| json!({ "type": "Sequence", "pretokenizers": vec![step; count] });
        assert_eq!(check("pre_tokenizer", sequence(&byte_level, 2)), Ok(()));
        let fault = check("pre_tokenizer", sequence(&byte_level, 40)).unwrap_err();
        assert!(fault.starts_with("`pre_tokenizer` makes 81 bytes of one"), "{fault}");

        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let bos = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
        let template = |single: Vec<&Value>, ids: usize| {
            let token = json!({ "id": "<s>", "ids": vec![1; ids], "tokens": vec!["<s>"; ids] });
            json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": { "<s>": token } })
        };
        let twice = template(vec![&bos, &text, &text], 1);
        assert_eq!(check("post_processor", Value::Null), Ok(()));
        assert_eq!(check("post_processor", json!({ "type": "RobertaProcessing", "sep": ["a", 1] })), Ok(()));
        assert_eq!(check("post_processor", twice.clone()), Ok(()));
        for (step, expected) in [
            (template(vec![&text; 65], 1), "repeats a text 65 times, expected at most 64"),
            (json!({ "type": "Sequence", "processors": vec![&twice; 7] }), "repeats a text 128 times"),
            (template(vec![&bos; 2000], 1), "adds 2000 ids to a text, expected at most 1024"),
            (template(vec![&bos, &text], 2000), "adds 2000 ids to a text"),
        ] {
            let fault = check("post_processor", step).unwrap_err();
            assert!(fault.starts_with("`post_processor` ") && fault.contains(expected), "{fault}");
        }
    }

    #[test]
    fn counts_are_limited() {
        let file = |vocab: usize, merges: usize| {
            let vocab = Vocabulary { tokens: vocab, bytes: 2 * vocab, ..Vocabulary::default() };
            let mut file = TokenizerFile::parse(br#"{"model": {"merges": ["a b", ["a", "b"]]}}"#).unwrap();
            assert_eq!(file.model.merges.as_ref().unwrap().0, 2);
            (file.model.vocab, file.model.merges) = (vocab, Some(List(merges)));
            file.check()
        };
        assert_eq!(file(1 << 20, 1 << 20), Ok(()));
        assert!(file(3 << 20, 0).unwrap_err().starts_with("`model.vocab` has 3145728 entries"));
        let fault = file(1 << 20, 2 << 20).unwrap_err();
        assert_eq!(fault, "`model.merges` has 2097152 entries, expected at most 1048576");
        let fault = file(264, 1 << 20).unwrap_err();
        assert_eq!(fault, "`model.merges` has 1048576 entries, expected at most 528");
    }

    #[test]
    fn long_tokens_and_affixes_are_refused() {
        let model = |field: &str, value: Value| {
            let mut file = json!({ "model": { "type": "Unigram", "vocab": [["a", 0.0]], "unk_id": null } });
            file["model"][field] = value;
            TokenizerFile::parse(file.to_string().as_bytes()).unwrap().check()
        };
        assert_eq!(model("continuing_subword_prefix", json!("##")), Ok(()));
        let long = "a".repeat(5000);
        assert!(model("continuing_subword_prefix", json!(long)).unwrap_err().contains("has 5000 bytes"));
        assert!(model("vocab", json!([[long, 0.0]])).unwrap_err().contains("a token of 5000 bytes"));
        assert!(model("vocab", json!({ long.as_str(): 3 })).unwrap_err().contains("a token of 5000 bytes"));
        let mut file = json!({ "model": { "type": "BPE", "vocab": {}, "merges": [] } });
        file["added_tokens"] = json!([{ "content": "<s>" }, { "content": long }]);
        let fault = TokenizerFile::parse(file.to_string().as_bytes()).unwrap().check().unwrap_err();
        assert!(fault.starts_with("`added_tokens` has a token of 5000 bytes"), "{fault}");
        assert!(model("max_input_chars_per_word", json!(u64::MAX)).is_err());
        assert!(model("vocab", json!({ "a": u32::MAX })).unwrap_err().contains("has the id 4294967295"));
    }

    #[test]
    fn patterns_that_backtrack_are_told_from_those_of_byte_level_tokenizers() {
        let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        assert!(!is_slow_pattern(llama));
        for pattern in [r"(a*)*\1b", "(?=(a+)+b)", "(a|aa)+$", "(a{9}){9}"] {
            assert!(is_slow_pattern(pattern), "{pattern}");
        }
    }
}
