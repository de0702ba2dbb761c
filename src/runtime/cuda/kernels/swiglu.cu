// SwiGLU (Shazeer 2020) between its products: y = weight · silu(gate) · up, where a row of gate_up has `width` groups of 8 gates, then
// as many ups. A row's weight (the router's) is 1 where there are none. `most` rows, or as many as `count` says if it is not null.

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

__device__ __forceinline__ u32 rows_of(u32 most, const u32* count) { return count ? min(*count, most) : most; }

// Reads 4 bytes and writes 2 for each value of y.
extern "C" __global__ void __launch_bounds__(256) swiglu_forward(
    const bf16x8* __restrict__ gate_up, const float* __restrict__ weights, bf16x8* __restrict__ y,
    const u32* __restrict__ count, u32 most, u32 width) {
    u32 groups = rows_of(most, count) * width;
    for (u32 work = blockIdx.x * blockDim.x + threadIdx.x; work < groups; work += gridDim.x * blockDim.x) {
        u32 row = work / width, i = work % width;
        const bf16x8* from = gate_up + (u64)row * 2 * width + i;
        float gate[8], up[8], weight = weights ? weights[row] : 1.f;
        unpack(from[0], gate);
        unpack(from[width], up);
#pragma unroll
        for (int j = 0; j < 8; j++) up[j] *= weight * gate[j] * sigmoid(gate[j]);
        y[work] = pack8(up);
    }
}

// Gradients of gate and up, which may lie where gate_up does, and of the weights (null: not wanted): Σ dy · silu(gate) · up.
// A warp has a row. Reads 6 bytes and writes 4 for each value of y.
extern "C" __global__ void __launch_bounds__(256) swiglu_input_gradient(
    const bf16x8* gate_up, const float* __restrict__ weights, const bf16x8* __restrict__ dy, bf16x8* d_gate_up,
    float* __restrict__ d_weights, const u32* __restrict__ count, u32 most, u32 width) {
    u32 rows = rows_of(most, count), lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
        float weight = weights ? weights[row] : 1.f, along = 0.f;
        const bf16x8* from = gate_up + (u64)row * 2 * width;
        bf16x8* to = d_gate_up + (u64)row * 2 * width;
        for (u32 i = lane; i < width; i += 32) {
            float gate[8], up[8], d[8];
            unpack(from[i], gate);
            unpack(from[width + i], up);
            unpack(dy[(u64)row * width + i], d);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float sigma = sigmoid(gate[j]), silu = gate[j] * sigma, slope = sigma * (1.f + gate[j] * (1.f - sigma));
                along += d[j] * silu * up[j];
                gate[j] = weight * d[j] * up[j] * slope;
                up[j] = weight * d[j] * silu;
            }
            to[i] = pack8(gate);
            to[width + i] = pack8(up);
        }
        if (d_weights) {
            along = warp_sum(along);
            if (lane == 0) d_weights[row] = along;
        }
    }
}
