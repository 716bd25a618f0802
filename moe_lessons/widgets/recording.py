"""A recording of a long run, played frame by frame: nothing trains."""

from dataclasses import replace

import ipywidgets as W
import numpy as np

from moe_lessons.analysis.results import load_recording
from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels.quality import known_panel, wall_panel
from moe_lessons.plots.theme import model_inks
from moe_lessons.tasks import Facts
from moe_lessons.widgets.loop import event_loop, on_the_loop
from moe_lessons.widgets.picture import Picture

FRAME = 0.2  # seconds


class WallRecording(Picture):
    """Plays which facts the models of a stored sweep knew, from its first measurement to its last.

    name: of a sweep that was recorded. A lamp is an entry of the book, as in `FactsLab`.

    >>> WallRecording()
    WallRecording('book_8000_6000')
    """

    def __init__(self, name: str = "book_8000_6000"):
        self.name, self.recording = name, load_recording(name)
        run, (first, *_) = self.recording.run, self.recording.known.values()
        self.entries = Facts(len(first[0]), run["seed"]).entries
        last = len(first) - 1
        self.events, self.timer = event_loop(), None
        self.button = W.Button(description="Play", icon="play", button_style="primary", tooltip="Play or stop")
        self.button.on_click(lambda _: on_the_loop(self.events, self.play))
        self.slider = W.IntSlider(last, 0, last, description="Measurement", tooltip="Each is of a later step")
        self.slider.observe(lambda _: self.show(), "value")
        title = f"A recording: seed {run['seed']}, made on {run['date']} ({run['cpu']})"
        bar = [W.HTML(f'<span class="moe-title">{title}</span>'), self.button, self.slider]
        super().__init__(rows=[W.Box(bar).add_class("moe-bar")])

    def play(self) -> None:
        """Play it from its first measurement on, or stop where it plays; without an event loop it does not move."""
        self._show(None if self.timer or not self.events else 0)

    def _show(self, place: int | None) -> None:
        """Show a measurement, and soon the next one. None: no more."""
        if self.timer:
            self.timer.cancel()
        self.timer = None
        if place is not None:
            self.slider.value = place
            if place < self.slider.max:
                self.timer = self.events.call_later(FRAME, self._show, place + 1)
        self.button.description, self.button.icon = ("Stop", "stop") if self.timer else ("Play", "play")

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
