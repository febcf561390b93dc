// Products of up to 8 rows with dense weights, which are read once: out = inp W' (+ add).
//
// One launch multiplies one input by up to 3 weights.
#include "prelude.cuh"

#define OUTPUTS 16
#define MAX_ROWS 8
#define WARPS 8
#define MAX_PARTS 3
// Steps of 32 columns whose weights are loaded ahead.
#define AHEAD 4

// A weight with its output and optional addend.
struct Part {
    const void* weight;
    void* out;
    const void* add;
    i64 ld_out, ld_add;
    int outputs, first_tile;
};

struct Group {
    Part part[MAX_PARTS];
    int parts, tiles;
};

__device__ __forceinline__ const Part& part_of(const Group& group) {
    int p = 0;
    while (p + 1 < group.parts && blockIdx.x >= group.part[p + 1].first_tile) ++p;
    return group.part[p];
}

// A block computes 16 outputs. Each warp processes a contiguous part of the columns, and the warps' sums are
// added in order. Weights are the left operand. Both operands are loaded as vectors along the columns, so
// both have the same permutation of columns.
template <typename T, typename O>
__device__ __forceinline__ void gemv_body(const Group& group, const T* __restrict__ inp, int n, int cols, i64 ld_inp) {
    __shared__ float sums[WARPS][OUTPUTS][MAX_ROWS];
    const Part& part = part_of(group);
    const T* weight = (const T*)part.weight;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4, outputs = part.outputs;
    int share = ceil_div(ceil_div(cols, 32), WARPS) * 32, last = min(cols, (warp + 1) * share);
    int first_output = (blockIdx.x - part.first_tile) * OUTPUTS;
    bool has_row = g < n;
    const T* x = inp + (has_row ? g * ld_inp : 0);
    // Outputs past the end read the last output and are not written.
    const T* low = weight + (i64)min(first_output + g, outputs - 1) * cols;
    const T* high = weight + (i64)min(first_output + g + 8, outputs - 1) * cols;
    float acc[4] = {0, 0, 0, 0};
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
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][g + i / 2 * 8][2 * t + i % 2] = acc[i];
    __syncthreads();
    int o = threadIdx.x % OUTPUTS, r = threadIdx.x / OUTPUTS, to = first_output + o;
    if (r >= n || to >= outputs) return;
    float sum = sums[0][o][r];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) sum += sums[i][o][r];
    if (part.add) sum += to_float(((const O*)part.add)[r * part.ld_add + to]);
    ((O*)part.out)[r * part.ld_out + to] = from_float<O>(sum);
}

// Needs `cols` a multiple of 8, 16-byte aligned rows, n <= 8. Grid: tiles of 16 outputs of each weight.
#define GEMV_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        gemv_##T(const __grid_constant__ Group group, const T* inp, int n, int cols, i64 ld_inp) {             \
        gemv_body<T, T>(group, inp, n, cols, ld_inp);                                                          \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        gemv_to_f32_##T(const __grid_constant__ Group group, const T* inp, int n, int cols, i64 ld_inp) {      \
        gemv_body<T, float>(group, inp, n, cols, ld_inp);                                                      \
    }
FOR_HALF_TYPES(GEMV_KERNEL)

// f32: a warp computes one output, for every width. Grid: tiles of 8 outputs of each weight.
extern "C" __global__ void __launch_bounds__(256)
    gemv_f32(const __grid_constant__ Group group, const float* __restrict__ inp, int n, int cols, i64 ld_inp) {
    const Part& part = part_of(group);
    int output = (blockIdx.x - part.first_tile) * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (output >= part.outputs) return;
    const float* w = (const float*)part.weight + (i64)output * cols;
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
