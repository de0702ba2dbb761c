// Routers: from logits to chosen experts with their weights, and the gradient.
//
// One warp for each token at a time; the token's scores lie in shared memory. A kernel reads and writes tokens × experts values once
// (the gradient reads them twice, the second time from a cache), and is bound by that: 4096 tokens with 256 experts are 8 MB.

// A number whose order as u32 is that of floats, and which is never 0: 0 stands for what is no candidate.
__device__ __forceinline__ u32 key(float x) {
    u32 bits = __float_as_uint(x);
    u32 ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ordered ? ordered : 1;
}

// Index of the largest of `count` keys, of equal ones the first, in all lanes. At least one is not 0.
__device__ __forceinline__ u32 best(const u32* keys, u32 count) {
    u32 most = 0, at = ~0u;
    for (u32 i = threadIdx.x % 32; i < count; i += 32) {
        u32 here = keys[i];
        if (here > most) {
            most = here;
            at = i;
        }
    }
    u32 top = __reduce_max_sync(0xffffffffu, most);
    return __reduce_min_sync(0xffffffffu, most == top ? at : ~0u);
}

// scores: tokens × experts, logits at first, without what `added` has for each expert. bias: for the choice alone. Both may be null. chosen (ascending) and weights: tokens × top_k.
// Dynamic shared memory: for each warp 2 · experts + groups values of 4 bytes. At most 32 experts are chosen.
extern "C" __global__ void __launch_bounds__(128) router_forward(
    float* __restrict__ scores, const float* __restrict__ added, const float* __restrict__ bias, u32* __restrict__ chosen, float* __restrict__ weights,
    u32 tokens, u32 experts, u32 groups, u32 topk_groups, u32 top_k, u32 softmax, u32 normalised, float factor) {
    extern __shared__ u32 room[];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    u32* keys = room + warp * (2 * experts + groups);
    float* score = reinterpret_cast<float*>(keys + experts);
    u32* group_keys = keys + 2 * experts;
    for (u32 token = blockIdx.x * warps + warp; token < tokens; token += gridDim.x * warps) {
        float* row = scores + (u64)token * experts;
        // Lanes may still read what the last token left.
        __syncwarp();
        if (softmax) {
            float largest = -infinity(), sum = 0.f;
            for (u32 i = lane; i < experts; i += 32) {
                score[i] = added ? row[i] + added[i] : row[i];
                largest = fmaxf(largest, score[i]);
            }
            largest = warp_max(largest);
            for (u32 i = lane; i < experts; i += 32) {
                score[i] = expf(score[i] - largest);
                sum += score[i];
            }
            sum = warp_sum(sum);
            for (u32 i = lane; i < experts; i += 32) score[i] /= sum;
        } else {
            for (u32 i = lane; i < experts; i += 32) score[i] = 1.f / (1.f + expf(-(added ? row[i] + added[i] : row[i])));
        }
        for (u32 i = lane; i < experts; i += 32) {
            row[i] = score[i];
            keys[i] = key(bias ? score[i] + bias[i] : score[i]);
        }
        __syncwarp();

        if (topk_groups < groups) {
            u32 size = experts / groups;
            for (u32 g = lane; g < groups; g += 32) {
                float first = -infinity(), second = -infinity();
                for (u32 j = 0; j < size; j++) {
                    // Each lane begins elsewhere, so that they read different banks.
                    u32 i = g * size + (j + lane) % size;
                    float value = bias ? score[i] + bias[i] : score[i];
                    second = fmaxf(second, fminf(first, value));
                    first = fmaxf(first, value);
                }
                group_keys[g] = key(softmax || size == 1 ? first : first + second);
            }
            __syncwarp();
            for (u32 r = 0; r < topk_groups; r++) {
                u32 g = best(group_keys, groups);
                if (lane == 0) group_keys[g] = 0;
                __syncwarp();
            }
            // The chosen groups are those of key 0; the experts of the others are no candidates.
            for (u32 i = lane; i < experts; i += 32) {
                if (group_keys[i / size]) keys[i] = 0;
            }
            __syncwarp();
        }

        // Lane r has the r-th best.
        u32 mine = ~0u;
        for (u32 r = 0; r < top_k; r++) {
            u32 expert = best(keys, experts);
            if (lane == r) mine = expert;
            if (lane == 0) keys[expert] = 0;
            __syncwarp();
        }
        float own = lane < top_k ? score[mine] : 0.f;
        float scale = normalised ? factor / warp_sum(own) : factor;
        u32 place = 0;
        for (u32 r = 0; r < top_k; r++) place += __shfl_sync(0xffffffffu, mine, r) < mine;
        if (lane < top_k) {
            chosen[(u64)token * top_k + place] = mine;
            weights[(u64)token * top_k + place] = own * scale;
        }
    }
}

// d_logits: tokens × experts, from the gradient of the chosen experts' weights (tokens × top_k).
// Dynamic shared memory: for each warp `experts` values of 4 bytes.
extern "C" __global__ void __launch_bounds__(128) router_input_gradient(
    const float* __restrict__ scores, const u32* __restrict__ chosen, const float* __restrict__ d_weights,
    bf16* __restrict__ d_logits, u32 tokens, u32 experts, u32 top_k, u32 softmax, u32 normalised, float factor) {
    extern __shared__ u32 room[];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float* d_scores = reinterpret_cast<float*>(room + warp * experts);
    for (u32 token = blockIdx.x * warps + warp; token < tokens; token += gridDim.x * warps) {
        const float* row = scores + (u64)token * experts;
        bf16* to = d_logits + (u64)token * experts;
        // Lanes may still read what the last token left.
        __syncwarp();
        for (u32 i = lane; i < experts; i += 32) d_scores[i] = 0.f;
        u32 expert = 0;
        float score = 0.f, d = 0.f;
        if (lane < top_k) {
            expert = chosen[(u64)token * top_k + lane];
            score = row[expert];
            d = d_weights[(u64)token * top_k + lane];
        }
        // With sum S: ds = (factor / S) (dw - Σ dw s / S).
        if (normalised) {
            float sum = warp_sum(score);
            d = factor / sum * (d - warp_sum(d * score) / sum);
        } else {
            d *= factor;
        }
        // Of the others the score is 0 here, and so is their part of the sum.
        float along = warp_sum(score * d);
        __syncwarp();
        if (lane < top_k) d_scores[expert] = d;
        __syncwarp();
        for (u32 i = lane; i < experts; i += 32) {
            float s = row[i];
            to[i] = to_bf16(softmax ? s * (d_scores[i] - along) : d_scores[i] * s * (1.f - s));
        }
    }
}

// loads[e] += how often e stands in `chosen`. One block: counting in integers takes no order, and adding to floats takes one thread.
extern "C" __global__ void __launch_bounds__(1024) router_loads(
    const u32* __restrict__ chosen, float* __restrict__ loads, u32 entries, u32 experts) {
    __shared__ u32 counts[1024];
    counts[threadIdx.x] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < entries; i += blockDim.x) {
        if (chosen[i] < experts) atomicAdd(&counts[chosen[i]], 1u);
    }
    __syncthreads();
    if (threadIdx.x < experts) loads[threadIdx.x] += (float)counts[threadIdx.x];
}
