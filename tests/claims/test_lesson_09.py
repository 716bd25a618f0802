"""What lesson 09 says under 'What to notice'."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from everywhere import seeds
from torch import Tensor
from torch.nn.functional import cross_entropy

from moe_lessons.analysis.counting import count_parameters, flops_per_token
from moe_lessons.analysis.inference import decoded
from moe_lessons.analysis.load import balance_by_layer
from moe_lessons.exercises.lesson_09 import OutputOnly, causality_cases, my_leaks_future
from moe_lessons.nn import DISPATCH, LanguageModel, MoE, Routing, TransformerConfig, evaluating, seeded
from moe_lessons.nn.balancing import expert_capacity, rank_within
from moe_lessons.tasks import TextTask
from moe_lessons.training import BALANCING_METHODS, Run, balancing_setting, plane_model, train


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


def in_order_of_tokens(moe: MoE, x: Tensor, places: int = 3) -> Tensor:
    """Give each expert so many places, however long the sequence: all choices of a token before any of the next."""
    routing = moe.router(x)
    order = routing.token_idx.argsort(stable=True)
    kept = order[rank_within(routing.expert_idx[order]) < places]
    parts = {name: getattr(routing, name)[kept] for name in ("token_idx", "expert_idx", "weight")}
    return DISPATCH["loop"](moe.experts, x, replace(routing, **parts))


@torch.no_grad()
@pytest.mark.claim("in-order-of-tokens-a-fixed-capacity-is-causal")
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_in_order_of_tokens_a_fixed_capacity_is_causal(top_k):
    for seed in seeds(50):
        with seeded(seed):
            moe, x = MoE(8, 16, 4, top_k), torch.randn(13, 8)
        layer = OutputOnly(moe, in_order_of_tokens)
        assert not torch.allclose(layer(x), moe(x)[0], atol=1e-5)  # some were dropped
        assert not my_leaks_future(layer, x)
        first, second = layer(torch.cat([x.flip(0), x])).split(13)  # two texts of a batch, one after the other
        assert torch.allclose(first, layer(x.flip(0)), atol=1e-5) and not torch.allclose(second, layer(x), atol=1e-5)


TEXT = TextTask("english")


@cache
def on_sentences(seed: int, steps: int = 200, knobs: tuple = (), **options) -> LanguageModel:
    """Train one of the lesson's models."""
    with seeded(seed):
        model = LanguageModel(TransformerConfig(num_layers=2, d_ff=32, num_experts=8, top_k=2, **options))
    run = Run(model, TEXT, lr=0.005, batch_size=16, seed=seed, warmup_steps=20)
    for knob, value in knobs:
        setattr(run.knobs, knob, value)
    train(run, steps)
    return model


@torch.no_grad()
def read_at_once(model: LanguageModel) -> tuple[float, list[Routing]]:
    x, y, _ = TEXT.held_out(16)
    with evaluating(model):
        logits, routings = model(x)
    return cross_entropy(logits.flatten(0, 1), y.flatten()).item(), routings


def decoded_by_the_cache(model: LanguageModel) -> np.ndarray:
    """Give the loss and the experts of a token: (2, 2), the 16 texts together, and each alone."""
    x, y, _ = TEXT.held_out(16)
    alone = np.mean([decoded(model, *one) for one in zip(x[:, None], y[:, None])], axis=0)
    return np.array([decoded(model, x, y), alone])


def busiest_in_a_step(routing: Routing) -> float:
    """Give the mean of max over mean where each step decodes a token of each of the 16 texts."""
    steps = routing.topk_indices.view(16, -1, 2).transpose(0, 1)  # (64, 16, 2)
    return np.mean([np.bincount(step.flatten(), minlength=8).max() / 4 for step in steps])


AUXILIARY = (("router_aux_loss_coef", 0.01),)


@pytest.mark.claim("expert-choice-decodes-with-all-experts")
def test_expert_choice_decodes_with_all_experts():
    more = []
    for seed in seeds(3):
        model = on_sentences(seed, router="expert choice")
        (together, alone), (some, every) = decoded_by_the_cache(model).T
        assert (some, every) == (2, 8)
        more.append([together, alone] - np.array(read_at_once(model)[0]))
    assert np.min(np.mean(more, axis=0)) > 0.01, more
    for options in ({}, {"router": "sigmoid"}):  # a causal one, whatever it has learned
        model = on_sentences(seeds(1)[0], 5, **options)
        losses, experts = decoded_by_the_cache(model).T
        np.testing.assert_allclose(losses, read_at_once(model)[0], rtol=1e-4)
        assert (experts == 2).all()


@pytest.mark.claim("the-busiest-device-and-the-drops")
def test_the_busiest_device_and_the_drops():
    """With each expert on its own device, a layer takes max over mean times as long as with an even load."""
    waits, in_steps = {}, {}
    for name, options, knobs in (
        ("no balancing", {}, ()),
        ("auxiliary loss", {}, AUXILIARY),
        ("sigmoid alone", {"router": "sigmoid"}, ()),
        ("bias update", {"router": "sigmoid"}, (("expert_bias_rate", 0.01),)),
    ):
        read = [read_at_once(on_sentences(seed, knobs=knobs, **options))[1] for seed in seeds(3)]
        waits[name] = np.mean([balance_by_layer(routings).max_over_mean.mean() for routings in read])
        in_steps[name] = np.mean([busiest_in_a_step(routing) for routings in read for routing in routings])
    assert waits["sigmoid alone"] > 0.85 * waits["no balancing"]
    for name in ("auxiliary loss", "bias update"):
        left, in_a_step = ((wait[name] - 1) / (wait["no balancing"] - 1) for wait in (waits, in_steps))
        assert left < 0.5 and left < in_a_step - 0.04 < 1, (waits, in_steps)
    at_once, together = [], []  # the shares that are dropped
    for model in [on_sentences(seed, knobs=AUXILIARY, capacity_factor=1.25) for seed in seeds(3)]:
        for routing in read_at_once(model)[1]:
            assert 8 * expert_capacity(1.25, 2, 1024, 8) == 1.25 * 2 * 1024  # rows of the buffers, full or not
            assert routing.tokens_per_expert.max() <= 1.25 * 2 * 1024 / 8
            at_once.append(routing.dropped / (2 * 1024))
        (_, experts), (_, alone) = decoded_by_the_cache(model)
        together.append(1 - experts / 2)
        assert alone == 2  # one token alone loses no expert
    assert 0.01 < np.mean(at_once) < 0.1 and np.mean(together) > 1.5 * np.mean(at_once), (at_once, together)


@pytest.mark.claim("most-methods-cost-no-compute")
def test_most_methods_cost_no_compute():
    torch.manual_seed(0)
    blocks = {name: plane_model(balancing_setting(name))[0].block for name in BALANCING_METHODS}
    flops = {name: flops_per_token(block) for name, block in blocks.items()}
    more = {name: count_parameters(block).total for name, block in blocks.items()}
    assert {name for name in BALANCING_METHODS if flops[name] > flops["no balancing"]} == {"top-2", "learned noise"}
    second = blocks["no balancing"].router.weight.numel()  # router
    assert more["learned noise"] - more["no balancing"] == second
    blocks["capacity"].capacity_factor = BALANCING_METHODS["capacity"]["capacity_factor"]
    sees = {name for name, block in blocks.items() if my_leaks_future(OutputOnly(block), torch.randn(32, 16))}
    assert sees == {"capacity", "expert choice"}
