"""Variants of blocks beyond `nn`: settings of one family each, so that the layers that are taught need no
branch for them. `hub.blocks` makes blocks of them."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.nn import Experts, FeedForward, MoE, Routing, TopKRouter, apply_capacity
from moe_lessons.nn.ffn import swiglu


class SwitchMoE(MoE):
    """The capacity of Hugging Face's Switch: a fixed number of tokens for each expert and each sequence (T, D) of x."""

    def __init__(self, *sizes: int, expert_capacity: int, **options):
        super().__init__(*sizes, **options)
        self.expert_capacity = expert_capacity

    def limit(self, routing: Routing, shape: tuple[int, ...]) -> Routing:
        sequence = routing.token_idx // max(shape[-2] if len(shape) > 1 else 1, 1)  # (A,)
        queue = sequence * self.num_experts + routing.expert_idx  # (A,) one for each sequence and expert
        limited = apply_capacity(replace(routing, expert_idx=queue), self.expert_capacity)
        dropped = limited.dropped_expert_idx % self.num_experts
        return replace(limited, expert_idx=limited.expert_idx % self.num_experts, dropped_expert_idx=dropped)


class Qwen2MoE(MoE):
    """The shared expert of Qwen2-MoE: what it gives is multiplied by sigmoid(x·w)."""

    def __init__(self, d_model: int, *sizes: int, shared_d_ff: int, **options):
        super().__init__(d_model, *sizes, **options)
        self.shared_expert = GatedFeedForward(d_model, shared_d_ff)


class GatedFeedForward(FeedForward):
    """A `FeedForward` that is multiplied by sigmoid(x·w): x (..., D) -> (..., D)."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__(d_model, d_ff)
        self.gate = nn.Linear(d_model, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).sigmoid() * super().forward(x)


class LoopMoE(MoE):
    """A mixture whose experts run one after the other, by its own `expert`; it has no other dispatch."""

    def run_experts(self, x: Tensor, routing: Routing) -> Tensor:
        y, weight = torch.zeros_like(x), routing.weight.to(x.dtype)[:, None]  # (T, D), (A, 1)
        order, counts = routing.expert_idx.argsort(stable=True), routing.tokens_per_expert.tolist()
        for e, rows in enumerate(order.split(counts)):  # the places of its assignments
            tokens = routing.token_idx[rows]
            y.index_add_(0, tokens, self.expert(e, x[tokens], weight[rows]).to(x.dtype))
        return y

    def expert(self, e: int, x: Tensor, weight: Tensor) -> Tensor:
        """Return what expert e adds for its tokens: x (N, D), routing weights (N, 1) -> (N, D)."""
        raise NotImplementedError


class GptOssMoE(LoopMoE):
    """The experts of gpt-oss: with biases, and (up + 1) · gate · σ(1.702 gate), with gate at most 7 and up in ±7 (its
    code, openai/gpt-oss, gpt_oss/torch/model.py)."""

    def __init__(self, d_model: int, d_ff: int, num_experts: int, *sizes: int, **options):
        super().__init__(d_model, d_ff, num_experts, *sizes, **options)
        self.experts = GptOssExperts(num_experts, d_model, d_ff)

    def expert(self, e: int, x: Tensor, weight: Tensor) -> Tensor:
        own = self.experts
        gate, up = F.linear(x, own.gate_up_proj[e], own.gate_up_proj_bias[e]).chunk(2, dim=-1)  # (N, F) each
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        hidden = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        return weight * F.linear(hidden, own.down_proj[e], own.down_proj_bias[e])


class GptOssExperts(Experts):
    """`Experts` with biases: `gate_up_proj_bias` (E, 2F) and `down_proj_bias` (E, D)."""

    def __init__(self, num_experts: int, d_model: int, d_ff: int):
        super().__init__(num_experts, d_model, d_ff)
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(num_experts, 2 * d_ff))
        self.down_proj_bias = nn.Parameter(torch.zeros(num_experts, d_model))


class Llama4MoE(LoopMoE):
    """The experts of Llama 4: the routing weight multiplies what goes into an expert, not what comes out."""

    def expert(self, e: int, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(swiglu(F.linear(weight * x, self.experts.gate_up_proj[e])), self.experts.down_proj[e])


class Llama4Router(TopKRouter):
    """The router of Llama 4: the K best logits, each weighed by its sigmoid (in float32 all those above 17 are 1)."""

    def choose(self, logits: Tensor) -> Routing:
        topk_logits, topk_indices = logits.topk(self.top_k, dim=-1)  # (T, K)
        scores = logits.sigmoid()  # s (T, E)
        probs = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing.from_topk(logits, probs, topk_indices, topk_logits.sigmoid())
