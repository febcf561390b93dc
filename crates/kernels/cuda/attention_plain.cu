// Causal grouped-query attention for all types and shapes that `attention.cu` does not support: f32, f16 from
// compute capability 8.0 on, other head sizes up to 256, and unaligned rows.
//
// A warp processes one query of one head at a time, or one key if it computes dk and dv. Lane l holds
// elements l, l + 32, ... of each vector.
//
// A tile is 16 consecutive queries or keys of one segment (sequence of the batch). Each of the 4 warps of a
// thread block processes 4 of these queries or keys. `tiles` lists pairs (segment, index of the tile in the
// segment), and blockIdx.y is an index into this list.
#include "segment.cuh"

#define TILE 16
// Number of keys that the forward kernel processes per iteration.
#define TOGETHER 4

// Returns the derivative of the score cap (`softcap`) from a capped score, or 1 without a cap.
__device__ __forceinline__ float cap_slope(float score, const Scores& how) {
    return how.softcap != 0 ? 1.0f - score / how.softcap * (score / how.softcap) : 1.0f;
}

template <typename T, int E>
__device__ __forceinline__ void load_row(float (&x)[E], const T* row, int hs, bool is_valid) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
        int at = threadIdx.x % WARP + e * WARP;
        x[e] = is_valid && at < hs ? to_float(row[at]) : 0;
    }
}

template <typename T, int E>
__device__ __forceinline__ void store_row(T* row, const float (&x)[E], int hs, float factor) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
        int at = threadIdx.x % WARP + e * WARP;
        if (at < hs) row[at] = from_float<T>(x[e] * factor);
    }
}

template <int E>
__device__ __forceinline__ float dot(const float (&a)[E], const float (&b)[E]) {
    float sum = 0;
#pragma unroll
    for (int e = 0; e < E; ++e) sum = fmaf(a[e], b[e], sum);
    return sum;
}

template <typename T>
struct Forward {
    T* out;
    float* lse;
    const T* q;
    const T* k;
    const T* v;
    int heads, kv_heads, hs;
    i64 ld_out, ld_q, ld_kv;
    Scores how;
};

template <typename T, int E>
__device__ __forceinline__ void forward_query(const Forward<T>& f, const Segment& s, int i, int head) {
    int kv_head = head / (f.heads / f.kv_heads), visible = s.kv_len - s.q_len + i + 1;
    int first = max(0, visible - f.how.window);
    const T* k = f.k + s.kv_start * f.ld_kv + kv_head * f.hs;
    const T* v = f.v + s.kv_start * f.ld_kv + kv_head * f.hs;
    float q[E], x[E], acc[E], max = NEGATIVE_INFINITY, sum = 0;
    load_row<T, E>(q, f.q + (s.q_start + i) * f.ld_q + head * f.hs, f.hs, true);
#pragma unroll
    for (int e = 0; e < E; ++e) acc[e] = 0;
    for (int j = first; j < visible; j += TOGETHER) {
        float score[TOGETHER], top = max;
#pragma unroll
        for (int u = 0; u < TOGETHER; ++u) {
            load_row<T, E>(x, k + (j + u) * f.ld_kv, f.hs, j + u < visible);
            score[u] = score_of<T>(warp_sum(dot(q, x)), f.how);
            if (j + u >= visible) score[u] = NEGATIVE_INFINITY;
            top = fmaxf(top, score[u]);
        }
        float shrink = expf(max - top);
        max = top;
        sum *= shrink;
#pragma unroll
        for (int e = 0; e < E; ++e) acc[e] *= shrink;
#pragma unroll
        for (int u = 0; u < TOGETHER; ++u) {
            float p = expf(score[u] - max);
            load_row<T, E>(x, v + (j + u) * f.ld_kv, f.hs, j + u < visible);
            sum += p;
#pragma unroll
            for (int e = 0; e < E; ++e) acc[e] = fmaf(p, x[e], acc[e]);
        }
    }
    store_row<T, E>(f.out + (s.q_start + i) * f.ld_out + head * f.hs, acc, f.hs, 1.0f / sum);
    if (threadIdx.x % WARP == 0) f.lse[(s.q_start + i) * (i64)f.heads + head] = max + logf(sum);
}

// Expands BODY with E, the number of elements of a head per lane. E is 2 for heads of up to 64 elements, and
// 8 for larger heads.
#define WITH_ELEMENTS(hs, BODY)                                                                                \
    if (hs <= 64) {                                                                                            \
        constexpr int E = 2;                                                                                   \
        BODY                                                                                                   \
    } else {                                                                                                   \
        constexpr int E = 8;                                                                                   \
        BODY                                                                                                   \
    }

// out = softmax(scores) v, and lse (n, heads), the logarithm of each softmax denominator.
// Grid: (heads, tiles of 16 queries).
#define FORWARD_KERNEL(T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(128) attention_forward_##T(T* out, float* lse, const T* q,    \
        const T* k, const T* v, const Segment* segments, const uint2* tiles, int kv_heads, int hs, i64 ld_out, \
        i64 ld_q, i64 ld_kv, float scale, int window, float softcap) {                                         \
        Forward<T> f = {out, lse, q, k, v, (int)gridDim.x, kv_heads, hs, ld_out, ld_q, ld_kv,                  \
            {scale, window, softcap}};                                                                         \
        uint2 tile = tiles[blockIdx.y];                                                                        \
        Segment s = segments[tile.x];                                                                          \
        int end = min((int)s.q_len, (int)(tile.y + 1) * TILE);                                                 \
        for (int i = tile.y * TILE + threadIdx.x / WARP; i < end; i += 4)                                      \
            WITH_ELEMENTS(hs, (forward_query<T, E>(f, s, i, blockIdx.x));)                                     \
    }
FOR_TYPES(FORWARD_KERNEL)

template <typename T>
struct Backward {
    const T* dout;
    const T* q;
    const T* k;
    const T* v;
    const float* lse;
    const float* delta;
    int heads, kv_heads, hs;
    i64 ld_dout, ld_q, ld_kv;
    Scores how;
};

template <typename T, int E>
__device__ __forceinline__ void backward_query(T* dq, i64 ld_dq, const Backward<T>& b, const Segment& s, int i, int head) {
    int kv_head = head / (b.heads / b.kv_heads), visible = s.kv_len - s.q_len + i + 1;
    i64 row = s.q_start + i;
    float q[E], dy[E], key[E], value[E], acc[E];
    load_row<T, E>(q, b.q + row * b.ld_q + head * b.hs, b.hs, true);
    load_row<T, E>(dy, b.dout + row * b.ld_dout + head * b.hs, b.hs, true);
    float lse = b.lse[row * b.heads + head], delta = b.delta[row * b.heads + head];
#pragma unroll
    for (int e = 0; e < E; ++e) acc[e] = 0;
#pragma unroll 2
    for (int j = max(0, visible - b.how.window); j < visible; ++j) {
        i64 at = (s.kv_start + j) * b.ld_kv + kv_head * b.hs;
        load_row<T, E>(key, b.k + at, b.hs, true);
        load_row<T, E>(value, b.v + at, b.hs, true);
        float score = score_of<T>(warp_sum(dot(q, key)), b.how), p = expf(score - lse);
        float ds = p * (warp_sum(dot(dy, value)) - delta) * cap_slope(score, b.how);
#pragma unroll
        for (int e = 0; e < E; ++e) acc[e] = fmaf(ds, key[e], acc[e]);
    }
    store_row<T, E>(dq + row * ld_dq + head * b.hs, acc, b.hs, b.how.scale);
}

// Backward pass: dq (n, heads * hs).
// Grid: (heads, tiles of 16 queries).
#define BACKWARD_Q_KERNEL(T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_q_##T(T* dq, const T* dout,           \
        const T* q, const T* k, const T* v, const float* lse, const float* delta, const Segment* segments,     \
        const uint2* tiles, int heads, int kv_heads, int hs, i64 ld_dq, i64 ld_dout, i64 ld_q, i64 ld_kv,      \
        float scale, int window, float softcap) {                                                              \
        Backward<T> b = {dout, q, k, v, lse, delta, heads, kv_heads, hs, ld_dout, ld_q, ld_kv,                 \
            {scale, window, softcap}};                                                                         \
        uint2 tile = tiles[blockIdx.y];                                                                        \
        Segment s = segments[tile.x];                                                                          \
        int end = min((int)s.q_len, (int)(tile.y + 1) * TILE);                                                 \
        for (int i = tile.y * TILE + threadIdx.x / WARP; i < end; i += 4)                                      \
            WITH_ELEMENTS(hs, (backward_query<T, E>(dq, ld_dq, b, s, i, blockIdx.x));)                         \
    }
FOR_TYPES(BACKWARD_Q_KERNEL)

template <typename T, int E>
__device__ __forceinline__ void backward_key(T* dk, T* dv, i64 ld_dkv, const Backward<T>& b, const Segment& s, int j, int kv_head) {
    int group = b.heads / b.kv_heads, before = s.kv_len - s.q_len;
    int first = max(0, j - before), end = min((int)s.q_len, j + b.how.window - before);
    i64 at = (s.kv_start + j) * b.ld_kv + kv_head * b.hs;
    float key[E], value[E], q[E], dy[E], dk_acc[E], dv_acc[E];
    load_row<T, E>(key, b.k + at, b.hs, true);
    load_row<T, E>(value, b.v + at, b.hs, true);
#pragma unroll
    for (int e = 0; e < E; ++e) dk_acc[e] = dv_acc[e] = 0;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
#pragma unroll 2
        for (int i = first; i < end; ++i) {
            i64 row = s.q_start + i;
            load_row<T, E>(q, b.q + row * b.ld_q + head * b.hs, b.hs, true);
            load_row<T, E>(dy, b.dout + row * b.ld_dout + head * b.hs, b.hs, true);
            float score = score_of<T>(warp_sum(dot(q, key)), b.how), p = expf(score - b.lse[row * b.heads + head]);
            float ds = p * (warp_sum(dot(dy, value)) - b.delta[row * b.heads + head]) * cap_slope(score, b.how);
#pragma unroll
            for (int e = 0; e < E; ++e) {
                dk_acc[e] = fmaf(ds, q[e], dk_acc[e]);
                dv_acc[e] = fmaf(p, dy[e], dv_acc[e]);
            }
        }
    }
    i64 to = (s.kv_start + j) * ld_dkv + kv_head * b.hs;
    store_row<T, E>(dk + to, dk_acc, b.hs, b.how.scale);
    store_row<T, E>(dv + to, dv_acc, b.hs, 1);
}

// dk and dv. A warp adds up the gradients of a key over all heads / kv_heads query heads that share it.
// Grid: (kv_heads, tiles of 16 keys).
#define BACKWARD_KV_KERNEL(T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_kv_##T(T* dk, T* dv, const T* dout,   \
        const T* q, const T* k, const T* v, const float* lse, const float* delta, const Segment* segments,     \
        const uint2* tiles, int heads, int kv_heads, int hs, i64 ld_dkv, i64 ld_dout, i64 ld_q, i64 ld_kv,     \
        float scale, int window, float softcap) {                                                              \
        Backward<T> b = {dout, q, k, v, lse, delta, heads, kv_heads, hs, ld_dout, ld_q, ld_kv,                 \
            {scale, window, softcap}};                                                                         \
        uint2 tile = tiles[blockIdx.y];                                                                        \
        Segment s = segments[tile.x];                                                                          \
        int end = min((int)s.kv_len, (int)(tile.y + 1) * TILE);                                                \
        for (int j = tile.y * TILE + threadIdx.x / WARP; j < end; j += 4)                                      \
            WITH_ELEMENTS(hs, (backward_key<T, E>(dk, dv, ld_dkv, b, s, j, blockIdx.x));)                      \
    }
FOR_TYPES(BACKWARD_KV_KERNEL)
