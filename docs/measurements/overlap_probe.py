"""How computation and communication on one GPU slow each other.

Needs two GPUs joined by NVLink, nvcc and PyTorch. GPU 0 computes and exchanges, GPU 1 only exchanges. Each side is
launched over and over on a stream of its own, the communication stream with high priority, and the rate of each is taken
only over the time in which both ran.

    python3 overlap_probe.py --out overlap.csv

Changes no setting of the cards. Columns of the result:
  compute            the computation
  told_sms           SMs that cuBLAS was told to use, with cublasSetSmCountTarget (FP8: PyTorch's
                     torch._C._set_sm_carveout_experimental); empty: not told
  comm, ctas         what ran beside it: kernel = peer write by a kernel of so many CTAs of 1024 threads, engine = copy
                     engine, nccl = ncclSend and ncclRecv on so many CTAs, local = the same kernel writing
                     to its own GPU's memory, spin = the CTAs wait and touch no memory; none = nothing
  direction          out: GPU 0 sends; in: GPU 1 sends to it; both
  piece_ms           how long one launch of the communication takes when alone. In short pieces a kernel that waits for
                     free SMs at each launch loses time so, too; in long ones hardly
  compute_alone_ms, compute_beside_ms    one iteration; alone is with the same number of SMs told
  comm_alone_gb_s, comm_beside_gb_s      what GPU 0 sends (direction `in`: what GPU 1 sends it)
  in_alone_gb_s, in_beside_gb_s          what GPU 1 sends to GPU 0 meanwhile
  mhz_alone, mhz_beside                  SM clock while computing, median of samples
  spread             (slowest - fastest) / median of compute_beside_ms over the runs
"""

import argparse
import csv
import ctypes
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SOURCE = r"""
#include <cuda_runtime.h>
#include <cstdint>

__global__ void __launch_bounds__(1024) copy(int4 *to, const int4 *from, size_t n, int rounds) {
  size_t step = size_t(gridDim.x) * blockDim.x;
  for (int round = 0; round < rounds; round++)
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) to[i] = from[i];
}

__global__ void __launch_bounds__(1024) spin(uint64_t nanos) {
  extern __shared__ char room[];
  uint64_t start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do { __nanosleep(200); asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); } while (now - start < nanos);
}

extern "C" int peers() {
  for (int d = 0; d < 2; d++) {
    cudaSetDevice(d);
    cudaError_t e = cudaDeviceEnablePeerAccess(1 - d, 0);
    if (e != cudaSuccess && e != cudaErrorPeerAccessAlreadyEnabled) return e;
    cudaGetLastError();
    e = cudaFuncSetAttribute(spin, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024);
    if (e != cudaSuccess) return e;
  }
  return cudaSetDevice(0);
}

extern "C" int launch_copy(int device, void *to, const void *from, size_t bytes, int rounds, int ctas,
                           void *stream) {
  cudaSetDevice(device);
  copy<<<ctas, 1024, 0, (cudaStream_t)stream>>>((int4 *)to, (const int4 *)from, bytes / 16, rounds);
  cudaError_t e = cudaGetLastError();
  cudaSetDevice(0);
  return e;
}

extern "C" int launch_engine(int device, void *to, const void *from, size_t bytes, void *stream) {
  cudaSetDevice(device);
  cudaError_t e = cudaMemcpyPeerAsync(to, 1 - device, from, device, bytes, (cudaStream_t)stream);
  cudaSetDevice(0);
  return e;
}

extern "C" int launch_spin(uint64_t nanos, int ctas, void *stream) {
  spin<<<ctas, 1024, 200 * 1024, (cudaStream_t)stream>>>(nanos);
  return cudaGetLastError();
}
"""

RUNS = 7
RUN_MS = 100.0  # One run of one side, alone.
BUFFER = 512 << 20
NCCL_CTAS = 16


for name in ("NCCL_MAX_CTAS", "NCCL_MAX_NCHANNELS", "NCCL_MAX_P2P_NCHANNELS"):
    os.environ[name] = str(NCCL_CTAS)


def build():
    folder = Path(tempfile.mkdtemp())
    (folder / "probe.cu").write_text(SOURCE)
    library = folder / "probe.so"
    command = ["nvcc", "-O3", "-arch=sm_90", "-shared", "-Xcompiler", "-fPIC", "-o", library, folder / "probe.cu"]
    subprocess.run(command, check=True)
    lib = ctypes.CDLL(str(library))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    lib.launch_copy.argtypes = [ctypes.c_int, pointer, pointer, size, ctypes.c_int, ctypes.c_int, pointer]
    lib.launch_engine.argtypes = [ctypes.c_int, pointer, pointer, size, pointer]
    lib.launch_spin.argtypes = [ctypes.c_uint64, ctypes.c_int, pointer]
    return lib


def ok(code):
    if code != 0:
        raise RuntimeError(f"CUDA or NCCL error {code}")


class Link:
    """The buffers of both GPUs and what sends between them."""

    def __init__(self):
        self.lib = build()
        ok(self.lib.peers())
        self.src, self.dst, self.streams = [], [], []
        for device in (0, 1):
            with torch.cuda.device(device):
                generator = torch.Generator(device=f"cuda:{device}").manual_seed(device)
                noise = torch.randint(
                    -128, 128, (BUFFER,), dtype=torch.int8, device=f"cuda:{device}", generator=generator
                )
                self.src.append(noise)
                self.dst.append(torch.zeros(BUFFER, dtype=torch.int8, device=f"cuda:{device}"))
                self.streams.append(torch.cuda.Stream(device=device, priority=-1))
        self.nccl = None

    def start_nccl(self):
        self.nccl = ctypes.CDLL("libnccl.so.2")
        comms = (ctypes.c_void_p * 2)()
        ok(self.nccl.ncclCommInitAll(comms, 2, (ctypes.c_int * 2)(0, 1)))
        self.comms = comms

    def send(self, kind, ctas, device, size, rounds=1):
        """Launches one piece, `rounds` times `size` bytes (spin: nanoseconds), on the communication stream of `device`."""
        stream = self.streams[device].cuda_stream
        to, source = self.dst[1 - device].data_ptr(), self.src[device].data_ptr()
        if kind == "kernel":
            ok(self.lib.launch_copy(device, to, source, size, rounds, ctas, stream))
        elif kind == "engine":
            ok(self.lib.launch_engine(device, to, source, size, stream))
        elif kind == "local":
            ok(self.lib.launch_copy(device, self.dst[device].data_ptr(), source, size, rounds, ctas, stream))
        elif kind == "spin":
            ok(self.lib.launch_spin(size * rounds, ctas, stream))
        else:
            raise ValueError(kind)

    def exchange_nccl(self, size):
        nccl, p = self.nccl, ctypes.c_void_p
        ok(nccl.ncclGroupStart())
        for d in (0, 1):
            count, stream = ctypes.c_size_t(size), p(self.streams[d].cuda_stream)
            ok(nccl.ncclSend(p(self.src[d].data_ptr()), count, 0, 1 - d, p(self.comms[d]), stream))
            ok(nccl.ncclRecv(p(self.dst[d].data_ptr()), count, 0, 1 - d, p(self.comms[d]), stream))
        ok(nccl.ncclGroupEnd())

    def check(self):
        """Every kind delivers the bytes that it was given."""
        def sent(device, where):
            torch.cuda.synchronize(0), torch.cuda.synchronize(1)
            assert torch.equal(self.dst[where], self.src[device].to(f"cuda:{where}")), "bytes differ"
            self.dst[where].fill_(77)
            torch.cuda.synchronize(0), torch.cuda.synchronize(1)
        for device in (0, 1):
            for kind, ctas in [("kernel", 4), ("kernel", 20), ("engine", 0), ("local", 20)]:
                self.dst[0].fill_(99), self.dst[1].fill_(99)
                torch.cuda.synchronize(0), torch.cuda.synchronize(1)
                self.send(kind, ctas, device, BUFFER)
                sent(device, device if kind == "local" else 1 - device)
        if self.nccl:
            self.exchange_nccl(BUFFER)
            sent(0, 1), sent(1, 0)


class Cublas:
    """cuBLAS by its own interface: torch.mm does not take an SM count for bf16."""

    def __init__(self):
        self.lib = ctypes.CDLL("libcublas.so." + torch.version.cuda.split(".")[0])
        self.handle = ctypes.c_void_p()
        ok(self.lib.cublasCreate_v2(ctypes.byref(self.handle)))
        self.one, self.zero = ctypes.c_float(1), ctypes.c_float(0)

    def tell(self, sms):
        ok(self.lib.cublasSetSmCountTarget(self.handle, sms or 0))

    def mm(self, a, b, out):
        """out = a · b, all bf16 and row-major, on the current stream."""
        (m, k), n, p = a.shape, b.shape[1], ctypes.c_void_p
        ok(self.lib.cublasSetStream_v2(self.handle, p(torch.cuda.current_stream().cuda_stream)))
        bf16, float32, any_algorithm = 14, 68, -1
        # cuBLAS is column-major, so it computes the transpose.
        ok(
            self.lib.cublasGemmEx(
                self.handle, 0, 0, n, m, k,
                ctypes.byref(self.one), p(b.data_ptr()), bf16, n, p(a.data_ptr()), bf16, k,
                ctypes.byref(self.zero), p(out.data_ptr()), bf16, n, float32, any_algorithm,
            )
        )
        return out


def computations(cublas):
    """name -> (launch one iteration, FLOPs, bytes, whether cuBLAS can be told its SMs). Several inputs take turns."""
    d = "cuda:0"
    torch.manual_seed(0)
    made = {}

    def gemm(m, n, k, sets, make):
        a = [make(m, k, device=d, dtype=torch.bfloat16) for _ in range(sets)]
        b = [make(k, n, device=d, dtype=torch.bfloat16) for _ in range(sets)]
        out = torch.empty(m, n, device=d, dtype=torch.bfloat16)
        cublas.mm(a[0], b[0], out)
        expected = torch.mm(a[0], b[0]).float()
        error = (out.float() - expected).norm() / expected.norm().clamp(min=1e-9)
        assert error < 3e-3, f"a product is off by {error}"
        return lambda i: cublas.mm(a[i % sets], b[i % sets], out)

    # Zeros draw little power, so the clock stays up: what they lose, they lose to other things than power.
    for name, (m, n, k), sets, make in [
        ("gemm_8192x7168x4096", (8192, 7168, 4096), 3, torch.randn),
        ("gemm_4096x4096x2048", (4096, 4096, 2048), 6, torch.randn),
        ("gemm_16384x8192x7168", (16384, 8192, 7168), 1, torch.randn),
        ("zeros_8192x7168x4096", (8192, 7168, 4096), 3, torch.zeros),
    ]:
        made[name] = (gemm(m, n, k, sets, make), 2 * m * n * k, 2 * (m * k + n * k + m * n), True)

    m, n, k = 8192, 7168, 4096
    a8 = [torch.randn(m, k, device=d).to(torch.float8_e4m3fn) for _ in range(3)]
    b8 = [torch.randn(n, k, device=d).to(torch.float8_e4m3fn).t() for _ in range(3)]
    one = torch.ones((), device=d)
    fp8 = lambda i: torch._scaled_mm(
        a8[i % 3], b8[i % 3], scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    try:
        fp8(0)
        made["fp8_8192x7168x4096"] = (fp8, 2 * m * n * k, m * k + n * k + 2 * m * n, True)
    except Exception as error:
        print("no fp8:", error)

    heads, tokens, size = 64, 4096, 128
    shape = (1, heads, tokens, size)
    q, kk, v = (torch.randn(shape, device=d, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    grad = torch.randn(shape, device=d, dtype=torch.bfloat16)
    flops = 2 * heads * tokens * tokens * size

    def forward(_):
        with torch.no_grad(), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            F.scaled_dot_product_attention(q, kk, v, is_causal=True)

    made["attention_forward"] = (forward, flops, 4 * 2 * q.numel(), False)
    held = {}

    def backward(_):
        if not held:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                held["out"] = F.scaled_dot_product_attention(q, kk, v, is_causal=True)
        torch.autograd.grad(held["out"], (q, kk, v), grad, retain_graph=True)

    made["attention_backward"] = (backward, 5 * flops // 2, 8 * 2 * q.numel(), False)

    values = 128 << 20
    x, y = (torch.randn(values, device=d, dtype=torch.bfloat16) for _ in range(2))
    z = torch.empty_like(x)
    made["add"] = (lambda _: torch.add(x, y, out=z), 0, 6 * values, False)
    made["copy"] = (lambda _: z.copy_(x), 0, 4 * values, False)
    return made


class Probe:
    def __init__(self, out, seconds):
        self.link, self.cublas = Link(), Cublas()
        self.made = computations(self.cublas)
        self.stream = torch.cuda.Stream(device=0)
        self.started, self.seconds = time.time(), seconds
        self.times, self.sizes, self.inner, self.cache = {}, {}, {}, {}
        self.file = open(out, "w", newline="")
        self.csv = csv.writer(self.file, lineterminator="\n")
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            self.clock = lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        except Exception as error:
            print("no clock readings:", error)
            self.clock = lambda: math.nan

    def head(self):
        name, sms = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).multi_processor_count
        try:
            nccl = ".".join(map(str, torch.cuda.nccl.version()))
        except Exception:
            nccl = "unknown"
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.split("\n")[0]
        self.file.write(
            f"# 2x {name}, {sms} SMs, driver {driver}, CUDA {torch.version.cuda}, PyTorch {torch.__version__}, "
            f"cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}; medians of {RUNS} runs\n"
            "# made by docs/measurements/overlap_probe.py, which says what the columns are\n"
        )
        for compute, (_, flops, size, _) in self.made.items():
            self.file.write(f"# {compute}: {flops / 1e9:.1f} GFLOP, {size / 1e6:.1f} MB at least\n")
        self.csv.writerow(
            "compute,told_sms,comm,ctas,direction,piece_ms,compute_alone_ms,compute_beside_ms,comm_alone_gb_s,"
            "comm_beside_gb_s,in_alone_gb_s,in_beside_gb_s,mhz_alone,mhz_beside,spread".split(",")
        )

    def tell(self, sms):
        self.cublas.tell(sms)
        torch._C._set_sm_carveout_experimental(None if sms is None else 132 - sms)

    def run(self, compute, comm):
        """One run. `compute`: (name, told SMs) or None; `comm`: (kind, CTAs, direction, piece) or None.
        Returns (ms per iteration, GB/s out, GB/s in, MHz), NaN for what did not run."""
        link, nan = self.link, math.nan
        gate = torch.cuda.Event()
        event = lambda: torch.cuda.Event(enable_timing=True)
        compute_marks, out_marks, in_marks = [], [], []
        kind, ctas, direction, rounds = comm if comm else (None, 0, "", 1)
        size = self.sizes.get(comm, 0)
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(int(12e-3 * 1.7e9))
            gate.record(self.stream)
        for stream in link.streams:
            stream.wait_event(gate)

        # Marks are interleaved in launch order, so that neither queue fills up long before the other.
        pieces = {}
        if compute:
            name, sms = compute
            self.tell(sms)
            inner = self.inner[name]
            pieces["compute"] = max(4, math.ceil(RUN_MS / (self.times[compute] * inner)))
        if comm:
            pieces["comm"] = max(4, math.ceil((RUN_MS if compute else RUN_MS / 2) / self.times[comm]))
        sends_out, sends_in = direction in ("out", "both"), direction in ("in", "both")

        def mark(marks, stream, device):
            with torch.cuda.device(device):
                one = event()
                one.record(stream)
                marks.append(one)

        if compute:
            mark(compute_marks, self.stream, 0)
        if sends_out:
            mark(out_marks, link.streams[0], 0)
        if sends_in:
            mark(in_marks, link.streams[1], 1)
        most = max(pieces.values())
        done = {"compute": 0, "out": 0, "in": 0}
        extra = 1 if kind == "nccl" else 1.5  # GPU 1 must not stop before GPU 0.
        targets = {
            "out": pieces.get("comm", 0) if sends_out else 0,
            "in": math.ceil(pieces.get("comm", 0) * extra) if sends_in else 0,
            "compute": pieces.get("compute", 0),
        }
        for step in range(most):
            share = (step + 1) / most
            while done["out"] < targets["out"] * share:
                if kind == "nccl":
                    link.exchange_nccl(size)
                    done["in"] += 1
                    mark(in_marks, link.streams[1], 1)
                else:
                    link.send(kind, ctas, 0, size, rounds)
                mark(out_marks, link.streams[0], 0)
                done["out"] += 1
            while kind != "nccl" and done["in"] < targets["in"] * share:
                link.send(kind, ctas, 1, size, rounds)
                mark(in_marks, link.streams[1], 1)
                done["in"] += 1
            while done["compute"] < targets["compute"] * share:
                with torch.cuda.stream(self.stream):
                    for i in range(inner):
                        self.made[name][0](done["compute"] * inner + i)
                mark(compute_marks, self.stream, 0)
                done["compute"] += 1
        clocks = []
        last = compute_marks[-1] if compute else (out_marks or in_marks)[-1]
        while not last.query():
            clocks.append(self.clock())
            time.sleep(0.001)
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)
        self.tell(None)

        origin = (compute_marks or out_marks or in_marks)[0]
        at = lambda marks: [origin.elapsed_time(one) for one in marks]
        own = lambda marks: [marks[0].elapsed_time(one) for one in marks]
        c = at(compute_marks) if compute else None
        o = at(out_marks) if sends_out else None
        both = [marks for marks in (c, o) if marks]
        if both:
            start, end = max(marks[0] for marks in both), min(marks[-1] for marks in both)
            start += (end - start) * 0.1
        moved = lambda marks, start, end: rate_between(marks, start, end)
        ms = 1 / (moved(c, start, end) * inner) if compute else nan
        unit = 1e-6 * size * rounds  # bytes per ms to GB/s
        gb_out = moved(o, start, end) * unit if sends_out else nan
        gb_in = nan
        if sends_in:
            i = own(in_marks)
            # GPU 1 has a clock of its own: both started at the gate.
            stop = min(end if both else i[-1], i[-1])
            gb_in = moved(i, stop * 0.1, stop) * unit
        late = clocks[len(clocks) // 4 :] or [nan]
        return ms, gb_out, gb_in, statistics.median(late)

    def median(self, compute, comm, runs=RUNS):
        self.run(compute, comm)
        results = [self.run(compute, comm) for _ in range(runs)]
        columns = [[value for value in column] for column in zip(*results)]
        ms = columns[0]
        spread = (max(ms) - min(ms)) / statistics.median(ms) if compute else math.nan
        return [statistics.median(column) for column in columns] + [spread]

    def learn_compute(self, compute):
        """How long an iteration takes, roughly, so that runs have their length."""
        name, sms = compute
        if compute in self.times:
            return
        with torch.cuda.stream(self.stream):
            self.tell(sms)
            for i in range(5):
                self.made[name][0](i)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(int(2e-3 * 1.7e9))
            start.record()
            for i in range(20):
                self.made[name][0](i)
            end.record()
            torch.cuda.synchronize(0)
            self.tell(None)
        self.times[compute] = start.elapsed_time(end) / 20
        self.inner.setdefault(name, max(1, math.ceil(0.8 / self.times[compute])))

    def learn_comm(self, comm):
        """How many bytes take a millisecond; a piece has as many rounds of them as it lasts."""
        if comm in self.sizes:
            return
        kind, _, direction, rounds = comm
        if kind == "spin":
            self.sizes[comm], self.times[comm] = 1_000_000, rounds
            return
        self.sizes[comm], self.times[comm] = 128 << 20, rounds
        _, out, back, _ = self.run(None, comm)
        rate = back if direction == "in" else out
        self.sizes[comm] = min(BUFFER, int(rate * 1e6) // 4096 * 4096)
        self.times[comm] = rounds * self.sizes[comm] / (rate * 1e6)

    def alone(self, what):
        if what not in self.cache:
            is_compute = len(what) == 2
            (self.learn_compute if is_compute else self.learn_comm)(what)
            self.cache[what] = self.median(what, None) if is_compute else self.median(None, what)
        return self.cache[what]

    def write(self, compute, comm, row):
        name, sms = compute if compute else ("none", None)
        kind, ctas, direction, piece = comm if comm else ("none", 0, "", "")
        text = lambda value, digits: "" if value is None or math.isnan(value) else f"{value:.{digits}f}"
        row = [text(v, d) for v, d in zip(row, (4, 4, 1, 1, 1, 1, 0, 0, 4))]
        self.csv.writerow([name, "" if sms is None else sms, kind, ctas or "", direction, piece, *row])
        self.file.flush()

    def late(self):
        return time.time() - self.started > self.seconds

    def beside(self, compute, comm):
        if self.late():
            print("out of time:", compute, comm)
            return
        try:
            a, b = self.alone(compute), self.alone(comm)
            ms, out, back, mhz, spread = self.median(compute, comm)
            first = (back if comm[2] == "in" else out) if comm[0] != "spin" else math.nan
            first_alone = (b[2] if comm[2] == "in" else b[1]) if comm[0] != "spin" else math.nan
            both = comm[2] == "both"
            into, into_alone = (back, b[2]) if both else (math.nan, math.nan)
            self.write(compute, comm, [a[0], ms, first_alone, first, into_alone, into, a[3], mhz, spread])
            print(f"{compute[0]:<22} {str(compute[1]):>4} {comm}: x{ms / a[0]:.3f}  comm x{first / first_alone:.3f} "
                  f"({first_alone:.0f} GB/s) {a[3]:.0f}->{mhz:.0f} MHz spread {spread:.3f}", flush=True)
        except Exception as error:
            print("failed:", compute, comm, repr(error), flush=True)
            self.tell(None)
            torch.cuda.synchronize(0)

    def alone_rows(self, told):
        for compute in told:
            if self.late():
                return
            a = self.alone(compute)
            self.write(compute, None, [a[0], None, None, None, None, None, a[3], None, a[4]])
            flops = self.made[compute[0]][1]
            size = self.made[compute[0]][2]
            print(f"{compute[0]:<22} {str(compute[1]):>4} alone {a[0]:.4f} ms {flops / a[0] / 1e9:.0f} TFLOP/s "
                  f"{size / a[0] / 1e6:.0f} GB/s {a[3]:.0f} MHz spread {a[4]:.3f}", flush=True)

    def told_results_are_right(self):
        for name, (launch, _, _, can_be_told) in self.made.items():
            if not can_be_told:
                continue
            results = []
            for sms in (None, 112, 68):
                self.tell(sms)
                results.append(launch(0).float().clone())
            self.tell(None)
            norm = results[0].norm().clamp(min=1e-9)
            error = max(((result - results[0]).norm() / norm).item() for result in results[1:])
            assert error < 3e-3, f"{name} on fewer SMs is off by {error}"


def rate_between(marks, start, end):
    """Pieces per ms between two times, the broken ones at the ends counted by their share."""
    count = 0.0
    for before, after in zip(marks, marks[1:]):
        covered = min(after, end) - max(before, start)
        if covered > 0:
            count += covered / (after - before)
    return count / (end - start)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--out", required=True, help="the CSV to write")
    arguments.add_argument("--seconds", type=float, default=500, help="start nothing new after this long")
    arguments = arguments.parse_args()
    probe = Probe(arguments.out, arguments.seconds)
    link = probe.link
    try:
        link.start_nccl()
    except Exception as error:
        link.nccl = None
        print("no nccl:", repr(error))
    link.check()
    probe.told_results_are_right()
    print("checked; building took", round(time.time() - probe.started), "s", flush=True)
    probe.head()

    names = list(probe.made)
    told = [name for name in names if probe.made[name][3]]
    others = [name for name in names if name not in told]
    counts, long = (4, 8, 16, 20, 24, 32), 20

    def rows(computes, comms):
        for compute in computes:
            for comm in comms:
                probe.beside(compute, comm)

    # Should time run out, the rows that are missing are the less telling ones.
    whole = [(name, None) for name in names]
    probe.alone_rows(whole)
    probe.alone_rows([(told[0], sms) for sms in (132, 124, 116, 108, 100, 84, 68)])
    for name in told:
        for ctas in counts:
            rows([(name, 132 - ctas)], [("kernel", ctas, "both", long)])
    rows(whole, [("engine", 0, direction, 1) for direction in ("both", "out", "in")])
    rows(whole, [("kernel", ctas, "both", long) for ctas in (8, 20, 32)])
    for name in told:
        for ctas in (8, 20, 32):
            rows([(name, 132 - ctas)], [("spin", ctas, "out", long)])
        for ctas in (8, 20):
            rows([(name, 132 - ctas)], [("kernel", ctas, "out", long), ("kernel", ctas, "both", 1)])
        rows([(name, 112)], [("local", 20, "out", long)])
    rows([(name, None) for name in others], [("spin", 8, "out", long), ("spin", 20, "out", long)])
    rows([(name, None) for name in others], [("kernel", 20, "out", long), ("local", 20, "out", long)])
    rows(whole, [("kernel", 20, "both", 1)])
    if link.nccl:
        rows([(name, 132 - NCCL_CTAS) for name in told], [("nccl", NCCL_CTAS, "both", 1)])
        rows([(name, None) for name in others], [("nccl", NCCL_CTAS, "both", 1)])
    for name in told[1:]:
        probe.alone_rows([(name, sms) for sms in (132, 124, 116, 108, 100, 84, 68)])
    # Did the card drift?
    for name in names:
        probe.cache.pop((name, None))
    probe.alone_rows([(name, None) for name in names])
    print("took", round(time.time() - probe.started), "s")


if __name__ == "__main__":
    sys.exit(main())
