"""Exercises one by one: right answers, of the package or written in another way, and what is said of wrong ones."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moe_lessons import exercises, nn
from moe_lessons.analysis import flops_per_token
from moe_lessons.analysis.speedup import edges
from moe_lessons.exercises.lesson_09 import TRIED_TOKENS, causality_cases
from moe_lessons.nn import Routing, SigmoidRouter, seeded
from moe_lessons.nn.dispatch import weight_matrix


def weights_of(routing, like):
    return weight_matrix(like, routing).T  # (T, E)


def routing_of(probs, topk_indices):
    return Routing.from_topk(probs.log(), probs, topk_indices, probs.gather(1, topk_indices))


def divided_by_the_sum(logits, top_k):
    weights, chosen = logits.softmax(dim=-1).topk(top_k)
    return torch.zeros_like(logits).scatter(1, chosen, weights / weights.sum(dim=-1, keepdim=True))


def loss_by_package(probs, idx):
    return nn.load_balancing_loss(routing_of(probs, idx))


def same(a, b):
    return torch.allclose(a, b, atol=1e-5)


def by_change(change, places=range(1, TRIED_TOKENS)):
    def sees(layer, x):
        y = layer.eval()(x)
        return any(not same(layer(change(x.clone(), t))[:t], y[:t]) for t in places)

    return sees


class InAnotherWay:
    def causal_attention(scores):
        rows = torch.zeros(scores.shape)
        for t, own in enumerate(scores):
            rows[t, : t + 1] = F.softmax(own[: t + 1], dim=0)
        return rows

    def moe_block(x, weights, experts):
        y = torch.zeros_like(x)
        for own, expert in zip(weights.T, experts):
            if (own > 0).any():
                y[own > 0] += own[own > 0].outer(torch.ones(x.shape[1])) * expert(x[own > 0])
        return y

    def information_bits(counts):
        tables = counts.sum(dim=1), counts.sum(dim=0), counts.flatten()
        rows, columns, both = (torch.distributions.Categorical(table).entropy() for table in tables)
        return (rows + columns - both) / math.log(2)

    @torch.no_grad()
    def new_bias(bias, idx, rate):
        router = SigmoidRouter(4, len(bias), idx.shape[1])
        router.expert_bias = bias  # which is then changed in place
        nn.update_expert_bias(router, routing_of(torch.ones(len(idx), len(bias)), idx), rate)
        return bias

    def exchange_seconds(tokens, K, D, bytes, link):
        rows = torch.ones(tokens, K)  # one for each token and expert
        return (rows * (D * bytes)).sum().double() / link

    def compute_seconds(tokens, active, peak):
        ffn = nn.FeedForward(4, 3)
        each = flops_per_token(ffn) / sum(weight.numel() for weight in ffn.parameters())  # of a dense model
        return tokens * active * each / peak

    def dispatch(x, chosen, num_experts):
        share, inboxes = num_experts // len(x), [[] for _ in x]
        for rows, numbers in zip(x, chosen.tolist()):
            for row, e in zip(rows, numbers):
                inboxes[e // share].append(row)
        return [len(inbox) for inbox in inboxes], torch.stack(sum(inboxes, []))

    def choice(releases, sequences, memory):
        size, lower, upper = np.array(releases).T
        good = (size / 0.8 <= memory) & ~((lower <= sequences) & (sequences <= upper))
        return int(good.argmax()) if good.any() else -1

    def matched_widths(widths, dense, moe):
        places = np.geomspace(widths[0], widths[-1], 200_001)
        good = [np.interp(np.log(places), np.log(widths), own) <= goal for own, goal in zip(dense, moe)]
        return [places[own.argmax()] if own.any() else math.inf for own in good]


RIGHT = [
    *((name, answer) for name, answer in vars(InAnotherWay).items() if name[0] != "_"),
    ("masked_weights", divided_by_the_sum),
    *(("card_design", lambda own=own: own) for own in ((8, 2, 8704), [32, 8, 2176])),
    ("logit_gradient", lambda probs, e, grad_p: [grad_p * probs[e] * (float(i == e) - p) for i, p in enumerate(probs)]),
    ("balancing_loss", loss_by_package),
    ("causality", by_change(lambda x, t: x[:t])),
    ("causality", lambda layer, x: np.bool_(exercises.causality.answer(layer, x))),
    ("two_edges", edges),
]


def test_each_exercise_has_a_right_answer_of_another_hand():
    assert {name for name, _ in RIGHT} == {exercise.name for exercise in exercises.EXERCISES}


@pytest.mark.parametrize("name, answer", RIGHT)
def test_right_answers_written_in_another_way(name, answer):
    check = getattr(exercises, name).check(answer)
    assert check.status == "right", check


def token_by_token(x, weights, experts):
    return [exercises.moe_block.answer(t[None], row[None], experts) for t, row in zip(x, weights)]


WRONG = [
    ("masked_weights", lambda z, k: divided_by_the_sum(z, k).tolist(), "no gradient gets through"),
    ("moe_block", lambda x, w, experts: exercises.moe_block.answer(x, w.detach(), experts), "no gradient gets through"),
    ("moe_block", lambda x, w, fs: sum(w[:, e, None] * f(x) for e, f in enumerate(fs)), "every expert processed every"),
    ("moe_block", lambda *given: torch.cat(token_by_token(*given)), "with more calls than needed"),
    ("card_design", lambda: (8, 8, 2176), "With E = K every token uses"),
    ("card_design", lambda: (8, 2, 9216), "more than 3.0 B.* You have 11.3 B parameters, 3.10 B active"),
    ("card_design", lambda: (16, 2, 8192), "The weights alone do not fit"),
    ("card_design", lambda: (8, 1, 8500), "2.5 B at least"),
    ("card_design", lambda: (9, 2, 8192), "not with the KV cache beside them"),
    ("card_design", lambda: (4, 2, 8192), "20 GB at least"),
    ("card_design", lambda: (8, 9, 100), "no such model: top_k"),
    ("card_design", lambda: (8, 2), "Return three whole numbers"),
    ("balancing_loss", lambda p, i: loss_by_package(p.detach(), i), "no gradient reaches the router"),
    ("balancing_loss", lambda p, i: loss_by_package(p.detach(), i) + 0 * p.sum(), "its gradient by router_probs"),
    ("causality", lambda f, x: any(not same(f(x[:t]), f(x)[:t]) for t in range(1, len(x))), "eval.* first"),
    ("causality", lambda f, x: any(not f.eval()(x[:t]).equal(f(x)[:t]) for t in range(1, len(x))), "are rounding"),
    ("causality", lambda f, x: not same(f.eval()(x.add_(1))[:-1], f(x)[:-1]), "Your function changed x itself"),
    ("causality", by_change(lambda x, t: torch.cat([x[:t], -x[t:]])), "How many tokens come later matters"),
    ("causality", lambda f, x: f(x) > 0, "Return True or False, not torch.bool of shape"),
]


@pytest.mark.parametrize("name, answer, said", WRONG)
def test_what_differs_is_said(name, answer, said):
    check = getattr(exercises, name).check(answer)
    assert check.status in ("wrong", "raised") and re.search(said, check.message, re.IGNORECASE), check


@pytest.mark.parametrize("name", causality_cases())
def test_a_wrong_answer_at_one_layer_alone_is_given_the_advice_of_this_layer(name):
    cases = causality_cases()
    verdicts = iter([case.truth != (other == name) for other, case in cases.items()])
    check = exercises.causality.check(lambda layer, x: next(verdicts))
    assert check.status == "wrong" and repr(name) in check.message and cases[name].advice in check.message


@pytest.mark.parametrize("name", causality_cases())
def test_the_truth_of_a_layer(name):
    case = causality_cases()[name]
    layer = case.layer.eval()
    with seeded(1):
        x = torch.randn(TRIED_TOKENS, 8)
        torch.testing.assert_close(layer(x), causality_cases()[name].layer.eval()(x))  # the same each time
        places = [*range(1, TRIED_TOKENS)] * 6
        changed = by_change(lambda x, t: torch.cat([x[:t], 2 * torch.randn_like(x[t:])]), places)(layer, x)
        assert (changed or by_change(lambda x, t: x[:t])(layer, x)) == case.truth
