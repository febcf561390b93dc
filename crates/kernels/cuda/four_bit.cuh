// A weight with 4 bits per value. A value is table[code] * scale.
#pragma once
#include "prelude.cuh"

// A byte of `codes` holds two codes, the first in its upper 4 bits. A quantization block is 1 << block_shift
// consecutive values with one scale. For example, block_shift 6 means 64 values.
//
// If `scale_codes` is null, the scale of quantization block i is absmax[i]. If it is not null, the scales are
// quantized too (double quantization): scale i is
// scale_table[scale_codes[i]] * absmax[i >> scale_shift] + offset. `unused` fills the structure, which must
// have no padding.
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
