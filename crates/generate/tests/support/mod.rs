//! The embedded base, and random adapters of any rank.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use danlu_generate::{
    Engine, GenerationId, ReplyRequest, RequestAdapter, Sampler, SamplingOptions, Sequence, StopRules,
};
use danlu_kernels::rng::Stream;
use danlu_kernels::{Buffer, Cpu, CpuOptions, DType, Element, LoraRef};
use danlu_model::{Decoder, LoraSource, ModelConfig, Projection, Tokenizer};

pub static BASE: LazyLock<(Arc<Decoder>, Tokenizer)> = LazyLock::new(|| {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m"));
    let backend = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None, dtype: DType::F32 }));
    (Arc::new(Decoder::load(folder, backend).unwrap()), Tokenizer::read(folder).unwrap())
});

/// Random low-rank matrices of one rank for every projection, with values that are large enough to change a
/// reply.
pub struct RandomAdapter {
    params: Buffer,
    config: ModelConfig,
    rank: usize,
}

impl RandomAdapter {
    fn offset(config: &ModelConfig, rank: usize, layer: usize, projection: Projection) -> usize {
        let size = |p| {
            let (d_out, d_in) = config.projection_shape(p);
            rank * (d_out + d_in)
        };
        let layer_size: usize = Projection::ALL.into_iter().map(size).sum();
        layer * layer_size + Projection::ALL[..projection.index()].iter().map(|&p| size(p)).sum::<usize>()
    }
}

impl LoraSource for RandomAdapter {
    fn pair(&self, layer: usize, projection: Projection) -> Option<LoraRef<'_>> {
        let (d_out, d_in) = self.config.projection_shape(projection);
        let a = Self::offset(&self.config, self.rank, layer, projection);
        let b = a + self.rank * d_in;
        Some(LoraRef { params: &self.params, a, b, rank: self.rank, d_in, d_out, scaling: 0.5 })
    }
}

/// Returns an adapter whose values and id depend only on `rank` and `seed`.
pub fn adapter(rank: usize, seed: u64) -> RequestAdapter {
    let (config, backend) = (BASE.0.config().clone(), BASE.0.backend());
    let len = RandomAdapter::offset(&config, rank, config.num_hidden_layers, Projection::QProj);
    let mut stream = Stream::new(seed);
    let values: Vec<f32> = (0..len).map(|_| 0.12 * (stream.next_uniform() - 0.5)).collect();
    let mut params = backend.alloc(len, Element::Exact);
    backend.write(&mut params, 0, &values);
    let mut generation = [0; 32];
    generation[..8].copy_from_slice(&seed.to_le_bytes());
    RequestAdapter {
        generation: GenerationId(generation),
        lora: Arc::new(RandomAdapter { params, config, rank }),
    }
}

/// Returns a request without an adapter and with at most `max_new_tokens` new tokens.
pub fn request(ids: Vec<u32>, sampling: SamplingOptions, max_new_tokens: usize) -> ReplyRequest {
    ReplyRequest {
        ids,
        sampling,
        rules: StopRules { max_new_tokens, max_context_tokens: 400, stop_ids: Default::default() },
        choices: 1,
        adapter: None,
        top_logprobs: None,
        processors: Vec::new(),
    }
}

/// Returns the new ids of one choice of a request, computed without other requests.
pub fn alone(request: &ReplyRequest, choice: usize) -> Vec<u32> {
    let sampler = Sampler::for_choice(request.sampling.clone(), choice).unwrap();
    let sequence = Sequence::new(request.ids.clone(), sampler, request.rules.clone()).unwrap();
    let mut engine = Engine::new(&*BASE.0);
    let slot = engine.open(100, request.adapter.as_ref().map(|adapter| adapter.lora.clone()));
    engine.start(slot, sequence).unwrap();
    while !engine.is_idle() {
        engine.step().unwrap().into_iter().for_each(|output| assert!(output.step.is_ok()));
    }
    engine.close(slot).unwrap().new_ids().to_vec()
}
