"""The balancing laboratory: tiles train what they say, controls do what they say, and nothing is half-applied."""

import numpy as np
import pytest
from live_tools import assert_consistent, button, losses, mark, on_a_loop, settled

from moe_lessons.analysis.collapse import READ_POINTS, STRENGTHS
from moe_lessons.plots.marks import Stack
from moe_lessons.training import SeedBand, balancing_setting
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets import BalancingLab
from moe_lessons.widgets.balancing_lab import ALONE

TWO = ("no balancing", "auxiliary loss")
PAIR = "auxiliary loss + capacity"


def trained(setting, steps: int, seeds=(0,)) -> list:
    band = SeedBand(setting, seeds)
    return [band.step().loss for _ in range(steps)]


async def add(lab: BalancingLab, first: str, second: str) -> None:
    button(lab, "Add").value, button(lab, "and").value = first, second
    button(lab, "Add tile").click()
    await settled()


@pytest.fixture(scope="module")
def lab() -> BalancingLab:
    made = BalancingLab(("no balancing", "Gaussian noise", "capacity", "auxiliary loss", "expert choice"), seeds=2)
    made.advance(45)
    return made


@on_a_loop
async def test_a_pair_has_both_methods_and_a_strength_of_its_own_stays():
    lab = BalancingLab((PAIR, "auxiliary loss 0.3"), seeds=1, capacity_factor=1.0)
    lab.set(router_aux_loss_coef=1.0)
    await add(lab, "auxiliary loss", ALONE)  # as strong as it is now
    lab.set(router_aux_loss_coef=10.0)
    both = balancing_setting("auxiliary loss", "capacity", capacity_factor=1.0, router_aux_loss_coef=10.0)
    assert lab.tiles[PAIR].setting == both
    for strength in (0.3, 1):
        alone = balancing_setting("auxiliary loss", router_aux_loss_coef=float(strength))
        assert lab.tiles[f"auxiliary loss {strength}"].setting == alone
    assert_consistent(lab)


def test_methods_can_start_late_from_one_collapse():
    lab = BalancingLab(TWO, seeds=1, apply_from=6)
    lab.advance(3)
    assert lab.tiles["no balancing"].band is lab.tiles["auxiliary loss"].band
    lab.advance(7)
    collapse = SeedBand(balancing_setting("no balancing"), [0])
    before = [collapse.step().loss for _ in range(6)]
    for name, band in zip(lab.tiles, (collapse, collapse.branch(balancing_setting("auxiliary loss")))):
        assert losses(lab)[name] == before + [band.step().loss for _ in range(4)]
    assert [tile.changes for tile in lab.tiles.values()] == [[6], [6]]


@pytest.mark.parametrize("method, knob", STRENGTHS.items())
@on_a_loop
async def test_a_strength_moves_its_tiles_and_no_other_from_the_next_step_on(method, knob):
    pair = f"top-2 + {method}"
    lab = BalancingLab(("no balancing", method, pair), seeds=1)
    lab.advance(3)
    plain, stops = lab.tiles["no balancing"].setting, KNOBS[knob].stops
    lab.inputs[knob].value = stronger = stops.high if hasattr(stops, "high") else max(stops)
    await settled()
    assert_consistent(lab)
    assert lab.step == 3 and [tile.changes for tile in lab.tiles.values()] == [[], [3], [3]]
    assert lab.tiles["no balancing"].setting == plain and getattr(lab.tiles[pair].band.knobs, knob) == stronger
    lab.advance(2)
    alone = SeedBand(balancing_setting(method), [0])
    expected = [alone.step().loss for _ in range(3)]
    setattr(alone.knobs, knob, stronger)
    assert losses(lab)[method] == expected + [alone.step().loss for _ in range(2)]


def test_a_capacity_moved_in_a_pause_is_read_at_once_and_0_is_off():
    lab = BalancingLab("capacity", seeds=1)
    lab.advance(30)
    before, slider = lab.tiles["capacity"].readings[-1], lab.inputs["capacity_factor"]
    slider.value = 0.5
    assert lab.canvas.words["verdict"] == "No dead expert: in no tile"
    earlier, after = lab.tiles["capacity"].readings[-2:]
    assert earlier.step < after.step == before.step == 30 and after.accuracy < before.accuracy
    slider.value = 0.0
    assert lab.state.values["capacity_factor"] is None and repr(lab).endswith("seeds=1, capacity_factor=None)")
    assert_consistent(lab)


@on_a_loop
async def test_a_tile_that_goes_leaves_the_others_alone_and_one_that_comes_catches_up():
    lab = BalancingLab(("no balancing", "auxiliary loss", "jitter"), seeds=1)
    lab.advance(12)
    before, box = losses(lab), lab.inputs["methods"].boxes["auxiliary loss"]
    box.value = False  # it was the selected one
    await settled()
    assert losses(lab) == {name: before[name] for name in ("no balancing", "jitter")}
    assert lab.state.values["highlight"] == "jitter"
    assert_consistent(lab)
    box.value = True
    await add(lab, "auxiliary loss", "capacity")
    await lab.finished()
    assert list(lab.tiles) == ["no balancing", "jitter", "auxiliary loss", PAIR]  # the order of the boxes
    assert losses(lab) == before | {PAIR: trained(balancing_setting("auxiliary loss", "capacity"), 12)}
    assert_consistent(lab)


def test_readings_are_of_the_clean_router_on_held_out_points(lab):
    for name, tile in lab.tiles.items():
        assert [reading.step for reading in tile.readings] == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
        last, loads = tile.readings[-1], tile.band.clean_loads(READ_POINTS)
        assert last.dead.tolist() == [sum(share < 0.01 for share in load) for load in loads], name  # top-1
        np.testing.assert_allclose(last.max_over_mean, [max(load) / np.mean(load) for load in loads])
        assert last.accuracy.tolist() == tile.band.evaluate(READ_POINTS)["accuracies"].tolist()


def test_dead_is_of_the_tokens_where_each_has_two_experts():
    tile = BalancingLab("top-2", seeds=1).tiles["top-2"]
    loads = np.array([[0.007, 0.004, 0.5, 0.489, 0, 0, 0, 0]])  # 0.7 % of all assignments: 1.4 % of the tokens
    tile.band.evaluate, tile.turned = lambda num: {"loads": loads, "accuracies": np.ones(1)}, True
    tile.read()
    assert tile.readings[-1].dead.tolist() == [5]


def test_tiles_show_the_film_of_the_first_seed(lab):
    for place, (name, tile) in enumerate(lab.tiles.items(), start=3):
        film = mark(lab, place, Stack)
        np.testing.assert_allclose(film.y, [record.loads[0] for record in tile.band.records], rtol=1e-6)
        assert (film.second is not None) == (name == "Gaussian noise")


@on_a_loop
async def test_a_slider_is_answered_before_a_round_of_all_tiles_is_over():
    lab = BalancingLab(("no balancing", "jitter", "auxiliary loss", "z-loss", "top-2"), seeds=1)
    lab.advance(3)
    seen, step = [], lab.tiles["jitter"].band.step

    def step_and_move():
        if not seen:
            lab.post(lambda: seen.append([tile.step for tile in lab.tiles.values()]))
        return step()

    lab.tiles["jitter"].band.step = step_and_move
    lab.play(5)
    await lab.finished()
    assert seen == [[4, 4, 3, 3, 3]]
    assert [tile.step for tile in lab.tiles.values()] == [8] * 5


def test_a_tile_whose_first_step_diverges_can_go_on():
    lab = BalancingLab(TWO, seeds=1, apply_from=3)
    lab.advance(3)
    lab.set(lr=1e15)
    lab.advance(3)
    assert lab.loop.trouble and lab.step <= 3
    assert all(change <= lab.step for change in lab.tiles["no balancing"].changes)
    lab.set(lr=0.01)
    lab.advance(3)
    assert lab.step >= 5 and not lab.loop.trouble and lab.tiles["auxiliary loss"].has_branched
