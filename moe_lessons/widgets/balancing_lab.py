"""The balancing laboratory: one collapse, and balancing methods trained side by side, each from several seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache, partial
from typing import Any

import ipywidgets as W
import numpy as np

from moe_lessons.analysis.collapse import STRENGTHS, Tile, split_strength, tile_setting
from moe_lessons.plots.marks import Panel
from moe_lessons.plots.panels import PANELS
from moe_lessons.plots.panels.shares import tile as panel_of_tile
from moe_lessons.plots.theme import percent
from moe_lessons.support.errors import check_whole
from moe_lessons.support.interrupts import held_back
from moe_lessons.tasks import PLANE_TASKS
from moe_lessons.training import BALANCING_METHODS, PRESETS, PlaneSetting, SeedBand, TrainingDiverged
from moe_lessons.training.knobs import KNOBS
from moe_lessons.widgets.controls import TIPS, CheckBoxes
from moe_lessons.widgets.laboratory import Lab, names_of
from moe_lessons.widgets.spec import Spec

MOST_TILES, MOST_SEEDS = 12, 10
ALONE = "nothing else"
READ_EVERY, READ_EVERY_EARLY = 20, 5  # steps
EARLY = 40  # steps: a collapse takes some 25
SETTING_FIELDS = tuple(field.name for field in fields(PlaneSetting))
SETTINGS = {name: getattr(PRESETS["collapse"], name) for name in SETTING_FIELDS}
SETTINGS |= {knob: BALANCING_METHODS[method][knob] for method, knob in STRENGTHS.items()}
BALANCING_LAB = Spec(
    title="Balancing laboratory",
    settings=SETTINGS,
    structural=("task", "seeds", "first_seed", "apply_from"),
    live=tuple(KNOBS),
    display=("highlight",),
    stops={"task": tuple(PLANE_TASKS)},
    clicks=("model", "highlight"),
)


class BalancingLab(Lab):
    """Train one collapse with several balancing methods side by side, live, each with the same seeds and data.

    methods: names of `training.BALANCING_METHODS`, pairs such as 'auxiliary loss + capacity', or methods with a
        strength that no slider moves, such as 'auxiliary loss 0.3'.
    seeds: how many runs each tile trains, 1 to 10. first_seed: of them; the films show this one.
    apply_from: the step at which the methods start; until then all tiles share the plain collapse.
    settings: fields of `training.PlaneSetting`: strengths of methods, or of the collapse, such as task="uneven".
    play, max_steps: see `LiveRun`. device: see `Playground`.

    >>> BalancingLab(("no balancing", "auxiliary loss"), seeds=2, router_aux_loss_coef=0.3)
    BalancingLab(('no balancing', 'auxiliary loss'), seeds=2, router_aux_loss_coef=0.3)
    """

    def __init__(
        self, methods: Sequence[str] = tuple(BALANCING_METHODS), seeds: int = 3, apply_from: int = 0, *,
        first_seed: int = 0, play: int = 0, max_steps: int = 600, device: str = "cpu", **settings: Any,
    ):  # fmt: skip
        values = {"seeds": seeds, "first_seed": first_seed, "apply_from": apply_from, "methods": methods}
        values["device"] = device
        values |= {"highlight": "auxiliary loss"}
        panels = panels_of(names_of(methods, "methods"))
        super().__init__(BALANCING_LAB, values, panels, settings, play=play, max_steps=max_steps, columns=None)

    def stops(self, name: str, values: Mapping[str, Any]) -> Any:
        return values["methods"] if name == "highlight" else super().stops(name, values)

    def check(self, values: Mapping[str, Any], given=()) -> dict[str, Any]:
        check_whole("seeds", values["seeds"], 1, MOST_SEEDS)
        check_whole("apply_from", values["apply_from"], 0, 10**6)
        names = names_of(values["methods"], "methods")
        if not 1 <= len(names) <= MOST_TILES:
            raise ValueError(f"methods must be 1 to {MOST_TILES} tiles, got {len(names)}")
        values = values | {"methods": names}
        self._settings(values)  # refuses what cannot be
        is_gone = "highlight" not in given and values["highlight"] not in names
        return super().check(values | ({"highlight": names[-1]} if is_gone else {}), given)

    def _settings(self, values: Mapping[str, Any]) -> tuple[PlaneSetting, dict[str, PlaneSetting]]:
        base = {name: values[name] for name in SETTING_FIELDS if name not in STRENGTHS.values()}
        base = replace(PRESETS["collapse"], **base)
        return base, {name: tile_setting(name, base, values) for name in values["methods"]}

    def make_runs(self, values: Mapping[str, Any]) -> dict[str, SeedBand]:
        base, _ = self._settings(values)
        first = values["first_seed"]
        collapse = Tile(base, SeedBand(base, range(first, first + values["seeds"]), values["device"]))
        collapse.read()
        self._collapse, self.tiles = collapse, {}
        self.turn(values)
        return self.runs

    def turn(self, values: Mapping[str, Any]) -> None:
        """Set other strengths, other tiles. New ones show the collapse until they branch off."""
        (base, settings), collapse = self._settings(values), self._collapse
        if base.lr != collapse.setting.lr and collapse.step > 0:
            collapse.changes.append(collapse.step)
        collapse.setting = base
        collapse.band.knobs.lr = base.lr
        self.tiles = {n: self.tiles.get(n) or replace(collapse, setting=setting) for n, setting in settings.items()}
        for name, tile in self.tiles.items():
            tile.turn(settings[name])
        self.runs = {name: tile.band for name, tile in self.tiles.items()}
        self.functions = panels_of(self.tiles)

    def applied(self) -> None:
        if self.behind > 1 and not self.loop.playing:  # a tile that was added: up to where the others are
            self.play(self.behind)

    def close(self) -> None:
        super().close()
        self.tiles, self._collapse = {}, None

    def train_one(self) -> None:
        """Train the tile that is furthest behind by one step, and a slider counts between tiles. New ones catch up.
        Where it fails, or is interrupted, tiles that are one step ahead take that back."""
        start = self.step
        with held_back() as signals:
            try:
                with signals.let_through():
                    self._train(min(self.tiles, key=lambda name: self.tiles[name].step))
            except BaseException as error:
                for band in set(self.runs.values()):  # where one diverges, the others may be about to
                    if isinstance(error, TrainingDiverged) or len(band.records) == start + 1:
                        band.take_back()
                self.went_back()
                raise

    def _train(self, name: str) -> None:
        tile = self.tiles[name]
        if not tile.has_branched and tile.step >= self.state.values["apply_from"]:
            tile = tile.branch()
        tile.band.step()
        self.tiles[name], self.runs[name] = tile, tile.band  # not before: a first step that fails leaves no branch
        if tile.step % (READ_EVERY_EARLY if tile.step < EARLY else READ_EVERY) == 0:
            tile.read()

    def went_back(self) -> None:
        super().went_back()
        for tile in (self._collapse, *self.tiles.values()):
            tile.readings = [reading for reading in tile.readings if reading.step <= tile.step]
            tile.changes = sorted({min(change, tile.step) for change in tile.changes} - {0})
            tile.turned = True

    def step_button(self, steps: int) -> None:
        """The buttons train while the picture moves: 50 rounds of all tiles take seconds."""
        if not self.running:
            self.play(steps)

    def refresh(self) -> None:
        for tile in () if self.loop.playing else self.tiles.values():
            tile.read()

    @property
    def behind(self) -> int:
        """Return how many steps one tile is behind another, at most."""
        return max(tile.step for tile in self.tiles.values()) - self.step

    def caption(self, tile: Tile) -> str:
        reading = tile.readings[-1]
        first = f"{_range(reading.dead, 1)} dead · {percent(reading.accuracy.mean())} accuracy"
        noisy = [f"with noise: {tile.recent('dead_experts'):.1f} dead"] if tile.is_noisy and tile.step else []
        return f"{first}\n{' · '.join(noisy + _unserved(tile)[:1])}"

    def words(self) -> str:
        if self.step == 0 and not self.behind:
            return "The same weights and data in all tiles. Press Play to see what becomes of them."
        if self.step < self.state.values["apply_from"]:
            return f"The plain collapse; the balancing methods start at step {self.state.values['apply_from']}."
        more = f" A new tile trains: {self.behind} steps to go." if self.behind > 1 else ""
        return f"{self.verdict()}.{more}"

    def verdict(self) -> str:
        """Say which tiles keep all experts."""
        used = (name for name, tile in self.tiles.items() if not tile.readings[-1].dead.any())
        return f"No dead expert: {', '.join(used) or 'in no tile'}"

    def lines(self) -> dict[str, Any]:
        """See `LiveRun`; the verdict stands in the line of the step, too."""
        return super().lines() | {"verdict": self.verdict() if self.step else ""}

    def reading(self) -> str:
        name = self.state.values["highlight"]
        tile = self.tiles[name]
        reading = tile.readings[-1]
        dead = f"{_range(reading.dead, 1)} of {self.state.values['num_experts']} experts dead"
        if tile.is_noisy and tile.step > 0:
            dead += f" without noise (the strip), {tile.recent('dead_experts'):.1f} with it (the film)"
        numbers = [dead, f"busiest expert {_range(reading.max_over_mean, 2)} times the mean"]
        numbers += [f"accuracy {_range(100 * reading.accuracy, 1)} %", *_unserved(tile)]
        return f"{name}: {_what(name, tile.setting)}. Now: {', '.join(numbers)}."

    def rows(self) -> list[W.Widget]:
        self.inputs["methods"] = CheckBoxes("methods", [*dict.fromkeys((*BALANCING_METHODS, *self.tiles))], _what)
        single = tuple(name for name in BALANCING_METHODS if name != "no balancing")
        style = {"layout": W.Layout(width="180px"), "style": {"description_width": "30px"}}
        first, second = "A tile with this method …", "… and this one; or alone, as strong as its slider says now"
        self._first = W.Dropdown(value="auxiliary loss", options=single, description="Add", tooltip=first, **style)
        self._second = W.Dropdown(
            value="capacity", options=(ALONE, *single), description="and", tooltip=second, **style
        )
        add = self.button("Add tile", "Train it up to where the others are", self._add, icon="plus")
        return [self.inputs["methods"], W.Box([self._first, self._second, add]).add_class("moe-bar")]

    def _add(self) -> None:
        first, second = self._first.value, self._second.value
        name = f"{first} + {second}"
        if second == ALONE:
            strength = self.state.values[STRENGTHS[first]] if first in STRENGTHS else None
            name = f"{first} {strength:g}" if strength is not None else first
        self.loop.trouble = ""
        self.apply({"methods": (*self.tiles, name)})


@cache  # for a name always the same function: what is drawn is kept by it
def panel_of(name: str) -> Callable[[Any], Panel]:
    return partial(panel_of_tile, name=name)


def panels_of(names: Sequence[str]) -> list[Callable[[Any], Panel]]:
    return [*(PANELS[name] for name in ("dead", "balance", "quality")), *map(panel_of, names)]


def _what(name: str, setting: PlaneSetting | None = None) -> str:
    """The methods of a tile in words; with its setting, as strong as they are."""
    texts = []
    for method in (split_strength(part)[0] for part in name.split(" + ")):
        texts.append(TIPS["methods"][method])
        if setting is not None and method in STRENGTHS:
            strength = getattr(setting, STRENGTHS[method])
            texts[-1] += f" ({strength:g})" if strength else " (off)"
    return "; ".join(texts)


def _unserved(tile: Tile) -> list[str]:
    """Say what is dropped and how many tokens have no expert, where there are any."""
    shares = {"dropped {}": "dropped_share", "no expert: {} of tokens": "unserved"} if tile.step else {}
    return [text.format(percent(tile.recent(name))) for text, name in shares.items() if tile.recent(name) > 0]


def _range(values: np.ndarray, digits: int) -> str:
    """The mean of the seeds and, where they differ, the lowest and the highest."""
    mean, low, high = (f"{round(float(value), digits):g}" for value in (values.mean(), values.min(), values.max()))
    return mean if low == high else f"{mean} ({low}–{high})"
