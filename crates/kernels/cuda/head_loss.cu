// Losses (softmax cross-entropy) of a chunk of rows of logits (n, v), and their gradients. v is the size of
// the vocabulary.
#include "prelude.cuh"

template <typename T>
__device__ __forceinline__ float exponential(float x) {
    return __expf(x);
}

template <>
__device__ __forceinline__ float exponential<float>(float x) {
    return expf(x);
}

// Merges the maximum and the sum of two sets of logits. `sum` is the sum of exp(logit - maximum) over a set.
template <typename T>
__device__ __forceinline__ void join(float& max, float& sum, float other_max, float other_sum) {
    float top = fmaxf(max, other_max);
    // An empty set has the sum 0 and the maximum -inf. Equal maxima get the factor 1, because `-inf - -inf`
    // is NaN.
    float a = max == top ? 1.0f : exponential<T>(max - top);
    float b = other_max == top ? 1.0f : exponential<T>(other_max - top);
    sum = sum * a + other_sum * b;
    max = top;
}

// Returns softcap * tanh(x / softcap), or x if `softcap` is 0.
template <typename T>
__device__ __forceinline__ float capped(T x, float softcap) {
    return softcap != 0 ? softcap * tanh_of<T>(to_float(x) / softcap) : to_float(x);
}

// Returns the derivative of `capped` from its result: 1 - (capped / softcap)^2, or 1 without a cap.
__device__ __forceinline__ float cap_slope(float capped, float softcap) {
    return softcap != 0 ? 1.0f - capped / softcap * (capped / softcap) : 1.0f;
}

// losses[i] = -log(softmax(z)[targets[i]]), where z is row i of `logits` after the cap. If `dloss` is not
// null, the gradient dloss[i] * (softmax(z) - onehot(targets[i])) * (derivative of the cap) replaces row i of
// `logits`. A target of 0xffffffff marks a row without a label: its loss and its gradient are 0.
template <typename T>
__device__ __forceinline__ void head_loss_body(T* __restrict__ logits, float* __restrict__ losses,
    const u32* __restrict__ targets, const float* __restrict__ dloss, int v, i64 ld, float softcap) {
    constexpr int LEN = Vec<T>::LEN;
    __shared__ float maxima[32], sums[32];
    T* row = logits + blockIdx.x * ld;
    u32 target = targets[blockIdx.x];
    int done = aligned16(row) ? v / LEN * LEN : 0;
    bool is_labelled = target != 0xffffffffu;
    float max = NEGATIVE_INFINITY, sum = 0, picked = is_labelled ? capped(row[target], softcap) : 0;
    for (int at = threadIdx.x * LEN; at < done && is_labelled; at += blockDim.x * LEN) {
        Vec<T> x = load16(row + at);
        float top = max, logit[LEN];
#pragma unroll
        for (int i = 0; i < LEN; ++i) {
            logit[i] = capped(x.v[i], softcap);
            top = fmaxf(top, logit[i]);
        }
        sum *= max == top ? 1.0f : exponential<T>(max - top);
        max = top;
#pragma unroll
        for (int i = 0; i < LEN; ++i) sum += exponential<T>(logit[i] - max);
    }
    for (int at = done + threadIdx.x; at < v && is_labelled; at += blockDim.x)
        join<T>(max, sum, capped(row[at], softcap), 1.0f);
    for (int lane = 16; lane > 0; lane /= 2) {
        float other_max = __shfl_xor_sync(FULL_MASK, max, lane), other_sum = __shfl_xor_sync(FULL_MASK, sum, lane);
        join<T>(max, sum, other_max, other_sum);
    }
    if (threadIdx.x % WARP == 0) {
        maxima[threadIdx.x / WARP] = max;
        sums[threadIdx.x / WARP] = sum;
    }
    // Every thread has read `picked` before this barrier. The gradient overwrites row[target] after it.
    __syncthreads();
    max = maxima[0];
    sum = sums[0];
    for (int warp = 1; warp < blockDim.x / WARP; ++warp) join<T>(max, sum, maxima[warp], sums[warp]);
    if (threadIdx.x == 0) losses[blockIdx.x] = is_labelled ? max + logf(sum) - picked : 0;
    if (!dloss) return;
    float factor = is_labelled ? dloss[blockIdx.x] : 0, scale = is_labelled ? factor / sum : 0;
    auto gradient = [&](T x, int at) {
        float logit = capped(x, softcap), d = is_labelled ? scale * exponential<T>(logit - max) : 0;
        if (at == target) d -= factor;
        return from_float<T>(d * cap_slope(logit, softcap));
    };
    for (int at = threadIdx.x * LEN; at < done; at += blockDim.x * LEN) {
        Vec<T> x = load16(row + at);
#pragma unroll
        for (int i = 0; i < LEN; ++i) x.v[i] = gradient(x.v[i], at + i);
        store16(row + at, x);
    }
    for (int at = done + threadIdx.x; at < v; at += blockDim.x) row[at] = gradient(row[at], at);
}

// Losses and gradients of n rows. A thread block has 1024 threads.
// Grid: n, one thread block per row.
#define HEAD_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(1024) head_loss_##T(                                          \
        T* logits, float* losses, const u32* targets, const float* dloss, int v, i64 ld, float softcap) {      \
        head_loss_body(logits, losses, targets, dloss, v, ld, softcap);                                        \
    }
FOR_TYPES(HEAD_KERNEL)
