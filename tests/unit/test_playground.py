"""The playground: its controls do what they say, and nothing they can be set to breaks it."""

import asyncio
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from live_tools import MyMoE, a_page, assert_consistent, button, ended, mark, on_a_loop, settled, until, words, written
from torch import nn

from moe_lessons.analysis.counting import count_parameters, flops_per_token
from moe_lessons.analysis.load import describe_load
from moe_lessons.nn import MoE
from moe_lessons.plots.marks import CLASSES, Bars, Boxes, Cells, Drawn, Points, Route, Table
from moe_lessons.tasks import grid
from moe_lessons.training import PRESETS, PlaneSetting
from moe_lessons.training.as_pytorch import as_pytorch
from moe_lessons.widgets import Playground, live
from moe_lessons.widgets.plane_readings import NUM_TOKENS, RESOLUTION
from moe_lessons.widgets.playground import FRONT, FRONT_CONTROLS, PACE, PLANE_PANELS

TERRITORY, HEATMAP, LOAD = range(3)
PANELS = "territory", "heatmap", "load"
PANELS_DRAWN = "territory", "answer", "cost"


def territory(playground: Playground) -> torch.Tensor:
    return torch.from_numpy(mark(playground, TERRITORY, object).z.argmax(axis=-1)).flatten()


def routing_of(playground: Playground, points: torch.Tensor):
    with torch.no_grad():
        logits, (routing,) = playground.main_run.model.eval()(points)
    return logits, routing


@on_a_loop
async def test_a_preset_button_moves_the_controls_trains_afresh_and_is_marked():
    playground = Playground("noise")
    for preset, name in ("capacity", "capacity"), ("healthy", "Healthy"):
        playground.advance(21)
        old = playground.main_run
        button(playground, name).click()
        await settled()
        assert playground.running
        await ended(playground)
        assert playground.setting == PRESETS[preset] and repr(playground) == f"Playground({preset!r})"
        assert_consistent(playground)
        assert playground.step < 21
        assert playground.state.ghost is (old if preset == "capacity" else None)  # the same task
        marked = [name for name, made in playground._preset_buttons.items() if made.button_style]
        assert marked == [name for name in [preset] if name != "healthy"]
    playground.set(lr=0.05)
    assert not any(made.button_style for made in playground._preset_buttons.values())


@on_a_loop
async def test_the_first_training_shows_each_step_slowly_until_a_button_is_touched():
    playground, shown = Playground(play=60), []
    a_page(playground.canvas, 1.0)
    answer = playground.canvas.send

    def send(content, buffers):
        slots = {slot for slot, *_ in content["slots"]}
        if slots >= {"0.0.z", "3.0.y"}:  # the territory and the loss
            shown.append(content["words"].get("step"))
        answer(content, buffers)

    playground.canvas.send = send
    start = time.perf_counter()
    await until(lambda: playground.step == 10)
    assert time.perf_counter() - start > 9 / PACE and shown == sorted(set(shown)) and len(shown) >= 6
    button(playground, "More").value = True
    await playground.finished()
    assert playground.step == 60 and playground.loop.pace is None


@on_a_loop
async def test_every_new_start_by_hand_trains():
    playground = Playground(play=5)
    await playground.finished()
    move = partial(setattr, playground.inputs["num_experts"], "value", 7)
    draw = partial(playground.canvas._hear, None, {"points": written((0, 0, 2))}, [])
    for ask in (button(playground, "Restart").click, move, draw, button(playground, "Restart").click):
        run = playground.main_run
        ask()
        await settled()
        assert playground.main_run is not run
        assert playground.running and playground.loop.pace == PACE
        await ended(playground)


def test_rescued_goes_on_with_a_collapsed_run():
    playground = Playground("collapse", num_experts=np.int64(8))
    assert repr(playground) == "Playground('collapse')"  # a number of NumPy, too
    playground.advance(40)
    run = playground.main_run
    playground.choose_preset("rescued")
    assert playground.main_run is run and playground.state.changes == [40] and playground.step == 40
    playground.choose_preset("collapse")
    assert playground.step == 0 and playground.state.changes == []
    with pytest.raises(ValueError, match="^preset must .*'lucky'"):
        playground.choose_preset("lucky")


@pytest.fixture(scope="module")
def trained():
    return Playground(play=150, panels=PANELS)


def test_the_territory_is_the_first_choice_of_each_place_and_the_heatmap_the_routing_of_the_tokens(trained):
    assert len(territory(Playground()).unique()) >= 6  # most can be seen from the start
    favourites = routing_of(trained, grid(RESOLUTION))[1].router_probs.argmax(dim=-1)
    assert torch.equal(trained.plane.scores.argmax(dim=-1).flatten(), favourites)
    assert (territory(trained) == favourites).float().mean() > 0.99
    logits, routing = routing_of(trained, trained.plane.points)
    tokens, dots = mark(trained, TERRITORY, Points), mark(trained, HEATMAP, Points)
    assert np.array_equal(tokens.expert, routing.router_probs.argmax(dim=-1))
    assert np.array_equal(tokens.symbol == 0, logits.argmax(dim=-1) == trained.plane.classes)
    assert np.allclose(mark(trained, HEATMAP, Cells).z, routing.router_probs, atol=1e-3)
    served = set(zip(routing.token_idx.tolist(), routing.expert_idx.tolist()))
    assert set(zip(dots.y.tolist(), dots.x.tolist())) == served and len(dots.x) == len(served) == 2 * NUM_TOKENS
    assert torch.equal(trained.plane.classes, trained.plane.classes.sort().values)


def test_the_pictures_read_the_router_without_its_noise():
    playground = Playground("noise", noise_std=3.0, panels=PANELS)
    favourites = routing_of(playground, grid(RESOLUTION))[1].router_probs.argmax(dim=-1)
    assert (territory(playground) == favourites).float().mean() > 0.99
    playground.advance(1)
    bars = mark(playground, LOAD, Bars)
    assert bars.second.tolist() == pytest.approx(playground.clean_load)
    assert bars.y.tolist() == pytest.approx(playground.main_run.records[-1].load[0]) != pytest.approx(bars.second)


def test_the_words_tell_of_the_load_and_the_reading_is_the_routing_of_the_selected_token(trained):
    mean = torch.tensor([record.load[0] for record in trained.main_run.records[-50:]]).mean(dim=0)
    verdict, rest = describe_load(mean, 2)
    assert trained.words() == verdict + rest == trained.canvas.words["words"] and Playground().words() == "Untrained."
    assert trained.canvas.words["verdict"] == verdict
    trained.inputs["token"].value = 9
    _, routing = routing_of(trained, trained.plane.points[9:10])
    assert trained.canvas.words["token"] == 9
    for weight, expert in zip(routing.topk_weights[0].tolist(), routing.topk_indices[0].tolist()):
        assert f"{weight:.2f} × E{expert}" in trained.canvas.words["reading"]


def test_a_capacity_does_not_always_drop_the_last_classes():
    dropped = torch.zeros(NUM_TOKENS)
    for seed in range(6):
        playground = Playground("capacity", seed=seed)
        for _ in range(30):
            playground.main_run.step()  # the dense baselines drop nothing
        dropped += torch.tensor([i not in playground.plane.routing.token_idx for i in range(NUM_TOKENS)])
    first, last = dropped[:16].sum(), dropped[16:].sum()
    assert first > 10 and last > 10 and 0.5 < first / last < 2


@on_a_loop
async def test_muting_says_at_once_what_is_lost_also_while_it_trains(monkeypatch):
    monkeypatch.setattr(live, "READING_SHARE", 1e-9)  # of itself, nothing is read anew
    playground = Playground(max_steps=10**6, top_k=1)
    playground.advance(100)
    busiest = 1 + int(np.argmax(playground.main_run.records[-1].load[0][1:]))
    playground.play()
    for muted in (f"E{busiest}", f"E{7 - busiest}", "none", f"E{busiest}"):
        step = playground.step
        playground.inputs["mute"].value = muted
        while playground.step < step + 3:
            await asyncio.sleep(0)
        assert (f" {muted} muted" in words(playground)) == (muted != "none")
    text = playground.canvas.words["reading"]
    before, after = (float(word.rstrip("%")) for word in text.split("accuracy ")[1].split(" on ")[0].split(" → "))
    assert after < before - 3
    playground.set(num_experts=busiest)  # that expert is gone
    await ended(playground)
    assert playground.inputs["mute"].value == "none" and "muted" not in words(playground)


def test_an_interrupt_while_an_expert_is_muted_leaves_every_weight_as_it_was():
    playground, places, is_read = Playground(panels="loss"), set(), False
    before = [weight.clone() for weight in playground.main_run.model.parameters()]
    playground.state.values = playground.state.values | {"mute": "E3"}

    def interrupt(frame, event, argument):
        place = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and "moe_lessons" in place[0] and place not in places:
            places.add(place)
            raise KeyboardInterrupt
        return interrupt

    while not is_read:  # it is interrupted at each line, once
        sys.settrace(interrupt)
        try:
            is_read = bool(playground.reading())
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert all(map(torch.equal, before, playground.main_run.model.parameters()))
    assert len(places) > 100


@on_a_loop
async def test_it_begins_with_what_explains_most_and_more_shows_the_rest():
    playground = Playground()
    shown = [name for name, widget in playground.inputs.items() if widget.layout.display != "none"]
    assert sorted(shown) == sorted(FRONT_CONTROLS) and len(playground.panels()) == len(FRONT)
    playground.show_more()
    assert len(playground.panels()) == len(PLANE_PANELS) == len(playground.canvas.panels)
    assert all(widget.layout.display != "none" for widget in playground.inputs.values())
    playground.show_more(False)
    assert len(playground.canvas.panels) == len(FRONT) and repr(playground) == "Playground('healthy')"


def test_a_token_is_followed_through_the_router_to_its_experts():
    playground = Playground(play=100)
    playground.set(token=3)
    drawn, routing = mark(playground, 1, Route), playground.plane.routing
    mine = routing.token_idx == 3
    assert drawn.head.startswith("token 3 at (") and drawn.probs == pytest.approx(routing.router_probs[3].numpy())
    weights = dict(zip(routing.expert_idx[mine].tolist(), routing.weight[mine].tolist()))
    assert {e: w for e, w in enumerate(drawn.weights.tolist()) if w} == pytest.approx(weights) and len(weights) == 2
    said = "correct: class {}" if playground.plane.correct[3] else "wrong: the class is {}"
    assert drawn.foot == said.format(CLASSES[playground.plane.classes[3]])


def test_one_strip_says_what_each_model_stores_computes_and_gets_right():
    playground = Playground(play=20)
    strip, runs = mark(playground, 2, Boxes), playground.runs.values()
    bars = [i for i, fill in enumerate(strip.fill) if fill > 3]
    sizes, flops, right = (strip.places[bars[column::3], 2] for column in range(3))
    assert sizes / sizes.max() == pytest.approx([count_parameters(run.model).total / 1464 for run in runs])
    assert flops / flops.max() == pytest.approx([flops_per_token(run.model) / 2624 for run in runs])
    assert right / sizes.max() == pytest.approx([run.evaluate(256)["accuracy"] for run in runs])
    assert strip.says[bars[0]] == "MoE, parameters: 1,464" and strip.texts[bars[0] + 1] == "1,464"


def lit(playground: Playground) -> list[str]:
    return [each.description for each, _ in playground._front_buttons if each.button_style == "info"]


@on_a_loop
async def test_collapse_breaks_it_and_rescue_goes_on_also_after_a_pause():
    playground = Playground(play=30)  # steps, of each training
    button(playground, "Collapse").click()
    await settled()
    await playground.finished()
    assert playground.setting == PlaneSetting(router_aux_loss_coef=0.0) and playground.step == 30
    assert lit(playground) == ["Collapse"]
    run = playground.main_run
    button(playground, "Rescue").click()
    await settled()
    await playground.finished()
    assert playground.main_run is run and playground.step == 60
    assert playground.setting == PlaneSetting(router_aux_loss_coef=1.0)
    assert playground.state.changes == [30] and playground.state.names == {30: "Rescue: none dead"}
    assert lit(playground) == ["Rescue"]


@on_a_loop
async def test_a_block_of_your_own_trains_as_ours_does_and_lacks_controls():
    mine = Playground(block=MyMoE, router_start="spread")
    idle = {name for name, widget in mine.inputs.items() if widget.disabled}
    assert {"router", "noise_std", "capacity_factor", "expert_bias_rate", "mute"} <= idle
    assert not {"num_experts", "top_k", "router_aux_loss_coef", "lr"} & idle
    assert mine.inputs["mute"].options == ("none",)
    assert len(territory(mine).unique()) >= 6  # its router gets the same start
    mine.advance(60)
    assert mine.main_run.records[-1].loss < mine.main_run.records[0].loss - 0.5
    mine.choose_preset("noise")
    assert mine.setting == replace(PRESETS["noise"], noise_std=0.0) and mine.step == 0


@on_a_loop
async def test_points_that_are_drawn_are_learned_instead_of_the_task_until_they_are_cleared():
    playground = Playground(panels=PANELS_DRAWN)

    async def does(points: str = "", name: str = "") -> str:
        if name:
            button(playground, name).click()
        else:
            playground.canvas._hear(None, {"points": points}, [])
        await settled()
        assert_consistent(playground)
        await ended(playground)  # what starts afresh trains
        return playground.state.values["points"]

    playground.inputs["pen"].value = "class C"
    await settled()
    assert mark(playground, 0, Drawn) == Drawn("", 2)
    playground.advance(30)
    first, second = written((0, 0, 2), (0.1, 0, 2)), written((-0.5, 0.5, 0))
    assert await does(first) == first and playground.step < 30 and playground.state.ghost is None
    assert await does(second) == first + second
    assert mark(playground, 0, Drawn) == Drawn(first + second, 2)
    assert "loss" in mark(playground, 2, Table).rows and playground.inputs["task"].disabled
    assert {run.task.points for run in playground.runs.values()} == {first + second}
    assert set(playground.plane.classes.tolist()) == {0, 2}
    assert repr(playground) == f"Playground('healthy', panels={PANELS_DRAWN!r}, points='{first + second}')"
    assert as_pytorch(playground.setting) == playground.as_pytorch() and first + second in playground.as_pytorch()
    playground.choose_preset("collapse")  # they stay
    assert playground.is_at("collapse") and playground.setting.points == first + second
    run = playground.main_run
    assert await does(500 * first[:4]) == first + second and playground.main_run is run
    assert "points" in playground.loop.trouble and "503" in playground.loop.trouble
    assert await does(name="Clear points") == "" and not playground.inputs["task"].disabled
    assert playground.loop.trouble == ""
    for left in (first + second, first, ""):
        assert await does(name="Undo points") == left
    assert await does(name="Undo points") == "" and playground.loop.trouble
    again = Playground("healthy", points=first)
    assert again.main_run.task.points == first and again.inputs["pen"].value == "off"
    with pytest.raises(ValueError, match="^points must .*'abc'"):
        again.set(points="abc")
    assert again.setting.points == first == again.inputs["points"].value


def a_block(change=lambda x, y, routing: (y, routing), **attributes):
    class Block(MyMoE):
        def __init__(self, d_model, d_ff, num_experts, top_k):
            super().__init__(d_model, d_ff, num_experts, top_k)
            for name, value in attributes.items():
                delattr(self, name)
                setattr(self, name, value)

        def forward(self, x):
            return change(x, *super().forward(x))

    return Block


@pytest.mark.parametrize(
    "block, message",
    [
        (a_block(d_ff=None), "keep d_ff as given .3., got None in Block"),
        (a_block(experts=[nn.Linear(16, 16)]), "keep its experts in a module such as nn.ModuleList, got Block"),
        (a_block(change=lambda x, y, routing: y), r"return \(y, Routing\), got Block, which does not"),
        (a_block(change=lambda x, y, routing: (y.sum(dim=-1), routing)), "return a finite y of the shape of x"),
        (a_block(change=lambda x, y, routing: (y.detach(), routing)), "return a y with a gradient"),
        (a_block(change=lambda x, y, routing: (y, routing, x.add_(1))[:2]), "leave x as it is, got Block"),
        (MoE(16, 4, 8, 2), "be a class called with d_model, d_ff, num_experts, top_k, got MoE"),
    ],
)
def test_a_block_that_breaks_the_contract_is_refused(block, message):
    assert Playground(block=a_block(), play=1).step == 1
    with pytest.raises(ValueError, match=f"block must {message}"):
        Playground(block=block)
