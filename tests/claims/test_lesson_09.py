"""What lesson 09 says under 'What to notice'."""

import numpy as np
import pytest
import torch
from everywhere import seeds
from test_lesson_08 import max_over_mean, trained, trained_by

from moe_lessons.analysis.counting import count_parameters, flops_per_token
from moe_lessons.exercises.lesson_09 import OutputOnly, causality_cases, my_leaks_future
from moe_lessons.nn import MoE
from moe_lessons.training import BALANCING_METHODS, balancing_setting, plane_model


@pytest.mark.claim("who-sees-the-future")
@pytest.mark.parametrize("seed", seeds(5))
def test_who_sees_the_future(seed):
    torch.manual_seed(seed)
    x = torch.randn(13, 8)
    for name, case in causality_cases().items():
        assert my_leaks_future(case.layer, x) == case.truth, name


@torch.no_grad()
@pytest.mark.claim("capacity-and-the-future")
@pytest.mark.parametrize("seed", seeds(5))
def test_capacity_and_the_future(seed):
    torch.manual_seed(seed)
    moe = MoE(d_model=8, d_ff=16, num_experts=4, top_k=1, capacity_factor=1.0)
    x = torch.randn(13, 8)
    y = moe(x)[0]

    def same(a, b):
        return torch.allclose(a, b, atol=1e-5)

    for t in range(1, 13):
        for _ in range(5):
            assert same(moe(torch.cat([x[:t], torch.randn(13 - t, 8)]))[0][:t], y[:t])  # another future
    assert not all(same(moe(x[:t])[0], y[:t]) for t in range(1, 13))  # none
    beside = [moe(torch.stack([torch.randn(13, 8), x]))[0][1] for _ in range(5)]
    assert not all(same(other, beside[0]) for other in beside)
    fixed = causality_cases()["top-1, a fixed capacity in order"].layer
    assert not my_leaks_future(fixed, x)
    assert not same(torch.cat([fixed(one) for one in x.split(1)]), fixed(x))  # token by token, each finds a place


@pytest.mark.claim("the-busiest-device-and-the-drops")
def test_the_busiest_device_and_the_drops():
    """With each expert on its own device, a layer takes max over mean times as long as with an even load."""
    pace = {name: max_over_mean(trained_by(name)).mean() for name in ("nothing", "auxiliary loss", "bias update")}
    assert pace["auxiliary loss"] < 1.6 and pace["bias update"] < 1.9 and pace["nothing"] > 2
    loads, limit = trained_by("capacity").clean_loads() * 8, BALANCING_METHODS["capacity"]["capacity_factor"]
    assert loads.max(axis=1).mean() > limit  # so that the buffers end it
    assert (np.maximum(loads - limit, 0).sum(axis=1) / 8).mean() > 0.2  # dropped
    beside = trained(balancing_setting("capacity", "auxiliary loss"), steps=200)  # the mean of the seeds is below .01
    assert beside.evaluate(1024)["dropped"].mean() < 0.04


@pytest.mark.claim("most-methods-cost-no-compute")
def test_most_methods_cost_no_compute():
    torch.manual_seed(0)
    blocks = {name: plane_model(balancing_setting(name))[0].block for name in BALANCING_METHODS}
    flops = {name: flops_per_token(block) for name, block in blocks.items()}
    more = {name: count_parameters(block).total for name, block in blocks.items()}
    assert {name for name in BALANCING_METHODS if flops[name] > flops["nothing"]} == {"top-2", "learned noise"}
    assert more["learned noise"] - more["nothing"] == blocks["nothing"].router.weight.numel()  # a second router
    blocks["capacity"].capacity_factor = BALANCING_METHODS["capacity"]["capacity_factor"]
    sees = {name for name, block in blocks.items() if my_leaks_future(OutputOnly(block), torch.randn(32, 16))}
    assert sees == {"capacity", "expert choice"}
