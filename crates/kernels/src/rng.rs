//! Counter-based random numbers. Each element is computed independently, so masks are never stored.
//!
//! The mixing function is SplitMix64's finalizer (Steele, Lea and Flood, 2014). It is applied to
//! `key + counter · golden ratio`.

/// The golden ratio in fixed point, by which each counter is multiplied.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Multipliers of the finalizer.
pub(crate) const FACTORS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// Computes [`mix`] without its last step. The last step does not change the upper 31 bits.
#[inline(always)]
fn mix_upper(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(FACTORS[0]);
    (z ^ (z >> 27)).wrapping_mul(FACTORS[1])
}

/// Maps 64 bits to 64 bits. Different inputs have different results.
#[inline(always)]
pub fn mix(z: u64) -> u64 {
    let z = mix_upper(z);
    z ^ (z >> 31)
}

/// Combines several numbers (seed, step, layer, ...) into one key. The order of the numbers matters.
pub fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(GOLDEN, |key, part| mix(key.wrapping_add(GOLDEN) ^ mix(part.wrapping_add(GOLDEN))))
}

/// Returns the random number `counter` of the stream `key`, as 64 uniform bits.
#[inline(always)]
pub fn bits(key: u64, counter: u64) -> u64 {
    mix(key.wrapping_add(counter.wrapping_mul(GOLDEN)))
}

/// Computes [`bits`], but only the upper 31 bits are correct. [`keep`] only needs the upper 24 bits.
#[inline(always)]
pub(crate) fn upper_bits(key: u64, counter: u64) -> u64 {
    mix_upper(key.wrapping_add(counter.wrapping_mul(GOLDEN)))
}

/// Returns the random number `counter` of the stream `key`, uniform in `[0, 1)` with 24 bits.
#[inline(always)]
pub fn uniform(key: u64, counter: u64) -> f32 {
    (bits(key, counter) >> 40) as f32 * (1.0 / (1u64 << 24) as f32)
}

/// Returns whether dropout keeps element `counter`. The result is true with probability `1 - probability`.
#[inline(always)]
pub fn keep(key: u64, counter: u64, probability: f32) -> bool {
    uniform(key, counter) >= probability
}

/// A stream with a position, for callers that need random numbers in order and save the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The key of the stream.
    pub key: u64,
    /// Position of the next random number.
    pub counter: u64,
}

impl Stream {
    /// Starts the stream `key`.
    pub fn new(key: u64) -> Self {
        Self { key, counter: 0 }
    }

    /// Returns the next 64 uniform bits.
    pub fn next_bits(&mut self) -> u64 {
        let bits = bits(self.key, self.counter);
        self.counter += 1;
        bits
    }

    /// Returns the next uniform number in `[0, 1)`.
    pub fn next_uniform(&mut self) -> f32 {
        (self.next_bits() >> 40) as f32 * (1.0 / (1u64 << 24) as f32)
    }

    /// Returns the next number, uniform in `0 .. bound` without bias.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn next_below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0);
        loop {
            let product = self.next_bits() as u128 * bound as u128;
            // Random numbers that would make small results more likely are rejected (Lemire, 2019).
            if product as u64 >= bound.wrapping_neg() % bound {
                return (product >> 64) as u64;
            }
        }
    }

    /// Shuffles in place with the algorithm of Fisher and Yates, from the end.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.next_below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_rate_matches_its_probability() {
        let kept = (0..100_000).filter(|&i| keep(key(&[1, 2]), i, 0.1)).count();
        // The standard deviation of the count is 95.
        assert!((89_500..90_500).contains(&kept), "{kept}");
        assert!((0..1000).all(|i| keep(7, i, 0.0)));
    }

    #[test]
    fn keys_depend_on_every_part_and_their_order() {
        assert_ne!(key(&[1, 2]), key(&[2, 1]));
        assert_ne!(key(&[1]), key(&[1, 0]));
        assert_ne!(key(&[0]), key(&[0, 0]));
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut stream = Stream::new(3);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[stream.next_below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|c| (9_600..10_400).contains(c)), "{counts:?}");
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Stream::new(5).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
