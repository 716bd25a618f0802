"""What is stored, played frame by frame: a long run, and the layers of real models. Nothing trains."""

from collections.abc import Mapping
from dataclasses import replace

import ipywidgets as W
import numpy as np
import pandas as pd

from moe_lessons.analysis.results import load_recording
from moe_lessons.plots.marks import Axis, Cells, Panel, experts_axis
from moe_lessons.plots.panels.quality import known_panel, wall_panel
from moe_lessons.plots.theme import model_inks
from moe_lessons.tasks import Facts
from moe_lessons.widgets.loop import event_loop, on_the_loop
from moe_lessons.widgets.picture import Picture


class Player(Picture):
    """Panels of what is stored, with a slider over it and a button that plays it. A subclass says `panels`, `sentence`
    and how long a frame is, in seconds."""

    FRAME = 0.2

    def __init__(self, title: str, slider: W.Widget, last: int):
        self.slider, self.last, self.events, self.timer = slider, last, event_loop(), None
        self.button = W.Button(description="Play", icon="play", button_style="primary", tooltip="Play or stop")
        self.button.on_click(lambda _: on_the_loop(self.events, self.play))
        self.slider.observe(lambda _: self.show(), "value")
        bar = [W.HTML(f'<span class="moe-title">{title}</span>'), self.button, self.slider]
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
            if place < self.last:
                self.timer = self.events.call_later(self.FRAME, self._show, place + 1)
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
        last = len(first) - 1
        slider = W.IntSlider(last, 0, last, description="Measurement", tooltip="Each is of a later step")
        super().__init__(f"A recording: seed {run['seed']}, made on {run['date']} ({run['cpu']})", slider, last)

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


class RoutersView(Player):
    """Shows who serves which domain, in times the even share, and plays the layers.

    counts: model -> layer -> a table with a row for each domain and a column for each expert, as of
        `analysis.real_routing`; all models with as many layers.

    >>> RoutersView({"mine": {0: pd.DataFrame([[10, 0], [5, 5]], ["code", "json"])}})
    RoutersView of mine
    """

    FRAME = 1.5

    def __init__(self, counts: Mapping[str, Mapping[int, pd.DataFrame]]):
        layers = [tuple(own) for own in counts.values()]
        if not layers or not layers[0] or any(own != layers[0] for own in layers):
            raise ValueError(f"counts must have a table for each of the same layers of each model, got {layers}")
        self.counts, self.layers = counts, layers[0]
        options = [(str(layer), place) for place, layer in enumerate(self.layers)]
        slider = W.SelectionSlider(options=options, value=len(options) - 1, description="Layer")
        super().__init__("Who serves which text, in times the even share", slider, len(options) - 1)

    def shares(self) -> dict[str, pd.DataFrame]:
        """Give the shares of each row over the even one, 1 / E, in the layer that is shown."""
        tables = {name: own[self.layers[self.slider.value]] for name, own in self.counts.items()}
        return {name: own.div(own.sum(axis="columns"), axis=0) * own.shape[1] for name, own in tables.items()}

    def panels(self) -> list[Panel]:
        shares, made = self.shares(), []
        for name, own in shares.items():
            y = Axis(len(own) - 0.5, -0.5, ticks=list(enumerate(map(str, own.index))))
            cells = Cells(own.to_numpy("f4"), even=1.0, most=4.0, rows="group")
            is_largest = own.shape[1] > min(other.shape[1] for other in shares.values())
            title = f"{name}, layer {self.layers[self.slider.value]}"
            made.append(Panel(title, [cells], experts_axis(own.shape[1]), y, width=7 if is_largest else 5))
        return made

    def sentence(self) -> str:
        shares = self.shares()
        most = {name: own.stack().idxmax() for name, own in shares.items()}
        said = [f"{name}: E{e}, {shares[name].loc[d, e]:.1f} times for {d}" for name, (d, e) in most.items()]
        return f"Farthest above the even share: {'; '.join(said)}."

    def __repr__(self) -> str:
        return f"RoutersView of {', '.join(self.counts)}"
