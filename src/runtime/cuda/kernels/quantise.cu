// To FP8 (e4m3) with a scale for each tile, as in DeepSeek-V3 (technical report, section 3.3): the scale is the tile's largest
// magnitude over 448, in fp32, or the next power of two; values are divided by it and rounded to nearest, ties to even. A tile whose scale
// would be 0 has scale 1 and zeros.
//
// Scales lie as cuBLASLt reads them. Of 1 × 128 tiles (`VEC128_32F`): by tile of the depth, then by row. Of 128 × 128 blocks
// (`BLK128x128_32F`): by block of rows, then by block of the depth, whose number is rounded up to a multiple of 4.

constexpr u32 TILE = 128;

// `power`: the least power of two that takes the largest value to no more than 448, which is 1.75 · 2^8; none below the least normal number.
__device__ __forceinline__ float scale_of(float largest, bool power) {
    if (!power || largest == 0.f) return largest / 448.f;
    u32 bits = __float_as_uint(largest);
    int exponent = (int)(bits >> 23) - 8 + ((bits & 0x7fffffu) > 0x600000u ? 1 : 0);
    return __uint_as_float((u32)max(exponent, 1) << 23);
}

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

// 8 neighbours of a row, read by half a warp 128 at a time, over their tile's scale. All lanes take part.
__device__ __forceinline__ float scaled(const bf16* __restrict__ from, bool inside, bool power, float (&v)[8]) {
    float largest = 0.f;
    if (inside) unpack(*reinterpret_cast<const bf16x8*>(from), v);
#pragma unroll
    for (int j = 0; j < 8; j++) largest = fmaxf(largest, fabsf(v[j]));
#pragma unroll
    for (int d = 8; d > 0; d >>= 1) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
    float scale = scale_of(largest, power);
    bool zero = scale == 0.f;
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = zero ? 0.f : quotient(v[j], scale);
    return zero ? 1.f : scale;
}

// Tiles along rows. x, y: most × width; scales: tiles × most. Half a warp has a tile. Reads 2 bytes a value and writes 1.
extern "C" __global__ void __launch_bounds__(256) quantise_rows(
    const bf16* __restrict__ x, u8* __restrict__ y, float* __restrict__ scales, const u32* __restrict__ count, u32 most, u32 width,
    u32 power) {
    u32 tiles = (width + TILE - 1) / TILE, rows = rows_of(most, count), lane = threadIdx.x % 16;
    u32 halves = gridDim.x * blockDim.x / 16, all = rows * tiles;
    // Both halves of a warp take part in every round, for the sake of the shuffles.
    for (u32 work = (blockIdx.x * blockDim.x + threadIdx.x) / 16; work / 2 * 2 < all; work += halves) {
        u32 row = work / tiles, tile = work % tiles, column = tile * TILE + 8 * lane;
        bool inside = work < all && column < width;
        float v[8] = {};
        float scale = scaled(x + (u64)row * width + column, inside, power != 0, v);
        if (inside) {
            uint2 bytes = make_uint2(e4m3(v[0], v[1], v[2], v[3]), e4m3(v[4], v[5], v[6], v[7]));
            *reinterpret_cast<uint2*>(y + (u64)row * width + column) = bytes;
            if (lane == 0) scales[(u64)tile * most + row] = scale;
        }
    }
}

// What `quantise_rows` made, as bf16, which has its values where scales are powers of two. x, y: most × width; the scale of tile t of row r
// at r · by_row + t · by_tile. A thread has 8 values. Reads a byte a value and writes 2.
extern "C" __global__ void __launch_bounds__(256) dequantise_rows(
    const u8* __restrict__ x, const float* __restrict__ scales, u32 by_row, u32 by_tile, bf16* __restrict__ y,
    const u32* __restrict__ count, u32 most, u32 width) {
    u32 rows = rows_of(most, count), groups = width / 8;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * groups; i += gridDim.x * blockDim.x) {
        u32 row = i / groups, column = i % groups * 8;
        uint2 bytes = *reinterpret_cast<const uint2*>(x + (u64)row * width + column);
        float scale = scales[(u64)row * by_row + (u64)(column / TILE) * by_tile], first[4], second[4], v[8];
        widen(bytes.x, first);
        widen(bytes.y, second);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = first[j] * scale, v[4 + j] = second[j] * scale;
        *reinterpret_cast<bf16x8*>(y + (u64)row * width + column) = pack8(v);
    }
}

// Scales from rows × tiles to tiles × most.
extern "C" __global__ void __launch_bounds__(256) quantise_turn_scales(
    const float* __restrict__ x, float* __restrict__ y, const u32* __restrict__ count, u32 most, u32 tiles) {
    u32 rows = rows_of(most, count);
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * tiles; i += gridDim.x * blockDim.x) {
        u32 tile = i / rows, row = i % rows;
        y[(u64)tile * most + row] = x[(u64)row * tiles + tile];
    }
}

// What is quantised along the rows: values, or what `quantise_rows` made of them (its scales: tiles × most).
struct Values {
    const bf16* x;
    u32 width;
    __device__ __forceinline__ void read(u32 row, u32 column, float (&v)[8]) const {
        unpack(*reinterpret_cast<const bf16x8*>(x + (u64)row * width + column), v);
    }
};
struct Numbers {
    const u8* x;
    const float* scales;
    u32 most, width;
    __device__ __forceinline__ void read(u32 row, u32 column, float (&v)[8]) const {
        uint2 bytes = *reinterpret_cast<const uint2*>(x + (u64)row * width + column);
        float scale = scales[(u64)(column / TILE) * most + row], first[4], second[4];
        widen(bytes.x, first);
        widen(bytes.y, second);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = first[j] * scale, v[4 + j] = second[j] * scale;
    }
};

// Most experts.
constexpr u32 EXPERTS = 512;

// Tiles along the rows of each expert (offsets[e] to offsets[e + 1]; without offsets, one of `most` rows), written transposed: y is width ×
// stride, and every expert's rows are columns from a multiple of 128 on; scales: tiles × width. Of an expert's last tile, what is behind its
// rows is written as zeros; tiles without rows are not written. A block has a tile of 64 columns, a thread 4 rows of 8 columns.
template <typename Source>
__device__ __forceinline__ void columns(
    const Source& source, u8* __restrict__ y, float* __restrict__ scales, const u32* __restrict__ offsets, u32 count, u32 most, u32 width,
    u32 stride, bool power) {
    constexpr u32 WIDE = 64;
    __shared__ u32 firsts[EXPERTS + 1]; // tiles of each expert
    __shared__ float room[8][WIDE];
    // By column: 4 rows in a word. One more word, so that columns begin in different banks.
    __shared__ u32 turned[WIDE][TILE / 4 + 1];
    if (threadIdx.x < 32)
        running_sums(firsts, count, [&](u32 index) {
            return ((offsets ? offsets[index + 1] - offsets[index] : most) + TILE - 1) / TILE;
        });
    __syncthreads();
    u32 strips = (width + WIDE - 1) / WIDE;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 group = threadIdx.x % 8, high = threadIdx.x / 8;
    u32 expert = 0;
    for (u32 work = blockIdx.x; work < strips * firsts[count]; work += gridDim.x) {
        u32 tile = work / strips, left = work % strips * WIDE, column = left + 8 * group;
        while (tile >= firsts[expert + 1]) expert++;
        u32 from = offsets ? offsets[expert] : 0, rows = (offsets ? offsets[expert + 1] : most) - from;
        u32 top = (tile - firsts[expert]) * TILE;
        float v[4][8] = {};
        float largest[8] = {};
#pragma unroll
        for (int p = 0; p < 4; p++) {
            u32 row = top + 4 * high + p;
            if (row < rows && column < width) source.read(from + row, column, v[p]);
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
            float scale = scale_of(most_of_all, power);
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
            u32 of = 32 * p + high, word = 4 * group, to = tile * TILE + 16 * group;
            if (left + of < width && to < stride) {
                uint4 bytes = make_uint4(turned[of][word], turned[of][word + 1], turned[of][word + 2], turned[of][word + 3]);
                *reinterpret_cast<uint4*>(y + (u64)(left + of) * stride + to) = bytes;
            }
        }
        __syncthreads();
    }
}

// Reads 2 bytes a value and writes 1.
extern "C" __global__ void __launch_bounds__(256) quantise_columns(
    const bf16* __restrict__ x, u8* __restrict__ y, float* __restrict__ scales, const u32* __restrict__ offsets, u32 count, u32 most,
    u32 width, u32 stride, u32 power) {
    columns(Values{x, width}, y, scales, offsets, count, most, width, stride, power != 0);
}

// What is quantised along its rows once more: x and its scales as `quantise_rows` writes them. Reads and writes a byte a value.
extern "C" __global__ void __launch_bounds__(256) quantise_columns_again(
    const u8* __restrict__ x, const float* __restrict__ x_scales, u8* __restrict__ y, float* __restrict__ scales,
    const u32* __restrict__ offsets, u32 count, u32 most, u32 width, u32 stride, u32 power) {
    columns(Numbers{x, x_scales, most, width}, y, scales, offsets, count, most, width, stride, power != 0);
}

// Blocks of 128 × 128 of `count` matrices, `apart` elements from one to the next. w: outputs × inputs; y likewise, one behind the other;
// turned: inputs × outputs. scales: those of y, output blocks × input blocks (`stride` apart), by matrix; turned_scales: input blocks × output
// blocks (`turned_stride` apart). A thread has 16 rows of 4 columns. Reads 2 bytes a value and writes 2.
extern "C" __global__ void __launch_bounds__(256) quantise_blocks(
    const bf16* __restrict__ w, u64 apart, u32 count, u8* __restrict__ y, u8* __restrict__ turned, float* __restrict__ scales,
    float* __restrict__ turned_scales, u32 outputs, u32 inputs, u32 stride, u32 turned_stride) {
    __shared__ float room[32];
    __shared__ u32 columns[TILE][TILE / 4 + 1];
    u32 high_blocks = (outputs + TILE - 1) / TILE, wide_blocks = (inputs + TILE - 1) / TILE, each = high_blocks * wide_blocks;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 work = blockIdx.x; work < count * each; work += gridDim.x) {
        u32 matrix = work / each, block = work % each;
        u32 high = block / wide_blocks, wide = block % wide_blocks, column = wide * TILE + 4 * lane, top = high * TILE + 16 * warp;
        const bf16* from_here = w + matrix * apart;
        u8* here = y + (u64)matrix * outputs * inputs;
        u8* turned_here = turned + (u64)matrix * outputs * inputs;
        float v[16][4] = {};
        float largest = 0.f;
#pragma unroll
        for (int p = 0; p < 16; p++) {
            if (top + p < outputs && column < inputs) {
                uint2 four = *reinterpret_cast<const uint2*>(from_here + (u64)(top + p) * inputs + column);
                v[p][0] = low(four.x), v[p][1] = ::high(four.x), v[p][2] = low(four.y), v[p][3] = ::high(four.y);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) largest = fmaxf(largest, fabsf(v[p][j]));
        }
        float scale = scale_of(block_max(largest, room), false);
        bool zero = scale == 0.f;
#pragma unroll
        for (int p = 0; p < 16; p++) {
#pragma unroll
            for (int j = 0; j < 4; j++) v[p][j] = zero ? 0.f : quotient(v[p][j], scale);
            if (top + p < outputs && column < inputs)
                *reinterpret_cast<u32*>(here + (u64)(top + p) * inputs + column) = e4m3(v[p][0], v[p][1], v[p][2], v[p][3]);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int q = 0; q < 4; q++)
                columns[4 * lane + j][4 * warp + q] = e4m3(v[4 * q][j], v[4 * q + 1][j], v[4 * q + 2][j], v[4 * q + 3][j]);
        }
        if (threadIdx.x == 0) {
            scales[(matrix * high_blocks + high) * stride + wide] = zero ? 1.f : scale;
            turned_scales[(matrix * wide_blocks + wide) * turned_stride + high] = zero ? 1.f : scale;
        }
        __syncthreads();
        // 8 threads write the 128 bytes of a column.
#pragma unroll
        for (int p = 0; p < 4; p++) {
            u32 of = 32 * p + threadIdx.x / 8, part = threadIdx.x % 8, to = wide * TILE + of, from = high * TILE + 16 * part;
            if (to < inputs && from < outputs) {
                const u32* words = columns[of] + 4 * part;
                *reinterpret_cast<uint4*>(turned_here + (u64)to * outputs + from) = make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
        __syncthreads();
    }
}
