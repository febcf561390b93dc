// Gated activations of feed-forward blocks: SwiGLU (Llama) and GEGLU with the tanh form of GELU (Gemma).
#include "prelude.cuh"

template <typename T>
__device__ __forceinline__ float sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

template <>
__device__ __forceinline__ float sigmoid<float>(float x) {
    return 1.0f / (1.0f + expf(-x));
}

struct Silu {
    template <typename T>
    static __device__ __forceinline__ float value(float x) {
        return x * sigmoid<T>(x);
    }

    template <typename T>
    static __device__ __forceinline__ float slope(float x) {
        float open = sigmoid<T>(x);
        return open * (1.0f + x * (1.0f - open));
    }
};

// Factors of the tanh form of GELU: sqrt(2 / pi), and the coefficient of x^3.
#define FACTOR 0.7978845608028654f
#define CUBIC 0.044715f

struct Gelu {
    template <typename T>
    static __device__ __forceinline__ float inner(float x) {
        return tanh_of<T>(FACTOR * (x + CUBIC * x * x * x));
    }

    template <typename T>
    static __device__ __forceinline__ float value(float x) {
        return 0.5f * x * (1.0f + inner<T>(x));
    }

    template <typename T>
    static __device__ __forceinline__ float slope(float x) {
        float t = inner<T>(x);
        return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * FACTOR * (1.0f + 3.0f * CUBIC * x * x);
    }
};

// out = activation(gate) * up, all (n, cols). A thread computes LEN neighbouring columns (16 bytes) of a row.
// Grid: (n, ceil(cols / (256 threads * LEN))).
template <typename A, typename T>
__device__ __forceinline__ void forward_body(T* out, const T* gate, const T* up, int cols, i64 ld_out, i64 ld_inp) {
    constexpr int LEN = Vec<T>::LEN;
    overlap_kernels();
    T* y = out + blockIdx.x * ld_out;
    const T* g = gate + blockIdx.x * ld_inp;
    const T* u = up + blockIdx.x * ld_inp;
    int at = (blockIdx.y * 256 + threadIdx.x) * LEN;
    auto gated = [](T gate, T up) {
        return from_float<T>(saturate<T>(A::template value<T>(to_float(gate)) * to_float(up)));
    };
    if (at + LEN <= cols && aligned16(y) && aligned16(g) && aligned16(u)) {
        Vec<T> a = load16(g + at), b = load16(u + at);
#pragma unroll
        for (int i = 0; i < LEN; ++i) a.v[i] = gated(a.v[i], b.v[i]);
        store16(y + at, a);
        return;
    }
    for (int i = at; i < at + LEN && i < cols; ++i) y[i] = gated(g[i], u[i]);
}

// dup = dout * activation(gate), and dgate = dout * up * slope(gate), where slope is the derivative of the
// activation. The grid is that of the forward kernel. `dgate` and `dup` may be the memory of `gate` and `up`.
template <typename A, typename T>
__device__ __forceinline__ void backward_body(
    T* dgate, T* dup, const T* dout, const T* gate, const T* up, int cols, i64 ld_dinp, i64 ld_dout, i64 ld_inp) {
    constexpr int LEN = Vec<T>::LEN;
    T* dg = dgate + blockIdx.x * ld_dinp;
    T* du = dup + blockIdx.x * ld_dinp;
    const T* dy = dout + blockIdx.x * ld_dout;
    const T* g = gate + blockIdx.x * ld_inp;
    const T* u = up + blockIdx.x * ld_inp;
    int at = (blockIdx.y * 256 + threadIdx.x) * LEN;
    auto slopes = [](T& first, T& second, T dout, T gate, T up) {
        float d = to_float(dout), x = to_float(gate);
        first = from_float<T>(d * to_float(up) * A::template slope<T>(x));
        second = from_float<T>(d * A::template value<T>(x));
    };
    bool is_aligned = aligned16(dg) && aligned16(du) && aligned16(dy) && aligned16(g) && aligned16(u);
    if (at + LEN <= cols && is_aligned) {
        Vec<T> a = load16(g + at), b = load16(u + at), d = load16(dy + at);
#pragma unroll
        for (int i = 0; i < LEN; ++i) slopes(a.v[i], b.v[i], d.v[i], a.v[i], b.v[i]);
        store16(dg + at, a);
        store16(du + at, b);
        return;
    }
    for (int i = at; i < at + LEN && i < cols; ++i) slopes(dg[i], du[i], dy[i], g[i], u[i]);
}

#define KERNELS(NAME, A, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        NAME##_forward_##T(T* out, const T* gate, const T* up, int cols, i64 ld_out, i64 ld_inp) {             \
        forward_body<A>(out, gate, up, cols, ld_out, ld_inp);                                                  \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) NAME##_backward_##T(T* dgate, T* dup, const T* dout,     \
        const T* gate, const T* up, int cols, i64 ld_dinp, i64 ld_dout, i64 ld_inp) {                          \
        backward_body<A>(dgate, dup, dout, gate, up, cols, ld_dinp, ld_dout, ld_inp);                          \
    }
#define SWIGLU_KERNELS(T) KERNELS(swiglu, Silu, T)
#define GEGLU_KERNELS(T) KERNELS(geglu, Gelu, T)
FOR_TYPES(SWIGLU_KERNELS)
FOR_TYPES(GEGLU_KERNELS)
