"""Lesson 08: the dense width that is as good as a mixture, what a token costs three opponents, an exchange by hand."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_width(widths, qualities, quality):
    for i in range(1, len(widths)):
        if qualities[i - 1] <= quality <= qualities[i]:
            share = (quality - qualities[i - 1]) / (qualities[i] - qualities[i - 1])
            return widths[i - 1] * (widths[i] / widths[i - 1]) ** share
    return math.inf


ONE = "This is one of the trained widths. Interpolate between the two neighbours."
WIDTH_MISTAKES = {
    lambda w, q, x: my_width(w, q, min(x, q[-1])):
        "A mixture better than all of them lies outside the family. Return math.inf.",
    lambda w, q, x: np.interp(x, q, w): "Your lines are straight over the width. Take its logarithm first, then exp.",
    lambda w, q, x: math.log(my_width(w, q, x)): "This is the logarithm of the width. Return its exp.",
    lambda w, q, x: min(w, key=lambda width: abs(q[w.index(width)] - x)): ONE,
    lambda w, q, x: next((width for width, own in zip(w, q) if own >= x), math.inf): ONE,
}  # fmt: skip


@exercise(2, my_width, WIDTH_MISTAKES, "the width")
def dense_width() -> Iterator[tuple]:
    for case in range(12):
        widths = [int(torch.randint(4, 8, ())) * 2 ** (i + 3) for i in range(4)]
        qualities = torch.rand(4).sort().values.tolist()
        inside = qualities[0] + torch.rand(()).item() * (qualities[-1] - qualities[0])
        yield widths, qualities, 1.5 if case == 11 else inside


def my_token_costs(d_model, d_ff, num_experts, top_k):
    expert = 3 * d_model * d_ff
    return 2 * num_experts * expert, 2 * top_k * expert, 2 * top_k * expert


ALL = "You count all E experts: a token reads and uses K of them."
BYTES = "In bfloat16 a weight takes 2 bytes."
COSTS_MISTAKES = {
    lambda D, F, E, K: (4 * E * D * F, 4 * K * D * F, 4 * K * D * F):
        "You count two matrices in an expert. SwiGLU has three: gate, up and down.",
    lambda D, F, E, K: (6 * E * D * F, 6 * E * D * F, 6 * K * D * F): ALL,
    lambda D, F, E, K: (6 * E * D * F, 6 * E * D * F, 6 * E * D * F): ALL,
    lambda D, F, E, K: (6 * E * D * F, 6 * K * D * F, 6 * E * D * F): ALL,
    lambda D, F, E, K: (6 * E * D * F, 6 * K * D * F, 3 * K * D * F): "A weight costs 2 FLOPs: a multiply and an add.",
    lambda D, F, E, K: (3 * E * D * F, 3 * K * D * F, 6 * K * D * F): BYTES,
    lambda D, F, E, K: (3 * E * D * F, 3 * K * D * F, 3 * K * D * F): f"{BYTES} And it costs 2 FLOPs.",
    lambda D, F, E, K: (6 * K * D * F, 6 * K * D * F, 6 * K * D * F): "All E experts are kept, not only K of them.",
}  # fmt: skip


@exercise(1, my_token_costs, COSTS_MISTAKES, ("bytes kept", "bytes read", "FLOPs"))
def token_costs() -> list[tuple]:
    return [(6, 10, 5, 3), (4, 6, 8, 2), (8, 4, 16, 1), (64, 256, 1, 1)]


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


def dealt(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> tuple[Tensor, ...]:
    """Exchange as if expert e were on device e % N."""
    N, share = len(x), len(experts) // len(x)
    in_blocks = [expert for device in range(N) for expert in experts[device::N]]
    return my_exchange(x, chosen % N * share + chosen // N, weights, in_blocks)


def received(
    x: Tensor, chosen: Tensor, weights: Tensor, experts: list, order=lambda _, *place: place, own=True
) -> tuple[Tensor, ...]:
    """Exchange where a device sorts its rows by order(…). own: whether its own tokens are among them."""
    share = len(experts) // len(x)
    rows = [(e, source, token) for source, row in enumerate(chosen.tolist()) for token, e in enumerate(row)]
    rows = [row for row in rows if own or row[0] // share != row[1]]
    rows.sort(key=lambda row: (row[0] // share, *order(*row)))
    counts = torch.tensor([e // share for e, _, _ in rows]).bincount(minlength=len(x))
    arrived = torch.stack([x[source, token] for _, source, token in rows])
    return counts, arrived, *my_exchange(x, chosen, weights, experts)[2:]


def instead(change_y: Callable = lambda y, *_: y, change_sent: Callable = lambda sent, x: sent) -> Callable:
    def wrong(x: Tensor, *rest) -> tuple[Tensor, ...]:
        counts, arrived, y, sent = my_exchange(x, *rest)
        return counts, arrived, change_y(y, *rest), change_sent(sent, x)

    return wrong


def as_computed(y: Tensor, chosen: Tensor, _, experts: list) -> Tensor:
    home = chosen // (len(experts) // len(y))
    return y.flatten(0, 1)[home.flatten().argsort(stable=True)].view_as(y)


EXCHANGE_MISTAKES = {
    dealt: "You dealt the experts out like cards, e % N. They stand in blocks: expert e is on device e // (E / N).",
    partial(received, own=False):
        "A device's own tokens are missing in what it receives. They need not travel, but its experts serve them, too.",
    partial(received, order=lambda *row: row):
        "You sorted the rows of a device by expert. That may come next: they arrive by source, then by token.",
    partial(received, order=lambda expert, source, token: (token, source)):
        "You took token 0 of every device first. All tokens of device 0 come first, then those of device 1.",
    instead(lambda y, chosen, weights, experts: y / weights[:, :, None]):
        "The results came back without their weights. Multiply each by the weight of its token.",
    instead(as_computed):
        "The order is lost on the way back: you lined the results up as the devices computed them. Write each to the "
        "device and the place that its token came from.",
    instead(change_sent=lambda sent, x: 8 * x.numel()):
        "You counted all tokens. One whose expert is on its own device is not sent.",
    instead(change_sent=lambda sent, x: sent // 2): "You counted one way. The results come back: twice as many bytes.",
    instead(change_sent=lambda sent, x: sent // 4): "You counted numbers. Each takes 4 bytes.",
    instead(change_sent=lambda sent, x: sent // (8 * x.shape[2])):
        "You counted tokens. Each has D numbers of 4 bytes, and goes there and back.",
}  # fmt: skip


@exercise(3, my_exchange, EXCHANGE_MISTAKES, ("counts", "arrived", "y", "sent"))
def exchange() -> Iterator[tuple]:
    sizes = (3, 5, 6, 6), (2, 7, 3, 6), (4, 5, 2, 8), (1, 4, 3, 2)  # devices N, tokens of each T, D, experts E
    for N, T, D, E in sizes:
        experts = [partial(torch.matmul, other=matrix) for matrix in torch.randn(E, D, D)]
        yield torch.randn(N, T, D), torch.randint(E, (N, T)), 0.1 + 0.8 * torch.rand(N, T), experts
