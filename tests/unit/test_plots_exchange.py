"""The pictures of the exchange and of plans show the numbers that they are given."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from moe_lessons.analysis import check_published, plan
from moe_lessons.plots import THEMES
from moe_lessons.plots.plan import plot_plan, plot_published
from moe_lessons.plots.traffic import plot_exchange

UNEVEN = torch.tensor([[10, 30, 0], [20, 20, 0], [5, 30, 5]])


def numbers(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("theme", THEMES)
def test_each_cell_says_what_a_rank_sends_to_a_rank(theme):
    ax = plot_exchange(UNEVEN, "step 1", theme=theme)
    assert numbers(ax) == [str(rows) for rows in UNEVEN.flatten().tolist()]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0\n35", "1\n80", "2\n5"]
    assert ax.get_title(loc="left") == "step 1: busiest rank 2 × the mean" and ax.yaxis_inverted()
    assert [patch.get_xy() for patch in ax.patches] == [(0.05, 0.05), (1.05, 1.05), (2.05, 2.05)]
    ax.figure.canvas.draw()
    right, top = ax.figure.bbox.max
    assert all(0 <= box.y0 and box.y1 <= top and box.x1 <= right for box in [ax.title.get_window_extent()])


def test_an_even_share_has_the_colour_of_the_page():
    ax = plot_exchange(torch.full((4, 4), 7))
    (mesh,) = ax.collections
    mesh.update_scalarmappable()
    np.testing.assert_allclose(mesh.get_facecolor()[:, :3], [to_rgb(THEMES["light"].background)] * 16, atol=0.01)


def test_several_exchanges_share_their_colours_and_are_not_cut_off():
    figure = plot_exchange({"one": torch.ones(4, 4), "two": torch.eye(4), "three": torch.ones(4, 4)}).figure
    *axes, bar = figure.axes
    assert [ax.get_title(loc="left")[:3] for ax in axes] == ["one", "two", "thr"]
    assert {ax.collections[0].norm.vmax for ax in axes} == {4.0} and bar.get_yticklabels()[1].get_text() == "1 ×\neven"
    figure.canvas.draw()
    for ax in axes:
        box = ax.get_tightbbox()
        assert 0 <= box.x0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0 and box.y1 <= figure.bbox.y1
    assert numbers(plot_exchange(torch.ones(9, 9))) == []  # no room


@pytest.mark.parametrize("traffic", [torch.ones(2, 3), torch.zeros(2, 2), torch.tensor([[1, -1], [0, 1]]), {}])
def test_what_is_no_traffic_is_refused(traffic):
    with pytest.raises(ValueError, match="traffic must be"):
        plot_exchange(traffic)


def plans(**more):
    made = {"expert_parallel": 8, "tokens_per_device": 1024} | more
    return {f"{node}": plan("DeepSeek-V3", devices=8, node=node, **made) for node in (8, 1)}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_the_parts_of_a_bar_add_up_to_the_step(theme, overlap):
    given = plans(overlap=overlap)
    ax = plot_plan(given, "devices of a node", theme=theme)
    tops = [max(bar.get_y() + bar.get_height() for bar in ax.patches if round(bar.get_x() + 0.35) == i) for i in (0, 1)]
    np.testing.assert_allclose(tops, [made.seconds for made in given.values()])
    hidden = [bar.get_height() for bar in ax.patches if bar.get_hatch()]
    np.testing.assert_allclose(hidden, [made.hidden for made in given.values()] if overlap else [])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[:3] == ["compute", "exchange, inside nodes", "exchange, between nodes"]
    assert ("exchange beside it" in names) == (overlap > 0)
    assert numbers(ax) == [f"{made.seconds:.2g} s" for made in given.values()]


@pytest.mark.parametrize("given", [{}, {"8": 3.0}])
def test_plans_must_be_plans(given):
    with pytest.raises(ValueError, match="plans must be a dict of names and one Plan or more"):
        plot_plan(given)


@pytest.mark.parametrize("theme", THEMES)
def test_each_published_figure_is_a_point_where_its_error_says(theme):
    checked = check_published()
    ax = plot_published(checked, theme=theme)
    points = np.concatenate([spots.get_offsets() for spots in ax.collections])
    points = points[points[:, 1].argsort()]
    np.testing.assert_allclose(points[:, 0], checked.planned / checked.published.astype(float))
    assert [label.get_text() for label in ax.get_yticklabels()][0] == "DeepSeek-V3, pre-training: device hours"
    assert numbers(ax)[0] == f"{checked.error_percent[0]:+.0f} %".replace("-", "−")
    left, right = ax.get_xlim()
    assert (points[:, 0] > left).all() and (points[:, 0] < right).all()
    with pytest.raises(ValueError, match="checked must be the table of check_published"):
        plot_published(checked[["system"]])
