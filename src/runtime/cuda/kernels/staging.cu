// The all-to-all between tokens and experts of several processes, whose GPUs do not write into each other: rows are packed for each
// place, travel as they are, and are put where they belong. exchange.cu packs them, since a place's part of the outgoing staging memory is
// to it what another GPU's buffer is; here is what it then needs to know, and the way out of the incoming memory.
//
// Staging memory, outgoing and incoming: for each place `stride` times 16 bytes of rows, and `room` numbers of 4 bytes. With rows in FP8
// go scales, `apart` bytes behind the first of those from one place to another: rows × tiles. The rows from one place to another are
// ordered by expert, then token; `packed` is a row's number there. At its expert's place, `sources` says where a row comes from, as place ·
// per_place + packed. A place's own rows do not travel: they are read from the outgoing memory.

// first[e]: where this place's tokens for expert e begin among its rows for e's place. table: places × experts.
extern "C" __global__ void __launch_bounds__(256) staging_first(
    const u32* __restrict__ table, u32 experts, u32 local, u32 place, u32* __restrict__ first) {
    const u32* counts = table + (u64)place * experts;
    for (u32 e = blockIdx.x * blockDim.x + threadIdx.x; e < experts; e += gridDim.x * blockDim.x) {
        u32 sum = 0;
        for (u32 other = e / local * local; other < e; other++) sum += counts[other];
        first[e] = sum;
    }
}

// Where each row of this place's experts comes from. offsets: where the rows of each expert begin. One warp for each place and expert.
extern "C" __global__ void __launch_bounds__(256) staging_sources(
    const u32* __restrict__ table, u32 places, u32 experts, u32 place, u32 per_place, const u32* __restrict__ offsets, u32 capacity,
    u32* __restrict__ sources) {
    u32 local = experts / places, lane = threadIdx.x % 32;
    u32 warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 pair = warp; pair < places * local; pair += warps) {
        u32 from = pair / local, e = pair % local;
        const u32* own = table + (u64)place * local;
        u32 row = offsets[e], packed = 0;
        for (u32 p = 0; p < from; p++) row += own[(u64)p * experts + e];
        for (u32 other = 0; other < e; other++) packed += own[(u64)from * experts + other];
        u32 count = own[(u64)from * experts + e];
        for (u32 i = lane; i < count; i += 32) {
            if (row + i < capacity) sources[row + i] = from * per_place + packed + i;
        }
    }
}

// Copies a row by one warp, 16 bytes for each thread at a time, of which it has 4 under way.
__device__ __forceinline__ void copy_row(const bf16x8* __restrict__ from, bf16x8* __restrict__ to, u32 chunks, u32 lane) {
    constexpr u32 FLIGHT = 4;
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

// Copies the scales of a row by one warp.
__device__ __forceinline__ void copy_scales(
    const bf16x8* rows, u64 apart, u32 packed, u32 tiles, float* __restrict__ to, u32 row, u32 lane) {
    const float* from = reinterpret_cast<const float*>(reinterpret_cast<const char*>(rows) + apart) + (u64)packed * tiles;
    for (u32 tile = lane; tile < tiles; tile += 32) to[(u64)row * tiles + tile] = from[tile];
}

// Puts the rows that have come for this place's experts where these read them: to[row], for the first *count rows, from where `sources`
// says. With `numbers`, each row's number goes there too. One warp for each row at a time. Reads and writes each row once.
extern "C" __global__ void __launch_bounds__(1024) staging_take_rows(
    const bf16x8* __restrict__ incoming, const bf16x8* __restrict__ outgoing, const float* __restrict__ incoming_numbers,
    const float* __restrict__ outgoing_numbers, u32 room, u32 stride, u32 place, u32 places, u32 chunks, u64 apart, u32 tiles,
    float* __restrict__ scales_to, const u32* __restrict__ count, const u32* __restrict__ sources, u32 per_place, bf16x8* __restrict__ to, float* __restrict__ numbers) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 * gridDim.x + blockIdx.x, warps = blockDim.x / 32 * gridDim.x;
    u32 rows = *count;
    for (u32 row = warp; row < rows; row += warps) {
        u32 from = sources[row] / per_place, packed = sources[row] % per_place;
        if (from >= places || packed >= room) continue;
        if (numbers && lane == 0) numbers[row] = (from == place ? outgoing_numbers : incoming_numbers)[(u64)from * room + packed];
        const bf16x8* rows_there = (from == place ? outgoing : incoming) + (u64)from * stride;
        copy_row(rows_there + (u64)packed * chunks, to + (u64)row * chunks, chunks, lane);
        copy_scales(rows_there, apart, packed, tiles, scales_to, row, lane);
    }
}

// Puts the rows that have come back where their tokens are: to[entry], from the place of that entry's expert, where `packed` says which.
// With `numbers`, each row's number goes there too. One warp for each entry at a time. Reads and writes each row once.
extern "C" __global__ void __launch_bounds__(1024) staging_take_entries(
    const bf16x8* __restrict__ incoming, const bf16x8* __restrict__ outgoing, const float* __restrict__ incoming_numbers,
    const float* __restrict__ outgoing_numbers, u32 room, u32 stride, u32 place, u32 places, u32 chunks, u64 apart, u32 tiles,
    float* __restrict__ scales_to, u32 entries, const u32* __restrict__ chosen, u32 local, const u32* __restrict__ packed, bf16x8* __restrict__ to, float* __restrict__ numbers) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 * gridDim.x + blockIdx.x, warps = blockDim.x / 32 * gridDim.x;
    for (u32 entry = warp; entry < entries; entry += warps) {
        u32 from = chosen[entry] / local, row = packed[entry];
        if (from >= places || row >= room) continue;
        if (numbers && lane == 0) numbers[entry] = (from == place ? outgoing_numbers : incoming_numbers)[(u64)from * room + row];
        const bf16x8* rows_there = (from == place ? outgoing : incoming) + (u64)from * stride;
        copy_row(rows_there + (u64)row * chunks, to + (u64)entry * chunks, chunks, lane);
        copy_scales(rows_there, apart, row, tiles, scales_to, entry, lane);
    }
}
