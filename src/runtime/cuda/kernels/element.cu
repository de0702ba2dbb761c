// Copies of parts of matrices: threads read and write 16 bytes at a time, and walk over the whole in a loop.

// Rows of `width` 16-byte groups; strides are in groups too.
extern "C" __global__ void __launch_bounds__(256) element_copy_columns(
    const bf16x8* __restrict__ from, u32 from_stride, bf16x8* __restrict__ to, u32 to_stride, u32 groups, u32 width) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < groups; i += gridDim.x * blockDim.x) {
        u32 row = i / width, column = i % width;
        to[(u64)row * to_stride + column] = from[(u64)row * from_stride + column];
    }
}
