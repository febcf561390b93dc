// Matrix products of a projection for machines without cuBLASLt.
//
//     out (M, N) = alpha * x (M, K) w          + beta * add (M, N)
//     w is (N, K), read along K (`_nt`: forward), or (K, N), read along N (`_nn`: backward)
//
// 16-bit types: a block of 256 threads computes 128 x 128 of `out`, or 128 x 256 for many rows. Each of eight
// warps computes 64 x 32 or 64 x 64 with `mma.sync` m16n8k16.
//
// Both operands pass through shared memory in steps of 32 along K. `cp.async` keeps three steps in flight.
// Rows of shared tiles are padded by 16 bytes, so that `ldmatrix` has no bank conflicts.
//
// K is never split: a row of `out` does not depend on the number of rows.
#include "prelude.cuh"

namespace {

constexpr int TILE_M = 128, TILE_K = 32, STAGES = 3, THREADS = 256;
constexpr int PAD = 8;

// A tile in shared memory: `ROWS` rows of `COLS` values, each followed by padding.
template <int ROWS, int COLS>
struct Tile {
    static constexpr int STRIDE = COLS + PAD;
    static constexpr int SIZE = ROWS * STRIDE;
};

// Starts the copy of rows `row0 ..` and columns `col0 ..` of `from (rows, cols)`. Elements outside become
// zeros. `WIDE` requires 16-byte aligned rows and `cols` a multiple of 8.
template <typename T, int ROWS, int COLS, bool WIDE>
__device__ __forceinline__ void load_tile(T* to, const T* from, int ld, int row0, int col0, int rows, int cols) {
    if constexpr (!WIDE) {
#pragma unroll 1
        for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
            int r = i / COLS, c = i % COLS;
            bool inside = row0 + r < rows && col0 + c < cols;
            to[r * Tile<ROWS, COLS>::STRIDE + c] = inside ? from[(i64)(row0 + r) * ld + col0 + c] : T{0};
        }
    } else {
#pragma unroll
        for (int i = 0; i < ROWS * COLS / 8 / THREADS; ++i) {
            int vector = i * THREADS + threadIdx.x;
            int r = vector / (COLS / 8), c = vector % (COLS / 8) * 8;
            bool inside = row0 + r < rows && col0 + c < cols;
            const T* address = inside ? from + (i64)(row0 + r) * ld + col0 + c : from;
            copy16_async(to + r * Tile<ROWS, COLS>::STRIDE + c, address, inside);
        }
    }
}

// `O` is the type of the result: T, or f32 for logits.
template <typename T, typename O, int TILE_N, bool NT, bool WIDE>
__device__ void gemm_half(O* __restrict__ out, const T* __restrict__ x, const T* __restrict__ w, const O* add, int m,
                          int n, int k, int ld_out, int ld_x, int ld_w, int ld_add, float beta) {
    using X = Tile<TILE_M, TILE_K>;
    using W = Tile<NT ? TILE_N : TILE_K, NT ? TILE_K : TILE_N>;
    extern __shared__ __align__(16) u8 shared[];
    T* xs = reinterpret_cast<T*>(shared);
    T* ws = xs + STAGES * X::SIZE;
    int row0 = blockIdx.y * TILE_M, col0 = blockIdx.x * TILE_N;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Groups of 16 columns per warp.
    constexpr int PAIRS = TILE_N / 4 / 16;
    int warp_m = warp % 2 * 64, warp_n = warp / 2 * (TILE_N / 4);
    float sums[4][2 * PAIRS][4] = {};

    auto load = [&](int step) {
        if (step * TILE_K < k) {
            T* xt = xs + step % STAGES * X::SIZE;
            T* wt = ws + step % STAGES * W::SIZE;
            load_tile<T, TILE_M, TILE_K, WIDE>(xt, x, ld_x, row0, step * TILE_K, m, k);
            if (NT) {
                load_tile<T, TILE_N, TILE_K, WIDE>(wt, w, ld_w, col0, step * TILE_K, n, k);
            } else {
                load_tile<T, TILE_K, TILE_N, WIDE>(wt, w, ld_w, step * TILE_K, col0, k, n);
            }
        }
        copy_commit();
    };

    int steps = ceil_div(k, TILE_K);
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) load(step);
    for (int step = 0; step < steps; ++step) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load(step + STAGES - 1);
        const T* xt = xs + step % STAGES * X::SIZE;
        const T* wt = ws + step % STAGES * W::SIZE;
#pragma unroll
        for (int kk = 0; kk < TILE_K; kk += 16) {
            u32 a[4][4], b[PAIRS][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                load_matrix_x4(a[i], xt + (warp_m + i * 16 + lane % 16) * X::STRIDE + kk + lane / 16 * 8);
            }
            // Each load returns both halves along K for two groups of eight columns.
#pragma unroll
            for (int j = 0; j < PAIRS; ++j) {
                int column = warp_n + j * 16;
                if (NT) {
                    int row = column + lane % 8 + lane / 16 * 8, col = kk + lane / 8 % 2 * 8;
                    load_matrix_x4(b[j], wt + row * W::STRIDE + col);
                } else {
                    int row = kk + lane % 8 + lane / 8 % 2 * 8, col = column + lane / 16 * 8;
                    load_matrix_x4_transposed(b[j], wt + row * W::STRIDE + col);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 2 * PAIRS; ++j) mma16816<T>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 2 * PAIRS; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int row = row0 + warp_m + i * 16 + half * 8 + lane / 4, col = col0 + warp_n + j * 8 + lane % 4 * 2;
                if (row >= m) continue;
                float* value = sums[i][j] + half * 2;
                if constexpr (WIDE) {
                    if (col >= n) continue;
                    if (beta != 0) {
                        u32 added = *reinterpret_cast<const u32*>(add + (i64)row * ld_add + col);
                        value[0] += beta * to_float(T{(u16)added});
                        value[1] += beta * to_float(T{(u16)(added >> 16)});
                    }
                    *reinterpret_cast<u32*>(out + (i64)row * ld_out + col) = pack2<T>(value[0], value[1]);
                } else {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        if (col + e >= n) continue;
                        if (beta != 0) value[e] += beta * to_float(add[(i64)row * ld_add + col + e]);
                        out[(i64)row * ld_out + col + e] = from_float<O>(value[e]);
                    }
                }
            }
        }
    }
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

// `_any` accepts every width and alignment; the others need rows of whole 16-byte vectors. `_large` has tiles
// of 256 columns. `_exact` writes f32.
#define GEMM(T)                                                                                      \
    KERNEL gemm_nt_##T(PARAMETERS(T, T)) { gemm_half<T, T, 128, true, true>(ARGUMENTS); }            \
    KERNEL gemm_nn_##T(PARAMETERS(T, T)) { gemm_half<T, T, 128, false, true>(ARGUMENTS); }           \
    KERNEL gemm_nt_large_##T(PARAMETERS(T, T)) { gemm_half<T, T, 256, true, true>(ARGUMENTS); }      \
    KERNEL gemm_nn_large_##T(PARAMETERS(T, T)) { gemm_half<T, T, 256, false, true>(ARGUMENTS); }     \
    KERNEL gemm_nt_any_##T(PARAMETERS(T, T)) { gemm_half<T, T, 128, true, false>(ARGUMENTS); }       \
    KERNEL gemm_nn_any_##T(PARAMETERS(T, T)) { gemm_half<T, T, 128, false, false>(ARGUMENTS); }      \
    KERNEL gemm_nt_exact_##T(PARAMETERS(T, float)) { gemm_half<T, float, 128, true, false>(ARGUMENTS); }
FOR_HALF_TYPES(GEMM)

KERNEL gemm_nt_f32(PARAMETERS(float, float)) { gemm_exact<true>(ARGUMENTS); }
KERNEL gemm_nn_f32(PARAMETERS(float, float)) { gemm_exact<false>(ARGUMENTS); }
