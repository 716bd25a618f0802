"""Views that are played frame by frame and train nothing: a recording, layers of real models, weights loading."""

from collections.abc import Mapping
from dataclasses import replace

import ipywidgets as W
import pandas as pd

from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape
from moe_lessons.analysis.inference import Machine
from moe_lessons.analysis.roofline import WEIGHT_BYTES, sizes_of
from moe_lessons.nn import dense_name
from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels.passages import shares_panel
from moe_lessons.plots.speeds import Stream, stream_panel
from moe_lessons.support.errors import check_choice, check_number, check_positive_int, shown
from moe_lessons.widgets.controls import CONTROLS, control, move
from moe_lessons.widgets.loop import event_loop, on_the_loop
from moe_lessons.widgets.picture import Picture

H100 = Machine(3.35e12, 989e12)  # as in data/machines.csv, in bfloat16


class Player(Picture):
    """Panels with a slider over them, from `first` to `last`, and a button that plays them. controls: more of them.

    A subclass says `panels`, `sentence` and how long a frame is, in seconds."""

    FRAME = 0.2
    timer = None  # of the next frame; one that was refused when it was made is closed, too

    def __init__(self, title: str, slider: W.Widget, last: int, *controls: W.Widget, first: int = 0):
        self.slider = slider
        self.first, self.last = first, last
        self.events = event_loop()
        self.button = W.Button(description="Play", icon="play", button_style="primary", tooltip="Play or stop")
        self.button.on_click(lambda _: on_the_loop(self.events, self.play))
        for moved in (slider, *controls):
            moved.observe(lambda _: self.show(), "value")
        for row in controls:  # made for a column; in a bar they have no width of their own
            row.layout.width, row.style.description_width = "400px", "170px"
        bar = [W.HTML(f'<span class="moe-title">{title}</span>'), self.button, slider, *controls]
        super().__init__(rows=[W.Box(bar).add_class("moe-bar")])

    def play(self) -> None:
        """Play it from its first frame on, or stop where it plays; without an event loop it does not move."""
        self._show(None if self.timer or not self.events else self.first)

    def _show(self, place: int | None) -> None:
        """Show a frame, and soon the next one. None: no more."""
        if self.timer:
            self.timer.cancel()
        self.timer = None
        if place is not None:
            self.slider.value = place
            if place < self.last:
                self.timer = self.events.call_later(self.FRAME, self._show, place + 1)
        self.button.description, self.button.icon = ("Stop", "stop") if self.timer else ("Play", "play")

    def close(self) -> None:
        """Remove it, also while it plays."""
        if self.timer:
            self.timer.cancel()
        super().close()


class RoutersView(Player):
    """Show routing maps, the percent of each domain's assignments that each expert receives, and play the layers.

    counts: model -> layer -> a table with a row for each domain and a column for each expert, as of
        `analysis.real_routing` or `routing_counts`; all models with as many layers.

    >>> RoutersView({"mine": {0: pd.DataFrame([[10, 0], [5, 5]], ["code", "json"])}})
    RoutersView of mine
    """

    FRAME = 1.5

    def __init__(self, counts: Mapping[str, Mapping[int, pd.DataFrame]]):
        models = list(counts.values()) if isinstance(counts, Mapping) else []
        layers = [tuple(tables) if isinstance(tables, Mapping) else () for tables in models]
        if not layers or not layers[0] or any(each != layers[0] for each in layers):
            raise ValueError(f"counts must have for each model a table of each of the same layers, got {shown(counts)}")
        self.counts, self.layers = counts, layers[0]
        options = [(str(layer), place) for place, layer in enumerate(self.layers)]
        slider = W.SelectionSlider(options=options, value=len(options) - 1, description="Layer")
        super().__init__("Routing maps: % of each row", slider, len(options) - 1)

    def shares(self) -> dict[str, pd.DataFrame]:
        """Give the share of each row's assignments that each expert receives, in the layer that is shown."""
        layer = self.layers[self.slider.value]
        tables = {name: layers[layer] for name, layers in self.counts.items()}
        return {name: table.div(table.sum(axis="columns"), axis=0) for name, table in tables.items()}

    def panels(self) -> list[Panel]:
        layer, width = self.layers[self.slider.value], 12 // len(self.counts)
        made = [shares_panel(shares, f"{name}, layer {layer}") for name, shares in self.shares().items()]
        return [replace(panel, width=width) for panel in made]

    def sentence(self) -> str:
        tops = {
            name: (shares.stack().idxmax(), shares.max(axis=None) * shares.shape[1])
            for name, shares in self.shares().items()
        }
        said = [f"{name}: E{expert}, {most:.1f}× for {domain}" for name, ((domain, expert), most) in tops.items()]
        return f"Farthest above uniform load: {'; '.join(said)}."

    def __repr__(self) -> str:
        return f"RoutersView of {', '.join(self.counts)}"


class StreamView(Player):
    """Play how the weights of a mixture are loaded while it decodes, beside a dense model whose FFN is `dense_width`
    times as wide as the mixture's active part; `plots.speeds.Stream` says what of it is assumed.

    shape: of the mixture. machine: as of `measure_machine`. weights: of `WEIGHT_BYTES`. batch_size: of a step."""

    FRAME, SLOWER_STEPS = 0.1, 3  # steps of the slower model

    def __init__(
        self, shape: TransformerShape = MODEL_SHAPES["Mixtral 8x7B"], machine: Machine = H100,
        weights: str = "bfloat16", dense_width: float = 4.0, batch_size: int = 1,
    ):  # fmt: skip
        if not isinstance(shape, TransformerShape) or shape.num_experts < 2:
            raise ValueError(f"shape must be a TransformerShape with experts, got {shape!r}")
        if not isinstance(machine, Machine):
            raise ValueError(f"machine must be a Machine, got {machine!r}")
        check_choice("weights", weights, WEIGHT_BYTES)
        self.arguments = shape, machine, weights, check_number("dense_width", dense_width, minimum=1)
        self.models = {"MoE": sizes_of(shape), dense_name(dense_width): sizes_of(shape).dense(dense_width)}
        self.batch = control("batch_size", CONTROLS["batch_size"].stops[:11])
        move(self.batch, check_positive_int("batch_size", batch_size))
        last = 25 * self.SLOWER_STEPS
        slider = W.IntSlider(last, 0, last, description="Time", tooltip="How much time has passed")
        super().__init__("Loading weights from memory", slider, last, self.batch)
        self.play()

    def streams(self) -> dict[str, Stream]:
        return {name: Stream(sizes, *self.arguments[1:3], self.batch.value) for name, sizes in self.models.items()}

    @property
    def seconds(self) -> float:
        """Return how much time of the machine has passed."""
        longest = max(stream.step for stream in self.streams().values())
        return self.SLOWER_STEPS * longest * self.slider.value / self.last

    def panels(self) -> list[Panel]:
        return [stream_panel(self.streams(), self.seconds)]

    def sentence(self) -> str:
        wrote = " and ".join(
            f"{name} {stream.wrote(self.seconds):,} (a step loads for {1000 * stream.reading:.3g} ms and computes for "
            f"{1000 * stream.computing:.3g} ms)" for name, stream in self.streams().items()
        )  # fmt: skip
        return f"Tokens decoded after {1000 * self.seconds:.3g} ms, at best: {wrote}."

    def __repr__(self) -> str:
        return f"StreamView({', '.join(map(repr, self.arguments))}, {self.batch.value})"
