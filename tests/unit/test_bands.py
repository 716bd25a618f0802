"""Bands: one batched model learns the same numbers as one run for each seed, and is a run itself."""

import math

import numpy as np
import pytest
import torch

from moe_lessons.bands import IslandRouter, SeedBand, side_by_side
from moe_lessons.nn import (
    ExpertChoiceRouter,
    MoE,
    NoisyTopKRouter,
    Routing,
    SigmoidRouter,
    TopKRouter,
    apply_capacity,
    load_balancing_loss,
    router_z_loss,
    update_expert_bias,
)
from moe_lessons.tasks import REMEDIES, PlaneSetting, remedy_setting
from moe_lessons.training import Record, Run, TrainingDiverged, plane_runs

SEEDS = (4, 0, 7)
STEPS = 50
NOISY = ("Gaussian noise", "learned noise", "jitter")
EXACT = {
    **{name: remedy_setting(name) for name in REMEDIES if name not in NOISY},
    "healthy": PlaneSetting(),
    "three of five": PlaneSetting("uneven", num_experts=5, top_k=3, d_ff=6, router_start="random"),
    "one expert": remedy_setting("nothing", num_experts=1),
    "tight": remedy_setting("top-2", "capacity", capacity_factor=0.5, capacity_priority="weight"),
    "bias and capacity": remedy_setting("bias update", "capacity", "auxiliary loss", "z-loss", task="blobs"),
}


def separate(setting: PlaneSetting, seeds=SEEDS) -> list[Run]:
    return [plane_runs(setting, seed)["MoE"] for seed in seeds]


def shown(run: Run, steps: int) -> list[Record]:
    return [run.step() for _ in range(steps)]


def in_double(run: Run) -> Run:
    """The same run in float64, where no tie of two scores is decided by rounding."""
    run.model.double()
    single = run._batch

    def batch(*arguments):
        x, y = single(*arguments)
        return x.double(), y

    run._batch = batch
    return run


def close(got, expected, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(got, dtype=float), np.asarray(expected, dtype=float), rtol=0, atol=tolerance)


# --- the same numbers as separate runs -------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_a_band_shows_the_same_numbers_as_a_run_for_each_seed(name):
    band, *runs = map(in_double, (SeedBand(EXACT[name], SEEDS), *separate(EXACT[name])))
    for step in range(1, STEPS + 1):
        seen, each = band.step(), [run.step() for run in runs]
        assert seen.step == step
        close(seen.losses, [record.loss for record in each])
        close(seen.accuracies, [record.accuracy for record in each])
        close(seen.loads, [record.load[0] for record in each])
        close(seen.dead, [record.dead_experts for record in each])
        close(seen.dropped, [record.dropped_share for record in each])
        close(seen.load_balancing_loss, np.mean([record.load_balancing_loss for record in each]))
        close(seen.router_z_loss, np.mean([record.router_z_loss for record in each]))
    evaluated, alone = band.evaluate(500), [run.evaluate(500) for run in runs]
    close(evaluated["losses"], [numbers["loss"] for numbers in alone])
    close(evaluated["accuracies"], [numbers["accuracy"] for numbers in alone])


def test_the_tolerance_would_notice_another_seed():
    one, other = SeedBand(EXACT["nothing"], [0]), SeedBand(EXACT["nothing"], [1])
    assert abs(one.step().losses - other.step().losses) > 0.01


@pytest.mark.parametrize("name", NOISY)
def test_with_noise_the_numbers_are_others_but_as_likely(name):
    seeds = range(12)
    band, runs = SeedBand(remedy_setting(name), seeds), separate(remedy_setting(name), seeds)
    for _ in range(40):
        seen, each = band.step(), [run.step() for run in runs]
    loads = [record.load[0] for record in each]
    assert not np.array_equal(seen.loads, loads)
    for value, values in ((seen.losses, [r.loss for r in each]), (seen.loads.max(axis=1), np.max(loads, axis=1))):
        both = np.concatenate([value, values])
        assert abs(np.mean(value) - np.mean(values)) < 4 * both.std() * math.sqrt(2 / len(seeds))
    assert not np.allclose(seen.loads, SeedBand(remedy_setting("nothing"), seeds).step().loads)


def test_noise_differs_from_seed_to_seed_and_is_the_same_every_time():
    setting = remedy_setting("Gaussian noise")
    alike = SeedBand(setting, [3, 3])  # the same weights and data twice
    seen = alike.step()
    assert not np.array_equal(*seen.loads)
    assert np.array_equal(seen.loads, SeedBand(setting, [3, 3]).step().loads)
    assert np.array_equal(*SeedBand(remedy_setting("nothing"), [3, 3]).step().loads)


def test_the_means_are_over_the_seeds_and_the_load_is_of_the_first():
    seen = SeedBand(remedy_setting("capacity"), SEEDS).step()
    assert seen.loss == pytest.approx(seen.losses.mean()) and seen.accuracy == pytest.approx(seen.accuracies.mean())
    assert seen.dead_experts == pytest.approx(seen.dead.mean())
    assert seen.dropped_share == pytest.approx(seen.dropped.mean()) and seen.dropped_share > 0
    assert seen.load == [pytest.approx(seen.loads[0].tolist())]
    assert seen.loads.sum(axis=1) == pytest.approx(1)
    assert seen._fields[: len(Record._fields)] == Record._fields


def test_unserved_is_the_share_of_tokens_without_an_expert():
    for name in ("nothing", "top-2", "auxiliary loss"):
        assert not SeedBand(remedy_setting(name), SEEDS).step().unserved.any()
    capacity = SeedBand(remedy_setting("capacity", capacity_factor=0.5), SEEDS).step()
    close(capacity.unserved, capacity.dropped)  # with one expert each, a dropped assignment is a token left alone
    run, band = separate(remedy_setting("expert choice"), [5])[0], SeedBand(remedy_setting("expert choice"), [5])
    x, _ = run.task.batch(256, torch.Generator().manual_seed(5))
    _, (routing,) = run.model(x)
    assert band.step().unserved == pytest.approx([1 - len(routing.token_idx.unique()) / 256])


@pytest.mark.parametrize("name", ["Gaussian noise", "jitter", "learned noise", "nothing"])
def test_clean_loads_are_those_of_the_router_without_noise(name):
    setting = remedy_setting(name)
    band, runs = SeedBand(setting, SEEDS), separate(setting)
    expected = []
    for seed, run in zip(SEEDS, runs, strict=True):
        x, _ = run.task.batch(300, torch.Generator().manual_seed(seed + 1_000_003))
        _, (routing,) = run.model.eval()(x)
        expected.append((routing.demand_per_expert / 300).tolist())
    close(band.clean_loads(300), expected)
    assert band.model.training == SeedBand(setting, [0]).model.training


def test_evaluation_does_not_disturb_the_training():
    band, alone = (SeedBand(remedy_setting("Gaussian noise"), SEEDS) for _ in range(2))
    for _ in range(3):
        band.evaluate(50), band.clean_loads(50)
        assert np.array_equal(band.step().losses, alone.step().losses)


# --- a band is a run -------------------------------------------------------------------------------------


def test_knobs_may_change_between_steps():
    band, *runs = map(in_double, (SeedBand(EXACT["nothing"], SEEDS), *separate(EXACT["nothing"])))
    for change in ({}, {"router_aux_loss_coef": 1.0, "lr": 0.05}, {"capacity_factor": 0.75, "router_z_loss_coef": 0.1}):
        for run in (band, *runs):
            for name, value in change.items():
                setattr(run.knobs, name, value)
        for _ in range(10):
            seen, each = band.step(), [run.step() for run in runs]
    close(seen.losses, [record.loss for record in each])
    close(seen.dropped, [record.dropped_share for record in each])
    assert repr(band.knobs) == repr(runs[0].knobs)


def test_history_has_the_fields_of_a_record():
    band = SeedBand(EXACT["nothing"], SEEDS)
    records = shown(band, 3)
    columns = [name for name in Record._fields if name != "load"] + [f"load E{e}" for e in range(8)]
    assert list(band.history.columns) == columns
    assert band.history["loss"].tolist() == [record.loss for record in records]


def test_a_learning_rate_that_is_too_high_stops_the_band_and_a_lower_one_goes_on():
    band = SeedBand(EXACT["healthy"], SEEDS)
    shown(band, 3)
    band.knobs.lr = 1e30
    with pytest.raises(TrainingDiverged, match=r"^training stopped after step \d+: .*learning rate \(now 1e\+30\)"):
        shown(band, 20)
    assert all(torch.isfinite(weight).all() for weight in band.model.parameters())
    band.knobs.lr = 0.02
    assert np.isfinite(shown(band, 3)[-1].losses).all()


def test_go_back_takes_back_the_last_update_of_weights_and_biases():
    band = SeedBand(EXACT["bias update"], SEEDS)
    shown(band, 3)
    before = [weight.clone() for weight in (*band.model.parameters(), *band.model.buffers())]
    band.step()
    assert not torch.equal(band.model.block.router.expert_bias, before[-1])
    band.go_back()
    after = [*band.model.parameters(), *band.model.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_it_trains_on_every_device(device):
    band = SeedBand(EXACT["bias and capacity"], SEEDS, device=device)
    shown(band, 2)
    assert np.isfinite(band.evaluate(32)["losses"]).all() and band.clean_loads(32).shape == (3, 8)


@pytest.mark.parametrize("seeds", [[], range(0), 3, [0.5], [-1], "12", None])
def test_seeds_are_one_or_more_whole_numbers(seeds):
    with pytest.raises(ValueError, match="^seeds must be one or more whole numbers from 0 up, got "):
        SeedBand(PlaneSetting(), seeds)


def test_seeds_may_come_from_numpy():
    assert SeedBand(PlaneSetting(), np.arange(2)).step()[:2] == SeedBand(PlaneSetting(), range(2)).step()[:2]


# --- branches --------------------------------------------------------------------------------------------


def test_a_branch_with_the_same_setting_goes_on_as_if_nothing_had_happened():
    for name in ("nothing", "Gaussian noise", "bias update"):
        trunk = SeedBand(remedy_setting(name), SEEDS)
        shown(trunk, 20)
        branch = trunk.branch(trunk.setting)
        assert [record.step for record in branch.records] == list(range(1, 21))
        for seen, expected in zip(shown(branch, 5), shown(trunk, 5), strict=True):
            assert seen.step == expected.step and np.array_equal(seen.losses, expected.losses)
        assert len(trunk.records) == len(branch.records) == 25


@pytest.mark.parametrize("name", REMEDIES)
def test_a_branch_starts_from_these_weights_with_its_own_remedy(name):
    trunk = SeedBand(remedy_setting("nothing"), SEEDS)
    shown(trunk, 20)
    loads = trunk.clean_loads()
    branch = trunk.branch(remedy_setting(name))
    assert all(torch.equal(a, b) for a, b in zip(branch._batch(9, branch._data), trunk._batch(9, trunk._data)))
    assert branch.setting == remedy_setting(name)
    assert all(getattr(branch.knobs, knob) == getattr(branch.setting, knob) for knob in branch.knobs.names)
    if name not in ("top-2", "expert choice"):  # these choose otherwise, from the same logits
        close(branch.clean_loads(), loads, 1e-6)
    shown(branch, 3)
    assert np.array_equal(trunk.clean_loads(), loads)  # the trunk stays as it is


def test_a_branch_can_go_back_to_its_start():
    trunk = SeedBand(remedy_setting("nothing"), SEEDS)
    shown(trunk, 5)
    branch = trunk.branch(remedy_setting("top-2"))
    branch.go_back()
    assert torch.equal(branch.model.head.weight, trunk.model.head.weight)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("task", "blobs", "task must stay 'voronoi' in a branch, got 'blobs'"),
        ("num_experts", 4, "num_experts must stay 8 in a branch, got 4"),
        ("d_ff", 4, "d_ff must stay 8 in a branch, got 4"),
    ],
)
def test_a_branch_cannot_change_what_the_weights_are_made_for(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SeedBand(remedy_setting("nothing"), [0]).branch(remedy_setting("nothing", **{field: value}))


# --- islands ---------------------------------------------------------------------------------------------


ROUTERS = {
    "top-k": lambda: TopKRouter(6, 5, 2),
    "learned noise": lambda: NoisyTopKRouter(6, 5, 2),
    "sigmoid": lambda: SigmoidRouter(6, 5, 2),
    "expert choice": lambda: ExpertChoiceRouter(6, 5, 2),
}


@pytest.mark.parametrize("capacity, priority", [(None, "order"), (3, "order"), (3, "weight")])
@pytest.mark.parametrize("name", ROUTERS)
def test_whatever_is_computed_from_the_islands_is_right_for_each(name, capacity, priority):
    torch.manual_seed(0)
    routers, x = [ROUTERS[name]().eval() for _ in range(3)], torch.randn(3 * 11, 6)
    each = [router(part) for router, part in zip(routers, x.chunk(3))]
    whole = IslandRouter(routers).eval()(x)
    if capacity:
        each = [apply_capacity(routing, capacity, priority) for routing in each]
        whole = apply_capacity(whole, capacity, priority)
    assert whole.num_experts == 15 and whole.num_tokens == 33
    assert torch.equal(whole.demand_per_expert, torch.cat([routing.demand_per_expert for routing in each]))
    assert torch.equal(whole.dropped_per_expert, torch.cat([routing.dropped_per_expert for routing in each]))
    for loss in (load_balancing_loss, router_z_loss):
        torch.testing.assert_close(loss(whole), torch.stack([loss(routing) for routing in each]).mean())

    def served(routing: Routing, s: int = 0) -> set[tuple]:
        token_idx, expert_idx = routing.token_idx + 11 * s, routing.expert_idx + 5 * s
        return set(zip(token_idx.tolist(), expert_idx.tolist(), routing.weight.tolist()))

    assert served(whole) == set().union(*(served(routing, s) for s, routing in enumerate(each)))


def test_the_bias_of_an_island_moves_by_its_own_load_alone():
    torch.manual_seed(0)
    whole = IslandRouter([SigmoidRouter(6, 5, 2) for _ in range(3)])
    alone, x = [SigmoidRouter(6, 5, 2) for _ in range(3)], torch.randn(3 * 11, 6)
    for router, island in zip(alone, whole.routers):
        router.load_state_dict(island.state_dict())
    for _ in range(20):
        for router, part in zip(alone, x.chunk(3)):
            update_expert_bias(router, router(part), rate=0.1)
        update_expert_bias(whole, whole(x), rate=0.1)
        assert torch.equal(whole.expert_bias, torch.cat([router.expert_bias for router in alone]))
    assert whole.expert_bias.any()


def test_a_mixture_of_islands_has_the_capacity_of_each():
    moe = MoE(6, 4, 15, 2, router=IslandRouter([TopKRouter(6, 5, 2) for _ in range(3)]), capacity_factor=0.7)
    _, routing = moe(torch.randn(3 * 11, 6))
    assert routing.tokens_per_expert.max() == math.ceil(0.7 * 2 * 11 / 5)


def test_one_island_is_its_routing():
    routing = TopKRouter(6, 5, 2)(torch.randn(11, 6))
    joined = side_by_side([routing])
    assert all(torch.equal(a, b) for a, b in zip(vars(joined).values(), vars(routing).values(), strict=True))


def test_ten_seeds_cost_less_than_ten_runs():
    setting, seeds = remedy_setting("nothing"), range(10)
    band, runs = SeedBand(setting, seeds), separate(setting, seeds)
    shown(band, 3), [shown(run, 3) for run in runs]
    ratios = []
    for _ in range(15):  # interleaved: what else the machine does meets both
        each = sum(run.step().ms_per_step for run in runs)
        ratios.append(band.step().ms_per_step / each)
    assert np.median(ratios) < 0.7
