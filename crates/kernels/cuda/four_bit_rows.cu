// out (n, outputs) = inp (n, cols) W' + add, for up to 8 rows of `inp` and 4-bit weights W (outputs, cols).
// W' is the transpose of W, and `add` is optional. Each weight is read once.
//
// One launch multiplies one input by up to 3 weights. A tile is 16 outputs of one weight. The 8 warps of a
// thread block divide the columns of a tile into contiguous ranges, and the warps' sums are added in order.
//
// The 16 outputs are the rows of the left operand, and the rows of `inp` are the columns of the right
// operand. A table maps each byte, which holds two codes, to a pair of values. Each lane has its own copy of
// the table in one bank of shared memory, so lanes have no bank conflicts.
//
// Each quantization block (64 columns) has its own accumulator, and the scale multiplies this sum. The
// instructions of several quantization blocks alternate, which hides their latency.
//
//     for each tile of this thread block, for each step of STEP quantization blocks:
//         wait for the codes of this step; start the copy of the next step's codes, perhaps of the next tile
//         for each quantization block: c = 0; four times, c += 16 columns of W * x; total += scale * c
//
// Each thread block fills the table once for each weight, so it computes many tiles. The launch has at most
// two thread blocks per multiprocessor.
#include "few_rows.cuh"
#include "four_bit.cuh"

// Number of columns per quantization block.
#define COLUMNS 64
// Number of quantization blocks per step. Steps of 8 quantization blocks were slower on an H200.
#if __CUDA_ARCH__ >= 800
#define STEP 4
#else
#define STEP 2
#endif
// Number of quantization blocks whose instructions alternate.
#define TOGETHER (STEP < 4 ? STEP : 4)
// Number of scales that a lane holds for each of two outputs. Four lanes share the scales of an output.
#define SCALES ((STEP + 3) / 4)
// Number of steps whose codes are in shared memory.
#define STAGES 2
// Bytes of the codes of one output and step, and the distance of outputs in shared memory. The padding
// prevents bank conflicts.
#define ROW_BYTES (STEP * COLUMNS / 2)
#define ROW_STRIDE (ROW_BYTES + 32)
#define STAGE_BYTES (OUTPUTS * ROW_STRIDE)
// Number of outputs whose codes a warp copies with one instruction, and number of such instructions per step.
#define COPY_ROWS (WARP * 16 / ROW_BYTES)
#define COPIES (OUTPUTS / COPY_ROWS)
#define PAIRS_BYTES (256 * WARP * 4)

typedef Group<FourBit> Weights;

// A position in the computation of a warp: a tile, a step of this tile, and the index of the tile's weight.
// The cursors of codes and scales are one step ahead of the computation.
struct Cursor {
    int tile, step, part;

    __device__ __forceinline__ bool is_at_end(const Weights& group) const { return tile >= group.tiles; }

    // Moves to the next step. Returns true if that step belongs to the next tile of the thread block.
    __device__ __forceinline__ bool advance(const Weights& group, int steps) {
        if (++step < steps) return false;
        step = 0;
        tile += gridDim.x;
        return true;
    }
};

// Copies a warp's codes to shared memory, one step at a time. For outputs past the end of the weight, it
// copies the codes of the last output. `write_tile` does not write these outputs.
//
// `first` is the first quantization block of the warp, and `last` is the end of its range. `blocks` is the
// number of quantization blocks per output, and `steps` the number of steps per tile.
struct CodeCopy {
    Cursor at;
    const u8* from[COPIES];
    u8* to;

    __device__ __forceinline__ void start_tile(const Weights& group, int first, int blocks) {
        if (at.is_at_end(group)) return;
        at.part = group.part_of(at.tile, at.part);
        const auto& part = group.part[at.part];
        int lane = threadIdx.x % WARP, chunk = lane % (ROW_BYTES / 16);
        int row = (at.tile - part.first_tile) * OUTPUTS + lane / (ROW_BYTES / 16);
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            i64 own = min(row + COPY_ROWS * i, part.outputs - 1);
            from[i] = part.w.codes + (own * blocks + first) * (COLUMNS / 2) + chunk * 16;
        }
    }

    __device__ __forceinline__ void copy_step(const Weights& group, int stage, int first, int last, int steps, int blocks) {
        if (!at.is_at_end(group)) {
            int chunk = threadIdx.x % WARP % (ROW_BYTES / 16);
            bool is_valid = first + at.step * STEP + chunk / 2 < last;
#pragma unroll
            for (int i = 0; i < COPIES; ++i) {
                copy16_async(to + stage * STAGE_BYTES + i * COPY_ROWS * ROW_STRIDE, from[i], is_valid);
                from[i] += ROW_BYTES;
            }
            if (at.advance(group, steps)) start_tile(group, first, blocks);
        }
        copy_commit();
    }
};

// Loads the scales of the next step into registers. Lane l loads quantization block l % 4 of the step, for
// outputs l / 4 and l / 4 + 8 of the tile. The parameters are those of `CodeCopy`.
struct ScaleLoad {
    Cursor at;
    int index[2];
    u32 code[SCALES][2];
    float absmax[SCALES][2];

    __device__ __forceinline__ void start_tile(const Weights& group, int first, int blocks) {
        if (at.is_at_end(group)) return;
        at.part = group.part_of(at.tile, at.part);
        const auto& part = group.part[at.part];
        int row = (at.tile - part.first_tile) * OUTPUTS + threadIdx.x % WARP / 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) index[h] = min(row + 8 * h, part.outputs - 1) * blocks;
    }

    __device__ __forceinline__ void load_step(const Weights& group, int first, int last, int steps, int blocks) {
        if (at.is_at_end(group)) return;
        const FourBit& w = group.part[at.part].w;
#pragma unroll
        for (int i = 0; i < SCALES; ++i) {
            int block = min(first + at.step * STEP + 4 * i + (int)threadIdx.x % 4, last - 1);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                int scale = index[h] + block;
                code[i][h] = w.scale_codes ? w.scale_codes[scale] : 0;
                absmax[i][h] = w.absmax[w.scale_codes ? scale >> w.scale_shift : scale];
            }
        }
        if (at.advance(group, steps)) start_tile(group, first, blocks);
    }
};

// Returns the two values of byte `byte` of `codes`. Table entry b begins at byte 128 b and has one copy of 4
// bytes per lane. `own_copy` is the offset of the lane's copy. A single shift selects the byte and multiplies
// it by 128.
__device__ __forceinline__ u32 pair_of(const u8* pairs, u32 codes, int byte, u32 own_copy) {
    u32 shifted = byte == 0 ? codes << 7 : codes >> (8 * byte - 7);
    return *reinterpret_cast<const u32*>(pairs + (shifted & 255 << 7 | own_copy));
}

// Fills the table of value pairs and, for double quantization, the table of scales.
template <typename T>
__device__ __forceinline__ void fill_tables(u8* pairs, float* scales, const FourBit& w) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int byte = threadIdx.x / 8 + 32 * i;
        u32 pair = pack2<T>(w.table[byte >> 4], w.table[byte & 15]);
        reinterpret_cast<uint4*>(pairs)[threadIdx.x + 256 * i] = make_uint4(pair, pair, pair, pair);
    }
    if (w.scale_codes) scales[threadIdx.x] = w.scale_table[threadIdx.x];
}

// total (16 outputs, 8 rows) += the products of the next `TOGETHER` quantization blocks, of which `blocks`
// are left. Both operands have the same permutation of columns, which does not change a product. Lane l reads
// columns 16 (l % 4) to 16 (l % 4) + 15 of each quantization block, because these columns are contiguous.
template <typename T>
__device__ __forceinline__ void add_blocks(float (&total)[4], const u8* pairs, const u8* codes, const T* x, bool has_row,
    int blocks, const float (&scale)[2]) {
    int lane = threadIdx.x % WARP, g = lane / 4;
    uint4 b[TOGETHER][2];
    uint2 low[TOGETHER], high[TOGETHER];
    float c[TOGETHER][4];
#pragma unroll
    for (int a = 0; a < TOGETHER; ++a) {
        b[a][0] = b[a][1] = make_uint4(0, 0, 0, 0);
        if (has_row && a < blocks) {
            const uint4* from = reinterpret_cast<const uint4*>(x + a * COLUMNS);
            b[a][0] = from[0];
            b[a][1] = from[1];
        }
        low[a] = *reinterpret_cast<const uint2*>(codes + a * (COLUMNS / 2));
        high[a] = *reinterpret_cast<const uint2*>(codes + 8 * ROW_STRIDE + a * (COLUMNS / 2));
#pragma unroll
        for (int i = 0; i < 4; ++i) c[a][i] = 0;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int a = 0; a < TOGETHER; ++a) {
            u32 l = k < 2 ? low[a].x : low[a].y, h = k < 2 ? high[a].x : high[a].y;
            u32 left[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) left[i] = pair_of(pairs, i % 2 ? h : l, k % 2 * 2 + i / 2, lane * 4);
            mma16816<T>(c[a], left, k % 2 ? b[a][k / 2].z : b[a][k / 2].x, k % 2 ? b[a][k / 2].w : b[a][k / 2].y);
        }
#pragma unroll
    for (int a = 0; a < TOGETHER; ++a) {
        float s = __shfl_sync(FULL_MASK, scale[0], g * 4 + a), s8 = __shfl_sync(FULL_MASK, scale[1], g * 4 + a);
        total[0] = fmaf(s, c[a][0], total[0]);
        total[1] = fmaf(s, c[a][1], total[1]);
        total[2] = fmaf(s8, c[a][2], total[2]);
        total[3] = fmaf(s8, c[a][3], total[3]);
    }
}

template <typename T, typename O>
__device__ __forceinline__ void four_bit_rows_body(
    const Weights& group, const T* inp, int n, int cols, i64 ld_inp) {
    extern __shared__ __align__(128) u8 memory[];
    __shared__ WarpSums sums;
    __shared__ float scale_table[256];
    u8* pairs = memory;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int blocks = cols / COLUMNS, share = ceil_div(blocks, WARPS);
    int first = min(warp * share, blocks), last = min(blocks, first + share), steps = ceil_div(share, STEP);
    u8* own = memory + PAIRS_BYTES + warp * STAGES * STAGE_BYTES;
    bool has_row = g < n;
    const T* x = inp + (has_row ? g * ld_inp : 0) + 16 * t;
    CodeCopy copy = {{(int)blockIdx.x, 0, 0}};
    copy.to = own + lane / (ROW_BYTES / 16) * ROW_STRIDE + lane % (ROW_BYTES / 16) * 16;
    ScaleLoad scales = {{(int)blockIdx.x, 0, 0}};
    copy.start_tile(group, first, blocks);
    copy.copy_step(group, 0, first, last, steps, blocks);
    scales.start_tile(group, first, blocks);
    scales.load_step(group, first, last, steps, blocks);
    int stage = 0;
    for (int tile = blockIdx.x, p = -1; tile < group.tiles; tile += gridDim.x) {
        int part_index = group.part_of(tile, max(p, 0));
        const auto& part = group.part[part_index];
        if (part_index != p) {
            __syncthreads();
            fill_tables<T>(pairs, scale_table, part.w);
            __syncthreads();
            p = part_index;
        }
        // Until here, the thread block has read only weights. `inp` and `add` may be results of earlier
        // kernels.
        if (tile == blockIdx.x) overlap_kernels();
        float total[4] = {0, 0, 0, 0};
        for (int i = 0; i < steps; ++i, stage ^= 1) {
            float scale[SCALES][2];
#pragma unroll
            for (int b = 0; b < SCALES; ++b)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float absmax = scales.absmax[b][h];
                    scale[b][h] = part.w.scale_codes
                        ? __fadd_rn(__fmul_rn(scale_table[scales.code[b][h]], absmax), part.w.offset)
                        : absmax;
                }
            copy_wait<0>();
            __syncwarp();
            copy.copy_step(group, stage ^ 1, first, last, steps, blocks);
            scales.load_step(group, first, last, steps, blocks);
            const u8* codes = own + stage * STAGE_BYTES + g * ROW_STRIDE + 8 * t;
            int block = first + i * STEP;
#pragma unroll
            for (int b = 0; b < STEP / TOGETHER; ++b) {
                int from = block + b * TOGETHER;
                if (from >= last) break;
                add_blocks<T>(total, pairs, codes + b * TOGETHER * (COLUMNS / 2), x + (i64)from * COLUMNS, has_row,
                    last - from, scale[b]);
            }
        }
        store_warp_sum(sums, total);
        __syncthreads();
        write_tile<O>(part, sums, (tile - part.first_tile) * OUTPUTS, n);
        __syncthreads();
    }
}

// Requirements: quantization blocks of 64 values, `cols` a multiple of 64, 16-byte aligned rows of `inp`, and
// n <= 8.
//
// Grid: any number g of thread blocks. Thread block i computes tiles i, i + g, i + 2g and so on, so each grid
// gives the same bits.
// Shared bytes: 32768 for the table, and STAGES * STAGE_BYTES for the codes of each of 8 warps.
#define ROWS_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256, 2) four_bit_rows_##T(                                    \
        const __grid_constant__ Weights group, const T* inp, int n, int cols, i64 ld_inp) {                    \
        four_bit_rows_body<T, T>(group, inp, n, cols, ld_inp);                                                 \
    }
FOR_HALF_TYPES(ROWS_KERNEL)

// Writes and adds f32, for the residual stream, which is f32 if activations are f16.
extern "C" __global__ void __launch_bounds__(256, 2) four_bit_rows_to_f32_f16(
    const __grid_constant__ Weights group, const f16* inp, int n, int cols, i64 ld_inp) {
    four_bit_rows_body<f16, float>(group, inp, n, cols, ld_inp);
}
