// Products of up to 128 rows `inp` with a 4-bit weight W (outputs, cols) that is never decoded to memory.
// Forward: out (n, outputs) = inp W', where W' is the transpose of W. Backward: out (n, cols) = inp W.
//
// The kernels compute the transposed result, because the tensor core reads only the left operand from
// registers. The left operand is W or W', decoded in registers. The right operand is `inp`, padded to 128
// rows, in shared memory. `width` is the number of columns of `out`, and `depth` is the inner dimension.
//
// A thread block computes 128 columns of `out`. It has two warpgroups of 4 warps, and each warpgroup computes
// 64 columns. A step covers 64 of the inner dimension. A split is a range of steps. Thread blocks of
// different splits compute partial sums, and a second kernel adds the partial sums in order.
//
// A table maps each byte, which holds two codes, to two f32 values. 16 copies of the table avoid bank
// conflicts. Each value is multiplied by its scale and rounded once, so it has the bits of `four_bit_decode`.
//
// The `wgmma` instructions exist only on sm_90a.
#include "four_bit.cuh"
#include "wgmma.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

// In this order: inner dimension per step, rows of the padded `inp`, columns of `out` per thread block, steps
// in shared memory, and copies of the table. X_BYTES, CODE_BYTES and SCALE_BYTES are bytes per step.
#define STEP 64
#define TOKENS 128
#define OUTPUTS 128
#define STAGES 3
#define COPIES 16
#define X_BYTES (TOKENS * STEP * 2)
#define CODE_BYTES (OUTPUTS * STEP / 2)
#define SCALE_BYTES (OUTPUTS * 4)
#define TABLE_BYTES (256 * COPIES * 8)

// c (64, 128) += a (64, 16) b (16, 128), computed by a warpgroup. `b` is a descriptor.
__device__ __forceinline__ void multiply(float (&c)[64], const u32 (&a)[4], u64 b) {
    asm volatile(
        "{\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "{%64,%65,%66,%67}, %68, 1, 1, 1, 0;\n"
        "}\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
        "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
        "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
        "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]),
        "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]),
        "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),
        "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]),
        "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Computes 128 rows of the transposed result for one split, and writes them transposed to `partial`. Each
// warp has 16 of the 128 rows. g = lane / 4 and t = lane % 4, as in `mma16816`.
//
// Forward: a row is one output, and a step is one quantization block of 64 columns. A lane decodes bytes t,
// t + 4, ..., t + 28 of rows g and g + 8 of its warp. Byte 5, for example, holds columns 10 and 11.
//
// Backward: a row is one column of W, and a step is 64 outputs. A warpgroup has the 64 columns of one
// quantization block, so a warp has 8 bytes of each output. Byte g holds columns 2g and 2g + 1. The warp uses
// these two columns as rows g and g + 8, and the final writes undo this permutation.
template <bool BACKWARD>
__device__ __forceinline__ void four_bit_fused_body(float* __restrict__ partial, const bf16* __restrict__ inp,
    const FourBit& w, int n, int outputs, int cols, i64 ld, int steps_each) {
    // The 128-byte swizzle requires tiles of `inp` on 1024-byte boundaries.
    extern __shared__ __align__(1024) u8 memory[];
    u8* inps = memory;
    u8* codes = inps + STAGES * X_BYTES;
    float* scales = reinterpret_cast<float*>(codes + STAGES * CODE_BYTES);
    float2* pairs = reinterpret_cast<float2*>(reinterpret_cast<u8*>(scales) + STAGES * SCALE_BYTES);
    float* scale_table = reinterpret_cast<float*>(reinterpret_cast<u8*>(pairs) + TABLE_BYTES);
    for (int at = threadIdx.x; at < 256 * COPIES; at += 256) {
        int byte = at / COPIES;
        pairs[at] = make_float2(w.table[byte >> 4], w.table[byte & 15]);
    }
    if (w.scale_codes) scale_table[threadIdx.x] = w.scale_table[threadIdx.x];
    __syncthreads();
    int width = BACKWARD ? cols : outputs, depth = BACKWARD ? outputs : cols, row_blocks = cols / STEP;
    int first = blockIdx.x * OUTPUTS, all_steps = ceil_div(depth, STEP);
    int begin = blockIdx.y * steps_each, end = min(all_steps, begin + steps_each);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4, group = warp / 4;
    // A row of a tile of `inp` has 128 bytes, which are 8 vectors of 16 bytes. A thread copies the same
    // vector of 4 rows. The 128-byte swizzle stores vector v of row r at position v ^ (r % 8).
    int inp_row = threadIdx.x / 8, inp_part = threadIdx.x % 8;
    u8* inp_to = inps + inp_row * 128 + (inp_part ^ inp_row % 8) * 16;
    const bf16* inp_from = inp + inp_row * ld + inp_part * 8;
    // The codes of a step are 128 rows of 32 bytes, one quantization block each. Forward: one quantization
    // block of each of 128 outputs. Backward: two quantization blocks of each of 64 outputs. Two threads copy
    // a row, and the first of them also loads the scale of the row.
    int row = threadIdx.x / 2, half = threadIdx.x % 2;
    int first_output = BACKWARD ? row % 64 : first + row, first_block = BACKWARD ? first / STEP + row / 64 : 0;
    i64 first_at = (i64)first_output * row_blocks + first_block;
    i64 stride = BACKWARD ? (i64)64 * row_blocks : 1;
    auto load = [&](int step) {
        int stage = step % STAGES;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            bool is_valid = inp_row + 32 * i < n && step * STEP + inp_part * 8 < depth;
            const bf16* from = inp_from + 32 * i * ld + step * STEP;
            copy16_async(inp_to + stage * X_BYTES + i * 32 * 128, is_valid ? from : inp, is_valid);
        }
        bool is_valid = (BACKWARD ? step * 64 + first_output : first_output) < outputs && first_block < row_blocks;
        const u8* from = w.codes + (first_at + step * stride) * 32 + half * 16;
        copy16_async(codes + stage * CODE_BYTES + row * 32 + half * 16, is_valid ? from : w.codes, is_valid);
        copy_commit();
    };
    // `load_scale` reads a scale into registers one step before `store_scale` writes it to shared memory.
    float absmax = 0;
    u32 scale_code = 0;
    auto load_scale = [&](int step) {
        bool is_valid = half == 0 && step < end && (BACKWARD ? step * 64 + first_output : first_output) < outputs
            && first_block < row_blocks;
        i64 at = first_at + step * stride;
        absmax = is_valid ? w.absmax[w.scale_codes ? at >> w.scale_shift : at] : 0;
        scale_code = is_valid && w.scale_codes ? w.scale_codes[at] : 0;
    };
    auto store_scale = [&](int step) {
        float scale = w.scale_codes ? __fadd_rn(__fmul_rn(scale_table[scale_code], absmax), w.offset) : absmax;
        if (half == 0) scales[step % STAGES * OUTPUTS + row] = scale;
    };
    float c[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) c[i] = 0;
    pin(c);
    for (int i = 0; i < STAGES - 1; ++i) {
        if (begin + i < end) load(begin + i);
        else copy_commit();
    }
    load_scale(begin);
    store_scale(begin);
    load_scale(begin + 1);
    const float2* own_pairs = pairs + lane % COPIES;
    for (int step = begin; step < end; ++step) {
        copy_wait<STAGES - 2>();
        publish_copies();
        __syncthreads();
        if (step + STAGES - 1 < end) load(step + STAGES - 1);
        else copy_commit();
        store_scale(step + 1);
        load_scale(step + 2);
        int stage = step % STAGES;
        const u8* tile = inps + stage * X_BYTES;
        const u8* own = codes + stage * CODE_BYTES;
        const float* scale = scales + stage * OUTPUTS;
        u32 a[4][4];
        if (!BACKWARD) {
            int row = warp * 16 + g;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float s = scale[row + 8 * h];
                u32 words[8];
                *reinterpret_cast<uint4*>(words) = *reinterpret_cast<const uint4*>(own + (row + 8 * h) * 32);
                *reinterpret_cast<uint4*>(words + 4) = *reinterpret_cast<const uint4*>(own + (row + 8 * h) * 32 + 16);
#pragma unroll
                for (int m = 0; m < 8; ++m) {
                    float2 v = own_pairs[(words[m] >> 8 * t & 255) * COPIES];
                    a[m / 2][m % 2 * 2 + h] = pack2<bf16>(__fmul_rn(v.x, s), __fmul_rn(v.y, s));
                }
            }
        } else {
            const u8* column = own + group * 64 * 32 + warp % 4 * 8 + g;
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    int output = 16 * k + 2 * t + 8 * h;
                    float s = scale[group * 64 + output], s1 = scale[group * 64 + output + 1];
                    float2 v = own_pairs[column[output * 32] * COPIES];
                    float2 v1 = own_pairs[column[(output + 1) * 32] * COPIES];
                    a[k][2 * h] = pack2<bf16>(__fmul_rn(v.x, s), __fmul_rn(v1.x, s1));
                    a[k][2 * h + 1] = pack2<bf16>(__fmul_rn(v.y, s), __fmul_rn(v1.y, s1));
                }
        }
        multiply_begin();
#pragma unroll
        for (int k = 0; k < 4; ++k) multiply(c, a[k], operand(tile + 16 * k * 2));
        multiply_commit();
        multiply_wait<0>();
        pin(c);
    }
    // c[4j + i] belongs to row g + i / 2 * 8 of the warp's 16 rows. Its row of `inp` is 8j + 2t + i % 2. For
    // example, c[6] (j = 1, i = 2) belongs to row g + 8 and to row 8 + 2t of `inp`.
    int low = warp * 16 + g, high = low + 8;
    if (BACKWARD) {
        low = group * 64 + warp % 4 * 16 + 2 * g;
        high = low + 1;
    }
    partial += (i64)blockIdx.y * n * width;
#pragma unroll
    for (int i = 0; i < 64; ++i) {
        int row = first + (i % 4 / 2 ? high : low), token = i / 4 * 8 + 2 * t + i % 2;
        if (token < n && row < width) partial[(i64)token * width + row] = c[i];
    }
}

// Requirements: quantization blocks of 64 values, `cols` a multiple of 64, 16-byte aligned rows of `inp`, and
// n <= 128. The backward kernel also requires `outputs` to be a multiple of 8. `inp` is (n, cols) in the
// forward kernel, and (n, outputs) in the backward kernel. `partial` is (splits, n, width).
//
// Grid: (ceil(width / 128 columns), splits), with `steps_each` steps per split.
// Shared bytes: 3 * (16384 + 4096 + 512) + 32768 + 1024. These are `inp`, codes and scales of 3 steps, the
// table of value pairs, and the table of scales.
extern "C" __global__ void __launch_bounds__(256, 2) four_bit_fused_forward_bf16(float* partial, const bf16* inp,
    const FourBit w, int n, int outputs, int cols, i64 ld, int steps_each) {
    four_bit_fused_body<false>(partial, inp, w, n, outputs, cols, ld, steps_each);
}

extern "C" __global__ void __launch_bounds__(256, 2) four_bit_fused_backward_bf16(float* partial, const bf16* inp,
    const FourBit w, int n, int outputs, int cols, i64 ld, int steps_each) {
    four_bit_fused_body<true>(partial, inp, w, n, outputs, cols, ld, steps_each);
}

// out (n, width) = the sum of `partial` over the splits, in order, plus `add` unless it is null. A thread
// computes one element.
// Grid: (n, ceil(width / 256 threads)).
extern "C" __global__ void __launch_bounds__(256) four_bit_fused_sum_bf16(
    bf16* out, const float* partial, const bf16* add, int n, int width, int splits, i64 ld_out, i64 ld_add) {
    int col = blockIdx.y * 256 + threadIdx.x;
    if (col >= width) return;
    partial += (i64)blockIdx.x * width + col;
    float sum = 0;
    for (int s = 0; s < splits; ++s) sum += partial[(i64)s * n * width];
    if (add) sum += to_float(add[blockIdx.x * ld_add + col]);
    out[blockIdx.x * ld_out + col] = from_float<bf16>(sum);
}

#endif
