"""What a step of decoding reads: sliders for experts, top-k and batch in, bytes and speed out, and measured here."""

from functools import partial
from typing import Any

import ipywidgets as W
import torch
from matplotlib.axes import Axes

from moe_lessons.analysis.inference import Machine, stopwatch, union_law
from moe_lessons.analysis.timing import WARM_UP, Ratio
from moe_lessons.errors import check_positive_int, check_top_k
from moe_lessons.nn import MoE, dense_twin, seeded, torch_threads
from moe_lessons.plots.sweeps import model_looks
from moe_lessons.plots.theme import THEMES, LessonFigure, Panel, Theme
from moe_lessons.widgets.figure_image import FigureImage, mimebundle
from moe_lessons.widgets.front_end import FrontEnd
from moe_lessons.widgets.style import CSS

EXPERTS = (2, 4, 8, 16)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
D_MODEL, D_FF = 512, 1024
EXPERT_NUMBERS = 3 * D_MODEL * D_FF  # weights of one expert: gate, up and down
NAMES = ("MoE", "dense, same active", "dense, same total")
REPEATS = 7
OTHER_MEGABYTES = 128  # more than the caches of most processors hold


class DecodingCalculator(W.VBox):
    """Sliders for E, K and the batch B of one feed-forward block; what a step of decoding reads, and how fast it is.

    The block has D = 512, F = 1024 and float32 weights. Three pictures: how many experts the B tokens touch, by the
    `union_law`; the megabytes that a mixture and its dense twins read in a step; how many times as fast as the
    equal-total twin this makes them on `machine`, by its roofline. The button measures the third, now and here.

    `repr` names the machine, and leaves out what was measured. Raises ValueError for values the sliders do not have.
    """

    def __init__(self, machine: Machine, num_experts: int = 8, top_k: int = 2, batch_size: int = 1):
        if not isinstance(machine, Machine):
            raise ValueError(f"machine must be a Machine, as measure_machine returns, got {type(machine).__name__}")
        for name, value, allowed in (("num_experts", num_experts, EXPERTS), ("batch_size", batch_size, BATCHES)):
            if check_positive_int(name, value) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value}")
        self.machine = machine
        self.measured: dict[str, float] | None = None  # the speed-up of each model, for what the sliders show
        look = {"style": {"description_width": "150px"}, "layout": W.Layout(width="auto")}
        self.experts = W.SelectionSlider(
            options=EXPERTS, value=num_experts, description="Experts E", tooltip="Experts in the block", **look
        )
        self.top_k = W.IntSlider(
            value=check_top_k(top_k, num_experts), min=1, max=num_experts, description="Top-k",
            tooltip="How many of the E experts work for one token", **look,
        )  # fmt: skip
        self.batch = W.SelectionSlider(
            options=BATCHES, value=batch_size, description="Batch B, tokens",
            tooltip="Sequences that are written at once: one token of each", **look,
        )  # fmt: skip
        self.button = W.Button(
            description="Measure here", tooltip="Build the three blocks and time them, about two seconds"
        )
        self.image = FigureImage(format="png", layout=W.Layout(width="100%", max_width="980px"))
        self.words = W.HTML()
        self._front_end = FrontEnd()
        tipped = (self.experts, self.top_k, self.batch, self.button)
        self._front_end.tips = {widget.description: widget.tooltip for widget in tipped}
        self._front_end.observe(lambda _: self._draw(), "dark")
        self.experts.observe(self._experts_moved, "value")
        self.top_k.observe(self._moved, "value")
        self.batch.observe(self._moved, "value")
        self.button.on_click(lambda _: self.measure())
        columns = W.Layout(display="grid", grid_template_columns="repeat(auto-fill, minmax(300px, 1fr))")
        sliders = W.Box([self.experts, self.top_k, self.batch], layout=columns)
        bar = W.HBox([self.button]).add_class("moe-bar")
        self._draw()
        super().__init__([W.HTML(CSS), sliders, bar, self.image, self.words, self._front_end])
        self.add_class("moe-view")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """E, K and B, as the sliders show them."""
        return self.experts.value, self.top_k.value, self.batch.value

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
        self.words.value = '<div class="moe-words" role="status">Measuring …</div>'
        try:
            self.measured = measure_blocks(*self.sizes)
        finally:
            self.button.disabled = False
            self._draw()

    def figure(self) -> LessonFigure:
        """The three pictures."""
        ink = THEMES["dark" if self._front_end.dark else "light"]
        figure = LessonFigure(9.8, 3.0, ink)
        figure.set_layout_engine("none")  # fixed places: half the time, and nothing jumps
        self._draw_law(figure.add_axes((0.05, 0.17, 0.24, 0.7)), ink)
        megabytes = {name: 4 * EXPERT_NUMBERS * read / 1e6 for name, read in self.experts_read().items()}
        read = figure.add_axes((0.43, 0.17, 0.23, 0.7))
        _bars(read, ink, "Read in a step", "megabytes of weights", megabytes, "{:.0f}", named=True)
        speed = figure.add_axes((0.72, 0.17, 0.26, 0.7))
        _bars(speed, ink, "Speed by the roofline", "times the equal-total twin", self.predicted(), "{:.1f}")
        if self.measured is not None:
            places, values = range(len(NAMES))[::-1], list(self.measured.values())
            speed.plot(values, places, "D", color=ink.foreground, mec=ink.background, ms=9, label="measured here")
            speed.set_xlim(0, 1.25 * max(*values, *self.predicted().values()))
            speed.legend(loc="lower right", frameon=False, labelcolor=ink.foreground, fontsize=9)
        return figure

    def sentence(self) -> str:
        """The same in words."""
        num_experts, top_k, batch = self.sizes
        touched, predicted = union_law(num_experts, top_k, batch), self.predicted()
        text = (
            f"{batch} token{'s' * (batch > 1)} of {top_k} expert{'s' * (top_k > 1)} each touch {touched:.1f} of "
            f"{num_experts} experts. The roofline expects the mixture to be {predicted['MoE']:.1f} times as fast as "
            "the equal-total twin"
        )
        if self.measured is None:
            return text + "."
        return text + f"; measured here: {self.measured['MoE']:.1f} times."

    def __repr__(self) -> str:
        num_experts, top_k, batch = self.sizes
        return f"DecodingCalculator(machine, num_experts={num_experts}, top_k={top_k}, batch_size={batch})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return mimebundle(self, self.figure().png(), repr(self))

    def _experts_moved(self, change: dict[str, Any]) -> None:
        with self.top_k.hold_trait_notifications():  # moved along, if it has to be, without a drawing of its own
            self.top_k.unobserve(self._moved, "value")
            self.top_k.max = change["new"]
        self.top_k.observe(self._moved, "value")
        self._moved(change)

    def _moved(self, _: Any) -> None:
        self.measured = None
        self._draw()

    def _draw(self) -> None:
        self.image.value = self.figure().png()
        self.image.tooltip = self.sentence()
        self.words.value = f'<div class="moe-words" role="status">{self.sentence()}</div>'

    def _draw_law(self, ax: Axes, ink: Theme) -> None:
        num_experts, top_k, batch = self.sizes
        _dress(ax, ink, "Experts touched", "batch B, tokens")
        color = model_looks(NAMES, ink)["MoE"][0]
        ax.axhline(num_experts, ls="--", lw=1.2, color=ink.muted)
        places = range(len(BATCHES))  # each batch is twice the one before: a logarithmic axis, and quicker drawn
        ax.plot(places, [union_law(num_experts, top_k, b) for b in BATCHES], "-", color=color, lw=1.8)
        ax.plot([BATCHES.index(batch)], [union_law(num_experts, top_k, batch)], "o", color=color, ms=9)
        ax.set_xticks(places, [str(b) for b in BATCHES])
        ax.set_ylim(0, 1.12 * num_experts)


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


def _bars(ax: Axes, ink: Theme, title: str, label: str, values: dict[str, float], form: str, named=False) -> None:
    _dress(ax, ink, title, label)
    looks, places, largest = model_looks(NAMES, ink), range(len(values))[::-1], max(values.values())
    ax.barh(places, list(values.values()), height=0.6, color=[looks[name][0] for name in values])
    for place, value in zip(places, values.values()):
        ax.text(value, place + 0.32, form.format(value), ha="center", va="bottom", fontsize=9.5, color=ink.foreground)
    ax.set_yticks(places, list(values) if named else [""] * len(values))
    ax.set(xlim=(0, 1.25 * largest), ylim=(-0.6, len(values) - 0.2))


def _dress(ax: Axes, ink: Theme, title: str, label: str) -> None:
    Panel(ax, ink)
    ax.set_title(title, loc="left", fontsize=11, color=ink.foreground, pad=6)
    ax.set_xlabel(label, color=ink.foreground, fontsize=9.5)
    ax.tick_params(labelsize=9, labelcolor=ink.foreground)
    ax.spines[["top", "right"]].set_visible(False)
