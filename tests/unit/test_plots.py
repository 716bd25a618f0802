"""Panels show the data of a view, at little cost; plots draw them, in both themes; experts and models stay tellable."""

import gc
import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from moe_lessons.analysis import count_parameters, flops_per_token
from moe_lessons.analysis.collapse import watched_run
from moe_lessons.nn import LanguageModel, MoE, TransformerConfig, apply_capacity, seeded
from moe_lessons.plots import (
    PANELS,
    RECENT,
    THEMES,
    LessonFigure,
    expert_color,
    expert_hatch,
    layer_loads,
    load_bars,
    load_film,
    loss_curve,
    loss_curves,
    recent_load,
    seed_sweep,
    spent,
    territory_map,
    token_expert_heatmap,
)
from moe_lessons.plots.marks import Bars, Line, Rule, Stack, encode
from moe_lessons.plots.panels._history import MOST_PLACES, History, history
from moe_lessons.plots.panels.film import film_panel
from moe_lessons.plots.panels.layers import layers_panel
from moe_lessons.plots.panels.load import load_panel
from moe_lessons.plots.panels.loss import loss_panel
from moe_lessons.plots.theme import PALETTE_BYTES, expert_image, model_inks
from moe_lessons.tasks import PRESETS, TextTask, grid, plane_model
from moe_lessons.training import Run, plane_runs

EVEN, COLLAPSED = [1 / 8] * 8, [0.0] * 7 + [1.0]
LOSS = (np.arange(1, 31), np.linspace(2.1, 0.3, 30))
STEPS = 25


def view_of(runs: dict[str, Run], **more) -> SimpleNamespace:
    """What a live view gives its panels."""
    usual = {"layer": 0, "marks": [3], "ghost": None, "x_axis": "steps", "first_x": 200, "clean_load": None}
    return SimpleNamespace(runs=runs, main_run=next(iter(runs.values())), selected=2, **usual | more)


@pytest.fixture(scope="module")
def view() -> SimpleNamespace:
    runs = plane_runs(PRESETS["healthy"])
    for _ in range(STEPS):
        for run in runs.values():
            run.step()
    run = runs["MoE"]
    points, y = run.task.batch(12, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, (routing,) = run.model.eval()(points)
        scores = run.model(grid(9))[1][0].router_probs.log().view(9, 9, -1)
    plane = SimpleNamespace(points=points, scores=scores, routing=routing, correct=logits.argmax(dim=-1) == y)
    return view_of(runs, plane=plane, clean_load=EVEN)


@pytest.fixture(scope="module")
def text_run() -> Run:
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=16, d_ff=8, num_layers=2, num_heads=2, num_experts=4))
    run = Run(model, TextTask(["english", "code"]), lr=0.01, batch_size=4)
    run.step()
    return run


@pytest.fixture(scope="module")
def routing():
    with seeded(0):
        return MoE(16, 4, num_experts=8, top_k=2)(torch.randn(12, 16))[1]


def of(panel, kind: type) -> list:
    return [mark for mark in panel.marks if isinstance(mark, kind)]


# --- colours ---------------------------------------------------------------------------------------------


def test_no_two_of_32_experts_look_alike():
    assert len({(expert_color(e), expert_hatch(e)) for e in range(32)}) == 32


@pytest.mark.parametrize("expert", range(24))
def test_an_expert_is_painted_unlike_the_one_eight_further(expert):
    one, other = (expert_image(np.full((12, 12), e)) for e in (expert, expert + 8))
    assert (one != other).any(axis=-1).mean() > 0.1


def test_experts_are_painted_plain_then_lightened_by_a_hatch():
    assert expert_image(np.arange(8)[None])[0].tolist() == PALETTE_BYTES.tolist()
    painted = {tuple(pixel) for pixel in expert_image(np.full((12, 12), 11)).reshape(-1, 3)}
    assert painted == {tuple(PALETTE_BYTES[3]), tuple(128 + PALETTE_BYTES[3] // 2)}


@pytest.mark.parametrize(
    "names, inks",
    [
        (["MoE", "dense, same active", "dense, same total"], [0, 1, 2]),
        (["dense, same total", "mixture"], [2, 0]),
        (["dense: same total", "dense: same active"], [2, 1]),
        (["nothing", "noise", "aux. loss", "more"], [0, 3, 4, 5]),
        (["dense"], [3]),
        (["MoE", "dense, equally good", "dense, same active"], [0, 3, 1]),
    ],
)
def test_a_model_has_one_colour_in_every_picture(names, inks):
    assert model_inks(names) == inks
    assert [line.ink for line in of(loss_panel(dict.fromkeys(names, LOSS)), Line)] == inks


# --- what is kept of a run -------------------------------------------------------------------------------


def record(step: int) -> SimpleNamespace:
    loads = [[step / 10_000, 1 - step / 10_000]]
    return SimpleNamespace(ms_per_step=2.0, loss=1 / step, dead_experts=step % 3, load=loads)


@pytest.mark.parametrize("count", [0, 1, 5, 256, 257, 513, 3000])
def test_a_history_is_thinned_evenly_and_ends_with_the_last_step(count):
    records, past = [record(step) for step in range(1, count + 1)], History()
    for end in {*range(0, count, 7), count}:
        past.read(records[:end])
    past.read(records)
    steps, loads = past.column("steps"), past.loads(0, 2)
    assert len(steps) == len(loads) <= MOST_PLACES and len(steps) >= min(count, MOST_PLACES // 2)
    if count:
        assert steps[-1] == count and len(set(np.diff(steps[:-1]))) <= 1
    places = steps.astype(int)
    np.testing.assert_allclose(loads[:, 0], places / 10_000, rtol=1e-6)
    np.testing.assert_allclose(past.column("seconds"), places * 0.002, rtol=1e-5)
    losses = [np.mean([records[i].loss for i in range(max(0, step - 10), step)]) for step in places]
    np.testing.assert_allclose(past.column("loss"), losses, rtol=1e-5)
    dead = [np.mean([records[i].dead_experts for i in range(max(0, step - RECENT), step)]) for step in places]
    np.testing.assert_allclose(past.column("dead"), dead, rtol=1e-5)


def test_each_record_is_read_once_and_all_again_where_they_were_replaced():
    class Counting(list):
        asked = 0

        def __getitem__(self, key):
            self.asked += 1
            return super().__getitem__(key)

    records, past = Counting(record(step) for step in range(1, 2001)), History()
    past.read(records)
    records.asked = 0
    for step in range(2001, 2011):
        records.append(record(step))
        past.read(records)
    assert records.asked < 100
    for others in (records[:50], [record(step) for step in range(1, 60)], []):
        assert past.read(others).column("steps").tolist() == list(range(1, len(others) + 1))


def test_a_history_ends_with_its_run():
    run = plane_runs(PRESETS["healthy"])["MoE"]
    before = len(history.__globals__["_histories"])
    loss_curve(run, "FLOPs")
    del run
    gc.collect()
    assert len(history.__globals__["_histories"]) <= before


def test_what_a_run_has_spent(view, text_run):
    run = view.main_run
    assert spent(run, "steps").tolist() == list(range(1, STEPS + 1)) and spent(run, "steps", [3, 9]).tolist() == [3, 9]
    np.testing.assert_allclose(spent(run, "seconds"), np.cumsum([r.ms_per_step for r in run.records]) / 1000, rtol=1e-5)
    assert spent(run, "FLOPs", [2])[0] == 2 * run.batch_size * flops_per_token(run.model, training=True)
    tokens = text_run.batch_size * text_run.task.context
    assert spent(text_run, "FLOPs").tolist() == [tokens * flops_per_token(text_run.model, training=True)]


# --- the panels of a view --------------------------------------------------------------------------------


def test_there_is_a_panel_in_every_file():
    names = "balance classes cost curves domains film gradient layers load loss heatmap territory text writing".split()
    assert set(PANELS) == {*names, "gradient film"}


def test_the_loss_of_each_model(view):
    panel = PANELS["loss"](view)
    for line, (name, run) in zip(of(panel, Line), view.runs.items(), strict=True):
        losses = [np.mean([r.loss for r in run.records[max(0, i - 9) : i + 1]]) for i in range(STEPS)]
        np.testing.assert_allclose(line.y, losses, rtol=1e-5)
        assert line.name == name and line.x.tolist() == list(range(1, STEPS + 1))
    assert [rule.x for rule in of(panel, Rule)] == [3] and panel.x.link == "step" and panel.x.high == 200
    against = PANELS["loss"](SimpleNamespace(**vars(view) | {"x_axis": "FLOPs", "ghost": view.runs["MoE"]}))
    assert against.x.link == "" and "FLOPs" in against.x.label
    assert of(against, Rule)[0].x == pytest.approx(spent(view.main_run, "FLOPs")[2])
    assert (of(against, Line)[0].ink, of(against, Line)[0].name) == (-1, "previous run")


def test_the_load_is_that_of_the_last_steps_and_of_the_router_before_the_first(view):
    panel = PANELS["load"](view)
    loads = [r.load[0] for r in view.main_run.records]
    np.testing.assert_allclose(of(panel, Bars)[0].y, np.mean(loads[-RECENT:], axis=0), rtol=1e-5)
    assert recent_load(view.main_run) == pytest.approx(np.mean(loads[-RECENT:], axis=0))
    fresh = view_of(plane_runs(PRESETS["capacity"]), clean_load=COLLAPSED)
    panel = PANELS["load"](fresh)
    assert of(panel, Bars)[0].y.tolist() == COLLAPSED and of(panel, Bars)[0].second is None
    assert of(panel, Rule)[1].y == of(panel, Bars)[0].limit == fresh.main_run.knobs.capacity_factor / 8
    noisy = PANELS["load"](view_of(plane_runs(PRESETS["noise"]), clean_load=COLLAPSED))
    assert of(noisy, Bars)[0].second.tolist() == COLLAPSED
    assert of(PANELS["load"](view_of(plane_runs(PRESETS["healthy"]))), Bars)[0].y.tolist() == [0] * 8


def test_the_film_has_every_step(view):
    panel = PANELS["film"](view)
    (stack,) = of(panel, Stack)
    np.testing.assert_allclose(stack.y, [r.load[0] for r in view.main_run.records], rtol=1e-6)
    assert stack.x.tolist() == list(range(1, STEPS + 1)) and panel.x.link == "step"
    kinds = [(rule.kind, rule.y or rule.x) for rule in of(panel, Rule)]
    assert kinds == [("even", e / 8) for e in range(1, 8)] + [("mark", 3)]
    assert PANELS["film"](view_of(plane_runs(PRESETS["healthy"]), first_x=60)).x.high == 60


def test_territory_and_heatmap_show_the_plane(view):
    field, points = PANELS["territory"](view).marks
    np.testing.assert_allclose(field.z, view.plane.scores, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(np.stack([points.x, points.y], axis=1), view.plane.points)
    assert points.look.tolist() == (~view.plane.correct).int().tolist() and points.tokens and points.selected == 2
    assert points.expert.tolist() == view.plane.routing.router_probs.argmax(dim=-1).tolist()
    cells, dots = PANELS["heatmap"](view).marks
    np.testing.assert_allclose(cells.z, view.plane.routing.router_probs, atol=1e-3)
    assert cells.selected == 2 and set(zip(dots.y.tolist(), dots.x.tolist())) == {
        (t, e) for t, chosen in enumerate(view.plane.routing.topk_indices.tolist()) for e in chosen
    }


def test_the_table_says_what_each_model_costs(view):
    (table,) = PANELS["cost"](view).marks
    assert table.columns == tuple(view.runs) and table.rows[:2] == ("parameters", "active/token")
    for name, run in view.runs.items():
        column = dict(zip(table.rows, (row[table.columns.index(name)] for row in table.cells)))
        assert column["parameters"] == f"{count_parameters(run.model).total:,}"
        assert column["accuracy"] == f"{run.evaluate(256)['accuracy']:.1%}"
    (table,) = PANELS["cost"](view_of(plane_runs(PRESETS["healthy"]))).marks
    assert table.cells[3] == ["–"] * 3


def test_layers_are_rows_and_other_panels_say_which_one_they_show(text_run):
    panel = PANELS["layers"](view_of({"MoE": text_run}, layer=1))
    cells, crosses = panel.marks
    np.testing.assert_allclose(cells.z, 4 * np.array(text_run.records[0].load), rtol=1e-5)
    assert (cells.even, cells.rows, cells.selected) == (1, "layer", 1) and set(crosses.look) <= {2}
    assert PANELS["film"](view_of({"MoE": text_run}, layer=1)).title == "Load share over time, layer 1"
    fresh = Run(text_run.model, text_run.task)
    assert np.isnan(PANELS["layers"](view_of({"MoE": fresh})).marks[0].z).all()


@pytest.mark.parametrize("learns", ["all", "router only"])
def test_gradients_are_shown_as_shares_also_where_there_are_none(learns):
    run = watched_run(PRESETS["collapse"], learns=learns)
    view = view_of({"MoE": run}, clean_load=EVEN, first_x=60)
    assert of(PANELS["gradient"](view), Bars)[0].second.tolist() == EVEN
    assert of(PANELS["gradient film"](view), Stack)[0].y.shape == (0, 8)
    for _ in range(8):
        run.step()
    (bars,), (stack,) = of(PANELS["gradient"](view), Bars), of(PANELS["gradient film"](view), Stack)
    assert bars.y.sum() == pytest.approx(1 if learns == "all" else 0)
    np.testing.assert_allclose(bars.second, recent_load(run), rtol=1e-5)
    assert stack.x.tolist() == (list(range(1, 9)) if learns == "all" else [])
    np.testing.assert_allclose(stack.y.sum(axis=1), 1, rtol=1e-5)


def test_the_film_of_many_gradients_is_thinned_and_ends_with_the_last():
    gradients = [np.full(8, float(step)) for step in range(1, 1001)]
    run = SimpleNamespace(expert_gradients=gradients, num_experts=[8], model=None)
    (stack,) = of(PANELS["gradient film"](view_of({"MoE": run})), Stack)
    assert len(stack.x) <= MOST_PLACES and stack.x[-1] == 1000 and len(set(np.diff(stack.x))) == 1


@pytest.mark.parametrize("name", ["load", "film", "layers"])
def test_a_dense_model_has_no_experts_to_show(name):
    dense = plane_runs(PRESETS["healthy"])["dense, same active"]
    with pytest.raises(ValueError, match="need a mixture of experts, got PlaneClassifier without one"):
        PANELS[name](view_of({"dense": dense}))


def test_panels_can_be_sent(view):
    for name in ("loss", "load", "film", "territory", "heatmap", "cost"):
        header, arrays = encode(PANELS[name](view), 0)
        assert header["title"] and all(np.isfinite(array).all() for array in arrays.values())


def test_the_panels_of_every_picture_cost_a_small_part_of_a_training_step(view):
    """Of runs that are long already; relative to a step, so that a slow machine may be slow."""

    def least(action) -> float:
        times = []
        for _ in range(20):
            start = time.thread_time()
            action()
            times.append(time.thread_time() - start)
        return min(times)

    runs = plane_runs(PRESETS["healthy"])
    step = least(lambda: [run.step() for run in runs.values()])
    for run in runs.values():
        run.records.extend(run.records * 200)
    long = view_of(runs)
    panels = least(lambda: [PANELS[name](long) for name in ("loss", "load", "film")])
    assert panels < 0.25 * step, f"{1000 * panels:.2f} ms beside {1000 * step:.2f} ms for a step of three models"


# --- panels of plain data --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"load": COLLAPSED}, {"capacity": 2.0}, {"clean": COLLAPSED}])
def test_the_axis_of_the_load_has_room_for_all(given):
    panel = load_panel(**{"load": EVEN} | given)
    assert panel.y.high >= max(np.max(value) for value in given.values()) and load_panel(EVEN).y.high == 0.5


@pytest.mark.parametrize("last, end", [(100, 200), (201, 300), (500, 675)])
def test_a_film_grows_by_halves(last, end):
    assert film_panel([1, last], [EVEN, EVEN]).x.high == end


@pytest.mark.parametrize("x_axis, start", [("steps", 200), ("FLOPs", 1e7), ("seconds", 0.25)])
def test_the_x_axis_of_the_loss_grows_and_names_its_unit(x_axis, start):
    for factor, end in ((0.9, 1), (2.5, 3.375)):
        panel = loss_panel({"MoE": ([start * factor], [1.0])}, x_axis=x_axis)
        assert panel.x.high == pytest.approx(end * start) and x_axis.rstrip("s") in panel.x.label


@pytest.mark.parametrize("highest, limit", [(0.2, 0.5), (2.1, 2.5), (6.1, 7), (7.1, 10), (1e30, 10), (np.nan, 10)])
def test_the_y_axis_fits_the_first_losses(highest, limit):
    assert loss_panel({"MoE": (LOSS[0], np.linspace(highest, 0, 30))}).y.high == limit


def test_a_long_ghost_does_not_squeeze_a_young_run_and_nothing_can_be_drawn():
    steps, nothing = np.arange(1, 5001), (np.array([]), np.array([]))
    assert 600 <= loss_panel({"MoE": (steps[:300], steps[:300] / 300)}, (steps, steps / 5000)).x.high < 1000
    assert loss_panel({"MoE": nothing}, (steps, steps / 5000)).x.high >= 5000
    assert len(of(loss_panel({"MoE": nothing}, nothing), Line)) == 1
    with pytest.raises(ValueError, match="x_axis must be one of 'steps', 'FLOPs', 'seconds', got 'hours'"):
        loss_curves({"MoE": LOSS}, x_axis="hours")


def test_a_layer_of_loads_is_a_row_and_what_is_dropped_was_wanted(routing):
    ax = layer_loads([routing, apply_capacity(routing, 1)])
    idle = {(e, layer) for layer in (0, 1) for e in np.flatnonzero(routing.demand_per_expert == 0)}
    assert {tuple(point) for point in ax.lines[2].get_xydata().astype(int)} == idle
    cells = layers_panel([routing.demand_per_expert / 24] * 2, np.zeros((2, 8))).marks[0]
    np.testing.assert_allclose(cells.z, [(routing.demand_per_expert / 3).tolist()] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda routing: [], "routings must have at least one Routing, got none"),
        (lambda routing: [routing, MoE(4, 4, 3, 1)(torch.ones(2, 4))[1]], r"one number of experts, got \[8, 3\]"),
    ],
)
def test_layers_that_cannot_be_drawn(routing, make, message):
    with pytest.raises(ValueError, match=message):
        layer_loads(make(routing))


# --- plots -----------------------------------------------------------------------------------------------


def test_a_dropped_choice_has_no_dot(routing):
    full = apply_capacity(routing, 1)
    dots = token_expert_heatmap(full).lines[0].get_xydata()
    assert len(dots) == len(full.expert_idx) == 24 - full.dropped < 24


def test_the_territory_of_a_model_is_its_first_choice_of_each_place():
    model, task = plane_model(PRESETS["healthy"])
    for training in (True, False):
        ax = territory_map(model.train(training), task, resolution=24, num_points=10)
        assert model.training == training
    _, (routing,) = model.eval()(grid(24))
    favourite = routing.router_probs.argmax(dim=-1).view(24, 24).numpy()
    image = np.asarray(ax.images[0].get_array())
    corners = (slice(None, None, len(image) - 1),) * 2
    assert np.array_equal(image[corners], expert_image(favourite)[::23, ::23])
    painted = [(image == color).all(axis=-1).mean() for color in PALETTE_BYTES]
    np.testing.assert_allclose(painted, np.bincount(favourite.ravel(), minlength=8) / 576, atol=0.03)
    assert sum(len(line.get_xdata()) for line in ax.lines) == 10


def test_every_plot_draws_into_given_axes_and_takes_tensors(routing):
    model, task = plane_model(PRESETS["healthy"])
    for theme in THEMES:
        axes = Figure().subplots(5)
        assert load_bars(torch.tensor(EVEN), ax=axes[0], theme=theme) is axes[0]
        assert load_film(torch.arange(1, 3), torch.tensor([EVEN, COLLAPSED]), ax=axes[1], theme=theme) is axes[1]
        assert token_expert_heatmap(routing, axes[2], theme) is axes[2]
        assert territory_map(model, task, ax=axes[3], theme=theme, resolution=8) is axes[3]
        assert loss_curves({"MoE": tuple(map(torch.tensor, LOSS))}, ax=axes[4], theme=theme) is axes[4]
    assert [bar.get_height() for bar in axes[0].patches] == pytest.approx(EVEN) and axes[1].get_xlim() == (0, 2)
    with pytest.raises(ValueError, match="theme must be one of"):
        load_bars(EVEN, theme="pink")


@pytest.mark.parametrize("theme", THEMES)
def test_a_figure_shows_itself_as_a_picture_with_a_name(theme):
    figure = load_bars(EVEN, theme=theme).figure
    assert isinstance(figure, LessonFigure)
    data, metadata = figure._repr_mimebundle_()
    assert data["text/plain"] == "Figure: Load of each expert" and metadata["image/png"]["alt"] == "Load of each expert"
    image = Image.open(io.BytesIO(data["image/png"]))
    assert image.size == (640, 280)
    assert image.convert("RGB").getpixel((0, 0)) == tuple(bytes.fromhex(THEMES[theme].background[1:]))
    assert to_rgb(figure.axes[0].get_facecolor()) == to_rgb(THEMES[theme].background)


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
