"""Makes the traces of this folder: two layers of a small mixture of experts on one GPU, as PyTorch's profiler records them.

    python make_traces.py FOLDER

`whole` is a training step that is annotated in the forward pass alone; `modules` is the same with calls of modules recorded, from which the
annotations and the calls of other Python functions are taken out; `parts` is a layer whose backward is called piece by piece, each in
an annotation, with collectives of a group of one; `graph` is a CUDA graph that is replayed. `totals.json` has PyTorch's own sums of the
time in kernels under the annotations and operators of the CPU: count, microseconds.

Those here were made by PyTorch 2.11 (CUDA 13.0) on one H200.
"""

import gzip
import json
import re
import sys

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile, record_function, schedule

HIDDEN, TOKENS, EXPERTS, LAYERS = 256, 512, 4, 2
folder = sys.argv[1]
torch.manual_seed(0)
side, main = torch.cuda.Stream(), torch.cuda.current_stream()
there = torch.randperm(TOKENS).cuda()
back = there.argsort()
dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).view(1, TOKENS, 4, 192).transpose(1, 2).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(1, TOKENS, HIDDEN))


class GroupedExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, 2 * HIDDEN) / 16)
        self.down = nn.Parameter(torch.randn(EXPERTS, 2 * HIDDEN, HIDDEN) / 22)

    def forward(self, x):
        return torch.bmm(F.silu(torch.bmm(x.view(EXPERTS, -1, HIDDEN), self.up)), self.down).view(TOKENS, HIDDEN)


def move(x, order):
    """Stands in for an exchange: rows in another order, on a stream of its own."""
    side.wait_stream(main)
    with torch.cuda.stream(side):
        y = x[order]
    main.wait_stream(side)
    return y


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.experts = Attention(), GroupedExperts()

    def forward(self, x):
        with record_function("attn"):
            x = self.attn(x)
        with record_function("dispatch"):
            y = move(x[0], there)
        with record_function("mlp"):
            y = self.experts(y)
        with record_function("combine"):
            y = move(y, back)
        return x + y[None]


model = nn.Sequential(*[TransformerBlock() for _ in range(LAYERS)]).cuda().bfloat16()
inputs = torch.randn(1, TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16)
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)


def whole():
    optimizer.zero_grad(set_to_none=False)
    model(inputs).float().square().mean().backward()
    optimizer.step()


def parts():
    block = model[0]
    with record_function("attn(F)"):
        x = block.attn(inputs)
    h = x.detach().requires_grad_()
    with record_function("dispatch(F)"):
        side.wait_stream(main)
        with torch.cuda.stream(side):
            y = h[0][there].detach()
            z = torch.empty_like(y)
            dist.all_to_all_single(z, y)
        main.wait_stream(side)
    z.requires_grad_()
    with record_function("mlp(F)"):
        w = block.experts(z)
    with record_function("mlp(B)"):
        w.float().sum().backward()
    with record_function("combine(B)"):
        dist.all_reduce(z.grad)
    with record_function("attn(B)"):
        x.backward(torch.ones_like(x))


for _ in range(3):
    whole()
    parts()
torch.cuda.synchronize()
captured = torch.cuda.CUDAGraph()
with torch.no_grad(), torch.cuda.graph(captured):
    model[0].attn(inputs)


def graph():
    with record_function("attn forward"):
        captured.replay()


def without_annotations(path):
    """Leaves modules alone to say what kernels are, in the form in which the profiler wrote them."""
    text = gzip.open(path).read().decode()
    start, end = text.index('"traceEvents": [') + 16, text.rindex('],\n  "traceName"')

    def kept(event):
        event = json.loads(event)
        category, name = event.get("cat"), event.get("name", "")
        if category == "python_function":
            return name.startswith("nn.Module")
        return not ("user_annotation" in (category or "") and name in ("attn", "dispatch", "mlp", "combine"))

    events = filter(kept, re.split(r",\n(?=  \{\n)", text[start:end]))
    with gzip.open(path, "wb") as file:
        file.write((text[:start] + ",\n".join(events) + text[end:]).encode())


totals = {}
for name, step, more in (
    ("whole", whole, {}),
    ("modules", whole, {"with_stack": True, "with_modules": True}),
    ("parts", parts, {}),
    ("graph", graph, {}),
):
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA],
        schedule=schedule(wait=0, warmup=1, active=2, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(f"{folder}/{name}.json.gz"),
        acc_events=True,
        **more,
    ) as profiler:
        for _ in range(3):
            step()
            torch.cuda.synchronize()
            profiler.step()
    totals[name] = {
        row.key: [row.count, round(row.device_time_total, 3)]
        for row in profiler.key_averages()
        if str(row.device_type) == "DeviceType.CPU" and row.device_time_total > 0 and not row.key.startswith(("aten::", "cu"))
    }
without_annotations(f"{folder}/modules.json.gz")
with open(f"{folder}/totals.json", "w") as file:
    json.dump(totals, file, indent=1)
