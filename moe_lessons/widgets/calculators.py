"""Calculators: sliders in, what a model costs out. Nothing is trained; one of them can measure."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets as W
import torch

from moe_lessons.analysis.cost import MODEL_SHAPES, TransformerShape
from moe_lessons.analysis.inference import Machine, union_law
from moe_lessons.analysis.timing import Ratio, take_turns
from moe_lessons.errors import check_choice, check_top_k
from moe_lessons.nn import EQUAL_ACTIVE, EQUAL_TOTAL, MoE, dense_twin, seeded, torch_threads
from moe_lessons.plots.cost import PART_COLORS, shape_costs
from moe_lessons.plots.marks import Axis, Bars, Line, Panel, Parts, Points, Rule, Table
from moe_lessons.plots.theme import short_number
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets.controls import control, move, named_stops
from moe_lessons.widgets.picture import Picture


class Calculator(Picture):
    """Controls over panels. A subclass makes `inputs`, says `panels` and `sentence`, and what else a control moves."""

    columns = "300px"  # the least width of a slider
    inputs: dict[str, W.Widget]

    def __init__(self, bar: list[W.Widget]):
        self._changing = False
        for widget in self.inputs.values():
            widget.style.description_width = "150px"
            widget.observe(lambda _: self.change(self.moved), "value")
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

    def moved(self) -> None:
        """A control was moved by hand: move the others that depend on it."""


STOPS = {"num_experts": (1, 2, 4, 8, 16, 32, 64, 128, 256), "top_k": range(1, 9), "d_ff": range(128, 32769, 128)}
STOPS["num_kv_heads"] = (1,)  # until `take` knows which divide the number of heads
SIZES = "num_experts top_k shared_experts d_ff d_model num_layers num_kv_heads vocab_size".split()


class CostCalculator(Calculator):
    """Sliders for the sizes of a transformer; a picture and a table of its cost, beside its dense twins.

    shape: of `MODEL_SHAPES`, or a `TransformerShape`. Its head_dim stays as it is, and its num_heads follows d_model.
    context_length: how many tokens the attention sees, for the FLOPs.

    `calculator.shape` is what the sliders show. Raises ValueError for an unknown preset or context_length.
    """

    columns = "380px"

    def __init__(self, shape: str | TransformerShape = "Mixtral 8x7B", context_length: int = 4096):
        if not isinstance(shape, TransformerShape):
            shape = MODEL_SHAPES[check_choice("shape", shape, MODEL_SHAPES)]
        check_choice("context_length", context_length, KNOBS["context_length"].stops)
        self.inputs = {name: control(name, STOPS.get(name)) for name in (*SIZES, "context_length")}
        self.inputs["context_length"].value = context_length
        self.take(shape)
        self.presets = {name: W.Button(description=name, layout=W.Layout(width="auto")) for name in MODEL_SHAPES}
        for name, button in self.presets.items():
            button.tooltip = f"Set the sliders to {name}: {short_number(MODEL_SHAPES[name].count.total)} parameters"
            button.on_click(lambda _, name=name: self.change(self.take, MODEL_SHAPES[name]))
        super().__init__([W.Label("Set to:"), *self.presets.values()])

    @property
    def context_length(self) -> int:
        return self.inputs["context_length"].value

    def panels(self) -> list[Panel]:
        parts = {name: count for name, count in self.shape.parameters().items() if count.total > 0}
        totals, active = ([getattr(c, kind) for c in parts.values()] for kind in ("total", "active"))
        texts = [short_number(sum(totals)), short_number(sum(active))]
        bars = Parts(("total", "active"), tuple(parts), [totals, active], [PART_COLORS[name] for name in parts], texts)
        axes = Axis(0, 1.12 * sum(totals), "parameters"), Axis(1.5, -0.5, ticks=[(0, "total"), (1, "active")])
        twins = {EQUAL_ACTIVE: self.shape.dense_twin("active"), EQUAL_TOTAL: self.shape.dense_twin("total")}
        shapes = {self._preset_name() or "this model": self.shape} | twins
        rows = shape_costs(shapes, self.context_length)
        table = Table(tuple(shapes), tuple(rows), [list(cells.values()) for cells in rows.values()])
        where = Panel("Where the parameters are", [bars], *axes, 12, 170)
        return [where, Panel("What it costs", [table], width=12)]

    def sentence(self) -> str:
        costs = shape_costs({"this model": self.shape}, self.context_length)
        total, active, share, flops, memory, cache = (row["this model"] for row in costs.values())
        return (
            f"{total} parameters, of which one token uses {active} ({share}). All of them must be in memory: {memory} "
            f"in bfloat16, and {cache} of KV cache for one text. One token costs {flops} FLOPs."
        )

    def take(self, shape: TransformerShape) -> None:
        """Set each slider to `shape`, with the limits that go with it (top_k never over E)."""
        self.shape = shape
        self.inputs["num_kv_heads"].options = named_stops(_divisors(shape.num_heads))
        self.inputs["top_k"].max = shape.num_experts
        for name in SIZES:
            move(self.inputs[name], getattr(shape, name))

    def moved(self) -> None:
        """The number of heads follows the width, the others what they may be."""
        sizes, heads = {size: self.inputs[size].value for size in SIZES}, self.shape.num_heads
        if sizes["d_model"] != self.shape.d_model:
            heads = max(1, sizes["d_model"] // self.shape.head_dim)
        sizes["top_k"] = min(sizes["top_k"], sizes["num_experts"])
        sizes["num_kv_heads"] = max(n for n in _divisors(heads) if n <= sizes["num_kv_heads"])
        self.take(replace(self.shape, num_heads=heads, **sizes))

    def _preset_name(self) -> str | None:
        return next((name for name, preset in MODEL_SHAPES.items() if preset == self.shape), None)

    def __repr__(self) -> str:
        return f"CostCalculator({self._preset_name() or self.shape!r}, context_length={self.context_length})"


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


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
        check_choice("num_experts", num_experts, BLOCK["num_experts"])
        check_choice("batch_size", batch_size, BLOCK["batch_size"])
        sizes = {"num_experts": num_experts, "top_k": check_top_k(top_k, num_experts), "batch_size": batch_size}
        self.machine = machine
        self.measured: dict[str, float] | None = None  # the speed-up of each model, for what the sliders show
        self.inputs = {name: control(name, BLOCK.get(name, range(1, num_experts + 1))) for name in sizes}
        for name, value in sizes.items():
            self.inputs[name].value = value
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

    def moved(self) -> None:
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
