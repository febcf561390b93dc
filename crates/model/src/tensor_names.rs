//! Restores the original names of tensors that wrappers have renamed.

/// Components that wrappers add to a module's path. The wrappers are torch.compile, data parallelism, FSDP,
/// checkpointing and PEFT.
const WRAPPERS: [&str; 5] =
    ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"];

/// The possible first components of tensor names in a file that contains only the decoder.
const DECODER: [&str; 3] = ["layers", "embed_tokens", "norm"];

/// Returns the original names of the tensors of one checkpoint. The components of wrappers and the prefix of
/// PEFT are removed. `model.` is added if the file contains only the decoder.
pub(crate) fn canonical<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let bare = |name: &str| {
        let segments: Vec<&str> = name.split('.').filter(|segment| !WRAPPERS.contains(segment)).collect();
        let name = segments.join(".");
        match name.strip_prefix("base_model.model.") {
            Some(inner) => inner.to_owned(),
            None => name,
        }
    };
    let mut names: Vec<String> = names.map(bare).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_taken_out() {
        let names = ["_orig_mod.model.layers.0.mlp.up_proj.weight", "module.lm_head.weight"];
        assert_eq!(canonical(names.into_iter()), ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]);
        let peft = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight";
        assert_eq!(canonical([peft].into_iter()), ["model.layers.0.self_attn.q_proj.weight"]);
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
