// Operations on rows: add, scale, round, gather and its backward pass, and scatter.
#include "prelude.cuh"

// dst += src, for `len` elements. A thread adds up to LEN neighbours (16 bytes).
// Grid: ceil(len / (256 threads * LEN)).
#define ADD_KERNEL(T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) add_##T(T* dst, const T* src, i64 len) {                 \
        constexpr int LEN = Vec<T>::LEN;                                                                       \
        i64 at = ((i64)blockIdx.x * 256 + threadIdx.x) * LEN;                                                  \
        if (at + LEN <= len && aligned16(dst) && aligned16(src)) {                                             \
            Vec<T> a = load16(dst + at), b = load16(src + at);                                                 \
            for (int i = 0; i < LEN; ++i) a.v[i] = from_float<T>(to_float(a.v[i]) + to_float(b.v[i]));         \
            store16(dst + at, a);                                                                              \
            return;                                                                                            \
        }                                                                                                      \
        for (int i = 0; i < LEN && at + i < len; ++i)                                                          \
            dst[at + i] = from_float<T>(to_float(dst[at + i]) + to_float(src[at + i]));                        \
    }
FOR_TYPES(ADD_KERNEL)

// dst += src, for the residual stream, which is f32 if activations are f16. Grid: ceil(len / 256 threads).
extern "C" __global__ void __launch_bounds__(256) add_to_f32_f16(float* dst, const f16* src, i64 len) {
    i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at < len) dst[at] += to_float(src[at]);
}

// out = inp, rounded to f16. Grid: ceil(len / 256 threads).
extern "C" __global__ void __launch_bounds__(256) round_f16(f16* out, const float* inp, i64 len) {
    i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at < len) out[at] = from_float<f16>(inp[at]);
}

// Adds `bias` (cols) to each of the n rows of `out`. Grid: n, one thread block per row.
#define ADD_BIAS_KERNEL(T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        add_bias_##T(T* out, const float* bias, int cols, i64 ld) {                                            \
        T* row = out + blockIdx.x * ld;                                                                        \
        for (int at = threadIdx.x; at < cols; at += 256)                                                       \
            row[at] = from_float<T>(to_float(row[at]) + bias[at]);                                             \
    }
FOR_TYPES(ADD_BIAS_KERNEL)

// Multiplies each of the n rows of `out` by `factors` (cols), element by element.
// Grid: n, one thread block per row.
#define SCALE_COLUMNS_KERNEL(T)                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        scale_columns_##T(T* out, const float* factors, int cols, i64 ld) {                                    \
        T* row = out + blockIdx.x * ld;                                                                        \
        for (int at = threadIdx.x; at < cols; at += 256)                                                       \
            row[at] = from_float<T>(to_float(row[at]) * factors[at]);                                          \
    }
FOR_TYPES(SCALE_COLUMNS_KERNEL)

// Moves rows of `cols` elements. `lanes` threads copy one row, so a thread block copies 256 / `lanes` rows.
struct RowMove {
    int n, cols, lanes;
    i64 ld_out, ld_inp;

    __device__ __forceinline__ int row() const { return blockIdx.x * (256 / lanes) + threadIdx.x / lanes; }

    template <typename T>
    __device__ __forceinline__ void copy(T* to, const T* from) const {
        constexpr int LEN = Vec<T>::LEN;
        int lane = threadIdx.x % lanes, done = 0;
        if (aligned16(to) && aligned16(from)) {
            done = cols / LEN * LEN;
            for (int at = lane * LEN; at < done; at += lanes * LEN) store16(to + at, load16(from + at));
        }
        for (int at = done + lane; at < cols; at += lanes) to[at] = from[at];
    }
};

// out[i] = inp[rows[i]]. Grid: ceil(n / (256 / lanes)).
#define GATHER_KERNEL(T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) gather_rows_##T(                                         \
        T* out, const T* inp, const u32* rows, int n, int cols, int lanes, i64 ld_out, i64 ld_inp) {           \
        RowMove move = {n, cols, lanes, ld_out, ld_inp};                                                       \
        int row = move.row();                                                                                  \
        if (row < n) move.copy(out + row * ld_out, inp + rows[row] * ld_inp);                                  \
    }
FOR_TYPES(GATHER_KERNEL)

// k[rows[i]] = k_inp[i], and v[rows[i]] = v_inp[i] if there is a second matrix. `rows` has no duplicates.
// Thread blocks with y = 1 copy the second matrix. Grid: (ceil(n / (256 / lanes)), 1 or 2 matrices).
#define SCATTER_KERNEL(T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) scatter_rows_##T(T* k, T* v, const T* k_inp,             \
        const T* v_inp, const u32* rows, int n, int cols, int lanes, i64 ld_out, i64 ld_inp) {                 \
        overlap_kernels();                                                                                     \
        RowMove move = {n, cols, lanes, ld_out, ld_inp};                                                       \
        bool is_value = blockIdx.y == 1;                                                                       \
        int row = move.row();                                                                                  \
        if (row >= n) return;                                                                                  \
        move.copy((is_value ? v : k) + rows[row] * ld_out, (is_value ? v_inp : k_inp) + row * ld_inp);         \
    }
FOR_TYPES(SCATTER_KERNEL)

// dinp[r] = the sum of dout[i] over all i with rows[i] == r. A thread block computes 1024 columns of one row
// r. It reads all `count` entries of `rows`, so the sum has the order of i and needs no atomic additions.
// Grid: (rows of dinp, ceil(cols / 1024 columns)).
template <typename T>
__device__ __forceinline__ void gather_rows_backward_body(T* __restrict__ dinp, const T* __restrict__ dout,
    const u32* __restrict__ rows, int count, int cols, i64 ld_dinp, i64 ld_dout) {
    int first = blockIdx.y * 1024 + threadIdx.x;
    float sum[4] = {0, 0, 0, 0};
    for (int start = 0; start < count; start += 256) {
        bool is_equal = start + threadIdx.x < count && rows[start + threadIdx.x] == blockIdx.x;
        if (!__syncthreads_or(is_equal)) continue;
        for (int i = start; i < min(count, start + 256); ++i) {
            if (rows[i] != blockIdx.x) continue;
            for (int j = 0; j < 4; ++j)
                if (first + 256 * j < cols) sum[j] += to_float(dout[i * ld_dout + first + 256 * j]);
        }
    }
    for (int j = 0; j < 4; ++j)
        if (first + 256 * j < cols) dinp[blockIdx.x * ld_dinp + first + 256 * j] = from_float<T>(sum[j]);
}

#define GATHER_BACKWARD_KERNEL(T)                                                                              \
    extern "C" __global__ void __launch_bounds__(256) gather_rows_backward_##T(                                \
        T* dinp, const T* dout, const u32* rows, int count, int cols, i64 ld_dinp, i64 ld_dout) {              \
        gather_rows_backward_body(dinp, dout, rows, count, cols, ld_dinp, ld_dout);                            \
    }
FOR_TYPES(GATHER_BACKWARD_KERNEL)
