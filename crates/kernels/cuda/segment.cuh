// Segments, which are the sequences of a batch, and the computation of attention scores.
#pragma once
#include "prelude.cuh"

// One sequence of a batch. Its queries are rows q_start to q_start + q_len - 1 of the matrix of queries. Its
// keys and values are rows kv_start to kv_start + kv_len - 1 of the matrices of keys and of values. The
// queries are the newest tokens: query i belongs to key kv_len - q_len + i.
struct Segment {
    u32 q_start, q_len, kv_start, kv_len;
};

// Parameters of the scores. A score is `scale * product` of a query and a key. A `softcap` other than 0 caps
// it: `softcap * tanh(scale * product / softcap)`. A query attends to the `window` newest keys up to its own.
// A window of 2^30 hides no key.
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
