"""Lesson 11: which experts stand more than once, how many bytes a rank sends, an exchange by hand."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_copies(rows, places):
    copies = torch.ones(len(rows))
    for _ in range(places - len(rows)):
        copies[(rows / copies).argmax()] += 1  # to whom has the most rows for one copy, as it stands now
    return copies


def spread(rows: Tensor, places: int, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Give every expert one place, and to those that choose(rows, spare places) names one more each."""
    return torch.ones(len(rows)).index_add(0, chosen := choose(rows, places - len(rows)), torch.ones(len(chosen)))


COPIES_MISTAKES = [
    (lambda rows, n: spread(rows, n, lambda rows, spare: rows.argmax().repeat(spare)),
     "You gave all spare places to the busiest expert. With a copy its rows are halved: look anew who is busiest."),
    (lambda rows, n: spread(rows, n, lambda rows, spare: rows.topk(min(spare, len(rows))).indices),
     "You gave one more place to each of the busiest. One that is very busy may need several."),
    (lambda rows, n: spread(rows, n, lambda rows, spare: torch.arange(spare) % len(rows)),
     "You gave the spare places out in turn. They are for those that have the most rows for a copy."),
    (lambda rows, n: (rows / rows.sum() * n).round().clamp(min=1),
     "You rounded shares. Their sum is not `places`: give the places one after the other."),
    (lambda rows, n: my_copies(rows, n) - 1,
     "These are the extra copies. Each expert stands somewhere already: add 1."),
]  # fmt: skip


@exercise(2, my_copies, COPIES_MISTAKES, "the copies", axes=("expert",))
def copies() -> list[tuple]:
    sizes = (4, 7), (8, 16), (16, 24), (64, 80), (6, 6)  # experts, places
    return [(5 + 100 * torch.randn(E).exp(), places) for E, places in sizes]


def my_sent_bytes(traffic, d_model, bytes_per_number):
    away = traffic - traffic.diag().diag()  # what stays is not sent
    rows = away.sum(dim=1) + away.sum(dim=0)  # its own rows, and the results of those that came
    return 2 * rows * d_model * bytes_per_number  # forward, and the gradients of both


def of_rows(rows: Callable[[Tensor], Tensor]) -> Callable:  # rows(the traffic without what stays)
    return lambda traffic, d, size: rows(traffic - traffic.diag().diag()) * d * size


BYTES_MISTAKES = [
    (lambda traffic, d, size: 2 * (traffic.sum(dim=1) + traffic.sum(dim=0)) * d * size,
     "You counted the diagonal, too: rows whose expert is on their own rank are not sent."),
    (of_rows(lambda away: 2 * away.sum(dim=1)),
     "A rank also sends back the results of the rows that came to it, the column of the table."),
    (of_rows(lambda away: away.sum(dim=1) + away.sum(dim=0)),
     "This is the forward pass. In the backward pass the gradients take the same ways: twice as many bytes."),
    (lambda traffic, d, size: my_sent_bytes(traffic, d, 1), "You counted numbers. Each takes bytes_per_number bytes."),
    (lambda traffic, d, size: my_sent_bytes(traffic, d, size).sum(),
     "This is what all ranks send together. Give a number for each rank."),
]  # fmt: skip


@exercise(2, my_sent_bytes, BYTES_MISTAKES, "the bytes", axes=("rank",))
def sent_bytes() -> list[tuple]:
    sizes = (3, 8, 4), (2, 5, 2), (4, 3, 8), (1, 4, 4)  # N, D, bytes
    return [(torch.randint(1, 40, (N, N)), D, size) for N, D, size in sizes]


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


def without_own(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> tuple[Tensor, ...]:
    """Exchange where what a device receives lacks its own tokens."""
    _, _, y, sent = my_exchange(x, chosen, weights, experts)
    home, here = chosen // (len(experts) // len(x)), torch.arange(len(x))[:, None]
    rows = [x[home.eq(device) & here.ne(device)] for device in range(len(x))]
    return torch.tensor(list(map(len, rows))), torch.cat(rows), y, sent


def all_travel(x: Tensor, *rest) -> tuple[Tensor, ...]:
    return *my_exchange(x, *rest)[:3], 8 * x.numel()


def unweighted(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> tuple[Tensor, ...]:
    counts, arrived, y, sent = my_exchange(x, chosen, weights, experts)
    return counts, arrived, y / weights[:, :, None], sent


def as_computed(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> tuple[Tensor, ...]:
    counts, arrived, y, sent = my_exchange(x, chosen, weights, experts)
    home = chosen // (len(experts) // len(x))
    return counts, arrived, y.flatten(0, 1)[home.flatten().argsort(stable=True)].view_as(y), sent


EXCHANGE_MISTAKES = [
    (dealt, "You dealt the experts out like cards, e % N. They stand in blocks: expert e is on device e // (E / N)."),
    (without_own,
     "A device's own tokens are missing in what it receives. They need not travel, but its experts serve them, too."),
    (unweighted,
     "The results came back without their weights. Multiply each by the weight of its token."),
    (as_computed,
     "The order is lost on the way back: you lined the results up as the devices computed them. Write each to the "
     "device and the place that its token came from."),
    (all_travel,
     "You counted all tokens. One whose expert is on its own device is not sent."),
]  # fmt: skip


@exercise(3, my_exchange, EXCHANGE_MISTAKES, ("counts", "arrived", "y", "sent"))
def exchange() -> Iterator[tuple]:
    sizes = (3, 5, 6, 6), (2, 7, 3, 6), (4, 5, 2, 8), (1, 4, 3, 2)  # devices N, tokens of each T, D, experts E
    for N, T, D, E in sizes:
        experts = [partial(torch.matmul, other=matrix) for matrix in torch.randn(E, D, D)]
        yield torch.randn(N, T, D), torch.randint(E, (N, T)), 0.1 + 0.8 * torch.rand(N, T), experts
