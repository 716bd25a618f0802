"""What is sent to the page: each mark as a header that JSON can say, and its arrays."""

import json

import numpy as np
import pytest
import torch

from moe_lessons.plots import marks
from moe_lessons.plots.marks import Axis, Panel, encode, experts_axis, roomy

X, TWO = np.arange(3.0), np.full((3, 2), 0.5)
MARKS = {
    "Field": marks.Field(np.zeros((2, 2, 3))),
    "Cells": marks.Cells(TWO, even=0.5, selected=1),
    "Bars": marks.Bars(X, limit=0.5, second=X, texts=("a", "b", "c")),
    "Stack": marks.Stack(X, TWO, second=TWO[0]),
    "Line": marks.Line(X, X, "MoE", 2, model=0),
    "Band": marks.Band(X, X, X + 1),
    "Points": marks.Points(X, X, X > 1, X.astype(int), tokens=True, selected=2),
    "Spots": marks.Spots(X, X, X, X, X, X, X.astype(int), ("a", "b", "c"), 1),
    "Parts": marks.Parts(("total",), ("experts", "head"), TWO[:1], ("#000000", "#ffffff")),
    "Rule": marks.Rule(y=0.5, name="even share"),
    "Boxes": marks.Boxes(X, X, X + 1, X + 1, "abc", [1, 3, 5], [8, 1, -1], [-1, 0, 1], "abc", 1),
    "Arrows": marks.Arrows(X, X, X + 1, X + 1, [8, 1, -1], [-1, 0, 1], 1),
    "Lamps": marks.Lamps(X > 0, 2, 1, np.full((3, 2), 65)),
    "Text": marks.Text(("ab", "α"), ("x", "y"), np.zeros(4, int), (1, 1, 2)),
    "Table": marks.Table(("MoE",), ("loss",), (("0.3",),)),
}


def test_every_kind_of_mark_is_here():
    assert set(MARKS) == {kind.__name__ for kind in marks.MARKS}


@pytest.mark.parametrize("name", MARKS)
def test_a_header_can_be_said_in_json_and_has_all_numbers_in_arrays(name):
    mark = MARKS[name]
    header, arrays = encode(Panel("title", [mark, mark], Axis(0, 2, "step", link="step"), legend=[(4, "green")]), 7)
    said = json.loads(json.dumps(header))
    assert said["title"] == "title" and said["x"]["link"] == "step" and said["legend"] == [[4, "green"]]
    assert [one["mark"] for one in said["marks"]] == [name, name]
    slots = {value["slot"] for one in header["marks"] for value in one.values() if isinstance(value, dict)}
    assert slots == set(arrays) and all(slot.startswith(("7.0.", "7.1.")) for slot in slots)
    for slot, array in arrays.items():
        given = getattr(mark, slot.split(".")[-1])
        assert array.shape == np.shape(given) and array.flags.c_contiguous
        np.testing.assert_array_equal(array, given)
        assert array.dtype.str[1:] in ("f2", "f4", "u1", "i1", "u2", "i2", "i4")


def test_numbers_are_sent_as_they_are_in_a_type_that_a_page_has():
    for given, sent in (("f8", "f4"), ("i8", "i4"), ("u8", "i4"), ("?", "u1"), ("f2", "f2"), ("u1", "u1")):
        _, arrays = encode(Panel("", [marks.Bars(np.ones(3, given))]), 0)
        assert arrays["0.0.y"].dtype == np.dtype(sent)
    parts = marks.Parts(("total",), ("experts",), [[46_000_000_000]], ("#000000",))
    _, arrays = encode(Panel("", [marks.Line(torch.arange(3), np.arange(6.0)[::2]), parts]), 0)
    assert arrays["0.0.x"].tolist() == [0, 1, 2] and arrays["0.0.y"].tolist() == [0, 2, 4]
    assert arrays["0.1.values"].item() == pytest.approx(46e9)


def test_what_is_not_there_is_left_out_and_an_ink_of_a_line_is_no_array():
    header, arrays = encode(Panel("", [marks.Bars(X), marks.Line(X, X, ink=-1)]), 0)
    assert "second" not in header["marks"][0] and "limit" not in header["marks"][0]
    assert header["marks"][1]["ink"] == -1 and set(arrays) == {"0.0.y", "0.1.x", "0.1.y"}


def test_axes_name_experts_where_there_is_room_and_grow_by_halves():
    for count, names in ((1, ["E0"]), (8, [f"E{e}" for e in range(8)]), (12, ["E0", "E2"]), (32, ["E0", "E4"])):
        axis = experts_axis(count)
        assert [text for _, text in axis.ticks][: len(names)] == names and (axis.low, axis.high) == (-0.5, count - 0.5)
    assert [roomy(value, 200) for value in (0, 200, 201, 500)] == [200, 200, 300, 675]
