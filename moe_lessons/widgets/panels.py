"""Panels for live views: what each one is made of, and what it is given with every picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_lessons.analysis.cost import count_parameters, flops_per_token
from moe_lessons.nn import LanguageModel, is_moe
from moe_lessons.plots import CostTable, LayerLoads, LoadBars, LoadFilm, LossCurves, Panel, WrittenText, running_mean
from moe_lessons.tasks import decode, encode
from moe_lessons.training import DEAD_SHARE, Run

MOST_POINTS = 150  # of a curve: more are not seen
RECENT = 20  # steps over which the load is averaged
NUM_HELD_OUT = 256  # points on which loss and accuracy are measured, a few times a second
NUM_HELD_OUT_SEQUENCES = 48  # the same for text: a sequence is as much work as many points


@dataclass(frozen=True)
class LivePanel:
    """make(view, ax, theme) -> Panel, once; refresh(view, panel), with every picture. `view` is a `LiveRun`.

    slow: refresh it only as often as text is drawn, a few times a second.
    """

    make: Callable[..., Panel]
    refresh: Callable[[Any, Panel], None]
    slow: bool = False


def sample(num: int) -> np.ndarray:
    """The places of at most `MOST_POINTS` of `num` values, evenly spread, the last one among them."""
    return np.unique(np.linspace(0, max(num - 1, 0), min(num, MOST_POINTS)).astype(int))


def spent(run: Run, x_axis: str) -> np.ndarray:
    """What each step of a run has brought it to: 'steps', 'FLOPs' (of training, all tokens) or 'seconds'."""
    if x_axis == "seconds":
        return np.array([record.ms_per_step for record in run.records]).cumsum() / 1000
    steps = np.arange(1.0, len(run.records) + 1)
    tokens = run.batch_size * getattr(run.task, "context", 1)  # of a step: an example is a point, or a sequence
    return steps * tokens * flops_per_token(run.model, training=True) if x_axis == "FLOPs" else steps


def loss_curve(run: Run, x_axis: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss of a run, averaged over 10 steps, against what was `spent`."""
    at = sample(len(run.records))
    return spent(run, x_axis)[at], running_mean([record.loss for record in run.records])[at]


def recent_load(run: Run) -> list[float]:
    """The load shares of the first MoE layer, averaged over the last steps: one batch alone flickers."""
    return np.mean([record.load[0] for record in run.records[-RECENT:]], axis=0).tolist()


def moe_layers(view) -> list:
    """The mixtures of experts of the run that is shown, in order; ValueError where there is none."""
    found = [module for module in view.main_run.model.modules() if is_moe(module)]
    if not found:
        name = type(view.main_run.model).__name__
        raise ValueError(f"panels that show experts need a mixture of experts, got {name} without one")
    return found


def num_experts(view) -> int:
    """E of the first MoE layer of the run that is shown."""
    moe_layers(view)
    return view.main_run.num_experts[0]


def of_first_layer(panel: Panel, view) -> Panel:
    """The panel, and a word in its title where the run has more layers than the one that it shows."""
    if len(moe_layers(view)) > 1:
        panel.ax.set_title(f"{panel.title}, layer 0", loc="left")
    return panel


def _refresh_loss(view, panel: LossCurves) -> None:
    ghost = loss_curve(view.ghost, view.x_axis) if view.ghost else None
    marks = spent(view.main_run, view.x_axis)[[step - 1 for step in view.marks]] if view.marks else ()
    panel.update([loss_curve(run, view.x_axis) for run in view.runs.values()], ghost, marks)


def _refresh_load(view, panel: LoadBars) -> None:
    none_yet = getattr(view, "clean_load", np.zeros(panel.num_experts))
    load = recent_load(view.main_run) if view.main_run.records else none_yet
    factor = view.main_run.knobs.capacity_factor
    clean = getattr(view, "clean_load", None) if view.main_run.knobs.is_noisy else None
    panel.update(load, factor and factor / panel.num_experts, clean)


def _refresh_film(view, panel: LoadFilm) -> None:
    records = view.main_run.records
    at = sample(len(records))
    panel.update(at + 1, [records[i].load[0] for i in at], view.marks)


def _refresh_layers(view, panel: LayerLoads) -> None:
    records = view.main_run.records[-RECENT:]
    if records:
        loads = np.mean([record.load for record in records], axis=0)  # (layers, E)
        top_k = np.array([[moe.top_k] for moe in moe_layers(view)])  # (layers, 1)
        panel.update(loads, loads * top_k < DEAD_SHARE)


COST_ROWS = ("parameters", "active/token", "FLOPs/token", "ms/step", "held-out loss", "accuracy")


def _refresh_cost(view, panel: CostTable) -> None:
    columns = [_costs(run) for run in view.runs.values()]
    panel.update([list(row) for row in zip(*columns, strict=True)])


def _costs(run: Run) -> Sequence[str]:
    num = NUM_HELD_OUT_SEQUENCES if hasattr(run.task, "context") else NUM_HELD_OUT
    count, held_out = count_parameters(run.model), run.evaluate(num)
    times = [record.ms_per_step for record in run.records[-50:]]
    ms = f"{np.median(times):.2f}" if times else "–"
    flops = flops_per_token(run.model)
    return (
        f"{count.total:,}",
        f"{count.active:,}",
        f"{flops:,}",
        ms,
        f"{held_out['loss']:.3g}",
        f"{held_out['accuracy']:.1%}",
    )


def writing(prompts: Mapping[str, str], num_bytes: int = 80, temperature: float = 0.7) -> LivePanel:
    """A panel in which the language model of the first run continues each prompt, anew a few times a second.

    prompts: by name. temperature: see `LanguageModel.generate`.
    """

    def refresh(view, panel: WrittenText) -> None:
        panel.update([write(view.main_run.model, text, num_bytes, temperature) for text in prompts.values()])

    return LivePanel(lambda view, ax, theme: WrittenText(ax, theme, tuple(prompts)), refresh, slow=True)


def write(model: LanguageModel, prompt: str, num_bytes: int = 80, temperature: float = 0.7, seed: int = 0) -> str:
    """The prompt and how a model of bytes goes on from it: see `LanguageModel.generate`."""
    ids = encode(prompt)[None].to(model.embed.weight.device)  # (1, T)
    return decode(model.generate(ids, num_bytes, temperature=temperature, seed=seed)[0])


PANELS = {
    "loss": LivePanel(
        lambda view, ax, theme: LossCurves(ax, theme, tuple(view.runs), view.x_axis, view.ghost is not None),
        _refresh_loss,
    ),
    "load": LivePanel(
        lambda view, ax, theme: of_first_layer(LoadBars(ax, theme, num_experts(view)), view), _refresh_load
    ),
    "film": LivePanel(
        lambda view, ax, theme: of_first_layer(LoadFilm(ax, theme, num_experts(view)), view), _refresh_film
    ),
    "layers": LivePanel(
        lambda view, ax, theme: LayerLoads(ax, theme, len(moe_layers(view)), num_experts(view)), _refresh_layers
    ),
    "cost": LivePanel(
        lambda view, ax, theme: CostTable(ax, theme, tuple(view.runs), COST_ROWS, steady=3), _refresh_cost, slow=True
    ),
}


def check_panels(panels: Sequence[str | LivePanel]) -> list[LivePanel]:
    """The panels of those names, or ValueError for a name that is not known."""
    if not panels:
        raise ValueError(f"panels must name at least one of {', '.join(map(repr, PANELS))}, got none")
    for panel in panels:
        if not isinstance(panel, LivePanel) and panel not in PANELS:
            raise ValueError(f"panels must be LivePanels or of {', '.join(map(repr, PANELS))}, got {panel!r}")
    return [panel if isinstance(panel, LivePanel) else PANELS[panel] for panel in panels]
