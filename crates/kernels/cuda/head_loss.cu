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

// losses[i] = -log softmax(logits[i])[targets[i]]. Where `dloss` is given, logits[i] becomes
// dloss[i] * (softmax - onehot). A target of 0xffffffff marks a row without a label: loss 0, gradient 0.
template <typename T>
__device__ __forceinline__ void head_loss_body(T* __restrict__ logits, float* __restrict__ losses,
    const u32* __restrict__ targets, const float* __restrict__ dloss, int v, i64 ld) {
    constexpr int LEN = Vec<T>::LEN;
    __shared__ float maxima[32], sums[32];
    T* row = logits + blockIdx.x * ld;
    u32 target = targets[blockIdx.x];
    int done = aligned16(row) ? v / LEN * LEN : 0;
    bool is_labelled = target != 0xffffffffu;
    float max = NEGATIVE_INFINITY, sum = 0, picked = is_labelled ? to_float(row[target]) : 0;
    for (int at = threadIdx.x * LEN; at < done && is_labelled; at += blockDim.x * LEN) {
        Vec<T> x = load16(row + at);
        float top = max;
#pragma unroll
        for (int i = 0; i < LEN; ++i) top = fmaxf(top, to_float(x.v[i]));
        sum *= max == top ? 1.0f : exponential<T>(max - top);
        max = top;
#pragma unroll
        for (int i = 0; i < LEN; ++i) sum += exponential<T>(to_float(x.v[i]) - max);
    }
    for (int at = done + threadIdx.x; at < v && is_labelled; at += blockDim.x)
        join<T>(max, sum, to_float(row[at]), 1.0f);
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
    for (int at = threadIdx.x * LEN; at < done; at += blockDim.x * LEN) {
        Vec<T> x = load16(row + at);
#pragma unroll
        for (int i = 0; i < LEN; ++i) {
            float d = is_labelled ? scale * exponential<T>(to_float(x.v[i]) - max) : 0;
            if (at + i == target) d -= factor;
            x.v[i] = from_float<T>(d);
        }
        store16(row + at, x);
    }
    for (int at = done + threadIdx.x; at < v; at += blockDim.x) {
        float d = is_labelled ? scale * exponential<T>(to_float(row[at]) - max) : 0;
        if (at == target) d -= factor;
        row[at] = from_float<T>(d);
    }
}

// Grid: rows; block: 1024.
#define HEAD_KERNEL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(1024) head_loss_##T(                                          \
        T* logits, float* losses, const u32* targets, const float* dloss, int v, i64 ld) {                     \
        head_loss_body(logits, losses, targets, dloss, v, ld);                                                 \
    }
FOR_TYPES(HEAD_KERNEL)
