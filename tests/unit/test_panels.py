"""Panels show the data of a view, at little cost."""

import gc
import re
import weakref
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from moe_lessons import plots
from moe_lessons.analysis import count_parameters, flops_per_token, trace_text
from moe_lessons.nn import LanguageModel, MoE, TransformerConfig, apply_capacity, seeded
from moe_lessons.plots import PANELS
from moe_lessons.plots.marks import Bars, Line, Rule, Stack, roomy
from moe_lessons.plots.panels._history import LOAD_WINDOW, MOST_PLACES, History, history, recent_load, spent
from moe_lessons.plots.panels.compared import alike, loss_panel
from moe_lessons.plots.panels.passages import shares_panel
from moe_lessons.plots.panels.shares import heatmap_panel, load_panel
from moe_lessons.plots.theme import percent
from moe_lessons.tasks import TextTask
from moe_lessons.training import PRESETS, Run, plane_runs, train
from moe_lessons.widgets import Playground
from moe_lessons.widgets.live import LIVE_RUN
from moe_lessons.widgets.spec import State

EVEN, COLLAPSED = [1 / 8] * 8, [0.0] * 7 + [1.0]
STEPS = 25
TEXT = 'if a<b & c: "τηε"\n  x'


def view_of(runs: dict[str, Run], **more) -> SimpleNamespace:
    values = {name: more.pop(name) for name in ("x_axis", "layer") if name in more}
    state = State({"token": 2} | values, [3], more.pop("ghost", None))
    usual = {"state": state, "spec": LIVE_RUN, "clean_load": None, "loop": SimpleNamespace(until=0)}
    return SimpleNamespace(runs=runs, main_run=next(iter(runs.values())), **usual | more)


@pytest.fixture(scope="module")
def view() -> SimpleNamespace:
    runs = plane_runs(PRESETS["healthy"])
    for run in runs.values():
        train(run, STEPS)
    return view_of(runs, clean_load=EVEN)


@pytest.fixture(scope="module")
def text_run() -> Run:
    with seeded(0):
        model = LanguageModel(TransformerConfig(d_model=16, d_ff=8, num_layers=3, num_heads=2, num_experts=4, top_k=2))
    run = Run(model, TextTask(["english", "code"]), lr=0.01, batch_size=4)
    run.step()
    return run


def marks_of(panel, kind: type) -> list:
    return [mark for mark in panel.marks if isinstance(mark, kind)]


def smooth(losses) -> list[float]:
    return [np.mean(losses[max(0, end - 10) : end]) for end in range(1, len(losses) + 1)]


@pytest.mark.parametrize("count", [0, 1, 255, 256, 3000])
def test_a_history_is_thinned_evenly_and_ends_with_the_last_step(count):
    def record(step: int) -> SimpleNamespace:
        load = [[step / 10_000, 1 - step / 10_000]]
        return SimpleNamespace(ms_per_step=2.0, loss=1 / step, dead_experts=step % 3, load=load)

    records, past = [record(step) for step in range(1, count + 1)], History()
    for end in [*range(0, count, 7), count]:
        past.read(records[:end])
    steps, loads = past.column("steps"), past.loads(0, 2)
    assert min(count, MOST_PLACES // 2) <= len(steps) == len(loads) <= MOST_PLACES
    assert count == 0 or steps[-1] == count and len(set(np.diff(steps[:-1]))) <= 1
    places = steps.astype(int)
    np.testing.assert_allclose(loads[:, 0], places / 10_000, rtol=1e-6)
    np.testing.assert_allclose(past.column("seconds"), places * 0.002, rtol=1e-5)
    np.testing.assert_allclose(past.column("loss"), np.take(smooth([r.loss for r in records]), places - 1), rtol=1e-5)
    for others in (records[:50], [record(step) for step in range(9, 70)], []):  # taken back, or replaced
        np.testing.assert_allclose(past.read(others).column("loss"), smooth([r.loss for r in others]), rtol=1e-5)


def test_what_a_run_has_spent_and_its_history_ends_with_it(view, text_run):
    kept = weakref.ref(history(plane_runs(PRESETS["healthy"])["MoE"]))
    gc.collect()
    assert kept() is None
    run = view.main_run
    assert spent(run, "steps").tolist() == list(range(1, STEPS + 1)) and spent(run, "steps", [3, 9]).tolist() == [3, 9]
    np.testing.assert_allclose(spent(run, "seconds"), np.cumsum([r.ms_per_step for r in run.records]) / 1000, rtol=1e-5)
    assert spent(run, "FLOPs", [2])[0] == 2 * run.batch_size * flops_per_token(run.model, training=True)
    tokens = text_run.batch_size * text_run.task.context
    assert spent(text_run, "FLOPs").tolist() == [tokens * flops_per_token(text_run.model, training=True)]


def test_the_loss_of_each_model(view):
    panel = PANELS["loss"](view)
    for line, (name, run) in zip(marks_of(panel, Line), view.runs.items(), strict=True):
        np.testing.assert_allclose(line.y, smooth([r.loss for r in run.records]), rtol=1e-5)
        assert line.name == name and line.x.tolist() == list(range(1, STEPS + 1))
    assert [rule.x for rule in marks_of(panel, Rule)] == [3] and panel.x.link == "step"
    against = PANELS["loss"](view_of(view.runs, x_axis="FLOPs", ghost=view.runs["MoE"]))
    assert len(marks_of(against, Line)) == len(view.runs) + 1  # the previous run
    assert marks_of(against, Rule)[0].x == pytest.approx(spent(view.main_run, "FLOPs")[2])


def test_a_long_ghost_or_one_that_diverged_does_not_squeeze_a_young_run():
    steps, nothing = np.arange(1, 5001), (np.array([]), np.array([]))
    panel = loss_panel({"MoE": (steps[:300], steps[:300] / 300)}, (steps, steps / 5000))
    assert 600 <= panel.x.high < 1000 and panel.marks[0].x[-1] == int(panel.x.high)  # it ends at the frame
    for own in (nothing, (steps, np.full(5000, 0.4))):
        assert loss_panel({"MoE": own}, (steps, 2.1 + steps)).y.high == 4


def test_the_load_is_that_of_the_last_steps_and_of_the_router_before_the_first(view):
    mean = np.mean([r.load[0] for r in view.main_run.records[-LOAD_WINDOW:]], axis=0)
    np.testing.assert_allclose(marks_of(PANELS["load"](view), Bars)[0].y, mean, rtol=1e-5)
    assert recent_load(view.main_run) == pytest.approx(mean)
    panel = PANELS["load"](fresh := view_of(plane_runs(PRESETS["capacity"]), clean_load=COLLAPSED))
    (bars,) = marks_of(panel, Bars)
    assert bars.y.tolist() == COLLAPSED and bars.second is None
    assert marks_of(panel, Rule)[1].y == bars.limit == fresh.main_run.knobs.capacity_factor / 8
    noisy = PANELS["load"](view_of(plane_runs(PRESETS["noise"]), clean_load=COLLAPSED))
    assert marks_of(noisy, Bars)[0].second.tolist() == COLLAPSED
    for given in ({"load": COLLAPSED}, {"capacity": 2.0}, {"clean": COLLAPSED}):  # there is room for all
        assert load_panel(**{"load": EVEN} | given).y.high >= max(np.max(value) for value in given.values())


def test_films_have_every_step_and_layers_are_rows(view, text_run):
    (stack,) = marks_of(PANELS["film"](view), Stack)
    np.testing.assert_allclose(stack.y, [r.load[0] for r in view.main_run.records], rtol=1e-6)
    assert stack.x.tolist() == list(range(1, STEPS + 1))
    cells, crosses = PANELS["layers"](view_of({"MoE": text_run}, layer=1)).marks
    np.testing.assert_allclose(cells.z, 4 * np.array(text_run.records[0].load), rtol=1e-5)
    assert (cells.even, cells.selected) == (1, 1)
    assert len(crosses.x) == text_run.records[0].dead_experts
    with seeded(0):
        routing = MoE(16, 4, num_experts=8, top_k=2)(torch.randn(12, 16))[1]
    full = apply_capacity(routing, 1)
    assert len(heatmap_panel(full).marks[1].x) == 24 - full.dropped < 24


def test_an_axis_of_steps_ends_with_the_training_where_that_is_known():
    ends = [
        roomy(value, 200, most) for value, most in ((0, 0), (100, 0), (100, 150), (250, 300), (301, 300), (50, 900))
    ]
    assert ends == [200, 200, 150, 300, 450, 200]


def test_numbers_of_a_row_have_as_many_digits_each():
    assert alike([2.2, 2.218]) == ["2.20", "2.22"] and alike([0.1, 0.0254]) == ["0.100", "0.025"]
    assert alike([24736, 112000]) == ["24.7 K", "112 K"] and alike([472, 1464]) == ["472", "1,464"]
    assert [percent(part) for part in (0, 0.0004, 0.09, 0.097, 0.0996, 1)] == [
        "0 %",
        "0.0 %",
        "9.0 %",
        "9.7 %",
        "10 %",
        "100 %",
    ]


def test_the_table_says_what_each_model_costs(view):
    (table,) = PANELS["cost"](view).marks
    for name, run in view.runs.items():
        column = dict(zip(table.rows, (row[table.columns.index(name)] for row in table.cells)))
        assert column["parameters"] == f"{count_parameters(run.model).total:,}"
        assert column["accuracy"] == f"{100 * run.evaluate(256)['accuracy']:.1f} %"


def test_a_trace_is_coloured_by_the_layer_and_shares_in_two_directions_from_the_even_one(text_run):
    trace = trace_text(text_run.model, TEXT)
    (mark,) = plots.colored_trace(trace.sample(frac=1, random_state=0), 1, "A title").marks
    assert mark.texts == [TEXT] and mark.experts.tolist() == trace[trace["layer"] == 1]["expert0"].tolist()
    with pytest.raises(ValueError, match="trace must be of one text, got several"):
        plots.colored_trace(pd.concat([trace, trace.assign(sequence=1)]), 0)
    for experts, most in ((1, 1), (2, 1), (8, 0.5), (16, 0.25), (64, 0.125)):
        table = pd.DataFrame(np.random.default_rng(0).dirichlet([0.5] * experts, 2), index=["english", "$b_$" * 10])
        (cells, *_) = shares_panel(table, "Shares").marks
        np.testing.assert_allclose(cells.z, table, rtol=1e-6)
        assert cells.even == 1 / experts and cells.most == most


def test_a_model_goes_on_from_prompts_and_panels_refuse_models_that_have_nothing_to_show(view, text_run):
    (text,) = plots.writing({"a": "The ", "b": "def "}, num_bytes=6)(view_of({"LM": text_run})).marks
    assert list(text.texts) == [plots.write(text_run.model, prompt, 6) for prompt in ("The ", "def ")]
    dense = view_of({"dense": view.runs["dense, 1×"]})
    for name, own in (("writing", view), ("load", dense), ("film", dense), ("layers", dense)):
        with pytest.raises(ValueError, match="got PlaneClassifier"):
            PANELS[name](own)


@pytest.mark.parametrize("widest, lowest", [(1.1, 0.97), (8.7, 0.05)])
def test_each_tile_has_a_row_with_its_name_and_axes_reach_over_all_seeds(widest, lowest):
    x, y = np.array([1, widest]), np.array([lowest, 0.99])
    dead = {"no balancing": 4, "jitter": 2, "auxiliary loss": 0, "capacity": 5, "top-2": 0}
    readings = {name: SimpleNamespace(dead=np.full(2, n), max_over_mean=x, accuracy=y) for name, n in dead.items()}
    tiles = {name: SimpleNamespace(readings=[reading], step=40) for name, reading in readings.items()}
    for name, values in (("dead", [4, 4]), ("balance", x), ("quality", y)):
        panel = PANELS[name](SimpleNamespace(tiles=tiles, state=State({"highlight": "jitter", "num_experts": 8})))
        (spots,) = panel.marks
        assert panel.y.ticks == list(enumerate(tiles))
        own = [part[0] for part in spots.x]
        np.testing.assert_allclose(own, [np.mean(values), min(values), max(values)], rtol=1e-6)
        assert panel.x.low <= min(values) and panel.x.high >= max(values)


@pytest.mark.parametrize("num_experts, times", [(8, 1.3), (16, 1.6)])
def test_the_answer_says_what_the_mixture_stores_and_computes_beside_the_dense_models(num_experts, times):
    lab = Playground(num_experts=num_experts)
    (caption,) = (panel.caption for panel in lab.panels() if panel.title.startswith("Stored"))
    large = list(lab.runs)[-1]
    said = rf"The MoE is \d+\s% right: stores like {large} \(\d+\s%\), computes {times} times as much as dense, 1× .*\."
    assert re.fullmatch(said, caption)
