"""What lesson 02 says under its pictures, measured over several seeds."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from everywhere import seeds
from torch import nn
from torch.nn import functional as F

from moe_lessons.exercises import masked_weights, moe_block
from moe_lessons.nn import FeedForward, MoE, Routing, TopKRouter
from moe_lessons.tasks import PlaneClassifier
from moe_lessons.training import PlaneSetting, SeedBand, plane_model, train
from moe_lessons.training.run import Run

LESSON = Path(__file__).resolve().parents[2] / "notebooks" / "02_the_moe_block.ipynb"
SEEDS = seeds(6)
SETTING = PlaneSetting(num_experts=4, top_k=2, d_ff=8, router_aux_loss_coef=0.0)


def four_tokens(seed: int) -> tuple[MoE, torch.Tensor]:
    """The block and the tokens of the lesson, where the seed is 0."""
    torch.manual_seed(seed)
    x, moe = torch.randn(4, 6), MoE(d_model=6, d_ff=8, num_experts=3, top_k=2)
    for weight in moe.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return moe, x


@pytest.mark.claim("token-0-on-paper")
@torch.no_grad()
def test_token_0_on_paper():
    """The table in the lesson: one seed, since it is one token's numbers. In float64, each step from the one before."""
    moe, x = four_tokens(0)
    y, routing = moe(x)
    scores = x[0].double() @ moe.router.weight.double().T
    assert scores.tolist() == pytest.approx([-1.43, 0.79, 0.02], abs=0.005)
    powers = scores[1:].exp()
    assert powers.tolist() == pytest.approx([2.21, 1.02], abs=0.005) and powers.sum() == pytest.approx(3.23, abs=0.005)
    weights = powers / powers.sum()
    assert weights.tolist() == pytest.approx([0.68, 0.32], abs=0.005)
    outputs = []
    for e in (1, 2):
        gate, up = (moe.experts.gate_up_proj[e].double() @ x[0].double()).chunk(2)
        outputs.append(moe.experts.down_proj[e].double() @ (F.silu(gate) * up))
    assert [out[0].item() for out in outputs] == pytest.approx([-1.36, 0.03], abs=0.005)
    by_hand = weights[0] * outputs[0] + weights[1] * outputs[1]
    assert by_hand[0] == pytest.approx(-0.92, abs=0.005)
    torch.testing.assert_close(y[0].double(), by_hand, atol=1e-5, rtol=0)
    assert routing.topk_indices[0].tolist() == [1, 2]
    assert 0.68 * -1.36 + 0.32 * 0.03 == pytest.approx(-0.92, abs=0.005)  # with the rounded numbers, as on paper


@pytest.mark.claim("mask-or-divide")
@pytest.mark.parametrize("num_experts, top_k", [(3, 2), (8, 1), (8, 2), (64, 8)])
@pytest.mark.parametrize("seed", SEEDS)
def test_mask_or_divide(seed, num_experts, top_k):
    torch.manual_seed(seed)
    logits = 3 * torch.randn(50, num_experts)
    kept, chosen = logits.topk(top_k)
    masked = torch.full_like(logits, -torch.inf).scatter(1, chosen, kept).softmax(dim=-1)
    routing = TopKRouter(4, num_experts, top_k, norm_topk_prob=True).choose(logits)
    torch.testing.assert_close(masked.gather(1, chosen), routing.topk_weights, atol=1e-6, rtol=0)
    assert torch.equal(chosen, routing.topk_indices) and (masked != 0).sum() == 50 * top_k


@pytest.mark.claim("only-the-chosen-experts-work")
@pytest.mark.parametrize("num_experts", [3, 64])
@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_chosen_experts_work(seed, num_experts):
    _, x = four_tokens(seed)
    moe = MoE(d_model=6, d_ff=8, num_experts=num_experts, top_k=2)  # the router as torch starts it
    y, routing = moe(x)
    y[0].sum().backward()
    chosen = sorted(routing.topk_indices[0].tolist())
    for gradient in (moe.experts.down_proj.grad.flatten(1), moe.router.weight.grad):
        has_one = gradient.abs().sum(dim=1) > 1e-6  # below it is rounding
        assert has_one.nonzero().flatten().tolist() == chosen and len(chosen) == 2
    one, other = moe.router.weight.grad[chosen]  # the weights sum to 1: one gains what the other loses
    torch.testing.assert_close(one, -other, atol=1e-6, rtol=1e-3)


@cache
def block_of_the_lesson() -> type:
    """The class of the lesson, with the functions that it asks for."""
    (source,) = [cell.source for cell in nbformat.read(LESSON, 4).cells if cell.source.startswith("class MyMoE")]
    names = {"nn": nn, "FeedForward": FeedForward, "Routing": Routing}
    names |= {"weights_of": masked_weights.answer, "run_experts": moe_block.answer}
    exec(source, names)
    return names["MyMoE"]


@pytest.mark.claim("renormalised-top-1-teaches-nothing")
@pytest.mark.parametrize("seed", SEEDS)
def test_renormalised_top_1_teaches_nothing(seed):
    def gradients(block):
        block(four_tokens(seed)[1])[0].square().sum().backward()
        experts = (p.grad.abs().max() for p in block.experts.parameters() if p.grad is not None)
        return block.router.weight.grad.abs().max(), max(experts)

    sizes = {"d_model": 6, "d_ff": 8, "num_experts": 3}
    for renormalised in (block_of_the_lesson()(**sizes, top_k=1), MoE(**sizes, top_k=1, norm_topk_prob=True)):
        router, experts = gradients(renormalised)
        assert router < 1e-6 < 1e-3 < experts  # the lesson calls what is below 1e-6 rounding
    for learning in (block_of_the_lesson()(**sizes, top_k=2), MoE(**sizes, top_k=1)):
        router, experts = gradients(learning)
        assert router > 1e-4 and experts > 1e-3
    probability = MoE(**sizes, top_k=1)
    probability(four_tokens(seed)[1])[0][0].square().sum().backward()  # of one token
    assert (probability.router.weight.grad.abs().amax(dim=1) > 1e-6).all()  # each row, through the sum in the softmax


@pytest.mark.claim("choices-move-under-a-fixed-router")
@pytest.mark.parametrize("top_k, is_frozen", [(1, False), (2, True)])
@pytest.mark.parametrize("seed", SEEDS)
def test_choices_move_under_a_fixed_router(seed, top_k, is_frozen):
    """With K = 1 and with the frozen router: the first choices of 1,000 points before training, and after 300 steps."""
    model, task = plane_model(replace(SETTING, top_k=top_k), seed, block_of_the_lesson())
    router = model.block.router.requires_grad_(not is_frozen)
    run, start = Run(model, task, lr=SETTING.lr, seed=seed), router.weight.detach().clone()
    x, _ = task.batch(1000, torch.Generator().manual_seed(seed))

    def first_choices() -> torch.Tensor:
        return router(model.embed(x * model.input_scale)).argmax(dim=1)

    before = first_choices()
    for _ in range(300):
        run.step()
    assert torch.equal(router.weight, start)
    assert (before != first_choices()).float().mean() > 0.01  # measured, of 24 seeds: .05 to .69


@cache
def trained(seed: int) -> list[tuple[float, ...]]:
    """Measure the lesson's block after 300, 600 and 1,200 steps: the accuracy on 1,000 new points, and with another
    point's experts."""
    model, task = plane_model(SETTING, seed, block_of_the_lesson())
    run, found = Run(model, task, lr=SETTING.lr, seed=seed), []
    x, classes = task.batch(1000, torch.Generator().manual_seed(seed))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))
    for steps in (300, 300, 600):
        for _ in range(steps):
            run.step()
        with torch.no_grad():
            hidden = model.embed(x * model.input_scale)
            weights = masked_weights.answer(model.block.router(hidden), 2)
            ways = weights, weights[order]
            outs = [model.head(hidden + moe_block.answer(hidden, used, model.block.experts)) for used in ways]
        found.append(tuple((out.argmax(dim=1) == classes).float().mean().item() for out in outs))
    return found


@pytest.mark.claim("different-points-different-experts")
def test_different_points_different_experts():
    band = SeedBand(SETTING, seeds(24))
    for steps in (300, 600):
        train(band, steps - len(band.records))
        smallest = band.clean_loads().min(axis=1)  # (seeds,), which can be .25
        assert (smallest > 0.15).mean() > 0.66  # measured, of three times 24 seeds: .79 to .96


@pytest.mark.claim("experts-cannot-be-swapped")
@pytest.mark.parametrize("seed", SEEDS)
def test_experts_cannot_be_swapped(seed):
    for own, others in trained(seed):  # measured: .87 to .95 with their own experts, .28 to .41 with others
        assert own > 0.75 and others < 0.6 * own


@cache
def controlled(router: str) -> dict[int, tuple[np.ndarray, ...]]:
    """Measure `ways` of twelve seeds after 300 and 1,200 steps."""
    band, found = SeedBand(replace(SETTING, router=router), seeds(12)), {}
    for steps in (300, 1200):
        train(band, steps - len(band.records))
        found[steps] = ways(band)
    return found


@torch.no_grad()
def ways(band: SeedBand) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure the accuracy of each seed (S,) on 1,000 new points: with a point's own experts, and with another's."""
    model, (x, y), num = band.model.eval(), band.held_out(1000), band.setting.num_experts
    hidden, experts = model.embed(x * PlaneClassifier.input_scale), model.block.experts  # (S, T, D)
    up, down = (weight.unflatten(0, (-1, num)) for weight in (experts.gate_up_proj, experts.down_proj))
    gate, up = torch.einsum("std,sefd->stef", hidden, up).chunk(2, dim=-1)
    outs = torch.einsum("stef,sedf->sted", F.silu(gate) * up, down)
    logits = [router.router_logits(own) for router, own in zip(model.block.router.routers, hidden, strict=True)]
    weights = torch.stack([masked_weights.answer(own, 2) for own in logits])  # (S, T, E)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))

    def right(used: torch.Tensor) -> np.ndarray:
        logits = model.head(hidden + (used[..., None] * outs).sum(dim=2))
        return (logits.argmax(dim=-1) == y).float().mean(dim=1).numpy()

    return right(weights), right(weights[:, order])


@pytest.mark.claim("a-frozen-router-is-about-as-accurate")
@pytest.mark.parametrize("steps", [300, 1200])
def test_a_frozen_router_is_about_as_accurate(steps):
    (learned, swapped), (frozen, others) = controlled("top-k")[steps], controlled("frozen")[steps]
    assert 0.25 < swapped.mean() < 0.36
    assert (frozen - learned).mean() > -0.03 and frozen.mean() > 0.85
    assert others.mean() < 0.5 * frozen.mean()


@pytest.mark.claim("with-top-1-a-learned-router-pays")
def test_with_top_1_a_learned_router_pays():
    setting, accuracy = replace(SETTING, num_experts=8, top_k=1, d_ff=4), {}
    for router in ("top-k", "frozen"):
        band = SeedBand(replace(setting, router=router), seeds(24))
        for steps in (300, 600):
            train(band, steps - len(band.records))
            accuracy[router, steps] = band.evaluate()["accuracies"]  # (seeds,)
    for steps, least, least_wins in ((300, 0.02, 0.65), (600, 0.01, 0.5)):
        gain = accuracy["top-k", steps] - accuracy["frozen", steps]
        assert least < gain.mean() < 0.09  # measured, of four times 24 seeds: .034 to .058, then .025 to .050
        assert least_wins < (gain > 0).mean() < 1  # measured: .83 to .88, then .67 to .96
