"""The exercises of lessons 06 and 06b: nothing, what is often wrong, and right answers written in another way."""

import math

import pytest
import torch

from moe_lessons.exercises.check_balancing import (
    BIAS_MISTAKES,
    KEPT_MISTAKES,
    LOSS_MISTAKES,
    check_bias,
    check_kept,
    check_loss,
)
from moe_lessons.exercises.check_bill import BILL_MISTAKES, check_bill

CHECKS = (check_loss, check_bias, check_kept)


def loss_by_loops(probs, idx):
    num_tokens, num_experts = probs.shape
    total = 0
    for expert in range(num_experts):
        f = sum(expert in row for row in idx.tolist()) / idx.numel()
        total = total + f * sum(probs[token, expert] for token in range(num_tokens)) / num_tokens
    return num_experts * total


def bias_by_loops(bias, idx, rate):
    counts = [idx.flatten().tolist().count(expert) for expert in range(len(bias))]
    mean = sum(counts) / len(counts)
    return torch.stack([b + rate * ((c < mean) - (c > mean)) for b, c in zip(bias, counts)])


def kept_by_lists(idx, num_experts, factor):
    room = [math.ceil(factor * idx.numel() / num_experts)] * num_experts
    columns = []
    for choice in idx.T.tolist():
        columns.append([])
        for expert in choice:
            columns[-1].append(room[expert] > 0)
            room[expert] -= 1
    return torch.tensor(columns).T


@pytest.mark.parametrize("check, answer", list(zip(CHECKS, (loss_by_loops, bias_by_loops, kept_by_lists))))
def test_a_right_answer_in_loops_is_right(check, answer):
    assert check(answer).status == "right", check(answer)


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_not_written_or_stops_is_said(check):
    assert check(lambda *_: None).status == check(lambda *_: ...).status == "not attempted"
    assert check(lambda *_: 1 / 0).status == "raised"
    assert check(lambda *_: "words").status == "wrong"
    assert "shape" in check(lambda *_: torch.zeros(99)).message
    assert check(lambda *arguments: torch.rand(())).status == "wrong"


MISTAKES = {check_loss: LOSS_MISTAKES, check_bias: BIAS_MISTAKES, check_kept: KEPT_MISTAKES}


@pytest.mark.parametrize("check, mistake", [(check, mistake) for check, own in MISTAKES.items() for mistake in own])
def test_each_frequent_mistake_is_called_by_its_name(check, mistake):
    answer = check(mistake)
    assert answer.status == "wrong" and MISTAKES[check][mistake] in answer.message, answer


def test_a_loss_without_its_gradient_is_not_enough():
    assert "gradient" in check_loss(lambda probs, idx: loss_by_loops(probs.detach(), idx)).message
    assert "gradient" in check_loss(lambda probs, idx: loss_by_loops(probs, idx).item()).message


def test_a_bias_may_be_changed_in_place():
    def in_place(bias, idx, rate):
        bias += bias_by_loops(bias, idx, rate) - bias
        return bias

    assert check_bias(in_place).status == "right"


def bill_by_lists(load, factor):
    load = load.tolist()
    even = sum(load) / len(load)
    places = float("inf") if factor is None else factor * even
    served = [min(tokens, places) for tokens in load]
    return max(served) / even, (sum(load) - sum(served)) / sum(load)


def test_the_bill_is_checked():
    assert check_bill(bill_by_lists).status == "right"
    assert check_bill(lambda *_: None).status == "not attempted" and check_bill(lambda *_: 1 / 0).status == "raised"
    for wrong in (lambda *_: 1.0, lambda *_: ("a", "b"), lambda *_: (1.0, 0.5)):
        assert check_bill(wrong).status == "wrong"
    for mistake, advice in BILL_MISTAKES.items():
        assert advice in check_bill(mistake).message
