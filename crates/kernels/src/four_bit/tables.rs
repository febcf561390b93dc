//! The tables of the 4-bit format. A table contains the value of each code before the scale is applied.

/// NF4: the quantiles of a normal distribution in ascending order, with an exact zero. Source: Dettmers et
/// al., 2023, appendix E.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// FP4: a sign bit, two bits of exponent and one bit of mantissa. Each value is divided by the largest value.
/// The table is not sorted, and contains two zeros.
pub const FP4: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    6.0 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -6.0 / 12.0,
    -2.0 / 12.0,
    -3.0 / 12.0,
];

/// Returns the values of the 8-bit code for block scales, in ascending order. The code covers seven decades.
/// Each decade has twice as many values as the decade below. Source: Dettmers, 2016 (dynamic tree
/// quantization), with a sign.
pub fn dynamic_u8() -> [f32; 256] {
    let mut values = Vec::with_capacity(256);
    for decade in 0..7 {
        // The values are the midpoints of equal parts of [0.1, 1]. As in torch.linspace, each edge of a part
        // is computed from the nearer end of the interval.
        let parts = 1usize << decade;
        let step = (1.0f32 - 0.1) / parts as f32;
        let edge = |i: usize| match i < parts.div_ceil(2) {
            true => step.mul_add(i as f32, 0.1),
            false => (-step).mul_add((parts - i) as f32, 1.0),
        };
        let size = 10f64.powi(decade - 6) as f32;
        for i in 0..parts {
            let middle = size * ((edge(i) + edge(i + 1)) / 2.0);
            values.extend([middle, -middle]);
        }
    }
    values.extend([0.0, 1.0]);
    values.sort_by(f32::total_cmp);
    values.try_into().expect("254 of seven decades, zero and one")
}
