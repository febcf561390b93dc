// Causal grouped-query attention over segments (the sequences of a batch) on tensor cores, forward and
// backward.
//
// A tile is a range of consecutive queries or keys of one segment. The scores of a query tile and a key tile
// exist only in registers (FlashAttention-2; Dao, 2023). The backward pass computes the scores twice: for
// each key tile to get dk and dv, and for each query tile to get dq. One thread block thus writes each
// result, without atomic additions.
//
// `tiles` lists pairs (segment, index of the tile in the segment), and blockIdx.y is an index into this list.
// The tiles with the most work come first, so that the thread blocks that start last are short.
//
// A thread block has 4 warps. Each row in shared memory is padded by 16 bytes, so that `ldmatrix` has no bank
// conflicts.
//
// Template parameters:
//     HS        head size                          BN, BQ    keys or queries per step
//     MT        groups of 16 rows per warp         STAGES    steps that are in shared memory
//     NT        groups of 8 columns of the scores  HO        columns of a head that a thread block writes
#include "segment.cuh"

#define LOG2_E 1.4426950408889634f

__device__ __forceinline__ float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// Returns the capped score. `softcap` is not 0.
__device__ __forceinline__ float capped_score(float product, const Scores& scores) {
    return scores.softcap * tanh_of<bf16>(product * scores.scale / scores.softcap);
}

// Returns the derivative of the score cap (`softcap`) from a capped score: 1 - (score / softcap)^2.
__device__ __forceinline__ float cap_slope(float score, const Scores& scores) {
    float t = score / scores.softcap;
    return 1.0f - t * t;
}

// Starts to copy `ROWS` rows of one head to shared memory. Rows from index `valid` on become zeros.
template <typename T, int HS, int ROWS>
__device__ __forceinline__ void load_tile(T* to, const T* from, i64 ld, int valid) {
    constexpr int PARTS = HS / 8;
#pragma unroll
    for (int i = 0; i < ROWS * PARTS; i += 128) {
        int at = i + threadIdx.x, row = at / PARTS, part = at % PARTS;
        if (ROWS * PARTS % 128 && at >= ROWS * PARTS) break;
        bool is_valid = row < valid;
        copy16_async(to + row * (HS + 8) + part * 8, from + (is_valid ? row * ld : 0) + part * 8, is_valid);
    }
}

// Loads the left operand of `mma16816`: rows 0 to 15 and columns `k` to `k + 15` of `tile`.
template <typename T, int HS>
__device__ __forceinline__ void left(u32 (&a)[4], const T* tile, int k) {
    int lane = threadIdx.x % WARP;
    load_matrix_x4(a, tile + lane % 16 * (HS + 8) + k + lane / 16 * 8);
}

// Loads the right operands of two `mma16816`: the transpose of rows `n` to `n + 15` and columns `k` to
// `k + 15` of `tile`.
template <typename T, int HS>
__device__ __forceinline__ void right_rows(u32 (&b)[4], const T* tile, int n, int k) {
    int lane = threadIdx.x % WARP;
    load_matrix_x4(b, tile + (n + lane % 8 + lane / 16 * 8) * (HS + 8) + k + lane / 8 % 2 * 8);
}

// Loads the right operands of two `mma16816`: rows `k` to `k + 15` and columns `n` to `n + 15` of `tile`.
template <typename T, int HS>
__device__ __forceinline__ void right_columns(u32 (&b)[4], const T* tile, int n, int k) {
    int lane = threadIdx.x % WARP;
    load_matrix_x4_transposed(b, tile + (k + lane % 16) * (HS + 8) + n + lane / 16 * 8);
}

// c (16 MT, 8 NT) = a (16 MT, HS) b', where b' is the transpose of b (8 NT, HS). Both operands are in shared
// memory.
template <typename T, int HS, int MT, int NT>
__device__ __forceinline__ void scores(float (&c)[MT][NT][4], const T* a, const T* b) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) c[m][n][i] = 0;
#pragma unroll
    for (int k = 0; k < HS; k += 16) {
        u32 l[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) left<T, HS>(l[m], a + m * 16 * (HS + 8), k);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            u32 r[4];
            right_rows<T, HS>(r, b, n * 8, k);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                mma16816<T>(c[m][n], l[m], r[0], r[1]);
                mma16816<T>(c[m][n + 1], l[m], r[2], r[3]);
            }
        }
    }
}

// c (16 MT, HO) += p (16 MT, 8 NT) b (8 NT, HO). `b` is the start of a tile in shared memory, and the right
// operand is its columns from `first` on. The accumulators of `scores` already have the layout of a left
// operand, so `p` only needs rounding.
template <typename T, int HS, int HO, int MT, int NT>
__device__ __forceinline__ void weighted(
    float (&c)[MT][HO / 8][4], const float (&p)[MT][NT][4], const T* b, int first) {
#pragma unroll
    for (int k = 0; k < NT; k += 2) {
        u32 l[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            l[m][0] = pack2<T>(p[m][k][0], p[m][k][1]);
            l[m][1] = pack2<T>(p[m][k][2], p[m][k][3]);
            l[m][2] = pack2<T>(p[m][k + 1][0], p[m][k + 1][1]);
            l[m][3] = pack2<T>(p[m][k + 1][2], p[m][k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < HO / 8; n += 2) {
            u32 r[4];
            right_columns<T, HS>(r, b, first + n * 8, k * 8);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                mma16816<T>(c[m][n], l[m], r[0], r[1]);
                mma16816<T>(c[m][n + 1], l[m], r[2], r[3]);
            }
        }
    }
}

// Writes 16 rows of a warp's result, except rows from index `valid` on. The rows pass through `shared`, so
// that each lane writes 16 bytes at once. Each lane multiplies its row lane / 4 by `low`, and its row
// lane / 4 + 8 by `high`.
template <typename T, int HS, int HO>
__device__ __forceinline__ void store_rows(
    T* to, i64 ld, int valid, T* shared, const float (&c)[HO / 8][4], float low, float high) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < HO / 8; ++n) {
        *reinterpret_cast<u32*>(shared + g * (HS + 8) + n * 8 + 2 * t) = pack2<T>(c[n][0] * low, c[n][1] * low);
        *reinterpret_cast<u32*>(shared + (g + 8) * (HS + 8) + n * 8 + 2 * t) = pack2<T>(c[n][2] * high, c[n][3] * high);
    }
    __syncwarp();
    constexpr int PARTS = HO / 8;
#pragma unroll
    for (int i = 0; i < 16 * PARTS; i += WARP) {
        int row = (i + lane) / PARTS, part = (i + lane) % PARTS;
        if (row < valid) store16(to + row * ld + part * 8, load16(shared + row * (HS + 8) + part * 8));
    }
}

// out = softmax(scores) v for a tile of 64 MT queries of one head. `lse` (n, heads) gets the logarithm of
// each softmax denominator, for the backward pass. The loop begins with the newest visible keys.
template <typename T, int HS, int MT, int BN>
__device__ __forceinline__ void forward_body(T* __restrict__ out, float* __restrict__ lse, const T* __restrict__ q,
    const T* __restrict__ k, const T* __restrict__ v, const Segment* __restrict__ segments,
    const uint2* __restrict__ tiles, int kv_heads, i64 ld_out, i64 ld_q, i64 ld_kv, Scores how) {
    constexpr int BM = 64 * MT, NT = BN / 8;
    extern __shared__ __align__(16) u8 memory[];
    T* q_tile = reinterpret_cast<T*>(memory);
    T* k_tile = q_tile + BM * (HS + 8);
    T* v_tile = k_tile + BN * (HS + 8);
    uint2 tile = tiles[blockIdx.y];
    Segment segment = segments[tile.x];
    int heads = gridDim.x, head = blockIdx.x, kv_head = head / (heads / kv_heads);
    int first = tile.y * BM, offset = segment.kv_len - segment.q_len, rows = segment.q_len - first;
    int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * 16 * MT;
    q += (segment.q_start + first) * ld_q + head * HS;
    k += segment.kv_start * ld_kv + kv_head * HS;
    v += segment.kv_start * ld_kv + kv_head * HS;
    int keys = min((int)segment.kv_len, offset + first + BM), j = ceil_div(keys, BN) - 1;
    int lowest = max(0, offset + first + 1 - how.window) / BN;
    load_tile<T, HS, BM>(q_tile, q, ld_q, rows);
    load_tile<T, HS, BN>(k_tile, k + j * BN * ld_kv, ld_kv, segment.kv_len - j * BN);
    copy_commit();
    T* own_q = q_tile + warp_row * (HS + 8);
    float acc[MT][HS / 8][4], max[MT][2], sum[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        max[m][0] = max[m][1] = NEGATIVE_INFINITY;
        sum[m][0] = sum[m][1] = 0;
#pragma unroll
        for (int n = 0; n < HS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[m][n][i] = 0;
    }
    float scale = how.softcap != 0 ? 1 : how.scale, factor = scale * LOG2_E;
    for (; j >= lowest; --j) {
        copy_wait<0>();
        __syncthreads();
        load_tile<T, HS, BN>(v_tile, v + j * BN * ld_kv, ld_kv, segment.kv_len - j * BN);
        copy_commit();
        float s[MT][NT][4];
        scores<T, HS, MT, NT>(s, own_q, k_tile);
        if (how.softcap != 0) {
#pragma unroll
            for (int m = 0; m < MT; ++m)
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) s[m][n][i] = capped_score(s[m][n][i], how);
        }
        if ((j + 1) * BN - 1 > offset + first || j * BN + how.window < offset + first + BM) {
#pragma unroll
            for (int m = 0; m < MT; ++m)
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        int key = j * BN + n * 8 + lane % 4 * 2 + i % 2;
                        int query = first + warp_row + m * 16 + lane / 4 + i / 2 * 8;
                        bool is_hidden = key > offset + query || key + how.window <= offset + query;
                        if (is_hidden) s[m][n][i] = NEGATIVE_INFINITY;
                    }
        }
        copy_wait<0>();
        __syncthreads();
        if (j > lowest) {
            load_tile<T, HS, BN>(k_tile, k + (j - 1) * BN * ld_kv, ld_kv, BN);
            copy_commit();
        }
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float top = max[m][h];
#pragma unroll
                for (int n = 0; n < NT; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 1));
                top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 2));
                // As long as all keys of a row so far are hidden, the row's maximum is -inf. The base is then
                // 0, because `-inf - -inf` is NaN.
                float base = top == NEGATIVE_INFINITY ? 0 : top * factor;
                float shrink = exp2_fast(max[m][h] * factor - base), part = 0;
                max[m][h] = top;
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int i = 2 * h; i < 2 * h + 2; ++i) {
                        s[m][n][i] = exp2_fast(s[m][n][i] * factor - base);
                        part += s[m][n][i];
                    }
                sum[m][h] = sum[m][h] * shrink + part;
#pragma unroll
                for (int n = 0; n < HS / 8; ++n)
#pragma unroll
                    for (int i = 2 * h; i < 2 * h + 2; ++i) acc[m][n][i] *= shrink;
            }
        weighted<T, HS, HS, MT, NT>(acc, s, v_tile, 0);
    }
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        float inverse[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float total = sum[m][h];
            total += __shfl_xor_sync(FULL_MASK, total, 1);
            total += __shfl_xor_sync(FULL_MASK, total, 2);
            inverse[h] = 1.0f / total;
            int row = warp_row + m * 16 + lane / 4 + h * 8;
            if (lane % 4 == 0 && row < rows)
                lse[(segment.q_start + first + row) * (i64)heads + head] = max[m][h] * scale + logf(total);
        }
        int row = warp_row + m * 16;
        T* to = out + (segment.q_start + first + row) * ld_out + head * HS;
        store_rows<T, HS, HS>(to, ld_out, rows - row, own_q + m * 16 * (HS + 8), acc[m], inverse[0], inverse[1]);
    }
}

// delta (n, heads) = the dot product of `out` and `dout` for each query and head. The gradient of a score is
// p * (dp - delta), with the softmax weight p and its gradient dp. A warp computes one dot product.
// Grid: ceil(n * heads / 8 warps).
template <typename T>
__device__ __forceinline__ void row_sums_body(float* __restrict__ delta, const T* __restrict__ out,
    const T* __restrict__ dout, int n, int heads, int hs, i64 ld_out, i64 ld_dout) {
    i64 at = (i64)blockIdx.x * 8 + threadIdx.x / WARP;
    if (at >= (i64)n * heads) return;
    const T* a = out + at / heads * ld_out + at % heads * hs;
    const T* b = dout + at / heads * ld_dout + at % heads * hs;
    float sum = 0;
    for (int i = threadIdx.x % WARP; i < hs; i += WARP) sum += to_float(a[i]) * to_float(b[i]);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[at] = sum;
}

#define ROW_SUMS_KERNEL(T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) attention_row_sums_##T(float* delta, const T* out,       \
        const T* dout, int n, int heads, int hs, i64 ld_out, i64 ld_dout) {                                    \
        row_sums_body(delta, out, dout, n, heads, hs, ld_out, ld_dout);                                        \
    }
FOR_TYPES(ROW_SUMS_KERNEL)

// Operands of the backward pass. `lse` and `delta` are (n, heads).
template <typename T>
struct Backward {
    const T* __restrict__ dout;
    const T* __restrict__ q;
    const T* __restrict__ k;
    const T* __restrict__ v;
    const float* __restrict__ lse;
    const float* __restrict__ delta;
    const Segment* __restrict__ segments;
    const uint2* __restrict__ tiles;
    int heads, kv_heads;
    i64 ld_dout, ld_q, ld_kv;
    Scores how;
};

// Returns the softmax weight of a query and a key from the product of their vectors, with a cap. `slope`
// becomes the derivative of the cap. The caller passes `lse` times LOG2_E, because the exponential has base
// 2.
__device__ __forceinline__ float weight_of(float& slope, float product, float lse, const Scores& how) {
    float score = capped_score(product, how);
    slope = cap_slope(score, how);
    return exp2_fast(score * LOG2_E - lse);
}

// dk and dv for a tile of 64 keys of one key head. The rows of the scores are keys, and the columns are
// queries. The loop covers the queries of all heads / kv_heads query heads that share the key head. A thread
// block writes HO of the HS columns of the head. Two thread blocks share a head of 256 columns, because all
// its accumulators would exceed the registers of one thread block.
template <typename T, int HS, int HO, int BQ, int STAGES>
__device__ __forceinline__ void backward_kv_body(T* __restrict__ dk, T* __restrict__ dv, i64 ld_dkv, Backward<T> b) {
    constexpr int BK = 64, NT = BQ / 8, TILE = BQ * (HS + 8);
    extern __shared__ __align__(16) u8 memory[];
    T* k_tile = reinterpret_cast<T*>(memory);
    T* v_tile = k_tile + BK * (HS + 8);
    T* moving = v_tile + BK * (HS + 8);
    float* moving_rows = reinterpret_cast<float*>(moving + STAGES * 2 * TILE);
    uint2 tile = b.tiles[blockIdx.y];
    Segment segment = b.segments[tile.x];
    int group = b.heads / b.kv_heads, kv_head = blockIdx.x, first = tile.y * BK, columns = blockIdx.z * HO;
    int offset = segment.kv_len - segment.q_len, lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * 16;
    i64 key_row = segment.kv_start + first;
    int keys = segment.kv_len - first;
    load_tile<T, HS, BK>(k_tile, b.k + key_row * b.ld_kv + kv_head * HS, b.ld_kv, keys);
    load_tile<T, HS, BK>(v_tile, b.v + key_row * b.ld_kv + kv_head * HS, b.ld_kv, keys);
    copy_commit();
    // Queries from `end` on attend to no key of the tile, because their windows begin after its last key.
    int end = min((int)segment.q_len, first + BK - 1 + b.how.window - offset);
    int first_tile = max(0, first - offset) / BQ, q_tiles = ceil_div(max(0, end), BQ) - first_tile;
    auto load = [&](int it) {
        int head = kv_head * group + it / q_tiles, query = (first_tile + it % q_tiles) * BQ;
        int valid = segment.q_len - query;
        i64 row = segment.q_start + query;
        T* to = moving + it % STAGES * 2 * TILE;
        load_tile<T, HS, BQ>(to, b.q + row * b.ld_q + head * HS, b.ld_q, valid);
        load_tile<T, HS, BQ>(to + TILE, b.dout + row * b.ld_dout + head * HS, b.ld_dout, valid);
        copy_commit();
        if (threadIdx.x < BQ) {
            bool is_valid = threadIdx.x < valid;
            i64 at = (row + threadIdx.x) * b.heads + head;
            float* rows = moving_rows + it % STAGES * 2 * BQ + threadIdx.x;
            rows[0] = is_valid ? b.lse[at] * LOG2_E : 0;
            rows[BQ] = is_valid ? b.delta[at] : 0;
        }
    };
    float dk_acc[1][HO / 8][4], dv_acc[1][HO / 8][4];
#pragma unroll
    for (int n = 0; n < HO / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) dk_acc[0][n][i] = dv_acc[0][n][i] = 0;
    float factor = b.how.scale * LOG2_E;
    int steps = q_tiles > 0 ? group * q_tiles : 0;
    if (STAGES > 1 && steps > 0) load(0);
    for (int it = 0; it < steps; ++it) {
        if (STAGES == 1) {
            __syncthreads();
            load(it);
        }
        copy_wait<0>();
        __syncthreads();
        if (STAGES > 1 && it + 1 < steps) load(it + 1);
        const T* q_tile = moving + it % STAGES * 2 * TILE;
        const T* d_tile = q_tile + TILE;
        const float* rows = moving_rows + it % STAGES * 2 * BQ;
        float p[1][NT][4], d[1][NT][4];
        scores<T, HS, 1, NT>(p, k_tile + warp_row * (HS + 8), q_tile);
        scores<T, HS, 1, NT>(d, v_tile + warp_row * (HS + 8), d_tile);
        int query = (first_tile + it % q_tiles) * BQ;
        bool is_cut = first + BK - 1 > offset + query || first + b.how.window < offset + query + BQ;
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int column = n * 8 + lane % 4 * 2 + i % 2, key = first + warp_row + lane / 4 + i / 2 * 8;
                bool is_hidden = is_cut && (key > offset + query + column || key + b.how.window <= offset + query + column);
                float slope = 1, x = b.how.softcap != 0 ? weight_of(slope, p[0][n][i], rows[column], b.how)
                                                        : exp2_fast(p[0][n][i] * factor - rows[column]);
                p[0][n][i] = is_hidden ? 0 : x;
                d[0][n][i] = p[0][n][i] * (d[0][n][i] - rows[BQ + column]) * slope;
            }
        weighted<T, HS, HO, 1, NT>(dv_acc, p, d_tile, columns);
        weighted<T, HS, HO, 1, NT>(dk_acc, d, q_tile, columns);
    }
    copy_wait<0>();
    i64 to = (key_row + warp_row) * ld_dkv + kv_head * HS + columns;
    T* own_k = k_tile + warp_row * (HS + 8);
    T* own_v = v_tile + warp_row * (HS + 8);
    __syncthreads();
    store_rows<T, HS, HO>(dk + to, ld_dkv, keys - warp_row, own_k, dk_acc[0], b.how.scale, b.how.scale);
    store_rows<T, HS, HO>(dv + to, ld_dkv, keys - warp_row, own_v, dv_acc[0], 1, 1);
}

// dq for a tile of 64 MT queries of one head. The loop covers the keys to which these queries attend.
template <typename T, int HS, int MT, int BN, int STAGES>
__device__ __forceinline__ void backward_q_body(T* __restrict__ dq, i64 ld_dq, Backward<T> b) {
    constexpr int BM = 64 * MT, NT = BN / 8, TILE = BN * (HS + 8);
    extern __shared__ __align__(16) u8 memory[];
    T* q_tile = reinterpret_cast<T*>(memory);
    T* d_tile = q_tile + BM * (HS + 8);
    T* moving = d_tile + BM * (HS + 8);
    uint2 tile = b.tiles[blockIdx.y];
    Segment segment = b.segments[tile.x];
    int head = blockIdx.x, kv_head = head / (b.heads / b.kv_heads), first = tile.y * BM;
    int offset = segment.kv_len - segment.q_len, rows = segment.q_len - first;
    int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * 16 * MT;
    i64 query_row = segment.q_start + first;
    const T* k = b.k + segment.kv_start * b.ld_kv + kv_head * HS;
    const T* v = b.v + segment.kv_start * b.ld_kv + kv_head * HS;
    load_tile<T, HS, BM>(q_tile, b.q + query_row * b.ld_q + head * HS, b.ld_q, rows);
    load_tile<T, HS, BM>(d_tile, b.dout + query_row * b.ld_dout + head * HS, b.ld_dout, rows);
    auto load = [&](int j) {
        T* to = moving + j % STAGES * 2 * TILE;
        load_tile<T, HS, BN>(to, k + j * BN * b.ld_kv, b.ld_kv, segment.kv_len - j * BN);
        load_tile<T, HS, BN>(to + TILE, v + j * BN * b.ld_kv, b.ld_kv, segment.kv_len - j * BN);
        copy_commit();
    };
    float acc[MT][HS / 8][4], lse[MT][2], delta[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int row = warp_row + m * 16 + lane / 4 + h * 8;
            i64 at = (query_row + row) * b.heads + head;
            lse[m][h] = row < rows ? b.lse[at] * LOG2_E : 0;
            delta[m][h] = row < rows ? b.delta[at] : 0;
        }
#pragma unroll
        for (int n = 0; n < HS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[m][n][i] = 0;
    }
    float factor = b.how.scale * LOG2_E;
    int steps = ceil_div(min((int)segment.kv_len, offset + first + BM), BN);
    int lowest = max(0, offset + first + 1 - b.how.window) / BN;
    if (STAGES > 1) load(lowest);
    for (int j = lowest; j < steps; ++j) {
        if (STAGES == 1) {
            __syncthreads();
            load(j);
        }
        copy_wait<0>();
        __syncthreads();
        if (STAGES > 1 && j + 1 < steps) load(j + 1);
        const T* k_tile = moving + j % STAGES * 2 * TILE;
        const T* v_tile = k_tile + TILE;
        float p[MT][NT][4], d[MT][NT][4];
        scores<T, HS, MT, NT>(p, q_tile + warp_row * (HS + 8), k_tile);
        scores<T, HS, MT, NT>(d, d_tile + warp_row * (HS + 8), v_tile);
        bool is_cut = (j + 1) * BN - 1 > offset + first || j * BN + b.how.window < offset + first + BM;
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int key = j * BN + n * 8 + lane % 4 * 2 + i % 2;
                    int query = offset + first + warp_row + m * 16 + lane / 4 + i / 2 * 8;
                    bool is_hidden = is_cut && (key > query || key + b.how.window <= query);
                    float slope = 1, x = b.how.softcap != 0 ? weight_of(slope, p[m][n][i], lse[m][i / 2], b.how)
                                                            : exp2_fast(p[m][n][i] * factor - lse[m][i / 2]);
                    d[m][n][i] = is_hidden ? 0 : x * (d[m][n][i] - delta[m][i / 2]) * slope;
                }
        weighted<T, HS, HS, MT, NT>(acc, d, k_tile, 0);
    }
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        int row = warp_row + m * 16;
        T* to = dq + (query_row + row) * ld_dq + head * HS;
        T* own = q_tile + row * (HS + 8);
        store_rows<T, HS, HS>(to, ld_dq, rows - row, own, acc[m], b.how.scale, b.how.scale);
    }
}

// Forward pass: out and lse.
// Grid: (heads, tiles of 64 MT queries).
// Shared bytes: (64 MT + 2 BN) * (HS + 8) * 2. These are 64 MT queries, BN keys and BN values of 16 bits,
// with 8 elements of padding per row.
#define FORWARD_KERNEL(T, HS, MT, BN)                                                                          \
    extern "C" __global__ void __launch_bounds__(128) attention_forward_hs##HS##_##T(T* out, float* lse,       \
        const T* q, const T* k, const T* v, const Segment* segments, const uint2* tiles, int kv_heads,         \
        i64 ld_out, i64 ld_q, i64 ld_kv, float scale, int window, float softcap) {                             \
        forward_body<T, HS, MT, BN>(out, lse, q, k, v, segments, tiles, kv_heads, ld_out, ld_q, ld_kv,         \
            {scale, window, softcap});                                                                         \
    }

// Backward pass: dk and dv.
// Grid: (kv_heads, tiles of 64 keys, HS / HO).
// Shared bytes: (128 + 2 STAGES BQ) * (HS + 8) * 2 + 8 STAGES BQ. The first term is 64 keys, 64 values, and
// BQ rows of q and of dout per stage. The second term is lse and delta of these BQ rows.
#define BACKWARD_KV_KERNEL(T, HS, HO, BQ, STAGES)                                                              \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_kv_hs##HS##_##T(T* dk, T* dv,         \
        const T* dout, const T* q, const T* k, const T* v, const float* lse, const float* delta,               \
        const Segment* segments, const uint2* tiles, int heads, int kv_heads, i64 ld_dkv, i64 ld_dout,         \
        i64 ld_q, i64 ld_kv, float scale, int window, float softcap) {                                         \
        Backward<T> b = {dout, q, k, v, lse, delta, segments, tiles, heads, kv_heads, ld_dout, ld_q, ld_kv,    \
            {scale, window, softcap}};                                                                         \
        backward_kv_body<T, HS, HO, BQ, STAGES>(dk, dv, ld_dkv, b);                                            \
    }

// Backward pass: dq.
// Grid: (heads, tiles of 64 MT queries).
// Shared bytes: (128 MT + 2 STAGES BN) * (HS + 8) * 2. These are 64 MT rows of q and of dout, and BN keys and
// BN values per stage.
#define BACKWARD_Q_KERNEL(NAME, T, HS, MT, BN, STAGES)                                                         \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_q_##NAME##_##T(T* dq, const T* dout,  \
        const T* q, const T* k, const T* v, const float* lse, const float* delta, const Segment* segments,     \
        const uint2* tiles, int heads, int kv_heads, i64 ld_dq, i64 ld_dout, i64 ld_q, i64 ld_kv,              \
        float scale, int window, float softcap) {                                                              \
        Backward<T> b = {dout, q, k, v, lse, delta, segments, tiles, heads, kv_heads, ld_dout, ld_q, ld_kv,    \
            {scale, window, softcap}};                                                                         \
        backward_q_body<T, HS, MT, BN, STAGES>(dq, ld_dq, b);                                                  \
    }

// Except `hs128_wide`, all kernels fit the 99 KB of shared memory of sm_86, sm_89 and sm_120. sm_75 has 64
// KB, so it has smaller tiles and no kernel for heads of 256.
#if __CUDA_ARCH__ >= 800
#define KERNELS(T)                                                                                             \
    FORWARD_KERNEL(T, 64, 2, 64)                                                                               \
    FORWARD_KERNEL(T, 96, 2, 64)                                                                               \
    FORWARD_KERNEL(T, 128, 2, 32)                                                                              \
    FORWARD_KERNEL(T, 256, 1, 64)                                                                              \
    BACKWARD_KV_KERNEL(T, 64, 64, 64, 2)                                                                       \
    BACKWARD_KV_KERNEL(T, 96, 96, 32, 2)                                                                       \
    BACKWARD_KV_KERNEL(T, 128, 128, 64, 1)                                                                     \
    BACKWARD_KV_KERNEL(T, 256, 128, 16, 1)                                                                     \
    BACKWARD_Q_KERNEL(hs64, T, 64, 2, 32, 2)                                                                   \
    BACKWARD_Q_KERNEL(hs96, T, 96, 2, 32, 1)                                                                   \
    BACKWARD_Q_KERNEL(hs128, T, 128, 2, 32, 1)                                                                 \
    BACKWARD_Q_KERNEL(hs256, T, 256, 1, 32, 1)                                                                 \
    BACKWARD_Q_KERNEL(hs128_wide, T, 128, 2, 32, 2)
#else
#define KERNELS(T)                                                                                             \
    FORWARD_KERNEL(T, 64, 1, 64)                                                                               \
    FORWARD_KERNEL(T, 96, 1, 64)                                                                               \
    FORWARD_KERNEL(T, 128, 1, 64)                                                                              \
    BACKWARD_KV_KERNEL(T, 64, 64, 32, 1)                                                                       \
    BACKWARD_KV_KERNEL(T, 96, 96, 32, 1)                                                                       \
    BACKWARD_KV_KERNEL(T, 128, 128, 32, 1)                                                                     \
    BACKWARD_Q_KERNEL(hs64, T, 64, 1, 32, 1)                                                                   \
    BACKWARD_Q_KERNEL(hs96, T, 96, 1, 32, 1)                                                                   \
    BACKWARD_Q_KERNEL(hs128, T, 128, 1, 32, 1)
#endif
// f32 uses `attention_plain.cu`, and so does f16 from compute capability 8.0 on.
#if __CUDA_ARCH__ >= 800
KERNELS(bf16)
#else
KERNELS(f16)
#endif
