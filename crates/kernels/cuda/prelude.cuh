// Types, and wrappers of PTX instructions, for all kernels. This file includes no CUDA header such as
// `cuda_fp16.h`, because the PyPI package of NVRTC contains none.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;

struct bf16 {
    u16 bits;
};

struct f16 {
    u16 bits;
};

// `FOR_TYPES(M)` expands `M(type)` for each activation type that the architecture supports.
// `FOR_HALF_TYPES(M)` leaves out f32. Devices below compute capability 8.0 have no bf16 instructions.
#if __CUDA_ARCH__ >= 800
#define FOR_TYPES(M) M(bf16) M(f16) M(f32)
#define FOR_HALF_TYPES(M) M(bf16) M(f16)
#else
#define FOR_TYPES(M) M(f16) M(f32)
#define FOR_HALF_TYPES(M) M(f16)
#endif

#define WARP 32
#define FULL_MASK 0xffffffffu
#define NEGATIVE_INFINITY __uint_as_float(0xff800000u)

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// ---- Conversions. They round to the nearest value, and ties to even, as on the host.

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

__device__ __forceinline__ float to_float(f16 x) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
}

template <typename T>
__device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}

template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 out;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    u32 bits = __float_as_uint(x);
    out.bits = x != x ? 0x7fff : (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
    return out;
}

template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}

// Rounds two values to T and packs them into one register, with `low` in the lower 16 bits.
template <typename T>
__device__ __forceinline__ u32 pack2(float low, float high) {
    return (u32)from_float<T>(low).bits | (u32)from_float<T>(high).bits << 16;
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ u32 pack2<bf16>(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

template <>
__device__ __forceinline__ u32 pack2<f16>(float low, float high) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
#endif

// ---- Functions that depend on the activation type T.

// Returns the hyperbolic tangent. 16-bit types use the fast exponential; f32 uses CUDA's accurate `tanhf`.
template <typename T>
__device__ __forceinline__ float tanh_of(float x) {
    return 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x));
}

template <>
__device__ __forceinline__ float tanh_of<float>(float x) {
    return tanhf(x);
}

// Limits x to the finite range of f16 (-65504 to 65504) if T is f16. Other types keep x, and NaN stays NaN.
template <typename T>
__device__ __forceinline__ float saturate(float x) {
    return x;
}

template <>
__device__ __forceinline__ float saturate<f16>(float x) {
    return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
}

// ---- Vectors of 16 bytes: 4 elements of f32, or 8 elements of a 16-bit type.

template <typename T>
struct __align__(16) Vec {
    static constexpr int LEN = 16 / sizeof(T);
    T v[16 / sizeof(T)];
};

template <typename T>
__device__ __forceinline__ Vec<T> load16(const T* from) {
    Vec<T> out;
    *reinterpret_cast<uint4*>(&out) = *reinterpret_cast<const uint4*>(from);
    return out;
}

template <typename T>
__device__ __forceinline__ void store16(T* to, const Vec<T>& value) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&value);
}

// Loads eight elements and converts them to f32. `from` is 16-byte aligned.
template <typename T>
__device__ __forceinline__ void load8(float (&out)[8], const T* from) {
#pragma unroll
    for (int i = 0; i < 8; i += Vec<T>::LEN) {
        Vec<T> part = load16(from + i);
#pragma unroll
        for (int j = 0; j < Vec<T>::LEN; ++j) out[i + j] = to_float(part.v[j]);
    }
}

template <typename T>
__device__ __forceinline__ void store8(T* to, const float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += Vec<T>::LEN) {
        Vec<T> part;
#pragma unroll
        for (int j = 0; j < Vec<T>::LEN; ++j) part.v[j] = from_float<T>(values[i + j]);
        store16(to + i, part);
    }
}

__device__ __forceinline__ bool aligned16(const void* p) { return ((u64)p & 15) == 0; }

// ---- Sums and maxima over a warp or a thread block. The additions have a fixed order. Every thread gets the
// result.

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(FULL_MASK, x, lane);
    return x;
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(FULL_MASK, x, lane);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, lane));
    return x;
}

// Returns the sum of `x` over all threads of the thread block. `shared` has room for 32 values, one per warp.
// The number of threads is a multiple of 32.
template <typename F>
__device__ __forceinline__ F block_sum(F x, F* shared) {
    int warps = (blockDim.x + WARP - 1) / WARP;
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    F sum = 0;
    for (int i = 0; i < warps; ++i) sum += shared[i];
    return sum;
}

__device__ __forceinline__ float block_max(float x, float* shared) {
    int warps = (blockDim.x + WARP - 1) / WARP;
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    float max = shared[0];
    for (int i = 1; i < warps; ++i) max = fmaxf(max, shared[i]);
    return max;
}

// ---- Asynchronous copies from global to shared memory. Below compute capability 8.0 they are synchronous.

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Starts to copy 16 bytes. If `valid` is false, the copy does not read `from` and writes zeros.
__device__ __forceinline__ void copy16_async(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
#else
    uint4 value = make_uint4(0, 0, 0, 0);
    if (valid) value = *reinterpret_cast<const uint4*>(from);
    *reinterpret_cast<uint4*>(to) = value;
#endif
}

// Ends a copy group: the copies that this thread started after the previous call.
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;");
#endif
}

// Blocks until at most `PENDING` copy groups of this thread are unfinished. Other threads may read the copied
// data only after a barrier.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING));
#endif
}

// ---- Matrix fragments: the elements of a small matrix that each lane of a warp holds in registers.

// Loads four 8x8 matrices of 16-bit elements. Lane `i` passes the address of row `i % 8` of matrix `i / 8`.
__device__ __forceinline__ void load_matrix_x4(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row)));
}

__device__ __forceinline__ void load_matrix_x4_transposed(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row)));
}

__device__ __forceinline__ void load_matrix_x2(u32 (&out)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row)));
}

// c (16, 8) += a (16, 16) b (16, 8), with c in f32 and the operands in T. `a` is the left operand, and `b`
// the right.
//
// Each lane holds some elements of each matrix. With g = lane / 4 and t = lane % 4, these are:
//     a[0], a[1]    columns 2t and 2t + 1 of row g, and of row g + 8
//     a[2], a[3]    columns 2t + 8 and 2t + 9 of row g, and of row g + 8
//     b0, b1        rows 2t and 2t + 1 of column g, and rows 2t + 8 and 2t + 9 of column g
//     c[0], c[1]    columns 2t and 2t + 1 of row g
//     c[2], c[3]    columns 2t and 2t + 1 of row g + 8
//
// For example, lane 5 (g = 1, t = 1) holds columns 2 and 3 of rows 1 and 9 of c. Other files use g and t in
// this sense.
template <typename T>
__device__ __forceinline__ void mma16816(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
__device__ __forceinline__ void mma16816<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

template <>
__device__ __forceinline__ void mma16816<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// ---- Overlap of consecutive kernels of a stream (programmatic dependent launch).

// Lets the next kernel of the stream start, if the launch of that kernel allows overlap. Then blocks until
// the results of all earlier kernels are visible. Does nothing below compute capability 9.0.
//
// A kernel whose launch allows overlap calls this function before it reads those results, and before its
// first write. Pointers to those results must not be `__restrict__`, because the compiler may load
// `const __restrict__` data before the call.
__device__ __forceinline__ void overlap_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- Random numbers for dropout.

// Returns whether dropout keeps the element with number `counter`. The result equals that of `rng::keep` on
// the host.
__device__ __forceinline__ bool keep(u64 key, u64 counter, float probability) {
    u64 z = key + counter * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return (float)(u32)(z >> 40) * (1.0f / 16777216.0f) >= probability;
}
