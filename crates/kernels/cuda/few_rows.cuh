// Operands of `gemv.cu` and `four_bit_rows.cu`. These kernels multiply one input of up to 8 rows by up to 3
// weights per launch.
//
// An output is one row of a weight (outputs, cols), and thus one column of the result. The outputs of each
// weight are divided into tiles, which are numbered across all weights of the launch. For example, if weight
// 0 has 64 tiles, tile 64 is the first tile of weight 1.
#pragma once
#include "prelude.cuh"

#define OUTPUTS 16
#define MAX_ROWS 8
#define WARPS 8
#define MAX_PARTS 3

// One weight with its result `out`, and a matrix `add` that is added to the result unless it is null. `W` is
// the type of the weight's addresses. `first_tile` is the number of the weight's first tile.
template <typename W>
struct Part {
    W w;
    void* out;
    const void* add;
    i64 ld_out, ld_add;
    int outputs, first_tile;
};

// All weights of a launch. `parts` is their number, and `tiles` is the number of their tiles.
template <typename W>
struct Group {
    Part<W> part[MAX_PARTS];
    int parts, tiles;

    // Returns the index of the weight to which `tile` belongs. The search begins at weight `p`.
    __device__ __forceinline__ int part_of(int tile, int p = 0) const {
        while (p + 1 < parts && tile >= part[p + 1].first_tile) ++p;
        return p;
    }
};

// Sums of each warp for a tile of 16 outputs and up to 8 rows. Each warp adds up a part of the columns.
typedef float WarpSums[WARPS][OUTPUTS][MAX_ROWS];

// Stores the `mma16816` accumulator of this warp, whose rows are 16 outputs and whose columns are 8 rows of
// the input.
__device__ __forceinline__ void store_warp_sum(WarpSums& sums, const float (&acc)[4]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[threadIdx.x / WARP][lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = acc[i];
}

// Adds the sums of the warps in order, and writes the `n` rows of the tile whose first output is `first`.
// Does not write outputs past the end of the weight.
template <typename O, typename W>
__device__ __forceinline__ void write_tile(const Part<W>& part, const WarpSums& sums, int first, int n) {
    int o = threadIdx.x % OUTPUTS, r = threadIdx.x / OUTPUTS, to = first + o;
    if (r >= n || to >= part.outputs) return;
    float sum = sums[0][o][r];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) sum += sums[i][o][r];
    if (part.add) sum += to_float(((const O*)part.add)[r * part.ld_add + to]);
    ((O*)part.out)[r * part.ld_out + to] = from_float<O>(sum);
}
