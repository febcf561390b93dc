//! The logits of a continued sequence have the same bits in four cases. The sequence runs alone, in a batch,
//! with its prompt appended in several steps, or after truncation.

mod common;

use std::sync::Arc;

use common::{FlatAdapter, backends, relative_to_max, write_random_model};
use danlu_kernels::rng::Stream;
use danlu_kernels::{Backend, Cpu, CpuOptions, DType, Isa, Reference};
use danlu_model::{
    Batch, Decoder, KvCache, LabeledSequence, LoraSource, ModelError, SlotId, SlotInput, Workspace,
};

/// Vocabulary size.
const V: usize = 50;

/// Number of tokens that continue each sequence.
const NEXT: usize = 4;

fn decoder_on(backend: Arc<dyn Backend>) -> Decoder {
    let folder = tempfile::tempdir().unwrap();
    write_random_model(folder.path());
    Decoder::load(folder.path(), backend).unwrap()
}

/// Returns `Reference`, and `Cpu` for every instruction set in f32 and bf16.
fn all_backends() -> Vec<Arc<dyn Backend>> {
    let cpu = |isa| Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), dtype: DType::Bf16 });
    let bf16 = Isa::supported().map(|isa| Arc::new(cpu(isa)) as Arc<dyn Backend>);
    backends().into_iter().chain(bf16).collect()
}

/// A sequence in a slot, with its position and its logits so far.
struct Running<'a> {
    ids: Vec<u32>,
    prompt: usize,
    lora: Option<&'a dyn LoraSource>,
    slot: Option<SlotId>,
    read: usize,
    /// Logits after the prompt, followed by the logits after each further token.
    logits: Vec<Vec<f32>>,
}

impl<'a> Running<'a> {
    fn new(from: usize, prompt: usize, lora: Option<&'a dyn LoraSource>) -> Self {
        let ids = (0..prompt + NEXT).map(|i| ((from * 3 + i * 7) % V) as u32).collect();
        Self { ids, prompt, lora, slot: None, read: 0, logits: Vec::new() }
    }

    fn in_slot(mut self, cache: &mut KvCache) -> Self {
        self.slot = Some(cache.add(self.ids.len()));
        self
    }

    fn is_done(&self) -> bool {
        self.read == self.ids.len()
    }

    /// Appends the next tokens of every unfinished sequence: up to `piece` tokens inside the prompt, or one
    /// token after the prompt.
    fn step(running: &mut [&mut Self], decoder: &Decoder, cache: &mut KvCache, piece: usize) {
        let mut work = Workspace::new();
        for in_prompt in [true, false] {
            let mut chosen: Vec<&mut &mut Self> =
                running.iter_mut().filter(|r| !r.is_done() && (r.read < r.prompt) == in_prompt).collect();
            let end =
                |r: &Self| if in_prompt { r.prompt.min(r.read.saturating_add(piece)) } else { r.read + 1 };
            let inputs: Vec<SlotInput<'_>> = chosen
                .iter()
                .map(|r| SlotInput {
                    wants_logits: end(r) >= r.prompt,
                    ..SlotInput::new(r.slot.unwrap(), &r.ids[r.read..end(r)], r.lora)
                })
                .collect();
            let logits = match in_prompt {
                true => decoder.prefill(&mut work, cache, &inputs),
                false => decoder.decode(&mut work, cache, &inputs),
            };
            let logits = logits.unwrap();
            let mut rows = logits.chunks(V);
            for r in &mut chosen {
                r.read = end(r);
                if r.read >= r.prompt {
                    r.logits.push(rows.next().unwrap().to_vec());
                }
            }
            assert!(rows.next().is_none());
        }
    }

    /// Returns all logits of the sequence, computed without other sequences and with the whole prompt
    /// appended at once.
    fn alone(&self, decoder: &Decoder) -> Vec<Vec<f32>> {
        let mut cache = decoder.new_cache();
        let mut fresh =
            Self { ids: self.ids.clone(), logits: Vec::new(), read: 0, ..*self }.in_slot(&mut cache);
        while !fresh.is_done() {
            Self::step(&mut [&mut fresh], decoder, &mut cache, usize::MAX);
        }
        fresh.logits
    }
}

fn adapters(decoder: &Decoder) -> [FlatAdapter; 2] {
    [3, 2].map(|rank| FlatAdapter::random(decoder.config(), &**decoder.backend(), rank))
}

/// Returns eleven sequences, which do not fit in one pass. The prompts have 1 to 31 tokens. A third of the
/// sequences has no adapter.
fn sequences(adapters: &[FlatAdapter; 2]) -> Vec<Running<'_>> {
    let lora = |i: usize| [None, Some(&adapters[0] as &dyn LoraSource), Some(&adapters[1])][i % 3];
    (0..11).map(|i| Running::new(i, 1 + 3 * i, lora(i))).collect()
}

#[test]
fn cached_decoding_equals_the_full_pass() {
    let decoder = decoder_on(Arc::new(Reference::new()));
    let [adapter, _] = adapters(&decoder);
    let running = Running::new(0, 4, Some(&adapter));
    let sequence = LabeledSequence { ids: running.ids.clone(), trained: vec![false; running.ids.len()] };
    let full = decoder.logits(&mut Workspace::new(), &Batch::new([&sequence]), Some(&adapter)).unwrap();
    for (found, expected) in running.alone(&decoder).iter().zip(full.chunks(V).skip(3)) {
        assert!(relative_to_max(found, expected) < 1e-5);
    }
}

#[test]
fn sequences_have_the_same_bits_alone_and_together() {
    for backend in all_backends() {
        let decoder = decoder_on(backend);
        let (adapters, mut cache) = (adapters(&decoder), decoder.new_cache());
        let mut all: Vec<_> = sequences(&adapters).into_iter().map(|r| r.in_slot(&mut cache)).collect();
        for _ in 0..=NEXT {
            Running::step(&mut all.iter_mut().collect::<Vec<_>>(), &decoder, &mut cache, usize::MAX);
        }
        for (i, running) in all.iter().enumerate() {
            assert!(running.logits == running.alone(&decoder), "{}, sequence {i}", decoder.backend().name());
        }
    }
}

#[test]
fn a_prompt_has_the_same_bits_in_pieces() {
    for backend in all_backends() {
        let decoder = decoder_on(backend);
        let (adapters, mut cache) = (adapters(&decoder), decoder.new_cache());
        let expected = Running::new(3, 31, Some(&adapters[0])).alone(&decoder);
        for piece in [1, 5, 9, 16, 30] {
            let mut running = Running::new(3, 31, Some(&adapters[0])).in_slot(&mut cache);
            while !running.is_done() {
                Running::step(&mut [&mut running], &decoder, &mut cache, piece);
            }
            assert!(running.logits == expected, "{}, pieces of {piece}", decoder.backend().name());
        }
    }
}

#[test]
fn a_truncated_slot_gives_the_bits_of_a_fresh_one() {
    for backend in all_backends() {
        let decoder = decoder_on(backend);
        let (adapters, mut cache) = (adapters(&decoder), decoder.new_cache());
        let mut other = Running::new(1, 6, None).in_slot(&mut cache);
        let mut running = Running::new(3, 20, Some(&adapters[1])).in_slot(&mut cache);
        let expected = running.alone(&decoder);
        while !running.is_done() {
            Running::step(&mut [&mut other, &mut running], &decoder, &mut cache, 7);
        }
        for len in [19, 12, 0] {
            cache.truncate(running.slot.unwrap(), len);
            running.read = len;
            running.logits.clear();
            while !running.is_done() {
                Running::step(&mut [&mut running], &decoder, &mut cache, usize::MAX);
            }
            assert!(running.logits == expected, "{}, from {len}", decoder.backend().name());
        }
        assert!(other.logits == other.alone(&decoder), "the other slot was not truncated");
    }
}

#[test]
fn slots_join_grow_and_leave_without_changing_a_bit() {
    for backend in [Arc::new(Reference::new()) as Arc<dyn Backend>, Arc::new(Cpu::new(CpuOptions::default()))]
    {
        let decoder = decoder_on(backend);
        let (adapters, mut cache, mut stream) = (adapters(&decoder), decoder.new_cache(), Stream::new(8));
        let mut waiting = sequences(&adapters);
        let (mut running, mut done): (Vec<Running<'_>>, Vec<Running<'_>>) = (Vec::new(), Vec::new());
        while done.len() < 11 {
            if !waiting.is_empty() && stream.next_below(2) == 0 {
                running.push(waiting.remove(0).in_slot(&mut cache));
            }
            if let Some(grown) = running.last() {
                let slot = grown.slot.unwrap();
                cache.grow(slot, cache.capacity(slot) + stream.next_below(9) as usize);
            }
            // In each step, some sequences are skipped.
            let mut part: Vec<_> = running.iter_mut().filter(|_| stream.next_below(3) > 0).collect();
            Running::step(&mut part, &decoder, &mut cache, 6);
            while let Some(i) = running.iter().position(Running::is_done) {
                cache.remove(running[i].slot.unwrap());
                done.push(running.remove(i));
            }
        }
        for running in &done {
            assert!(running.logits == running.alone(&decoder), "{}", decoder.backend().name());
        }
    }
}

#[test]
fn an_overflow_is_reported_before_any_slot_changes() {
    let decoder = decoder_on(Arc::new(Reference::new()));
    let (mut work, mut cache) = (Workspace::new(), decoder.new_cache());
    let [a, b] = [cache.add(3), cache.add(3)];
    for (ids, count) in [(&[1u32, 2, 3, 4][..], 4), (&[], 0)] {
        let inputs = [SlotInput::new(a, &[1, 2], None), SlotInput::new(b, ids, None)];
        let error = decoder.prefill(&mut work, &mut cache, &inputs).unwrap_err();
        let found = matches!(error, ModelError::CacheFull { held: 0, added, capacity: 3 } if added == count);
        assert!(found && cache.is_empty(), "{error}");
    }
    let inputs = [SlotInput::new(a, &[1, 50], None)];
    let error = decoder.prefill(&mut work, &mut cache, &inputs).unwrap_err();
    assert!(matches!(error, ModelError::TokenOutOfRange { id: 50, vocab_size: 50 }));
}
