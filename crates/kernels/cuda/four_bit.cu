// Decodes and encodes 4-bit weights with the same bits as the host.
#include "four_bit.cuh"

__device__ __forceinline__ float block_scale(const FourBit& w, i64 block) {
    if (!w.scale_codes) return w.absmax[block];
    float nested = __fmul_rn(w.scale_table[w.scale_codes[block]], w.absmax[block >> w.scale_shift]);
    return __fadd_rn(nested, w.offset);
}

// Rows per block of the decode kernel.
#define DECODE_ROWS 4

// out (rows, cols) = the decoded values, rounded once. A thread decodes 8 neighbours in `DECODE_ROWS` rows.
// Grid: ceil(cols / 2048) x ceil(rows / DECODE_ROWS).
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
                // The upper half of a byte holds the even element.
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

// Computes codes and largest magnitudes of blocks of `1 << block_shift` values, with the host's bits. `order`
// lists the codes in value order, `bounds` the midpoints between neighbours. One warp encodes one block. The
// magnitude of a block with a value that is not finite is NaN.
// Grid: ceil(ceil(len / block) / 8).
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

// partial[b] = the f64 sum of 16384 scales. f32 scales of similar size add exactly in f64, so any order is
// right.
extern "C" __global__ void __launch_bounds__(256) four_bit_scale_sums(double* partial, const float* scales, int count) {
    __shared__ double shared[32];
    int start = blockIdx.x * 16384, end = min(start + 16384, count);
    double sum = 0;
    for (int at = start + threadIdx.x; at < end; at += 256) sum += (double)scales[at];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// offset = the mean of the scales. Grid: 1.
extern "C" __global__ void __launch_bounds__(256)
    four_bit_scale_mean(float* offset, const double* partial, int partials, int count) {
    __shared__ double shared[32];
    double sum = 0;
    for (int at = threadIdx.x; at < partials; at += 256) sum += partial[at];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) *offset = (float)(sum / count);
}

// Encodes scales in 8 bits: the nearest entry of an ascending `table` of 256, the lower one of a tie. A block
// encodes 256 scales. Grid: ceil(count / 256).
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
    // The number of entries that are at most `v`.
    int above = 0;
    for (int step = 128; step > 0; step /= 2)
        if (entries[above + step - 1] <= v) above += step;
    if (above < 256 && entries[above] <= v) ++above;
    int below = max(above - 1, 0);
    above = min(above, 255);
    bool is_upper = fabsf(__fsub_rn(entries[above], v)) < __fsub_rn(v, entries[below]);
    codes[at] = largest == 0 ? 0 : is_upper ? above : below;
}
