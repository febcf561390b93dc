// The embedding lookup. The table may lie in pinned host memory.
#include "prelude.cuh"

template <typename T, typename U>
__device__ __forceinline__ void embedding_row(T* __restrict__ out, const U* __restrict__ row, int cols) {
    int done = 0;
    if (aligned16(out) && aligned16(row)) {
        done = cols / 8 * 8;
        for (int at = threadIdx.x * 8; at < done; at += blockDim.x * 8) {
            float x[8];
            load8(x, row + at);
            store8(out + at, x);
        }
    }
    for (int at = done + threadIdx.x; at < cols; at += blockDim.x) out[at] = from_float<T>(to_float(row[at]));
}

// out[i] = table[ids[i]], the table of type 0 bf16, 1 f16, 2 f32. Grid: n.
#define EMBEDDING_KERNEL(T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) embedding_forward_##T(                                   \
        T* out, const void* table, const u32* ids, int cols, i64 ld_out, int table_type) {                     \
        T* to = out + blockIdx.x * ld_out;                                                                     \
        i64 from = (i64)ids[blockIdx.x] * cols;                                                                \
        if (table_type == 0) embedding_row(to, (const bf16*)table + from, cols);                               \
        if (table_type == 1) embedding_row(to, (const f16*)table + from, cols);                                \
        if (table_type == 2) embedding_row(to, (const f32*)table + from, cols);                                \
    }
FOR_TYPES(EMBEDDING_KERNEL)
