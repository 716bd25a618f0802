"""The collapse laboratory: tiles train what they say, controls do what they say, and nothing is half-applied."""

import asyncio
import functools
import html
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lessons.bands import SeedBand
from moe_lessons.tasks import PRESETS, REMEDIES, remedy_setting
from moe_lessons.widgets import BalancingLab, live
from moe_lessons.widgets.laboratory import ALONE, CURVES, DEFAULTS, NUM_POINTS, START, STRENGTHS

TWO = ("nothing", "auxiliary loss")
PAIR = "auxiliary loss + capacity"


def on_a_loop(test):
    return functools.wraps(test)(lambda *args, **kwargs: asyncio.run(test(*args, **kwargs)))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


def losses(lab: BalancingLab) -> dict[str, list]:
    return {name: [record.losses.tolist() for record in tile.band.records] for name, tile in lab.tiles.items()}


def trained(setting, steps: int, seeds=(0,)) -> list:
    """The losses of a band that trains alone."""
    band = SeedBand(setting, seeds)
    return [band.step().losses.tolist() for _ in range(steps)]


def words(lab: BalancingLab) -> str:
    return html.unescape(lab._words.value)


def ticked(lab: BalancingLab) -> list[str]:
    return [name for name, box in lab._boxes.items() if box.value]


def assert_consistent(lab: BalancingLab) -> None:
    """Controls, tiles, knobs and picture say the same."""
    assert {name: widget.value for name, widget in lab._inputs.items()} == lab.values
    assert set(ticked(lab)) == set(lab.tiles) == set(lab.runs)
    base, plan = lab._plan(tuple(lab.tiles), lab.values)
    assert {name: tile.setting for name, tile in lab.tiles.items()} == plan
    for tile in lab.tiles.values():
        setting = tile.setting if lab._has_branched(tile) else base
        assert {name: getattr(tile.band.knobs, name) for name in tile.band.knobs.names} == {
            name: getattr(setting, name) for name in tile.band.knobs.names
        }
    assert lab.selected in lab.tiles and lab._highlight.value == lab.selected
    assert lab._highlight.options == tuple(lab.tiles)
    assert [panel.ax.get_title(loc="left") for panel in lab._figure.panels[2:]] == list(lab.tiles)


@pytest.fixture(scope="module")
def lab() -> BalancingLab:
    """A laboratory after 45 steps; tests leave it as it is."""
    made = BalancingLab(("nothing", "Gaussian noise", "capacity", "auxiliary loss", "expert choice"), seeds=2)
    made.advance(45)
    made.show_frame()
    return made


# --- what a tile trains ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REMEDIES)
def test_a_tile_trains_as_its_remedy_does_alone(name):
    lab = BalancingLab((name, "nothing") if name != "nothing" else name, seeds=2, first_seed=5)
    lab.advance(4)
    assert losses(lab)[name] == trained(remedy_setting(name), 4, seeds=(5, 6))
    assert_consistent(lab)


def test_all_ten_are_there_to_begin_with():
    lab = BalancingLab(seeds=1)
    assert tuple(lab.tiles) == tuple(REMEDIES) and repr(lab) == "BalancingLab(seeds=1)"
    assert_consistent(lab)


def test_a_pair_has_both_remedies_and_a_strength_of_its_own_stays():
    lab = BalancingLab((PAIR, "auxiliary loss 0.3"), seeds=1, capacity_factor=1.0)
    assert lab.tiles[PAIR].setting == remedy_setting("auxiliary loss", "capacity", capacity_factor=1.0)
    lab.set(router_aux_loss_coef=10.0)
    assert lab.tiles[PAIR].setting.router_aux_loss_coef == 10.0
    assert lab.tiles["auxiliary loss 0.3"].setting == remedy_setting("auxiliary loss", router_aux_loss_coef=0.3)


def test_remedies_can_start_late_from_one_collapse():
    lab = BalancingLab(TWO, seeds=1, apply_from=6)
    lab.advance(3)
    assert lab.tiles["nothing"].band is lab.tiles["auxiliary loss"].band and "remedies start at step 6" in lab.words()
    lab.advance(7)
    collapse = SeedBand(remedy_setting("nothing"), [0])
    for _ in range(6):
        collapse.step()
    cured = collapse.branch(remedy_setting("auxiliary loss"))
    for _ in range(4):
        cured.step(), collapse.step()
    assert losses(lab) == {
        "nothing": [record.losses.tolist() for record in collapse.records],
        "auxiliary loss": [record.losses.tolist() for record in cured.records],
    }
    assert [tile.marks for tile in lab.tiles.values()] == [[6], [6]]


def test_drawing_changes_nothing():
    drawn, blind = (BalancingLab(("nothing", "Gaussian noise"), seeds=1) for _ in range(2))
    for _ in range(5):
        drawn.advance(2)
        drawn.show_frame(moving=True)
        drawn.show_frame()
    blind.advance(10)
    assert losses(drawn) == losses(blind)


def test_steps_are_counted_when_all_tiles_have_done_them():
    lab = BalancingLab(("nothing", "top-2", "z-loss"), seeds=1)
    steps = []
    for _ in range(6):
        lab._step()
        steps.append(lab.step)
    assert steps == [0, 0, 1, 1, 1, 2]
    lab.advance(2)
    assert [tile.step for tile in lab.tiles.values()] == [4, 4, 4]


# --- strengths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remedy, knob", STRENGTHS.items())
@on_a_loop
async def test_a_strength_moves_its_tiles_and_no_other(remedy, knob):
    pair = f"top-2 + {remedy}"
    lab = BalancingLab(("nothing", remedy, pair), seeds=1)
    lab.advance(3)
    stronger = 2 * DEFAULTS[knob]
    live_values = {name: tile.setting for name, tile in lab.tiles.items()}
    widget = lab._inputs[knob]
    if stronger not in [value for _, value in getattr(widget, "options", [("", stronger)])]:
        stronger = max(value for _, value in widget.options)
    widget.value = stronger
    await settled()
    assert_consistent(lab)
    assert lab.step == 3 and [tile.marks for tile in lab.tiles.values()] == [[], [3], [3]]
    assert lab.tiles["nothing"].setting == live_values["nothing"]
    assert getattr(lab.tiles[remedy].band.knobs, knob) == getattr(lab.tiles[pair].band.knobs, knob) == stronger


def test_a_strength_applies_to_the_next_step():
    lab = BalancingLab("auxiliary loss", seeds=1)
    lab.advance(5)
    lab.set(router_aux_loss_coef=10.0)
    lab.advance(5)
    band = SeedBand(remedy_setting("auxiliary loss"), [0])
    for _ in range(5):
        band.step()
    band.knobs.router_aux_loss_coef = 10.0
    for _ in range(5):
        band.step()
    assert losses(lab)["auxiliary loss"] == [record.losses.tolist() for record in band.records]


def test_the_learning_rate_is_that_of_all():
    lab = BalancingLab(TWO, seeds=1, apply_from=2)
    lab.advance(1)
    lab.set(lr=0.05)
    lab.advance(3)
    lab.set(lr=0.02)
    assert_consistent(lab)
    assert [tile.marks for tile in lab.tiles.values()] == [[1, 2, 4]] * 2


def test_a_strength_that_is_off_is_nothing():
    off = {"router_aux_loss_coef": 0, "noise_std": 0, "jitter_noise": 0, "capacity_factor": None,
           "router_z_loss_coef": 0, "expert_bias_rate": 0}  # fmt: skip
    lab = BalancingLab(("nothing", "capacity", "auxiliary loss"), seeds=1, **off)
    lab.advance(3)
    assert losses(lab)["capacity"] == losses(lab)["nothing"] == losses(lab)["auxiliary loss"]
    assert "(off)" in lab.reading()


def test_a_capacity_moved_in_a_pause_is_read_at_once():
    lab = BalancingLab("capacity", seeds=1)
    lab.advance(30)
    lab.show_frame()
    before = lab.tiles["capacity"].readings[-1]
    lab.set(capacity_factor=0.5)
    after = lab.tiles["capacity"].readings[-1]
    assert after.step == before.step == 30 and after.accuracy < before.accuracy
    assert [reading.step for reading in lab.tiles["capacity"].readings].count(30) == 1


# --- tiles come and go -----------------------------------------------------------------------------------


def test_a_tile_that_is_added_catches_up():
    lab = BalancingLab(TWO, seeds=1)
    lab.advance(8)
    before = losses(lab)
    lab.set([*TWO, PAIR])
    assert lab.behind == 0 and lab.step == 8
    assert losses(lab) == before | {PAIR: trained(remedy_setting("auxiliary loss", "capacity"), 8)}
    assert_consistent(lab)


@on_a_loop
async def test_a_pair_is_added_by_hand_while_the_others_train():
    lab = BalancingLab(TWO, seeds=1, max_steps=40)
    lab.play()
    await until(lambda: lab.step > 5)
    lab._first.value, lab._second.value = "top-2", "capacity"
    lab.post(lab._add)
    await until(lambda: "top-2 + capacity" in lab.tiles)
    await lab.finished()
    assert [tile.step for tile in lab.tiles.values()] == [40, 40, 40]
    assert_consistent(lab)
    assert losses(lab)["top-2 + capacity"] == trained(remedy_setting("top-2", "capacity"), 40)
    assert lab._front_end.tips["top-2 + capacity"] == lab._boxes["top-2 + capacity"].tooltip


@on_a_loop
async def test_a_tile_added_in_a_pause_catches_up_by_itself():
    lab = BalancingLab(TWO, seeds=1)
    lab.advance(12)
    lab._boxes["jitter"].value = True
    await settled()
    await lab.finished()
    assert [tile.step for tile in lab.tiles.values()] == [12, 12, 12] and not lab.running


@on_a_loop
async def test_alone_it_is_added_with_its_present_strength():
    lab = BalancingLab(TWO, seeds=1)
    lab.set(router_aux_loss_coef=1.0)
    lab._first.value, lab._second.value = "auxiliary loss", ALONE
    lab.post(lab._add)
    await settled()
    lab.set(router_aux_loss_coef=0.01)
    assert lab.tiles["auxiliary loss 1"].setting.router_aux_loss_coef == 1.0
    assert lab.tiles["auxiliary loss"].setting.router_aux_loss_coef == 0.01
    assert_consistent(lab)


@on_a_loop
async def test_a_tile_that_goes_leaves_the_others_alone():
    lab = BalancingLab(("nothing", "auxiliary loss", "jitter"), seeds=1)
    lab.advance(4)
    before = losses(lab)
    lab._boxes["auxiliary loss"].value = False  # it was the selected one
    await settled()
    assert losses(lab) == {name: before[name] for name in ("nothing", "jitter")}
    assert_consistent(lab)


@on_a_loop
async def test_a_tile_that_comes_back_comes_to_its_place():
    lab = BalancingLab(("nothing", "jitter", "auxiliary loss"), seeds=1)
    for ticked_again in (False, True):
        lab._boxes["jitter"].value = ticked_again
        await settled()
    assert list(lab.tiles) == ["nothing", "jitter", "auxiliary loss"]
    assert_consistent(lab)


@pytest.mark.parametrize(
    "first, second, message",
    [
        ("learned noise", "bias update", "learned noise and bias update do not go together: .*router"),
        ("Gaussian noise", "learned noise", "Gaussian noise and learned noise do not go together: noise_std"),
        ("capacity", "expert choice", "capacity and expert choice do not go together: capacity_factor"),
        ("jitter", "jitter", "remedies in one tile must be different ones, got 'jitter \\+ jitter'"),
    ],
)
@on_a_loop
async def test_remedies_that_clash_are_said_in_words(first, second, message):
    lab = BalancingLab(TWO, seeds=1)
    lab.advance(2)
    before, boxes = losses(lab), set(lab._boxes)
    lab._first.value, lab._second.value = first, second
    lab.post(lab._add)
    await settled()
    assert re.search(message, words(lab))
    assert losses(lab) == before and set(lab._boxes) == boxes
    assert_consistent(lab)


@on_a_loop
async def test_the_last_tile_stays_and_the_thirteenth_is_refused():
    lab = BalancingLab("nothing", seeds=1)
    lab._boxes["nothing"].value = False
    await settled()
    assert "remedies must be 1 to 12 tiles, got 0" in words(lab)
    assert_consistent(lab)
    lab._boxes["jitter"].value = True
    await settled()
    assert list(lab.tiles) == ["nothing", "jitter"] and "remedies must be" not in words(lab)  # no longer asked for
    twelve = [f"auxiliary loss {strength}" for strength in range(1, 13)]
    lab.set(twelve)
    lab._boxes["top-2"].value = True
    await settled()
    assert "remedies must be 1 to 12 tiles, got 13" in words(lab)
    assert_consistent(lab)


# --- a new start -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, value", [*zip(START, ("uneven", 2, 7, 10), strict=True)])
@on_a_loop
async def test_what_is_of_the_structure_starts_afresh(name, value):
    lab = BalancingLab(TWO, seeds=1)
    lab.advance(3)
    lab._inputs[name].value = value
    await settled()
    assert lab.step == 0 and lab.values[name] == value
    assert_consistent(lab)
    lab.advance(2)
    seeds = range(lab.values["first_seed"], lab.values["first_seed"] + lab.values["seeds"])
    base = remedy_setting("nothing", task=lab.values["task"])
    assert losses(lab)["nothing"] == trained(base, 2, seeds)


@on_a_loop
async def test_reset_gives_the_same_numbers_again():
    lab = BalancingLab(TWO, seeds=1)
    lab.advance(6)
    first = losses(lab)
    next(child for child in live._descendants(lab) if getattr(child, "description", "") == "Reset").click()
    await settled()
    assert lab.step == 0
    lab.advance(6)
    assert losses(lab) == first


@pytest.mark.parametrize(
    "made",
    [
        lambda: BalancingLab(),
        lambda: BalancingLab("z-loss", 1, 20, first_seed=3),
        lambda: BalancingLab((PAIR, "jitter 0.5"), seeds=2, play=2, max_steps=50, lr=0.05, capacity_factor=None),
        lambda: BalancingLab(TWO, task="uneven", num_experts=4, d_ff=4, router_start="random", noise_std=7.0, seeds=1),
    ],
)
def test_its_repr_makes_the_same_again(made):
    lab = made()
    lab.set(router_aux_loss_coef=0.07, apply_from=30)
    again = eval(repr(lab), {"BalancingLab": BalancingLab})
    assert (again.values, again._collapse, tuple(again.tiles)) == (lab.values, lab._collapse, tuple(lab.tiles))
    assert repr(again) == repr(lab) and again.max_steps == lab.max_steps
    assert_consistent(again)


@given(st.lists(st.tuples(st.sampled_from(sorted(DEFAULTS)), st.integers(0, 9)), max_size=6))
@settings(max_examples=8, deadline=None)
def test_whatever_is_moved_all_of_it_is_applied(moves):
    lab = BalancingLab(TWO, seeds=1)
    for name, place in moves:
        widget = lab._inputs[name]
        if hasattr(widget, "options"):
            widget.value = [o[1] if isinstance(o, tuple) else o for o in widget.options][place % len(widget.options)]
        else:
            widget.value = min(widget.max, widget.min + place * getattr(widget, "step", 1))
        lab.advance(1)
        assert_consistent(lab)


# --- what is seen ----------------------------------------------------------------------------------------


def test_readings_are_of_the_clean_router_on_held_out_points(lab):
    for name, tile in lab.tiles.items():
        assert [reading.step for reading in tile.readings] == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
        last, loads = tile.readings[-1], tile.band.clean_loads(NUM_POINTS)
        assert last.dead.tolist() == [sum(share < 0.01 for share in load) for load in loads], name  # top-1
        np.testing.assert_allclose(last.variation, [np.std(load) / np.mean(load) for load in loads])
        assert last.accuracy.tolist() == tile.band.evaluate(NUM_POINTS)["accuracies"].tolist()


def test_dead_is_of_the_tokens_where_each_has_two_experts():
    lab = BalancingLab("top-2", seeds=3)
    lab.advance(40)
    lab.show_frame()
    tile = lab.tiles["top-2"]
    # at top-2 an expert with 0.7 % of the assignments has 1.4 % of the tokens: alive
    loads = np.array([[0.007, 0.004, 0.5, 0.489, 0, 0, 0, 0]] * 3)
    tile.band.clean_loads, tile.turned = lambda num: loads, True
    tile.read()
    assert tile.readings[-1].dead.tolist() == [5, 5, 5]


def test_tiles_show_the_film_of_the_first_seed_and_both_readings(lab):
    for (_name, tile), panel in zip(lab.tiles.items(), lab._figure.panels[2:], strict=True):
        assert panel.image.get_extent()[1] == 45 and panel.caption.get_text() == lab.caption(tile)
        last = tile.readings[-1]
        assert panel.caption.get_text().startswith(str(last.dead.mean()).removesuffix(".0")[:3])
        assert f"{last.accuracy.mean():.0%} right" in panel.caption.get_text()
        recent = tile.band.records[-20:]
        noisy = f"with noise: {np.mean([record.dead for record in recent]):.1f} dead"
        assert (noisy in panel.caption.get_text()) == panel.clean.get_visible() == (tile.setting.noise_std > 0)
    dropped = np.mean([record.dropped for record in lab.tiles["capacity"].band.records[-20:]])
    assert dropped > 0 and f"dropped {dropped:.0%}" in lab.caption(lab.tiles["capacity"])
    unserved = np.mean([record.unserved for record in lab.tiles["expert choice"].band.records[-20:]])
    assert unserved > 0 and f"no expert: {unserved:.0%} of tokens" in lab.caption(lab.tiles["expert choice"])


def test_the_panels_compare_the_readings(lab):
    curves, scatter = lab._figure.panels[:2]
    for line, tile in zip(curves.lines, lab.tiles.values(), strict=True):
        assert line.get_xydata().tolist() == [[r.step, r.dead.mean()] for r in tile.readings]
    means = [(r.variation.mean(), r.accuracy.mean()) for r in (tile.readings[-1] for tile in lab.tiles.values())]
    np.testing.assert_allclose(scatter.marks.get_offsets(), means)


@pytest.mark.parametrize("name", CURVES)
@on_a_loop
async def test_curves_of(name):
    lab = BalancingLab(TWO, seeds=2)
    lab.advance(10)
    lab._curve_choice.value = name
    await settled()
    lab.show_frame()
    title, _, quantity = CURVES[name]
    panel, tile = lab._figure.panels[0], lab.tiles["nothing"]
    assert panel.ax.get_title(loc="left").startswith(title)
    assert panel.lines[0].get_ydata().tolist() == [getattr(r, quantity).mean() for r in tile.readings]


def test_the_words_say_who_has_dead_experts_and_who_is_right(lab):
    last = {name: tile.readings[-1] for name, tile in lab.tiles.items()}
    none = [name for name, reading in last.items() if reading.dead.sum() == 0]
    worst = max(last, key=lambda name: last[name].dead.sum())
    best = max(last, key=lambda name: last[name].accuracy.sum())
    assert "expert choice" in none and last["nothing"].dead.sum() > 0
    assert f"No dead expert: {', '.join(none)}." in lab.words()
    assert f"Most dead: {worst} ({last[worst].dead.mean():.1f} of 8)." in lab.words()
    assert f"Most often right: {best} ({last[best].accuracy.mean():.1%})." in lab.words()


@pytest.mark.parametrize(
    "remedies, words",
    [
        (("nothing", "z-loss"), "Dead experts in every tile. "),
        (("expert choice",), "No dead expert in any tile. Most o"),
    ],
)
def test_the_words_say_all_and_none_plainly(remedies, words):
    lab = BalancingLab(remedies, seeds=1)
    lab.advance(60)
    lab.look()
    assert lab.words().startswith(words)


@on_a_loop
async def test_the_selected_tile_is_read_with_both_meters():
    lab = BalancingLab(("nothing", "Gaussian noise"), seeds=2)
    lab.advance(25)
    lab._highlight.value = "nothing"
    await settled()
    assert "noise" not in lab.reading() and len(lab._figure.panels[0].second.get_xdata()) == 0
    lab._highlight.value = "Gaussian noise"
    await settled()
    recent = np.mean([record.dead for record in lab.tiles["Gaussian noise"].band.records[-20:]])
    assert lab.reading().startswith("<b>Gaussian noise</b>: normal noise on the router's logits, in training only (1)")
    assert f"without noise (the strip), {recent:.1f} with it (the film)" in lab.reading()
    assert len(lab._figure.panels[0].second.get_xdata()) == 25


def at(lab: BalancingLab, panel: int, x: float, y: float) -> tuple[float, float]:
    """The place in the picture of a point of a panel's data."""
    width, height = lab._figure.canvas.get_width_height()
    pixel_x, pixel_y = lab._figure.panels[panel].ax.transData.transform((x, y))
    return pixel_x / width, 1 - pixel_y / height


@on_a_loop
async def test_a_click_selects_a_tile_or_a_mark():
    lab = BalancingLab(("nothing", "auxiliary loss", "capacity"), seeds=1)
    lab.advance(30)
    lab.show_frame()
    for i, name in enumerate(lab.tiles):
        lab.clicked(*at(lab, 2 + i, 20, 0.5))
        await settled()
        assert lab.selected == name
    for name, tile in lab.tiles.items():
        last = tile.readings[-1]
        lab.clicked(*at(lab, 1, last.variation[0], last.accuracy[0]))
        await settled()
        assert lab.selected == name
        assert_consistent(lab)
    lab.clicked(0.0, 0.0)
    lab.clicked(*at(lab, 0, 20, 4))
    await settled()
    assert lab.selected == name


def test_every_control_has_a_name_and_says_what_it_does(lab):
    controls = [c for c in live._descendants(lab) if hasattr(c, "value") and hasattr(c, "description")]
    controls = [c for c in controls if type(c).__name__ not in ("HTML", "FigureImage")]
    assert len(controls) == len(DEFAULTS) + len(REMEDIES) + 4
    for control in controls:
        assert control.description and len(control.tooltip) > 15, control.description


@on_a_loop
async def test_the_picture_follows_the_page():
    lab = BalancingLab(TWO, seeds=1)
    wide = lab._figure.canvas.get_width_height()
    lab._front_end.narrow = lab._front_end.dark = True
    await settled()
    narrow = lab._figure.canvas.get_width_height()
    assert narrow[0] < wide[0] and narrow[1] > wide[1]
    assert np.mean(lab._figure.pixels()[0, 0, :3]) < 64


def test_a_static_page_gets_the_picture_after_training(monkeypatch):
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")
    lab = BalancingLab(TWO, seeds=1, play=30)
    data, metadata = lab._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"} and lab.step == 30
    assert data["text/plain"] == "BalancingLab(('nothing', 'auxiliary loss'), play=30, seeds=1)"
    assert metadata["image/png"]["alt"].startswith("Step 30. No dead expert: ")
    assert lab._figure.caption == metadata["image/png"]["alt"]


# --- the loop --------------------------------------------------------------------------------------------


@on_a_loop
async def test_a_slider_is_answered_before_a_round_of_all_tiles_is_over(monkeypatch):
    monkeypatch.setattr(live, "QUICK_ANSWER", 0)
    lab = BalancingLab(("nothing", "jitter", "auxiliary loss", "z-loss", "top-2"), seeds=1)
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


@on_a_loop
async def test_the_step_buttons_train_while_the_picture_moves():
    lab = BalancingLab(TWO, seeds=1)
    lab._step_buttons[1].click()
    await settled()
    assert lab.running and lab.step < 50
    await lab.finished()
    assert lab.step == 50
    lab._step_buttons[0].click()
    await settled()
    await lab.finished()
    assert lab.step == 51


@on_a_loop
async def test_a_learning_rate_far_too_high_is_said_and_a_lower_one_goes_on():
    lab = BalancingLab(TWO, seeds=1, lr=1e6)
    lab.play(100)
    await lab.finished()
    assert "lower the learning rate" in words(lab) and not lab.running
    lab.set(lr=0.01)
    before = lab.step
    lab.play(3)
    await lab.finished()
    assert lab.step == before + 3 and "lower the learning rate" not in words(lab)
    assert_consistent(lab)


# --- bad input -------------------------------------------------------------------------------------------

BAD = [
    ({"seeds": 0}, "seeds must be a whole number from 1 to 10, got 0"),
    ({"seeds": 11}, "seeds must be a whole number from 1 to 10, got 11"),
    ({"seeds": True}, "seeds must be a whole number from 1 to 10, got True"),
    ({"apply_from": -1}, "apply_from must be a whole number from 0 to 1000000, got -1"),
    ({"apply_from": 1.5}, "apply_from must be a whole number from 0 to 1000000, got 1.5"),
    ({"first_seed": "a"}, "first_seed must be a whole number from 0 to 9999, got 'a'"),
    ({"remedies": ()}, "remedies must be 1 to 12 tiles, got 0"),
    ({"remedies": 5}, "remedies must be names such as 'top-2', got 5"),
    ({"remedies": ("nothing", 2)}, "remedies must be names such as 'top-2', got \\('nothing', 2\\)"),
    ({"remedies": ("hope",)}, "remedy must be one of 'nothing', .*, got 'hope'"),
    ({"remedies": ("top-2 3",)}, "remedy must be one of .*, got 'top-2 3'"),
    ({"remedies": ("nothing + jitter",)}, "remedies in one tile must be different ones, got 'nothing \\+ jitter'"),
    ({"remedies": ("bias update + expert choice",)}, "bias update and expert choice do not go together"),
    ({"remedies": ("capacity -1",)}, "capacity_factor must be a finite number above 0, got -1"),
    ({"capacity_factor": 0}, "capacity_factor must be a finite number above 0, got 0"),
    ({"noise_std": -1}, "noise_std must be a finite number of at least 0, got -1"),
    ({"lr": 0}, "lr must be a finite number above 0, got 0"),
    ({"task": "spirals"}, "task must be one of .*, got 'spirals'"),
    ({"speed": 1}, "setting must be one of .*, got 'speed'"),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BalancingLab(**{"remedies": TWO, "seeds": 1} | arguments)


@pytest.fixture(scope="module")
def untouched() -> BalancingLab:
    made = BalancingLab(TWO, seeds=1)
    made.advance(1)
    return made


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_values_move_nothing(untouched, arguments, message):
    before = dict(untouched.values)
    with pytest.raises(ValueError, match=message):
        untouched.set(**arguments)
    assert untouched.values == before and tuple(untouched.tiles) == TWO and untouched.step == 1
    assert_consistent(untouched)


def test_the_collapse_itself_can_be_another():
    lab = BalancingLab(TWO, seeds=1, num_experts=4)
    assert lab.tiles["nothing"].setting == remedy_setting("nothing", num_experts=4) != PRESETS["collapse"]
    lab.advance(2)
    lab.show_frame()
    assert lab._figure.panels[0].ax.get_ylim() == (0, 4)
    with pytest.raises(ValueError, match="setting must be one of .*, got 'num_experts'"):
        lab.set(num_experts=8)
