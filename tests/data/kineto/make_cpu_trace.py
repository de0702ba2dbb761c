"""Makes `cpu.json.gz`, a trace without a GPU: `python make_cpu_trace.py FOLDER`. The one here was made by PyTorch 2.13."""

import sys

import torch
from torch.profiler import ProfilerActivity, profile, record_function

model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
with profile(activities=[ProfilerActivity.CPU]) as profiler:
    with record_function("attn"):
        y = model[0](torch.randn(4, 8))
    with record_function("mlp"):
        y = model[1](y)
    y.sum().backward()
profiler.export_chrome_trace(f"{sys.argv[1]}/cpu.json.gz")
