"""Panels drawn by matplotlib: every mark, nothing over the data, and panels in rows."""

import json
import warnings
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text as Written

from moe_lessons.plots import figure, marks, still
from moe_lessons.plots.marks import Axis, Bars, Cells, Line, Panel, Points, Spots, Stack, Table, Text
from moe_lessons.plots.panels.compared import loss_panel
from moe_lessons.plots.panels.passages import text_panel
from moe_lessons.plots.panels.shares import load_panel
from moe_lessons.plots.still import plot
from moe_lessons.plots.theme import LIGHT, expert_color

X, TWO = np.arange(3.0), np.full((3, 2), 0.5)
MARKS = [
    marks.Field(np.zeros((2, 2, 3))),
    marks.Cells(TWO, even=0.5, selected=1),
    marks.Bars(X, limit=0.5, second=X),
    marks.Stack(X, TWO, second=TWO[0]),
    marks.Heat(TWO, 4.0, np.ones((2, 3)), 1, TWO, 1, "abc", ((("a", "b"),),) * 3, X[:2]),
    marks.Line(X, X, "MoE", 2, model=0, low=X, high=X + 1),
    marks.Points(X, X, X > 1, X.astype(int), tokens=True, selected=2),
    marks.Drawn("0fle3xy7", 1),
    marks.Spots([X] * 3, [X] * 3, X.astype(int), ("a", "b", "c")),
    marks.Parts(("total",), ("experts", "head"), TWO[:1], ("#000000", "#ffffff")),
    marks.Rule(y=0.5, name="even share"),
    marks.Boxes(np.ones((3, 4)), "abc", [1, 3, 5], [8, 1, -1], [-1, 0, 1], "abc", 1),
    marks.Arrows([(0, 1, 2, 3)] * 3, [8, 1, -1], [-1, 0, 1], 1),
    marks.Lamps(X > 0, 2, 1, np.full((3, 2), 65)),
    marks.Route(X / 4, X * (X > 1), 4, (0.1, -0.2), 2, False),
    marks.Text(("ab", "α"), ("x", "y"), np.zeros(4, int), (1, 1, 2)),
    marks.Table(("MoE",), ("loss",), (("0.3",),)),
]
NAMES = [type(mark).__name__ for mark in MARKS]
PLANE = Axis(-1, 2), Axis(-1, 2)
STEPS = np.arange(1, 101)
MODELS = "MoE", "dense, same active", "dense, same total", "equally good dense"
LOSSES = {name: (STEPS, 2 - STEPS / 100 + i) for i, name in enumerate(MODELS[:3])}


def drawn(*content, x=PLANE[0], y=PLANE[1], **more):
    return plot(Panel("title", content, x, y, **more), width=4, height=3)


def hexes(colors) -> list[str]:
    return [to_hex(color).upper() for color in colors]


def colors_of(experts) -> list[str]:
    return [expert_color(expert).upper() for expert in experts]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("mark", MARKS, ids=NAMES)
def test_every_mark_is_drawn(mark):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax, empty = drawn(mark), drawn(marks.Line([], []))
        assert ax.figure.png() != empty.figure.png()
    assert ax.get_title(loc="left") == "title"


def test_bars_cells_points_and_spots_lie_where_they_are_said_to_in_the_colour_of_their_expert():
    ax = drawn(Bars([0.4, 0.6] + [0] * 14, limit=0.5))
    assert [(bar.get_y(), round(bar.get_height(), 9)) for bar in (*ax.patches[:2], ax.patches[17])] == [
        (0, 0.4), (0, 0.5), (0.5, 0.1)]  # fmt: skip
    assert hexes(bar.get_facecolor() for bar in ax.patches[:16]) == colors_of(range(16))
    low, high = drawn(Cells([[0.0, 1.0]])).collections[0].get_array()[0]
    assert np.allclose(high, to_rgb(expert_color(1))) and not np.allclose(low, high, atol=0.3)
    ax = drawn(Cells([[0, 0.25, 1]], even=0.25, numbers=True), x=Axis(-0.5, 2.5), y=Axis(0.5, -0.5))
    low, even, high = ax.collections[0].to_rgba(ax.collections[0].get_array())[0]
    assert [to_hex(low), to_hex(high)] == list(LIGHT.directions) and texts(ax) == ["0", "25", "100"]
    ax = drawn(Points([0, 1, 2], [2, 1, 0], [0, 1, 2], tokens=True, selected=1))
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0, 2]], [[1, 1]], [[2, 0]], [[1, 1]]]
    x = np.array([0.5, 1.5])
    across, up = drawn(Spots([x, x - 0.3, x + 0.1], [x, x - 0.2, x + 0.2], [4, 1], ["a", "b"])).collections[:2]
    np.testing.assert_allclose(across.get_segments()[0], [[0.2, 0.5], [0.6, 0.5]])
    np.testing.assert_allclose(up.get_segments()[1], [[1.5, 1.3], [1.5, 1.7]])


def test_a_stack_has_each_expert_as_high_as_its_share_and_a_field_is_divided_where_scores_are_equal():
    shares = np.array([[0.25, 0.0, 0.75], [0.5, 0.25, 0.25]])
    ax = drawn(Stack([1, 2], shares, second=[0.2, 0.3, 0.5]), x=Axis(0, 2), y=Axis(0, 1))
    assert hexes(band.get_facecolor()[0] for band in ax.collections) == colors_of(range(3))
    for band, tops in zip(ax.collections, shares.cumsum(axis=1).T):
        corners = {tuple(np.round(corner, 9)) for corner in band.get_paths()[0].vertices}
        assert {(0, tops[0]), (1, tops[0]), (2, tops[1])} <= corners  # a step counts from where the last one ended
    np.testing.assert_allclose([(s.get_y(), s.get_height()) for s in ax.patches], [(0, 0.2), (0.2, 0.3), (0.5, 0.5)])
    x, y = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    z = np.stack([x - 0.3, 0 * x, y - 9, y - 9], axis=-1)  # expert 0 from x = 0.3 on, 1 before it, 2 and 3 nowhere
    ax = drawn(marks.Field(z), x=Axis(-1, 1), y=Axis(-1, 1))
    ends = [own.get_paths()[0].get_extents().extents for own in ax.collections[:2]]
    np.testing.assert_allclose(ends, [(0.3, -1, 1, 1), (-1, -1, 0.3, 1)], atol=1e-6)
    assert hexes(own.get_facecolor()[0] for own in ax.collections) == colors_of(range(4))
    assert {text.get_text(): text.xy[0] > 0.3 for text in ax.texts} == {"0": True, "1": False}


def test_where_a_legend_is_given_names_stand_at_the_ends_of_lines_one_over_the_other():
    lines = [Line([0, 1], [1, y], name, 4, i) for i, (y, name) in enumerate(zip((0, 1.9, 0, 1.9), "abcd"))]
    ax = drawn(*lines, legend=[(4, "green")])
    ax.figure.canvas.draw()
    boxes = sorted((Written.get_window_extent(text) for text in ax.texts), key=lambda box: box.y0)
    assert sorted(texts(ax)) == ["a", "b", "c", "d"]
    assert all(low.y1 <= high.y0 + 2 for low, high in zip(boxes, boxes[1:]))
    ax = drawn(*(Line([0, 1], [1, 0.5], name, 4, i) for i, name in enumerate("abc")), legend=[(4, "green")])
    ax.figure.canvas.draw()  # as far above where they all end as below
    middles = [Written.get_window_extent(text).get_points()[:, 1].mean() for text in ax.texts]
    assert np.mean(middles) == pytest.approx(ax.transData.transform((1, 0.5))[1], abs=2)


def test_letters_stand_in_boxes_of_their_experts_colour_and_none_over_another(experts=32):
    data = 'if a<b: "τηε"\n  x$y$z鞖\0'.encode() * 3  # of the last two, none can be drawn
    served = np.arange(len(data)) % experts
    served[5] = -1
    ax = figure([text_panel([(data, served)], ("a name",))], width=640).axes[0]
    places = [(box.get_x(), box.get_y()) for box in ax.patches]
    assert len(set(places)) == len(places) == (served >= 0).sum() and np.min(places) >= 0
    assert max(x for x, _ in places) < ax.get_xlim()[1] and max(y for _, y in places) < ax.get_ylim()[0]
    assert hexes(box.get_facecolor() for box in ax.patches) == colors_of(served[served >= 0])
    assert [text for text in texts(ax) if text.isdecimal()] == [str(e) for e in served if e >= 0]
    letters = "".join(text for text in texts(ax)[1:] if not text.isdecimal())
    assert letters == data.decode().translate({10: "↵", 32: "", 0: "·", ord("鞖"): "·"})


def test_panels_stand_in_rows_of_twelve_columns_with_room_for_all_their_letters():
    cells = Cells(np.full((2, 8), 1 / 8), even=1 / 8, most=0.5, numbers=True, rows="group")
    wide = Axis(1.5, -0.5, ticks=[(0, "continuation byte"), (1, "x")])
    table = Table(MODELS, ("parameters", "held-out loss"), (("1,928", "568", "1,720", "98.3 K"),) * 2, range(4))
    panels = [loss_panel(LOSSES), load_panel([0.125] * 8), Panel("table", [table])]
    panels += [Panel("words", [Text(["some text " * 30, "more"], ("english", "code"))], width=6)]
    panels += [Panel("cells", [cells], marks.experts_axis(8), wide, width=6, height=150)]
    panels += [replace(load_panel([0.125] * 8), width=3, height=150, caption="a\nb", selected=True)] * 2
    made = figure(panels, caption="What is seen. " * 20)
    made.canvas.draw()
    shown = [part.axes[0] for part in made.subfigs]
    boxes = [ax.get_tightbbox() for ax in shown]
    assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))
    assert all(0 <= box.x0 and box.x1 <= made.bbox.x1 and box.y1 <= made.bbox.y1 for box in boxes)


@pytest.mark.parametrize("mark", MARKS, ids=NAMES)
def test_a_header_can_be_said_in_json_and_has_all_numbers_in_arrays(mark):
    assert [type(mark) for mark in MARKS] == list(still.DRAWING)
    panel = Panel("title", [mark, mark], Axis(0, 2, "step", link="step"), legend=[(4, "green")])
    header, arrays = marks.encode_panel(panel, 7)
    said = json.loads(json.dumps(header))
    assert said["title"] == "title" and said["x"]["link"] == "step" and said["legend"] == [[4, "green"]]
    assert [one["mark"] for one in said["marks"]] == [type(mark).__name__] * 2
    slots = {value["slot"] for one in header["marks"] for value in one.values() if isinstance(value, dict)}
    assert slots == set(arrays) and all(slot.startswith(("7.0.", "7.1.")) for slot in slots)
    for slot, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(mark, slot.split(".")[-1]))
        assert array.flags.c_contiguous and array.dtype.str[1:] in ("f2", "f4", "u1", "i1", "u2", "i2", "i4")


@pytest.mark.parametrize("experts, busy", [(8, 2), (16, 1), (16, 16), (3, 0)])
def test_the_way_of_a_token_names_who_computes_and_their_sum(experts, busy):
    weights = np.where(np.arange(experts) < busy, 1 / max(busy, 1), 0)
    ax = drawn(marks.Route(np.full(experts, 1 / experts), weights, 4, (0.1, -0.2), 2, True))
    said = texts(ax)
    assert {"token 4 at (0.10, −0.20)", "correct: class 2"} <= set(said)
    terms = {2: "y = 0.50 · E0(x) + 0.50 · E1(x)", 1: "y = 1.00 · E0(x)", 16: "weighted sum of 16 experts"}
    assert terms.get(busy, "y = 0: no expert serves it") in said
    colored = [box for box in ax.patches if to_hex(box.get_facecolor()).upper() in colors_of(range(busy))]
    assert len(colored) == 2 * busy  # a bar of the router, and an expert


def test_numbers_are_sent_in_a_type_that_a_page_has():
    for given, sent in (("f8", "f4"), ("i8", "i4"), ("u8", "i4"), ("?", "u1"), ("f2", "f2"), ("u1", "u1")):
        header, arrays = marks.encode_panel(Panel("", [marks.Bars(np.ones(3, given))]), 0)
        assert arrays["0.0.y"].dtype == np.dtype(sent) and not {"second", "limit"} & set(header["marks"][0])
    parts = marks.Parts(("total",), ("experts",), [[46_000_000_000]], ("#000000",))
    _, arrays = marks.encode_panel(Panel("", [marks.Line(torch.arange(3), np.arange(6.0)[::2]), parts]), 0)
    assert arrays["0.0.y"].tolist() == [0, 2, 4] and arrays["0.1.values"].item() == pytest.approx(46e9)


def test_of_many_lines_those_that_end_alone_are_named():
    lines = [Line([0, 1], [0, end], f"line {end}", 3, model) for model, end in enumerate((0, 0.1, 4, 4.1, 4.2, 4, 2))]
    for shown, named in ((lines, ["line 2"]), (lines[:3], ["line 0", "line 0.1", "line 4"])):
        ax = still.plot(Panel("", shown, Axis(0, 1), Axis(0, 5), legend=[(3, "all")]))
        assert sorted(text.get_text() for text in ax.texts) == named
