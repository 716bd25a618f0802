"""The collapse laboratory: one collapse, and the remedies against it trained side by side, each from several seeds."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import ipywidgets as W
import numpy as np

from moe_lessons.bands import SeedBand
from moe_lessons.errors import check_choice
from moe_lessons.plots import BalanceQuality, LiveFigure, RemedyCurves, RemedyTile, Row, Theme, running_mean
from moe_lessons.tasks import PLANE_TASKS, PRESETS, REMEDIES, PlaneSetting, remedy_setting
from moe_lessons.training import DEAD_SHARE, TrainingDiverged
from moe_lessons.widgets.controls import KNOBS, MOST_SEED, choice, heading, in_columns, knob_slider, move, seed_box
from moe_lessons.widgets.figure_image import static_mode
from moe_lessons.widgets.live import LiveRun
from moe_lessons.widgets.panels import RECENT, LivePanel, sample

MOST_TILES, MOST_SEEDS = 12, 10
ALONE = "nothing else"
OFF = {"capacity_factor": None}  # what its slider calls 0
NUM_POINTS = 512  # held out, for each seed: what a reading is taken on
READ_EVERY, READ_EVERY_EARLY, EARLY = 20, 5, 40  # steps: a collapse takes some 25

# the remedies with a strength to turn, and the field of a `PlaneSetting` that it is
STRENGTHS = {
    "auxiliary loss": "router_aux_loss_coef",
    "Gaussian noise": "noise_std",
    "jitter": "jitter_noise",
    "capacity": "capacity_factor",
    "z-loss": "router_z_loss_coef",
    "bias update": "expert_bias_rate",
}
WHAT = {
    "nothing": "the collapse as it is",
    "Gaussian noise": "normal noise on the router's logits, in training only",
    "learned noise": "noise whose size the router learns for each token and expert, in training only",
    "jitter": "the router's input is scaled up and down at random, in training only",
    "top-2": "two experts work for each token instead of one",
    "capacity": "each expert has a limited number of places; what is over it is dropped",
    "auxiliary loss": "a loss that is lowest where the load is even is added to what is minimised",
    "z-loss": "a loss that keeps the router's logits small is added to what is minimised",
    "bias update": "sigmoid scores, and for each expert a bias that selects: up where it had too little, else down",
    "expert choice": "each expert takes its best tokens, and all take as many",
}
CURVES = {  # name -> title, the most there can be with E experts, what of a Reading
    "dead experts": ("Dead experts", lambda num_experts: num_experts, "dead"),
    "variation of load": ("Variation of the load", lambda num_experts: max(num_experts - 1, 1) ** 0.5, "variation"),
    "accuracy": ("Accuracy", lambda num_experts: 1, "accuracy"),
}


class Reading(NamedTuple):
    """What a band shows at a step on held-out points, without noise: a value for each seed (S,)."""

    step: int
    dead: np.ndarray
    variation: np.ndarray  # of the load: standard deviation over mean
    accuracy: np.ndarray


@dataclass
class Tile:
    """A remedy, or several together, and the band that trains with it."""

    setting: PlaneSetting
    band: SeedBand
    marks: list[int] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    turned: bool = False  # whether a knob was turned since the last reading
    clean: np.ndarray | None = None  # (S, E) load shares of the last reading

    @property
    def step(self) -> int:
        return len(self.band.records)

    @property
    def is_noisy(self) -> bool:
        """Whether the router's decisions are disturbed in training."""
        return self.setting.router == "learned noise" or self.setting.noise_std > 0 or self.setting.jitter_noise > 0

    def read(self) -> None:
        """Take a reading, unless the last one still holds."""
        if self.readings and self.readings[-1].step == self.step:
            if not self.turned:
                return
            self.readings.pop()
        self.turned = False
        self.clean = self.band.clean_loads(NUM_POINTS)
        dead = (self.clean * self.setting.top_k < DEAD_SHARE).sum(axis=1)
        variation = self.clean.std(axis=1) * self.clean.shape[1]
        self.readings.append(Reading(self.step, dead, variation, self.band.evaluate(NUM_POINTS)["accuracies"]))

    def recent(self, name: str) -> float:
        """The mean over the last steps and all seeds of something in the band's records."""
        return float(np.mean([getattr(record, name) for record in self.band.records[-RECENT:]]))


def tile_setting(name: str, base: PlaneSetting, values: dict[str, Any]) -> PlaneSetting:
    """What a tile trains with: its remedies on `base`, as strong as `values` say. ValueError if they clash.

    name: of a remedy, or several joined by ' + '. One may bring a strength of its own: 'auxiliary loss 0.3'.
    """
    remedies, own = [], {}
    for part in name.split(" + "):
        remedy, strength = split_strength(part)
        remedies.append(check_choice("remedy", remedy, REMEDIES))
        if remedy in STRENGTHS:
            knob = STRENGTHS[remedy]
            own[knob] = (values[knob] if strength is None else strength) or OFF.get(knob, 0.0)
    if len(set(remedies)) < len(remedies) or ("nothing" in remedies and len(remedies) > 1):
        raise ValueError(f"remedies in one tile must be different ones, got {name!r}")
    try:
        remedy_setting(*remedies)
    except ValueError as error:
        raise ValueError(f"{' and '.join(remedies)} do not go together: {error}") from None
    return remedy_setting(*remedies, base=base, **own)


def split_strength(part: str) -> tuple[str, float | None]:
    """'jitter 0.2' -> ('jitter', 0.2); 'jitter' -> ('jitter', None)."""
    remedy, _, number = part.rpartition(" ")
    try:
        return (remedy, float(number)) if remedy in STRENGTHS else (part, None)
    except ValueError:
        return part, None


class BalancingLab(LiveRun):
    """Trains one collapse with several remedies side by side, live, each from the same seeds and on the same data.

    remedies: the tiles: names of `tasks.REMEDIES`, pairs such as 'auxiliary loss + capacity', or remedies with a
        strength that no slider moves, such as 'auxiliary loss 0.3'.
    seeds: how many runs each tile trains, 1 to 10. first_seed: of them; the films show this one.
    apply_from: the step at which the remedies start; until then all tiles share the plain collapse. 0: prevention.
    settings: fields of `tasks.PlaneSetting`. Those that are the strength of a remedy set it; the others are of the
        collapse itself, `tasks.PRESETS["collapse"]`, such as task="uneven" or num_experts=16.
    play, max_steps: see `LiveRun`.

    >>> BalancingLab(("nothing", "auxiliary loss"), seeds=2, router_aux_loss_coef=1.0)
    BalancingLab(('nothing', 'auxiliary loss'), seeds=2, router_aux_loss_coef=1.0)
    """

    title = "Collapse laboratory"
    can_reset, usual_steps = True, 600

    def __init__(
        self,
        remedies: Sequence[str] = tuple(REMEDIES),
        seeds: int = 3,
        apply_from: int = 0,
        *,
        first_seed: int = 0,
        play: int = 0,
        max_steps: int = usual_steps,
        **settings: Any,
    ):
        known = [field.name for field in fields(PlaneSetting)]
        for name in settings:
            check_choice("setting", name, known)
        given = {"seeds": seeds, "first_seed": first_seed, "apply_from": apply_from}
        given |= {name: settings.pop(name) for name in list(settings) if name in DEFAULTS}
        self._collapse = replace(PRESETS["collapse"], **settings)
        self.values: dict[str, Any] = DEFAULTS | _checked(given)  # what is in force, by the names of the controls
        self.selected, self._curve = "auxiliary loss", "dead experts"
        self._boxes: dict[str, W.Checkbox] = {}
        self._start_afresh(*self._plan(_names(remedies), self.values))
        super().__init__(self.runs, tuple(self._make_panels()), play=play, max_steps=max_steps)

    # --- tiles ----------------------------------------------------------------------------------------------

    def _plan(self, names: Sequence[str], values: dict[str, Any]) -> tuple[PlaneSetting, dict[str, PlaneSetting]]:
        """The settings of the plain collapse and of each tile, or ValueError."""
        names = tuple(dict.fromkeys(names))
        if not 1 <= len(names) <= MOST_TILES:
            raise ValueError(f"remedies must be 1 to {MOST_TILES} tiles, got {len(names)}")
        base = replace(self._collapse, task=values["task"], lr=values["lr"])
        return base, {name: tile_setting(name, base, values) for name in names}

    def _start_afresh(self, base: PlaneSetting, settings: dict[str, PlaneSetting]) -> None:
        first, seeds = self.values["first_seed"], self.values["seeds"]
        self._trunk = Tile(base, SeedBand(base, range(first, first + seeds)))
        self._trunk.read()
        self.tiles: dict[str, Tile] = {}
        self._change_tiles(base, settings)

    def _change_tiles(self, base: PlaneSetting, settings: dict[str, PlaneSetting]) -> None:
        """Turn the knobs of the tiles that stay, add new ones: they show the collapse until they branch off."""
        new_rate = base.lr != self._trunk.setting.lr
        self._trunk.setting, self._trunk.band.knobs.lr = base, base.lr
        if new_rate and self._trunk.step > 0:
            self._trunk.marks.append(self._trunk.step)
        kept = {name: tile for name, tile in self.tiles.items() if name in settings}
        for name, setting in settings.items():
            if name not in kept:
                kept[name] = Tile(setting, self._trunk.band, self._trunk.marks, self._trunk.readings)
            elif setting != kept[name].setting:
                self._turn(kept[name], setting)
        self.tiles = {name: kept[name] for name in settings}
        self.runs = {name: tile.band for name, tile in self.tiles.items()}
        if self.selected not in self.tiles:
            self.selected = list(self.tiles)[-1]

    def _turn(self, tile: Tile, setting: PlaneSetting) -> None:
        tile.setting = setting
        if self._has_branched(tile):
            tile.band.knobs.take(setting)
            tile.turned = True
            if tile.step not in (0, *tile.marks[-1:]):
                tile.marks.append(tile.step)

    def _has_branched(self, tile: Tile) -> bool:
        return tile.band is not self._trunk.band

    def _branch(self, name: str) -> None:
        """Let a tile go its own way: its remedy starts."""
        tile = self.tiles[name]
        tile.band = self.runs[name] = self._trunk.band.branch(tile.setting)
        tile.readings, tile.marks = list(tile.readings), [*tile.marks, *[tile.step] * (tile.step > 0)]

    # --- training -------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """How many steps every tile has been trained."""
        return min(tile.step for tile in self.tiles.values())

    @property
    def behind(self) -> int:
        """How many steps the last tile is behind the first."""
        return max(tile.step for tile in self.tiles.values()) - self.step

    def _step(self) -> None:
        """Train the tile that is furthest behind by one step: a round of all, in pieces between which a slider counts,
        and the way in which a tile that is added later catches up."""
        name = min(self.tiles, key=lambda name: self.tiles[name].step)
        tile = self.tiles[name]
        try:
            if not self._has_branched(tile) and tile.step >= self.values["apply_from"]:
                self._branch(name)
            tile.band.step()
        except TrainingDiverged:
            for run in self.runs.values():  # all of them: the others are about to diverge too
                run.go_back()
            raise
        if tile.step % (READ_EVERY_EARLY if tile.step < EARLY else READ_EVERY) == 0:
            tile.read()

    def _advance_paused(self, steps: int) -> None:
        """The buttons 'Step' and '+50' train while the picture moves: 50 rounds of all tiles take seconds."""
        if not self.running:
            self.play(steps)

    def _catch_up(self) -> None:
        """A tile that was added to trained ones trains by itself up to where they are."""
        if self.behind > 1 and not self._playing:
            self.play(self.behind)

    def look(self) -> None:
        """A picture that stays shows new readings; one in motion those of the last 20 steps."""
        if not self._playing:
            for tile in self.tiles.values():
                tile.read()

    # --- what is seen ---------------------------------------------------------------------------------------

    def _make_panels(self) -> list[LivePanel]:
        names, (title, most, quantity) = tuple(self.tiles), CURVES[self._curve]
        title += f" without noise (mean of {self.values['seeds']})" if self.values["seeds"] > 1 else " without noise"
        top = most(self._collapse.num_experts)
        curves = LivePanel(
            lambda view, ax, theme: RemedyCurves(ax, theme, names, title, top),
            lambda view, panel: panel.update(*view._curves(quantity)),
        )
        scatter = LivePanel(
            lambda view, ax, theme: BalanceQuality(ax, theme, names),
            lambda view, panel: panel.update(*view._balance_and_quality()),
            slow=True,
        )
        return [curves, scatter, *(_tile_panel(name) for name in names)]

    def arrange(self, makers: list[Callable], theme: Theme) -> LiveFigure:
        """Two panels that compare, over a grid of tiles."""
        num, columns = len(self.tiles), 2 if self._narrow else 4
        height = 156 if num > 8 else 180 if num > 4 else 240
        room = min(0.5, (30 + 5.2 * max(map(len, self.tiles))) / (558 if self._narrow else 379))  # for the names
        compare = [Row(1, 250, room=room)] * 2 if self._narrow else [Row(2, 250, gap=0.16, room=room)]
        rows = [*compare, *[Row(columns, height, gap=0.1)] * -(-num // columns)]
        width, lines = 620 if self._narrow else 880, 2 if static_mode() else 0
        return LiveFigure(makers, theme=theme, width=width, caption_lines=lines, rows=rows)

    def figure_depends_on(self) -> tuple:
        """Also the tiles, and what is drawn over the steps."""
        return *super().figure_depends_on(), tuple(self.tiles), self._curve, self.values["seeds"]

    def _curves(self, quantity: str) -> tuple:
        """What `RemedyCurves.update` takes; the dotted line is the reading in training, with noise."""
        curves, second = [], None
        for tile in self.tiles.values():
            steps = [reading.step for reading in tile.readings]
            curves.append((steps, [getattr(reading, quantity) for reading in tile.readings]))
        tile = self.tiles[self.selected]
        if quantity == "dead" and tile.is_noisy and tile.step > 0:
            at = sample(tile.step)
            second = at + 1, running_mean([record.dead_experts for record in tile.band.records], RECENT)[at]
        return curves, list(self.tiles).index(self.selected), second

    def _balance_and_quality(self) -> tuple:
        """What `BalanceQuality.update` takes."""
        last = [tile.readings[-1] for tile in self.tiles.values()]
        variations, accuracies = [reading.variation for reading in last], [reading.accuracy for reading in last]
        return variations, accuracies, list(self.tiles).index(self.selected)

    def caption(self, tile: Tile) -> str:
        """The lines under a tile."""
        reading = tile.readings[-1]
        lines = [f"{_dead(reading.dead)} dead · {reading.accuracy.mean():.0%} right"]
        if tile.step > 0:
            second = [f"with noise: {tile.recent('dead_experts'):.1f} dead"] if tile.is_noisy else []
            dropped, unserved = tile.recent("dropped_share"), tile.recent("unserved")
            second += [f"dropped {dropped:.0%}"] if dropped > 0 else []
            second += [f"no expert: {unserved:.0%} of tokens"] if unserved > 0 and not dropped else []
            lines.append(" · ".join(second))
        return "\n".join(lines)

    def words(self) -> str:
        """Who has no dead expert, who has most, and who is most often right."""
        if self.step == 0 and not self.behind:
            return "The same weights and data in all tiles. Press Play to see what becomes of them."
        if self.step < self.values["apply_from"]:
            return f"The plain collapse; the remedies start at step {self.values['apply_from']}."
        last = {name: tile.readings[-1] for name, tile in self.tiles.items()}
        none = [name for name, reading in last.items() if not reading.dead.any()]
        worst = max(last, key=lambda name: last[name].dead.mean())
        best = max(last, key=lambda name: last[name].accuracy.mean())
        words = f"No dead expert: {_listed(none)}. "
        if len(none) in (0, len(last)):
            words = "No dead expert in any tile. " if none else "Dead experts in every tile. "
        if worst not in none:
            words += f"Most dead: {worst} ({last[worst].dead.mean():.1f} of {self._collapse.num_experts}). "
        words += f"Most often right: {best} ({last[best].accuracy.mean():.1%})."
        return words + (f" A new tile catches up: {self.behind} steps to go." if self.behind > 1 else "")

    def reading(self) -> str:
        """The selected tile: what it is, and its numbers."""
        tile, reading = self.tiles[self.selected], self.tiles[self.selected].readings[-1]
        what = "; ".join(_what(part, tile.setting) for part in self.selected.split(" + "))
        dead = f"{_dead(reading.dead)} of {self._collapse.num_experts} experts dead"
        if tile.is_noisy and tile.step > 0:
            dead += f" without noise (the strip), {tile.recent('dead_experts'):.1f} with it (the film)"
        numbers = [dead, f"variation of the load {_range(reading.variation, '{:.2f}')}"]
        numbers += [f"right {_range(100 * reading.accuracy, '{:.1f}')} %"]
        if tile.step and tile.recent("dropped_share") > 0:
            numbers.append(f"{tile.recent('dropped_share'):.0%} of the assignments dropped")
        if tile.step and tile.recent("unserved") > 0:
            numbers.append(f"{tile.recent('unserved'):.0%} of the tokens without an expert")
        return f"<b>{self.selected}</b>: {what}. Now: {', '.join(numbers)}."

    def clicked(self, x: float, y: float) -> None:
        """Select the tile under the mouse, or that of the nearest mark."""
        place = self._figure.panel_at(x, y)
        if place is None or place[0] == 0:
            return
        panel, *at = place
        nearest = panel - 2
        if panel == 1:
            variations, accuracies, _ = self._balance_and_quality()
            to_pixels = self._figure.panels[1].ax.transData.transform
            points = to_pixels(np.column_stack([np.mean(variations, axis=1), np.mean(accuracies, axis=1)]))
            nearest = np.square(points - to_pixels(at)).sum(axis=1).argmin()
        self._highlight.value = list(self.tiles)[nearest]

    # --- controls -------------------------------------------------------------------------------------------

    def extra_rows(self) -> list[W.Widget]:
        """Which tiles there are, and a way to make more."""
        self._box_bar = W.Box()
        self._box_bar.add_class("moe-bar")
        for name in dict.fromkeys([*REMEDIES, *self.tiles]):
            self._add_box(name, name in self.tiles)
        single = tuple(name for name in REMEDIES if name != "nothing")
        self._first = choice("Add", single, "A tile with this remedy …")
        self._second = choice("and", (ALONE, *single), "… and this one; or alone, as strong as its slider says now")
        for widget in (self._first, self._second):
            widget.style.description_width, widget.layout.width = "30px", "180px"
        self._first.value, self._second.value = "auxiliary loss", "capacity"
        add = W.Button(description="Add tile", tooltip="Train it up to where the others are", icon="plus")
        add.on_click(lambda _: self.post(self._add))
        row = W.Box([self._first, self._second, add])
        row.add_class("moe-bar")
        return [self._box_bar, row]

    def _add_box(self, name: str, ticked: bool) -> None:
        what = "; ".join(WHAT[split_strength(part)[0]] for part in name.split(" + "))
        box = W.Checkbox(ticked, description=name, tooltip=f"Show the tile: {what}", indent=False)
        box.layout.width = "auto"
        box.observe(lambda change: self.mark("tiles"), "value")
        self._boxes[name] = box
        self._box_bar.children = (W.HTML("Tiles:"), *self._boxes.values())

    def controls(self) -> list[W.Widget]:
        """What starts afresh, the strengths, and what to look at."""
        start = {
            "task": choice("Task", PLANE_TASKS, "What is learned: which points belong to which class"),
            "seeds": W.IntSlider(
                min=1, max=MOST_SEEDS, description="Seeds", tooltip="How many runs each tile trains, for the spread"
            ),
            "first_seed": seed_box("Of these runs; the films show this one", "First seed"),
            "apply_from": W.IntSlider(
                min=0,
                max=300,
                step=10,
                description="Remedy from",
                tooltip="The step at which the remedies start. 0: they prevent the collapse; later: they must cure it",
            ),
        }
        live = {name: knob_slider(name) for name in KNOBS}
        self._inputs: dict[str, W.Widget] = start | live
        self._show_values()
        for name, widget in self._inputs.items():
            widget.observe(lambda change, name=name: self.mark(name), "value")
        self._highlight = choice("Highlight", tuple(self.tiles), "The tile that is read below; or click on it")
        self._highlight.value = self.selected
        self._highlight.observe(lambda change: self.mark("highlight"), "value")
        self._curve_choice = choice("Curves of", tuple(CURVES), "What the panel at the top left shows over the steps")
        self._curve_choice.observe(lambda change: self.mark("curve"), "value")
        look = [self._highlight, self._curve_choice]
        in_columns([*self._inputs.values(), *look])
        return [
            heading("Structure · starts afresh"), *start.values(),
            heading("Strength · applies to the next step"), *live.values(),
            heading("Look · changes nothing"), *look,
        ]  # fmt: skip

    def _show_values(self) -> None:
        """Have the controls show what is in force."""
        for name, widget in self._inputs.items():
            move(widget, self.values[name])
        for name, box in self._boxes.items():
            box.value = name in self.tiles

    def _add(self) -> None:
        """Add the tile that the two lists name."""
        first, second = self._first.value, self._second.value
        name = f"{first} + {second}"
        if second == ALONE:
            name = f"{first} {self.values[STRENGTHS[first]]:g}" if first in STRENGTHS else first
        self._trouble = ""
        self._tick([*self.tiles, name])

    def _tick(self, names: Sequence[str]) -> None:
        """Tick the boxes of these tiles alone, and make those that are not there yet."""
        self._plan(names, self.values)  # refuses what cannot be
        for name in names:
            if name not in self._boxes:
                self._add_box(name, False)
                self._front_end.tips = self._front_end.tips | {name: self._boxes[name].tooltip}
        for name, box in self._boxes.items():
            box.value = name in names
        self._changed.add("tiles")

    # --- applying them --------------------------------------------------------------------------------------

    def set(self, remedies: Sequence[str] | None = None, **values: Any) -> None:
        """Move controls, as if by hand: what the constructor takes and has a control. A bad value moves none."""
        for name in values:
            check_choice("setting", name, self._inputs)
        names = tuple(self.tiles) if remedies is None else _names(remedies)
        values = self.values | _checked(values)
        self._plan(names, values)  # refuses what cannot be
        with self.moving_controls():
            for name, widget in self._inputs.items():
                move(widget, values[name])
            self._tick(names)
        self._catch_up()

    def apply(self, changed: Collection[str]) -> None:
        """Apply the controls that have moved; what is refused changes nothing, and moves the controls back."""
        values = {name: widget.value for name, widget in self._inputs.items()}
        names = [name for name, box in self._boxes.items() if box.value] if "tiles" in changed else list(self.tiles)
        afresh = "afresh" in changed or any(values[name] != self.values[name] for name in START)
        try:
            base, settings = self._plan(names, values)
        except ValueError:
            self._show_values()
            raise
        if afresh or values != self.values or list(settings) != list(self.tiles):
            self._trouble = ""  # what was refused before is no longer asked for
        self.values = values
        if afresh:
            self._start_afresh(base, settings)
            self.restart_budget()
        else:
            self._change_tiles(base, settings)
        self._choose(self._highlight.value)
        self._curve = self._curve_choice.value
        self.panels = self._make_panels()
        self.rebuild_figure()
        self.want_text()  # another tile may be selected
        if self._loop is not None and not static_mode():
            self._catch_up()

    def _choose(self, name: str) -> None:
        self.selected = name if name in self.tiles else self.selected
        if self._highlight.options != tuple(self.tiles):
            self._highlight.options = tuple(self.tiles)
        self._highlight.value = self.selected

    def __repr__(self) -> str:
        arguments = [repr(tuple(self.tiles))] if tuple(self.tiles) != tuple(REMEDIES) else []
        changed = {name: self.values[name] for name in DEFAULTS if self.values[name] != DEFAULTS[name]}
        values = [f"{name}={value or OFF.get(name, value)!r}" for name, value in changed.items()]
        others = []
        for spec in fields(PlaneSetting):
            value = getattr(self._collapse, spec.name)
            if spec.name not in DEFAULTS and value != getattr(PRESETS["collapse"], spec.name):
                others.append(f"{spec.name}={value!r}")
        return f"BalancingLab({', '.join([*arguments, *self._arguments, *values, *others])})"


# what the controls stand at; the strengths are those of `REMEDIES`
START = ("task", "seeds", "first_seed", "apply_from")  # these start afresh
DEFAULTS: dict[str, Any] = {"seeds": 3, "first_seed": 0, "apply_from": 0}
DEFAULTS |= {name: getattr(PRESETS["collapse"], name) for name in ("task", "lr")}
DEFAULTS |= {knob: REMEDIES[remedy][knob] for remedy, knob in STRENGTHS.items()}


def _names(remedies: str | Sequence[str]) -> tuple[str, ...]:
    """The names of tiles as they were given: one, or several."""
    names = (remedies,) if isinstance(remedies, str) or not isinstance(remedies, Iterable) else tuple(remedies)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"remedies must be names such as 'top-2', got {remedies!r}")
    return names


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Values of controls as they were given, each refused if it is out of range."""
    for name, lowest, highest in (("seeds", 1, MOST_SEEDS), ("first_seed", 0, MOST_SEED), ("apply_from", 0, 10**6)):
        value = values.get(name, lowest)
        if isinstance(value, bool) or value not in range(lowest, highest + 1):
            raise ValueError(f"{name} must be a whole number from {lowest} to {highest}, got {value!r}")
    for remedy, knob in STRENGTHS.items():
        if knob in values:
            remedy_setting(remedy, **{knob: values[knob]})  # refuses a bad value
    return values | ({"capacity_factor": values["capacity_factor"] or 0.0} if "capacity_factor" in values else {})


def _tile_panel(name: str) -> LivePanel:
    def refresh(view: BalancingLab, panel: RemedyTile) -> None:
        tile = view.tiles[name]
        at, clean = sample(tile.step), tile.clean[0] if tile.is_noisy and tile.clean is not None else None
        loads = [tile.band.records[i].load[0] for i in at]
        panel.update(at + 1, loads, tile.marks, view.caption(tile), clean, name == view.selected)

    return LivePanel(lambda view, ax, theme: RemedyTile(ax, theme, name, view._collapse.num_experts), refresh)


def _what(part: str, setting: PlaneSetting) -> str:
    """A remedy in words, with its strength."""
    remedy, _ = split_strength(part)
    if remedy not in STRENGTHS:
        return WHAT[remedy]
    strength = getattr(setting, STRENGTHS[remedy])
    return f"{WHAT[remedy]} ({f'{strength:g}' if strength else 'off'})"


def _range(values: np.ndarray, form: str) -> str:
    """The mean of the seeds and, where they differ, the lowest and the highest."""
    mean, low, high = (form.format(value) for value in (values.mean(), values.min(), values.max()))
    return mean if low == high else f"{mean} ({low}–{high})"


def _dead(counts: np.ndarray) -> str:
    """The same for whole numbers."""
    return str(counts[0]) if counts.min() == counts.max() else f"{counts.mean():.1f} ({counts.min()}–{counts.max()})"


def _listed(names: Sequence[str], most: int = 5) -> str:
    """The names, or the first of many."""
    more = len(names) - most
    return ", ".join([*names[:most], *[f"{more} more"] * (more > 0)])
