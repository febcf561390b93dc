// A weight in 4 bits.
#pragma once
#include "prelude.cuh"

// Two codes a byte, the first in the upper half. A scale belongs to 1 << block_shift values. If `scale_codes` is
// null, `absmax` holds the scales. Otherwise a scale is scale_table[code] * absmax + offset, and an `absmax`
// belongs to 1 << scale_shift scales.
struct FourBit {
    const u8* codes;
    const float* table;
    const u8* scale_codes;
    const float* scale_table;
    const float* absmax;
    float offset;
    int block_shift;
    int scale_shift;
    int unused;
};
