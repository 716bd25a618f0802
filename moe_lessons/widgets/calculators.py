"""Calculators: sliders in, what a model costs out. Nothing is trained; one of them can measure."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as W
import torch

from moe_lessons.analysis.cost import MODEL_SHAPES, ParameterCount, TransformerShape
from moe_lessons.analysis.inference import Machine, union_law
from moe_lessons.analysis.planner import Plan, plan
from moe_lessons.analysis.roofline import WEIGHT_BYTES, ModelSizes, machines, published_sizes, sizes_of
from moe_lessons.analysis.timing import Ratio, take_turns
from moe_lessons.errors import check_choice, check_number, check_top_k
from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL, MoE, dense_twin, seeded, torch_threads
from moe_lessons.plots.cost import PART_COLORS, cost_table
from moe_lessons.plots.marks import Axis, Bars, Line, Panel, Parts, Points, Rule
from moe_lessons.plots.theme import PALETTE, short_number
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets.controls import control, move, named_stops
from moe_lessons.widgets.picture import Picture


class Calculator(Picture):
    """Controls over panels. A subclass makes `inputs`, says `panels` and `sentence`, and what else a control moves."""

    columns = "300px"  # the least width of a slider
    inputs: dict[str, W.Widget]

    def __init__(self, bar: list[W.Widget]):
        self._changing = False
        for name, widget in self.inputs.items():
            widget.style.description_width = "150px"
            widget.observe(lambda _, name=name: self.change(self.moved, name), "value")
        columns = f"repeat(auto-fill, minmax({self.columns}, 1fr))"
        grid = W.Box(list(self.inputs.values()), layout=W.Layout(display="grid", grid_template_columns=columns))
        super().__init__(rows=[W.HBox(bar).add_class("moe-bar"), grid])

    def change(self, do: Callable[..., None], *arguments: Any) -> None:
        """Do something that may move controls, and draw once."""
        if not self._changing:
            self._changing = True
            do(*arguments)
            self._changing = False
            self.show()

    def moved(self, name: str) -> None:
        """The control of this name was moved by hand: move the others that depend on it."""


def controls(values: dict[str, Any], stops: dict[str, Any]) -> dict[str, W.Widget]:
    """A control for each name, at its value where it has one. ValueError for a value that is not among the stops."""
    made = {name: control(name, stops.get(name)) for name in values}
    for name, value in values.items():
        if value is not None:
            if options := getattr(made[name], "options", None):
                check_choice(name, value, [stop[-1] if isinstance(stop, tuple) else stop for stop in options])
            move(made[name], value)
    return made


STOPS = {"num_experts": (1, 2, 4, 8, 16, 32, 64, 128, 256), "top_k": range(1, 9), "d_ff": range(128, 32769, 128)}
STOPS["num_kv_heads"] = (1,)  # until `take` knows which divide the number of heads
SIZES = "num_experts top_k shared_experts d_ff d_model num_layers num_kv_heads vocab_size".split()


SLIDERS = "as the sliders say"


class CostCalculator(Calculator):
    """What a transformer costs on a machine, beside its dense opponents: by sliders, or as published.

    model: of `MODEL_SHAPES` or a `TransformerShape`, which the sliders show (its head_dim stays as it is, and its
    num_heads follows d_model); a name of `published_sizes`; or the path of a config.json, which needs the extra hf.
    context_length: how many tokens the attention sees. machine: of `machines()`. weights: of `WEIGHT_BYTES`.
    dense_width: how many times as wide as the active part the FFN of the equally good dense model is, an assumption;
    the root of E / K where none is given.

    `calculator.sizes` is what is shown, `calculator.shape` what the sliders say. Raises ValueError for
    a name or value that there is not.
    """

    columns = "380px"

    def __init__(
        self,
        model: str | TransformerShape = "Mixtral 8x7B",
        context_length: int = 4096,
        machine: str = "NVIDIA H100 SXM",
        weights: str = "bfloat16",
        dense_width: float | None = None,
    ):
        stops = STOPS | {"machine": tuple(machines().index), "weights": tuple(WEIGHT_BYTES)}
        given = dict.fromkeys(("published", "config_file", *SIZES))
        given |= {"context_length": context_length, "machine": machine, "weights": weights, "dense_width": None}
        self.inputs = controls(given, stops | {"published": (SLIDERS, *published_sizes())})
        self.problem, self.ratio = "", 0.0  # of the file in the field; E / K
        self.take(MODEL_SHAPES["Mixtral 8x7B"])
        self._start(model)
        if dense_width is not None:
            move(self.inputs["dense_width"], check_number("dense_width", dense_width, minimum=1))
        self.presets = {name: W.Button(description=name, layout=W.Layout(width="auto")) for name in MODEL_SHAPES}
        for name, button in self.presets.items():
            button.tooltip = f"Set the sliders to {name}: {short_number(MODEL_SHAPES[name].count.total)} parameters"
            button.on_click(lambda _, name=name: self.change(self.take, MODEL_SHAPES[name]))
        super().__init__([W.Label("Set to:"), *self.presets.values()])

    def _start(self, model: str | TransformerShape) -> None:
        """Show what the constructor was given."""
        if isinstance(model, TransformerShape) or model in MODEL_SHAPES:
            return self.take(MODEL_SHAPES.get(model, model))
        is_path = isinstance(model, str | Path) and (str(model).endswith(".json") or Path(model).is_dir())
        name = "config_file" if is_path else "published"
        if not is_path:
            check_choice("model", model, [*MODEL_SHAPES, *published_sizes()])
        self.inputs[name].value = str(model)
        self.moved(name)
        if self.problem:
            raise ValueError(self.problem)

    @property
    def context_length(self) -> int:
        return self.inputs["context_length"].value

    @property
    def models(self) -> dict[str, ModelSizes]:
        """The model and its three dense opponents."""
        width = self.inputs["dense_width"].value
        good = f"equally good dense model ({width:g} ×)"
        dense = {EQUAL_ACTIVE: 1.0, good: width, EQUAL_TOTAL: self.sizes.total_width}
        return {self.name: self.sizes} | {name: self.sizes.dense(times) for name, times in dense.items()}

    def panels(self) -> list[Panel]:
        parts = {name: count for name, count in self.parts().items() if count.total > 0}
        totals, active = ([getattr(c, kind) for c in parts.values()] for kind in ("total", "active"))
        texts = [short_number(sum(totals)), short_number(sum(active))]
        bars = Parts(("total", "active"), tuple(parts), [totals, active], [PART_COLORS[name] for name in parts], texts)
        axes = Axis(0, 1.12 * sum(totals), "parameters"), Axis(1.5, -0.5, ticks=[(0, "total"), (1, "active")])
        machine, weights = (self.inputs[name].value for name in ("machine", "weights"))
        table = cost_table(self.models, self.context_length, weights, machines().loc[machine])
        where = Panel("Where the parameters are", [bars], *axes, 12, 170)
        return [where, Panel(f"What it costs on one {machine}", [table], width=12)]

    def parts(self) -> dict[str, ParameterCount]:
        """Where the parameters are; of a published model in fewer parts."""
        sizes = self.sizes
        if self.is_slid:
            return self.shape.parameters()
        routed = sum(group.layers * group.size for group in sizes.groups)
        counts = {"embedding": sizes.looked_up, "router": sizes.router, "shared experts": sizes.shared}
        counts["attention and other"] = sizes.total - routed - sum(counts.values())
        experts = ParameterCount(routed, routed - sizes.total + sizes.active)
        return {"experts": experts} | {name: ParameterCount(count, count) for name, count in counts.items()}

    def sentence(self) -> str:
        if self.problem:
            return self.problem
        table = self.panels()[1].marks[0]
        total, active, share, flops, memory, cache, fits, speed, batch = (cells[0] for cells in table.cells)
        does = "They fit" if fits == "yes" else "They do not fit"
        return (
            f"{total} parameters, of which one token uses {active} ({share}). All of them must be in memory: {memory} "
            f"in {self.inputs['weights'].value}, and {cache} of KV cache for one text. One token costs {flops} FLOPs. "
            f"{does} into one {self.inputs['machine'].value}, which would write {speed} tokens per second at best. "
            f"The width of the equally good dense model is an assumption: set it."
        )

    def take(self, shape: TransformerShape) -> None:
        """Set each slider to `shape`, with the limits that go with it (top_k never over E)."""
        self.inputs["num_kv_heads"].options = named_stops(_divisors(shape.num_heads))
        self.inputs["top_k"].max = shape.num_experts
        for name in SIZES:
            move(self.inputs[name], getattr(shape, name))
        self.inputs["published"].value, self.inputs["config_file"].value, self.problem = SLIDERS, "", ""
        preset = next((name for name, preset in MODEL_SHAPES.items() if preset == shape), None)
        self.shape, self.is_slid = shape, True
        self._show(preset or "this model", sizes_of(shape), preset or shape)

    def _show(self, name: str, sizes: ModelSizes, source: str | TransformerShape) -> None:
        """Take over what is to be shown; where E / K is another, the assumed width follows it."""
        ratio = max((group.num_experts / group.top_k for group in sizes.groups), default=1.0)
        if ratio != self.ratio:
            move(self.inputs["dense_width"], round(ratio**0.5, 1))
        self.name, self.sizes, self.source, self.ratio = name, sizes, source, ratio

    def moved(self, name: str) -> None:
        """The number of heads follows the width, the others what they may be."""
        value = self.inputs[name].value
        if name in SIZES or (name in ("published", "config_file") and value in (SLIDERS, "")):
            self.take(self._slid())
        elif name == "published":
            self.inputs["config_file"].value, self.problem = "", ""
            self.is_slid = False
            self._show(value, published_sizes()[value], value)
        elif name == "config_file":
            self._count(value)

    def _slid(self) -> TransformerShape:
        """The shape that the sliders show."""
        sizes, heads = {size: self.inputs[size].value for size in SIZES}, self.shape.num_heads
        if sizes["d_model"] != self.shape.d_model:
            heads = max(1, sizes["d_model"] // self.shape.head_dim)
        sizes["top_k"] = min(sizes["top_k"], sizes["num_experts"])
        sizes["num_kv_heads"] = max(n for n in _divisors(heads) if n <= sizes["num_kv_heads"])
        return replace(self.shape, num_heads=heads, **sizes)

    def _count(self, path: str) -> None:
        """Show the model of a config.json, or say in a sentence what is wrong with the file."""
        from moe_lessons.analysis.published import count_config, read_config

        try:
            counted, self.problem = count_config(read_config(path)), ""
        except (ValueError, ImportError) as error:
            self.problem = str(error)
        else:
            self.inputs["published"].value, self.is_slid = SLIDERS, False
            self._show(counted.class_name, counted.sizes, path)

    def __repr__(self) -> str:
        names = ("context_length", "machine", "weights", "dense_width")
        settings = ", ".join(f"{name}={self.inputs[name].value!r}" for name in names)
        return f"CostCalculator({self.source!r}, {settings})"


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


LAYOUT = {"devices": 2048, "expert_parallel": 64, "pipeline_parallel": 16, "node_limit": 4}
LAYOUT |= {"imbalance": 1.0, "overlap": 0.0}


class PlanCalculator(Calculator):
    """Sliders for a training on many devices: what a step takes, and what a device holds, by `analysis.plan`.

    model: of `published_sizes`. settings: arguments of `plan`; those in `LAYOUT` have sliders, which begin with
    the layout of DeepSeek-V3, without overlap. There are at least as many devices as the layout needs. Raises
    ValueError for values that there are not.
    """

    def __init__(self, model: str = "DeepSeek-V3", **settings: Any):
        sizes = published_sizes()[check_choice("model", model, published_sizes())]
        most = min(group.num_experts for group in sizes.groups)
        given = LAYOUT | {name: settings[name] or 0.0 for name in LAYOUT if name in settings}
        self.inputs = controls(given, {"expert_parallel": [2**n for n in range(most.bit_length())]})
        self.model, self.fixed = model, {name: value for name, value in settings.items() if name not in LAYOUT}
        self.moved("overlap")
        self.plan()  # refuses what does not fit
        super().__init__([])

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `plan`."""
        slid = {name: widget.value for name, widget in self.inputs.items()}
        return self.fixed | slid | {"node_limit": slid["node_limit"] or None}

    def plan(self) -> Plan:
        """What is shown."""
        return plan(self.model, **self.settings)

    def panels(self) -> list[Panel]:
        made, names = self.plan(), ("weights", "gradients", "optimizer", "activations")
        times = {"arithmetic": (made.compute, 0), "links inside": (0, made.inside), "links between": (0, made.between)}
        times["the step"] = made.compute, made.seconds - made.compute
        texts = [f"{sum(own):.3g} s" for own in times.values()]
        step = Parts(tuple(times), ("arithmetic", "exchange"), list(times.values()), PALETTE[:2], texts)
        held = [getattr(made, name) / 1e9 for name in names]
        memory = machines().memory_bytes[self.fixed.get("machine", "NVIDIA H100 SXM")] / 1e9
        marks = [Parts(("held",), names, [held], PALETTE[2:6], [f"{sum(held):.0f} GB"]), Rule(memory, kind="limit")]
        ends = 1.25 * max(map(sum, times.values())), 1.25 * max(sum(held), memory)
        return [
            Panel("Time of a step", [step], Axis(0, ends[0], "seconds"), width=6),
            Panel("Memory of a device, and how much it has", marks, Axis(0, ends[1], "gigabytes"), width=6),
        ]

    def sentence(self) -> str:
        made = self.plan()
        return (
            f"{made.devices:,} devices read {short_number(made.tokens_per_second)} tokens per second. A step takes "
            f"{made.seconds:.3g} s, and what sets its pace is: {made.limit}. Each device holds "
            f"{made.memory / 1e9:.0f} GB. In a step it sends {made.bytes_inside / 1e9:.3g} GB within its node, and "
            f"{made.bytes_between / 1e9:.3g} GB to others."
        )

    def moved(self, name: str) -> None:
        devices, experts, stages = (self.inputs[n] for n in ("devices", "expert_parallel", "pipeline_parallel"))
        if name == "devices":
            move(experts, min(experts.value, devices.value))
            move(stages, min(stages.value, devices.value // experts.value))
        move(devices, max(devices.value, experts.value * stages.value))

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"PlanCalculator({self.model!r}, {settings})"


BLOCK = {"num_experts": (2, 4, 8, 16), "batch_size": KNOBS["batch_size"].stops}
D_MODEL, D_FF = 512, 1024
EXPERT_BYTES = 4 * 3 * D_MODEL * D_FF  # of one expert: gate, up and down in float32
NAMES = ("MoE", EQUAL_ACTIVE, EQUAL_TOTAL)
OTHER_MEGABYTES = 128  # more than the caches of most processors hold


class DecodingCalculator(Calculator):
    """Sliders for E, K and the batch B of one feed-forward block; what a step of decoding reads, and how fast it is.

    The block has D = 512, F = 1024 and float32 weights. Three pictures: how many experts the B tokens touch, by the
    `union_law`; the megabytes that a mixture and its dense twins read in a step; how many times as fast as the
    equal-total twin this makes them on `machine`, by its roofline. The button measures the third, now and here.

    `repr` names the machine, and leaves out what was measured. Raises ValueError for values the sliders do not have.
    """

    def __init__(self, machine: Machine, num_experts: int = 8, top_k: int = 2, batch_size: int = 1):
        if not isinstance(machine, Machine):
            raise ValueError(f"machine must be a Machine, as measure_machine returns, got {type(machine).__name__}")
        sizes = {"num_experts": num_experts, "top_k": check_top_k(top_k, num_experts), "batch_size": batch_size}
        self.inputs = controls(sizes, BLOCK | {"top_k": range(1, num_experts + 1)})
        self.machine = machine
        self.measured: dict[str, float] | None = None  # the speed-up of each model, for what the sliders show
        tip = "Build the three blocks and time them, about two seconds"
        self.button = W.Button(description="Measure here", tooltip=tip)
        self.button.on_click(lambda _: self.measure())
        super().__init__([self.button])

    @property
    def sizes(self) -> tuple[int, int, int]:
        """E, K and B, as the sliders show them."""
        return tuple(widget.value for widget in self.inputs.values())

    def experts_read(self) -> dict[str, float]:
        """How many experts' weights each model reads in a step; a dense twin counts by its width."""
        num_experts, top_k, batch = self.sizes
        return dict(zip(NAMES, (union_law(num_experts, top_k, batch), top_k, num_experts)))

    def predicted(self) -> dict[str, float]:
        """How many times as fast as the equal-total twin each model is, if all reach the roof of the machine."""
        num_experts, top_k, batch = self.sizes
        times = {}
        for (name, read), used in zip(self.experts_read().items(), (top_k, top_k, num_experts)):
            intensity = batch * used / (2 * read)  # 2 FLOPs for a token, 4 bytes for a weight
            times[name] = batch * used / self.machine.attainable(intensity)
        return {name: times[EQUAL_TOTAL] / time for name, time in times.items()}

    def measure(self) -> None:
        """Time the three blocks in turns, with one thread, and draw the result."""
        self.show("Measuring …")
        self.button.disabled = True
        try:
            self.measured = measure_blocks(*self.sizes)
        finally:
            self.button.disabled = False
            self.show()

    def panels(self) -> list[Panel]:
        num_experts, top_k, batch = self.sizes
        batches = BLOCK["batch_size"]  # each is twice the one before it
        law = [union_law(num_experts, top_k, b) for b in batches]
        here = batches.index(batch)
        marks = [Line(range(len(law)), law), Points([here], [law[here]]), Rule(y=num_experts, name="all experts")]
        x = Axis(0, len(batches) - 1, "batch B, tokens", [(i, str(b)) for i, b in enumerate(batches)])
        touched = Panel("Experts touched", marks, x, Axis(0, 1.12 * num_experts, "experts"))
        models = Axis(-0.6, 2.6, ticks=[(0, "MoE"), (1, "equal-active"), (2, "equal-total")])
        megabytes = [EXPERT_BYTES * read / 1e6 for read in self.experts_read().values()]
        read = Bars(megabytes, of="model", texts=[f"{value:.0f}" for value in megabytes])
        read = Panel("Read in a step", [read], models, Axis(0, 1.15 * max(megabytes), "megabytes of weights"))
        predicted, measured = list(self.predicted().values()), self.measured and list(self.measured.values())
        texts = [f"{value:.1f}" for value in predicted]
        speed = Bars(predicted, None, measured, "measured here" if measured else "", "model", texts)
        high = Axis(0, 1.15 * max(*predicted, *(measured or ())), "times the equal-total twin")
        return [touched, read, Panel("Speed by the roofline", [speed], models, high)]

    def sentence(self) -> str:
        num_experts, top_k, batch = self.sizes
        measured = f"; measured here: {self.measured['MoE']:.1f} times" if self.measured else ""
        return (
            f"{batch} token{'s' * (batch > 1)} of {top_k} expert{'s' * (top_k > 1)} each touch "
            f"{union_law(num_experts, top_k, batch):.1f} of {num_experts} experts. The roofline expects the mixture to "
            f"be {self.predicted()['MoE']:.1f} times as fast as the equal-total twin{measured}."
        )

    def moved(self, name: str) -> None:
        self.measured = None
        self.inputs["top_k"].max = self.inputs["num_experts"].value

    def __repr__(self) -> str:
        num_experts, top_k, batch = self.sizes
        return f"DecodingCalculator(machine, num_experts={num_experts}, top_k={top_k}, batch_size={batch})"


def measure_blocks(num_experts: int, top_k: int, batch_size: int, repeats: int = 7) -> dict[str, float]:
    """How many times as fast as the equal-total twin each of the three blocks is, on B random tokens.

    Before each, as much is read as would fill the processor's caches: in a model the other layers do that.
    """
    with seeded(0), torch_threads(1), torch.inference_mode():
        moe = MoE(D_MODEL, D_FF, num_experts, top_k)
        x, others = torch.randn(batch_size, D_MODEL), torch.ones(OTHER_MEGABYTES * 2**18)
        blocks = moe, dense_twin(moe, "active"), dense_twin(moe, "total")
        times = take_turns([turn for block in blocks for turn in (others.sum, partial(block, x))], repeats)[1::2]
    return {name: Ratio.of(times[-1], own).median for name, own in zip(NAMES, times)}
