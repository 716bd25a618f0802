"""Panels for live views: what each one is made of, and what it is given with every picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moe_lessons.analysis.cost import count_parameters, flops_per_token
from moe_lessons.analysis.traces import expert_shares, trace
from moe_lessons.nn import LanguageModel, is_moe, torch_threads
from moe_lessons.plots import (
    ColoredTextPanel,
    CostTable,
    LayerLoads,
    LoadBars,
    LoadFilm,
    LossCurves,
    Panel,
    SharesMap,
    WrittenText,
    running_mean,
)
from moe_lessons.plots.colored_text import REST, wrap
from moe_lessons.plots.cost import short_number
from moe_lessons.tasks import decode, encode
from moe_lessons.training import DEAD_SHARE, Run

MOST_POINTS = 150  # of a curve: more are not seen
RECENT = 20  # steps over which the load is averaged
NUM_HELD_OUT = 256  # points on which loss and accuracy are measured, a few times a second
NUM_HELD_OUT_SEQUENCES = 48  # the same for text: a sequence is as much work as many points
NUM_TRACED = 24  # sequences of text whose routing is read, and no fewer than this many of each domain:
NUM_TRACED_PER_DOMAIN = 2
PROMPT = 8  # bytes that a language model is given, to go on from


@dataclass(frozen=True)
class LivePanel:
    """make(view, ax, theme) -> Panel, once; refresh(view, panel), with every picture. `view` is a `LiveRun`.

    slow: refresh it only as often as text is drawn, twice a second at most and when training has had its share, or when
    the view wants it. heavy: also then an answer to a control does not wait for it, since it takes as long as a step.
    """

    make: Callable[..., Panel]
    refresh: Callable[[Any, Panel], None]
    slow: bool = False
    heavy: bool = False


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


def recent_load(run: Run, layer: int = 0) -> list[float]:
    """The load shares of an MoE layer, averaged over the last steps: one batch alone flickers."""
    return np.mean([record.load[layer] for record in run.records[-RECENT:]], axis=0).tolist()


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


def of_a_layer(make: Callable[..., Panel]) -> Callable[..., Panel]:
    """Has the title of the panels that are made change with the layer: a slow artist, cheaper than a full drawing."""

    def made(view, ax, theme) -> Panel:
        panel = make(view, ax, theme)
        panel.slow = [*panel.slow, ax.set_title(panel.title, loc="left", fontsize=10, pad=5)]
        return panel

    return made


def say_layer(view, panel: Panel) -> None:
    """Have the title of a panel `of_a_layer` say which one it shows, where the run has several."""
    panel.slow[-1].set_text(f"{panel.title}, layer {view.layer}" if len(view.main_run.num_experts) > 1 else panel.title)


def _refresh_loss(view, panel: LossCurves) -> None:
    ghost = loss_curve(view.ghost, view.x_axis) if view.ghost else None
    marks = spent(view.main_run, view.x_axis)[[step - 1 for step in view.marks]] if view.marks else ()
    panel.update([loss_curve(run, view.x_axis) for run in view.runs.values()], ghost, marks)


def _refresh_load(view, panel: LoadBars) -> None:
    say_layer(view, panel)
    none_yet = getattr(view, "clean_load", np.zeros(panel.num_experts))
    load = recent_load(view.main_run, view.layer) if view.main_run.records else none_yet
    factor = view.main_run.knobs.capacity_factor
    clean = getattr(view, "clean_load", None) if view.main_run.knobs.is_noisy else None
    panel.update(load, factor and factor / panel.num_experts, clean)


def _refresh_film(view, panel: LoadFilm) -> None:
    say_layer(view, panel)
    records = view.main_run.records
    at = sample(len(records))
    panel.update(at + 1, [records[i].load[view.layer] for i in at], view.marks)


def _refresh_layers(view, panel: LayerLoads) -> None:
    records = view.main_run.records[-RECENT:]
    if not records:
        panel.clear()  # a new start: what the old run had is not its load
        return
    loads = np.mean([record.load for record in records], axis=0)  # (layers, E)
    top_k = np.array([[moe.top_k] for moe in moe_layers(view)])  # (layers, 1)
    panel.update(loads, loads * top_k < DEAD_SHARE)


LARGE = 100_000  # numbers from here on are shortened
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
        *(f"{n:,}" if n < LARGE else short_number(n) for n in (count.total, count.active, flops)),
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

    return LivePanel(lambda view, ax, theme: WrittenText(ax, theme, tuple(prompts)), refresh, slow=True, heavy=True)


def write(model: LanguageModel, prompt: str, num_bytes: int = 80, temperature: float = 0.7, seed: int = 0) -> str:
    """The prompt and how a model of bytes goes on from it: see `LanguageModel.generate`."""
    ids = encode(prompt)[None].to(model.embed.weight.device)  # (1, T)
    with torch_threads(1):  # single tokens of a small model: a second thread only costs
        return decode(model.generate(ids, num_bytes, temperature=temperature, seed=seed)[0])


# --- of a language model ------------------------------------------------------------------------------------

_traces: WeakKeyDictionary = WeakKeyDictionary()  # view -> (what the trace depends on, the trace)


def traced(view) -> pd.DataFrame:
    """Who serves the tokens of a few held-out sequences, in the run that is shown (see `analysis.trace`).

    It is traced once for all panels, and anew when everything is refreshed.
    """
    run = view.main_run
    key = run, view.looks
    if _traces.get(view, (None,))[0] != key:
        num_per_domain = max(NUM_TRACED // len(getattr(run.task, "domains", "x")), NUM_TRACED_PER_DOMAIN)
        with torch_threads(run.threads):
            _traces[view] = key, trace(run.model, run.task, num_per_domain)
    return _traces[view][1]


def _shares_panel(by: str, title: str) -> LivePanel:
    def groups(view) -> list[str]:
        return traced(view)[by].cat.remove_unused_categories().cat.categories.tolist()

    def make(view, ax, theme) -> SharesMap:
        return SharesMap(ax, theme, groups(view), num_experts(view), title)

    def refresh(view, panel: SharesMap) -> None:
        say_layer(view, panel)
        panel.update(expert_shares(traced(view), by, view.layer).reindex(groups(view)))

    return LivePanel(of_a_layer(make), refresh, slow=True)


def _refresh_text(view, panel: ColoredTextPanel) -> None:
    say_layer(view, panel)
    table = traced(view)
    table = table[table["layer"] == view.layer]
    num_sequences, num_domains = table["sequence"].nunique(), table["domain"].nunique()
    ids, experts = (table[name].to_numpy().reshape(num_sequences, -1) for name in ("byte", "expert0"))  # (N, T)
    domain = table["domain"].cat.codes.to_numpy().reshape(ids.shape)[:, 0]  # (N,)
    text, served = b"", []
    for rows in (np.flatnonzero(domain == number) for number in range(num_domains)):
        row, start = line_start(ids[rows], room=ids.shape[1] // 2)
        line = bytes(ids[rows[row], start:].tolist())
        seen, empty = first_lines(line, panel.width, max(panel.lines // num_domains, 1))
        text += line[:seen] + b" " * empty
        served += experts[rows[row], start : start + seen].tolist() + [-1] * empty
    panel.update(text, served)


def line_start(ids: np.ndarray, room: int) -> tuple[int, int]:
    """Of bytes (N, T) a row and the place in it where a line begins, with `room` more bytes; 0, 0 where none does."""
    breaks = ids[:, : max(ids.shape[1] - room, 0)] == ord("\n")
    if not breaks.any():
        return 0, 0
    row = int(breaks.any(axis=1).argmax())
    return row, int(breaks[row].argmax()) + 1


def first_lines(text: bytes, width: int, lines: int) -> tuple[int, int]:
    """How many bytes of the text fill the first lines of a `ColoredTextPanel`, and how many places are left empty
    in the last one."""
    size = x = 0
    for _, start, length, left, line in wrap(text, width):
        if line == lines:
            break
        size, x = start + length, left + 1 + (length - 1) * REST
    ended = text[:size].endswith(b"\n")
    return size, 0 if ended else int(width - x)


def prompts(task) -> Tensor:
    """(domains, `PROMPT`) bytes: how a held-out line of each domain of a text task begins."""
    if not hasattr(task, "held_out"):
        raise ValueError(f"task must be a TextTask where the model writes, got {type(task).__name__}")
    ids, _, domain = task.held_out(8)
    found = []
    for rows in (ids[domain == number] for number in range(len(task.domains))):
        row, place = line_start(rows.numpy(), room=PROMPT)
        found.append(rows[row, place : place + PROMPT])
    return torch.stack(found)


def _refresh_writing(view, panel: WrittenText) -> None:
    run = view.main_run
    ids = prompts(run.task).to(run.device)  # of one length: all are continued at once
    num_bytes = min(panel.width * panel.lines, run.model.config.max_positions) - ids.shape[1]
    with torch_threads(run.threads):
        panel.update([decode(row) for row in run.model.generate(ids, num_bytes, temperature=0.7)])


def _make_writing(view, ax, theme) -> WrittenText:
    if not isinstance(view.main_run.model, LanguageModel):
        name = type(view.main_run.model).__name__
        raise ValueError(f"model must be a LanguageModel where it writes, got {name}")
    num_domains = len(prompts(view.main_run.task))
    return WrittenText(ax, theme, view.main_run.task.domains, lines=max(1, 5 - num_domains))


PANELS = {
    "loss": LivePanel(
        lambda view, ax, theme: LossCurves(ax, theme, tuple(view.runs), view.x_axis, view.ghost is not None),
        _refresh_loss,
    ),
    "load": LivePanel(of_a_layer(lambda view, ax, theme: LoadBars(ax, theme, num_experts(view))), _refresh_load),
    "film": LivePanel(of_a_layer(lambda view, ax, theme: LoadFilm(ax, theme, num_experts(view))), _refresh_film),
    "layers": LivePanel(
        lambda view, ax, theme: LayerLoads(ax, theme, len(moe_layers(view)), num_experts(view)), _refresh_layers
    ),
    "cost": LivePanel(
        lambda view, ax, theme: CostTable(ax, theme, tuple(view.runs), COST_ROWS, steady=3),
        _refresh_cost,
        slow=True,
        heavy=True,
    ),
    "domains": _shares_panel("domain", "Domains, % of each row"),
    "classes": _shares_panel("byte_class", "Kinds of bytes, % of each row"),
    "text": LivePanel(
        of_a_layer(lambda view, ax, theme: ColoredTextPanel(ax, theme, num_experts(view), width=36, lines=6)),
        _refresh_text,
        slow=True,
    ),
    "writing": LivePanel(_make_writing, _refresh_writing, slow=True, heavy=True),
}


def check_panels(panels: Sequence[str | LivePanel]) -> list[LivePanel]:
    """The panels of those names, or ValueError for a name that is not known."""
    if not isinstance(panels, Sequence) or not panels:
        got = "none" if isinstance(panels, Sequence) else repr(panels)
        raise ValueError(f"panels must name at least one of {', '.join(map(repr, PANELS))}, got {got}")
    for panel in panels:
        if not isinstance(panel, LivePanel) and panel not in PANELS:
            raise ValueError(f"panels must be LivePanels or of {', '.join(map(repr, PANELS))}, got {panel!r}")
    return [panel if isinstance(panel, LivePanel) else PANELS[panel] for panel in panels]
