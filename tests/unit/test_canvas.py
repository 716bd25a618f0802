"""The kernel's side of the canvas: it sends what has changed, stops when no page draws, and believes no message."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from live_tools import hear

from moe_lessons.plots.marks import Bars, Line, Panel
from moe_lessons.widgets import canvas as module
from moe_lessons.widgets.canvas import FIRST_PATIENCE, IN_FLIGHT, LONGEST_PATIENCE, LiveCanvas
from moe_lessons.widgets.kernel import prepare_kernel


def a_canvas(*on_pick) -> LiveCanvas:
    made = LiveCanvas(*on_pick)
    made.sent = []
    made.send = lambda content, buffers: made.sent.append((content, bytes(buffers[0])))
    return made


def panel(*heights: float, title: str = "load") -> Panel:
    return Panel(title, [Bars(np.array(heights, "f4")), Line(np.arange(3, dtype="u1"), np.zeros(3, "f2"))])


def arrays(message) -> dict[str, np.ndarray]:
    content, data = message
    return {
        slot: np.frombuffer(data, dtype, int(np.prod(shape)), start).reshape(shape)
        for slot, dtype, shape, start in content["slots"]
    }


def test_only_what_has_changed_is_sent_and_a_page_that_says_hello_gets_everything():
    canvas = a_canvas()
    canvas.show({0: panel(0.25, 0.75), 1: panel(0.5)}, count=2, words="even", step=1)
    first, _ = canvas.sent[-1]
    assert set(first["panels"]) == {0, 1} and first["words"] == {"words": "even", "step": 1, "count": 2}
    assert set(arrays(canvas.sent[-1])) == {f"{place}.{slot}" for place in (0, 1) for slot in ("0.y", "1.x", "1.y")}
    canvas.show({0: panel(0.25, 0.75), 1: panel(0.625)}, count=2, words="even", step=2)
    content, data = canvas.sent[-1]
    assert content["panels"] == {} and content["words"] == {"step": 2} and len(data) == 8
    assert list(arrays(canvas.sent[-1])) == ["1.0.y"] and arrays(canvas.sent[-1])["1.0.y"] == 0.625
    canvas.show({0: panel(0.25, 0.75, title="share")}, 2)
    content, data = canvas.sent[-1]
    assert list(content["panels"]) == [0] and content["slots"] == [] and data == b""
    assert canvas.panels[0].title == "share" and canvas.panels[1].marks[0].y == 0.625
    hear(canvas, {"hello": True})
    content, _ = canvas.sent[-1]
    assert set(content["panels"]) == {0, 1} and content["words"] == {"words": "even", "step": 2, "count": 2}
    assert content["answer"] and set(content["colors"]) == {"palette", "red", "light", "dark"}
    assert arrays(canvas.sent[-1])["1.0.y"] == 0.625 and len(arrays(canvas.sent[-1])) == 6


def test_a_page_that_does_not_answer_gets_fewer_and_fewer_pictures_until_it_answers(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    canvas, tries = a_canvas(), []
    for _ in range(2 * IN_FLIGHT):
        if canvas.ready:
            canvas.show({}, 0)
    assert len(canvas.sent) == IN_FLIGHT and any(content.get("answer") for content, _ in canvas.sent)
    for _ in range(40_000):
        clock.now += 0.01
        if canvas.ready:
            canvas.show({}, 0)
            tries.append(clock.now - 1000)
    waited = np.diff([0, *tries])
    assert waited[:4] == pytest.approx(FIRST_PATIENCE * 2.0 ** np.arange(4), abs=0.03)
    assert waited[-1] == pytest.approx(LONGEST_PATIENCE, abs=0.03) and len(tries) < 25
    assert all(content["answer"] for content, _ in canvas.sent[IN_FLIGHT:])  # each try asks
    hear(canvas, {"drawn": canvas.frame})
    for _ in range(IN_FLIGHT):
        assert canvas.ready
        canvas.show({}, 0)
    assert not canvas.ready
    clock.now += FIRST_PATIENCE + 0.01
    assert canvas.ready  # its patience is the first again


@pytest.mark.parametrize("drawn", [0, 2, 5, -1, True, 1.5, "4", None, [4], 10**400])
def test_an_answer_that_is_late_early_or_none_changes_nothing(drawn):
    canvas = a_canvas()
    for _ in range(4):
        canvas.show({}, 0)
    hear(canvas, {"drawn": 3, "behind": 2.5})
    hear(canvas, {"drawn": drawn, "behind": 7})
    assert (canvas.answered, canvas.behind) == (3, 2.5)


names = st.sampled_from(["drawn", "behind", "hello", "pick", "index"]) | st.text(max_size=3)
leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.integers() | st.floats() | st.text(max_size=3)
anything = st.recursive(leaves, lambda part: st.lists(part, max_size=3) | st.dictionaries(names, part, max_size=4))


@given(st.lists(anything | st.dictionaries(names, anything, max_size=4), min_size=1, max_size=5))
@example([{"drawn": 4, "behind": float("nan")}, {"pick": "token"}, {"pick": [], "index": True}])
@example([{"drawn": 3, "behind": 10**400}, {"drawn": 4, "behind": "2"}])
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_no_message_from_a_page_does_harm_and_what_is_clicked_is_passed_on(messages):
    picks = []
    canvas = a_canvas(lambda *pick: picks.append(pick))
    for _ in range(4):
        canvas.show({0: panel(0.5)}, 1, words="even")
    for message in messages:
        hear(canvas, message)
        assert 0 <= canvas.answered <= canvas.frame and 1 <= canvas.behind <= 10
    assert all(isinstance(kind, str) and type(index) is int and index >= 0 for kind, index in picks)
    hear(canvas, {"pick": "token", "index": 3})
    assert picks[-1] == ("token", 3) and canvas.words == {"words": "even", "count": 1} and set(canvas.panels) == {0}
    canvas.show({0: panel(0.25)}, 1)
    assert arrays(canvas.sent[-1])["0.0.y"] == 0.25


def test_colab_is_asked_once_per_import_and_nothing_else_is(monkeypatch):
    prepare_kernel()
    assert "google.colab" not in sys.modules
    asked, colab = [], ModuleType("google.colab")
    colab.output = SimpleNamespace(enable_custom_widget_manager=lambda: asked.append(True))
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    prepare_kernel()
    assert asked == [True]
