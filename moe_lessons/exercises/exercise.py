"""The base of the exercises: an answer is tried case by case, and whatever it does is said in words."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_lessons.nn import FeedForward, seeded

SIZES = ((4, 6, 3, 2), (7, 6, 4, 1), (9, 4, 5, 3), (1, 5, 2, 2))  # tokens T, d_model D, num_experts E, top_k K


class Check(NamedTuple):
    """What became of an answer. `status`: 'right', 'wrong', 'raised' or 'not attempted'."""

    status: str
    message: str

    def __repr__(self) -> str:
        sign = {"right": "✔", "not attempted": "…"}.get(self.status, "✘")
        return f"{sign} {self.message}"


class Problem(Exception):
    """What to say of an answer that is not right, and the status that it gives."""

    def __init__(self, message: str, status: str = "wrong"):
        super().__init__(message)
        self.status = status


def judge(cases: Iterable, try_case: Callable, right: str, unreadable: str = "your answer cannot be read") -> Check:
    """Call `try_case`(*case) for each case until one raises; where none does, `right` is said. It never raises.

    unreadable: what to say of an answer of another kind than was asked for, with which `try_case` itself fails.
    """
    try:
        for case in cases:
            try_case(*case)
    except Problem as problem:
        return Check(problem.status, str(problem))
    except Exception as error:
        return Check("wrong", f"Not yet: {unreadable}: {type(error).__name__}: {error}")
    return Check("right", right)


def attempt(call: Callable[[], Any], prefix: str, missing: str) -> Any:
    """What `call`() gives. Raises Problem where it stops with an error, or nothing is written yet."""
    try:
        given = call()
    except NotImplementedError:
        given = None
    except Exception as error:
        raise Problem(f"{prefix} {type(error).__name__}: {error}", "raised") from None
    if given is None or given is Ellipsis:
        raise Problem(f"Not attempted yet: {missing}", "not attempted")
    return given


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-5)


def recognise(mistakes: Mapping[Callable, str], is_it: Callable[[Callable], bool]) -> None:
    """Raise Problem with the advice on the first of the `mistakes` that the answer is."""
    for mistake, advice in mistakes.items():
        if is_it(mistake):
            raise Problem(f"Not yet. {advice}")


def compare(given: Tensor, expected: Tensor, mistakes: Mapping[Callable, str], arguments: tuple, text: str) -> None:
    """Raise Problem where `given` (T, …) is not as expected: the advice on a frequent mistake, or else `text`.

    mistakes: what is often written instead, a function of the `arguments`, and what to say about it.
    """
    if same(given, expected):
        return
    recognise(mistakes, lambda mistake: same(given, mistake(*arguments)))
    off = (given - expected).abs().flatten(1).amax(dim=1).nan_to_num(nan=torch.inf)  # (T,)
    raise Problem(f"Not yet: {text}, most for token {int(off.argmax())}, by {off.max():.2g}.")


def check_numbers(
    answer: Callable[..., Any],
    cases: Mapping[tuple, Any],
    hint: str = "",
    mistakes: Mapping[Callable[..., Any], str] | None = None,
) -> Check:
    """Compare `answer`(*arguments) with what it should return, for each of the `cases`.

    hint: what to say of a wrong answer. mistakes: what is often written instead, and what to say about it.

    >>> check_numbers(lambda a, b: a * b, {(2, 3): 6, (4, 5): 20})
    ✔ Right: all 2 cases agree.
    >>> check_numbers(lambda a, b: a + b, {(2, 2): 4, (2, 3): 6}, hint="Not a sum.")
    ✘ Not yet: with (2, 3) the answer is 6, yours is 5. Hint: Not a sum.
    """
    missing = "write your answer in the cell above, run it, and run this one again."

    def try_case(arguments: tuple, expected: Any) -> None:
        given = attempt(lambda: answer(*arguments), f"Not yet: with {arguments} your code stops with", missing)
        if given != expected:
            known = [advice for mistake, advice in (mistakes or {}).items() if given == mistake(*arguments)]
            advice = "".join(f" Hint: {said}" for said in [*known, hint][:1] if said)
            raise Problem(f"Not yet: with {arguments} the answer is {expected:,}, yours is {given!r}.{advice}")

    return judge(cases.items(), try_case, f"Right: all {len(cases)} cases agree.")


def moe_by_loops(x: Tensor, router_weight: Tensor, experts: list, top_k: int) -> Tensor:
    """The MoE block, one token and one expert at a time: x (T, D) -> y (T, D)."""
    rows = []
    for token in x:  # (D,)
        probs = (router_weight @ token).softmax(dim=0)  # (E,)
        chosen = sorted(range(len(experts)), key=lambda e: -probs[e].item())[:top_k]
        total = sum(probs[e] for e in chosen)
        rows.append(sum(probs[e] / total * experts[e](token) for e in chosen))
    return torch.stack(rows)


MISTAKES: dict[Callable, str] = {
    lambda x, w, experts, k: moe_by_loops(x, w, experts, k) * (x @ w.T).softmax(-1).topk(k).values.sum(-1, True): (
        "The right experts ran, but their weights do not sum to 1: divide the K of them by their sum."
    ),
    lambda x, w, experts, k: moe_by_loops(x, w, experts, len(experts)): (
        "Every expert ran. Keep only the top_k experts of each token, then divide by the sum of those."
    ),
    lambda x, w, experts, k: torch.stack([sum(experts[e](t) for e in (w @ t).topk(k).indices) for t in x]): (
        "The right experts ran, but unweighted: multiply each output by its weight before you add."
    ),
}


@torch.no_grad()
def check_moe(function: Callable[[Tensor, Tensor, list, int], Tensor | None]) -> Check:
    """Compare `function`(x (T, D), router_weight (E, D), experts, top_k) with the loops, at several sizes.

    >>> check_moe(moe_by_loops)
    ✔ Right: your block equals the loop over tokens and experts, at 4 different sizes.
    """
    right = f"Right: your block equals the loop over tokens and experts, at {len(SIZES)} different sizes."
    return judge(enumerate(SIZES), partial(_try_moe, function), right)


def _try_moe(function: Callable, seed: int, sizes: tuple[int, int, int, int]) -> None:
    num_tokens, d_model, num_experts, top_k = sizes
    at = f"with {num_tokens} tokens of {d_model} numbers, {num_experts} experts and top_k = {top_k}"
    with seeded(seed):
        x, router_weight = torch.randn(num_tokens, d_model), torch.randn(num_experts, d_model)
        experts = [FeedForward(d_model, 8) for _ in range(num_experts)]
    arguments, given = (x, router_weight, experts, top_k), x.clone()
    missing = "my_moe returns nothing. Write it, then run the cell again."
    y = attempt(lambda: function(*arguments), f"Your function stopped {at}:", missing)
    if not isinstance(y, Tensor):
        raise Problem(f"Not yet: return a tensor y like x, not a {type(y).__name__}.")
    if y.shape != x.shape:
        raise Problem(f"Not yet: {at}, y must have the shape of x, {tuple(x.shape)}, not {tuple(y.shape)}.")
    if not torch.equal(x, given):
        raise Problem("Not yet: your function changed x. Write into a new tensor.")
    text = f"{at}, y differs from the loop over tokens and experts"
    compare(y, moe_by_loops(*arguments), MISTAKES, arguments, text)
