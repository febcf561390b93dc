// Decodes and encodes 4-bit weights. All results have the same bits as on the host: `__fmul_rn` and
// `__fadd_rn` prevent fused multiply-add, which rounds differently.
#include "four_bit.cuh"

__device__ __forceinline__ float block_scale(const FourBit& w, i64 block) {
    if (!w.scale_codes) return w.absmax[block];
    float nested = __fmul_rn(w.scale_table[w.scale_codes[block]], w.absmax[block >> w.scale_shift]);
    return __fadd_rn(nested, w.offset);
}

// Number of rows per thread block of the decode kernel.
#define DECODE_ROWS 4

// out (rows, cols) = the decoded weight. Each value is computed in f32 and rounded once to T. A thread
// decodes 8 neighbouring columns of `DECODE_ROWS` rows.
// Grid: (ceil(cols / 2048 columns), ceil(rows / DECODE_ROWS)), with 2048 = 256 threads * 8 columns.
template <typename T>
__device__ __forceinline__ void four_bit_decode_body(T* __restrict__ out, const FourBit& w, int rows, int cols, i64 ld) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = w.table[threadIdx.x];
    __syncthreads();
    int col = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (col >= cols) return;
    bool is_aligned = cols % 8 == 0 && w.block_shift >= 3 && aligned16(out) && ld * sizeof(T) % 16 == 0;
    int first = blockIdx.y * DECODE_ROWS, count = min(DECODE_ROWS, rows - first);
    u32 codes[DECODE_ROWS];
    float scale[DECODE_ROWS];
#pragma unroll
    for (int r = 0; r < DECODE_ROWS; ++r) {
        i64 element = (i64)(first + r) * cols + col;
        if (!is_aligned || r >= count) continue;
        codes[r] = *reinterpret_cast<const u32*>(w.codes + element / 2);
        scale[r] = block_scale(w, element >> w.block_shift);
    }
#pragma unroll
    for (int r = 0; r < DECODE_ROWS; ++r) {
        if (r >= count) return;
        T* to = out + (first + r) * ld + col;
        if (is_aligned) {
            float values[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                // The upper 4 bits of a byte hold the element with the even index.
                u32 code = codes[r] >> (i / 2 * 8 + (i % 2 ? 0 : 4)) & 15;
                values[i] = __fmul_rn(table[code], scale[r]);
            }
            store8(to, values);
            continue;
        }
#pragma unroll 1
        for (int i = 0; i < 8 && col + i < cols; ++i) {
            i64 e = (i64)(first + r) * cols + col + i;
            u32 code = w.codes[e / 2] >> (e % 2 ? 0 : 4) & 15;
            to[i] = from_float<T>(__fmul_rn(table[code], block_scale(w, e >> w.block_shift)));
        }
    }
}

#define DECODE_KERNEL(T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        four_bit_decode_##T(T* out, const FourBit w, int rows, int cols, i64 ld) {                             \
        four_bit_decode_body(out, w, rows, cols, ld);                                                          \
    }
FOR_TYPES(DECODE_KERNEL)

// Encodes `len` values in quantization blocks of 1 << block_shift values. `absmax` gets the largest magnitude
// of each quantization block. Each value is divided by this magnitude, and `codes` gets the code of the
// nearest value of the 4-bit type.
//
// `order` lists the 16 codes by ascending value, and `bounds` the 15 midpoints between neighbouring values.
// The code of a value is order[i], where i is the number of bounds below the value. If a quantization block
// has a value that is not finite, its `absmax` is NaN and its codes are not written.
//
// As on the host, the values of a full quantization block are multiplied by the reciprocal of the magnitude.
// If the last quantization block is shorter, its values are divided by the magnitude, and `absmax` is at
// least 1e-38.
//
// One warp encodes one quantization block.
// Grid: ceil(quantization blocks / 8 warps).
template <typename T>
__device__ __forceinline__ void four_bit_encode_body(u8* __restrict__ codes, float* __restrict__ absmax,
    const T* __restrict__ values, const float* __restrict__ bounds, const u8* __restrict__ order, i64 len,
    int block_shift) {
    __shared__ float edge[15];
    __shared__ u8 ladder[16];
    if (threadIdx.x < 15) edge[threadIdx.x] = bounds[threadIdx.x];
    if (threadIdx.x < 16) ladder[threadIdx.x] = order[threadIdx.x];
    __syncthreads();
    int lane = threadIdx.x % WARP;
    i64 block = (i64)blockIdx.x * 8 + threadIdx.x / WARP, first = block << block_shift;
    if (first >= len) return;
    i64 end = min(len, first + (1ll << block_shift));
    bool is_whole = end - first == 1ll << block_shift;
    float largest = 0;
    bool is_finite = true;
    for (i64 at = first + lane; at < end; at += WARP) {
        float magnitude = fabsf(to_float(values[at]));
        is_finite = is_finite && magnitude < -NEGATIVE_INFINITY;
        largest = fmaxf(largest, magnitude);
    }
    largest = warp_max(largest);
    if (!__all_sync(FULL_MASK, is_finite)) {
        if (lane == 0) absmax[block] = __uint_as_float(0x7fffffffu);
        return;
    }
    float divisor = fmaxf(largest, 1e-38f), inverse = __fdiv_rn(1.0f, divisor);
    if (lane == 0) absmax[block] = is_whole ? largest : divisor;
#pragma unroll 1
    for (i64 at = first + 2 * lane; at < end; at += 2 * WARP) {
        u32 byte = 0;
        for (int i = 0; i < 2; ++i) {
            float value = at + i < end ? to_float(values[at + i]) : 0;
            float place = is_whole ? __fmul_rn(value, inverse) : __fdiv_rn(value, divisor);
            place = fminf(fmaxf(place, -1.0f), 1.0f);
            int steps = 0;
#pragma unroll
            for (int b = 0; b < 15; ++b) steps += edge[b] < place;
            byte = byte << 4 | ladder[steps];
        }
        codes[at / 2] = byte;
    }
}

#define ENCODE_KERNEL(T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) four_bit_encode_##T(u8* codes, float* absmax,            \
        const T* values, const float* bounds, const u8* order, i64 len, int block_shift) {                     \
        four_bit_encode_body(codes, absmax, values, bounds, order, len, block_shift);                          \
    }
ENCODE_KERNEL(bf16)
ENCODE_KERNEL(f16)
ENCODE_KERNEL(f32)

// partial[b] = the sum of the 16384 scales of chunk b, in f64. f32 scales of similar size add up exactly in
// f64, so the order of the additions does not change the sum.
// Grid: ceil(count / 16384 scales).
extern "C" __global__ void __launch_bounds__(256) four_bit_scale_sums(double* partial, const float* scales, int count) {
    __shared__ double shared[32];
    int start = blockIdx.x * 16384, end = min(start + 16384, count);
    double sum = 0;
    for (int at = start + threadIdx.x; at < end; at += 256) sum += (double)scales[at];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// offset = the mean of `count` scales, from the sums of `four_bit_scale_sums`.
// Grid: 1 thread block.
extern "C" __global__ void __launch_bounds__(256)
    four_bit_scale_mean(float* offset, const double* partial, int partials, int count) {
    __shared__ double shared[32];
    double sum = 0;
    for (int at = threadIdx.x; at < partials; at += 256) sum += partial[at];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) *offset = (float)(sum / count);
}

// Encodes `count` scales in 8 bits (double quantization). A thread block subtracts `offset` from 256 scales,
// writes the largest magnitude of the differences to `absmax`, and divides the differences by this magnitude.
// A code is the index of the nearest entry of `table`, which has 256 ascending entries. The lower entry wins
// a tie. Grid: ceil(count / 256 scales).
extern "C" __global__ void __launch_bounds__(256) four_bit_nest(
    u8* codes, float* absmax, const float* scales, const float* table, const float* offset, int count) {
    __shared__ float shared[32], entries[256];
    entries[threadIdx.x] = table[threadIdx.x];
    int at = blockIdx.x * 256 + threadIdx.x;
    float value = at < count ? __fsub_rn(scales[at], *offset) : 0;
    float largest = block_max(fabsf(value), shared);
    if (threadIdx.x == 0) absmax[blockIdx.x] = largest;
    if (at >= count) return;
    float v = largest == 0 ? 0 : __fdiv_rn(value, largest);
    // The loop and the next line count the entries that are at most `v`, by binary search.
    int above = 0;
    for (int step = 128; step > 0; step /= 2)
        if (entries[above + step - 1] <= v) above += step;
    if (above < 256 && entries[above] <= v) ++above;
    int below = max(above - 1, 0);
    above = min(above, 255);
    bool is_upper = fabsf(__fsub_rn(entries[above], v)) < __fsub_rn(v, entries[below]);
    codes[at] = largest == 0 ? 0 : is_upper ? above : below;
}
