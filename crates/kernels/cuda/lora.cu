// LoRA: products with low-rank pairs A (rank, d_in) and B (d_out, rank), and their gradients. X' is the
// transpose of X, s is the scaling of the pair, and drop is dropout:
//
//     forward     mid = drop(inp) A'        out += s mid B'
//     backward    dmid = s dout B           dB += s dout' mid
//                 dA += dmid' drop(inp)     dinp += drop(dmid A)
//
// Three kernels compute these six products. `down` computes mid and dmid, which have few columns. `up`
// computes out and dinp, whose inner dimension is short. `grad` computes dA and dB, which are sums over rows.
//
// `down` and `grad` split each pair into tiles of 8 ranks, and one launch processes many pairs. A `Block` is
// a set of up to 4 tiles that read the same matrix. "Thread block" always means a CUDA block.
//
// A and B are f32. The tensor-core kernels round A and B to the activation type in registers. The tensor-core
// kernels require 16-byte aligned rows, and numbers of columns that are multiples of 8. The `..._plain`
// kernels support every type and every width.
#include "prelude.cuh"

// The activation type of the tensor-core kernels on this architecture.
#if __CUDA_ARCH__ >= 800
#define FOR_MATRIX_TYPE(M) M(bf16)
#else
#define FOR_MATRIX_TYPE(M) M(f16)
#endif

// A matrix W (ranks, cols): A or its gradient, or the transpose of B or of its gradient. Element (r, c) is
// data[r * rank_stride + c * column_stride].
struct Factor {
    const float* data;
    i64 rank_stride, column_stride;
};

// Dropout of the input of one pair. Element (row, col) has the random number with index row * cols + col. A
// `probability` of 0 means no dropout. Dropout only zeroes elements here: the factor 1 / (1 - probability) is
// part of `scale`.
struct Drop {
    u64 key;
    float probability;
    int cols;
};

// Returns the result of `rng::keep` on the host. The last step of the host's mixer, `z ^= z >> 31`, is
// omitted, because it does not change bits 40 to 63.
__device__ __forceinline__ bool is_kept(u64 key, u64 counter, u32 threshold) {
    u64 z = key + counter * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (u32)(z >> 40) >= threshold;
}

// Returns the smallest 24-bit random number with which an element is kept: number / 2^24 >= probability.
__device__ __forceinline__ u32 threshold_of(const Drop& drop) { return (u32)ceilf(drop.probability * 16777216.0f); }

__device__ __forceinline__ bool is_kept(const Drop& drop, i64 row, int col) {
    return is_kept(drop.key, (u64)(row * drop.cols + col), threshold_of(drop));
}

// Returns 8 mask bits. Bit i is 1 if dropout keeps the element with index `counter` + i. The function is not
// inlined, because a call is cheaper than the longer code.
__device__ __noinline__ u32 kept_columns(u64 key, u64 counter, u32 threshold) {
    u32 bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) bits |= (u32)is_kept(key, counter + i, threshold) << i;
    return bits;
}

// Returns 8 mask bits for the elements that a lane holds of a left operand of `mma16816`. The operand is the
// transpose of the matrix with dropout. Bits 2i and 2i + 1 belong to the lower and upper half of register i.
// For example, bit 3 belongs to the element one row and 8 columns after element `counter`.
__device__ __noinline__ u32 kept_across(u64 key, u64 counter, u32 cols, u32 threshold) {
    u32 bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        u64 at = counter + (u64)(i % 2 + i / 4 * 8) * cols + i / 2 % 2 * 8;
        bits |= (u32)is_kept(key, at, threshold) << i;
    }
    return bits;
}

__device__ __forceinline__ u32 kept_columns(const Drop& drop, i64 row, int col) {
    return kept_columns(drop.key, (u64)(row * drop.cols + col), threshold_of(drop));
}

// Zeroes the lower half of `pair` if bit 0 of `bits` is 0, and the upper half if bit 1 is 0.
__device__ __forceinline__ u32 keep_halves(u32 pair, u32 bits) {
    return pair & ((bits & 1 ? 0xffffu : 0) | (bits & 2 ? 0xffff0000u : 0));
}

// Tiles `first` to `first + count - 1`, which all read the matrix `data` (n, cols). One thread block
// processes all of these tiles, so that it reads the matrix once.
struct Block {
    const void* data;
    i64 ld;
    int cols, first, count, unused;
};

// Maximum number of tiles of a `Block`, and of `Block`s and of tiles in a launch.
#define TOGETHER 4
#define MAX_BLOCKS 16
#define MAX_TILES 32

// ---- down: mid (n, ranks) = scale * drop(inp) W', with inp (n, cols) and W (ranks, cols). For dmid, `inp`
// is dout.

// A tile: up to 8 ranks of one pair. `w` and `mid` begin at the first of these ranks.
struct DownTile {
    Factor w;
    void* mid;
    Drop drop;
    int ld_mid, ranks;
    float scale;
    int unused;
};

struct DownGroup {
    Block block[MAX_BLOCKS];
    DownTile tile[MAX_TILES];
};

// Loads columns col to col + 7 of rank lane / 4, rounded to T, two per register. Missing ranks and columns
// become zeros.
template <typename T>
__device__ __forceinline__ void load_ranks(u32 (&out)[4], const Factor& w, int ranks, int col, int cols) {
    int rank = threadIdx.x % WARP / 4;
    float x[8];
    const float* from = w.data + rank * w.rank_stride + col * w.column_stride;
    bool is_valid = rank < ranks && col < cols;
    if (w.column_stride == 1 && aligned16(from)) {
        float4 a = make_float4(0, 0, 0, 0), b = a;
        if (is_valid) {
            a = reinterpret_cast<const float4*>(from)[0];
            b = reinterpret_cast<const float4*>(from)[1];
        }
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = is_valid ? from[i * w.column_stride] : 0;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = pack2<T>(x[2 * i], x[2 * i + 1]);
}

// A thread block computes 16 MT rows of `mid` for the tiles of one `Block`.
//
// The columns are divided into 64 parts. Sum s adds parts s, s + 8, ..., s + 56, and the result adds sums 0
// to 7. If gridDim.y is 1, a thread block computes all sums, one per warp. If gridDim.y is 8, it computes sum
// blockIdx.y, with one part per warp, and `lora_down_sum` adds the sums. The additions have the same order in
// both cases, so the bits do not depend on the number of rows.
template <typename T, int MT>
__device__ __forceinline__ void lora_down_body(
    const DownGroup& group, float* __restrict__ partial, int n, int tile_count) {
    __shared__ float shared[8][16 * MT][TOGETHER * 8 + 1];
    const Block& block = group.block[blockIdx.z];
    const T* inp = (const T*)block.data;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4, cols = block.cols;
    int width = ceil_div(ceil_div(cols, 64), 32) * 32, first_row = blockIdx.x * 16 * MT;
    bool is_whole = gridDim.y == 1;
    float total[MT][TOGETHER][4];
#pragma unroll
    for (int i = 0; i < MT * TOGETHER * 4; ++i) total[i / 4 / TOGETHER][i / 4 % TOGETHER][i % 4] = 0;
    int first_part = is_whole ? warp : blockIdx.y + 8 * warp, last_part = is_whole ? 63 : first_part;
    for (int part = first_part; part <= last_part; part += 8) {
        float acc[MT][TOGETHER][4];
#pragma unroll
        for (int i = 0; i < MT * TOGETHER * 4; ++i) acc[i / 4 / TOGETHER][i / 4 % TOGETHER][i % 4] = 0;
        int end = min(cols, (part + 1) * width);
        for (int k = part * width; k < end; k += 32) {
            int col = k + 8 * t;
            u32 x[MT][8], a[MT][8];
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                int row = first_row + 16 * m + g;
                uint4 low = make_uint4(0, 0, 0, 0), high = low;
                if (col < end && row < n) low = *reinterpret_cast<const uint4*>(inp + row * block.ld + col);
                if (col < end && row + 8 < n) high = *reinterpret_cast<const uint4*>(inp + (row + 8) * block.ld + col);
                x[m][0] = low.x, x[m][2] = low.y, x[m][4] = low.z, x[m][6] = low.w;
                x[m][1] = high.x, x[m][3] = high.y, x[m][5] = high.z, x[m][7] = high.w;
            }
#pragma unroll
            for (int u = 0; u < TOGETHER; ++u) {
                if (u >= block.count) continue;
                const DownTile& tile = group.tile[block.first + u];
                u32 w[4];
                load_ranks<T>(w, tile.w, tile.ranks, col, end);
                // Tiles of one pair have the same dropout mask, so the masked operand is reused.
                bool is_new = u == 0 || tile.drop.key != group.tile[block.first + u - 1].drop.key;
#pragma unroll
                for (int m = 0; m < MT; ++m) {
                    u32 low = 255, high = 255;
                    if (tile.drop.probability != 0 && is_new) {
                        low = kept_columns(tile.drop, first_row + 16 * m + g, col);
                        high = kept_columns(tile.drop, first_row + 16 * m + g + 8, col);
                    }
                    if (is_new) {
#pragma unroll
                        for (int i = 0; i < 8; ++i) a[m][i] = keep_halves(x[m][i], (i % 2 ? high : low) >> i / 2 * 2);
                    }
                    u32 first[4] = {a[m][0], a[m][1], a[m][2], a[m][3]}, second[4] = {a[m][4], a[m][5], a[m][6], a[m][7]};
                    mma16816<T>(acc[m][u], first, w[0], w[1]);
                    mma16816<T>(acc[m][u], second, w[2], w[3]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < MT * TOGETHER * 4; ++i)
            total[i / 4 / TOGETHER][i / 4 % TOGETHER][i % 4] += acc[i / 4 / TOGETHER][i / 4 % TOGETHER][i % 4];
    }
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int u = 0; u < TOGETHER; ++u)
#pragma unroll
            for (int i = 0; i < 4; ++i) shared[warp][16 * m + g + i / 2 * 8][u * 8 + 2 * t + i % 2] = total[m][u][i];
    __syncthreads();
    for (int at = threadIdx.x; at < 16 * MT * block.count * 8; at += 256) {
        int r = at / (block.count * 8), c = at % (block.count * 8), to = first_row + r;
        float sum = shared[0][r][c];
#pragma unroll
        for (int w = 1; w < 8; ++w) sum += shared[w][r][c];
        const DownTile& tile = group.tile[block.first + c / 8];
        if (to >= n) continue;
        if (!is_whole)
            partial[((i64)blockIdx.y * n + to) * tile_count * 8 + block.first * 8 + c] = sum;
        else if (c % 8 < tile.ranks)
            ((T*)tile.mid)[(i64)to * tile.ld_mid + c % 8] = from_float<T>(sum * tile.scale);
    }
}

// `lora_down` is for few rows. Its grid is (ceil(n / 16), 8 sums, `Block`s). `partial` is
// (8 sums, n, tile_count, 8 ranks), and `lora_down_sum` must follow. `lora_down_wide` is for many rows. Its
// grid is (ceil(n / 32), 1, `Block`s). Both variants give the same bits.
#define DOWN_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        lora_down_##T(const __grid_constant__ DownGroup group, float* partial, int n, int tile_count) {        \
        lora_down_body<T, 1>(group, partial, n, tile_count);                                                   \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                       \
        lora_down_wide_##T(const __grid_constant__ DownGroup group, int n) {                                   \
        lora_down_body<T, 2>(group, nullptr, n, 0);                                                            \
    }
FOR_MATRIX_TYPE(DOWN_KERNEL)

// mid = scale * the sum of the 8 sums in `partial`, in order. A thread computes one row and rank.
// Grid: ceil(n * tile_count * 8 ranks / 256 threads).
#define DOWN_SUM_KERNEL(T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) lora_down_sum_##T(                                       \
        const __grid_constant__ DownGroup group, const float* partial, int n, int tile_count) {                \
        i64 at = (i64)blockIdx.x * 256 + threadIdx.x, all = (i64)n * tile_count * 8;                           \
        if (at >= all) return;                                                                                 \
        float sum = partial[at];                                                                               \
        for (int y = 1; y < 8; ++y) sum += partial[y * all + at];                                              \
        const DownTile& tile = group.tile[at / 8 % tile_count];                                                \
        if (at % 8 < tile.ranks)                                                                               \
            ((T*)tile.mid)[at / 8 / tile_count * tile.ld_mid + at % 8] = from_float<T>(sum * tile.scale);      \
    }
FOR_MATRIX_TYPE(DOWN_SUM_KERNEL)

// `down` for every type and width. A warp computes one row for the tiles of one `Block`.
// Grid: (ceil(n / 8 warps), `Block`s).
template <typename T>
__device__ __forceinline__ void lora_down_plain_body(const DownGroup& group, int n) {
    const Block& block = group.block[blockIdx.y];
    const T* inp = (const T*)block.data;
    int row = blockIdx.x * 8 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= n) return;
    for (int u = 0; u < block.count; ++u) {
        const DownTile& tile = group.tile[block.first + u];
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int col = lane; col < block.cols; col += WARP) {
            if (tile.drop.probability != 0 && !is_kept(tile.drop, row, col)) continue;
            float x = to_float(inp[row * block.ld + col]);
            const float* w = tile.w.data + col * tile.w.column_stride;
#pragma unroll
            for (int r = 0; r < 8; ++r)
                if (r < tile.ranks) sum[r] = fmaf(x, w[r * tile.w.rank_stride], sum[r]);
        }
#pragma unroll
        for (int r = 0; r < 8; ++r) {
            sum[r] = warp_sum(sum[r]);
            if (lane == 0 && r < tile.ranks)
                ((T*)tile.mid)[(i64)row * tile.ld_mid + r] = from_float<T>(sum[r] * tile.scale);
        }
    }
}

#define DOWN_PLAIN_KERNEL(T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        lora_down_plain_##T(const __grid_constant__ DownGroup group, int n) {                                  \
        lora_down_plain_body<T>(group, n);                                                                     \
    }
FOR_TYPES(DOWN_PLAIN_KERNEL)

// ---- up: out (n, cols) += the sum over pairs of drop(scale * mid W), with mid (n, ranks) and W
// (ranks, cols). For dinp, `out` is dinp and `mid` is dmid.

// A step: up to 16 ranks of one pair. After the pair's last step in this launch (`is_last`), the sum over its
// steps is scaled, masked and added.
struct UpStep {
    Factor w;
    const void* mid;
    Drop drop;
    float scale;
    int ld_mid, ranks, is_last;
};

// An output (n, cols) and its steps, `first_step` to `first_step + steps - 1`.
struct UpOut {
    void* out;
    i64 ld;
    int cols, first_step, steps, unused;
};

// Maximum number of steps and of outputs in a launch, and of steps of an output whose W stays in registers.
#define MAX_UP_STEPS 32
#define MAX_UP_OUTS 4
#define HELD_STEPS 4

struct UpGroup {
    UpStep step[MAX_UP_STEPS];
    UpOut out[MAX_UP_OUTS];
};

// Loads the right operands b[0] to b[3] of a step: up to 16 ranks of 32 columns from `col`. Column 2p + i of
// operand j is column 8p + 2j + i of the output, with i < 2. For example, operand 1 has columns 2, 3, 10, 11,
// 18, 19, 26 and 27. The results of each lane are thus 8 neighbouring columns, which are written as vectors.
template <typename T>
__device__ __forceinline__ void load_step(u32 (&b)[4][2], const UpStep& step, int col, int cols) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        int c = col + g / 2 * 8 + 2 * j + g % 2;
        const float* from = step.w.data + c * step.w.column_stride;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int rank = 2 * t + 8 * h;
            float low = rank < step.ranks && c < cols ? from[rank * step.w.rank_stride] : 0;
            float high = rank + 1 < step.ranks && c < cols ? from[(rank + 1) * step.w.rank_stride] : 0;
            b[j][h] = pack2<T>(low, high);
        }
    }
}

// Loads ranks `rank` and `rank + 1` of a row of `mid`. Missing rows and ranks become zeros.
__device__ __forceinline__ u32 load_mid(const UpStep& step, int row, int n, int rank) {
    const u16* from = (const u16*)step.mid + (i64)row * step.ld_mid + rank;
    u32 low = row < n && rank < step.ranks ? from[0] : 0, high = row < n && rank + 1 < step.ranks ? from[1] : 0;
    return low | high << 16;
}

// Adds the product of a step to `acc`, for 16 rows. At the pair's last step, scales and masks `acc` and adds
// it to `sum`. `mid` points to the rows in shared memory. If it is null, the rows are read from global
// memory.
template <typename T>
__device__ __forceinline__ void add_step(
    float (&acc)[4][4], float (&sum)[2][8], const UpStep& step, const u32 (&b)[4][2], const T* mid, int row, int col, int n) {
    int lane = threadIdx.x % WARP;
    u32 a[4];
    if (mid) {
        load_matrix_x4(a, mid + lane % 16 * 24 + lane / 16 * 8);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = load_mid(step, row + i % 2 * 8, n, 2 * (lane % 4) + i / 2 * 8);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) mma16816<T>(acc[j], a, b[j][0], b[j][1]);
    if (!step.is_last) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        u32 bits = 255;
        if (step.drop.probability != 0) bits = kept_columns(step.drop, row + h * 8, col);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float x = acc[i / 2][2 * h + i % 2] * step.scale;
            acc[i / 2][2 * h + i % 2] = 0;
            sum[h][i] += bits >> i & 1 ? x : 0;
        }
    }
}

// Starts to copy 16 MT rows of the mids of the first `HELD_STEPS` steps to shared memory. Missing rows and
// ranks become zeros. A thread copies 8 ranks of a row. Rows of 16 ranks are padded to 24 elements, so that
// `ldmatrix` has no bank conflicts.
template <typename T, int MT>
__device__ __forceinline__ void load_mids(T (*mids)[16 * MT][24], const UpStep* steps, int count, int row, int n) {
    int s = threadIdx.x / (32 * MT), r = threadIdx.x / 2 % (16 * MT), rank = threadIdx.x % 2 * 8;
    if (s < min(count, HELD_STEPS)) {
        const UpStep& step = steps[s];
        const T* from = (const T*)step.mid + (i64)(row + r) * step.ld_mid + rank;
        T* to = &mids[s][r][rank];
        bool is_empty = row + r >= n || rank >= step.ranks;
        if (is_empty || rank + 8 <= step.ranks && step.ld_mid % 8 == 0 && aligned16(from)) {
            copy16_async(to, is_empty ? (const T*)step.mid : from, !is_empty);
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i) to[i] = rank + i < step.ranks ? from[i] : from_float<T>(0);
        }
    }
    copy_commit();
}

// Eight neighbouring elements of an output, as vectors of 16 bytes.
template <typename O>
struct Eight {
    Vec<O> part[8 / Vec<O>::LEN];
};

// A thread block computes 256 columns of 16 MT rows at a time, and meanwhile loads the rows that it computes
// next. These begin gridDim.y * 16 MT rows later. `O` is the type of the outputs.
template <typename T, typename O, int MT>
__device__ __forceinline__ void lora_up_body(const UpGroup& group, int n) {
    __shared__ __align__(16) T mids[2][HELD_STEPS][16 * MT][24];
    const UpOut& out = group.out[blockIdx.z];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int first = blockIdx.x * 256 + warp * 32, col = first + 8 * t;
    const UpStep* steps = group.step + out.first_step;
    u32 held[HELD_STEPS][4][2];
#pragma unroll
    for (int s = 0; s < HELD_STEPS; ++s)
        if (s < out.steps) load_step<T>(held[s], steps[s], first, out.cols);
    auto load_out = [&](Eight<O>(&y)[2 * MT], int rows) {
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) {
            int row = rows + i * 8 + g;
            if (row >= n || col >= out.cols) continue;
#pragma unroll
            for (int j = 0; j < 8; j += Vec<O>::LEN)
                y[i].part[j / Vec<O>::LEN] = load16((const O*)out.out + row * out.ld + col + j);
        }
    };
    int rows = blockIdx.y * 16 * MT, step_rows = gridDim.y * 16 * MT, stage = 0;
    Eight<O> y[2 * MT], next[2 * MT];
    load_mids<T, MT>(mids[0], steps, out.steps, rows, n);
    load_out(y, rows);
    for (; rows < n; rows += step_rows, stage ^= 1) {
        copy_wait<0>();
        __syncthreads();
        if (rows + step_rows < n) {
            load_mids<T, MT>(mids[stage ^ 1], steps, out.steps, rows + step_rows, n);
            load_out(next, rows + step_rows);
        }
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            float sum[2][8], acc[4][4];
#pragma unroll
            for (int i = 0; i < 16; ++i) sum[i / 8][i % 8] = acc[i / 4][i % 4] = 0;
#pragma unroll
            for (int s = 0; s < HELD_STEPS; ++s)
                if (s < out.steps)
                    add_step<T>(acc, sum, steps[s], held[s], &mids[stage][s][16 * m][0], rows + 16 * m + g, col, n);
#pragma unroll 1
            for (int s = HELD_STEPS; s < out.steps; ++s) {
                u32 b[4][2];
                load_step<T>(b, steps[s], first, out.cols);
                add_step<T>(acc, sum, steps[s], b, nullptr, rows + 16 * m + g, col, n);
            }
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                int row = rows + 16 * m + 8 * h + g;
                if (row >= n || col >= out.cols) continue;
#pragma unroll
                for (int j = 0; j < 8; j += Vec<O>::LEN) {
                    Vec<O>& to = y[2 * m + h].part[j / Vec<O>::LEN];
#pragma unroll
                    for (int i = 0; i < Vec<O>::LEN; ++i) to.v[i] = from_float<O>(to_float(to.v[i]) + sum[h][j + i]);
                    store16((O*)out.out + row * out.ld + col + j, to);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) y[i] = next[i];
    }
}

// Grid: (ceil(cols / 256 columns), y, outputs) for outputs of up to `cols` columns. y is at most
// ceil(n / 16 rows), or ceil(n / 32 rows) for `lora_up_wide`. With a smaller y, a thread block computes
// several sets of rows, and reads W once for all of them. Both variants give the same bits. BLOCKS is the
// minimum number of thread blocks per multiprocessor.
#define UP_KERNEL(NAME, T, O, BLOCKS)                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        lora_up_##NAME(const __grid_constant__ UpGroup group, int n) {                                         \
        lora_up_body<T, O, 1>(group, n);                                                                       \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                                  \
        lora_up_wide_##NAME(const __grid_constant__ UpGroup group, int n) {                                    \
        lora_up_body<T, O, 2>(group, n);                                                                       \
    }
#if __CUDA_ARCH__ >= 800
UP_KERNEL(bf16, bf16, bf16, 2)
#else
UP_KERNEL(f16, f16, f16, 2)
// Adds to f32 outputs, for the residual stream, which is f32 if activations are f16.
UP_KERNEL(to_f32_f16, f16, float, 1)
#endif

// `up` for every type and width. A thread computes one element of an output.
// Grid: (ceil(cols / 256 threads), n, outputs). n is at most 65535, the limit of a grid in y.
template <typename T, typename O>
__device__ __forceinline__ void lora_up_plain_body(const UpGroup& group) {
    const UpOut& out = group.out[blockIdx.z];
    int col = blockIdx.x * 256 + threadIdx.x;
    i64 row = blockIdx.y;
    if (col >= out.cols) return;
    O* to = (O*)out.out + row * out.ld + col;
    float sum = 0, all = 0;
    for (int s = out.first_step; s < out.first_step + out.steps; ++s) {
        const UpStep& step = group.step[s];
        const float* w = step.w.data + col * step.w.column_stride;
        const T* mid = (const T*)step.mid + row * step.ld_mid;
        for (int r = 0; r < step.ranks; ++r) sum = fmaf(to_float(mid[r]), w[r * step.w.rank_stride], sum);
        if (!step.is_last) continue;
        if (step.drop.probability == 0 || is_kept(step.drop, row, col)) all += sum * step.scale;
        sum = 0;
    }
    *to = from_float<O>(to_float(*to) + all);
}

#define UP_PLAIN_KERNEL(NAME, T, O)                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        lora_up_plain_##NAME(const __grid_constant__ UpGroup group, int n) {                                   \
        lora_up_plain_body<T, O>(group);                                                                       \
    }
#define SAME_UP_PLAIN_KERNEL(T) UP_PLAIN_KERNEL(T, T, T)
FOR_TYPES(SAME_UP_PLAIN_KERNEL)
UP_PLAIN_KERNEL(to_f32_f16, f16, float)

// ---- grad: grad (ranks, cols) += scale * y' drop(x), with x (n, cols) and y (n, ranks). For dA, x is inp
// and y is dmid. For dB, x is dout, y is mid, and `grad` is the transpose of dB.

// A tile: up to 8 ranks of one pair. `grad` and `y` begin at the first of these ranks.
struct GradTile {
    float* grad;
    i64 rank_stride, column_stride;
    const void* y;
    Drop drop;
    int ld_y, ranks;
    float scale;
    int unused;
};

// Number of rows per step, and of columns and ranks (4 tiles of 8) per thread block.
#define GRAD_ROWS 64
#define GRAD_COLUMNS 128
#define GRAD_RANKS 32

struct GradGroup {
    Block block[MAX_BLOCKS];
    GradTile tile[MAX_TILES];
};

template <typename T>
__device__ __forceinline__ void lora_grad_body(const GradGroup& group, float* partial, int n, int chunk, int max_cols) {
    constexpr int LD_X = GRAD_COLUMNS + 8, LD_Y = GRAD_RANKS + 8;
    __shared__ __align__(16) T xs[2][GRAD_ROWS][LD_X];
    __shared__ __align__(16) T ys[2][GRAD_ROWS][LD_Y];
    const Block& block = group.block[blockIdx.z];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int first = blockIdx.x * GRAD_COLUMNS, start = blockIdx.y * chunk, end = min(n, start + chunk);
    if (first >= block.cols) return;
    const T* x = (const T*)block.data;
    bool has_tile = threadIdx.x / GRAD_ROWS < block.count;
    const GradTile& own = group.tile[block.first + (has_tile ? threadIdx.x / GRAD_ROWS : 0)];
    const T* y = (const T*)own.y;
    bool is_vector = has_tile && own.ranks == 8 && own.ld_y % 8 == 0 && aligned16(y);
    auto load = [&](int stage, int row) {
#pragma unroll
        for (int at = threadIdx.x; at < GRAD_ROWS * GRAD_COLUMNS / 8; at += 256) {
            int r = at / (GRAD_COLUMNS / 8), c = at % (GRAD_COLUMNS / 8) * 8;
            bool is_valid = row + r < end && first + c < block.cols;
            copy16_async(&xs[stage][r][c], is_valid ? x + (row + r) * block.ld + first + c : x, is_valid);
        }
        // A thread copies the 8 ranks of one tile for one of the 64 rows.
        T* to = &ys[stage][threadIdx.x % GRAD_ROWS][threadIdx.x / GRAD_ROWS * 8];
        int at = row + threadIdx.x % GRAD_ROWS;
        if (is_vector) {
            copy16_async(to, at < end ? y + (i64)at * own.ld_y : y, at < end);
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i)
                to[i] = has_tile && at < end && i < own.ranks ? y[(i64)at * own.ld_y + i] : from_float<T>(0);
        }
        copy_commit();
    };
    float acc[TOGETHER][4];
#pragma unroll
    for (int i = 0; i < TOGETHER * 4; ++i) acc[i / 4][i % 4] = 0;
    load(0, start);
    int stage = 0;
    for (int row = start; row < end; row += GRAD_ROWS, stage ^= 1) {
        copy_wait<0>();
        __syncthreads();
        if (row + GRAD_ROWS < end) load(stage ^ 1, row + GRAD_ROWS);
#pragma unroll
        for (int k = 0; k < GRAD_ROWS; k += 16) {
            u32 all[4], a[4], b[2][4];
            int r = k + lane / 16 * 8 + lane % 8, c = warp * 16 + lane / 8 % 2 * 8;
            load_matrix_x4_transposed(all, &xs[stage][r][c]);
            load_matrix_x4_transposed(b[0], &ys[stage][k + lane % 16][lane / 16 * 8]);
            if (block.count > 2) load_matrix_x4_transposed(b[1], &ys[stage][k + lane % 16][16 + lane / 16 * 8]);
#pragma unroll
            for (int u = 0; u < TOGETHER; ++u) {
                if (u >= block.count) continue;
                const GradTile& tile = group.tile[block.first + u];
                bool is_new = u == 0 || tile.drop.key != group.tile[block.first + u - 1].drop.key;
                u32 bits = 255;
                if (tile.drop.probability != 0 && is_new) {
                    u64 counter = (u64)(row + k + 2 * t) * tile.drop.cols + first + warp * 16 + g;
                    bits = kept_across(tile.drop.key, counter, tile.drop.cols, threshold_of(tile.drop));
                }
                if (is_new) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) a[i] = keep_halves(all[i], bits >> 2 * i);
                }
                mma16816<T>(acc[u], a, b[u / 2][u % 2 * 2], b[u / 2][u % 2 * 2 + 1]);
            }
        }
    }
#pragma unroll
    for (int u = 0; u < TOGETHER; ++u) {
        if (u >= block.count) continue;
        const GradTile& tile = group.tile[block.first + u];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int col = first + warp * 16 + g + i / 2 * 8, rank = 2 * t + i % 2;
            if (col >= block.cols || rank >= tile.ranks) continue;
            if (gridDim.y == 1)
                tile.grad[rank * tile.rank_stride + col * tile.column_stride] += acc[u][i] * tile.scale;
            else
                partial[((i64)(block.first + u) * gridDim.y + blockIdx.y) * max_cols * 8 + col * 8 + rank] = acc[u][i];
        }
    }
}

// A thread block adds up one chunk of rows, for 128 columns and the tiles of one `Block`.
// Grid: (ceil(max_cols / 128), chunks, `Block`s), where chunks = ceil(n / chunk). `chunk` is a multiple of 64
// rows and depends only on `n`, so every device gives the same order of additions.
//
// If there is one chunk, the kernel adds to `grad`. If there are more, it writes partial
// (tiles, chunks, max_cols, 8 ranks), and `lora_grad_sum` must follow.
#define GRAD_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) lora_grad_##T(                                           \
        const __grid_constant__ GradGroup group, float* partial, int n, int chunk, int max_cols) {             \
        lora_grad_body<T>(group, partial, n, chunk, max_cols);                                                 \
    }
FOR_MATRIX_TYPE(GRAD_KERNEL)

// grad += scale * the sum of `partial` over the chunks, in order. A thread computes one column and rank.
// Grid: (ceil(max_cols * 8 ranks / 256 threads), 4 tiles per `Block`, `Block`s).
extern "C" __global__ void __launch_bounds__(256)
    lora_grad_sum(const __grid_constant__ GradGroup group, const float* partial, int chunks, int max_cols) {
    const Block& block = group.block[blockIdx.z];
    if (blockIdx.y >= block.count) return;
    const GradTile& tile = group.tile[block.first + blockIdx.y];
    int at = blockIdx.x * 256 + threadIdx.x, col = at / 8, rank = at % 8;
    if (col >= block.cols || rank >= tile.ranks) return;
    partial += (i64)(block.first + blockIdx.y) * chunks * max_cols * 8 + at;
    float sum = 0;
    for (int c = 0; c < chunks; ++c) sum += partial[(i64)c * max_cols * 8];
    tile.grad[rank * tile.rank_stride + col * tile.column_stride] += sum * tile.scale;
}

// `grad` for every type and width. A thread computes one column and rank.
// Grid: (ceil(max_cols / 256 threads), 4 tiles per `Block` * 8 ranks, `Block`s).
#define GRAD_PLAIN_KERNEL(T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        lora_grad_plain_##T(const __grid_constant__ GradGroup group, int n) {                                  \
        const Block& block = group.block[blockIdx.z];                                                          \
        int col = blockIdx.x * 256 + threadIdx.x, rank = blockIdx.y % 8;                                       \
        if (col >= block.cols || blockIdx.y / 8 >= block.count) return;                                        \
        const GradTile& tile = group.tile[block.first + blockIdx.y / 8];                                       \
        if (rank >= tile.ranks) return;                                                                        \
        const T* x = (const T*)block.data + col;                                                               \
        const T* y = (const T*)tile.y + rank;                                                                  \
        float sum = 0;                                                                                         \
        for (i64 row = 0; row < n; ++row)                                                                      \
            if (tile.drop.probability == 0 || is_kept(tile.drop, row, col))                                    \
                sum = fmaf(to_float(x[row * block.ld]), to_float(y[row * tile.ld_y]), sum);                    \
        tile.grad[rank * tile.rank_stride + col * tile.column_stride] += sum * tile.scale;                     \
    }
FOR_TYPES(GRAD_PLAIN_KERNEL)
