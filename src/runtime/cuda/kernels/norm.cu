// RMSNorm (Zhang and Sennrich 2019) of rows: y = x · gain / sqrt(mean(x²) + epsilon).
//
// One block for each row at a time; a block takes every gridDim.x-th row. The width is a multiple of 8. Input rows may stand apart
// (`stride` values from one to the next), so that a part of wider rows can be normed.

// y: rows × width.
extern "C" __global__ void __launch_bounds__(256) rmsnorm_forward(
    const bf16* __restrict__ x, u32 stride, const float* __restrict__ gain, bf16* __restrict__ y,
    u32 rows, u32 width, float epsilon) {
    __shared__ float room[32];
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        const bf16x8* from = reinterpret_cast<const bf16x8*>(x + (u64)row * stride);
        bf16x8* to = reinterpret_cast<bf16x8*>(y + (u64)row * width);
        float squares = 0.f;
        for (u32 i = threadIdx.x; i < width / 8; i += blockDim.x) {
            float v[8];
            unpack(from[i], v);
#pragma unroll
            for (int j = 0; j < 8; j++) squares += v[j] * v[j];
        }
        float scale = rsqrtf(block_sum(squares, room) / width + epsilon);
        for (u32 i = threadIdx.x; i < width / 8; i += blockDim.x) {
            float v[8];
            unpack(from[i], v);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] *= scale * gain[8 * i + j];
            to[i] = pack8(v);
        }
    }
}
