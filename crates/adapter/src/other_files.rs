//! Files of adapters in forms that danlu does not read, by their names.

/// A form of adapter that danlu does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherAdapterFile {
    /// llama.cpp's.
    Gguf,
    /// An adapter of an image model, as diffusers writes it.
    Diffusers,
    /// An adapter of mlx-examples before mlx-lm.
    Npz,
    /// A checkpoint of torch's FSDP in parts.
    Distributed,
}

impl OtherAdapterFile {
    /// Recognizes a file or folder by its name.
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

    /// Returns what to do instead.
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

/// Whether the name of a tensor is that of an image model's adapter, as kohya and diffusers write it.
pub(crate) fn is_of_image_model(tensor: &str) -> bool {
    let starts =
        ["lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "unet.", "text_encoder.", "transformer."];
    tensor.ends_with(".lora_down.weight") || starts.iter().any(|start| tensor.starts_with(start))
}
