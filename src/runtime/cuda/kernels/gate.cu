// Gates: one number for each row, sigmoid(Σ x · gate). A warp has a row; `width` is in groups of 8 values.

// Reads 2 bytes a value of x; the gate stays in cache.
extern "C" __global__ void __launch_bounds__(256) gate_forward(
    const bf16x8* __restrict__ x, const float* __restrict__ gate, float* __restrict__ weights, u32 rows, u32 width) {
    u32 lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
        float along = 0.f;
        for (u32 i = lane; i < width; i += 32) {
            float v[8], g[8];
            unpack(x[(u64)row * width + i], v);
            load8(gate + 8 * i, g);
#pragma unroll
            for (int j = 0; j < 8; j++) along += v[j] * g[j];
        }
        along = warp_sum(along);
        if (lane == 0) weights[row] = 1.f / (1.f + expf(-along));
    }
}

// d_logits = d_weights · weight · (1 - weight), and dx += d_logit · gate. Reads and writes 2 bytes a value of dx.
extern "C" __global__ void __launch_bounds__(256) gate_input_gradient(
    const float* __restrict__ weights, const float* __restrict__ d_weights, const float* __restrict__ gate,
    float* __restrict__ d_logits, bf16x8* __restrict__ dx, u32 rows, u32 width) {
    u32 lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
        float weight = weights[row], d = d_weights[row] * weight * (1.f - weight);
        if (lane == 0) d_logits[row] = d;
        for (u32 i = lane; i < width; i += 32) {
            float v[8], g[8];
            unpack(dx[(u64)row * width + i], v);
            load8(gate + 8 * i, g);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] += d * g[j];
            dx[(u64)row * width + i] = pack8(v);
        }
    }
}
