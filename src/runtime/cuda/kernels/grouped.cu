// Products of each expert's rows with its weights, in one launch for all experts; how many rows each has is read on the device.
//
// Of each product a block makes tiles of 128 × 128. Its two halves, of 128 threads, make tiles of their own, each with its own ring of
// stages in shared memory and its own barrier: while one waits or writes, the other keeps the tensor cores busy, and a block is as
// much as fits an SM, so that as many blocks as the SM budget take as many SMs. A half's four warps each make 64 × 64 of the tile.
//
// An operand lies *along* the depth (neighbours in memory are neighbours in the sum) or *across* it; `ldmatrix` with or without
// transposing makes the same fragments of both. Every tile is summed over the depth in one order, whatever block makes it: results
// do not depend on the grid.
//
// In principle: 64 FLOPs for every byte that comes from L2, 128 fragment products of m16n8k16 a warp between two barriers; so it is
// bound by `mma.sync`, which on Hopper reaches about 0.6 of what `wgmma` does. The weight gradient also reads and writes 8 bytes of
// each weight.

constexpr u32 TILE = 128;                  // rows and columns
constexpr u32 DEPTH = 32;                  // of a stage
constexpr u32 STAGES = 3;                  // two are on their way while one is multiplied
constexpr u32 HALF = 128;                  // threads that share a tile
constexpr u32 OPERAND = TILE * DEPTH * 2;  // bytes of one operand in a stage
constexpr u32 RING = STAGES * 2 * OPERAND; // bytes of a half's ring
constexpr u32 BAND = 16;                   // row tiles that are walked together, so that L2 serves both operands

enum Phase { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT };

__device__ __forceinline__ u32 tiles(u32 extent) { return (extent + TILE - 1) / TILE; }

// Copies 16 bytes to shared memory, later; zeros if they are not `valid`.
__device__ __forceinline__ void copy(u32 to, const bf16* from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
// What was started until now is one group.
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until only the youngest `STAGES - 2` groups may be on their way.
__device__ __forceinline__ void await_oldest() { asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory"); }
// All threads of a half.
__device__ __forceinline__ void meet(u32 half) { asm volatile("bar.sync %0, %1;" ::"r"(1 + half), "n"(HALF) : "memory"); }

template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 from) {
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

// sum += a · b, of 16 × 16 and 16 × 8.
__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts copying a stage of an operand, of which `width` rows or columns and `depth` values of depth are left from `from` and 0 on;
// `at` is the first depth of the stage. What is beyond is zero.
//
// In shared memory, along: 128 × 32, two rows to a line of 128 bytes; across: 32 × 128, rows of 256 bytes. Chunks of 16 bytes change
// places within 128 bytes by the number of their line, so that the 8 that `ldmatrix` reads at once lie in different banks.
template <bool ACROSS>
__device__ __forceinline__ void fetch(u32 to, const bf16* from, u32 stride, u32 width, u32 depth, u32 at) {
    u32 thread = threadIdx.x % HALF;
    if (ACROSS) {
        u32 row = thread / 16, chunk = thread % 16;
        u32 place = to + row * 256 + (chunk ^ row) * 16;
        const bf16* source = from + (u64)(at + row) * stride + 8 * chunk;
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            copy(place + i * 2048, source + (u64)(8 * i) * stride, at + row + 8 * i < depth && 8 * chunk < width);
    } else {
        u32 row = thread / 4, chunk = thread % 4;
        u32 place = to + row / 2 * 128 + ((row % 2 * 4 + chunk) ^ (row / 2 % 4)) * 16;
        const bf16* source = from + (u64)row * stride + at + 8 * chunk;
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            copy(place + i * 2048, source + (u64)(32 * i) * stride, row + 32 * i < width && at + 8 * chunk < depth);
    }
}

// A warp's fragments of an operand in a stage: 64 rows or columns from `first` on, 16 of depth from 16 · `step` on. `to[i]`: of the
// left operand 16 rows; of the right one 16 columns, two fragments of 8.
template <bool ACROSS, bool RIGHT>
__device__ __forceinline__ void fragments(u32 (&to)[4][4], u32 stage, u32 first, u32 step) {
    u32 lane = threadIdx.x % 32;
    // Which row of which of the four matrices of 8 × 8 a lane points to. The left operand's go down the rows first, the right one's
    // along the depth.
    u32 row = RIGHT == ACROSS ? lane % 16 : lane / 16 * 8 + lane % 8;
    u32 chunk = RIGHT == ACROSS ? lane / 16 : lane / 8 % 2;
    if (ACROSS) {
        u32 place = stage + (16 * step + row) * 256 + first * 2 + (chunk ^ (row % 8)) * 16;
#pragma unroll
        for (u32 i = 0; i < 4; i++) load_matrices<true>(to[i], place ^ (32 * i));
    } else {
        u32 place = stage + (first + row) / 2 * 128 + ((row % 2 * 4 + 2 * step + chunk) ^ (row / 2 % 4)) * 16;
#pragma unroll
        for (u32 i = 0; i < 4; i++) load_matrices<false>(to[i], place + 1024 * i);
    }
}

// Writes a warp's 64 × 64 sums, of which `m` × `n` are inside, as bf16 or added to what is there.
__device__ __forceinline__ void put(float (&sums)[4][8][4], bf16* to, u32 stride, u32 m, u32 n) {
    u32 row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        u32 r = row + 8 * i;
        if (r >= m) continue;
        bf16* line = to + (u64)r * stride + column;
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            float* pair = &sums[i / 2][j][i % 2 * 2];
            if (column + 8 * j < n) *reinterpret_cast<u32*>(line + 8 * j) = pack(pair[0], pair[1]);
        }
    }
}
__device__ __forceinline__ void put(float (&sums)[4][8][4], float* to, u32 stride, u32 m, u32 n) {
    u32 row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        u32 r = row + 8 * i;
        if (r >= m) continue;
        float* line = to + (u64)r * stride + column;
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            float* pair = &sums[i / 2][j][i % 2 * 2];
            if (column + 8 * j < n) add_pair(line + 8 * j, pair[0], pair[1]);
        }
    }
}

// What lies at the end of the tile's depth is waited for by all SMs at about the same time: has L2 fetch it at the beginning.
__device__ __forceinline__ void prefetch(const bf16*, u32, u32, u32) {}
__device__ __forceinline__ void prefetch(const float* to, u32 stride, u32 m, u32 n) {
    u32 row = threadIdx.x % HALF;
#pragma unroll
    for (u32 column = 0; column < TILE; column += 32)
        if (row < m && column < n) asm volatile("prefetch.global.L2 [%0];" ::"l"(to + (u64)row * stride + column));
}

// left: rows of activations or of gradients of outputs; right: weights, or activations; out: rows, or gradients of weights.
// Weights of neighbouring experts are `apart` elements apart, and lie outputs × inputs.
template <Phase PHASE, typename Out>
__device__ __forceinline__ void products(
    const bf16* __restrict__ left, const bf16* __restrict__ right, Out* __restrict__ out, u64 apart,
    const u32* __restrict__ offsets, u32 count, u32 inputs, u32 outputs) {
    constexpr bool LEFT_ACROSS = PHASE == WEIGHT_GRADIENT, RIGHT_ACROSS = PHASE != FORWARD;
    extern __shared__ __align__(128) u8 shared[];
    u32* starts = reinterpret_cast<u32*>(shared + 2 * RING);
    u32 half = threadIdx.x / HALF, warp = threadIdx.x % HALF / 32;
    u32 ring = static_cast<u32>(__cvta_generic_to_shared(shared)) + half * RING;

    u32 n = PHASE == FORWARD ? outputs : inputs;
    u32 beside = tiles(n);
    // Where each expert's tiles start, and behind them how many there are.
    if (threadIdx.x < 32) {
        u32 each = PHASE == WEIGHT_GRADIENT ? beside * tiles(outputs) : beside;
        running_sums(starts, count, [&](u32 expert) {
            u32 rows = offsets[expert + 1] - offsets[expert];
            return (PHASE == WEIGHT_GRADIENT ? (rows > 0 ? 1 : 0) : tiles(rows)) * each;
        });
    }
    __syncthreads();

    u32 expert = 0;
    for (u32 tile = 2 * blockIdx.x + half; tile < starts[count]; tile += 2 * gridDim.x) {
        while (tile >= starts[expert + 1]) expert++;
        u32 from = offsets[expert], rows = offsets[expert + 1] - from;
        u32 m = PHASE == WEIGHT_GRADIENT ? outputs : rows;
        u32 depth = PHASE == FORWARD ? inputs : PHASE == INPUT_GRADIENT ? outputs : rows;

        // Bands of row tiles; in a band down the rows first.
        u32 place = tile - starts[expert];
        u32 band = place / (BAND * beside) * BAND;
        u32 high = min(BAND, tiles(m) - band);
        u32 within = place - band * beside;
        u32 row = (band + within % high) * TILE, column = within / high * TILE;
        u32 m_left = m - row, n_left = n - column;

        const bf16 *a, *b;
        Out* c;
        if (PHASE == FORWARD) {
            a = left + (u64)(from + row) * inputs;
            b = right + expert * apart + (u64)column * inputs;
            c = out + (u64)(from + row) * outputs + column;
        } else if (PHASE == INPUT_GRADIENT) {
            a = left + (u64)(from + row) * outputs;
            b = right + expert * apart + column;
            c = out + (u64)(from + row) * inputs + column;
        } else {
            a = left + (u64)from * outputs + row;
            b = right + (u64)from * inputs + column;
            c = out + expert * apart + (u64)row * inputs + column;
        }
        u32 a_stride = PHASE == FORWARD ? inputs : outputs;
        prefetch(c, n, m_left, n_left);

        u32 steps = (depth + DEPTH - 1) / DEPTH;
        float sums[4][8][4] = {};
        meet(half); // the stages are free: all have made their last tile
#pragma unroll
        for (u32 s = 0; s < STAGES - 1; s++) {
            if (s < steps) {
                fetch<LEFT_ACROSS>(ring + s * 2 * OPERAND, a, a_stride, m_left, depth, s * DEPTH);
                fetch<RIGHT_ACROSS>(ring + s * 2 * OPERAND + OPERAND, b, inputs, n_left, depth, s * DEPTH);
            }
            close_group();
        }
        u32 now = 0, next = STAGES - 1; // stages: the one to multiply, the one to fill
        for (u32 k = 0; k < steps; k++) {
            await_oldest();
            meet(half); // stage k is there for all, and all are through with k - 1, whose place is filled next
            if (k + STAGES - 1 < steps) {
                u32 at = (k + STAGES - 1) * DEPTH, stage = ring + next * 2 * OPERAND;
                fetch<LEFT_ACROSS>(stage, a, a_stride, m_left, depth, at);
                fetch<RIGHT_ACROSS>(stage + OPERAND, b, inputs, n_left, depth, at);
            }
            close_group();
            u32 stage = ring + now * 2 * OPERAND;
            u32 fa[2][4][4], fb[2][4][4];
#pragma unroll
            for (u32 step = 0; step < 2; step++) {
                fragments<LEFT_ACROSS, false>(fa[step], stage, warp % 2 * 64, step);
                fragments<RIGHT_ACROSS, true>(fb[step], stage + OPERAND, warp / 2 * 64, step);
            }
#pragma unroll
            for (u32 step = 0; step < 2; step++)
#pragma unroll
                for (u32 i = 0; i < 4; i++)
#pragma unroll
                    for (u32 j = 0; j < 8; j++)
                        multiply(sums[i][j], fa[step][i], fb[step][j / 2][j % 2 * 2], fb[step][j / 2][j % 2 * 2 + 1]);
            now = now + 1 == STAGES ? 0 : now + 1;
            next = next + 1 == STAGES ? 0 : next + 1;
        }

        u32 down = warp % 2 * 64, aside = warp / 2 * 64;
        if (down < m_left && aside < n_left) put(sums, c + (u64)down * n + aside, n, m_left - down, n_left - aside);
    }
}

// y[r] = x[r] · W_eᵀ for the rows r of each expert e: offsets[e] to offsets[e + 1]. Widths are multiples of 8.
extern "C" __global__ void __launch_bounds__(256, 1) grouped_forward(
    const bf16* x, const bf16* w, u64 apart, const u32* offsets, u32 count, bf16* y, u32 inputs, u32 outputs) {
    products<FORWARD>(x, w, y, apart, offsets, count, inputs, outputs);
}

// dx[r] = dy[r] · W_e.
extern "C" __global__ void __launch_bounds__(256, 1) grouped_input_gradient(
    const bf16* dy, const bf16* w, u64 apart, const u32* offsets, u32 count, bf16* dx, u32 inputs, u32 outputs) {
    products<INPUT_GRADIENT>(dy, w, dx, apart, offsets, count, inputs, outputs);
}

// dW_e += dy_eᵀ · x_e. Experts without rows keep theirs.
extern "C" __global__ void __launch_bounds__(256, 1) grouped_weight_gradient(
    const bf16* x, const bf16* dy, float* dw, u64 apart, const u32* offsets, u32 count, u32 inputs, u32 outputs) {
    products<WEIGHT_GRADIENT>(dy, x, dw, apart, offsets, count, inputs, outputs);
}
