"""The balancing laboratory: one collapse, and the remedies against it trained side by side, each from several seeds."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import ipywidgets as W
import numpy as np

from moe_lessons.analysis.remedies import STRENGTHS, Tile, split_strength, tile_setting
from moe_lessons.bands import SeedBand
from moe_lessons.errors import NonFiniteError, check_choice, is_whole
from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels import PANELS, tile
from moe_lessons.plots.theme import LessonFigure
from moe_lessons.tasks import PLANE_TASKS, PRESETS, REMEDIES, PlaneSetting
from moe_lessons.training import TrainingDiverged
from moe_lessons.widgets.controls import Boxes, check_seed
from moe_lessons.widgets.lab import Lab, names_of

MOST_TILES, MOST_SEEDS = 12, 10
ALONE = "nothing else"
READ_EVERY, READ_EVERY_EARLY, EARLY = 20, 5, 40  # steps: a collapse takes some 25
CURVES = ("dead experts", "variation of load", "accuracy")
COMPARE = (PANELS["curves"], PANELS["balance"])

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


class BalancingLab(Lab):
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

    title, usual_steps = "Balancing laboratory", 600
    START, LOOK = ("task", "seeds", "first_seed", "apply_from"), ("highlight", "curve")
    USUAL = {"seeds": 3, "first_seed": 0, "apply_from": 0} | {
        spec.name: getattr(PRESETS["collapse"], spec.name) for spec in fields(PlaneSetting)
    } | {knob: REMEDIES[remedy][knob] for remedy, knob in STRENGTHS.items()}  # fmt: skip

    def __init__(
        self, remedies: Sequence[str] = tuple(REMEDIES), seeds=3, apply_from=0, *, first_seed=0, play=0,
        max_steps=usual_steps, **settings: Any,
    ):  # fmt: skip
        for name in settings:
            check_choice("setting", name, [spec.name for spec in fields(PlaneSetting)])
        values = self.USUAL | settings | {"seeds": seeds, "first_seed": first_seed, "apply_from": apply_from}
        values |= {"remedies": remedies, "highlight": "auxiliary loss", "curve": CURVES[0]}
        self.tiles: dict[str, Tile] = {}
        super().__init__(values, COMPARE, play=play, max_steps=max_steps, columns=None)

    # --- the specification ---

    def stops(self, name: str) -> Any:
        """See `Lab`."""
        names = {"task": PLANE_TASKS, "highlight": self.values["remedies"], "curve": CURVES}
        return names.get(name) or super().stops(name)

    def check(self, values: dict[str, Any], given=()) -> dict[str, Any]:
        """See `Lab`."""
        check_seed(values["first_seed"], "first_seed")
        for name, low, high in (("seeds", 1, MOST_SEEDS), ("apply_from", 0, 10**6)):
            if not is_whole(values[name], low, high):
                raise ValueError(f"{name} must be a whole number from {low} to {high}, got {values[name]!r}")
        names = names_of(values["remedies"], "remedies")
        if not 1 <= len(names) <= MOST_TILES:
            raise ValueError(f"remedies must be 1 to {MOST_TILES} tiles, got {len(names)}")
        check_choice("curve", values["curve"], CURVES)
        if "highlight" in given:
            check_choice("highlight", values["highlight"], names)
        values = super().check(values | {"remedies": names}, given)
        self._settings(values)  # refuses what cannot be
        return values | {"highlight": values["highlight"] if values["highlight"] in names else names[-1]}

    def _settings(self, values: dict[str, Any]) -> tuple[PlaneSetting, dict[str, PlaneSetting]]:
        """The settings of the plain collapse and of each tile."""
        of_remedies = set(STRENGTHS.values())
        base = {n.name: values[n.name] for n in fields(PlaneSetting) if n.name not in of_remedies}
        base = replace(PRESETS["collapse"], **base)
        return base, {name: tile_setting(name, base, values) for name in values["remedies"]}

    def make_runs(self, values: dict[str, Any]) -> dict[str, SeedBand]:
        """See `Lab`: all tiles share a trunk, the plain collapse, until they branch off."""
        base, settings = self._settings(values)
        first = values["first_seed"]
        self._trunk = Tile(base, SeedBand(base, range(first, first + values["seeds"])))
        self._trunk.read()
        self.tiles = {}
        return self._change_tiles(base, settings)

    def begin(self, values: dict[str, Any]) -> None:
        """See `Lab`."""
        self.runs = self.make_runs(values)

    def turn(self, values: dict[str, Any], before: dict[str, Any]) -> None:
        """See `Lab`: other strengths, other tiles."""
        self.runs = self._change_tiles(*self._settings(values))

    def looked(self, before: dict[str, Any]) -> None:
        """See `Lab`. A tile that was added to trained ones trains by itself up to where they are."""
        self._place_panels()
        if self.behind > 1 and not self.loop.playing:
            self.play(self.behind)

    def _place_panels(self) -> None:
        """Two panels that compare, over a panel for each tile."""
        if [getattr(panel, "keywords", {}).get("name") for panel in self.panels[2:]] != list(self.tiles):
            self.panels = [*COMPARE, *(partial(tile, name=name) for name in self.tiles)]
            self._kept.clear()  # what was kept of panels that are gone

    def _change_tiles(self, base: PlaneSetting, settings: dict[str, PlaneSetting]) -> dict[str, SeedBand]:
        """Turn the knobs of the tiles that stay, add new ones: they show the collapse until they branch off."""
        new_rate = base.lr != self._trunk.setting.lr
        self._trunk.setting, self._trunk.band.knobs.lr = base, base.lr
        if new_rate and self._trunk.step > 0:
            self._trunk.marks.append(self._trunk.step)
        kept = {name: tile for name, tile in self.tiles.items() if name in settings}
        for name, setting in settings.items():
            if name not in kept:
                kept[name] = Tile(setting, self._trunk.band, self._trunk.marks, self._trunk.readings)
                kept[name].clean = self._trunk.clean
            elif setting != kept[name].setting:
                self._turn_tile(kept[name], setting)
        self.tiles = {name: kept[name] for name in settings}
        return {name: tile.band for name, tile in self.tiles.items()}

    def _turn_tile(self, tile: Tile, setting: PlaneSetting) -> None:
        tile.setting = setting
        if tile.band is not self._trunk.band:  # it has branched off
            tile.band.knobs.take(setting)
            tile.turned = True
            if tile.step not in (0, *tile.marks[-1:]):
                tile.marks.append(tile.step)

    def written(self) -> tuple[list[str], dict[str, Any]]:
        """See `Lab`."""
        names = tuple(self.tiles)
        return [repr(names)] if names != tuple(REMEDIES) else [], self.values

    def close(self) -> None:
        """See `LiveRun`."""
        super().close()
        self.tiles, self._trunk = {}, None

    # --- training ---

    @property
    def step(self) -> int:
        """How many steps every tile has been trained."""
        return min(tile.step for tile in self.tiles.values())

    @property
    def behind(self) -> int:
        """How many steps the last tile is behind the first."""
        return max(tile.step for tile in self.tiles.values()) - self.step

    def train_one(self) -> None:
        """Train the tile that is furthest behind by one step: a round of all, in pieces between which a slider counts,
        and the way in which a tile that is added later catches up."""
        name = min(self.tiles, key=lambda name: self.tiles[name].step)
        tile = self.tiles[name]
        before = tile.band, tile.readings, tile.marks
        if tile.band is self._trunk.band and tile.step >= self.values["apply_from"]:  # its remedy starts
            tile.band = self.runs[name] = self._trunk.band.branch(tile.setting)
            tile.readings, tile.marks = list(tile.readings), [*tile.marks, *[tile.step] * (tile.step > 0)]
        try:
            tile.band.step()
            if tile.step % (READ_EVERY_EARLY if tile.step < EARLY else READ_EVERY) == 0:
                tile.read()
        except (TrainingDiverged, NonFiniteError) as error:
            tile.band, tile.readings, tile.marks = before  # a branch has no update yet that it could take back
            self.runs[name] = tile.band
            self.go_back()  # all of them: the others are about to diverge too
            if isinstance(error, TrainingDiverged):
                raise
            raise TrainingDiverged(f"{error}; the last step is taken back: lower the learning rate to go on") from None

    def go_back(self) -> None:
        """See `LiveRun`."""
        super().go_back()
        for each in self.tiles.values():
            each.turned = True

    def step_button(self, steps: int) -> None:
        """The buttons train while the picture moves: 50 rounds of all tiles take seconds."""
        if not self.running:
            self.play(steps)

    def stamp(self) -> tuple:
        """See `LiveRun`."""
        return self.values, [tile.step for tile in self.tiles.values()]

    def _refresh(self) -> None:
        """A picture that stays shows new readings; one in motion those of the last 20 steps."""
        if not self.loop.playing:
            for tile in self.tiles.values():
                tile.read()
        self._place_panels()

    def _due(self, asked: bool) -> dict[int, Panel]:
        """See `LiveRun`."""
        self._refresh()
        return super()._due(asked)

    def picture(self, theme: str = "light") -> LessonFigure:
        """See `LiveRun`."""
        self._refresh()
        return super().picture(theme)

    # --- what is seen ---

    selected = property(lambda self: self.values["highlight"], doc="The name of the tile that is read below.")
    curve = property(lambda self: self.values["curve"], doc="What the first panel shows over the steps.")
    num_experts = property(lambda self: self.values["num_experts"], doc="E, of each tile.")
    seeds = property(lambda self: self.values["seeds"], doc="How many runs each tile trains.")

    def caption(self, tile: Tile) -> str:
        """The lines under a tile."""
        reading = tile.readings[-1]
        lines = [f"{_dead(reading.dead)} dead · {reading.accuracy.mean():.0%} accuracy"]
        if tile.step > 0:
            second = [f"with noise: {tile.recent('dead_experts'):.1f} dead"] if tile.is_noisy else []
            dropped, unserved = tile.recent("dropped_share"), tile.recent("unserved")
            second += [f"dropped {dropped:.0%}"] if dropped > 0 else []
            second += [f"no expert: {unserved:.0%} of tokens"] if unserved > 0 and not dropped else []
            lines.append(" · ".join(second))
        return "\n".join(lines)

    def words(self) -> str:
        """Who has no dead expert, who has most, and who is most accurate."""
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
            words += f"Most dead: {worst} ({last[worst].dead.mean():.1f} of {self.num_experts}). "
        words += f"Highest accuracy: {best} ({last[best].accuracy.mean():.1%})."
        return words + (f" A new tile catches up: {self.behind} steps to go." if self.behind > 1 else "")

    def reading(self) -> str:
        """The selected tile: what it is, and its numbers."""
        tile, reading = self.tiles[self.selected], self.tiles[self.selected].readings[-1]
        what = "; ".join(_what(part, tile.setting) for part in self.selected.split(" + "))
        dead = f"{_dead(reading.dead)} of {self.num_experts} experts dead"
        if tile.is_noisy and tile.step > 0:
            dead += f" without noise (the strip), {tile.recent('dead_experts'):.1f} with it (the film)"
        numbers = [dead, f"variation of the load {_range(reading.variation, '{:.2f}')}"]
        numbers += [f"accuracy {_range(100 * reading.accuracy, '{:.1f}')} %"]
        if tile.step and tile.recent("dropped_share") > 0:
            numbers.append(f"{tile.recent('dropped_share'):.0%} of the assignments dropped")
        if tile.step and tile.recent("unserved") > 0:
            numbers.append(f"{tile.recent('unserved'):.0%} of the tokens without an expert")
        return f"{self.selected}: {what}. Now: {', '.join(numbers)}."

    def picked(self, kind: str, index: int) -> None:
        """Select the tile that was clicked."""
        if kind == "model" and index < len(self.tiles):
            self._apply(self.check(self.values | {"highlight": list(self.tiles)[index]}), ())

    # --- tiles by hand ---

    def extra_rows(self) -> list[W.Widget]:
        """Which tiles there are, and a way to make more."""

        def what(name: str) -> str:
            return "; ".join(WHAT[split_strength(part)[0]] for part in name.split(" + "))

        self.inputs["remedies"] = Boxes("remedies", [*dict.fromkeys((*REMEDIES, *self.tiles))], what)
        single = tuple(name for name in REMEDIES if name != "nothing")
        self._first = W.Dropdown(options=single, description="Add", tooltip="A tile with this remedy …")
        tip = "… and this one; or alone, as strong as its slider says now"
        self._second = W.Dropdown(options=(ALONE, *single), description="and", tooltip=tip)
        for widget in (self._first, self._second):
            widget.style.description_width, widget.layout.width = "30px", "180px"
        self._first.value, self._second.value = "auxiliary loss", "capacity"
        add = W.Button(description="Add tile", tooltip="Train it up to where the others are", icon="plus")
        add.on_click(lambda _: self.post(self._add))
        return [self.inputs["remedies"], W.Box([self._first, self._second, add]).add_class("moe-bar")]

    def _add(self) -> None:
        """Add the tile that the two lists name."""
        first, second = self._first.value, self._second.value
        name = f"{first} + {second}"
        if second == ALONE:
            strength = self.values[STRENGTHS[first]] if first in STRENGTHS else None
            name = f"{first} {strength:g}" if strength is not None else first
        self.loop.trouble = ""
        self._apply(self.check(self.values | {"remedies": (*self.tiles, name)}), ())


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
