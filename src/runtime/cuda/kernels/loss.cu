// Cross-entropy of rows of logits, and its gradient. A block has a row at a time.

// losses: ln Σ exp(logit) - the target's; d_logits: scale · (softmax - one-hot). Rows have `width` groups of 8. One pass finds the
// largest logit and the sum (Milakov and Gimelshein 2018), one writes: at least 6 bytes a logit, 10 where a row does not stay in cache.
extern "C" __global__ void __launch_bounds__(1024) loss_cross_entropy(
    const float4* __restrict__ logits, const u32* __restrict__ targets, bf16x8* __restrict__ d_logits,
    float* __restrict__ losses, u32 rows, u32 width, float scale) {
    __shared__ float room[32];
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        const float4* from = logits + (u64)row * 2 * width;
        float most = -infinity(), sum = 0.f;
        for (u32 i = threadIdx.x; i < 2 * width; i += blockDim.x) {
            float4 v = from[i];
            float larger = fmaxf(most, fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)));
            sum = sum * __expf(most - larger) + (__expf(v.x - larger) + __expf(v.y - larger))
                + (__expf(v.z - larger) + __expf(v.w - larger));
            most = larger;
        }
        float largest = block_max(most, room);
        // A thread without logits has -infinity: exp of that is 0.
        sum = block_sum(sum * __expf(most - largest), room);
        float log_sum = largest + logf(sum);
        u32 target = targets[row];
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            float4 first = from[2 * i], second = from[2 * i + 1];
            float v[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
            for (int j = 0; j < 8; j++) {
                v[j] = __expf(v[j] - log_sum) * scale;
                if (8 * i + j == target) v[j] -= scale;
            }
            d_logits[(u64)row * width + i] = pack8(v);
        }
        if (threadIdx.x == 0) losses[row] = log_sum - reinterpret_cast<const float*>(from)[target];
    }
}

// to = Σ values. One block.
extern "C" __global__ void __launch_bounds__(1024) loss_sum(const float* __restrict__ values, float* __restrict__ to, u32 count) {
    __shared__ float room[32];
    float sum = 0.f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += values[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *to = sum;
}
