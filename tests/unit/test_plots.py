"""Panels show the data of a view, at little cost; plots draw them, in both themes; experts and models stay tellable."""

import gc
import io
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from moe_lessons import plots
from moe_lessons.analysis import count_parameters, flops_per_token
from moe_lessons.analysis.counting import MODEL_SHAPES, ParameterCount
from moe_lessons.nn import EQUAL_ACTIVE, LanguageModel, MoE, TransformerConfig, apply_capacity, seeded
from moe_lessons.plots import PANELS, RECENT, THEMES, LessonFigure, layer_loads, loss_curve, recent_load, spent
from moe_lessons.plots.by_layer import bars_by_layer
from moe_lessons.plots.marks import Bars, Line, Rule, Stack
from moe_lessons.plots.panels._history import MOST_PLACES, History, history
from moe_lessons.plots.panels.loss import loss_panel
from moe_lessons.plots.panels.shares import film_panel, layers_panel, load_panel
from moe_lessons.plots.parameters import parameter_bars, parameter_growth, share_bars
from moe_lessons.plots.theme import expert_color, expert_hatch, model_inks
from moe_lessons.tasks import TextTask
from moe_lessons.training import PRESETS, Run, plane_runs

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
    return view_of(runs, clean_load=EVEN)


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


def test_no_two_of_32_experts_look_alike():
    assert len({(expert_color(e), expert_hatch(e)) for e in range(32)}) == 32


@pytest.mark.parametrize(
    "names, inks",
    [
        (["MoE", "equal-active twin", "equal-total twin"], [0, 1, 2]),
        (["equal-total twin, 64", "mixture"], [2, 0]),
        (["nothing", "noise", "aux. loss", "more"], [0, 3, 4, 5]),
        (["MoE", "equally good dense", "equal-active twin"], [0, 3, 1]),
    ],
)
def test_a_model_has_one_colour_in_every_picture(names, inks):
    assert model_inks(names) == inks
    assert [line.ink for line in of(loss_panel(dict.fromkeys(names, LOSS)), Line)] == inks


def record(step: int) -> SimpleNamespace:
    loads = [[step / 10_000, 1 - step / 10_000]]
    return SimpleNamespace(ms_per_step=2.0, loss=1 / step, dead_experts=step % 3, load=loads)


@pytest.mark.parametrize("count", [0, 1, 5, 255, 256, 513, 3000])
def test_a_history_is_thinned_evenly_and_ends_with_the_last_step(count):
    records, past = [record(step) for step in range(1, count + 1)], History()
    for end in [*range(0, count, 7), count]:
        past.read(records[:end])
    steps, loads = past.column("steps"), past.loads(0, 2)
    assert len(steps) == len(loads) <= MOST_PLACES and len(steps) >= min(count, MOST_PLACES // 2)
    assert count == 0 or steps[-1] == count and len(set(np.diff(steps[:-1]))) <= 1
    places = steps.astype(int)
    np.testing.assert_allclose(loads[:, 0], places / 10_000, rtol=1e-6)
    np.testing.assert_allclose(past.column("seconds"), places * 0.002, rtol=1e-5)
    for name, field, window in (("loss", "loss", 10), ("dead", "dead_experts", RECENT)):
        means = [np.mean([getattr(r, field) for r in records[max(0, step - window) : step]]) for step in places]
        np.testing.assert_allclose(past.column(name), means, rtol=1e-5)


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
    loads = [r.load[0] for r in view.main_run.records]
    np.testing.assert_allclose(of(PANELS["load"](view), Bars)[0].y, np.mean(loads[-RECENT:], axis=0), rtol=1e-5)
    assert recent_load(view.main_run) == pytest.approx(np.mean(loads[-RECENT:], axis=0))
    fresh = view_of(plane_runs(PRESETS["capacity"]), clean_load=COLLAPSED)
    (bars,), rules = of(PANELS["load"](fresh), Bars), of(PANELS["load"](fresh), Rule)
    assert bars.y.tolist() == COLLAPSED and bars.second is None
    assert rules[1].y == bars.limit == fresh.main_run.knobs.capacity_factor / 8
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
    cells, crosses = PANELS["layers"](view_of({"MoE": text_run}, layer=1)).marks
    np.testing.assert_allclose(cells.z, 4 * np.array(text_run.records[0].load), rtol=1e-5)
    assert (cells.even, cells.rows, cells.selected) == (1, "layer", 1) and set(crosses.look) <= {2}
    assert PANELS["film"](view_of({"MoE": text_run}, layer=1)).title == "Load share over time, layer 1"
    fresh = Run(text_run.model, text_run.task)
    assert np.isnan(PANELS["layers"](view_of({"MoE": fresh})).marks[0].z).all()


def test_the_film_of_many_gradients_is_thinned_and_ends_with_the_last():
    run = SimpleNamespace(expert_gradients=[np.full(8, float(i)) for i in range(1, 1001)], num_experts=[8])
    (stack,) = of(PANELS["gradient film"](view_of({"MoE": run})), Stack)
    assert len(stack.x) <= MOST_PLACES and stack.x[-1] == 1000 and len(set(np.diff(stack.x))) == 1


@pytest.mark.parametrize("name", ["load", "film", "layers"])
def test_a_dense_model_has_no_experts_to_show(name):
    dense = plane_runs(PRESETS["healthy"])["equal-active twin"]
    with pytest.raises(ValueError, match="need a mixture of experts, got PlaneClassifier without one"):
        PANELS[name](view_of({"dense": dense}))


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


@pytest.mark.parametrize("given", [{"load": COLLAPSED}, {"capacity": 2.0}, {"clean": COLLAPSED}])
def test_the_axis_of_the_load_has_room_for_all(given):
    panel = load_panel(**{"load": EVEN} | given)
    assert panel.y.high >= max(np.max(value) for value in given.values()) and load_panel(EVEN).y.high == 0.5


@pytest.mark.parametrize("x_axis, start", [("steps", 200), ("FLOPs", 1e7), ("seconds", 0.25)])
def test_the_x_axis_of_the_loss_grows_and_names_its_unit(x_axis, start):
    for factor, end in ((0.9, 1), (2.5, 3.375)):
        panel = loss_panel({"MoE": ([start * factor], [1.0])}, x_axis=x_axis)
        assert panel.x.high == pytest.approx(end * start) and x_axis.rstrip("s") in panel.x.label
    assert film_panel([1, 500], [EVEN, EVEN]).x.high == 675


@pytest.mark.parametrize("highest, limit", [(0.2, 0.5), (2.1, 2.5), (6.1, 7), (7.1, 10), (1e30, 10), (np.nan, 10)])
def test_the_y_axis_fits_the_first_losses(highest, limit):
    assert loss_panel({"MoE": (LOSS[0], np.linspace(highest, 0, 30))}).y.high == limit


def test_a_long_ghost_does_not_squeeze_a_young_run_and_nothing_can_be_drawn():
    steps, nothing = np.arange(1, 5001), (np.array([]), np.array([]))
    assert 600 <= loss_panel({"MoE": (steps[:300], steps[:300] / 300)}, (steps, steps / 5000)).x.high < 1000
    assert loss_panel({"MoE": nothing}, (steps, steps / 5000)).x.high >= 5000
    assert len(of(loss_panel({"MoE": nothing}, nothing), Line)) == 1


def test_a_layer_of_loads_is_a_row_and_what_is_dropped_was_wanted(routing):
    ax = layer_loads([routing, apply_capacity(routing, 1)])
    idle = {(e, layer) for layer in (0, 1) for e in np.flatnonzero(routing.demand_per_expert == 0)}
    assert {tuple(point) for point in ax.lines[2].get_xydata().astype(int)} == idle
    cells = layers_panel(np.array([routing.demand_per_expert / 12] * 2)).marks[0]
    np.testing.assert_allclose(cells.z, [(routing.demand_per_expert / 3).tolist()] * 2, rtol=1e-6)
    for given in ([], [routing, MoE(4, 4, 3, 1)(torch.ones(2, 4))[1]]):
        with pytest.raises(ValueError, match="^routings must be one or more Routings with one number of experts, got"):
            layer_loads(given)


FRAME = pd.DataFrame({"model": "MoE", "seed": 0, "step": 1, "loss": [2.0, 1.0], "lr": 0.1, "batch": 1, "distinct": 2})
FRAME = FRAME.assign(parameters=9, tokens_per_second=3, union_law=2, name="MoE", intensity=1, flops_per_second=1e9)
PLOTS = {
    "attention_heatmap": lambda **k: plots.attention_heatmap(np.eye(2), "ab", **k),
    "bars_by_layer": lambda **k: bars_by_layer({"byte": FRAME[["loss"]]}, title="Bits", **k),
    "byte_losses": lambda **k: plots.byte_losses("ab", [1, 2], **k),
    "dense_family": lambda **k: plots.dense_family({1: [1], 2: [2]}, [1.5], "known", **k),
    "distinct_by_batch": lambda **k: plots.distinct_by_batch(FRAME, **k),
    "expert_shares_heatmap": lambda **k: plots.expert_shares_heatmap(pd.DataFrame([EVEN]), **k),
    "gain_over_twin": lambda **k: plots.gain_over_twin(FRAME.assign(model=EQUAL_ACTIVE)[:1], "loss", "nats", **k),
    "loss_curves": lambda **k: plots.loss_curves({"MoE": tuple(map(torch.tensor, LOSS))}, **k),
    "parameter_bars": lambda **k: parameter_bars(MODEL_SHAPES["Mixtral 8x7B"].parameters(), **k),
    "parameter_growth": lambda **k: parameter_growth({2: ParameterCount(10, 10), 4: ParameterCount(20, 10)}, **k),
    "rate_tolerance": lambda **k: plots.rate_tolerance(FRAME, **k),
    "roofline": lambda **k: plots.roofline(1e10, 1e11, FRAME, **k),
    "seed_sweep": lambda **k: plots.seed_sweep({1: [1, 2], 2: [2, 3]}, "Accuracy", "coefficient", **k),
    "share_bars": lambda **k: share_bars({"parameters": {"FFN": 60, "attention": 30}}, **k),
    "speed_by_batch": lambda **k: plots.speed_by_batch(FRAME, **k),
}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_draws_on_given_axes_and_on_its_own_in_its_theme(name, theme):
    given = Figure().subplots()
    assert PLOTS[name](ax=given, theme=theme) is given
    ax = PLOTS[name](theme=theme)
    assert isinstance(ax.figure, LessonFigure) and ax.figure.png()
    colors = [ax.get_facecolor(), ax._left_title.get_color(), ax.xaxis.label.get_color()]
    assert ax.get_title(loc="left") and [to_rgb(color) for color in colors] == [
        to_rgb(color) for color in (THEMES[theme].background, THEMES[theme].foreground, THEMES[theme].foreground)
    ]
    with pytest.raises(ValueError, match="theme must be one of 'light', 'dark', got 'pink'"):
        PLOTS[name](theme="pink")


def test_a_dropped_choice_has_no_dot(routing):
    full = apply_capacity(routing, 1)
    dots = plots.token_expert_heatmap(full).lines[0].get_xydata()
    assert len(dots) == len(full.expert_idx) == 24 - full.dropped < 24


@pytest.mark.parametrize("theme", THEMES)
def test_a_figure_shows_itself_as_a_picture_with_a_name(theme, monkeypatch):
    data, metadata = plots.loss_curves({"MoE": LOSS}, theme=theme).figure._repr_mimebundle_()
    name = "Loss (cross entropy, nats)"
    assert data["text/plain"] == f"Figure: {name}" and metadata["image/png"] == {"alt": name, "width": 640}
    assert data["text/html"].startswith(f'<img alt="{name}" width="640" src="data:image/png;base64,iVBORw0KGgo')
    image = Image.open(io.BytesIO(data["image/png"]))
    assert image.size == (640, 360)
    assert image.convert("RGB").getpixel((0, 0)) == tuple(bytes.fromhex(THEMES[theme].background[1:]))
    monkeypatch.setenv("MOE_LESSONS_STATIC", "1")  # what is stored is the picture alone
    assert set(plots.loss_curves({"MoE": LOSS}, theme=theme).figure._repr_mimebundle_()[0]) == set(data) - {"text/html"}
