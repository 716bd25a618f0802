"""Lesson 11: how long a step takes where ranks wait for each other, how many bytes a rank sends, an exchange."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_step_time(loads, num_ranks, seconds_per_row):
    rows = loads.unflatten(1, (num_ranks, -1)).sum(dim=2)  # (L, N)
    return rows.amax(dim=1).sum() * seconds_per_row  # each layer waits for its own slowest rank


TIME_MISTAKES = {
    lambda loads, n, s: loads.unflatten(1, (n, -1)).sum(dim=2).sum(dim=0).max() * s:
        "You added up the layers first. But each ends with an exchange, and waits for the rank that is slowest in it.",
    lambda loads, n, s: loads.sum() / n * s: "This is the mean over the ranks. A layer waits for its slowest one.",
    lambda loads, n, s: loads.sum() * s:
        "You added up all ranks, as if one worked after the other. They work at the same time.",
    lambda loads, n, s: loads.amax(dim=1).sum() * s:
        "This is the busiest expert of each layer. A rank has several experts and works for all of them.",
    lambda loads, n, s: my_step_time(loads.unflatten(1, (-1, n)).mT.flatten(1), n, s):
        "You dealt the experts out like cards. They stand in blocks: rank 0 has the first E / num_ranks.",
    lambda x, n, s: -my_step_time(-x, n, s): "You took the quickest rank of each layer. All wait for the slowest.",
    lambda loads, n, s: my_step_time(loads, n, 1): "These are rows. Each takes seconds_per_row.",
}  # fmt: skip


@exercise(2, my_step_time, TIME_MISTAKES, "the time")
def step_time() -> list[tuple]:
    sizes = (3, 8, 4, 0.5), (2, 6, 2, 0.001), (1, 4, 2, 2.0), (4, 4, 4, 0.25), (2, 4, 1, 0.1)  # layers, E, N, seconds
    return [(torch.randint(1, 60, (L, E)).float(), N, seconds) for L, E, N, seconds in sizes]


def my_sent_bytes(traffic, d_model, bytes_per_number):
    away = traffic - traffic.diag().diag()  # what stays is not sent
    rows = away.sum(dim=1) + away.sum(dim=0)  # its own rows, and the results of those that came
    return 2 * rows * d_model * bytes_per_number  # forward, and the gradients of both


def of_rows(rows: Callable[[Tensor], Tensor]) -> Callable:  # rows(the traffic without what stays)
    return lambda traffic, d, size: rows(traffic - traffic.diag().diag()) * d * size


BYTES_MISTAKES = {
    lambda traffic, d, size: 2 * (traffic.sum(dim=1) + traffic.sum(dim=0)) * d * size:
        "You counted the diagonal, too: rows whose expert is on their own rank are not sent.",
    of_rows(lambda away: 2 * away.sum(dim=1)):
        "A rank also sends back the results of the rows that came to it, the column of the table.",
    of_rows(lambda away: 4 * away.sum(dim=1)):
        "It sends back as many results as it *received* rows: the column of the table. You count those that it sent.",
    of_rows(lambda away: 4 * away.sum(dim=0)):
        "You counted what it receives twice. It sends its own rows, the row, and results of what came, the column.",
    of_rows(lambda away: away.sum(dim=1) + away.sum(dim=0)):
        "This is the forward pass. In the backward pass the gradients take the same ways: twice as many bytes.",
    lambda traffic, d, size: my_sent_bytes(traffic, d, 1): "You counted numbers. Each takes bytes_per_number bytes.",
    lambda traffic, d, size: my_sent_bytes(traffic, 1, size): "A row has d_model numbers.",
    lambda traffic, d, size: my_sent_bytes(traffic, d, size).sum():
        "This is what all ranks send together. Give a number for each rank.",
}  # fmt: skip


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
