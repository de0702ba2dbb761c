// What all kernels share. Stands in front of every source; needs no header.
//
// Conventions: matrices are row-major; `bf16` values are read and written in groups of 8 (16 bytes) where a kernel says so; sums are
// in fp32 and in an order that depends on shapes alone, so that the same inputs give the same bits.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

struct bf16 { u16 bits; };

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_float(float x) { return x; }

// Nearest, ties to even.
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

template <typename T> __device__ __forceinline__ T of_float(float x);
template <> __device__ __forceinline__ bf16 of_float<bf16>(float x) { return to_bf16(x); }
template <> __device__ __forceinline__ float of_float<float>(float x) { return x; }

// Two neighbours in 4 bytes, the first in the lower half.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ float low(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(u32 both) { return __uint_as_float(both & 0xffff0000u); }

// 16 bytes: 8 neighbours.
struct alignas(16) bf16x8 { u32 pairs[4]; };

__device__ __forceinline__ void unpack(const bf16x8& from, float (&to)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = low(from.pairs[i]);
        to[2 * i + 1] = high(from.pairs[i]);
    }
}
__device__ __forceinline__ bf16x8 pack8(const float (&from)[8]) {
    bf16x8 to;
#pragma unroll
    for (int i = 0; i < 4; i++) to.pairs[i] = pack(from[2 * i], from[2 * i + 1]);
    return to;
}

// 8 neighbours in fp32: 32 bytes, of which each half is aligned.
__device__ __forceinline__ void load8(const float* __restrict__ from, float (&to)[8]) {
    float4 first = reinterpret_cast<const float4*>(from)[0], second = reinterpret_cast<const float4*>(from)[1];
    to[0] = first.x, to[1] = first.y, to[2] = first.z, to[3] = first.w;
    to[4] = second.x, to[5] = second.y, to[6] = second.z, to[7] = second.w;
}

// The values of four FP8 (e4m3) numbers, the first in the lowest byte. Below compute capability 8.9 there are none; the host does not
// launch what reads them there.
__device__ __forceinline__ void widen(u32 four, float (&to)[4]) {
#if __CUDA_ARCH__ >= 890
    u32 pairs[2];
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pairs[0]) : "h"((u16)four));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pairs[1]) : "h"((u16)(four >> 16)));
#pragma unroll
    for (int i = 0; i < 2; i++)
        asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
            : "=f"(to[2 * i]), "=f"(to[2 * i + 1]) : "r"(pairs[i]));
#else
    __trap();
#endif
}

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// Sum over a warp, in all its lanes.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

// Sum over a block of whole warps, in all its threads. `room`: shared, 32 floats. All threads take part.
__device__ __forceinline__ float block_sum(float x, float* room) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = threadIdx.x % 32 < blockDim.x / 32 ? room[threadIdx.x % 32] : 0.f;
    return warp_sum(sum);
}
__device__ __forceinline__ float block_max(float x, float* room) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float most = threadIdx.x % 32 < blockDim.x / 32 ? room[threadIdx.x % 32] : -infinity();
    return warp_max(most);
}

// `to[i]`: the sum of `of(j)` for all j < i, for i up to `count`. By one warp.
template <typename Of> __device__ __forceinline__ void running_sums(u32* to, u32 count, Of of) {
    u32 sum = 0;
    if (threadIdx.x == 0) to[0] = 0;
    for (u32 base = 0; base < count; base += 32) {
        u32 index = base + threadIdx.x;
        u32 upto = index < count ? of(index) : 0;
#pragma unroll
        for (u32 d = 1; d < 32; d *= 2) {
            u32 before = __shfl_up_sync(0xffffffffu, upto, d);
            if (threadIdx.x >= d) upto += before;
        }
        if (index < count) to[index + 1] = sum + upto;
        sum += __shfl_sync(0xffffffffu, upto, 31);
    }
}

// What a block of 8 warps needs to add up a strip of 256 columns: by warp, then by place in a thread's 8, then by lane; 4 more, so that neither
// writing nor reading meets a bank twice.
constexpr u32 STRIP_APART = 36;
using StripSums = float[8][8 * STRIP_APART];

// Thread t gets the sum of column t over the warps, in order. `sum`: of a thread's 8 columns, from 8 times its lane on, over its warp's rows.
__device__ __forceinline__ float strip_total(StripSums& sums, const float (&sum)[8]) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int j = 0; j < 8; j++) sums[warp][j * STRIP_APART + lane] = sum[j];
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < 8; w++) total += sums[w][threadIdx.x % 8 * STRIP_APART + threadIdx.x / 8];
    return total;
}

// Adds to two neighbours where they lie, in L2: nothing is waited for. Each number is added to once, so the order is no question.
__device__ __forceinline__ void add_pair(float* to, float first, float second) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(first), "f"(second) : "memory");
#else
    asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(first) : "memory");
    asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to + 1), "f"(second) : "memory");
#endif
}
