// k and v of multi-head latent attention (DeepSeek-V2 report, section 2.1): each head has its own part of k and its v, and all heads
// have one part of k in common. A block has a token at a time. Widths are in groups of 8 values (16 bytes).

// kv: tokens × heads × (nope + value); shared: rows `shared_stride` groups apart; k: tokens × heads × (nope + rope);
// v: tokens × heads × value. Moves each group of k and v once.
extern "C" __global__ void __launch_bounds__(256) latent_spread(
    const bf16x8* __restrict__ kv, const bf16x8* __restrict__ shared, u32 shared_stride, bf16x8* __restrict__ k,
    bf16x8* __restrict__ v, u32 tokens, u32 heads, u32 nope, u32 rope, u32 value) {
    u32 head_groups = nope + rope + value;
    for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
        for (u32 work = threadIdx.x; work < heads * head_groups; work += blockDim.x) {
            u32 head = work / head_groups, i = work % head_groups;
            u64 row = (u64)token * heads + head;
            if (i < nope) {
                k[row * (nope + rope) + i] = kv[row * (nope + value) + i];
            } else if (i < nope + rope) {
                k[row * (nope + rope) + i] = shared[(u64)token * shared_stride + i - nope];
            } else {
                i -= nope + rope;
                v[row * value + i] = kv[row * (nope + value) + nope + i];
            }
        }
    }
}

// The reverse for gradients: those of the shared part add up over the heads. A block has 256 threads: `rope` groups, at most 256,
// times as many lanes as fit; a lane adds every so many heads, then the lanes are added in order.
extern "C" __global__ void __launch_bounds__(256) latent_gather(
    bf16x8* __restrict__ d_kv, bf16x8* __restrict__ d_shared, u32 shared_stride, const bf16x8* __restrict__ dk,
    const bf16x8* __restrict__ dv, u32 tokens, u32 heads, u32 nope, u32 rope, u32 value) {
    __shared__ float sums[256 * 8];
    u32 head_groups = nope + value, lanes = blockDim.x / rope;
    u32 lane = threadIdx.x / rope, group = threadIdx.x % rope;
    for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
        for (u32 work = threadIdx.x; work < heads * head_groups; work += blockDim.x) {
            u32 head = work / head_groups, i = work % head_groups;
            u64 row = (u64)token * heads + head;
            d_kv[row * head_groups + i] = i < nope ? dk[row * (nope + rope) + i] : dv[row * value + i - nope];
        }
        float sum[8] = {};
        if (lane < lanes) {
            for (u32 head = lane; head < heads; head += lanes) {
                float d[8];
                unpack(dk[((u64)token * heads + head) * (nope + rope) + nope + group], d);
#pragma unroll
                for (int j = 0; j < 8; j++) sum[j] += d[j];
            }
        }
        // Sums lie by value, then by thread, so that neighbouring threads use neighbouring banks.
#pragma unroll
        for (int j = 0; j < 8; j++) sums[j * 256 + threadIdx.x] = sum[j];
        __syncthreads();
        if (threadIdx.x < rope) {
            float total[8] = {};
            for (u32 other = 0; other < lanes; other++) {
#pragma unroll
                for (int j = 0; j < 8; j++) total[j] += sums[j * 256 + other * rope + threadIdx.x];
            }
            d_shared[(u64)token * shared_stride + threadIdx.x] = pack8(total);
        }
        __syncthreads();
    }
}
