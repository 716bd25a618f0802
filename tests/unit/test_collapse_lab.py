"""The live view of a collapse, and the pictures of lesson 05."""

import numpy as np
import pytest
from live_tools import mark, on_a_loop, words

from moe_lessons.analysis.collapse import watched_run
from moe_lessons.plots import THEMES, LessonFigure, expert_color
from moe_lessons.plots.collapse import accuracy_dots, dead_curves, dead_histogram, push_bars, share_scatter
from moe_lessons.plots.marks import Bars, Stack
from moe_lessons.training import PRESETS
from moe_lessons.widgets.collapse_lab import PANELS_OF_A_COLLAPSE, CollapseLab


@on_a_loop
async def test_it_trains_the_collapse_and_says_what_is_seen():
    lab = CollapseLab(PANELS_OF_A_COLLAPSE, play=25)
    assert "All 8 experts work" in words(lab)  # of the clean load, before the first step
    assert mark(lab, 1, Bars).y.tolist() == pytest.approx(lab.clean_load)
    await lab.finished()
    plain = watched_run(PRESETS["collapse"])
    assert [plain.step().loss for _ in range(25)] == [record.loss for record in lab.main_run.records]
    assert "experts are dead" in words(lab) and lab.canvas.panels[0].x.high == 25  # a collapse is over by then


@on_a_loop
async def test_gradients_are_shown_as_shares_also_where_there_are_none():
    for learns, total in (("all", 1), ("router only", 0)):
        lab = CollapseLab(("gradient film", "gradient"), learns=learns)
        lab.advance(8)
        film, bars = mark(lab, 0, Stack), mark(lab, 1, Bars)
        assert bars.y.sum() == pytest.approx(total) and bars.second_name == "its load"
        assert bars.second == pytest.approx(np.mean([r.load[0] for r in lab.main_run.records], axis=0))
        assert film.x.tolist() == (list(range(1, 9)) if total else []) and film.y.sum(axis=1) == pytest.approx(1)


# --- the pictures ----------------------------------------------------------------------------------------

rng = np.random.default_rng(0)
DRAWINGS = {
    "share_scatter": lambda **k: share_scatter(rng.random((5, 3)), rng.random((5, 3)), ("x", "y"), "Shares", **k),
    "push_bars": lambda **k: push_bars(np.array([1.0, 0]), np.array([-0.5, -2]), **k),
    "dead_curves": lambda **k: dead_curves({"a": [[0, 1, 2], [0, 2, 4]], "b": [[0, 0, 0]]}, **k),
    "dead_histogram": lambda **k: dead_histogram({"K = 1": [1, 1, 3], "K = 2": [0, 0, 1]}, **k),
    "accuracy_dots": lambda **k: accuracy_dots({"a": [0.8, 0.9], "b": [0.7, 0.9]}, "Accuracy", **k),
}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", DRAWINGS)
def test_it_draws_on_given_axes_and_on_its_own(name, theme):
    ax = DRAWINGS[name](theme=theme)
    assert isinstance(ax.figure, LessonFigure) and ax.get_title(loc="left")
    assert ax.title.get_text() == "" and ax._left_title.get_color() == THEMES[theme].foreground
    given = LessonFigure(4, 3, THEMES[theme]).add_subplot()
    assert DRAWINGS[name](ax=given, theme=theme) is given
    given.figure.png()
    with pytest.raises(ValueError, match="theme must be"):
        DRAWINGS[name](theme="pink")


def test_scatter_shows_each_expert_in_its_colour():
    x, y = rng.random((4, 3)), rng.random((4, 3))
    ax = share_scatter(x, y, ("x", "y"), "Shares")
    for expert, points in enumerate(ax.collections):
        assert np.allclose(points.get_offsets(), np.stack([x[:, expert], y[:, expert]], axis=1))
        assert points.get_label() == f"E{expert}"
    even = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert {tuple(map(float, [*line.get_xdata(), *line.get_ydata()])) for line in even} == {
        (0, 1, 1 / 3, 1 / 3), (1 / 3, 1 / 3, 0, 1),
    }  # fmt: skip


def test_push_bars_are_as_high_as_the_pushes():
    ax = push_bars(np.array([1.0, 0.25]), np.array([-0.5, -2.0]))
    assert [bar.get_height() for bar in ax.patches[:4]] == [1.0, 0.25, -0.5, -2.0]
    from matplotlib.colors import to_hex

    assert to_hex(ax.patches[1].get_facecolor()).upper() == expert_color(1).upper()


def test_curves_are_the_means_and_the_histogram_counts():
    ax = dead_curves({"a": [[0, 1, 2], [0, 2, 4]]})
    assert ax.lines[0].get_ydata().tolist() == [0, 1.5, 3] and ax.lines[0].get_xdata().tolist() == [1, 2, 3]
    ax = dead_histogram({"K = 1": [1, 1, 3]}, num_experts=4)
    assert [bar.get_height() for bar in ax.patches] == [0, 2, 0, 1]


def test_accuracy_dots_show_each_seed_and_the_mean():
    ax = accuracy_dots({"a": [0.8, 0.9]}, "Accuracy")
    assert ax.lines[0].get_ydata() == pytest.approx([0.8, 0.9])
    assert "85.0%" in [text.get_text() for text in ax.texts]
