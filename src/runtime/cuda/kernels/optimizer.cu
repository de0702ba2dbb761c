// AdamW (Loshchilov and Hutter 2019), the norm of gradients that clips them, and the balancing biases of a router.

constexpr u32 PIECE = 16384;

// The sum of the squares of each PIECE of values, of which there are `length`. Reads 4 bytes a value.
extern "C" __global__ void __launch_bounds__(256) optimizer_squares(
    const float* __restrict__ values, float* __restrict__ partial, u64 length) {
    __shared__ float room[32];
    u32 pieces = (length + PIECE - 1) / PIECE;
    for (u32 piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        const float* from = values + (u64)piece * PIECE;
        u32 count = min((u64)PIECE, length - (u64)piece * PIECE);
        float sum = 0.f;
#pragma unroll 4
        for (u32 i = threadIdx.x; i < count / 4; i += blockDim.x) {
            float4 v = reinterpret_cast<const float4*>(from)[i];
            sum += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
        }
        u32 rest = count / 4 * 4 + threadIdx.x;
        if (rest < count) sum += from[rest] * from[rest];
        sum = block_sum(sum, room);
        if (threadIdx.x == 0) partial[piece] = sum;
    }
}

// to += Σ partial. One block.
extern "C" __global__ void __launch_bounds__(1024) optimizer_squares_add(
    const float* __restrict__ partial, float* __restrict__ to, u32 count) {
    __shared__ float room[32];
    float sum = 0.f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *to += sum;
}

struct Step { float factor, rate, beta1, beta2, epsilon, correction1, correction2, kept; };

__device__ __forceinline__ void update(float& value, float& first, float& second, float gradient, const Step& step) {
    gradient *= step.factor;
    first = step.beta1 * first + (1.f - step.beta1) * gradient;
    second = step.beta2 * second + (1.f - step.beta2) * gradient * gradient;
    float change = first * step.correction1 / (sqrtf(second * step.correction2) + step.epsilon);
    value = value * step.kept - step.rate * change;
}

// One step of `length` parameters. `copy` (null: none) gets them as bf16. Gradients are multiplied with clip / norm where their norm,
// the root of `squares` (null: not clipped), is larger than `clip`. Reads 16 bytes and writes 12 a parameter, 14 with a copy.
extern "C" __global__ void __launch_bounds__(256) optimizer_adamw(
    float* __restrict__ values, float* __restrict__ firsts, float* __restrict__ seconds, const float* __restrict__ gradients,
    bf16* __restrict__ copy, const float* __restrict__ squares, u64 length,
    float clip, float rate, float beta1, float beta2, float epsilon, float correction1, float correction2, float decay) {
    float norm = squares ? sqrtf(*squares) : 0.f;
    Step step = {norm > clip ? clip / norm : 1.f, rate, beta1, beta2, epsilon, correction1, correction2, 1.f - decay};
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x, threads = (u64)gridDim.x * blockDim.x;
    for (u64 i = thread; i < length / 4; i += threads) {
        float4 value = reinterpret_cast<float4*>(values)[i], first = reinterpret_cast<float4*>(firsts)[i];
        float4 second = reinterpret_cast<float4*>(seconds)[i], gradient = reinterpret_cast<const float4*>(gradients)[i];
        update(value.x, first.x, second.x, gradient.x, step);
        update(value.y, first.y, second.y, gradient.y, step);
        update(value.z, first.z, second.z, gradient.z, step);
        update(value.w, first.w, second.w, gradient.w, step);
        reinterpret_cast<float4*>(values)[i] = value;
        reinterpret_cast<float4*>(firsts)[i] = first;
        reinterpret_cast<float4*>(seconds)[i] = second;
        if (copy) reinterpret_cast<uint2*>(copy)[i] = make_uint2(pack(value.x, value.y), pack(value.z, value.w));
    }
    u64 rest = length / 4 * 4 + thread;
    if (rest < length) {
        float value = values[rest], first = firsts[rest], second = seconds[rest];
        update(value, first, second, gradients[rest], step);
        values[rest] = value, firsts[rest] = first, seconds[rest] = second;
        if (copy) copy[rest] = to_bf16(value);
    }
}

// Moves biases up by `rate` where an expert's load was below the mean, down where it was above (DeepSeek-V3 report, section 2.1.2).
// Loads are counts; in fp64 their sum is exact. One block.
extern "C" __global__ void __launch_bounds__(32) optimizer_balance(
    float* __restrict__ bias, const float* __restrict__ loads, u32 experts, float rate) {
    double sum = 0.0;
    for (u32 expert = threadIdx.x; expert < experts; expert += 32) sum += loads[expert];
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    double mean = sum / experts;
    for (u32 expert = threadIdx.x; expert < experts; expert += 32) {
        if (loads[expert] < mean) bias[expert] += rate;
        else if (loads[expert] > mean) bias[expert] -= rate;
    }
}
