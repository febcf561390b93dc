// Rotary position embedding (RoPE) of all elements of each head, or of the first elements only.
#include "prelude.cuh"

// cosines (n, half) and sines (n, half) = scale * the cosine and sine of the angles position * inv_freq.
// `half` is the number of rotated pairs of a head. If `tables` is not null, row i uses row tables[i] of
// `inv_freq` (tables, half); if it is null, every row uses row 0.
//
// The angle is rounded to f32, as on the host. A thread computes one angle.
// Grid: ceil(n * half / 256 threads).
extern "C" __global__ void __launch_bounds__(256) rope_table(float* cosines, float* sines, const float* inv_freq,
    const u32* positions, const u32* tables, int n, int half, float scale) {
    i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= (i64)n * half) return;
    int row = at / half, pair = at % half;
    double sine, cosine;
    float frequency = inv_freq[(tables ? tables[row] : 0) * half + pair];
    sincos((double)__fmul_rn((float)positions[row], frequency), &sine, &cosine);
    cosines[at] = (float)cosine * scale;
    sines[at] = (float)sine * scale;
}

// `count` heads of `hs` elements in each row of a matrix. The first 2 half elements of a head are rotated in
// pairs. Pair i is elements i and i + half, or elements 2i and 2i + 1 if `neighbours`.
struct Heads {
    int count, hs, half;
    bool neighbours;
};

// Rotates LEN pairs. If NEIGHBOURS, `a` has the first half of the pairs, and `b` the second half. Otherwise
// `a` has the first elements of all pairs, and `b` the second elements.
template <bool NEIGHBOURS, typename T>
__device__ __forceinline__ void rotate(Vec<T>& a, Vec<T>& b, const float* c, const float* s, float sign) {
    constexpr int LEN = Vec<T>::LEN;
#pragma unroll
    for (int i = 0; i < LEN; ++i) {
        T& low = !NEIGHBOURS ? a.v[i] : i < LEN / 2 ? a.v[2 * i % LEN] : b.v[2 * i % LEN];
        T& high = !NEIGHBOURS ? b.v[i] : i < LEN / 2 ? a.v[(2 * i + 1) % LEN] : b.v[(2 * i + 1) % LEN];
        float p = to_float(low), q = to_float(high), sine = sign * s[i];
        low = from_float<T>(p * c[i] - q * sine);
        high = from_float<T>(q * c[i] + p * sine);
    }
}

// Rotates the pairs of each head of `x` in place. A `sign` of -1 inverts the rotation, for the backward pass.
// A thread rotates up to LEN pairs of one head.
template <typename T>
__device__ __forceinline__ void rope_body(
    T* x, const float* cosines, const float* sines, const Heads& heads, i64 ld, float sign) {
    constexpr int LEN = Vec<T>::LEN;
    int half = heads.half, parts = ceil_div(half, LEN), part = blockIdx.y * 256 + threadIdx.x;
    if (part >= heads.count * parts) return;
    int first = part % parts * LEN, step = heads.neighbours ? 2 : 1;
    T* low = x + blockIdx.x * ld + part / parts * heads.hs + first * step;
    T* high = low + (heads.neighbours ? LEN : half);
    const float* c = cosines + (i64)blockIdx.x * half + first;
    const float* s = sines + (i64)blockIdx.x * half + first;
    if (first + LEN <= half && aligned16(low) && aligned16(high)) {
        Vec<T> a = load16(low), b = load16(high);
        if (heads.neighbours) rotate<true>(a, b, c, s, sign);
        else rotate<false>(a, b, c, s, sign);
        store16(low, a);
        store16(high, b);
        return;
    }
    high = low + (heads.neighbours ? 1 : half);
    for (int i = 0; i < LEN && first + i < half; ++i) {
        float p = to_float(low[i * step]), q = to_float(high[i * step]), sine = sign * s[i];
        low[i * step] = from_float<T>(p * c[i] - q * sine);
        high[i * step] = from_float<T>(q * c[i] + p * sine);
    }
}

// Rotates queries (z = 0) and keys (z = 1) in one launch. A thread rotates up to LEN pairs (16 bytes of
// elements).
// Grid: (n, ceil(max(heads, kv_heads) * ceil(half / LEN) / 256 threads), 2).
#define ROPE_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) rope_##T(T* q, T* k, const float* cosines,               \
        const float* sines, int heads, int kv_heads, int hs, int half, int neighbours, i64 ld_q, i64 ld_k,     \
        float sign) {                                                                                          \
        overlap_kernels();                                                                                     \
        bool is_key = blockIdx.z == 1;                                                                         \
        Heads rotated = {is_key ? kv_heads : heads, hs, half, neighbours != 0};                                \
        rope_body(is_key ? k : q, cosines, sines, rotated, is_key ? ld_k : ld_q, sign);                        \
    }
FOR_TYPES(ROPE_KERNEL)
