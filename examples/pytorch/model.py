"""A small mixture-of-experts transformer, cut into pipeline stages, its experts over the ranks of a group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from dualweave_torch import Routes


@dataclass(frozen=True)
class Shape:
    """Of the model. The tests use these numbers."""

    vocabulary: int = 64
    width: int = 32
    heads: int = 4
    #: In the whole model.
    layers: int = 4
    #: In a layer.
    experts: int = 8
    #: For each token.
    chosen: int = 2
    expert_width: int = 64
    shared_width: int = 64


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(F.silu(self.up(x)))
        return out


class Experts(nn.Module):
    """Those of a rank: ``own`` of all. An expert has the same weights on whatever rank it is."""

    def __init__(self, width: int, inner: int, own: range, seed: int) -> None:
        super().__init__()
        up, down = [], []
        for expert in own:
            torch.manual_seed(seed + expert)
            up.append(torch.randn(width, inner) * width**-0.5)
            down.append(torch.randn(inner, width) * inner**-0.5)
        self.up = nn.Parameter(torch.stack(up))
        self.down = nn.Parameter(torch.stack(down))

    def forward(self, rows: torch.Tensor, routes: Routes) -> torch.Tensor:
        """Rows by expert."""
        if rows.is_cuda and rows.dtype == torch.bfloat16:
            ends = routes.ends
            inner = F.silu(F.grouped_mm(rows, self.up, offs=ends))
            return F.grouped_mm(inner, self.down, offs=ends)
        parts = rows.split(routes.of_experts)
        experts = zip(parts, self.up.unbind(), self.down.unbind(), strict=True)
        return torch.cat([F.silu(part @ up) @ down for part, up, down in experts])


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, sequence, width = x.shape
        q, k, v = self.qkv(x).view(batch, sequence, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, sequence, width))
        return out


class Layer(nn.Module):
    """Attention, then experts and a shared MLP. ``group`` has the experts; None has all of them here."""

    def __init__(self, shape: Shape, number: int, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        ranks, rank = (1, 0) if group is None else (group.size(), group.rank())
        self.group, self.shape = group, shape
        own = range(shape.experts // ranks * rank, shape.experts // ranks * (rank + 1))
        torch.manual_seed(1000 * number)
        self.attention = Attention(shape.width, shape.heads)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width) for _ in range(2))
        self.router = nn.Linear(shape.width, shape.experts, bias=False)
        self.shared = Mlp(shape.width, shape.shared_width)
        self.experts = Experts(shape.width, shape.expert_width, own, 1000 * number + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norms[0](x))
        tokens = self.norms[1](x).flatten(0, 1)
        weights, experts = self.router(tokens).softmax(-1).topk(self.shape.chosen)
        routes = Routes(experts, self.shape.experts, self.group)
        arrived = routes.by_expert(routes.dispatch(tokens).finish())
        made = self.experts(arrived, routes)
        combined = routes.combine(routes.by_rank(made))
        # Runs beside the combine; in the backward beside that of the gradients.
        shared = self.shared(tokens)
        mixed = routes.weigh(combined.finish(), weights)
        out: torch.Tensor = x + (mixed + shared).view_as(x)
        return out


class Stage(nn.Module):
    """One of ``stages`` equal parts. The first has the embedding, the last the head."""

    def __init__(self, shape: Shape, stage: int, stages: int, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        if shape.layers % stages:
            raise ValueError(f"{shape.layers} layers in {stages} stages")
        each = shape.layers // stages
        torch.manual_seed(1)
        self.embedding = nn.Embedding(shape.vocabulary, shape.width) if stage == 0 else None
        torch.manual_seed(2)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False) if stage == stages - 1 else None
        self.layers = nn.ModuleList(Layer(shape, n, group) for n in range(each * stage, each * (stage + 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = x if self.head is None else self.head(x)
        return out

    def expert_parameters(self) -> list[nn.Parameter]:
        return [parameter for part in self.modules() if isinstance(part, Experts) for parameter in part.parameters()]


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())
