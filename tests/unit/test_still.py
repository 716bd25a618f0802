"""Panels drawn by matplotlib: every mark in its place and colour, nothing over the data, and panels in rows."""

import json
import warnings
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgba

from moe_lessons.plots import figure, marks
from moe_lessons.plots.marks import Axis, Bars, Cells, Panel, Points, Spots, Stack, Table, Text
from moe_lessons.plots.panels.compared import loss_panel
from moe_lessons.plots.panels.passages import text_panel
from moe_lessons.plots.panels.shares import load_panel
from moe_lessons.plots.still import plot
from moe_lessons.plots.theme import BLACK, LIGHT, WHITE, expert_color
from moe_lessons.widgets import Playground

X, TWO = np.arange(3.0), np.full((3, 2), 0.5)
MARKS = [
    marks.Field(np.zeros((2, 2, 3))),
    marks.Cells(TWO, even=0.5, selected=1),
    marks.Bars(X, limit=0.5, second=X),
    marks.Stack(X, TWO, second=TWO[0]),
    marks.Heat(TWO, 4.0, np.ones((2, 3)), "ab", ("low", "high"), TWO, 1, "abc", X[:2]),
    marks.Line(X, X, "MoE", 2, model=0, low=X, high=X + 1),
    marks.Points(X, X, X > 1, X.astype(int), tokens=True, selected=2),
    marks.Drawn("0fle3xy7", 1),
    marks.Spots([X] * 3, [X] * 3, X.astype(int), ("a", "b", "c")),
    marks.Parts(("total",), ("experts", "head"), TWO[:1], ("#000000", "#ffffff")),
    marks.Rule(y=0.5, name="even share"),
    marks.Boxes(np.ones((3, 4)), "abc", [1, 3, 5], [8, 1, -1], [-1, 0, 1], "abc", 1),
    marks.Arrows([(0, 1, 2, 3)] * 3, [8, 1, -1], [-1, 0, 1], 1),
    marks.Lamps(X.astype(int), 2, "MoE", 1, np.full((3, 5), 65), np.full((3, 2), 65)),
    marks.Route(X / 4, X * (X > 1), "a token", "wrong"),
    marks.Text(("ab", "α"), ("x", "y"), np.zeros(4, int), (1, 1, 2)),
    marks.Table(("MoE",), ("loss",), (("0.3",),)),
]
PLANE = Axis(-1, 2), Axis(-1, 2)


def drawn(*content, x=PLANE[0], y=PLANE[1], **more):
    return plot(Panel("title", content, x, y, **more), width=4, height=3)


def hexes(colors) -> list[str]:
    return [to_hex(color).upper() for color in colors]


def colors_of(experts) -> list[str]:
    return [expert_color(expert).upper() for expert in experts]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: type(mark).__name__)
def test_every_mark_is_drawn_and_can_be_sent_in_json_with_its_numbers_in_arrays(mark):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawn(mark).figure.png() != drawn(marks.Line([], [])).figure.png()
    header, arrays = marks.encode_panel(Panel("title", [mark, mark], Axis(0, 2, "step", link="step")), 7)
    said = json.loads(json.dumps(header))
    assert [one["mark"] for one in said["marks"]] == [type(mark).__name__] * 2 and said["x"]["link"] == "step"
    slots = {value["slot"] for one in header["marks"] for value in one.values() if isinstance(value, dict)}
    assert slots == set(arrays)
    for slot, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(mark, slot.split(".")[-1]))
        assert array.flags.c_contiguous


def test_numbers_are_sent_in_a_type_that_a_page_has():
    for given, sent in (("f8", "f4"), ("i8", "i4"), ("u8", "i4"), ("?", "u1"), ("f2", "f2"), ("u1", "u1")):
        _, arrays = marks.encode_panel(Panel("", [marks.Bars(np.ones(3, given))]), 0)
        assert arrays["0.0.y"].dtype == np.dtype(sent)
    parts = marks.Parts(("total",), ("experts",), [[46_000_000_000]], ("#000000",))
    _, arrays = marks.encode_panel(Panel("", [marks.Line(torch.arange(3), np.arange(6.0)[::2]), parts]), 0)
    assert arrays["0.0.y"].tolist() == [0, 2, 4] and arrays["0.1.values"].item() == pytest.approx(46e9)


def test_bars_cells_points_and_spots_lie_where_they_are_said_to_in_the_colour_of_their_expert():
    ax = drawn(Bars([0.4, 0.6] + [0] * 14, limit=0.5))
    assert [(bar.get_y(), round(bar.get_height(), 9)) for bar in (*ax.patches[:2], ax.patches[17])] == [
        (0, 0.4), (0, 0.5), (0.5, 0.1)]  # fmt: skip
    assert hexes(bar.get_facecolor() for bar in ax.patches[:16]) == colors_of(range(16))
    low, high = drawn(Cells([[0.0, 1.0]])).collections[0].get_array()[0]
    assert np.allclose(high, to_rgba(expert_color(1))) and low[3] == 0
    ax = drawn(Cells([[0, 0.25, 1]], even=0.25, numbers=True), x=Axis(-0.5, 2.5), y=Axis(0.5, -0.5))
    low, _, high = ax.collections[0].to_rgba(ax.collections[0].get_array())[0]
    assert [to_hex(low), to_hex(high)] == list(LIGHT.directions) and texts(ax) == ["0", "25", "100"]
    pale, full = drawn(Cells([[0.1], [1.0]], numbers=True), x=Axis(-0.5, 0.5), y=Axis(1.5, -0.5)).texts
    assert (pale.get_color(), full.get_color()) == (BLACK, WHITE)  # of what is seen: the colour of expert 0 is dark
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


def test_letters_stand_in_boxes_of_their_experts_colour_and_none_over_another(experts=32):
    data = 'if a<b: "τηε"\n  x$y$z鞖\0'.encode() * 3  # of the last two, none can be drawn
    served = np.arange(len(data)) % experts
    served[5] = -1
    ax = figure([text_panel([(data, served)], ("a name",))], width=640).axes[0]
    places = [(box.get_x(), box.get_y()) for box in ax.patches]
    assert len(set(places)) == len(places) == (served >= 0).sum() and np.min(places) >= 0
    assert max(x for x, _ in places) < ax.get_xlim()[1] and max(y for _, y in places) < ax.get_ylim()[0]
    assert hexes(box.get_facecolor() for box in ax.patches) == colors_of(served[served >= 0])
    letters = "".join(text for text in texts(ax)[1:] if not text.isdecimal())
    assert letters == data.decode().translate({10: "↵", 32: "", 0: "·", ord("鞖"): "·"})


def test_the_bar_and_the_line_of_a_model_have_one_colour_whichever_models_stand_beside_it():
    for names in (["MoE", "dense, 1×", "dense, 4×"], ["dense, 8×", "dense, 4×", "MoE"], ["MoE", "dense, 2.67×"]):
        lines = plot(loss_panel({name: ([0, 1], [2, 1]) for name in names})).lines
        colors = hexes(line.get_color() for line in lines)
        assert len(set(colors)) == len(names)
        assert colors[names.index("MoE")] == LIGHT.lines[0].upper()
        assert "dense, 4×" not in names or colors[names.index("dense, 4×")] == LIGHT.lines[2].upper()
    strip, losses = Playground(play=3).panels()[2:4]
    bars = hexes(bar.get_facecolor() for bar in plot(strip).patches)
    assert bars[::3] == bars[2::3] == hexes(line.get_color() for line in plot(losses).lines)


def test_panels_stand_in_rows_of_twelve_columns_with_room_for_all_their_letters():
    models = "MoE", "dense, 1×", "dense, 4×", "dense, 2.67×"
    steps = np.arange(1, 101)
    cells = Cells(np.full((2, 8), 1 / 8), even=1 / 8, most=0.5, numbers=True, rows="group")
    wide = Axis(1.5, -0.5, ticks=[(0, "continuation byte"), (1, "x")])
    table = Table(models, ("parameters", "held-out loss"), (("1,928", "568", "1,720", "98.3 K"),) * 2, range(4))
    panels = [loss_panel({name: (steps, 2 - steps / 100 + i) for i, name in enumerate(models[:3])})]
    panels += [load_panel([0.125] * 8), Panel("table", [table])]
    panels += [Panel("words", [Text(["some text " * 30, "more"], ("english", "code"))], width=6)]
    panels += [Panel("cells", [cells], marks.experts_axis(8), wide, width=6, height=150)]
    panels += [replace(load_panel([0.125] * 8), width=3, height=150, caption="a\nb", selected=True)] * 2
    made = figure(panels, caption="What is seen. " * 20)
    made.canvas.draw()
    boxes = [part.axes[0].get_tightbbox() for part in made.subfigs]
    assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))
    assert all(0 <= box.x0 and box.x1 <= made.bbox.x1 and box.y1 <= made.bbox.y1 for box in boxes)
