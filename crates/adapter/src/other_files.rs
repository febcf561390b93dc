//! Recognizes adapter files in formats that danlu does not read, by their names.

/// An adapter format that danlu does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherAdapterFile {
    /// An adapter for llama.cpp.
    Gguf,
    /// An adapter of an image model in the format of diffusers.
    Diffusers,
    /// An adapter of mlx-examples, from the time before mlx-lm.
    Npz,
    /// A sharded checkpoint of PyTorch's FSDP.
    Distributed,
}

impl OtherAdapterFile {
    /// Recognizes the format of a file or folder by its name.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            _ if name.ends_with(".gguf") => Some(Self::Gguf),
            "pytorch_lora_weights.safetensors" | "pytorch_lora_weights.bin" => Some(Self::Diffusers),
            _ if name.ends_with(".npz") => Some(Self::Npz),
            _ if name.starts_with("pytorch_model_fsdp") || name.ends_with(".distcp") => {
                Some(Self::Distributed)
            }
            _ => None,
        }
    }

    /// Returns a hint on how to convert or replace the adapter.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Gguf => {
                "take the adapter that the GGUF file was made from, in PEFT's form: danlu reads no GGUF, which holds \
                 rounded weights"
            }
            Self::Diffusers => {
                "use it with diffusers: it is an adapter of an image model, and danlu runs language models"
            }
            Self::Npz => {
                "save it again with mlx-lm, which writes adapters.safetensors and adapter_config.json"
            }
            Self::Distributed => {
                "join the parts first, with `accelerate merge-weights` or FSDP's full state dictionary, and save the \
                 adapter with PEFT"
            }
        }
    }
}

/// Returns whether kohya or diffusers use this tensor name for an adapter of an image model.
pub(crate) fn is_of_image_model(tensor: &str) -> bool {
    let starts =
        ["lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "unet.", "text_encoder.", "transformer."];
    tensor.ends_with(".lora_down.weight") || starts.iter().any(|start| tensor.starts_with(start))
}
