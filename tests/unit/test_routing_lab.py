"""The routing laboratory, and the panels that show who serves which bytes."""

import functools

import numpy as np
import pytest
from live_tools import TEXT, assert_consistent, click, losses, mark, on_a_loop, settled

from moe_lessons.analysis.traces import expert_shares, trace
from moe_lessons.nn import TopKRouter
from moe_lessons.plots.marks import Cells, Text
from moe_lessons.plots.panels.passages import PROMPT, line_start
from moe_lessons.tasks import TextTask, make_text, text
from moe_lessons.widgets import LiveRun, RoutingLab, live, routing_lab
from moe_lessons.widgets.picture import descendants

TWO = ("english", "json")
MAPS = ("domains", "classes", "text")


@pytest.fixture(autouse=True, scope="module")
def _texts_are_short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "TRAIN_BYTES", 20_000)
        patch.setattr(text, "HELD_OUT_BYTES", 4_000)
        patch.setattr(routing_lab, "corpus", functools.cache(TextTask))
        yield


def small(**options) -> RoutingLab:
    return RoutingLab(**{"task": TWO, "panels": "loss"} | TEXT | options)


def test_a_text_of_your_own_whose_name_is_shown_as_text():
    name = "<i>a$b_1$, and a name that is longer than the room for it</i>"
    task = TextTask({name: make_text("english", 3000)}, context=32)
    lab = RoutingLab(task, panels=("domains", "writing"), **TEXT)
    assert "domains" not in lab.inputs and f"TextTask({name}, context=32)" in repr(lab)
    assert name in lab.canvas.words["reading"]  # the page knows no HTML here
    assert any("&lt;i&gt;a$b_1$" in getattr(child, "value", "") for child in descendants(lab))
    assert lab.picture().png() and mark(lab, 1, Text).names == (name,)
    with pytest.raises(ValueError, match="^setting must .*'domains'"):
        lab.set(domains=TWO)
    lab.set(num_experts=2)
    assert lab.main_run.task is task and lab.main_run.num_experts == [2, 2]


def test_a_router_of_your_own_can_be_chosen_again():
    class MyRouter(TopKRouter):
        pass

    lab = small(router=MyRouter)
    idle = set(lab.idle(lab.state.values))
    assert {"noise_std", "expert_bias_rate"} <= idle and "router_aux_loss_coef" not in idle and "MyRouter" in repr(lab)
    lab.set(router="sigmoid")
    assert "router='sigmoid'" in repr(lab)
    lab.inputs["router"].value = MyRouter
    assert "router=MyRouter" in repr(lab) and isinstance(lab.main_run.model.layers[0].ffn.router, MyRouter)
    assert_consistent(lab)


def test_an_update_that_only_the_picture_finds_too_large_is_taken_back():
    lab = small(panels=("loss", "writing"))
    lab.advance(2)
    lab.set(lr=1e15)
    lab.advance(1)
    assert lab.canvas.words["trouble"] and lab.step < 3
    lab.set(lr=0.01)
    lab.advance(2)
    assert lab.step == 4 and lab.canvas.words["trouble"] == "" and losses(lab)["MoE"][-1] < 6


@pytest.fixture(scope="module")
def view() -> LiveRun:
    """Not a laboratory: the panels are for any run of a language model."""
    lab = small()
    lab.advance(3)
    return LiveRun({"a": lab.main_run}, ("loss", *MAPS, "load", "writing"))


@pytest.mark.parametrize("layer", [0, 1])
def test_maps_are_the_shares_of_the_layer(view, layer):
    view.state.values = {"layer": layer}
    view.show(True)
    table = trace(view.main_run.model, view.main_run.task, 12)
    for place, by in ((1, "domain"), (2, "byte_class")):
        expected = expert_shares(table, by, layer)
        np.testing.assert_allclose(mark(view, place, Cells).z, expected, rtol=1e-6)
        assert [name for _, name in view.canvas.panels[place].y.ticks] == expected.index.tolist()


@on_a_loop
async def test_all_panels_and_lines_share_one_trace_also_when_the_layer_is_switched(monkeypatch):
    calls = []
    monkeypatch.setattr(live, "trace", lambda *args: (calls.append(args), trace(*args))[1])
    lab = small(panels=("layers", *MAPS))
    lab.inputs["layer"].value = 1
    await settled()
    assert lab.canvas.panels[1].title.endswith(", layer 1")
    click(lab, "layer", 0)
    await settled()
    assert lab.canvas.panels[0].marks[0].selected == lab.state.layer == 0 and len(calls) == 1
    lab.advance(1)
    assert len(calls) == 2


def test_the_text_is_of_each_domain_from_the_beginning_of_a_line_and_what_is_written_goes_on_from_one(view):
    view.state.values = {"layer": 1}
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
    english, json = mark(view, 5, Text).texts
    assert json.startswith('{"id"') and len(json) > 5 * PROMPT
    held_out = [bytes(row).decode() for row in view.main_run.task.held_out(8)[0].tolist()]
    assert any(english[:PROMPT] in row for row in held_out)


def test_a_group_that_nobody_serves_is_left_empty():
    lab = small(panels="classes", capacity_factor=0.01)  # a place or two for each expert
    empty = np.isnan(mark(lab, 0, Cells).z)
    assert empty.any() and not empty.all()
