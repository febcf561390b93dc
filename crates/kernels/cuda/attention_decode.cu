// Attention with one query per segment. Several blocks share the keys of a segment.
//
// A block reads 256 keys of one key head for up to 4 query heads. A second kernel merges the blocks in order.
#include "prelude.cuh"

struct Segment {
    u32 q_start, q_len, kv_start, kv_len;
};

#define SPLIT 256
#define HEADS 4
// Keys, and later values, loaded ahead by each lane.
#define AHEAD 4
#define BLOCK 128

// A lane holds 8 elements of a key, so `LANES` lanes share a key and a block reads BLOCK / LANES keys at a
// time.
template <typename T, int LANES>
__device__ __forceinline__ void decode_body(float* __restrict__ partial, const T* __restrict__ q,
    const T* __restrict__ k, const T* __restrict__ v, const Segment* __restrict__ segments, int heads, int kv_heads,
    int hs, i64 ld_q, i64 ld_kv, int splits, float scale) {
    constexpr int KEYS = BLOCK / LANES;
    __shared__ float score[HEADS][SPLIT];
    __shared__ float sums[KEYS][LANES * 8 + 1];
    int group = heads / kv_heads, parts = ceil_div(group, HEADS), kv_head = blockIdx.x / parts;
    int first_head = kv_head * group + blockIdx.x % parts * HEADS;
    int count = min(HEADS, (kv_head + 1) * group - first_head);
    Segment segment = segments[blockIdx.z];
    int start = blockIdx.y * SPLIT, keys = min(SPLIT, (int)segment.kv_len - start);
    if (keys <= 0) return;
    int part = threadIdx.x % LANES, own = threadIdx.x / LANES;
    bool has_part = part * 8 < hs;
    i64 at = (segment.kv_start + start) * ld_kv + kv_head * hs + part * 8;
    float query[HEADS][8];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
#pragma unroll
        for (int i = 0; i < 8; ++i) query[h][i] = 0;
        if (h < count && has_part) load8(query[h], q + segment.q_start * ld_q + (first_head + h) * hs + part * 8);
    }
    // All lanes of a warp take part in each sum, so all of them loop to the last key.
#pragma unroll 1
    for (int first = 0; first < keys; first += AHEAD * KEYS) {
        float x[AHEAD][8];
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            int key = first + a * KEYS + own;
#pragma unroll
            for (int i = 0; i < 8; ++i) x[a][i] = 0;
            if (key < keys && has_part) load8(x[a], k + at + key * ld_kv);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            int key = first + a * KEYS + own;
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float sum = 0;
#pragma unroll
                for (int i = 0; i < 8; ++i) sum = fmaf(query[h][i], x[a][i], sum);
#pragma unroll
                for (int lane = LANES / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, lane);
                if (part == 0) score[h][key] = sum * scale;
            }
        }
    }
    __syncthreads();
    float* to = partial + ((i64)blockIdx.z * heads + first_head) * splits * (hs + 2) + blockIdx.y * (hs + 2);
    for (int h = threadIdx.x / WARP; h < count; h += BLOCK / WARP) {
        int lane = threadIdx.x % WARP;
        float max = NEGATIVE_INFINITY, sum = 0;
        for (int i = lane; i < keys; i += WARP) max = fmaxf(max, score[h][i]);
        max = warp_max(max);
        for (int i = lane; i < keys; i += WARP) {
            score[h][i] = expf(score[h][i] - max);
            sum += score[h][i];
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            to[(i64)h * splits * (hs + 2)] = max;
            to[(i64)h * splits * (hs + 2) + 1] = sum;
        }
    }
    __syncthreads();
    float acc[HEADS][8];
#pragma unroll
    for (int i = 0; i < HEADS * 8; ++i) acc[i / 8][i % 8] = 0;
#pragma unroll 1
    for (int first = own; first < keys; first += AHEAD * KEYS) {
        float x[AHEAD][8];
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            int key = first + a * KEYS;
#pragma unroll
            for (int i = 0; i < 8; ++i) x[a][i] = 0;
            if (key < keys && has_part) load8(x[a], v + at + key * ld_kv);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float p = score[h][min(first + a * KEYS, SPLIT - 1)];
#pragma unroll
                for (int i = 0; i < 8; ++i) acc[h][i] = fmaf(p, x[a][i], acc[h][i]);
            }
    }
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        if (h >= count) break;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[own][part * 8 + i] = acc[h][i];
        __syncthreads();
        for (int d = threadIdx.x; d < hs; d += BLOCK) {
            float sum = sums[0][d];
#pragma unroll
            for (int i = 1; i < KEYS; ++i) sum += sums[i][d];
            to[(i64)h * splits * (hs + 2) + 2 + d] = sum;
        }
    }
}

// `partial` holds segments * heads * splits * (hs + 2) floats. `hs` is a multiple of 8 up to 256, rows are 16-byte
// aligned. Grid: kv_heads * ceil(group / 4) x splits x segments; block 128.
#define DECODE_KERNEL(T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(BLOCK) attention_decode_##T(float* partial, const T* q,       \
        const T* k, const T* v, const Segment* segments, int heads, int kv_heads, int hs, i64 ld_q, i64 ld_kv, \
        int splits, float scale) {                                                                             \
        if (hs <= 128)                                                                                         \
            decode_body<T, 16>(partial, q, k, v, segments, heads, kv_heads, hs, ld_q, ld_kv, splits, scale);   \
        else                                                                                                   \
            decode_body<T, 32>(partial, q, k, v, segments, heads, kv_heads, hs, ld_q, ld_kv, splits, scale);   \
    }
FOR_TYPES(DECODE_KERNEL)

// Merges the splits of one head of one segment. Grid: heads x segments; block: 32 to 256 threads.
#define JOIN_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) attention_decode_join_##T(T* out, float* lse,            \
        const float* partial, const Segment* segments, int hs, i64 ld_out, int splits) {                       \
        Segment segment = segments[blockIdx.y];                                                                \
        int heads = gridDim.x, parts = ceil_div(segment.kv_len, SPLIT);                                        \
        partial += ((i64)blockIdx.y * heads + blockIdx.x) * splits * (hs + 2);                                 \
        float max = NEGATIVE_INFINITY, sum = 0;                                                                \
        for (int s = 0; s < parts; ++s) max = fmaxf(max, partial[s * (hs + 2)]);                               \
        for (int s = 0; s < parts; ++s) sum += partial[s * (hs + 2) + 1] * expf(partial[s * (hs + 2)] - max);  \
        if (threadIdx.x == 0) lse[segment.q_start * (i64)heads + blockIdx.x] = max + logf(sum);                \
        for (int d = threadIdx.x; d < hs; d += blockDim.x) {                                                   \
            float x = 0;                                                                                       \
            for (int s = 0; s < parts; ++s)                                                                    \
                x += partial[s * (hs + 2) + 2 + d] * expf(partial[s * (hs + 2)] - max);                        \
            out[segment.q_start * ld_out + blockIdx.x * hs + d] = from_float<T>(x / sum);                      \
        }                                                                                                      \
    }
FOR_TYPES(JOIN_KERNEL)
