// The AdamW update, and the sum of squares of the gradients for clipping.
#include "prelude.cuh"

// Updates `len` parameters and their moments `m` and `v` by one AdamW step, in f32. The host computes each
// factor in f64 and rounds it once:
//     decay = 1 - learning_rate * weight_decay    rate = -learning_rate / (1 - beta1^step)
//     keep1 = beta1, take1 = 1 - beta1            root_scale = 1 / sqrt(1 - beta2^step)
//     keep2 = beta2, take2 = 1 - beta2
//
// Grid: ceil(len / 1024 parameters). Each of the 256 threads of a thread block updates 4 parameters.
extern "C" __global__ void __launch_bounds__(256) adamw(float* params, const float* grads, float* m, float* v,
    i64 len, float grad_scale, float decay, float rate, float keep1, float take1, float keep2, float take2,
    float root_scale, float eps) {
    i64 first = (i64)blockIdx.x * 1024 + threadIdx.x;
    for (int i = 0; i < 4; ++i) {
        i64 at = first + i * 256;
        if (at >= len) return;
        float g = grads[at] * grad_scale;
        float mean = fmaf(keep1, m[at], take1 * g);
        float square = fmaf(keep2, v[at], __fmul_rn(take2 * g, g));
        m[at] = mean;
        v[at] = square;
        float update = mean / fmaf(sqrtf(square), root_scale, eps);
        params[at] = __fadd_rn(__fmul_rn(params[at], decay), __fmul_rn(update, rate));
    }
}

// Number of elements per thread block of `sum_of_squares`.
#define CHUNK 16384

// partial[b] = the sum of squares of the elements of chunk b, in f64. A chunk has 16384 elements.
// Grid: the number of chunks, ceil(len / 16384 elements).
extern "C" __global__ void __launch_bounds__(256) sum_of_squares(double* partial, const float* x, i64 len) {
    __shared__ double shared[32];
    i64 start = (i64)blockIdx.x * CHUNK;
    i64 end = min(start + CHUNK, len);
    double sum = 0;
    for (i64 at = start + threadIdx.x; at < end; at += 256) sum += (double)x[at] * (double)x[at];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out = the sum of the `count` elements of `partial`.
// Grid: 1 thread block.
extern "C" __global__ void __launch_bounds__(256) sum_partials(double* out, const double* partial, int count) {
    __shared__ double shared[32];
    double sum = 0;
    for (int at = threadIdx.x; at < count; at += 256) sum += partial[at];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) *out = sum;
}
