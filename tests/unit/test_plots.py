"""What is drawn equals the data, in both themes, and experts stay tellable."""

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from moe_lessons.nn import MoE, apply_capacity, seeded
from moe_lessons.plots import (
    THEMES,
    CostTable,
    LessonFigure,
    LoadBars,
    LoadFilm,
    LossCurves,
    Panel,
    TerritoryMap,
    TokenExpertHeatmap,
    cost_table,
    expert_color,
    expert_hatch,
    layer_loads,
    load_bars,
    load_film,
    loss_curves,
    running_mean,
    seed_sweep,
    territory_map,
    token_expert_heatmap,
)
from moe_lessons.plots.theme import PALETTE_BYTES, expert_image
from moe_lessons.tasks import PRESETS, grid, plane_model

EVEN = [1 / 8] * 8
COLLAPSED = [0.0] * 7 + [1.0]
LOSS = (np.arange(1, 31), np.linspace(2.1, 0.3, 30))


def panel(kind: type[Panel], theme: str = "light", **sizes) -> Panel:
    return kind(Figure().subplots(), THEMES[theme], **sizes)


def top(p: Panel) -> float:
    return p.ax.get_ylim()[1]


def colour(expert: int) -> np.ndarray:
    return (255 * np.array(to_rgb(expert_color(expert)))).round()


@pytest.fixture(scope="module")
def routing():
    with seeded(0):
        return MoE(16, 4, num_experts=8, top_k=2)(torch.randn(12, 16))[1]


# --- colours ---------------------------------------------------------------------------------------------


def test_experts_have_the_same_colours_in_both_themes():
    light, dark = (panel(LoadBars, theme).bars for theme in THEMES)
    for expert, (a, b) in enumerate(zip(light, dark)):
        assert a.get_facecolor()[:3] == b.get_facecolor()[:3] == to_rgb(expert_color(expert))


def test_the_themes_differ_around_the_data():
    light, dark = (panel(LoadBars, theme).ax for theme in THEMES)
    assert np.mean(light.get_facecolor()[:3]) > 0.9 and np.mean(dark.get_facecolor()[:3]) < 0.1


def test_no_two_of_32_experts_look_alike():
    assert len({(expert_color(e), expert_hatch(e)) for e in range(32)}) == 32


@pytest.mark.parametrize("expert", range(24))
def test_an_expert_is_painted_unlike_the_one_eight_further(expert):
    one, other = (expert_image(np.full((12, 12), e)) for e in (expert, expert + 8))
    assert (one != other).any(axis=-1).mean() > 0.1


def test_the_first_eight_experts_are_painted_plain():
    image = expert_image(np.arange(8).reshape(2, 4))
    assert image.reshape(8, 3).tolist() == [colour(e).tolist() for e in range(8)]


def test_a_hatch_lightens_the_colour_and_leaves_some_of_it():
    painted = {tuple(pixel) for pixel in expert_image(np.full((12, 12), 11)).reshape(-1, 3)}
    assert painted == {tuple(PALETTE_BYTES[3]), tuple(128 + PALETTE_BYTES[3] // 2)}


def test_bars_are_hatched_from_expert_8_on():
    hatches = [bar.get_hatch() or "" for bar in panel(LoadBars, num_experts=16).bars]
    assert hatches == [""] * 8 + [expert_hatch(8)] * 8 and expert_hatch(8) != ""


@pytest.mark.parametrize("num_experts, names", [(1, ["E0"]), (8, [f"E{e}" for e in range(8)]), (16, ["E0", "E2"])])
def test_experts_are_named_on_the_axis(num_experts, names):
    ticks = [label.get_text() for label in panel(LoadBars, num_experts=num_experts).ax.get_xticklabels()]
    assert ticks[: len(names)] == names


# --- load ------------------------------------------------------------------------------------------------


def test_bars_are_as_high_as_the_load():
    p, load = panel(LoadBars), np.linspace(0, 1, 8) / 4
    p.update(load)
    assert [bar.get_height() for bar in p.bars] == load.tolist()


def test_the_even_share_is_marked():
    even = next(line for line in panel(LoadBars, num_experts=4).ax.lines if line.get_label() == "even share")
    assert list(even.get_ydata()) == [0.25, 0.25] and even.get_linestyle() == "--"


def test_what_is_over_the_capacity_is_pale():
    p = panel(LoadBars)
    p.update([0.4, 0.6, 0, 0, 0, 0, 0, 0], capacity=0.5)
    assert [bar.get_height() for bar in p.bars][:2] == [0.4, 0.5]
    assert [(bar.get_y(), bar.get_height()) for bar in p.dropped][:2] == [(0, 0), (0.5, pytest.approx(0.1))]
    p.update([0.4, 0.6, 0, 0, 0, 0, 0, 0])
    assert [bar.get_height() for bar in p.bars][:2] == [0.4, 0.6] and p.dropped[1].get_height() == 0


def test_the_legend_names_the_lines_that_are_there():
    p = panel(LoadBars)
    for marks, names in (({}, 1), ({"capacity": 0.2}, 2), ({"capacity": 0.2, "clean": EVEN}, 3)):
        p.update(EVEN, **marks)
        shown = [text.get_text() for text in p.ax.get_legend().get_texts()]
        assert shown == ["even share", "capacity", "without noise"][:names]


def test_the_capacity_line_comes_and_goes():
    p = panel(LoadBars)
    p.update(EVEN, capacity=0.2)
    assert p.capacity.get_visible() and list(p.capacity.get_ydata()) == [0.2, 0.2]
    p.update(EVEN)
    assert not p.capacity.get_visible()


def test_the_load_without_noise_comes_and_goes():
    p, clean = panel(LoadBars), np.linspace(0, 1, 8) / 4
    p.update(EVEN, clean=clean)
    assert p.clean.get_xydata().tolist() == list(map(list, enumerate(clean)))
    p.update(EVEN)
    assert len(p.clean.get_xdata()) == 0


@pytest.mark.parametrize("marks", [{"load": COLLAPSED}, {"capacity": 2.0}, {"clean": COLLAPSED}])
def test_the_bars_grow_to_what_they_show_and_shrink_again(marks):
    p = panel(LoadBars)
    p.update(EVEN)
    before, p.stale = top(p), False
    p.update(**{"load": EVEN} | marks)
    assert top(p) >= max(np.max(value) for value in marks.values()) and p.stale
    p.update(EVEN)
    assert top(p) == before


def test_the_axes_are_not_stale_while_the_limits_stay():
    p = panel(LoadBars)
    p.update(EVEN)
    p.stale = False
    p.update(EVEN[::-1])
    assert not p.stale


@pytest.mark.parametrize("num_experts", [1, 8, 16])
def test_the_film_has_each_expert_as_high_as_its_share(num_experts):
    with seeded(0):
        loads = torch.rand(5, num_experts).softmax(dim=1)
    p = panel(LoadFilm, num_experts=num_experts)
    p.update(range(1, 6), loads)
    image = np.asarray(p.image.get_array())
    assert image.shape == (p.rows, 5, 3)
    for step in range(5):
        tops = loads[step].cumsum(0)
        expected = [int((tops < (row + 0.5) / p.rows).sum()) for row in range(p.rows)]
        column = expert_image(np.array(expected).clip(max=num_experts - 1)[:, None].repeat(5, axis=1))[:, step]
        assert np.array_equal(image[:, step], column)


def test_the_film_lies_where_its_steps_are_and_grows():
    p = panel(LoadFilm)
    p.update([1, 100], [EVEN, EVEN])
    assert p.image.get_extent() == [0, 100, 0, 1] and p.ax.get_xlim() == (0, 200) and not p.stale
    p.update([1, 500], [EVEN, EVEN])
    assert p.image.get_extent() == [0, 500, 0, 1] and p.ax.get_xlim() == (0, 675) and p.stale


def test_a_film_of_no_steps_is_empty_and_starts_again():
    p = panel(LoadFilm)
    p.update([1, 5000], [EVEN, EVEN])
    p.update([], [])
    assert not p.image.get_visible()
    p.update([1], [EVEN])
    assert p.image.get_visible() and p.ax.get_xlim() == (0, 200)


# --- the heatmap -----------------------------------------------------------------------------------------


def test_the_heatmap_shows_the_probabilities_and_dots_the_choices(routing):
    p = panel(TokenExpertHeatmap, num_tokens=12)
    p.update(routing.router_probs.detach(), routing.token_idx, routing.expert_idx, selected=5)
    assert np.array_equal(p.image.get_array(), routing.router_probs.detach())
    assert p.image.get_clim() == (0, 1) and p.image.get_cmap().name == "cividis"
    dots = {(int(t), int(e)) for e, t in p.dots.get_xydata()}
    assert dots == {(t, e) for t, experts in enumerate(routing.topk_indices.tolist()) for e in experts}
    assert p.frame.get_visible() and p.frame.get_y() == 4.5
    p.update(routing.router_probs.detach(), routing.token_idx, routing.expert_idx)
    assert not p.frame.get_visible()


def test_a_dropped_choice_has_no_dot(routing):
    full = apply_capacity(routing, 1)
    dots = token_expert_heatmap(full).lines[0].get_xydata()
    assert len(dots) == len(full.expert_idx) == 24 - full.dropped < 24


# --- the layers ------------------------------------------------------------------------------------------


def test_a_layer_of_loads_is_a_row(routing):
    tight = apply_capacity(routing, 1)
    ax = layer_loads([routing, tight])
    even = routing.demand_per_expert / 24 * 8  # 24 assignments to 8 experts
    np.testing.assert_allclose(ax.images[0].get_array(), [even.tolist()] * 2, rtol=1e-6)  # what is dropped was wanted
    idle = {(e, layer) for layer in (0, 1) for e in np.flatnonzero(routing.demand_per_expert == 0)}
    assert {tuple(point) for point in ax.lines[0].get_xydata().astype(int)} == idle
    assert layer_loads([routing], theme="dark").figure.get_facecolor()[:3] == to_rgb(THEMES["dark"].background)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda routing: [], "routings must have at least one Routing, got none"),
        (
            lambda routing: [routing, MoE(4, 4, 3, 1)(torch.ones(2, 4))[1]],
            r"routings must have one number of experts, got \[8, 3\]",
        ),
    ],
)
def test_layers_that_cannot_be_drawn(routing, make, message):
    with pytest.raises(ValueError, match=message):
        layer_loads(make(routing))


# --- the territory ---------------------------------------------------------------------------------------


def quarters(resolution: int = 20) -> np.ndarray:
    """A map of four experts: 0 and 1 below, 2 and 3 above."""
    half = np.arange(resolution) * 2 // resolution
    return 2 * half[:, None] + half


def test_the_territory_is_painted_and_numbered():
    p, expert = panel(TerritoryMap, num_experts=5), quarters()
    p.update(expert, np.zeros((1, 2)), np.array([True]))
    assert np.array_equal(p.image.get_array(), expert_image(expert))
    assert p.image.get_extent() == [-1, 1, -1, 1] and p.image.origin == "lower"
    assert [number.get_visible() for number in p.numbers] == [True] * 4 + [False]
    places = [np.sign(number.get_xydata()[0]).tolist() for number in p.numbers[:4]]
    assert places == [[-1, -1], [1, -1], [-1, 1], [1, 1]]


def test_a_number_stands_inside_a_bent_territory():
    expert = np.zeros((21, 21), dtype=int)
    expert[5:16, 5:16] = 1  # expert 0 has a ring, whose middle is not its own
    p = panel(TerritoryMap, num_experts=2)
    p.update(expert, np.zeros((1, 2)), np.array([True]))
    x, y = p.numbers[0].get_xydata()[0]
    assert max(abs(x), abs(y)) > 0.5


def test_points_are_marked_as_right_wrong_and_selected():
    points = np.array([[0.1, 0.2], [-0.3, 0.4], [0.5, -0.6]])
    p = panel(TerritoryMap)
    p.update(quarters(), points, np.array([True, False, True]), selected=1)
    assert p.right.get_xydata().tolist() == points[[0, 2]].tolist()
    assert p.wrong.get_xydata().tolist() == points[[1]].tolist() == p.ring.get_xydata().tolist()
    p.update(quarters(), points, np.array([True, False, True]))
    assert len(p.ring.get_xdata()) == 0


def test_the_territory_of_a_model_is_its_first_choice_of_each_place():
    model, task = plane_model(PRESETS["healthy"])
    model.train()
    ax = territory_map(model, task, resolution=24, num_points=10)
    _, (routing,) = model.eval()(grid(24))
    favourite = routing.router_probs.argmax(dim=-1).view(24, 24).numpy()
    assert np.array_equal(ax.images[0].get_array(), expert_image(favourite))
    assert sum(len(line.get_xdata()) for line in ax.lines[-3:-1]) == 10


def test_drawing_a_territory_leaves_the_mode_of_the_model():
    model, task = plane_model(PRESETS["healthy"])
    for training in (True, False):
        territory_map(model.train(training), task, resolution=8)
        assert model.training == training


# --- curves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num, window", [(0, 10), (1, 10), (7, 10), (25, 10), (25, 1)])
def test_running_mean_is_that_of_a_loop(num, window):
    values = np.random.default_rng(0).random(num)
    loop = [values[max(0, i - window + 1) : i + 1].mean() for i in range(num)]
    assert running_mean(values, window) == pytest.approx(loop)


def test_curves_are_the_data():
    p = panel(LossCurves, names=("MoE", "dense"))
    p.update([LOSS, (LOSS[0], LOSS[1] / 2)], ghost=(LOSS[0], LOSS[1] + 0.1))
    assert [line.get_label() for line in p.lines] == ["MoE", "dense"]
    assert np.array_equal(p.lines[0].get_ydata(), LOSS[1]) and np.array_equal(p.lines[0].get_xdata(), LOSS[0])
    assert np.array_equal(p.lines[1].get_ydata(), LOSS[1] / 2)
    assert np.array_equal(p.ghost.get_ydata(), LOSS[1] + 0.1)
    p.update([LOSS, LOSS])
    assert len(p.ghost.get_xdata()) == 0


def test_curves_differ_in_more_than_colour():
    p = panel(LossCurves, names=("MoE", "active", "total"))
    assert len({line.get_linestyle() for line in p.lines}) == 3


def test_a_long_ghost_does_not_squeeze_a_young_run():
    p = panel(LossCurves)
    steps = np.arange(1, 5001)
    p.update([(steps[:300], steps[:300] / 300)], ghost=(steps, steps / 5000))
    assert 600 <= p.ax.get_xlim()[1] < 1000


def test_marks_stand_where_something_was_changed():
    p = panel(LossCurves)
    p.update([LOSS], marks=[10, 20])
    x, y = p.marks.get_data()
    assert x.tolist() == [10, 10, 10, 20, 20, 20] and y[0] == 0 and y[1] == top(p) and np.isnan(y[2])


@pytest.mark.parametrize("x_axis, start", [("steps", 200), ("FLOPs", 1e7), ("seconds", 0.25)])
def test_the_x_axis_grows_by_halves_when_it_is_full_and_names_its_unit(x_axis, start):
    p = panel(LossCurves, x_axis=x_axis)
    p.update([(np.array([start * 0.9]), np.array([1.0]))])
    assert p.ax.get_xlim() == (0, start)
    p.stale = False
    p.update([(np.array([start * 2.5]), np.array([1.0]))])
    assert p.ax.get_xlim() == (0, pytest.approx(3.375 * start)) and p.stale
    assert x_axis.rstrip("s") in p.ax.get_xlabel()


@pytest.mark.parametrize("highest, limit", [(0.2, 0.5), (2.1, 2.5), (6.1, 7), (7.1, 10), (1e30, 10), (np.nan, 10)])
def test_the_y_axis_fits_the_first_losses(highest, limit):
    p = panel(LossCurves)
    p.update([(LOSS[0], np.linspace(highest, 0, 30))])
    assert p.ax.get_ylim() == (0, limit)


def test_curves_of_nothing_can_be_drawn():
    nothing = np.array([]), np.array([])
    p = panel(LossCurves)
    p.update([nothing], ghost=nothing)
    assert len(p.lines[0].get_xdata()) == 0


def test_an_unknown_x_axis_is_refused():
    with pytest.raises(ValueError, match="x_axis must be one of 'steps', 'FLOPs', 'seconds', got 'hours'"):
        loss_curves({"MoE": LOSS}, x_axis="hours")


# --- the table -------------------------------------------------------------------------------------------


def test_the_table_holds_its_texts():
    table = {"parameters": {"MoE": "1,928", "dense": "1,000"}, "ms / step": {"MoE": "1.2", "dense": "0.4"}}
    texts = [text.get_text() for text in cost_table(table).texts]
    assert texts == ["MoE", "dense", "parameters", "1,928", "1,000", "ms / step", "1.2", "0.4"]


def test_only_a_change_of_a_steady_row_makes_the_table_stale():
    p = panel(CostTable, columns=("MoE",), rows=("parameters", "ms / step"), steady=1)
    p.update([["10"], ["1.0"]])
    p.stale = False
    p.update([["10"], ["2.0"]])
    assert not p.stale and p.cells[1][0].get_text() == "2.0"
    p.update([["20"], ["2.0"]])
    assert p.stale and p.cells[1][0] in p.slow and p.cells[0][0] not in p.slow


# --- figures ---------------------------------------------------------------------------------------------


def test_every_plot_draws_into_given_axes(routing):
    model, task = plane_model(PRESETS["healthy"])
    for theme in THEMES:
        axes = Figure().subplots(6)
        assert load_bars(EVEN, ax=axes[0], theme=theme) is axes[0]
        assert load_film([1, 2], [EVEN, EVEN], ax=axes[1], theme=theme) is axes[1]
        assert token_expert_heatmap(routing, ax=axes[2], theme=theme) is axes[2]
        assert territory_map(model, task, ax=axes[3], theme=theme, resolution=8) is axes[3]
        assert loss_curves({"MoE": LOSS}, ax=axes[4], theme=theme) is axes[4]
        assert cost_table({"row": {"MoE": "1"}}, ax=axes[5], theme=theme) is axes[5]


def test_plots_take_tensors():
    ax = load_bars(torch.tensor(EVEN))
    assert [bar.get_height() for bar in ax.patches[:8]] == pytest.approx(EVEN)
    assert len(load_film(torch.arange(1, 3), torch.tensor([EVEN, COLLAPSED])).images) == 1
    assert loss_curves({"MoE": tuple(map(torch.tensor, LOSS))}).lines


@pytest.mark.parametrize("theme", THEMES)
def test_a_figure_shows_itself_as_a_picture_with_a_name(theme):
    figure = load_bars(EVEN, theme=theme).figure
    assert isinstance(figure, LessonFigure)
    data, metadata = figure._repr_mimebundle_()
    assert data["text/plain"] == "Figure: Load of each expert" and metadata["image/png"]["alt"] == "Load of each expert"
    image = Image.open(io.BytesIO(data["image/png"]))
    assert image.size == (640, 280)
    assert image.convert("RGB").getpixel((0, 0)) == tuple(bytes.fromhex(THEMES[theme].background[1:]))


# --- a sweep over seeds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
def test_a_sweep_shows_the_mean_and_all_seeds(theme):
    values = {0.01: np.array([0.2, 0.4]), 0.1: np.array([0.5, 0.9]), 10.0: np.array([0.1, 0.1])}
    ax = seed_sweep(values, "Accuracy", "coefficient", baseline=0.3, theme=theme)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.01, 0.3], [0.1, 0.7], [10, 0.1]])
    assert list(ax.lines[1].get_ydata()) == [0.3, 0.3]
    corners = {tuple(point) for point in ax.collections[0].get_paths()[0].vertices}
    assert {(0.01, 0.2), (0.01, 0.4), (0.1, 0.5), (0.1, 0.9)} <= corners
    assert ax.get_xscale() == "log" and [text.get_text() for text in ax.get_xticklabels()] == ["0.01", "0.1", "10"]
    assert ax.get_title(loc="left") == "Accuracy" and ax.get_xlabel() == "coefficient"
    assert len(seed_sweep(values, "Accuracy", "coefficient", theme=theme).lines) == 1
