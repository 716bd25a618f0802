"""The `Routing`, and the routers that make one. `ROUTERS` at the end has them all."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_lessons.nn.ffn import make_weight
from moe_lessons.support.errors import (
    check_choice,
    check_input,
    check_number,
    check_positive_int,
    check_seed,
    check_top_k,
    in_words,
)


@dataclass(frozen=True, eq=False)
class Routing:
    """The decision of a router for T tokens and E experts.

    The decision is a list of A assignments, in order of priority (all first choices, then all second choices, …): token
    `token_idx[a]` goes to expert `expert_idx[a]`, whose output is multiplied by `weight[a]`.

    router_logits, router_probs (T, E): the scores that the choice was made from, noise included; the probabilities of a
        token sum to 1.
    token_idx, expert_idx, weight (A,): the assignments that are carried out.
    dropped_token_idx, dropped_expert_idx: those that found their expert full (see `apply_capacity`).
    top_k: K, where each token was given K experts, as `from_topk` does; else None.

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
    top_k: int | None = None

    @classmethod
    def from_topk(cls, router_logits, router_probs, topk_indices: Tensor, topk_weights: Tensor) -> "Routing":
        """The routing in which every token goes to its `topk_indices` (T, K) with `topk_weights` (T, K)."""
        num_tokens, top_k = topk_indices.shape
        token_idx = torch.arange(num_tokens, device=topk_indices.device).repeat(top_k)  # (K·T,) first choices first
        expert_idx, weight = topk_indices.T.flatten(), topk_weights.T.flatten()  # (K·T,)
        return replace(cls.all_kept(router_logits, router_probs, token_idx, expert_idx, weight), top_k=top_k)

    @classmethod
    def all_kept(cls, router_logits, router_probs, token_idx: Tensor, expert_idx: Tensor, weight: Tensor) -> "Routing":
        """The routing that drops nothing."""
        none = token_idx.new_zeros(0)
        return cls(router_logits, router_probs, token_idx, expert_idx, weight, none, none)

    def of_tokens(self, chosen: Tensor) -> "Routing":
        """The routing of some of its tokens, chosen (N,) by their numbers, in this order and numbered anew."""
        number = chosen.new_full((self.num_tokens,), -1)
        number[chosen] = torch.arange(len(chosen), device=chosen.device)
        token_idx, dropped = number[self.token_idx], number[self.dropped_token_idx]
        kept, also = token_idx >= 0, dropped >= 0
        parts = token_idx[kept], self.expert_idx[kept], self.weight[kept], dropped[also], self.dropped_expert_idx[also]
        return Routing(self.router_logits[chosen], self.router_probs[chosen], *parts, self.top_k)

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
        return count_each(self.expert_idx, self.num_experts)

    @property
    def dropped_per_expert(self) -> Tensor:
        """(E,) how many assignments found each expert full."""
        return count_each(self.dropped_expert_idx, self.num_experts)

    @property
    def demand_per_expert(self) -> Tensor:
        """(E,) how many assignments the router wanted for each expert: carried out and dropped."""
        return count_each(torch.cat([self.expert_idx, self.dropped_expert_idx]), self.num_experts)

    @property
    def dropped(self) -> int:
        """Return how many assignments were dropped."""
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
        if self.top_k is None or len(self.token_idx) != self.top_k * self.num_tokens:  # some were dropped
            raise ValueError(
                f"topk_indices and topk_weights need the same number of experts for each of the {self.num_tokens} "
                f"tokens, got {len(self.token_idx)} assignments with {self.dropped} dropped; use token_idx, expert_idx"
            )
        return values.view(self.top_k, self.num_tokens).T


def count_each(idx: Tensor, num: int) -> Tensor:
    """Return how often each number below `num` stands in idx (A,): (num,). Unlike `bincount`, it does not wait for a
    GPU."""
    return idx.new_zeros(num).index_add(0, idx, torch.ones_like(idx))


class TopKRouter(nn.Module):
    """Softmax over the experts, then the K best: x (T, D) -> `Routing`. With top_k=1 it is the router of Switch.

    router_logits = x·Wᵀ (+ b), router_probs = softmax(router_logits), and the weights of the K best are these.

    norm_topk_prob: whether they are divided by their sum, as in Mixtral (arXiv:2401.04088), or stay as they are, as in
        Switch (arXiv:2101.03961) and OLMoE. None divides for K > 1 only: for K = 1 the divided weight is always 1, and
        the router would receive no gradient from the task.
    jitter_noise: ε. In training the router sees each number of x multiplied by a random one from 1 - ε to 1 + ε
        (arXiv:2101.03961, appendix C). It may be changed at any time.

    It computes in float32 at least: near-ties flip in bfloat16. Noise comes from torch's global random state. `causal`:
    whether a token's experts depend on no other token.

    >>> routing = TopKRouter(d_model=4, num_experts=8, top_k=2)(torch.randn(3, 4))
    >>> routing.topk_indices.shape
    torch.Size([3, 2])
    """

    causal = True

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, *, norm_topk_prob: bool | None = None, bias=False,
        jitter_noise=0.0,
    ):  # fmt: skip
        super().__init__()
        self.d_model = check_positive_int("d_model", d_model)
        self.num_experts = check_positive_int("num_experts", num_experts)
        self.top_k = check_top_k(top_k, num_experts)
        self.norm_topk_prob = top_k > 1 if norm_topk_prob is None else norm_topk_prob
        self.jitter_noise = check_number("jitter_noise", jitter_noise, most=1.0)
        self.weight = make_weight(num_experts, d_model)
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, 0])) if bias else None

    def forward(self, x: Tensor) -> Routing:
        check_input(x, self.d_model, self.weight.device)
        if x.ndim != 2:
            raise ValueError(f"x must have the shape (T, {self.d_model}), got {tuple(x.shape)}")
        return self.choose(self.choice_logits(x))

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
            x = x * self.draw_jitter(x)
        return self.router_logits(x)

    def draw_jitter(self, x: Tensor) -> Tensor:
        """Draw what each number of x (T, D) is multiplied by."""
        factor = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))  # bfloat16 is too coarse
        return factor.uniform_(1 - self.jitter_noise, 1 + self.jitter_noise)

    def extra_repr(self) -> str:
        text = f"d_model={self.d_model}, num_experts={self.num_experts}, top_k={self.top_k}"
        text += f", norm_topk_prob={self.norm_topk_prob}" + (", bias=True" if self.bias is not None else "")
        return text + (f", jitter_noise={self.jitter_noise}" if self.jitter_noise else "")


def no_autocast(x: Tensor) -> AbstractContextManager:
    """Within it, products are in the type of their inputs."""
    is_on = torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if is_on else nullcontext()


class NoisyTopKRouter(TopKRouter):
    """Top-k with noise on the logits, in training only: in eval mode it is `TopKRouter`.

    noise='learned':  logits + N(0, 1)·(softplus(x·W_noiseᵀ) + 0.01), with W_noise (E, D) learned and started
                      at zero (arXiv:1701.06538, eq. 4; the added 0.01 as in its public code).
    noise='gaussian': logits + noise_std·N(0, 1). `noise_std` may be changed at any time.

    >>> router = NoisyTopKRouter(d_model=4, num_experts=8, top_k=2, noise="gaussian", noise_std=0.5)
    >>> x = torch.randn(3, 4)
    >>> torch.equal(router.eval()(x).router_logits, router.router_logits(x))
    True
    """

    def __init__(self, d_model: int, num_experts: int, top_k: int, *, noise="learned", noise_std=1.0, **rest):
        super().__init__(d_model, num_experts, top_k, **rest)
        self.noise = check_choice("noise", noise, ("learned", "gaussian"))
        self.noise_std = check_number("noise_std", noise_std)
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
        return logits + self.draw_noise(logits) * std

    def draw_noise(self, logits: Tensor) -> Tensor:
        """Draw standard normal numbers (T, E)."""
        return torch.randn_like(logits)

    def extra_repr(self) -> str:
        noise_std = f", noise_std={self.noise_std}" if self.noise == "gaussian" else ""
        return f"{super().extra_repr()}, noise={self.noise!r}{noise_std}"


class FrozenRouter(NoisyTopKRouter):
    """Top-k by a router that stays as it starts: a random division, which only the layers before it may move.

    A control: what a mixture with it reaches, any fixed division of the tokens gives. Noise as `noise='gaussian'`.
    """

    def __init__(self, d_model: int, num_experts: int, top_k: int, *, noise_std=0.0, **rest):
        super().__init__(d_model, num_experts, top_k, noise="gaussian", noise_std=noise_std, **rest)
        for parameter in self.parameters():
            parameter.requires_grad_(False)


class SigmoidRouter(TopKRouter):
    """The router of DeepSeek-V3 (arXiv:2412.19437, eq. 13 to 16): each expert is scored by itself.

    s = sigmoid(router_logits). The K experts with the largest s + expert_bias are chosen; their weights come from s
    alone, divided by their sum with `norm_topk_prob` (eq. 13). `expert_bias` (E,) is a buffer: it has no gradient, and
    `update_expert_bias` moves it. Left out: the groups of experts, and the factor of all weights.

    router_probs are s / Σ s, which the balancing loss reads (eq. 19). `norm_topk_prob`: see `TopKRouter`.

    >>> router = SigmoidRouter(d_model=4, num_experts=8, top_k=2)
    >>> router(torch.randn(3, 4)).topk_weights.sum(dim=1).detach().round(decimals=6)
    tensor([1., 1., 1.])
    """

    def __init__(self, d_model: int, num_experts: int, top_k: int, **rest):
        super().__init__(d_model, num_experts, top_k, **rest)
        self.register_buffer("expert_bias", torch.zeros_like(self.weight[:, 0]))

    def choose(self, logits: Tensor) -> Routing:
        scores = logits.sigmoid()  # s (T, E)
        topk_indices = (scores + self.expert_bias).topk(self.top_k, dim=-1).indices  # (T, K)
        topk_weights = scores.gather(1, topk_indices)  # of s, without the bias
        if self.norm_topk_prob:
            topk_weights = topk_weights / (topk_weights.sum(dim=-1, keepdim=True) + 1e-20)
        probs = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)  # (T, E)
        return Routing.from_topk(logits, probs, topk_indices, topk_weights)


class ExpertChoiceRouter(TopKRouter):
    """The experts choose (arXiv:2202.09368, section 3.2): each takes the C tokens that like it best.

    C = ⌈K·T / E⌉, so that a token has `top_k` (K) experts on average; one token may have many, another none. The
    load is even by construction. An assignment's weight is the token's probability of that expert. It is not `causal`:
    whether an expert takes a token depends on later tokens too, so it cannot generate text as it was trained.

    >>> ExpertChoiceRouter(d_model=4, num_experts=8, top_k=2)(torch.randn(12, 4)).tokens_per_expert
    tensor([3, 3, 3, 3, 3, 3, 3, 3])
    """

    causal = False
    no_use = {  # knobs that act on it, and yet change nothing
        "router_aux_loss_coef": "where experts choose, their load is even without a loss",
        "capacity_factor": "where experts choose, none is ever too full",
    }

    def __init__(self, d_model: int, num_experts: int, top_k: int, **rest):
        super().__init__(d_model, num_experts, top_k, norm_topk_prob=False, **rest)

    def choose(self, logits: Tensor) -> Routing:
        probs = logits.softmax(dim=-1)  # (T, E)
        capacity = math.ceil(self.top_k * len(probs) / self.num_experts)  # C, at most T since K is at most E
        weight, token_idx = probs.topk(capacity, dim=0)  # (C, E): the favourite tokens of each expert, best first
        expert_idx = torch.arange(self.num_experts, device=probs.device).repeat(capacity)  # (C·E,) first choices first
        return Routing.all_kept(logits, probs, token_idx.flatten(), expert_idx, weight.flatten())


WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.uint16, torch.uint8)  # types of token ids


class HashRouter(nn.Module):
    """No decision at all (arXiv:2106.04426): a token's id names its experts, by a table drawn once from `seed`.

    Each id has `top_k` different experts of equal weight 1 / K. The load is as uneven as the ids are frequent.

    >>> router = HashRouter(num_experts=8, vocab_size=256)
    >>> routing = router(torch.randn(3, 4), token_ids=torch.tensor([65, 66, 65]))
    >>> bool(routing.expert_idx[0] == routing.expert_idx[2])
    True
    """

    causal = True
    no_use = dict.fromkeys(("router_aux_loss_coef", "router_z_loss_coef"), "a hash learns nothing, so no loss moves it")
    needs_token_ids = True

    def __init__(self, num_experts: int, vocab_size: int, top_k: int = 1, *, seed: int = 0):
        super().__init__()
        self.num_experts = check_positive_int("num_experts", num_experts)
        self.vocab_size = check_positive_int("vocab_size", vocab_size)
        self.top_k = check_top_k(top_k, num_experts)
        drawn = torch.rand(vocab_size, num_experts, generator=torch.Generator().manual_seed(check_seed(seed)))
        self.register_buffer("table", drawn.topk(top_k, dim=1).indices)  # (vocab_size, K)

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        """x (T, D) and token_ids (T,), whole numbers from 0 to vocab_size - 1 -> `Routing`. Of x only T counts."""
        if not isinstance(token_ids, Tensor) or token_ids.shape != x.shape[:1] or token_ids.dtype not in WHOLE_NUMBERS:
            wanted = f"one whole number for each of the {len(x)} tokens"
            raise ValueError(f"token_ids must be {wanted}, got {in_words(token_ids)}")
        if token_ids.device.type == "cpu" and len(token_ids):  # elsewhere a look at them would wait for the device
            low, high = (int(end) for end in token_ids.long().aminmax())
            if low < 0 or high >= self.vocab_size:
                raise ValueError(f"token_ids must be between 0 and {self.vocab_size - 1}, got {low} to {high}")
        indices = self.table[token_ids.long()]  # (T, K)
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = torch.full_like(indices, 1, dtype=dtype) / self.top_k  # (T, K)
        probs = weights.new_zeros(len(x), self.num_experts).scatter(1, indices, weights)  # (T, E)
        return Routing.from_topk(probs.log(), probs, indices, weights)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, vocab_size={self.vocab_size}, top_k={self.top_k}"


# The routers by name, each called with (d_model, num_experts, top_k). A new one is a class and an entry.
ROUTERS: dict[str, Callable[..., nn.Module]] = {
    "top-k": partial(NoisyTopKRouter, noise="gaussian", noise_std=0.0),  # no noise until it is turned on
    "gaussian noise": partial(NoisyTopKRouter, noise="gaussian"),
    "learned noise": NoisyTopKRouter,
    "frozen": FrozenRouter,
    "sigmoid": SigmoidRouter,
    "expert choice": ExpertChoiceRouter,
    "hash": HashRouter,
}


def make_router(router, d_model: int, num_experts: int, top_k: int, **options) -> nn.Module:
    """The router of an `MoE` of these sizes: a module as it is, or what a name, class or function makes of the options.

    >>> make_router("sigmoid", 4, 8, 2, norm_topk_prob=False)
    SigmoidRouter(d_model=4, num_experts=8, top_k=2, norm_topk_prob=False)
    """
    if isinstance(router, str):
        router = ROUTERS[check_choice("router", router, [name for name in ROUTERS if name != "hash"])]
    router = TopKRouter if router is None else router
    if callable(router) and not isinstance(router, nn.Module):
        router = router(d_model, num_experts, top_k, **options)
    elif options:
        raise ValueError(f"router must be a name, a class or a function where it is to have {options}, got a module")
    if not isinstance(router, nn.Module):
        wanted = "a module that maps x (T, D) to a Routing, or a name, a class or a function that makes one"
        raise ValueError(f"router must be {wanted}, got {in_words(router)}")
    for name, value in {"d_model": d_model, "num_experts": num_experts, "top_k": top_k}.items():
        if getattr(router, name, value) != value:
            raise ValueError(f"router must have {name} {value}, got {getattr(router, name)}")
    return router
