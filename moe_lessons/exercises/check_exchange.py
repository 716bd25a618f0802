"""Lesson 08: the all-to-all by hand. Experts live on several devices, and tokens travel there and back."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise

Parts = tuple[Tensor, Tensor, Tensor, int]


def exchange_by_loops(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    experts: list,
    *,
    home: Callable[[int], int] | None = None,
    order: Callable[[tuple], tuple] = lambda pair: pair,
    own: bool = True,
) -> Parts:
    """Token by token. home: an expert's device; order: how its rows are sorted; own: whether its own are among them."""
    (N, T, D), share = x.shape, len(experts) // len(x)
    home = home or (lambda e: e // share)
    pairs = [(source, token, int(chosen[source, token])) for source in range(N) for token in range(T)]
    arrived = [sorted((p for p in pairs if home(p[2]) == d and (own or p[0] != d)), key=order) for d in range(N)]
    rows = [x[source, token] for inbox in arrived for source, token, _ in inbox]
    y = torch.stack([weights[s, t] * experts[e](x[s, t]) for s, t, e in pairs]).view_as(x)
    sent = sum(home(e) != source for source, _, e in pairs) * D * 4 * 2  # there and back
    return torch.tensor([len(inbox) for inbox in arrived]), torch.stack(rows), y, sent


def exchange_cases() -> list[tuple]:
    sizes = (3, 5, 6, 6), (2, 7, 3, 6), (4, 5, 2, 8), (1, 4, 3, 2)  # devices N, tokens of each T, D, experts E
    cases = []
    for N, T, D, E in sizes:
        experts = [partial(torch.matmul, other=matrix) for matrix in torch.randn(E, D, D)]
        cases.append((torch.randn(N, T, D), torch.randint(E, (N, T)), 0.1 + 0.8 * torch.rand(N, T), experts))
    return cases


def my_exchange(x, chosen, weights, experts):
    num_devices, num_tokens, width = x.shape
    home = chosen // (len(experts) // num_devices)  # (N, T): the device of each token's expert
    counts = home.flatten().bincount(minlength=num_devices)
    order = home.flatten().argsort(stable=True)  # (N * T,) by device; stable: then by source and token
    source, token = order // num_tokens, order % num_tokens  # kept: these are the addresses of the way back
    arrived = x[source, token]  # (N * T, D)
    y = torch.zeros_like(x)
    for row, s, t in zip(arrived, source, token):
        y[s, t] = weights[s, t] * experts[chosen[s, t]](row)
    travels = (home != torch.arange(num_devices)[:, None]).sum()  # tokens whose expert is elsewhere
    return counts, arrived, y, 2 * travels * width * 4


def instead(change_y: Callable = lambda y, *_: y, change_sent: Callable = lambda sent, x: sent) -> Callable[..., Parts]:
    """The right answer, but for y or the bytes that are sent."""

    def wrong(x: Tensor, *rest) -> Parts:
        counts, arrived, y, sent = exchange_by_loops(x, *rest)
        return counts, arrived, change_y(y, *rest), change_sent(sent, x)

    return wrong


def as_computed(y: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> Tensor:
    """The results in the order in which the devices compute them."""
    home = chosen // (len(experts) // len(y))
    return y.flatten(0, 1)[home.flatten().argsort(stable=True)].view_as(y)


MISTAKES = {
    lambda x, c, w, experts: exchange_by_loops(x, c, w, experts, home=lambda e: e % len(x)): (
        "You dealt the experts out like cards, e % N. They stand in blocks: expert e is on device e // (E / N)."
    ),
    partial(exchange_by_loops, own=False): (
        "A device's own tokens are missing in what it receives. They need not travel, but its experts serve them, too."
    ),
    partial(exchange_by_loops, order=lambda pair: (pair[2], *pair)): (
        "You sorted the rows of a device by expert. That may come next: they arrive by source, then by token."
    ),
    partial(exchange_by_loops, order=lambda pair: (pair[1], pair[0])): (
        "You took token 0 of every device first. All tokens of device 0 come first, then those of device 1."
    ),
    instead(lambda y, chosen, weights, experts: y / weights[:, :, None]): (
        "The results came back without their weights. Multiply each by the weight of its token."
    ),
    instead(as_computed): (
        "The order is lost on the way back: you lined the results up as the devices computed them. Write each to the "
        "device and the place that its token came from."
    ),
    instead(change_sent=lambda sent, x: 8 * x.numel()): (
        "You counted all tokens. One whose expert is on its own device is not sent."
    ),
    instead(change_sent=lambda sent, x: sent // 2): "You counted one way. The results come back: twice as many bytes.",
    instead(change_sent=lambda sent, x: sent // 4): "You counted numbers. Each takes 4 bytes.",
    instead(change_sent=lambda sent, x: sent // (8 * x.shape[2])): (
        "You counted tokens. Each has D numbers of 4 bytes, and goes there and back."
    ),
}

exchange = Exercise(
    "exchange",
    lesson="08",
    stars=3,
    check=Comparison(exchange_by_loops, ("counts", "arrived", "y", "sent"), exchange_cases, MISTAKES),
    hints=(
        "Begin with a table (N, T): the device of each expert. A token travels where this is not its own device.",
        "`home = chosen // (len(experts) // len(x))`. `home.flatten().argsort(stable=True)` sorts all by device. "
        "Keep this order: it says where each row came from, and so where its result must go.",
    ),
    solution=my_exchange,
)
