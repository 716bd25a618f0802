"""What is sent to the page: each mark as a header that JSON can say, and its arrays."""

import json

import numpy as np
import pytest
import torch

from moe_lessons.plots import marks
from moe_lessons.plots.marks import Axis, Panel, encode, experts_axis, roomy

X, TWO = np.arange(3.0), np.full((3, 2), 0.5)
MARKS = [
    marks.Field(np.zeros((2, 2, 3))),
    marks.Cells(TWO, even=0.5, selected=1),
    marks.Bars(X, limit=0.5, second=X),
    marks.Stack(X, TWO, second=TWO[0]),
    marks.Line(X, X, "MoE", 2, model=0, low=X, high=X + 1),
    marks.Points(X, X, X > 1, X.astype(int), tokens=True, selected=2),
    marks.Spots([X] * 3, [X] * 3, X.astype(int), ("a", "b", "c"), 1),
    marks.Parts(("total",), ("experts", "head"), TWO[:1], ("#000000", "#ffffff")),
    marks.Rule(y=0.5, name="even share"),
    marks.Boxes(np.ones((3, 4)), "abc", [1, 3, 5], [8, 1, -1], [-1, 0, 1], "abc", 1),
    marks.Arrows([(0, 1, 2, 3)] * 3, [8, 1, -1], [-1, 0, 1], 1),
    marks.Lamps(X > 0, 2, 1, np.full((3, 2), 65)),
    marks.Text(("ab", "α"), ("x", "y"), np.zeros(4, int), (1, 1, 2)),
    marks.Table(("MoE",), ("loss",), (("0.3",),)),
]
NAMES = [type(mark).__name__ for mark in MARKS]


@pytest.mark.parametrize("mark", MARKS, ids=NAMES)
def test_a_header_can_be_said_in_json_and_has_all_numbers_in_arrays(mark):
    assert [type(mark) for mark in MARKS] == list(marks.MARKS)
    header, arrays = encode(Panel("title", [mark, mark], Axis(0, 2, "step", link="step"), legend=[(4, "green")]), 7)
    said = json.loads(json.dumps(header))
    assert said["title"] == "title" and said["x"]["link"] == "step" and said["legend"] == [[4, "green"]]
    assert [one["mark"] for one in said["marks"]] == [type(mark).__name__] * 2
    slots = {value["slot"] for one in header["marks"] for value in one.values() if isinstance(value, dict)}
    assert slots == set(arrays) and all(slot.startswith(("7.0.", "7.1.")) for slot in slots)
    for slot, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(mark, slot.split(".")[-1]))
        assert array.flags.c_contiguous and array.dtype.str[1:] in ("f2", "f4", "u1", "i1", "u2", "i2", "i4")


def test_numbers_are_sent_as_they_are_in_a_type_that_a_page_has_and_what_is_not_there_is_left_out():
    for given, sent in (("f8", "f4"), ("i8", "i4"), ("u8", "i4"), ("?", "u1"), ("f2", "f2"), ("u1", "u1")):
        header, arrays = encode(Panel("", [marks.Bars(np.ones(3, given))]), 0)
        assert arrays["0.0.y"].dtype == np.dtype(sent) and not {"second", "limit"} & set(header["marks"][0])
    parts = marks.Parts(("total",), ("experts",), [[46_000_000_000]], ("#000000",))
    header, arrays = encode(Panel("", [marks.Line(torch.arange(3), np.arange(6.0)[::2], ink=-1), parts]), 0)
    assert arrays["0.0.x"].tolist() == [0, 1, 2] and arrays["0.0.y"].tolist() == [0, 2, 4]
    assert header["marks"][0]["ink"] == -1 and arrays["0.1.values"].item() == pytest.approx(46e9)


def test_axes_name_experts_where_there_is_room_and_grow_by_halves():
    for count, names in ((1, ["E0"]), (8, [f"E{e}" for e in range(8)]), (12, ["E0", "E2"]), (32, ["E0", "E4"])):
        axis = experts_axis(count)
        assert [text for _, text in axis.ticks][: len(names)] == names and (axis.low, axis.high) == (-0.5, count - 0.5)
    assert [roomy(value, 200) for value in (0, 200, 201, 500)] == [200, 200, 300, 675]
