//! A 4-bit weight in the format of bitsandbytes. The tensor with the name of the weight contains the codes,
//! which are the 4-bit numbers. The other parts of the weight are tensors with longer names.
//!
//! ```text
//! W.weight                                u8   two codes a byte, [N/2, 1]
//! W.weight.absmax                         f32  one scale per block, or u8 if the scales are nested
//! W.weight.quant_map                      f32  [16]
//! W.weight.nested_absmax                  f32  one scale per block of scales
//! W.weight.nested_quant_map               f32  [256]
//! W.weight.quant_state.bitsandbytes__nf4  u8   JSON
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use danlu_kernels::{Bytes, DType, FourBit, FourBitCode, NESTED_BLOCK, Scales, to_f32};
use serde::{Deserialize, Serialize};

use crate::sidecar_files::torch_name;
use crate::{ModelError, Quantization, TensorInfo, TensorSpec, Weights};

/// Name suffixes of the parts.
pub(crate) const ABSMAX: &str = ".absmax";
pub(crate) const QUANT_MAP: &str = ".quant_map";
pub(crate) const NESTED_ABSMAX: &str = ".nested_absmax";
pub(crate) const NESTED_QUANT_MAP: &str = ".nested_quant_map";
pub(crate) const QUANT_STATE: &str = ".quant_state.bitsandbytes__";

/// Maximum size of a quantization state. Real states have some 300 bytes.
const MAX_QUANT_STATE_BYTES: usize = 16 << 10;
/// Maximum number of rows or columns. No real weight is this large, and the product of two such numbers does
/// not overflow.
const MAX_DIMENSION: usize = 1 << 28;
/// Block sizes that danlu reads. bitsandbytes supports 64 to 4096.
const BLOCK_SIZES: std::ops::RangeInclusive<usize> = 16..=65536;

/// Quantization state of a 4-bit weight, read from JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct QuantState {
    pub quant_type: String,
    pub blocksize: u64,
    pub dtype: String,
    pub shape: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nested_blocksize: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nested_dtype: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nested_offset: Option<f64>,
}

/// Returns the name of the weight to which the tensor `name` belongs as a part.
pub(crate) fn weight_of_part(name: &str) -> Option<&str> {
    let plain = [ABSMAX, QUANT_MAP, NESTED_ABSMAX, NESTED_QUANT_MAP];
    let part = plain.into_iter().find_map(|part| name.strip_suffix(part));
    part.or_else(|| name.split_once(QUANT_STATE).map(|(weight, _)| weight))
}

pub(crate) struct StoredFourBit<'a> {
    weights: &'a Weights,
    name: &'a str,
    state: &'a TensorInfo,
}

pub(crate) struct FourBitParts<'a> {
    codes: &'a TensorInfo,
    absmax: &'a TensorInfo,
    blocks: usize,
    block_size: usize,
    dtype: DType,
    len: usize,
    /// Block size and offset, if the scales are nested.
    nested: Option<(usize, f32)>,
}

impl<'a> StoredFourBit<'a> {
    /// Returns the weight `name`, if the files contain its quantization state.
    pub fn find(weights: &'a Weights, name: &'a str) -> Option<Self> {
        let named = |code: FourBitCode| weights.info(&format!("{name}{QUANT_STATE}{code}"));
        let state = [FourBitCode::Nf4, FourBitCode::Fp4].into_iter().find_map(named)?;
        Some(Self { weights, name, state })
    }

    /// Returns all 4-bit weights. The key is the name of the weight.
    pub fn all(weights: &'a Weights) -> HashMap<&'a str, Self> {
        let of = |state: &'a TensorInfo| {
            let (name, _) = state.name.split_once(QUANT_STATE)?;
            Some((name, Self { weights, name, state }))
        };
        weights.tensors().iter().filter_map(of).collect()
    }

    /// Returns every part except the codes.
    pub fn parts(&self) -> impl Iterator<Item = &'a TensorInfo> {
        let named = |suffix: &str| self.weights.info(&format!("{}{suffix}", self.name));
        let plain = [ABSMAX, QUANT_MAP, NESTED_ABSMAX, NESTED_QUANT_MAP].map(named);
        plain.into_iter().flatten().chain([self.state])
    }

    fn error(&self, message: impl Into<String>) -> ModelError {
        let path = self.weights.files()[self.state.file].clone();
        ModelError::FourBit { path, tensor: self.name.to_owned(), message: message.into() }
    }

    /// Returns the part with `suffix`. The part must have the element type `dtype` and `bytes` bytes.
    fn part(&self, suffix: &str, dtype: &str, bytes: usize) -> Result<&'a TensorInfo, ModelError> {
        let name = format!("{}{suffix}", self.name);
        let info = self.weights.info(&name).ok_or_else(|| self.error(format!("`{name}` is missing")))?;
        if info.dtype_name != dtype || info.range.len() != bytes {
            return Err(self.error(format!(
                "`{name}` holds {} bytes of {}, expected {bytes} of {dtype}",
                info.range.len(),
                info.dtype_name
            )));
        }
        Ok(info)
    }

    fn state(&self) -> Result<QuantState, ModelError> {
        let bytes = self.weights.bytes(self.state);
        if bytes.len() > MAX_QUANT_STATE_BYTES {
            let text =
                format!("`{}` holds {} bytes, at most {MAX_QUANT_STATE_BYTES}", self.state.name, bytes.len());
            return Err(self.error(text));
        }
        serde_json::from_slice(bytes).map_err(|e| self.error(format!("`{}`: {e}", self.state.name)))
    }

    /// Returns the quantization, or `None` if [`Quantization`] does not support the block size.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn quantization(&self) -> Result<Option<Quantization>, ModelError> {
        let state = self.state()?;
        let quant_type = state.quant_type.parse().map_err(|e: String| self.error(e))?;
        let size = usize::try_from(state.blocksize).ok();
        let size = size.filter(|size| Quantization::check_block_size(*size).is_ok());
        let double_quant = state.nested_blocksize.is_some();
        Ok(size.map(|block_size| Quantization { quant_type, block_size, double_quant }))
    }

    /// Checks the parts and their sizes. The values are not checked.
    ///
    /// # Errors
    /// If a part is missing, or if the sizes of two parts do not match.
    pub fn check(&self, rows: usize, cols: usize) -> Result<FourBitParts<'a>, ModelError> {
        let state = self.state()?;
        let code = self.state.name.rsplit("__").next().unwrap_or_default();
        if state.quant_type != code {
            let text = format!("`quant_type` is `{}` in the state of a weight in {code}", state.quant_type);
            return Err(self.error(text));
        }
        let block = |name: &str, size: u64| {
            usize::try_from(size)
                .ok()
                .filter(|size| size.is_power_of_two() && BLOCK_SIZES.contains(size))
                .ok_or_else(|| {
                    let (least, most) = (BLOCK_SIZES.start(), BLOCK_SIZES.end());
                    self.error(format!("`{name}` is {size}, expected a power of two from {least} to {most}"))
                })
        };
        let block_size = block("blocksize", state.blocksize)?;
        let dtype = [DType::F32, DType::Bf16, DType::F16].into_iter().find(|d| torch_name(*d) == state.dtype);
        let dtype = dtype.ok_or_else(|| {
            self.error(format!("`dtype` is `{}`, expected float32, bfloat16 or float16", state.dtype))
        })?;
        if state.shape != [rows as u64, cols as u64] {
            return Err(self.error(format!("`shape` is {:?}, expected {:?}", state.shape, [rows, cols])));
        }
        let len = rows * cols;
        let codes = self.weights.info(self.name).ok_or_else(|| self.error("its codes are missing"))?;
        if codes.range.len() != len.div_ceil(2) {
            let (found, expected) = (codes.range.len(), len.div_ceil(2));
            return Err(self.error(format!("{found} bytes of codes for {len} elements, expected {expected}")));
        }
        self.part(QUANT_MAP, "F32", 16 * 4)?;
        let blocks = len.div_ceil(block_size);
        let (absmax, nested) = match (state.nested_blocksize, state.nested_offset) {
            (None, None) => (self.part(ABSMAX, "F32", blocks * 4)?, None),
            (Some(size), Some(offset)) => {
                let size = block("nested_blocksize", size)?;
                if state.nested_dtype.as_deref().is_some_and(|dtype| dtype != "float32") {
                    let found = state.nested_dtype.unwrap_or_default();
                    return Err(self.error(format!("`nested_dtype` is `{found}`, expected float32")));
                }
                let absmax = self.part(ABSMAX, "U8", blocks)?;
                self.part(NESTED_ABSMAX, "F32", blocks.div_ceil(size) * 4)?;
                self.part(NESTED_QUANT_MAP, "F32", 256 * 4)?;
                let offset = offset as f32;
                if !offset.is_finite() {
                    return Err(self.error(format!("`nested_offset` is {offset}, expected a finite f32")));
                }
                (absmax, Some((size, offset)))
            }
            _ => return Err(self.error("only one of `nested_blocksize` and `nested_offset` is there")),
        };
        Ok(FourBitParts { codes, absmax, blocks, block_size, dtype, len, nested })
    }

    /// Returns name, shape and element type of the weight before quantization. `info` is the tensor of the
    /// codes.
    ///
    /// # Errors
    /// The errors of [`StoredFourBit::check`].
    pub fn original(&self, info: &TensorInfo) -> Result<TensorInfo, ModelError> {
        let &[rows, cols] = &self.state()?.shape[..] else {
            return Err(self.error("`shape` has not two sizes"));
        };
        let size = |n: u64| usize::try_from(n).ok().filter(|&n| n <= MAX_DIMENSION);
        let (Some(rows), Some(cols)) = (size(rows), size(cols)) else {
            return Err(self.error(format!("`shape` is [{rows}, {cols}], which no weight has")));
        };
        let dtype = self.check(rows, cols)?.dtype;
        let dtype_name = TensorSpec::dtype_name(dtype).to_owned();
        Ok(TensorInfo { dtype_name, shape: vec![rows, cols], ..info.clone() })
    }

    /// Returns the weight `(rows, cols)`. Its data remains in the mapped file.
    ///
    /// # Errors
    /// The errors of [`StoredFourBit::check`]. Also returns an error if a scale or a table value is not
    /// finite.
    pub fn read(&self, rows: usize, cols: usize) -> Result<FourBit, ModelError> {
        let FourBitParts { codes, absmax, blocks, block_size, dtype, len, nested } =
            self.check(rows, cols)?;
        let scales = match nested {
            None => Scales::Plain(self.finite(ABSMAX, blocks)?.0),
            Some((size, offset)) => {
                let (_, table) = self.finite(NESTED_QUANT_MAP, 256)?;
                let table: [f32; 256] = table.try_into().expect("as many as were asked for");
                Scales::Nested {
                    codes: self.weights.part(absmax),
                    table: Arc::new(table),
                    absmax: self.finite(NESTED_ABSMAX, blocks.div_ceil(size))?.0,
                    block_size: size,
                    offset,
                }
            }
        };
        let (_, table) = self.finite(QUANT_MAP, 16)?;
        let table = table.try_into().expect("as many as were asked for");
        Ok(FourBit::new(self.weights.part(codes), scales, table, block_size, dtype, len))
    }

    /// Returns a part that consists of `n` finite f32 values.
    fn finite(&self, suffix: &str, n: usize) -> Result<(Bytes, Vec<f32>), ModelError> {
        let info = self.part(suffix, "F32", n * 4)?;
        let mut values = vec![0.0; n];
        to_f32(DType::F32, self.weights.bytes(info), &mut values);
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(self.error(format!("`{}` holds {} at element {at}", info.name, values[at])));
        }
        Ok((self.weights.part(info), values))
    }
}

impl QuantState {
    /// Returns the state of a weight. `offset` is the mean that was subtracted from the scales before they
    /// were quantized, or `None` if the scales are in f32.
    pub fn new(
        code: FourBitCode,
        block_size: usize,
        dtype: DType,
        shape: &[usize],
        offset: Option<f32>,
    ) -> Self {
        Self {
            quant_type: code.name().to_owned(),
            blocksize: block_size as u64,
            dtype: torch_name(dtype).to_owned(),
            shape: shape.iter().map(|&n| n as u64).collect(),
            nested_blocksize: offset.map(|_| NESTED_BLOCK as u64),
            nested_dtype: offset.map(|_| "float32".to_owned()),
            nested_offset: offset.map(f64::from),
        }
    }
}
