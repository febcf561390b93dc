//! config.json and safetensors to a decoder that runs forward and backward; tokenizer and chat template.
