//! Counts the allocations of a sampler, for each thread separately, because the test harness allocates too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use danlu_generate::{Sampler, SamplingOptions};
use danlu_kernels::rng::Stream;

struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

// SAFETY: every method passes its arguments to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller meets the requirements of this method, and `System.alloc` has the same
        // requirements.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` is from `System`, because `alloc` is.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[test]
fn only_the_first_token_allocates() {
    const VOCABULARY: usize = 20_000;
    let mut stream = Stream::new(4);
    // Later lists are flatter, so each group contains more tokens.
    let tokens: Vec<Vec<f32>> = [30.0, 8.0, 1.0, 0.01, 0.0]
        .iter()
        .map(|span| (0..VOCABULARY).map(|_| span * stream.next_uniform()).collect())
        .collect();
    let default = SamplingOptions::default();
    for sampling in [
        default.clone(),
        SamplingOptions { temperature: 0.7, top_p: 0.9, ..default.clone() },
        SamplingOptions { min_p: 0.05, top_p: 0.95, repetition_penalty: 1.1, ..default.clone() },
        SamplingOptions { top_k: 50, ..default.clone() },
        SamplingOptions { top_k: 15_000, top_p: 0.9, ..default },
    ] {
        let mut sampler = Sampler::new(sampling.clone()).unwrap();
        assert!(sampler.next(&tokens[0], &[1, 2, 3]).is_some());
        let before = ALLOCATIONS.get();
        for logits in &tokens {
            assert!(sampler.next(logits, &[1, 2, 3]).is_some());
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "{sampling:?}");
    }
}
