// Parts of matrix products that `gemm.cu` and `gemm_wgmma.cu` share.
#pragma once
#include "prelude.cuh"

// Number of tiles below each other that consecutive thread blocks compute.
constexpr int GROUP_M = 8;

// First row and first column of the tile that this thread block computes. Example: `out` has 16 rows and 2
// columns of tiles. Thread blocks 0 to 7 compute the upper 8 tiles of column 0, and thread blocks 8 to 15 the
// upper 8 tiles of column 1. Thread blocks 16 to 31 compute the lower 8 rows of tiles.
struct Origin {
    int row, col;

    __device__ __forceinline__ Origin(int m, int n, int tile_m, int tile_n) {
        int tiles_m = ceil_div(m, tile_m), group_tiles = GROUP_M * ceil_div(n, tile_n);
        int group = blockIdx.x / group_tiles, rest = blockIdx.x % group_tiles;
        int rows = min(GROUP_M, tiles_m - group * GROUP_M);
        row = (group * GROUP_M + rest % rows) * tile_m;
        col = rest / rows * tile_n;
    }
};

// Writes two neighbouring columns of a row plus `beta * add`, or only the first one if `valid` is 1. If K is
// split, `beta * add` is left out here, because `gemm_sum` adds it.
template <typename T, typename O, bool WIDE>
__device__ __forceinline__ void write_pair(O* out, const O* add, float low, float high, float beta, int valid) {
    if constexpr (WIDE && sizeof(O) == 4) {
        *reinterpret_cast<float2*>(out) = make_float2(low, high);
    } else if constexpr (WIDE) {
        if (beta != 0) {
            u32 added = *reinterpret_cast<const u32*>(add);
            low += beta * to_float(T{(u16)added});
            high += beta * to_float(T{(u16)(added >> 16)});
        }
        *reinterpret_cast<u32*>(out) = pack2<T>(low, high);
    } else {
        float value[2] = {low, high};
        for (int e = 0; e < min(valid, 2); ++e)
            out[e] = from_float<O>(beta != 0 ? value[e] + beta * to_float(add[e]) : value[e]);
    }
}
