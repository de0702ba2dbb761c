// Products of each expert's rows with its weights on Hopper, by `wgmma`: the same three products as `grouped.cu` makes, for GPUs that have it.
//
// One warpgroup of a block copies (`cp.async`, which leaves zeros beyond an expert's rows, so that experts need no tensor maps and no
// padding), two multiply. Between them is a ring of stages, 64 of the depth each. Tiles are 128 × 256, where a warpgroup makes 64 × 256 of it;
// or, for gradients, 256 × 192, which copies less, and of which each makes twice 64 × 192.
//
// An operand lies *along* the depth (neighbours in memory are neighbours in the sum) or *across* it; the tensor cores read both as they lie.
// Every tile is summed over the depth in one order, whatever block makes it: results do not depend on the grid.
//
// In principle: 85 or 110 FLOPs for every byte that comes from L2, which at the tensor cores' rate is 11.6 or 9 TB/s: likely more than L2
// gives (measured: 0.65 of the tensor cores' rate). The weight gradient also reads and writes 8 bytes of each weight.

constexpr u32 DEPTH = 64;                    // of a stage
constexpr u32 STAGES = 4;
constexpr u32 GROUP = 128;                   // threads of a warpgroup
constexpr u32 BLOCK = 64 * DEPTH * 2;        // bytes of 64 rows or columns of a stage
constexpr u32 BAND = 2048;                   // rows of tiles that are walked together, so that L2 serves both operands

enum Phase { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT };

// Tiles: `PARTS` times 64 rows for each of two warpgroups.
template <u32 PARTS_, u32 COLUMNS_> struct Shape {
    static constexpr u32 PARTS = PARTS_, ROWS = 128 * PARTS_, COLUMNS = COLUMNS_;
    static constexpr u32 LEFT = ROWS * DEPTH * 2, STAGE = LEFT + COLUMNS * DEPTH * 2; // bytes of an operand, and of both
};

__device__ __forceinline__ u32 parts(u32 extent, u32 of) { return (extent + of - 1) / of; }

// Copies 16 bytes to shared memory, later; zeros if they are not `valid`.
__device__ __forceinline__ void copy(u32 to, const bf16* from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// Barriers in shared memory, each with a phase that ends when all who count have arrived.
__device__ __forceinline__ void set_up(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}
// Until the phase of this parity has ended.
__device__ __forceinline__ void await(u32 barrier, u32 parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}

#if __CUDA_ARCH_FEAT_SM90_ALL
// How an operand lies in shared memory: lines of 128 bytes, whose chunks of 16 change places by the number of the line; 8 lines are
// 1024 bytes, and the next 64 rows or columns of an operand that lies across are `BLOCK` further.
__device__ __forceinline__ u64 described(u32 at) {
    return (u64)(at >> 4 & 0x3fff) | (u64)(BLOCK >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

// Eight sums as operands of an instruction.
#define EIGHT(i) \
    "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]), "+f"(sum[i + 6]), "+f"(sum[i + 7])

// sum += a · b, of 64 × 16 and 16 × 256 or 16 × 192; the first product of a tile does not add.
template <bool LEFT_ACROSS, bool RIGHT_ACROSS>
__device__ __forceinline__ void multiply(float (&sum)[128], u64 a, u64 b, u32 add) {
    asm volatile(
        "{ .reg .pred add; setp.ne.b32 add, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, add, 1, 1, %131, %132; }"
        : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56),
          EIGHT(64), EIGHT(72), EIGHT(80), EIGHT(88), EIGHT(96), EIGHT(104), EIGHT(112), EIGHT(120)
        : "l"(a), "l"(b), "r"(add), "n"(LEFT_ACROSS), "n"(RIGHT_ACROSS));
}
template <bool LEFT_ACROSS, bool RIGHT_ACROSS>
__device__ __forceinline__ void multiply(float (&sum)[96], u64 a, u64 b, u32 add) {
    asm volatile(
        "{ .reg .pred add; setp.ne.b32 add, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, add, 1, 1, %99, %100; }"
        : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56), EIGHT(64), EIGHT(72), EIGHT(80), EIGHT(88)
        : "l"(a), "l"(b), "r"(add), "n"(LEFT_ACROSS), "n"(RIGHT_ACROSS));
}
#endif

// Starts copying a stage of an operand, of which `width` rows or columns and `depth` values of depth are left from `from` and 0 on;
// `at` is the first depth of the stage. What is beyond is zero. By a warpgroup.
template <bool ACROSS, u32 WIDTH>
__device__ __forceinline__ void fetch(u32 to, const bf16* from, u32 stride, u32 width, u32 depth, u32 at) {
    u32 thread = threadIdx.x % GROUP;
    if (ACROSS) {
        u32 line = thread / 8, chunk = thread % 8;
#pragma unroll
        for (u32 block = 0; block < WIDTH / 64; block++) {
            bool inside = 64 * block + 8 * chunk < width;
            const bf16* source = from + (u64)(at + line) * stride + 64 * block + 8 * chunk;
            u32 place = to + block * BLOCK + line * 128 + (chunk ^ line % 8) * 16;
#pragma unroll
            for (u32 i = 0; i < DEPTH / 16; i++) copy(place + i * 2048, source + (u64)(16 * i) * stride, inside && at + line + 16 * i < depth);
        }
    } else {
        u32 row = thread / 8, chunk = thread % 8;
        bool inside = at + 8 * chunk < depth;
        u32 place = to + row * 128 + (chunk ^ row % 8) * 16;
        const bf16* source = from + (u64)row * stride + at + 8 * chunk;
#pragma unroll
        for (u32 i = 0; i < WIDTH / 16; i++) {
            copy(place + i * 2048, source, inside && row + 16 * i < width);
            source += (u64)16 * stride;
        }
    }
}

// Writes a warp's sums of 16 rows, of which `m` × `n` are inside, as bf16 or added to what is there.
template <u32 SUMS>
__device__ __forceinline__ void put(const float (&sums)[SUMS], bf16* to, u32 stride, u32 m, u32 n) {
    u32 lane = threadIdx.x % 32, quarter = lane % 4;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = lane / 4 + 8 * half;
        bf16* line = to + (u64)row * stride;
#pragma unroll
        for (u32 j = 0; j < SUMS / 4; j += 4) {
            // Four lanes have two neighbours each of four groups of 8 columns; each of them writes one whole group.
            u32 own[4];
            bf16x8 group;
#pragma unroll
            for (u32 i = 0; i < 4; i++) own[i] = pack(sums[4 * (j + i) + 2 * half], sums[4 * (j + i) + 2 * half + 1]);
#pragma unroll
            for (u32 turn = 0; turn < 4; turn++) {
                // In a turn lane q gives what q ^ turn writes.
                u32 wanted = quarter ^ turn;
                u32 given = wanted == 0 ? own[0] : wanted == 1 ? own[1] : wanted == 2 ? own[2] : own[3];
                u32 got = turn == 0 ? given : __shfl_xor_sync(0xffffffffu, given, turn);
#pragma unroll
                for (u32 i = 0; i < 4; i++)
                    if (wanted == i) group.pairs[i] = got;
            }
            u32 column = 8 * (j + quarter);
            if (row < m && column < n) *reinterpret_cast<bf16x8*>(line + column) = group;
        }
    }
}
template <u32 SUMS>
__device__ __forceinline__ void put(const float (&sums)[SUMS], float* to, u32 stride, u32 m, u32 n) {
    u32 row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float* line = to + (u64)(row + 8 * half) * stride + column;
#pragma unroll
        for (u32 j = 0; j < SUMS / 4; j++)
            if (row + 8 * half < m && column + 8 * j < n) add_pair(line + 8 * j, sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
    }
}

// A tile, and where its operands and results lie.
template <typename Out> struct Tile {
    const bf16 *a, *b;
    Out* c;
    u32 m, n, steps, depth;
};

// left: rows of activations or of gradients of outputs; right: weights, or activations; out: rows, or gradients of weights.
// Weights of neighbouring experts are `apart` elements apart, and lie outputs × inputs.
template <Phase PHASE, typename Shape, typename Out>
__device__ __forceinline__ void products(
    const bf16* __restrict__ left, const bf16* __restrict__ right, Out* __restrict__ out, u64 apart,
    const u32* __restrict__ offsets, u32 count, u32 inputs, u32 outputs) {
#if __CUDA_ARCH_FEAT_SM90_ALL
    constexpr u32 PARTS = Shape::PARTS, ROWS = Shape::ROWS, COLUMNS = Shape::COLUMNS, LEFT = Shape::LEFT, STAGE = Shape::STAGE;
    constexpr bool LEFT_ACROSS = PHASE == WEIGHT_GRADIENT, RIGHT_ACROSS = PHASE != FORWARD;
    extern __shared__ __align__(1024) u8 shared[];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    u32* starts = reinterpret_cast<u32*>(shared + STAGES * STAGE);
    u32 ring = static_cast<u32>(__cvta_generic_to_shared(shared));
    u32 full = static_cast<u32>(__cvta_generic_to_shared(barriers)), empty = full + 8 * STAGES;
    u32 group = threadIdx.x / GROUP;

    u32 n = PHASE == FORWARD ? outputs : inputs;
    u32 beside = parts(n, COLUMNS);
    // Where each expert's tiles start, and behind them how many there are.
    if (threadIdx.x < 32) {
        u32 each = PHASE == WEIGHT_GRADIENT ? beside * parts(outputs, ROWS) : beside;
        running_sums(starts, count, [&](u32 expert) {
            u32 rows = offsets[expert + 1] - offsets[expert];
            return (PHASE == WEIGHT_GRADIENT ? (rows > 0 ? 1 : 0) : parts(rows, ROWS)) * each;
        });
    }
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; stage++) {
            set_up(full + 8 * stage, GROUP);
            set_up(empty + 8 * stage, 8); // warps that multiply
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();

    u32 expert = 0;
    auto place = [&](u32 number) {
        while (number >= starts[expert + 1]) expert++;
        u32 from = offsets[expert], rows = offsets[expert + 1] - from;
        u32 m = PHASE == WEIGHT_GRADIENT ? outputs : rows;
        u32 depth = PHASE == FORWARD ? inputs : PHASE == INPUT_GRADIENT ? outputs : rows;
        // Bands of row tiles; in a band down the rows first.
        u32 at = number - starts[expert];
        u32 band = at / (BAND / ROWS * beside) * (BAND / ROWS);
        u32 high = min(BAND / ROWS, parts(m, ROWS) - band);
        u32 within = at - band * beside;
        u32 row = (band + within % high) * ROWS, column = within / high * COLUMNS;
        Tile<Out> tile;
        if (PHASE == FORWARD) {
            tile.a = left + (u64)(from + row) * inputs;
            tile.b = right + expert * apart + (u64)column * inputs;
            tile.c = out + (u64)(from + row) * outputs + column;
        } else if (PHASE == INPUT_GRADIENT) {
            tile.a = left + (u64)(from + row) * outputs;
            tile.b = right + expert * apart + column;
            tile.c = out + (u64)(from + row) * inputs + column;
        } else {
            tile.a = left + (u64)from * outputs + row;
            tile.b = right + (u64)from * inputs + column;
            tile.c = out + expert * apart + (u64)row * inputs + column;
        }
        tile.m = m - row, tile.n = n - column, tile.depth = depth, tile.steps = parts(depth, DEPTH);
        return tile;
    };

    u32 done = 0; // stages of all tiles so far
    if (group == 0) {
        if (PARTS > 1) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        for (u32 number = blockIdx.x; number < starts[count]; number += gridDim.x) {
            Tile<Out> tile = place(number);
            u32 a_stride = PHASE == FORWARD ? inputs : outputs;
            for (u32 k = 0; k < tile.steps; k++, done++) {
                u32 stage = done % STAGES;
                await(empty + 8 * stage, (done / STAGES & 1) ^ 1);
                u32 to = ring + stage * STAGE;
                fetch<LEFT_ACROSS, ROWS>(to, tile.a, a_stride, tile.m, tile.depth, k * DEPTH);
                fetch<RIGHT_ACROSS, COLUMNS>(to + LEFT, tile.b, inputs, tile.n, tile.depth, k * DEPTH);
                asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(full + 8 * stage) : "memory");
            }
        }
    } else {
        if (PARTS > 1) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        u32 mine = group - 1, warp = threadIdx.x % GROUP / 32;
        bool speaks = threadIdx.x % 32 == 0;
        for (u32 number = blockIdx.x; number < starts[count]; number += gridDim.x) {
            Tile<Out> tile = place(number);
            float sums[PARTS][COLUMNS / 2];
            for (u32 k = 0; k < tile.steps; k++, done++) {
                u32 stage = done % STAGES;
                await(full + 8 * stage, done / STAGES & 1);
                // What was copied is there, also for the tensor cores.
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                u32 a = ring + stage * STAGE + PARTS * mine * BLOCK, b = ring + stage * STAGE + LEFT;
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (u32 step = 0; step < DEPTH / 16; step++)
#pragma unroll
                    for (u32 part = 0; part < PARTS; part++)
                        multiply<LEFT_ACROSS, RIGHT_ACROSS>(
                            sums[part], described(a + part * BLOCK + step * (LEFT_ACROSS ? 2048 : 32)),
                            described(b + step * (RIGHT_ACROSS ? 2048 : 32)), k > 0 || step > 0);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                // The products of the stage before have ended: it may be filled again.
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (k > 0 && speaks) arrive(empty + 8 * ((done - 1) % STAGES));
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (speaks) arrive(empty + 8 * ((done - 1) % STAGES));
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) {
                u32 down = 64 * (PARTS * mine + part) + 16 * warp;
                if (down < tile.m) put(sums[part], tile.c + (u64)down * n, n, tile.m - down, tile.n);
            }
        }
    }
#else
    __trap(); // the host launches this on Hopper alone
#endif
}

// y[r] = x[r] · W_eᵀ for the rows r of each expert e: offsets[e] to offsets[e + 1]. Widths are multiples of 8.
extern "C" __global__ void __launch_bounds__(384, 1) grouped_forward_hopper(
    const bf16* x, const bf16* w, u64 apart, const u32* offsets, u32 count, bf16* y, u32 inputs, u32 outputs) {
    products<FORWARD, Shape<1, 256>>(x, w, y, apart, offsets, count, inputs, outputs);
}

// dx[r] = dy[r] · W_e.
extern "C" __global__ void __launch_bounds__(384, 1) grouped_input_gradient_hopper(
    const bf16* dy, const bf16* w, u64 apart, const u32* offsets, u32 count, bf16* dx, u32 inputs, u32 outputs) {
    products<INPUT_GRADIENT, Shape<2, 192>>(dy, w, dx, apart, offsets, count, inputs, outputs);
}

// dW_e += dy_eᵀ · x_e. Experts without rows keep theirs.
extern "C" __global__ void __launch_bounds__(384, 1) grouped_weight_gradient_hopper(
    const bf16* x, const bf16* dy, float* dw, u64 apart, const u32* offsets, u32 count, u32 inputs, u32 outputs) {
    products<WEIGHT_GRADIENT, Shape<2, 192>>(dy, x, dw, apart, offsets, count, inputs, outputs);
}
