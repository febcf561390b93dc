// Softmax cross-entropy over one chunk of rows of logits.
#include "prelude.cuh"

template <typename T>
__device__ __forceinline__ float exponential(float x) {
    return __expf(x);
}

template <>
__device__ __forceinline__ float exponential<float>(float x) {
    return expf(x);
}

// Merges (max, sum) with (other_max, other_sum).
template <typename T>
__device__ __forceinline__ void join(float& max, float& sum, float other_max, float other_sum) {
    float top = fmaxf(max, other_max);
    // Before the first element the sum is 0 and the maximum -inf; -inf - -inf would give NaN.
    float a = max == top ? 1.0f : exponential<T>(max - top);
    float b = other_max == top ? 1.0f : exponential<T>(other_max - top);
    sum = sum * a + other_sum * b;
    max = top;
}

// The loss's logit: `softcap` limits it unless 0.
template <typename T>
__device__ __forceinline__ float capped(T x, float softcap) {
    return softcap != 0 ? softcap * tanh_of<T>(to_float(x) / softcap) : to_float(x);
}

// Derivative of `capped`, from its value.
__device__ __forceinline__ float cap_slope(float capped, float softcap) {
    return softcap != 0 ? 1.0f - capped / softcap * (capped / softcap) : 1.0f;
}

// losses[i] = -log softmax(capped logits[i])[targets[i]]. Where `dloss` is given, logits[i] becomes
// dloss[i] * (softmax - onehot). A target of 0xffffffff marks a row without a label: loss 0, gradient 0.
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
    // The barrier also separates reads of `picked` from the writes below.
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

// Grid: rows; block: 1024.
#define HEAD_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(1024) head_loss_##T(                                          \
        T* logits, float* losses, const u32* targets, const float* dloss, int v, i64 ld, float softcap) {      \
        head_loss_body(logits, losses, targets, dloss, v, ld, softcap);                                        \
    }
FOR_TYPES(HEAD_KERNEL)
