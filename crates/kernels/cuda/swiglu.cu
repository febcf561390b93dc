// SwiGLU, the activation of Llama's feed-forward block.
#include "prelude.cuh"

template <typename T>
__device__ __forceinline__ float sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

template <>
__device__ __forceinline__ float sigmoid<float>(float x) {
    return 1.0f / (1.0f + expf(-x));
}

template <typename T>
__device__ __forceinline__ float swiglu(float gate, float up) {
    return gate * sigmoid<T>(gate) * up;
}

// out = silu(gate) * up over rows of `cols`. Grid: n x ceil(cols / (256 * LEN)).
template <typename T>
__device__ __forceinline__ void swiglu_forward_body(
    T* __restrict__ out, const T* __restrict__ gate, const T* __restrict__ up, int cols, i64 ld_out, i64 ld_inp) {
    constexpr int LEN = Vec<T>::LEN;
    T* y = out + blockIdx.x * ld_out;
    const T* g = gate + blockIdx.x * ld_inp;
    const T* u = up + blockIdx.x * ld_inp;
    int at = (blockIdx.y * 256 + threadIdx.x) * LEN;
    if (at + LEN <= cols && aligned16(y) && aligned16(g) && aligned16(u)) {
        Vec<T> a = load16(g + at), b = load16(u + at);
#pragma unroll
        for (int i = 0; i < LEN; ++i) a.v[i] = from_float<T>(swiglu<T>(to_float(a.v[i]), to_float(b.v[i])));
        store16(y + at, a);
        return;
    }
    for (int i = at; i < at + LEN && i < cols; ++i)
        y[i] = from_float<T>(swiglu<T>(to_float(g[i]), to_float(u[i])));
}

#define FORWARD_KERNEL(T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        swiglu_forward_##T(T* out, const T* gate, const T* up, int cols, i64 ld_out, i64 ld_inp) {             \
        swiglu_forward_body(out, gate, up, cols, ld_out, ld_inp);                                              \
    }
FOR_TYPES(FORWARD_KERNEL)

template <typename T>
__device__ __forceinline__ void swiglu_slopes(float& dgate, float& dup, float dy, float gate, float up) {
    float open = sigmoid<T>(gate);
    dup = dy * gate * open;
    dgate = dy * up * (open * (1.0f + gate * (1.0f - open)));
}

// dup = dout * silu(gate), dgate = dout * up * silu'(gate). `dgate` and `dup` may equal `gate` and `up`.
template <typename T>
__device__ __forceinline__ void swiglu_backward_body(
    T* dgate, T* dup, const T* dout, const T* gate, const T* up, int cols, i64 ld_dinp, i64 ld_dout, i64 ld_inp) {
    constexpr int LEN = Vec<T>::LEN;
    T* dg = dgate + blockIdx.x * ld_dinp;
    T* du = dup + blockIdx.x * ld_dinp;
    const T* dy = dout + blockIdx.x * ld_dout;
    const T* g = gate + blockIdx.x * ld_inp;
    const T* u = up + blockIdx.x * ld_inp;
    int at = (blockIdx.y * 256 + threadIdx.x) * LEN;
    float first, second;
    bool is_aligned = aligned16(dg) && aligned16(du) && aligned16(dy) && aligned16(g) && aligned16(u);
    if (at + LEN <= cols && is_aligned) {
        Vec<T> a = load16(g + at), b = load16(u + at), d = load16(dy + at);
#pragma unroll
        for (int i = 0; i < LEN; ++i) {
            swiglu_slopes<T>(first, second, to_float(d.v[i]), to_float(a.v[i]), to_float(b.v[i]));
            a.v[i] = from_float<T>(first);
            b.v[i] = from_float<T>(second);
        }
        store16(dg + at, a);
        store16(du + at, b);
        return;
    }
    for (int i = at; i < at + LEN && i < cols; ++i) {
        swiglu_slopes<T>(first, second, to_float(dy[i]), to_float(g[i]), to_float(u[i]));
        dg[i] = from_float<T>(first);
        du[i] = from_float<T>(second);
    }
}

#define BACKWARD_KERNEL(T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) swiglu_backward_##T(T* dgate, T* dup, const T* dout,     \
        const T* gate, const T* up, int cols, i64 ld_dinp, i64 ld_dout, i64 ld_inp) {                          \
        swiglu_backward_body(dgate, dup, dout, gate, up, cols, ld_dinp, ld_dout, ld_inp);                      \
    }
FOR_TYPES(BACKWARD_KERNEL)
