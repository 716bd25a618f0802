"""Calculators: sliders in, what a model costs out. Nothing is trained; one of them can measure."""

from dataclasses import replace
from functools import partial

import ipywidgets as W
import torch

from moe_lessons.analysis.cost import MODEL_SHAPES, TransformerShape
from moe_lessons.analysis.inference import Machine, stopwatch, union_law
from moe_lessons.analysis.timing import WARM_UP, Ratio
from moe_lessons.errors import check_choice, check_positive_int, check_top_k
from moe_lessons.knobs import KNOBS
from moe_lessons.nn import MoE, dense_twin, seeded, torch_threads
from moe_lessons.plots.cost import PART_COLORS, shape_costs, short_number
from moe_lessons.plots.marks import Axis, Bars, Line, Panel, Parts, Points, Rule, Table
from moe_lessons.widgets.controls import control, move, named_stops
from moe_lessons.widgets.picture import Picture


class Calculator(Picture):
    """Controls over panels. A subclass says `panels`, `sentence`, and what else happens when a control has `moved`."""

    columns = "300px"  # the least width of a slider

    def __init__(self, inputs: dict[str, W.Widget], bar: list[W.Widget]):
        self.inputs = inputs
        self._showing = False  # whether controls are moved by us
        for name, widget in inputs.items():
            widget.style.description_width = "150px"
            widget.observe(lambda change, name=name: None if self._showing else self.moved(name), "value")
        columns = f"repeat(auto-fill, minmax({self.columns}, 1fr))"
        grid = W.Box(list(inputs.values()), layout=W.Layout(display="grid", grid_template_columns=columns))
        super().__init__(rows=[W.HBox(bar).add_class("moe-bar"), grid])

    def moved(self, name: str) -> None:
        """A control was moved by hand."""
        self.show()


EXPERTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STOPS = {"num_experts": EXPERTS, "top_k": range(1, 9), "d_ff": range(128, 32769, 128), "num_kv_heads": (1,)}
SIZES = "num_experts top_k shared_experts d_ff d_model num_layers num_kv_heads vocab_size".split()


class CostCalculator(Calculator):
    """Sliders for the sizes of a transformer; a picture and a table of its cost, beside its dense twins.

    shape: the name of a preset in `MODEL_SHAPES`, or a `TransformerShape`. Its head_dim stays as it is, and
        num_heads follows d_model, so num_heads · head_dim must be d_model.
    context_length: how many tokens the attention sees, for the FLOPs.

    `calculator.shape` is what the sliders show at any moment. Raises ValueError for an unknown preset, a
    shape that the sliders cannot show, and a context_length that the slider does not have.
    """

    columns = "380px"

    def __init__(self, shape: str | TransformerShape = "Mixtral 8x7B", context_length: int = 4096):
        if not isinstance(shape, TransformerShape):
            shape = MODEL_SHAPES[check_choice("shape", shape, MODEL_SHAPES)]
        lengths = KNOBS["context_length"].stops
        if context_length not in lengths:
            allowed = ", ".join(map(str, lengths))
            raise ValueError(f"context_length must be one of {allowed}, got {context_length!r}")
        inputs = {name: control(name, STOPS.get(name)) for name in (*SIZES, "context_length")}
        check_fits(shape, inputs)
        inputs["context_length"].value = context_length
        self.shape = shape
        self.presets = {name: W.Button(description=name, layout=W.Layout(width="auto")) for name in MODEL_SHAPES}
        for name, button in self.presets.items():
            button.tooltip = f"Set the sliders to {name}: {short_number(MODEL_SHAPES[name].count.total)} parameters"
            button.on_click(lambda _, name=name: self.take(MODEL_SHAPES[name]))
        super().__init__(inputs, [W.Label("Set to:"), *self.presets.values()])
        self.take(shape)

    @property
    def context_length(self) -> int:
        """How many tokens the attention sees."""
        return self.inputs["context_length"].value

    def panels(self) -> list[Panel]:
        """Where the parameters are, and the table beside the two dense twins."""
        parts = {name: count for name, count in self.shape.parameters().items() if count.total > 0}
        totals, active = ([getattr(c, kind) for c in parts.values()] for kind in ("total", "active"))
        colors = [PART_COLORS[name] for name in parts]
        texts = [short_number(sum(totals)), short_number(sum(active))]
        bars = Parts(("total", "active"), tuple(parts), [totals, active], colors, texts)
        shapes = {self._preset_name() or "this model": self.shape}
        shapes |= {f"dense, same {match}": self.shape.dense_twin(match) for match in ("active", "total")}
        rows = shape_costs(shapes, self.context_length)
        table = Table(tuple(shapes), tuple(rows), [list(cells.values()) for cells in rows.values()])
        x = Axis(0, 1.12 * sum(totals), "parameters")
        y = Axis(1.5, -0.5, ticks=[(0, "total"), (1, "active")])
        where = Panel("Where the parameters are", [bars], x, y, 12, 170)
        return [where, Panel("What it costs", [table], width=12)]

    def sentence(self) -> str:
        """The same in words."""
        count, memory = self.shape.count, f"{self.shape.memory_gb():,.3g} GB"
        share = f"{short_number(count.active)} ({count.active / count.total:.1%})"
        flops = short_number(self.shape.flops_per_token(self.context_length))
        return (
            f"{short_number(count.total)} parameters, of which one token uses {share}. "
            f"All of them must be in memory: {memory} in bfloat16. One token costs {flops} FLOPs."
        )

    def take(self, shape: TransformerShape) -> None:
        """Set each slider to `shape`, with the limits that go with it (top_k never over E), and draw."""
        self.shape, self._showing = shape, True
        self.inputs["num_kv_heads"].options = named_stops(_divisors(shape.num_heads))
        self.inputs["top_k"].max = shape.num_experts
        for name in SIZES:
            move(self.inputs[name], getattr(shape, name))
        self._showing = False
        self.show()

    def moved(self, name: str) -> None:
        """See `Calculator`: the number of heads follows the width, the others what they may be."""
        sizes = {name: self.inputs[name].value for name in SIZES}
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


def check_fits(shape: TransformerShape, inputs: dict[str, W.Widget]) -> None:
    """Raise ValueError for a shape that the sliders cannot show."""
    if shape.num_heads * shape.head_dim != shape.d_model:
        heads = f"num_heads {shape.num_heads} and head_dim {shape.head_dim}"
        raise ValueError(f"shape must have num_heads · head_dim equal to d_model ({shape.d_model}), got {heads}")
    for name, slider in inputs.items():
        if isinstance(slider, W.IntSlider) and name != "top_k":
            if not slider.min <= getattr(shape, name) <= slider.max:
                allowed = f"between {slider.min} and {slider.max}"
                raise ValueError(f"shape must have {name} {allowed}, got {getattr(shape, name)}")


BLOCK_EXPERTS = (2, 4, 8, 16)
D_MODEL, D_FF = 512, 1024
EXPERT_NUMBERS = 3 * D_MODEL * D_FF  # weights of one expert: gate, up and down
NAMES = ("MoE", "dense, same active", "dense, same total")
REPEATS = 7
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
        batches = KNOBS["batch_size"].stops
        for name, value, allowed in (("num_experts", num_experts, BLOCK_EXPERTS), ("batch_size", batch_size, batches)):
            if check_positive_int(name, value) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value}")
        self.machine = machine
        self.measured: dict[str, float] | None = None  # the speed-up of each model, for what the sliders show
        top_k = check_top_k(top_k, num_experts)
        stops = {"num_experts": BLOCK_EXPERTS, "top_k": range(1, num_experts + 1), "batch_size": batches}
        inputs = {name: control(name, of) for name, of in stops.items()}
        for name, value in (("num_experts", num_experts), ("top_k", top_k), ("batch_size", batch_size)):
            inputs[name].value = value
        tip = "Build the three blocks and time them, about two seconds"
        self.button = W.Button(description="Measure here", tooltip=tip)
        self.button.on_click(lambda _: self.measure())
        super().__init__(inputs, [self.button])

    @property
    def sizes(self) -> tuple[int, int, int]:
        """E, K and B, as the sliders show them."""
        return tuple(self.inputs[name].value for name in ("num_experts", "top_k", "batch_size"))

    def experts_read(self) -> dict[str, float]:
        """How many experts' weights each model reads in a step; a dense twin counts by its width."""
        num_experts, top_k, batch = self.sizes
        return dict(zip(NAMES, (union_law(num_experts, top_k, batch), top_k, num_experts)))

    def predicted(self) -> dict[str, float]:
        """How many times as fast as the equal-total twin each model is, if all reach the roof of the machine."""
        num_experts, top_k, batch = self.sizes
        work = dict(zip(NAMES, (top_k, top_k, num_experts)))  # experts' arithmetic for a token
        seconds = {
            name: self.machine.seconds(4 * EXPERT_NUMBERS * read, 2 * EXPERT_NUMBERS * batch * work[name])
            for name, read in self.experts_read().items()
        }
        return {name: seconds[NAMES[2]] / seconds[name] for name in NAMES}

    def measure(self) -> None:
        """Time the three blocks in turns, with one thread, and draw the result."""
        self.button.disabled = True
        self.show("Measuring …")
        try:
            self.measured = measure_blocks(*self.sizes)
        finally:
            self.button.disabled = False
            self.show()

    def panels(self) -> list[Panel]:
        """The three pictures."""
        num_experts, top_k, batch = self.sizes
        batches, places = KNOBS["batch_size"].stops, range(len(KNOBS["batch_size"].stops))
        law = [union_law(num_experts, top_k, b) for b in batches]  # each batch is twice the one before it
        marks = [Line(places, law), Points([batches.index(batch)], [union_law(num_experts, top_k, batch)]),
                 Rule(y=num_experts, name="all experts")]  # fmt: skip
        x = Axis(0, len(batches) - 1, "batch B, tokens", [(i, str(b)) for i, b in enumerate(batches)])
        touched = Panel("Experts touched", marks, x, Axis(0, 1.12 * num_experts, "experts"))
        megabytes = [4 * EXPERT_NUMBERS * read / 1e6 for read in self.experts_read().values()]
        models = Axis(-0.6, 2.6, ticks=[(0, "MoE"), (1, "same active"), (2, "same total")])
        read = Bars(megabytes, of="model", texts=[f"{value:.0f}" for value in megabytes])
        read = Panel("Read in a step", [read], models, Axis(0, 1.15 * max(megabytes), "megabytes of weights"))
        predicted, measured = list(self.predicted().values()), self.measured and list(self.measured.values())
        texts = [f"{value:.1f}" for value in predicted]
        speed = Bars(predicted, None, measured, "measured here" if measured else "", "model", texts)
        high = Axis(0, 1.15 * max(*predicted, *(measured or ())), "times the equal-total twin")
        return [touched, read, Panel("Speed by the roofline", [speed], models, high)]

    def sentence(self) -> str:
        """The same in words."""
        num_experts, top_k, batch = self.sizes
        touched, predicted = union_law(num_experts, top_k, batch), self.predicted()
        text = (
            f"{batch} token{'s' * (batch > 1)} of {top_k} expert{'s' * (top_k > 1)} each touch {touched:.1f} of "
            f"{num_experts} experts. The roofline expects the mixture to be {predicted['MoE']:.1f} times as fast as "
            "the equal-total twin"
        )
        return text + (f"; measured here: {self.measured['MoE']:.1f} times." if self.measured else ".")

    def moved(self, name: str) -> None:
        """See `Calculator`."""
        self.measured, self._showing = None, True
        self.inputs["top_k"].max = self.inputs["num_experts"].value
        self._showing = False
        self.show()

    def __repr__(self) -> str:
        num_experts, top_k, batch = self.sizes
        return f"DecodingCalculator(machine, num_experts={num_experts}, top_k={top_k}, batch_size={batch})"


def measure_blocks(num_experts: int, top_k: int, batch_size: int, repeats: int = REPEATS) -> dict[str, float]:
    """How many times as fast as the equal-total twin each of the three blocks is, on B random tokens.

    Before each, as much is read as would fill the processor's caches: in a model the other layers do that.
    """
    with seeded(0), torch_threads(1), torch.inference_mode():
        moe = MoE(D_MODEL, D_FF, num_experts, top_k)
        blocks = [moe, dense_twin(moe, "active"), dense_twin(moe, "total")]
        x = torch.randn(batch_size, D_MODEL)
        others = torch.ones(OTHER_MEGABYTES * 2**18)
        measure, times = stopwatch(1, x.device), [[] for _ in blocks]
        for _ in range(WARM_UP + repeats):
            for block, own in zip(blocks, times):
                others.sum()
                own.append(measure(partial(block, x)))
    times = [own[WARM_UP:] for own in times]
    return {name: Ratio.of(times[2], own).median for name, own in zip(NAMES, times)}
