"""What lesson 02 says under its pictures, measured over several seeds."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from moe_lessons.nn import DISPATCH, MoE, Routing, TopKRouter, torch_threads
from moe_lessons.tasks.plane import PlaneClassifier, PlaneTask, grid
from moe_lessons.training import Run, dead_experts

SEEDS = range(6)


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
    worked = moe.experts.down_proj.grad.abs().sum(dim=(1, 2)).nonzero().flatten()
    assert worked.tolist() == sorted(routing.topk_indices[0].tolist())
    assert len(worked) == 2


@pytest.mark.claim("renormalised-top-1-teaches-nothing")
@pytest.mark.parametrize("seed", SEEDS)
def test_renormalised_top_1_teaches_nothing(seed):
    def gradients(norm_topk_prob):
        _, x = four_tokens(seed)
        moe = MoE(d_model=6, d_ff=8, num_experts=3, top_k=1, norm_topk_prob=norm_topk_prob)
        moe(x)[0].square().sum().backward()
        return moe.router.weight.grad.abs().max(), moe.experts.down_proj.grad.abs().max()

    router, experts = gradients(norm_topk_prob=True)
    assert router < 1e-6 < 1e-3 < experts  # the lesson calls what is below 1e-6 rounding
    router, experts = gradients(norm_topk_prob=False)
    assert router > 1e-4 and experts > 1e-3


@dataclass(frozen=True)
class Trained:
    """What the last section of the lesson looks at."""

    before: Routing  # of the 16 points of the grid
    after: Routing
    accuracy: float  # on 1,000 new points, with their own experts
    swapped_accuracy: float  # with those of another point


@pytest.fixture(scope="module")
def trained() -> list[Trained]:
    with torch_threads(1):  # at these sizes a second thread only waits
        return [train(seed) for seed in SEEDS]


def train(seed: int) -> Trained:
    """As in the lesson, from another seed."""
    torch.manual_seed(seed)
    task, generator = PlaneTask("checker", seed=seed), torch.Generator().manual_seed(seed)
    model = PlaneClassifier(MoE(d_model=16, d_ff=8, num_experts=4, top_k=2), num_classes=8)
    with torch.no_grad():
        before = model(grid(4))[1][0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(400):
        x, classes = task.batch(256, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x)[0], classes).backward()
        optimizer.step()
    x, classes = task.batch(1000, generator)
    with torch.no_grad():
        own, others = (accuracy(model, x, classes, order) for order in (torch.arange(1000), torch.randperm(1000)))
        return Trained(before, model(grid(4))[1][0], own, others)


def accuracy(model: PlaneClassifier, x: torch.Tensor, classes: torch.Tensor, order: torch.Tensor) -> float:
    """The share of right classes when point t is served by the experts of point order[t]."""
    hidden = model.embed(x * model.input_scale)
    own = model.block.router(hidden)
    routing = Routing.from_topk(own.router_logits, own.router_probs, own.topk_indices[order], own.topk_weights[order])
    y = DISPATCH["loop"](model.block.experts, hidden, routing)
    return (model.head(hidden + y).argmax(dim=-1) == classes).float().mean().item()


@pytest.mark.claim("k-dots-on-the-brightest-cells")
def test_k_dots_on_the_brightest_cells(trained):
    for routing in (routing for run in trained for routing in (run.before, run.after)):
        chosen = torch.zeros(16, 4, dtype=torch.bool)
        chosen[routing.token_idx, routing.expert_idx] = True
        assert chosen.sum(dim=1).tolist() == [2] * 16
        dots, others = (routing.router_probs[cells].view(16, 2) for cells in (chosen, ~chosen))
        assert (dots.amin(dim=1) > others.amax(dim=1)).all()


@pytest.mark.claim("training-makes-the-router-sure")
def test_training_makes_the_router_sure(trained):
    def share_of_rows_with_a_bright_cell(routing: Routing) -> float:
        return (routing.router_probs.max(dim=1).values > 0.7).float().mean().item()

    for run in trained:  # measured over 16 seeds: 0 to .25 before, .69 to 1 after
        assert share_of_rows_with_a_bright_cell(run.before) < 0.35
        assert share_of_rows_with_a_bright_cell(run.after) > 0.55


@pytest.mark.claim("different-points-different-experts")
def test_different_points_different_experts(trained):
    for run in trained:  # measured over 16 seeds: all four in 12, three in 4
        assert len(set(run.after.topk_indices[:, 0].tolist())) >= 3


@pytest.mark.claim("experts-cannot-be-swapped")
def test_experts_cannot_be_swapped(trained):
    for run in trained:  # measured over 16 seeds: .87 to .93 with their own experts, .25 to .37 with others
        assert run.accuracy > 0.8
        assert run.swapped_accuracy < 0.5 * run.accuracy


@pytest.mark.claim("some-of-eight-experts-die")
@pytest.mark.parametrize("seed", SEEDS)
def test_some_of_eight_experts_die(seed):
    """Measured over 16 seeds: one to three of eight, elsewhere four; the dead ones get no gradient at all."""
    torch.manual_seed(seed)
    task = PlaneTask("checker", seed=seed)
    run = Run(PlaneClassifier(MoE(d_model=16, d_ff=8, num_experts=8, top_k=2), num_classes=8), task, lr=0.02, seed=seed)
    for _ in range(300):
        run.step()
    x, _ = task.batch(1000, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        routing = run.model(x)[1][0]
    assert 1 <= dead_experts(routing) <= 5
    gradients = run.model.block.experts.down_proj.grad.flatten(1).norm(dim=1)  # (E,) of the last step
    without = [e for e in range(8) if routing.demand_per_expert[e] == 0]
    assert without and gradients[without].max() == 0
