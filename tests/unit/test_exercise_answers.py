"""Exercises one by one: right answers written in another way, oracles that are true, and what is said of wrong ones."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moe_lessons import exercises
from moe_lessons.exercises.check_cache_step import my_cache_step
from moe_lessons.exercises.check_capacity import kept_by_package, surest_by_package
from moe_lessons.exercises.check_exchange import exchange_by_loops
from moe_lessons.exercises.check_router import MyRouter, NewRouter, router_with
from moe_lessons.exercises.lesson_02 import (
    mask_by_loops,
    moe_by_loops,
    my_mask,
    router_weights,
    sort_by_loops,
    ties_cases,
)
from moe_lessons.exercises.lesson_04 import my_times_even
from moe_lessons.exercises.lesson_06 import my_biased_weights
from moe_lessons.exercises.lesson_06b import NUM_TOKENS, by_change, causality_cases, redrawn, same
from moe_lessons.exercises.lesson_08 import width_cases
from moe_lessons.exercises.lesson_09 import by_package, chosen_by_router, group_cases, soft_cases
from moe_lessons.exercises.lesson_11 import bytes_by_loops, bytes_cases
from moe_lessons.nn import MoE, Routing, TopKRouter, seeded
from moe_lessons.parallel import bytes_sent

# --- right answers, written in another way -------------------------------------------------------------------------


def weights_by_torch(probs, k):
    best = torch.tensor(probs).topk(k)
    return torch.zeros(len(probs)).scatter(0, best.indices, best.values / best.values.sum())


def attention_by_rows(q, k):
    rows = torch.zeros(len(q), len(q))
    for t in range(len(q)):
        rows[t, : t + 1] = F.softmax(k[: t + 1] @ q[t] / q.shape[1] ** 0.5, dim=0)
    return rows


def divided_by_the_sum(logits, top_k):
    weights, chosen = logits.softmax(dim=-1).topk(top_k)
    return torch.zeros_like(logits).scatter(1, chosen, weights / weights.sum(dim=-1, keepdim=True))


def block_by_matrix(x, router_weight, experts, top_k):
    weights = divided_by_the_sum(x @ router_weight.T, top_k)  # (T, E)
    return sum(weights[:, e, None] * expert(x) for e, expert in enumerate(experts))


def sort_by_expert(topk_indices, num_experts):
    tokens = [(topk_indices == e).any(dim=1).nonzero().flatten().flip(0) for e in range(num_experts)]
    return torch.cat(tokens), [len(own) for own in tokens]


def information_by_entropies(counts):
    p = np.asarray(counts) / np.asarray(counts).sum()

    def entropy(q):
        return -sum(x * np.log2(x) for x in q.flatten() if x > 0)

    return entropy(p.sum(0)) + entropy(p.sum(1)) - entropy(p)


def push_by_list(probs, chosen, gain):
    return [gain * probs[chosen] * (float(e == chosen) - probs[e]) for e in range(len(probs))]


class WithSoftmaxOfTheBest(NewRouter):
    def weights(self, logits, best):
        return logits.softmax(dim=-1).topk(1).values if self.top_k == 1 else best.softmax(dim=-1)


def kept_by_lists(idx, num_experts, factor):
    room = [math.ceil(factor * idx.numel() / num_experts)] * num_experts
    columns = []
    for choice in idx.T.tolist():
        columns.append([])
        for expert in choice:
            columns[-1].append(room[expert] > 0)
            room[expert] -= 1
    return [list(row) for row in zip(*columns)]


def loss_by_loops(probs, idx):
    num_tokens, num_experts = probs.shape
    total = 0
    for expert in range(num_experts):
        f = sum(expert in row for row in idx.tolist()) / idx.numel()
        total = total + f * sum(probs[token, expert] for token in range(num_tokens)) / num_tokens
    return num_experts * total


def bias_in_place(bias, idx, rate):
    counts = torch.tensor([idx.flatten().tolist().count(expert) for expert in range(len(bias))])
    bias[counts < idx.numel() / len(bias)] += rate
    bias[counts > idx.numel() / len(bias)] -= rate
    return bias


def bill_by_lists(load, factor):
    load = load.tolist()
    even = sum(load) / len(load)
    served = [min(tokens, math.inf if factor is None else factor * even) for tokens in load]
    return [max(served) / even, (sum(load) - sum(served)) / sum(load)]


def width_by_numpy(widths, qualities, quality):
    return math.inf if quality > max(qualities) else 2 ** np.interp(quality, qualities, np.log2(widths))


def costs_by_work(d_model, d_ff, num_experts, top_k):
    work = 6 * top_k * d_ff * d_model
    return [np.int64(6 * num_experts * d_ff * d_model), work, float(work)]


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


def grouped_by_hand(scores, num_groups, topk_groups, top_k):
    """Token by token, in lists."""
    chosen, size = torch.zeros_like(scores, dtype=torch.bool), scores.shape[1] // num_groups
    for token, row in enumerate(scores.tolist()):
        groups = [range(start, start + size) for start in range(0, len(row), size)]
        groups.sort(key=lambda group: -sum(sorted((row[e] for e in group), reverse=True)[:2]))
        allowed = [expert for group in groups[:topk_groups] for expert in group]
        for expert in sorted(allowed, key=lambda expert: -row[expert])[:top_k]:
            chosen[token, expert] = True
    return chosen


def soft_by_hand(x, phi, expert):
    """Slot by slot and token by token."""
    scores = torch.tensor([[float(token @ slot) for slot in phi] for token in x]).exp()
    outputs = []
    for e in range(len(phi)):
        outputs.append(expert(e, sum(share * token for share, token in zip(scores[:, e] / scores[:, e].sum(), x))))
    return torch.stack([sum(w * out for w, out in zip(row / row.sum(), outputs)) for row in scores])


def finer_by_hand(num_experts, top_k, d_ff, times, shared):
    fine = d_ff // times
    total, work = num_experts * d_ff, top_k * d_ff
    return (total - shared * fine) // fine, (work - shared * fine) // fine, fine, shared * fine


def time_in_lists(loads, num_ranks, seconds_per_row):
    share = loads.shape[1] // num_ranks
    slowest = [max(sum(row[i : i + share]) for i in range(0, len(row), share)) for row in loads.tolist()]
    return sum(slowest) * seconds_per_row


def bytes_in_lists(traffic, d_model, bytes_per_number):
    rows = traffic.tolist()
    sent = [sum(rows[i]) + sum(row[i] for row in rows) - 2 * rows[i][i] for i in range(len(rows))]
    return [2 * count * d_model * bytes_per_number for count in sent]


def health_in_lists(loads, top_k):
    dead, busiest, entropy = [], [], []
    for row in loads.tolist():
        shares = [load / sum(row) for load in row]
        dead.append(sum(share < 0.01 / top_k for share in shares))
        busiest.append(max(row) * len(row) / sum(row))
        entropy.append(-sum(share * math.log(share, len(row)) for share in shares if share))
    return dead, busiest, entropy, [number > 0 or times >= 3 for number, times in zip(dead, busiest)]


def health_by_mean(loads, top_k):
    """From shares in float32: three times the mean exactly must not be lost in rounding."""
    shares = loads / loads.sum(dim=1, keepdim=True)
    dead, busiest = (shares < 0.01 / top_k).sum(dim=1), shares.amax(dim=1) / shares.mean(dim=1)
    return (
        dead,
        busiest,
        -torch.xlogy(shares, shares).sum(dim=1) / math.log(loads.shape[1]),
        dead.bool() | (busiest >= 3),
    )


def losses_by_one_hot(probs, top_k):
    f = F.one_hot(probs.topk(top_k).indices, probs.shape[2]).double().mean(dim=(1, 2))  # (L, E)
    P = probs.mean(dim=1).double()
    return probs.shape[2] * f.mean(dim=0) @ P.mean(dim=0), probs.shape[2] * torch.einsum("le,le->", f, P) / len(f)


def pick_from_list(models, memory, quality):
    found = [
        (read, row) for row, (kept, read, good) in enumerate(models.tolist()) if kept <= memory and good >= quality
    ]
    return min(found)[1] if found else -1


RIGHT = [
    ("token_weights", weights_by_torch),
    ("causal_attention", attention_by_rows),
    ("layer_parameters", lambda D, H, G, F: D * (2 * D + 2 * G * D // H + 3 * F + 2)),
    ("masked_weights", divided_by_the_sum),
    ("moe_block", block_by_matrix),
    ("sort_tokens", sort_by_expert),
    ("active_parameters", lambda D, F, E, K: D * (E + 3 * F * K)),
    ("cache_bytes", lambda L, G, h, T: T * L * G * (2 * h + 2 * h)),
    *(("card_design", lambda own=own: own) for own in ((8, 2, 8704), (64, 16, 1088), (128, 32, 520), [32, 8, 2176])),
    ("information_bits", information_by_entropies),
    ("chance", lambda experts: (np.bincount(experts) ** 2).sum() / len(experts) ** 2),
    ("slowdown", lambda loads, n: max(part.sum() for part in loads.chunk(n)) * n / sum(loads)),
    ("push", push_by_list),
    ("mended_router", WithSoftmaxOfTheBest),
    ("mended_router", TopKRouter),
    ("find_places", kept_by_lists),
    ("balancing_loss", loss_by_loops),
    ("new_bias", bias_in_place),
    ("causality", by_change(lambda x, t: torch.cat([x[:t], -x[t:]]))),
    ("causality", lambda layer, x: np.bool_(by_change(redrawn)(layer, x))),
    ("causality", lambda layer, x: torch.tensor(by_change(redrawn)(layer, x))),
    ("bill", bill_by_lists),
    ("token_speed", lambda total, active, size, speed: 1 / (active / speed * size)),
    ("touched_experts", lambda E, K, B: sum(K * (1 - K / E) ** token for token in range(B))),  # what each token adds
    ("full_batch", lambda f, b, size, E, K: (size / b) / (2 * K / E / f)),
    ("dense_width", width_by_numpy),
    ("token_costs", costs_by_work),
    ("token_costs", lambda *sizes: torch.tensor(costs_by_work(*sizes))),
    ("ties", mask_by_rank),
    ("ties", lambda s, k: mask_by_rank(s, k).float()),
    ("times_even", lambda counts: counts / counts.mean(dim=1, keepdim=True)),
    ("biased_weights", weights_by_loops),
    ("surest", places_by_one_sort),
    ("cache_step", step_by_einsum),
    ("exchange", exchange_by_devices),
    ("finer_experts", finer_by_hand),
    ("grouped_choice", grouped_by_hand),
    ("soft_moe", soft_by_hand),
    ("router_health", health_in_lists),
    ("router_health", health_by_mean),
    ("pooled_loss", losses_by_one_hot),
    ("step_time", time_in_lists),
    ("sent_bytes", bytes_in_lists),
    ("lead", lambda e, k, w, b: w / (e / k) / (1 - (1 - k / e) ** b)),
    ("pick", pick_from_list),
]


@pytest.mark.parametrize("name, answer", RIGHT)
def test_right_answers_written_in_another_way(name, answer):
    check = getattr(exercises, name).check(answer)
    assert check.status == "right", check


def test_each_exercise_is_among_them():
    assert {name for name, _ in RIGHT} == set(exercises.MODULES)


# --- what is said of wrong ones ------------------------------------------------------------------------------------


def one_expert_less(self, x):
    logits = x @ self.weight.T
    weights, chosen = logits[:, 1:].softmax(dim=-1).topk(self.top_k, dim=-1)
    return Routing.from_topk(logits, logits.softmax(dim=-1), chosen + 1, weights)


def router(**methods) -> type:
    return type("Router", (MyRouter,), methods)


WRONG = [
    ("token_weights", lambda p, k: [*weights_by_torch(p, k), 0.0], r"of shape \(3,\), not of shape \(4,\)"),
    ("causal_attention", lambda q, k: attention_by_rows(q, k) * 1.1, "most for query 0 and key 0: 1 is right"),
    ("masked_weights", lambda z, k: divided_by_the_sum(z, k) + 0.1, "for token 0 and expert .* off by 0.1"),
    ("masked_weights", lambda z, k: divided_by_the_sum(z, k).T, r"of shape \(4, 3\), not of shape \(3, 4\)"),
    ("masked_weights", lambda z, k: divided_by_the_sum(z.mul_(2), k), "your function also changed router_logits"),
    ("moe_block", lambda *a: (block_by_matrix(*a), None), "output y must be numbers, not a tuple of 2"),
    ("moe_block", lambda x, *a: block_by_matrix(x, *a) + 0.01 * torch.eye(len(x))[1:2].T, "for token 1 .* off by 0.01"),
    ("moe_block", lambda *a: block_by_matrix(*a) * torch.nan, "24 of 24 numbers differ, most for token 0.* nan"),
    ("moe_block", lambda *a: block_by_matrix(*a[:3], 2), "With x of shape .7, 6.,.* 4 experts, top_k = 1, the output"),
    ("sort_tokens", lambda i, E: sort_by_loops(i.flip(0), E), "tokens: . of 8 numbers differ, most for place .: . is"),
    ("sort_tokens", lambda i, E: (sort_by_loops(i, E)[0], [0] * E), "counts: 3 of 3 numbers differ"),
    ("sort_tokens", lambda i, E: (i, i), r"tokens must be of shape \(8,\), not of shape \(4, 2\)"),
    ("card_design", lambda: (8, 2, 9216), "You have 11.3 B parameters, 3.10 B active"),
    ("card_design", lambda: (16, 2, 8192), "39.4 GB of weights"),
    ("card_design", lambda: (9, 2, 8192), "22.5 GB of weights and 1.6 GB of KV cache: 24.1 of 24 GB"),
    ("card_design", lambda: (8, 9, 100), r"no such model: top_k must be between 1 and num_experts \(8\), got 9"),
    ("card_design", lambda: (8, 2, 8192.5), "no such model: d_ff"),
    ("card_design", lambda: (8, 2), "Return three whole numbers"),
    ("slowdown", lambda loads, n: 7.25, "num_devices = 2, the slowdown is .*, yours is 7.25"),
    ("mended_router", router_with(lambda z, best: best.log().exp() * torch.nan), "the weights: .* yours is nan"),
    ("mended_router", router(forward=one_expert_less), "the experts, best first: . of 8 numbers differ, most for row"),
    ("mended_router", router(forward=lambda s, x: (x, x)), "must return a Routing, not a tuple"),
    ("mended_router", router_with(lambda z, best: best[:, :1]), r"cannot be read.* must be \(T, K\)"),
    ("mended_router", lambda *_: 0, "top_k = 2: AttributeError"),
    ("mended_router", router(weights=0, forward=lambda self, x: NewRouter.forward(self, x)), "TypeError: 'int' object"),
    ("balancing_loss", lambda p, i: loss_by_loops(p, i).item(), "no gradient reaches the router"),
    ("balancing_loss", lambda p, i: loss_by_loops(p.detach(), i) + 0 * p.sum(), "its gradient by router_probs is not"),
    ("causality", lambda f, x: True, "'top-k' does not see the future, and your function says otherwise"),
    ("causality", lambda f, x: False, "'Soft MoE' sees the future.*Change late tokens"),
    ("causality", lambda f, x: f(x) > 0, "Return True or False, not a Tensor"),
    ("causality", lambda f, x: 1, "Return True or False, not an int"),
    ("dense_width", lambda w, q, x: 1.01 * width_by_numpy(w, q, x), r"widths = \[.*qualities = .* width is .*, yours"),
    ("token_costs", lambda D, F, E, K: 6 * E * D * F, r"return 3 values \(bytes kept, bytes read, FLOPs\)"),
]

UNNAMED = [  # wrong in a way that is none of the known mistakes
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
    ("cache_step", lambda q, k, v, K, V: my_cache_step(q, k, v, K, 0 * V), "y: 12 of 12 numbers differ"),
    ("cache_step", lambda q, k, v, K, V: my_cache_step(q, k, v, K, V.mul_(1.0).add_(1) - 1), "changed values"),
    ("find_places", lambda i, E, f: (i == i).flatten(), r"must be of shape \(13, 2\), not of shape \(26,\)"),
    ("balancing_loss", lambda p, i: loss_by_loops(p, i) * i.numel(), "the loss is .*, yours is"),
    ("full_batch", lambda f, b, size, E, K: f / b / 2 * E / K, "the batch is .*, yours is"),  # bytes are missing
    ("full_batch", lambda f, b, size, E, K: f / b * size / 2 * E, "the batch is .*, yours is"),  # K is missing
    (
        "router_health",
        lambda *a: (*(own := health_by_mean(*a))[:3], (own[0] > 1) | (own[1] >= 3)),
        "ill: 1 of 4 numbers",
    ),
    (
        "router_health",
        lambda *a: (*(own := health_by_mean(*a))[:3], (own[0] > 0) | (own[1] >= 2)),
        "ill: 1 of 4 numbers",
    ),
    ("pick", lambda models, memory, quality: 0, "the row is 4, yours is 0"),  # the first that will do
    ("pick", lambda *a: None if pick_from_list(*a) < 0 else pick_from_list(*a), "quality = 70, .* returns nothing"),
    ("soft_moe", lambda x, phi, expert: x + 1, r"With x of shape \(5, 4\), phi of shape \(3, 4\), y: 20 of 20"),
    ("exchange", lambda x, *a: (*exchange_by_loops(x, *a)[:3], 5), "sent is 432, yours is 5"),
    ("exchange", lambda x, *a: (*exchange_by_loops(x, *a)[:2], 0 * x, 0), "y: 90 of 90 numbers differ"),
]


@pytest.mark.parametrize("name, answer, said", WRONG)
def test_what_differs_is_said(name, answer, said):
    check = getattr(exercises, name).check(answer)
    assert check.status in ("wrong", "raised") and re.search(said, check.message, re.IGNORECASE), check


@pytest.mark.parametrize("name, answer, said", UNNAMED)
def test_what_differs_is_said_where_the_mistake_has_no_name(name, answer, said):
    check = getattr(exercises, name).check(answer)
    assert check.status == "wrong" and not check.known and re.search(said, check.message, re.IGNORECASE), check


def test_a_cache_of_another_shape_is_said():
    check = exercises.cache_step.check(lambda q, k, v, K, V: (q, torch.cat([K, k[:, None]]), V))
    assert check.status == "raised" and "Sizes of tensors must match" in check.message


@pytest.mark.parametrize("name", causality_cases())
def test_each_layer_can_be_the_one_that_is_judged_wrongly(name):
    """Every layer counts: an answer that is wrong on this one alone is given this layer's advice."""
    cases = causality_cases()
    verdicts = iter([case.truth != (other == name) for other, case in cases.items()])
    check = exercises.causality.check(lambda layer, x: next(verdicts))
    assert check.status == "wrong" and repr(name) in check.message and cases[name].advice in check.message


# --- the oracles are true ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", causality_cases())
@pytest.mark.parametrize("seed", range(2))
def test_the_truth_of_a_layer(name, seed):
    """Found by changing all that follows each place, six times."""
    case = causality_cases()[name]
    layer = case.layer.eval()
    with seeded(seed):
        x = torch.randn(NUM_TOKENS, 8)
        y, seen = layer(x), False
        torch.testing.assert_close(y, causality_cases()[name].layer.eval()(x))  # the same each time
        for t in range(1, NUM_TOKENS):
            for _ in range(6):
                other = torch.cat([x[:t], 2 * torch.randn_like(x[t:])])
                seen |= not same(layer(other)[:t], y[:t])
    assert seen == case.truth


def test_the_loops_equal_the_package():
    moe, x = MoE(4, 8, 5, 2), torch.randn(7, 4)
    experts = [MoE(4, 8, 1, 1, norm_topk_prob=True) for _ in range(5)]
    for e, expert in enumerate(experts):
        expert.experts.load_state_dict({name: w[[e]] for name, w in moe.experts.state_dict().items()})
    y = moe_by_loops(x, moe.router.weight, [lambda row, expert=expert: expert(row)[0] for expert in experts], 2)
    torch.testing.assert_close(y, moe(x)[0])


def test_the_oracles_of_lesson_09_agree_with_the_loops():
    with seeded(7):
        for case in group_cases():
            assert torch.equal(chosen_by_router(*case), grouped_by_hand(*case))
        for case in soft_cases():
            torch.testing.assert_close(by_package(*case), soft_by_hand(*case))


def test_the_bytes_are_those_of_the_package():
    for traffic, d_model, size in bytes_cases():
        assert torch.equal(bytes_by_loops(traffic, d_model, size), bytes_sent(traffic, d_model, size))


def test_the_widths_and_the_qualities_of_the_cases_rise():
    with seeded(0):
        assert all(sorted(widths) == widths and sorted(own) == own for widths, own, _ in width_cases())


def test_weights_and_places_of_the_package_by_hand():
    assert router_weights(torch.tensor([[0.0, math.log(3), -9]]), 2).tolist() == [pytest.approx([0.25, 0.75, 0])]
    first_choice_wins = kept_by_package(torch.tensor([[1, 0], [0, 1], [0, 1]]), 2, 2 / 3)  # two places each
    assert first_choice_wins.tolist() == [[True, False], [True, True], [True, False]]


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
