// What is done to every value, or every row, by itself. All of it moves memory: threads read and write 16 bytes at a time, and walk
// over the whole in a loop. Results may lie where an operand does: a thread writes only what it alone has read.

// y = a + b. `groups` of 8.
extern "C" __global__ void __launch_bounds__(256) element_add(const bf16x8* a, const bf16x8* b, bf16x8* y, u32 groups) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < groups; i += gridDim.x * blockDim.x) {
        float v[8], w[8];
        unpack(a[i], v);
        unpack(b[i], w);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] += w[j];
        y[i] = pack8(v);
    }
}

// Rows of `width` 16-byte groups; strides are in groups too.
extern "C" __global__ void __launch_bounds__(256) element_copy_columns(
    const bf16x8* __restrict__ from, u32 from_stride, bf16x8* __restrict__ to, u32 to_stride, u32 groups, u32 width) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < groups; i += gridDim.x * blockDim.x) {
        u32 row = i / width, column = i % width;
        to[(u64)row * to_stride + column] = from[(u64)row * from_stride + column];
    }
}

extern "C" __global__ void __launch_bounds__(256) element_widen(
    const bf16x8* __restrict__ from, float4* __restrict__ to, u32 groups) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < groups; i += gridDim.x * blockDim.x) {
        float v[8];
        unpack(from[i], v);
        to[2 * (u64)i] = make_float4(v[0], v[1], v[2], v[3]);
        to[2 * (u64)i + 1] = make_float4(v[4], v[5], v[6], v[7]);
    }
}

extern "C" __global__ void __launch_bounds__(256) element_narrow(
    const float4* __restrict__ from, bf16x8* __restrict__ to, u32 groups) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < groups; i += gridDim.x * blockDim.x) {
        float4 first = from[2 * (u64)i], second = from[2 * (u64)i + 1];
        float v[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
        to[i] = pack8(v);
    }
}

// y = x · factor of the row. Rows of `width` groups.
extern "C" __global__ void __launch_bounds__(256) element_scale_rows(
    const bf16x8* x, const float* __restrict__ factors, bf16x8* y, u32 groups, u32 width) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < groups; i += gridDim.x * blockDim.x) {
        float v[8], factor = factors[i / width];
        unpack(x[i], v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= factor;
        y[i] = pack8(v);
    }
}

// The scalar product of each row of a with that of b. Rows of `width` groups; a warp has a row.
extern "C" __global__ void __launch_bounds__(256) element_row_dots(
    const bf16x8* __restrict__ a, const bf16x8* __restrict__ b, float* __restrict__ dots, u32 rows, u32 width) {
    u32 lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
        float dot = 0.f;
#pragma unroll 4
        for (u32 i = lane; i < width; i += 32) {
            float v[8], w[8];
            unpack(a[(u64)row * width + i], v);
            unpack(b[(u64)row * width + i], w);
#pragma unroll
            for (int j = 0; j < 8; j++) dot += v[j] * w[j];
        }
        dot = warp_sum(dot);
        if (lane == 0) dots[row] = dot;
    }
}

// One value for each row, so few: 4 bytes at a time.
extern "C" __global__ void __launch_bounds__(256) element_sigmoid(const float* x, float* y, u32 count) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) y[i] = 1.f / (1.f + expf(-x[i]));
}

extern "C" __global__ void __launch_bounds__(256) element_sigmoid_gradient(
    const float* y, const float* dy, float* dx, u32 count) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
        dx[i] = dy[i] * y[i] * (1.f - y[i]);
}
