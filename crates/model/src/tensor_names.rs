//! Restores the original names of tensors that wrappers have renamed.

/// Components that wrappers add to a module's path. The wrappers are torch.compile, data parallelism, FSDP,
/// checkpointing, PEFT and TRL.
const WRAPPERS: [&str; 8] = [
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "base_layer",
    "original_module",
    "default",
    "pretrained_model",
];

/// The possible first components of tensor names in a file that contains only the decoder.
const DECODER: [&str; 3] = ["layers", "embed_tokens", "norm"];

/// Prefixes of the text model in a checkpoint with a vision tower, and their replacements.
const TEXT_PREFIXES: [(&str, &str); 4] = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
];

/// The prefix that the decoder's tensors have in a checkpoint with a vision tower, and the replacement of
/// this prefix.
#[derive(Clone, Debug, Default)]
pub(crate) struct TextPrefix(Option<(&'static str, &'static str)>);

impl TextPrefix {
    /// Finds the prefix of the decoder's layers.
    pub fn find<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let of_layers = |name: &str| {
            TEXT_PREFIXES.into_iter().find(|(prefix, to)| {
                *to == "model." && name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("layers."))
            })
        };
        Self(names.into_iter().find_map(of_layers))
    }

    /// Returns the name of the tensor `name` in the files of the checkpoint.
    pub fn file_name(&self, name: &str) -> String {
        let Some((prefix, to)) = self.0 else { return name.to_owned() };
        match (name.strip_prefix(to), name.strip_prefix("lm_head.")) {
            (Some(rest), _) if !is_vision(name) => format!("{prefix}{rest}"),
            // With the prefix `model.language_model.`, the head has no prefix.
            (_, Some(rest)) => format!(
                "{}lm_head.{rest}",
                prefix.strip_suffix(".model.").map_or(String::new(), |outer| format!("{outer}."))
            ),
            _ => name.to_owned(),
        }
    }
}

/// Returns whether a tensor belongs to the vision part of a model with images.
pub(crate) fn is_vision(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    name.starts_with("vision_tower.") || name.starts_with("multi_modal_projector.")
}

/// Returns the original names of the tensors of one checkpoint. The components of wrappers and the prefix of
/// PEFT are removed. `model.` is added if the file contains only the decoder.
pub(crate) fn canonical<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let bare = |name: &str| {
        let segments: Vec<&str> = name.split('.').filter(|segment| !WRAPPERS.contains(segment)).collect();
        let name = segments.join(".");
        let mut name = name.as_str();
        while let Some(inner) = name.strip_prefix("base_model.model.") {
            name = inner;
        }
        let text = TEXT_PREFIXES
            .into_iter()
            .find_map(|(prefix, to)| name.strip_prefix(prefix).map(|rest| format!("{to}{rest}")));
        text.unwrap_or_else(|| name.to_owned())
    };
    let mut names: Vec<String> = names.map(bare).collect();
    strip_outer(&mut names);
    if names.iter().any(|name| name.starts_with("model.")) {
        return names;
    }
    for name in &mut names {
        if name.split('.').next().is_some_and(|first| DECODER.contains(&first)) {
            name.insert_str(0, "model.");
        }
    }
    names
}

/// Removes a prefix such as `transformer.` or `llm.` before `model.layers`, if all layers of the file have
/// this prefix. A class around the model adds such a prefix.
fn strip_outer(names: &mut [String]) {
    const LAYERS: &str = "model.layers.";
    let outer = |name: &String| Some(name[..name.find(LAYERS)?].to_owned());
    let mut found: Vec<String> = names.iter().filter_map(outer).collect();
    found.dedup();
    let ([prefix], true) = (&found[..], names.iter().all(|name| !name.starts_with(LAYERS))) else { return };
    for name in names {
        if let Some(inner) = name.strip_prefix(prefix.as_str()) {
            *name = inner.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_taken_out() {
        let names = ["_orig_mod.model.layers.0.mlp.up_proj.weight", "module.lm_head.weight"];
        assert_eq!(canonical(names.into_iter()), ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]);
        for peft in [
            "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
            "base_model.model.base_model.model.model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj.default.weight",
            "pretrained_model.model.layers.0.self_attn.q_proj.weight",
            "llm.model.layers.0.self_attn.q_proj.weight",
            "model.model.layers.0.self_attn.q_proj.weight",
        ] {
            assert_eq!(canonical([peft].into_iter()), ["model.layers.0.self_attn.q_proj.weight"], "{peft}");
        }
        let saved = ["base_model.model.model.embed_tokens.original_module.weight", "llm.lm_head.weight"];
        assert_eq!(canonical(saved.into_iter())[0], "model.embed_tokens.weight");
        let outer = ["llm.model.layers.0.mlp.up_proj.weight", "llm.lm_head.weight", "v_head.summary.weight"];
        let inner = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight", "v_head.summary.weight"];
        assert_eq!(canonical(outer.into_iter()), inner);
    }

    #[test]
    fn a_text_model_beside_a_vision_tower_keeps_its_file_names() {
        for (file, name) in [
            ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.weight"),
        ] {
            assert_eq!(canonical([file].into_iter()), [name]);
            let prefix = TextPrefix::find(["language_model.model.layers.0.mlp.up_proj.weight"].into_iter());
            assert_eq!(prefix.file_name(name), file);
        }
        let inner = TextPrefix::find(["model.language_model.layers.0.mlp.up_proj.weight"].into_iter());
        assert_eq!(inner.file_name("lm_head.weight"), "lm_head.weight");
        assert_eq!(inner.file_name("model.norm.weight"), "model.language_model.norm.weight");
        let plain = TextPrefix::find(["model.layers.0.mlp.up_proj.weight"].into_iter());
        assert_eq!(plain.file_name("model.norm.weight"), "model.norm.weight");
    }

    #[test]
    fn a_decoder_alone_gets_its_prefix() {
        let names = [
            "embed_tokens.weight",
            "layers.0.input_layernorm.weight",
            "norm.weight",
            "v_head.summary.weight",
        ];
        let expected = [
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.norm.weight",
            "v_head.summary.weight",
        ];
        assert_eq!(canonical(names.into_iter()), expected);
    }
}
