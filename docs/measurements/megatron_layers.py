"""Times layers of Megatron-Core, made of Transformer Engine's modules, on one GPU: its kernels, and the host that launches them.

    CUDA_DEVICE_MAX_CONNECTIONS=1 python3 megatron_layers.py > h200_megatron_layers.csv

Needs torch, megatron-core and transformer-engine[pytorch]. Each case is four layers with the widths of a published run and the experts that
one of its GPUs has, routed to balance: what a GPU does under expert parallelism, but for exchanges. Weight gradients are added up in fp32 by the
products, permutation and router are fused, as Megatron's recipes have it. Milliseconds per layer: `forward` and `backward`, each waited for; `steady`, one
after the other without a wait; `gpu_busy`, the time in which a kernel runs in forward and backward (profiler); `kernels` of both. With 128
tokens the GPU has next to nothing to do, so there `steady` is the host's time.
"""

import os
import statistics
import time

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

for name, value in dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK="0", WORLD_SIZE="1").items():
    os.environ.setdefault(name, value)
torch.cuda.set_device(0)
dist.init_process_group("nccl")

import megatron.core
import transformer_engine
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig

LAYERS = 4
HEAD = 128
CASES = [
    # name, hidden, heads, kv heads, experts of this GPU, experts per token, width, shared width, norm of queries and keys
    ("qwen3-235b, 4 experts", 4096, 64, 4, 4, 4, 1536, 0, True),
    ("qwen3-235b, 16 experts", 4096, 64, 4, 16, 8, 1536, 0, True),
    ("qwen2-57b, 16 experts", 3584, 28, 4, 16, 8, 2560, 20480, False),
    ("mixtral-8x22b, 2 experts", 6144, 48, 8, 2, 2, 16384, 0, False),
    ("mixtral-8x22b-g8t8, 8 experts", 6144, 48, 8, 8, 8, 2048, 0, False),
    ("llama-3-70b", 8192, 64, 8, 0, 0, 28672, 0, False),
]


def layers(hidden, heads, kv_heads, experts, top_k, width, shared, qk_norm):
    options = dict(
        num_layers=LAYERS, hidden_size=hidden, num_attention_heads=heads, num_query_groups=kv_heads, kv_channels=HEAD, ffn_hidden_size=width,
        normalization="RMSNorm", gated_linear_unit=True, activation_func=torch.nn.functional.silu, add_bias_linear=False, bf16=True,
        params_dtype=torch.bfloat16, hidden_dropout=0.0, attention_dropout=0.0, qk_layernorm=qk_norm, bias_activation_fusion=True,
        bias_dropout_fusion=True, apply_rope_fusion=True, gradient_accumulation_fusion=True, attention_softmax_in_fp32=False,
    )
    if experts:
        options.update(
            num_moe_experts=experts, moe_router_topk=top_k, moe_ffn_hidden_size=width, moe_grouped_gemm=True,
            moe_token_dispatcher_type="alltoall", moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=1e-3,
            moe_permute_fusion=True, moe_router_force_load_balancing=True, moe_router_dtype="fp32",
        )
    if shared:
        options.update(moe_shared_expert_intermediate_size=shared)
    config = TransformerConfig(**options)
    spec = get_gpt_layer_with_transformer_engine_spec(
        num_experts=experts or None, moe_grouped_gemm=bool(experts), qk_layernorm=qk_norm
    )
    made = torch.nn.ModuleList([build_module(spec, config=config, layer_number=n + 1) for n in range(LAYERS)]).cuda()
    for weight in made.parameters():
        weight.main_grad = torch.zeros_like(weight, dtype=torch.float32)
    return made


def measure(name, hidden, heads, kv_heads, experts, top_k, width, shared, qk_norm, tokens):
    made = layers(hidden, heads, kv_heads, experts, top_k, width, shared, qk_norm)
    positions = RotaryEmbedding(kv_channels=HEAD, rotary_percent=1.0)(tokens)
    x = torch.randn(tokens, 1, hidden, device="cuda", dtype=torch.bfloat16).requires_grad_()
    gradient = torch.randn_like(x)

    def forward():
        y = x
        for layer in made:
            y, _ = layer(hidden_states=y, attention_mask=None, rotary_pos_emb=positions)
        return y

    def clear():
        x.grad = None
        for weight in made.parameters():
            weight.grad, weight.grad_added_to_main_grad = None, False

    def step():
        clear()
        torch.cuda.synchronize()
        start = time.perf_counter()
        y = forward()
        torch.cuda.synchronize()
        middle = time.perf_counter()
        y.backward(gradient)
        torch.cuda.synchronize()
        return middle - start, time.perf_counter() - middle

    for _ in range(8):
        step()
    runs = [step() for _ in range(20)]
    steady = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(8):
            clear()
            forward().backward(gradient)
        torch.cuda.synchronize()
        steady.append((time.perf_counter() - start) / 8)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        step()
    kernels = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy, end = 0.0, 0.0
    for start, stop in sorted((event.time_range.start, event.time_range.end) for event in kernels):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    times = [statistics.median(run[side] for run in runs) for side in (0, 1)] + [statistics.median(steady), busy / 2e6]
    columns = [f'"{name}"', hidden, heads, kv_heads, experts, top_k, width, shared, int(qk_norm), tokens]
    columns += [f"{seconds / LAYERS * 1e3:.3f}" for seconds in times] + [round(len(kernels) / 2 / LAYERS)]
    print(*columns, sep=",", flush=True)


def main():
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    versions = f"torch {torch.__version__}, megatron-core {megatron.core.__version__}, transformer-engine {transformer_engine.__version__}"
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown processor")
    print(f"# {torch.cuda.get_device_name(0)}, {cpu}, {os.cpu_count()} cores (a virtual machine); {versions}")
    print("# Milliseconds per layer; what the columns are: megatron_layers.py.")
    print("layer,hidden,heads,kv_heads,experts,top_k,width,shared,qk_norm,tokens,forward,backward,steady,gpu_busy,kernels", flush=True)
    for case in CASES:
        for tokens in (128, 4096):
            measure(*case, tokens)


if __name__ == "__main__":
    main()
