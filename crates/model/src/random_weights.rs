//! Random weights for a configuration, to measure speed without a download.
//!
//! Element `i` of a tensor depends on the seed, the tensor's name and `i` alone, so the weights in memory,
//! those streamed to a folder and those of any number of threads are the same bytes.

use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::thread;

use danlu_kernels::{DType, bf16_to_f32, f32_to_bf16, rng};
use serde_json::json;

use crate::files::{self, FileError};
use crate::{
    INDEX_FILE, ModelConfig, ModelError, Quantization, ShardWriter, StagedFolder, TensorSpec, Weights,
    projections, shard_index, shard_name,
};

/// Key of the stream of weights, different from every other use of a seed.
const WEIGHTS_STREAM: u64 = 0x7765_6967_6874;

/// Standard deviation of the weights, and of the norms' around 1: transformers' `initializer_range`.
const STD: f64 = 0.02;

/// Bytes generated between two progress calls, and written at once.
const BLOCK_BYTES: usize = 16 << 20;

/// Elements of one draw of 64 bits.
const ELEMENTS: usize = 4;

/// How far the making is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomProgress {
    /// Bytes of tensors made.
    pub bytes: u64,
    /// Bytes of tensors in all.
    pub total: u64,
}

/// The bf16 weights of a model that was never trained: normal, with a standard deviation of 0.02, norms near
/// 1.
#[derive(Clone, Copy, Debug)]
pub struct RandomWeights<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Names the weights.
    pub seed: u64,
    /// Threads that generate them.
    pub threads: usize,
}

impl RandomWeights<'_> {
    /// Generates the weights in memory. With a `quantization`, every projection is quantized at once, so that
    /// at most one is in memory in both forms. `progress` may stop it.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] if `progress` breaks.
    pub fn in_memory(
        &self,
        quantization: Option<Quantization>,
        progress: &mut dyn FnMut(RandomProgress) -> ControlFlow<()>,
    ) -> Result<Weights, ModelError> {
        let quantized: HashSet<String> = match quantization {
            Some(_) => projections(self.config).map(|(name, ..)| name).collect(),
            None => HashSet::new(),
        };
        let specs = self.specs();
        let total: u64 = specs.iter().map(|spec| spec.bytes).sum();
        let (mut weights, mut done) = (Weights::empty(Path::new("random weights")), 0);
        for spec in specs {
            let mut bytes = AlignedBytes::zeroed(spec.bytes as usize);
            let tensor = self.tensor(&spec);
            for (i, block) in bytes.as_mut_slice().chunks_mut(BLOCK_BYTES).enumerate() {
                tensor.fill(block, i * BLOCK_BYTES, self.threads);
                done += block.len() as u64;
                step(progress, done, total)?;
            }
            match quantization.filter(|_| quantized.contains(&spec.name)) {
                None => weights.push(spec, Arc::new(bytes)),
                Some(quantization) => {
                    let (bytes, len) = (bytes.as_ref(), spec.shape.iter().product());
                    let weight = quantization.encode(DType::Bf16, bytes, len, self.threads);
                    weights.push_quantized(spec, weight.expect("random weights are finite"));
                }
            }
        }
        Ok(weights)
    }

    /// Writes a folder that transformers loads: weights in files of at most `max_shard_size` bytes (a larger
    /// tensor has its own), `generation_config.json` and, renamed last, `config.json`. `folder` must be
    /// absent or empty. `progress` may stop it; the folder is then left as it was.
    ///
    /// # Errors
    /// If the folder holds other things, or the disk is too small or fails; [`ModelError::Stopped`] if
    /// `progress` breaks.
    pub fn write(
        &self,
        folder: &Path,
        max_shard_size: u64,
        progress: &mut dyn FnMut(RandomProgress) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        let shards = divide(self.specs(), max_shard_size);
        let names: Vec<String> = (0..shards.len()).map(|i| shard_name(i, shards.len())).collect();
        let needed = shards.iter().map(|specs| ShardWriter::file_size(specs)).sum();
        let available = files::free_space(folder)?;
        if needed > available {
            return Err(ModelError::Space { path: folder.to_owned(), needed, available });
        }
        let model = StagedFolder::create(folder)?;
        let total: u64 = shards.iter().flatten().map(|spec| spec.bytes).sum();
        let (mut block, mut done) = (vec![0; BLOCK_BYTES.min(total as usize)], 0);
        for (name, specs) in names.iter().zip(&shards) {
            let mut writer = ShardWriter::create(&model.staged(name), specs)?;
            for spec in specs {
                let (tensor, bytes) = (self.tensor(spec), spec.bytes as usize);
                for start in (0..bytes).step_by(BLOCK_BYTES) {
                    let block = &mut block[..BLOCK_BYTES.min(bytes - start)];
                    tensor.fill(block, start, self.threads);
                    writer.write(block)?;
                    done += block.len() as u64;
                    step(progress, done, total)?;
                }
            }
            writer.finish()?;
        }
        let mut published = names.clone();
        let mut put = |name: &str, bytes: &[u8]| -> Result<(), FileError> {
            published.push(name.to_owned());
            files::write_atomic(&model.staged(name), bytes)
        };
        if let Some(index) =
            shard_index(names.iter().map(String::as_str).zip(shards.iter().map(Vec::as_slice)))
        {
            put(INDEX_FILE, &index)?;
        }
        put("generation_config.json", &self.generation_config())?;
        put("config.json", &self.config.to_json())?;
        Ok(model.publish(&published)?)
    }

    fn specs(&self) -> Vec<TensorSpec> {
        self.config.tensors().map(|(name, shape)| TensorSpec::new(name, DType::Bf16, shape)).collect()
    }

    fn tensor(&self, spec: &TensorSpec) -> RandomTensor {
        let name: Vec<u64> = spec.name.bytes().map(u64::from).collect();
        let key = rng::key(&[self.seed, WEIGHTS_STREAM, rng::key(&name)]);
        RandomTensor { key, is_norm: spec.shape.len() == 1 }
    }

    fn generation_config(&self) -> Vec<u8> {
        let ModelConfig { bos_token_id, eos_token_id, .. } = self.config;
        let value = json!({ "bos_token_id": bos_token_id, "eos_token_id": eos_token_id });
        let mut text = serde_json::to_vec_pretty(&value).expect("a JSON value has string keys");
        text.push(b'\n');
        text
    }
}

fn step(
    progress: &mut dyn FnMut(RandomProgress) -> ControlFlow<()>,
    bytes: u64,
    total: u64,
) -> Result<(), ModelError> {
    match progress(RandomProgress { bytes, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ModelError::Stopped),
    }
}

/// Divides tensors, in order, into files.
fn divide(specs: Vec<TensorSpec>, max_shard_size: u64) -> Vec<Vec<TensorSpec>> {
    let mut shards: Vec<Vec<TensorSpec>> = Vec::new();
    let mut room = 0;
    for spec in specs {
        if spec.bytes > room || shards.is_empty() {
            shards.push(Vec::new());
            room = max_shard_size;
        }
        room = room.saturating_sub(spec.bytes);
        shards.last_mut().expect("one was pushed above").push(spec);
    }
    shards
}

/// The elements of one tensor.
#[derive(Clone, Copy)]
struct RandomTensor {
    key: u64,
    is_norm: bool,
}

impl RandomTensor {
    /// The bytes from `start` on, which begins a draw.
    fn fill(self, out: &mut [u8], start: usize, threads: usize) {
        // Fewer bytes than this are generated before another thread has started.
        const MIN_BYTES_PER_THREAD: usize = 256 << 10;
        let size = ELEMENTS * DType::Bf16.size();
        debug_assert!(start.is_multiple_of(size));
        let part = out.len().div_ceil(threads.max(1)).max(MIN_BYTES_PER_THREAD).next_multiple_of(size);
        thread::scope(|scope| {
            let mut parts = out.chunks_mut(part).enumerate();
            let first = parts.next();
            for (i, out) in parts {
                scope.spawn(move || self.fill_part(out, start + i * part));
            }
            if let Some((_, out)) = first {
                self.fill_part(out, start);
            }
        });
    }

    fn fill_part(self, out: &mut [u8], start: usize) {
        let table = &**NORMAL;
        let size = ELEMENTS * DType::Bf16.size();
        for (draw, out) in (start / size..).zip(out.chunks_mut(size)) {
            let bits = rng::bits(self.key, draw as u64);
            let element = |i: usize| {
                let normal = table[(bits >> (16 * i)) as u16 as usize];
                if self.is_norm { f32_to_bf16(1.0 + bf16_to_f32(normal)) } else { normal }
            };
            let four = [element(0), element(1), element(2), element(3)];
            let bytes = four.map(u16::to_le_bytes);
            out.copy_from_slice(&bytes.as_flattened()[..out.len()]);
        }
    }
}

/// 65,536 equally likely values of a normal distribution, ascending, as bf16: 16 uniform bits choose one,
/// which costs less than any formula.
static NORMAL: LazyLock<Box<[u16]>> = LazyLock::new(|| {
    const HALF: usize = 1 << 15;
    let mut table = vec![0; 2 * HALF];
    for (i, x) in upper_quantiles(HALF).into_iter().enumerate() {
        let value = f32_to_bf16((STD * x) as f32);
        table[HALF + i] = value;
        // The lower half is the upper one with the sign bit set.
        table[HALF - 1 - i] = value | 0x8000;
    }
    table.into_boxed_slice()
});

/// The standard normal quantiles of `1/2 + (i + 1/2) / (2 half)` for `i` below `half`: the solution of
/// `dx/dp = sqrt(2π) exp(x²/2)` from `x(1/2) = 0`, by Runge and Kutta's fourth-order rule.
fn upper_quantiles(half: usize) -> Vec<f64> {
    // The slope grows without bound at the end: the last steps need to be short.
    const PARTS: usize = 32;
    let slope = |x: f64| (std::f64::consts::TAU).sqrt() * (x * x / 2.0).exp();
    let advance = |x: f64, dp: f64| {
        let k1 = slope(x);
        let k2 = slope(x + dp / 2.0 * k1);
        let k3 = slope(x + dp / 2.0 * k2);
        let k4 = slope(x + dp * k3);
        x + dp / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    };
    let step = 0.5 / half as f64;
    let mut x = advance(0.0, step / 2.0);
    let mut quantiles = Vec::with_capacity(half);
    for _ in 0..half {
        quantiles.push(x);
        if quantiles.len() < half {
            x = (0..PARTS).fold(x, |x, _| advance(x, step / PARTS as f64));
        }
    }
    quantiles
}

/// Bytes that begin at a cache line, as those of a mapped file begin at a page.
struct AlignedBytes {
    data: Vec<u8>,
    range: Range<usize>,
}

impl AlignedBytes {
    const LINE: usize = 64;

    fn zeroed(len: usize) -> Self {
        let data = vec![0; len + Self::LINE];
        let start = data.as_ptr().addr().next_multiple_of(Self::LINE) - data.as_ptr().addr();
        Self { data, range: start..start + len }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.data[self.range.clone()]
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.data[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_normal_distributions() {
        let half = 1 << 15;
        let quantiles = upper_quantiles(half);
        let at = |p: f64| quantiles[((p - 0.5) * 2.0 * half as f64) as usize];
        // Tables of the standard normal distribution; the grid is off by half a step, 4e-5 at these places.
        for (p, x) in [(0.75, 0.674_490), (0.9, 1.281_552), (0.975, 1.959_964), (0.999, 3.090_232)] {
            assert!((at(p) - x).abs() < 5e-3, "{p}: {} against {x}", at(p));
        }
        // The last stands for the probability 1/131072 of the upper tail.
        assert!((quantiles[half - 1] - 4.325).abs() < 2e-2, "{}", quantiles[half - 1]);
    }

    #[test]
    fn tensors_have_their_mean_and_spread() {
        for (is_norm, centre) in [(false, 0.0), (true, 1.0)] {
            let mut bytes = vec![0; 400_000];
            RandomTensor { key: 1, is_norm }.fill(&mut bytes, 0, 1);
            let mut values = vec![0.0; bytes.len() / 2];
            danlu_kernels::to_f32(DType::Bf16, &bytes, &mut values);
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| v as f64).sum::<f64>() / n;
            let std = (values.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n).sqrt();
            // Five standard errors of 200,000 draws; near 1, bf16 steps of 1/128 and 1/256 add to the spread.
            assert!((mean - centre).abs() < 5.0 * STD / n.sqrt() + 2e-4, "{mean}");
            assert!((std - STD).abs() < 5e-4, "{std}");
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_threads_or_the_blocks() {
        let tensor = RandomTensor { key: 7, is_norm: false };
        let mut whole = vec![0; 3 * (1 << 20) + 6];
        tensor.fill(&mut whole, 0, 1);
        for threads in [2, 3, 7] {
            let mut again = vec![0; whole.len()];
            tensor.fill(&mut again, 0, threads);
            assert!(again == whole, "{threads} threads");
        }
        let mut part = vec![0; 1000];
        tensor.fill(&mut part, 8000, 1);
        assert_eq!(part, whole[8000..9000]);
    }
}
