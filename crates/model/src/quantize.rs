//! Quantizes the projections of a model one at a time. At most one projection is in memory in both formats.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;

use danlu_kernels::{
    Bytes, DType, FourBit, FourBitCode, FourBitFormat, Isa, NESTED_BLOCK, NestedScales, Scales, dynamic_u8,
    encode_blocks, nest, to_f32,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::four_bit::{QUANT_STATE, StoredFourBit};
use crate::sidecar_files::torch_name;
use crate::{ModelConfig, ModelError, TensorInfo, Weights, huge_pages};

/// Number of elements that a thread converts and encodes at a time.
const PIECE: usize = 1 << 16;

/// Settings of a 4-bit quantization. The JSON keys are those of transformers' `BitsAndBytesConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// The table that maps codes to values.
    #[serde(rename = "bnb_4bit_quant_type", with = "code_name")]
    pub quant_type: FourBitCode,
    /// Number of elements per scale. Must be one of [`Quantization::BLOCK_SIZES`].
    #[serde(rename = "blocksize", deserialize_with = "block_size")]
    pub block_size: usize,
    /// Whether the scales are quantized to 8 bits.
    #[serde(rename = "bnb_4bit_use_double_quant")]
    pub double_quant: bool,
}

mod code_name {
    use danlu_kernels::FourBitCode;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(code: &FourBitCode, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(code.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<FourBitCode, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

fn block_size<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    let size = usize::deserialize(d)?;
    Quantization::check_block_size(size).map_err(|expected| {
        serde::de::Error::custom(format!("`blocksize` is {size}, expected {expected}"))
    })?;
    Ok(size)
}

impl Quantization {
    /// Default block size of bitsandbytes.
    pub const BLOCK_SIZE: usize = 64;

    /// The supported block sizes, for messages.
    pub const BLOCK_SIZES: &str = "64, 128, 256, 512, 1024, 2048 or 4096";

    /// Returns the default settings for a 4-bit type: a block size of 64, and double quantization.
    pub fn new(quant_type: FourBitCode) -> Self {
        Self { quant_type, block_size: Self::BLOCK_SIZE, double_quant: true }
    }

    /// Returns these settings in the format for a back end that encodes weights itself.
    pub fn format(&self) -> FourBitFormat {
        let Self { quant_type: code, block_size, double_quant: nested } = *self;
        FourBitFormat { code, block_size, nested }
    }

    /// Checks that the block size is supported.
    ///
    /// # Errors
    /// Returns [`Quantization::BLOCK_SIZES`] if the block size is not supported.
    pub fn check_block_size(size: usize) -> Result<(), &'static str> {
        let holds = size.is_power_of_two() && (64..=4096).contains(&size);
        if holds { Ok(()) } else { Err(Self::BLOCK_SIZES) }
    }

    /// Returns the `quantization_config` that transformers reads. The weights are dequantized to `dtype` for
    /// computation. `skip` lists the modules that are not quantized.
    pub fn config_json(&self, dtype: Option<DType>, skip: &[String]) -> Value {
        let own = (!skip.iter().any(|key| key == "lm_head")).then_some("lm_head");
        let skipped: Vec<&str> = own.into_iter().chain(skip.iter().map(String::as_str)).collect();
        json!({
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_compute_dtype": torch_name(dtype.unwrap_or(DType::Bf16)),
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": self.quant_type.name(),
            "bnb_4bit_use_double_quant": self.double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": skipped,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "quant_method": "bitsandbytes",
        })
    }

    /// Returns the size of `elements` elements in 4 bits, in bytes. The size includes the scales.
    pub fn bytes(&self, elements: usize) -> u64 {
        let blocks = elements.div_ceil(self.block_size);
        let scales = if self.double_quant { blocks + blocks.div_ceil(NESTED_BLOCK) * 4 } else { blocks * 4 };
        (elements.div_ceil(2) + scales) as u64
    }

    /// Returns the size in bytes of the working memory that encoding `elements` elements with `threads`
    /// threads needs.
    pub fn passing_bytes(&self, elements: usize, threads: usize) -> u64 {
        let scales = if self.double_quant { elements.div_ceil(self.block_size) * 4 } else { 0 };
        (scales + threads * PIECE.max(self.block_size) * 4) as u64
    }

    /// Encodes a weight of `len` elements of type `dtype`, with `threads` threads.
    ///
    /// # Errors
    /// Returns the index of the first element that is not finite.
    ///
    /// # Panics
    /// If `bytes` does not contain `len` elements.
    pub fn encode(&self, dtype: DType, bytes: &[u8], len: usize, threads: usize) -> Result<FourBit, usize> {
        assert_eq!(bytes.len(), len * dtype.size());
        let mut codes = huge_pages::zeros(len.div_ceil(2));
        let mut absmax = vec![0.0f32; len.div_ceil(self.block_size)];
        let piece = PIECE.max(self.block_size);
        // Number of elements per thread, a multiple of `piece`.
        let share_len = len.div_ceil(threads.max(1)).next_multiple_of(piece).max(piece);
        let parts = bytes
            .chunks(share_len * dtype.size())
            .zip(codes.chunks_mut(share_len / 2))
            .zip(absmax.chunks_mut(share_len / self.block_size));
        let odd = thread::scope(|scope| {
            let share = |((bytes, codes), absmax)| {
                scope.spawn(move || self.encode_pieces(dtype, bytes, codes, absmax, piece))
            };
            let running: Vec<_> = parts.map(share).collect();
            let odd = running.into_iter().map(|thread| thread.join().expect("encoding does not panic"));
            let odd: Vec<Option<usize>> = odd.collect();
            (0..).step_by(share_len).zip(odd).find_map(|(start, odd)| Some(start + odd?))
        });
        if let Some(odd) = odd {
            return Err(odd);
        }
        let scales = match self.double_quant {
            false => Scales::Plain(Bytes::from_f32(&absmax)),
            true => {
                let NestedScales { codes, absmax, offset } = nest(&absmax);
                Scales::Nested {
                    codes: Bytes::from_vec(codes),
                    table: Arc::new(dynamic_u8()),
                    absmax: Bytes::from_f32(&absmax),
                    block_size: NESTED_BLOCK,
                    offset,
                }
            }
        };
        Ok(FourBit::new(
            Bytes::new(Arc::new(codes), 0..len.div_ceil(2)),
            scales,
            *self.quant_type.table(),
            self.block_size,
            dtype,
            len,
        ))
    }

    /// Encodes the elements of one thread. Returns the index of the first element that is not finite.
    fn encode_pieces(
        &self,
        dtype: DType,
        bytes: &[u8],
        codes: &mut [u8],
        absmax: &mut [f32],
        piece: usize,
    ) -> Option<usize> {
        let isa = Isa::detect();
        let mut values = vec![0.0; piece.min(bytes.len() / dtype.size())];
        let parts = bytes
            .chunks(piece * dtype.size())
            .zip(codes.chunks_mut(piece / 2))
            .zip(absmax.chunks_mut(piece / self.block_size));
        for (i, ((bytes, codes), absmax)) in parts.enumerate() {
            let values = &mut values[..bytes.len() / dtype.size()];
            to_f32(dtype, bytes, values);
            // The loop has no early exit, so that the compiler can vectorise it.
            if !values.iter().fold(true, |all, v| all & v.is_finite()) {
                return values.iter().position(|v| !v.is_finite()).map(|at| i * piece + at);
            }
            encode_blocks(isa, self.quant_type, self.block_size, values, codes, absmax);
        }
        None
    }
}

/// Progress of a quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeProgress {
    /// Bytes of the original weights that were already encoded or copied.
    pub bytes: u64,
    /// Bytes of the original weights to encode or copy.
    pub total: u64,
}

impl Weights {
    /// Returns the same weights, with every projection of a layer quantized to 4 bits in memory. As in
    /// bitsandbytes, embeddings, head and norms do not change. The mapped memory of each original projection
    /// is released after its quantization, so at most one projection is in memory in both formats. `progress`
    /// may stop the quantization.
    ///
    /// # Errors
    /// If a tensor is missing, misshaped, in 4 bits already or of an unsupported type, or if a value is not
    /// finite. Returns [`ModelError::Stopped`] if `progress` breaks.
    pub fn quantize(
        mut self,
        config: &ModelConfig,
        quantization: Quantization,
        threads: usize,
        progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
    ) -> Result<Self, ModelError> {
        self.check_complete(config)?;
        self.refuse_four_bit()?;
        let names: Vec<String> = projections(config).map(|(name, ..)| name).collect();
        let total = names.iter().filter_map(|name| self.info(name)).map(|info| info.range.len() as u64).sum();
        let mut quantized = HashMap::with_capacity(names.len());
        let mut done = 0;
        for name in names {
            let weight = self.encode(&name, quantization, threads)?;
            done += self.info(&name).map_or(0, |info| info.range.len() as u64);
            quantized.insert(name, Arc::new(weight));
            if progress(QuantizeProgress { bytes: done, total }).is_break() {
                return Err(ModelError::Stopped);
            }
        }
        self.quantized = quantized;
        Ok(self)
    }

    /// Encodes one weight and releases the mapped memory of the original.
    ///
    /// # Errors
    /// If the weight is missing, has an unsupported type, or contains a value that is not finite.
    pub fn encode(
        &self,
        name: &str,
        quantization: Quantization,
        threads: usize,
    ) -> Result<FourBit, ModelError> {
        let (info, dtype) = self.float(name)?;
        let bytes = self.bytes(info);
        let weight = quantization.encode(dtype, bytes, bytes.len() / dtype.size(), threads);
        let weight = weight.map_err(|element| {
            let mut value = [0.0];
            to_f32(dtype, &bytes[element * dtype.size()..][..dtype.size()], &mut value);
            let (path, tensor) = (self.files()[info.file].clone(), name.to_owned());
            ModelError::NotFinite { path, tensor, value: value[0], element }
        })?;
        self.release(info);
        Ok(weight)
    }

    /// Checks that all values of a floating-point tensor are finite. Tensors of other types are accepted.
    ///
    /// # Errors
    /// Returns [`ModelError::NotFinite`] with the first value that is not finite.
    pub fn check_finite(&self, info: &TensorInfo) -> Result<(), ModelError> {
        const CHUNK_ELEMENTS: usize = 1 << 16;
        let Some(dtype) = info.dtype() else { return Ok(()) };
        let mut values = vec![0.0; CHUNK_ELEMENTS];
        for (chunk, bytes) in self.bytes(info).chunks(CHUNK_ELEMENTS * dtype.size()).enumerate() {
            let values = &mut values[..bytes.len() / dtype.size()];
            to_f32(dtype, bytes, values);
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let (path, tensor) = (self.files()[info.file].clone(), info.name.clone());
                let element = chunk * CHUNK_ELEMENTS + at;
                return Err(ModelError::NotFinite { path, tensor, value: values[at], element });
            }
        }
        Ok(())
    }

    /// Returns the name of the first 4-bit weight in the files.
    pub fn first_four_bit(&self) -> Option<&str> {
        self.tensors().iter().find_map(|info| Some(info.name.split_once(QUANT_STATE)?.0))
    }

    /// Returns the names of the projections that are not in 4 bits, if other projections are.
    pub fn unquantized_modules(&self, config: &ModelConfig) -> Vec<String> {
        if self.first_four_bit().is_none() {
            return Vec::new();
        }
        let names = projections(config).map(|(name, ..)| name);
        let wide = names.filter(|name| StoredFourBit::find(self, name).is_none());
        wide.map(|name| module_of(&name).to_owned()).collect()
    }

    /// Returns the quantization of the first 4-bit weight in the files. Returns `None` if the files contain
    /// no 4-bit weight, or if [`Quantization`] does not support the block size of that weight.
    ///
    /// # Errors
    /// If the state of that weight cannot be read.
    pub fn stored_quantization(&self) -> Result<Option<Quantization>, ModelError> {
        let stored = self.first_four_bit().and_then(|name| StoredFourBit::find(self, name));
        stored.map_or(Ok(None), |stored| stored.quantization())
    }

    /// Rejects weights that are in 4 bits already.
    ///
    /// # Errors
    /// Returns [`ModelError::AlreadyFourBit`] for the first such weight.
    pub fn refuse_four_bit(&self) -> Result<(), ModelError> {
        match self.first_four_bit() {
            None => Ok(()),
            Some(tensor) => {
                let (folder, tensor) = (self.folder().to_owned(), tensor.to_owned());
                Err(ModelError::AlreadyFourBit { folder, tensor })
            }
        }
    }
}

/// Returns the name of the module to which a weight belongs: the name of the weight without `.weight`.
pub(crate) fn module_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Returns whether `skip` contains a module, by transformers' rule for `llm_int8_skip_modules`: an entry
/// matches the start or the end of the module's name.
pub(crate) fn is_skipped(module: &str, skip: &[String]) -> bool {
    skip.iter().any(|key| {
        let rest = module.strip_prefix(key.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) || module.ends_with(key.as_str())
    })
}

/// Returns the name and shape of every weight that can be quantized.
pub fn projections(config: &ModelConfig) -> impl Iterator<Item = (String, usize, usize)> {
    (0..config.num_hidden_layers).flat_map(move |layer| {
        config.projections().map(move |p| {
            let (rows, cols) = config.projection_shape(p);
            (p.weight_name(layer), rows, cols)
        })
    })
}
