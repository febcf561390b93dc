// out (n, outputs) = inp (n, cols) W' + add, for up to 8 rows of `inp` and dense weights W (outputs, cols).
// W' is the transpose of W, and `add` is optional. Each weight is read once.
//
// One launch multiplies one input by up to 3 weights.
#include "few_rows.cuh"

// Number of steps of 32 columns that a warp loads before it multiplies the first step.
#define AHEAD 4

typedef Group<const void*> Weights;

// A thread block computes a tile of 16 outputs for all rows. Each of its 8 warps adds up a contiguous range
// of columns, and the warps' sums are added in order.
//
// The 16 outputs are the rows of the left operand, and the rows of `inp` are the columns of the right
// operand. Lane l loads columns 8 (l % 4) to 8 (l % 4) + 7 of a step as one vector. Both operands thus have
// the same permutation of columns, which does not change the product.
template <typename T, typename O>
__device__ __forceinline__ void gemv_body(const Weights& group, const T* inp, int n, int cols, i64 ld_inp) {
    __shared__ WarpSums sums;
    const auto& part = group.part[group.part_of(blockIdx.x)];
    const T* weight = (const T*)part.w;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4, outputs = part.outputs;
    int share = ceil_div(ceil_div(cols, 32), WARPS) * 32, last = min(cols, (warp + 1) * share);
    int first_output = (blockIdx.x - part.first_tile) * OUTPUTS;
    bool has_row = g < n;
    const T* x = inp + (has_row ? g * ld_inp : 0);
    // For outputs past the end of the weight, lanes read the weights of the last output. `write_tile` does
    // not write these outputs.
    const T* low = weight + (i64)min(first_output + g, outputs - 1) * cols;
    const T* high = weight + (i64)min(first_output + g + 8, outputs - 1) * cols;
    float acc[4] = {0, 0, 0, 0};
    overlap_kernels();
    for (int k = warp * share + 8 * t; k - 8 * t < last; k += 32 * AHEAD) {
        uint4 a[AHEAD][2], b[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            int col = k + 32 * i;
            a[i][0] = a[i][1] = b[i] = make_uint4(0, 0, 0, 0);
            if (col >= last) continue;
            a[i][0] = *reinterpret_cast<const uint4*>(low + col);
            a[i][1] = *reinterpret_cast<const uint4*>(high + col);
            if (has_row) b[i] = *reinterpret_cast<const uint4*>(x + col);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            u32 first[4] = {a[i][0].x, a[i][1].x, a[i][0].y, a[i][1].y};
            u32 second[4] = {a[i][0].z, a[i][1].z, a[i][0].w, a[i][1].w};
            mma16816<T>(acc, first, b[i].x, b[i].y);
            mma16816<T>(acc, second, b[i].z, b[i].w);
        }
    }
    store_warp_sum(sums, acc);
    __syncthreads();
    write_tile<O>(part, sums, first_output, n);
}

// Requirements: `cols` a multiple of 8, 16-byte aligned rows of `inp` and of the weights, and n <= 8.
// Grid: the number of tiles of all weights.
#define GEMV_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        gemv_##T(const __grid_constant__ Weights group, const T* inp, int n, int cols, i64 ld_inp) {             \
        gemv_body<T, T>(group, inp, n, cols, ld_inp);                                                          \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        gemv_to_f32_##T(const __grid_constant__ Weights group, const T* inp, int n, int cols, i64 ld_inp) {      \
        gemv_body<T, float>(group, inp, n, cols, ld_inp);                                                      \
    }
FOR_HALF_TYPES(GEMV_KERNEL)

// f32, for every number of columns. A warp computes one output for all rows, so a tile has 8 outputs.
// Grid: the number of tiles of all weights.
extern "C" __global__ void __launch_bounds__(256)
    gemv_f32(const __grid_constant__ Weights group, const float* inp, int n, int cols, i64 ld_inp) {
    overlap_kernels();
    const auto& part = group.part[group.part_of(blockIdx.x)];
    int output = (blockIdx.x - part.first_tile) * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (output >= part.outputs) return;
    const float* w = (const float*)part.w + (i64)output * cols;
    float sum[MAX_ROWS];
#pragma unroll
    for (int r = 0; r < MAX_ROWS; ++r) sum[r] = 0;
#pragma unroll 4
    for (int col = lane; col < cols; col += WARP) {
        float value = w[col];
#pragma unroll
        for (int r = 0; r < MAX_ROWS; ++r)
            if (r < n) sum[r] = fmaf(value, inp[r * ld_inp + col], sum[r]);
    }
#pragma unroll
    for (int r = 0; r < MAX_ROWS; ++r) {
        sum[r] = warp_sum(sum[r]);
        if (lane != 0 || r >= n) continue;
        float added = part.add ? ((const float*)part.add)[r * part.ld_add + output] : 0;
        ((float*)part.out)[r * part.ld_out + output] = sum[r] + added;
    }
}
