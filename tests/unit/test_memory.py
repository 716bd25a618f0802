"""Peak memory against cases that can be counted by hand."""

import pytest
import torch
from torch.nn import functional as F

from moe_lessons.analysis.memory import peak_extra_bytes
from moe_lessons.nn import DISPATCH, FeedForward, MoE

KB = 1024  # bytes of 256 float32; the blocks of the CUDA allocator divide it


def new(device):
    return torch.zeros(256, device=device)


def test_what_is_alive_at_one_time_counts(device):
    assert peak_extra_bytes(lambda: new(device), device) == KB
    assert peak_extra_bytes(lambda: new(device) + 1, device) == 2 * KB  # the operand lives until the sum is there
    assert peak_extra_bytes(lambda: [new(device) for _ in range(5)], device) == 5 * KB


def test_what_is_freed_makes_room(device):
    def one_after_the_other():
        for _ in range(5):
            new(device)
        return new(device)

    assert peak_extra_bytes(one_after_the_other, device) == KB

    def chain():
        x = new(device)
        for _ in range(5):
            x = x + 1  # the old x is freed once the new one is there
        return x

    assert peak_extra_bytes(chain, device) == 2 * KB


def test_the_peak_stays_when_the_memory_is_given_back(device):
    def up_and_down():
        for many in (1, 7, 2):
            [new(device) for _ in range(many)]

    assert peak_extra_bytes(up_and_down, device) == 7 * KB


def test_what_was_there_before_views_and_changes_in_place_are_free(device):
    x = torch.zeros(256, device=device)
    assert peak_extra_bytes(lambda: x, device) == 0
    assert peak_extra_bytes(lambda: x.view(16, 16).t()[3:], device) == 0
    assert peak_extra_bytes(lambda: x.add_(1), device) == 0
    assert peak_extra_bytes(lambda: x.view(16, 16).t().reshape(-1), device) == KB  # this one copies


def test_a_view_keeps_the_whole_storage(device):
    def keep_little():
        part = torch.zeros(4 * 256, device=device)[:1]
        return part, new(device)

    assert peak_extra_bytes(keep_little, device) == 5 * KB


def test_what_a_backward_pass_needs_is_kept(device):
    x = torch.zeros(256, device=device, requires_grad=True)

    def three():
        return x.exp().sin().cos()  # exp keeps its result; sin and cos keep what they were given

    assert peak_extra_bytes(three, device) == 3 * KB
    with torch.no_grad():
        assert peak_extra_bytes(three, device) == 2 * KB


def test_a_forward_pass_of_the_dense_ffn():
    rows, d_model, d_ff = 32, 8, 16
    ffn, x = FeedForward(d_model, d_ff), torch.randn(rows, d_model)
    by_hand = rows * 4 * (2 * d_ff + d_ff + d_ff)  # gate and up, silu(gate), and their product
    with torch.no_grad():
        assert peak_extra_bytes(lambda: ffn(x)) == by_hand
    assert peak_extra_bytes(lambda: ffn(x)) == by_hand + rows * 4 * d_model  # all of it saved when y comes


@pytest.mark.parametrize("way", DISPATCH)
def test_every_dispatch_can_be_weighed_and_takes_more_with_a_gradient(way):
    moe = MoE(8, 16, 4, 2, dispatch=way)
    x = torch.randn(32, 8, requires_grad=True)
    with_gradient = peak_extra_bytes(lambda: moe(x))
    with torch.no_grad():
        assert 0 < peak_extra_bytes(lambda: moe(x)) <= with_gradient


def test_two_measurements_do_not_disturb_each_other():
    x = torch.randn(64, 64)
    first = peak_extra_bytes(lambda: F.linear(x, x).relu())
    assert first == peak_extra_bytes(lambda: F.linear(x, x).relu()) == 2 * 64 * 64 * 4


def test_an_error_in_the_function_comes_through():
    with pytest.raises(ZeroDivisionError):
        peak_extra_bytes(lambda: 1 / 0)
    assert peak_extra_bytes(lambda: torch.zeros(256)) == KB


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="^device must be one of 'cpu'.*got 'abacus'$"):
        peak_extra_bytes(lambda: None, "abacus")
