//! Properties of tokenizer and template that must be the same in training and in use.

use serde::{Deserialize, Serialize};

/// A fingerprint of a tokenizer and its template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFingerprint {
    /// SHA-256 of the chat template, if there is one.
    pub template_sha256: Option<String>,
    /// SHA-256 of the tokenizer in a canonical form, which does not depend on the layout of the file.
    pub tokenizer_sha256: String,
    /// Text of the BOS token.
    pub bos: Option<String>,
    /// Text of the EOS token.
    pub eos: Option<String>,
    /// Text of the padding token.
    pub pad: Option<String>,
    /// Texts of the tokens that end a reply, sorted.
    pub stop: Vec<String>,
    /// System message that the template adds to a conversation without one.
    pub default_system: Option<String>,
}

impl TokenFingerprint {
    /// Describes each difference from `other` in one sentence. `words` are the names of the two sides, such
    /// as `in the base`.
    pub fn difference(&self, other: &Self, words: [&str; 2]) -> Vec<String> {
        let mut out = Vec::new();
        let mut compare = |name: &str, here: String, there: String| {
            if here != there {
                out.push(format!("{name}: {here} {}, {there} {}", words[0], words[1]));
            }
        };
        let quoted = |text: &Option<String>| match text {
            Some(text) => format!("`{}`", shortened(text)),
            None => "none".to_owned(),
        };
        let listed = |stop: &[String]| match stop {
            [] => "none".to_owned(),
            stop => stop.iter().map(|s| format!("`{s}`")).collect::<Vec<_>>().join(" "),
        };
        let hash = |hash: &Option<String>| match hash {
            Some(hash) => hash.chars().take(12).collect(),
            None => "none".to_owned(),
        };
        compare(
            "tokenizer (sha256)",
            hash(&Some(self.tokenizer_sha256.clone())),
            hash(&Some(other.tokenizer_sha256.clone())),
        );
        compare("chat template (sha256)", hash(&self.template_sha256), hash(&other.template_sha256));
        compare("bos token", quoted(&self.bos), quoted(&other.bos));
        compare("eos token", quoted(&self.eos), quoted(&other.eos));
        compare("pad token", quoted(&self.pad), quoted(&other.pad));
        compare("stop tokens", listed(&self.stop), listed(&other.stop));
        compare("default system message", quoted(&self.default_system), quoted(&other.default_system));
        out
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_both_sides() {
        let here = TokenFingerprint {
            template_sha256: None,
            tokenizer_sha256: "0123456789abcdef".to_owned(),
            bos: None,
            eos: Some("</s>".to_owned()),
            pad: None,
            stop: vec!["</s>".to_owned()],
            default_system: None,
        };
        let words = ["here", "there"];
        assert!(here.difference(&here, words).is_empty());
        let there = TokenFingerprint { eos: Some("<|im_end|>".to_owned()), ..here.clone() };
        assert_eq!(here.difference(&there, words), ["eos token: `</s>` here, `<|im_end|>` there"]);
        let json = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<TokenFingerprint>(&json).unwrap(), here);
    }
}
