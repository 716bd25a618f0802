"""Lesson 06b: tables of who serves what, of any model."""

from collections.abc import Iterator

import torch
from torch import Tensor

from moe_lessons.exercises.exercise import exercise


def my_merged(counts, group):
    merged = torch.zeros(len(counts), int(group.max()) + 1, dtype=counts.dtype)
    return merged.index_add_(1, group, counts)


MERGED_MISTAKES = [
    (lambda counts, group: my_merged(counts, group) / torch.bincount(group),
     "You took the mean of a group. It has all assignments of its experts: add them up."),
    (lambda counts, group: my_merged(counts, group).T,
     "Yours has a row for each group. A row is a domain, a column a group."),
    (lambda counts, group: my_merged(counts, group) / my_merged(counts, group).sum(dim=1, keepdim=True),
     "These are shares. Return the counts: the shares are taken later."),
    (lambda counts, group: counts.reshape(len(counts), int(group.max()) + 1, -1).sum(dim=2),
     "You merged neighbours. Expert e belongs to group[e], wherever it stands."),
    (lambda counts, group: torch.zeros(len(counts), int(group.max()) + 1).long().index_copy_(1, group, counts),
     "Each group has the counts of one expert only: where several belong to it, add them up."),
]  # fmt: skip


@exercise(1, my_merged, MERGED_MISTAKES, "the merged counts", axes=("domain", "group"))
def merged() -> Iterator[tuple]:
    for domains, group in ((3, [0, 1, 1, 0]), (5, [2, 0, 1, 1, 0, 2]), (2, [0, 1, 0, 0, 1]), (4, [3, 1, 0, 2, 1, 3])):
        yield torch.randint(0, 90, (domains, len(group))), torch.tensor(group)


def my_counts(labels, token_idx, expert_idx, shape):
    num_labels, num_experts = shape
    place = labels[token_idx] * num_experts + expert_idx  # (A,): a number for each pair of a label and an expert
    return place.bincount(minlength=num_labels * num_experts).reshape(shape)


def each_once(labels: Tensor, token_idx: Tensor, expert_idx: Tensor, shape: tuple[int, int]) -> Tensor:
    counts = torch.zeros(shape, dtype=torch.int64)
    counts[labels[token_idx], expert_idx] += 1
    return counts


COUNTS_MISTAKES = [
    (each_once,
     "counts[rows, columns] += 1 adds 1 to each pair once, however often it occurs. Add all of them: "
     "index_put_ with accumulate=True, bincount, or a loop."),
    (lambda labels, token, expert, shape: my_counts(labels, token, expert, shape).T,
     "Yours has a row for each expert. A row is a label, a column an expert."),
    (lambda labels, token, expert, shape: my_counts(labels, *(x[: len(labels)] for x in (token, expert)), shape),
     "You stopped after as many assignments as there are tokens. A token has several: count all."),
    (lambda labels, token, expert, shape: my_counts(labels, torch.arange(len(token)) % len(labels), expert, shape),
     "You gave assignment a the label of token a. It is that of its token: labels[token_idx]."),
    (lambda labels, token, expert, shape: my_counts(
         labels, torch.arange(len(token)) // (len(token) // len(labels)), expert, shape
     ),
     "Assignments do not stand token by token. The label of each is labels[token_idx]."),
]  # fmt: skip


@exercise(2, my_counts, COUNTS_MISTAKES, "the counts", axes=("label", "expert"))
def expert_counts() -> Iterator[tuple]:
    for T, K, E, num_labels in ((40, 2, 8, 3), (30, 3, 6, 4), (25, 1, 5, 2), (20, 2, 9, 7)):
        order = torch.randperm(T * K)
        token_idx = torch.arange(T).repeat_interleave(K)[order]
        expert_idx = torch.rand(T, E - 1).topk(K).indices.flatten()[order]  # nobody chooses the last
        yield torch.randint(num_labels - 1, (T,)), token_idx, expert_idx, (num_labels, E)  # nor is the last label there
