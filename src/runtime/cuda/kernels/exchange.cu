// The all-to-all between tokens and experts, over peer memory: rows are pushed into the other GPUs' buffers.
//
// A group has `places`; each has its part of the experts. Every place has a board, which the others write to:
//   ends:  places × 4 u64: of each place, for the exchange under way, where its rows begin, two more arrays, and how many rows have
//          room, with the exchange's number in the upper half;
//   table: places × experts u32: how many tokens of each place go to each expert.
// `peers` are the addresses of all boards. What is written for an exchange is read only between the two meetings of that exchange
// (src/runtime/cuda/exchange.rs says why nothing is overwritten too early).
//
// Each row crosses a link once: a place that sends t tokens to k experts each reads t rows and writes t·k, 16 bytes for each thread
// at a time, of which a warp has 4 under way: 64 KB on an SM. Bound by the links, or, with few SMs, by what these have under way.

// Chunks of 16 bytes that a thread has under way.
constexpr u32 FLIGHT = 4;

__device__ __forceinline__ u64* ends_of(u64 board) { return reinterpret_cast<u64*>(board); }
__device__ __forceinline__ u32* table_of(u64 board, u32 places) { return reinterpret_cast<u32*>(board + 32ull * places); }

// How many rows have room at an end: none if it does not belong to this exchange.
__device__ __forceinline__ u32 room_at(const u64* end, u32 number) { return (u32)(end[3] >> 32) == number ? (u32)end[3] : 0; }

// How many of `chosen` name each expert: `total(expert, count)` is told. Then ranks[i] is how many of the entries before i name the same
// expert. One block of whole warps; `seen`: shared, warps × experts. Each warp takes a range of entries, in order.
template <typename Total>
__device__ __forceinline__ void rank_entries(
    const u32* __restrict__ chosen, u32* __restrict__ ranks, u32 entries, u32 experts, u32* seen, const Total& total) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (u32 i = threadIdx.x; i < warps * experts; i += blockDim.x) seen[i] = 0;
    __syncthreads();
    u32* mine = seen + warp * experts;
    u32 share = (entries + warps - 1) / warps;
    u32 start = min(warp * share, entries), stop = min(start + share, entries);
    for (u32 i = start + lane; i < stop; i += 32) {
        if (chosen[i] < experts) atomicAdd(&mine[chosen[i]], 1u);
    }
    __syncthreads();
    // From counts by warp to what the warps before have counted.
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        u32 sum = 0;
        for (u32 w = 0; w < warps; w++) {
            u32 count = seen[w * experts + e];
            seen[w * experts + e] = sum;
            sum += count;
        }
        total(e, sum);
    }
    __syncthreads();
    for (u32 base = start; base < stop; base += 32) {
        u32 i = base + lane;
        u32 expert = i < stop ? chosen[i] : ~0u;
        u32 same = __match_any_sync(0xffffffffu, expert);
        u32 before = __popc(same & ((1u << lane) - 1));
        bool valid = expert < experts;
        u32 rank = valid ? mine[expert] + before : ~0u;
        __syncwarp();
        if (i < stop) ranks[i] = rank;
        // The last of those that name the expert.
        if (valid && before + 1 == __popc(same)) mine[expert] = rank + 1;
        __syncwarp();
    }
}

// Tells all places where this one's ends are, and, if `counting`, how many of its tokens go to each expert. Then ranks[i] is how many
// of the entries before i name the same expert.
//
// One block of whole warps. Dynamic shared memory: warps × experts u32.
extern "C" __global__ void __launch_bounds__(1024) exchange_announce(
    const u32* __restrict__ chosen, u32* __restrict__ ranks, u32 entries, u32 experts, u32 counting,
    const u64* __restrict__ peers, u32 places, u32 place, u64 rows, u64 second, u64 third, u64 room_and_number) {
    extern __shared__ u32 seen[];
    for (u32 p = threadIdx.x; p < places; p += blockDim.x) {
        u64* end = ends_of(peers[p]) + 4 * place;
        end[0] = rows;
        end[1] = second;
        end[2] = third;
        end[3] = room_and_number;
    }
    if (counting) {
        rank_entries(chosen, ranks, entries, experts, seen, [=](u32 e, u32 count) {
            for (u32 p = 0; p < places; p++) table_of(peers[p], places)[place * experts + e] = count;
        });
    }
    __threadfence_system();
}

// From the table: first[e], the row at e's place of this place's first token for e; and offsets, where the rows of this place's
// experts begin and the last ends, at most `capacity`. Rows are ordered by expert, then place, then token. A number of rows above the
// capacity is kept in `overflow`, the largest.
//
// One block of 1024 threads; at most 1024 experts, a multiple of `places`.
extern "C" __global__ void __launch_bounds__(1024) exchange_places(
    const u32* __restrict__ table, u32 places, u32 experts, u32 place, u32 capacity,
    u32* __restrict__ first, u32* __restrict__ offsets, u32* __restrict__ overflow) {
    __shared__ u32 starts[1025];
    __shared__ u32 by_warp[32];
    u32 e = threadIdx.x, lane = e % 32, warp = e / 32, local = experts / places;
    u32 total = 0, before = 0;
    if (e < experts) {
        for (u32 p = 0; p < places; p++) {
            u32 count = table[p * experts + e];
            total += count;
            if (p < place) before += count;
        }
    }
    // starts[e]: rows of all experts before e.
    u32 sum = total;
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) {
        u32 other = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += other;
    }
    if (lane == 31) by_warp[warp] = sum;
    __syncthreads();
    for (u32 w = 0; w < warp; w++) sum += by_warp[w];
    starts[e + 1] = sum;
    if (e == 0) starts[0] = 0;
    __syncthreads();
    if (e < experts) first[e] = starts[e] - starts[e / local * local] + before;
    u32 own = place * local, rows = starts[own + local] - starts[own];
    for (u32 i = e; i <= local; i += blockDim.x) offsets[i] = min(starts[own + i] - starts[own], capacity);
    if (e == 0 && rows > capacity) *overflow = max(*overflow, rows);
}

// Copies each token's row to its experts' places. x: tokens × chunks. With `first`, `rows` (tokens × top_k) are ranks that become
// rows, and each row's weight and source (`source` + token · top_k + slot) go with it; without, `rows` are rows. With `tiles`, as many
// scales of each row (scales: tiles × tokens) go too, side by side, `apart` bytes behind the first of the end's rows.
//
// One warp for each token at a time; neighbouring tokens go to different blocks. At most 32 experts for each token.
extern "C" __global__ void __launch_bounds__(1024) exchange_spread(
    const bf16x8* __restrict__ x, u32 chunks, u32 tokens, u32 top_k, u32 places, u32 local, const u32* __restrict__ chosen,
    u32* __restrict__ rows, const u32* __restrict__ first, const float* __restrict__ weights, u32 source,
    const u64* __restrict__ ends, u32 number, const float* __restrict__ scales, u32 tiles, u64 apart) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 * gridDim.x + blockIdx.x, warps = blockDim.x / 32 * gridDim.x;
    for (u32 token = warp; token < tokens; token += warps) {
        u64 to = 0, scales_to = 0;
        if (lane < top_k) {
            u32 entry = token * top_k + lane, expert = chosen[entry], place = expert / local;
            if (place < places) {
                const u64* end = ends + 4 * place;
                u32 row = rows[entry];
                if (first) rows[entry] = row += first[expert];
                if (row < room_at(end, number)) {
                    to = end[0] + (u64)row * chunks * 16;
                    scales_to = end[0] + apart + 4ull * row * tiles;
                    if (first) {
                        reinterpret_cast<u32*>(end[1])[row] = source + entry;
                        reinterpret_cast<float*>(end[2])[row] = weights[entry];
                    }
                }
            }
        }
        const bf16x8* from = x + (u64)token * chunks;
        for (u32 base = lane; base < chunks + lane; base += 32 * FLIGHT) {
            bf16x8 values[FLIGHT];
#pragma unroll
            for (u32 f = 0; f < FLIGHT; f++) {
                if (base + 32 * f < chunks) values[f] = from[base + 32 * f];
            }
            for (u32 slot = 0; slot < top_k; slot++) {
                bf16x8* there = reinterpret_cast<bf16x8*>(__shfl_sync(0xffffffffu, to, slot));
                if (!there) continue;
#pragma unroll
                for (u32 f = 0; f < FLIGHT; f++) {
                    if (base + 32 * f < chunks) there[base + 32 * f] = values[f];
                }
            }
        }
        for (u32 base = 0; base < tiles; base += 32) {
            u32 tile = base + lane;
            float scale = tile < tiles ? scales[(u64)tile * tokens + token] : 0.f;
            for (u32 slot = 0; slot < top_k; slot++) {
                float* there = reinterpret_cast<float*>(__shfl_sync(0xffffffffu, scales_to, slot));
                if (there && tile < tiles) there[tile] = scale;
            }
        }
    }
    __threadfence_system();
}

// Copies rows back to where their tokens are. y: *count × chunks; sources: for each row place · per_place + entry there. With
// `numbers`, each row's number goes to the second array of that end. With `tiles`, as many scales of each row (scales: tiles × most) go
// too, side by side, `apart` bytes behind the first of the end's rows.
//
// One warp for each row at a time.
extern "C" __global__ void __launch_bounds__(1024) exchange_return(
    const bf16x8* __restrict__ y, u32 chunks, const u32* __restrict__ count, const u32* __restrict__ sources,
    const float* __restrict__ numbers, u32 places, u32 per_place, const u64* __restrict__ ends, u32 number,
    const float* __restrict__ scales, u32 most, u32 tiles, u64 apart) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 * gridDim.x + blockIdx.x, warps = blockDim.x / 32 * gridDim.x;
    u32 rows = *count;
    for (u32 row = warp; row < rows; row += warps) {
        u32 place = sources[row] / per_place, entry = sources[row] % per_place;
        if (place >= places) continue;
        const u64* end = ends + 4 * place;
        if (entry >= room_at(end, number)) continue;
        if (numbers && lane == 0) reinterpret_cast<float*>(end[1])[entry] = numbers[row];
        const bf16x8* from = y + (u64)row * chunks;
        bf16x8* to = reinterpret_cast<bf16x8*>(end[0]) + (u64)entry * chunks;
        float* scales_to = reinterpret_cast<float*>(end[0] + apart) + (u64)entry * tiles;
        for (u32 tile = lane; tile < tiles; tile += 32) scales_to[tile] = scales[(u64)tile * most + row];
        for (u32 base = lane; base < chunks; base += 32 * FLIGHT) {
            bf16x8 values[FLIGHT];
#pragma unroll
            for (u32 f = 0; f < FLIGHT; f++) {
                if (base + 32 * f < chunks) values[f] = from[base + 32 * f];
            }
#pragma unroll
            for (u32 f = 0; f < FLIGHT; f++) {
                if (base + 32 * f < chunks) to[base + 32 * f] = values[f];
            }
        }
    }
    __threadfence_system();
}

// 8 values of a row, or 8 in FP8 with the scale of their tile.
__device__ __forceinline__ void read8(const bf16x8* from, u64 at, const float*, u64, float (&v)[8]) { unpack(from[at], v); }
__device__ __forceinline__ void read8(const uint2* from, u64 at, const float* scales, u64 scale_at, float (&v)[8]) {
    uint2 bytes = from[at];
    float scale = scales[scale_at], first[4], second[4];
    widen(bytes.x, first);
    widen(bytes.y, second);
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = first[j] * scale, v[4 + j] = second[j] * scale;
}

// y = Σ over slots of returned, plus what is to be added where it is not null. The row of a token's slot lies token · by_token + slot ·
// by_slot groups of 8 from the first on; the scale of one of its tiles, if it has any, at token · scale_token + slot · scale_slot + tile ·
// scale_tile. y and what is added: tokens × chunks = `all`. Reads slots + 2 values for each that it writes, once.
template <typename Eight>
__device__ __forceinline__ void sum_slots(
    const Eight* __restrict__ returned, u32 slots, u32 chunks, u32 by_token, u64 by_slot, const float* __restrict__ scales,
    u32 scale_token, u64 scale_slot, u32 scale_tile, const bf16x8* __restrict__ one, const bf16x8* __restrict__ other,
    bf16x8* __restrict__ y, u32 all) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < all; i += gridDim.x * blockDim.x) {
        u32 token = i / chunks, chunk = i % chunks;
        u64 from = (u64)token * by_token + chunk, scale = (u64)token * scale_token + (u64)(chunk / 16) * scale_tile;
        float sum[8] = {}, v[8];
#pragma unroll 4
        for (u32 slot = 0; slot < slots; slot++) {
            read8(returned, from + slot * by_slot, scales, scale + slot * scale_slot, v);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += v[j];
        }
        if (one) {
            unpack(one[i], v);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += v[j];
        }
        if (other) {
            unpack(other[i], v);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += v[j];
        }
        y[i] = pack8(sum);
    }
}

extern "C" __global__ void __launch_bounds__(256) exchange_sum(
    const bf16x8* __restrict__ returned, u32 slots, u32 chunks, u32 by_token, u64 by_slot, const float* __restrict__ scales,
    u32 scale_token, u64 scale_slot, u32 scale_tile, const bf16x8* __restrict__ one, const bf16x8* __restrict__ other,
    bf16x8* __restrict__ y, u32 all) {
    sum_slots(returned, slots, chunks, by_token, by_slot, scales, scale_token, scale_slot, scale_tile, one, other, y, all);
}

extern "C" __global__ void __launch_bounds__(256) exchange_sum_fp8(
    const uint2* __restrict__ returned, u32 slots, u32 chunks, u32 by_token, u64 by_slot, const float* __restrict__ scales,
    u32 scale_token, u64 scale_slot, u32 scale_tile, const bf16x8* __restrict__ one, const bf16x8* __restrict__ other,
    bf16x8* __restrict__ y, u32 all) {
    sum_slots(returned, slots, chunks, by_token, by_slot, scales, scale_token, scale_slot, scale_tile, one, other, y, all);
}

// What follows is for exchanges by copy engines: they know no rows, so a place gets all tokens of the others, with the experts that they
// chose and their weights, and finds its rows by itself; and gives back to each place one row for each token there, the sum of what its
// experts made of it. Here everything is of one part of the tokens: `entries` are its tokens · top_k, `start` is its first entry.

// For every place (a block), how many of its entries name each expert (table: places × experts), and how many of those before an entry
// name the same one (ranks: places × entries). `staged`: places × entries, but for this place, whose are `own`.
extern "C" __global__ void __launch_bounds__(1024) exchange_rank(
    const u32* __restrict__ own, const u32* __restrict__ staged, u32 entries, u32 experts, u32 place, u32* __restrict__ table,
    u32* __restrict__ ranks) {
    extern __shared__ u32 seen[];
    u32 p = blockIdx.x;
    const u32* chosen = p == place ? own : staged + (u64)p * entries;
    rank_entries(chosen, ranks + (u64)p * entries, entries, experts, seen, [=](u32 e, u32 count) { table[p * experts + e] = count; });
}

// From ranks and what `exchange_places` found: for each row of this place, its source and its weight; and for each entry of this place the
// row at its expert's.
extern "C" __global__ void __launch_bounds__(256) exchange_find(
    const u32* __restrict__ own, const u32* __restrict__ staged, const float* __restrict__ own_weights,
    const float* __restrict__ staged_weights, u32 entries, u32 experts, u32 places, u32 place, u32 per_place, u32 start,
    const u32* __restrict__ table, const u32* __restrict__ ranks, const u32* __restrict__ first, const u32* __restrict__ offsets,
    u32 capacity, u32* __restrict__ sources, float* __restrict__ row_weights, u32* __restrict__ rows) {
    u32 local = experts / places;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < places * entries; i += gridDim.x * blockDim.x) {
        u32 p = i / entries, entry = i % entries;
        u32 expert = p == place ? own[entry] : staged[i];
        if (expert >= experts) continue;
        u32 rank = ranks[i];
        if (p == place) rows[entry] = first[expert] + rank;
        if (expert / local != place) continue;
        u32 row = offsets[expert % local] + rank;
        for (u32 q = 0; q < p; q++) row += table[q * experts + expert];
        if (row >= capacity) continue;
        sources[row] = p * per_place + start + entry;
        row_weights[row] = p == place ? own_weights[entry] : staged_weights[i];
    }
}

// The rows of this place from the tokens of all: own (tokens × chunks), or staged (places × tokens × chunks). With `tiles` also their scales:
// own_scales (tiles × tokens), staged_scales (places × tiles × tokens); to_scales: tiles × most.
//
// One warp for each row at a time.
extern "C" __global__ void __launch_bounds__(256) exchange_gather(
    const bf16x8* __restrict__ own, const bf16x8* __restrict__ staged, u32 chunks, u32 tokens, u32 top_k, u32 place, u32 per_place,
    u32 start, const u32* __restrict__ count, const u32* __restrict__ sources, bf16x8* __restrict__ to, u32 most,
    const float* __restrict__ own_scales, const float* __restrict__ staged_scales, float* __restrict__ to_scales, u32 tiles) {
    u32 lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32), rows = *count;
    for (u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
        u32 source = sources[row], p = source / per_place, token = (source % per_place - start) / top_k;
        const bf16x8* from = (p == place ? own : staged + (u64)p * tokens * chunks) + (u64)token * chunks;
        bf16x8* here = to + (u64)row * chunks;
        for (u32 i = lane; i < chunks; i += 32) here[i] = from[i];
        const float* scales = p == place ? own_scales : staged_scales + (u64)p * tiles * tokens;
        for (u32 tile = lane; tile < tiles; tile += 32) to_scales[(u64)tile * most + row] = scales[(u64)tile * tokens + token];
    }
}

// Which row an entry of a place has here: row_of (places × entries), all of it set to ~0 before.
extern "C" __global__ void __launch_bounds__(256) exchange_invert(
    const u32* __restrict__ count, const u32* __restrict__ sources, u32 per_place, u32 start, u32 entries, u32 places,
    u32* __restrict__ row_of) {
    u32 rows = *count;
    for (u32 row = blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += gridDim.x * blockDim.x) {
        u32 p = sources[row] / per_place, entry = sources[row] % per_place - start;
        if (p < places && entry < entries) row_of[p * entries + entry] = row;
    }
}

// For each place and token the sum of the rows that it has here, 0 if it has none; with `numbers` also each entry's number, or 0. Of this
// place they go to `own`, of the others to `others`: both places × tokens × chunks, and numbers places × entries likewise.
//
// One warp for each place and token at a time.
extern "C" __global__ void __launch_bounds__(256) exchange_pack(
    const bf16x8* __restrict__ y, u32 chunks, const u32* __restrict__ row_of, u32 tokens, u32 top_k, u32 places, u32 place,
    bf16x8* __restrict__ own, bf16x8* __restrict__ others, const float* __restrict__ numbers, float* __restrict__ own_numbers,
    float* __restrict__ others_numbers) {
    u32 lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 at = (blockIdx.x * blockDim.x + threadIdx.x) / 32; at < places * tokens; at += warps) {
        bool mine = at / tokens == place;
        u32 row = lane < top_k ? row_of[(u64)at * top_k + lane] : ~0u;
        if (numbers && lane < top_k) (mine ? own_numbers : others_numbers)[(u64)at * top_k + lane] = row == ~0u ? 0.f : numbers[row];
        bf16x8* to = (mine ? own : others) + (u64)at * chunks;
        for (u32 base = 0; base < chunks; base += 32) {
            u32 chunk = base + lane;
            float sum[8] = {}, v[8];
            for (u32 slot = 0; slot < top_k; slot++) {
                u32 from = __shfl_sync(0xffffffffu, row, slot);
                if (from == ~0u || chunk >= chunks) continue;
                unpack(y[(u64)from * chunks + chunk], v);
#pragma unroll
                for (int j = 0; j < 8; j++) sum[j] += v[j];
            }
            if (chunk < chunks) to[chunk] = pack8(sum);
        }
    }
}

// y[i] = Σ over places of x[place · entries + i].
extern "C" __global__ void __launch_bounds__(256) exchange_sum_numbers(
    const float* __restrict__ x, u32 places, u32 entries, float* __restrict__ y) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < entries; i += gridDim.x * blockDim.x) {
        float sum = 0.f;
        for (u32 p = 0; p < places; p++) sum += x[(u64)p * entries + i];
        y[i] = sum;
    }
}
