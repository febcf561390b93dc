//! Measures the time of a sampler for one token of a vocabulary of 128,256.
//!
//! `cargo bench -p danlu-generate --bench sampler`

use std::time::Instant;

use danlu_generate::{Sampler, SamplingOptions};
use danlu_kernels::rng::Stream;

const VOCABULARY: usize = 128_256;
const TOKENS: usize = 201;

/// Returns normally distributed logits, as the sum of twelve uniform numbers.
fn logits(deviation: f32) -> Vec<f32> {
    let mut stream = Stream::new(1);
    (0..VOCABULARY).map(|_| deviation * ((0..12).map(|_| stream.next_uniform()).sum::<f32>() - 6.0)).collect()
}

fn main() {
    let default = SamplingOptions::default();
    let settings = [
        ("temperature 0.7, top-p 0.9", SamplingOptions { temperature: 0.7, top_p: 0.9, ..default.clone() }),
        ("temperature 1", default.clone()),
        ("temperature 0.7, min-p 0.05", SamplingOptions { temperature: 0.7, min_p: 0.05, ..default.clone() }),
        ("temperature 0.7, top-k 50, top-p 0.9", {
            SamplingOptions { temperature: 0.7, top_k: 50, top_p: 0.9, ..default }
        }),
        ("greedy", SamplingOptions::greedy()),
    ];
    // A deviation of 3 makes a few tokens likely, as a trained model does. With 1, a token has a probability
    // of at most 0.2%. With 0.1, all tokens are almost equally likely.
    for deviation in [3.0, 1.0, 0.1] {
        let logits = logits(deviation);
        println!("{VOCABULARY} logits with a standard deviation of {deviation}:");
        for (name, sampling) in &settings {
            let mut sampler = Sampler::new(sampling.clone()).expect("settings in range");
            let mut times: Vec<f64> = (0..TOKENS)
                .map(|_| {
                    let start = Instant::now();
                    std::hint::black_box(sampler.next(&logits, &[]));
                    1e6 * start.elapsed().as_secs_f64()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!("  {name:<40} median {:7.1} us, fastest {:7.1} us", times[TOKENS / 2], times[0]);
        }
    }
}
