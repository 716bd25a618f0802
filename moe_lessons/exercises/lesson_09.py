"""Lesson 09: finer experts for the same work, a choice within groups, and Soft MoE."""

import torch
from torch import Tensor, nn

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise
from moe_lessons.exercises.lesson_02 import marked, top_mask
from moe_lessons.nn import SigmoidRouter, SoftMoE
from moe_lessons.nn.families import finer

# --- as fine as you like ------------------------------------------------------------------------------------------


def finer_sizes(num_experts: int, top_k: int, d_ff: int, times: int, shared: int) -> tuple[int, int, int, int]:
    """What the package makes of a mixture: E, K, F and the width of the shared expert."""
    spec = finer(num_experts, top_k, d_ff, times, shared)
    return spec["num_experts"], spec["top_k"], spec["d_ff"], shared * spec["d_ff"]


def finer_cases() -> list[tuple]:
    return [(8, 2, 64, 8, 3), (16, 2, 32, 4, 2), (8, 1, 14336, 8, 1), (6, 3, 30, 5, 0), (4, 2, 8, 1, 1)]


def my_finer_experts(num_experts, top_k, d_ff, times, shared):
    fine = d_ff // times  # what one expert had, `times` have now
    return num_experts * times - shared, top_k * times - shared, fine, shared * fine


FINER_MISTAKES = {
    lambda e, k, f, n, s: (e * n - s, k - s, f // n, s * f // n): (
        "K must grow too: a token needs as many of the finer experts as have the width of the old ones."
    ),
    lambda e, k, f, n, s: (e * n - s, k * n - s, f, s * f): (
        "These experts are as wide as before, so a token does more work. Each must be narrower."
    ),
    lambda e, k, f, n, s: (e * n - s, k * n, f // n, s * f // n): (
        "The shared experts come on top of K here, which is more work. They take the place of as many chosen ones."
    ),
    lambda e, k, f, n, s: (e * n, k * n - s, f // n, s * f // n): (
        "The work is right, but there are more parameters than before: a shared expert is one that is no longer routed."
    ),
    lambda e, k, f, n, s: (e * n - s, k * n - s, f // n, s * f): (
        "The shared expert is as wide as the old experts. It has the width of so many fine ones."
    ),
}

finer_experts = Exercise(
    "finer_experts", lesson="09", stars=2, solution=my_finer_experts,
    check=Comparison(
        finer_sizes, ("num_experts", "top_k", "d_ff", "the shared width"), finer_cases, FINER_MISTAKES,
    ),
    hints=(
        "Cut each expert into `times` pieces. How many pieces are there, how wide is one, how many does a token use?",
        "K · F must stay what it was, with the shared width counted in; so must E · F.",
        "`num_experts * times - shared`, `top_k * times - shared`, `d_ff // times`, and `shared` times that width.",
    ),
)  # fmt: skip

# --- the choice within groups -------------------------------------------------------------------------------------


@torch.no_grad()
def chosen_by_router(scores: Tensor, num_groups: int, topk_groups: int, top_k: int) -> Tensor:
    """The experts that the package's router chooses by these scores: (T, E), True where chosen."""
    router = SigmoidRouter(4, scores.shape[1], top_k, num_groups=num_groups, topk_groups=topk_groups)
    return marked(router.choose(scores.logit()).topk_indices, scores)


def group_cases() -> list[tuple]:
    sizes = (6, 16, 4, 2, 3), (9, 12, 4, 2, 4), (5, 12, 3, 1, 2), (4, 8, 2, 2, 3)  # T, E, groups, groups kept, K
    return [(0.05 + 0.9 * torch.rand(T, E), *rest) for T, E, *rest in sizes]


def my_grouped_choice(scores, num_groups, topk_groups, top_k):
    grouped = scores.unflatten(1, (num_groups, -1))  # (T, groups, E / groups)
    of_group = grouped.topk(2, dim=2).values.sum(dim=2)  # (T, groups): the two best of each
    best = of_group.topk(topk_groups, dim=1).indices
    left_out = torch.ones_like(of_group, dtype=torch.bool).scatter(1, best, False)
    allowed = grouped.masked_fill(left_out[:, :, None], -torch.inf).flatten(1)  # (T, E)
    chosen = allowed.topk(top_k, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)


def grouped_by(score_of, scores: Tensor, num_groups: int, topk_groups: int, top_k: int) -> Tensor:
    """The choice where a group is scored by `score_of`(its scores (T, groups, E / groups))."""
    grouped = scores.unflatten(1, (num_groups, -1))
    kept = top_mask(score_of(grouped), topk_groups)[:, :, None]
    return top_mask(grouped.where(kept, -torch.inf).flatten(1), top_k)


def of_each_group(scores: Tensor, num_groups: int, topk_groups: int, top_k: int) -> Tensor:
    """All groups, and the same number of experts from each, rounded up."""
    return top_mask(scores.unflatten(1, (num_groups, -1)), -(-top_k // num_groups)).flatten(1)


GROUP_MISTAKES = {
    lambda s, n, g, k: grouped_by(lambda x: x.amax(2), s, n, g, k): (
        "You score a group by its best expert alone. It is the sum of its two best."
    ),
    lambda s, n, g, k: grouped_by(lambda x: x.sum(2), s, n, g, k): (
        "You score a group by the sum of all its experts. It is the sum of its two best."
    ),
    lambda s, n, g, k: top_mask(s, k): (
        "You chose among all experts. First choose the groups, and then only among the experts of these."
    ),
    lambda s, n, g, k: grouped_by(lambda x: -x.topk(2).values.sum(2), s, n, g, k): (
        "You kept the worst groups: the mask is the wrong way round."
    ),
    of_each_group: "You chose the same number from every group. Choose the best groups, then the K best in them.",
    lambda s, n, g, k: grouped_by(
        lambda x: x.topk(2).values.sum(2), s.unflatten(1, (-1, n)).mT.flatten(1), n, g, k
    ).unflatten(1, (n, -1)).mT.flatten(1): (
        "Your groups take experts that lie apart. A group is a row of neighbours: `scores.unflatten(1, (groups, -1))`."
    ),
}  # fmt: skip

grouped_choice = Exercise(
    "grouped_choice", lesson="09", stars=2, solution=my_grouped_choice,
    check=Comparison(chosen_by_router, "who is chosen", group_cases, GROUP_MISTAKES, axes=("token", "expert")),
    hints=(
        "`scores.unflatten(1, (num_groups, -1))` has the groups in a dimension of their own.",
        "A group's score is `.topk(2, dim=2).values.sum(dim=2)`. Give all experts of the other groups the score −∞.",
    ),
)  # fmt: skip

# --- Soft MoE -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_package(x: Tensor, phi: Tensor, expert: nn.Module) -> Tensor:
    """`nn.SoftMoE` whose experts all work like `expert`: (T, D)."""
    moe = SoftMoE(x.shape[1], 1, len(phi), dtype=x.dtype)
    moe.phi.copy_(phi)
    moe.run_experts = lambda slots: torch.stack([expert(e, slot) for e, slot in enumerate(slots)])
    return moe(x)


def soft_cases() -> list[tuple]:
    def case(num_tokens: int, num_slots: int, d_model: int) -> tuple:
        x, phi = torch.randn(num_tokens, d_model), torch.randn(num_slots, d_model)
        matrices = torch.randn(num_slots, d_model, d_model)
        return x, phi, lambda e, slot: torch.tanh(matrices[e] @ slot)

    return [case(5, 3, 4), case(7, 8, 2), case(1, 4, 3), case(6, 1, 5)]


def my_soft_moe(x, phi, expert):
    logits = x @ phi.T  # (T, S)
    dispatch, combine = logits.softmax(dim=0), logits.softmax(dim=1)  # over the tokens; over the slots
    slots = dispatch.T @ x  # (S, D): each a mean of tokens
    outputs = torch.stack([expert(e, slot) for e, slot in enumerate(slots)])  # (S, D)
    return combine @ outputs  # (T, D)


def soft_with(dispatch_dim: int, combine_dim: int, x: Tensor, phi: Tensor, expert) -> Tensor:
    logits = x @ phi.T
    slots = logits.softmax(dispatch_dim).T @ x
    return logits.softmax(combine_dim) @ torch.stack([expert(e, slot) for e, slot in enumerate(slots)])


def dense_mixture(x: Tensor, phi: Tensor, expert) -> Tensor:
    weights = (x @ phi.T).softmax(1)  # (T, E)
    each = torch.stack([torch.stack([expert(e, token) for e in range(len(phi))]) for token in x])  # (T, E, D)
    return (weights[:, :, None] * each).sum(1)


def hard_slots(x: Tensor, phi: Tensor, expert) -> Tensor:
    logits = x @ phi.T
    slots = x[logits.argmax(0)]  # each slot its best token
    return logits.softmax(1) @ torch.stack([expert(e, slot) for e, slot in enumerate(slots)])


SOFT_MISTAKES = {
    lambda x, p, f: soft_with(0, 0, x, p, f): (
        "Both of your softmaxes are over the tokens. `combine` is over the slots: it says what a token gets of each."
    ),
    lambda x, p, f: soft_with(1, 1, x, p, f): (
        "Both of your softmaxes are over the slots. A slot holds a mean of tokens: `dispatch` is over the tokens."
    ),
    lambda x, p, f: soft_with(1, 0, x, p, f): (
        "The two softmaxes are exchanged: `dispatch` sums to 1 over the tokens, `combine` over the slots."
    ),
    dense_mixture: (
        "This runs every expert on every token: a full mixture. In Soft MoE an expert sees only its slot, one mean."
    ),
    hard_slots: "Each slot takes its best token whole. It holds a mean of all tokens, weighted by a softmax.",
    lambda x, p, f: torch.stack([f(e, slot) for e, slot in enumerate((x @ p.T).softmax(0).T @ x)]): (
        "These are the outputs of the slots. Each token still has to get its mean of them: `combine @ outputs`."
    ),
}

soft_moe = Exercise(
    "soft_moe", lesson="09", stars=3, solution=my_soft_moe,
    check=Comparison(by_package, "y", soft_cases, SOFT_MISTAKES, axes=("token", "place")),
    hints=(
        "One table of scores, `x @ phi.T`, a row for each token and a column for each slot. It is used twice.",
        "`dispatch = logits.softmax(dim=0)` and `combine = logits.softmax(dim=1)`; a slot is `dispatch.T @ x`.",
        "`outputs = torch.stack([expert(e, slot) for e, slot in enumerate(slots)])`, then `combine @ outputs`.",
    ),
)  # fmt: skip
