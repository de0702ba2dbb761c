// Products of e4m3 matrices that have a scale for every 128 values of the depth, for each expert's rows in one launch; one expert of
// all rows is a plain product. Both operands lie along the depth (rows of y = x · Wᵀ; for gradients, transposed copies), so all three
// products are one: out[i][j] = Σ over tiles t of the depth of scale(i, t) · scale(j, t) · Σ over t's 128 values of left[i] · right[j].
//
// The sums of a tile are made by the tensor cores; then they are multiplied with both scales and added in fp32 (DeepSeek-V3 report,
// section 3.3.2: tensor cores add up FP8 products with few bits). A block makes tiles of 128 × 128, a warp 64 × 32 of it: its sums take
// half of its registers twice. A stage in shared memory is one tile of the depth. Every tile is summed in one order, whatever block makes
// it: results do not depend on the grid.
//
// In principle: 128 FLOPs for every byte that comes from L2; bound by `mma.sync`, for which Hopper widens e4m3 to fp16, so that it is
// no faster than bf16 there, and about 0.6 of that by `wgmma`. Operands are half of bf16's bytes.

constexpr u32 TILE = 128;                 // rows and columns of a tile of results, and values of the depth that share a scale
constexpr u32 STAGES = 3;                 // two are on their way while one is multiplied
constexpr u32 OPERAND = TILE * TILE;      // bytes of one operand in a stage
constexpr u32 THREADS = 256;
constexpr u32 BAND = 16;                  // row tiles that are walked together, so that L2 serves both operands

__device__ __forceinline__ u32 tiles(u32 extent) { return (extent + TILE - 1) / TILE; }

// Copies 16 bytes to shared memory, later; zeros if they are not `valid`.
__device__ __forceinline__ void copy(u32 to, const u8* from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
// What was started until now is one group.
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until only the youngest `STAGES - 2` groups may be on their way.
__device__ __forceinline__ void await_oldest() { asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory"); }

__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

// sum += a · b, of 16 × 32 and 32 × 8. Below compute capability 8.9 there is no FP8; the host does not launch this there.
__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 890
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    __trap();
#endif
}

// Starts copying a stage of an operand: up to 128 rows, of which `rows` are there, and 128 of depth from `at` on, of which there are
// `depth` in all. Rows of 128 bytes; chunks of 16 bytes change places within them by the number of the row, so that the 8 that `ldmatrix`
// reads at once lie in different banks. What is beyond is zero.
__device__ __forceinline__ void fetch(u32 to, const u8* from, u32 stride, u32 rows, u32 depth, u32 at) {
    u32 row = threadIdx.x / 8, chunk = threadIdx.x % 8;
    u32 place = to + row * 128 + (chunk ^ row % 8) * 16;
    const u8* source = from + (u64)row * stride + at + 16 * chunk;
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        copy(place + i * 32 * 128, source + (u64)(32 * i) * stride, row + 32 * i < rows && at + 16 * chunk < depth);
}

// Writes two neighbours, or adds them to what is there.
__device__ __forceinline__ void put(bf16* to, float first, float second, bool add) {
    u32* pair = reinterpret_cast<u32*>(to);
    if (add) {
        u32 old = *pair;
        first += low(old), second += high(old);
    }
    *pair = pack(first, second);
}
__device__ __forceinline__ void put(float* to, float first, float second, bool) {
    float2* pair = reinterpret_cast<float2*>(to);
    float2 old = *pair;
    *pair = make_float2(old.x + first, old.y + second);
}

// One tile of results. a, b: the first rows of both operands, their strides, and how many rows they have from there on; of the first
// the scales of row i and tile t are at `a_scales[t · a_apart + i]`; of the second likewise, or one for all rows where `BLOCKS`. `depth`: a multiple
// of 16. c: where results go, `n` apart.
template <bool BLOCKS, typename Out>
__device__ __forceinline__ void product(
    u32 ring, const u8* a, u32 a_stride, u32 m_left, const float* a_scales, u32 a_apart,
    const u8* b, u32 b_stride, u32 n_left, const float* b_scales, u32 b_apart, u32 depth, Out* c, u32 n, bool add) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 down = warp % 2 * 64, aside = warp / 2 * 32;
    // Which row of which of the four matrices of 8 × 16 bytes a lane points to: the left operand's go down the rows first, the right one's
    // along the depth.
    u32 a_row = lane % 16, a_chunk = lane / 16, b_row = lane / 16 * 8 + lane % 8, b_chunk = lane / 8 % 2;
    // Of the results, which rows (and those 8 below) and columns (and the next) are this lane's.
    u32 row = down + lane / 4, column = aside + lane % 4 * 2;

    u32 steps = tiles(depth);
    float sums[4][4][4] = {};
    __syncthreads(); // the stages are free: all have made their last tile
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            fetch(ring + s * 2 * OPERAND, a, a_stride, m_left, depth, s * TILE);
            fetch(ring + s * 2 * OPERAND + OPERAND, b, b_stride, n_left, depth, s * TILE);
        }
        close_group();
    }
    u32 now = 0, next = STAGES - 1; // stages: the one to multiply, the one to fill
    for (u32 k = 0; k < steps; k++) {
        await_oldest();
        __syncthreads(); // stage k is there for all, and all are through with k - 1, whose place is filled next
        if (k + STAGES - 1 < steps) {
            u32 at = (k + STAGES - 1) * TILE, stage = ring + next * 2 * OPERAND;
            fetch(stage, a, a_stride, m_left, depth, at);
            fetch(stage + OPERAND, b, b_stride, n_left, depth, at);
        }
        close_group();
        float left[4][2], right[4][2];
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 r = row + 8 * i;
            left[i / 2][i % 2] = r < m_left ? a_scales[(u64)k * a_apart + r] : 0.f;
        }
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 r = column + i / 2 * 8 + i % 2;
            right[i / 2][i % 2] = BLOCKS ? b_scales[k] : r < n_left ? b_scales[(u64)k * b_apart + r] : 0.f;
        }
        u32 stage = ring + now * 2 * OPERAND;
        float partial[4][4][4] = {};
#pragma unroll 1 // both kinds of sums leave no registers for the fragments of the next step
        for (u32 step = 0; step < 4; step++) {
            u32 fa[4][4], fb[2][4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 r = down + 16 * i + a_row;
                load_matrices(fa[i], stage + r * 128 + ((2 * step + a_chunk) ^ r % 8) * 16);
            }
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                u32 r = aside + 16 * j + b_row;
                load_matrices(fb[j], stage + OPERAND + r * 128 + ((2 * step + b_chunk) ^ r % 8) * 16);
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) multiply(partial[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++)
#pragma unroll
            for (u32 j = 0; j < 4; j++)
#pragma unroll
                for (u32 v = 0; v < 4; v++)
                    sums[i][j][v] = fmaf(partial[i][j][v] * left[i][v / 2], right[j][v % 2], sums[i][j][v]);
        now = now + 1 == STAGES ? 0 : now + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        u32 r = row + 8 * i;
        if (r >= m_left) continue;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 to = column + 8 * j;
            const float* pair = &sums[i / 2][j][i % 2 * 2];
            if (to < n_left) put(c + (u64)r * n + to, pair[0], pair[1], add);
        }
    }
}

// Which tile of results the `place`-th of an expert is: bands of row tiles; in a band down the rows first.
__device__ __forceinline__ void locate(u32 place, u32 high_tiles, u32 beside, u32& row, u32& column) {
    u32 band = place / (BAND * beside) * BAND;
    u32 high = min(BAND, high_tiles - band);
    u32 within = place - band * beside;
    row = (band + within % high) * TILE, column = within / high * TILE;
}

// y[r] = x[r] · W_eᵀ for the rows r of each expert e (offsets[e] to offsets[e + 1]; without offsets, one of `most` rows), or added to y. x:
// most × depth, its scales depth tiles × most; W: count × width × depth, scales count × `scales` numbers, rows of blocks `blocks` apart. The
// input gradient is the same with dy and the transposed weights.
extern "C" __global__ void __launch_bounds__(THREADS, 1) grouped_fp8_rows(
    const u8* __restrict__ x, const float* __restrict__ x_scales, const u8* __restrict__ w, const float* __restrict__ w_scales,
    u32 scales, u32 blocks, const u32* __restrict__ offsets, u32 count, u32 most, bf16* __restrict__ y, u32 depth, u32 width, u32 add) {
    extern __shared__ __align__(128) u8 shared[];
    u32* starts = reinterpret_cast<u32*>(shared + STAGES * 2 * OPERAND);
    u32 ring = static_cast<u32>(__cvta_generic_to_shared(shared));
    u32 beside = tiles(width);
    if (threadIdx.x < 32)
        running_sums(starts, count, [&](u32 e) { return tiles(offsets ? offsets[e + 1] - offsets[e] : most) * beside; });
    __syncthreads();
    u32 expert = 0;
    for (u32 tile = blockIdx.x; tile < starts[count]; tile += gridDim.x) {
        while (tile >= starts[expert + 1]) expert++;
        u32 from = offsets ? offsets[expert] : 0, rows = (offsets ? offsets[expert + 1] : most) - from;
        u32 row, column;
        locate(tile - starts[expert], tiles(rows), beside, row, column);
        product<true>(
            ring, x + (u64)(from + row) * depth, depth, rows - row, x_scales + from + row, most,
            w + ((u64)expert * width + column) * depth, depth, width - column,
            w_scales + (u64)expert * scales + column / TILE * blocks, 0, depth, y + (u64)(from + row) * width + column, width, add != 0);
    }
}

// dW_e += dy_eᵀ · x_e, from transposed copies whose columns are rows of experts, each expert's from a multiple of 128 on; without offsets,
// one of `most` rows. dy: outputs × stride, scales tiles of rows × outputs; x: inputs × stride, likewise. dW_e is `apart` elements behind
// the one before it.
extern "C" __global__ void __launch_bounds__(THREADS, 1) grouped_fp8_weight_gradient(
    const u8* __restrict__ dy, const float* __restrict__ dy_scales, const u8* __restrict__ x, const float* __restrict__ x_scales,
    u32 stride, const u32* __restrict__ offsets, u32 count, u32 most, float* __restrict__ dw, u64 apart, u32 inputs, u32 outputs) {
    extern __shared__ __align__(128) u8 shared[];
    u32* starts = reinterpret_cast<u32*>(shared + STAGES * 2 * OPERAND);
    u32* firsts = starts + count + 1; // tiles of rows
    u32 ring = static_cast<u32>(__cvta_generic_to_shared(shared));
    u32 beside = tiles(inputs), each = beside * tiles(outputs);
    if (threadIdx.x < 32) {
        auto rows = [&](u32 e) { return offsets ? offsets[e + 1] - offsets[e] : most; };
        running_sums(starts, count, [&](u32 e) { return rows(e) > 0 ? each : 0; });
        running_sums(firsts, count, [&](u32 e) { return tiles(rows(e)); });
    }
    __syncthreads();
    u32 expert = 0;
    for (u32 tile = blockIdx.x; tile < starts[count]; tile += gridDim.x) {
        while (tile >= starts[expert + 1]) expert++;
        u32 rows = offsets ? offsets[expert + 1] - offsets[expert] : most, first = firsts[expert];
        u32 row, column;
        locate(tile - starts[expert], tiles(outputs), beside, row, column);
        product<false>(
            ring, dy + (u64)row * stride + first * TILE, stride, outputs - row, dy_scales + (u64)first * outputs + row, outputs,
            x + (u64)column * stride + first * TILE, stride, inputs - column, x_scales + (u64)first * inputs + column, inputs,
            (rows + 15) / 16 * 16, dw + expert * apart + (u64)row * inputs + column, inputs, true);
    }
}
