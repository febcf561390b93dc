// DoRA: the norms of the rows of W + scaling * B A, and the gradient of the magnitudes.
#include "prelude.cuh"

namespace {

// Number of rows of the weight that a thread block reads, and of columns of B that it copies to shared memory
// at a time.
constexpr int ROWS = 8, RANKS = 256;

// norms[o] = |W[o] + scaling * B[o] A|. W is (n, cols), A is (rank, cols), B is (n, rank). A thread computes
// the elements of every 256th column. Grid: ceil(n / ROWS).
template <typename T>
__device__ __forceinline__ void row_norms_body(
    float* norms, const T* w, const float* a, const float* b, int n, int cols, int rank, float scaling) {
    __shared__ __align__(16) float factors[RANKS][ROWS];
    __shared__ float parts[32];
    int first = blockIdx.x * ROWS;
    float sums[ROWS] = {};
    for (int start = 0; start < cols; start += 256) {
        int col = start + threadIdx.x;
        float delta[ROWS] = {};
        for (int r0 = 0; r0 < rank; r0 += RANKS) {
            int count = min(RANKS, rank - r0);
            // If the rank is at most RANKS, B is copied once and stays in shared memory.
            if (start == 0 || rank > RANKS) {
                __syncthreads();
                for (int i = threadIdx.x; i < ROWS * count; i += 256) {
                    int row = first + i / count, r = i % count;
                    factors[r][i / count] = row < n ? scaling * b[(i64)row * rank + r0 + r] : 0.0f;
                }
                __syncthreads();
            }
            if (col >= cols) continue;
            for (int r = 0; r < count; ++r) {
                float x = a[(i64)(r0 + r) * cols + col];
#pragma unroll
                for (int i = 0; i < ROWS; i += 4) {
                    float4 factor = *reinterpret_cast<const float4*>(&factors[r][i]);
                    delta[i] += factor.x * x;
                    delta[i + 1] += factor.y * x;
                    delta[i + 2] += factor.z * x;
                    delta[i + 3] += factor.w * x;
                }
            }
        }
        if (col >= cols) continue;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            float value = first + i < n ? to_float(w[(i64)(first + i) * cols + col]) + delta[i] : 0.0f;
            sums[i] += value * value;
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        float sum = block_sum(sums[i], parts);
        if (threadIdx.x == 0 && first + i < n) norms[first + i] = sqrtf(sum);
    }
}

// dmagnitudes[o] += scale[o] * the sum of dout[i, o] * out[i, o] over n rows. A warp reads 32 columns of
// every 32nd row. Grid: ceil(cols / 32).
template <typename T>
__device__ __forceinline__ void column_products_body(
    float* dmagnitudes, const T* dout, const T* out, const float* scale, int n, int cols, i64 ld_dout, i64 ld_out) {
    __shared__ float parts[32][33];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, col = blockIdx.x * WARP + lane;
    float sum = 0;
    if (col < cols)
        for (int row = warp; row < n; row += 32)
            sum += to_float(dout[row * ld_dout + col]) * to_float(out[row * ld_out + col]);
    parts[warp][lane] = sum;
    __syncthreads();
    // Each warp adds the sums of one column.
    sum = warp_sum(parts[lane][warp]);
    col = blockIdx.x * WARP + warp;
    if (lane == 0 && col < cols) dmagnitudes[col] += scale[col] * sum;
}

}  // namespace

#define KERNELS(T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) row_norms_##T(float* norms, const T* w, const float* a,  \
        const float* b, int n, int cols, int rank, float scaling) {                                            \
        row_norms_body(norms, w, a, b, n, cols, rank, scaling);                                                \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(1024) column_products_##T(float* dmagnitudes, const T* dout,  \
        const T* out, const float* scale, int n, int cols, i64 ld_dout, i64 ld_out) {                          \
        column_products_body(dmagnitudes, dout, out, scale, n, cols, ld_dout, ld_out);                         \
    }
FOR_TYPES(KERNELS)
