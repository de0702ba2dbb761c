// Causal attention of heads, and its gradient, without ever storing the weights (FlashAttention-2: Dao 2023). As the host's
// `layers/core.rs`: scores scaled by 1/sqrt(qk), causal within each sequence, optionally a window and a sink for each head.
//
// A block owns a tile of rows, 16 (or 32) of them for each warp, and walks over tiles of the other side, which `cp.async` brings to
// shared memory ahead of their use; a small head is padded with zeros there. Products are `mma.sync.m16n8k16`, bf16 with fp32 sums. A weight
// goes from the accumulators of the first product to the operand of the second one without leaving its thread; for that the gradient
// of keys works with transposed scores. So every output is summed by one thread, in an order that depends on shapes alone, and the
// bits do not depend on the grid.
//
// FLOPs for each pair of query and key that sees it: forward 2·(qk + value). Gradient: 2·(4·qk + 3·value), of which 2·(qk + value) are
// for making scores and their gradients twice: once along keys, once along queries, the price of sums without atomics.
// `mma.sync` reaches about 60 % of what Hopper's `wgmma` does (600 of 990 TFLOP/s); 16 rows for a warp are also bound by shared memory
// (256 bytes for each mma of 4096 FLOPs: at most 470 TFLOP/s on an H100).

// Instructions.

__device__ __forceinline__ u32 shared_address(const void* generic) {
    u32 address;
    asm("{ .reg .u64 wide; cvta.to.shared.u64 wide, %1; cvt.u32.u64 %0, wide; }" : "=r"(address) : "l"(generic));
    return address;
}

// 16 bytes from global to shared memory, some time before `arrived`; zeros instead if not `there`.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy4(u32 to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(there ? 4 : 0) : "memory");
}
// Waits for all copies of this thread.
__device__ __forceinline__ void arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8 × 8 matrices, whose rows the addresses of lanes 0 to 7, 8 to 15, 16 to 23 and 24 to 31 point to.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void load_transposed(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address) : "memory");
}

// c (16 × 8) += a (16 × 16) · b (16 × 8).
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void store_shared(u32 address, u32 value) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ bf16x8 load_shared(u32 address) {
    bf16x8 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.pairs[0]), "=r"(x.pairs[1]), "=r"(x.pairs[2]), "=r"(x.pairs[3]) : "r"(address) : "memory");
    return x;
}

// 2^x, within 2 units in the last place; 0 for -infinity.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

extern __shared__ __align__(128) u8 room[];

// Tiles.

static constexpr float LOG2_E = 1.4426950408889634f;

// Rows of WIDTH bf16 in shared memory. Groups of 8 stand in an order that differs between rows, so that 8 rows' groups of one column
// lie in different banks. `base` is a multiple of 128.
template <int WIDTH>
struct Tile {
    static_assert(WIDTH == 32 || WIDTH % 64 == 0, "a row is 64 bytes, or whole lines of 128");
    // Groups of 16 columns that share a line.
    static constexpr int IN_LINE = WIDTH == 32 ? 2 : 4;
    u32 base;

    __device__ __forceinline__ u32 at(u32 row, u32 group) const {
        u32 turned = WIDTH == 32 ? group ^ (row >> 1 & 3) : group ^ (row & 7);
        return base + row * (2 * WIDTH) + turned * 16;
    }
    // From the address of an even group of a row, or the one behind it, to that `step` times 16 columns further.
    static __device__ __forceinline__ u32 further(u32 address, u32 step) {
        return (address ^ (step % IN_LINE * 32)) + step / IN_LINE * 128;
    }
    // Bytes from a row to the one that is 8, or a multiple of it, behind.
    static __device__ constexpr u32 down(u32 rows) { return rows * (2 * WIDTH); }
};

// Starts copies of ROWS rows from global memory by all threads: of `rows` that are there, `width` columns that are there, and zeros
// (nothing is read then). A thread has one group of each line, of rows that are a multiple of 8 apart.
template <int ROWS, int THREADS, int WIDTH>
__device__ __forceinline__ void fetch(Tile<WIDTH> to, const bf16* __restrict__ from, u32 stride, u32 rows, u32 width) {
    constexpr u32 GROUPS = WIDTH == 32 ? 4 : 8, AT_A_TIME = THREADS / GROUPS;
    static_assert(ROWS % AT_A_TIME == 0 && AT_A_TIME % 8 == 0, "threads have equally many rows");
    u32 row = threadIdx.x / GROUPS, group = threadIdx.x % GROUPS;
    const u32 address = to.at(row, group);
    from += (u64)row * stride + 8 * group;
#pragma unroll
    for (u32 i = 0; i < ROWS / AT_A_TIME; i++) {
#pragma unroll
        for (u32 line = 0; line < WIDTH / (8 * GROUPS); line++) {
            bool there = row < rows && 8 * (group + GROUPS * line) < width;
            copy16(address + Tile<WIDTH>::down(i * AT_A_TIME) + 128 * line, from + 8 * GROUPS * line, there);
        }
        row += AT_A_TIME;
        from += AT_A_TIME * stride;
    }
}

// Writes ROWS rows of a tile, from `first` on, to global memory by one warp: of the tile's `rows` that are there, and `width` columns.
template <int ROWS, int COLUMNS, int WIDTH>
__device__ __forceinline__ void write(Tile<WIDTH> from, u32 first, bf16* __restrict__ to, u32 stride, u32 rows, u32 width) {
    __syncwarp();
#pragma unroll 4
    for (u32 i = threadIdx.x % 32; i < ROWS * COLUMNS / 8; i += 32) {
        u32 row = first + i / (COLUMNS / 8), group = i % (COLUMNS / 8);
        if (row < rows && 8 * group < width)
            *reinterpret_cast<bf16x8*>(to + (u64)row * stride + 8 * group) = load_shared(from.at(row, group));
    }
}

// Rounds a warp's accumulators, times `scale`, into 16 rows of a tile from `first` on.
template <int COLUMNS, int WIDTH>
__device__ __forceinline__ void put(const float (&c)[COLUMNS / 8][4], Tile<WIDTH> to, u32 first, float upper, float lower) {
    // Other lanes may still read what stood there.
    __syncwarp();
    u32 lane = threadIdx.x % 32, row = first + lane / 4, column = lane % 4 * 4;
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
        store_shared(to.at(row, n) + column, pack(c[n][0] * upper, c[n][1] * upper));
        store_shared(to.at(row + 8, n) + column, pack(c[n][2] * lower, c[n][3] * lower));
    }
}

// Products. Accumulators are as the instruction has them: c[n] holds, of columns 8n to 8n + 7, those at 2·(lane % 4) and behind it, of row
// lane / 4 (elements 0 and 1) and of the row 8 below (2 and 3).

template <int MT, int N>
__device__ __forceinline__ void clear(float (&c)[MT][N][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) c[m][n][e] = 0.f;
}

// c (16·MT × N) += a · bᵀ, where a is 16·MT rows of a tile from `first` on, b the N rows of another one.
template <int MT, int N, int WIDTH>
__device__ __forceinline__ void product_transposed(float (&c)[MT][N / 8][4], Tile<WIDTH> a, u32 first, Tile<WIDTH> b) {
    u32 lane = threadIdx.x % 32;
    u32 a_address = a.at(first + lane % 16, lane / 16);
    u32 b_address = b.at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) {
        u32 left[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) load_matrices(left[m], Tile<WIDTH>::further(a_address, k) + Tile<WIDTH>::down(16 * m));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 right[4];
            load_matrices(right, Tile<WIDTH>::further(b_address, k) + Tile<WIDTH>::down(16 * n));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                multiply(c[m][2 * n], left[m], right[0], right[1]);
                multiply(c[m][2 * n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

// c (16·MT × COLUMNS) += a · b, where a (16·MT × N) is accumulators that were rounded, b the N rows of a tile.
template <int MT, int N, int COLUMNS, int WIDTH>
__device__ __forceinline__ void product(float (&c)[MT][COLUMNS / 8][4], const u32 (&a)[MT][N / 8][2], Tile<WIDTH> b) {
    static_assert(COLUMNS == WIDTH, "all columns");
    u32 lane = threadIdx.x % 32;
    u32 b_address = b.at(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
#pragma unroll
        for (int n = 0; n < WIDTH / 16; n++) {
            u32 right[4];
            load_transposed(right, Tile<WIDTH>::further(b_address, n) + Tile<WIDTH>::down(16 * k));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                const u32 left[4] = {a[m][2 * k][0], a[m][2 * k][1], a[m][2 * k + 1][0], a[m][2 * k + 1][1]};
                multiply(c[m][2 * n], left, right[0], right[1]);
                multiply(c[m][2 * n + 1], left, right[2], right[3]);
            }
        }
    }
}

// Work.

struct Shape {
    u32 heads, kv_heads, qk, value;
    u32 sequence, tokens;
    // Tokens that a query sees, itself included; all ones: all.
    u32 window;
    // Heads (of all sequences) that are worked on at a time, so that what they read stays in the L2 cache.
    u32 together;
    // 1/sqrt(qk).
    float scale;

    __device__ __forceinline__ bool sees(u32 query, u32 key) const { return key <= query && query - key < window; }
    // First key that a query sees.
    __device__ __forceinline__ u32 first_key(u32 query) const { return query < window ? 0 : query - window + 1; }
    // Last query that sees a key.
    __device__ __forceinline__ u32 last_query(u32 key) const {
        return window < sequence - key ? key + window - 1 : sequence - 1;
    }
    // Of numbers for each head and token (sequences × heads × tokens of a sequence), the first one of a head of a sequence.
    __device__ __forceinline__ u64 numbers(u32 of_sequence, u32 head) const { return ((u64)of_sequence * heads + head) * sequence; }
    // Whether some query of a tile does not see some key of another one.
    __device__ __forceinline__ bool is_cut(u32 query, u32 queries, u32 key, u32 keys) const {
        return key + keys - 1 > query || query + queries - 1 - key >= window;
    }
};

// The piece of work that a block does in its `round`: forth and back, so that blocks that got a longer piece get a shorter one next.
__device__ __forceinline__ u32 turn(u32 round) {
    return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

// A tile of a head of a sequence.
struct Piece {
    u32 tile, sequence, head;

    // All tiles of some heads, then those of the next ones: first the tiles of number 0 of all of these heads.
    __device__ __forceinline__ Piece(u32 index, u32 tiles, u32 heads, u32 sequences, u32 together) {
        u32 start = index / (tiles * together) * together;
        u32 here = min(together, heads * sequences - start);
        u32 rest = index % (tiles * together);
        tile = rest / here;
        u32 both = start + rest % here;
        sequence = both / heads;
        head = both % heads;
    }
};

#define SHAPE_PARAMETERS \
    u32 heads, u32 kv_heads, u32 qk, u32 value, u32 sequence, u32 tokens, u32 window, u32 together, float scale
#define SHAPE_ARGUMENTS {heads, kv_heads, qk, value, sequence, tokens, window, together, scale}

// Forward. MT: 16 rows so many times for each warp; N: keys at a time. o: tokens × heads · value; log_sums: sequences × heads ×
// tokens of a sequence.

template <int D, int V, int MT, int WARPS, int N>
__device__ __forceinline__ void forward(
    const bf16* __restrict__ q, u32 q_stride, const bf16* __restrict__ k, u32 k_stride, const bf16* __restrict__ v, u32 v_stride,
    const float* __restrict__ sinks, bf16* __restrict__ o, float* __restrict__ log_sums, const Shape shape) {
    static_assert(D >= V, "results are written from where the queries were");
    constexpr int M = 16 * MT * WARPS, THREADS = 32 * WARPS;
    const Tile<D> queries{shared_address(room)}, keys{queries.base + Tile<D>::down(M)};
    const Tile<V> values{keys.base + Tile<D>::down(N)};
    const u32 lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * (16 * MT);
    const float scale = shape.scale * LOG2_E;
    const u32 tiles = (shape.sequence + M - 1) / M, sequences = shape.tokens / shape.sequence;

    for (u32 round = 0, index; (index = turn(round)) < tiles * shape.heads * sequences; round++) {
        const Piece piece(index, tiles, shape.heads, sequences, shape.together);
        const u32 kv_head = piece.head / (shape.heads / shape.kv_heads);
        // The last queries see most keys.
        const u32 query = (tiles - 1 - piece.tile) * M, rows = min(M, shape.sequence - query);
        const u64 token = (u64)piece.sequence * shape.sequence;
        const bf16* k_rows = k + token * k_stride + kv_head * shape.qk;
        const bf16* v_rows = v + token * v_stride + kv_head * shape.value;
        const u32 first = shape.first_key(query) / N, last = (query + rows - 1) / N;

        __syncthreads();
        fetch<M, THREADS>(queries, q + (token + query) * q_stride + piece.head * shape.qk, q_stride, rows, shape.qk);
        fetch<N, THREADS>(keys, k_rows + (u64)first * N * k_stride, k_stride, shape.sequence - first * N, shape.qk);

        // Of each row: largest score so far, and this thread's part of the sum of exponentials relative to it.
        float most[MT][2], sum[MT][2];
        const float sink = sinks ? sinks[piece.head] : 0.f;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                most[m][half] = sinks ? sink / shape.scale : -infinity();
                sum[m][half] = sinks && lane % 4 == 0 ? 1.f : 0.f;
            }
        float out[MT][V / 8][4];
        clear(out);

        for (u32 tile = first; tile <= last; tile++) {
            const u32 key = tile * N;
            arrived();
            __syncthreads();
            fetch<N, THREADS>(values, v_rows + (u64)key * v_stride, v_stride, shape.sequence - key, shape.value);

            float scores[MT][N / 8][4];
            clear(scores);
            product_transposed<MT, N>(scores, queries, first_row, keys);
            if (shape.is_cut(query, M, key, N)) {
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int n = 0; n < N / 8; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            u32 row = query + first_row + 16 * m + lane / 4 + e / 2 * 8;
                            u32 column = key + 8 * n + lane % 4 * 2 + e % 2;
                            if (!shape.sees(row, column)) scores[m][n][e] = -infinity();
                        }
            }

            // Values are there, and nobody reads these keys any more.
            arrived();
            __syncthreads();
            if (tile < last)
                fetch<N, THREADS>(keys, k_rows + (u64)(key + N) * k_stride, k_stride, shape.sequence - key - N, shape.qk);

            float shrink[MT][2];
            bool grew = false;
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float largest = most[m][half];
#pragma unroll
                    for (int n = 0; n < N / 8; n++)
                        largest = fmaxf(largest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
                    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
                    // A row that has seen nothing yet: everything is 0, relative to anything.
                    float base = largest == -infinity() ? 0.f : largest * scale;
                    shrink[m][half] = power_of_two(most[m][half] * scale - base);
                    grew |= largest != most[m][half];
                    most[m][half] = largest;
                    float here = 0.f;
#pragma unroll
                    for (int n = 0; n < N / 8; n++)
#pragma unroll
                        for (int e = 2 * half; e < 2 * half + 2; e++) {
                            scores[m][n][e] = power_of_two(scores[m][n][e] * scale - base);
                            here += scores[m][n][e];
                        }
                    sum[m][half] = sum[m][half] * shrink[m][half] + here;
                }
            // Else every factor is 1.
            if (__any_sync(0xffffffffu, grew)) {
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int n = 0; n < V / 8; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++) out[m][n][e] *= shrink[m][e / 2];
            }
            u32 weights[MT][N / 8][2];
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int n = 0; n < N / 8; n++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        weights[m][n][half] = pack(scores[m][n][2 * half], scores[m][n][2 * half + 1]);
            product<MT, N, V>(out, weights, values);
        }

#pragma unroll
        for (int m = 0; m < MT; m++) {
            float inverse[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float all = sum[m][half];
                all += __shfl_xor_sync(0xffffffffu, all, 1);
                all += __shfl_xor_sync(0xffffffffu, all, 2);
                inverse[half] = 1.f / all;
                u32 row = first_row + 16 * m + lane / 4 + 8 * half;
                if (lane % 4 == 0 && row < rows)
                    log_sums[shape.numbers(piece.sequence, piece.head) + query + row] = most[m][half] * shape.scale + logf(all);
            }
            put<V>(out[m], queries, first_row + 16 * m, inverse[0], inverse[1]);
        }
        const u32 o_stride = shape.heads * shape.value;
        write<16 * MT, V>(queries, first_row, o + (token + query) * o_stride + piece.head * shape.value, o_stride, rows, shape.value);
    }
}

#define FORWARD_PARAMETERS                                                                                                            \
    const bf16 *__restrict__ q, u32 q_stride, const bf16 *__restrict__ k, u32 k_stride, const bf16 *__restrict__ v, u32 v_stride,     \
        const float *__restrict__ sinks, bf16 *__restrict__ o, float *__restrict__ log_sums, SHAPE_PARAMETERS
#define FORWARD_ARGUMENTS q, q_stride, k, k_stride, v, v_stride, sinks, o, log_sums, SHAPE_ARGUMENTS

extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_32_32(FORWARD_PARAMETERS) {
    forward<32, 32, 2, 4, 64>(FORWARD_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_64_64(FORWARD_PARAMETERS) {
    forward<64, 64, 2, 4, 64>(FORWARD_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_128_128(FORWARD_PARAMETERS) {
    forward<128, 128, 2, 4, 64>(FORWARD_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_192_128(FORWARD_PARAMETERS) {
    forward<192, 128, 2, 4, 64>(FORWARD_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(256, 1) attention_forward_256_256(FORWARD_PARAMETERS) {
    forward<256, 256, 1, 8, 64>(FORWARD_ARGUMENTS);
}

// The gradient. With weights P, dP = do · vᵀ and D the row sums of do ∘ o: dS = P ∘ (dP - D), dq = dS · k, dk = dSᵀ · q, dv = Pᵀ · do.

// dots (sequences × heads × tokens of a sequence): the row sums D. Eight threads for each; `value` is a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) attention_dots(
    const bf16* __restrict__ o, const bf16* __restrict__ d_o, float* __restrict__ dots, u32 heads, u32 value, u32 sequence,
    u32 tokens) {
    const u32 part = threadIdx.x % 8, pairs = tokens * heads;
    // All threads of a warp go round as often, since they sum together.
    for (u32 base = blockIdx.x * 32; base < pairs; base += gridDim.x * 32) {
        const u32 pair = base + threadIdx.x / 8, head = pair / sequence % heads;
        const u32 token = pair / (sequence * heads) * sequence + pair % sequence;
        const u64 start = ((u64)token * heads + head) * value;
        float sum = 0.f;
        for (u32 column = 8 * part; column < value && pair < pairs; column += 64) {
            float a[8], b[8];
            unpack(*reinterpret_cast<const bf16x8*>(o + start + column), a);
            unpack(*reinterpret_cast<const bf16x8*>(d_o + start + column), b);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += a[i] * b[i];
        }
#pragma unroll
        for (int distance = 4; distance > 0; distance >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        if (part == 0 && pair < pairs) dots[pair] = sum;
    }
}

// d_sinks[head] -= sum of exp(sink - log_sum) · D over all tokens. A block for each head at a time.
extern "C" __global__ void __launch_bounds__(256) attention_sinks(
    const float* __restrict__ sinks, const float* __restrict__ log_sums, const float* __restrict__ dots, float* __restrict__ d_sinks,
    u32 heads, u32 sequence, u32 tokens) {
    __shared__ float sums[32];
    for (u32 head = blockIdx.x; head < heads; head += gridDim.x) {
        float sum = 0.f;
        for (u32 token = threadIdx.x; token < tokens; token += blockDim.x) {
            u64 pair = ((u64)(token / sequence) * heads + head) * sequence + token % sequence;
            sum += power_of_two((sinks[head] - log_sums[pair]) * LOG2_E) * dots[pair];
        }
        sum = block_sum(sum, sums);
        if (threadIdx.x == 0) d_sinks[head] -= sum;
    }
}

// dk and dv of a tile of keys, 16 for each warp, from M queries at a time of all heads that share them; scores are keys × queries.
// KEYS, VALUES: which of the two. The tiles of queries have two places, so that the next one comes while one is worked on.
template <int D, int V, int WARPS, int M, bool KEYS, bool VALUES>
__device__ __forceinline__ void key_gradients(
    const bf16* __restrict__ q, u32 q_stride, const bf16* __restrict__ k, u32 k_stride, const bf16* __restrict__ v, u32 v_stride,
    const bf16* __restrict__ d_o, const float* __restrict__ log_sums, const float* __restrict__ dots,
    bf16* __restrict__ d_k, u32 d_k_stride, bf16* __restrict__ d_v, u32 d_v_stride, const Shape shape) {
    constexpr int N = 16 * WARPS, THREADS = 32 * WARPS;
    constexpr u32 PLACE = Tile<D>::down(M) + Tile<V>::down(M) + 2 * 4 * M;
    static_assert(PLACE % 128 == 0, "tiles start at whole lines");
    const Tile<D> keys{shared_address(room)};
    const Tile<V> values{keys.base + Tile<D>::down(N)};
    constexpr u32 PLACES = Tile<D>::down(N) + Tile<V>::down(N);
    const u32 lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16;
    const float scale = shape.scale * LOG2_E;
    const u32 tiles = (shape.sequence + N - 1) / N, sequences = shape.tokens / shape.sequence;
    const u32 sharing = shape.heads / shape.kv_heads, o_stride = shape.heads * shape.value;

    for (u32 round = 0, index; (index = turn(round)) < tiles * shape.kv_heads * sequences; round++) {
        const Piece piece(index, tiles, shape.kv_heads, sequences, shape.together);
        // The first keys are seen by most queries.
        const u32 key = piece.tile * N, rows = min(N, shape.sequence - key);
        const u64 token = (u64)piece.sequence * shape.sequence;
        const u32 first = key / M, each = shape.last_query(key + rows - 1) / M - first + 1;

        auto fetch_queries = [&](u32 step) {
            const u32 head = piece.head * sharing + step / each, query = (first + step % each) * M;
            const u64 start = token + query;
            const u32 place = keys.base + PLACES + step % 2 * PLACE, there = shape.sequence - query;
            fetch<M, THREADS>(Tile<D>{place}, q + start * q_stride + head * shape.qk, q_stride, there, shape.qk);
            fetch<M, THREADS>(Tile<V>{place + Tile<D>::down(M)}, d_o + start * o_stride + head * shape.value, o_stride, there, shape.value);
            if (threadIdx.x < 2 * M) {
                u32 row = threadIdx.x % M;
                bool is_there = row < there;
                const u64 number = shape.numbers(piece.sequence, head) + query + (is_there ? row : 0);
                const float* from = (threadIdx.x < M ? log_sums : dots) + number;
                copy4(place + Tile<D>::down(M) + Tile<V>::down(M) + 4 * threadIdx.x, from, is_there);
            }
        };

        __syncthreads();
        fetch<N, THREADS>(keys, k + (token + key) * k_stride + piece.head * shape.qk, k_stride, rows, shape.qk);
        if (KEYS) fetch<N, THREADS>(values, v + (token + key) * v_stride + piece.head * shape.value, v_stride, rows, shape.value);
        fetch_queries(0);
        float d_keys[1][D / 8][4], d_values[1][V / 8][4];
        if (KEYS) clear(d_keys);
        if (VALUES) clear(d_values);

        for (u32 step = 0; step < sharing * each; step++) {
            arrived();
            __syncthreads();
            if (step + 1 < sharing * each) fetch_queries(step + 1);
            const u32 query = (first + step % each) * M;
            const Tile<D> queries{keys.base + PLACES + step % 2 * PLACE};
            const Tile<V> d_outs{queries.base + Tile<D>::down(M)};
            // Logarithms of sums, then dots, of each query.
            const float2* of_query = reinterpret_cast<const float2*>(room + PLACES + step % 2 * PLACE + Tile<D>::down(M) + Tile<V>::down(M));

            float scores[1][M / 8][4];
            clear(scores);
            product_transposed<1, M>(scores, keys, first_row, queries);
            const bool is_cut = shape.is_cut(query, M, key, N) || query + M > shape.sequence;
#pragma unroll
            for (int n = 0; n < M / 8; n++) {
                const float2 log_sum = of_query[4 * n + lane % 4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float exponent = scores[0][n][e] * scale - (e % 2 ? log_sum.y : log_sum.x) * LOG2_E;
                    u32 column = query + 8 * n + lane % 4 * 2 + e % 2;
                    bool seen = !is_cut || (shape.sees(column, key + first_row + lane / 4 + e / 2 * 8) && column < shape.sequence);
                    scores[0][n][e] = seen ? power_of_two(exponent) : 0.f;
                }
            }
            u32 rounded[1][M / 8][2];
            if (VALUES) {
#pragma unroll
                for (int n = 0; n < M / 8; n++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        rounded[0][n][half] = pack(scores[0][n][2 * half], scores[0][n][2 * half + 1]);
                product<1, M, V>(d_values, rounded, d_outs);
            }
            if (KEYS) {
                float d_weights[1][M / 8][4];
                clear(d_weights);
                product_transposed<1, M>(d_weights, values, first_row, d_outs);
#pragma unroll
                for (int n = 0; n < M / 8; n++) {
                    const float2 dot = of_query[M / 2 + 4 * n + lane % 4];
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        rounded[0][n][half] = pack(
                            scores[0][n][2 * half] * (d_weights[0][n][2 * half] - dot.x),
                            scores[0][n][2 * half + 1] * (d_weights[0][n][2 * half + 1] - dot.y));
                }
                product<1, M, D>(d_keys, rounded, queries);
            }
        }

        // A warp's rows of these tiles are read by itself alone.
        if (KEYS) {
            put<D>(d_keys[0], keys, first_row, shape.scale, shape.scale);
            write<16, D>(keys, first_row, d_k + (token + key) * d_k_stride + piece.head * shape.qk, d_k_stride, rows, shape.qk);
        }
        if (VALUES) {
            put<V>(d_values[0], values, first_row, 1.f, 1.f);
            write<16, V>(values, first_row, d_v + (token + key) * d_v_stride + piece.head * shape.value, d_v_stride, rows, shape.value);
        }
    }
}

#define KEY_PARAMETERS                                                                                                                \
    const bf16 *__restrict__ q, u32 q_stride, const bf16 *__restrict__ k, u32 k_stride, const bf16 *__restrict__ v, u32 v_stride,     \
        const bf16 *__restrict__ d_o, const float *__restrict__ log_sums, const float *__restrict__ dots, bf16 *__restrict__ d_k,     \
        u32 d_k_stride, bf16 *__restrict__ d_v, u32 d_v_stride, SHAPE_PARAMETERS
#define KEY_ARGUMENTS q, q_stride, k, k_stride, v, v_stride, d_o, log_sums, dots, d_k, d_k_stride, d_v, d_v_stride, SHAPE_ARGUMENTS

extern "C" __global__ void __launch_bounds__(128, 3) attention_keys_32_32(KEY_PARAMETERS) {
    key_gradients<32, 32, 4, 64, true, true>(KEY_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_keys_64_64(KEY_PARAMETERS) {
    key_gradients<64, 64, 4, 64, true, true>(KEY_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(256, 1) attention_keys_128_128(KEY_PARAMETERS) {
    key_gradients<128, 128, 8, 64, true, true>(KEY_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(256, 1) attention_keys_192_128(KEY_PARAMETERS) {
    key_gradients<192, 128, 8, 32, true, true>(KEY_ARGUMENTS);
}
// One after the other: the sums of both have no room in registers.
extern "C" __global__ void __launch_bounds__(128, 1) attention_keys_256_256(KEY_PARAMETERS) {
    key_gradients<256, 256, 4, 32, true, false>(KEY_ARGUMENTS);
    key_gradients<256, 256, 4, 32, false, true>(KEY_ARGUMENTS);
}

// dq of a tile of queries, 16 for each warp, from N keys at a time, which have two places.
template <int D, int V, int WARPS, int N>
__device__ __forceinline__ void query_gradients(
    const bf16* __restrict__ q, u32 q_stride, const bf16* __restrict__ k, u32 k_stride, const bf16* __restrict__ v, u32 v_stride,
    const bf16* __restrict__ d_o, const float* __restrict__ log_sums, const float* __restrict__ dots,
    bf16* __restrict__ d_q, u32 d_q_stride, const Shape shape) {
    constexpr int M = 16 * WARPS, THREADS = 32 * WARPS;
    constexpr u32 PLACE = Tile<D>::down(N) + Tile<V>::down(N);
    const Tile<D> queries{shared_address(room)};
    const Tile<V> d_outs{queries.base + Tile<D>::down(M)};
    const u32 places = d_outs.base + Tile<V>::down(M);
    const u32 lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16;
    const float scale = shape.scale * LOG2_E;
    const u32 tiles = (shape.sequence + M - 1) / M, sequences = shape.tokens / shape.sequence;
    const u32 o_stride = shape.heads * shape.value;

    for (u32 round = 0, index; (index = turn(round)) < tiles * shape.heads * sequences; round++) {
        const Piece piece(index, tiles, shape.heads, sequences, shape.together);
        const u32 kv_head = piece.head / (shape.heads / shape.kv_heads);
        const u32 query = (tiles - 1 - piece.tile) * M, rows = min(M, shape.sequence - query);
        const u64 token = (u64)piece.sequence * shape.sequence, start = token + query;
        const bf16* k_rows = k + token * k_stride + kv_head * shape.qk;
        const bf16* v_rows = v + token * v_stride + kv_head * shape.value;
        const u32 first = shape.first_key(query) / N, last = (query + rows - 1) / N;

        auto fetch_keys = [&](u32 tile) {
            const u32 place = places + tile % 2 * PLACE, there = shape.sequence - tile * N;
            fetch<N, THREADS>(Tile<D>{place}, k_rows + (u64)tile * N * k_stride, k_stride, there, shape.qk);
            fetch<N, THREADS>(Tile<V>{place + Tile<D>::down(N)}, v_rows + (u64)tile * N * v_stride, v_stride, there, shape.value);
        };

        __syncthreads();
        fetch<M, THREADS>(queries, q + start * q_stride + piece.head * shape.qk, q_stride, rows, shape.qk);
        fetch<M, THREADS>(d_outs, d_o + start * o_stride + piece.head * shape.value, o_stride, rows, shape.value);
        fetch_keys(first);
        float log_sum[2], dot[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 row = first_row + lane / 4 + 8 * half;
            u64 number = shape.numbers(piece.sequence, piece.head) + query + row;
            log_sum[half] = row < rows ? log_sums[number] * LOG2_E : 0.f;
            dot[half] = row < rows ? dots[number] : 0.f;
        }
        float d_queries[1][D / 8][4];
        clear(d_queries);

        for (u32 tile = first; tile <= last; tile++) {
            const u32 key = tile * N;
            arrived();
            __syncthreads();
            if (tile < last) fetch_keys(tile + 1);
            const Tile<D> keys{places + tile % 2 * PLACE};
            const Tile<V> values{keys.base + Tile<D>::down(N)};

            float scores[1][N / 8][4], d_weights[1][N / 8][4];
            clear(scores);
            clear(d_weights);
            product_transposed<1, N>(scores, queries, first_row, keys);
            product_transposed<1, N>(d_weights, d_outs, first_row, values);
            const bool is_cut = shape.is_cut(query, M, key, N);
            u32 rounded[1][N / 8][2];
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float d_score[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float exponent = scores[0][n][2 * half + e] * scale - log_sum[half];
                        bool seen = !is_cut
                            || shape.sees(query + first_row + lane / 4 + 8 * half, key + 8 * n + lane % 4 * 2 + e);
                        d_score[e] = seen ? power_of_two(exponent) * (d_weights[0][n][2 * half + e] - dot[half]) : 0.f;
                    }
                    rounded[0][n][half] = pack(d_score[0], d_score[1]);
                }
            product<1, N, D>(d_queries, rounded, keys);
        }

        put<D>(d_queries[0], queries, first_row, shape.scale, shape.scale);
        write<16, D>(queries, first_row, d_q + start * d_q_stride + piece.head * shape.qk, d_q_stride, rows, shape.qk);
    }
}

#define QUERY_PARAMETERS                                                                                                              \
    const bf16 *__restrict__ q, u32 q_stride, const bf16 *__restrict__ k, u32 k_stride, const bf16 *__restrict__ v, u32 v_stride,     \
        const bf16 *__restrict__ d_o, const float *__restrict__ log_sums, const float *__restrict__ dots, bf16 *__restrict__ d_q,     \
        u32 d_q_stride, SHAPE_PARAMETERS
#define QUERY_ARGUMENTS q, q_stride, k, k_stride, v, v_stride, d_o, log_sums, dots, d_q, d_q_stride, SHAPE_ARGUMENTS

extern "C" __global__ void __launch_bounds__(128, 3) attention_queries_32_32(QUERY_PARAMETERS) {
    query_gradients<32, 32, 4, 64>(QUERY_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_queries_64_64(QUERY_PARAMETERS) {
    query_gradients<64, 64, 4, 64>(QUERY_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(256, 1) attention_queries_128_128(QUERY_PARAMETERS) {
    query_gradients<128, 128, 8, 64>(QUERY_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(256, 1) attention_queries_192_128(QUERY_PARAMETERS) {
    query_gradients<192, 128, 8, 64>(QUERY_ARGUMENTS);
}
extern "C" __global__ void __launch_bounds__(128, 1) attention_queries_256_256(QUERY_PARAMETERS) {
    query_gradients<256, 256, 4, 32>(QUERY_ARGUMENTS);
}
