"""The live view of a collapse."""

import numpy as np
import pytest
from live_tools import mark, on_a_loop, words

from moe_lessons.analysis.collapse import watched_run
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


@pytest.mark.parametrize("learns, total", [("all", 1), ("router only", 0)])
def test_gradients_are_shown_as_shares_also_where_there_are_none(learns, total):
    lab = CollapseLab(("gradient film", "gradient"), learns=learns)
    lab.advance(8)
    film, bars = mark(lab, 0, Stack), mark(lab, 1, Bars)
    assert bars.y.sum() == pytest.approx(total) and bars.second_name == "its load"
    assert bars.second == pytest.approx(np.mean([r.load[0] for r in lab.main_run.records], axis=0))
    assert film.x.tolist() == (list(range(1, 9)) if total else []) and film.y.sum(axis=1) == pytest.approx(1)
