// Matrix products of a warpgroup, which is 4 warps, on sm_90a. `wgmma` reads operands from shared memory
// asynchronously: it returns before the product is finished.
#pragma once
#include "prelude.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

// Returns the descriptor of an operand in shared memory. A tile has rows of 128 bytes and starts at a
// multiple of 1024 bytes. The 128-byte swizzle stores vector v (16 bytes) of row r at position v ^ (r % 8).
//
// If K runs along the rows, `from` is the first of the 16 elements of K in row 0, and `block_bytes` has no
// effect. If K runs across the rows, `from` is the first of the 16 rows, and tiles of 64 columns follow each
// other at a distance of `block_bytes`.
//
// Bits 0 to 13 are the address / 16, bits 16 to 29 `block_bytes` / 16. Bits 32 to 45 are the distance of
// groups of 8 rows: 64 units of 16 bytes. Bit 62 selects the 128-byte swizzle.
__device__ __forceinline__ u64 operand(const u8* from, int block_bytes = 16) {
    return (u64)(shared_address(from) >> 4 & 0x3fff) | (u64)(block_bytes >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

// Stops the compiler from moving or reading the accumulators while `wgmma` still writes them.
template <int LEN>
__device__ __forceinline__ void pin(float (&c)[LEN]) {
#pragma unroll
    for (int i = 0; i < LEN; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// Makes finished copies of this thread visible to `wgmma`. Other threads need a barrier after this call.
__device__ __forceinline__ void publish_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products: the products that this warpgroup started after the previous call.
__device__ __forceinline__ void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Blocks until at most `PENDING` groups of products are unfinished.
template <int PENDING>
__device__ __forceinline__ void multiply_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#endif
