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

// With u = dy · gain and r the inverse root of the forward: dx = add + r · (u - x · r² · mean(x · u)). `add` (rows × width) may be null,
// and may be the memory of `dx`; so may `dy`. Reads x and dy once from memory and once from cache, writes dx: 6 to 8 bytes a value.
extern "C" __global__ void __launch_bounds__(256) rmsnorm_input_gradient(
    const bf16* x, u32 x_stride, const float* __restrict__ gain, const bf16* dy, const bf16* add, bf16* dx, u32 dx_stride,
    u32 rows, u32 width, float epsilon) {
    __shared__ float room[32];
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        const bf16x8* inputs = reinterpret_cast<const bf16x8*>(x + (u64)row * x_stride);
        const bf16x8* gradients = reinterpret_cast<const bf16x8*>(dy + (u64)row * width);
        const bf16x8* added = reinterpret_cast<const bf16x8*>(add + (u64)row * width);
        bf16x8* to = reinterpret_cast<bf16x8*>(dx + (u64)row * dx_stride);
        float squares = 0.f, along = 0.f;
        for (u32 i = threadIdx.x; i < width / 8; i += blockDim.x) {
            float v[8], d[8];
            unpack(inputs[i], v);
            unpack(gradients[i], d);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                squares += v[j] * v[j];
                along += v[j] * (d[j] * gain[8 * i + j]);
            }
        }
        float inverse = rsqrtf(block_sum(squares, room) / width + epsilon);
        along = block_sum(along, room) * inverse * inverse / width;
        for (u32 i = threadIdx.x; i < width / 8; i += blockDim.x) {
            float v[8], d[8], sum[8] = {};
            unpack(inputs[i], v);
            unpack(gradients[i], d);
            if (add) unpack(added[i], sum);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += inverse * (d[j] * gain[8 * i + j] - v[j] * along);
            to[i] = pack8(sum);
        }
    }
}

// One over the root of each row's mean square and epsilon. inverses: rows.
extern "C" __global__ void __launch_bounds__(256) rmsnorm_inverses(
    const bf16* __restrict__ x, u32 stride, float* __restrict__ inverses, u32 rows, u32 width, float epsilon) {
    __shared__ float room[32];
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        const bf16x8* from = reinterpret_cast<const bf16x8*>(x + (u64)row * stride);
        float squares = 0.f;
        for (u32 i = threadIdx.x; i < width / 8; i += blockDim.x) {
            float v[8];
            unpack(from[i], v);
#pragma unroll
            for (int j = 0; j < 8; j++) squares += v[j] * v[j];
        }
        squares = block_sum(squares, room);
        if (threadIdx.x == 0) inverses[row] = rsqrtf(squares / width + epsilon);
    }
}
