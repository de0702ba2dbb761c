"""PyTorch's cuDNN attention at the shapes of `attention::speed` (tests/cuda), and the two forms of cuDNN's gradient.

    python attention_probe.py        # the second part wants nvidia-cudnn-frontend

Causal, bf16, normally distributed, rows of tokens with their heads side by side. Medians of 21 runs one behind the other, after 3, with the
least and the greatest; whether five more runs gave the bits of the first.
"""

import math

import torch

SHAPES = [
    (128, 128, 192, 128, 4096),
    (32, 32, 128, 128, 4096),
    (32, 4, 128, 128, 4096),
    (64, 8, 64, 64, 4096),
    (32, 32, 192, 128, 8192),
]
aten = torch.ops.aten


def times(run, count=21, before=3):
    for _ in range(before):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    found = sorted(start.elapsed_time(end) for start, end in events)
    return f"{found[count // 2]:.3f} ms ({found[0]:.3f} to {found[-1]:.3f})"


def same_bits(run):
    first = [tensor.clone() for tensor in run()]
    return sum(all(torch.equal(a, b) for a, b in zip(first, run())) for _ in range(5))


def random(sequence, heads, width):
    return torch.randn(1, sequence, heads, width, device="cuda").to(torch.bfloat16).transpose(1, 2)


def by_torch(heads, kv_heads, qk, value, sequence):
    q, k, v = random(sequence, heads, qk), random(sequence, kv_heads, qk), random(sequence, kv_heads, value)
    d_o, scale = random(sequence, heads, value), 1 / math.sqrt(qk)

    def forward():
        return aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=scale)

    o, log_sums, q_ends, k_ends, q_most, k_most, seed, offset = forward()[:8]

    def gradient():
        return aten._scaled_dot_product_cudnn_attention_backward(
            d_o, q, k, v, o, log_sums, seed, offset, None, q_ends, k_ends, q_most, k_most, 0.0, True, scale=scale
        )

    what = f"PyTorch, {heads} heads ({kv_heads}) of {qk}/{value}, {sequence} tokens"
    print(f"{what}: forward {times(forward)}", flush=True)
    print(f"{what}: gradient {times(gradient)}, same bits {same_bits(gradient)} of 5", flush=True)
    return q, k, v, o, d_o, log_sums.reshape(1, heads, sequence, 1), scale


def by_frontend(cudnn, q, k, v, o, d_o, log_sums, scale, heads, deterministic, target=None):
    """The gradient of the first heads of as many key/value heads."""
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    fp32, bf16 = cudnn.data_type.FLOAT, cudnn.data_type.BFLOAT16
    graph = cudnn.pygraph(
        io_data_type=bf16, intermediate_data_type=fp32, compute_data_type=fp32, handle=handle, sm_count=target
    )
    inputs = [tensor[:, :heads] for tensor in (q, k, v, o, d_o, log_sums)]
    described = [
        graph.tensor(dim=list(t.shape), stride=list(t.stride()), data_type=bf16 if t.dtype == torch.bfloat16 else fp32)
        for t in inputs
    ]
    results = graph.sdpa_backward(
        *described,
        attn_scale=scale,
        diagonal_alignment=cudnn.diagonal_alignment.TOP_LEFT,
        diagonal_band_right_bound=0,
        use_deterministic_algorithm=deterministic,
    )
    outputs = [torch.empty_like(tensor) for tensor in (q, k, v)]
    outputs = [tensor[:, :heads] for tensor in outputs]
    for result, tensor in zip(results, outputs):
        result.set_output(True).set_dim(list(tensor.shape)).set_stride(list(tensor.stride())).set_data_type(bf16)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    room = torch.empty(graph.get_workspace_size(), device="cuda", dtype=torch.uint8)
    pack = dict(zip(described + list(results), inputs + outputs))

    def run():
        graph.execute(pack, room, handle=handle)
        return outputs

    form = "gradients of scores kept" if deterministic else "dq by atomics"
    print(f"cuDNN, {form}, {heads} heads: {times(run)}, {room.numel()} bytes, same bits {same_bits(run)} of 5", flush=True)


def main():
    print(f"# PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}")
    kept = by_torch(*SHAPES[0])
    for shape in SHAPES[1:]:
        by_torch(*shape)
    try:
        import cudnn
    except ImportError:
        return print("# no nvidia-cudnn-frontend")
    print(f"# of the first shape, by cudnn-frontend {cudnn.__version__}")
    for heads, deterministic in [(128, False), (128, True), (64, True), (32, True), (16, True), (8, True)]:
        by_frontend(cudnn, *kept, heads, deterministic)
    try:
        by_frontend(cudnn, *kept, 128, True, target=112)
    except Exception as error:  # cuDNN's own kinds
        print("# a target of 112 SMs:", " ".join(str(error).split())[-200:])


main()
