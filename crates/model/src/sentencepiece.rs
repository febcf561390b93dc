//! Converts SentencePiece's `tokenizer.model` to the `tokenizer.json` that transformers would write.
//!
//! The file is a protobuf message. Field 1 contains the pieces, field 2 the training settings, and field 3
//! the normalizer settings. The conversion follows `convert_slow_tokenizer.py` of transformers 5.24.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Maximum number of characters of a piece for which merges are searched. Pieces of published models have at
/// most 16.
const MAX_PIECE_CHARS: usize = 256;

/// Maximum number of pieces of a model. The largest published vocabulary has 262,144 pieces.
const MAX_PIECES: usize = 1 << 19;

/// Maximum size of all merges, as a multiple of the size of all pieces. Without a limit, a piece of `n` bytes
/// could have `n - 1` merges of `n` bytes each.
const MAX_MERGE_GROWTH: usize = 32;

/// Kinds of pieces.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// Kinds of tokenizer models.
const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// The settings of a file. Missing settings have SentencePiece's defaults.
struct Model {
    pieces: Vec<Piece>,
    kind: u64,
    unk_id: u64,
    byte_fallback: bool,
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

/// The settings of `tokenizer_config.json` that change a tokenizer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings<'a> {
    /// Whether the prefix blank is added to each part of a text between two added tokens.
    pub is_legacy: bool,
    /// Whether a blank is added before the text. If `None`, the setting of the file applies.
    pub add_prefix_space: Option<bool>,
    /// The token that is added before a text.
    pub added_bos: Option<&'a str>,
}

/// Returns the `tokenizer.json` for a SentencePiece model.
///
/// # Errors
/// If the bytes are not a SentencePiece model, or if the kind of the model is neither Unigram nor BPE.
pub(crate) fn tokenizer_json(bytes: &[u8], settings: Settings<'_>) -> Result<Value, String> {
    let model = Model::parse(bytes)?;
    let has_prefix = settings.add_prefix_space.unwrap_or(model.add_dummy_prefix);
    let added: Vec<Value> = (0u32..)
        .zip(&model.pieces)
        .filter(|(_, piece)| matches!(piece.kind, UNKNOWN | CONTROL | USER_DEFINED))
        .map(|(id, piece)| {
            json!({
                "id": id, "content": piece.text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": piece.kind != USER_DEFINED,
            })
        })
        .collect();
    let bos = settings.added_bos.and_then(|bos| Some((bos, model.id_of(bos)?)));
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": model.normalizer(has_prefix, settings.is_legacy),
        "pre_tokenizer": has_prefix.then(|| json!({
            "type": "Metaspace", "replacement": "▁", "split": false,
            "prepend_scheme": if settings.is_legacy { "always" } else { "first" },
        })),
        "post_processor": bos.map(|(bos, id)| json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
        })),
        "decoder": model.decoder(has_prefix),
        "model": model.model()?,
    }))
}

impl Model {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            kind: UNIGRAM,
            unk_id: 0,
            byte_fallback: false,
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        for field in Message(bytes) {
            match field? {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::parse(piece)?),
                (2, Field::Bytes(trainer)) => {
                    for field in Message(trainer) {
                        match field? {
                            (3, Field::Number(kind)) => model.kind = kind,
                            (35, Field::Number(flag)) => model.byte_fallback = flag != 0,
                            (40, Field::Number(id)) => model.unk_id = id,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(normalizer)) => {
                    for field in Message(normalizer) {
                        match field? {
                            (2, Field::Bytes(map)) => model.charsmap = map.to_vec(),
                            (3, Field::Number(flag)) => model.add_dummy_prefix = flag != 0,
                            (4, Field::Number(flag)) => model.remove_extra_whitespaces = flag != 0,
                            (5, Field::Number(flag)) => model.escape_whitespaces = flag != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        match model.pieces.len() as u64 {
            0 => Err("it has no pieces: it is no SentencePiece model".to_owned()),
            count if count > MAX_PIECES as u64 => {
                Err(format!("it has {count} pieces, expected at most {MAX_PIECES}"))
            }
            count if model.unk_id >= count => {
                Err(format!("its unknown token has the id {}, of {count} pieces", model.unk_id))
            }
            _ => Ok(model),
        }
    }

    fn id_of(&self, text: &str) -> Option<usize> {
        self.pieces.iter().position(|piece| piece.text == text)
    }

    /// Returns the steps of SentencePiece's normalizer in the order in which they run.
    fn normalizer(&self, has_prefix: bool, is_legacy: bool) -> Value {
        let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
        let mut steps = Vec::new();
        if !self.charsmap.is_empty() {
            let map = STANDARD.encode(&self.charsmap);
            steps.push(json!({ "type": "Precompiled", "precompiled_charsmap": map }));
        }
        if self.remove_extra_whitespaces {
            steps.push(replace(json!({ "Regex": r"\A +| +\z" }), ""));
            steps.push(replace(json!({ "Regex": " {2,}" }), " "));
        }
        if self.escape_whitespaces {
            steps.push(replace(json!({ "String": " " }), "▁"));
        }
        if has_prefix && is_legacy {
            // If a text starts with the prefix, Metaspace adds no second prefix, but SentencePiece does.
            steps.push(replace(json!({ "Regex": r"\A▁" }), "▁▁"));
        }
        json!({ "type": "Sequence", "normalizers": steps })
    }

    fn decoder(&self, has_prefix: bool) -> Value {
        let mut steps = vec![json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " })];
        if self.byte_fallback {
            steps.push(json!({ "type": "ByteFallback" }));
        }
        if self.byte_fallback || has_prefix {
            steps.push(json!({ "type": "Fuse" }));
        }
        if has_prefix {
            steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({ "type": "Sequence", "decoders": steps })
    }

    fn model(&self) -> Result<Value, String> {
        match self.kind {
            UNIGRAM => {
                let vocab: Vec<Value> =
                    self.pieces.iter().map(|piece| json!([piece.text, f64::from(piece.score)])).collect();
                Ok(json!({
                    "type": "Unigram", "unk_id": self.unk_id, "byte_fallback": self.byte_fallback, "vocab": vocab,
                }))
            }
            BPE => {
                let vocab: serde_json::Map<String, Value> = self
                    .pieces
                    .iter()
                    .zip(0u32..)
                    .map(|(piece, id)| (piece.text.clone(), id.into()))
                    .collect();
                Ok(json!({
                    "type": "BPE", "dropout": null, "unk_token": self.pieces[self.unk_id as usize].text,
                    "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                    "byte_fallback": self.byte_fallback, "vocab": vocab, "merges": self.merges()?,
                }))
            }
            kind => Err(format!(
                "it is a SentencePiece model of kind {kind}, expected {UNIGRAM} (Unigram) or {BPE} (BPE)"
            )),
        }
    }

    /// Returns the merges of BPE. Each merge is a way to build a normal piece from two other normal pieces.
    /// The merges are sorted by the score of the built piece, best first.
    fn merges(&self) -> Result<Vec<[&str; 2]>, String> {
        let normal: HashMap<&str, usize> = self
            .pieces
            .iter()
            .enumerate()
            .filter(|(_, piece)| piece.kind == NORMAL)
            .map(|(id, piece)| (piece.text.as_str(), id))
            .collect();
        let mut room = MAX_MERGE_GROWTH * self.pieces.iter().map(|piece| piece.text.len()).sum::<usize>();
        let mut ranked = Vec::new();
        for (id, piece) in self.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == NORMAL) {
            let chars = piece.text.chars().count();
            if chars > MAX_PIECE_CHARS {
                return Err(format!("piece {id} has {chars} characters, expected at most {MAX_PIECE_CHARS}"));
            }
            for (at, _) in piece.text.char_indices().skip(1) {
                let (left, right) = piece.text.split_at(at);
                if let (Some(&left_id), Some(&right_id)) = (normal.get(left), normal.get(right)) {
                    ranked.push((piece.score, id, left_id, right_id));
                    room = room.checked_sub(piece.text.len()).ok_or_else(|| {
                        format!(
                            "its merges have more than {MAX_MERGE_GROWTH} bytes for each byte of its pieces"
                        )
                    })?;
                }
            }
        }
        ranked.sort_by(|a, b| {
            b.0.total_cmp(&a.0).then_with(|| {
                let [a, b] = [a, b].map(|&(_, id, left, _)| (id, self.pieces[left].text.as_str()));
                a.cmp(&b)
            })
        });
        let text = |id: usize| self.pieces[id].text.as_str();
        Ok(ranked.into_iter().map(|(_, _, left, right)| [text(left), text(right)]).collect())
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: NORMAL };
        for field in Message(bytes) {
            match field? {
                (1, Field::Bytes(text)) => {
                    let text = std::str::from_utf8(text).map_err(|_| "a piece is not UTF-8".to_owned())?;
                    piece.text = text.to_owned();
                }
                (2, Field::Word(score)) => piece.score = f32::from_le_bytes(score),
                (3, Field::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        if piece.score.is_nan() {
            return Err(format!("the piece {:?} has no score", piece.text));
        }
        Ok(piece)
    }
}

struct Message<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Word([u8; 4]),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Iterator for Message<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(|| "it is no protobuf message, or ends early".to_owned());
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Message<'a> {
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Word(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, field))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (field, bytes) in fields {
            out.extend([field << 3 | 2, bytes.len() as u8]);
            out.extend_from_slice(bytes);
        }
        out
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let mut out = message(&[(1, text.as_bytes())]);
        out.push(2 << 3 | 5);
        out.extend(score.to_le_bytes());
        out.extend([3 << 3, kind]);
        out
    }

    fn model(kind: u8) -> Vec<u8> {
        let pieces = [
            piece("<unk>", 0.0, 2),
            piece("<s>", 0.0, 3),
            piece("▁a", -1.0, 1),
            piece("▁", -3.0, 1),
            piece("a", -4.0, 1),
            piece("b", -5.0, 1),
            piece("▁ab", -2.0, 1),
        ];
        let mut fields: Vec<(u8, &[u8])> = pieces.iter().map(|piece| (1, &piece[..])).collect();
        let trainer = [3 << 3, kind];
        fields.push((2, &trainer));
        message(&fields)
    }

    fn ids(kind: u8, text: &str, settings: Settings<'_>) -> Vec<u32> {
        let json = tokenizer_json(&model(kind), settings).unwrap().to_string();
        let tokenizer = tokenizers::Tokenizer::from_bytes(json).unwrap();
        tokenizer.encode(text, true).unwrap().get_ids().to_vec()
    }

    #[test]
    fn both_kinds_encode() {
        let settings = Settings { is_legacy: true, add_prefix_space: None, added_bos: Some("<s>") };
        for kind in [1, 2] {
            assert_eq!(ids(kind, "ab", settings), [1, 6]);
            assert_eq!(ids(kind, "a ab", settings), [1, 2, 6]);
            assert_eq!(ids(kind, "<s>b", settings), [1, 1, 3, 5]);
        }
        let none = Settings { add_prefix_space: Some(false), ..Settings::default() };
        assert_eq!(ids(2, "ab", none), [4, 5]);
    }

    #[test]
    fn anything_else_is_refused() {
        let settings = Settings::default();
        for (bytes, expected) in [
            (&b""[..], "no pieces"),
            (b"{\"a\": 1}", "protobuf"),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "protobuf"),
            (b"\x0a\x04\x0a\x02\xff\xff", "not UTF-8"),
        ] {
            let fault = tokenizer_json(bytes, settings).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        }
        assert!(tokenizer_json(&model(3), settings).unwrap_err().contains("kind 3"));
        let runs: Vec<Vec<u8>> = (1..100).map(|n| piece(&"a".repeat(n), 0.0, 1)).collect();
        let mut fields: Vec<(u8, &[u8])> = runs.iter().map(|piece| (1, &piece[..])).collect();
        fields.push((2, &[3 << 3, 2]));
        let fault = tokenizer_json(&message(&fields), settings).unwrap_err();
        assert!(fault.contains("more than 32 bytes for each byte of its pieces"), "{fault}");
        let sound = model(1);
        for end in 0..sound.len() {
            drop(tokenizer_json(&sound[..end], settings));
        }
    }
}
