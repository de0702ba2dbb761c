// Biases of routed experts: rows are sorted by expert, those of expert e are offsets[e] to offsets[e + 1]. A bias is multiplied with its
// row's weight, which is 1 where `weights` is null. `width` is in groups of 8 values; the bias of expert e lies `e · stride` values behind the
// first one. Rows behind the last offset, or behind `most`, are neither read nor written.

// The expert of a row: offsets[e] <= row < offsets[e + 1].
__device__ __forceinline__ u32 expert_of(const u32* __restrict__ offsets, u32 experts, u32 row) {
    u32 low = 0, high = experts;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (offsets[middle] <= row) low = middle;
        else high = middle;
    }
    return low;
}

// y += weight · bias. A warp has a row. Reads and writes 2 bytes a value; biases stay in cache.
extern "C" __global__ void __launch_bounds__(256) expert_bias_add(
    bf16x8* __restrict__ y, const float* __restrict__ biases, u64 stride, const float* __restrict__ weights,
    const u32* __restrict__ offsets, u32 experts, u32 most, u32 width) {
    u32 rows = min(offsets[experts], most), lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
        const float* bias = biases + stride * expert_of(offsets, experts, row);
        float weight = weights ? weights[row] : 1.f;
        bf16x8* to = y + (u64)row * width;
        for (u32 i = lane; i < width; i += 32) {
            float v[8], b[8];
            unpack(to[i], v);
            load8(bias + 8 * i, b);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] += weight * b[j];
            to[i] = pack8(v);
        }
    }
}

// d_weights += Σ dy · bias, row by row. A warp has a row.
extern "C" __global__ void __launch_bounds__(256) expert_bias_weights(
    const bf16x8* __restrict__ dy, const float* __restrict__ biases, u64 stride, float* __restrict__ d_weights,
    const u32* __restrict__ offsets, u32 experts, u32 most, u32 width) {
    u32 rows = min(offsets[experts], most), lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
        const float* bias = biases + stride * expert_of(offsets, experts, row);
        float along = 0.f;
        for (u32 i = lane; i < width; i += 32) {
            float d[8], b[8];
            unpack(dy[(u64)row * width + i], d);
            load8(bias + 8 * i, b);
#pragma unroll
            for (int j = 0; j < 8; j++) along += d[j] * b[j];
        }
        along = warp_sum(along);
        if (lane == 0) d_weights[row] += along;
    }
}

// d_bias += Σ weight · dy over an expert's rows. A block has an expert and a strip of 256 columns: a thread 8 columns and every 8th row, whose sums
// are added in order. So the order depends on the numbers of rows alone.
extern "C" __global__ void __launch_bounds__(256) expert_bias_gradient(
    const bf16x8* __restrict__ dy, const float* __restrict__ weights, float* __restrict__ d_biases, u64 stride,
    const u32* __restrict__ offsets, u32 experts, u32 most, u32 width) {
    __shared__ StripSums sums;
    u32 strips = (width + 31) / 32, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 work = blockIdx.x; work < experts * strips; work += gridDim.x) {
        u32 expert = work / strips, group = work % strips * 32 + lane;
        u32 end = min(offsets[expert + 1], most);
        float sum[8] = {};
        if (group < width) {
#pragma unroll 4
            for (u32 row = offsets[expert] + warp; row < end; row += 8) {
                float d[8], weight = weights ? weights[row] : 1.f;
                unpack(dy[(u64)row * width + group], d);
#pragma unroll
                for (int j = 0; j < 8; j++) sum[j] += weight * d[j];
            }
        }
        float total = strip_total(sums, sum);
        u32 column = work % strips * 256 + threadIdx.x;
        if (column < 8 * width) d_biases[stride * expert + column] += total;
        __syncthreads();
    }
}
