"""Bands: one batched model learns the same numbers as one run for each seed, and is a run itself."""

import math

import numpy as np
import pytest
import torch

from moe_lessons.training import BALANCING_METHODS, PlaneSetting, Run, balancing_setting, plane_runs
from moe_lessons.training.bands import SeedBand
from moe_lessons.training.knobs import KNOBS

SEEDS, STEPS = (4, 0, 7), 8
OF_EACH_SEED = {"losses": "loss", "accuracies": "accuracy", "dead": "dead_experts", "dropped": "dropped_share"}
NOISY = ("Gaussian noise", "learned noise", "jitter")
EXACT = {
    **{name: balancing_setting(name) for name in BALANCING_METHODS if name not in NOISY},
    "healthy": PlaneSetting(),
    "three of five": PlaneSetting("uneven", num_experts=5, top_k=3, d_ff=6, router_start="random"),
    "frozen": PlaneSetting(router="frozen", capacity_factor=1.25),
    "one expert": balancing_setting("no balancing", num_experts=1),
    "tight": balancing_setting("top-2", "capacity", capacity_factor=0.5),
    "bias and capacity": balancing_setting("bias update", "capacity", "auxiliary loss", "z-loss", task="blobs"),
}


def separate(setting: PlaneSetting, seeds=SEEDS) -> list[Run]:
    return [plane_runs(setting, seed)["MoE"] for seed in seeds]


def in_double(run: Run) -> Run:
    """The same run in float64, where no tie of two scores is decided by rounding."""
    run.model.double()
    run.model.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    return run


def close(got, expected, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(got, dtype=float), np.asarray(expected, dtype=float), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", EXACT)
def test_a_band_shows_the_same_numbers_as_a_run_for_each_seed(name):
    band, *runs = map(in_double, (SeedBand(EXACT[name], SEEDS), *separate(EXACT[name])))
    for step in range(1, STEPS + 1):
        seen, each = band.step(), [run.step() for run in runs]
        assert seen.step == step
        close(seen.loads, [record.load[0] for record in each])
        for array, field in OF_EACH_SEED.items():
            close(getattr(seen, array), [getattr(record, field) for record in each])
            assert getattr(seen, field) == pytest.approx(getattr(seen, array).mean())
        assert seen.load == [pytest.approx(seen.loads[0].tolist())] and band.history["loss"].iloc[-1] == seen.loss
        for name, loss in seen.auxiliary.items():
            close(loss, np.mean([record.auxiliary[name] for record in each]))
    evaluated, alone = band.evaluate(500), [run.evaluate(500) for run in runs]
    close(evaluated["losses"], [numbers["loss"] for numbers in alone])
    close(evaluated["accuracies"], [numbers["accuracy"] for numbers in alone])


def test_with_noise_the_numbers_are_others_but_as_likely():
    seeds = range(8)
    for name in NOISY:
        band, runs = SeedBand(balancing_setting(name), seeds), separate(balancing_setting(name), seeds)
        for _ in range(10):
            seen, each = band.step(), [run.step() for run in runs]
        loads = [record.load[0] for record in each]
        assert not np.array_equal(seen.loads, loads)
        for value, values in ((seen.losses, [r.loss for r in each]), (seen.loads.max(axis=1), np.max(loads, axis=1))):
            both = np.concatenate([value, values])
            assert abs(np.mean(value) - np.mean(values)) < 4 * both.std() * math.sqrt(2 / len(seeds))


def test_unserved_is_the_share_of_tokens_without_an_expert():
    for name in ("no balancing", "top-2", "auxiliary loss"):
        assert not SeedBand(balancing_setting(name), SEEDS).step().unserved.any()
    capacity = SeedBand(balancing_setting("capacity", capacity_factor=0.5), SEEDS).step()
    close(capacity.unserved, capacity.dropped)  # with one expert each, a dropped assignment is a token left alone
    run, band = separate(balancing_setting("expert choice"), [5])[0], SeedBand(balancing_setting("expert choice"), [5])
    x, _ = run.task.batch(256, torch.Generator().manual_seed(5))
    _, (routing,) = run.model(x)
    assert band.step().unserved == pytest.approx([1 - len(routing.token_idx.unique()) / 256])


@pytest.mark.parametrize("name", [*NOISY, "no balancing"])
def test_clean_loads_are_those_of_the_router_without_noise_and_do_not_disturb_the_training(name):
    setting = balancing_setting(name)
    band, alone, runs = SeedBand(setting, SEEDS), SeedBand(setting, SEEDS), separate(setting)
    expected = []
    for run in runs:
        _, (routing,) = run.model.eval()(run.held_out(300)[0])
        expected.append((routing.demand_per_expert / 300).tolist())
    close(band.clean_loads(300), expected)
    assert np.array_equal(band.step().losses, alone.step().losses)


@pytest.mark.parametrize("name", ["no balancing", "Gaussian noise", "bias update"])
def test_a_branch_with_the_same_setting_goes_on_as_if_nothing_had_happened(name):
    trunk = SeedBand(balancing_setting(name), SEEDS)
    [trunk.step() for _ in range(5)]
    branch = trunk.branch(trunk.setting)
    for _ in range(5):
        seen, expected = branch.step(), trunk.step()
        assert seen.step == expected.step and np.array_equal(seen.losses, expected.losses)
    assert len(trunk.records) == len(branch.records) == 10


@pytest.mark.parametrize("name", BALANCING_METHODS)
def test_a_branch_starts_from_these_weights_with_its_own_method(name):
    trunk = SeedBand(balancing_setting("no balancing"), SEEDS)
    for _ in range(10):
        trunk.step()
    loads, branch = trunk.clean_loads(), trunk.branch(balancing_setting(name))
    assert all(getattr(branch.knobs, knob) == getattr(balancing_setting(name), knob) for knob in KNOBS)
    if name not in ("top-2", "expert choice"):  # these choose otherwise, from the same logits
        close(branch.clean_loads(), loads, 1e-6)
    [branch.step() for _ in range(3)]
    assert np.array_equal(trunk.clean_loads(), loads)  # the trunk stays as it is
