// Attention with one query per segment (sequence of the batch), to generate tokens.
//
// One query per segment gives too few thread blocks to occupy the device, so several thread blocks share the
// keys of a segment. A split is a range of 64 keys. A thread block processes one split of one key head for up
// to 4 query heads. A second kernel merges the splits in order. If all visible keys of a segment are in one
// split, the first kernel writes the result.
#include "segment.cuh"

// Number of keys per split, and of query heads per thread block.
#define SPLIT 64
#define HEADS 4
// Number of keys that a lane loads before it uses the first of these keys. The number of values is the same.
#define AHEAD 4
#define BLOCK 128

// Splits `first` to `end` - 1 contain the visible keys of a segment, which are its `window` newest keys.
struct Blocks {
    int lowest_key, first, end;

    __device__ __forceinline__ Blocks(const Segment& segment, int window)
        : lowest_key(max(0, (int)segment.kv_len - window)), first(lowest_key / SPLIT),
          end(ceil_div(segment.kv_len, SPLIT)) {}
};

// Operands of the first kernel. `splits` is the number of splits of the grid, at least that of the longest
// segment.
template <typename T>
struct Decode {
    T* out;
    float* lse;
    float* partial;
    const T* q;
    const T* k;
    const T* v;
    const Segment* segments;
    int heads, kv_heads, hs;
    i64 ld_out, ld_q, ld_kv;
    int splits;
    Scores how;
};

// Loads 8 elements of each of `AHEAD` rows of keys or values. The rows are `first`, `first + step`,
// `first + 2 step` and so on. Rows from `end` on become zeros.
template <typename T>
__device__ __forceinline__ void load_rows(float (&x)[AHEAD][8], const T* from, i64 ld, int first, int step, int end) {
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
        int row = first + a * step;
#pragma unroll
        for (int i = 0; i < 8; ++i) x[a][i] = 0;
        if (row < end) load8(x[a], from + row * ld);
    }
}

// Replaces the products of one head by exp(score - maximum), and returns the maximum and the sum of the
// exponentials. The first `hidden` keys of the split are outside the window, and their results are 0. One
// warp processes one head.
template <typename T>
__device__ __forceinline__ float2 softmax(float* score, int keys, int hidden, const Scores& how) {
    int lane = threadIdx.x % WARP;
    float max = NEGATIVE_INFINITY, sum = 0;
#pragma unroll 1
    for (int i = lane; i < keys; i += WARP) {
        score[i] = i < hidden ? NEGATIVE_INFINITY : score_of<T>(score[i], how);
        max = fmaxf(max, score[i]);
    }
    max = warp_max(max);
#pragma unroll 1
    for (int i = lane; i < keys; i += WARP) {
        score[i] = expf(score[i] - max);
        sum += score[i];
    }
    return make_float2(max, warp_sum(sum));
}

// A lane loads 8 elements of a key, so `LANES` lanes share a key, and a thread block reads BLOCK / LANES keys
// at once. For example, 16 lanes share a key of 128 elements, and 128 threads read 8 keys. The loops over
// keys are not unrolled: a launch runs the code once, so longer code only loads more instructions from
// memory.
template <typename T, int LANES>
__device__ __forceinline__ void decode_body(const Decode<T>& d) {
    constexpr int KEYS = BLOCK / LANES, WIDTH = LANES * 8;
    __shared__ float score[HEADS][SPLIT];
    __shared__ __align__(16) float sums[KEYS][HEADS][WIDTH];
    __shared__ float2 totals[HEADS];
    overlap_kernels();
    int group = d.heads / d.kv_heads, parts = ceil_div(group, HEADS), kv_head = blockIdx.x / parts, hs = d.hs;
    int first_head = kv_head * group + blockIdx.x % parts * HEADS;
    int count = min(HEADS, (kv_head + 1) * group - first_head);
    Segment segment = d.segments[blockIdx.z];
    Blocks blocks(segment, d.how.window);
    if (blockIdx.y < blocks.first || blockIdx.y >= blocks.end) return;
    int start = blockIdx.y * SPLIT, keys = min(SPLIT, (int)segment.kv_len - start);
    int hidden = blocks.lowest_key - start;
    int part = threadIdx.x % LANES, own = threadIdx.x / LANES;
    bool has_part = part * 8 < hs;
    // Lanes whose 8 elements are past the end of the head load no rows.
    int end = has_part ? keys : 0;
    i64 at = (segment.kv_start + start) * d.ld_kv + kv_head * hs + part * 8;
    float query[HEADS][8], x[AHEAD][8];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
#pragma unroll
        for (int i = 0; i < 8; ++i) query[h][i] = 0;
        if (h < count && has_part) load8(query[h], d.q + segment.q_start * d.ld_q + (first_head + h) * hs + part * 8);
    }
    // All lanes of a warp compute each sum together. Each lane therefore runs the loop up to the last key,
    // even if the lane has no valid rows.
#pragma unroll 1
    for (int first = 0; first < keys; first += AHEAD * KEYS) {
        load_rows(x, d.k + at, d.ld_kv, first + own, KEYS, end);
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float sum = 0;
#pragma unroll
                for (int i = 0; i < 8; ++i) sum = fmaf(query[h][i], x[a][i], sum);
#pragma unroll
                for (int lane = LANES / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, lane);
                if (part == 0) score[h][first + a * KEYS + own] = sum;
            }
    }
    __syncthreads();
#pragma unroll 1
    for (int h = threadIdx.x / WARP; h < count; h += BLOCK / WARP) {
        float2 total = softmax<T>(score[h], keys, hidden, d.how);
        if (threadIdx.x % WARP == 0) totals[h] = total;
    }
    __syncthreads();
    float acc[HEADS][8];
#pragma unroll
    for (int i = 0; i < HEADS * 8; ++i) acc[i / 8][i % 8] = 0;
#pragma unroll 1
    for (int first = own; first < keys; first += AHEAD * KEYS) {
        load_rows(x, d.v + at, d.ld_kv, first, KEYS, end);
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
        float4* to = reinterpret_cast<float4*>(&sums[own][h][part * 8]);
        to[0] = make_float4(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
        to[1] = make_float4(acc[h][4], acc[h][5], acc[h][6], acc[h][7]);
    }
    __syncthreads();
    bool is_only = blocks.end - blocks.first == 1;
    int stride = hs + 2;
    float* partial = d.partial + ((i64)blockIdx.z * d.heads + first_head) * d.splits * stride + blockIdx.y * stride;
#pragma unroll 1
    for (int c = threadIdx.x; c < count * hs; c += BLOCK) {
        int h = c / hs, col = c % hs;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < KEYS; ++i) sum += sums[i][h][col];
        if (is_only)
            d.out[segment.q_start * d.ld_out + first_head * hs + c] = from_float<T>(sum / totals[h].y);
        else
            partial[(i64)h * d.splits * stride + 2 + col] = sum;
    }
    if (threadIdx.x >= count) return;
    float2 total = totals[threadIdx.x];
    if (is_only) {
        d.lse[segment.q_start * (i64)d.heads + first_head + threadIdx.x] = total.x + logf(total.y);
    } else {
        float* to = partial + (i64)threadIdx.x * d.splits * stride;
        to[0] = total.x;
        to[1] = total.y;
    }
}

// `hs` is a multiple of 8 and at most 256. The rows of q, k and v are 16-byte aligned. For each split,
// partial (segments, heads, splits, hs + 2) contains the maximum of the scores, the sum of the exponentials,
// and the weighted sum of the values.
//
// Grid: (kv_heads * ceil(heads / kv_heads / 4), splits, segments), because a thread block of 128 threads
// processes up to 4 query heads.
#define DECODE_KERNEL(T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(BLOCK) attention_decode_##T(T* out, float* lse,               \
        float* partial, const T* q, const T* k, const T* v, const Segment* segments, int heads, int kv_heads,  \
        int hs, i64 ld_out, i64 ld_q, i64 ld_kv, int splits, float scale, int window, float softcap) {         \
        Decode<T> d = {out, lse, partial, q, k, v, segments, heads, kv_heads, hs, ld_out, ld_q, ld_kv, splits, \
            {scale, window, softcap}};                                                                           \
        if (hs <= 128)                                                                                         \
            decode_body<T, 16>(d);                                                                             \
        else                                                                                                   \
            decode_body<T, 32>(d);                                                                             \
    }
FOR_TYPES(DECODE_KERNEL)

// Merges the splits of one head of one segment. Each split is weighted by exp(its maximum - the largest
// maximum). Each of the 128 threads computes one of these factors at a time.
// Grid: (heads, segments).
template <typename T>
__device__ __forceinline__ void join_body(T* out, float* lse, const float* partial,
    const Segment& segment, int hs, i64 ld_out, int splits, const Blocks& blocks) {
    __shared__ float factors[BLOCK], shared[32];
    int heads = gridDim.x, stride = hs + 2;
    partial += ((i64)blockIdx.y * heads + blockIdx.x) * splits * stride;
    float max = NEGATIVE_INFINITY;
#pragma unroll 1
    for (int s = blocks.first + threadIdx.x; s < blocks.end; s += BLOCK) max = fmaxf(max, partial[(i64)s * stride]);
    max = block_max(max, shared);
    float total = 0, acc[2] = {0, 0};
#pragma unroll 1
    for (int first = blocks.first; first < blocks.end; first += BLOCK) {
        int s = first + threadIdx.x, count = min(BLOCK, blocks.end - first);
        float factor = s < blocks.end ? expf(partial[(i64)s * stride] - max) : 0;
        total += s < blocks.end ? factor * partial[(i64)s * stride + 1] : 0;
        __syncthreads();
        factors[threadIdx.x] = factor;
        __syncthreads();
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int c = threadIdx.x + h * BLOCK;
            if (c >= hs) continue;
            const float* from = partial + (i64)first * stride + 2 + c;
#pragma unroll 8
            for (int i = 0; i < count; ++i) acc[h] = fmaf(factors[i], from[(i64)i * stride], acc[h]);
        }
    }
    total = block_sum(total, shared);
    if (threadIdx.x == 0) lse[segment.q_start * (i64)heads + blockIdx.x] = max + logf(total);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int c = threadIdx.x + h * BLOCK;
        if (c < hs) out[segment.q_start * ld_out + blockIdx.x * hs + c] = from_float<T>(acc[h] / total);
    }
}

#define JOIN_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(BLOCK) attention_decode_join_##T(T* out, float* lse,          \
        const float* partial, const Segment* segments, int hs, i64 ld_out, int splits, int window) {           \
        overlap_kernels();                                                                                     \
        Segment segment = segments[blockIdx.y];                                                                \
        Blocks blocks(segment, window);                                                                        \
        if (blocks.end - blocks.first > 1) join_body(out, lse, partial, segment, hs, ld_out, splits, blocks);  \
    }
FOR_TYPES(JOIN_KERNEL)
