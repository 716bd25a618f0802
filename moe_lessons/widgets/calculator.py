"""A calculator for the size of a transformer: sliders in, parameters, FLOPs and memory out."""

from dataclasses import replace
from typing import Any

import ipywidgets as W

from moe_lessons.analysis.cost import MODEL_SHAPES, TransformerShape
from moe_lessons.errors import check_choice
from moe_lessons.plots.cost import parameter_bars, shape_costs, short_number
from moe_lessons.plots.table import cost_table
from moe_lessons.plots.theme import THEMES, LessonFigure
from moe_lessons.widgets.figure_image import FigureImage, mimebundle
from moe_lessons.widgets.front_end import FrontEnd
from moe_lessons.widgets.style import CSS

EXPERTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXT_LENGTHS = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)  # tokens
# name: description with unit, what it says when pointed at, then the smallest, largest value and the step
SLIDERS = {
    "top_k": ("Top-k, experts a token uses", "How many of the E experts work for one token", 1, 8, 1),
    "shared_experts": ("Shared experts", "Experts in each layer that every token uses", 0, 8, 1),
    "d_ff": ("d_ff, width of an expert", "Hidden numbers inside one expert", 128, 32768, 128),
    "d_model": ("d_model, width of a token", "Numbers that stand for one token", 128, 16384, 128),
    "num_layers": ("Layers", "Blocks of attention and experts, one after the other", 1, 128, 1),
    "vocab_size": ("Vocabulary, tokens", "Different tokens that the model knows", 1024, 262144, 64),
}
CHOICES = {
    "num_experts": ("Experts E, in each layer", "Experts that the router chooses from; 1 is a dense model"),
    "num_kv_heads": ("Key/value heads", "Fewer than the query heads: several of those share one"),
    "context_length": ("Context, tokens", "Tokens that the attention looks back on, for the FLOPs"),
}
SIZES = "num_experts top_k shared_experts d_ff d_model num_layers num_kv_heads vocab_size".split()


class CostCalculator(W.VBox):
    """Sliders for the sizes of a transformer; a picture and a table of its cost, beside its dense twins.

    shape: the name of a preset in `MODEL_SHAPES`, or a `TransformerShape`. Its head_dim stays as it is, and
        num_heads follows d_model, so num_heads · head_dim must be d_model.
    context_length: how many tokens the attention sees, for the FLOPs.

    `calculator.shape` is what the sliders show at any moment. Raises ValueError for an unknown preset, a
    shape that the sliders cannot show, and a context_length that the slider does not have.
    """

    def __init__(self, shape: str | TransformerShape = "Mixtral 8x7B", context_length: int = 4096):
        if not isinstance(shape, TransformerShape):
            shape = MODEL_SHAPES[check_choice("shape", shape, MODEL_SHAPES)]
        if context_length not in CONTEXT_LENGTHS:
            allowed = ", ".join(map(str, CONTEXT_LENGTHS))
            raise ValueError(f"context_length must be one of {allowed}, got {context_length!r}")
        _check_fits(shape)
        self.sliders = {name: _slider(name) for name in (*SIZES, "context_length")}
        self.sliders["context_length"].value = context_length
        self.presets = {name: _preset_button(name) for name in MODEL_SHAPES}
        self.image = FigureImage(format="png", layout=W.Layout(width="100%", max_width="980px"))
        self.words = W.HTML()
        self._front_end = FrontEnd()
        self._show(shape)
        self._front_end.observe(lambda _: self._draw(), "dark")
        for slider in self.sliders.values():
            slider.observe(self._slider_moved, "value")
        for button in self.presets.values():
            button.on_click(lambda button: self._show(MODEL_SHAPES[button.description]))
        presets = W.HBox([W.Label("Set to:"), *self.presets.values()]).add_class("moe-bar")
        columns = W.Layout(display="grid", grid_template_columns="repeat(auto-fill, minmax(380px, 1fr))")
        sliders = W.Box(list(self.sliders.values()), layout=columns)
        super().__init__([W.HTML(CSS), presets, sliders, self.image, self.words, self._front_end])
        self.add_class("moe-view")

    @property
    def shape(self) -> TransformerShape:
        """The sizes that the sliders show."""
        return self._shape

    @property
    def context_length(self) -> int:
        """How many tokens the attention sees."""
        return self.sliders["context_length"].value

    def figure(self) -> LessonFigure:
        """The picture: where the parameters are, and the table beside the two dense twins."""
        theme = "dark" if self._front_end.dark else "light"
        figure = LessonFigure(9.8, 4.0, THEMES[theme])
        figure.set_layout_engine("none")  # fixed places: half the time, and nothing jumps
        bars, table = figure.add_axes((0.06, 0.6, 0.92, 0.32)), figure.add_axes((0.06, 0.02, 0.92, 0.4))
        parameter_bars(self.shape.parameters(), bars, theme)
        shapes = {self._preset_name() or "this model": self.shape}
        shapes |= {f"dense: same {match}": self.shape.dense_twin(match) for match in ("active", "total")}
        cost_table(shape_costs(shapes, self.context_length), table, theme)
        return figure

    def sentence(self) -> str:
        """The same in words."""
        count, memory = self.shape.count, f"{self.shape.memory_gb():,.3g} GB"
        share = f"{short_number(count.active)} ({count.active / count.total:.1%})"
        flops = short_number(self.shape.flops_per_token(self.context_length))
        return (
            f"{short_number(count.total)} parameters, of which one token uses {share}. "
            f"All of them must be in memory: {memory} in bfloat16. One token costs {flops} FLOPs."
        )

    def __repr__(self) -> str:
        shape = self._preset_name() or self.shape
        return f"CostCalculator({shape!r}, context_length={self.context_length})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return mimebundle(self, self.figure().png(), repr(self))

    def _preset_name(self) -> str | None:
        return next((name for name, preset in MODEL_SHAPES.items() if preset == self.shape), None)

    def _slider_moved(self, _: Any) -> None:
        if self._showing:
            return
        sizes = {name: self.sliders[name].value for name in SIZES}
        heads = max(1, sizes["d_model"] // self.shape.head_dim)
        sizes["top_k"] = min(sizes["top_k"], sizes["num_experts"])
        sizes["num_kv_heads"] = max(n for n in _divisors(heads) if n <= sizes["num_kv_heads"])
        self._show(replace(self.shape, num_heads=heads, **sizes))

    def _show(self, shape: TransformerShape) -> None:
        """Set each slider to `shape`, with the limits that go with it (top_k never over E), and draw."""
        self._shape = shape
        self._showing = True  # what the sliders now report is not the user
        self.sliders["num_experts"].options = sorted({*EXPERTS, shape.num_experts})
        self.sliders["num_kv_heads"].options = _divisors(shape.num_heads)
        self.sliders["top_k"].max = shape.num_experts
        for name in SIZES:
            self.sliders[name].value = getattr(shape, name)
        self._showing = False
        self._draw()

    def _draw(self) -> None:
        self.image.value = self.figure().png()
        self.image.tooltip = self.sentence()
        self.words.value = f'<div class="moe-words" role="status">{self.sentence()}</div>'


def _slider(name: str) -> W.IntSlider | W.SelectionSlider:
    look = {"style": {"description_width": "190px"}, "layout": W.Layout(width="auto")}
    if name in CHOICES:
        description, tooltip = CHOICES[name]
        options = CONTEXT_LENGTHS if name == "context_length" else (1,)  # the others follow the shape
        return W.SelectionSlider(options=options, description=description, tooltip=tooltip, **look)
    description, tooltip, low, high, step = SLIDERS[name]
    look |= {"description": description, "tooltip": tooltip, "readout_format": ",d"}
    return W.IntSlider(value=low, min=low, max=high, step=step, **look)


def _preset_button(name: str) -> W.Button:
    tooltip = f"Set the sliders to {name}: {short_number(MODEL_SHAPES[name].count.total)} parameters"
    return W.Button(description=name, tooltip=tooltip, layout=W.Layout(width="auto"))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _check_fits(shape: TransformerShape) -> None:
    if shape.num_heads * shape.head_dim != shape.d_model:
        heads = f"num_heads {shape.num_heads} and head_dim {shape.head_dim}"
        raise ValueError(f"shape must have num_heads · head_dim equal to d_model ({shape.d_model}), got {heads}")
    for name, (_, _, low, high, _) in SLIDERS.items():
        if name != "top_k" and not low <= getattr(shape, name) <= high:
            raise ValueError(f"shape must have {name} between {low} and {high}, got {getattr(shape, name)}")
