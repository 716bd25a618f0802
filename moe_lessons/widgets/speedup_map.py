"""The speedup map: over which dense model, at which batch size, on which machine a mixture is faster, and why."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import ipywidgets as W
import numpy as np
import pandas as pd

from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape
from moe_lessons.analysis.inference import Machine, union_law
from moe_lessons.analysis.quality import EffectiveWidth
from moe_lessons.analysis.roofline import (
    CACHE,
    EXPERTS,
    FFN,
    WEIGHT_BYTES,
    ModelSizes,
    machine_for,
    machines,
    on_machine,
    part_costs,
    part_seconds,
    published_sizes,
    sizes_of,
)
from moe_lessons.analysis.speedup import Speedups, edges_of, speedups
from moe_lessons.plots.costs import size_words
from moe_lessons.plots.labels import EVEN
from moe_lessons.plots.marks import Line, Panel, Rule, Table
from moe_lessons.plots.speeds import LAST, edge_lines, speedup_panel
from moe_lessons.plots.theme import model_inks, percent, short_number
from moe_lessons.support.errors import check_choice, check_number, check_positive_int, check_whole, is_number, is_whole
from moe_lessons.widgets.controls import control, move
from moe_lessons.widgets.picture import Picture

ROWS = 4 * LAST + 1  # batch sizes that are drawn: four for each doubling
FAR = 1e9  # a batch size above both edges
EXPERT_STOPS = (2, 4, 8, 16, 32, 64, 128, 256)
OWN = "this machine"
SETTINGS = ("num_experts", "top_k", "machine", "weights", "context_length")
Costs = dict[str, tuple[float, float]]  # bytes and FLOPs of each part


class SpeedupMap(Picture):
    """Map the speedup of a mixture in decoding, by the roofline (`analysis.speedups`), over dense models from the
    FLOP-matched one (1) to the parameter-matched one (E / K). A click, or arrows and Enter, read out a place.

    model: of `MODEL_SHAPES` or `published_sizes`, or a `TransformerShape`; num_experts, top_k: in the place of its own.
    machine: of `machines()`, or a `Machine` as `measure_machine` returns. weights: of `WEIGHT_BYTES`. context_length:
    tokens in the KV cache of each text. width, batch_size: the place that is read out. matched: the quality-matched
    width, with its interval. measured: (width, batch size, speedup) of points, as `Measured.points`."""

    def __init__(
        self, model: str | TransformerShape = "Mixtral 8x7B", *, num_experts: int | None = None,
        top_k: int | None = None, machine: str | Machine = "NVIDIA H100 SXM", weights: str = "bfloat16",
        context_length: int = 0, width: float = 4.0, batch_size: int = 1, matched: EffectiveWidth | None = None,
        measured: Sequence[tuple[float, int, float]] = (),
    ):  # fmt: skip
        self.model, self.start = model, mixture_sizes(model)
        (group, *_) = self.start.groups
        self.machines, self.own, machine = machine_rows(machine)
        E, K = num_experts or group.num_experts, group.top_k if top_k is None else top_k
        given = {"num_experts": E, "top_k": K, "machine": machine, "weights": weights}
        given |= {"context_length": context_length}
        self.start.with_experts(E, K)  # refuses what cannot be
        check_choice("machine", machine, self.machines.index)
        check_choice("weights", weights, WEIGHT_BYTES)
        check_whole("context_length", context_length, 0, 2**20)
        stops = {"num_experts": EXPERT_STOPS, "top_k": range(1, E + 1)}
        stops |= {"machine": tuple(self.machines.index), "weights": tuple(WEIGHT_BYTES)}
        self.inputs = {name: control(name, stops.get(name)) for name in SETTINGS}
        for name, value in given.items():
            move(self.inputs[name], value)
        self.first = self.settings
        if not isinstance(matched, EffectiveWidth | None):
            raise ValueError(f"matched must be an EffectiveWidth or None, got {matched!r}")
        self.matched, self.measured = matched, tuple(check_point(point) for point in measured)
        self.width = check_number("width", width, minimum=1)
        self.batch = check_positive_int("batch_size", batch_size, most=2**LAST)
        for name, widget in self.inputs.items():
            widget.style.description_width = "120px"
            widget.observe(lambda _, name=name: self.moved(name), "value")
        grid = {"display": "grid", "grid_template_columns": "repeat(auto-fill, minmax(min(100%, 300px), 1fr))"}
        ordered = sorted(self.inputs.values(), key=lambda widget: isinstance(widget, W.Dropdown))  # sliders in a row
        sliders = W.Box(ordered, layout=W.Layout(**grid)).add_class("moe-sliders")
        super().__init__(rows=[W.HTML('<span class="moe-title">Speedup map</span>'), sliders])
        self.canvas.on_pick = self.picked

    @property
    def settings(self) -> dict[str, Any]:
        return {name: widget.value for name, widget in self.inputs.items()}

    def moved(self, name: str) -> None:
        if name == "num_experts":
            self.inputs["top_k"].max = self.inputs[name].value  # a larger one follows it
        self.show()

    def picked(self, kind: str, index: int) -> None:
        """Read out the place of this number, of those that a click may select."""
        widths, batches = self.grid()
        if kind == "place" and index < len(widths) * len(batches):
            self.width, self.batch = float(widths[index % len(widths)]), int(batches[index // len(widths)])
            self.show()

    @property
    def sizes(self) -> ModelSizes:
        return self.start.with_experts(self.inputs["num_experts"].value, self.inputs["top_k"].value)

    @property
    def top(self) -> float:
        """The largest width: that of the parameter-matched baseline."""
        return max(2.0, self.sizes.total_width)

    @property
    def roof(self) -> Machine:
        return machine_for(self.machines.loc[self.inputs["machine"].value], self.inputs["weights"].value)

    @property
    def is_as_made(self) -> bool:
        """Return whether the mixture has the experts with which the view was made."""
        return all(self.settings[name] == self.first[name] for name in ("num_experts", "top_k"))

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the widths and the batch sizes, the largest first, of the places that can be pointed at."""
        step = 2.0 ** round(np.log2((self.top - 1) / 14))
        widths = np.unique(np.arange(0, self.top + step / 4, step).clip(1))
        return widths, 2 ** np.arange(LAST, -1, -1)

    def costs(self, width: float, batch: Any) -> tuple[Costs, Costs]:
        """Count bytes and FLOPs of the parts of the mixture, and of the dense model of this width."""
        case = self.inputs["weights"].value, batch, self.inputs["context_length"].value
        return part_costs(self.sizes, *case), part_costs(self.sizes.dense(width), *case)

    def panels(self) -> list[Panel]:
        (widths, batches), top = self.grid(), self.top
        places = np.stack(np.broadcast_arrays(widths, np.log2(batches)[:, None]), axis=-1).reshape(-1, 2)
        heat = {"places": places, "columns": len(widths), "titles": self.titles(widths, batches)}
        heat["selected"] = np.array([min(self.width, top), np.log2(self.batch)])
        found = self.speedups(2 ** np.linspace(0, LAST, ROWS))
        drawn = speedup_panel(found, top, heat, self.marks(), self.shown(), width=7, height=430, caption=self.caption())
        (title,) = self.titles(np.array([self.width]), np.array([self.batch]))
        return [drawn, Panel(title, [self.table()], width=5, height=300)]

    def titles(self, widths: np.ndarray, batches: np.ndarray) -> list[str]:
        """Say the speedup at each of the batch sizes (B,) over each width (W,)."""
        found = self.speedups(batches.astype(float)).at(widths)
        places = zip(product(batches.tolist(), widths.tolist()), found.ravel())
        return [f"Batch size {batch:,}, dense, {width:g}×: speedup {each:.2f}" for (batch, width), each in places]

    def speedups(self, batches: np.ndarray) -> Speedups:
        weights, context = self.inputs["weights"].value, self.inputs["context_length"].value
        return speedups(self.sizes, self.roof, weights, batches, context)

    def edge_words(self, width: float) -> str:
        """Say where the MoE is faster than a dense model of this width."""
        return edge_words(self.edges(width), lambda batches: self.speedups(batches).at(np.array([width]))[:, 0])

    def marks(self) -> list[Line | Rule]:
        """What stands on the map: the two edges, the quality-matched width, and the end of memory."""
        texts, marks = self.texts(), edge_lines(self.edges, self.top)
        if (found := self.matched) and self.is_as_made:
            width, low, high = (min(max(end, 1), self.top) for end in (found.width, found.low, found.high))
            marks.append(Rule(width, name=f"quality-matched width: {found}"))
            marks += [Rule(low, kind="even", name="its 95 % interval"), Rule(high, kind="even")]
        if texts is not None and 1 <= texts < 2**LAST:
            name = f"memory is full: {texts:,} sequence{'s' * (texts > 1)}"
            marks.append(Rule(y=float(np.log2(texts)), kind="end", name=name))
        return marks

    def edges(self, width: float) -> tuple[float, float] | None:
        """The batch sizes between which the MoE is slower than a dense model of this width, by `speedup.edges`."""
        return edges_of(self.sizes, width, self.roof, self.inputs["weights"].value)

    def texts(self) -> int | None:
        """How many texts fit beside the weights of the mixture; None where that is not known or there is no cache."""
        row = self.machines.loc[self.inputs["machine"].value]
        return on_machine(self.sizes, row, self.inputs["weights"].value, self.inputs["context_length"].value)["texts"]

    def unfit(self) -> str:
        """Say that the weights, or so many texts, do not fit into the machine's memory; empty: they do, or it is not
        known."""
        weights = WEIGHT_BYTES[self.inputs["weights"].value] * self.sizes.total
        memory = self.machines.loc[self.inputs["machine"].value].memory_bytes
        if weights > memory:
            return f"It does not fit: {size_words(weights)} of weights, {size_words(memory)} of memory."
        is_full = 1 <= (self.texts() or 0) < self.batch
        return f"At batch size {self.batch:,} it does not fit: memory is full." if is_full else ""

    def shown(self) -> tuple[tuple[float, int, float], ...]:
        """The measured points, while the settings are those at which the view was made."""
        return self.measured if self.settings == self.first else ()

    def errors(self) -> list[float]:
        """By which factor the roofline is off at each measured point."""
        points, found = self.shown(), []
        for width, batch, speedup in points:
            moe, dense = (seconds(costs, self.roof) for costs in self.costs(width, batch))
            found.append(max(dense / moe / speedup, speedup * moe / dense))
        return sorted(found)

    def caption(self) -> str:
        """Say what the points are, and how far off the roofline is."""
        if not (errors := self.errors()):
            return ""
        off = f"off by a factor of {np.median(errors):.2f} (median), {errors[-1]:.2f} at most"
        return f"○ measured here: the roofline is {off}"

    def table(self) -> Table:
        """Compare both models at the place: time, bytes, FLOPs, and each part with what bounds it."""
        both = self.costs(self.width, self.batch)
        steps = [seconds(costs, self.roof) for costs in both]
        least, work = min(steps), [sum(flops for _, flops in costs.values()) for costs in both]
        rows: dict[str, list[str]] = {
            "least time of a step": [*(say_seconds(each, least) for each in steps), ""],
            "bytes loaded": [*(size_words(sum(read for read, _ in costs.values())) for costs in both), ""],
            "FLOPs": [*map(flop_words, work), ""],
        }
        for part in both[0]:
            times = [part_seconds(costs, self.roof)[part] for costs in both]
            if any(times):
                kinds = dict.fromkeys(bound(costs[part], self.roof) for costs, time in zip(both, times) if time)
                rows[part] = [*(say_seconds(time, least) if time else "–" for time in times), " / ".join(kinds)]
        names = "MoE", f"dense, {self.width:g}×"
        return Table((*names, "bound by"), tuple(rows), tuple(rows.values()), model_inks(names))

    def sentence(self) -> str:
        E, K, machine, *_ = self.settings.values()
        batch, width = self.batch, self.width
        moe, dense = self.costs(width, batch)
        speedup, touched = seconds(dense, self.roof) / seconds(moe, self.roof), union_law(E, K, batch)
        kinds = bound(moe[EXPERTS], self.roof), bound(dense[FFN], self.roof)
        wide = f"an FFN as large as {width * K:.3g} experts"
        loads = f"the MoE loads {touched:.3g} of {E} experts, the dense model {wide}"
        why = {
            ("memory", "memory"): f"Both are memory-bound: {loads}",
            ("memory", "compute"): f"The dense FFN is compute-bound, the MoE memory-bound: {loads}",
        }.get(kinds, f"Both are compute-bound: a token costs the MoE {K} experts, the dense model {width * K:.3g}")
        cache = part_seconds(moe, self.roof)[CACHE] / seconds(moe, self.roof)
        place = machine if machine == OWN else f"one {machine}"
        said = [
            f"By the roofline of {place}, at batch size {batch:,}: an MoE of {E} experts, top-{K}, has a speedup of "
            f"{speedup:.2f} over a dense model of {width:g} × its active width. {why}.",
            f"Over this dense model it is {self.edge_words(width)}.",
            f"The KV cache, which both have, takes {percent(cache)} of its step." if cache > 0.1 else "",
            f"Quality-matched width: {self.matched} ×." if self.matched and self.is_as_made else "",
            self.unfit(),
        ]  # fmt: skip
        return " ".join(filter(None, said))

    def __repr__(self) -> str:
        given = self.settings | ({"machine": self.own} if self.settings["machine"] == OWN else {})
        given |= {"width": self.width, "batch_size": self.batch}
        given |= {name: getattr(self, name) for name in ("matched", "measured") if getattr(self, name)}
        return f"SpeedupMap({self.model!r}, {', '.join(f'{name}={value!r}' for name, value in given.items())})"


def mixture_sizes(model: str | TransformerShape) -> ModelSizes:
    names = MODEL_SHAPES | published_sizes()
    if not isinstance(model, TransformerShape):
        model = names[check_choice("model", model, names)]
    sizes = sizes_of(model) if isinstance(model, TransformerShape) else model
    if not sizes.groups:
        raise ValueError("model must be a mixture of experts, got a dense one")
    return sizes


def check_point(point: Any) -> tuple[float, int, float]:
    """Check (width, batch size, speedup)."""
    is_point = isinstance(point, tuple | list) and len(point) == 3 and all(is_number(value, 0) for value in point)
    if not (is_point and point[0] >= 1 and is_whole(point[1], 1, 2**LAST) and point[2] > 0):
        raise ValueError(f"measured must have triples (width, batch size, speedup), got {point!r}")
    return tuple(point)


def seconds(costs: Costs, machine: Machine) -> float:
    return float(sum(part_seconds(costs, machine).values()))


def bound(cost: tuple[float, float], machine: Machine) -> str:
    return "memory" if cost[0] * machine.ridge >= cost[1] else "compute"


def edge_words(found: tuple[float, float] | None, at: Callable[[np.ndarray], np.ndarray]) -> str:
    """Say at which batch sizes an MoE is faster, slower or about as fast (within `EVEN`): below, between and above its
    `edges`, by its speedup `at` batch sizes (B,)."""

    def pace(*batches: float) -> str:
        away = min(at(np.array(batches, float))) - 1
        return "about as fast" if abs(away) <= EVEN else "faster" if away > 0 else "slower"

    if found is None:
        is_even = all(abs(at(2.0 ** np.arange(LAST + 1)) - 1) <= EVEN)
        return "about as fast at every batch size" if is_even else "never slower"
    lower, upper = (f"{edge:.1f}" if edge < 10 else f"{edge:,.0f}" for edge in found)
    upper += " (beyond this map)" if found[1] > 2**LAST else ""
    paces = [pace(1), pace(*np.geomspace(*found, 9)), pace(FAR)]
    kept = [*(i for i in (0, 1) if paces[i] != paces[i + 1]), 2]
    below, *others = (paces[i] for i in kept)
    if not others:
        return f"{below} at every batch size"
    end = (lower, upper)[kept[0]]
    first = f"{below} at batch size 1" if end == "1.0" else f"{below} below batch size {end}"
    if len(others) == 1:
        return f"{first}, {others[0]} above"
    between, above = others
    if below == above:
        return f"{first} and above {upper}, {between} between"
    return f"{first}, {between} up to {upper}, {above} above"


def flop_words(count: float) -> str:
    return f"{short_number(count)}FLOP".replace(" B", " G").replace(" K", " k")


def say_seconds(value: float, least: float) -> str:
    """Say it in the unit in which `least` is said."""
    size, unit = (1, "s") if least >= 1 else (1e3, "ms") if least >= 1e-4 else (1e6, "µs")
    count = size * value
    said = f"{count:,.0f}" if count >= 100 else f"{count:.3g}" if count >= 0.001 else "<0.001"
    return f"{said} {unit}"


def machine_rows(machine: str | Machine) -> tuple[pd.DataFrame, Machine | None, str]:
    """Give the `machines()`, with a first row for a measured one, of whose memory nothing is known; that machine, or
    None; and the name that is chosen."""
    if not isinstance(machine, Machine):
        return machines(), None, machine
    row = {"memory_bytes": float("nan"), "bytes_per_second": machine.bytes_per_second}
    row |= {"bf16_flops_per_second": machine.flops_per_second, "fp8_flops_per_second": 0.0}
    return pd.concat([pd.DataFrame(row, [OWN]), machines()]), machine, OWN
