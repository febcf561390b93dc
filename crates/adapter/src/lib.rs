//! LoRA adapters: configuration, initialisation, PEFT's files, merging into a base.
