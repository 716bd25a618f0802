"""Panels that compare remedies: what is drawn equals the data, and no name lies over another."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from moe_lessons.plots import (
    THEMES,
    BalanceQuality,
    LiveFigure,
    Panel,
    RemedyCurves,
    RemedyTile,
    Row,
    balance_quality,
    expert_color,
)
from moe_lessons.plots.remedies import LABEL_HEIGHT, spread

NAMES = ("nothing", "jitter", "auxiliary loss", "capacity", "auxiliary loss + capacity")


def panel(kind: type[Panel], theme: str = "light", **sizes) -> Panel:
    return kind(Figure(figsize=(5, 3)).subplots(), THEMES[theme], **sizes)


def data(step: int, num: int = len(NAMES)):
    """Curves, variations and accuracies that some remedies might have at a step, the same each time it is asked."""
    random = np.random.default_rng(step)
    steps = np.arange(0, step + 1, 5)
    curves = [(steps, random.integers(0, 6, (len(steps), 3))) for _ in range(num)]
    return curves, list(random.random((num, 3)) * 2), list(0.7 + 0.3 * random.random((num, 3)))


# --- places for names ------------------------------------------------------------------------------------


def test_names_with_room_stay_where_they_are_wanted():
    assert spread([0.9, 0.1, 0.5], 0.1, 0, 1).tolist() == pytest.approx([0.9, 0.1, 0.5])


def test_names_at_one_place_are_put_around_it_in_their_order():
    assert spread([0.5, 0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.4, 0.5, 0.6])


def test_names_at_an_end_stay_inside():
    assert spread([1.0, 1.0, 0.98], 0.1, 0, 1) == pytest.approx([0.9, 1.0, 0.8])


def test_too_many_names_share_what_room_there_is():
    assert spread(np.full(5, 0.3), 1.0, 0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("seed", range(20))
def test_no_allowed_places_are_nearer_to_those_wanted(seed):
    random = np.random.default_rng(seed)
    wanted, gap = random.random(8), 0.09
    places = spread(wanted, gap, 0, 1)
    in_order = places[np.argsort(wanted)]
    assert (np.diff(in_order) > gap - 1e-9).all() and in_order[0] >= -1e-9 and in_order[-1] <= 1 + 1e-9
    free = random.random((2000, 8)) * (1 - 7 * gap)  # any allowed places are sorted ones with the gaps put between
    others = np.sort(free, axis=1) + gap * np.arange(8)
    moved = np.concatenate([others, in_order + 0.2 * (others - in_order)])  # the allowed places are a convex set
    assert np.square(in_order - np.sort(wanted)).sum() <= np.square(moved - np.sort(wanted)).sum(axis=1).min() + 1e-12


# --- tiles -----------------------------------------------------------------------------------------------


def test_a_tile_has_its_name_its_film_and_its_lines():
    tile = panel(RemedyTile, name="jitter")
    tile.update([1, 2, 3], np.full((3, 8), 1 / 8), marks=[2], caption="3 dead\nwith noise: 0 dead")
    assert tile.ax.get_title(loc="left") == "jitter" and tile.caption.get_text() == "3 dead\nwith noise: 0 dead"
    assert tile.image.get_extent() == [0, 3, 0, 1] and tile.marks.get_xdata()[0] == 2
    assert not tile.clean.get_visible()


def test_the_strip_has_each_expert_as_high_as_its_share_without_noise():
    tile, clean = panel(RemedyTile, num_experts=4), np.array([0.5, 0.0, 0.2, 0.3])
    tile.update([1], [[1, 0, 0, 0]], clean=clean)
    painted = np.asarray(tile.clean.get_array())[:, 0]  # (rows, 3)
    assert tile.clean.get_visible() and len(painted) == tile.rows
    for expert, share in enumerate(clean):
        mine = (painted == (255 * np.array(to_rgb(expert_color(expert)))).round()).all(axis=1)
        assert mine.mean() == pytest.approx(share, abs=1 / tile.rows)
    assert (painted[0] == (255 * np.array(to_rgb(expert_color(0)))).round()).all()  # E0 lies at the bottom


@pytest.mark.parametrize("theme", THEMES)
def test_the_selected_tile_has_a_strong_frame(theme):
    tile = panel(RemedyTile, theme)
    for selected, color in ((True, THEMES[theme].lines[1]), (False, THEMES[theme].grid)):
        tile.update([1], [[1 / 8] * 8], selected=selected)
        assert {to_rgb(spine.get_edgecolor()) for spine in tile.ax.spines.values()} == {to_rgb(color)}
        assert {spine.get_linewidth() > 1 for spine in tile.ax.spines.values()} == {selected}


# --- curves ----------------------------------------------------------------------------------------------


def test_curves_are_the_means_and_the_band_of_the_selected_one_its_extremes():
    p, (curves, _, _) = panel(RemedyCurves, names=NAMES), data(100)
    p.update(curves, selected=2, second=([1, 2, 3], [5, 4, 3]))
    for line, (steps, values) in zip(p.lines, curves, strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.column_stack([steps, values.mean(axis=1)]))
    outline = {tuple(point) for point in p.band.get_paths()[0].vertices}
    steps, values = curves[2]
    assert {(x, y) for x, row in zip(steps, values) for y in (row.min(), row.max())} <= outline
    assert p.second.get_xydata().tolist() == [[1, 5], [2, 4], [3, 3]]
    assert np.array_equal(p.strong.get_xydata(), p.lines[2].get_xydata())
    assert p.strong.get_linewidth() > max(line.get_linewidth() for line in p.lines)


def test_the_second_reading_goes_away_again():
    p, (curves, _, _) = panel(RemedyCurves, names=NAMES), data(20)
    p.update(curves, 0, second=([1, 2], [5, 4]))
    p.update(curves, 1)
    assert len(p.second.get_xdata()) == 0


def test_the_axis_of_the_curves_grows_with_them():
    p = panel(RemedyCurves, names=NAMES)
    p.update(data(150)[0])
    p.stale = False
    p.update(data(195)[0])
    assert not p.stale
    p.update(data(205)[0])
    assert p.stale and p.ax.get_xlim()[1] >= 205


# --- balance and quality ---------------------------------------------------------------------------------


def test_marks_are_means_and_crosses_reach_over_all_seeds():
    p, (_, variations, accuracies) = panel(BalanceQuality, names=NAMES), data(10)
    p.update(variations, accuracies, selected=1)
    means = np.column_stack([np.mean(variations, axis=1), np.mean(accuracies, axis=1)])
    np.testing.assert_allclose(p.marks.get_offsets(), means)
    for i, (x, y) in enumerate(zip(variations, accuracies)):
        across, up = p.crosses.get_segments()[2 * i : 2 * i + 2]
        np.testing.assert_allclose(across, [(min(x), y.mean()), (max(x), y.mean())])
        np.testing.assert_allclose(up, [(x.mean(), min(y)), (x.mean(), max(y))])
    colors = [tuple(color[:3]) for color in p.marks.get_facecolors()]
    assert colors.count(to_rgb(THEMES["light"].lines[1])) == 1 == colors.index(to_rgb(THEMES["light"].lines[1]))


@pytest.mark.parametrize("widest, lowest", [(0.1, 0.97), (1.2, 0.62), (3.7, 0.05), (0.0, 0.5)])
def test_the_axes_hold_every_seed(widest, lowest):
    p = panel(BalanceQuality, names=("a", "b"))
    p.update([np.array([0, widest])] * 2, [np.array([lowest, 0.99])] * 2)
    (left, right), (bottom, top) = p.ax.get_xlim(), p.ax.get_ylim()
    assert left == 0 and right >= widest and bottom <= lowest and top == 1


def test_the_axes_have_slack():
    p = panel(BalanceQuality, names=("a",))
    p.update([np.array([0.9])], [np.array([0.62])])
    p.stale = False
    for widest in (0.99, 0.8, 0.97, 0.7):
        p.update([np.array([widest])], [np.array([0.7])])
        assert not p.stale, widest


@pytest.mark.parametrize("kind", [BalanceQuality, RemedyCurves])
def test_each_name_is_joined_to_its_point_and_none_lies_over_another(kind):
    p, (curves, variations, accuracies) = panel(kind, names=NAMES), data(30)
    if kind is BalanceQuality:
        accuracies = [0.9 + 0.001 * row for row in accuracies]  # all at about one height
        p.update(variations, accuracies)
        points = p.marks.get_offsets()
    else:
        p.update(curves)
        points = [(steps[-1], values[-1].mean()) for steps, values in curves]
    assert [text.get_text() for text in p.labels.texts] == list(NAMES)
    heights = np.array([text.xy[1] for text in p.labels.texts]) * p.ax.bbox.height  # pixels
    assert np.diff(np.sort(heights)).min() > LABEL_HEIGHT - 0.01
    to_data = p.ax.transAxes + p.ax.transData.inverted()
    for leader, point, text in zip(p.labels.leaders.get_segments(), points, p.labels.texts, strict=True):
        np.testing.assert_allclose(to_data.transform(leader[0]), point, rtol=1e-6)
        assert leader[-1][1] == pytest.approx(text.xy[1])


def test_a_still_picture_of_balance_and_quality():
    points = {"a": ([0.1, 0.2], [0.9, 0.95]), "b": ([1.0, 1.4], [0.7, 0.8])}
    ax = balance_quality(points, selected="b", theme="dark")
    assert [text.get_text() for text in ax.texts if text.get_text() in points] == ["a", "b"]
    assert len(ax.figure.png()) > 5000


# --- in one figure ---------------------------------------------------------------------------------------


def make_figure(theme: str = "light") -> LiveFigure:
    makers = [
        lambda ax, t: RemedyCurves(ax, t, NAMES),
        lambda ax, t: BalanceQuality(ax, t, NAMES),
        *[lambda ax, t, name=name: RemedyTile(ax, t, name) for name in NAMES],
    ]
    rows = [Row(2, 250, room=0.3), Row(4, 156, gap=0.1), Row(4, 156, gap=0.1)]
    return LiveFigure(makers, theme=THEMES[theme], width=880, rows=rows)


def update(figure: LiveFigure, step: int) -> None:
    curves, variations, accuracies = data(step)
    selected, random = step % len(NAMES), np.random.default_rng(step)
    figure.panels[0].update(curves, selected, (curves[0][0], curves[0][1][:, 0]))
    figure.panels[1].update(variations, accuracies, selected)
    for i, tile in enumerate(figure.panels[2:]):
        loads = random.dirichlet(np.full(8, 3), size=step)
        lines = f"{step} dead\nwith noise: {i} dead"
        tile.update(np.arange(1, step + 1), loads, [step // 2], lines, loads[0] if i % 2 else None, i == selected)


@pytest.mark.parametrize("theme", THEMES)
def test_blitting_gives_the_pixels_of_a_full_drawing(theme):
    figure, other = make_figure(theme), make_figure(theme)
    for step in (3, 150, 190, 900, 950):
        update(figure, step)
        figure.draw(text=True)
    for step in (3, 150, 190, 900, 950):  # the limits of the axes depend on what was shown before
        update(other, step)
    for artist in (*other.live, *other.slow):
        artist.set_animated(False)
    other.canvas.draw()
    different = (figure.pixels() != other.pixels()).any(axis=-1)
    assert different.sum() == 0, f"{different.sum()} pixels differ, the first at {np.argwhere(different)[0]}"


def test_rows_are_as_high_as_asked_and_leave_room_on_the_right():
    figure = make_figure()
    boxes = [p.ax.bbox for p in figure.panels]
    assert figure.canvas.get_width_height() == (880, 250 + 2 * 156)
    assert [round(box.height) for box in boxes] == [250 - 72] * 2 + [156 - 72] * 5
    width = (880 - 62) / 2.24
    assert [round(box.width) for box in boxes[:2]] == [round(0.7 * width)] * 2
    assert boxes[2].x0 == boxes[0].x0 == boxes[6].x0 == pytest.approx(50) and boxes[5].x1 == pytest.approx(868)
    assert boxes[6].y0 == pytest.approx(46) and boxes[2].y0 == pytest.approx(156 + 46)
