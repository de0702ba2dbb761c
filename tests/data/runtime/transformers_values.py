"""Writes the values that `tests/host_published.rs` compares with: losses and gradients of small models as Hugging Face's
implementations compute them, in double precision.

Made with torch 2.15.0 and transformers 5.24.0 (Apache-2.0):  python transformers_values.py > transformers.json

The MTP module of DeepSeek-V3 is put together from its parts as section 2.2 of the technical report says; AdamW is torch's.

Parameters are `noise` of their names in dualweave. Of each gradient are kept its product with the noise of its name and
".probe", and its norm.
"""

import json
import sys

import numpy
import torch
import transformers

# The implementations compute norms, softmax and rotary embedding in single precision whatever the model's: not here.
torch.set_default_dtype(torch.float64)
torch.float32 = torch.float = torch.float64
torch.Tensor.float = torch.Tensor.double

SEQUENCES, LENGTH, VOCABULARY, HIDDEN = 2, 6, 19, 12


def noise(name, count):
    offset = 0.0
    for byte in name.encode():
        offset = offset * 0.7 + byte
    index = numpy.arange(count, dtype=numpy.float64)
    return numpy.sin(offset + 1.7 * index * (1.0 + 0.01 * index))


def tokens():
    """Sequences with two tokens more than positions."""
    return [[(7 * i * i + 5 * i + 3 * s) % VOCABULARY for i in range(LENGTH + 2)] for s in range(SEQUENCES)]


def attention_tensors(layer, prefix):
    own = layer.self_attn
    if hasattr(own, "kv_b_proj"):
        if hasattr(own, "q_a_proj"):
            yield prefix + "attention.q_down.weight", [own.q_a_proj.weight]
            yield prefix + "attention.q_norm.gain", [own.q_a_layernorm.weight]
            yield prefix + "attention.q_up.weight", [own.q_b_proj.weight]
        else:
            yield prefix + "attention.q_up.weight", [own.q_proj.weight]
        yield prefix + "attention.kv_down.weight", [own.kv_a_proj_with_mqa.weight]
        yield prefix + "attention.kv_norm.gain", [own.kv_a_layernorm.weight]
        yield prefix + "attention.kv_up.weight", [own.kv_b_proj.weight]
    else:
        three = [own.q_proj, own.k_proj, own.v_proj]
        yield prefix + "attention.qkv.weight", [projection.weight for projection in three]
        if own.q_proj.bias is not None:
            yield prefix + "attention.qkv.bias", [projection.bias for projection in three]
        if hasattr(own, "q_norm"):
            yield prefix + "attention.q_norm.gain", [own.q_norm.weight]
            yield prefix + "attention.k_norm.gain", [own.k_norm.weight]
    yield prefix + "attention.output.weight", [own.o_proj.weight]


def swiglu_tensors(mlp, prefix):
    yield prefix + "gate_up.weight", [mlp.gate_proj.weight, mlp.up_proj.weight]
    yield prefix + "down.weight", [mlp.down_proj.weight]


def layer_tensors(layer, prefix):
    yield prefix + "attention_norm.gain", [layer.input_layernorm.weight]
    yield from attention_tensors(layer, prefix)
    yield prefix + "mlp_norm.gain", [layer.post_attention_layernorm.weight]
    mlp = layer.mlp
    if not hasattr(mlp, "experts"):
        yield from swiglu_tensors(mlp, prefix + "mlp.")
        return
    yield prefix + "router.logits.weight", [mlp.gate.weight]
    if hasattr(mlp.gate, "e_score_correction_bias"):
        yield prefix + "router.balance", [mlp.gate.e_score_correction_bias]
    if hasattr(mlp, "shared_expert_gate"):
        yield prefix + "router.shared_gate.weight", [mlp.shared_expert_gate.weight]
    for expert in range(mlp.experts.gate_up_proj.shape[0]):
        yield f"{prefix}mlp.experts.{expert}.gate_up.weight", [(mlp.experts.gate_up_proj, expert)]
        yield f"{prefix}mlp.experts.{expert}.down.weight", [(mlp.experts.down_proj, expert)]
    for name in ["shared_expert", "shared_experts"]:
        if hasattr(mlp, name):
            yield from swiglu_tensors(getattr(mlp, name), prefix + "mlp.shared.")


def model_tensors(model):
    yield "embedding", [model.model.embed_tokens.weight]
    for number, layer in enumerate(model.model.layers):
        yield from layer_tensors(layer, f"layers.{number}.")
    yield "head.norms.0.gain", [model.model.norm.weight]
    yield "head.matrix", [model.lm_head.weight]


def part_of(tensor):
    """A tensor, or one expert's part of it."""
    return tensor[0][tensor[1]] if isinstance(tensor, tuple) else tensor


def gradient_of(tensor):
    return tensor[0].grad[tensor[1]] if isinstance(tensor, tuple) else tensor.grad


def fill(name, tensors):
    count = sum(part_of(tensor).numel() for tensor in tensors)
    values = noise(name, count)
    if name.endswith("gain"):
        values = 1.0 + 0.3 * values
    elif name.endswith("bias"):
        values = 0.3 * values
    elif name.endswith("balance"):
        values = 0.1 * values
    else:
        values = 0.4 * values
    values = torch.from_numpy(values)
    for tensor in map(part_of, tensors):
        tensor.data.copy_(values[: tensor.numel()].reshape(tensor.shape))
        values = values[tensor.numel() :]


def model_of(kind, config):
    config = getattr(transformers, kind + "Config")(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        rms_norm_eps=1e-6,  # that of DeepSeek-V3's inner norms is no setting
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        attn_implementation="eager",
        experts_implementation="eager",
        tie_word_embeddings=False,
        **config,
    )
    return getattr(transformers, kind + "ForCausalLM")(config).to(torch.float64)


def cross_entropy(logits, targets):
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), targets.reshape(-1))


class Module(torch.nn.Module):
    """An MTP module: two norms, a projection of both to one, a layer; and the norm in front of the head."""

    def __init__(self, model):
        super().__init__()
        last = model.model.layers[-1]
        norm = type(last.input_layernorm)
        self.hidden_norm, self.embedding_norm, self.head_norm = [norm(HIDDEN, 1e-6) for _ in range(3)]
        self.projection = torch.nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
        self.layer = type(last)(model.config, len(model.model.layers) - 1)

    def tensors(self):
        yield "mtp.0.input.hidden_norm.gain", [self.hidden_norm.weight]
        yield "mtp.0.input.embedding_norm.gain", [self.embedding_norm.weight]
        yield "mtp.0.input.projection.weight", [self.projection.weight]
        yield from layer_tensors(self.layer, "mtp.0.layer.")
        yield "head.norms.1.gain", [self.head_norm.weight]

    def forward(self, model, hidden, tokens):
        embedding = self.embedding_norm(model.model.embed_tokens(tokens))
        x = self.projection(torch.cat([self.hidden_norm(hidden), embedding], dim=-1))
        places = torch.arange(LENGTH)[None]
        mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]
        rotary = model.model.rotary_emb(x, places)
        x = self.layer(x, attention_mask=mask, position_ids=places, position_embeddings=rotary)
        return model.lm_head(self.head_norm(x))


def values(kind, config, mtp=False):
    model = model_of(kind, config)
    named = list(model_tensors(model))
    parts = [model]
    if mtp:
        module = Module(model).to(torch.float64)
        named += module.tensors()
        parts.append(module)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    assert all(parameter.dtype == torch.float64 for parameter in parameters)
    filled = sum(part_of(tensor).numel() for name, tensors in named for tensor in tensors if not name.endswith("balance"))
    assert filled == sum(parameter.numel() for parameter in parameters), "every parameter has a name"
    for name, tensors in named:
        fill(name, tensors)
    batch = torch.tensor(tokens())
    read, targets = batch[:, :LENGTH], batch[:, 1 : LENGTH + 1]
    # The last layer's result, in front of the final norm.
    states = []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    losses = [cross_entropy(model(input_ids=read).logits, targets)]
    if mtp:
        losses.append(cross_entropy(module(model, states[0], targets), batch[:, 2:]))
    sum(weight * loss for weight, loss in zip([1.0, 0.3], losses)).backward()
    gradients = {}
    for name, tensors in named:
        if not name.endswith("balance"):
            gradient = numpy.concatenate([gradient_of(tensor).numpy().reshape(-1) for tensor in tensors])
            gradients[name] = [float(gradient @ noise(name + ".probe", gradient.size)), float(numpy.linalg.norm(gradient))]
    return {"losses": [loss.item() for loss in losses], "gradients": gradients}


def adamw(steps):
    """A weight after each step with known gradients, which are clipped together with those of a gain that does not decay."""
    weight, gain = (torch.nn.Parameter(torch.from_numpy(noise(name, 6))) for name in ["weight", "gain"])
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": 0.1}, {"params": [gain], "weight_decay": 0.0}], **settings
    )
    rows = []
    for step in range(steps):
        weight.grad, gain.grad = (torch.from_numpy(noise(f"{name}.{step}", 6)) for name in ["weight", "gain"])
        # As `clip_grad_norm_` with a largest norm of 1, without the 1e-6 that it adds.
        norm = torch.cat([weight.grad, gain.grad]).norm()
        for tensor in [weight, gain]:
            tensor.grad /= max(norm, 1.0)
        optimizer.step()
        rows.append(weight.tolist() + gain.tolist())
    return rows


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}

models = {
    "llama": values("Llama", {"num_hidden_layers": 2, "intermediate_size": 10, **HEADS}),
    "qwen2-moe": values(
        "Qwen2Moe",
        {
            "num_hidden_layers": 3,
            "intermediate_size": 10,
            "mlp_only_layers": [0],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 5,
            "shared_expert_intermediate_size": 6,
            "norm_topk_prob": False,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
        },
    ),
    "qwen3-moe": values(
        "Qwen3Moe",
        {
            "num_hidden_layers": 3,
            "intermediate_size": 10,
            "mlp_only_layers": [0],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 5,
            "norm_topk_prob": True,
            **HEADS,
        },
    ),
    "deepseek-v3": values(
        "DeepseekV3",
        {
            "num_hidden_layers": 3,
            "intermediate_size": 10,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 5,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "q_lora_rank": 7,
            "kv_lora_rank": 6,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 5,
            # dualweave turns halves, not neighbours.
            "rope_interleave": False,
        },
        mtp=True,
    ),
}
json.dump({"models": models, "adamw": adamw(4)}, sys.stdout, indent=1)
print()
