"""Other ways to choose: sigmoid scores with a bias, experts that choose their tokens, and a hash."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from moe_lessons.errors import check_device, check_number, check_positive_int, check_top_k
from moe_lessons.nn.routing import NoisyTopKRouter, Routing, TopKRouter, check_tokens


class SigmoidRouter(TopKRouter):
    """The router of DeepSeek-V3 (arXiv:2412.19437, eq. 13 to 16): each expert is scored by itself.

    s = sigmoid(router_logits). The K experts with the largest s + expert_bias are chosen; their weights come from s
    alone: divided by their sum with `norm_topk_prob` (eq. 13), then times `routed_scaling_factor`. `expert_bias` (E,)
    is a buffer: it has no gradient, and `update_expert_bias` moves it.

    num_groups, topk_groups: the experts stand in groups of equal size, and a token chooses among the experts of the
        `topk_groups` best groups only (a group's score is the sum of its two largest s + expert_bias), so that a
        token visits few machines. One group is no limit.

    router_probs are s / Σ s, which the balancing loss reads (eq. 19). For K = 1 do not divide (`norm_topk_prob`
    False): a weight that is always 1 gives the router no gradient; None, the default, divides for K > 1 only.

    >>> router = SigmoidRouter(d_model=4, num_experts=8, top_k=2, routed_scaling_factor=2.5)
    >>> router(torch.randn(3, 4)).topk_weights.sum(dim=1)
    tensor([2.5000, 2.5000, 2.5000], grad_fn=<SumBackward1>)
    """

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        *,
        num_groups: int = 1,
        topk_groups: int = 1,
        routed_scaling_factor: float = 1.0,
        **kwargs,
    ):
        check_top_k(top_k, check_positive_int("num_experts", num_experts))
        if num_experts % check_positive_int("num_groups", num_groups):
            raise ValueError(f"num_groups must divide num_experts ({num_experts}), got {num_groups}")
        if check_positive_int("topk_groups", topk_groups) > num_groups:
            raise ValueError(f"topk_groups must be between 1 and num_groups ({num_groups}), got {topk_groups}")
        if top_k > topk_groups * num_experts // num_groups:
            room = topk_groups * num_experts // num_groups
            raise ValueError(f"top_k must be at most {room}, the experts in {topk_groups} groups, got {top_k}")
        check_number("routed_scaling_factor", routed_scaling_factor, above=True)
        super().__init__(d_model, num_experts, top_k, **kwargs)
        self.num_groups, self.topk_groups = num_groups, topk_groups
        self.routed_scaling_factor = routed_scaling_factor
        self.register_buffer("expert_bias", torch.zeros_like(self.weight[:, 0]))

    def choose(self, logits: Tensor) -> Routing:
        scores = logits.sigmoid()  # s (T, E)
        topk_indices = self._within_groups(scores + self.expert_bias).topk(self.top_k, dim=-1).indices  # (T, K)
        topk_weights = scores.gather(1, topk_indices)  # of s, without the bias
        if self.norm_topk_prob:
            topk_weights = topk_weights / (topk_weights.sum(dim=-1, keepdim=True) + 1e-20)
        probs = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)  # (T, E)
        return Routing.from_topk(logits, probs, topk_indices, topk_weights * self.routed_scaling_factor)

    def _within_groups(self, scores: Tensor) -> Tensor:
        """The scores (T, E) of the best groups; -inf for all others."""
        if self.topk_groups == self.num_groups:
            return scores
        grouped = scores.unflatten(1, (self.num_groups, -1))  # (T, groups, E / groups)
        group_scores = grouped.topk(min(2, grouped.shape[2]), dim=-1).values.sum(dim=-1)  # (T, groups)
        best = group_scores.topk(self.topk_groups, dim=-1).indices
        left_out = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, best, False)
        return grouped.masked_fill(left_out[:, :, None], -math.inf).flatten(1)

    def extra_repr(self) -> str:
        groups = f", num_groups={self.num_groups}, topk_groups={self.topk_groups}" if self.num_groups > 1 else ""
        scale = self.routed_scaling_factor
        return super().extra_repr() + groups + (f", routed_scaling_factor={scale}" if scale != 1 else "")


class ExpertChoiceRouter(TopKRouter):
    """The experts choose (arXiv:2202.09368, section 3.2): each takes the C tokens that like it best.

    C = ⌈K·T / E⌉, so that a token has `top_k` (K) experts on average; one token may have many, another none. The
    load is even by construction. An assignment's weight is the token's probability of that expert.

    It is not `causal`: whether an expert takes a token depends on all other tokens, later ones included, so a
    language model that generates token by token cannot use it as it was trained.

    >>> ExpertChoiceRouter(d_model=4, num_experts=8, top_k=2)(torch.randn(12, 4)).tokens_per_expert
    tensor([3, 3, 3, 3, 3, 3, 3, 3])
    """

    causal = False
    no_use = {  # knobs that act on it, and yet change nothing
        "router_aux_loss_coef": "where experts choose, their load is even without a loss",
        "capacity_factor": "where experts choose, none is ever too full",
    }

    def __init__(self, d_model: int, num_experts: int, top_k: int, **kwargs):
        super().__init__(d_model, num_experts, top_k, norm_topk_prob=False, **kwargs)

    def choose(self, logits: Tensor) -> Routing:
        probs = logits.softmax(dim=-1)  # (T, E)
        capacity = math.ceil(self.top_k * len(probs) / self.num_experts)  # C, at most T since K is at most E
        weight, token_idx = probs.topk(capacity, dim=0)  # (C, E): the favourite tokens of each expert, best first
        experts = torch.arange(self.num_experts, device=probs.device)
        none = token_idx.new_zeros(0)
        return Routing(
            router_logits=logits,
            router_probs=probs,
            token_idx=token_idx.reshape(-1),  # (C·E,) every expert's first choice first
            expert_idx=experts.repeat(capacity),
            weight=weight.reshape(-1),
            dropped_token_idx=none,
            dropped_expert_idx=none,
        )


class HashRouter(nn.Module):
    """No decision at all (arXiv:2106.04426): a token's id names its experts, by a table drawn once from `seed`.

    Each id has `top_k` different experts of equal weight 1 / K. Nothing is learned and nothing collapses, but the
    load is as uneven as the ids are frequent.

    >>> router = HashRouter(num_experts=8, vocab_size=256)
    >>> routing = router(torch.randn(3, 4), token_ids=torch.tensor([65, 66, 65]))
    >>> bool(routing.expert_idx[0] == routing.expert_idx[2])
    True
    """

    causal = True
    no_use = dict.fromkeys(
        ("router_aux_loss_coef", "router_z_loss_coef"), "a hash learns nothing, so no loss moves it"
    )
    needs_token_ids = True

    def __init__(self, num_experts: int, vocab_size: int, top_k: int = 1, *, seed: int = 0, device=None):
        super().__init__()
        self.num_experts = check_positive_int("num_experts", num_experts)
        self.vocab_size = check_positive_int("vocab_size", vocab_size)
        self.top_k = check_top_k(top_k, num_experts)
        device = None if device is None else check_device(device)
        drawn = torch.rand(vocab_size, num_experts, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("table", drawn.topk(top_k, dim=1).indices.to(device))  # (vocab_size, K)

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        """x (T, D) and token_ids (T,), whole numbers from 0 to vocab_size - 1 -> `Routing`. Of x only T counts."""
        if not isinstance(x, Tensor) or x.ndim != 2:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must have the shape (T, D), got {got}")
        check_tokens(x, x.shape[-1])
        known = isinstance(token_ids, Tensor)
        is_whole = known and not (token_ids.dtype.is_floating_point or token_ids.is_complex())
        is_whole = is_whole and token_ids.dtype != torch.bool
        if not is_whole or token_ids.shape != x.shape[:1]:
            got = f"{token_ids.dtype} of shape {tuple(token_ids.shape)}" if known else type(token_ids).__name__
            raise ValueError(f"token_ids must be one whole number for each of the {len(x)} tokens, got {got}")
        token_ids = token_ids.long()  # uint16, as ids are often stored, has no minimum in torch
        if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < self.vocab_size:
            low, high = int(token_ids.min()), int(token_ids.max())
            raise ValueError(f"token_ids must be between 0 and {self.vocab_size - 1}, got {low} to {high}")
        indices = self.table[token_ids]  # (T, K)
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
    "sigmoid": SigmoidRouter,
    "expert choice": ExpertChoiceRouter,
    "hash": HashRouter,
}
