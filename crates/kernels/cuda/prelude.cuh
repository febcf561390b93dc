// Types and instructions shared by all kernels. The NVRTC wheel has no toolkit headers, so none is included.
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

// Instantiates `M(type)` for every activation type of the architecture.
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

// ---- Conversions. They round to nearest even, as on the host.

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

// Packs two values into one register, the first in the lower half.
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

// ---- Functions whose speed depends on the activation type. Those of f32 are accurate to the last places.

template <typename T>
__device__ __forceinline__ float tanh_of(float x) {
    return 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x));
}

template <>
__device__ __forceinline__ float tanh_of<float>(float x) {
    return tanhf(x);
}

// Returns the largest finite f16 in place of a larger value. NaN stays NaN.
template <typename T>
__device__ __forceinline__ float saturate(float x) {
    return x;
}

template <>
__device__ __forceinline__ float saturate<f16>(float x) {
    return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
}

// ---- Vectors of 16 bytes.

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

// Loads eight elements from a 16-byte boundary as f32.
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

// ---- Sums and maxima in a fixed order. Every lane or thread gets the result.

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

// `shared` has 32 values. The block size is a multiple of a warp.
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

// ---- Asynchronous copies into shared memory.

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Copies 16 bytes, or writes zeros without reading `from` if `valid` is false.
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

__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;");
#endif
}

// Waits until at most `PENDING` copy groups of this thread are pending. A barrier must follow.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING));
#endif
}

// ---- Matrix fragments.

// Loads four 8x8 tiles of 16-bit elements. Lane `i` passes the address of row `i % 8` of tile `i / 8`.
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

// c (16x8, f32) += a (16x16, rows) b (16x8, columns).
//
// With `g = lane / 4`, `t = lane % 4`: a[0], a[1] hold columns 2t, 2t+1 of rows g, g + 8; a[2], a[3] columns 2t + 8,
// 2t + 9. b[0], b[1] hold rows 2t, 2t+1 and 2t + 8, 2t + 9 of column g. c holds columns 2t, 2t+1 of rows g, g + 8.
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

// ---- Overlap with the kernels before and after.

// Lets the next kernel of the stream start, if its launch allows this, and waits until all results of the kernels
// before are visible. A kernel whose launch allows overlap calls it before it reads those results, and before it
// writes. The compiler may load `const __restrict__` data before the wait, so those results have no `__restrict__`.
__device__ __forceinline__ void overlap_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- Counter-based random numbers, equal to the host's `rng::keep`.

__device__ __forceinline__ bool keep(u64 key, u64 counter, float probability) {
    u64 z = key + counter * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return (float)(u32)(z >> 40) * (1.0f / 16777216.0f) >= probability;
}
