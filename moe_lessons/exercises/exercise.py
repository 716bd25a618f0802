"""Exercises that check themselves: an answer is compared, and whatever it does is said in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_lessons.nn import FeedForward, seeded

SIZES = ((4, 6, 3, 2), (1, 5, 4, 2), (9, 4, 5, 3), (5, 3, 2, 2))  # tokens T, d_model D, num_experts E, top_k K


@dataclass(frozen=True)
class Check:
    """What became of an answer. `status`: 'right', 'wrong', 'raised' or 'not attempted'."""

    status: str
    message: str

    def __repr__(self) -> str:
        sign = {"right": "✔", "wrong": "✘", "raised": "✘", "not attempted": "…"}[self.status]
        return f"{sign} {self.message}"


def attempt(call: Callable[[], Any], prefix: str, missing: str, hint: str = "") -> tuple[Any, Check | None]:
    """What `call`() gives and None, or None and what to say: that it stopped, or that nothing was written yet.

    prefix: what is said before the error. missing: what returns nothing as long as nobody has written it.
    """
    try:
        given = call()
    except NotImplementedError:
        given = None
    except Exception as error:
        return None, Check("raised", f"{prefix} {type(error).__name__}: {error}{hint}")
    if given is None or given is Ellipsis:
        return None, Check("not attempted", f"Not attempted yet: {missing}")
    return given, None


def check_numbers(answer: Callable[..., Any], cases: Mapping[tuple, Any], hint: str = "") -> Check:
    """Compare `answer`(*arguments) with what it should return, for each of the `cases`. It never raises.

    >>> check_numbers(lambda a, b: a * b, {(2, 3): 6, (4, 5): 20})
    ✔ Right: all 2 cases agree.
    >>> check_numbers(lambda a, b: a + b, {(2, 2): 4, (2, 3): 6}, hint="Not a sum.")
    ✘ Not yet: with (2, 3) the answer is 6, yours is 5. Hint: Not a sum.
    """
    advice = f" Hint: {hint}" if hint else ""
    for arguments, expected in cases.items():
        missing = "write your answer in the cell above, run it, and run this one again."
        prefix = f"Not yet: with {arguments} your code stops with"
        given, problem = attempt(lambda arguments=arguments: answer(*arguments), prefix, missing, f".{advice}")
        if problem is not None:
            return problem
        if given != expected:
            text = f"Not yet: with {arguments} the answer is {expected:,}, yours is {given!r}.{advice}"
            return Check("wrong", text)
    return Check("right", f"Right: all {len(cases)} cases agree.")


def moe_by_loops(x: Tensor, router_weight: Tensor, experts: list, top_k: int) -> Tensor:
    """The MoE block, one token and one expert at a time: x (T, D) -> y (T, D)."""
    rows = []
    for token in x:  # (D,)
        probs = (router_weight @ token).softmax(dim=0)  # (E,)
        chosen = sorted(range(len(experts)), key=lambda e: -probs[e].item())[:top_k]
        total = sum(probs[e] for e in chosen)
        rows.append(sum(probs[e] / total * experts[e](token) for e in chosen))
    return torch.stack(rows)


def without_dividing(x, router_weight, experts, top_k):
    probs, chosen = (x @ router_weight.T).softmax(dim=-1).topk(top_k)
    return moe_by_loops(x, router_weight, experts, top_k) * probs.sum(dim=-1, keepdim=True)


def with_every_expert(x, router_weight, experts, top_k):
    return moe_by_loops(x, router_weight, experts, len(experts))


def with_equal_weights(x, router_weight, experts, top_k):
    chosen = (x @ router_weight.T).topk(top_k).indices
    return torch.stack([sum(experts[e](token) for e in row) for token, row in zip(x, chosen.tolist())])


MISTAKES = {  # what is often written instead, and what to say about it
    without_dividing: "The right experts ran, but their weights do not sum to 1: divide the K of them by their sum.",
    with_every_expert: "Every expert ran. Keep only the top_k experts of each token, then divide by the sum of those.",
    with_equal_weights: "The right experts ran, but unweighted: multiply each output by its weight before you add.",
}


@torch.no_grad()
def check_moe(function: Callable[[Tensor, Tensor, list, int], Tensor | None]) -> Check:
    """Compare `function`(x (T, D), router_weight (E, D), experts, top_k) with the loops, at several sizes.

    It never raises: whatever the function does is said in words.

    >>> check_moe(moe_by_loops)
    ✔ Right: your block equals the loop over tokens and experts, at 4 different sizes.
    """
    for seed, sizes in enumerate(SIZES):
        problem = _problem(function, seed, *sizes)
        if problem is not None:
            return problem
    message = f"Right: your block equals the loop over tokens and experts, at {len(SIZES)} different sizes."
    return Check("right", message)


def _problem(function, seed: int, num_tokens: int, d_model: int, num_experts: int, top_k: int) -> Check | None:
    with seeded(seed):
        x, router_weight = torch.randn(num_tokens, d_model), torch.randn(num_experts, d_model)
        experts = [FeedForward(d_model, 8) for _ in range(num_experts)]
    at = f"with {num_tokens} tokens of {d_model} numbers, {num_experts} experts and top_k = {top_k}"
    given = x.clone()
    missing = "my_moe returns nothing. Write it, then run the cell again."
    y, problem = attempt(lambda: function(x, router_weight, experts, top_k), f"Your function stopped {at}:", missing)
    if problem is not None:
        return problem
    if not isinstance(y, Tensor):
        return Check("wrong", f"Not yet: return a tensor y like x, not a {type(y).__name__}.")
    if y.shape != x.shape:
        shapes = f"{tuple(x.shape)}, not {tuple(y.shape)}"
        return Check("wrong", f"Not yet: {at}, y must have the shape of x, {shapes}.")
    if not torch.equal(x, given):
        return Check("wrong", "Not yet: your function changed x. Write into a new tensor.")
    if _same(y, moe_by_loops(x, router_weight, experts, top_k)):
        return None
    for mistake, advice in MISTAKES.items():
        if _same(y, mistake(x, router_weight, experts, top_k)):
            return Check("wrong", f"Not yet. {advice}")
    return Check("wrong", f"Not yet: {at}, y differs from the loop over tokens and experts.")


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), atol=1e-5)
