"""Calculators: sliders in, what a model costs out. Nothing is trained or measured."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import ipywidgets as W
import pandas as pd

from moe_lessons.analysis.counting import MODEL_SHAPES, ParameterCount, TransformerShape
from moe_lessons.analysis.inference import Machine
from moe_lessons.analysis.planner import Plan, plan
from moe_lessons.analysis.roofline import WEIGHT_BYTES, ModelSizes, machines, published_sizes, sizes_of
from moe_lessons.nn import SAME_ACTIVE, SAME_TOTAL
from moe_lessons.plots.costs import cost_table, parameter_panel, speed_panel
from moe_lessons.plots.marks import Axis, Panel, Parts, Rule, Table
from moe_lessons.plots.theme import PALETTE, short_number
from moe_lessons.support.errors import check_choice, check_number
from moe_lessons.widgets.controls import CONTROLS, control, move, named_stops
from moe_lessons.widgets.picture import Picture


class Calculator(Picture):
    """Controls over panels. A subclass calls `make_controls`, says `panels`, `sentence` and, in `moved`, which controls
    follow one that was moved; for `repr`, `source` (the first argument) and `settings` (the others)."""

    least_width = "300px"  # of a slider

    def make_controls(self, values: dict[str, Any], stops: dict[str, Any]) -> None:
        """Make `inputs`: a control for each name, at its value where it has one. ValueError for one that is no stop."""
        self.inputs = {name: control(name, stops.get(name)) for name in values}
        for name, value in values.items():
            if value is not None:
                if options := getattr(self.inputs[name], "options", None):
                    check_choice(name, value, [stop[-1] if isinstance(stop, tuple) else stop for stop in options])
                move(self.inputs[name], value)

    def __init__(self, bar: list[W.Widget], *groups: Iterable[W.Widget]):
        """Put a bar over groups of controls, each in a grid of its own."""
        self._changing = False
        for name, widget in self.inputs.items():
            widget.style.description_width = "165px"
            widget.observe(lambda _, name=name: self.change(self.moved, name), "value")
        columns = f"repeat(auto-fill, minmax(min(100%, {self.least_width}), 1fr))"
        look = {"display": "grid", "grid_template_columns": columns}
        grids = [W.Box(list(group), layout=W.Layout(**look)).add_class("moe-sliders") for group in groups]
        super().__init__(rows=[W.HBox(bar).add_class("moe-bar"), *grids])

    def change(self, do: Callable[..., None], *arguments: Any) -> None:
        if not self._changing:
            self._changing = True
            try:
                do(*arguments)
            finally:
                self._changing = False
            self.show()

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({self.source!r}, {settings})"


STOPS = {"num_experts": (1, 2, 4, 8, 16, 32, 64, 128, 256), "top_k": range(1, 9), "d_ff": range(128, 32769, 128)}
STOPS["num_kv_heads"] = (1,)  # until `take` knows which divide the number of heads
STOPS["weights"] = tuple(WEIGHT_BYTES)
SIZES = "num_experts top_k shared_experts d_ff d_model num_layers num_kv_heads vocab_size".split()
SETTINGS = "context_length batch_size machine weights dense_width".split()
SLIDERS, OWN = "as the sliders say", "this machine"


class CostCalculator(Calculator):
    """What a transformer costs on a machine, beside its dense opponents: by sliders, or as published.

    model: of `MODEL_SHAPES` or a `TransformerShape`, which the sliders show (num_heads follows d_model); or of
    `published_sizes`. context_length: tokens that the attention sees. batch_size: texts written at once. machine: of
    `machines()`, or a `Machine` as `measure_machine` returns. weights: of `WEIGHT_BYTES`. dense_width: of the equally
    good dense model, in times of the active part; the root of E / K where none is given, an assumption."""

    least_width = "380px"
    SOURCES = ("published",)  # controls that name a model
    notes: Iterable[W.Widget] = ()  # under them

    def __init__(
        self, model: str | TransformerShape = "Mixtral 8x7B", context_length: int = 4096, batch_size: int = 1,
        machine: str | Machine = "NVIDIA H100 SXM", weights: str = "bfloat16", dense_width: float | None = None,
    ):  # fmt: skip
        self.machines, self.own = machines(), None
        if isinstance(machine, Machine):  # of its memory nothing is known
            row = {"memory_bytes": float("nan"), "bytes_per_second": machine.bytes_per_second}
            row |= {"bf16_flops_per_second": machine.flops_per_second, "fp8_flops_per_second": 0.0}
            self.machines, self.own, machine = pd.concat([pd.DataFrame(row, [OWN]), self.machines]), machine, OWN
        given = dict.fromkeys((*self.SOURCES, *SIZES)) | {"context_length": context_length, "batch_size": batch_size}
        given |= {"machine": machine, "weights": weights, "dense_width": None}
        stops = {"machine": tuple(self.machines.index), "published": (SLIDERS, *published_sizes())}
        self.make_controls(given, STOPS | stops)
        self.ratio = 0.0  # E / K
        self.take(MODEL_SHAPES["Mixtral 8x7B"])
        self.begin(model)
        if dense_width is not None:
            move(self.inputs["dense_width"], check_number("dense_width", dense_width, minimum=1))
        self.presets = {name: W.Button(description=name, layout=W.Layout(width="auto")) for name in MODEL_SHAPES}
        for name, button in self.presets.items():
            button.tooltip = f"Set the sliders to {name}: {short_number(MODEL_SHAPES[name].count.total)} parameters"
            button.on_click(lambda _, name=name: self.change(self.take, MODEL_SHAPES[name]))
        sources, *others = ([self.inputs[name] for name in names] for names in (self.SOURCES, SIZES, SETTINGS))
        super().__init__([W.Label("Set to:"), *self.presets.values()], [*sources, *self.notes], *others)

    def begin(self, model: str | TransformerShape) -> None:
        if isinstance(model, TransformerShape) or model in MODEL_SHAPES:
            self.take(MODEL_SHAPES.get(model, model))
        else:
            self.inputs["published"].value = check_choice("model", model, [*MODEL_SHAPES, *published_sizes()])
            self.moved("published")

    def moved(self, name: str) -> None:
        published = self.inputs["published"].value
        if name == "published" and published != SLIDERS:
            self.take_sizes(published, published_sizes()[published], published)
        elif name in (*self.SOURCES, *SIZES):
            self.take(self._slid())

    def take(self, shape: TransformerShape) -> None:
        """Set each slider to `shape`, with the limits that go with it (top_k never over E)."""
        self.inputs["num_kv_heads"].options = named_stops(_divisors(shape.num_heads))
        self.inputs["top_k"].max = shape.num_experts
        for name in SIZES:
            move(self.inputs[name], getattr(shape, name))
        self.shape, self.inputs["published"].value = shape, SLIDERS
        preset = next((name for name, preset in MODEL_SHAPES.items() if preset == shape), None)
        self.take_sizes(preset or "this model", sizes_of(shape), preset or shape, is_slid=True)

    def take_sizes(self, name: str, sizes: ModelSizes, source: str | TransformerShape, is_slid: bool = False) -> None:
        """Show these sizes, and sliders where they say them; where E / K is another, the assumed width follows it."""
        for size in SIZES:
            self.inputs[size].layout.display = None if is_slid else "none"
        ratio = max((group.num_experts / group.top_k for group in sizes.groups), default=1.0)
        if ratio != self.ratio:
            move(self.inputs["dense_width"], round(ratio**0.5, 1))
        self.name, self.sizes, self.source, self.is_slid, self.ratio = name, sizes, source, is_slid, ratio

    def _slid(self) -> TransformerShape:
        sizes, heads = {size: self.inputs[size].value for size in SIZES}, self.shape.num_heads
        if sizes["d_model"] != self.shape.d_model:
            heads = max(1, sizes["d_model"] // self.shape.head_dim)
        sizes["top_k"] = min(sizes["top_k"], sizes["num_experts"])
        sizes["num_kv_heads"] = max(n for n in _divisors(heads) if n <= sizes["num_kv_heads"])
        return replace(self.shape, num_heads=heads, **sizes)

    @property
    def settings(self) -> dict[str, Any]:
        settings = {name: self.inputs[name].value for name in SETTINGS}
        return settings | ({"machine": self.own} if settings["machine"] == OWN else {})

    @property
    def models(self) -> dict[str, ModelSizes]:
        width = self.inputs["dense_width"].value
        good = f"equally good dense model ({width:g} ×)"
        dense = {SAME_ACTIVE: 1.0, good: width, SAME_TOTAL: self.sizes.total_width}
        return {self.name: self.sizes} | {name: self.sizes.dense(times) for name, times in dense.items()}

    def panels(self) -> list[Panel]:
        machine = self.inputs["machine"].value
        upper = parameter_panel(self.parts()), speed_panel(*self._case(), CONTROLS["batch_size"].stops)
        title = f"What it costs on {'' if machine == OWN else 'one '}{machine}"
        costs = Panel(title, [self.table()], width=12, height=350)
        return [*(replace(panel, width=6, height=220) for panel in upper), costs]

    def table(self) -> Table:
        return cost_table(*self._case())

    def _case(self) -> tuple:
        context, batch, machine, weights, _ = (self.inputs[name].value for name in SETTINGS)
        return self.models, context, weights, self.machines.loc[machine], batch

    def parts(self) -> dict[str, ParameterCount]:
        """Where the parameters are; of a published model in fewer parts."""
        if self.is_slid:
            return self.shape.parameters()
        sizes = self.sizes
        routed = sum(group.layers * group.size for group in sizes.groups)
        counts = {"embedding": sizes.looked_up, "router": sizes.router, "shared experts": sizes.shared}
        counts["attention and other"] = sizes.total - routed - sum(counts.values())
        experts = ParameterCount(routed, routed - sizes.total + sizes.active)
        return {"experts": experts} | {name: ParameterCount(count, count) for name, count in counts.items()}

    def sentence(self) -> str:
        total, active, share, flops, weights, cache, *fits, _, _, speed, _ = (row[0] for row in self.table().cells)
        _, batch, machine, kind, _ = (self.inputs[name].value for name in SETTINGS)
        texts = f"{batch:,} texts" if batch > 1 else "one text"
        does = {("yes",): "They fit into one", ("no",): "They do not fit into one", (): "On"}[tuple(fits[:1])]
        return (
            f"{total} parameters, of which one token uses {active} ({share}). All of them must be in memory: {weights} "
            f"in {kind}, and {cache} of KV cache for {texts}. One token costs {flops} FLOPs. {does} {machine}"
            f"{', which would write' if fits else ' they would write'} {speed} tokens per second at best. "
            f"The width of the equally good dense model is an assumption: set it."
        )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


LAYOUT = dict(devices=2048, expert_parallel=64, pipeline_parallel=16, node_limit=4, imbalance=1.0, overlap=0.0)


class PlanCalculator(Calculator):
    """Sliders for a training on many devices: what a step takes, and what a device holds, by `analysis.plan`.

    model: of `published_sizes`. settings: arguments of `plan`; those in `LAYOUT` have sliders, which begin with that of
    DeepSeek-V3, without overlap, and as many devices as it needs; tokens_at_once begins with 1024."""

    def __init__(self, model: str = "DeepSeek-V3", **settings: Any):
        sizes = published_sizes()[check_choice("model", model, published_sizes())]
        shares = [2**n for n in range(min(group.num_experts for group in sizes.groups).bit_length())]
        given = LAYOUT | {"expert_parallel": min(LAYOUT["expert_parallel"], shares[-1])}
        given |= {name: settings[name] or 0.0 for name in LAYOUT if name in settings}
        self.make_controls(given, {"expert_parallel": shares})
        self.source, self.asked = model, given["devices"]
        self.fixed = {"tokens_at_once": 1024} | {name: own for name, own in settings.items() if name not in LAYOUT}
        self.moved("overlap")
        self.plan()  # refuses what does not fit
        super().__init__([], self.inputs.values())

    @property
    def settings(self) -> dict[str, Any]:
        slid = {name: widget.value for name, widget in self.inputs.items()}
        return self.fixed | slid | {"node_limit": slid["node_limit"] or None}

    def plan(self) -> Plan:
        return plan(self.source, **self.settings)

    def panels(self) -> list[Panel]:
        made, names = self.plan(), ("weights", "gradients", "optimizer", "activations")
        times = {"arithmetic": (made.compute, 0), "links inside": (0, made.inside), "links between": (0, made.between)}
        times["the step"] = made.compute, made.seconds - made.compute
        texts = [f"{sum(own):.3g} s" for own in times.values()]
        step = Parts(tuple(times), ("arithmetic", "exchange"), list(times.values()), PALETTE[:2], texts)
        held, memory = [getattr(made, name) / 1e9 for name in names], self._device_memory() / 1e9
        bar = Parts(("held",), names, [held], PALETTE[2:6], [f"{sum(held):,.0f} GB"])
        marks = [bar, Rule(memory, kind="limit", name=f"what it has: {memory:.0f} GB")]
        ends = 1.25 * max(map(sum, times.values())), 1.25 * max(sum(held), memory)
        title = "Time of a step, if it had the memory" if sum(held) > memory else "Time of a step"
        return [
            Panel(title, [step], Axis(0, ends[0], "seconds"), width=6),
            Panel("Memory of a device, and how much it has", marks, Axis(0, ends[1], "gigabytes"), width=6),
        ]

    def sentence(self) -> str:
        made, has = self.plan(), self._device_memory()
        devices = f"{made.devices:,} device{'s' * (made.devices > 1)}"
        if made.memory > has:
            return (
                f"This does not fit on {devices}: each would hold {made.memory / 1e9:,.0f} GB, and has "
                f"{has / 1e9:.0f}. Share the experts or the layers among more of them."
            )
        return (
            f"{devices} read {short_number(made.tokens_per_second)} tokens per second. A step takes "
            f"{made.seconds:.3g} s, and what sets its pace is: {made.limit}. Each device holds {made.memory / 1e9:.0f} "
            f"GB, of the {has / 1e9:.0f} that it has. In a step it sends {made.bytes_inside / 1e9:.3g} GB within its "
            f"node, and {made.bytes_between / 1e9:.3g} GB to others."
        )

    def _device_memory(self) -> float:
        return machines().memory_bytes[self.fixed.get("machine", "NVIDIA H100 SXM")]

    def moved(self, name: str) -> None:
        devices, experts, stages = (self.inputs[n] for n in ("devices", "expert_parallel", "pipeline_parallel"))
        if name == "devices":
            self.asked = devices.value  # a layout that needs more has more, as long as it does
            move(experts, min(experts.value, devices.value))
            move(stages, min(stages.value, devices.value // experts.value))
        move(devices, max(self.asked, experts.value * stages.value))
