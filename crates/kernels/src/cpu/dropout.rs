//! Dropout masks with one bit per element. Many elements are drawn at a time.

use crate::{Dropout, Isa, rng};

/// Number of elements whose bits are in one `u32` of a mask.
pub(crate) const WORD: usize = 32;

/// Sets bit `b` of `bits[w]` if [`rng::keep`] returns true for element `first + 32 w + b`. On x86-64 with
/// AVX2 or AVX-512, also prefetches the `32 · bits.len()` elements at `elements`.
pub(crate) fn draw(
    isa: Isa,
    bits: &mut [u32],
    Dropout { probability, key }: Dropout,
    first: u64,
    elements: *const f32,
) {
    // `uniform(..) >= p` compares 24 bits. The comparison `bits >= ceil(p · 2^24) · 2^40` gives the same
    // result, and needs no conversion for each element.
    let threshold = ((probability as f64 * (1u64 << 24) as f64).ceil() as u64) << 40;
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the back end checked that this machine supports `isa`.
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => unsafe {
            x86::draw_avx512(bits, key, first, threshold, elements)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the back end checked that this machine supports `isa`.
        Isa::Avx2 => unsafe { x86::draw_avx2(bits, key, first, threshold, elements) },
        _ => {
            let _ = elements;
            for (word, bits) in bits.iter_mut().enumerate() {
                *bits = draw_word(key, first.wrapping_add((WORD * word) as u64), threshold);
            }
        }
    }
}

/// Returns the mask bits of [`WORD`] elements. The first of these elements is `first`.
#[inline(always)]
fn draw_word(key: u64, first: u64, threshold: u64) -> u32 {
    (0..WORD).fold(0, |bits, i| {
        let kept = rng::upper_bits(key, first.wrapping_add(i as u64)) >= threshold;
        bits | u32::from(kept) << i
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{WORD, draw_word};
    use crate::rng::{FACTORS, GOLDEN};

    /// Prefetches the elements of one mask word into L2. These elements fill two cache lines.
    #[inline(always)]
    fn fetch(elements: *const f32, word: usize) {
        let first = elements.wrapping_add(WORD * word);
        // SAFETY: a prefetch instruction cannot fault, and every x86-64 processor supports it.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(first.cast());
            _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(WORD / 2).cast());
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn draw_avx2(bits: &mut [u32], key: u64, first: u64, threshold: u64, elements: *const f32) {
        for (word, bits) in bits.iter_mut().enumerate() {
            fetch(elements, word);
            *bits = draw_word(key, first.wrapping_add((WORD * word) as u64), threshold);
        }
    }

    /// Computes the mask bits of eight elements at a time.
    #[target_feature(enable = "avx512f,avx512dq")]
    pub fn draw_avx512(bits: &mut [u32], key: u64, first: u64, threshold: u64, elements: *const f32) {
        let start = key.wrapping_add(first.wrapping_mul(GOLDEN));
        let steps: [i64; 8] = std::array::from_fn(|i| (i as u64).wrapping_mul(GOLDEN) as i64);
        // SAFETY: the array has the size of a vector.
        let steps = unsafe { _mm512_loadu_si512(steps.as_ptr().cast()) };
        let mut counter = _mm512_add_epi64(_mm512_set1_epi64(start as i64), steps);
        let eight = _mm512_set1_epi64(GOLDEN.wrapping_mul(8) as i64);
        let [f0, f1] = FACTORS.map(|factor| _mm512_set1_epi64(factor as i64));
        let threshold = _mm512_set1_epi64(threshold as i64);
        for (word, bits) in bits.iter_mut().enumerate() {
            fetch(elements, word);
            let mut bytes = [0u8; WORD / 8];
            for byte in &mut bytes {
                // These are the steps of `rng::upper_bits`.
                let z = _mm512_xor_si512(counter, _mm512_srli_epi64::<30>(counter));
                let z = _mm512_mullo_epi64(z, f0);
                let z = _mm512_xor_si512(z, _mm512_srli_epi64::<27>(z));
                let z = _mm512_mullo_epi64(z, f1);
                *byte = _mm512_cmpge_epu64_mask(z, threshold);
                counter = _mm512_add_epi64(counter, eight);
            }
            *bits = u32::from_le_bytes(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_decide_as_keep_does() {
        for isa in Isa::supported() {
            for probability in [0.0, 0.05, 0.1, 0.5, 0.999, f32::MIN_POSITIVE] {
                for first in [0, 12_345, u64::MAX - 100] {
                    let mut bits = vec![0; 33];
                    draw(isa, &mut bits, Dropout { probability, key: 99 }, first, std::ptr::null());
                    for i in 0..33 * WORD {
                        let keep = rng::keep(99, first.wrapping_add(i as u64), probability);
                        assert_eq!(bits[i / WORD] >> (i % WORD) & 1 == 1, keep, "{isa} {probability} {i}");
                    }
                }
            }
        }
    }
}
