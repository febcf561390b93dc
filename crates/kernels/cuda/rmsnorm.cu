// Root mean square normalization (RMSNorm) of rows of `c` elements:
//
//     forward     rstd = 1 / sqrt(mean(inp^2) + eps)
//                 out = weight * inp * rstd
//     backward    dinp = rstd * (weight * dout - inp * rstd^2 * mean(weight * dout * inp))
//
// If `accumulate` is set, the backward kernel adds to dinp. One thread block processes one row, in vectors of
// 8 elements. Each thread stores its first 2 vectors in registers, and reads its other vectors again in each
// loop.
//
// `S` is the type of the residual stream (inp and dinp), and `T` the type of out and dout. The two types
// differ only if activations are f16: the residual stream is then f32.
#include "prelude.cuh"

// Number of elements per vector, and of vectors per thread that stay in registers.
#define PART 8
#define HELD 2

// One vector of eight elements.
template <typename T>
struct Part {
    Vec<T> v[PART / Vec<T>::LEN];
};

// The vectors of a row that belong to a thread: threadIdx.x, threadIdx.x + blockDim.x and so on. `held` has
// the first `HELD` of them.
template <typename T>
struct Row {
    const T* x;
    Part<T> held[HELD];

    static __device__ __forceinline__ Part<T> load(const T* from) {
        Part<T> out;
#pragma unroll
        for (int i = 0; i < PART / Vec<T>::LEN; ++i) out.v[i] = load16(from + i * Vec<T>::LEN);
        return out;
    }

    __device__ __forceinline__ Row(const T* x, int parts) : x(x) {
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            int p = threadIdx.x + i * blockDim.x;
            if (p < parts) held[i] = load(x + p * PART);
        }
    }

    // Converts vector `p` of the row to f32. `i` is its index in `held`, or `HELD` if it must be read from
    // memory.
    __device__ __forceinline__ void get(float (&out)[PART], int i, int p) const {
        Part<T> part = i < HELD ? held[i] : load(x + p * PART);
#pragma unroll
        for (int j = 0; j < PART; ++j) out[j] = to_float(part.v[j / Vec<T>::LEN].v[j % Vec<T>::LEN]);
    }
};

// Calls `f(i, p)` for each vector of this thread. `p` is the index in the row. `i` is the index in `held`, or
// `HELD` for vectors that are not in registers. `i` is a compile-time constant, because registers cannot be
// indexed at run time.
template <typename F>
__device__ __forceinline__ void for_parts(int parts, F f) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        int p = threadIdx.x + i * blockDim.x;
        if (p < parts) f(i, p);
    }
#pragma unroll 1
    for (int p = threadIdx.x + HELD * blockDim.x; p < parts; p += blockDim.x) f(HELD, p);
}

template <typename T, typename S>
__device__ __forceinline__ void rmsnorm_forward_body(
    T* out, float* rstd, const S* inp, const float* __restrict__ weight, int c, i64 ld_out, i64 ld_inp, float eps) {
    __shared__ float shared[32];
    overlap_kernels();
    const S* x = inp + blockIdx.x * ld_inp;
    T* y = out + blockIdx.x * ld_out;
    int parts = aligned16(x) && aligned16(y) && aligned16(weight) ? c / PART : 0;
    Row<S> row(x, parts);
    float sum = 0;
    for_parts(parts, [&](int i, int p) {
        float a[PART];
        row.get(a, i, p);
#pragma unroll
        for (int j = 0; j < PART; ++j) sum += a[j] * a[j];
    });
    for (int at = parts * PART + threadIdx.x; at < c; at += blockDim.x) sum += to_float(x[at]) * to_float(x[at]);
    float scale = 1.0f / sqrtf(block_sum(sum, shared) / c + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
    for_parts(parts, [&](int i, int p) {
        float a[PART], w[PART];
        row.get(a, i, p);
        load8(w, weight + p * PART);
#pragma unroll
        for (int j = 0; j < PART; ++j) a[j] = a[j] * scale * w[j];
        store8(y + p * PART, a);
    });
    for (int at = parts * PART + threadIdx.x; at < c; at += blockDim.x)
        y[at] = from_float<T>(to_float(x[at]) * scale * weight[at]);
}

template <typename T, typename S>
__device__ __forceinline__ void rmsnorm_backward_body(S* dinp, const T* __restrict__ dout,
    const S* __restrict__ inp, const float* __restrict__ rstd, const float* __restrict__ weight, int c,
    i64 ld_dinp, i64 ld_dout, i64 ld_inp, int accumulate) {
    __shared__ float shared[32];
    const S* x = inp + blockIdx.x * ld_inp;
    const T* dy = dout + blockIdx.x * ld_dout;
    S* dx = dinp + blockIdx.x * ld_dinp;
    float scale = rstd[blockIdx.x];
    int parts = aligned16(x) && aligned16(dy) && aligned16(dx) && aligned16(weight) ? c / PART : 0;
    Row<S> xs(x, parts);
    Row<T> dys(dy, parts);
    Row<S> dxs(dx, accumulate ? parts : 0);
    float sum = 0;
    for_parts(parts, [&](int i, int p) {
        float a[PART], d[PART], w[PART];
        xs.get(a, i, p);
        dys.get(d, i, p);
        load8(w, weight + p * PART);
#pragma unroll
        for (int j = 0; j < PART; ++j) sum += w[j] * d[j] * a[j];
    });
    for (int at = parts * PART + threadIdx.x; at < c; at += blockDim.x)
        sum += weight[at] * to_float(dy[at]) * to_float(x[at]);
    float slope = block_sum(sum, shared) * scale / c * scale;
    for_parts(parts, [&](int i, int p) {
        float a[PART], d[PART], w[PART], to[PART];
        xs.get(a, i, p);
        dys.get(d, i, p);
        load8(w, weight + p * PART);
        if (accumulate) dxs.get(to, i, p);
#pragma unroll
        for (int j = 0; j < PART; ++j) {
            float g = scale * (w[j] * d[j] - a[j] * slope);
            to[j] = accumulate ? to[j] + g : g;
        }
        store8(dx + p * PART, to);
    });
    for (int at = parts * PART + threadIdx.x; at < c; at += blockDim.x) {
        float g = scale * (weight[at] * to_float(dy[at]) - to_float(x[at]) * slope);
        dx[at] = from_float<S>(accumulate ? to_float(dx[at]) + g : g);
    }
}

// A thread block has 32 to 256 threads. Their number depends only on `c`, so the order of the sum does not
// depend on the batch.
// Grid: n, one thread block per row.
#define KERNELS(NAME, T, S)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256, 4) rmsnorm_forward_##NAME(T* out, float* rstd,              \
        const S* inp, const float* weight, int c, i64 ld_out, i64 ld_inp, float eps) {                         \
        rmsnorm_forward_body(out, rstd, inp, weight, c, ld_out, ld_inp, eps);                                  \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                       \
        rmsnorm_backward_##NAME(S* dinp, const T* dout, const S* inp, const float* rstd, const float* weight,  \
            int c, i64 ld_dinp, i64 ld_dout, i64 ld_inp, int accumulate) {                                     \
        rmsnorm_backward_body(dinp, dout, inp, rstd, weight, c, ld_dinp, ld_dout, ld_inp, accumulate);         \
    }
#define SAME_KERNELS(T) KERNELS(T, T, T)
FOR_TYPES(SAME_KERNELS)
// f16 activations with a residual stream of f32.
KERNELS(f16_over_f32, f16, f32)
