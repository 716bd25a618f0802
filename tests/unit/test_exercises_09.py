"""Lesson 09: right answers that are written in another way, and the oracles against a loop."""

import torch

from moe_lessons.exercises import finer_experts, grouped_choice, soft_moe
from moe_lessons.exercises.check_modern import by_package, chosen_by_router, group_cases, soft_cases


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


def test_other_right_answers_pass():
    for exercise, answer in (
        (finer_experts, finer_by_hand),
        (grouped_choice, grouped_by_hand),
        (soft_moe, soft_by_hand),
    ):
        assert exercise.check(answer).status == "right", exercise.check(answer)


def test_the_oracles_agree_with_the_loops():
    torch.manual_seed(7)
    for case in group_cases():
        assert torch.equal(chosen_by_router(*case), grouped_by_hand(*case))
    for case in soft_cases():
        torch.testing.assert_close(by_package(*case), soft_by_hand(*case))
