// Segments of a batch, and the scores of their attention.
#pragma once
#include "prelude.cuh"

struct Segment {
    u32 q_start, q_len, kv_start, kv_len;
};

// Masks and cap of the scores. A query sees the `window` newest keys up to its own; 2^30 means all of them. A
// `softcap` of 0 means none.
struct Scores {
    float scale;
    int window;
    float softcap;
};

template <typename T>
__device__ __forceinline__ float score_of(float product, const Scores& how) {
    float x = product * how.scale;
    return how.softcap != 0 ? how.softcap * tanh_of<T>(x / how.softcap) : x;
}
