"""The calculator: sliders or a configuration in, what a model costs out. Nothing is trained or measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as W

from moe_lessons.analysis.counting import MODEL_SHAPES, ParameterCount, TransformerShape
from moe_lessons.analysis.roofline import WEIGHT_BYTES, ModelSizes, machines, published_sizes, sizes_of
from moe_lessons.hub.published import count_config
from moe_lessons.nn import dense_name
from moe_lessons.plots.costs import cost_table, parameter_panel
from moe_lessons.plots.marks import Panel, Table
from moe_lessons.plots.theme import short_number
from moe_lessons.support.errors import check_choice
from moe_lessons.support.files import read_config
from moe_lessons.widgets.controls import control, move, named_stops
from moe_lessons.widgets.picture import Picture

INPUT_STOPS = {"num_experts": (1, 2, 4, 8, 16, 32, 64, 128, 256), "top_k": range(1, 9), "d_ff": range(128, 32769, 128)}
INPUT_STOPS["num_kv_heads"] = (1,)  # until `take` knows which divide the number of heads
INPUT_STOPS["weights"] = tuple(WEIGHT_BYTES)
SOURCES = "published config_file".split()  # controls that name a model
SIZES = "num_experts top_k shared_experts d_ff d_model num_layers num_kv_heads vocab_size".split()
SETTINGS = "context_length batch_size machine weights".split()
SLIDERS = "as the sliders say"
LARGEST = 2**20  # of a size: a page may ask for more


class ConfigCalculator(Picture):
    """The cost of a transformer on a machine, beside its dense baselines: by sliders, as published, or by its
    config.json, whose class of Hugging Face transformers is counted.

    model: of `MODEL_SHAPES` or a `TransformerShape`, which the sliders show (num_heads follows d_model); of
    `published_sizes`; or the path of a config.json or of its folder. context_length: tokens that the attention sees.
    batch_size: sequences decoded together. machine: of `machines()`. weights: of `WEIGHT_BYTES`."""

    def __init__(
        self, model: str | Path | TransformerShape = "Mixtral 8x7B", context_length: int = 4096, batch_size: int = 1,
        machine: str = "NVIDIA H100 SXM", weights: str = "bfloat16",
    ):  # fmt: skip
        stops = {"machine": tuple(machines().index), "published": (SLIDERS, *published_sizes())}
        self.inputs = {name: control(name, (INPUT_STOPS | stops).get(name)) for name in (*SOURCES, *SIZES, *SETTINGS)}
        for name, value in zip(SETTINGS, (context_length, batch_size, machine, weights)):
            if options := getattr(self.inputs[name], "options", None):
                check_choice(name, value, [stop[-1] if isinstance(stop, tuple) else stop for stop in options])
            move(self.inputs[name], value)
        self.problem = W.Label().add_class("moe-trouble")  # with the file in the box, in a sentence
        self.take(MODEL_SHAPES["Mixtral 8x7B"])
        self.begin(model)
        self.presets = {name: W.Button(description=name, layout=W.Layout(width="auto")) for name in MODEL_SHAPES}
        for name, button in self.presets.items():
            button.tooltip = f"Set the sliders to {name}: {short_number(MODEL_SHAPES[name].count.total)} parameters"
            button.on_click(lambda _, name=name: self.change(self.take, MODEL_SHAPES[name]))
        self._changing = False
        for name, widget in self.inputs.items():
            widget.style.description_width = "165px"
            widget.observe(lambda _, name=name: self.change(self.moved, name), "value")
        bar = W.HBox([W.Label("Set to:"), *self.presets.values()]).add_class("moe-bar")
        sources, sizes, others = ([self.inputs[name] for name in names] for names in (SOURCES, SIZES, SETTINGS))
        grid = {"display": "grid", "grid_template_columns": "repeat(auto-fill, minmax(min(100%, 380px), 1fr))"}
        groups = [*sources, self.problem], sizes, others
        super().__init__(
            rows=[bar, *(W.Box(group, layout=W.Layout(**grid)).add_class("moe-sliders") for group in groups)]
        )

    def change(self, do: Callable[..., None], *arguments: Any) -> None:
        """Do what moves several controls, and show it once."""
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

    def begin(self, model: str | Path | TransformerShape) -> None:
        if isinstance(model, TransformerShape) or model in MODEL_SHAPES:
            self.take(MODEL_SHAPES.get(model, model))
        elif str(model).endswith(".json") or Path(model).is_dir():
            self.inputs["config_file"].value = str(model)
            self.count(str(model))
            if self.problem.value:
                raise ValueError(self.problem.value)
        else:
            self.inputs["published"].value = check_choice("model", model, [*MODEL_SHAPES, *published_sizes()])
            self.moved("published")

    def moved(self, name: str) -> None:
        published, path = (self.inputs[source].value for source in SOURCES)
        if name == "published" and published != SLIDERS:
            self.take_sizes(published, published_sizes()[published], published)
        elif name == "config_file" and path:
            self.show("Counting …")  # it may take seconds
            self.count(path)
        elif name not in SETTINGS:
            self.take(self._slid())

    def count(self, path: str) -> None:
        try:
            counted = count_config(read_config(path))
        except (ValueError, ImportError) as error:
            self.problem.value = str(error)
        else:
            self.inputs["published"].value = SLIDERS
            self.take_sizes(counted.class_name, counted.sizes, path)

    def take(self, shape: TransformerShape) -> None:
        """Set each slider to `shape`, with the limits that go with it (top_k never over E)."""
        self.inputs["num_kv_heads"].options = named_stops(_divisors(shape.num_heads))
        self.inputs["top_k"].max = shape.num_experts
        for name in SIZES:
            move(self.inputs[name], getattr(shape, name))
        self.shape = shape
        self.inputs["published"].value = SLIDERS
        preset = next((name for name, preset in MODEL_SHAPES.items() if preset == shape), None)
        self.take_sizes(preset or "this model", sizes_of(shape), preset or shape, is_slid=True)

    def take_sizes(self, name: str, sizes: ModelSizes, source: str | TransformerShape, is_slid: bool = False) -> None:
        """Show these sizes, and sliders where they say them."""
        for size in SIZES:
            self.inputs[size].layout.display = None if is_slid else "none"
        self.name, self.sizes = name, sizes
        self.source, self.is_slid = source, is_slid
        self.problem.value = ""
        if source != self.inputs["config_file"].value:
            self.inputs["config_file"].value = ""

    def _slid(self) -> TransformerShape:
        sizes = {size: min(self.inputs[size].value, LARGEST) for size in SIZES}
        heads = self.shape.num_heads
        if sizes["d_model"] != self.shape.d_model:
            heads = max(1, sizes["d_model"] // self.shape.head_dim)
        sizes["top_k"] = min(sizes["top_k"], sizes["num_experts"])
        sizes["num_kv_heads"] = max(n for n in _divisors(heads) if n <= sizes["num_kv_heads"])
        return replace(self.shape, num_heads=heads, **sizes)

    @property
    def settings(self) -> dict[str, Any]:
        return {name: self.inputs[name].value for name in SETTINGS}

    @property
    def models(self) -> dict[str, ModelSizes]:
        dense = {dense_name(width): self.sizes.dense(width) for width in (1, self.sizes.total_width)}
        return {self.name: self.sizes} | dense

    def show(self, words: str | None = None) -> None:
        super().show(words or "There are no figures of this file." * bool(self.problem.value))

    def panels(self) -> list[Panel]:
        if self.problem.value:
            return []
        costs = Panel(f"What it costs on one {self.inputs['machine'].value}", [self.table()], width=12, height=300)
        return [replace(parameter_panel(self.parts()), width=12, height=150), costs]

    def table(self) -> Table:
        context, batch, machine, weights = self.settings.values()
        return cost_table(self.models, context, weights, machines().loc[machine], batch)

    def parts(self) -> dict[str, ParameterCount]:
        """Return where the parameters are; of a published model in fewer parts."""
        return (self.shape if self.is_slid else self.sizes).parameters()

    def sentence(self) -> str:
        if self.problem.value:
            return self.problem.value
        total, active, share, flops, weights, cache, fits, _, _, speed = (row[0] for row in self.table().cells)
        _, batch, machine, kind = self.settings.values()
        sequences = f"{batch:,} sequences" if batch > 1 else "one sequence"
        return (
            f"{total} parameters, of which one token uses {active} ({share}). All of them must be in memory: {weights} "
            f"in {kind}, and {cache} of KV cache for {sequences}. One token costs {flops} FLOPs. "
            f"They {'fit' if fits == 'yes' else 'do not fit'} into one {machine}, "
            f"which would decode {speed} tokens per second at best."
        )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
