//! PEFT's names for tensors that change the base.

use crate::base_changes::{EMBEDDING, HEAD};

/// The relation of an adapter's tensor to the tensor of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// A tensor with the same name as in the base: `lm_head.weight`.
    Plain,
    /// A copy of the base's original tensor inside a wrapper: `base_layer.weight`, `original_module.weight`.
    Base,
    /// A trained copy: `modules_to_save.weight`.
    Saved,
    /// Replaced rows of single tokens: `token_adapter.trainable_tokens_delta`.
    Rows,
    /// The matrix `A` for the embedding table or the output head: `lora_A` or `lora_embedding_A`.
    A,
    /// The matrix `B` for the embedding table or the output head: `lora_B` or `lora_embedding_B`.
    B,
}

#[derive(Debug, PartialEq)]
pub(crate) struct BaseTensorName {
    /// The tensor's name in the base: `model.embed_tokens.weight`.
    pub tensor: String,
    pub part: Part,
}

/// Segments of a tensor name that may precede the decoder's modules.
const PREFIXES: [&str; 4] = ["base_model", "model", "language_model", "text_model"];

/// Names of the decoder's direct submodules.
const MODULES: [&str; 3] = ["embed_tokens", "layers", "norm"];

impl BaseTensorName {
    /// Returns whether danlu can apply the tensor to the base. This is true for a whole tensor, and for every
    /// part of the embedding table and the output head.
    pub fn changes_base(&self) -> bool {
        matches!(self.part, Part::Plain | Part::Base | Part::Saved)
            || [EMBEDDING, HEAD].contains(&self.tensor.as_str())
    }

    /// Parses a tensor name. Returns `None` if the name has none of the forms that [`Part`] lists.
    pub fn parse(name: &str) -> Option<Self> {
        let segments: Vec<&str> = name.split('.').collect();
        let start = segments.iter().position(|segment| !PREFIXES.contains(segment))?;
        let path: &[&str] = &segments[start..];
        let (prefix, path) = match path[0] {
            "lm_head" => ("", path),
            first if MODULES.contains(&first) => ("model.", path),
            _ => return None,
        };
        let is_wrapper = |segment: &&str| {
            matches!(*segment, "modules_to_save" | "original_module" | "base_layer" | "token_adapter")
                || segment.starts_with("lora_")
        };
        let module = path.iter().position(is_wrapper).unwrap_or(path.len() - 1);
        let (module, rest) = path.split_at(module);
        let (part, kind) = match rest {
            [kind @ ("weight" | "bias")] => (Part::Plain, *kind),
            ["modules_to_save", kind @ ("weight" | "bias")] => (Part::Saved, *kind),
            ["modules_to_save", _, kind @ ("weight" | "bias")] => (Part::Saved, *kind),
            ["original_module" | "base_layer", kind @ ("weight" | "bias")] => (Part::Base, *kind),
            ["token_adapter", "base_layer", kind @ "weight"] => (Part::Base, *kind),
            ["token_adapter", "trainable_tokens_delta"] => (Part::Rows, "weight"),
            ["token_adapter", "trainable_tokens_delta", _] => (Part::Rows, "weight"),
            ["lora_embedding_A"] | ["lora_embedding_A", _] => (Part::A, "weight"),
            ["lora_embedding_B"] | ["lora_embedding_B", _] => (Part::B, "weight"),
            ["lora_A", "weight"] | ["lora_A", _, "weight"] => (Part::A, "weight"),
            ["lora_B", "weight"] | ["lora_B", _, "weight"] => (Part::B, "weight"),
            _ => return None,
        };
        if module.is_empty() {
            return None;
        }
        Some(Self { tensor: format!("{prefix}{}.{kind}", module.join(".")), part })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_form_lead_to_the_base() {
        let embedding = "model.embed_tokens.weight";
        for (name, tensor, part) in [
            ("base_model.model.model.embed_tokens.weight", embedding, Part::Plain),
            ("model.embed_tokens.weight", embedding, Part::Plain),
            ("base_model.model.model.embed_tokens.modules_to_save.weight", embedding, Part::Saved),
            ("base_model.model.model.embed_tokens.modules_to_save.default.weight", embedding, Part::Saved),
            ("base_model.model.model.embed_tokens.original_module.weight", embedding, Part::Base),
            ("base_model.model.model.embed_tokens.token_adapter.base_layer.weight", embedding, Part::Base),
            (
                "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
                embedding,
                Part::Rows,
            ),
            ("base_model.model.model.embed_tokens.lora_embedding_A", embedding, Part::A),
            ("base_model.model.model.embed_tokens.lora_embedding_B.default", embedding, Part::B),
            ("base_model.model.lm_head.weight", "lm_head.weight", Part::Plain),
            ("base_model.model.lm_head.lora_B.weight", "lm_head.weight", Part::B),
            ("base_model.model.lm_head.base_layer.weight", "lm_head.weight", Part::Base),
            ("base_model.model.model.norm.weight", "model.norm.weight", Part::Plain),
            (
                "base_model.model.model.layers.3.self_attn.q_proj.base_layer.bias",
                "model.layers.3.self_attn.q_proj.bias",
                Part::Base,
            ),
        ] {
            let expected = BaseTensorName { tensor: tensor.to_owned(), part };
            assert_eq!(BaseTensorName::parse(name), Some(expected), "{name}");
        }
        for name in [
            "base_model.model.score.weight",
            "base_model.model.model.embed_tokens.lora_magnitude_vector",
            "base_model.model",
            "weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_X",
            "",
        ] {
            assert_eq!(BaseTensorName::parse(name), None, "{name}");
        }
    }
}
