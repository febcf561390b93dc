// Rotary position embedding, in Llama's layout.
#include "prelude.cuh"

// Cosine and sine of every rotation of a pass, (n, half) each. The angle is rounded to f32, as on the host.
// Grid: ceil(n * half / 256).
extern "C" __global__ void __launch_bounds__(256)
    rope_table(float* cosines, float* sines, const float* inv_freq, const u32* positions, int n, int half) {
    i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= (i64)n * half) return;
    double sine, cosine;
    sincos((double)__fmul_rn((float)positions[at / half], inv_freq[at % half]), &sine, &cosine);
    cosines[at] = (float)cosine;
    sines[at] = (float)sine;
}

// Rotates the pairs (i, i + half) of each head of `x` in place. `sign` -1 inverts the rotation, for gradients.
template <typename T>
__device__ __forceinline__ void rope_body(
    T* x, const float* __restrict__ cosines, const float* __restrict__ sines, int heads, int half, i64 ld, float sign) {
    constexpr int LEN = Vec<T>::LEN;
    int parts = ceil_div(half, LEN), part = blockIdx.y * 256 + threadIdx.x;
    if (part >= heads * parts) return;
    int first = part % parts * LEN;
    T* low = x + blockIdx.x * ld + part / parts * 2 * half + first;
    T* high = low + half;
    const float* c = cosines + (i64)blockIdx.x * half + first;
    const float* s = sines + (i64)blockIdx.x * half + first;
    if (first + LEN <= half && aligned16(low) && aligned16(high)) {
        Vec<T> a = load16(low), b = load16(high);
#pragma unroll
        for (int i = 0; i < LEN; ++i) {
            float p = to_float(a.v[i]), q = to_float(b.v[i]), sine = sign * s[i];
            a.v[i] = from_float<T>(p * c[i] - q * sine);
            b.v[i] = from_float<T>(q * c[i] + p * sine);
        }
        store16(low, a);
        store16(high, b);
        return;
    }
    for (int i = 0; i < LEN && first + i < half; ++i) {
        float p = to_float(low[i]), q = to_float(high[i]), sine = sign * s[i];
        low[i] = from_float<T>(p * c[i] - q * sine);
        high[i] = from_float<T>(q * c[i] + p * sine);
    }
}

// Queries and keys in one launch. Grid: n x ceil(most heads * ceil(half / LEN) / 256) x 2.
#define ROPE_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) rope_##T(T* q, T* k, const float* cosines,               \
        const float* sines, int heads, int kv_heads, int half, i64 ld_q, i64 ld_k, float sign) {               \
        bool is_key = blockIdx.z == 1;                                                                         \
        rope_body(is_key ? k : q, cosines, sines, is_key ? kv_heads : heads, half, is_key ? ld_k : ld_q, sign);\
    }
FOR_TYPES(ROPE_KERNEL)
