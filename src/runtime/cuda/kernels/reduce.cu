// The sum of arrays that lie in this GPU's memory or in that of others, in the order in which they are named.

// to = Σ sources[..][offset..]. `to` may lie in one of them: a thread writes only where it alone has read. Reads 4 bytes for each
// source and value, 16 at a time, of 4 sources at once: what comes over NVLink takes a while.
extern "C" __global__ void __launch_bounds__(256) reduce_sum(const u64* __restrict__ sources, float* to, u64 offset, u64 length, u32 count) {
    __shared__ const float* from[64];
    if (threadIdx.x < count) from[threadIdx.x] = reinterpret_cast<const float*>(sources[threadIdx.x]) + offset;
    __syncthreads();
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x, threads = (u64)gridDim.x * blockDim.x;
    for (u64 i = thread; i < length / 4; i += threads) {
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 4
        for (u32 source = 0; source < count; source++) {
            float4 v = reinterpret_cast<const float4*>(from[source])[i];
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        reinterpret_cast<float4*>(to)[i] = sum;
    }
    u64 rest = length / 4 * 4 + thread;
    if (rest < length) {
        float sum = 0.f;
        for (u32 source = 0; source < count; source++) sum += from[source][rest];
        to[rest] = sum;
    }
}
