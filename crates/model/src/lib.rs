//! Decoder models: configuration, safetensors, forward and backward passes, tokenizer and chat template.
//!
//! A [`Decoder`] is a base whose weights never change. The caller passes the adapters of each pass as
//! [`LoraSource`]s. The [`ChatTemplate`] of a [`Tokenizer`] turns a conversation into text:
//!
//! ```
//! use std::{path::Path, sync::Arc};
//!
//! use danlu_kernels::{Cpu, CpuOptions};
//! use danlu_model::{Decoder, Message, SlotInput, Tokenizer, Workspace};
//!
//! let folder = Path::new("../cli/assets/base-8m");
//! let tokenizer = Tokenizer::read(folder)?;
//! let prompt = tokenizer.template()?.render(&[Message::new("user", "Who are you?")], true)?;
//! let ids = tokenizer.encode(&prompt)?;
//!
//! let decoder = Decoder::load(folder, Arc::new(Cpu::new(CpuOptions::default())))?;
//! let mut cache = decoder.new_cache();
//! let input = SlotInput::new(cache.add(ids.len()), &ids, None);
//! let logits = decoder.prefill(&mut Workspace::new(), &mut cache, &[input])?;
//! assert_eq!(logits.len(), decoder.config().vocab_size);
//! # Ok::<(), danlu_model::ModelError>(())
//! ```

mod activations;
mod added_tokens;
mod backward;
mod base_fingerprint;
mod batch;
mod byte_text;
mod chat_template;
mod config;
mod config_json;
mod decode;
mod decoder;
mod encode_windows;
mod error;
pub mod files;
mod forward_pass;
mod four_bit;
mod guarded_thread;
mod huge_pages;
mod jinja;
mod json;
mod json_fault;
mod known_templates;
mod kv_cache;
mod lora;
mod mapped_files;
mod packed_adapter;
mod pickle;
mod prefix_sharing;
mod presets;
mod projection;
mod quantize;
mod quantized_folder;
mod random_weights;
mod repo_id;
mod sentencepiece;
mod shard_writer;
mod shell_word;
pub mod sidecar_files;
mod spelling;
mod staged_folder;
mod template_rewrite;
mod template_values;
mod tensor_names;
mod token_fingerprint;
mod tokenizer;
mod tokenizer_file;
pub mod torch_file;
mod weights;
mod workspace;

pub use activations::ActivationPolicy;
pub use backward::StepBuffers;
pub use base_fingerprint::{
    base_fingerprint, base_fingerprint_of, base_sample, base_sample_of, sha256_of_file,
};
pub use batch::{Batch, LabeledSequence};
pub use byte_text::format_bytes;
pub use chat_template::{ChatTemplate, Message, Rendered};
pub use config::{
    Architecture, BlockNorms, LayerAttention, LayerRope, ModelConfig, QkNorm, Rope, RopeScaling,
};
pub use config_json::ConfigJson;
pub use decode::SlotInput;
pub use decoder::Decoder;
pub use error::ModelError;
pub use files::{AtomicFile, FileError};
pub use guarded_thread::{NoResult, WorkLimits, is_panic_caught, run as run_guarded};
pub use json::read_json_object;
pub use json_fault::{JsonFault, json_words};
pub use known_templates::{KNOWN_TEMPLATES, KnownTemplate, known_template};
pub use kv_cache::{KvCache, SlotId};
pub use lora::{DropoutPlan, EmbeddingNoise, LoraRows, LoraSource, OutputFactors};
pub use mapped_files::mapped_file_at;
pub use packed_adapter::PackedAdapter;
pub use prefix_sharing::{SharedPrefix, find_shared_prefixes};
pub use presets::{Preset, UnknownPreset};
pub use projection::Projection;
pub use quantize::{Quantization, QuantizeProgress, projections};
pub use quantized_folder::{Extra, Quantized, quantize_into, write_quantized};
pub use random_weights::{RandomProgress, RandomWeights};
pub use repo_id::is_repo_id;
pub use shard_writer::{ShardWriter, TensorSpec};
pub use shell_word::shell_word;
pub use spelling::{closest_word, edit_distance};
pub use staged_folder::{FolderState, INDEX_FILE, SINGLE_FILE, StagedFolder, shard_index, shard_name};
pub use token_fingerprint::TokenFingerprint;
pub use tokenizer::{DecodeState, DecodeStream, TokenSpan, Tokenizer};
pub use weights::{TensorInfo, Weights};
pub use workspace::Workspace;
