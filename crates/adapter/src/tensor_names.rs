//! Converts the tensor names in adapters of other programs to PEFT's names.

use crate::adapter::{MAGNITUDE, PREFIX};

/// Segments that wrappers insert into a module's path. The wrappers are torch.compile, data parallelism, FSDP
/// and activation checkpointing.
const WRAPPERS: [&str; 4] = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Segments that may precede the layers. PEFT, the model's own classes, models of text and images, and
/// classes around a model insert these segments.
const PREFIXES: [&str; 7] =
    ["base_model", "model", "language_model", "text_model", "transformer", "llm", "pretrained_model"];

/// Returns PEFT's name for the tensor `name`. This name contains no wrappers and no adapter name, and has
/// PEFT's prefix exactly once. A name that belongs to no matrix of LoRA and no magnitude of DoRA is returned
/// without its wrappers.
pub(crate) fn canonical(name: &str) -> String {
    let segments: Vec<&str> = name.split('.').filter(|segment| !WRAPPERS.contains(segment)).collect();
    let is_half = |segment: &&str| matches!(*segment, "lora_A" | "lora_B" | MAGNITUDE);
    let Some(half) = segments.iter().rposition(is_half) else {
        return segments.join(".");
    };
    // The possible ends are `lora_A.weight`, `lora_A.<name of the adapter>.weight`, and `lora_A`.
    let is_weight = match &segments[half + 1..] {
        [] | ["weight"] => true,
        [_, last] => *last == "weight",
        _ => false,
    };
    let layers = segments.iter().position(|segment| *segment == "layers");
    let start =
        layers.filter(|&at| at < half && segments[..at].iter().all(|segment| PREFIXES.contains(segment)));
    match start {
        // PEFT saves the magnitudes as a parameter without `.weight`.
        Some(start) if segments[half] == MAGNITUDE && (is_weight || segments.len() == half + 2) => {
            format!("{PREFIX}model.{}", segments[start..=half].join("."))
        }
        Some(start) if is_weight => {
            format!("{PREFIX}model.{}.weight", segments[start..=half].join("."))
        }
        _ => segments.join("."),
    }
}

/// Returns the wrapper that inserted a segment into the name, in words.
pub(crate) fn wrapper(name: &str) -> Option<&'static str> {
    let has = |wanted: &str| name.split('.').any(|segment| segment == wanted);
    match () {
        () if has("_orig_mod") => Some("torch.compile"),
        () if has("_fsdp_wrapped_module") => Some("FSDP"),
        () if has("_checkpoint_wrapped_module") => Some("activation checkpointing"),
        () if has("module") => Some("DataParallel"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_habit_become_pefts() {
        let peft = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        for name in [
            peft,
            "_orig_mod.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.weight",
            "module.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "base_model.model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj._orig_mod.lora_A.my_adapter.weight",
            "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight",
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "layers.0.self_attn.q_proj.lora_A",
            "transformer.model.layers.0.self_attn.q_proj.lora_A.weight",
            "pretrained_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        ] {
            assert_eq!(canonical(name), peft, "{name}");
        }
        for name in [
            "base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.lm_head.weight",
            "model.layers.0.self_attn.q_proj.lora_A.a.b.weight",
        ] {
            assert_eq!(canonical(name), name);
        }
        let magnitude = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector";
        for name in [
            magnitude,
            "model.layers.0.mlp.up_proj.lora_magnitude_vector.weight",
            "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector.default",
            "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector.default.weight",
        ] {
            assert_eq!(canonical(name), magnitude, "{name}");
        }
        assert_eq!(wrapper("_orig_mod.x"), Some("torch.compile"));
        assert_eq!(wrapper(peft), None);
    }
}
