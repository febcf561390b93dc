// Operands of the products of up to 8 rows. One launch multiplies one input by up to 3 weights.
#pragma once
#include "prelude.cuh"

#define OUTPUTS 16
#define MAX_ROWS 8
#define WARPS 8
#define MAX_PARTS 3

// A weight with its output and optional addend. `W` holds the addresses of the weight.
template <typename W>
struct Part {
    W w;
    void* out;
    const void* add;
    i64 ld_out, ld_add;
    int outputs, first_tile;
};

template <typename W>
struct Group {
    Part<W> part[MAX_PARTS];
    int parts, tiles;

    // Returns the index of the weight of a tile. The search begins at `p`.
    __device__ __forceinline__ int part_of(int tile, int p = 0) const {
        while (p + 1 < parts && tile >= part[p + 1].first_tile) ++p;
        return p;
    }
};

// The sum of each warp for the 16 outputs of a tile.
typedef float WarpSums[WARPS][OUTPUTS][MAX_ROWS];

// Stores an accumulator of 16 outputs by 8 rows as the sum of this warp.
__device__ __forceinline__ void store_warp_sum(WarpSums& sums, const float (&acc)[4]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[threadIdx.x / WARP][lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = acc[i];
}

// Adds the sums of the warps in order, and writes the tile whose first output is `first`.
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
