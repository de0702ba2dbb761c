// A bias: one value for each column, added to every row. Reads and writes 2 bytes a value.

// Rows of `width` groups of 8.
extern "C" __global__ void __launch_bounds__(256) bias_add(bf16x8* y, const float4* __restrict__ bias, u32 groups, u32 width) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < groups; i += gridDim.x * blockDim.x) {
        u32 column = i % width;
        float4 first = bias[2 * column], second = bias[2 * column + 1];
        float v[8];
        unpack(y[i], v);
        v[0] += first.x, v[1] += first.y, v[2] += first.z, v[3] += first.w;
        v[4] += second.x, v[5] += second.y, v[6] += second.z, v[7] += second.w;
        y[i] = pack8(v);
    }
}
