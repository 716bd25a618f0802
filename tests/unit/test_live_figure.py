"""A figure that is drawn many times a second: the same pixels as a full drawing, and the place of each panel."""

import io

import numpy as np
import pytest
from PIL import Image

from moe_lessons.plots import (
    THEMES,
    CostTable,
    LiveFigure,
    LoadBars,
    LoadFilm,
    LossCurves,
    TerritoryMap,
    TokenExpertHeatmap,
)

MODELS = ("MoE", "dense, same active", "dense, same total")
ROWS = ("parameters", "ms / step")


def make_figure(theme: str = "light", num_experts: int = 8) -> LiveFigure:
    makers = [
        lambda ax, t: TerritoryMap(ax, t, num_experts),
        lambda ax, t: TokenExpertHeatmap(ax, t, 32, num_experts),
        lambda ax, t: LoadBars(ax, t, num_experts),
        lambda ax, t: LoadFilm(ax, t, num_experts),
        lambda ax, t: LossCurves(ax, t, MODELS),
        lambda ax, t: CostTable(ax, t, MODELS, ROWS, steady=1),
    ]
    return LiveFigure(makers, theme=THEMES[theme])


def update(figure: LiveFigure, step: int, collapsed: bool = False) -> None:
    """Give every panel data that a run might give it at a step, the same each time it is asked.

    collapsed: all load on the last expert and a loss that stays high, so that both lie on the legends.
    """
    territory, heatmap, bars, film, curves, table = figure.panels
    num_experts, random = bars.num_experts, np.random.default_rng(step)
    loads = random.dirichlet(np.full(num_experts, 10), size=step)
    steps = np.arange(1, step + 1)
    losses = [2.4 * scale * np.exp(-steps / 300) + 0.05 * random.random(step) for scale in (1, 0.99, 0.9, 1.01)]
    if collapsed:
        loads[:] = np.eye(num_experts)[-1]
        losses = [2.0 + 0.4 * random.random(step) for _ in losses]
    points, correct = random.random((32, 2)) * 2 - 1, random.random(32) < 0.7
    probs = random.dirichlet(np.ones(num_experts), size=32)
    territory.update(random.integers(num_experts, size=(48, 48)), points, correct, step % 32)
    heatmap.update(probs, np.arange(32), probs.argmax(axis=1), step % 32)
    bars.update(loads[-1], capacity=None if collapsed else 0.2, clean=loads[0])
    film.update(steps, loads, marks=[step // 3])
    curves.update([(steps, loss) for loss in losses[:3]], ghost=(steps, losses[3]), marks=[step // 3])
    table.update([["1,928"] * 3, [f"{step / 7:.2f}"] * 3])


def fully_drawn(figure: LiveFigure) -> np.ndarray:
    """The pixels when matplotlib draws everything, as it does for a picture in a file."""
    for artist in (*figure.live, *figure.slow):
        artist.set_animated(False)
    figure.canvas.draw()
    return figure.pixels().copy()


@pytest.fixture(scope="module")
def figure() -> LiveFigure:
    made = make_figure()
    update(made, 100)
    made.draw(text=True)
    return made


# --- the same pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("num_experts, collapsed", [(8, False), (8, True), (16, False)])
def test_blitting_gives_the_pixels_of_a_full_drawing(theme, num_experts, collapsed):
    figure, other = make_figure(theme, num_experts), make_figure(theme, num_experts)
    for step in (3, 150, 190, 900):  # the axes grow between the third and the fourth
        update(figure, step)
        figure.draw(text=True)
    update(figure, 950, collapsed)
    figure.draw(text=True)
    update(other, 950, collapsed)
    different = (figure.pixels() != fully_drawn(other)).any(axis=-1)
    assert different.sum() == 0, f"{different.sum()} pixels differ, the first at {np.argwhere(different)[0]}"


def test_without_its_text_a_picture_differs_in_the_slow_text_alone():
    figure = make_figure()
    update(figure, 100)
    figure.draw()
    update(figure, 101)
    figure.draw()  # the table keeps the text of step 100
    moving = figure.pixels().copy()
    figure.draw(text=True)
    table = figure.panels[5].ax.bbox
    rows, columns = np.argwhere((figure.pixels() != moving).any(axis=-1)).T
    assert len(rows) > 0 and columns.min() >= table.x0 - 1 and rows.min() >= len(moving) - table.y1 - 1


# --- what stands still is drawn once ---------------------------------------------------------------------


def count_full_drawings(figure: LiveFigure, monkeypatch) -> list:
    drawings, draw = [], figure.canvas.draw
    monkeypatch.setattr(figure.canvas, "draw", lambda: (drawings.append(1), draw()))
    return drawings


def test_only_the_first_picture_is_a_full_drawing(monkeypatch):
    figure = make_figure()
    drawings = count_full_drawings(figure, monkeypatch)
    for step in (10, 11, 12):
        update(figure, step)
        figure.draw()
    assert len(drawings) == 1


def test_a_stale_panel_causes_one_full_drawing(monkeypatch):
    figure = make_figure()
    update(figure, 100)
    figure.draw()
    drawings = count_full_drawings(figure, monkeypatch)
    update(figure, 201)  # beyond the end of the x axis
    assert figure.panels[3].stale
    figure.draw()
    figure.draw()
    assert len(drawings) == 1 and not any(panel.stale for panel in figure.panels)


# --- files -----------------------------------------------------------------------------------------------


def decode(data: bytes) -> tuple[str, np.ndarray]:
    image = Image.open(io.BytesIO(data))
    return image.format, np.asarray(image)


def test_png_is_exact(figure):
    kind, pixels = decode(figure.encode("png"))
    assert kind == "PNG" and np.array_equal(pixels, figure.pixels()[..., :3])


def test_jpeg_is_close(figure):
    kind, pixels = decode(figure.encode("jpeg"))
    assert kind == "JPEG" and pixels.shape == (580, 980, 3)
    assert np.abs(pixels.astype(int) - figure.pixels()[..., :3]).mean() < 4


# --- places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", range(6))
@pytest.mark.parametrize("across, up", [(0.1, 0.2), (0.9, 0.6)])
def test_a_place_in_the_picture_is_found_in_its_panel(figure, panel, across, up):
    ax = figure.panels[panel].ax
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()  # the heatmap counts from above: its top is -0.5
    place = left + across * (right - left), bottom + up * (top - bottom)
    x, y = ax.transData.transform(place)
    width, height = figure.canvas.get_width_height()
    found, *data = figure.panel_at(x / width, 1 - y / height)
    assert found == panel and data == pytest.approx(place)


def test_panels_stand_row_by_row(figure):
    assert [figure.panel_at(x, y)[0] for y in (0.25, 0.75) for x in (0.2, 0.5, 0.8)] == list(range(6))


def test_between_the_panels_there_is_none(figure):
    assert figure.panel_at(0.0, 0.0) is None and figure.panel_at(0.5, 0.5) is None


def test_a_last_row_may_be_short():
    figure = LiveFigure([LoadBars] * 4, columns=3, width=300, row_height=100)
    figure.draw()
    assert figure.pixels().shape == (200, 300, 4)
    assert figure.panel_at(0.25, 0.75)[0] == 3 and figure.panel_at(0.85, 0.75) is None
