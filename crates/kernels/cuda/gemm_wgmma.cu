// Matrix products of `gemm.cu` with the tensor core instructions of sm_90a, for 16-bit types and many rows.
//
//     out (M, N) = x (M, K) op(w) + beta * add (M, N)
//     `_nt` (forward):  w is (N, K), and op(w) is its transpose
//     `_nn` (backward): w is (K, N), and op(w) is w
//
// A thread block computes a tile of 128 x 256 elements of `out`. Each of its two warpgroups computes 64 x 256
// of them. K is divided into steps of 64. A warpgroup adds up the products of all steps:
//
//     copy the first STAGES - 2 steps to shared memory
//     for each step:
//         wait for the copy of this step, and for the other warpgroup
//         start the products of this step
//         start the copy of the step that is STAGES - 2 ahead
//         wait for the products of the previous step
//
// The copy overwrites the operands of the step before the previous one. Both warpgroups have finished the
// products of that step before they wait for each other.
//
// The order of tiles, and the split of K, are those of `gemm.cu`.
#include "gemm.cuh"
#include "wgmma.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

namespace {

constexpr int TILE_M = 128, TILE_N = 256, TILE_K = 64, STAGES = 4, THREADS = 256;
// A row of a tile in shared memory has 128 bytes: 64 elements, or 8 vectors of 16 bytes.
constexpr int ROW_BYTES = 128, VECTORS = 8;
constexpr int X_BYTES = TILE_M * ROW_BYTES, W_BYTES = TILE_N * ROW_BYTES, STAGE_BYTES = X_BYTES + W_BYTES;
// Bytes of 64 columns of a step of `w` in the backward product.
constexpr int BLOCK_BYTES = TILE_K * ROW_BYTES;

// c (64, 256) += a (64, 16) b (16, 256). `a` and `b` are descriptors. K runs across the rows of `b` if
// `ACROSS` is 1.
template <typename T, int ACROSS>
__device__ __forceinline__ void multiply(float (&c)[128], u64 a, u64 b);

#define MULTIPLY(T) \
    template <> MULTIPLY_BODY(T, 0) \
    template <> MULTIPLY_BODY(T, 1)
#define MULTIPLY_BODY(T, ACROSS) \
    __device__ __forceinline__ void multiply<T, ACROSS>(float (&c)[128], u64 a, u64 b) { \
        asm volatile( \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." #T "." #T " " \
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
        "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
        "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
        "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
        "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, " \
        "%128, %129, 1, 1, 1, 0, " #ACROSS ";" \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), \
          "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), \
          "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), \
          "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), \
          "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), \
          "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), \
          "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]), "+f"(c[49]), \
          "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]), \
          "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]), \
          "+f"(c[64]), "+f"(c[65]), "+f"(c[66]), "+f"(c[67]), "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), \
          "+f"(c[71]), "+f"(c[72]), "+f"(c[73]), "+f"(c[74]), "+f"(c[75]), "+f"(c[76]), "+f"(c[77]), \
          "+f"(c[78]), "+f"(c[79]), "+f"(c[80]), "+f"(c[81]), "+f"(c[82]), "+f"(c[83]), "+f"(c[84]), \
          "+f"(c[85]), "+f"(c[86]), "+f"(c[87]), "+f"(c[88]), "+f"(c[89]), "+f"(c[90]), "+f"(c[91]), \
          "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]), "+f"(c[96]), "+f"(c[97]), "+f"(c[98]), \
          "+f"(c[99]), "+f"(c[100]), "+f"(c[101]), "+f"(c[102]), "+f"(c[103]), "+f"(c[104]), "+f"(c[105]), \
          "+f"(c[106]), "+f"(c[107]), "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]), "+f"(c[112]), \
          "+f"(c[113]), "+f"(c[114]), "+f"(c[115]), "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]), \
          "+f"(c[120]), "+f"(c[121]), "+f"(c[122]), "+f"(c[123]), "+f"(c[124]), "+f"(c[125]), "+f"(c[126]), \
          "+f"(c[127]) \
        : "l"(a), "l"(b)); \
    }
FOR_HALF_TYPES(MULTIPLY)

// Starts to copy `ROWS` rows of one step to a tile whose rows run along K. Elements outside the matrix become
// zeros.
template <typename T, int ROWS>
struct AlongCopy {
    const T* from;
    int row, col, rows, cols, to;
    i64 ld;

    __device__ __forceinline__ AlongCopy(const T* matrix, int ld, int row0, int col0, int rows, int cols)
        : row(row0 + threadIdx.x / VECTORS), col(col0 + threadIdx.x % VECTORS * 8), rows(rows), cols(cols), ld(ld) {
        from = matrix + row * this->ld + col;
        to = threadIdx.x / VECTORS * ROW_BYTES + (threadIdx.x % VECTORS ^ threadIdx.x / VECTORS % 8) * 16;
    }

    __device__ __forceinline__ void copy(u8* tile) {
        constexpr int ROWS_AT_ONCE = THREADS / VECTORS;
#pragma unroll
        for (int i = 0; i < ROWS / ROWS_AT_ONCE; ++i) {
            bool is_valid = row + i * ROWS_AT_ONCE < rows && col < cols;
            copy16_async(tile + to + i * ROWS_AT_ONCE * ROW_BYTES, from + i * ROWS_AT_ONCE * ld, is_valid);
        }
        from += TILE_K;
        col += TILE_K;
    }
};

// Starts to copy the rows of one step of `w` (K, N) to tiles of 64 columns, whose rows run across K.
template <typename T>
struct AcrossCopy {
    const T* from;
    int row, col, rows, cols, to;
    i64 ld;

    __device__ __forceinline__ AcrossCopy(const T* matrix, int ld, int row0, int col0, int rows, int cols)
        : row(row0 + threadIdx.x / WARP), col(col0 + threadIdx.x % WARP * 8), rows(rows), cols(cols), ld(ld) {
        from = matrix + row * this->ld + col;
        int vector = threadIdx.x % WARP, at = threadIdx.x / WARP;
        to = vector / VECTORS * BLOCK_BYTES + at * ROW_BYTES + (vector % VECTORS ^ at) * 16;
    }

    __device__ __forceinline__ void copy(u8* tile) {
        constexpr int ROWS_AT_ONCE = THREADS / WARP;
#pragma unroll
        for (int i = 0; i < TILE_K / ROWS_AT_ONCE; ++i) {
            bool is_valid = row + i * ROWS_AT_ONCE < rows && col < cols;
            copy16_async(tile + to + i * ROWS_AT_ONCE * ROW_BYTES, from + i * ROWS_AT_ONCE * ld, is_valid);
        }
        from += TILE_K * ld;
        row += TILE_K;
    }
};

template <typename T, bool NT>
struct WeightCopy : AlongCopy<T, TILE_N> {
    using AlongCopy<T, TILE_N>::AlongCopy;
};

template <typename T>
struct WeightCopy<T, false> : AcrossCopy<T> {
    using AcrossCopy<T>::AcrossCopy;
};

// `O` is the type of the result: T, or f32 for parts of K.
template <typename T, typename O, bool NT>
__device__ __forceinline__ void gemm_wgmma(O* __restrict__ out, const T* __restrict__ x, const T* __restrict__ w,
    const O* add, int m, int n, int k, int ld_out, int ld_x, int ld_w, int ld_add, float beta) {
    extern __shared__ __align__(1024) u8 shared[];
    Origin origin(m, n, TILE_M, TILE_N);
    int steps = ceil_div(k, TILE_K), first = 0;
    if constexpr (sizeof(O) == 4) {
        int part = ceil_div(steps, (int)gridDim.y);
        first = min(blockIdx.y * part, steps);
        steps = min(part, steps - first);
        out += (i64)blockIdx.y * m * ld_out;
    }
    AlongCopy<T, TILE_M> x_copy(x, ld_x, origin.row, first * TILE_K, m, k);
    WeightCopy<T, NT> w_copy = NT ? WeightCopy<T, NT>(w, ld_w, origin.col, first * TILE_K, n, k)
                                  : WeightCopy<T, NT>(w, ld_w, first * TILE_K, origin.col, k, n);
    auto load = [&](int step) {
        if (step < steps) {
            u8* stage = shared + step % STAGES * STAGE_BYTES;
            x_copy.copy(stage);
            w_copy.copy(stage + X_BYTES);
        }
        copy_commit();
    };
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = warp / 4;
    float sums[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) sums[i] = 0;
    pin(sums);
#pragma unroll
    for (int step = 0; step < STAGES - 2; ++step) load(step);
    for (int step = 0; step < steps; ++step) {
        copy_wait<STAGES - 3>();
        publish_copies();
        __syncthreads();
        const u8* xs = shared + step % STAGES * STAGE_BYTES + group * 64 * ROW_BYTES;
        const u8* ws = shared + step % STAGES * STAGE_BYTES + X_BYTES;
        multiply_begin();
#pragma unroll
        for (int part = 0; part < TILE_K; part += 16)
            multiply<T, !NT>(sums, operand(xs + part * 2),
                NT ? operand(ws + part * 2) : operand(ws + part * ROW_BYTES, BLOCK_BYTES));
        multiply_commit();
        load(step + STAGES - 2);
        multiply_wait<1>();
    }
    multiply_wait<0>();
    pin(sums);
    // g = lane / 4 and t = lane % 4. sums[4j + 2h + e] belongs to column 8j + 2t + e, and to row g + 8h of
    // the warp's 16 rows.
#pragma unroll
    for (int j = 0; j < TILE_N / 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int row = origin.row + warp * 16 + half * 8 + lane / 4, col = origin.col + j * 8 + lane % 4 * 2;
            if (row >= m || col >= n) continue;
            const float* pair = sums + 4 * j + 2 * half;
            write_pair<T, O, true>(out + (i64)row * ld_out + col, add + (i64)row * ld_add + col, pair[0], pair[1], beta, 2);
        }
}

}  // namespace

// Requirements: 16-byte aligned operands, with rows of whole 16-byte vectors.
//
// Grid: as many thread blocks in x as `out` has tiles. Shared bytes: STAGES * 49152. `_split` writes a part
// of K for each y of the grid, (parts, m, n) in f32, and `gemm_sum` adds the parts.
#define KERNEL(NAME, T, O, NT)                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME##_##T(O* out, const T* x, const T* w, const O* add,  \
        int m, int n, int k, int ld_out, int ld_x, int ld_w, int ld_add, float beta) {                                 \
        gemm_wgmma<T, O, NT>(out, x, w, add, m, n, k, ld_out, ld_x, ld_w, ld_add, beta);                               \
    }
#define GEMM(T)                               \
    KERNEL(gemm_wgmma_nt, T, T, true)         \
    KERNEL(gemm_wgmma_nn, T, T, false)        \
    KERNEL(gemm_wgmma_nt_split, T, float, true) \
    KERNEL(gemm_wgmma_nn_split, T, float, false)
FOR_HALF_TYPES(GEMM)

#endif
