"""Lesson 10: a release for a user, by its memory and its two edges."""

import torch

from moe_lessons.exercises.exercise import exercise


def my_choice(releases, sequences, memory):
    for place, (gigabytes, lower, upper) in enumerate(releases):
        if gigabytes <= 0.8 * memory and (sequences < lower or sequences > upper):
            return place
    return -1


def by_rule(fits, is_faster, first=1):
    """Make an answer that chooses by another rule. first: 1 from the front, -1 from the back."""

    def choose(releases, sequences, memory):
        good = [i for i, (size, low, up) in enumerate(releases) if fits(size, memory) and is_faster(sequences, low, up)]
        return good[::first][0] if good else -1

    return choose


def fits_beside_caches(size, memory):
    return size <= 0.8 * memory


def is_outside(sequences, low, up):
    return sequences < low or sequences > up


CHOICE_MISTAKES = [
    (by_rule(lambda size, memory: size <= memory, is_outside),
     "A fifth of the memory is for the KV caches: the weights have 0.8 of it."),
    (by_rule(lambda size, memory: True, is_outside), "It must fit: compare the weights with the memory."),
    (by_rule(fits_beside_caches, lambda sequences, low, up: sequences > up),
     "Below the lower edge the MoE is faster, too: one user is well served by it."),
    (by_rule(fits_beside_caches, lambda sequences, low, up: low < sequences < up),
     "Between its edges the MoE is slower. Choose one for which the batch size lies outside."),
    (by_rule(fits_beside_caches, is_outside, -1), "You chose the last one. The best in quality comes first."),
]  # fmt: skip


@exercise(2, my_choice, CHOICE_MISTAKES, "the place")
def choice() -> list[tuple]:
    three = [(900.0, 4.1, 876.0), (64.0, 4.2, 438.0), (13.0, 5.2, 110.0)]
    drawn = [(three, 30, 2000)]  # between the edges of all
    drawn += [(three, sequences, memory) for sequences in (1, 30, 200, 500, 2000) for memory in (16, 24, 70, 160, 2000)]
    for _ in range(5):
        four = (torch.rand(4, 3) * torch.tensor([500, 6, 2000]) + torch.tensor([1, 2, 50])).tolist()
        drawn.append(([tuple(release) for release in four], int(torch.randint(1, 2000, ())), 300))
    return drawn
