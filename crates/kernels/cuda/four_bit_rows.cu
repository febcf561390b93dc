// Products of up to 8 rows with 4-bit weights, which are read once: out = inp W' (+ add).
//
// One launch multiplies one input by up to 3 weights. A tile is 16 outputs of one weight. A warp multiplies
// 16 outputs of one block of 64 columns by 8 rows at a time. Weights are the left operand. A table maps each
// byte of two codes to a pair of values; each lane has its own copy, so lanes never share a bank. The scale
// multiplies the sum of a block, so an accumulator holds the sum of one block only.
//
// A thread block computes many tiles, so it fills its table once per weight. The codes of the next step are
// loaded before the current step is computed, across the end of a tile too.
#include "prelude.cuh"

// As in `four_bit.cu`.
struct FourBit {
    const u8* codes;
    const float* table;
    const u8* scale_codes;
    const float* scale_table;
    const float* absmax;
    float offset;
    int block_shift;
    int scale_shift;
    int unused;
};

#define COLUMNS 64
#define OUTPUTS 16
#define MAX_ROWS 8
#define WARPS 8
#define MAX_PARTS 3
// Blocks of columns per step.
#define AHEAD 4

// A weight with its output and optional addend.
struct Part {
    FourBit w;
    void* out;
    const void* add;
    i64 ld_out, ld_add;
    int outputs, first_tile;
};

struct Group {
    Part part[MAX_PARTS];
    int parts, tiles;
};

// The codes and scales of one step of a warp. Lane t holds the scales of block t of the step.
struct Step {
    uint2 codes[AHEAD][2];
    u32 scale_code[2];
    float absmax[2];
};

// Outputs past the end read the last output and are not written.
__device__ __forceinline__ void load_step(Step& step, const Group& group, int tile, int block, int last, int blocks) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, p = 0;
    while (p + 1 < group.parts && tile >= group.part[p + 1].first_tile) ++p;
    const Part& part = group.part[p];
    const FourBit& w = part.w;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        i64 row = min((tile - part.first_tile) * OUTPUTS + g + 8 * h, part.outputs - 1);
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            step.codes[a][h] = make_uint2(0, 0);
            if (block + a < last)
                step.codes[a][h] =
                    *reinterpret_cast<const uint2*>(w.codes + (row * blocks + block + a) * (COLUMNS / 2) + 8 * t);
        }
        i64 at = row * blocks + min(block + t, last - 1);
        step.scale_code[h] = w.scale_codes ? w.scale_codes[at] : 0;
        step.absmax[h] = w.absmax[w.scale_codes ? at >> w.scale_shift : at];
    }
}

// Each warp of a block processes a contiguous part of the column blocks. The warps' sums are added in order.
template <typename T, typename O>
__device__ __forceinline__ void four_bit_rows_body(
    const Group& group, const T* __restrict__ inp, int n, int cols, i64 ld_inp) {
    __shared__ u32 pairs[256 * WARP];
    __shared__ float scales[256];
    __shared__ float sums[2][WARPS][OUTPUTS][MAX_ROWS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int blocks = cols / COLUMNS, share = ceil_div(blocks, WARPS);
    int first = warp * share, last = min(blocks, first + share), steps = ceil_div(share, AHEAD);
    bool has_row = g < n;
    const T* x = inp + (has_row ? g * ld_inp : 0) + 16 * t;
    Step now, next;
    if (blockIdx.x < group.tiles) load_step(now, group, blockIdx.x, first, last, blocks);
    for (int tile = blockIdx.x, p = -1, stage = 0; tile < group.tiles; tile += gridDim.x, stage ^= 1) {
        if (p < 0 || p + 1 < group.parts && tile >= group.part[p + 1].first_tile) {
            do ++p;
            while (p + 1 < group.parts && tile >= group.part[p + 1].first_tile);
            const FourBit& w = group.part[p].w;
            __syncthreads();
            for (int at = threadIdx.x; at < 256 * WARP; at += 256) {
                int byte = at / WARP;
                pairs[at] = pack2<T>(w.table[byte >> 4], w.table[byte & 15]);
            }
            if (w.scale_codes) scales[threadIdx.x] = w.scale_table[threadIdx.x];
            __syncthreads();
        }
        const Part& part = group.part[p];
        float total[4] = {0, 0, 0, 0};
        for (int i = 0; i < steps; ++i) {
            int block = first + i * AHEAD;
            if (i + 1 < steps)
                load_step(next, group, tile, block + AHEAD, last, blocks);
            else if (tile + gridDim.x < group.tiles)
                load_step(next, group, tile + gridDim.x, first, last, blocks);
            float scale[2];
#pragma unroll
            for (int h = 0; h < 2; ++h)
                scale[h] = part.w.scale_codes
                    ? __fadd_rn(__fmul_rn(scales[now.scale_code[h]], now.absmax[h]), part.w.offset)
                    : now.absmax[h];
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                if (block + a >= last) break;
                uint4 b[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
                if (has_row) {
                    const uint4* from = reinterpret_cast<const uint4*>(x + (block + a) * COLUMNS);
                    b[0] = from[0];
                    b[1] = from[1];
                }
                float c[4] = {0, 0, 0, 0};
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    u32 low = (k < 2 ? now.codes[a][0].x : now.codes[a][0].y) >> k % 2 * 16;
                    u32 high = (k < 2 ? now.codes[a][1].x : now.codes[a][1].y) >> k % 2 * 16;
                    u32 left[4] = {pairs[(low & 255) * WARP + lane], pairs[(high & 255) * WARP + lane],
                        pairs[(low >> 8 & 255) * WARP + lane], pairs[(high >> 8 & 255) * WARP + lane]};
                    uint4 right = b[k / 2];
                    mma16816<T>(c, left, k % 2 ? right.z : right.x, k % 2 ? right.w : right.y);
                }
                float s = __shfl_sync(FULL_MASK, scale[0], g * 4 + a), s8 = __shfl_sync(FULL_MASK, scale[1], g * 4 + a);
                total[0] = fmaf(s, c[0], total[0]);
                total[1] = fmaf(s, c[1], total[1]);
                total[2] = fmaf(s8, c[2], total[2]);
                total[3] = fmaf(s8, c[3], total[3]);
            }
            now = next;
        }
        // Two sets of sums: a warp that is one tile ahead writes to the other set.
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[stage][warp][g + i / 2 * 8][2 * t + i % 2] = total[i];
        __syncthreads();
        int o = threadIdx.x % OUTPUTS, r = threadIdx.x / OUTPUTS, to = (tile - part.first_tile) * OUTPUTS + o;
        if (r < n && to < part.outputs) {
            float sum = sums[stage][0][o][r];
#pragma unroll
            for (int i = 1; i < WARPS; ++i) sum += sums[stage][i][o][r];
            if (part.add) sum += to_float(((const O*)part.add)[r * part.ld_add + to]);
            ((O*)part.out)[r * part.ld_out + to] = from_float<O>(sum);
        }
    }
}

// Needs `cols` a multiple of 64 in blocks of 64, 16-byte aligned rows of `inp`, n <= 8. Every grid gives the
// same bits.
#define ROWS_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256, 3) four_bit_rows_##T(                                    \
        const __grid_constant__ Group group, const T* inp, int n, int cols, i64 ld_inp) {                      \
        four_bit_rows_body<T, T>(group, inp, n, cols, ld_inp);                                                 \
    }
FOR_HALF_TYPES(ROWS_KERNEL)

// Writes the residual stream, which is f32 if activations are f16.
extern "C" __global__ void __launch_bounds__(256, 3) four_bit_rows_to_f32_f16(
    const __grid_constant__ Group group, const f16* inp, int n, int cols, i64 ld_inp) {
    four_bit_rows_body<f16, float>(group, inp, n, cols, ld_inp);
}
