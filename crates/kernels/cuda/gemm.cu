// Matrix products of a projection for machines without cuBLASLt.
//
//     out (M, N) = x (M, K) op(w) + beta * add (M, N)
//     `_nt` (forward):  w is (N, K), and op(w) is its transpose
//     `_nn` (backward): w is (K, N), and op(w) is w
//
// 16-bit types: a thread block of 256 threads computes a tile of `out`: 128 x 128, or 128 x 256 if there are
// many rows. Each of its 8 warps computes 64 x 32 or 64 x 64 with `mma16816`. K is divided into steps of
// TILE_K, and a step into slices of 16:
//
//     copy the first STAGES - 1 steps to shared memory
//     for each step, for each slice:
//         load the fragments of the next slice; if it begins a step, wait for the copy of that step first
//         in the first slice: start the copy of the step that is STAGES - 1 ahead
//         multiply the fragments of this slice
//
// Rows in shared memory are padded by 16 bytes, so that `ldmatrix` has no bank conflicts. Consecutive thread
// blocks compute up to GROUP_M tiles below each other, so that they read the same part of the weight from the
// L2 cache.
//
// If `out` has too few tiles to occupy the device, K is split: each thread block adds up a part of K in f32,
// and the kernel `gemm_sum` adds the parts in order. A row of `out` then depends on the number of rows, up to
// rounding.
#include "gemm.cuh"

namespace {

constexpr int TILE_M = 128, STAGES = 3, THREADS = 256, PAD = 8;
// With steps of 64, the 128 x 256 tile uses 162 KB of shared memory. The architectures in the next line have
// at most 99 KB.
#if __CUDA_ARCH__ == 750 || __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
constexpr int TILE_K = 32;
#else
constexpr int TILE_K = 64;
#endif

// Starts to copy `ROWS` rows and `COLS` columns of a matrix to shared memory. Elements outside the matrix
// become zeros. `WIDE` copies 16 bytes at once. `WIDE` requires 16-byte aligned rows, and a matrix whose
// number of columns is a multiple of 8.
template <typename T, int ROWS, int COLS, bool WIDE>
struct TileCopy {
    static constexpr int STRIDE = COLS + PAD, SIZE = ROWS * STRIDE;
    static constexpr int VECTORS = COLS / 8, ROWS_AT_ONCE = THREADS / VECTORS, COUNT = ROWS / ROWS_AT_ONCE;
    const T* from;
    int row, col, rows, cols, ld;

    __device__ __forceinline__ TileCopy(const T* matrix, int ld, int row0, int col0, int rows, int cols)
        : from(matrix + (i64)(row0 + threadIdx.x / VECTORS) * ld + col0 + threadIdx.x % VECTORS * 8),
          row(row0 + threadIdx.x / VECTORS), col(col0 + threadIdx.x % VECTORS * 8), rows(rows), cols(cols), ld(ld) {}

    __device__ __forceinline__ void copy(T* tile) const {
        T* to = tile + threadIdx.x / VECTORS * STRIDE + threadIdx.x % VECTORS * 8;
#pragma unroll(WIDE ? COUNT : 1)
        for (int i = 0; i < COUNT; ++i) {
            const T* own = from + (i64)i * ROWS_AT_ONCE * ld;
            bool is_row = row + i * ROWS_AT_ONCE < rows;
            if constexpr (WIDE) {
                copy16_async(to + i * ROWS_AT_ONCE * STRIDE, own, is_row && col < cols);
            } else {
#pragma unroll 1
                for (int e = 0; e < 8; ++e)
                    to[i * ROWS_AT_ONCE * STRIDE + e] = is_row && col + e < cols ? own[e] : T{0};
            }
        }
    }

    __device__ __forceinline__ void advance(int rows_on, int cols_on) {
        from += (i64)rows_on * ld + cols_on;
        row += rows_on;
        col += cols_on;
    }
};

// `O` is the type of the result: T, or f32 for logits and for parts of K. `WIDE` kernels with f32 results are
// those that split K: each of their thread blocks adds up one part of K.
template <typename T, typename O, int TILE_N, bool NT, bool WIDE>
__device__ __forceinline__ void gemm_half(O* __restrict__ out, const T* __restrict__ x, const T* __restrict__ w,
    const O* add, int m, int n, int k, int ld_out, int ld_x, int ld_w, int ld_add, float beta) {
    using X = TileCopy<T, TILE_M, TILE_K, WIDE>;
    using W = TileCopy<T, NT ? TILE_N : TILE_K, NT ? TILE_K : TILE_N, WIDE>;
    extern __shared__ __align__(16) u8 shared[];
    T* xs = reinterpret_cast<T*>(shared);
    T* ws = xs + STAGES * X::SIZE;
    Origin origin(m, n, TILE_M, TILE_N);
    int steps = ceil_div(k, TILE_K), first = 0;
    if constexpr (WIDE && sizeof(O) == 4) {
        int part = ceil_div(steps, (int)gridDim.y);
        first = min(blockIdx.y * part, steps);
        steps = min(part, steps - first);
        out += (i64)blockIdx.y * m * ld_out;
    }
    X x_copy(x, ld_x, origin.row, first * TILE_K, m, k);
    W w_copy = NT ? W(w, ld_w, origin.col, first * TILE_K, n, k) : W(w, ld_w, first * TILE_K, origin.col, k, n);
    // Groups of 16 columns per warp.
    constexpr int PAIRS = TILE_N / 4 / 16, PARTS = TILE_K / 16;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int warp_m = warp % 2 * 64, warp_n = warp / 2 * (TILE_N / 4);
    auto load = [&](int step, int stage) {
        if (step < steps) {
            x_copy.copy(xs + stage * X::SIZE);
            w_copy.copy(ws + stage * W::SIZE);
            x_copy.advance(0, TILE_K);
            w_copy.advance(NT ? 0 : TILE_K, NT ? TILE_K : 0);
        }
        copy_commit();
    };
    float sums[4][2 * PAIRS][4] = {};
    u32 a[2][4][4], b[2][PAIRS][4];
    const T* x_from = xs + (warp_m + lane % 16) * X::STRIDE + lane / 16 * 8;
    const T* w_from = NT ? ws + (warp_n + lane % 8 + lane / 16 * 8) * W::STRIDE + lane / 8 % 2 * 8
                         : ws + (lane % 8 + lane / 8 % 2 * 8) * W::STRIDE + warp_n + lane / 16 * 8;
    // Each load of `b` returns the right operands of two `mma16816`: 16 of K by 16 columns.
    auto load_fragments = [&](int buffer, int stage, int part) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            load_matrix_x4(a[buffer][i], x_from + stage * X::SIZE + i * 16 * X::STRIDE + part * 16);
#pragma unroll
        for (int j = 0; j < PAIRS; ++j) {
            if (NT) load_matrix_x4(b[buffer][j], w_from + stage * W::SIZE + j * 16 * W::STRIDE + part * 16);
            else load_matrix_x4_transposed(b[buffer][j], w_from + stage * W::SIZE + part * 16 * W::STRIDE + j * 16);
        }
    };
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) load(step, step);
    copy_wait<STAGES - 2>();
    __syncthreads();
    load_fragments(0, 0, 0);
    int stage = 0, to = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            if (part == PARTS - 1) {
                copy_wait<STAGES - 2>();
                __syncthreads();
                stage = stage + 1 == STAGES ? 0 : stage + 1;
            }
            load_fragments((part + 1) % 2, stage, (part + 1) % PARTS);
            if (part == 0) {
                load(step + STAGES - 1, to);
                to = to + 1 == STAGES ? 0 : to + 1;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 2 * PAIRS; ++j) {
                    const u32(&right)[4] = b[part % 2][j / 2];
                    mma16816<T>(sums[i][j], a[part % 2][i], right[j % 2 * 2], right[j % 2 * 2 + 1]);
                }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 2 * PAIRS; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = origin.row + warp_m + i * 16 + half * 8 + lane / 4;
                int col = origin.col + warp_n + j * 8 + lane % 4 * 2;
                if (row >= m || col >= n) continue;
                float* pair = sums[i][j] + half * 2;
                write_pair<T, O, WIDE>(out + (i64)row * ld_out + col, add + (i64)row * ld_add + col, pair[0], pair[1], beta, n - col);
            }
}

// out = the sum of `count` parts, in their order, + beta * add. `len` is a multiple of 4.
template <typename T>
__device__ __forceinline__ void sum_parts(
    T* out, const float* parts, const T* add, int count, i64 len, float beta) {
    i64 at = ((i64)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (at >= len) return;
    float4 sum = *reinterpret_cast<const float4*>(parts + at);
    for (int i = 1; i < count; ++i) {
        float4 part = *reinterpret_cast<const float4*>(parts + i * len + at);
        sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
    }
    if (beta != 0) {
        uint2 added = *reinterpret_cast<const uint2*>(add + at);
        sum.x += beta * to_float(T{(u16)added.x});
        sum.y += beta * to_float(T{(u16)(added.x >> 16)});
        sum.z += beta * to_float(T{(u16)added.y});
        sum.w += beta * to_float(T{(u16)(added.y >> 16)});
    }
    *reinterpret_cast<uint2*>(out + at) = make_uint2(pack2<T>(sum.x, sum.y), pack2<T>(sum.z, sum.w));
}

// f32: a block of 256 threads computes 64 x 64 of `out`, a thread 4 x 4, in steps of 16 along K.
template <bool NT>
__device__ void gemm_exact(float* __restrict__ out, const float* __restrict__ x, const float* __restrict__ w,
                           const float* add, int m, int n, int k, int ld_out, int ld_x, int ld_w, int ld_add,
                           float beta) {
    __shared__ float xs[16][65], ws[16][65];
    int row0 = blockIdx.y * 64, col0 = blockIdx.x * 64;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sums[4][4] = {};
    for (int k0 = 0; k0 < k; k0 += 16) {
        for (int i = threadIdx.x; i < 64 * 16; i += 256) {
            int r = i / 16, c = i % 16;
            xs[c][r] = row0 + r < m && k0 + c < k ? x[(i64)(row0 + r) * ld_x + k0 + c] : 0.0f;
            if (NT) {
                ws[c][r] = col0 + r < n && k0 + c < k ? w[(i64)(col0 + r) * ld_w + k0 + c] : 0.0f;
            } else {
                int kr = i / 64, nc = i % 64;
                ws[kr][nc] = k0 + kr < k && col0 + nc < n ? w[(i64)(k0 + kr) * ld_w + col0 + nc] : 0.0f;
            }
        }
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < 16; ++kk) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] += xs[kk][ty + i * 16] * ws[kk][tx + j * 16];
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int row = row0 + ty + i * 16, col = col0 + tx + j * 16;
            if (row >= m || col >= n) continue;
            float value = sums[i][j];
            if (beta != 0) value += beta * add[(i64)row * ld_add + col];
            out[(i64)row * ld_out + col] = value;
        }
    }
}

}  // namespace

#define PARAMETERS(T, O) \
    O *out, const T *x, const T *w, const O *add, int m, int n, int k, int ld_out, int ld_x, int ld_w, int ld_add, \
        float beta
#define ARGUMENTS out, x, w, add, m, n, k, ld_out, ld_x, ld_w, ld_add, beta
#define KERNEL extern "C" __global__ void __launch_bounds__(256)

// Grid: as many thread blocks in x as `out` has tiles. Shared bytes: STAGES steps of both operands, padded.
//
// `_any` accepts every width and alignment. The other kernels require rows of whole 16-byte vectors. `_large`
// has tiles of 256 columns. `_exact` writes f32. `_split` writes a part of K for each y of the grid, (parts,
// m, n) in f32, and `gemm_sum` adds the parts.
#define GEMM(T)                                                                                      \
    KERNEL gemm_nt_##T(PARAMETERS(T, T)) { gemm_half<T, T, 128, true, true>(ARGUMENTS); }            \
    KERNEL gemm_nn_##T(PARAMETERS(T, T)) { gemm_half<T, T, 128, false, true>(ARGUMENTS); }           \
    KERNEL gemm_nt_large_##T(PARAMETERS(T, T)) { gemm_half<T, T, 256, true, true>(ARGUMENTS); }      \
    KERNEL gemm_nn_large_##T(PARAMETERS(T, T)) { gemm_half<T, T, 256, false, true>(ARGUMENTS); }     \
    KERNEL gemm_nt_split_##T(PARAMETERS(T, float)) { gemm_half<T, float, 128, true, true>(ARGUMENTS); }   \
    KERNEL gemm_nn_split_##T(PARAMETERS(T, float)) { gemm_half<T, float, 128, false, true>(ARGUMENTS); } \
    KERNEL gemm_sum_##T(T* out, const float* parts, const T* add, int count, i64 len, float beta) {  \
        sum_parts(out, parts, add, count, len, beta);                                                \
    }                                                                                                \
    KERNEL gemm_nt_any_##T(PARAMETERS(T, T)) { gemm_half<T, T, 128, true, false>(ARGUMENTS); }       \
    KERNEL gemm_nn_any_##T(PARAMETERS(T, T)) { gemm_half<T, T, 128, false, false>(ARGUMENTS); }      \
    KERNEL gemm_nt_exact_##T(PARAMETERS(T, float)) { gemm_half<T, float, 128, true, false>(ARGUMENTS); }
FOR_HALF_TYPES(GEMM)

// f32. Grid: (ceil(n / 64 columns), ceil(m / 64 rows)).
KERNEL gemm_nt_f32(PARAMETERS(float, float)) { gemm_exact<true>(ARGUMENTS); }
KERNEL gemm_nn_f32(PARAMETERS(float, float)) { gemm_exact<false>(ARGUMENTS); }
