// To FP8 (e4m3) with a scale for each tile, as in DeepSeek-V3 (technical report, section 3.3): the scale is the tile's largest
// magnitude over 448, in fp32; values are divided by it and rounded to nearest, ties to even. A tile whose scale would be 0 has
// scale 1 and zeros.
//
// Scales lie as cuBLASLt reads them. Of 1 × 128 tiles (`VEC128_32F`): by tile of the depth, then by row. Of 128 × 128 blocks
// (`BLK128x128_32F`): by block of rows, then by block of the depth, whose number is rounded up to a multiple of 4.

constexpr u32 TILE = 128;

__device__ __forceinline__ float scale_of(float largest) { return largest / 448.f; }

// x / scale so that rounding it to a few bits gives what the exact quotient would give: where the fp32 quotient is not exact, its last
// bit is set on the side of the exact one (rounding to odd; Boldo and Melquiond 2008), so that it is no tie by mistake.
__device__ __forceinline__ float quotient(float x, float scale) {
    float q = x / scale;
    float rest = fmaf(-q, scale, x);
    u32 bits = __float_as_uint(q);
    if (rest != 0.f && !(bits & 1)) {
        // Away from zero if what is left has the sign of x.
        bits += (rest > 0.f) == (x > 0.f) ? 1 : -1;
    }
    return __uint_as_float(bits);
}

// Two neighbours, the first in the lower byte. Below compute capability 8.9 there is no FP8; the host does not launch this there.
__device__ __forceinline__ u32 e4m3(float first, float second) {
#if __CUDA_ARCH__ >= 890
    u16 both;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(second), "f"(first));
    return both;
#else
    __trap();
    return 0;
#endif
}
__device__ __forceinline__ u32 e4m3(float a, float b, float c, float d) { return e4m3(a, b) | e4m3(c, d) << 16; }

__device__ __forceinline__ u32 rows_of(u32 most, const u32* count) { return count ? min(*count, most) : most; }

// Tiles along rows. x, y: most × width; scales: tiles × most. Half a warp has a tile. Reads 2 bytes a value and writes 1.
extern "C" __global__ void __launch_bounds__(256) quantise_rows(
    const bf16* __restrict__ x, u8* __restrict__ y, float* __restrict__ scales, const u32* __restrict__ count, u32 most, u32 width) {
    u32 tiles = (width + TILE - 1) / TILE, rows = rows_of(most, count), lane = threadIdx.x % 16;
    u32 halves = gridDim.x * blockDim.x / 16, all = rows * tiles;
    // Both halves of a warp take part in every round, for the sake of the shuffles.
    for (u32 work = (blockIdx.x * blockDim.x + threadIdx.x) / 16; work / 2 * 2 < all; work += halves) {
        u32 row = work / tiles, tile = work % tiles, column = tile * TILE + 8 * lane;
        bool inside = work < all && column < width;
        float v[8] = {}, largest = 0.f;
        if (inside) unpack(*reinterpret_cast<const bf16x8*>(x + (u64)row * width + column), v);
#pragma unroll
        for (int j = 0; j < 8; j++) largest = fmaxf(largest, fabsf(v[j]));
#pragma unroll
        for (int d = 8; d > 0; d >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
        float scale = scale_of(largest);
        bool zero = scale == 0.f;
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = zero ? 0.f : quotient(v[j], scale);
        if (inside) {
            uint2 bytes = make_uint2(e4m3(v[0], v[1], v[2], v[3]), e4m3(v[4], v[5], v[6], v[7]));
            *reinterpret_cast<uint2*>(y + (u64)row * width + column) = bytes;
            if (lane == 0) scales[(u64)tile * most + row] = zero ? 1.f : scale;
        }
    }
}

// Tiles along the tokens, written transposed. x: most × width; y: width × most; scales: tiles × width. Of the last tile that has rows,
// what is behind them is written as zeros; tiles without rows are not written. A block has a tile of 64 columns, a thread 4 rows of 8
// columns. Reads 2 bytes a value and writes 1.
extern "C" __global__ void __launch_bounds__(256) quantise_columns(
    const bf16* __restrict__ x, u8* __restrict__ y, float* __restrict__ scales, const u32* __restrict__ count, u32 most, u32 width) {
    constexpr u32 WIDE = 64;
    __shared__ float room[8][WIDE];
    // By column: 4 rows in a word. One more word, so that columns begin in different banks.
    __shared__ u32 turned[WIDE][TILE / 4 + 1];
    u32 rows = rows_of(most, count), strips = (width + WIDE - 1) / WIDE, tiles = (rows + TILE - 1) / TILE;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 group = threadIdx.x % 8, high = threadIdx.x / 8;
    for (u32 work = blockIdx.x; work < strips * tiles; work += gridDim.x) {
        u32 tile = work / strips, left = work % strips * WIDE, column = left + 8 * group, top = tile * TILE;
        float v[4][8] = {};
        float largest[8] = {};
#pragma unroll
        for (int p = 0; p < 4; p++) {
            u32 row = top + 4 * high + p;
            if (row < rows && column < width) unpack(*reinterpret_cast<const bf16x8*>(x + (u64)row * width + column), v[p]);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int p = 0; p < 4; p++) largest[j] = fmaxf(largest[j], fabsf(v[p][j]));
            // Over the 4 lanes of the warp that have the same columns.
            largest[j] = fmaxf(largest[j], __shfl_xor_sync(0xffffffffu, largest[j], 8));
            largest[j] = fmaxf(largest[j], __shfl_xor_sync(0xffffffffu, largest[j], 16));
            if (lane < 8) room[warp][8 * group + j] = largest[j];
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float most_of_all = 0.f;
#pragma unroll
            for (int w = 0; w < 8; w++) most_of_all = fmaxf(most_of_all, room[w][8 * group + j]);
            float scale = scale_of(most_of_all);
            bool zero = scale == 0.f;
#pragma unroll
            for (int p = 0; p < 4; p++) v[p][j] = zero ? 0.f : quotient(v[p][j], scale);
            turned[8 * group + j][high] = e4m3(v[0][j], v[1][j], v[2][j], v[3][j]);
            if (high == 0 && column < width) scales[(u64)tile * width + column + j] = zero ? 1.f : scale;
        }
        __syncthreads();
        // 8 threads write the 128 bytes of a column.
#pragma unroll
        for (int p = 0; p < 2; p++) {
            u32 of = 32 * p + high, word = 4 * group;
            if (left + of < width && top + 16 * group < most) {
                uint4 bytes = make_uint4(turned[of][word], turned[of][word + 1], turned[of][word + 2], turned[of][word + 3]);
                *reinterpret_cast<uint4*>(y + (u64)(left + of) * most + top + 16 * group) = bytes;
            }
        }
        __syncthreads();
    }
}

// Blocks of 128 × 128. w: outputs × inputs; y likewise; turned: inputs × outputs. scales: those of y, output blocks × input blocks
// (`stride` apart); turned_scales: input blocks × output blocks (`turned_stride` apart). A thread has 16 rows of 4 columns. Reads 4 bytes a
// value and writes 2.
extern "C" __global__ void __launch_bounds__(256) quantise_blocks(
    const float* __restrict__ w, u8* __restrict__ y, u8* __restrict__ turned, float* __restrict__ scales,
    float* __restrict__ turned_scales, u32 outputs, u32 inputs, u32 stride, u32 turned_stride) {
    __shared__ float room[32];
    __shared__ u32 columns[TILE][TILE / 4 + 1];
    u32 high_blocks = (outputs + TILE - 1) / TILE, wide_blocks = (inputs + TILE - 1) / TILE;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 work = blockIdx.x; work < high_blocks * wide_blocks; work += gridDim.x) {
        u32 high = work / wide_blocks, wide = work % wide_blocks, column = wide * TILE + 4 * lane, top = high * TILE + 16 * warp;
        float v[16][4] = {};
        float largest = 0.f;
#pragma unroll
        for (int p = 0; p < 16; p++) {
            if (top + p < outputs && column < inputs) {
                float4 four = *reinterpret_cast<const float4*>(w + (u64)(top + p) * inputs + column);
                v[p][0] = four.x, v[p][1] = four.y, v[p][2] = four.z, v[p][3] = four.w;
            }
#pragma unroll
            for (int j = 0; j < 4; j++) largest = fmaxf(largest, fabsf(v[p][j]));
        }
        float scale = scale_of(block_max(largest, room));
        bool zero = scale == 0.f;
#pragma unroll
        for (int p = 0; p < 16; p++) {
#pragma unroll
            for (int j = 0; j < 4; j++) v[p][j] = zero ? 0.f : quotient(v[p][j], scale);
            if (top + p < outputs && column < inputs)
                *reinterpret_cast<u32*>(y + (u64)(top + p) * inputs + column) = e4m3(v[p][0], v[p][1], v[p][2], v[p][3]);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int q = 0; q < 4; q++)
                columns[4 * lane + j][4 * warp + q] = e4m3(v[4 * q][j], v[4 * q + 1][j], v[4 * q + 2][j], v[4 * q + 3][j]);
        }
        if (threadIdx.x == 0) {
            scales[high * stride + wide] = zero ? 1.f : scale;
            turned_scales[wide * turned_stride + high] = zero ? 1.f : scale;
        }
        __syncthreads();
        // 8 threads write the 128 bytes of a column.
#pragma unroll
        for (int p = 0; p < 4; p++) {
            u32 of = 32 * p + threadIdx.x / 8, part = threadIdx.x % 8, to = wide * TILE + of, from = high * TILE + 16 * part;
            if (to < inputs && from < outputs) {
                const u32* words = columns[of] + 4 * part;
                *reinterpret_cast<uint4*>(turned + (u64)to * outputs + from) = make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
        __syncthreads();
    }
}
