"""What is played frame by frame, and trains nothing: a recording of a long run, and how weights leave memory."""

from dataclasses import replace

import ipywidgets as W
import numpy as np

from moe_lessons.analysis.counting import MODEL_SHAPES, TransformerShape
from moe_lessons.analysis.inference import Machine
from moe_lessons.analysis.results import load_recording
from moe_lessons.analysis.roofline import WEIGHT_BYTES, sizes_of
from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels.quality import known_panel, wall_panel
from moe_lessons.plots.speeds import Stream, stream_panel
from moe_lessons.plots.theme import model_inks
from moe_lessons.support.errors import check_choice, check_number, check_positive_int
from moe_lessons.tasks import Facts
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets.controls import control, move
from moe_lessons.widgets.loop import event_loop, on_the_loop
from moe_lessons.widgets.picture import Picture

H100 = Machine(3.35e12, 989e12)  # as in data/machines.csv, in bfloat16


class Player(Picture):
    """Plays its frames, from the first to the last, of which `slider` has the place: a subclass says their panels."""

    frame = 0.2  # seconds

    def __init__(self, title: str, last: int, name: str, tip: str, *controls: W.Widget):
        self.events, self.timer = event_loop(), None
        self.button = W.Button(description="Play", icon="play", button_style="primary", tooltip="Play or stop")
        self.button.on_click(lambda _: on_the_loop(self.events, self.play))
        self.slider = W.IntSlider(last, 0, last, description=name, tooltip=tip)
        for moved in (self.slider, *controls):
            moved.observe(lambda _: self.show(), "value")
        bar = [W.HTML(f'<span class="moe-title">{title}</span>'), self.button, self.slider, *controls]
        super().__init__(rows=[W.Box(bar).add_class("moe-bar")])

    def play(self) -> None:
        """Play it from its first frame on, or stop where it plays; without an event loop it does not move."""
        self._show(None if self.timer or not self.events else 0)

    def _show(self, place: int | None) -> None:
        """Show a frame, and soon the next one. None: no more."""
        if self.timer:
            self.timer.cancel()
        self.timer = None
        if place is not None:
            self.slider.value = place
            if place < self.slider.max:
                self.timer = self.events.call_later(self.frame, self._show, place + 1)
        self.button.description, self.button.icon = ("Stop", "stop") if self.timer else ("Play", "play")


class WallRecording(Player):
    """Plays which facts the models of a stored sweep knew, from its first measurement to its last.

    name: of a sweep that was recorded. A lamp is an entry of the book, as in `FactsLab`.

    >>> WallRecording()
    WallRecording('book_8000_6000')
    """

    def __init__(self, name: str = "book_8000_6000"):
        self.name, self.recording = name, load_recording(name)
        run, (first, *_) = self.recording.run, self.recording.known.values()
        self.entries = Facts(len(first[0]), run["seed"]).entries
        title = f"A recording: seed {run['seed']}, made on {run['date']} ({run['cpu']})"
        super().__init__(title, len(first) - 1, "Measurement", "Each is of a later step")

    @property
    def step(self) -> int:
        """After which step the models are shown."""
        return self.recording.steps[self.slider.value]

    def panels(self) -> list[Panel]:
        known, shown = self.recording.known, slice(self.slider.value + 1)
        inks, steps = model_inks(known), np.array(self.recording.steps[shown], "f4")
        walls = [wall_panel(name, own[shown][-1], self.entries, ink) for (name, own), ink in zip(known.items(), inks)]
        curves = {name: (steps, own[shown].sum(axis=1, dtype="f4")) for name, own in known.items()}
        lines = known_panel(curves, len(self.entries), first_x=self.recording.steps[-1])
        return [replace(panel, width=12 // len(walls)) for panel in walls] + [replace(lines, width=12)]

    def sentence(self) -> str:
        counts = "; ".join(f"{name}: {own[self.slider.value].sum():,}" for name, own in self.recording.known.items())
        step = f"Step {self.step:,} of {self.recording.steps[-1]:,}, entries known of {len(self.entries):,}"
        return f"{step}: {counts}. Recorded by: python -m moe_lessons sweep {self.name}"

    def __repr__(self) -> str:
        return f"WallRecording({self.name!r})"


class StreamView(Player):
    """Plays how the weights of a mixture leave memory while it writes, beside a dense model whose FFN is `dense_width`
    times as wide as the mixture's active part; `plots.speeds.Stream` says what of it is assumed.

    shape: of the mixture. machine: as of `measure_machine`. weights: of `WEIGHT_BYTES`. batch_size: texts at once."""

    frame, steps = 0.1, 3  # steps of the slower model

    def __init__(
        self, shape: TransformerShape = MODEL_SHAPES["Mixtral 8x7B"], machine: Machine = H100,
        weights: str = "bfloat16", dense_width: float = 3.0, batch_size: int = 1,
    ):  # fmt: skip
        if not isinstance(shape, TransformerShape) or shape.num_experts < 2:
            raise ValueError(f"shape must be a TransformerShape with experts, got {shape!r}")
        if not isinstance(machine, Machine):
            raise ValueError(f"machine must be a Machine, got {machine!r}")
        check_choice("weights", weights, WEIGHT_BYTES)
        self.arguments = shape, machine, weights, check_number("dense_width", dense_width, minimum=1)
        self.models = {"MoE": sizes_of(shape), "dense": sizes_of(shape).dense(dense_width)}
        self.batch = control("batch_size", KNOBS["batch_size"].stops[:11])
        move(self.batch, check_positive_int("batch_size", batch_size))
        super().__init__("Weights leave memory", 25 * self.steps, "Time", "How much time has passed", self.batch)
        self.play()

    def streams(self) -> dict[str, Stream]:
        return {name: Stream(own, *self.arguments[1:3], self.batch.value) for name, own in self.models.items()}

    @property
    def seconds(self) -> float:
        """How much time of the machine has passed."""
        longest = max(stream.step for stream in self.streams().values())
        return self.steps * longest * self.slider.value / self.slider.max

    def panels(self) -> list[Panel]:
        return [stream_panel(self.streams(), self.seconds)]

    def sentence(self) -> str:
        wrote = " and ".join(
            f"{name} wrote {of.wrote(self.seconds):,} (a step reads {1000 * of.reading:.3g} ms, computes "
            f"{1000 * of.computing:.3g} ms)" for name, of in self.streams().items()
        )  # fmt: skip
        return f"Tokens after {1000 * self.seconds:.3g} ms, at best: {wrote}."

    def __repr__(self) -> str:
        return f"StreamView({', '.join(map(repr, self.arguments))}, {self.batch.value})"
