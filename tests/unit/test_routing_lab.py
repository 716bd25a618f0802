"""The routing laboratory, and the panels that show who serves which bytes."""

import asyncio
import functools
import html

import numpy as np
import pytest
from torch import nn

from moe_lessons.analysis.traces import expert_shares, trace
from moe_lessons.nn import LanguageModel, TopKRouter, TransformerConfig, seeded
from moe_lessons.tasks import DOMAINS, PlaneTask, TextTask, make_text, text
from moe_lessons.training import Run
from moe_lessons.widgets import LiveRun, RoutingLab, panels, routing_lab
from moe_lessons.widgets.controls import KNOBS
from moe_lessons.widgets.panels import PANELS, PROMPT, first_lines, line_start, prompts, traced
from moe_lessons.widgets.routing_lab import LIVE, NAMED_ROUTERS, START, why_off

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


def on_a_loop(test):
    return functools.wraps(test)(lambda *args, **kwargs: asyncio.run(test(*args, **kwargs)))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def small(**options) -> RoutingLab:
    return RoutingLab(**{"task": TWO, "panels": "loss"} | SMALL | options)


def words(lab) -> str:
    return html.unescape(lab._words.value)


def assert_consistent(lab: RoutingLab) -> None:
    """Controls, model, task and knobs say the same; what does nothing is off."""
    values, config, idle = lab.values, lab.main_run.model.config, why_off(lab.main_run.model.config)
    for name, widget in lab._inputs.items():
        off = name in idle
        assert widget.disabled == off, name
        assert (widget.value or None) == (None if off else values[name] or None), name
    assert {name: getattr(config, name) for name in routing_lab.SIZES} == {n: values[n] for n in routing_lab.SIZES}
    assert tuple(name for name, box in lab._boxes.items() if box.value) in (values["domains"], ())
    assert lab.main_run.task.domains == values["domains"] and lab.main_run.seed == values["seed"]
    for name in LIVE:
        assert (getattr(lab.main_run.knobs, name) or None) == (None if name in idle else values[name] or None), name
    assert lab._layer.value == lab.layer


# --- training --------------------------------------------------------------------------------------------


def test_it_trains_as_a_run_does_alone_whatever_is_drawn():
    lab = small(panels=("loss", *MAPS, "writing"), seed=3, lr=0.01)
    sizes = {name: SMALL[name] for name in SMALL if name not in ("batch_size", "threads")}
    with seeded(3):
        model = LanguageModel(TransformerConfig(**sizes))
    alone = Run(model, cached_task(TWO), lr=0.01, batch_size=4, seed=3)
    alone.knobs.router_aux_loss_coef = LIVE["router_aux_loss_coef"]
    lab.advance(2)
    lab.draw()
    lab.advance(2)
    assert [r.loss for r in lab.main_run.records] == [alone.step().loss for _ in range(4)]


def test_a_text_of_your_own(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(make_text("english", 3000))
    lab = RoutingLab(TextTask.from_file(path, context=32), panels=("domains", "writing"), **SMALL)
    lab.advance(2)
    lab.draw()
    assert [label.get_text() for label in lab._figure.panels[0].ax.get_yticklabels()] == ["story.txt"]
    assert lab._boxes == {} and "TextTask(story.txt, context=32)" in repr(lab)
    with pytest.raises(ValueError, match="domains must stay .'story.txt',., those of your task"):
        lab.set(domains=TWO)
    lab.set(num_experts=2)
    assert lab.main_run.task.domains == ("story.txt",) and lab.main_run.num_experts == [2, 2]


def test_the_name_of_a_text_is_shown_as_text():
    name = "<i>a$b_1$, and a name that is longer than the room for it</i>"
    task = TextTask.from_text(make_text("english", 3000), context=32, name=name)
    lab = RoutingLab(task, panels=("domains", "writing"), **SMALL)
    assert html.escape(name) in lab._reading.value and name not in lab._reading.value
    shares, writing = (panel.ax for panel in lab._figure.panels)
    assert [label.get_text() for label in shares.get_yticklabels()] == [f"{name[:21]}…"]
    assert writing.texts[0].get_text() == f"{name[:40]}…"
    assert not any(text.get_parse_math() for text in (*shares.get_yticklabels(), *writing.texts))
    assert 0.2 < shares.get_position().width < 0.9  # what is left beside the name


@pytest.mark.parametrize("context", [2, PROMPT])
def test_a_context_shorter_than_a_prompt(context):
    task = TextTask.from_text(make_text("english", 20_000), context=context)
    lab = RoutingLab(task, panels=("text", "writing"), **SMALL)
    assert prompts(task).shape == (1, context)
    lab.advance(1)
    lab.draw()


@on_a_loop
async def test_it_plays_and_pauses_and_says_what_is_seen():
    lab = small(panels=("loss", "layers", *MAPS), play=4)
    await lab.finished()
    assert lab.step == 4 and words(lab).startswith('<div class="moe-words">Layer 0: ')
    shares = expert_shares(traced(lab), "domain", 0)
    assert f"english → {shares.loc['english'].idxmax()}" in lab._reading.value


# --- knobs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIVE)
@on_a_loop
async def test_a_knob_applies_to_the_next_step_and_starts_nothing(name):
    lab = small(router="sigmoid" if name == "expert_bias_rate" else "top-k")
    lab.advance(3)
    run, value = lab.main_run, {"lr": 0.05, "capacity_factor": 1.5, "noise_std": 0.5}.get(name, 0.1)
    lab._inputs[name].value = value
    await settled()
    assert lab.main_run is run and lab.step == 3 and lab.marks == [3] and getattr(run.knobs, name) == value
    assert_consistent(lab)


@pytest.mark.parametrize("router", NAMED_ROUTERS)
@on_a_loop
async def test_what_does_not_apply_is_off_says_why_and_comes_back(router):
    lab = small(noise_std=0.5, capacity_factor=2.0)
    lab._inputs["router"].value = router
    await settled()
    assert_consistent(lab)
    for name, reason in why_off(lab.main_run.model.config).items():
        assert reason in lab._idle.value and reason in lab._inputs[name].tooltip
        assert reason in lab._front_end.tips[KNOBS[name][0]]
    lab._inputs["router"].value = "top-k"
    await settled()
    assert_consistent(lab)
    assert (lab.main_run.knobs.noise_std, lab.main_run.knobs.capacity_factor) == (0.5, 2.0)
    lab.advance(1)


def test_what_is_set_to_off_while_it_does_not_apply_stays_off():
    lab = small()
    lab.set(router="hash", router_aux_loss_coef=0)
    lab.set(router="top-k")
    assert lab.main_run.knobs.router_aux_loss_coef == 0
    assert_consistent(lab)


# --- structure -------------------------------------------------------------------------------------------

OTHER = {"domains": ("code", "greek"), "num_experts": 8, "top_k": 1, "d_ff": 16, "router": "hash", "seed": 7}


@pytest.mark.parametrize("name", START)
@on_a_loop
async def test_what_is_of_the_structure_starts_afresh(name):
    lab = small(panels=("loss", "domains"))
    lab.advance(21)
    old = lab.main_run
    if name == "domains":
        for domain, box in lab._boxes.items():
            box.value = domain in OTHER["domains"]
    else:
        lab._inputs[name].value = OTHER[name]
    await settled()
    assert lab.step == 0 and lab.values[name] == OTHER[name] and lab.marks == []
    assert lab.ghost is (None if name == "domains" else old)
    assert_consistent(lab)
    lab.advance(2)
    assert [r.loss for r in lab.main_run.records] == [r.loss for r in advanced(repr(lab)).main_run.records]


def advanced(constructor: str) -> RoutingLab:
    lab = eval(constructor, {"RoutingLab": RoutingLab})
    lab.advance(2)
    return lab


def test_top_k_never_exceeds_the_experts():
    lab = small()
    for num_experts, top_k in ((2, 2), (1, 1), (32, 20), (4, 4)):
        lab._inputs["num_experts"].value = num_experts
        lab._inputs["top_k"].value = 32
        lab._do_actions()
        assert lab.values["top_k"] == lab._inputs["top_k"].value == num_experts
        lab.set(top_k=top_k)
        assert_consistent(lab)
    lab.set(num_experts=2)
    assert lab.values["top_k"] == 2


@on_a_loop
async def test_the_last_domain_cannot_be_unticked():
    lab = small(task="code")
    lab.advance(2)
    lab._boxes["code"].value = False
    await settled()
    assert "domains must be one of 'english'" in words(lab) and lab._boxes["code"].value
    assert lab.step == 2
    assert_consistent(lab)
    lab._boxes["english"].value = True
    await settled()
    assert lab.values["domains"] == ("english", "code") and "domains must" not in words(lab)


def test_controls_that_are_set_together_are_applied_together(monkeypatch):
    lab, made = small(), []
    make = lab._make_run
    monkeypatch.setattr(lab, "_make_run", lambda values: (made.append(values), make(values))[1])
    lab.set(num_experts=8, router="sigmoid", expert_bias_rate=0.01, domains="code", layer=1, lr=0.02)
    assert len(made) == 1
    assert_consistent(lab)


def test_reset_gives_the_same_numbers_again():
    lab = small(noise_std=0.3)
    lab.advance(3)
    first = [r.loss for r in lab.main_run.records]
    lab.reset()
    lab.advance(3)
    assert [r.loss for r in lab.main_run.records] == first


def test_loads_are_blank_until_the_first_step_of_each_start():
    lab = small(panels="layers", router_aux_loss_coef=0.0)
    panel = lab._figure.panels[0]
    assert panel.image.get_array().mask.all()
    lab.advance(2)
    panel.update(np.array([[1.0, 0, 0, 0]] * 2), np.array([[False, True, True, True]] * 2))
    lab.reset()
    lab._do_actions()
    lab.draw()
    assert lab._figure.panels[0] is panel and panel.image.get_array().mask.all() and not len(panel.dead.get_xdata())
    lab.advance(1)
    lab.draw()
    assert not np.ma.getmaskarray(panel.image.get_array()).any()


class MyRouter(TopKRouter):
    """A learner's own."""


def test_a_router_of_your_own_can_be_chosen_again():
    lab = small(router=MyRouter)
    assert set(why_off(lab.main_run.model.config)) == {"noise_std", "expert_bias_rate"}
    lab.set(router="sigmoid")
    assert "router='sigmoid'" in repr(lab)
    lab._inputs["router"].value = MyRouter
    lab._do_actions()
    assert "router=MyRouter" in repr(lab) and isinstance(lab.main_run.model.layers[0].ffn.router, MyRouter)


@pytest.mark.parametrize(
    "made",
    [
        "RoutingLab()",
        "RoutingLab(('english', 'json'), panels=('loss', 'domains'), play=2, max_steps=50, layer=1, seed=3, "
        "num_layers=2, num_experts=16, capacity_factor=1.25)",
    ],
)
def test_its_repr_makes_the_same_again(made, monkeypatch):
    monkeypatch.setattr(LiveRun, "play", lambda self, steps: None)
    assert repr(eval(made, {"RoutingLab": RoutingLab})) == made


def test_a_config_gives_what_its_fields_give():
    config = TransformerConfig(d_model=16, num_heads=2, num_layers=1, router="sigmoid", capacity_factor=1.5)
    lab = RoutingLab(TWO, config, panels="loss", num_experts=2)
    assert lab.main_run.model.config == TransformerConfig(
        d_model=16, num_heads=2, num_layers=1, router="sigmoid", num_experts=2
    )
    assert lab.main_run.knobs.capacity_factor == 1.5


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


@pytest.mark.parametrize("change, message", BAD)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": ("english", "latin")}, "domains must be one of 'english', .*, got 'latin'"),
        ({"task": ()}, "domains must be one of 'english', .*, got 'none'"),
        ({"task": 5}, "domains must be one of 'english', .*, got 5"),
        ({"config": {"d_model": 16}}, "config must be a TransformerConfig, got dict"),
        ({"moe_layers": ()}, "moe_layers must name at least one layer, got none"),
        ({"max_positions": 32}, r"context must be at most the model's max_positions \(32\), got 64"),
        ({"panels": ("loss", "speed")}, "panels must be LivePanels or of .*, got 'speed'"),
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
    "change, message", [*BAD, ({"domains": ("x",)}, "domains must be"), ({"d_model": 8}, "setting")]
)
def test_bad_values_move_nothing(untouched, change, message):
    run, values = untouched.main_run, dict(untouched.values)
    with pytest.raises(ValueError, match=message.replace(", .*got", ".*got")):
        untouched.set(**{"seed": 5} | change)
    untouched._do_actions()
    assert untouched.main_run is run and untouched.values == values
    assert_consistent(untouched)


# --- panels ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def view() -> LiveRun:
    """Not a laboratory: the panels are for any run of a language model."""
    lab = small()
    lab.advance(3)
    view = LiveRun({"a": lab.main_run}, ("loss", *MAPS, "load", "writing"))
    view.draw()
    return view


@pytest.mark.parametrize("layer", [0, 1])
def test_maps_are_the_shares_of_the_layer(view, layer):
    view.layer = layer
    view.draw()
    table = trace(view.main_run.model, view.main_run.task, 12)
    for panel, by in zip(view._figure.panels[1:3], ("domain", "byte_class"), strict=True):
        expected = expert_shares(table, by, layer)
        np.testing.assert_allclose(panel.image.get_array(), expected)
        assert [label.get_text() for label in panel.ax.get_yticklabels()] == expected.index.tolist()
    titles = [panel.ax.get_title(loc="left") for panel in view._figure.panels]
    assert all(title.endswith(f", layer {layer}") for title in titles[1:5])
    assert not any("layer" in title for title in (titles[0], titles[5]))


def test_all_panels_share_one_trace(view, monkeypatch):
    calls = []
    monkeypatch.setattr(panels, "trace", lambda *args: (calls.append(args), trace(*args))[1])
    view.draw()
    assert len(calls) == 1
    view.layer = 0
    view.draw(text=True, heavy=False)  # as a slider is answered
    assert len(calls) == 1
    view.draw()
    assert len(calls) == 2


def test_the_text_is_of_each_domain_from_the_beginning_of_a_line(view, monkeypatch):
    view.layer, seen = 1, []
    panel = view._figure.panels[3]
    monkeypatch.setattr(panel, "update", lambda *given: seen.append(given))
    view.draw()
    (line, experts), table = seen[0], trace(view.main_run.model, view.main_run.task, 12)
    assert len(line) == len(experts)
    table = table[table["layer"] == 1]
    for domain in TWO:
        rows = table[table["domain"] == domain]
        lines = [bytes(r["byte"].tolist()) for _, r in rows.groupby("sequence")]
        choices = [r["expert0"].tolist() for _, r in rows.groupby("sequence")]
        start = line.index(b"{") if domain == "json" else 0
        row, place = line_start(np.array([list(line) for line in lines]), 32)
        assert line[start : start + 30] == lines[row][place : place + 30]
        assert experts[start : start + 30] == choices[row][place : place + 30]
        assert place == 0 or lines[row][place - 1 : place] == b"\n"


def test_what_the_model_writes_goes_on_from_a_held_out_line(view):
    ids = prompts(view.main_run.task)
    assert ids.shape == (2, PROMPT) and bytes(ids[1].tolist()).startswith(b'{"id"')
    for row, artist in zip(ids, view._figure.panels[5].texts, strict=True):
        assert artist.get_text().startswith(bytes(row.tolist()).decode())


def test_first_lines():
    assert first_lines(b"abcdef", width=3, lines=2) == (6, 0)
    assert first_lines(b"abcdefg", width=3, lines=2) == (6, 0)
    assert first_lines(b"ab", width=3, lines=1) == (2, 1)
    assert first_lines(b"a\nbc", width=3, lines=1) == (2, 0)
    assert first_lines("αβ".encode(), width=4, lines=1) == (4, 1)  # a Greek letter is one and a half wide


def test_line_start():
    ids = np.array([list(b"abcdef\ng"), list(b"ab\ncdefg")])
    assert line_start(ids, room=4) == (1, 3)
    assert line_start(ids, room=1) == (0, 7)
    assert line_start(ids[:1], room=4) == (0, 0)


def test_a_group_that_nobody_serves_is_left_white(view):
    run = view.main_run
    run.knobs.capacity_factor = 0.01  # a place or two for each expert
    view.draw()
    shown = view._figure.panels[2].image.get_array()
    run.knobs.capacity_factor = None
    assert shown.mask.any() and not shown.mask.all()


@pytest.mark.parametrize("name", ["domains", "classes", "text", "writing"])
def test_panels_of_text_need_a_text_and_experts(name):
    with pytest.raises(ValueError, match="task must have a held-out part|must be a LanguageModel|a mixture of experts"):
        LiveRun(Run(nn.Linear(2, 8), PlaneTask()), name)
    dense = Run(LanguageModel(TransformerConfig(d_model=16, num_heads=2, moe_layers=())), cached_task(TWO))
    if name != "writing":
        with pytest.raises(ValueError, match="experts"):
            LiveRun(dense, name)


def test_only_a_language_model_writes():
    class Bigrams(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids), []

    with pytest.raises(ValueError, match="model must be a LanguageModel where it writes, got Bigrams"):
        LiveRun(Run(Bigrams(256, 256), cached_task(TWO)), "writing")


@on_a_loop
async def test_the_layer_can_be_clicked():
    lab = small(panels=("layers", "loss"))
    width, height = lab._figure.canvas.get_width_height()
    x, y = lab._figure.panels[0].ax.transData.transform((1, 1))
    lab._front_end.click = [x / width, 1 - y / height, 1.0]
    await settled()
    assert lab.layer == 1
    assert_consistent(lab)


def test_every_control_has_a_name_and_says_what_it_does():
    lab = small()
    for widget in (*lab._inputs.values(), *lab._boxes.values(), lab._layer, lab._x_axis):
        assert widget.description and widget.tooltip
    assert tuple(lab._boxes) == DOMAINS and all(name in PANELS for name in routing_lab.USUAL_PANELS)
