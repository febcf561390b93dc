// Products of up to 8 rows with a 4-bit weight, which is read once: out = inp W'.
//
// A warp multiplies 16 outputs of one block of 64 columns by 8 rows at a time. Weights are the left operand.
// A table maps each byte of two codes to a pair of values; each lane has its own copy, so lanes never share a
// bank. The scale multiplies the sum of a block, so an accumulator holds the product of one block only.
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
// Blocks of columns whose codes are loaded ahead.
#define AHEAD 4

// Each warp of a block processes a contiguous part of the column blocks. The warps' sums are added in order.
template <typename T>
__device__ __forceinline__ void four_bit_rows_body(T* __restrict__ out, const T* __restrict__ inp, const FourBit& w,
    int n, int outputs, int cols, i64 ld_out, i64 ld_inp) {
    __shared__ u32 pairs[256 * WARP];
    __shared__ float scales[256];
    __shared__ float sums[WARPS][OUTPUTS][MAX_ROWS];
    for (int at = threadIdx.x; at < 256 * WARP; at += 256) {
        int byte = at / WARP;
        pairs[at] = pack2<T>(w.table[byte >> 4], w.table[byte & 15]);
    }
    if (w.scale_codes) scales[threadIdx.x] = w.scale_table[threadIdx.x];
    __syncthreads();
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int blocks = cols / COLUMNS, share = ceil_div(blocks, WARPS);
    int first = warp * share, last = min(blocks, first + share);
    bool has_row = g < n;
    const T* x = inp + (has_row ? g * ld_inp : 0) + 16 * t;
    for (int tile = blockIdx.x; tile * OUTPUTS < outputs; tile += gridDim.x) {
        // Outputs past the end read the last output and are not written.
        i64 row[2] = {min(tile * OUTPUTS + g, outputs - 1), min(tile * OUTPUTS + g + 8, outputs - 1)};
        float total[4] = {0, 0, 0, 0};
        for (int block = first; block < last; block += AHEAD) {
            uint2 codes[AHEAD][2];
            float scale[2];
#pragma unroll
            for (int a = 0; a < AHEAD; ++a)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    codes[a][h] = make_uint2(0, 0);
                    if (block + a < last)
                        codes[a][h] = *reinterpret_cast<const uint2*>(
                            w.codes + (row[h] * cols + (i64)(block + a) * COLUMNS) / 2 + 8 * t);
                }
            // Lane t holds the scales of block `block + t`.
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                i64 at = row[h] * blocks + min(block + t, last - 1);
                scale[h] = w.scale_codes
                    ? __fadd_rn(__fmul_rn(scales[w.scale_codes[at]], w.absmax[at >> w.scale_shift]), w.offset)
                    : w.absmax[at];
            }
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
                    u32 low = (k < 2 ? codes[a][0].x : codes[a][0].y) >> k % 2 * 16;
                    u32 high = (k < 2 ? codes[a][1].x : codes[a][1].y) >> k % 2 * 16;
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
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[warp][g + i / 2 * 8][2 * t + i % 2] = total[i];
        __syncthreads();
        int o = threadIdx.x % OUTPUTS, r = threadIdx.x / OUTPUTS, to = tile * OUTPUTS + o;
        if (r < n && to < outputs) {
            float sum = sums[0][o][r];
#pragma unroll
            for (int i = 1; i < WARPS; ++i) sum += sums[i][o][r];
            out[r * ld_out + to] = from_float<T>(sum);
        }
        __syncthreads();
    }
}

// Needs `cols` a multiple of 64 in blocks of 64, 16-byte aligned rows of `inp`, n <= 8. Every grid gives the
// same bits.
#define ROWS_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256, 2) four_bit_rows_##T(                                    \
        T* out, const T* inp, const FourBit w, int n, int outputs, int cols, i64 ld_out, i64 ld_inp) {         \
        four_bit_rows_body(out, inp, w, n, outputs, cols, ld_out, ld_inp);                                     \
    }
FOR_HALF_TYPES(ROWS_KERNEL)
