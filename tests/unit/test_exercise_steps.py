"""Ties, tables, biases, places, a cache and an all-to-all: right answers in another way, true oracles, what is said."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from moe_lessons import exercises
from moe_lessons.exercises.check_biased import my_biased_weights
from moe_lessons.exercises.check_cache_step import my_cache_step
from moe_lessons.exercises.check_exchange import exchange_by_loops
from moe_lessons.exercises.check_surest import surest_by_package
from moe_lessons.exercises.check_table import my_times_even
from moe_lessons.exercises.check_ties import mask_by_loops, my_mask, ties_cases
from moe_lessons.nn import seeded

# --- right answers, written in another way -------------------------------------------------------------------------


def mask_by_rank(scores, top_k):
    one, other = scores[:, :, None], scores[:, None, :]
    stands_before = torch.ones(scores.shape[1], scores.shape[1]).tril(-1).bool()
    return ((other > one) | (other == one) & stands_before).sum(dim=2) < top_k


def weights_by_loops(scores, bias, top_k):
    weights = torch.zeros_like(scores)
    for token, row in enumerate(scores):
        best = sorted(range(len(row)), key=lambda e: -(row[e] + bias[e]).item())[:top_k]
        for e in best:
            weights[token, e] = row[e] / row[best].sum()
    return weights


def places_by_one_sort(router_probs, top_k, factor):
    (T, E), (probs, chosen) = router_probs.shape, router_probs.topk(top_k)
    queue = (torch.arange(top_k) - probs[:, :1]).T.flatten().argsort()  # a round counts for more than a probability
    expert = chosen.T.flatten()
    earlier = (F.one_hot(expert[queue], E).cumsum(0) - 1).gather(1, expert[queue, None]).squeeze(1)
    fits = queue[earlier < math.ceil(factor * top_k * T / E)]
    return torch.zeros(T, E).index_put((fits % T, expert[fits]), probs.T.flatten()[fits])


def step_by_einsum(q, k, v, keys, values):
    keys, values = (torch.stack([*old.unbind(1), new], dim=1) for old, new in ((keys, k), (values, v)))
    shares = (torch.einsum("hd,hsd->hs", q, keys) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("hs,hsd->hd", shares, values), keys, values


def exchange_by_devices(x, chosen, weights, experts):
    share, inboxes, y, sent = len(experts) // len(x), [[] for _ in x], x.clone(), 0
    for source, (rows, numbers) in enumerate(zip(x, chosen.tolist())):
        for token, (row, e) in enumerate(zip(rows, numbers)):
            inboxes[e // share].append(row)
            y[source, token] = experts[e](row) * weights[source, token]
            sent += 8 * len(row) if e // share != source else 0
    return [len(inbox) for inbox in inboxes], torch.stack(sum(inboxes, [])), y, sent


RIGHT = [
    ("ties", mask_by_rank),
    ("ties", lambda s, k: mask_by_rank(s, k).float()),
    ("times_even", lambda counts: counts / counts.mean(dim=1, keepdim=True)),
    ("biased_weights", weights_by_loops),
    ("surest", places_by_one_sort),
    ("cache_step", step_by_einsum),
    ("exchange", exchange_by_devices),
]


@pytest.mark.parametrize("name, answer", RIGHT)
def test_right_answers_written_in_another_way(name, answer):
    check = getattr(exercises, name).check(answer)
    assert check.status == "right", check


# --- what is said of wrong ones ------------------------------------------------------------------------------------


WRONG = [
    ("ties", lambda s, k: my_mask(s, k).T, r"what is kept must be of shape \(7, 6\), not of shape \(6, 7\)"),
    ("ties", lambda s, k: ~my_mask(s, k), "42 of 42 numbers differ, most for token 0 and expert 0"),
    ("times_even", lambda c: 2 * my_times_even(c), "counts of shape .3, 8., the table: 24 of 24 numbers differ"),
    ("biased_weights", lambda s, b, k: my_biased_weights(s, b, k) + 0.1, "for token . and expert .* off by 0.1"),
    ("biased_weights", lambda s, b, k: my_biased_weights(s, b.mul_(2), k), "right, but your function changed bias"),
    ("surest", lambda p, k, f: surest_by_package(p, k, f) * 2, "factor = 0.75, the weights: .* numbers differ"),
    (
        "cache_step",
        lambda *a: my_cache_step(*a)[0],
        r"return 3 values \(y, the new keys, the new values\), not a Tensor",
    ),
    ("cache_step", lambda q, k, v, K, V: my_cache_step(q, k, v, K, 0 * V), "y: 8 of 8 numbers differ"),
    ("cache_step", lambda q, k, v, K, V: my_cache_step(q, k, v, K, V.mul_(1.0).add_(1) - 1), "changed values"),
    ("exchange", lambda x, *a: (*exchange_by_loops(x, *a)[:3], 5), "sent is 168, yours is 5"),
    ("exchange", lambda x, *a: (*exchange_by_loops(x, *a)[:2], 0 * x, 0), "y: 42 of 42 numbers differ"),
]


@pytest.mark.parametrize("name, answer, said", WRONG)
def test_what_differs_is_said(name, answer, said):
    check = getattr(exercises, name).check(answer)
    assert check.status == "wrong" and not check.known and re.search(said, check.message, re.IGNORECASE), check


def test_a_cache_of_another_shape_is_said():
    check = exercises.cache_step.check(lambda q, k, v, K, V: (q, torch.cat([K, k[:, None]]), V))
    assert check.status == "raised" and "Sizes of tensors must match" in check.message


# --- the oracles are true ------------------------------------------------------------------------------------------


def test_the_cases_of_equal_scores_have_equal_scores():
    with seeded(0):
        cases = ties_cases()
    for scores, top_k in cases[:2]:
        assert not torch.equal(mask_by_loops(scores, top_k), scores >= scores.topk(top_k).values[:, -1:])
    kept = mask_by_loops(*cases[-1])
    assert kept.nonzero().tolist() == [[0, 0], [0, 2], [1, 0], [1, 1], [2, 1], [2, 3]]


def test_the_surest_tokens_by_hand():
    probs = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.3, 0.7]])
    one_place = torch.tensor([[0, 0], [1, 0], [0, 1]])
    torch.testing.assert_close(surest_by_package(probs, 1, 0.5), probs * one_place)
    two_rounds = torch.tensor([[1, 0], [1, 1], [0, 1]])  # two places each; token 1 is the surest
    torch.testing.assert_close(surest_by_package(probs, 2, 2 / 3), probs * two_rounds)


def test_an_exchange_by_hand():
    """Two devices with two experts each, which multiply by 1, 2, 3 and 4."""
    x = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    experts = [lambda row, times=times: row * times for times in (1, 2, 3, 4)]
    counts, arrived, y, sent = exchange_by_loops(x, torch.tensor([[3, 0], [1, 2]]), torch.full((2, 2), 0.5), experts)
    assert counts.tolist() == [2, 2] and arrived.flatten().tolist() == [2, 3, 1, 4]
    assert y.flatten().tolist() == [2, 1, 3, 6] and sent == 2 * 2 * 4  # two tokens, there and back
