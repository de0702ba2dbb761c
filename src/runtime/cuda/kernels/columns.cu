// Sums of columns, for gradients of what is added to every row or multiplied with it.
//
// Rows are cut into pieces of 64, columns into strips of 256; a block sums one piece of one strip, and a second kernel adds the
// pieces in order. So the order of every sum depends on the number of rows alone. Reads each value once: 2 bytes.

constexpr u32 PIECE = 64;
constexpr u32 STRIP = 256;

// A block has 8 warps. A thread has 8 columns and every 8th row of the piece. `x` and `factors`: null, or what dy is multiplied
// with: the same place of x, and one number for each row.
__device__ __forceinline__ void sum_piece(
    const bf16* __restrict__ dy, const bf16* __restrict__ x, u32 x_stride, const float* __restrict__ factors,
    float* __restrict__ partial, u32 rows, u32 width) {
    __shared__ StripSums sums;
    u32 strips = (width + STRIP - 1) / STRIP, pieces = (rows + PIECE - 1) / PIECE;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u64 work = blockIdx.x; work < (u64)strips * pieces; work += gridDim.x) {
        u32 piece = work / strips, strip = work % strips;
        u32 column = strip * STRIP + 8 * lane, end = min(rows, (piece + 1) * PIECE);
        float sum[8] = {};
        if (column < width) {
#pragma unroll 4
            for (u32 row = piece * PIECE + warp; row < end; row += 8) {
                float d[8];
                unpack(*reinterpret_cast<const bf16x8*>(dy + (u64)row * width + column), d);
                float factor = factors ? factors[row] : 1.f;
                if (x) {
                    float v[8];
                    unpack(*reinterpret_cast<const bf16x8*>(x + (u64)row * x_stride + column), v);
#pragma unroll
                    for (int j = 0; j < 8; j++) d[j] *= v[j] * factor;
                } else if (factors) {
#pragma unroll
                    for (int j = 0; j < 8; j++) d[j] *= factor;
                }
#pragma unroll
                for (int j = 0; j < 8; j++) sum[j] += d[j];
            }
        }
        float total = strip_total(sums, sum);
        if (strip * STRIP + threadIdx.x < width) partial[(u64)piece * width + strip * STRIP + threadIdx.x] = total;
        __syncthreads();
    }
}

// partial: pieces × width.
extern "C" __global__ void __launch_bounds__(256) columns_sum(
    const bf16* __restrict__ dy, float* __restrict__ partial, u32 rows, u32 width) {
    sum_piece(dy, nullptr, 0, nullptr, partial, rows, width);
}

// The same of dy · factor, with one factor for each row.
extern "C" __global__ void __launch_bounds__(256) columns_sum_weighed(
    const bf16* __restrict__ dy, const float* __restrict__ factors, float* __restrict__ partial, u32 rows, u32 width) {
    sum_piece(dy, nullptr, 0, factors, partial, rows, width);
}

// The same of dy · x · inverse, with one inverse for each row.
extern "C" __global__ void __launch_bounds__(256) columns_sum_normed(
    const bf16* __restrict__ dy, const bf16* __restrict__ x, u32 x_stride, const float* __restrict__ inverses,
    float* __restrict__ partial, u32 rows, u32 width) {
    sum_piece(dy, x, x_stride, inverses, partial, rows, width);
}

// to += the pieces, in order. A thread has a column.
extern "C" __global__ void __launch_bounds__(256) columns_add(
    const float* __restrict__ partial, float* __restrict__ to, u32 pieces, u32 width) {
    for (u32 column = blockIdx.x * blockDim.x + threadIdx.x; column < width; column += gridDim.x * blockDim.x) {
        float sum = 0.f;
#pragma unroll 8
        for (u32 piece = 0; piece < pieces; piece++) sum += partial[(u64)piece * width + column];
        to[column] += sum;
    }
}
