// Rotary position embedding (Su et al. 2021), in place: column i of a head turns with column i + half.
//
// A block has a row at a time. Its angles are position · base^(-2i / width), in fp64 until they are reduced to a turn and rounded to
// fp32: sine and cosine are right to 4e-7 up to position 100 000 and beyond. They are made once and used for all heads.

struct Turn { float cosine, sine; };

// Reads and writes each turned value once. GROUP: neighbours that a thread turns together, 8 (16 bytes) or 1.
template <int GROUP>
__device__ __forceinline__ void turn_rows(
    bf16* x, u32 row_stride, u32 first, u32 heads, u32 head_stride, u32 width, u32 rows, u32 sequence, float base, float direction) {
    extern __shared__ double frequencies[];
    u32 half = width / 2;
    Turn* turns = reinterpret_cast<Turn*>(frequencies + half);
    for (u32 i = threadIdx.x; i < half; i += blockDim.x)
        frequencies[i] = exp2(-2.0 * i / width * log2((double)base));
    __syncthreads();
    constexpr double FULL = 6.283185307179586;
    u32 groups = half / GROUP;
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        u32 position = row % sequence;
        for (u32 i = threadIdx.x; i < half; i += blockDim.x) {
            double angle = position * frequencies[i];
            angle -= rint(angle / FULL) * FULL;
            sincosf((float)angle, &turns[i].sine, &turns[i].cosine);
            turns[i].sine *= direction;
        }
        __syncthreads();
        for (u32 work = threadIdx.x; work < heads * groups; work += blockDim.x) {
            u32 head = work / groups, i = work % groups * GROUP;
            bf16* from = x + (u64)row * row_stride + first + (u64)head * head_stride + i;
            float a[GROUP], b[GROUP];
            if constexpr (GROUP == 8) {
                unpack(*reinterpret_cast<bf16x8*>(from), a);
                unpack(*reinterpret_cast<bf16x8*>(from + half), b);
            } else {
                a[0] = to_float(from[0]);
                b[0] = to_float(from[half]);
            }
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                Turn turn = turns[i + j];
                float turned = a[j] * turn.cosine - b[j] * turn.sine;
                b[j] = a[j] * turn.sine + b[j] * turn.cosine;
                a[j] = turned;
            }
            if constexpr (GROUP == 8) {
                *reinterpret_cast<bf16x8*>(from) = pack8(a);
                *reinterpret_cast<bf16x8*>(from + half) = pack8(b);
            } else {
                from[0] = to_bf16(a[0]);
                from[half] = to_bf16(b[0]);
            }
        }
        __syncthreads();
    }
}

// `first`: column where the turned columns of the first head begin. `direction`: 1, or -1 to turn back.
extern "C" __global__ void __launch_bounds__(256) rope_turn(
    bf16* x, u32 row_stride, u32 first, u32 heads, u32 head_stride, u32 width, u32 rows, u32 sequence, float base, float direction) {
    turn_rows<8>(x, row_stride, first, heads, head_stride, width, rows, sequence, base, direction);
}

// For halves or heads that do not begin at multiples of 8 columns.
extern "C" __global__ void __launch_bounds__(256) rope_turn_any(
    bf16* x, u32 row_stride, u32 first, u32 heads, u32 head_stride, u32 width, u32 rows, u32 sequence, float base, float direction) {
    turn_rows<1>(x, row_stride, first, heads, head_stride, width, rows, sequence, base, direction);
}
