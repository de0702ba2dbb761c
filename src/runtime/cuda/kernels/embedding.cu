// Token embedding: a look-up, and the sum of gradients by token. `hidden` is in groups of 8 values.

// table: vocabulary × hidden; y: tokens × hidden. Reads 4 bytes and writes 2 for each value.
extern "C" __global__ void __launch_bounds__(256) embedding_forward(
    const float4* __restrict__ table, const u32* __restrict__ tokens, bf16x8* __restrict__ y, u32 groups, u32 hidden) {
    for (u32 work = blockIdx.x * blockDim.x + threadIdx.x; work < groups; work += gridDim.x * blockDim.x) {
        u32 row = work / hidden, i = work % hidden;
        const float4* from = table + 2 * ((u64)tokens[row] * hidden + i);
        float4 first = from[0], second = from[1];
        float v[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
        y[work] = pack8(v);
    }
}

// d_table += dy, by token. A block has one position and 256 groups of columns. Where the position is the first of its token, the block
// adds all positions of that token, in their order; otherwise another block does. So no two blocks write to the same place, and no
// order is left to chance. Positions are looked through 1024 at a time.
extern "C" __global__ void __launch_bounds__(256) embedding_gradient(
    const bf16x8* __restrict__ dy, const u32* __restrict__ tokens, float4* __restrict__ d_table, u32 positions, u32 hidden) {
    constexpr u32 CHUNK = 1024;
    __shared__ u32 masks[CHUNK / 32];
    __shared__ u32 found[CHUNK];
    u32 strips = (hidden + blockDim.x - 1) / blockDim.x, lane = threadIdx.x % 32;
    for (u64 work = blockIdx.x; work < (u64)positions * strips; work += gridDim.x) {
        u32 position = work / strips, column = work % strips * blockDim.x + threadIdx.x;
        u32 token = tokens[position];
        float sum[8] = {};
        bool is_first = true;
        for (u32 start = 0; start < positions && is_first; start += CHUNK) {
            u32 mine[CHUNK / 256];
#pragma unroll
            for (u32 k = 0; k < CHUNK / 256; k++) {
                u32 other = start + k * 256 + threadIdx.x;
                mine[k] = __ballot_sync(0xffffffffu, other < positions && tokens[other] == token);
                if (lane == 0) masks[(k * 256 + threadIdx.x) / 32] = mine[k];
            }
            __syncthreads();
            // How many come before those of each word: by all threads alike.
            u32 count = 0, before[CHUNK / 256] = {};
            for (u32 word = 0; word < CHUNK / 32; word++) {
#pragma unroll
                for (u32 k = 0; k < CHUNK / 256; k++)
                    if (word == (k * 256 + threadIdx.x) / 32) before[k] = count;
                count += __popc(masks[word]);
            }
#pragma unroll
            for (u32 k = 0; k < CHUNK / 256; k++) {
                u32 rank = before[k] + __popc(mine[k] & ((1u << lane) - 1));
                if (mine[k] >> lane & 1) found[rank] = start + k * 256 + threadIdx.x;
            }
            __syncthreads();
            is_first = count == 0 || found[0] >= position;
            if (is_first && column < hidden) {
#pragma unroll 4
                for (u32 j = 0; j < count; j++) {
                    float d[8];
                    unpack(dy[(u64)found[j] * hidden + column], d);
#pragma unroll
                    for (int c = 0; c < 8; c++) sum[c] += d[c];
                }
            }
            __syncthreads();
        }
        if (is_first && column < hidden) {
            float4* to = d_table + 2 * ((u64)token * hidden + column);
            float4 first = to[0], second = to[1];
            first.x += sum[0], first.y += sum[1], first.z += sum[2], first.w += sum[3];
            second.x += sum[4], second.y += sum[5], second.z += sum[6], second.w += sum[7];
            to[0] = first, to[1] = second;
        }
    }
}
