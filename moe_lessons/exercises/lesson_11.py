"""Lesson 11: how long a step takes where ranks wait for each other, and how many bytes a rank sends."""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_lessons.exercises.compare import Comparison
from moe_lessons.exercises.exercise import Exercise

# --- who waits for whom -------------------------------------------------------------------------------------------


def time_by_loops(
    loads: Tensor, num_ranks: int, seconds_per_row: float, of_ranks: Callable = max, home: Callable | None = None
) -> float:
    """Layer by layer. of_ranks: the rows that count, from those of all ranks; home: an expert's rank."""
    seconds, share = 0.0, loads.shape[1] // num_ranks
    home = home or (lambda e: e // share)
    for layer in loads.tolist():
        rows = [sum(load for e, load in enumerate(layer) if home(e) == rank) for rank in range(num_ranks)]
        seconds += of_ranks(rows) * seconds_per_row
    return seconds


def time_cases() -> list[tuple]:
    sizes = (3, 8, 4, 0.5), (2, 6, 2, 0.001), (1, 4, 2, 2.0), (4, 4, 4, 0.25), (2, 4, 1, 0.1)  # layers, E, N, seconds
    return [(torch.randint(1, 60, (L, E)).float(), N, seconds) for L, E, N, seconds in sizes]


def my_step_time(loads, num_ranks, seconds_per_row):
    rows = loads.unflatten(1, (num_ranks, -1)).sum(dim=2)  # (L, N)
    return rows.amax(dim=1).sum() * seconds_per_row  # each layer waits for its own slowest rank


TIME_MISTAKES = {
    lambda loads, n, s: loads.unflatten(1, (n, -1)).sum(dim=2).sum(dim=0).max() * s: (
        "You added up the layers of each rank first. But every layer ends with an exchange: in each one, all wait for "
        "the rank that is slowest there, and that may be another one."
    ),
    lambda loads, n, s: loads.sum() / n * s: "This is the mean over the ranks. A layer waits for its slowest one.",
    lambda loads, n, s: loads.sum() * s: (
        "You added up all ranks, as if one worked after the other. They work at the same time."
    ),
    lambda loads, n, s: loads.amax(dim=1).sum() * s: (
        "This is the busiest expert of each layer. A rank has several experts and works for all of them."
    ),
    lambda loads, n, s: time_by_loops(loads, n, s, home=lambda e: e % n): (
        "You dealt the experts out like cards. They stand in blocks: rank 0 has the first E / num_ranks."
    ),
    lambda loads, n, s: time_by_loops(loads, n, s, of_ranks=min): (
        "You took the quickest rank of each layer. All wait for the slowest."
    ),
    lambda loads, n, s: time_by_loops(loads, n, 1): "These are rows. Each takes seconds_per_row.",
}

step_time = Exercise(
    "step_time",
    lesson="11",
    stars=2,
    check=Comparison(time_by_loops, "the time", time_cases, TIME_MISTAKES),
    hints=(
        "Begin with the rows of each rank in each layer, (L, N). Which of them does one layer wait for?",
        "`loads.unflatten(1, (num_ranks, -1)).sum(dim=2)` are the rows of the ranks. Take the largest of each layer "
        "first, then add up the layers.",
    ),
    solution=my_step_time,
)

# --- bytes --------------------------------------------------------------------------------------------------------


def bytes_by_loops(traffic: Tensor, d_model: int, bytes_per_number: int) -> Tensor:
    """Message by message: (N,) the bytes that each rank sends to another one."""
    sent, row = torch.zeros(len(traffic), dtype=torch.long), d_model * bytes_per_number
    for source, rows in enumerate(traffic.tolist()):
        for home, count in enumerate(rows):
            if source != home:
                sent[source] += 2 * count * row  # a row to its expert; in the backward pass the gradient of its result
                sent[home] += 2 * count * row  # its result; in the backward pass the gradient of the row
    return sent


def bytes_cases() -> list[tuple]:
    sizes = (3, 8, 4), (2, 5, 2), (4, 3, 8), (1, 4, 4)  # N, D, bytes
    return [(torch.randint(1, 40, (N, N)), D, size) for N, D, size in sizes]


def my_sent_bytes(traffic, d_model, bytes_per_number):
    away = traffic - traffic.diag().diag()  # what stays is not sent
    rows = away.sum(dim=1) + away.sum(dim=0)  # its own rows, and the results of those that came
    return 2 * rows * d_model * bytes_per_number  # forward, and the gradients of both


def of_rows(rows: Callable[[Tensor], Tensor]) -> Callable:
    """The bytes of so many rows, from the traffic without what stays."""
    return lambda traffic, d, size: rows(traffic - traffic.diag().diag()) * d * size


BYTES_MISTAKES = {
    lambda traffic, d, size: 2 * (traffic.sum(dim=1) + traffic.sum(dim=0)) * d * size: (
        "You counted the diagonal, too: rows whose expert is on their own rank are not sent."
    ),
    of_rows(lambda away: 2 * away.sum(dim=1)): (
        "A rank also sends back the results of the rows that came to it, the column of the table."
    ),
    of_rows(lambda away: 4 * away.sum(dim=1)): (
        "You send back as many results as the rank has sent rows. It sends back those of the rows that it *received*: "
        "the column of the table, not the row."
    ),
    of_rows(lambda away: 4 * away.sum(dim=0)): (
        "You counted what the rank receives twice. It sends its own rows, the row of the table, and results of those "
        "that came, the column."
    ),
    of_rows(lambda away: away.sum(dim=1) + away.sum(dim=0)): (
        "This is the forward pass. In the backward pass the gradients take the same ways: twice as many bytes."
    ),
    lambda traffic, d, size: bytes_by_loops(traffic, d, 1): "You counted numbers. Each takes bytes_per_number bytes.",
    lambda traffic, d, size: bytes_by_loops(traffic, 1, size): "A row has d_model numbers.",
    lambda traffic, d, size: bytes_by_loops(traffic, d, size).sum(): (
        "This is what all ranks send together. Give a number for each rank."
    ),
}

sent_bytes = Exercise(
    "sent_bytes",
    lesson="11",
    stars=2,
    check=Comparison(bytes_by_loops, "the bytes", bytes_cases, BYTES_MISTAKES, axes=("rank",)),
    hints=(
        "Row i of the table is what rank i sends, column i what comes to it. Each row that came goes back as a result.",
        "`away = traffic - traffic.diag().diag()` is what leaves. In the forward pass rank i sends "
        "`away.sum(dim=1)[i] + away.sum(dim=0)[i]` rows; in the backward pass as many gradients.",
    ),
    solution=my_sent_bytes,
)
