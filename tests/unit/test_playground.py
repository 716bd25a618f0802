"""The playground: its controls do what they say, and nothing they can be set to breaks it."""

import asyncio
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moe_lessons.analysis.load import describe_load
from moe_lessons.nn import FeedForward, MoE, TopKRouter
from moe_lessons.tasks import PRESETS, grid
from moe_lessons.training import plane_runs
from moe_lessons.widgets import Playground, live
from moe_lessons.widgets.playground import HEATMAP, NUM_TOKENS, RESOLUTION, STRUCTURE, TERRITORY

STRUCTURAL = {"task": "blobs", "num_experts": 4, "top_k": 1, "d_ff": 8, "router_start": "random"}
LIVE = {
    "lr": 0.1,
    "noise_std": 1.0,
    "router_aux_loss_coef": 1.0,
    "router_z_loss_coef": 0.01,
    "capacity_factor": 0.75,
}


class MyMoE(nn.Module):
    """A learner's mixture, as small as it can be: no noise, no capacity, experts in a list of modules."""

    def __init__(self, d_model, d_ff, num_experts, top_k):
        super().__init__()
        self.d_model, self.d_ff, self.num_experts, self.top_k = d_model, d_ff, num_experts, top_k
        self.router = TopKRouter(d_model, num_experts, top_k)
        self.experts = nn.ModuleList(FeedForward(d_model, d_ff) for _ in range(num_experts))

    def forward(self, x):
        routing, y = self.router(x), torch.zeros_like(x)
        for expert, ffn in enumerate(self.experts):
            mine = routing.expert_idx == expert
            tokens = routing.token_idx[mine]
            y = y.index_add(0, tokens, routing.weight[mine][:, None] * ffn(x[tokens]))
        return y, routing


def on_a_loop(test):
    return functools.wraps(test)(lambda *args, **kwargs: asyncio.run(test(*args, **kwargs)))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def losses(playground: Playground) -> dict[str, list[float]]:
    return {name: [record.loss for record in run.records] for name, run in playground.runs.items()}


def shown(playground: Playground) -> dict:
    """What the controls of the setting stand at; 'off' of the capacity is None."""
    values = {name: widget.value for name, widget in playground._inputs.items()}
    return values | {"capacity_factor": values["capacity_factor"] or None}


def assert_consistent(playground: Playground) -> None:
    """The controls show the setting, and the models have it."""
    setting, knobs, block = playground.setting, playground.main_run.knobs, playground.main_run.model.block
    assert shown(playground) == {name: getattr(setting, name) for name in playground._inputs}
    assert (block.num_experts, block.top_k, block.d_ff) == (setting.num_experts, setting.top_k, setting.d_ff)
    assert playground.main_run.task.name == setting.task and playground.main_run.task.seed == playground.seed
    assert {name: getattr(knobs, name) for name in LIVE} == {name: getattr(setting, name) for name in LIVE}
    assert {run.knobs.lr for run in playground.runs.values()} == {setting.lr}
    assert playground._inputs["top_k"].max == setting.num_experts


def button(playground: Playground, name: str):
    return next(child for child in live._descendants(playground) if getattr(child, "description", "") == name)


# --- presets and settings --------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_says_what_is_seen(preset):
    playground = Playground(preset, play=3)
    assert playground.setting == PRESETS[preset] and playground.step == 3
    assert_consistent(playground)
    assert len(playground.words()) > 20 and "Router scores (probabilities)" in playground.reading()
    assert repr(playground) == f"Playground({preset!r}, play=3)"


@pytest.mark.parametrize("preset", ["capacity", "one expert", "healthy"])
@on_a_loop
async def test_a_preset_button_moves_the_controls_and_starts_afresh(preset):
    playground = Playground("noise")
    playground.advance(21)
    old = playground.main_run
    button(playground, preset).click()
    await settled()
    assert playground.setting == PRESETS[preset] and repr(playground) == f"Playground({preset!r})"
    assert_consistent(playground)
    same_task = PRESETS[preset].task == PRESETS["noise"].task
    assert playground.step == 0 and playground.ghost is (old if same_task else None)


def test_a_preset_can_be_chosen_from_code():
    playground = Playground("noise")
    playground.choose_preset("capacity")
    playground.advance(5)
    assert playground.setting == PRESETS["capacity"] and playground.step == 5
    playground.set(lr=0.1)
    assert playground.step == 5


def test_most_territories_of_the_first_preset_can_be_seen_from_the_start():
    assert len(Playground().territory.unique()) >= 6


@pytest.mark.parametrize(
    "made",
    [
        lambda: Playground("collapse", seed=3, lr=0.05, num_experts=16, top_k=3),
        lambda: Playground("capacity", capacity_factor=None, noise_std=0.3, play=2),
        lambda: Playground(block=MyMoE, task="waves"),
        lambda: Playground("collapse", router="sigmoid", expert_bias_rate=0.01, capacity_priority="weight"),
    ],
)
@on_a_loop
async def test_its_repr_makes_the_same_again(made):
    playground = made()
    playground.set(d_ff=6, router_z_loss_coef=0.001)
    again = eval(repr(playground), {"Playground": Playground, "MyMoE": MyMoE})
    assert (again.setting, again.seed, again.block) == (playground.setting, playground.seed, playground.block)
    assert repr(again) == repr(playground)


@on_a_loop
async def test_a_value_beyond_a_slider_moves_its_end():
    wide = {"num_experts": 20, "d_ff": 50, "noise_std": 5.0, "lr": 0.7}
    playground = Playground(**wide)
    assert_consistent(playground)
    wider = {"num_experts": 24, "top_k": 22, "d_ff": 1, "noise_std": 7.0, "capacity_factor": 9.0}
    playground.set(**wider)
    assert {name: getattr(playground.setting, name) for name in wider} == wider
    assert_consistent(playground)


@pytest.mark.parametrize(
    "carried, lacking",
    [
        ({"router": "sigmoid", "expert_bias_rate": 0.01, "jitter_noise": 0.1}, ["noise_std"]),
        ({"router": "expert choice"}, ["noise_std", "capacity_factor"]),
    ],
)
@on_a_loop
async def test_a_field_without_a_control_is_carried_along(carried, lacking):
    playground = Playground("collapse", **carried)
    assert [name for name, widget in playground._inputs.items() if widget.disabled] == lacking
    assert button(playground, "noise").disabled
    assert button(playground, "capacity").disabled == ("capacity_factor" in lacking)
    playground.set(num_experts=6, lr=0.05)  # a new start, and a knob
    playground.choose_preset("rescued")
    playground.advance(2)
    setting = playground.setting
    assert setting == replace(PRESETS["rescued"], **carried)
    knobs = playground.main_run.knobs
    assert (knobs.jitter_noise, knobs.expert_bias_rate) == (setting.jitter_noise, setting.expert_bias_rate)
    assert_consistent(playground)


# --- structure and knobs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURE)
def test_a_change_of_structure_starts_afresh_and_keeps_a_ghost(name):
    playground = Playground()
    playground.advance(21)
    old = playground.main_run
    playground.set(**{name: STRUCTURAL[name]})
    assert playground.step == 0
    assert_consistent(playground)
    ghost = playground._figure.panels[4].ghost
    if name == "task":  # the loss of another task is nothing to compare with
        assert playground.ghost is None and len(ghost.get_xdata()) == 0
    else:
        assert playground.ghost is old and len(ghost.get_xdata()) == 21


@on_a_loop
async def test_reset_and_a_new_seed_start_afresh():
    playground = Playground()
    playground.advance(25)
    first = losses(playground)
    button(playground, "Reset").click()
    await settled()
    assert playground.step == 0
    playground.advance(25)
    assert losses(playground) == first  # the same seed, the same numbers
    playground._seed.value = 7
    await settled()
    assert playground.step == 0 and playground.seed == 7
    assert_consistent(playground)


def test_a_short_run_leaves_no_ghost():
    playground = Playground()
    playground.advance(5)
    playground.set(d_ff=8)
    assert playground.ghost is None


@on_a_loop
async def test_a_structure_that_is_moved_back_before_it_is_applied_costs_nothing():
    playground = Playground()
    playground.advance(3)
    for num_experts in (9, 10, 8):
        playground._inputs["num_experts"].value = num_experts
    await settled()
    assert playground.step == 3


def test_a_knob_does_not_start_afresh():
    playground = Playground()
    playground.advance(3)
    model = playground.main_run.model
    for name, value in LIVE.items():
        playground.set(**{name: value})
        assert playground.step == 3 and playground.main_run.model is model
        assert getattr(playground.setting, name) == value
        assert_consistent(playground)


@on_a_loop
async def test_a_knob_applies_to_the_next_step():
    playground, reference = Playground(), plane_runs(PRESETS["healthy"])
    playground._inputs["lr"].value = 0.5
    button(playground, "Step").click()  # both are queued, and done in this order
    await settled()
    playground.advance(1)
    for run in reference.values():
        run.knobs.lr = 0.5
        run.step(), run.step()
    assert losses(playground) == {name: [record.loss for record in run.records] for name, run in reference.items()}


@on_a_loop
async def test_a_knob_moved_while_it_trains_keeps_its_last_value():
    playground = Playground(play=60)
    for noise in (0.5, 2.0, 1.5):
        playground._inputs["noise_std"].value = noise
        await asyncio.sleep(0)
    await playground.finished()
    assert playground.step == 60 and playground.main_run.knobs.noise_std == 1.5
    assert_consistent(playground)


@on_a_loop
async def test_after_a_new_start_it_plays_as_many_steps_again():
    playground = Playground()
    playground.advance(50)
    playground.play(70)
    while playground.step == 50:
        await asyncio.sleep(0)
    playground.set(num_experts=4)
    assert playground.step == 0
    await playground.finished()
    assert playground.step == 70 and playground.main_run.model.block.num_experts == 4


class Waiting:
    """A loop that never gets to do anything."""

    def call_soon_threadsafe(self, action):
        pass


@pytest.fixture(scope="module")
def waiting():
    """A playground that only queues what is asked."""
    playground = Playground()
    playground._loop = Waiting()
    return playground


@given(moves=st.lists(st.tuples(st.sampled_from(["num_experts", "top_k"]), st.integers(0, 20)), min_size=1, max_size=8))
@settings(max_examples=6)
def test_top_k_never_exceeds_the_experts(waiting, moves):
    experts, top_k = waiting._inputs["num_experts"], waiting._inputs["top_k"]
    for name, value in moves:
        waiting._inputs[name].value = value  # a slider takes its end for a value beyond it
        assert 1 <= top_k.value <= top_k.max == experts.value <= 16
    waiting._do_actions()
    assert_consistent(waiting)


# --- the same numbers ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_numbers_drawn_or_not():
    drawn, alone = Playground("noise", seed=1), Playground("noise", seed=1)
    for _ in range(4):
        drawn.advance(3)
        drawn.show_frame()
        torch.rand(1)
    alone.advance(12)
    assert losses(drawn) == losses(alone)
    other = Playground("noise", seed=2, play=12)
    assert all(losses(other)[name] != losses(alone)[name] for name in losses(alone))


def test_a_muted_expert_changes_nothing_in_training():
    muted, alone = Playground(seed=1), Playground(seed=1)
    muted._mute.value = "E3"
    for _ in range(4):
        muted.advance(2)
        muted.show_frame()
    alone.advance(8)
    assert losses(muted) == losses(alone)
    weights = zip(muted.main_run.model.parameters(), alone.main_run.model.parameters())
    assert all(torch.equal(a, b) for a, b in weights)


# --- what it shows ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return Playground(play=150)


def test_the_territory_is_the_first_choice_of_each_place(trained):
    _, (routing,) = trained.main_run.model.eval()(grid(RESOLUTION))
    favourite = routing.router_probs.argmax(dim=-1).view(RESOLUTION, RESOLUTION)
    assert torch.equal(trained.territory, favourite)
    numbers = [artist.get_visible() for artist in trained._figure.panels[0].numbers]
    assert numbers == [bool((favourite == e).any()) for e in range(8)]


def test_the_pictures_read_the_router_without_its_noise():
    playground = Playground("noise", noise_std=3.0)
    _, (routing,) = playground.main_run.model.eval()(grid(RESOLUTION))
    assert torch.equal(playground.territory.flatten(), routing.router_probs.argmax(dim=-1))
    playground.advance(1)
    playground.show_frame()
    clean = playground._figure.panels[2].clean.get_ydata()
    assert clean == playground.clean_load != playground.main_run.records[-1].load[0]


def test_the_heatmap_is_the_routing_of_the_tokens(trained):
    _, (routing,) = trained.main_run.model.eval()(trained.points)
    heatmap = trained._figure.panels[1]
    assert np.array_equal(heatmap.image.get_array(), routing.router_probs.detach())
    assert heatmap.dots.get_xydata().shape == (2 * NUM_TOKENS, 2)


def test_bars_film_and_curves_are_the_records(trained):
    _, _, bars, film, curves, _ = trained._figure.panels
    records = trained.main_run.records
    mean = torch.tensor([record.load[0] for record in records[-20:]]).mean(dim=0)
    assert [bar.get_height() for bar in bars.bars] == pytest.approx(mean.tolist())
    assert film.image.get_extent()[1] == 150
    assert [line.get_label() for line in curves.lines] == list(trained.runs)
    assert curves.lines[0].get_ydata()[-1] == pytest.approx(np.mean([r.loss for r in records[-10:]]))


def test_the_table_has_the_costs_of_the_three_models(trained):
    cells = [[cell.get_text() for cell in row] for row in trained._figure.panels[5].cells]
    total = [f"{sum(p.numel() for p in run.model.parameters()):,}" for run in trained.runs.values()]
    assert cells[0] == total and cells[0][1] == cells[1][1]  # a dense model: all are active
    accuracies = [f"{run.evaluate(256)['accuracy']:.1%}" for run in trained.runs.values()]
    assert cells[5] == accuracies


@pytest.mark.parametrize("x_axis", ["steps", "FLOPs", "seconds"])
def test_the_loss_can_be_drawn_against(trained, x_axis):
    trained._x_axis.value = x_axis
    _, _, _, _, curves, table = trained._figure.panels
    flops_per_token = int(table.cells[2][0].get_text().replace(",", ""))
    last = {
        "steps": 150,
        "FLOPs": 150 * 256 * 3 * flops_per_token,  # backward costs twice as much as forward
        "seconds": sum(record.ms_per_step for record in trained.main_run.records) / 1000,
    }
    assert trained.step == 150 and curves.x_axis == x_axis
    assert curves.lines[0].get_xdata()[-1] == pytest.approx(last[x_axis])


def test_the_words_describe_the_load_of_the_last_20_steps(trained):
    recent = trained.main_run.records[-20:]
    load = torch.tensor([record.load[0] for record in recent]).mean(dim=0)
    assert trained.words() == describe_load(load, 2)
    assert trained.words() in trained._words.value


def test_the_words_tell_of_dropped_assignments():
    assert "% of the assignments are dropped" in Playground("capacity", capacity_factor=0.5, play=3).words()


def test_the_reading_is_the_routing_of_the_selected_token(trained):
    trained._token.value = 9
    scores, best = trained.routing.router_logits[9].sort(descending=True)
    probs = trained.routing.router_probs[9][best]
    text = trained.reading()
    assert text in trained._reading.value and "<b>Token 9</b>" in text
    assert ", ".join(f"E{e} {s:+.2f} ({p:.0%})" for e, s, p in zip(best[:4].tolist(), scores, probs)) in text
    weights = (probs[:2] / probs[:2].sum()).tolist()
    assert f"Served by: {weights[0]:.2f} × E{best[0]}, {weights[1]:.2f} × E{best[1]}." in text
    named = trained.main_run.model.eval()(trained.points[9:10])[0].argmax() == trained.classes[9]
    assert ("named right" if named else "named wrong") in text


def test_the_reading_says_that_a_token_was_dropped():
    playground = Playground("capacity", capacity_factor=0.5)
    served = set(playground.routing.token_idx.tolist())
    playground._token.value = next(t for t in range(NUM_TOKENS) if t not in served)
    assert "Served by: nobody: it was dropped." in playground.reading()


def test_the_tokens_are_sorted_by_class(trained):
    assert torch.equal(trained.classes, trained.classes.sort().values)


# --- clicking --------------------------------------------------------------------------------------------


def place_of(playground: Playground, panel: int, x: float, y: float) -> tuple[float, float]:
    """Where in the picture a point of a panel lies: 0 to 1 from the top left."""
    figure = playground._figure
    width, height = figure.canvas.get_width_height()
    right, up = figure.panels[panel].ax.transData.transform((x, y))
    return right / width, 1 - up / height


@pytest.mark.parametrize("token", [0, 17, 31])
def test_a_click_on_the_territory_selects_the_nearest_point(trained, token):
    x, y = trained.points[token].tolist()
    trained.clicked(*place_of(trained, trained.panels.index(TERRITORY), x + 0.01, y - 0.01))
    assert trained.selected == token
    assert trained._figure.panels[0].ring.get_xydata().tolist() == [pytest.approx([x, y])]


@pytest.mark.parametrize("row", [0, 12, 31])
def test_a_click_on_the_heatmap_selects_its_row(trained, row):
    trained.clicked(*place_of(trained, trained.panels.index(HEATMAP), 3.0, row + 0.3))
    assert trained.selected == row and trained._figure.panels[1].frame.get_y() == row - 0.5


def test_a_click_elsewhere_selects_nothing(trained):
    trained._token.value = 5
    trained.clicked(0.0, 0.0)
    trained.clicked(*place_of(trained, 2, 3.0, 0.1))
    assert trained.selected == 5


# --- muting ----------------------------------------------------------------------------------------------


def test_muting_says_what_is_lost(trained):
    busiest = int(np.argmax(trained.main_run.records[-1].load[0]))
    trained._mute.value = f"E{busiest}"
    text = trained.reading()
    before, after = (float(word.rstrip("%")) for word in text.split("accuracy ")[1].split(" on ")[0].split(" → "))
    assert f"<b>E{busiest} muted</b>" in text and after < before - 3
    trained._mute.value = "none"
    assert "muted" not in trained.reading()


@on_a_loop
async def test_a_muted_expert_may_vanish_with_a_change_of_structure():
    playground = Playground()
    playground._mute.value = "E7"
    await settled()
    playground.set(num_experts=4)
    await settled()
    assert playground._mute.value == "none" and "muted" not in playground.reading()
    assert "moe-trouble" not in playground._words.value
    assert playground._mute.options == ("none", "E0", "E1", "E2", "E3")


# --- trouble ---------------------------------------------------------------------------------------------


@on_a_loop
async def test_a_learning_rate_far_too_high_leaves_a_usable_playground():
    playground = Playground(play=10)
    await playground.finished()
    playground.set(lr=1e30)
    playground.play(100)
    await playground.finished()
    assert "lower the learning rate" in playground._words.value and playground.step < 20
    weights = [p for run in playground.runs.values() for p in run.model.parameters()]
    assert all(torch.isfinite(p).all() and p.abs().max() < 100 for p in weights)
    playground.set(lr=0.02)
    before = playground.step
    playground.play(40)
    await playground.finished()
    assert playground.step == before + 40 and "lower the learning rate" not in playground._words.value
    assert all(run.records[-1].loss < 2.5 for run in playground.runs.values())


class Hooked:
    """A task that calls `hook` while batch `number` is drawn."""

    def __init__(self, task, number: int, hook):
        self.task, self.number, self.hook, self.drawn = task, number, hook, 0

    def batch(self, num_points, generator):
        self.drawn += 1
        if self.drawn == self.number:
            self.hook()
        return self.task.batch(num_points, generator)


@on_a_loop
async def test_a_last_update_that_only_the_picture_finds_too_large_is_taken_back():
    playground = Playground()
    weight = playground.main_run.model.block.router.weight
    run = playground.main_run
    run.task = Hooked(run.task, 5, lambda: playground.post(lambda: weight.data.fill_(1e38)))
    playground.play(2000)
    await playground.finished()
    assert "the last step is taken back: lower the learning rate to go on" in playground._words.value
    assert playground.step < 2000 and weight.abs().max() < 100
    playground.play(5)
    before = playground.step
    await playground.finished()
    assert playground.step == before + 5 and run.records[-1].loss < 2.5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"top_k": 9}, r"top_k must be between 1 and num_experts \(8\), got 9"),
        ({"num_experts": 1, "top_k": 2}, r"top_k must be between 1 and num_experts \(1\), got 2"),
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
        ({"d_ff": 0}, "d_ff must be a whole number of at least 1, got 0"),
        ({"lr": float("nan")}, "lr must be a finite number above 0, got nan"),
        ({"capacity_factor": 0}, "capacity_factor must be a finite number above 0, got 0"),
        ({"noise_std": -1}, "noise_std must be a finite number of at least 0, got -1"),
        ({"task": "spirals"}, "task must be one of 'blobs', 'voronoi', 'waves', 'checker', 'uneven', got 'spirals'"),
        ({"colour": "red"}, "setting must be one of 'task', .*, got 'colour'"),
    ],
)
def test_a_bad_setting_is_refused_and_moves_nothing(trained, change, message):
    before, run = shown(trained), trained.main_run
    with pytest.raises(ValueError, match=message):
        trained.set(**{"router_z_loss_coef": 0.1} | change)
    assert shown(trained) == before and trained.main_run is run and trained.setting == PRESETS["healthy"]
    with pytest.raises(ValueError, match=message):
        Playground(**change)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"preset": "lucky"}, "preset must be one of 'healthy', .*, got 'lucky'"),
        ({"device": "tpu9"}, "device must be one of 'cpu'.* on this machine, got 'tpu9'"),
        ({"seed": -1}, "seed must be a whole number from 0 to 9999, got -1"),
        ({"seed": "one"}, "seed must be a whole number from 0 to 9999, got 'one'"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"play": -2}, "play must be a whole number of at least 1, got -2"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Playground(**arguments)


# --- a learner's block -----------------------------------------------------------------------------------


def test_a_block_of_your_own_trains_as_ours_does():
    playground = Playground(block=MyMoE, play=60)
    first, last = (playground.main_run.records[i].loss for i in (0, -1))
    assert last < first - 0.5
    assert len(playground.territory.unique()) >= 6  # its router gets the same start


def test_the_controls_that_a_block_lacks_cannot_be_moved():
    mine, ours = Playground(block=MyMoE), Playground()
    lacking = [name for name, widget in mine._inputs.items() if widget.disabled]
    assert lacking == ["noise_std", "capacity_factor"]
    assert not any(widget.disabled for widget in ours._inputs.values())
    assert mine._mute.options == ("none",)
    with pytest.raises(ValueError, match="noise_std must stay 0.0 where the block has nothing to set, got 1.0"):
        mine.set(noise_std=1.0)


@on_a_loop
async def test_a_preset_sets_all_but_what_a_block_lacks():
    playground = Playground(block=MyMoE)
    button(playground, "noise").click()
    await settled()
    assert playground.setting == replace(PRESETS["noise"], noise_std=0.0)


class NoWidth(MyMoE):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        del self.d_ff


class ListOfExperts(MyMoE):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        experts = list(self.experts)
        del self.experts
        self.experts = experts


class NoRouting(MyMoE):
    def forward(self, x):
        return super().forward(x)[0]


class WrongShape(MyMoE):
    def forward(self, x):
        y, routing = super().forward(x)
        return y.sum(dim=-1), routing


@pytest.mark.parametrize(
    "block, message",
    [
        (NoWidth, "block must have the attributes d_model, d_ff, num_experts, top_k and experts, got NoWidth"),
        (ListOfExperts, "block must keep its experts in a module such as nn.ModuleList, got a list in ListOfExperts"),
        (NoRouting, r"block must return \(y, Routing\), got Tensor from NoRouting"),
        (WrongShape, "block must return a finite y of the shape of x, with a gradient, got another from WrongShape"),
    ],
)
def test_a_block_that_breaks_the_contract_is_refused(block, message):
    with pytest.raises(ValueError, match=message):
        Playground(block=block)


class OnlyWithMany(MyMoE):
    def __init__(self, **sizes):
        if sizes["num_experts"] < 4:
            raise RuntimeError("too few experts")
        super().__init__(**sizes)


@on_a_loop
async def test_a_block_that_cannot_be_made_leaves_what_was_there():
    playground = Playground(block=OnlyWithMany)
    playground.advance(5)
    playground._inputs["num_experts"].value = 1
    await settled()
    assert "RuntimeError: too few experts" in playground._words.value
    assert playground.step == 5 and playground.setting == PRESETS["healthy"]
    assert_consistent(playground)


class FailsLater(MyMoE):
    broken = False

    def forward(self, x):
        if FailsLater.broken:
            raise IndexError("expert 9 is not there")
        return super().forward(x)


@on_a_loop
async def test_a_block_that_raises_is_said_in_words_and_can_be_played_on_when_mended(monkeypatch):
    playground = Playground(block=FailsLater, play=10_000)
    while playground.step == 0:
        await asyncio.sleep(0)
    monkeypatch.setattr(FailsLater, "broken", True)
    await playground.finished()
    assert "IndexError: expert 9 is not there" in playground._words.value and "paused" in playground._status.value
    monkeypatch.setattr(FailsLater, "broken", False)
    before = playground.step
    playground.play(5)
    await playground.finished()
    assert playground.step == before + 5 and "IndexError" not in playground._words.value


# --- the page --------------------------------------------------------------------------------------------


def test_every_control_has_a_name_and_says_what_it_does(trained):
    controls = [w for w in live._descendants(trained) if hasattr(w, "value") and getattr(w, "description", "")]
    buttons = [w for w in live._descendants(trained) if getattr(w, "description", "") and hasattr(w, "click")]
    assert len(controls) == 14 and len(buttons) == 4 + len(PRESETS)
    for control in (*controls, *buttons):
        assert len(control.tooltip) > 5
        assert trained._front_end.tips[control.description] == control.tooltip


def test_rescued_goes_on_with_a_collapsed_run_and_marks_the_step():
    playground = Playground("collapse", play=60)
    dead, run = playground.main_run.records[-1].dead_experts, playground.main_run
    playground.choose_preset("rescued")
    playground._do_actions()
    assert playground.main_run is run and playground.marks == [60] and playground.step == 60
    playground.advance(200)
    assert playground.main_run.records[-1].dead_experts < dead
    playground.choose_preset("collapse")
    playground._do_actions()
    assert playground.step == 0 and playground.marks == []


def test_the_button_of_the_present_preset_is_marked():
    playground = Playground("collapse")
    styles = {name: button.button_style for name, button in playground._preset_buttons.items()}
    assert [name for name, style in styles.items() if style] == ["collapse"]
    playground.set(lr=0.05)
    assert not any(button.button_style for button in playground._preset_buttons.values())


def test_a_capacity_does_not_always_drop_the_last_classes():
    dropped = torch.zeros(32)
    for seed in range(6):
        playground = Playground("capacity", seed=seed)
        for _ in range(60):
            playground.main_run.step()  # the dense twins drop nothing
        playground.draw()
        served = playground.routing.token_idx
        dropped += torch.tensor([i not in served for i in range(32)])
    first, last = dropped[:16].sum(), dropped[16:].sum()
    assert first > 10 and last > 10 and 0.5 < first / last < 2


def test_fewer_experts_lower_top_k_as_by_hand():
    playground = Playground()
    playground.set(num_experts=1)
    assert (playground.setting.num_experts, playground.setting.top_k) == (1, 1)


def test_a_loss_worse_than_guessing_is_said():
    playground = Playground(lr=0.5, top_k=1, router_aux_loss_coef=0.0)
    playground.main_run.knobs.lr = 30.0
    playground.advance(60)
    assert "worse than guessing (2.08)" in playground.words()


def a_block(num_experts=None, top_k=None, detach=False, inplace=False):
    """A class that keeps the contract, but for what is named."""

    class Block(MoE):
        def __init__(self, d_model, d_ff, **sizes):
            super().__init__(d_model, d_ff, num_experts or sizes["num_experts"], top_k or sizes["top_k"])

        def forward(self, x):
            if inplace:
                x += 1
            y, routing = super().forward(x)
            return (y.detach() if detach else y), routing

    return Block


@pytest.mark.parametrize(
    "block, message",
    [
        (a_block(num_experts=4), "block must keep num_experts as given .8., got 4 in Block"),
        (a_block(top_k=1), "block must keep top_k as given .2., got 1 in Block"),
        (a_block(detach=True), "block must return a finite y of the shape of x, with a gradient"),
        (a_block(inplace=True), "block must leave x as it is, got it changed by Block"),
        (MoE(16, 4, 8, 2), "block must be a class called with d_model, d_ff, num_experts, top_k, got MoE"),
        ("x", "block must be a class called with d_model, d_ff, num_experts, top_k, got str"),
    ],
)
def test_a_block_that_is_subtly_wrong_is_refused(block, message):
    with pytest.raises(ValueError, match=message):
        Playground(block=block)


def test_a_block_that_is_right_is_taken():
    assert Playground(block=a_block(), play=3).step == 3
