"""Exercises one by one: right answers, of the package or written in another way, and what is said of wrong ones."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moe_lessons import exercises, nn
from moe_lessons.analysis import load_statistics, union_law
from moe_lessons.analysis.counting import count_parameters
from moe_lessons.exercises.lesson_05 import MyRouter, router_with
from moe_lessons.exercises.lesson_06b import NUM_TOKENS, by_change, causality_cases
from moe_lessons.nn import MoE, Routing, SigmoidRouter, TopKRouter, seeded
from moe_lessons.nn.dispatch import weight_matrix
from moe_lessons.nn.families import finer
from moe_lessons.nn.transformer import Layer
from moe_lessons.parallel import bytes_sent


def weights_of(routing, like):
    return weight_matrix(like, routing, routing.weight).T  # (T, E)


def routing_of(probs, topk_indices):
    return Routing.from_topk(probs.log(), probs, topk_indices, probs.gather(1, topk_indices))


def left_by_package(probs, chosen, factor, priority):
    capacity = nn.balancing.expert_capacity(factor, chosen.shape[1], *probs.shape)
    return weights_of(nn.apply_capacity(routing_of(probs, chosen), capacity, priority), probs)


def divided_by_the_sum(logits, top_k):
    weights, chosen = logits.softmax(dim=-1).topk(top_k)
    return torch.zeros_like(logits).scatter(1, chosen, weights / weights.sum(dim=-1, keepdim=True))


def loss_by_package(probs, idx):
    return nn.load_balancing_loss(routing_of(probs, idx))


def mask_by_rank(scores, top_k):
    one, other = scores[:, :, None], scores[:, None, :]
    stands_before = torch.ones(scores.shape[1], scores.shape[1]).tril(-1).bool()
    return ((other > one) | (other == one) & stands_before).sum(dim=2) < top_k


class InAnotherWay:
    def token_weights(probs, k):
        best = torch.tensor(probs).topk(k)
        return torch.zeros(len(probs)).scatter(0, best.indices, best.values / best.values.sum())

    def causal_attention(q, k):
        rows = torch.zeros(len(q), len(q))
        for t in range(len(q)):
            rows[t, : t + 1] = F.softmax(k[: t + 1] @ q[t] / q.shape[1] ** 0.5, dim=0)
        return rows

    def moe_block(x, router_weight, experts, top_k):
        weights = divided_by_the_sum(x @ router_weight.T, top_k)  # (T, E)
        return sum(weights[:, e, None] * expert(x) for e, expert in enumerate(experts))

    def sort_tokens(topk_indices, num_experts):
        tokens = [(topk_indices == e).any(dim=1).nonzero().flatten().flip(0) for e in range(num_experts)]
        return torch.cat(tokens), [len(own) for own in tokens]

    def layer_parameters(D, H, G, F):
        config = nn.TransformerConfig(d_model=D, num_heads=H, num_kv_heads=G, d_ff=F, moe_layers=())
        return count_parameters(Layer(config, 0)).total

    def information_bits(counts):
        tables = counts.sum(dim=1), counts.sum(dim=0), counts.flatten()
        rows, columns, both = (torch.distributions.Categorical(table).entropy() for table in tables)
        return (rows + columns - both) / math.log(2)

    def find_places(idx, num_experts, factor):
        even = torch.full((len(idx), num_experts), 1 / num_experts)
        return left_by_package(even, idx, factor, "order").gather(1, idx) > 0

    @torch.no_grad()
    def new_bias(bias, idx, rate):
        router = SigmoidRouter(4, len(bias), idx.shape[1])
        router.expert_bias = bias  # which is then changed in place
        nn.update_expert_bias(router, routing_of(torch.ones(len(idx), len(bias)), idx), rate)
        return bias

    def bill(load, factor):
        load = load.tolist()
        even = sum(load) / len(load)
        served = [min(tokens, math.inf if factor is None else factor * even) for tokens in load]
        return [max(served) / even, (sum(load) - sum(served)) / sum(load)]

    def token_costs(d_model, d_ff, num_experts, top_k):
        work = 6 * top_k * d_ff * d_model
        return [np.int64(6 * num_experts * d_ff * d_model), work, float(work)]

    @torch.no_grad()
    def biased_weights(scores, bias, top_k):
        router = SigmoidRouter(4, scores.shape[1], top_k, norm_topk_prob=True)
        router.expert_bias.copy_(bias)
        return weights_of(router.choose(scores.logit()), scores)

    def cache_step(q, k, v, keys, values):
        keys, values = (torch.stack([*old.unbind(1), new], dim=1) for old, new in ((keys, k), (values, v)))
        shares = (torch.einsum("hd,hsd->hs", q, keys) / math.sqrt(q.shape[-1])).softmax(-1)
        return torch.einsum("hs,hsd->hd", shares, values), keys, values

    def exchange(x, chosen, weights, experts):
        share, inboxes, y, sent = len(experts) // len(x), [[] for _ in x], x.clone(), 0
        for source, (rows, numbers) in enumerate(zip(x, chosen.tolist())):
            for token, (row, e) in enumerate(zip(rows, numbers)):
                inboxes[e // share].append(row)
                y[source, token] = experts[e](row) * weights[source, token]
                sent += 8 * len(row) if e // share != source else 0
        return [len(inbox) for inbox in inboxes], torch.stack(sum(inboxes, [])), y, sent

    @torch.no_grad()
    def grouped_choice(scores, num_groups, topk_groups, top_k):
        router = SigmoidRouter(4, scores.shape[1], top_k, num_groups=num_groups, topk_groups=topk_groups)
        return weights_of(router.choose(scores.logit()), scores) > 0

    @torch.no_grad()
    def soft_moe(x, phi, expert):
        moe = nn.SoftMoE(x.shape[1], 1, len(phi)).to(x.dtype)
        moe.phi.copy_(phi)
        moe.run_experts = lambda slots: torch.stack([expert(e, slot) for e, slot in enumerate(slots)])
        return moe(x)

    def finer_experts(num_experts, top_k, d_ff, times):
        return *(finer(num_experts, top_k, d_ff, times)[name] for name in ("num_experts", "top_k", "d_ff")), times**0.5

    def step_time(loads, num_ranks, seconds_per_row):
        share = loads.shape[1] // num_ranks
        slowest = [max(sum(row[i : i + share]) for i in range(0, len(row), share)) for row in loads.tolist()]
        return sum(slowest) * seconds_per_row

    def router_health(loads, top_k):
        found = [load_statistics(load, top_k) for load in loads]
        layers = [(s.dead, s.max_over_mean, s.entropy, s.dead > 0 or s.max_over_mean >= 3) for s in found]
        return list(zip(*layers))

    def pooled_loss(probs, top_k):
        pooled, *own = (loss_by_package(layer, layer.topk(top_k).indices) for layer in (probs.flatten(0, 1), *probs))
        return pooled, sum(own) / len(own)

    def pick(models, memory, quality, batch):
        found = []
        for row, (shared, experts, e, k, good) in enumerate(models.tolist()):
            if good >= quality and shared + experts <= memory:
                found.append((shared + experts - experts * ((e - k) / e) ** batch, row))
        return min(found)[1] if found else -1


RIGHT = [
    *((name, answer) for name, answer in vars(InAnotherWay).items() if name[0] != "_"),
    ("masked_weights", divided_by_the_sum),
    ("active_parameters", lambda *sizes: count_parameters(MoE(*sizes)).active),
    ("cache_bytes", lambda L, G, h, T: T * L * G * (2 * h + 2 * h)),
    *(("card_design", lambda own=own: own) for own in ((8, 2, 8704), (64, 16, 1088), (128, 32, 520), [32, 8, 2176])),
    ("chance", lambda experts: (np.bincount(experts) ** 2).sum() / len(experts) ** 2),
    ("slowdown", lambda loads, n: max(part.sum() for part in loads.chunk(n)) * n / sum(loads)),
    ("push", lambda probs, e, gain: [gain * probs[e] * (float(i == e) - p) for i, p in enumerate(probs)]),
    ("mended_router", TopKRouter),
    ("balancing_loss", loss_by_package),
    ("causality", by_change(lambda x, t: torch.cat([x[:t], -x[t:]]))),
    ("causality", lambda layer, x: np.bool_(exercises.causality.answer(layer, x))),
    ("causality", lambda layer, x: torch.tensor(exercises.causality.answer(layer, x))),
    ("token_speed", lambda total, active, size, speed: 1 / (active / speed * size)),
    ("touched_experts", union_law),
    ("full_batch", lambda f, b, size, E, K: (size / b) / (2 * K / E / f)),
    ("dense_width", lambda w, q, x: math.inf if x > max(q) else 2 ** np.interp(x, q, np.log2(w))),
    ("ties", mask_by_rank),
    ("ties", lambda s, k: mask_by_rank(s, k).float()),
    ("times_even", lambda counts: counts / counts.mean(dim=1, keepdim=True)),
    ("surest", lambda p, k, factor: left_by_package(p, p.topk(k).indices, factor, "weight")),
    ("sent_bytes", bytes_sent),
    ("lead", lambda e, k, w, b: w * k / union_law(e, k, b)),
]


@pytest.mark.parametrize("name, answer", RIGHT)
def test_right_answers_written_in_another_way(name, answer):
    check = getattr(exercises, name).check(answer)
    assert check.status == "right" and {name for name, _ in RIGHT} == set(exercises.MODULES), check


def a_router(forward):
    return type("Router", (MyRouter,), {"forward": forward})


@a_router
def one_expert_less(self, x):
    logits = x @ self.weight.T
    weights, chosen = logits[:, 1:].softmax(dim=-1).topk(self.top_k, dim=-1)
    return Routing.from_topk(logits, logits.softmax(dim=-1), chosen + 1, weights)


WRONG = [
    ("card_design", lambda: (8, 2, 9216), "You have 11.3 B parameters, 3.10 B active"),
    ("card_design", lambda: (8, 9, 100), r"no such model: top_k must be between 1 and num_experts \(8\), got 9"),
    ("card_design", lambda: (8, 2, 8192.5), "no such model: d_ff"),
    ("card_design", lambda: (8, 2), "Return three whole numbers"),
    ("mended_router", router_with(lambda z, best: best.log().exp() * torch.nan), "the weights: .* yours is nan"),
    ("mended_router", one_expert_less, "the experts, best first: . of 8 numbers differ, most for row"),
    ("mended_router", a_router(lambda self, x: (x, x)), "must return a Routing, not a tuple"),
    ("mended_router", router_with(lambda z, best: best[:, :1]), r"cannot be read.* must be \(T, K\)"),
    ("mended_router", lambda *_: 0, "top_k = 2: AttributeError"),
    ("balancing_loss", lambda p, i: loss_by_package(p, i).item(), "no gradient reaches the router"),
    ("balancing_loss", lambda p, i: loss_by_package(p.detach(), i) + 0 * p.sum(), "its gradient by router_probs"),
    ("causality", lambda f, x: f(x) > 0, "Return True or False, not a Tensor"),
    ("causality", lambda f, x: 1, "Return True or False, not an int"),
    ("pick", lambda *a: None if InAnotherWay.pick(*a) < 0 else InAnotherWay.pick(*a), "70, .* returns nothing"),
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
        x = torch.randn(NUM_TOKENS, 8)
        torch.testing.assert_close(layer(x), causality_cases()[name].layer.eval()(x))  # the same each time
        places = [*range(1, NUM_TOKENS)] * 6
        assert by_change(lambda x, t: torch.cat([x[:t], 2 * torch.randn_like(x[t:])]), places)(layer, x) == case.truth
