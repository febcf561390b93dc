//! Reads the tokens that are listed outside `tokenizer.json`, as transformers 5 does.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// JSON files of a tokenizer's folder that list tokens.
#[derive(Debug, Default)]
pub(crate) struct TokenFiles {
    /// `tokenizer_config.json`.
    pub config: Option<Value>,
    /// `special_tokens_map.json`.
    pub map: Option<Value>,
    /// `added_tokens.json`.
    pub added: Option<Value>,
}

impl TokenFiles {
    /// Returns the named tokens: every key that ends in `_token`, and the names in an `extra_special_tokens`
    /// object. If both files contain a name, `tokenizer_config.json` takes precedence over
    /// `special_tokens_map.json`.
    pub fn named(&self) -> BTreeMap<String, String> {
        let mut named = BTreeMap::new();
        for file in self.objects() {
            let extra = file.get("extra_special_tokens").and_then(Value::as_object);
            let keys = file.iter().filter(|(name, _)| name.ends_with("_token"));
            for (name, value) in keys.chain(extra.into_iter().flatten()) {
                if let Some(token) = content(value) {
                    named.entry(name.clone()).or_insert_with(|| token.to_owned());
                }
            }
        }
        named
    }

    /// Returns the tokens to add to a tokenizer that already has the added tokens `present`. The order
    /// determines their ids: first the tokens that the files list by id, then the special tokens without an
    /// id.
    pub fn additions(&self, present: &BTreeSet<String>) -> Vec<AddedToken> {
        let mut seen = present.clone();
        let mut additions = self.listed();
        additions.retain(|token| seen.insert(token.content.clone()));
        let unlisted = self.named().into_values().chain(self.extra());
        for token in unlisted.filter(|token| !token.is_empty()) {
            if seen.insert(token.clone()) {
                additions.push(AddedToken::from(token, true).normalized(false));
            }
        }
        additions
    }

    /// Returns the tokens that `added_tokens_decoder` lists by id. Older folders contain this list in
    /// `added_tokens.json`.
    fn listed(&self) -> Vec<AddedToken> {
        let decoder = self.config.as_ref().and_then(|config| config.get("added_tokens_decoder")?.as_object());
        let mut tokens: Vec<(u64, AddedToken)> = match decoder {
            Some(decoder) => {
                decoder.iter().filter_map(|(id, token)| Some((id.parse().ok()?, described(token)?))).collect()
            }
            None => {
                let special: BTreeSet<String> = self.named().into_values().chain(self.extra()).collect();
                let added = self.added.as_ref().and_then(Value::as_object);
                let token = |(token, id): (&String, &Value)| {
                    let is_special = special.contains(token);
                    Some((id.as_u64()?, AddedToken::from(token.clone(), is_special).normalized(!is_special)))
                };
                added.into_iter().flatten().filter_map(token).collect()
            }
        };
        tokens.sort_by_key(|(id, _)| *id);
        tokens.into_iter().map(|(_, token)| token).filter(|token| !token.content.is_empty()).collect()
    }

    /// Returns the special tokens without a name: those in the lists `extra_special_tokens` and
    /// `additional_special_tokens`.
    fn extra(&self) -> Vec<String> {
        let lists = ["extra_special_tokens", "additional_special_tokens"];
        let lists =
            lists.iter().flat_map(|name| self.objects().filter_map(|file| file.get(*name)?.as_array()));
        lists.flatten().filter_map(content).map(str::to_owned).collect()
    }

    fn objects(&self) -> impl Iterator<Item = &Map<String, Value>> {
        [&self.config, &self.map].into_iter().flatten().filter_map(Value::as_object)
    }
}

/// Returns the text of a token. The token is a string, or an object with a `content` key.
fn content(value: &Value) -> Option<&str> {
    match value {
        Value::String(token) => Some(token),
        Value::Object(token) => token.get("content")?.as_str(),
        _ => None,
    }
}

/// Reads a token in the format of transformers' `added_tokens_decoder`.
fn described(value: &Value) -> Option<AddedToken> {
    let flag = |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
    let is_special = flag("special", false);
    Some(
        AddedToken::from(content(value)?, is_special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !is_special)),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn contents(files: &TokenFiles, present: &[&str]) -> Vec<String> {
        let present = present.iter().map(|&token| token.to_owned()).collect();
        files.additions(&present).into_iter().map(|token| token.content).collect()
    }

    #[test]
    fn listed_tokens_come_by_id_and_others_after_them() {
        let files = TokenFiles {
            config: Some(json!({
                "added_tokens_decoder": {
                    "12": { "content": "<b>", "special": true }, "9": { "content": "<a>" }, "1": { "content": "<s>" },
                },
                "eos_token": { "content": "</s>" },
                "image_token": "<img>",
                "extra_special_tokens": ["<x>", { "content": "<y>" }],
            })),
            map: Some(json!({ "pad_token": "<pad>", "eos_token": "<other>" })),
            added: Some(json!({ "<ignored>": 3 })),
        };
        assert_eq!(contents(&files, &["<s>"]), ["<a>", "<b>", "</s>", "<img>", "<pad>", "<x>", "<y>"]);
        let added = files.additions(&BTreeSet::new());
        assert!(added.iter().find(|token| token.content == "<b>").unwrap().special);
        assert!(added.iter().find(|token| token.content == "<a>").unwrap().normalized);
    }

    #[test]
    fn an_older_folder_lists_its_tokens_in_a_file_of_their_own() {
        let files = TokenFiles {
            config: Some(json!({ "extra_special_tokens": { "audio_token": "<audio>" } })),
            map: Some(json!({ "additional_special_tokens": ["<|im_end|>"] })),
            added: Some(json!({ "<|im_end|>": 7, "<|im_start|>": 6 })),
        };
        assert_eq!(contents(&files, &[]), ["<|im_start|>", "<|im_end|>", "<audio>"]);
        let special: Vec<bool> =
            files.additions(&BTreeSet::new()).iter().map(|token| token.special).collect();
        assert_eq!(special, [false, true, true]);
        assert_eq!(files.named()["audio_token"], "<audio>");
    }
}
