"""The routing laboratory, and the panels that show who serves which bytes."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_tools import click, mark, on_a_loop, settled, words
from matplotlib.text import Text as Letters
from torch import nn

from moe_lessons.analysis.traces import expert_shares, trace
from moe_lessons.knobs import KNOBS, TRAINING, idle_with
from moe_lessons.nn import LanguageModel, TopKRouter, TransformerConfig, seeded
from moe_lessons.plots.marks import Cells, Points, Text
from moe_lessons.plots.panels import PANELS
from moe_lessons.plots.panels.text import first_lines, line_start
from moe_lessons.plots.panels.writing import PROMPT
from moe_lessons.tasks import DOMAINS, PlaneTask, TextTask, make_text, text
from moe_lessons.training import Run
from moe_lessons.widgets import LiveRun, RoutingLab, live, routing_lab
from moe_lessons.widgets.routing_lab import KNOBS_AT_FIRST, NAMED_ROUTERS, SIZES, idle_of

SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 2, "d_ff": 8, "num_experts": 4, "batch_size": 4, "threads": 1}
TWO = ("english", "json")
MAPS = ("domains", "classes", "text")


@pytest.fixture(autouse=True, scope="module")
def _texts_are_short_and_made_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "TRAIN_BYTES", 20_000)
        patch.setattr(text, "HELD_OUT_BYTES", 4_000)
        patch.setattr(routing_lab, "TextTask", cached_task)
        yield


@functools.cache
def cached_task(domains, context: int = 64) -> TextTask:
    return TextTask(domains, context)


def small(**options) -> RoutingLab:
    return RoutingLab(**{"task": TWO, "panels": "loss"} | SMALL | options)


def losses(lab: RoutingLab) -> list[float]:
    return [record.loss for record in lab.main_run.records]


def assert_consistent(lab: RoutingLab) -> None:
    """Controls, model, task and knobs say the same; what does nothing is off."""
    values, config, idle = lab.values, lab.main_run.model.config, lab.idle(lab.values)
    in_force = values | {name: TRAINING[name].off for name in idle if name in TRAINING}
    for name, widget in lab.inputs.items():
        assert (widget.value or None) == (in_force[name] or None), name
        assert getattr(widget, "disabled", False) == (name in idle), name
    assert {name: getattr(config, name) for name in SIZES} == {name: values[name] for name in SIZES}
    assert lab.main_run.task.domains == values["domains"] and lab.main_run.seed == values["seed"]
    assert {name: getattr(lab.main_run.knobs, name) for name in TRAINING} == {n: in_force[n] for n in TRAINING}


# --- training --------------------------------------------------------------------------------------------


def test_it_trains_as_a_run_does_alone_whatever_is_drawn():
    lab = small(panels=("loss", *MAPS, "writing"), seed=3, lr=0.01)
    sizes = {name: SMALL[name] for name in SMALL if name not in ("batch_size", "threads")}
    with seeded(3):
        model = LanguageModel(TransformerConfig(**sizes))
    alone = Run(model, cached_task(TWO), lr=0.01, batch_size=4, seed=3)
    alone.knobs.router_aux_loss_coef = KNOBS_AT_FIRST["router_aux_loss_coef"]
    lab.advance(2)
    lab.show(True)
    lab.advance(2)
    assert losses(lab) == [alone.step().loss for _ in range(4)]


def test_a_text_of_your_own(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(make_text("english", 3000))
    lab = RoutingLab(TextTask.from_file(path, context=32), panels=("domains", "writing"), **SMALL)
    lab.advance(2)
    lab.show(True)
    assert [name for _, name in lab.canvas.panels[0].y.ticks] == ["story.txt"]
    assert "domains" not in lab.inputs and "TextTask(story.txt, context=32)" in repr(lab)
    with pytest.raises(ValueError, match="setting must be one of .*, got 'domains'"):
        lab.set(domains=TWO)
    lab.set(num_experts=2)
    assert lab.main_run.task.domains == ("story.txt",) and lab.main_run.num_experts == [2, 2]


def test_the_name_of_a_text_is_shown_as_text():
    name = "<i>a$b_1$, and a name that is longer than the room for it</i>"
    task = TextTask.from_text(make_text("english", 3000), context=32, name=name)
    lab = RoutingLab(task, panels=("domains", "writing"), **SMALL)
    assert f"most of each domain goes: {name} → E" in lab.canvas.words["reading"]  # the page knows no HTML here
    assert any("&lt;i&gt;a$b_1$" in child.value for child in live.descendants(lab) if type(child).__name__ == "HTML")
    assert lab.canvas.panels[0].y.ticks == [(0, f"{name[:21]}…")] and mark(lab, 1, Text).names == (name,)
    shown = [letters for letters in lab.picture().findobj(Letters) if "<i>" in letters.get_text()]
    assert len(shown) > 1 and not any(letters.get_parse_math() for letters in shown)


@pytest.mark.parametrize("context", [2, PROMPT])
def test_a_context_shorter_than_a_prompt(context):
    task = TextTask.from_text(make_text("english", 20_000), context=context)
    lab = RoutingLab(task, panels=("text", "writing"), **SMALL)
    lab.advance(1)
    lab.show(True)
    assert lab.canvas.words["trouble"] == "" and mark(lab, 1, Text).texts[0]


@on_a_loop
async def test_it_plays_and_pauses_and_says_what_is_seen():
    lab = small(panels=("loss", "layers", *MAPS), play=4)
    await lab.finished()
    assert lab.step == 4 and words(lab).startswith("Layer 0: ")
    shares = expert_shares(lab.traced, "domain", 0)
    assert f"english → {shares.loc['english'].idxmax()}" in lab.canvas.words["reading"]


# --- knobs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINING)
@on_a_loop
async def test_a_knob_applies_to_the_next_step_and_starts_nothing(name):
    lab = small(router="sigmoid" if name == "expert_bias_rate" else "top-k")
    lab.advance(3)
    run, value = lab.main_run, {"lr": 0.05, "capacity_factor": 1.5, "noise_std": 0.5}.get(name, 0.1)
    lab.inputs[name].value = value
    await settled()
    assert lab.main_run is run and lab.step == 3 and lab.marks == [3] and getattr(run.knobs, name) == value
    assert_consistent(lab)


@pytest.mark.parametrize("router", NAMED_ROUTERS)
@on_a_loop
async def test_what_does_not_apply_is_off_says_why_and_comes_back(router):
    lab = small(noise_std=0.5, capacity_factor=2.0)
    lab.inputs["router"].value = router
    await settled()
    assert_consistent(lab)
    for name, reason in lab.idle(lab.values).items():
        assert reason in lab._idle.value and reason in lab.inputs[name].tooltip
        assert reason in lab.canvas.words["tips"][KNOBS[name].description]
    lab.inputs["router"].value = "top-k"
    await settled()
    assert_consistent(lab)
    assert (lab.main_run.knobs.noise_std, lab.main_run.knobs.capacity_factor) == (0.5, 2.0)
    lab.advance(1)


def test_what_does_not_apply_is_found_without_a_random_number_of_yours():
    before = torch.get_rng_state()
    for look_up, argument in ((idle_with, "learned noise"), (idle_of, TransformerConfig(router="sigmoid"))):
        look_up.cache_clear()
        look_up(argument)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_set_to_off_while_it_does_not_apply_stays_off():
    lab = small()
    lab.set(router="hash", router_aux_loss_coef=0)
    lab.set(router="top-k")
    assert lab.main_run.knobs.router_aux_loss_coef == 0
    assert_consistent(lab)


# --- structure -------------------------------------------------------------------------------------------

OTHER = {"domains": ("code", "greek"), "num_experts": 8, "top_k": 1, "d_ff": 16, "router": "hash", "seed": 7}


@pytest.mark.parametrize("name", RoutingLab.START)
@on_a_loop
async def test_what_is_of_the_structure_starts_afresh_and_reset_does_so_too(name):
    lab = small(panels=("loss", "domains"), noise_std=0.3)
    lab.advance(21)
    old = lab.main_run
    if name == "domains":
        for domain, box in lab.inputs["domains"].boxes.items():
            box.value = domain in OTHER["domains"]
    else:
        lab.inputs[name].value = OTHER[name]
    await settled()
    assert lab.step == 0 and lab.values[name] == OTHER[name] and lab.marks == []
    assert lab.ghost is (None if name == "domains" else old)
    assert_consistent(lab)
    again = eval(repr(lab), {"RoutingLab": RoutingLab})
    again.advance(2)
    for _ in range(2):
        lab.advance(2)
        assert losses(lab) == losses(again)
        lab.reset()
        await settled()


def test_top_k_never_exceeds_the_experts():
    lab = small()
    for num_experts, top_k in ((2, 2), (1, 1), (32, 20), (4, 4)):
        lab.inputs["num_experts"].value = num_experts
        lab.inputs["top_k"].value = 32
        assert lab.values["top_k"] == lab.inputs["top_k"].value == num_experts
        lab.set(top_k=top_k)
        assert_consistent(lab)
    lab.set(num_experts=2)
    assert lab.values["top_k"] == 2


@on_a_loop
async def test_the_last_domain_cannot_be_unticked():
    lab = small(task="code")
    lab.advance(2)
    boxes = lab.inputs["domains"].boxes
    boxes["code"].value = False
    await settled()
    assert "domains must be one of 'english'" in lab.canvas.words["trouble"] and boxes["code"].value
    assert lab.step == 2
    assert_consistent(lab)
    boxes["english"].value = True
    await settled()
    assert lab.values["domains"] == ("english", "code") and lab.canvas.words["trouble"] == ""


@on_a_loop
async def test_controls_that_are_moved_together_are_applied_together(monkeypatch):
    lab, made = small(), []
    make = lab.make_runs
    monkeypatch.setattr(lab, "make_runs", lambda values: (made.append(values), make(values))[1])
    lab.set(num_experts=8, router="sigmoid", expert_bias_rate=0.01, domains="code", layer=1, lr=0.02)
    assert len(made) == 1
    for name, value in {"num_experts": 2, "top_k": 1, "seed": 5}.items():
        lab.inputs[name].value = value
    await settled()
    assert len(made) == 2
    assert_consistent(lab)


def test_loads_are_blank_until_the_first_step_of_each_start():
    lab = small(panels="layers", router_aux_loss_coef=0.0)
    for _ in range(2):
        assert np.isnan(mark(lab, 0, Cells).z).all() and len(mark(lab, 0, Points).x) == 0
        lab.advance(1)
        lab.show(True)
        assert not np.isnan(mark(lab, 0, Cells).z).any()
        lab.reset()


class MyRouter(TopKRouter):
    """A learner's own."""


def test_a_router_of_your_own_can_be_chosen_again():
    lab = small(router=MyRouter)
    assert set(lab.idle(lab.values)) == {"noise_std", "expert_bias_rate"} and "MyRouter" in repr(lab)
    lab.set(router="sigmoid")
    assert "router='sigmoid'" in repr(lab)
    lab.inputs["router"].value = MyRouter
    assert "router=MyRouter" in repr(lab) and isinstance(lab.main_run.model.layers[0].ffn.router, MyRouter)
    assert_consistent(lab)


SETTINGS = {
    "task": st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=5), "router": st.sampled_from(NAMED_ROUTERS[:2]),
    "num_experts": st.integers(2, 9), "top_k": st.integers(1, 2), "shared_d_ff": st.none() | st.integers(1, 8),
    "layer": st.integers(0, 1), "seed": st.integers(0, 9999), "max_steps": st.integers(1, 999),
    "lr": st.floats(1e-4, 1), "capacity_factor": st.none() | st.floats(0.1, 9),
}  # fmt: skip


@given(st.fixed_dictionaries({}, optional=SETTINGS), st.sampled_from(NAMED_ROUTERS))
@settings(max_examples=20)
def test_its_repr_makes_the_same_again_also_when_the_router_was_changed(options, router):
    lab = small(router_aux_loss_coef=0.5, **options)
    lab.inputs["router"].value = router
    again = eval(repr(lab), {"RoutingLab": RoutingLab})
    assert again.values == lab.values | lab.in_force() and again.main_run.model.config == lab.main_run.model.config
    assert repr(again) == repr(lab) and again.max_steps == lab.max_steps
    assert_consistent(again)


def test_a_config_gives_what_its_fields_give_and_what_is_usual_is_not_written():
    config = TransformerConfig(d_model=16, num_heads=2, num_layers=1, router="sigmoid", capacity_factor=1.5)
    lab = RoutingLab(TWO, config, panels="loss", num_experts=2)
    assert lab.main_run.model.config == replace(config, num_experts=2, capacity_factor=None)
    assert lab.main_run.knobs.capacity_factor == 1.5
    assert repr(RoutingLab()) == "RoutingLab()"


# --- bad input -------------------------------------------------------------------------------------------

BAD = [
    ({"num_experts": 0}, "num_experts must be a whole number of at least 1, got 0"),
    ({"top_k": 5}, r"top_k must be between 1 and num_experts \(4\), got 5"),
    ({"d_ff": 2.5}, "d_ff must be a whole number"),
    ({"router": "gaussian noise"}, "router must be one of 'top-k', .*, got 'gaussian noise'"),
    ({"lr": 0}, "lr must be a finite number above 0"),
    ({"noise_std": -1}, "noise_std must be a finite number of at least 0"),
    ({"capacity_factor": 0}, "capacity_factor must be a finite number above 0"),
    ({"expert_bias_rate": 0.1}, "expert_bias_rate must be off here, since the bias needs a sigmoid router, got 0.1"),
    ({"router": "hash", "router_aux_loss_coef": 0.1}, "router_aux_loss_coef must be off here, since a hash"),
    ({"seed": 1.5}, "seed must be a whole number from 0 to 9999, got 1.5"),
    ({"layer": 2}, "layer must be from 0 to 1, .*got 2"),
    ({"layer": True}, "layer must be from 0 to 1, .*got True"),
    ({"experts": 3}, "setting must be one of .*, got 'experts'"),
]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": ("english", "latin")}, "domains must be one of 'english', .*, got 'latin'"),
        ({"task": ()}, "domains must be one of 'english', .*, got 'none'"),
        ({"task": 5}, "domains must be one of 'english', .*, got 5"),
        ({"config": {"d_model": 16}}, "config must be a TransformerConfig, got dict"),
        ({"moe_layers": ()}, "moe_layers must name at least one layer, got none"),
        ({"max_positions": 32}, r"context must be at most the model's max_positions \(32\), got 64"),
        ({"panels": ("loss", "speed")}, "panels must be functions or of .*, got 'speed'"),
        ({"panels": 5}, "panels must name at least one of .*, got 5"),
        ({"threads": 0}, "threads must be a whole number"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.fixture(scope="module")
def untouched():
    return small()


@pytest.mark.parametrize(
    "change, message", [*BAD, ({"domains": ("x",)}, "domains must|setting"), ({"d_model": 0}, "d_model|setting")]
)
def test_what_is_bad_is_refused_and_moves_nothing(untouched, change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)
    run, values = untouched.main_run, dict(untouched.values)
    with pytest.raises(ValueError, match=message):
        untouched.set(**{"seed": 5} | change)
    assert untouched.main_run is run and untouched.values == values
    assert_consistent(untouched)


# --- panels ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def view() -> LiveRun:
    """Not a laboratory: the panels are for any run of a language model."""
    lab = small()
    lab.advance(3)
    return LiveRun({"a": lab.main_run}, ("loss", *MAPS, "load", "writing"))


@pytest.mark.parametrize("layer", [0, 1])
def test_maps_are_the_shares_of_the_layer(view, layer):
    view.layer = layer
    view.show(True)
    table = trace(view.main_run.model, view.main_run.task, 12)
    for place, by in ((1, "domain"), (2, "byte_class")):
        expected = expert_shares(table, by, layer)
        np.testing.assert_allclose(mark(view, place, Cells).z, expected, rtol=1e-6)
        assert [name for _, name in view.canvas.panels[place].y.ticks] == expected.index.tolist()
    titles = [panel.title for panel in view.canvas.panels.values()]
    assert all(title.endswith(f", layer {layer}") for title in titles[1:5])
    assert not any("layer" in title for title in (titles[0], titles[5]))


@on_a_loop
async def test_all_panels_and_lines_share_one_trace_also_when_the_layer_is_switched(monkeypatch):
    calls = []
    monkeypatch.setattr(live, "trace", lambda *args: (calls.append(args), trace(*args))[1])
    lab = small(panels=("layers", *MAPS))
    assert len(calls) == 1
    lab.inputs["layer"].value = 1
    await settled()
    assert lab.canvas.panels[1].title.endswith(", layer 1") and lab.canvas.words["words"].startswith("Layer 1: ")
    click(lab, "layer", 0)
    await settled()
    assert (lab.layer, lab.inputs["layer"].value, lab.canvas.panels[0].marks[0].selected) == (0, 0, 0)
    for kind, index in (("layer", 2), ("token", 1), ("model", 0)):
        click(lab, kind, index)
        await settled()
    assert lab.layer == 0 and lab.canvas.words["trouble"] == "" and len(calls) == 1
    lab.advance(1)
    lab.show(True)
    assert len(calls) == 2
    assert_consistent(lab)


def test_the_text_is_of_each_domain_from_the_beginning_of_a_line(view):
    view.layer = 1
    view.show(True)
    shown, table = mark(view, 3, Text), trace(view.main_run.model, view.main_run.task, 12)
    assert shown.names == TWO and len(shown.experts) == sum(shown.sizes) == sum(map(len, shown.texts))
    table, at = table[table["layer"] == 1], 0
    for domain, passage in zip(TWO, shown.texts):
        rows = [row for _, row in table[table["domain"] == domain].groupby("sequence")]
        row, place = line_start(np.array([row["byte"].tolist() for row in rows]), 32)
        served = rows[row].iloc[place : place + len(passage)]
        assert passage.encode() == bytes(served["byte"].tolist()) and len(passage) >= 32
        assert shown.experts[at : at + len(passage)].tolist() == served["expert0"].tolist()
        assert place == 0 or rows[row]["byte"].iloc[place - 1] == ord("\n")
        at += len(passage)


def test_what_the_model_writes_goes_on_from_a_held_out_line(view):
    english, json = mark(view, 5, Text).texts
    assert json.startswith('{"id"') and len(json) > 5 * PROMPT
    held_out = [bytes(row).decode() for row in view.main_run.task.held_out(8)[0].tolist()]
    assert any(english[:PROMPT] in row for row in held_out)


def test_where_a_passage_begins_and_ends():
    assert first_lines(b"a" * 200) == 3 * 36 and first_lines(b"a" * 20) == 20
    assert first_lines(b"a\nb\nc\nd") == 6
    assert first_lines("α".encode() * 200) == 2 * 3 * 36
    ids = np.array([list(b"abcdef\ng"), list(b"ab\ncdefg")])
    assert line_start(ids, room=4) == (1, 3)
    assert line_start(ids, room=1) == (0, 7)
    assert line_start(ids[:1], room=4) == (0, 0)


def test_a_group_that_nobody_serves_is_left_empty(view):
    view.main_run.knobs.capacity_factor = 0.01  # a place or two for each expert
    view.show(True)
    empty = np.isnan(mark(view, 2, Cells).z)
    view.main_run.knobs.capacity_factor = None
    assert empty.any() and not empty.all()


@pytest.mark.parametrize("name", ["domains", "classes", "text", "writing"])
def test_panels_of_text_need_a_text_and_experts(name):
    with pytest.raises(ValueError, match="task must have a held-out part|must be a LanguageModel|a mixture of experts"):
        LiveRun(Run(nn.Linear(2, 8), PlaneTask()), name)
    with pytest.raises(ValueError, match="writes, got Bigrams" if name == "writing" else "experts"):
        LiveRun(Run(Bigrams(256, 256), cached_task(TWO)), name)


class Bigrams(nn.Embedding):
    """Neither a `LanguageModel` nor a mixture of experts."""

    def forward(self, ids):
        return super().forward(ids), []


def test_every_control_has_a_name_and_says_what_it_does():
    lab = small()
    boxes = lab.inputs["domains"].boxes
    for widget in (*(w for w in lab.inputs.values() if w is not lab.inputs["domains"]), *boxes.values()):
        assert widget.description and widget.tooltip
    assert tuple(boxes) == DOMAINS and all(name in PANELS for name in routing_lab.USUAL_PANELS)
