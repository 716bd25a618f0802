"""Lesson 11: how long a step takes where ranks wait for each other, and how many bytes a rank sends."""

from collections.abc import Callable

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
