"""Times the ops of published training runs with PyTorch on one GPU: products, grouped products, attention, passes over memory, launches.

    python3 ops_probe.py > h200_ops.csv

Every op is captured in a CUDA graph, so that the host's time is not in it, with inputs rotated past the cache (at least 200 MB) and
N(0, 1) data, whose power is that of training. `burst` is the median of 7 replays after a pause of 50 ms, `held` the mean of the last
half of 0.4 s without a pause: what the card keeps up under its power limit. Columns: op, what, m, n, k, copies, burst us, held us,
rate at `held` (TFLOP/s for products and attention, GB/s for passes). All results of products are compared with fp32 first.
"""

import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.manual_seed(0)
DEVICE = "cuda"
CACHE = 200e6


def capture(call, rounds):
    """A graph of `rounds` calls, each with the next set of inputs."""
    for i in range(3):
        call(i % rounds)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(rounds):
            call(i)
    return graph


def timed(graph, rounds):
    def replay():
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        return start, end

    replay()
    torch.cuda.synchronize()
    burst = []
    for _ in range(7):
        time.sleep(0.05)
        start, end = replay()
        end.synchronize()
        burst.append(start.elapsed_time(end) / rounds * 1e3)
    burst = statistics.median(burst)
    replays = max(4, int(0.4e6 / (burst * rounds)))
    marks = [replay() for _ in range(replays)]
    torch.cuda.synchronize()
    half = marks[replays // 2 :]
    held = sum(start.elapsed_time(end) for start, end in half) / len(half) / rounds * 1e3
    return burst, held


def report(op, what, dims, copies, call, rounds, work, unit):
    try:
        burst, held = timed(capture(call, rounds), rounds)
    except Exception as error:  # an op that this PyTorch or card lacks is a row too
        print(f"# {op},{what},{dims}: {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)
        torch.cuda.synchronize()
        return
    m, n, k = (*dims, 0, 0, 0)[:3]
    print(f"{op},{what},{m},{n},{k},{copies},{burst:.2f},{held:.2f},{work / held / unit:.1f}", flush=True)


def randn(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def sets(bytes_each):
    return max(2, min(16, int(CACHE / bytes_each) + 1))


def products(shapes):
    for m, n, k in shapes:
        flops = 2 * m * n * k
        rounds = sets(2 * (m * k + n * k + m * n))
        x = [randn(m, k) for _ in range(rounds)]
        w = [randn(n, k) for _ in range(rounds)]
        dy = [randn(m, n) for _ in range(rounds)]
        y = torch.empty(m, n, device=DEVICE, dtype=torch.bfloat16)
        dx = torch.empty(m, k, device=DEVICE, dtype=torch.bfloat16)
        dw = torch.empty(n, k, device=DEVICE, dtype=torch.bfloat16)
        torch.mm(x[0], w[0].t(), out=y)
        exact = x[0][:64].float() @ w[0][:64].float().t()
        error = ((y[:64, :64].float() - exact).abs().max() / exact.abs().max()).item()
        assert error < 0.02, error
        report("bf16", "y", (m, n, k), 1, lambda i: torch.mm(x[i], w[i].t(), out=y), rounds, flops, 1e6)
        report("bf16", "dx", (m, n, k), 1, lambda i: torch.mm(dy[i], w[i], out=dx), rounds, flops, 1e6)
        report("bf16", "dw", (m, n, k), 1, lambda i: torch.mm(dy[i].t(), x[i], out=dw), rounds, flops, 1e6)
        one = torch.tensor(1.0, device=DEVICE)
        a = [t.to(torch.float8_e4m3fn) for t in x]
        b = [t.to(torch.float8_e4m3fn) for t in w]

        def per_tensor(i):
            torch._scaled_mm(a[i], b[i].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

        report("fp8", "y, one scale, fast accumulation", (m, n, k), 1, per_tensor, rounds, flops, 1e6)

        def exact_sum(i):
            torch._scaled_mm(a[i], b[i].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=False)

        report("fp8", "y, one scale", (m, n, k), 1, exact_sum, rounds, flops, 1e6)
        if m % 128 == 0 and n % 128 == 0 and k % 128 == 0:
            # 1x128 scales of the input, 128x128 of the weights; outer-dim-major, as cuBLASLt wants them.
            sa = torch.ones(k // 128, m, device=DEVICE).t()
            sb = torch.ones(n // 128, k // 128, device=DEVICE)

            def blocks(i):
                torch._scaled_mm(a[i], b[i].t(), scale_a=sa, scale_b=sb.t(), out_dtype=torch.bfloat16)

            report("fp8", "y, 1x128 and 128x128", (m, n, k), 1, blocks, rounds, flops, 1e6)


def grouped(shapes):
    for copies, m, n, k in shapes:
        flops = 2 * copies * m * n * k
        rounds = sets(2 * copies * (m * k + n * k + m * n))
        x = [randn(copies * m, k) for _ in range(rounds)]
        w = [randn(copies, n, k) for _ in range(rounds)]
        dy = [randn(copies * m, n) for _ in range(rounds)]
        offs = torch.arange(1, copies + 1, device=DEVICE, dtype=torch.int32) * m
        report("grouped", "y", (m, n, k), copies,
               lambda i: torch._grouped_mm(x[i], w[i].transpose(1, 2), offs=offs), rounds, flops, 1e6)
        report("grouped", "dx", (m, n, k), copies, lambda i: torch._grouped_mm(dy[i], w[i], offs=offs), rounds, flops, 1e6)
        report("grouped", "dw", (m, n, k), copies, lambda i: torch._grouped_mm(dy[i].t(), x[i], offs=offs), rounds, flops, 1e6)
        xb = [t.view(copies, m, k) for t in x]
        report("batched", "y", (m, n, k), copies, lambda i: torch.bmm(xb[i], w[i].transpose(1, 2)), rounds, flops, 1e6)


def attention(shapes):
    for heads, kv, qk, v, length in shapes:
        flops = 2 * heads * length * length * (qk + v) / 2
        rounds = sets(2 * length * (heads * (qk + v) + kv * (qk + v)))
        q = [randn(1, heads, length, qk).requires_grad_() for _ in range(rounds)]
        ks = [randn(1, kv, length, qk).requires_grad_() for _ in range(rounds)]
        vs = [randn(1, kv, length, v).requires_grad_() for _ in range(rounds)]
        out = randn(1, heads, length, v)
        dims = (heads, kv, length)
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
            def forward(i):
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q[i], ks[i], vs[i], is_causal=True, enable_gqa=heads != kv)

            def both(i):
                torch.autograd.grad(forward(i), (q[i], ks[i], vs[i]), out)

            report("attention", f"{name} forward {qk}/{v}", dims, 1, forward, rounds, flops, 1e6)
            report("attention", f"{name} forward and backward {qk}/{v}", dims, 1, both, rounds, 3.5 * flops, 1e6)


def passes(sizes):
    for values in sizes:
        rounds = sets(4 * values)
        width = 8192
        rows = values // width
        a = [randn(rows, width) for _ in range(rounds)]
        b = [randn(rows, width) for _ in range(rounds)]
        out = torch.empty(rows, width, device=DEVICE, dtype=torch.bfloat16)
        weight = randn(width)
        order = torch.randperm(rows, device=DEVICE)
        wide = torch.empty(rows, width, device=DEVICE, dtype=torch.float32)
        eight = torch.empty(rows, width, device=DEVICE, dtype=torch.float8_e4m3fn)
        report("pass", "copy", (values,), 1, lambda i: out.copy_(a[i]), rounds, 4 * values, 1e3)
        report("pass", "add", (values,), 1, lambda i: torch.add(a[i], b[i], out=out), rounds, 6 * values, 1e3)
        report("pass", "rms norm", (values,), 1, lambda i: F.rms_norm(a[i], (width,), weight), rounds, 4 * values, 1e3)
        report("pass", "take rows", (values,), 1, lambda i: torch.index_select(a[i], 0, order, out=out), rounds, 4 * values, 1e3)
        report("pass", "to fp32", (values,), 1, lambda i: wide.copy_(a[i]), rounds, 6 * values, 1e3)
        report("pass", "to fp8", (values,), 1, lambda i: eight.copy_(a[i]), rounds, 3 * values, 1e3)
        report("pass", "silu and product, two kernels", (values,), 1,
               lambda i: torch.mul(F.silu(a[i]), b[i], out=out), rounds, 10 * values, 1e3)


def host():
    """Host time of eager calls, and the gap between small kernels, alone and in a graph."""
    a = torch.zeros(1024, device=DEVICE)
    linear = torch.nn.Linear(256, 256, device=DEVICE, dtype=torch.bfloat16)
    x = randn(16, 256).requires_grad_()
    torch.cuda.synchronize()

    def eager(name, call, count=2000):
        call()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        print(f"host,{name},0,0,0,1,{(time.perf_counter() - begin) / count * 1e6:.2f},0,0", flush=True)

    eager("add in place, no gradient", lambda: a.add_(1.0))
    eager("linear forward with autograd", lambda: linear(x))
    eager("linear forward and backward", lambda: linear(x).sum().backward(), 500)
    report("launch", "add of 1024 in a graph", (1024,), 1, lambda i: a.add_(1.0), 1000, 0, 1)


if __name__ == "__main__":
    query = "name,driver_version,clocks.max.sm,power.limit"
    card = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True).stdout.strip()
    print(f"# {card}; PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    print("op,what,m,n,k,copies,burst_us,held_us,rate")
    host()
    products([
        (8192, 7168, 4096), (8192, 8192, 8192), (4096, 4096, 4096), (16384, 8192, 8192),
        (8192, 2560, 8192), (8192, 8192, 2048), (8192, 14336, 8192), (8192, 8192, 7168),  # Llama-3 70B, TP 4
        (4096, 4096, 6144), (4096, 6144, 3072), (4096, 32768, 6144), (4096, 6144, 16384),  # Mixtral 8x22B, TP 2, EP 8
        (4096, 4608, 4096), (4096, 4096, 4096), (4096, 5120, 2048), (4096, 2048, 4096),  # Qwen3 235B TP 2, 30B
        (4096, 2112, 7168), (4096, 24576, 1536), (4096, 32768, 512), (4096, 7168, 16384),  # DeepSeek-V3
    ])
    grouped([
        (4, 4096, 3072, 4096), (4, 4096, 4096, 1536), (16, 2048, 3072, 4096), (16, 2048, 4096, 1536),  # Qwen3 235B, EP 32 and 8
        (8, 4096, 1536, 2048), (8, 4096, 2048, 768), (16, 2048, 1536, 2048), (16, 2048, 2048, 768),  # Qwen3 30B, EP 16 and 8
        (4, 8192, 4096, 7168), (4, 8192, 7168, 2048), (2, 2048, 32768, 6144), (2, 2048, 6144, 16384),
    ])
    attention([
        (16, 2, 128, 128, 8192), (24, 4, 128, 128, 4096), (32, 2, 128, 128, 4096), (32, 4, 128, 128, 4096), (16, 1, 128, 128, 16384),
        (128, 128, 192, 128, 4096),
    ])
    passes([1 << 22, 1 << 24, 1 << 26, 1 << 28])
    clocks = subprocess.run(["nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader"],
                            capture_output=True, text=True).stdout.strip()
    print(f"# at the end: {clocks}", file=sys.stdout)
