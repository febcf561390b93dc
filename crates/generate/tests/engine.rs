//! Tests that a sequence in an engine has the same ids when it runs alone, in a batch, and after an
//! interruption.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use danlu_generate::{Engine, GenerateError, Sampler, SamplingOptions, Sequence, StopReason, StopRules};
use danlu_kernels::rng::Stream;
use danlu_kernels::{Buffer, Cpu, CpuOptions, DType, LoraRef};
use danlu_model::{Decoder, LoraSource, ModelError, Projection, SlotId, Tokenizer};

static BASE: LazyLock<(Decoder, Tokenizer)> = LazyLock::new(|| {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m"));
    let backend = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None, dtype: DType::F32 }));
    (Decoder::load(folder, backend).unwrap(), Tokenizer::read(folder).unwrap())
});

/// Random low-rank matrices for every `v_proj`, with values that are large enough to change a reply.
struct ValueAdapter {
    params: Buffer,
    sizes: [usize; 2],
    scaling: f32,
}

impl LoraSource for ValueAdapter {
    fn pair(&self, _layer: usize, projection: Projection) -> Option<LoraRef<'_>> {
        let ([d_out, d_in], rank) = (self.sizes, 4);
        let pair =
            LoraRef { params: &self.params, a: 0, b: rank * d_in, rank, d_in, d_out, scaling: self.scaling };
        (projection == Projection::VProj).then_some(pair)
    }
}

/// Returns two adapters with different effects.
fn adapters() -> [Arc<dyn LoraSource>; 2] {
    let (config, backend) = (BASE.0.config(), BASE.0.backend());
    let (d_out, d_in) = config.projection_shape(Projection::VProj);
    [0.5, -1.0].map(|scaling| {
        let mut stream = Stream::new(6);
        let values: Vec<f32> = (0..4 * (d_in + d_out)).map(|_| stream.next_uniform() - 0.5).collect();
        let mut params = backend.alloc(values.len(), danlu_kernels::Element::Exact);
        backend.write(&mut params, 0, &values);
        Arc::new(ValueAdapter { params, sizes: [d_out, d_in], scaling }) as Arc<dyn LoraSource>
    })
}

/// Returns a sampled sequence that continues one of ten prompts by 12 tokens.
fn sequence(i: usize) -> Sequence {
    let text =
        ["今晚月色真美，", "话说天下大势，", "The palace was", "你好", "皇上"][i % 5].repeat(1 + i / 5);
    let rules = StopRules { max_new_tokens: 12, max_context_tokens: 100, stop_ids: Default::default() };
    let sampling = SamplingOptions {
        temperature: if i.is_multiple_of(2) { 0.0 } else { 1.1 },
        seed: i as u64,
        ..SamplingOptions::default()
    };
    Sequence::new(BASE.1.encode(&text).unwrap(), Sampler::new(sampling).unwrap(), rules).unwrap()
}

/// Returns the adapter of a sequence. A third of the sequences have no adapter.
fn lora(i: usize, adapters: &[Arc<dyn LoraSource>; 2]) -> Option<Arc<dyn LoraSource>> {
    [None, Some(&adapters[0]), Some(&adapters[1])][i % 3].cloned()
}

fn run(engine: &mut Engine<'_>) {
    while !engine.is_idle() {
        engine.step().unwrap().into_iter().for_each(|output| assert!(output.step.is_ok()));
    }
}

/// Returns the new ids of a sequence that runs without any other sequence.
fn alone(i: usize, adapters: &[Arc<dyn LoraSource>; 2]) -> Vec<u32> {
    let mut engine = Engine::new(&BASE.0);
    let slot = engine.open(100, lora(i, adapters));
    engine.start(slot, sequence(i)).unwrap();
    run(&mut engine);
    engine.close(slot).unwrap().new_ids().to_vec()
}

#[test]
fn sequences_give_the_same_ids_alone_and_together() {
    let (adapters, mut engine) = (adapters(), Engine::new(&BASE.0));
    let slots: Vec<SlotId> = (0..10).map(|i| engine.open(1, lora(i, &adapters))).collect();
    slots.iter().enumerate().for_each(|(i, &slot)| assert_eq!(engine.start(slot, sequence(i)).unwrap(), 0));
    run(&mut engine);
    for (i, slot) in slots.into_iter().enumerate() {
        let found = engine.close(slot).unwrap();
        assert_eq!(
            (found.new_ids(), found.stop()),
            (&alone(i, &adapters)[..], Some(StopReason::MaxNewTokens))
        );
    }
    let [bare, first, second] = [0, 1, 2].map(|i| {
        let slot = engine.open(100, lora(i, &adapters));
        engine.start(slot, sequence(0)).unwrap();
        run(&mut engine);
        engine.close(slot).unwrap().new_ids().to_vec()
    });
    assert!(bare != first && first != second && second != bare, "the adapters change the reply");
}

#[test]
fn slots_join_and_leave_between_steps() {
    let (adapters, mut engine) = (adapters(), Engine::new(&BASE.0));
    let (mut open, mut done): (Vec<(usize, SlotId)>, usize) = (Vec::new(), 0);
    for step in 0.. {
        // In every other step, one sequence is added. The fourth sequence is removed early.
        if step % 2 == 0 && step / 2 < 10 {
            let slot = engine.open(20, lora(step / 2, &adapters));
            engine.start(slot, sequence(step / 2)).unwrap();
            open.push((step / 2, slot));
        }
        if step == 10 {
            let index = open.iter().position(|&(i, _)| i == 3).unwrap();
            assert_eq!(engine.close(open.remove(index).1).unwrap().stop(), None);
        }
        engine.step().unwrap();
        open.retain(|&(i, slot)| {
            let ended = engine.sequence(slot).unwrap().stop().is_some();
            if ended {
                assert_eq!(engine.close(slot).unwrap().new_ids(), alone(i, &adapters), "sequence {i}");
                done += 1;
            }
            !ended
        });
        if done == 9 {
            break;
        }
    }
    assert!(open.is_empty() && engine.is_idle());
}

#[test]
fn an_interrupted_sequence_ends_as_an_uninterrupted_one() {
    let (adapters, mut engine) = (adapters(), Engine::new(&BASE.0));
    for i in [1, 4, 5] {
        let slot = engine.open(100, lora(i, &adapters));
        engine.start(slot, sequence(i)).unwrap();
        for _ in 0..6 {
            engine.step().unwrap();
        }
        let interrupted = engine.close(slot).unwrap();
        assert_eq!(interrupted.new_ids().len(), 6);
        let slot = engine.open(8, lora(i, &adapters));
        engine.start(slot, interrupted).unwrap();
        run(&mut engine);
        assert_eq!(engine.close(slot).unwrap().new_ids(), alone(i, &adapters), "sequence {i}");
    }
}

#[test]
fn a_slot_reads_a_common_prefix_once() {
    let mut engine = Engine::new(&BASE.0);
    let (slot, prompt) = (engine.open(100, None), sequence(5).prompt_len());
    engine.start(slot, sequence(5)).unwrap();
    run(&mut engine);
    engine.take(slot).unwrap();
    assert_eq!(engine.start(slot, sequence(5)).unwrap(), prompt - 1, "the last row gives the logits");
    run(&mut engine);
    let mut fresh = Engine::new(&BASE.0);
    let other = fresh.open(100, None);
    fresh.start(other, sequence(5)).unwrap();
    run(&mut fresh);
    assert_eq!(engine.close(slot).unwrap().new_ids(), fresh.close(other).unwrap().new_ids());
}

#[test]
fn a_fault_of_one_sequence_leaves_the_others() {
    let mut engine = Engine::new(&BASE.0);
    let [good, bad] = [engine.open(100, None), engine.open(100, None)];
    engine.start(good, sequence(0)).unwrap();
    let rules = StopRules { max_new_tokens: 1, max_context_tokens: 9, stop_ids: Default::default() };
    let sampler = Sampler::new(SamplingOptions::greedy()).unwrap();
    let outside = Sequence::new(vec![u32::MAX], sampler, rules).unwrap();
    let error = engine.start(bad, outside).unwrap_err();
    assert!(matches!(error, GenerateError::Model(ModelError::TokenOutOfRange { id: u32::MAX, .. })));
    assert!(engine.sequence(bad).is_none());
    run(&mut engine);
    assert_eq!(engine.close(good).unwrap().new_ids().len(), 12);
}
