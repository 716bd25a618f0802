"""Which expert serves which token: the `Routing`, and the routers that make one."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.errors import (
    NonFiniteError,
    check_choice,
    check_device,
    check_dtype,
    check_input,
    check_number,
    check_positive_int,
    check_top_k,
    is_finite,
)
from moe_lessons.nn.ffn import make_weight


@dataclass(frozen=True, eq=False)
class Routing:
    """What a router decided for T tokens and E experts.

    The decision is a list of A assignments, as three vectors of equal length: token `token_idx[a]` goes to expert
    `expert_idx[a]`, whose output is multiplied by `weight[a]`. They stand in order of priority: all first
    choices, then all second choices, and so on. Top-k routing has A = T·K of them.

    router_logits (T, E) and router_probs (T, E): the scores that the choice was made from, noise included; the
        probabilities of a token sum to 1.
    token_idx, expert_idx, weight (A,): the assignments that are carried out.
    dropped_token_idx, dropped_expert_idx: those that found their expert full (see `apply_capacity`).

    >>> probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    >>> weights, indices = probs.topk(2)
    >>> Routing.from_topk(probs.log(), probs, indices, weights).tokens_per_expert
    tensor([1, 2, 1])
    """

    router_logits: Tensor
    router_probs: Tensor
    token_idx: Tensor
    expert_idx: Tensor
    weight: Tensor
    dropped_token_idx: Tensor
    dropped_expert_idx: Tensor

    @classmethod
    def from_topk(
        cls, router_logits: Tensor, router_probs: Tensor, topk_indices: Tensor, topk_weights: Tensor
    ) -> "Routing":
        """The routing in which every token goes to its `topk_indices` (T, K) with `topk_weights` (T, K)."""
        num_tokens, top_k = topk_indices.shape
        none = topk_indices.new_zeros(0)
        return cls(
            router_logits=router_logits,
            router_probs=router_probs,
            token_idx=torch.arange(num_tokens, device=topk_indices.device).expand(top_k, -1).reshape(-1),  # (K·T,)
            expert_idx=topk_indices.T.reshape(-1),  # (K·T,) first choices first
            weight=topk_weights.T.reshape(-1),  # (K·T,)
            dropped_token_idx=none,
            dropped_expert_idx=none,
        )

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens that were routed."""
        return self.router_probs.shape[0]

    @property
    def num_experts(self) -> int:
        """E, the number of experts that could be chosen."""
        return self.router_probs.shape[1]

    @cached_property
    def tokens_per_expert(self) -> Tensor:
        """(E,) how many assignments each expert carries out."""
        return torch.bincount(self.expert_idx, minlength=self.num_experts)

    @property
    def dropped_per_expert(self) -> Tensor:
        """(E,) how many assignments found each expert full."""
        return torch.bincount(self.dropped_expert_idx, minlength=self.num_experts)

    @property
    def demand_per_expert(self) -> Tensor:
        """(E,) how many assignments the router wanted for each expert: carried out and dropped."""
        return torch.bincount(torch.cat([self.expert_idx, self.dropped_expert_idx]), minlength=self.num_experts)

    @property
    def dropped(self) -> int:
        """How many assignments were dropped."""
        return len(self.dropped_expert_idx)

    @property
    def dropped_share(self) -> float:
        """The share of all assignments that were dropped, 0 to 1."""
        return self.dropped / max(self.dropped + len(self.expert_idx), 1)

    @property
    def topk_indices(self) -> Tensor:
        """(T, K) the experts of each token, best first. ValueError where tokens differ in their number of experts."""
        return self._by_token(self.expert_idx)

    @property
    def topk_weights(self) -> Tensor:
        """(T, K) their weights. ValueError where tokens differ in their number of experts."""
        return self._by_token(self.weight)

    def _by_token(self, values: Tensor) -> Tensor:
        top_k = len(self.token_idx) // max(self.num_tokens, 1)
        tokens = torch.arange(self.num_tokens, device=self.token_idx.device)
        if not torch.equal(self.token_idx, tokens.repeat(top_k)):
            raise ValueError(
                f"topk_indices and topk_weights need the same number of experts for each of the {self.num_tokens} "
                f"tokens, got {len(self.token_idx)} assignments with {self.dropped} dropped; use token_idx, expert_idx"
            )
        return values.view(top_k, self.num_tokens).T


class TopKRouter(nn.Module):
    """Softmax over the experts, then the K best: x (T, D) -> `Routing`.

    router_logits = x·Wᵀ (+ b), router_probs = softmax(router_logits), the weights of the K best are their
    probabilities. With `norm_topk_prob` they are divided by their sum, as in Mixtral (arXiv:2401.04088); without
    it they stay as they are, as in Switch (arXiv:2101.03961) and OLMoE. The default (None) divides for K > 1
    only: for K = 1 the divided weight is always 1, and the router would receive no gradient from the task.

    jitter_noise: ε. In training the router sees each number of x multiplied by a random one from 1 - ε to 1 + ε
        (arXiv:2101.03961, appendix C); the experts see x as it is. It may be changed at any time.

    The router computes in float32 at least, whatever the type of x: near-ties flip in bfloat16. Noise comes from
    torch's global random state. `causal`: whether a token's experts depend on no other token.

    >>> routing = TopKRouter(d_model=4, num_experts=8, top_k=2)(torch.randn(3, 4))
    >>> routing.topk_indices.shape
    torch.Size([3, 2])
    """

    causal = True

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        *,
        norm_topk_prob: bool | None = None,
        bias: bool = False,
        jitter_noise: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.d_model = check_positive_int("d_model", d_model)
        self.num_experts = check_positive_int("num_experts", num_experts)
        self.top_k = check_top_k(top_k, num_experts)
        if norm_topk_prob not in (None, True, False):
            raise ValueError(f"norm_topk_prob must be None, True or False, got {norm_topk_prob!r}")
        self.norm_topk_prob = top_k > 1 if norm_topk_prob is None else norm_topk_prob
        self.jitter_noise = check_number("jitter_noise", jitter_noise)
        device = None if device is None else check_device(device)
        dtype = torch.promote_types(check_dtype(dtype or torch.get_default_dtype(), device), torch.float32)
        self.weight = make_weight(num_experts, d_model, device=device, dtype=dtype)
        self.bias = nn.Parameter(torch.zeros(num_experts, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Routing:
        check_tokens(x, self.d_model, read=False)
        logits = self.choice_logits(x)  # (T, E)
        if not is_finite(logits):
            check_tokens(x, self.d_model)  # perhaps x is to blame
            raise NonFiniteError("router_logits must be finite, got NaN or infinity: the router has diverged")
        return self.choose(logits)

    def choose(self, logits: Tensor) -> Routing:
        """The K best experts of each token, and their weights: logits (T, E) -> `Routing`."""
        probs = logits.T.softmax(dim=0).T  # (T, E), computed along T: rows of a few numbers are slow
        topk_weights, topk_indices = probs.topk(self.top_k, dim=-1)  # (T, K), best first
        if self.norm_topk_prob:
            topk_weights = topk_weights / topk_weights.sum(dim=-1, keepdim=True)
        return Routing.from_topk(logits, probs, topk_indices, topk_weights)

    def router_logits(self, x: Tensor) -> Tensor:
        """The clean scores of the experts: x (T, D) -> (T, E), in float32 or float64."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with no_autocast(x):
            return F.linear(x.to(dtype), self.weight.to(dtype), bias)

    def choice_logits(self, x: Tensor) -> Tensor:
        """The scores that the choice is made from: noisy ones where there is noise, in training only."""
        if self.training and self.jitter_noise > 0:
            factor = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))  # bfloat16 is too coarse
            x = x * factor.uniform_(1 - self.jitter_noise, 1 + self.jitter_noise)
        return self.router_logits(x)

    def extra_repr(self) -> str:
        text = f"d_model={self.d_model}, num_experts={self.num_experts}, top_k={self.top_k}"
        text += f", norm_topk_prob={self.norm_topk_prob}" + (", bias=True" if self.bias is not None else "")
        return text + (f", jitter_noise={self.jitter_noise}" if self.jitter_noise else "")


def check_tokens(x: Tensor, d_model: int, read: bool = True) -> Tensor:
    """Return `x` if it is floating-point tokens (T, d_model) and, where it is `read`, finite; else raise ValueError."""
    check_input(x, d_model, read=read)
    if x.ndim != 2:
        raise ValueError(f"x must have the shape (T, {d_model}), got {tuple(x.shape)}")
    return x


def no_autocast(x: Tensor) -> AbstractContextManager:
    """Within it, products are in the type of their inputs."""
    is_on = torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if is_on else nullcontext()


class SwitchRouter(TopKRouter):
    """The router of Switch Transformer (arXiv:2101.03961, eq. 1 and 2): one expert, weighed by its raw probability.

    The weight is not renormalised, so that the router learns from the task through it.

    >>> routing = SwitchRouter(d_model=4, num_experts=8, jitter_noise=0.01)(torch.randn(3, 4))
    >>> torch.equal(routing.weight, routing.router_probs.max(dim=-1).values)
    True
    """

    def __init__(self, d_model: int, num_experts: int, *, jitter_noise: float = 0.0, **kwargs):
        super().__init__(d_model, num_experts, 1, norm_topk_prob=False, jitter_noise=jitter_noise, **kwargs)


class NoisyTopKRouter(TopKRouter):
    """Top-k with noise on the logits, in training only: in eval mode it is `TopKRouter`.

    noise='learned':  logits + N(0, 1)·(softplus(x·W_noiseᵀ) + 0.01), with W_noise (E, D) learned and started
                      at zero (arXiv:1701.06538, eq. 4; the added 0.01 as in its public code).
    noise='gaussian': logits + noise_std·N(0, 1). `noise_std` may be changed at any time; 0 is no noise.

    >>> router = NoisyTopKRouter(d_model=4, num_experts=8, top_k=2, noise="gaussian", noise_std=0.5)
    >>> x = torch.randn(3, 4)
    >>> torch.equal(router.eval()(x).router_logits, router.router_logits(x))
    True
    """

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        *,
        noise: str = "learned",
        noise_std: float = 1.0,
        **kwargs,
    ):
        check_choice("noise", noise, ("learned", "gaussian"))
        check_number("noise_std", noise_std)
        super().__init__(d_model, num_experts, top_k, **kwargs)
        self.noise = noise
        self.noise_std = noise_std
        if noise == "learned":
            self.noise_weight = nn.Parameter(torch.zeros_like(self.weight))

    def choice_logits(self, x: Tensor) -> Tensor:
        logits = super().choice_logits(x)  # (T, E)
        if not self.training or (self.noise == "gaussian" and self.noise_std == 0):
            return logits
        std = self.noise_std
        if self.noise == "learned":
            with no_autocast(x):
                std = F.softplus(F.linear(x.to(logits.dtype), self.noise_weight.to(logits.dtype))) + 1e-2  # (T, E)
        return logits + torch.randn_like(logits) * std

    def extra_repr(self) -> str:
        noise_std = f", noise_std={self.noise_std}" if self.noise == "gaussian" else ""
        return f"{super().extra_repr()}, noise={self.noise!r}{noise_std}"
